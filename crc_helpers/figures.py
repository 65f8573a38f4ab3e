"""Every plot of the course: functions take arrays and return the matplotlib figure."""

import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager, get_cachedir
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from sklearn import metrics
from sklearn.calibration import CalibrationDisplay
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from crc_helpers.runs import atomic_path

PALETTE = sns.color_palette("colorblind")
# One colour, one meaning, in every figure alike.
CLASSES = [PALETTE[k] for k in (0, 3, 8, 9, 7, 6)]  # HP blue, SSA vermilion, then further classes
ARMS = [PALETTE[k] for k in (2, 4, 1, 5, 9, 8)]  # what is compared: recipes, networks, methods
SLIDES = sns.color_palette("Set2", 8)
PARTS = ["0.2", "0.4", "0.55", "0.8"]  # train, val, test, discarded
VALUE, CONTROL, CHOSEN = "#3b3b6d", "0.55", "#b3003b"  # a measurement, a control, one picked out
REGION, BOX = "#00e5ff", "#ffd400"  # the pixels that decide, and pixels found or lost
CHANCE = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
HEAT = "inferno"  # perceptually uniform, readable with any colour vision

Array, Names = np.ndarray, Sequence[str]
Mask = Array | None  # uint8 (H, W), or (N, H, W) of N tiles: 1 in the pixels that decide
Arrays = dict[str, np.ndarray]  # by name
Boxes = Sequence[tuple[int, int, int, int]]  # x, y, width, height
Rows = Sequence[tuple[str, float, float, float]]  # name, value, low and high end of its interval


def set_style() -> None:
    """Set fonts, sizes and resolution for a whole lesson.

    Pictures in notebooks are JPEG: as PNG the grain of tissue makes files that code hosts refuse.
    """
    from matplotlib_inline.backend_inline import set_matplotlib_formats  # not outside Jupyter

    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 72})
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rc("figure", dpi=80)
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=110)
    plt.rc("text", parse_math=False)  # a $ in the name of a class or file is no formula
    plt.rc("axes.spines", top=False, right=False)
    # Without titley matplotlib lays out every tick, even hidden ones, to place a title.
    plt.rc("axes", titlesize=12, titleweight="bold", titley=1.0)
    asian = filter(None, map(font_with, "漢한"))  # for titles of axes, which are made before names
    plt.rc("font", family=list(dict.fromkeys(["sans-serif", *asian])))


def drawable(text: str) -> str:
    """Return a text that matplotlib can draw: characters that no font here has are escaped.

    A font that has what those in use lack is used for all axes made from here on.
    """
    fonts = {c: c.isprintable() and font_with(c) for c in set(text) - {"\n"}}
    families = [*plt.rcParams["font.family"], *filter(None, fonts.values())]
    plt.rcParams["font.family"] = list(dict.fromkeys(families))
    if lacking := "".join(c for c, font in fonts.items() if font is None):
        warnings.warn(
            f"no font here has {lacking}, drawn as numbers: install one, such as Noto, and delete"
            f" {get_cachedir()}, where matplotlib keeps its list of fonts",
            stacklevel=2,
        )
    return "".join(c if fonts.get(c, c) else c.encode("unicode_escape").decode() for c in text)


@cache
def font_with(character: str) -> str | None:
    """Return the family of a font here that has a character, one in use if it can."""
    used = [(FontProperties(family=[name]), name) for name in plt.rcParams["font.family"]]
    fonts = [(font_manager.findfont(font), name) for font, name in used]
    fonts += [(font.fname, font.name) for font in font_manager.fontManager.ttflist]
    for path, name in fonts:
        boxes = "LastResort" in name.replace(" ", "")  # it has them all, as boxes
        if not boxes and Path(path).is_file() and FT2Font(path).get_char_index(ord(character)):
            return name
    return None


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG or JPEG, by the path's suffix, atomically, and return it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return figure


def as_picture(image: Array) -> Array:
    """Turn a tile (3, H, W), uint8 or float in [0, 1], into (H, W, 3) for imshow."""
    return np.moveaxis(np.asarray(image), 0, -1)


