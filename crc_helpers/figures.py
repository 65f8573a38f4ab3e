"""Every plot of the course. Functions take arrays and return the matplotlib figure."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from crc_helpers.runs import atomic_path

PALETTE = sns.color_palette("colorblind")
CHANCE = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}  # landmarks, in every figure alike
HEAT = "inferno"  # perceptually uniform, readable with any colour vision


def set_style() -> None:
    """Set fonts, sizes and resolution for a whole lesson.

    Pictures in notebooks are JPEG: as PNG the grain of tissue makes files that code hosts refuse.
    """
    from matplotlib_inline.backend_inline import set_matplotlib_formats  # not outside Jupyter

    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 72})
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 80, "savefig.dpi": 110, "axes.spines.top": False,
         "axes.spines.right": False, "figure.constrained_layout.use": True,
         "text.parse_math": False,  # a $ in the name of a class or file is no formula
         "axes.titlesize": 12, "axes.titleweight": "bold",
         "axes.titley": 1.0}  # else matplotlib lays out every tick, even hidden ones, to place it
    )  # fmt: skip


def save(figure: Figure, path: Path) -> Figure:
    """Write a figure as PNG or JPEG, by the path's suffix, atomically, and return it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return figure


def as_picture(image: np.ndarray) -> np.ndarray:
    """Turn a tile (3, H, W), uint8 or float in [0, 1], into (H, W, 3) for imshow."""
    return np.moveaxis(np.asarray(image), 0, -1)


def show_tile(
    axes, image: np.ndarray, title: str = "", mask: np.ndarray | None = None, **kw
) -> None:
    """Draw one tile without axes; `mask` (H, W) is outlined."""
    axes.imshow(as_picture(image), **kw)
    if mask is not None:
        outline(axes, mask)
    axes.set_title(title, fontsize=10, parse_math=False)  # as in `set_style`
    axes.set_axis_off()


def outline(axes, mask: np.ndarray) -> None:
    """Draw the borders of a region (H, W) of 0 and 1; a tenth of the time of `axes.contour`."""
    borders, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    lines = PolyCollection([points[:, 0] for points in borders], edgecolor="#00e5ff",
                           facecolor="none", linewidth=1.6)  # fmt: skip
    axes.add_collection(lines, autolim=False)


def wrapped(title: str, width: float) -> str:
    """Break a title, bold, of 10 points, into lines of at most `width` inches: 11 letters each."""
    letters = int(11 * width)
    return "\n".join(textwrap.fill(line, letters, break_on_hyphens=False)
                     for line in title.split("\n"))  # fmt: skip


def tile_grid(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 4,
    masks: Sequence[np.ndarray] | None = None,
    width: float = 2.6,
) -> Figure:
    """Draw tiles (3, H, W) in a grid, `width` inches each, their regions outlined if given."""
    rows = -(-len(images) // columns)
    titles = [wrapped(title, width) for title in titles or [""] * len(images)]
    height = width + 0.08 + 0.17 * max(title.count("\n") + 1 for title in titles)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * width, rows * height),
                                squeeze=False)  # fmt: skip
    for i, ax in enumerate(axes.flat):
        if i < len(images):
            show_tile(ax, images[i], titles[i], None if masks is None else masks[i])
        else:
            ax.set_axis_off()
    return figure


