"""Grad-CAM on any tile, or on a picture of your own (lesson 06)."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from crc_helpers.augmentation import shrink
from crc_helpers.data import Tiles
from crc_helpers.explorers.base import Explorer, named, shortened, slider, tile_options
from crc_helpers.explorers.heat import METHODS, Heat, choices, draw_heat, explain
from crc_helpers.fine_tuning import predict
from crc_helpers.models import Classifier
from crc_helpers.sources.base import SUFFIXES, DataError
from crc_helpers.sources.images import decode

OWN = -1  # in place of a tile's row: a picture that was uploaded
LONGEST = 10_000  # pixels of a side of a picture that is uploaded, and …
NARROWEST = 20  # … how many times the shorter side the longer may be: a strip is no tile
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
        self.model, self.target, self.layer = choices(models, tiles.class_names, size)
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