def show_tile(
    ax: Axes, image: Array, title: str = "", mask: Mask = None, left: str = "", boxes: Boxes = ()
) -> None:
    """Draw one tile without axes, titles above and to the left, its region outlined, and boxes."""
    ax.imshow(as_picture(image))
    outline(ax, mask)
    draw_boxes(ax, boxes)
    ax.set_title(drawable(title), fontsize=10, parse_math=False)  # as in `set_style`
    place = {"transform": ax.transAxes, "ha": "right", "va": "center", "rotation": 90}
    ax.text(-0.03, 0.5, drawable(left), fontsize=10, **place)
    ax.set_axis_off()


def outline(ax: Axes, mask: Mask) -> None:
    """Draw the borders of a region (H, W) of 0 and 1; a tenth of the time of `axes.contour`."""
    if mask is not None:
        borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        look = {"edgecolor": REGION, "facecolor": "none", "linewidth": 1.6}
        ax.add_collection(PolyCollection([b[:, 0] for b in borders], **look), autolim=False)


def overlay(
    ax: Axes, image: Array, heat: Array, top: float, title: str = "", mask: Mask = None, alpha=0.55
) -> None:
    """Draw a heat map (H, W), coloured from 0 to `top`, over its tile in grey; outline a region."""
    grey, white = as_picture(image).mean(axis=2), 255 if image.dtype == np.uint8 else 1
    ax.imshow(grey, cmap="gray", vmin=0, vmax=white)
    ax.imshow(heat, cmap=HEAT, vmin=0, vmax=max(top, 1e-12), alpha=alpha)
    outline(ax, mask)
    ax.set_title(drawable(title), fontsize=10)
    ax.set_axis_off()


def draw_boxes(ax: Axes, boxes: Boxes) -> None:
    """Draw rectangles (x, y, width, height)."""
    ax.autoscale(False)  # a box at the border must not widen the picture
    for x, y, w, h in boxes:
        ax.add_patch(plt.Rectangle((x, y), w, h, fill=False, ec=BOX, lw=2))


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
    given = zip_longest(images, titles, () if masks is None else masks)
    cells = [partial(show_tile, image=i, title=t or "", mask=mask) for i, t, mask in given]
    figure = table(cells, columns, width)
    scale_bar(figure.axes[0], mpp)
    return figure