def slide(image: np.ndarray, mask: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw a slide (3, H, n * H) with its region outlined and the borders of its n tiles."""
    height, width = image.shape[1:]
    figure, ax = plt.subplots(figsize=(15.5, 15.5 * height / width + 0.45))
    show_tile(ax, image, mask=mask)
    for i, title in enumerate(titles):
        ax.text((i + 0.5) * height, -8, title, ha="center", va="bottom", fontsize=10)
        if i:
            ax.axvline(i * height, color="black", linestyle=":", linewidth=1.5)
    return figure


def films(
    rows: dict[str, Sequence[tuple[np.ndarray, str]]], width: float = 1.5, blocks: int = 2
) -> Figure:
    """Draw a film a row, in blocks side by side: its name, then frames (3, H, W) with captions."""
    frames, lines = len(next(iter(rows.values()))), -(-len(rows) // blocks)
    size = (blocks * (frames * width + 0.9), lines * (width + 0.24))
    figure, axes = plt.subplots(
        lines, blocks * (frames + 1), squeeze=False, figsize=size,
        width_ratios=([0.55] + [1] * frames) * blocks,
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for i, (name, film) in enumerate(rows.items()):
        line, block = axes[i % lines], i // lines * (frames + 1)
        line[block].text(0.95, 0.5, name, ha="right", va="center", fontsize=10)
        for ax, (image, caption) in zip(line[block + 1 :], film, strict=False):
            show_tile(ax, image)
            bold = "bold" if caption.endswith("SSA") else "normal"
            ax.set_title(caption, fontsize=9, fontweight=bold, pad=2)
    return figure


def image_rows(
    rows: Sequence[Sequence[np.ndarray]],
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    width: float = 1.9,
) -> Figure:
    """Draw a table of images with titles left and above."""
    size = (len(rows[0]) * width + 1, len(rows) * width + 0.3)
    figure, axes = plt.subplots(len(rows), len(rows[0]), squeeze=False, figsize=size)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            show_tile(axes[r, c], image, column_titles[c] if r == 0 else "")
        axes[r, 0].text(-0.06, 0.5, row_titles[r], transform=axes[r, 0].transAxes, ha="right",
                        va="center", fontsize=10)  # fmt: skip
    return figure


def class_and_split(counts: pd.DataFrame, discarded: int = 0) -> Figure:
    """Draw the paper's Figure 1: tiles a class and part as bars, parts of the whole as a pie.

    counts: rows parts ("train", ...), columns classes.
    """
    figure, (bar, pie) = plt.subplots(1, 2, figsize=(10, 3.8))
    bottom = np.zeros(counts.shape[1])
    shades = ["#1b4f72", "#5499c7", "#d4a017", "#bbbbbb"]
    for shade, (part, row) in zip(shades, counts.iterrows(), strict=False):
        drawn = bar.bar(counts.columns, row, bottom=bottom, color=shade, label=part, width=0.6)
        bar.bar_label(drawn, labels=[f"{v:,}" if v else "" for v in row], label_type="center",
                      color="white", fontsize=10)  # fmt: skip
        bottom += row.to_numpy()
    bar.set(ylabel="tiles", title="Tiles per class")
    bar.legend(frameon=False)
    parts = counts.sum(axis=1)
    names = [f"{part}\n{n:,} ({n / parts.sum():.0%})" for part, n in parts.items()]
    pie.pie(parts, labels=names, colors=shades, startangle=90, counterclock=False,
            wedgeprops={"width": 0.5, "edgecolor": "white"})  # fmt: skip
    title = "Tiles per part" + (f" ({discarded:,} discarded)" if discarded else "")
    pie.set_title(title)
    return figure


def votes_histogram(votes: np.ndarray, class_names: Sequence[str], published=None) -> Figure:
    """Draw how many of seven readers chose the second class; votes (N,), published (8,) counts."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    share = np.bincount(votes, minlength=8) / len(votes)
    colours = [PALETTE[0]] * 4 + [PALETTE[3]] * 4
    ax.bar(range(8), share, color=colours, width=0.75, label=None)
    if published is not None:
        ax.plot(range(8), np.asarray(published) / np.sum(published), "k_", markersize=26,
                markeredgewidth=2, label="MHIST, as published")  # fmt: skip
        ax.legend(frameon=False)
    ax.axvline(3.5, **CHANCE)
    top = ax.get_ylim()[1]
    ax.text(3.4, top, f"{class_names[0]} ", ha="right", va="top", color=PALETTE[0], weight="bold")
    ax.text(3.6, top, f" {class_names[1]}", ha="left", va="top", color=PALETTE[3], weight="bold")
    ax.set(xlabel=f"readers of seven who chose {class_names[1]}", ylabel="share of tiles",
           xticks=range(8))  # fmt: skip
    return figure


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    xlabel: str,
    landmark: float | None = None,
    landmark_name: str = "chance",
) -> Figure:
    """Draw (name, value, low, high) rows as points with their intervals."""
    figure, ax = plt.subplots(figsize=(8.5, 0.7 + 0.42 * len(rows)))
    for y, (_, value, low, high) in enumerate(rows):
        ax.plot([low, high], [y, y], color=PALETTE[0], linewidth=2.5, solid_capstyle="round")
        ax.plot(value, y, "o", color=PALETTE[0], markersize=7)
        ax.annotate(f"{value:.3f} [{low:.3f}, {high:.3f}]", (1.02, y), fontsize=10, va="center",
                    xycoords=("axes fraction", "data"))  # fmt: skip
    if landmark is not None:
        ax.axvline(landmark, **CHANCE)
        ax.annotate(landmark_name, (landmark, 1.0), xycoords=("data", "axes fraction"), ha="center",
                    va="bottom", color="0.35", fontsize=10)  # fmt: skip
    ax.set(yticks=range(len(rows)), yticklabels=[r[0] for r in rows], xlabel=xlabel,
           ylim=(len(rows) - 0.5, -0.5))  # fmt: skip
    ax.grid(axis="x", color="0.9")
    return figure


