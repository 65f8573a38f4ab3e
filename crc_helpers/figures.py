"""Every plot of the course: functions take arrays and return the matplotlib figure.

Those of numbers with their intervals lie in `estimates`, and lessons find them here too.
"""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat, zip_longest
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from crc_helpers import style
from crc_helpers.estimates import (  # noqa: F401
    curve_panels,
    interval_panels,
    intervals,
    seed_panels,
)
from crc_helpers.runs import atomic_path
from crc_helpers.style import (  # noqa: F401 (for lessons)
    ARMS,
    CHANCE,
    CHOSEN,
    CONTROLS,
    SLIDES,
    VALUE,
    colours,
    drawable,
    set_style,
)

Array = np.ndarray
Names = Sequence[str]
Mask = Array | None  # uint8 (H, W), or (N, H, W) of N tiles: 1 in the pixels that decide
Arrays = dict[str, np.ndarray]  # by name
Boxes = Sequence[tuple[int, int, int, int]]  # x, y, width, height


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG or JPEG, by the path's suffix, atomically, and return it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return figure


def show_tile(
    ax: Axes, image: Array, title: str = "", mask: Mask = None, left: str = "", boxes: Boxes = ()
) -> None:
    """Draw one tile without axes, titles above and to the left, its region outlined, and boxes."""
    ax.imshow(np.moveaxis(np.asarray(image), 0, -1))
    outline(ax, mask)
    ax.autoscale(False)  # a box at the border must not widen the picture
    for x, y, w, h in boxes:
        ax.add_patch(plt.Rectangle((x, y), w, h, fill=False, ec=style.BOX, lw=2))
    ax.set_title(drawable(title), fontsize=10, parse_math=False)  # as in `set_style`
    place = {"transform": ax.transAxes, "ha": "right", "va": "center", "rotation": 90}
    ax.text(-0.03, 0.5, drawable(left), fontsize=10, **place)
    ax.set_axis_off()


def outline(ax: Axes, mask: Mask) -> None:
    """Draw the borders of a region (H, W) of 0 and 1; a tenth of the time of `axes.contour`."""
    if mask is not None:
        borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        look = {"edgecolor": style.REGION, "facecolor": "none", "linewidth": 1.6}
        ax.add_collection(PolyCollection([b[:, 0] for b in borders], **look), autolim=False)


def overlay(
    ax: Axes, image: Array, heat: Array, top: float, title: str = "", mask: Mask = None, alpha=0.55
) -> None:
    """Draw a heat map (H, W), coloured from 0 to `top`, over its tile in grey; outline a region."""
    grey, white = image.mean(axis=0), 255 if image.dtype == np.uint8 else 1
    ax.imshow(grey, cmap="gray", vmin=0, vmax=white)
    ax.imshow(heat, cmap=style.HEAT, vmin=0, vmax=max(top, 1e-12), alpha=alpha)
    outline(ax, mask)
    ax.set_title(drawable(title), fontsize=10)
    ax.set_axis_off()


