"""What a threshold and a prevalence make of a classifier (lesson 05)."""

from collections.abc import Iterable, Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from crc_helpers.data import Tiles
from crc_helpers.evaluation import precision_at_prevalence, wilson_interval
from crc_helpers.explorers.base import Explorer, fixed_axes, named, shortened, slider
from crc_helpers.figures import CHANCE, PALETTE, draw_confusion, show_tile


def threshold_figure(
    labels: np.ndarray,
    score: np.ndarray,
    class_names: Sequence[str],
    threshold: float,
    prevalence: float,
) -> Figure:
    """Draw counts, metrics with intervals, and the places on ROC and PR, at one threshold.

    labels (N,) of 0 and 1; score (N,), probability of class 1; prevalence: share of class 1 in the
    world the classifier is meant for, at which its precision is computed.
    """
    said = (score >= threshold).astype(int)
    counts = np.array([[((labels == t) & (said == p)).sum() for p in (0, 1)] for t in (0, 1)])
    recall, specificity = (counts[c, c] / max(counts[c].sum(), 1) for c in (1, 0))
    called, right = counts[:, 1].sum(), int(np.trace(counts))
    above = (0.12, 0.6, 0.25, 0.34), (0.54, 0.6, 0.25, 0.34)
    figure, axes = fixed_axes(6, [*above, (0.1, 0.1, 0.38, 0.36), (0.6, 0.1, 0.38, 0.36)])
    first, second = (shortened(name, 6) for name in class_names)  # up to the axes on the left
    draw_confusion(axes[0], counts, (first, second))
    shares = {
        "accuracy": (right, len(labels)),
        f"recall {second}": (counts[1, 1], counts[1].sum()),
        f"recall {first}": (counts[0, 0], counts[0].sum()),
        f"precision {second}": (counts[1, 1], called),
    }
    for row, (k, n) in enumerate(shares.values()):
        low, high = wilson_interval(int(k), int(n))
        axes[1].plot([low, high], [row, row], color=PALETTE[0], linewidth=3)
        if n:
            axes[1].plot(k / n, row, "o", color=PALETTE[0], clip_on=False)
        text = f"{k / n:.2f} [{low:.2f}, {high:.2f}]" if n else "none called"
        axes[1].text(1.04, row, text, va="center", fontsize=10)
    if called:
        there = precision_at_prevalence(recall, specificity, prevalence)
        # Both ends of both intervals: wider than 95 % needs, and never narrower.
        ends = [wilson_interval(int(counts[c, c]), int(counts[c].sum())) for c in (1, 0)]
        low, high = (precision_at_prevalence(*end, prevalence) for end in zip(*ends, strict=True))
        axes[1].plot([low, high], [4, 4], color=PALETTE[1], linewidth=3)
        axes[1].plot(there, 4, "D", color=PALETTE[1], clip_on=False)
        axes[1].text(1.04, 4, f"{there:.2f} [{low:.2f}, {high:.2f}]", va="center", fontsize=10)
    axes[1].set(xlim=(0, 1), title=f"threshold {threshold:.2f}", xticks=(0, 0.5, 1),
                xlabel="Wilson intervals: tiles as if independent")  # fmt: skip
    there = f"precision where\n{prevalence:.0%} are {second}"
    axes[1].set_yticks(range(5), [*shares, there])
    axes[1].invert_yaxis()
    fpr, tpr, _ = roc_curve(labels, score)
    precision, hits, _ = precision_recall_curve(labels, score)
    axes[2].plot(fpr, tpr, color=PALETTE[0])
    axes[2].plot([0, 1], [0, 1], **CHANCE)
    axes[2].plot(1 - specificity, recall, "o", color=PALETTE[3], markersize=10)
    axes[2].set(xlabel="1 − specificity", ylabel="recall", title="ROC")
    axes[3].plot(hits, precision, color=PALETTE[0])
    axes[3].axhline(labels.mean(), **CHANCE)
    if called:
        axes[3].plot(recall, counts[1, 1] / called, "o", color=PALETTE[3], markersize=10)
    axes[3].set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.03))
    for ax in axes[2:]:
        ax.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for ax in axes:
        ax.tick_params(labelsize=10)
        ax.xaxis.label.set_size(10)
        ax.yaxis.label.set_size(10)
        ax.title.set_size(11)
    return figure


def cell_figure(tiles: Tiles, score: np.ndarray, threshold: float, truth: int, said: int) -> Figure:
    """Draw the surest six tiles of a cell of the confusion matrix; arguments as above."""
    found = np.flatnonzero((tiles.labels == truth) & ((score >= threshold) == bool(said)))
    surest = found[np.argsort(score[found] * (1 - 2 * said))[:6]]
    figure, axes = fixed_axes(1.75, [(0.004 + k / 6, 0.04, 0.158, 0.722) for k in range(6)])
    for ax in axes:
        ax.set_axis_off()
    for ax, i in zip(axes, surest, strict=False):
        show_tile(ax, tiles.images[i], f"p({tiles.class_names[1]}) = {score[i]:.2f}")
    names = [tiles.class_names[k] for k in (truth, said)]
    figure.suptitle("{} called {}: {} tiles".format(*names, len(found)), fontsize=11, y=0.99)
    return figure


class ThresholdExplorer(Explorer):
    """Move the operating point and the prevalence, and look at the tiles in a cell of the matrix.

    tiles: of the test part; labels (N,) of 0 and 1, score (N,), for these tiles.
    """

    def __init__(self, tiles: Tiles, score: np.ndarray) -> None:
        self.tiles, self.score = tiles, score
        a, b = tiles.class_names[:2]
        self.threshold = slider("threshold", 0.5, 0.0, 1.0)
        self.prevalence = slider(f"share of {b}", float((tiles.labels == 1).mean()), 0.01, 0.99)
        cells = [
            (f"{t} called {p}", (i, j)) for i, t in enumerate((a, b)) for j, p in enumerate((a, b))
        ]
        # Were it None, ipywidgets would sometimes begin with nothing selected.
        self.cell = widgets.Dropdown(options=[("none", ()), *cells], **named("show tiles"))
        super().__init__([self.threshold, self.prevalence, self.cell])

    def figure(self) -> Figure:
        """Draw the metrics at the threshold."""
        names, where = self.tiles.class_names, (self.threshold.value, self.prevalence.value)
        return threshold_figure(self.tiles.labels, self.score, names, *where)

    def pages(self) -> Iterable[Figure]:
        """Draw the metrics, and the tiles of the chosen cell below."""
        yield self.figure()
        if self.cell.value:
            yield cell_figure(self.tiles, self.score, self.threshold.value, *self.cell.value)