def colour_scatter(features: np.ndarray, labels: np.ndarray, class_names, groups=None) -> Figure:
    """Draw the two main components of colour statistics (N, 15), by class and by slide."""
    spread = features.std(axis=0)  # 0 where all tiles show some glass, say
    centred = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = u[:, :2] * s[:2]
    figure, axes = plt.subplots(1, 1 if groups is None else 2, figsize=(10, 4), squeeze=False)
    embedding_axes(axes[0, 0], points, labels, class_names, "by class")
    if groups is not None:
        top = pd.Series(groups).value_counts().index[:8]
        codes = np.array([list(top).index(g) if g in top else -1 for g in groups])
        axes[0, 1].scatter(*points[codes < 0].T, s=6, color="0.85")
        for code, name in enumerate(top):
            axes[0, 1].scatter(*points[codes == code].T, s=22, label=name,
                               color=sns.color_palette("tab10")[code])  # fmt: skip
        axes[0, 1].legend(frameon=False, fontsize=8, markerscale=1.2, loc="center left",
                          bbox_to_anchor=(1, 0.5))  # fmt: skip
        axes[0, 1].set(title="the same, eight groups coloured", xlabel="component 1", yticks=[],
                       xticks=[])  # fmt: skip
    return figure


def embedding_axes(ax, points: np.ndarray, labels: np.ndarray, class_names, title: str) -> None:
    """Scatter points (N, 2) coloured by label (N,)."""
    colours = [PALETTE[k] for k in (0, 3, 2, 1, 4, 7)]
    if len(class_names) > len(colours):
        colours = sns.color_palette("husl", len(class_names))
    for c, name in enumerate(class_names):
        ax.scatter(*points[labels == c].T, s=12, alpha=0.7, color=colours[c], label=name,
                   linewidths=0)  # fmt: skip
    ax.set(title=title, xticks=[], yticks=[], xlabel="component 1", ylabel="component 2")
    ax.legend(frameon=False, fontsize=9, markerscale=1.6)


def embedding_maps(maps: dict[str, np.ndarray], labels: np.ndarray, class_names) -> Figure:
    """Draw several 2-d maps (N, 2) of the same tiles side by side."""
    columns = min(len(maps), 2)
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4.1 * rows), squeeze=False)
    for ax, (title, points) in zip(axes.flat, maps.items(), strict=False):
        embedding_axes(ax, points, labels, class_names, title)
    return figure


def similarity_matrix(similarity: np.ndarray, names: Sequence[str], title: str = "") -> Figure:
    """Draw cosine similarities (2N, 2N) with their values."""
    figure, ax = plt.subplots(figsize=(6.6, 5.4))
    sns.heatmap(similarity, annot=True, fmt=".2f", cmap="vlag", vmin=-1, vmax=1, square=True,
                xticklabels=names, yticklabels=names, ax=ax, annot_kws={"size": 9},
                cbar_kws={"label": "cosine similarity"})  # fmt: skip
    n = len(names) // 2
    for i in range(2 * n):  # the positives, framed
        ax.add_patch(plt.Rectangle(((i + n) % (2 * n), i), 1, 1, fill=False, ec="k", lw=2))
    ax.set_title(title)
    return figure


