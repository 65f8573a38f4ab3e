"""A heat map of one tile, in numbers and as a figure (lesson 06)."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from crc_helpers import explanations as others
from crc_helpers import grad_cam
from crc_helpers.augmentation import shrink
from crc_helpers.explorers.base import WIDTH, choice, fixed_axes, shortened
from crc_helpers.figures import overlay, show_tile
from crc_helpers.grad_cam import boxes, enlarge, mass_inside, overlap
from crc_helpers.models import Classifier, evaluating
from crc_helpers.style import drawable

METHODS = {
    "Grad-CAM": lambda *given: grad_cam.grad_cam(*given).maps,
    "HiResCAM": others.hires_cam,
    "LayerCAM": others.layer_cam,
    "Integrated Gradients": lambda m, x, y, _: others.integrated_gradients(m, x, y, 8).relu(),
    "occlusion": lambda m, x, y, _: others.occlusion(
        m, x, y, x.shape[-1] // 4, x.shape[-1] // 8
    ).relu(),
}  # each makes maps (N, h, w) of a network, images, targets and a layer, which two do not need
LARGE, BELOW, HEIGHT = 3.9, 0.78, 5.1  # inches: side of a picture, notes below, the whole figure


@dataclass(frozen=True)
class Heat:
    """What a network says of one tile, and why, in numbers."""

    image: np.ndarray  # uint8 (3, H, W), with the square painted over
    cells: np.ndarray  # float32 (h, w), the map as the layer has it
    smooth: np.ndarray  # float32 (H, W), the same enlarged
    probabilities: np.ndarray | None  # float (C,); None: the map is not of this tile's score
    target: int  # the class explained
    source: str  # method and layer
    change: float | None  # of the target's probability, by the square, where there is one


@dataclass(frozen=True)
class Look:
    """How a heat map is drawn."""

    threshold: float = 0.5  # share of the map's maximum above which a box is drawn
    opacity: float = 0.55
    raw: bool = False  # cells as the layer has them, or smooth
    top: float | None = None  # end of the colour scale, else the map's own maximum


def explain(
    model: Classifier,
    image: np.ndarray,
    size: int,
    target: int,
    layer: str | None = None,
    cover: tuple[float, float, float] = (0.5, 0.5, 0.0),
    method: str = "Grad-CAM",
) -> Heat:
    """Explain one class of a tile, uint8 (3, H, W), by one of METHODS.

    size: input side of the network in pixels; cover: centre and side, as shares of the picture, of
    a square to paint over with the tile's mean colour, which shows what the score depends on.
    """
    covered = paint_over(image, cover)
    pair = torch.from_numpy(np.stack([covered, image])).to(next(model.parameters()).device)
    inputs = shrink(pair, size)
    layer = layer or grad_cam.last_layer(model, inputs)
    maps = METHODS[method](model, inputs[:1], torch.full((1,), target), layer)
    with evaluating(model), torch.no_grad():
        after, before = torch.softmax(model(inputs).double(), dim=1).cpu().numpy()
    change = float(after[target] - before[target]) if cover[2] > 0 else None
    smooth = enlarge(maps, image.shape[-1])[0]
    source = method if method in others.MANY_PASSES else f"{method}, {layer}"
    return Heat(covered, maps[0].numpy(), smooth, after, target, source, change)


def control_heat(heat: Heat, name: str, size: int) -> Heat:
    """The map of `blind_maps` of that name, as coarse as the one it is beside; size: as above."""
    pixels = shrink(torch.from_numpy(heat.image[None]), size)
    maps = others.blind_maps(pixels, heat.cells.shape[-1])[name]
    smooth = enlarge(maps, heat.image.shape[-1])[0]
    own = {"cells": maps[0].numpy(), "smooth": smooth, "probabilities": None, "change": None}
    return replace(heat, source=f"{name}\nasks no network", **own)


def layer_choice(model: nn.Module, size: int) -> widgets.Dropdown:
    """A list of the layers that can be explained, for images of `size` pixels; the last chosen."""
    names = grad_cam.layer_names(model, next(model.parameters()).new_zeros(1, 3, size, size))
    return choice("layer", names, names[-1])


def paint_over(image: np.ndarray, cover: tuple[float, float, float]) -> np.ndarray:
    """A copy of an image (3, H, W) with a square (x, y, side; shares) in its mean colour."""
    x, y, side = (round(value * image.shape[-1]) for value in cover)
    copy = image.copy()
    rows, columns = (slice(max(0, c - side // 2), max(0, c + side - side // 2)) for c in (y, x))
    copy[:, rows, columns] = image.mean((1, 2)).round().astype(image.dtype)[:, None, None]
    return copy


def places(count: int) -> list[tuple[float, float, float, float]]:
    """Where `count` square pictures lie in the figure: left, bottom, width, height, as shares."""
    side = min(WIDTH / count - 0.06, LARGE)
    step, size = (1 - side / WIDTH) / (count - 1), (side / WIDTH, side / HEIGHT)
    return [(k * step, (BELOW + LARGE - side) / HEIGHT, *size) for k in range(count)]


def explanation_figure(
    heat: Heat,
    class_names: Sequence[str],
    title: str = "",
    mask: np.ndarray | None = None,
    mask_name: str = "region",
    look: Look = Look(),
    beside: Heat | None = None,
) -> Figure:
    """Draw a tile with boxes | its heat map | another map to compare it with, if one is given.

    Below are probabilities and, where the region is known, the share of the heat inside it, and
    their overlap; mask: uint8 (H, W).
    """
    heats = [heat, beside] if beside else [heat]
    where = places(1 + len(heats))
    figure, (left, *axes) = fixed_axes(HEIGHT, where)  # as high for two: nothing jumps
    show_tile(left, heat.image, title, mask, boxes=boxes(heat.smooth, look.threshold))
    names = [shortened(n, 11) if len(class_names) > 2 else n for n in class_names]
    said = "  ".join(f"p({n})={p:.2f}" for n, p in zip(names, heat.probabilities, strict=True))
    notes = [f"{said}\nboxes above {look.threshold:.0%} of the map's maximum"]
    for ax, one in zip(axes, heats, strict=True):
        cells = torch.from_numpy(one.cells)[None]
        shown = enlarge(cells, one.image.shape[-1], smooth=False)[0] if look.raw else one.smooth
        end = None if one.probabilities is None else look.top  # others have a scale of their own
        top = end or float(one.smooth.max())
        overlay(ax, one.image, shown, top, one.source, mask, look.opacity)
        notes.append(measured(one, class_names[one.target], end, mask, mask_name))
    for (x, bottom, width, _), text in zip(where, notes, strict=True):
        lines = [textwrap.fill(line, int(110 * width)) for line in drawable(text).split("\n")]
        figure.text(x + width / 2, bottom - 0.01, "\n".join(lines), ha="center", va="top", size=9)
    return figure


def measured(
    heat: Heat, name: str, top: float | None, mask: np.ndarray | None, mask_name: str
) -> str:
    """The probability of a map's class, how strong it is, and how far it agrees with a region."""
    highest, p, words = float(heat.smooth.max()), heat.probabilities, ""
    if p is not None:
        change = "" if heat.change is None else f", {heat.change:+.2f} by the square"
        words = f"p({name}) = {p[heat.target]:.2f}{change}\nevidence for {name}: "
    words += f"at most {highest:.2g}" if highest else "none, the map is 0 everywhere"
    words += f", colours to {top:.2g}" if top else ""
    if mask is not None and mask.any() and highest > 0:
        inside, both = (f(heat.smooth[None], mask[None])[0] for f in (mass_inside, overlap))
        area = mask.mean()
        words += f"\nheat in the {mask_name}: {inside:.0%} (chance {area:.0%})"
        words += f"\noverlap of its hottest pixels: {both:.2f} (chance {area / (2 - area):.2f})"
    return words