def image_rows(
    rows: Sequence[Sequence[Array]], row_titles: Names, column_titles: Names, width: float = 1.9
) -> Figure:
    """Draw a table of images with titles left and above."""
    cells = [
        partial(show_tile, image=image, title="" if r else column_titles[c], left="" if c else name)
        for r, (row, name) in enumerate(zip(rows, row_titles, strict=True))
        for c, image in enumerate(row)
    ]
    return table(cells, len(rows[0]), width)


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
    top, half, cells = float(np.max(heats)), -(-len(images) // 2), []
    for k in (k for r in range(half) for k in (r, r + half) if k < len(images)):
        mask, words = None if masks is None else masks[k], f"Grad-CAM, at most {heats[k].max():.2g}"
        left, right = (partial(show_tile, image=images[k], title=t, mask=mask) for t in titles[k])
        heat = partial(overlay, image=images[k], heat=heats[k], top=top, title=words, mask=mask)
        cells += [left, heat, partial(right, boxes=boxes[k])]
    figure = table(cells, 6, width=2.3)
    scale, label = plt.cm.ScalarMappable(plt.Normalize(0, top), HEAT), "Grad-CAM, raw, one scale"
    figure.colorbar(scale, ax=figure.axes, label=label, shrink=0.6, aspect=30)
    return figure


def heat_row(
    image: Array, heats: Arrays, mask: Mask = None, shared: bool = True, width: float = 2.6
) -> Figure:
    """Draw one tile and several maps (H, W) of it; shared puts them on one colour scale."""
    top = max(float(heat.max()) for heat in heats.values()) if shared else 0
    maps = {name: heat[None] for name, heat in heats.items()}
    return heat_rows(image[None], maps, [""], None if mask is None else mask[None], top, width)


def heat_rows(
    images: Array, heats: Arrays, names: Names, masks: Mask = None, top: float = 0, width=1.95
) -> Figure:
    """Draw a tile a row (3, H, W) and its maps beside it, heats (N, h, w) by name.

    top: end of the colour scale; at 0 each map has its own, as methods differ in their units.
    """
    cells = []
    for k, (image, name) in enumerate(zip(images, names, strict=True)):
        more = {"image": image, "mask": None if masks is None else masks[k]}
        cells.append(partial(show_tile, title="" if k else "tile", left=name, **more))
        for title, heat in heats.items():
            pixels = cv2.resize(heat[k], image.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
            more |= {"heat": pixels, "top": top or float(pixels.max())}
            cells.append(partial(overlay, title="" if k else title, **more))
    return table(cells, len(heats) + 1, width)


def class_and_split(counts: pd.DataFrame, discarded: int = 0) -> Figure:
    """Draw the paper's Figure 1: tiles a class and part as bars, parts of the whole as a pie.

    counts: rows parts ("train", ...), columns classes.
    """
    figure, (bar, pie) = plt.subplots(1, 2, figsize=(10, 3.8))
    shown = counts.rename(columns=drawable)
    shown.T.plot.bar(stacked=True, color=PARTS, width=0.6, rot=0, ylabel="tiles", ax=bar)
    for bars in bar.containers:
        numbers = [f"{n:,.0f}" if n else "" for n in bars.datavalues]
        bar.bar_label(bars, labels=numbers, label_type="center", color="white", fontsize=10)
    bar.set_title("Tiles per class")
    bar.legend(frameon=False)
    parts = counts.sum(axis=1)
    names = [f"{part}\n{n:,} ({n / parts.sum():.0%})" for part, n in parts.items()]
    ring = {"width": 0.5, "edgecolor": "white"}
    pie.pie(parts, labels=names, colors=PARTS, startangle=90, counterclock=False, wedgeprops=ring)
    pie.set_title("Tiles per part" + (f" ({discarded:,} discarded)" if discarded else ""))
    return figure


def votes_histogram(
    votes: Array, class_names: Names, published: Sequence[int] | None = None
) -> Figure:
    """Draw how many of seven readers chose the second class; votes (N,), published (8,) counts."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    share = np.bincount(votes, minlength=8) / len(votes)
    ax.bar(range(8), share, color=[CLASSES[k > 3] for k in range(8)], width=0.75)
    if published is not None:
        look = {"markersize": 26, "markeredgewidth": 2, "label": "MHIST, as published"}
        ax.plot(range(8), np.divide(published, sum(published)), "k_", **look)
        ax.legend(frameon=False)
    ax.axvline(3.5, **CHANCE)
    names, top = [drawable(name) for name in class_names], ax.get_ylim()[1]
    for name, colour, x, side in zip(names, CLASSES, (3.4, 3.6), ("right", "left"), strict=False):
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
    embedding_axes(axes[0, 0], points, labels, class_names, "by class")
    if groups is not None:
        largest = pd.Series(groups).value_counts().index[:8]
        codes = pd.Index(largest).get_indexer(groups)  # -1 for all other slides
        axes[0, 1].scatter(*points[codes < 0].T, s=6, color="0.85")
        title = "the same, eight groups coloured"
        embedding_axes(axes[0, 1], points, codes, largest.astype(str), title, SLIDES)
        axes[0, 1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def embedding_axes(
    ax: Axes, points: Array, labels: Array, names: Names, title: str, colours: Sequence = CLASSES
) -> None:
    """Scatter points (N, 2) coloured by label (N,)."""
    if len(names) > len(colours):
        colours = sns.color_palette("husl", len(names))
    for c, (name, colour) in enumerate(zip(names, colours, strict=False)):
        dots, look = points[labels == c].T, {"s": 18, "alpha": 0.8, "linewidths": 0}
        ax.scatter(*dots, color=colour, label=drawable(name), **look)
    ax.set(title=drawable(title), xlabel="component 1", ylabel="component 2")
    ax.set(xticks=[], yticks=[])
    ax.legend(frameon=False, fontsize=9, markerscale=1.6)


def embedding_maps(maps: Arrays, labels: Array, class_names: Names) -> Figure:
    """Draw several 2-d maps (N, 2) of the same tiles, two beside each other."""
    columns, rows = min(len(maps), 2), -(-len(maps) // 2)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4.1 * rows), squeeze=False)
    for ax, (title, points) in zip(axes.flat, maps.items(), strict=False):
        embedding_axes(ax, points, labels, class_names, title)
    return figure


def similarity_matrix(similarity: Array, names: Names, title: str = "") -> Figure:
    """Draw cosine similarities (2N, 2N) with their values, the two views of a tile framed."""
    figure, ax = plt.subplots(figsize=(6.6, 5.4))
    shown = pd.DataFrame(similarity, index=names, columns=names)
    look = {"cmap": "vlag", "vmin": -1, "vmax": 1, "square": True, "annot_kws": {"size": 9}}
    sns.heatmap(shown, annot=True, fmt=".2f", ax=ax, cbar_kws={"label": "cosine"}, **look)
    for i, partner in enumerate(np.roll(np.arange(len(names)), len(names) // 2)):
        ax.add_patch(plt.Rectangle((partner, i), 1, 1, fill=False, ec="k", lw=2))
    ax.set_title(title)
    return figure


def temperature_curves(temperatures: Sequence[float]) -> Figure:
    """Draw how strongly a negative of each similarity pulls, for several temperatures."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    cosines, colours = np.linspace(-1, 1, 200), sns.color_palette("viridis", len(temperatures))
    for tau, colour in zip(temperatures, colours, strict=True):
        weight = np.exp(cosines / tau)
        ax.plot(cosines, weight / weight.mean(), color=colour, label=f"τ = {tau}", linewidth=2)
    ax.axhline(1, **CHANCE)
    ax.set(yscale="log", ylim=(1e-3, 1e2), ylabel="its pull, relative to the mean")
    ax.set_xlabel("cosine similarity of a negative to the anchor")
    for power in ax.get_yticklabels():
        power.set_parse_math(True)
    ax.legend(frameon=False)
    return figure


def over_epochs(titles: Names, ylabels: Names) -> tuple[Figure, Array]:
    """Return a figure with two axes over whole epochs."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for ax, title, ylabel in zip(axes, titles, ylabels, strict=True):
        ax.set(title=title, xlabel="epoch", ylabel=ylabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def loss_curve(
    logs: dict[str, pd.DataFrame], chance: float, floor: float, classes: int = 2
) -> Figure:
    """Draw contrastive losses between their two landmarks, and the kNN accuracy beside them."""
    titles = "Loss", "kNN (labels only to watch)"
    figure, (left, right) = over_epochs(titles, ("NT-Xent", "balanced accuracy"))
    for (name, log), colour in zip(logs.items(), ARMS, strict=False):
        look = {"color": colour, "label": f"{name} views"}
        left.plot(log["epoch"], log["loss"], "o-", markersize=4, **look)
        watched = log.reindex(columns=["epoch", "knn"]).dropna()
        right.plot(watched["epoch"], watched["knn"], "o-", **look)
    for value, name in ((chance, "chance: ln(2N − 1)"), (floor, "floor: perfect, orthogonal")):
        left.axhline(value, **CHANCE)
        place = {"xy": (0.98, value), "xycoords": ("axes fraction", "data"), "ha": "right"}
        left.annotate(f"{name} = {value:.2f}", va="bottom", color="0.35", fontsize=10, **place)
    left.legend(frameon=False, loc="center right")
    left.set_ylim(floor - 0.25, chance + 0.35)
    right.axhline(1 / classes, **CHANCE)
    return figure


def learning_curves(logs: dict[str, pd.DataFrame], majority: float) -> Figure:
    """Draw training and validation loss and validation accuracy of several runs."""
    titles = "Loss: dotted train, solid validation", "Validation accuracy, ● chosen epoch"
    figure, (left, right) = over_epochs(titles, ("cross-entropy", "balanced accuracy"))
    for (name, log), colour in zip(logs.items(), ARMS, strict=False):
        left.plot(log["epoch"], log["loss"], ":", color=colour)
        if "val_loss" in log:
            chosen = log[log["chosen"]]
            for ax, column in ((left, "val_loss"), (right, "val_balanced_accuracy")):
                ax.plot(log["epoch"], log[column], color=colour, label=name)
                ax.plot(chosen["epoch"], chosen[column], "o", color=colour, markersize=9)
            left.legend(frameon=False, fontsize=9)
    right.axhline(majority, **CHANCE)
    return figure


def confusion(counts: Array, names: Names, title: str = "", ax: Axes | None = None) -> Figure:
    """Draw a confusion matrix (C, C), rows truth, with counts and the share of each row."""
    size = 1.5 + 1.5 * len(names), 1.2 + 1.2 * len(names)
    ax = ax or plt.subplots(figsize=size)[1]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [drawable(name) for name in names]
    shown = metrics.ConfusionMatrixDisplay(share, display_labels=names)
    shown.plot(ax=ax, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    for text, n, part in zip(shown.text_.flat, counts.flat, share.flat, strict=True):
        text.set(text=f"{n}\n{part:.0%}", fontsize=13)
    ax.set(xlabel="predicted", ylabel="truth", title=drawable(title))
    return ax.figure


def roc_and_precision_recall(labels: Array, scores: Arrays, groups: Array | None = None) -> Figure:
    """Draw ROC and precision-recall curves; the first score gets a 95 % bootstrap band.

    labels (N,) of 0 and 1; scores: name to the probability of class 1 (N,). The band is pointwise,
    over groups where given.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.9))
    curves = metrics.RocCurveDisplay, metrics.PrecisionRecallDisplay
    bands, grid = curve_bands(labels, next(iter(scores.values())), groups), np.linspace(0, 1, 101)
    for ax, curve, (low, high) in zip(axes, curves, bands, strict=True):
        ax.set_prop_cycle(color=ARMS)
        for name, score in scores.items():
            curve.from_predictions(labels, score, name=drawable(name), ax=ax)
        ax.fill_between(grid, low, high, color=ARMS[0], alpha=0.18, linewidth=0)
        ax.legend(frameon=False, fontsize=9, loc="lower center")
    axes[0].plot([0, 1], [0, 1], **CHANCE)
    axes[1].axhline(labels.mean(), **CHANCE)
    axes[0].set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    axes[1].set(xlabel="recall", ylabel="precision", title="Precision–recall")
    return figure


