"""What `crc-course data` does: describe a data set, compare it with its files, prepare one."""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from crc_helpers.data import Tiles
from crc_helpers.runs import read_json
from crc_helpers.sources.base import DataError
from crc_helpers.sources.cache import cache_folder, hashes
from crc_helpers.sources.drawn import write_synthetic
from crc_helpers.sources.ebhi import download_ebhi, ebhi_folder
from crc_helpers.sources.files import listed
from crc_helpers.sources.images import decode_all
from crc_helpers.sources.mhist import MHIST_FORM
from crc_helpers.sources.store import HASHES, TileStore

NEAR_LIMIT = 20_000  # tiles compared each with each; a few seconds


def prepare(name: str, out: str | Path | None = None, **plan: Any) -> Path:
    """Fetch what may be fetched, or say how to get it; returns the folder that was filled.

    "synthetic" is drawn, see `write_synthetic`; "ebhi" is downloaded; MHIST never is.
    """
    if name == "synthetic":
        return write_synthetic(Path(out or cache_folder() / "synthetic"), **plan)
    if name == "ebhi":
        return download_ebhi(ebhi_folder() if out is None else Path(out)).parent
    if name == "mhist":
        raise DataError(f"mhist: cannot be fetched for you; {MHIST_FORM}")
    raise DataError(
        f"data {name!r}: nothing to prepare, expected synthetic, ebhi or mhist; "
        "a folder of your own is passed as root (--data-root)"
    )


def check(tiles: Tiles, sheet: str | Path | None = None) -> list[str]:
    """Describe the tiles in lines of text, and draw a contact sheet (PNG) where `sheet` says."""
    height, width = tiles.images.shape[-2:]
    lines = [
        f"{tiles.name}: {len(tiles):,} tiles of {width}×{height} px, {tiles.source}",
        f"licence: {tiles.licence}",
        *tiles.notes,
    ]
    lines += [f"class {name}: {len(members):,}" for name, members in _members(tiles)]
    lines += [_check_groups(tiles)]
    if tiles.partition is not None:
        counts = Counter(tiles.partition.tolist())
        lines.append("partition: " + ", ".join(f"{k} {v:,}" for k, v in sorted(counts.items())))
    lines += _check_duplicates(tiles)
    if sheet is not None:
        _contact_sheet(tiles, Path(sheet))
        lines.append(f"contact sheet: {sheet}")
    return lines


def check_deep(tiles: Tiles, root: str | Path | None = None) -> str:
    """Hash the cache against what was written, and decode the source again to compare each tile.

    root: as given to `load_tiles`. Raises DataError for the first file that differs.
    """
    folder = tiles.images.folder
    written, now = read_json(folder / HASHES), hashes(folder)
    for file in sorted(written.keys() | now.keys()):
        if written.get(file) != now.get(file):
            raise DataError(
                f"{folder / file}: not what was written into this cache; delete {folder}"
            )
    said = f"cache: {len(now)} files as they were written"
    if tiles.name == "synthetic":
        return said
    source, root, found = listed(tiles.name, root)
    table, _ = source.read(root, found)
    masks = None if tiles.masks is None else _Compared(tiles.masks, root, table["mask"])
    decode_all(root, table, _Compared(tiles.images, root, table["file"]), masks)
    return f"{said}; {len(table):,} tiles decoded again, all as in the cache"


class _Compared:
    """Takes the place of a store in `decode_all`: refuses a tile that differs from the kept one."""

    def __init__(self, store: TileStore, root: Path, files: pd.Series) -> None:
        self.store, self.root, self.files, self.shape = store, root, files.to_list(), store.shape

    def __setitem__(self, row: int, tile: np.ndarray) -> None:
        if not np.array_equal(self.store[row], tile):
            raise DataError(
                f"{self.root / self.files[row]}: changed since it was decoded, with the same size "
                f"and time; delete {self.store.folder}"
            )


