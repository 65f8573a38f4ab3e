"""A heat map of one tile, in numbers and as a figure (lesson 06)."""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from crc_helpers.augmentation import shrink
from crc_helpers.explanations import hires_cam, layer_cam
from crc_helpers.explorers.base import THIRDS, choice, fixed_axes, shortened
from crc_helpers.figures import overlay, show_tile
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    grad_cam,
    last_layer,
    layer_names,
    mass_inside,
    overlap,
)
from crc_helpers.models import Classifier, evaluating
from crc_helpers.style import drawable

CAMS = {
    "Grad-CAM": lambda *given: grad_cam(*given).maps,
    "HiResCAM": hires_cam,
    "LayerCAM": layer_cam,
}  # each makes maps (N, h, w) of a network, images, targets and a layer


@dataclass(frozen=True)
class Heat:
    """What a network says of one tile, and why, in numbers."""

    image: np.ndarray  # uint8 (3, H, W), with the square painted over
    cells: np.ndarray  # float32 (h, w), the map as the layer has it
    smooth: np.ndarray  # float32 (H, W), the same enlarged
    probabilities: np.ndarray  # float (C,)
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
    """Explain one class of a tile, uint8 (3, H, W), by a method of CAMS.

    size: input side of the network in pixels; cover: centre and side, as shares of the picture, of
    a square to paint over with the tile's mean colour, which shows what the score depends on.
    """
    covered = paint_over(image, cover)
    pair = torch.from_numpy(np.stack([covered, image])).to(next(model.parameters()).device)
    inputs = shrink(pair, size)
    layer = layer or last_layer(model, inputs)
    maps = CAMS[method](model, inputs[:1], target, layer)
    with evaluating(model), torch.no_grad():
        after, before = torch.softmax(model(inputs).double(), dim=1).cpu().numpy()
    change = float(after[target] - before[target]) if cover[2] > 0 else None
    smooth = enlarge(maps, image.shape[-1])[0]
    return Heat(covered, maps[0].numpy(), smooth, after, target, f"{method}, {layer}", change)


def layer_choice(model: nn.Module, size: int) -> widgets.Dropdown:
    """A list of the layers that can be explained, for images of `size` pixels; the last chosen."""
    names = layer_names(model, next(model.parameters()).new_zeros(1, 3, size, size))
    return choice("layer", names, names[-1])


def paint_over(image: np.ndarray, cover: tuple[float, float, float]) -> np.ndarray:
    """A copy of an image (3, H, W) with a square (x, y, side; shares) in its mean colour."""
    x, y, side = (round(value * image.shape[-1]) for value in cover)
    copy = image.copy()
    rows, columns = (slice(max(0, c - side // 2), max(0, c + side - side // 2)) for c in (y, x))
    copy[:, rows, columns] = image.mean((1, 2)).round().astype(image.dtype)[:, None, None]
    return copy


def explanation_figure(
    heat: Heat,
    class_names: Sequence[str],
    title: str = "",
    mask: np.ndarray | None = None,
    mask_name: str = "region",
    look: Look = Look(),
) -> Figure:
    """Draw a tile | its heat map | boxes, with probabilities and, where the region is known, the
    share of the heat inside it, and their overlap; mask: uint8 (H, W).
    """
    figure, (left, middle, right) = fixed_axes(3.6, THIRDS)
    name, side = class_names[heat.target], heat.image.shape[-1]
    cells = torch.from_numpy(heat.cells)[None]
    shown = enlarge(cells, side, smooth=False)[0] if look.raw else heat.smooth
    show_tile(left, heat.image, title, mask)
    top = look.top or float(heat.smooth.max())
    overlay(middle, heat.image, shown, top, evidence(heat, name, look.top), mask, look.opacity)
    hot_boxes = boxes(heat.smooth, look.threshold)
    show_tile(right, heat.image, probabilities(heat, class_names), mask, boxes=hot_boxes)
    notes = f"{heat.source}, boxes above {look.threshold:.0%} of the maximum"
    if heat.change is not None:
        notes += f" · the square moves p({name}) by {heat.change:+.2f}"
    if mask is not None and mask.any() and heat.smooth.max() > 0:
        inside, both = (f(heat.smooth[None], mask[None])[0] for f in (mass_inside, overlap))
        area = mask.mean()
        notes += f"\nheat in the {mask_name}: {inside:.0%} (chance {area:.0%})"
        notes += f" · overlap of its hottest pixels: {both:.2f} (chance {area / (2 - area):.2f})"
    figure.supxlabel(drawable(notes), fontsize=10)
    return figure


def evidence(heat: Heat, name: str, top: float | None) -> str:
    """How strong a map is, or that there is none, in words."""
    highest = float(heat.smooth.max())
    if highest == 0:
        return "no evidence:\nthe map is 0 everywhere"
    if not np.isfinite(highest):
        return "no map:\nNaN or infinity"
    return f"evidence for {name},\nmaximum {highest:.2g}" + (
        f", colours to {top:.2g}" if top else ""
    )


def probabilities(heat: Heat, class_names: Sequence[str]) -> str:
    """The probability of each class, two a line where they fit."""
    names = [shortened(n, 11) if len(class_names) > 2 else n for n in class_names]
    words = [f"p({n}) = {p:.2f}" for n, p in zip(names, heat.probabilities, strict=True)]
    columns = 1 if len(words) == 2 and max(map(len, words)) > 18 else 2
    return "\n".join("  ".join(words[k : k + columns]) for k in range(0, len(words), columns))
