"""A heat map of one tile, in numbers and as a figure (lesson 06)."""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from crc_helpers.augmentation import shrink
from crc_helpers.explanations import hires_cam, layer_cam
from crc_helpers.explorers.base import THIRDS, fixed_axes, named, shortened
from crc_helpers.figures import draw_boxes, overlay, show_tile
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

METHODS = {
    "Grad-CAM": lambda *given: grad_cam(*given).maps,
    "HiResCAM": hires_cam,
    "LayerCAM": layer_cam,
}  # what turns a layer's activations into a map


@dataclass(frozen=True)
class Heat:
    """What a network says of one tile, in numbers; how it is drawn is another matter."""

    image: np.ndarray  # uint8 (3, H, W), with the square painted over
    cells: np.ndarray  # float32 (h, w), the map as the layer has it
    smooth: np.ndarray  # float32 (H, W), the same enlarged
    chances: np.ndarray  # float (C,), probabilities
    target: int  # the class explained
    source: str  # method and layer
    change: float | None  # of the target's probability, by the square, where there is one


def explain(
    model: Classifier,
    image: np.ndarray,
    size: int,
    target: int,
    layer: str | None = None,
    cover: tuple[float, float, float] = (0.5, 0.5, 0.0),
    method: str = "Grad-CAM",
) -> Heat:
    """Explain one class of a tile, uint8 (3, H, W), by a method of METHODS.

    size: input side of the network in pixels; cover: centre and side, as shares of the picture, of
    a square to paint over with the tile's mean colour, which shows what the score depends on.
    """
    covered = paint_over(image, cover)
    pair = torch.from_numpy(np.stack([covered, image])).to(next(model.parameters()).device)
    given = shrink(pair[:1], size)
    layer = layer or last_layer(model, given)
    maps = METHODS[method](model, given, target, layer)
    with evaluating(model), torch.no_grad():
        asked = pair if cover[2] > 0 else pair[:1]
        said = torch.softmax(model(shrink(asked, size)).double(), dim=1).cpu().numpy()
    change = float(said[0, target] - said[1, target]) if cover[2] > 0 else None
    smooth, source = enlarge(maps, image.shape[-1])[0], f"{method}, {layer}"
    return Heat(covered, maps[0].numpy(), smooth, said[0], target, source, change)


def draw_heat(
    heat: Heat,
    class_names: Sequence[str],
    title: str = "",
    mask: np.ndarray | None = None,
    mask_name: str = "region",
    threshold: float = 0.5,
    opacity: float = 0.55,
    raw: bool = False,
    top: float | None = None,
) -> Figure:
    """Draw a tile | its Grad-CAM map | boxes, with probabilities and, where the region is known,
    the share of the heat inside it, and their overlap.

    mask: uint8 (H, W); raw: cells as the layer has them; top: end of the colour scale, else the
    map's own maximum.
    """
    figure, axes = fixed_axes(3.6, THIRDS)
    show_tile(axes[0], heat.image, title, mask)
    side, highest, name = heat.image.shape[-1], float(heat.smooth.max()), class_names[heat.target]
    text = "no evidence:\nthe map is 0 everywhere" if highest == 0 else "no map:\nNaN or infinity"
    if np.isfinite(highest) and highest > 0:
        text = f"evidence for {name},\nmaximum {highest:.2g}"
        text += f", colours to {top:.2g}" if top else ""
    shown = heat.smooth
    if raw:
        shown = enlarge(torch.from_numpy(heat.cells)[None], side, smooth=False)[0]
    overlay(axes[1], heat.image, shown, top or highest, mask=mask, title=text, opacity=opacity)
    words = [shortened(n, 11) if len(class_names) > 2 else n for n in class_names]
    chances = [f"p({n}) = {p:.2f}" for n, p in zip(words, heat.chances, strict=True)]
    side_by_side = 1 if len(chances) == 2 and max(map(len, chances)) > 18 else 2
    lines = ["  ".join(chances[k : k + side_by_side]) for k in range(0, len(chances), side_by_side)]
    show_tile(axes[2], heat.image, "\n".join(lines), mask)
    draw_boxes(axes[2], boxes(heat.smooth, threshold))
    notes = [f"{heat.source}, boxes above {threshold:.0%} of the maximum"]
    if heat.change is not None:
        notes[0] += f" · the square moves p({name}) by {heat.change:+.2f}"
    if mask is not None and mask.any() and highest > 0:
        inside, both = (f(heat.smooth[None], mask[None])[0] for f in (mass_inside, overlap))
        area = mask.mean()
        notes.append(f"heat in the {mask_name}: {inside:.0%} (chance {area:.0%}) · overlap of its"
                     f" hottest pixels: {both:.2f} (chance {area / (2 - area):.2f})")  # fmt: skip
    figure.supxlabel("\n".join(notes), fontsize=10)
    return figure


def explanation_figure(
    model: Classifier,
    image: np.ndarray,
    size: int,
    *,
    target: int,
    layer: str | None = None,
    cover: tuple[float, float, float] = (0.5, 0.5, 0.0),
    method: str = "Grad-CAM",
    **look: object,
) -> Figure:
    """Explain a tile, see `explain`, and draw it; look: arguments of `draw_heat`."""
    return draw_heat(explain(model, image, size, target, layer, cover, method), **look)


def paint_over(image: np.ndarray, cover: tuple[float, float, float]) -> np.ndarray:
    """A copy of an image (3, H, W) with a square (x, y, side; shares) in its mean colour."""
    x, y, side = (round(value * image.shape[-1]) for value in cover)
    copy = image.copy()
    rows, columns = (slice(max(0, c - side // 2), max(0, c + side - side // 2)) for c in (y, x))
    copy[:, rows, columns] = image.mean((1, 2)).round().astype(image.dtype)[:, None, None]
    return copy


def choices(
    models: dict[str, Classifier], class_names: Sequence[str], size: int
) -> list[widgets.Dropdown]:
    """Lists of networks, of classes (the second chosen), and of layers (the last that counts).

    size: input side of the networks in pixels.
    """
    first = next(iter(models.values()))
    layers = layer_names(first, next(first.parameters()).new_zeros(1, 3, size, size))
    classes = [(name, c) for c, name in enumerate(class_names)]
    return [
        widgets.Dropdown(options=[(name, name) for name in models], **named("network")),
        widgets.Dropdown(options=classes, value=1, **named("class explained")),
        widgets.Dropdown(options=[(n, n) for n in layers], value=layers[-1], **named("layer")),
    ]
