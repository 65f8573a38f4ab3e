"""What the temperature makes of similarities (lesson 03)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure

from crc_helpers.explorers.base import Explorer, fixed_axes, slider
from crc_helpers.pretraining import chance_loss, floor_loss
from crc_helpers.style import CHANCE, VALUE


def temperature_figure(
    similarity: np.ndarray, names: Sequence[str], temperature: float, labels: Sequence[int]
) -> Figure:
    """Draw cosines of 2N views, the softmax over them at a temperature, and the loss it gives.

    similarity (2N, 2N), view i and i + N from one tile; labels (N,), of the tiles. Framed: the
    partner; crossed: false negatives, other tiles of the anchor's class.
    """
    n = len(similarity) // 2
    scores = np.where(np.eye(2 * n, dtype=bool), -np.inf, similarity / temperature)
    weight = np.exp(scores - scores.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    partner = np.roll(np.arange(2 * n), n)
    losses = -np.log(weight[np.arange(2 * n), partner])
    places = [(left, 0.15, 0.325, 0.72) for left in (0.04, 0.41)] + [(0.785, 0.15, 0.205, 0.66)]
    figure, axes = fixed_axes(3.6, places)
    softmax = f"softmax at τ = {temperature:.2f}\n(dark 0, yellow 1)"
    cosine = "cosine\n(blue −1, red 1)"
    pictures = (similarity, cosine, -1, "coolwarm", "k"), (weight, softmax, 0, "viridis", "w")
    kinds, order = np.array([*labels, *labels]), np.arange(2 * n)
    same_tile = (order[:, None] - order) % n == 0
    false = np.argwhere((kinds[:, None] == kinds) & ~same_tile)
    for ax, (matrix, title, low, colours, ink) in zip(axes, pictures, strict=False):
        ax.imshow(matrix, vmin=low, vmax=1, cmap=colours)
        ax.set_title(title, fontsize=10)
        ax.set_xticks(order, names, fontsize=9)
        frames = [plt.Rectangle((j - 0.5, i - 0.5), 1, 1) for i, j in enumerate(partner)]
        ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=ink, linewidth=2))
        ax.plot(false[:, 1], false[:, 0], "x", color=ink, markersize=5)
    axes[2].barh(order, losses, color=VALUE)
    axes[2].invert_yaxis()
    marks = (
        (chance_loss(n), "chance", "right", 1.01),
        (floor_loss(n, temperature), "floor", "left", 1.08),  # higher: the lines may meet
    )
    for value, name, side, height in marks:
        axes[2].axvline(value, **CHANCE)
        look = {"ha": side, "va": "bottom", "color": "0.35", "fontsize": 10}
        axes[2].annotate(name, (value, height), xycoords=("data", "axes fraction"), **look)
    axes[2].set_xlabel("loss of the anchor", fontsize=10)
    axes[2].tick_params(labelsize=9)
    axes[2].set_title(f"NT-Xent {losses.mean():.3f}", pad=32, fontsize=10)  # above the names
    axes[2].set_xlim(0, max(losses.max(), chance_loss(n)) * 1.08)
    for ax in axes:
        ax.set_yticks(order, names, fontsize=9)
    return figure


class TemperatureExplorer(Explorer):
    """NT-Xent of a few views while the temperature moves; arguments as `temperature_figure`."""

    def __init__(
        self, similarity: np.ndarray, names: Sequence[str], labels: Sequence[int], start: float
    ) -> None:
        self.similarity, self.names, self.labels = similarity, names, labels
        self.temperature = slider("temperature τ", start, 0.05, 1.0)
        super().__init__([self.temperature])

    def figure(self) -> Figure:
        """Draw softmax and loss at the slider's temperature."""
        return temperature_figure(self.similarity, self.names, self.temperature.value, self.labels)
