"""Which tile: a strip of thumbnails, a list, filters, and pictures of your own (lesson 06)."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from crc_helpers.data import Tiles
from crc_helpers.explorers.base import choice, label, named, shortened, tile_options
from crc_helpers.explorers.pointer import PointedImage
from crc_helpers.sources.base import SUFFIXES, DataError
from crc_helpers.sources.images import decode

OWN = -1  # in place of a tile's row: the first picture that was uploaded; the next is -2
LONGEST = 10_000  # pixels of a side of a picture that is uploaded, and …
NARROWEST = 20  # … how many times the shorter side the longer may be: a strip is no tile
ROWS, COLUMNS, SIDE = 2, 6, 78  # of thumbnails, and pixels of one with the gap beside it
STRIP = ROWS * COLUMNS


class TileChooser:
    """Offers tiles, at most twelve at a time, and holds the one chosen.

    indices: rows of `tiles` to choose from; predict: gives the class probabilities (N, C) of these
    by the network that is asked now. Whoever draws the tile observes `tile`, and calls `offer` for
    `filter`, `take_uploads` for `upload` and `mpp`.
    """

    def __init__(
        self, tiles: Tiles, indices: np.ndarray, predict: Callable[[], np.ndarray]
    ) -> None:
        self.tiles, self.indices, self.predict = tiles, indices, predict
        self.offered, self.own, self.shown = indices[:STRIP], [], None
        kinds = ["all", *(f"class {n}" for n in tiles.class_names), "right", "wrong", "least sure"]
        kinds += ["readers 4 : 3"] * (tiles.votes is not None)
        self.filter = choice("offer tiles", kinds)
        self.tile = choice("tile", tile_options(tiles, self.offered))
        # So much Jupyter lets through as one message, and by `make lab` ten times as much.
        words, wide = "choose images (10 MB; make lab: 100 MB)", {"width": "400px"}
        look = {"accept": ",".join(SUFFIXES), "multiple": True, "layout": wide}
        self.upload = widgets.FileUpload(description=words, **look)
        known = {"disabled": not tiles.mpp, "continuous_update": False}
        self.mpp = widgets.Text(placeholder="not known", **known, **named("their µm per pixel"))
        self.strip = PointedImage(step=[1 / COLUMNS, 1 / ROWS])
        self.strip.add_class("strip")
        self.strip.observe(lambda change: self.pick(*change["new"]), "point")

    def pick(self, x: float, y: float) -> None:
        """Choose the tile at a place of the strip, in shares of its width and height."""
        column, row = min(int(x * COLUMNS), COLUMNS - 1), min(int(y * ROWS), ROWS - 1)
        if row * COLUMNS + column < len(self.tile.options):  # else no thumbnail is there
            self.tile.index = row * COLUMNS + column

    def offer(self) -> str:
        """Offer the tiles that pass the filter, all where none does; return words on that."""
        kind, passing, words = self.filter.value, self.filtered(), ""
        if not len(passing):
            words, self.filter.value = f"no tile here is {kind!r}: all are offered", "all"
            passing = self.filtered()
        if list(passing) != list(self.offered):
            self.offered = passing
            self.fill(self.tile.value if self.tile.value <= OWN else passing[0])
        return words

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

    def take_uploads(self, chosen: int = OWN) -> None:
        """Decode what was uploaded, in place of what was before; nothing is written to disk."""
        size, scale, files = self.tiles.images.shape[-1], self.scale(), self.upload.value
        named = [(file["name"], bytes(file["content"])) for file in files]
        self.own = [(n, *own_tile(n, content, size, scale)) for n, content in named]
        self.shown = None
        self.fill(max(chosen, OWN + 1 - len(self.own)))  # of the last, fewer may be left

    def scale(self) -> float | None:
        """How many of a tile's pixels one of an uploaded picture spans; None: not known."""
        words = self.mpp.value.strip().replace(",", ".")
        if words and not (words.replace(".", "", 1).isdecimal() and float(words)):
            raise DataError(f"µm per pixel: {words!r} is no number above 0; empty: not known")
        return float(words) / self.tiles.mpp if words else None

    def fill(self, chosen: int) -> None:
        """List the pictures uploaded, then the tiles offered, and choose one by its value."""
        names = [f"{k}: your own, {name}" for k, (name, *_) in enumerate(self.own, 1)]
        own = [(name, OWN - k) for k, name in enumerate(names)]
        self.tile.options = own + tile_options(self.tiles, self.offered, len(own) + 1)
        self.tile.value = int(chosen)

    def image(self, i: int) -> np.ndarray:
        """The picture, uint8 (3, H, W), of a value of the list."""
        return self.own[OWN - i][1] if i <= OWN else np.array(self.tiles.images[i])

    def chosen(self) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Picture, mask and title of the tile chosen."""
        i = self.tile.value
        if i <= OWN:
            return self.image(i), None, self.own[OWN - i][2]
        mask = None if self.tiles.masks is None else self.tiles.masks[i]
        return self.image(i), mask, f"truth: {label(self.tiles, i)}"

    def draw_strip(self) -> None:
        """Show the first tiles of the list, the one chosen framed."""
        shown, k = self.tile.options[:STRIP], self.tile.index
        if (shown, k) != self.shown:
            self.shown = shown, k
            self.strip.value = thumbnails([self.image(i) for _, i in shown], k)
            words = "; ".join(words for words, _ in shown)
            self.strip.alt = f"tiles to choose from: {words}. Chosen: {self.tile.label}"
            self.strip.point = [(k % COLUMNS + 0.5) / COLUMNS, (k // COLUMNS % ROWS + 0.5) / ROWS]


def own_tile(
    name: str, content: bytes, size: int, scale: float | None = None
) -> tuple[np.ndarray, str]:
    """Decode an uploaded file: uint8 (3, size, size) and a title; DataError where it is no tile.

    Its central square, or of that as much as a tile shows; scale: how many of a tile's pixels one
    of its own spans.
    """
    image, _, (width, height) = decode(Path(name), size, content)
    side = part = min(width, height)
    if max(width, height) > min(LONGEST, NARROWEST * side):
        raise DataError(
            f"{name}: {width}×{height} px; a side may have {LONGEST:,} px, and {NARROWEST} times"
            " those of the other: cut a tile out of it"
        )
    if scale:
        part = max(round(size / scale), 1)
        if part > side:
            wanted = f"at this scale a tile is {part} px wide: give a larger one, or no scale"
            raise DataError(f"{name}: {width}×{height} px, but {wanted}")
        start, square = (side - part) // 2, decode(Path(name), side, content)[0]
        cut = square[:, start : start + part, start : start + part].transpose(1, 2, 0)
        image = np.asarray(Image.fromarray(cut).resize((size, size))).transpose(2, 0, 1)
    words = "all of it" if width == height == part else f"its middle {part}×{part} px"
    words += ", at the tiles' scale" if scale else ", scale not known"
    return np.ascontiguousarray(image), f"{shortened(name, 24)}, {width}×{height} px\n{words}"


def thumbnails(images: Sequence[np.ndarray], chosen: int) -> bytes:
    """Numbered thumbnails in rows as PNG, the one at position `chosen` framed.

    images: at most STRIP, uint8 (3, H, W).
    """
    table = Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), "white")
    pen = ImageDraw.Draw(table)
    for k, image in enumerate(images):
        x, y = k % COLUMNS * SIDE, k // COLUMNS * SIDE
        small = Image.fromarray(np.moveaxis(image, 0, -1)).resize((SIDE - 6, SIDE - 6))
        table.paste(small, (x + 3, y + 3))
        pen.rectangle((x + 3, y + 3, x + 19, y + 15), fill="white")
        pen.text((x + 6, y + 3), str(k + 1), fill="black")
        if k == chosen:
            pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="black", width=3)
    buffer = io.BytesIO()
    table.save(buffer, "PNG")
    return buffer.getvalue()
