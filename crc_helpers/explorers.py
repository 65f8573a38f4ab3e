"""Interactive views of pure functions; the only file that imports ipywidgets."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.fabric import Fabric
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from sklearn.metrics import precision_recall_curve, roc_curve

from crc_helpers.augmentation import Views, apply, draw_parameters, shrink
from crc_helpers.data import Tiles
from crc_helpers.data_readers import SUFFIXES, decode
from crc_helpers.evaluation import precision_at_prevalence, wilson_interval
from crc_helpers.figures import (
    CHANCE,
    PALETTE,
    draw_boxes,
    draw_confusion,
    overlay,
    show_tile,
    tile_grid,
)
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    grad_cam,
    last_stage,
    mass_inside,
    stage_names,
)
from crc_helpers.models import Classifier
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


def explanation_figure(
    model: Classifier,
    image: np.ndarray,
    size: int,
    *,
    class_names: Sequence[str],
    target: int,
    title: str = "",
    mask: np.ndarray | None = None,
    mask_name: str = "region",
    layer: str | None = None,
    threshold: float = 0.5,
    opacity: float = 0.55,
    raw: bool = False,
    top: float | None = None,
    cover: tuple[float, float, float] = (0.5, 0.5, 0.0),
) -> Figure:
    """Draw a tile | its Grad-CAM map | boxes, with probabilities and, where the region is known,
    the share of the heat inside it.

    image: uint8 (3, H, W); mask: uint8 (H, W); size: input side of the network in pixels; target:
    class explained; raw: cells as the layer has them; top: end of the colour scale, else the map's
    own maximum; cover: centre and side, as shares of the picture, of a square to paint over with
    the tile's mean colour, which shows what the score depends on.
    """
    device, side = next(model.parameters()).device, image.shape[-1]
    covered = paint_over(image, cover)
    pair = torch.from_numpy(np.stack([covered, image])).to(device)
    found = grad_cam(model, shrink(pair[:1], size), target, layer)
    heat = enlarge(found.maps, side)
    said = torch.softmax(found.logits[0].double(), dim=0).numpy()
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2))
    show_tile(axes[0], covered, title, mask)
    highest = float(heat[0].max())
    text = (
        f"evidence for {class_names[target]}, maximum {highest:.2g}"
        if highest > 0
        else "no evidence: the map is 0 everywhere"
    )
    cells = found.maps[0].cpu().numpy()
    shown = np.kron(cells, np.ones((-(-side // len(cells)),) * 2))[:side, :side] if raw else heat[0]
    overlay(axes[1], covered, shown, top or highest, mask=mask, title=text, opacity=opacity)
    chances = "  ".join(f"p({n}) = {p:.2f}" for n, p in zip(class_names, said, strict=True))
    show_tile(axes[2], covered, chances, mask)
    draw_boxes(axes[2], boxes(heat[0], threshold))
    notes = [f"layer {layer or last_stage(model)}, boxes above {threshold:.0%} of the maximum"]
    if mask is not None and mask.any() and highest > 0:
        inside = mass_inside(heat, mask[None])[0]
        notes.append(f"heat in the {mask_name}: {inside:.0%} (chance {mask.mean():.0%})")
    if cover[2] > 0:
        with torch.no_grad():
            before = torch.softmax(model(shrink(pair[1:], size))[0].double(), 0)[target]
        change = said[target] - float(before)
        notes.append(f"the square moves p({class_names[target]}) by {change:+.2f}")
    figure.supxlabel(" · ".join(notes), fontsize=11)
    return figure


def paint_over(image: np.ndarray, cover: tuple[float, float, float]) -> np.ndarray:
    """A copy of an image (3, H, W) with a square (x, y, side; shares) in its mean colour."""
    x, y, side = (round(value * image.shape[-1]) for value in cover)
    copy = image.copy()
    rows, columns = (slice(max(0, c - side // 2), max(0, c + side - side // 2)) for c in (y, x))
    copy[:, rows, columns] = image.mean((1, 2)).round().astype(image.dtype)[:, None, None]
    return copy


def as_png(figures: Iterable[Figure]) -> bytes:
    """Turn figures into one PNG, below each other; each is closed before the next is asked for."""
    pictures = []
    for figure in figures:
        try:
            figure.set_dpi(100)
            figure.canvas.draw()
            pictures.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]))
        finally:
            plt.close(figure)  # or every move of a slider leaves a figure in memory
    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    page, y, buffer = Image.new("RGB", size, "white"), 0, io.BytesIO()
    for picture in pictures:
        page.paste(picture, (0, y))
        y += picture.height
    page.save(buffer, "PNG", compress_level=1)  # the quickest: latency counts, not bytes
    return buffer.getvalue()


class Explorer:
    """Controls over a pure function that draws a figure: one picture, updated in place.

    A subclass makes `controls` and says in `figure` what they show. An error while drawing stands
    in the explorer as a sentence, the picture before it stays, and the controls go on working.
    """

    def __init__(self, controls: list[widgets.Widget]) -> None:
        self.controls = controls
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.message, self.link = widgets.Label(), widgets.HTML()
        for control in controls:
            control.observe(self._redraw, names="value")
        self._redraw()

    def figure(self) -> Figure:
        """Draw what the controls say."""
        raise NotImplementedError

    def render(self) -> bytes:
        """Return the current figure as PNG."""
        return as_png([self.figure()])

    def _redraw(self, _change: object = None) -> None:
        self.message.value = "drawing …"
        try:
            picture = self.render()
            self.picture.value = picture
            # The picture itself is in the link: saved by the browser, nothing written here.
            address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            self.link.value = f'<a download="{type(self).__name__}.png" href="{address}">save</a>'
            self.message.value = ""
        except Exception as error:
            self.message.value = f"Not drawn: {error}"

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell."""
        half = -(-len(self.controls) // 2)
        columns = [widgets.VBox(self.controls[:half]), widgets.VBox(self.controls[half:])]
        rows = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        return widgets.VBox([rows, self.message, self.picture, self.link])


def named(description: str) -> dict:
    """Style and width of a control with its name to the left."""
    return {
        "description": description,
        "style": {"description_width": "120px"},
        "layout": {"width": "400px"},
    }


def slider(description: str, value: float, low: float, high: float) -> widgets.FloatSlider:
    """A slider of fifty steps that reports when it is let go."""
    return widgets.FloatSlider(
        value=value, min=low, max=high, step=(high - low) / 50, continuous_update=False,
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
            self.sliders[name] = slider(name.replace("_", " "), value, low, high)
        self.seed = widgets.BoundedIntText(value=seed, min=0, max=9999, **named("which tile"))
        super().__init__([*self.sliders.values(), self.seed])

    def figure(self) -> Figure:
        """Draw the tile of the sliders."""
        values = {name: slider.value for name, slider in self.sliders.items()}
        return tissue_figure(TissueParameters(**values), self.seed.value)


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
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.4))
    show_tile(axes[0], image, "the tile, and where the views lie", mask)
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]])
    kept = kept_share(mask, drawn.warp.numpy()) if mask is not None and mask.any() else None
    for i, (view, colour) in enumerate(zip(pair, (PALETTE[1], PALETTE[2]), strict=True)):
        at = (corners @ drawn.warp[i].numpy().T + 1) / 2 * image.shape[-1]
        axes[0].plot(*at.T, color=colour, linewidth=2.5, clip_on=True)
        text = "" if kept is None else f": {kept[i]:.0%} of the pixels that decide"
        show_tile(axes[i + 1], view, f"view {i + 1}{text}")
        for side in axes[i + 1].spines.values():
            side.set(visible=True, color=colour, linewidth=3)
        axes[i + 1].set(xticks=[], yticks=[], frame_on=True)
        axes[i + 1].axis("on")
    axes[0].set(xlim=(0, image.shape[-1]), ylim=(image.shape[-1], 0))
    if kept is not None:
        survives = "yes" if kept.min() > 0.5 else "perhaps" if kept.min() > 0.1 else "no"
        figure.supxlabel(f"Would the diagnosis survive in both views? {survives}", fontsize=12)
    return figure


