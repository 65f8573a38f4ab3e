"""What a threshold and a prevalence make of a classifier (lesson 05)."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from crc_helpers.data import Tiles
from crc_helpers.estimates import Rows, draw_intervals
from crc_helpers.evaluation import precision_at_prevalence, wilson_interval
from crc_helpers.explorers.base import Explorer, choice, fixed_axes, shortened, slider
from crc_helpers.figures import confusion, show_tile
from crc_helpers.style import CHANCE, CHOSEN, VALUE, drawable


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
    called = (score >= threshold).astype(int)
    counts = confusion_matrix(labels, called, labels=(0, 1))
    above = (0.12, 0.6, 0.25, 0.34), (0.54, 0.6, 0.25, 0.34)
    figure, axes = fixed_axes(6, [*above, (0.1, 0.1, 0.38, 0.36), (0.6, 0.1, 0.38, 0.36)])
    names = [shortened(name, 6) for name in class_names]  # up to the axes on the left
    confusion(counts, names, ax=axes[0])
    draw_intervals(
        axes[1], scores(counts, names, prevalence), (None, ""), "{:.2f} [{:.2f}, {:.2f}]"
    )
    axes[1].set(xlim=(0, 1), title=f"threshold {threshold:.2f}", xticks=(0, 0.5, 1))
    axes[1].set_xlabel("Wilson intervals: tiles as if independent")
    recall, specificity = counts[1, 1] / counts[1].sum(), counts[0, 0] / counts[0].sum()
    axes[2].plot(*roc_curve(labels, score)[:2], color=VALUE)
    axes[2].plot([0, 1], [0, 1], **CHANCE)
    axes[2].plot(1 - specificity, recall, "o", color=CHOSEN, markersize=10)
    axes[2].set(xlabel="1 − specificity", ylabel="recall", title="ROC")
    axes[3].plot(*precision_recall_curve(labels, score)[1::-1], color=VALUE)
    axes[3].axhline(labels.mean(), **CHANCE)
    if called.any():
        axes[3].plot(recall, labels[called == 1].mean(), "o", color=CHOSEN, markersize=10)
    axes[3].set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.03))
    for ax in axes:
        ax.tick_params(labelsize=10)
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
            text.set_size(11 if text is ax.title else 10)
    for ax in axes[2:]:
        ax.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    return figure


def scores(counts: np.ndarray, names: Sequence[str], prevalence: float) -> Rows:
    """Metrics of a confusion matrix (2, 2) with their intervals, NaN where nothing was called."""
    hits, calls, tiles = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    shares = {
        "accuracy": (hits.sum(), counts.sum()),
        f"recall {names[1]}": (hits[1], tiles[1]),
        f"recall {names[0]}": (hits[0], tiles[0]),
        f"precision {names[1]}": (hits[1], calls[1]),
    }
    rows = [
        (name, k / n, *wilson_interval(int(k), int(n))) if n else (name, np.nan, np.nan, np.nan)
        for name, (k, n) in shares.items()
    ]
    there, elsewhere = f"precision where\n{prevalence:.0%} are {names[1]}", (np.nan,) * 3
    if calls[1]:
        # Both ends of both intervals: wider than 95 % needs, and never narrower.
        ends = zip(*(row[1:] for row in rows[1:3]), strict=True)
        elsewhere = [precision_at_prevalence(*end, prevalence) for end in ends]
    return [*rows, (there, *elsewhere)]


def cell_figure(
    tiles: Tiles, score: np.ndarray, threshold: float, truth: int, called: int
) -> Figure:
    """Draw the surest six tiles of a cell of the confusion matrix; arguments as above."""
    inside = np.flatnonzero((tiles.labels == truth) & ((score >= threshold) == bool(called)))
    surest = inside[np.argsort(score[inside] * (1 - 2 * called))[:6]]
    figure, axes = fixed_axes(1.75, [(0.004 + k / 6, 0.04, 0.158, 0.722) for k in range(6)])
    for ax in axes:
        ax.set_axis_off()
    for ax, i in zip(axes, surest, strict=False):
        show_tile(ax, tiles.images[i], f"p({tiles.class_names[1]}) = {score[i]:.2f}")
    names = [drawable(tiles.class_names[k]) for k in (truth, called)]
    figure.suptitle("{} called {}: {} tiles".format(*names, len(inside)), fontsize=11, y=0.99)
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
        self.cell = choice("show tiles", [("none", ()), *cells])
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
