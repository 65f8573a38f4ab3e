"""Which tile: a strip of thumbnails, a list, filters, and a picture of your own (lesson 06)."""

import io
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from crc_helpers.data import Tiles
from crc_helpers.explorers.base import choice, label, shortened, tile_options
from crc_helpers.sources.base import SUFFIXES, DataError
from crc_helpers.sources.images import decode

OWN = -1  # in place of a tile's row: a picture that was uploaded
LONGEST = 10_000  # pixels of a side of a picture that is uploaded, and …
NARROWEST = 20  # … how many times the shorter side the longer may be: a strip is no tile
STRIP, SIDE = 12, 72  # thumbnails in a strip, pixels of a side


class TileChooser:
    """Offers tiles, at most twelve at a time, and holds the one chosen.

    indices: rows of `tiles` to choose from; predict: gives the class probabilities (N, C) of these
    by the network that is asked now. Whoever draws the tile observes `tile`.
    """

    def __init__(
        self, tiles: Tiles, indices: np.ndarray, predict: Callable[[], np.ndarray]
    ) -> None:
        self.tiles, self.indices, self.predict = tiles, indices, predict
        self.offered, self.own, self.shown = indices[:STRIP], None, None
        kinds = ["all", *(f"class {n}" for n in tiles.class_names), "right", "wrong", "least sure"]
        kinds += ["readers 4 : 3"] * (tiles.votes is not None)
        self.filter = choice("offer tiles", kinds)
        self.tile = choice("tile", tile_options(tiles, self.offered))
        # So much Jupyter lets through as one message, and by `make lab` ten times as much.
        words = "or your own image (10 MB; make lab: 100 MB)"
        wide = {"width": "400px"}
        self.upload = widgets.FileUpload(accept=",".join(SUFFIXES), description=words, layout=wide)
        self.strip = widgets.Image(format="png", layout={"max_width": "100%"})
        self.strip.add_class("strip")
        place = {"flex": "1 1 0", "width": "auto", "min_width": "0", "margin": "0 3px"}
        self.picks = [
            widgets.Button(description=str(k), tooltip=f"tile {k}", layout=place | {"padding": "0"})
            for k in range(1, STRIP + 1)
        ]
        for k, button in enumerate(self.picks):
            button.on_click(lambda _, k=k: self.pick(k))

    def pick(self, k: int) -> None:
        """Choose the tile at a place of the strip."""
        if k < len(self.offered):  # the button of a place without a picture is hidden
            self.tile.value = int(self.offered[k])

    def offer(self) -> bool:
        """Offer the tiles that pass the filter and choose the first; True if they have changed."""
        kind, passing = self.filter.value, self.filtered()
        if not len(passing):
            self.filter.value = "all"  # which fills the list
            raise ValueError(f"no tile here is {kind!r}: all are offered")
        if list(passing) == list(self.offered):
            return False
        self.offered = passing
        self.fill(own_first=self.tile.value == OWN)
        return True

    def filtered(self) -> np.ndarray:
        """Return the first twelve tiles that pass the filter, or the twelve least sure."""
        kind, labels = self.filter.value, self.tiles.labels[self.indices]
        if kind == "all":
            return self.indices[:STRIP]
        if kind.startswith("class "):  # no class can be mistaken for another filter
            return self.indices[labels == self.filter.index - 1][:STRIP]
        if kind == "readers 4 : 3":
            return self.indices[np.isin(self.tiles.votes[self.indices], (3, 4))][:STRIP]
        probabilities = self.predict()
        if kind == "least sure":
            return self.indices[np.argsort(probabilities.max(1))[:STRIP]]
        right = probabilities.argmax(1) == labels
        return self.indices[(right == (kind == "right")) & (labels >= 0)][:STRIP]

    def take_upload(self) -> bool:
        """Decode what was uploaded and choose it; nothing of it is written to disk."""
        for file in self.upload.value:
            size = self.tiles.images.shape[-1]
            self.own = own_tile(Path(file["name"]).name, bytes(file["content"]), size)
            self.own_name = file["name"]
            self.fill(own_first=True)
        return bool(self.upload.value)

    def fill(self, own_first: bool) -> None:
        """List the tiles offered and the picture uploaded, and choose the first."""
        own = [] if self.own is None else [(f"your own: {self.own_name}", OWN)]
        offered = tile_options(self.tiles, self.offered)
        self.tile.options = own + offered if own_first else offered + own

    def chosen(self) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Picture, mask and title of the tile chosen."""
        i = self.tile.value
        if i == OWN:
            image, title = self.own
            return image, None, title
        mask = None if self.tiles.masks is None else self.tiles.masks[i]
        return np.array(self.tiles.images[i]), mask, f"truth: {label(self.tiles, i)}"

    def draw_strip(self) -> None:
        """Show the tiles offered, the one chosen framed, and a button for each."""
        offered, i = list(self.offered), self.tile.value
        shown = offered, i
        if shown == self.shown:
            return
        self.shown, chosen = shown, offered.index(i) if i in offered else None
        self.strip.value = thumbnails(self.tiles.images[self.offered], chosen)
        for k, button in enumerate(self.picks):
            button.layout.visibility = "visible" if k < len(offered) else "hidden"


def own_tile(name: str, content: bytes, size: int) -> tuple[np.ndarray, str]:
    """Decode an uploaded file: uint8 (3, size, size) and a title; DataError where it is no tile."""
    image, _, (width, height) = decode(Path(name), size, content)
    if max(width, height) > min(LONGEST, NARROWEST * min(width, height)):
        raise DataError(
            f"{name}: {width}×{height} px; a side may have {LONGEST:,} px, and {NARROWEST} times"
            " those of the other: cut a tile out of it"
        )
    return np.ascontiguousarray(image), f"{shortened(name, 24)}, {width}×{height} px"


def thumbnails(images: np.ndarray, chosen: int | None) -> bytes:
    """A row of numbered thumbnails as PNG, the one at position `chosen` framed.

    images: uint8 (n, 3, H, W), n at most STRIP.
    """
    row = Image.new("RGB", (STRIP * (SIDE + 6), SIDE + 6), "white")
    pen = ImageDraw.Draw(row)
    for k, image in enumerate(images):
        x = k * (SIDE + 6) + 3
        row.paste(Image.fromarray(np.moveaxis(image, 0, -1)).resize((SIDE, SIDE)), (x, 3))
        pen.rectangle((x, 3, x + 18, 15), fill="white")
        pen.text((x + 3, 3), str(k + 1), fill="black")
        if k == chosen:
            pen.rectangle((x - 3, 0, x + SIDE + 2, SIDE + 5), outline="black", width=3)
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    return buffer.getvalue()