def table(cells: Sequence[Callable[[Axes], None]], columns: int, width: float) -> Figure:
    """Draw pictures, row by row, `width` inches each; titles are broken to fit.

    cells: functions that draw a picture into axes, such as `partial(show_tile, image=...)`.
    """
    rows, letters = -(-len(cells) // columns), int(11 * width)  # bold letters of 10 points
    figure, axes = plt.subplots(rows, columns, squeeze=False)
    for ax, draw in zip_longest(axes.flat, cells, fillvalue=Axes.set_axis_off):
        draw(ax)
        for text in (ax.title, *ax.texts):
            lines = text.get_text().split("\n")
            broken = [textwrap.fill(x, letters, break_on_hyphens=False) for x in lines]
            text.set_text("\n".join(broken))
    lines = 1 + max(ax.get_title().count("\n") for ax in axes.flat)
    margin = 0.2 * max(len(text.get_text().split("\n")) for ax in axes.flat for text in ax.texts)
    figure.set_size_inches(columns * width + margin, rows * (width + 0.08 + 0.17 * lines))
    return figure


def tile_grid(
    images: Array, titles: Names = (), columns=4, masks: Mask = None, width=2.6, mpp=None
) -> Figure:
    """Draw tiles (3, H, W) in a grid, `width` inches each, their regions outlined if given.

    mpp: micrometres a pixel, for a scale bar in the first tile.
    """
    titles, masks = [*titles, *[""] * len(images)], repeat(None) if masks is None else masks
    tiles = zip(images, titles, masks, strict=False)  # titles may be more than tiles
    cells = [partial(show_tile, image=i, title=title, mask=mask) for i, title, mask in tiles]
    figure = table(cells, columns, width)
    scale_bar(figure.axes[0], mpp)
    return figure


def labelled(image: Array, names: dict[str, tuple[float, float]], mpp: float) -> Figure:
    """Draw a picture (3, H, W) with names beside it, each with a line to the pixel (x, y) it names.

    mpp: micrometres a pixel, for the scale bar.
    """
    figure, ax = plt.subplots(figsize=(10.5, 6))
    show_tile(ax, image)
    scale_bar(ax, mpp)
    width = image.shape[2]
    for name, (x, y) in names.items():
        edge, side = (-0.05, "right") if x < width / 2 else (1.05, "left")
        line = {"arrowstyle": "-", "color": "black", "linewidth": 1.4}
        look = {"ha": side, "va": "center", "fontsize": 12, "arrowprops": line}
        ax.annotate(drawable(name), (x, y), (edge * width, y), annotation_clip=False, **look)
        ax.plot(x, y, "o", color="white", markeredgecolor="black", markersize=6)
    return figure


def scale_bar(ax: Axes, mpp: float | None, length: int = 100) -> None:
    """Draw a bar of `length` micrometres into a picture's lower right corner, if mpp is known."""
    if mpp:
        right, bottom = 0.97 * ax.get_xlim()[1], 0.95 * ax.get_ylim()[0]
        ax.plot([right - length / mpp, right], [bottom, bottom], "k", linewidth=3)
        box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
        look = {"ha": "center", "va": "bottom", "fontsize": 9, "bbox": box}
        ax.text(right - length / mpp / 2, 0.97 * bottom, f"{length} µm", **look)


def slide(image: Array, mask: Array, titles: Names, mpp: float | None = None) -> Figure:
    """Draw a slide (3, H, W) with its region outlined and the borders of its square tiles."""
    height, width = image.shape[1:]
    figure, ax = plt.subplots(figsize=(15.5, 15.5 * height / width + 0.65))
    show_tile(ax, image, mask=mask)
    scale_bar(ax, mpp)
    for start, title in zip(np.linspace(0, width - height, len(titles)), titles, strict=True):
        ax.text(start + height / 2, -8, drawable(title), ha="center", va="bottom", fontsize=10)
        square = plt.Rectangle((start, 0), height, height, fill=False, linestyle=":", linewidth=2)
        ax.add_patch(square)
    return figure


def explanations(
    images: Array, heats: Array, boxes: Sequence[Boxes], titles: Sequence[Names], masks: Mask = None
) -> Figure:
    """Draw the paper's Figure 5, original | heat map | boxes, for tiles in two columns.

    images (N, 3, H, W) uint8, heats (N, H, W) raw on one colour scale, boxes a list a tile, titles
    (left, right) a tile, masks (N, H, W) outlined where given. The first half goes to the left.
    """
    top, cells = float(np.max(heats)), []
    for k in np.arange(len(images) + len(images) % 2).reshape(2, -1).T.ravel()[: len(images)]:
        tile = {"image": images[k], "mask": None if masks is None else masks[k]}
        words = f"Grad-CAM, at most {heats[k].max():.2g}"
        cells.append(partial(show_tile, title=titles[k][0], **tile))
        cells.append(partial(overlay, heat=heats[k], top=top, title=words, **tile))
        cells.append(partial(show_tile, title=titles[k][1], boxes=boxes[k], **tile))
    figure = table(cells, 6, width=2.3)
    scale, label = (
        plt.cm.ScalarMappable(plt.Normalize(0, top), style.HEAT),
        "Grad-CAM, raw, one scale",
    )
    figure.colorbar(scale, ax=figure.axes, label=label, shrink=0.6, aspect=30)
    return figure


def heat_row(image: Array, heats: Arrays, mask: Mask = None, shared=True, width=2.6) -> Figure:
    """Draw one tile and several maps (H, W) of it; shared puts them on one colour scale."""
    top = max(float(heat.max()) for heat in heats.values()) if shared else 0
    maps, masks = {n: heat[None] for n, heat in heats.items()}, None if mask is None else mask[None]
    return heat_rows(image[None], maps, [""], masks, top, width)


def heat_rows(
    images: Array, heats: Arrays, names: Names, masks: Mask = None, top: float = 0, width=1.95
) -> Figure:
    """Draw a tile a row (3, H, W) and its maps beside it, heats (N, h, w) by name.

    top: end of the colour scale; at 0 each map has its own, as methods differ in their units.
    """
    cells = []
    for k, (image, name) in enumerate(zip(images, names, strict=True)):
        tile = {"image": image, "mask": None if masks is None else masks[k]}
        cells.append(partial(show_tile, title="" if k else "tile", left=name, **tile))
        for title, heat in heats.items():
            pixels = cv2.resize(heat[k], image.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
            look = {"heat": pixels, "top": top or float(pixels.max())} | tile
            cells.append(partial(overlay, title="" if k else title, **look))
    return table(cells, len(heats) + 1, width)


def class_and_split(counts: pd.DataFrame, discarded: int = 0) -> Figure:
    """Draw the paper's Figure 1: tiles a class and part as bars, parts of the whole as a pie.

    counts: rows parts ("train", ...), columns classes.
    """
    figure, (bar, pie) = plt.subplots(1, 2, figsize=(10, 3.8))
    inks, parts = [style.PARTS[part] for part in counts.index], counts.sum(axis=1)
    shown = counts.rename(columns=drawable).T
    shown.plot.bar(stacked=True, color=inks, rot=0, ylabel="tiles", title="Tiles per class", ax=bar)
    for bars in bar.containers:
        bar.bar_label(bars, fmt=lambda n: f"{n:,.0f}" if n else "", label_type="center", color="w")
    names = [f"{part}\n{n:,} ({n / parts.sum():.0%})" for part, n in parts.items()]
    pie.pie(parts, labels=names, colors=inks, startangle=90, wedgeprops={"width": 0.5, "ec": "w"})
    pie.set_title("Tiles per part" + (f" ({discarded:,} discarded)" if discarded else ""))
    return figure


def votes_histogram(
    votes: Array, class_names: Names, published: Sequence[int] | None = None
) -> Figure:
    """Draw how many of seven readers chose the second class; votes (N,), published (8,) counts."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    ax.bar(
        range(8),
        np.bincount(votes, minlength=8) / len(votes),
        color=np.repeat(style.CLASSES[:2], 4),
    )
    if published is not None:
        look = {"markersize": 26, "markeredgewidth": 2, "label": "MHIST, as published"}
        ax.plot(range(8), np.divide(published, sum(published)), "k_", **look)
        ax.legend(frameon=False)
    ax.axvline(3.5, **style.CHANCE)
    names, top = [drawable(name) for name in class_names], ax.get_ylim()[1]
    for name, colour, x, side in zip(
        names, style.CLASSES, (3.4, 3.6), ("right", "left"), strict=False
    ):
        ax.text(x, top, name, ha=side, va="top", color=colour, weight="bold")
    ax.set(xlabel=f"readers of seven who chose {names[1]}", ylabel="share of tiles")
    ax.set_xticks(range(8))
    return figure


def colour_scatter(
    features: Array, labels: Array, class_names: Names, groups: Array | None = None
) -> Figure:
    """Draw the two main components of colour statistics (N, 15), by class and by slide."""
    points = PCA(2).fit_transform(StandardScaler().fit_transform(features))
    figure, axes = plt.subplots(1, 1 if groups is None else 2, figsize=(10, 4), squeeze=False)
    scatter(axes[0, 0], points, labels, class_names, "by class")
    for ax in axes[0, 1:]:
        largest = pd.Series(groups).value_counts().index[:8]
        codes = pd.Index(largest).get_indexer(groups)  # -1 for all other slides
        ax.scatter(*points[codes < 0].T, s=6, color="0.85")
        scatter(
            ax, points, codes, largest.astype(str), "the same, eight groups coloured", style.SLIDES
        )
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scatter(
    ax: Axes, points: Array, labels: Array, names: Names, title: str, inks: Sequence = style.CLASSES
) -> None:
    """Scatter points (N, 2) coloured by label (N,)."""
    inks = inks if len(names) <= len(inks) else sns.color_palette("husl", len(names))
    for c, (name, ink) in enumerate(zip(names, inks, strict=False)):
        look = {"s": 24, "linewidths": 0.5, "edgecolors": "0.3", "label": drawable(name)}
        ax.scatter(*points[labels == c].T, color=ink, **look)
    ax.set(title=drawable(title), xlabel="component 1", ylabel="component 2", xticks=[], yticks=[])
    ax.legend(frameon=False, fontsize=9, markerscale=1.6)


def similarity_matrix(similarity: Array, names: Names, title: str = "") -> Figure:
    """Draw cosine similarities (2N, 2N) with their values, the two views of a tile framed."""
    figure, ax = plt.subplots(figsize=(6.6, 5.4))
    look = {"cmap": "vlag", "vmin": -1, "vmax": 1, "square": True, "annot_kws": {"size": 9}}
    shown = pd.DataFrame(similarity, names, names)
    sns.heatmap(shown, annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "cosine"}, **look)
    for i, partner in enumerate(np.roll(np.arange(len(names)), len(names) // 2)):
        ax.add_patch(plt.Rectangle((partner, i), 1, 1, fill=False, ec="k", lw=2))
    ax.set_title(title)
    return figure


def over_epochs(logs: dict[str, pd.DataFrame], label: str) -> tuple[pd.DataFrame, Figure, Array]:
    """Return all logs in one table with a column `run`, and a figure with two axes over epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for ax in axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
    return pd.concat(logs, names=[label, "row"]).reset_index(), figure, axes


def loss_curve(
    logs: dict[str, pd.DataFrame], chance: float, floor: float, classes: int = 2
) -> Figure:
    """Draw contrastive losses between their two landmarks, and the kNN accuracy beside them."""
    log, figure, (left, right) = over_epochs(logs, "views")
    look = {
        "hue": "views",
        "palette": colours(list(logs)),
        "marker": "o",
        "markeredgewidth": 0,
        "errorbar": None,
    }
    sns.lineplot(log, x="epoch", y="loss", ax=left, **look)
    if "knn" in log:
        sns.lineplot(log.dropna(subset="knn"), x="epoch", y="knn", ax=right, legend=False, **look)
    for value, name in ((chance, "chance: ln(2N − 1)"), (floor, "orthogonal negatives")):
        left.axhline(value, **style.CHANCE)
        place = {"xy": (0.98, value), "xycoords": ("axes fraction", "data"), "ha": "right"}
        left.annotate(f"{name} = {value:.2f}", va="bottom", color="0.35", fontsize=10, **place)
    left.set(title="Loss", ylabel="NT-Xent", ylim=(floor - 0.25, chance + 0.35))
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.08), title="views")
    right.set(title="kNN (labels only to watch)", ylabel="balanced accuracy")
    right.axhline(1 / classes, **style.CHANCE)
    return figure