def curve_bands(
    labels: Array, score: Array, groups: Array | None, samples: int = 300
) -> tuple[Array, Array]:
    """Return low and high ends (2, 101) of the ROC and of the precision-recall curve."""
    rng, grid = np.random.default_rng(0), np.linspace(0, 1, 101)
    ids = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    members, roc, pr = [np.flatnonzero(ids == g) for g in range(ids.max() + 1)], [], []
    for _ in range(samples):
        i = np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])
        if labels[i].min() < labels[i].max():
            roc.append(np.interp(grid, *metrics.roc_curve(labels[i], score[i])[:2]))
            precision, recall, _ = metrics.precision_recall_curve(labels[i], score[i])
            pr.append(np.interp(grid, recall[::-1], precision[::-1]))
    return tuple(np.quantile(curves, [0.025, 0.975], axis=0) for curves in (roc, pr))


def calibration(labels: Array, score: Array, bins: int = 8) -> Figure:
    """Draw the observed against the predicted share of class 1, tiles a bin below."""
    figure, (top, below) = plt.subplots(2, 1, figsize=(5.4, 5.2), height_ratios=[3, 1], sharex=True)
    CalibrationDisplay.from_predictions(labels, score, n_bins=bins, ax=top, color=VALUE)
    top.get_legend().remove()
    top.set(xlabel="", ylabel="observed share", title="Calibration")
    below.hist(score, bins=np.linspace(0, 1, bins + 1), color=CONTROL, edgecolor="white")
    below.set(xlabel="predicted probability", ylabel="tiles")
    return figure