def temperature_curves(temperatures: Sequence[float]) -> Figure:
    """Draw how strongly a negative of each similarity pulls, for several temperatures."""
    figure, ax = plt.subplots(figsize=(8, 3.6))
    cosines = np.linspace(-1, 1, 200)
    for tau, colour in zip(
        temperatures, sns.color_palette("viridis", len(temperatures)), strict=True
    ):
        weight = np.exp(cosines / tau)
        ax.plot(cosines, weight / weight.mean(), color=colour, label=f"τ = {tau}", linewidth=2)
    ax.axhline(1, **CHANCE)
    ax.set(yscale="log", ylim=(1e-3, 1e2), xlabel="cosine similarity of a negative to the anchor",
           ylabel="its pull, relative to the mean")  # fmt: skip
    for power in ax.get_yticklabels():
        power.set_parse_math(True)
    ax.legend(frameon=False)
    return figure


def loss_curve(
    logs: dict[str, pd.DataFrame], chance: float, floor: float, classes: int = 2
) -> Figure:
    """Draw contrastive losses between their two landmarks, and the kNN accuracy beside them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for (name, log), colour in zip(logs.items(), PALETTE, strict=False):
        left.plot(
            log["epoch"], log["loss"], "o-", markersize=4, color=colour, label=f"{name} views"
        )
        watched = log.dropna(subset=["knn"]) if "knn" in log else log[:0]
        right.plot(watched["epoch"], watched.get("knn", []), "o-", color=colour)
    for value, name in ((chance, "chance: ln(2N − 1)"), (floor, "floor: perfect, orthogonal")):
        left.axhline(value, **CHANCE)
        left.annotate(f"{name} = {value:.2f}", (0.98, value), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", color="0.35", fontsize=10)  # fmt: skip
    left.legend(frameon=False, loc="center right")
    left.set(xlabel="epoch", ylabel="NT-Xent", title="Loss", ylim=(floor - 0.25, chance + 0.35))
    right.axhline(1 / classes, **CHANCE)
    right.set(xlabel="epoch", ylabel="balanced accuracy", title="kNN (labels only to watch)")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def learning_curves(logs: dict[str, pd.DataFrame], majority: float) -> Figure:
    """Draw training and validation loss and validation accuracy of several runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for (name, log), colour in zip(logs.items(), PALETTE, strict=False):
        left.plot(log["epoch"], log["loss"], ":", color=colour)
        if "val_loss" not in log:
            continue
        left.plot(log["epoch"], log["val_loss"], "-", color=colour, label=name)
        right.plot(log["epoch"], log["val_balanced_accuracy"], "-", color=colour, label=name)
        chosen = log[log["chosen"]]
        left.plot(chosen["epoch"], chosen["val_loss"], "o", color=colour, markersize=9)
        right.plot(
            chosen["epoch"], chosen["val_balanced_accuracy"], "o", color=colour, markersize=9
        )
    right.axhline(majority, **CHANCE)
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss: dotted train, solid validation")
    right.set(
        xlabel="epoch", ylabel="balanced accuracy", title="Validation accuracy, ● chosen epoch"
    )
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, fontsize=9)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion(counts: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix (C, C), rows truth, with counts and the share of each row."""
    figure, ax = plt.subplots(figsize=(1.5 + 1.5 * len(class_names), 1.2 + 1.2 * len(class_names)))
    draw_confusion(ax, counts, class_names, title)
    return figure


def draw_confusion(ax, counts: np.ndarray, class_names: Sequence[str], title: str = "") -> None:
    """Draw a confusion matrix into axes; see `confusion`."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (t, p), n in np.ndenumerate(counts):
        ax.text(p, t, f"{n}\n{share[t, p]:.0%}", ha="center", va="center", fontsize=13,
                color="white" if share[t, p] > 0.5 else "0.15")  # fmt: skip
    ax.set_xticks(range(len(counts)), class_names)
    ax.set_yticks(range(len(counts)), class_names)
    ax.set(xlabel="predicted", ylabel="truth", title=title)


def roc_and_precision_recall(
    labels: np.ndarray, scores: dict[str, np.ndarray], groups: np.ndarray | None = None
) -> Figure:
    """Draw ROC and precision-recall curves; the first score gets a 95 % bootstrap band.

    labels (N,) of 0 and 1; scores: name to the probability of class 1 (N,). The band is pointwise,
    over groups where given.
    """
    figure, (roc, pr) = plt.subplots(1, 2, figsize=(11, 4.6))
    for (name, score), colour in zip(scores.items(), PALETTE, strict=False):
        fpr, tpr, _ = roc_curve(labels, score)
        precision, recall, _ = precision_recall_curve(labels, score)
        roc.plot(fpr, tpr, color=colour, label=f"{name}, AUC {np.trapezoid(tpr, fpr):.3f}")
        ap = average_precision_score(labels, score)
        pr.plot(
            recall, precision, color=colour, label=f"{name}, AP {ap:.3f}", drawstyle="steps-post"
        )
    grid, bands = np.linspace(0, 1, 101), _curve_bands(labels, next(iter(scores.values())), groups)
    for ax, (low, high) in zip((roc, pr), bands, strict=True):
        ax.fill_between(grid, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        ax.legend(frameon=False, fontsize=9, loc="lower right" if ax is roc else "lower left")
    roc.plot([0, 1], [0, 1], **CHANCE)
    pr.axhline(labels.mean(), **CHANCE)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    pr.set(xlabel="recall", ylabel="precision", title="Precision–recall")
    return figure


def _curve_bands(labels, score, groups, samples: int = 300):
    rng, grid = np.random.default_rng(0), np.linspace(0, 1, 101)
    ids = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(ids == g) for g in range(ids.max() + 1)]
    roc, pr = [], []
    for _ in range(samples):
        drawn = rng.integers(0, len(members), len(members))
        i = np.concatenate([members[d] for d in drawn])
        if labels[i].min() == labels[i].max():
            continue
        fpr, tpr, _ = roc_curve(labels[i], score[i])
        precision, recall, _ = precision_recall_curve(labels[i], score[i])
        roc.append(np.interp(grid, fpr, tpr))
        pr.append(np.interp(grid, recall[::-1], precision[::-1]))
    return [np.quantile(curves, [0.025, 0.975], axis=0) for curves in (roc, pr)]


def calibration(labels: np.ndarray, score: np.ndarray, bins: int = 8) -> Figure:
    """Draw the observed against the predicted share of class 1, tiles a bin below."""
    figure, (top, below) = plt.subplots(2, 1, figsize=(5.4, 5.2), height_ratios=[3, 1], sharex=True)
    observed, predicted = calibration_curve(labels, score, n_bins=bins)
    top.plot([0, 1], [0, 1], **CHANCE)
    top.plot(predicted, observed, "o-")
    top.set(ylabel="observed share", title="Calibration")
    below.hist(score, bins=np.linspace(0, 1, bins + 1), color="0.6", edgecolor="white")
    below.set(xlabel="predicted probability", ylabel="tiles")
    return figure


def overlay(
    ax, image, heat, vmax: float, boxes=(), mask=None, title: str = "", opacity=0.55
) -> None:
    """Draw a heat map (H, W) over its tile, with boxes (x, y, w, h) and the outline of a region."""
    ax.imshow(
        as_picture(image).mean(axis=2),
        cmap="gray",
        vmin=0,
        vmax=255 if image.dtype == np.uint8 else 1,
    )
    ax.imshow(heat, cmap=HEAT, vmin=0, vmax=max(vmax, 1e-12), alpha=opacity)
    draw_boxes(ax, boxes)
    if mask is not None:
        outline(ax, mask)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()


def draw_boxes(ax, boxes) -> None:
    """Draw (x, y, width, height) rectangles."""
    ax.autoscale(False)  # a box at the border must not widen the picture
    for x, y, w, h in boxes:
        ax.add_patch(plt.Rectangle((x, y), w, h, fill=False, ec="#ffd400", lw=2))


def explanations(images, heats, boxes, titles, masks=None, width: float = 2.3) -> Figure:
    """Draw the paper's Figure 5, original | heat map | boxes, for tiles in two columns.

    images (N, 3, H, W) uint8, heats (N, H, W) raw on one colour scale, boxes a list a tile, titles
    (left, right) a tile, masks (N, H, W) outlined where given. The first half goes to the left.
    """
    vmax, rows = float(np.max(heats)), -(-len(images) // 2)
    titles = [[wrapped(title, width) for title in pair] for pair in titles]
    more = max(title.count("\n") for pair in titles for title in pair)  # lines than one
    size = (6 * width + 1.4, rows * (width + 0.3 + 0.17 * more))
    figure, axes = plt.subplots(rows, 6, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for k, (image, heat) in enumerate(zip(images, heats, strict=True)):
        mask = None if masks is None else masks[k]
        left, middle, right = axes[k % rows, 3 * (k // rows) : 3 * (k // rows) + 3]
        show_tile(left, image, titles[k][0], mask)
        overlay(middle, image, heat, vmax, mask=mask, title=f"Grad-CAM, at most {heat.max():.2g}")
        show_tile(right, image, titles[k][1], mask)
        draw_boxes(right, boxes[k])
    scale = plt.cm.ScalarMappable(plt.Normalize(0, vmax), HEAT)
    figure.colorbar(scale, ax=axes, label="Grad-CAM, raw, one scale for all", shrink=0.6, aspect=30)
    return figure


def heat_row(
    image, heats: dict[str, np.ndarray], mask=None, shared: bool = True, width=2.6
) -> Figure:
    """Draw one tile and several maps (H, W) of it; shared puts them on one colour scale."""
    figure, axes = plt.subplots(1, len(heats) + 1, figsize=(width * (len(heats) + 1), width + 0.4))
    show_tile(axes[0], image, "tile", mask)
    top = max(float(h.max()) for h in heats.values())
    for ax, (title, heat) in zip(axes[1:], heats.items(), strict=True):
        overlay(ax, image, heat, top if shared else float(heat.max()), mask=mask, title=title)
    return figure


def split_luck(rows: pd.DataFrame, draw: int = 0) -> Figure:
    """Draw the accuracies of many splits of one cohort, a panel a scheme; one draw is marked."""
    schemes = list(rows["scheme"].unique())
    figure, axes = plt.subplots(len(schemes), 1, figsize=(9, 1.9 * len(schemes)), sharex=True)
    step = 0.02
    low, high = rows["accuracy"].min(), rows["accuracy"].max()
    bins = np.arange(np.floor(low / step) * step, high + 2 * step, step)
    for ax, scheme in zip(np.atleast_1d(axes), schemes, strict=True):
        found = rows[rows["scheme"] == scheme]
        ax.hist(found["accuracy"], bins=bins, color=PALETTE[0], edgecolor="white")
        one = found.loc[found["split"] == draw, "accuracy"].iloc[0]
        ax.axvline(one, color=PALETTE[3], linewidth=2.5)
        ax.annotate(" one draw", (one, 0.95), xycoords=("data", "axes fraction"), va="top",
                    color=PALETTE[3], fontsize=10)  # fmt: skip
        ax.set(ylabel="splits", title=f"split {scheme}")
    np.atleast_1d(axes)[-1].set(xlabel="accuracy on the test part of that split")
    return figure


def heat_rows(
    images, heats: dict[str, np.ndarray], row_titles: Sequence[str], masks=None, width=1.95
) -> Figure:
    """Draw a tile a row (3, H, W) and its maps beside it, heats (N, h, w) by name.

    Each map is on its own scale, as maps of different methods have different units.
    """
    row_titles = [wrapped(title, width) for title in row_titles]
    lines = 1 + max(title.count("\n") for title in row_titles)
    size = (width * (len(heats) + 1) + 0.13 + 0.17 * lines, (width + 0.12) * len(images) + 0.2)
    figure, axes = plt.subplots(len(images), len(heats) + 1, figsize=size, squeeze=False)
    for r, (line, image) in enumerate(zip(axes, images, strict=True)):
        mask = None if masks is None else masks[r]
        show_tile(line[0], image, "tile" if r == 0 else "", mask)
        line[0].text(-0.05, 0.5, row_titles[r], transform=line[0].transAxes, ha="right",
                     va="center", rotation=90, fontsize=10)  # fmt: skip
        for ax, (name, heat) in zip(line[1:], heats.items(), strict=True):
            pixels = cv2.resize(heat[r], image.shape[:0:-1], interpolation=cv2.INTER_LINEAR)
            overlay(ax, image, pixels, float(pixels.max()), mask=mask, title=name if r == 0 else "")
    return figure


def interval_panels(
    panels: dict[str, Sequence[tuple[str, float, float, float]]],
    landmarks: dict[str, tuple[float, str]] | None = None,
    controls: Sequence[str] = (),
    width: float = 3.3,
) -> Figure:
    """Draw several scores of the same things side by side, a panel of (name, value, low, high) rows
    each; `landmarks` has a panel's value and name of chance, `controls` are drawn in grey.
    """
    names = [row[0] for row in next(iter(panels.values()))]
    size = (width * len(panels) + 1.9, 0.95 + 0.34 * len(names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for y, (name, value, low, high) in enumerate(rows):
            colour = "0.45" if name in controls else PALETTE[0]
            ax.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
            ax.plot(value, y, "s" if name in controls else "o", color=colour, markersize=6)
            ax.annotate(f"{value:z.2f}", (1.01, y), fontsize=9.5, va="center", color=colour,
                        xycoords=("axes fraction", "data"))  # fmt: skip
        if title in (landmarks or {}):
            where, word = landmarks[title]
            ax.axvline(where, **CHANCE)
            ax.annotate(word, (where, 0.0), xycoords=("data", "axes fraction"), ha="left",
                        va="bottom", xytext=(3, 2), textcoords="offset points", color="0.35",
                        fontsize=9)  # fmt: skip
        ax.set_title(title, fontsize=11)
        ax.tick_params(labelsize=10)
        ax.grid(axis="x", color="0.9")
    axes[0, 0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    return figure


def curve_panels(
    panels: dict[str, dict[str, np.ndarray]],
    x: Sequence,
    xlabel: str,
    ylabel: str,
    controls: Sequence[str] = (),
    columns: int = 2,
    apart: bool = False,
) -> Figure:
    """Draw curves by name, a panel a title: value, low and high (3, S) over x (S,).

    `controls` are drawn in grey; apart separates the last point, which is then a landmark. Panels
    of the same curves share a legend.
    """
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.0 * columns + 1.6, 3.3 * rows),
                                squeeze=False, sharey="row")  # fmt: skip
    at = x if not isinstance(x[0], str) else range(len(x))
    shared = len({tuple(curves) for curves in panels.values()}) == 1
    greys = [("0.25", ":"), ("0.5", "--"), ("0.7", "-."), ("0.4", "-")]
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        styles = dict(zip(controls, greys, strict=False))
        coloured = [name for name in curves if name not in styles]
        styles |= {name: (c, "-") for name, c in zip(coloured, PALETTE, strict=False)}
        for name, (value, low, high) in curves.items():
            colour, line = styles[name]
            end = len(value) - 1 if apart else len(value)
            ax.plot(at[:end], value[:end], line, color=colour, marker="o", markersize=4, label=name)
            ax.fill_between(at[:end], low[:end], high[:end], color=colour, alpha=0.13, linewidth=0)
            if apart:
                ax.plot(at[end:], value[end:], "D", color=colour, markersize=7)
        if at is not x:
            ax.set_xticks(range(len(x)), x)
        ax.set_title(title, fontsize=11)
        ax.set(xlabel=xlabel)
        ax.tick_params(labelsize=10)
        if not shared:
            ax.legend(frameon=False, fontsize=9)
    for ax in axes[:, 0]:
        ax.set(ylabel=ylabel)
    if shared:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=10,
                      loc="outside right upper")  # fmt: skip
    return figure
