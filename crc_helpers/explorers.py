"""Interactive views of pure functions; the only file that imports ipywidgets."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from lightning.fabric import Fabric
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from sklearn.metrics import precision_recall_curve, roc_curve

from crc_helpers.augmentation import Views, apply, draw_parameters, shrink
from crc_helpers.data import Tiles
from crc_helpers.data_readers import SUFFIXES, DataError, decode
from crc_helpers.evaluation import precision_at_prevalence, wilson_interval
from crc_helpers.explanations_on_trial import hires_cam, layer_cam
from crc_helpers.figures import (
    CHANCE,
    PALETTE,
    draw_boxes,
    draw_confusion,
    overlay,
    show_tile,
)
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    grad_cam,
    last_stage,
    mass_inside,
    overlap,
    stage_names,
)
from crc_helpers.models import Classifier, evaluating
from crc_helpers.pretraining import chance_loss, floor_loss
from crc_helpers.synthetic_cohort import read
from crc_helpers.synthetic_tissue import (
    CLASS_NAMES,
    UNEQUIVOCAL,
    TissueParameters,
    diagnose,
    distortion,
    draw,
)

METHODS = {
    "Grad-CAM": lambda *given: grad_cam(*given).maps,
    "HiResCAM": hires_cam,
    "LayerCAM": layer_cam,
}  # what turns a layer's activations into a map
OWN = -1  # in place of a tile's row: a picture that was uploaded
LONGEST = 10_000  # pixels of a side of a picture that is uploaded, and …
NARROWEST = 20  # … how many times the shorter side the longer may be: a strip is no tile
WIDTH = 8.0  # inches of a figure: at 100 dots an inch it fits beside JupyterLab's list of files


def fixed_axes(
    height: float, places: Sequence[tuple[float, float, float, float]]
) -> tuple[Figure, list[Axes]]:
    """A figure, `height` inches high, with axes at places: left, bottom, width, height, as shares.

    Nothing jumps when a number gains a digit, and there is no layout to solve at every move of a
    slider, which took half of its time.
    """
    figure = plt.figure(figsize=(WIDTH, height), layout="none")
    return figure, [figure.add_axes(place) for place in places]


THIRDS = [(left, 0.14, 0.324, 0.72) for left in (0.004, 0.338, 0.672)]  # for three pictures


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
    layer = layer or last_stage(model)
    maps = METHODS[method](model, shrink(pair[:1], size), target, layer)
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


def as_png(figures: Iterable[Figure]) -> bytes:
    """Turn figures of one width into one PNG, below each other; each is closed before the next."""
    pictures = []
    for figure in figures:
        try:
            figure.set_dpi(100)
            figure.canvas.draw()
            pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., 2::-1])  # OpenCV has BGR
        finally:
            plt.close(figure)  # or every move of a slider leaves a figure in memory
    return cv2.imencode(".png", np.concatenate(pictures))[1].tobytes()  # twice as fast as Pillow's


SHOWN: dict[str, tuple[str, list["Explorer"]]] = {}  # id of a cell: its last run, and what it shows


def running_cell() -> tuple[str, str] | None:
    """Id of the notebook's cell that is running, and of this run; None where the page says none."""
    parent = getattr(get_ipython(), "get_parent", dict)()
    cell = parent.get("metadata", {}).get("cellId")
    return (cell, parent["header"]["msg_id"]) if cell else None


def close(widget: widgets.Widget) -> None:
    """Close a widget, what it holds, and what says how it looks."""
    looks = (getattr(widget, name, None) for name in ("layout", "style"))
    for held in (*getattr(widget, "children", ()), *filter(None, looks)):
        close(held)
    widget.close()


