"""Interactive views of pure functions; the only file that imports ipywidgets."""

import io
from collections.abc import Sequence
from dataclasses import fields

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from crc_helpers.augmentation import shrink
from crc_helpers.data import Tiles
from crc_helpers.figures import PALETTE, draw_boxes, overlay, show_tile
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    grad_cam,
    last_stage,
    mass_inside,
    stage_names,
)
from crc_helpers.models import Classifier
from crc_helpers.synthetic_cohort import read
from crc_helpers.synthetic_tissue import (
    CLASS_NAMES,
    UNEQUIVOCAL,
    TissueParameters,
    diagnose,
    distortion,
    draw,
)


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


class Explorer:
    """Controls over a pure function that draws a figure: one picture, updated in place.

    A subclass makes `controls` and says in `figure` what they show. An error while drawing stands
    in the explorer as a sentence, the picture before it stays, and the controls go on working.
    """

    def __init__(self, controls: list[widgets.Widget]) -> None:
        self.controls = controls
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.message = widgets.Label()
        for control in controls:
            control.observe(self._redraw, names="value")
        self._redraw()

    def figure(self) -> Figure:
        """Draw what the controls say."""
        raise NotImplementedError

    def render(self) -> bytes:
        """Return the current figure as PNG."""
        figure = self.figure()
        try:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        finally:
            plt.close(figure)  # or every move of a slider leaves a figure in memory
        return buffer.getvalue()

    def _redraw(self, _change: object = None) -> None:
        self.message.value = "drawing …"
        try:
            self.picture.value = self.render()
            self.message.value = ""
        except Exception as error:
            self.message.value = f"Not drawn: {error}"

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell."""
        half = -(-len(self.controls) // 2)
        columns = [widgets.VBox(self.controls[:half]), widgets.VBox(self.controls[half:])]
        rows = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        return widgets.VBox([rows, self.message, self.picture])


def tissue_figure(parameters: TissueParameters, seed: int) -> Figure:
    """Draw a tile, the same with the region that decides, and how readers like ours would vote."""
    drawing, found = draw(parameters, seed), distortion(parameters)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.1), width_ratios=(1, 1, 0.75))
    show_tile(axes[0], drawing.image, "what a reader sees")
    show_tile(axes[1], drawing.image, "the pixels that decide", drawing.diagnostic)
    panels = read(np.full(2000, found), np.random.default_rng(0))  # many panels of seven
    share = np.bincount(panels, minlength=8) / len(panels)
    colours = [PALETTE[0] if k < 4 else PALETTE[3] for k in range(8)]
    axes[2].bar(range(8), share, color=colours)
    axes[2].set(xlabel="votes for SSA, of seven", ylabel="share of panels", ylim=(0, 1))
    axes[2].set_title(f"published label SSA in {share[4:].sum():.0%}", fontsize=10)
    rule = f"distortion of the worst crypt {found:.2f}, SSA from {UNEQUIVOCAL}"
    figure.supxlabel(f"by the rule: {CLASS_NAMES[diagnose([found])]} ({rule})", fontsize=12)
    return figure


class TissueExplorer(Explorer):
    """The tissue generator's parameters as sliders; the same seed keeps the same crypts.

    names: fields of TissueParameters, a slider each.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        known = {f.name: f for f in fields(TissueParameters)}
        self.sliders = {}
        for name in names:
            (low, high), value = known[name].metadata["bounds"], known[name].default
            self.sliders[name] = widgets.FloatSlider(
                value=value, min=low, max=high, step=(high - low) / 50, description=name,
                continuous_update=False, readout_format=".2f",
                style={"description_width": "150px"}, layout={"width": "420px"},
            )  # fmt: skip
        self.seed = widgets.BoundedIntText(value=seed, min=0, max=9999, description="which tile",
                                           style={"description_width": "150px"})  # fmt: skip
        super().__init__([*self.sliders.values(), self.seed])

    def figure(self) -> Figure:
        """Draw the tile of the sliders."""
        values = {name: slider.value for name, slider in self.sliders.items()}
        return tissue_figure(TissueParameters(**values), self.seed.value)


class GradCamExplorer(Explorer):
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
        super().__init__([self.tile, self.layer, self.threshold, self.target])

    def figure(self) -> Figure:
        """Draw the explanation that the controls ask for."""
        return explanation_figure(
            self.model, self.tiles, self.tile.value, self.size,
            target=self.target.value, layer=self.layer.value, threshold=self.threshold.value,
        )  # fmt: skip