def intervals(
    rows: Rows, xlabel: str, landmark: float | None = None, landmark_name: str = "chance"
) -> Figure:
    """Draw (name, value, low, high) rows as points with their intervals, in numbers beside them."""
    figure, ax = plt.subplots(figsize=(8.5, 0.7 + 0.42 * len(rows)))
    draw_intervals(ax, rows, (landmark, landmark_name), "{:.3f} [{:.3f}, {:.3f}]")
    ax.set_xlabel(xlabel)
    return figure


def interval_panels(
    panels: dict[str, Rows], landmarks: dict | None = None, controls: Names = (), width: float = 3.3
) -> Figure:
    """Draw several scores of the same things side by side, a panel of (name, value, low, high) rows
    each; `landmarks` has a panel's value and name of chance, `controls` are drawn in grey.
    """
    size = width * len(panels) + 1.9, 0.95 + 0.34 * max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        mark = (landmarks or {}).get(title, (None, ""))
        draw_intervals(ax, rows, mark, "{:z.2f}", controls)
        ax.set_title(drawable(title), fontsize=11)
        ax.tick_params(labelsize=10)
    return figure


def draw_intervals(
    ax: Axes, rows: Rows, mark: tuple[float | None, str], numbers: str, controls: Names = ()
) -> None:
    """Draw rows as points with intervals; numbers: a format of value, low and high beside them."""
    for y, (name, value, low, high) in enumerate(rows):
        colour, shape = (CONTROL, "s") if name in controls else (VALUE, "o")
        ax.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        ax.plot(value, y, shape, color=colour, markersize=6.5)
        place = {"xy": (1.01, y), "xycoords": ("axes fraction", "data"), "va": "center"}
        text = "none" if np.isnan(value) else numbers.format(value, low, high)
        ax.annotate(text, fontsize=10, color=colour, **place)
    if mark[0] is not None:
        ax.axvline(mark[0], **CHANCE)
        ax.text(mark[0], len(rows) - 0.45, f" {mark[1]}", va="bottom", color="0.35", fontsize=9)
    names = [drawable(row[0]) for row in rows]
    ax.set(yticks=range(len(rows)), yticklabels=names, ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="x", color="0.9")