class Explorer:
    """Controls over a pure function that draws a figure: one picture, updated in place.

    A subclass makes `controls` and says in `figure` what they show. An error while drawing stands
    in the explorer as a sentence, the picture before it stays, and the controls go on working; but
    what cannot be drawn even once raises, or a lesson could be broken without anyone being told.
    """

    def __init__(self, controls: list[widgets.Widget]) -> None:
        self.controls = controls
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.message, self.link = widgets.Label(), widgets.HTML()
        for control in controls:
            control.observe(self._redraw, names="value")
        self._draw()

    def figure(self) -> Figure:
        """Draw what the controls say."""
        raise NotImplementedError

    def pages(self) -> Iterable[Figure]:
        """Draw all that is to be seen, from top to bottom."""
        yield self.figure()

    def _draw(self) -> None:
        picture = as_png(self.pages())
        self.picture.value = picture
        # The picture itself is in the link: saved by the browser, nothing written here.
        address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        self.link.value = f'<a download="{type(self).__name__}.png" href="{address}">save</a>'

    def _redraw(self, _change: object = None) -> None:
        self._attempt(self._draw)

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do what a control asks for: with a busy sign, and a sentence where it fails."""
        self.message.value = "drawing …"
        try:
            act()
            if self.message.value == "drawing …":  # else it has drawn on the way, or failed to
                self.message.value = ""
        except Exception as error:
            self.message.value = f"Not drawn: {error}"

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell; what an earlier run showed is closed."""
        if cell := running_cell():
            run, shown = SHOWN.get(cell[0], ("", []))
            if run != cell[1]:
                for old in shown:
                    if old is not self:
                        old.close()
                shown = []
            SHOWN[cell[0]] = cell[1], [*shown, self]
        return self.whole

    @cached_property
    def whole(self) -> widgets.Widget:
        """All that is shown, arranged once."""
        return self.arranged()

    def close(self) -> None:
        """Let go of all widgets; ipywidgets keeps the others, with networks and tiles, for ever."""
        close(self.whole)
        self.whole.children = ()  # the box itself stays in IPython's list of outputs

    def arranged(self) -> widgets.Widget:
        """The controls in two columns, over the picture."""
        half = -(-len(self.controls) // 2)
        columns = [widgets.VBox(self.controls[:half]), widgets.VBox(self.controls[half:])]
        rows = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        return widgets.VBox([rows, self.message, self.picture, self.link])


def named(description: str) -> dict:
    """Style and width of a control with its name to the left."""
    return {
        "description": description,
        "style": {"description_width": "140px"},
        "layout": {"width": "400px"},
    }


def slider(
    description: str, value: float, low: float, high: float, steps: int = 50
) -> widgets.FloatSlider:
    """A slider that reports when it is let go."""
    return widgets.FloatSlider(
        value=value, min=low, max=high, step=(high - low) / steps, continuous_update=False,
        readout_format=".2f", **named(description),
    )  # fmt: skip


def tile_options(tiles: Tiles, indices: np.ndarray) -> list[tuple[str, int]]:
    """Number, class and id of tiles, for a list to choose from."""
    names = [*tiles.class_names, "no label"]
    return [
        (f"{k}: {names[tiles.labels[i]]}, {tiles.ids[i]}", int(i)) for k, i in enumerate(indices, 1)
    ]


def tissue_figure(parameters: TissueParameters, seed: int) -> Figure:
    """Draw a tile, the same with the region that decides, and how readers like ours would vote."""
    drawing, found = draw(parameters, seed), distortion(parameters)
    places = [(0.004, 0.11, 0.35, 0.8), (0.364, 0.11, 0.35, 0.8), (0.8, 0.25, 0.19, 0.58)]
    figure, axes = fixed_axes(3.5, places)
    show_tile(axes[0], drawing.image, "what a reader sees")
    show_tile(axes[1], drawing.image, "the pixels that decide", drawing.diagnostic)
    panels = read(np.full(2000, found), np.random.default_rng(0))  # many panels of seven
    share = np.bincount(panels, minlength=8) / len(panels)
    colours = [PALETTE[0] if k < 4 else PALETTE[3] for k in range(8)]
    axes[2].bar(range(8), share, color=colours)
    axes[2].set(ylim=(0, 1), xticks=range(8))
    axes[2].set_xlabel("votes for SSA, of seven", fontsize=10)
    axes[2].set_ylabel("share of panels", fontsize=10)
    axes[2].tick_params(labelsize=9)
    axes[2].set_title(f"label SSA:\n{share[4:].sum():.0%} of panels", fontsize=10)
    rule = f"distortion of the worst crypt {found:.2f}, SSA from {UNEQUIVOCAL}"
    figure.supxlabel(f"by the rule: {CLASS_NAMES[diagnose([found])]} ({rule})", fontsize=11)
    return figure


class TissueExplorer(Explorer):
    """The tissue generator's parameters as sliders; the same seed keeps the same crypts.

    names: fields of TissueParameters, a slider each; more: controls below them.
    """

    def __init__(
        self, names: Sequence[str], seed: int = 0, more: Sequence[widgets.Widget] = ()
    ) -> None:
        known = {f.name: f for f in fields(TissueParameters)}
        self.sliders = {}
        for name in names:
            (low, high), value = known[name].metadata["bounds"], known[name].default
            self.sliders[name] = slider(name.replace("_", " "), value, low, high)
        self.seed = widgets.BoundedIntText(value=seed, min=0, max=9999, **named("which tile"))
        super().__init__([*self.sliders.values(), self.seed, *more])

    def parameters(self) -> TissueParameters:
        """What the sliders say."""
        return TissueParameters(**{name: slider.value for name, slider in self.sliders.items()})

    def figure(self) -> Figure:
        """Draw the tile of the sliders."""
        return tissue_figure(self.parameters(), self.seed.value)


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
        axes[0].imshow(lost, cmap=ListedColormap(["#ffd400"]), alpha=0.6)
    for i, (view, colour) in enumerate(zip(pair, (PALETTE[1], PALETTE[2]), strict=True)):
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
    places = [
        np.linalg.solve(m[:, :2].astype(float), (points - m[:, 2]).T) for m in matrices
    ]  # tile to view, (2, P)
    return np.array([(np.abs(place) <= 1).all(0) for place in places])


# Name of a slider: field of Views, lowest and highest value.
STRENGTHS = {
    "smallest crop": ("crop", 0.08, 1.0), "rotation (°)": ("rotate", 0, 45),
    "shift (share)": ("translate", 0, 0.3), "shear (°)": ("shear", 0, 30),
    "brightness": ("brightness", 0, 0.8), "contrast": ("contrast", 0, 0.8),
    "saturation": ("saturation", 0, 0.8), "hue (turns)": ("hue", 0, 0.5),
    "stain": ("stain", 0, 0.8), "grey, chance": ("grayscale", 0, 1),
    "blur, chance": ("blur", 0, 1), "widest blur (px)": ("blur_sigma", 0.3, 4),
}  # fmt: skip
SWITCHES = {"flips": "flip", "quarter turns": "turn"}  # name of a checkbox: field of Views


def views_of(start: Views, chosen: dict[str, float]) -> Views:
    """A recipe with other strengths: of crop the smallest is chosen, of blur_sigma the widest."""
    crop, blur = chosen["crop"], chosen["blur_sigma"]
    pairs = {"crop": (crop, 1.0), "blur_sigma": (min(start.blur_sigma[0], blur), blur)}
    return replace(start, **chosen | pairs)


class ViewsExplorer(Explorer):
    """Two views of a tile, with a slider or a checkbox for every transform.

    indices: rows of `tiles` to choose from; views: the recipe to start from; size: side of a view.
    """

    def __init__(self, tiles: Tiles, indices: np.ndarray, views: Views, size: int) -> None:
        self.tiles, self.views, self.size = tiles, views, size
        self.tile = widgets.Dropdown(options=tile_options(tiles, indices), **named("tile"))
        start = vars(views) | {"crop": views.crop[0], "blur_sigma": views.blur_sigma[1]}
        self.strengths = {
            name: slider(label, start[name], low, high)
            for label, (name, low, high) in STRENGTHS.items()
        }
        for label, name in SWITCHES.items():
            self.strengths[name] = widgets.Checkbox(value=start[name], **named(label))
        self.again = widgets.BoundedIntText(value=0, min=0, max=9999, **named("draw number"))
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
    pictures = ((similarity, "cosine\n(blue −1, red 1)", (-1, 1), "coolwarm", "k"),
                (weight, softmax, (0, 1), "viridis", "w"))  # fmt: skip
    kinds, order = np.array([*labels, *labels]), np.arange(2 * n)
    same_tile = (order[:, None] - order) % n == 0
    false = np.argwhere((kinds[:, None] == kinds) & ~same_tile)
    for ax, (matrix, title, (low, high), colours, ink) in zip(axes, pictures, strict=False):
        ax.imshow(matrix, vmin=low, vmax=high, cmap=colours)
        ax.set_title(title, fontsize=10)
        ax.set_xticks(order, names, fontsize=9)
        frames = [plt.Rectangle((j - 0.5, i - 0.5), 1, 1) for i, j in enumerate(partner)]
        ax.add_collection(PatchCollection(frames, facecolor="none", edgecolor=ink, linewidth=2))
        ax.plot(false[:, 1], false[:, 0], "x", color=ink, markersize=5)
    axes[2].barh(order, losses, color=PALETTE[0])
    axes[2].invert_yaxis()
    marks = (
        (chance_loss(n), "chance", "right", 1.01),
        (floor_loss(n, temperature), "floor", "left", 1.08),  # higher: the lines may meet
    )
    for value, name, side, height in marks:
        axes[2].axvline(value, **CHANCE)
        axes[2].annotate(name, (value, height), xycoords=("data", "axes fraction"), ha=side,
                         va="bottom", color="0.35", fontsize=10)  # fmt: skip
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


def nearest(features: np.ndarray, i: int, k: int = 5) -> np.ndarray:
    """The k rows of features (N, D) with the highest cosine to row i, itself left out, int (k,).

    A row of zeros, which a collapsed encoder gives, has cosine 0 to all; among equals, the first.
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1)
    others = np.delete(np.arange(len(features)), i)
    return others[np.argsort(-(unit[others] @ unit[i]), kind="stable")][:k]


def embedding_figure(
    points: np.ndarray, features: np.ndarray, tiles: Tiles, i: int, kind: str, title: str = ""
) -> Figure:
    """Draw a map of tiles, one of them, and the five nearest to it in feature space.

    points (N, 2), features (N, D) of the N `tiles`; kind: what colours show, see `colours_of`.
    """
    near = nearest(features, i)
    places = [(0.52 + 0.16 * k, bottom, 0.155, 0.36) for bottom in (0.55, 0.11) for k in range(3)]
    figure, (ax, *pictures) = fixed_axes(3.5, [(0.01, 0.11, 0.34, 0.8), *places])
    values, names = colours_of(tiles, kind)
    colours = ListedColormap([PALETTE[0], PALETTE[3]]) if len(names) == 2 else "viridis"
    shown = ax.scatter(*points.T, c=values, s=14, linewidths=0, alpha=0.8, cmap=colours)
    for j in near:
        ax.plot(*points[[i, j]].T, color="0.2", linewidth=0.8)
    ax.plot(*points[near].T, "o", mfc="none", mec="0.2", markersize=8)
    ax.plot(*points[i], "o", mfc="none", mec="k", mew=2.5, markersize=14)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)
    if names:
        handles = shown.legend_elements(num=None)[0]
        words = [shortened(name, 12) for name in names]  # up to the pictures beside them
        ax.legend(handles, words, title=kind, fontsize=9, title_fontsize=9, loc="center left",
                  bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0)  # fmt: skip
    for place, (ax, j) in enumerate(zip(pictures, (i, *near), strict=False)):
        label = tiles.class_names[tiles.labels[j]] if tiles.labels[j] >= 0 else "no label"
        title = f"{place}. {label}" if place else f"this {label}"
        show_tile(ax, tiles.images[j], shortened(title, 13))  # up to the picture beside it
        if tiles.groups is not None and place and tiles.groups[j] == tiles.groups[i]:
            ax.text(0.5, 0.05, "same slide", transform=ax.transAxes, ha="center", fontsize=9,
                    bbox={"facecolor": "white", "pad": 1, "linewidth": 0})  # fmt: skip
    for ax in pictures[len(near) + 1 :]:
        ax.set_axis_off()
    same = (tiles.labels[near] == tiles.labels[i]).mean()
    chance = (np.delete(tiles.labels, i) == tiles.labels[i]).mean()
    notes = [f"neighbours of its class {same:.0%} (chance {chance:.0%})"]
    if tiles.groups is not None:
        mates = (tiles.groups[near] == tiles.groups[i]).mean()
        chance = (np.delete(tiles.groups, i) == tiles.groups[i]).mean()
        notes.append(f"of its slide {mates:.0%} (chance {chance:.0%})")
    figure.supxlabel(" · ".join(notes), fontsize=11)
    return figure


def shortened(text: str, n: int) -> str:
    """A text of at most n characters."""
    return text if len(text) <= n else f"{text[: n - 1]}…"


def colours_of(tiles: Tiles, kind: str) -> tuple[np.ndarray, list[str]]:
    """A number a tile (N,), and the names of the numbers, none where they are too many to list.

    kind: "class", "slide", "votes", or a column of the tiles' metadata.
    """
    if kind == "votes":
        return tiles.votes, [str(v) for v in np.unique(tiles.votes)]
    values = {"class": tiles.labels, "slide": tiles.groups}.get(kind)
    values = tiles.metadata[kind].to_numpy() if values is None else values
    known, codes = np.unique(values, return_inverse=True)
    if kind == "class":
        return codes, ["no label" if k < 0 else tiles.class_names[k] for k in known]
    return codes, [str(k) for k in known] if len(known) <= 8 else []


class EmbeddingExplorer(Explorer):
    """Point at a tile on a map of features, and see it and its nearest neighbours.

    tiles: N of them; features: name of an encoder to its features (N, D); maps: name of the same
    encoder to a flat map (N, 2) of them.
    """

    def __init__(
        self, tiles: Tiles, features: dict[str, np.ndarray], maps: dict[str, np.ndarray]
    ) -> None:
        self.tiles, self.features, self.maps = tiles, features, maps
        known = {"class": True, "slide": tiles.groups is not None, "votes": tiles.votes is not None}
        kinds = [kind for kind, there in known.items() if there]
        kinds += [] if tiles.metadata is None else [c for c in tiles.metadata if c not in known]
        self.encoder = widgets.Dropdown(
            options=list(maps), value=list(maps)[-1], **named("encoder")
        )
        self.kind = widgets.Dropdown(options=kinds, **named("colour by"))
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


STRIP, SIDE = 12, 72  # thumbnails in a strip, pixels of a side


def strip(images: np.ndarray, chosen: int | None, columns: int = STRIP, side: int = SIDE) -> bytes:
    """A row of numbered thumbnails as PNG, the one at position `chosen` framed.

    images: uint8 (n, 3, H, W), n at most `columns`.
    """
    row = Image.new("RGB", (columns * (side + 6), side + 6), "white")
    pen = ImageDraw.Draw(row)
    for k, image in enumerate(images):
        x = k * (side + 6) + 3
        row.paste(Image.fromarray(np.moveaxis(image, 0, -1)).resize((side, side)), (x, 3))
        pen.rectangle((x, 3, x + 18, 15), fill="white")
        pen.text((x + 3, 3), str(k + 1), fill="black")
        if k == chosen:
            pen.rectangle((x - 3, 0, x + side + 2, side + 5), outline="black", width=3)
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    return buffer.getvalue()


def choices(models: dict[str, Classifier], class_names: Sequence[str]) -> list[widgets.Dropdown]:
    """Lists of networks, of classes (the second chosen), and of layers (the last that counts)."""
    first = next(iter(models.values()))
    classes = [(name, c) for c, name in enumerate(class_names)]
    return [
        widgets.Dropdown(options=[(name, name) for name in models], **named("network")),
        widgets.Dropdown(options=classes, value=1, **named("class explained")),
        widgets.Dropdown(
            options=[(n, n) for n in stage_names(first)], value=last_stage(first), **named("layer")
        ),
    ]


class Asked(NamedTuple):
    """What is to be explained of a tile, and how: a value of each control of that name."""

    model: str
    target: int
    layer: str
    method: str


class GradCamExplorer(Explorer):
    """Grad-CAM on a tile, or a picture of your own, as you like to see it.

    models: name to network, in evaluation mode; indices: rows of `tiles` to choose from; size:
    input side of the networks in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], tiles: Tiles, indices: np.ndarray, size: int
    ) -> None:
        self.models, self.tiles, self.size, self.indices = models, tiles, size, indices
        self.ends, self.said, self.heats, self.offered = {}, {}, {}, indices[:STRIP]
        self.in_strip = None  # tiles and position of the frame
        filters = ["all", *(f"class {n}" for n in tiles.class_names), "right", "wrong"]
        filters += ["least sure"]
        filters += ["readers 4 : 3"] * (tiles.votes is not None)
        self.filter = widgets.Dropdown(options=filters, **named("offer tiles"))
        self.strip = widgets.Image(format="png", layout={"max_width": "100%"})
        self.strip.add_class("strip")
        # Each below its picture, however narrow the page.
        self.picks = [
            widgets.Button(description=str(k + 1), tooltip=f"tile {k + 1}",
                           layout={"flex": "1 1 0", "width": "auto", "min_width": "0",
                                   "margin": "0 3px", "padding": "0"})
            for k in range(STRIP)
        ]  # fmt: skip
        for k, button in enumerate(self.picks):
            button.on_click(lambda _, k=k: self._pick(k))
        self.tile = widgets.Dropdown(options=tile_options(tiles, self.offered), **named("tile"))
        # So much Jupyter lets through as one message, and by `make lab` ten times as much.
        self.upload = widgets.FileUpload(
            accept=",".join(SUFFIXES), description="or your own image (10 MB; make lab: 100 MB)",
            layout={"width": "400px"},
        )  # fmt: skip
        self.model, self.target, self.layer = choices(models, tiles.class_names)
        self.method = widgets.Dropdown(options=[(n, n) for n in METHODS], **named("method"))
        self.asked = self.model, self.target, self.layer, self.method  # in the order of Asked
        others = [
            (f"{control.description}: {label}", (field, value))
            for field, control in zip(Asked._fields, self.asked, strict=True)
            for label, value in control.options
        ]
        self.beside = widgets.Dropdown(options=[("nothing", ()), *others], **named("compare with"))
        self.scale = widgets.Dropdown(options=["own maximum", "same for all"], **named("colours"))
        self.raw = widgets.Checkbox(value=False, **named("raw cells"))
        self.threshold = slider("boxes at", 0.5, 0.1, 0.9)
        self.opacity = slider("opacity", 0.55, 0.0, 1.0)
        self.square = [slider("cover: side", 0.0, 0.0, 0.6)]
        self.square += [slider(f"cover: {name}", 0.5, 0.0, 1.0) for name in ("across", "down")]
        for place in self.square[1:]:  # of a square that is not there yet
            place.disabled = True
        self.square[0].observe(self._square_is_there, names="value")
        # Any other control changes what is asked or how it looks: answers are kept.
        for control in (self.tile, *self.square):
            control.observe(lambda _: self.heats.clear(), names="value")
        super().__init__(
            [self.tile, self.model, self.beside, self.target, self.layer, self.method, self.scale,
             self.raw, self.threshold, self.opacity, *self.square]
        )  # fmt: skip
        # These two redraw by the tile that they choose.
        self.filter.observe(self._offer, names="value")
        self.upload.observe(self._take_upload, names="value")
        self.controls = [self.filter, self.tile, self.upload, *self.controls[1:]]
        self.model.observe(self._offer, names="value")  # another network is wrong elsewhere

    def _pick(self, k: int) -> None:
        if k < len(self.offered):  # the button of a place without a picture is hidden
            self.tile.value = int(self.offered[k])

    def _square_is_there(self, change: dict) -> None:
        for place in self.square[1:]:
            place.disabled = not change["new"]

    def _take_upload(self, _change: object = None) -> None:
        if self.upload.value:
            self.heats.clear()  # a second picture takes the place of the first
            self._attempt(lambda: self._list_tiles(own_first=True))

    def _offer(self, _change: object = None) -> None:
        self._attempt(self._fill)

    def _fill(self) -> None:
        wanted, found = self.filter.value, self.filtered()
        if not len(found):
            self.filter.value = "all"  # which fills the list
            raise ValueError(f"no tile here is {wanted!r}: all are offered")
        if list(found) != list(self.offered):
            self.offered = found
            self._list_tiles(own_first=self.tile.value == OWN)

    def _list_tiles(self, own_first: bool) -> None:
        """Fill the list with the tiles offered and the picture uploaded; choose the first."""
        own = [(f"your own: {file['name']}", OWN) for file in self.upload.value[:1]]
        offered, before = tile_options(self.tiles, self.offered), self.tile.value
        self.tile.options = own + offered if own_first else offered + own
        if self.tile.value == before:  # else choosing it has redrawn
            self._redraw()

    def filtered(self) -> np.ndarray:
        """The first twelve tiles that the filter lets through; least sure: the twelve least."""
        kind, labels = self.filter.value, self.tiles.labels[self.indices]
        if kind == "all":
            keep = np.ones(len(labels), bool)
        elif kind.startswith("class "):  # no class can be mistaken for another filter
            keep = labels == self.tiles.class_names.index(kind.removeprefix("class "))
        elif kind == "readers 4 : 3":
            keep = np.isin(self.tiles.votes[self.indices], (3, 4))
        else:
            said = self.probabilities()
            if kind == "least sure":
                return self.indices[np.argsort(said.max(1))[:STRIP]]
            keep = ((said.argmax(1) == labels) == (kind == "right")) & (labels >= 0)
        return self.indices[keep][:STRIP]

    def probabilities(self) -> np.ndarray:
        """What the chosen network says of all tiles there are to choose from, float (N, C)."""
        name = self.model.value
        if name not in self.said:
            network, images = self.models[name], self.tiles.images[self.indices]
            fabric = Fabric(accelerator=next(network.parameters()).device.type, devices=1)
            self.said[name] = predict(network, images, self.size, fabric)
        return self.said[name]

    def chosen(self) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Picture, mask and title of what is to be explained.

        Nothing of an upload is written to disk. Raises DataError for a file that is no tile.
        """
        if self.tile.value == OWN:
            file = self.upload.value[0]
            content, name = bytes(file["content"]), Path(file["name"]).name
            image, _, (width, height) = decode(Path(name), self.tiles.images.shape[-1], content)
            if max(width, height) > min(LONGEST, NARROWEST * min(width, height)):
                raise DataError(
                    f"{name}: {width}×{height} px; a side may have {LONGEST:,} px, and {NARROWEST}"
                    " times those of the other: cut a tile out of it"
                )
            title = f"{shortened(name, 24)}, {width}×{height} px"
            return np.ascontiguousarray(image), None, title
        i = self.tile.value
        label = self.tiles.labels[i]
        name = self.tiles.class_names[label] if label >= 0 else "none"
        mask = None if self.tiles.masks is None else self.tiles.masks[i]
        return np.array(self.tiles.images[i]), mask, f"truth: {name}"

    def rows(self) -> list[Asked]:
        """Every explanation that is shown: one, or two that differ in one thing."""
        asked = Asked(*(control.value for control in self.asked))
        if not self.beside.value:
            return [asked]
        field, value = self.beside.value
        return [asked, asked._replace(**{field: value})]

    def top(self) -> float | None:
        """End of the colour scale: the highest value of all that is shown or in the strip, or None.

        One end for both rows: on scales of their own, noise and evidence would look alike.
        """
        if self.scale.value == "own maximum":
            return None
        shown = (float(self.explained(row)[0].cells.max()) for row in self.rows())
        return max(*(self._end(row) for row in self.rows()), *shown)

    def _end(self, row: Asked) -> float:
        key = row, tuple(self.offered)
        if key not in self.ends:
            network = self.models[row.model]
            images = torch.from_numpy(self.tiles.images[self.offered])
            images = shrink(images.to(next(network.parameters()).device), self.size)
            targets = torch.full((len(images),), row.target, device=images.device)
            maps = METHODS[row.method](network, images, targets, row.layer)
            self.ends[key] = float(maps.max())
        return self.ends[key]

    def explained(self, row: Asked) -> tuple[Heat, np.ndarray | None, str]:
        """What is explained, its mask and its title, kept until the tile or the square changes."""
        if row not in self.heats:
            image, mask, title = self.chosen()
            side, across, down = (control.value for control in self.square)
            heat = explain(self.models[row.model], image, self.size, row.target, row.layer,
                           (across, down, side), row.method)  # fmt: skip
            self.heats[row] = heat, mask, f"{title}\n{row.model}"
        return self.heats[row]

    def figure(self, row: Asked | None = None) -> Figure:
        """Draw the explanation that the controls ask for, or another."""
        heat, mask, title = self.explained(row or self.rows()[0])
        return draw_heat(
            heat, self.tiles.class_names, title, mask, self.tiles.mask_name, self.threshold.value,
            self.opacity.value, self.raw.value, self.top(),
        )  # fmt: skip

    def pages(self) -> Iterable[Figure]:
        """Draw the explanation, and the one it is compared with below."""
        offered, i = list(self.offered), self.tile.value
        row = tuple(offered), offered.index(i) if i in offered else None
        if row != self.in_strip:
            self.strip.value, self.in_strip = strip(self.tiles.images[self.offered], row[1]), row
            for k, button in enumerate(self.picks):
                button.layout.visibility = "visible" if k < len(offered) else "hidden"
        for asked in self.rows():
            yield self.figure(asked)

    def arranged(self) -> widgets.Widget:
        """The strip of tiles, and a button for each, over the controls and the picture."""
        picks = widgets.HBox(self.picks, layout={"max_width": f"{STRIP * (SIDE + 6)}px"})
        return widgets.VBox([self.strip, picks, super().arranged()])


def live_figure(
    model: Classifier,
    size: int,
    parameters: TissueParameters,
    seed: int,
    target: int = 1,
    layer: str | None = None,
) -> Figure:
    """Draw a tile of these parameters, and what a network makes of it; HP is class 0, SSA 1."""
    drawing, found = draw(parameters, seed), distortion(parameters)
    return explanation_figure(
        model, drawing.image, size, class_names=CLASS_NAMES, target=target, layer=layer,
        title=f"by the rule: {CLASS_NAMES[diagnose([found])]}\n(distortion {found:.2f})",
        mask=drawing.diagnostic, mask_name="diagnostic region",
    )  # fmt: skip


class LiveExplorer(TissueExplorer):
    """Turn the tissue's parameters and watch prediction and map follow; HP is class 0, SSA 1.

    models: name to network, in evaluation mode; size: their input side in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], size: int, names: Sequence[str], seed: int = 0
    ) -> None:
        self.models, self.size = models, size
        self.model, self.target, self.layer = choices(models, CLASS_NAMES)
        super().__init__(names, seed, [self.model, self.target, self.layer])

    def figure(self) -> Figure:
        """Draw what the network makes of the tile of the sliders."""
        return live_figure(
            self.models[self.model.value], self.size, self.parameters(), self.seed.value,
            self.target.value, self.layer.value,
        )  # fmt: skip
