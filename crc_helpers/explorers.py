"""Interactive views of pure functions; the only file that imports ipywidgets."""

import io

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from crc_helpers.augmentation import shrink
from crc_helpers.data import Tiles
from crc_helpers.figures import draw_boxes, overlay, show_tile
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    grad_cam,
    last_stage,
    mass_inside,
    stage_names,
)
from crc_helpers.models import Classifier


def explanation_figure(
    model: Classifier,
    tiles: Tiles,
    index: int,
    size: int,
    *,
    target: int,
    layer: str | None = None,
    threshold: float = 0.5,
) -> Figure:
    """Draw one tile | its Grad-CAM map | boxes, with probabilities and, where the region is known,
    the share of the heat inside it.

    index: row of `tiles`; size: input side of the network in pixels; target: class explained.
    """
    device = next(model.parameters()).device
    image = torch.from_numpy(np.array(tiles.images[index : index + 1])).to(device)
    found = grad_cam(model, shrink(image, size), target, layer)
    heat = enlarge(found.maps, tiles.images.shape[-1])
    mask = None if tiles.masks is None else tiles.masks[index]
    said = torch.softmax(found.logits[0].double(), dim=0).numpy()
    names = tiles.class_names
    figure, axes = plt.subplots(1, 3, figsize=(11, 4))
    label = tiles.labels[index]
    show_tile(
        axes[0], tiles.images[index], f"truth: {names[label] if label >= 0 else 'none'}", mask
    )
    top = float(heat[0].max())
    title = (
        f"evidence for {names[target]}, maximum {top:.2g}" if top > 0 else "no evidence: map is 0"
    )
    overlay(axes[1], tiles.images[index], heat[0], top, mask=mask, title=title)
    found_text = "  ".join(f"p({n}) = {p:.2f}" for n, p in zip(names, said, strict=True))
    show_tile(axes[2], tiles.images[index], found_text, mask)
    draw_boxes(axes[2], boxes(heat[0], threshold))
    text = f"layer {layer or last_stage(model)}, boxes above {threshold:.0%} of the maximum"
    if mask is not None and mask.any() and top > 0:
        inside = mass_inside(heat, mask[None])[0]
        text += f" · heat in the {tiles.mask_name}: {inside:.0%} (chance {mask.mean():.0%})"
    figure.supxlabel(text, fontsize=11)
    return figure


class GradCamExplorer:
    """Grad-CAM on a tile, class, layer and threshold of your choice.

    model: in evaluation mode; indices: rows of `tiles` to choose from; size: input side in pixels.
    """

    def __init__(self, model: Classifier, tiles: Tiles, indices: np.ndarray, size: int) -> None:
        self.model, self.tiles, self.size = model, tiles, size
        stages = stage_names(model)
        names = tiles.class_names
        options = [(f"{k + 1}: {names[tiles.labels[i]]}, {tiles.ids[i]}", int(i))
                   for k, i in enumerate(indices)]  # fmt: skip
        wide = {"style": {"description_width": "70px"}, "layout": {"width": "330px"}}
        self.tile = widgets.Dropdown(options=options, description="Tile", **wide)
        self.target = widgets.ToggleButtons(
            options=[(n, c) for c, n in enumerate(names)], value=1, description="Class",
            style={"description_width": "70px", "button_width": "auto"},
        )  # fmt: skip
        self.layer = widgets.Dropdown(
            options=stages, value=last_stage(model), description="Layer", **wide
        )
        self.threshold = widgets.FloatSlider(
            value=0.5, min=0.1, max=0.9, step=0.05, description="Boxes at",
            continuous_update=False, **wide,
        )  # fmt: skip
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        for control in (self.tile, self.target, self.layer, self.threshold):
            control.observe(self._redraw, names="value")
        self._redraw()

    def render(self) -> bytes:
        """Return the current figure as PNG."""
        figure = explanation_figure(
            self.model, self.tiles, self.tile.value, self.size,
            target=self.target.value, layer=self.layer.value, threshold=self.threshold.value,
        )  # fmt: skip
        try:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        finally:
            plt.close(figure)  # or every move of a slider leaves a figure in memory
        return buffer.getvalue()

    def _redraw(self, _change: object = None) -> None:
        self.picture.value = self.render()

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell."""
        left = widgets.VBox([self.tile, self.layer])
        right = widgets.VBox([self.threshold, self.target])
        return widgets.VBox(
            [widgets.HBox([left, right], layout={"flex_flow": "row wrap"}), self.picture]
        )