def split_luck(rows: pd.DataFrame, draw: int = 0) -> Figure:
    """Draw the accuracies of many splits of one cohort, a panel a scheme; one draw is marked."""
    schemes = rows.groupby("scheme", sort=False)
    figure, axes = plt.subplots(len(schemes), 1, figsize=(9, 1.9 * len(schemes)), sharex=True)
    bins = np.arange(rows["accuracy"].min() // 0.02 * 0.02, rows["accuracy"].max() + 0.04, 0.02)
    for ax, (scheme, found) in zip(np.atleast_1d(axes), schemes, strict=True):
        ax.hist(found["accuracy"], bins=bins, color=VALUE, edgecolor="white")
        one = found.loc[found["split"] == draw, "accuracy"].iloc[0]
        ax.axvline(one, color=CHOSEN, linewidth=2.5)
        ax.text(one, ax.get_ylim()[1], " one draw", va="top", color=CHOSEN, fontsize=10)
        ax.set(ylabel="splits", title=f"split {scheme}")
    ax.set_xlabel("accuracy on the test part of that split")
    return figure


def curve_panels(
    panels: dict[str, Arrays], x: list, xlabel: str, ylabel: str, controls: Names = (), apart=False
) -> Figure:
    """Draw curves by name, a panel a title: value, low and high (3, S) over x (S,).

    `controls` are drawn in grey; apart separates the last point, which is then a landmark. Panels
    of the same curves share a legend.
    """
    rows, end = -(-len(panels) // 2), len(x) - apart
    greys = [("0.25", ":"), ("0.5", "--"), ("0.7", "-.")]
    figure, axes = plt.subplots(rows, 2, figsize=(11.6, 3.3 * rows), squeeze=False, sharey="row")
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        looks = iter([(colour, "-") for colour in ARMS])
        looks = {n: greys[controls.index(n)] if n in controls else next(looks) for n in curves}
        for name, (value, low, high) in curves.items():
            colour, line = looks[name]
            ax.plot(x[:end], value[:end], line, color=colour, marker="o", markersize=4, label=name)
            ax.fill_between(x[:end], low[:end], high[:end], color=colour, alpha=0.13, linewidth=0)
            ax.plot(x[end:], value[end:], "D", color=colour, markersize=7)
        ax.set_title(drawable(title), fontsize=11)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.tick_params(labelsize=10)
        ax.label_outer()
    if len({tuple(curves) for curves in panels.values()}) == 1:
        lines = axes[0, 0].get_legend_handles_labels()
        figure.legend(*lines, frameon=False, fontsize=10, loc="outside right upper")
        return figure
    for ax in axes.flat[: len(panels)]:
        ax.legend(frameon=False, fontsize=9)
    return figure