def kept_share(mask: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Share of the pixels of a mask (H, W) that each view (N, 2, 3) still shows, float (N,)."""
    rows, columns = np.nonzero(mask)
    side = np.array(mask.shape[::-1])
    points = 2 * (np.stack([columns, rows], 1) + 0.5) / side - 1  # (P, 2) in [-1, 1]
    inside = [
        np.linalg.solve(m[:, :2].astype(float), (points - m[:, 2]).T).T for m in matrices
    ]  # tile to view
    return np.array([(np.abs(place) <= 1).all(1).mean() for place in inside])


# Name of a slider: field of Views, lowest and highest value.
STRENGTHS = {
    "smallest crop": ("crop", 0.08, 1.0), "rotation (°)": ("rotate", 0, 45),
    "shear (°)": ("shear", 0, 30), "brightness": ("brightness", 0, 0.8),
    "contrast": ("contrast", 0, 0.8), "saturation": ("saturation", 0, 0.8),
    "hue (turns)": ("hue", 0, 0.5), "stain": ("stain", 0, 0.8),
    "grey, chance": ("grayscale", 0, 1), "blur, chance": ("blur", 0, 1),
}  # fmt: skip


class ViewsExplorer(Explorer):
    """Two views of a tile, with the strength of every transform a slider.

    indices: rows of `tiles` to choose from; views: the recipe to start from; size: side of a view.
    """

    def __init__(self, tiles: Tiles, indices: np.ndarray, views: Views, size: int) -> None:
        self.tiles, self.views, self.size = tiles, views, size
        self.tile = widgets.Dropdown(options=tile_options(tiles, indices), **named("tile"))
        self.sliders = {}
        for label, (name, low, high) in STRENGTHS.items():
            value = views.crop[0] if name == "crop" else getattr(views, name)
            self.sliders[name] = slider(label, value, low, high)
        self.again = widgets.BoundedIntText(value=0, min=0, max=9999, **named("draw number"))
        super().__init__([self.tile, *self.sliders.values(), self.again])

    def figure(self) -> Figure:
        """Draw the views that the sliders ask for."""
        chosen = {name: s.value for name, s in self.sliders.items() if name != "crop"}
        views = replace(self.views, crop=(self.sliders["crop"].value, 1.0), **chosen)
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
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), width_ratios=(1, 1, 0.7))
    pictures = ((similarity, "cosine", (-1, 1), "coolwarm"),
                (weight, f"softmax at τ = {temperature:.2f}", (0, 1), "viridis"))  # fmt: skip
    kinds = np.array([*labels, *labels])
    for ax, (matrix, title, (low, high), colours) in zip(axes, pictures, strict=False):
        shown = ax.imshow(matrix, vmin=low, vmax=high, cmap=colours)
        figure.colorbar(shown, ax=ax, shrink=0.8)
        ax.set(title=title, xticks=range(2 * n), yticks=range(2 * n))
        ax.set_xticklabels(names)
        ax.set_yticklabels(names)
        for i in range(2 * n):
            corner = (partner[i] - 0.5, i - 0.5)
            ax.add_patch(plt.Rectangle(corner, 1, 1, fill=False, ec="k", lw=2))
            false = (kinds == kinds[i]) & (np.arange(2 * n) % n != i % n)
            ax.plot(np.flatnonzero(false), np.full(false.sum(), i), "kx", markersize=5)
    axes[2].barh(range(2 * n), losses, color=PALETTE[0])
    axes[2].invert_yaxis()
    marks = (chance_loss(n), "chance", "right"), (floor_loss(n, temperature), "floor", "left")
    for value, name, side in marks:
        axes[2].axvline(value, **CHANCE)
        axes[2].annotate(name, (value, 1.01), xycoords=("data", "axes fraction"), ha=side,
                         va="bottom", color="0.35", fontsize=10)  # fmt: skip
    axes[2].set(xlabel="loss of the anchor", yticks=range(2 * n))
    axes[2].set_title(f"NT-Xent {losses.mean():.3f}", pad=20)  # over the names of the lines
    axes[2].set_yticklabels(names)
    axes[2].set_xlim(0, max(losses.max(), chance_loss(n)) * 1.08)
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
    """The k rows of features (N, D) with the highest cosine to row i, itself left out, int (k,)."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit[i]
    cosine[i] = -np.inf
    return np.argsort(-cosine)[: min(k, len(features) - 1)]


def embedding_figure(
    points: np.ndarray, features: np.ndarray, tiles: Tiles, i: int, kind: str, title: str = ""
) -> Figure:
    """Draw a map of tiles, one of them, and the five nearest to it in feature space.

    points (N, 2), features (N, D) of the N `tiles`; kind: what colours show, see `colours_of`.
    """
    near = nearest(features, i)
    figure = plt.figure(figsize=(12, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(0.85, 1))
    ax = left.subplots()
    values, names = colours_of(tiles, kind)
    colours = ListedColormap([PALETTE[0], PALETTE[3]]) if len(names) == 2 else "turbo"
    shown = ax.scatter(*points.T, c=values, s=14, linewidths=0, alpha=0.8, cmap=colours)
    for j in near:
        ax.plot(*points[[i, j]].T, color="0.2", linewidth=0.8)
    ax.plot(*points[near].T, "o", mfc="none", mec="0.2", markersize=8)
    ax.plot(*points[i], "o", mfc="none", mec="k", mew=2.5, markersize=14)
    ax.set(xticks=[], yticks=[], title=title)
    if names:
        handles = shown.legend_elements(num=None)[0]
        ax.legend(handles, names, title=kind, fontsize=9, title_fontsize=9, loc="center left",
                  bbox_to_anchor=(1, 0.5), frameon=False)  # fmt: skip
    for ax in (places := right.subplots(2, 3).ravel()):
        ax.set_axis_off()
    for place, (ax, j) in enumerate(zip(places, (i, *near), strict=False)):
        label = tiles.class_names[tiles.labels[j]] if tiles.labels[j] >= 0 else "no label"
        mate = tiles.groups is not None and place and tiles.groups[j] == tiles.groups[i]
        words = f"{'this' if not place else f'{place}.'} {label}" + (", same slide" if mate else "")
        show_tile(ax, tiles.images[j], words)
    same = (tiles.labels[near] == tiles.labels[i]).mean()
    chance = (np.delete(tiles.labels, i) == tiles.labels[i]).mean()
    notes = [f"neighbours of its class {same:.0%} (chance {chance:.0%})"]
    if tiles.groups is not None:
        mates = (tiles.groups[near] == tiles.groups[i]).mean()
        chance = (np.delete(tiles.groups, i) == tiles.groups[i]).mean()
        notes.append(f"of its slide {mates:.0%} (chance {chance:.0%})")
    figure.supxlabel(" · ".join(notes), fontsize=11)
    return figure


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
        kinds += [] if tiles.metadata is None else list(tiles.metadata)
        self.encoder = widgets.Dropdown(
            options=list(maps), value=list(maps)[-1], **named("encoder")
        )
        self.kind = widgets.Dropdown(options=kinds, **named("colour by"))
        self.across = slider("point: across", 0.5, 0.0, 1.0)
        self.down = slider("point: down", 0.5, 0.0, 1.0)
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
    figure, axes = plt.subplots(1, 4, figsize=(14.5, 3.9), width_ratios=(0.9, 1.25, 1, 1))
    draw_confusion(axes[0], counts, class_names)
    shares = {
        "accuracy": (right, len(labels)),
        f"recall {class_names[1]}": (counts[1, 1], counts[1].sum()),
        f"recall {class_names[0]}": (counts[0, 0], counts[0].sum()),
        f"precision {class_names[1]}": (counts[1, 1], called),
    }
    for row, (k, n) in enumerate(shares.values()):
        low, high = wilson_interval(int(k), int(n))
        axes[1].plot([low, high], [row, row], color=PALETTE[0], linewidth=3)
        if n:
            axes[1].plot(k / n, row, "o", color=PALETTE[0])
        text = f"{k / n:.2f} [{low:.2f}, {high:.2f}]" if n else "none called"
        axes[1].text(1.04, row, text, va="center", fontsize=10)
    if called:
        there = precision_at_prevalence(recall, specificity, prevalence)
        axes[1].plot(there, 4, "D", color=PALETTE[1])
        axes[1].text(1.04, 4, f"{there:.2f}", va="center", fontsize=10)
    axes[1].set(xlim=(0, 1), yticks=range(5), title=f"threshold {threshold:.2f}",
                xlabel="Wilson intervals: tiles as if independent")  # fmt: skip
    axes[1].set_yticklabels([*shares, f"precision where\n{prevalence:.0%} are {class_names[1]}"])
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
        cells = {
            f"{t} called {p}": (i, j) for i, t in enumerate((a, b)) for j, p in enumerate((a, b))
        }
        self.cell = widgets.Dropdown(options={"none": None} | cells, **named("show tiles"))
        super().__init__([self.threshold, self.prevalence, self.cell])

    def figure(self) -> Figure:
        """Draw the metrics, or the surest tiles of the cell that was chosen."""
        labels, names = self.tiles.labels, self.tiles.class_names
        if self.cell.value is None:
            where = self.threshold.value, self.prevalence.value
            return threshold_figure(labels, self.score, names, *where)
        truth, said = self.cell.value
        found = (labels == truth) & ((self.score >= self.threshold.value) == bool(said))
        order = np.argsort(self.score[found] * (1 - 2 * said))[:6]
        index = np.flatnonzero(found)[order]
        if not len(index):
            figure, ax = plt.subplots(figsize=(8, 1))
            ax.text(0.5, 0.5, "no such tile at this threshold", ha="center", va="center")
            ax.set_axis_off()
            return figure
        titles = [f"p({names[1]}) = {self.score[i]:.2f}" for i in index]
        return tile_grid(self.tiles.images[index], titles, columns=6, width=2.2)


def strip(images: np.ndarray, chosen: int, columns: int = 12, side: int = 72) -> bytes:
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


class GradCamExplorer(Explorer):
    """Grad-CAM on a tile, or a picture of your own, as you like to see it.

    models: name to network, in evaluation mode; indices: rows of `tiles` to choose from; size:
    input side of the networks in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], tiles: Tiles, indices: np.ndarray, size: int
    ) -> None:
        self.models, self.tiles, self.size, self.indices = models, tiles, size, indices
        self.tops, self.said, self.offered = {}, {}, indices[:12]
        first = next(iter(models.values()))
        classes = [(n, c) for c, n in enumerate(tiles.class_names)]
        filters = ["all", *tiles.class_names, "right", "wrong", "least sure"]
        filters += ["readers 4 : 3"] * (tiles.votes is not None)
        self.filter = widgets.Dropdown(options=filters, **named("offer tiles"))
        self.strip = widgets.Image(format="png", layout={"max_width": "100%"})
        self.strip.add_class("strip")
        self.tile = widgets.Dropdown(options=tile_options(tiles, self.offered), **named("tile"))
        self.upload = widgets.FileUpload(
            accept=",".join(SUFFIXES), description="or your own image", layout={"width": "400px"}
        )
        self.model = widgets.Dropdown(options=list(models), **named("network"))
        others = ["nothing", *models, *(f"evidence for {name}" for name in tiles.class_names)]
        self.beside = widgets.Dropdown(options=others, **named("compare with"))
        self.target = widgets.Dropdown(options=classes, value=1, **named("class explained"))
        self.layer = widgets.Dropdown(
            options=stage_names(first), value=last_stage(first), **named("layer")
        )
        self.scale = widgets.Dropdown(options=["own maximum", "same for all"], **named("colours"))
        self.raw = widgets.Checkbox(value=False, **named("raw cells"))
        self.threshold = slider("boxes at", 0.5, 0.1, 0.9)
        self.opacity = slider("opacity", 0.55, 0.0, 1.0)
        self.square = [slider("cover: side", 0.0, 0.0, 0.6)]
        self.square += [slider(f"cover: {name}", 0.5, 0.0, 1.0) for name in ("across", "down")]
        self.filter.observe(self._offer, names="value")
        self.tile.observe(self._forget_upload, names="value")  # before it is drawn
        super().__init__(
            [self.tile, self.upload, self.model, self.beside, self.target, self.layer, self.scale,
             self.raw, self.threshold, self.opacity, *self.square]
        )  # fmt: skip
        self.controls = [self.filter, *self.controls]  # it redraws by the tile that it chooses
        self.model.observe(self._offer, names="value")  # another network is wrong elsewhere

    def _forget_upload(self, _change: object = None) -> None:
        self.upload.value = ()

    def _offer(self, _change: object = None) -> None:
        found = self.filtered()
        if not len(found):
            self.message.value = f"Not drawn: no tile here is {self.filter.value!r}"
        elif list(found) != list(self.offered):
            self.offered, before = found, self.tile.value
            self.tile.options = tile_options(self.tiles, found)
            if self.tile.value == before:  # else choosing it has redrawn
                self._redraw()

    def filtered(self) -> np.ndarray:
        """The first twelve tiles that the filter lets through; least sure: the twelve least."""
        kind, labels = self.filter.value, self.tiles.labels[self.indices]
        if kind == "all":
            keep = np.ones(len(labels), bool)
        elif kind in self.tiles.class_names:
            keep = labels == self.tiles.class_names.index(kind)
        elif kind == "readers 4 : 3":
            keep = np.isin(self.tiles.votes[self.indices], (3, 4))
        else:
            said = self.probabilities()
            if kind == "least sure":
                return self.indices[np.argsort(said.max(1))[:12]]
            keep = (said.argmax(1) == labels) == (kind == "right")
        return self.indices[keep][:12]

    def probabilities(self) -> np.ndarray:
        """What the chosen network says of all tiles there are to choose from, float (N, C)."""
        name = self.model.value
        if name not in self.said:
            network, images = self.models[name], self.tiles.images[self.indices]
            fabric = Fabric(accelerator=next(network.parameters()).device.type, devices=1)
            self.said[name] = predict(network, images, self.size, fabric)
        return self.said[name]

    def chosen(self) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Picture, mask and title of what is to be explained; an upload wins over the list.

        Nothing of an upload is written to disk. Raises DataError for a file that is no tile.
        """
        if self.upload.value:
            file = self.upload.value[0]
            content, name = bytes(file["content"]), Path(file["name"]).name
            image, _, (width, height) = decode(Path(name), self.tiles.images.shape[-1], content)
            return np.ascontiguousarray(image), None, f"{name}, {width}×{height} px"
        i = self.tile.value
        label = self.tiles.labels[i]
        name = self.tiles.class_names[label] if label >= 0 else "none"
        mask = None if self.tiles.masks is None else self.tiles.masks[i]
        return np.array(self.tiles.images[i]), mask, f"truth: {name}"

    def top(self, model: str, target: int) -> float | None:
        """End of the colour scale: the highest value over the tiles in the strip, or None."""
        if self.scale.value == "own maximum":
            return None
        key = model, target, self.layer.value, tuple(self.offered)
        if key not in self.tops:
            network = self.models[model]
            images = torch.from_numpy(self.tiles.images[self.offered])
            images = images.to(next(network.parameters()).device)
            found = grad_cam(network, shrink(images, self.size), target, self.layer.value)
            self.tops[key] = float(found.maps.max())
        return self.tops[key]

    def figure(self, model: str | None = None, target: int | None = None) -> Figure:
        """Draw the explanation that the controls ask for, or another network's or class's."""
        model = model or self.model.value
        target = self.target.value if target is None else target
        image, mask, title = self.chosen()
        side, across, down = (control.value for control in self.square)
        return explanation_figure(
            self.models[model], image, self.size, class_names=self.tiles.class_names,
            target=target, title=f"{title}; {model}", mask=mask, mask_name=self.tiles.mask_name,
            layer=self.layer.value, threshold=self.threshold.value, opacity=self.opacity.value,
            raw=self.raw.value, top=self.top(model, target), cover=(across, down, side),
        )  # fmt: skip

    def render(self) -> bytes:
        """Return the figure as PNG, with the one it is compared with below."""
        images = self.tiles.images[self.offered]
        self.strip.value = strip(images, list(self.offered).index(self.tile.value))
        wanted, other = [{}], self.beside.value
        if other in self.models:
            wanted.append({"model": other})
        elif other != "nothing":
            name = other.removeprefix("evidence for ")
            wanted.append({"target": self.tiles.class_names.index(name)})
        return as_png(self.figure(**what) for what in wanted)

    def show(self) -> widgets.Widget:
        """Return the widget: the strip of tiles over the controls and the picture."""
        return widgets.VBox([self.strip, super().show()])


class LiveExplorer(TissueExplorer):
    """Turn the tissue's parameters and watch prediction and map follow; HP is class 0, SSA 1."""

    def __init__(self, model: Classifier, size: int, names: Sequence[str], seed: int = 0) -> None:
        self.model, self.size = model, size
        super().__init__(names, seed)

    def figure(self) -> Figure:
        """Draw what the network makes of the tile of the sliders."""
        values = {name: slider.value for name, slider in self.sliders.items()}
        parameters = TissueParameters(**values)
        drawing, found = draw(parameters, self.seed.value), distortion(parameters)
        return explanation_figure(
            self.model, drawing.image, self.size, class_names=CLASS_NAMES, target=1,
            title=f"by the rule: {CLASS_NAMES[diagnose([found])]} ({found:.2f})",
            mask=drawing.diagnostic, mask_name="diagnostic region",
        )  # fmt: skip