def learning_curves(logs: dict[str, pd.DataFrame], majority: float) -> Figure:
    """Draw training and validation loss and validation accuracy of runs: a colour an arm."""
    log, figure, (left, right) = over_epochs(logs, "run")
    inks, widths = colours(list(logs)), {}
    for name, ink in inks.items():  # of the runs of one arm, which differ in their rate
        widths[name] = 1 + 1.5 * list(inks.values())[: len(widths)].count(ink)
    look = {
        "x": "epoch",
        "hue": "run",
        "errorbar": None,
        "size": "run",
        "sizes": widths,
        "palette": inks,
    }
    sns.lineplot(log, y="loss", linestyle=":", ax=left, legend=False, **look)
    if "val_loss" in log:
        chosen = log[log["chosen"] == True]  # noqa: E712 (NaN in a log without validation)
        for ax, column in ((left, "val_loss"), (right, "val_balanced_accuracy")):
            sns.lineplot(log, y=column, ax=ax, legend=ax is left, **look)
            ax.scatter(chosen["epoch"], chosen[column], s=80, c=chosen["run"].map(inks).tolist())
        handles = left.get_legend_handles_labels()
        left.get_legend().remove()
        figure.legend(*handles, loc="outside lower center", ncol=3, frameon=False, fontsize=10)
    left.set(title="Loss: dotted train, solid validation", ylabel="cross-entropy")
    right.set(title="Validation accuracy, ● chosen epoch", ylabel="balanced accuracy")
    right.axhline(majority, **style.CHANCE)
    return figure


