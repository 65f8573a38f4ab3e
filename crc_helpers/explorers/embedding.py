"""Tiles on a map of their features, and their neighbours (lessons 03 and 04)."""

from itertools import zip_longest

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from crc_helpers.data import Tiles
from crc_helpers.explorers.base import Explorer, choice, fixed_axes, label, shortened, slider
from crc_helpers.figures import show_tile
from crc_helpers.pretraining import nearest
from crc_helpers.style import CLASSES, SLIDES, drawable


def embedding_figure(
    points: np.ndarray, features: np.ndarray, tiles: Tiles, i: int, kind: str, title: str = ""
) -> Figure:
    """Draw a map of tiles, one of them, and the five nearest to it in feature space.

    points (N, 2), features (N, D) of the N `tiles`; kind: what colours show, see `colours_of`.
    """
    near = nearest(torch.from_numpy(features), min(5, len(features) - 1))[i]
    places = [(0.52 + 0.16 * k, bottom, 0.155, 0.36) for bottom in (0.55, 0.11) for k in range(3)]
    figure, (ax, *pictures) = fixed_axes(3.5, [(0.01, 0.11, 0.34, 0.8), *places])
    draw_map(ax, points, *colours_of(tiles, kind), kind)
    for j in near:
        ax.plot(*points[[i, j]].T, color="0.2", linewidth=0.8)
    ax.plot(*points[near].T, "o", mfc="none", mec="0.2", markersize=8)
    ax.plot(*points[i], "o", mfc="none", mec="k", mew=2.5, markersize=14)
    ax.set_title(drawable(title), fontsize=10)
    for place, (ax, j) in enumerate(zip_longest(pictures, (i, *near))):
        if j is None:
            ax.set_axis_off()
            continue
        words = f"{place}. {label(tiles, j)}" if place else f"this {label(tiles, j)}"
        show_tile(ax, tiles.images[j], shortened(words, 13))  # up to the picture beside it
        if tiles.groups is not None and place and tiles.groups[j] == tiles.groups[i]:
            box = {"facecolor": "white", "pad": 1, "linewidth": 0}
            where = {"transform": ax.transAxes, "ha": "center", "bbox": box}
            ax.text(0.5, 0.05, "same slide", fontsize=9, **where)
    notes = "neighbours of its class {:.0%} (chance {:.0%})".format(*alike(tiles.labels, i, near))
    if tiles.groups is not None:
        notes += " · of its slide {:.0%} (chance {:.0%})".format(*alike(tiles.groups, i, near))
    figure.supxlabel(notes, fontsize=11)
    return figure


def alike(values: np.ndarray, i: int, near: np.ndarray) -> tuple[float, float]:
    """The share of the neighbours, and of all others, that have the value of row i."""
    return (values[near] == values[i]).mean(), (np.delete(values, i) == values[i]).mean()


def draw_map(ax: Axes, points: np.ndarray, codes: np.ndarray, names: list[str], kind: str) -> None:
    """Scatter points (N, 2) by their codes (N,), with the names of these where there are any."""
    colours = {"class": CLASSES, "slide": SLIDES}.get(kind) if names else None
    colours = ListedColormap(colours[: len(names)]) if colours else "viridis"
    shown = ax.scatter(*points.T, c=codes, s=14, linewidths=0, alpha=0.8, cmap=colours)
    ax.set(xticks=[], yticks=[])
    if names:
        handles = shown.legend_elements(num=None)[0]
        words = [drawable(shortened(name, 12)) for name in names]  # up to the pictures beside them
        place = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
        ax.legend(handles, words, title=drawable(kind), fontsize=9, title_fontsize=9, **place)


def colours_of(tiles: Tiles, kind: str) -> tuple[np.ndarray, list[str]]:
    """Return a number for each tile (N,), and the names of the numbers (none if too many to list).

    kind: "class", "slide", "votes", or a column of the tiles' metadata.
    """
    if kind == "votes":
        return tiles.votes, [str(v) for v in np.unique(tiles.votes)]
    values = {"class": tiles.labels, "slide": tiles.groups}.get(kind)
    values = tiles.metadata[kind].to_numpy() if values is None else values
    distinct, codes = np.unique(values, return_inverse=True)
    if kind == "class":
        return codes, ["no label" if k < 0 else tiles.class_names[k] for k in distinct]
    return codes, [str(k) for k in distinct] if len(distinct) <= 8 else []


class EmbeddingExplorer(Explorer):
    """Point at a tile on a map of features, and see it and its nearest neighbours.

    tiles: N of them; features: name of an encoder to its features (N, D); maps: name of the same
    encoder to a flat map (N, 2) of them.
    """

    def __init__(
        self, tiles: Tiles, features: dict[str, np.ndarray], maps: dict[str, np.ndarray]
    ) -> None:
        self.tiles, self.features, self.maps = tiles, features, maps
        available = {
            "class": True,
            "slide": tiles.groups is not None,
            "votes": tiles.votes is not None,
        }
        kinds = [kind for kind, there in available.items() if there]
        kinds += [] if tiles.metadata is None else [c for c in tiles.metadata if c not in available]
        self.encoder = choice("encoder", list(maps), list(maps)[-1])
        self.kind = choice("colour by", kinds)
        # Finer than other sliders, or tiles in a crowd could not be pointed at.
        self.across, self.down = (
            slider(f"point: {way}", 0.5, 0.0, 1.0, steps=250) for way in ("across", "down")
        )
        super().__init__([self.encoder, self.kind, self.across, self.down])

    def pointed(self) -> int:
        """The tile nearest to where the two sliders point."""
        points = self.maps[self.encoder.value]
        low, high = points.min(axis=0), points.max(axis=0)
        at = (points - low) / np.maximum(high - low, 1e-12)
        wanted = np.array([self.across.value, 1 - self.down.value])
        return int(np.square(at - wanted).sum(axis=1).argmin())

    def figure(self) -> Figure:
        """Draw the map and the tile pointed at."""
        name = self.encoder.value
        return embedding_figure(
            self.maps[name], self.features[name], self.tiles, self.pointed(), self.kind.value, name
        )