def _members(tiles: Tiles) -> list[tuple[str, np.ndarray]]:
    """Name and tile indices of each class, and of the unlabelled where there are any."""
    names = [*enumerate(tiles.class_names), (-1, "(none in this task)")]
    members = [(name, np.flatnonzero(tiles.labels == label)) for label, name in names]
    return [pair for pair in members if len(pair[1])]


def _check_groups(tiles: Tiles) -> str:
    if tiles.groups is None:
        return "groups: not published; tiles of one slide may lie in both train and test"
    sizes = pd.Series(tiles.groups).value_counts()
    line = f"groups: {len(sizes):,}, of {sizes.min()} to {sizes.max()} tiles"
    if tiles.partition is not None:
        parts = pd.Series(tiles.partition).groupby(tiles.groups).nunique()
        line += f"; in two partitions: {(parts > 1).sum():,}"
    return line


def _check_duplicates(tiles: Tiles) -> list[str]:
    """Exact duplicates by SHA-256 of the pixels, near ones by perceptual hash."""
    first, pairs = {}, []
    for i, image in enumerate(tiles.images):
        j = first.setdefault(hashlib.sha256(image).digest(), i)
        pairs += [(j, i)] if j != i else []
    few = np.linspace(0, len(tiles) - 1, min(len(tiles), NEAR_LIMIT)).astype(int)
    near = few[_near_pairs(np.array([_dhash(tiles.images[i]) for i in few], np.uint64))]
    near = sorted(set(map(tuple, near.tolist())) - set(pairs))
    among = f" (among {len(few):,} of the tiles)" if len(few) < len(tiles) else ""
    return [
        _say_pairs(tiles, "exact duplicates", pairs),
        _say_pairs(tiles, f"near duplicates{among}", near),
    ]


def _say_pairs(tiles: Tiles, what: str, pairs: list[tuple[int, int]]) -> str:
    line = f"{what}: {len(pairs):,}"
    if pairs and tiles.groups is not None:
        line += f", {sum(tiles.groups[i] != tiles.groups[j] for i, j in pairs):,} across groups"
    return line + "".join(f"; {tiles.ids[i]} = {tiles.ids[j]}" for i, j in pairs[:3])


def _dhash(image: np.ndarray) -> int:
    """64 bits: is a cell brighter than its right neighbour, on a grid of 8 × 9 grey cells?"""
    grey = cv2.resize(image.mean(axis=0), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def _near_pairs(hashes: np.ndarray, distance: int = 4) -> np.ndarray:
    """Each hash that differs in at most `distance` bits from an earlier one, as (earlier, it).

    `hashes`: uint64 (N,); returns int64 (P, 2), P < N, so that blank tiles don't make N² pairs.
    """
    found, order = [], np.arange(len(hashes))
    for start in range(0, len(hashes), 128):
        j = order[start : start + 128, None]
        close = (np.bitwise_count(hashes[j] ^ hashes) <= distance) & (order < j)
        found.append(np.column_stack([close.argmax(axis=1), j])[close.any(axis=1)])
    return np.concatenate(found)


def _contact_sheet(tiles: Tiles, path: Path, columns: int = 8, side: int = 112) -> None:
    """A row a class, its tiles taken evenly; the file appears whole or not at all."""
    rows = _members(tiles)[:40]  # of a folder with thousands of classes, the first
    sheet = Image.new("RGB", (columns * (side + 4) + 4, len(rows) * (side + 24) + 4), "white")
    for row, (name, members) in enumerate(rows):
        top = row * (side + 24)
        ImageDraw.Draw(sheet).text((6, top + 6), f"{name}: {len(members):,} tiles", "black")
        picked = members[np.linspace(0, len(members) - 1, min(columns, len(members))).astype(int)]
        for column, i in enumerate(picked):
            tile = Image.fromarray(tiles.images[i].transpose(1, 2, 0)).resize((side, side))
            sheet.paste(tile, (4 + column * (side + 4), top + 22))
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise DataError(f"{path}: a folder; give the contact sheet a name (--out {path / 'a.png'})")
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(unfinished, "PNG")
        unfinished.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