def confusion(counts: Array, names: Names, title: str = "", ax: Axes | None = None) -> Figure:
    """Draw a confusion matrix (C, C), rows truth, with counts and the share of each row."""
    ax = ax or plt.subplots(figsize=(1.5 + 1.5 * len(names), 1.2 + 1.2 * len(names)))[1]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = metrics.ConfusionMatrixDisplay(share, display_labels=[drawable(n) for n in names])
    shown.plot(ax=ax, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for text, n, part in zip(shown.text_.flat, counts.flat, share.flat, strict=True):
        text.set(text=f"{n}\n{part:.0%}", fontsize=13)
    ax.set(xlabel="predicted", ylabel="truth", title=drawable(title))
    return ax.figure


def roc_and_precision_recall(labels: Array, scores: Arrays, groups: Array | None = None) -> Figure:
    """Draw ROC and precision-recall curves; the first score's band is 95 % of 300 resamples.

    labels (N,) of 0 and 1; scores: name to the probability of class 1 (N,); groups (N,) are drawn
    whole by the bootstrap.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.9))
    first, *_ = scores.values()
    ids = np.unique(np.arange(len(labels)) if groups is None else groups, return_inverse=True)[1]
    members = [np.flatnonzero(ids == g) for g in range(ids.max() + 1)]
    rng, grid, bands = np.random.default_rng(0), np.linspace(0, 1, 101), ([], [])
    for _ in range(300):
        i = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        if labels[i].min() < labels[i].max():
            bands[0].append(np.interp(grid, *metrics.roc_curve(labels[i], first[i])[:2]))
            precision, recall, _ = metrics.precision_recall_curve(labels[i], first[i])
            bands[1].append(np.interp(grid, recall[::-1], precision[::-1]))
    kinds, inks = (metrics.RocCurveDisplay, metrics.PrecisionRecallDisplay), colours(list(scores))
    for ax, kind, band in zip(axes, kinds, bands, strict=True):
        ax.set_prop_cycle(color=list(inks.values()))
        for name, score in scores.items():
            kind.from_predictions(labels, score, name=drawable(name), ax=ax)
        low, high = np.quantile(band, [0.025, 0.975], axis=0)
        ax.fill_between(grid, low, high, color=next(iter(inks.values())), alpha=0.18, linewidth=0)
        ax.legend(frameon=False, fontsize=9, loc="lower center")
    axes[0].plot([0, 1], [0, 1], **style.CHANCE)
    axes[1].axhline(labels.mean(), **style.CHANCE)
    axes[0].set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    axes[1].set(xlabel="recall", ylabel="precision", title="Precision–recall")
    return figure
