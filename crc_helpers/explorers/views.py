"""What augmentation makes of a tile (lesson 02)."""

from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from crc_helpers.augmentation import Views, apply, draw_parameters, shrink
from crc_helpers.data import Tiles
from crc_helpers.explorers.base import (
    THIRDS,
    Explorer,
    choice,
    fixed_axes,
    named,
    number,
    slider,
    tile_options,
)
from crc_helpers.figures import show_tile
from crc_helpers.style import BOX, SPARE

# Name of a slider: field of Views, lowest and highest value.
STRENGTHS = {
    "smallest crop": ("crop", 0.08, 1.0),
    "rotation (°)": ("rotate", 0, 45),
    "shift (share)": ("translate", 0, 0.3),
    "shear (°)": ("shear", 0, 30),
    **{name: (name, 0, 0.8) for name in ("brightness", "contrast", "saturation")},
    "hue (turns)": ("hue", 0, 0.5),
    "stain": ("stain", 0, 0.8),
    "grey, chance": ("grayscale", 0, 1),
    "blur, chance": ("blur", 0, 1),
    "widest blur (px)": ("blur_sigma", 0.3, 4),
}
SWITCHES = {"flips": "flip", "quarter turns": "turn"}  # name of a checkbox: field of Views


def views_figure(
    image: np.ndarray, views: Views, size: int, seed: int, mask: np.ndarray | None = None
) -> Figure:
    """Draw a tile with the outlines of two views of it, the views, and what they keep.

    image: uint8 (3, H, W); mask: uint8 (H, W), the pixels that decide, counted where given.
    """
    tile = torch.from_numpy(np.array(image))[None]
    working = shrink(tile, min(tile.shape[-1], round(size * 4 / 3)))
    drawn = draw_parameters(2, views, torch.Generator().manual_seed(seed))
    pair = apply(working.repeat(2, 1, 1, 1), drawn, size).numpy()
    figure, axes = fixed_axes(3.4, [(x, 0.1, w, 0.76) for x, _, w, _ in THIRDS])
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]])
    title, kept = "the tile, and where the views lie", None
    if mask is not None and mask.any():
        shown, lost = still_shown(mask, drawn.warp.numpy()), np.full(mask.shape, np.nan)
        lost[mask > 0] = np.where(shown.all(0), np.nan, 1)
        title, kept = "the tile, where the views lie;\nyellow: what a view loses", shown.mean(1)
    show_tile(axes[0], image, title, mask)
    if kept is not None:
        axes[0].imshow(lost, cmap=ListedColormap([BOX]), alpha=0.6)
    for i, (view, colour) in enumerate(zip(pair, SPARE, strict=False)):
        at = (corners @ drawn.warp[i].numpy().T + 1) / 2 * image.shape[-1]
        axes[0].plot(*at.T, color=colour, linewidth=2.5, clip_on=True)
        text = "" if kept is None else f": {kept[i]:.0%} of\nthe pixels that decide"
        show_tile(axes[i + 1], view, f"view {i + 1}{text}")
        for side in axes[i + 1].spines.values():
            side.set(visible=True, color=colour, linewidth=3)
        axes[i + 1].set(xticks=[], yticks=[], frame_on=True)
        axes[i + 1].axis("on")
    axes[0].set(xlim=(0, image.shape[-1]), ylim=(image.shape[-1], 0))
    if kept is not None:
        survives = "yes" if kept.min() > 0.5 else "perhaps" if kept.min() > 0.1 else "no"
        figure.supxlabel(f"Would the diagnosis survive both crops? {survives}", fontsize=11)
    return figure


def still_shown(mask: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Which of the P pixels of a mask (H, W) each view (N, 2, 3) still shows, bool (N, P)."""
    rows, columns = np.nonzero(mask)
    side = np.array(mask.shape[::-1])
    points = 2 * (np.stack([columns, rows], 1) + 0.5) / side - 1  # (P, 2) in [-1, 1]
    shifted = (points[None] - matrices[:, None, :, 2]).transpose(0, 2, 1)  # (N, 2, P)
    places = np.linalg.solve(matrices[:, :, :2].astype(float), shifted)  # from tile to view
    return (np.abs(places) <= 1).all(axis=1)


def views_of(start: Views, chosen: dict[str, float]) -> Views:
    """Return a recipe with these strengths: the smallest crop, the widest blur."""
    crop, blur = chosen["crop"], chosen["blur_sigma"]
    pairs = {"crop": (crop, 1.0), "blur_sigma": (min(start.blur_sigma[0], blur), blur)}
    return replace(start, **chosen | pairs)


class ViewsExplorer(Explorer):
    """Two views of a tile, with a slider or a checkbox for every transform.

    indices: rows of `tiles` to choose from; views: the recipe to start from; size: side of a view.
    """

    def __init__(self, tiles: Tiles, indices: np.ndarray, views: Views, size: int) -> None:
        self.tiles, self.views, self.size = tiles, views, size
        self.tile = choice("tile", tile_options(tiles, indices))
        start = vars(views) | {"crop": views.crop[0], "blur_sigma": views.blur_sigma[1]}
        self.strengths = {
            name: slider(label, start[name], low, high)
            for label, (name, low, high) in STRENGTHS.items()
        }
        for label, name in SWITCHES.items():
            self.strengths[name] = widgets.Checkbox(value=start[name], **named(label))
        self.again = number("draw number", 0)
        super().__init__([self.tile, *self.strengths.values(), self.again])
        button = widgets.Button(description="draw again", layout={"margin": "2px 0 2px 150px"})
        button.on_click(lambda _: self.again.set_trait("value", self.again.value + 1))
        self.controls.append(button)

    def figure(self) -> Figure:
        """Draw the views that the controls ask for."""
        views = views_of(self.views, {name: c.value for name, c in self.strengths.items()})
        i, masks = self.tile.value, self.tiles.masks
        mask = None if masks is None else masks[i]
        return views_figure(self.tiles.images[i], views, self.size, self.again.value, mask)
