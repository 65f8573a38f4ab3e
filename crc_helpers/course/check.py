"""What `crc-course data` does: describe a data set, look for duplicates, prepare one."""

import argparse
import hashlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from crc_helpers.course.benchmark import write_benchmark
from crc_helpers.course.settings import UsageError
from crc_helpers.data import NO_CONFOUNDERS, Confounders, Tiles, load_tiles
from crc_helpers.runs import atomic_path, printable
from crc_helpers.sources.base import DataError
from crc_helpers.sources.cache import cache_folder
from crc_helpers.sources.ebhi import download_ebhi
from crc_helpers.sources.files import SOURCES

NEAR_LIMIT = 20_000  # tiles compared each with each; a few seconds


def data(arguments: argparse.Namespace) -> int:
    """Check a data set, or prepare one."""
    names = ("n", "seed", "shortcut", "strength", "scanner", "mpp")
    options = {k: v for k in names if (v := getattr(arguments, k)) is not None}
    if arguments.name == "slide":
        return _draw_slides(arguments, options)
    if "mpp" in options:
        raise UsageError("--mpp: for slides only")
    if options and arguments.name != "synthetic":
        raise UsageError(f"--{next(iter(options))}: for synthetic tiles only")
    size = {k: options.pop(k) for k in ("n", "seed") if k in options}
    confounders = Confounders(**options)
    if arguments.action == "prepare":
        out = arguments.out or arguments.data_root
        folder = prepare(arguments.name, out, confounders=confounders, **size)
        print(f"{arguments.name} is ready in {folder}")
        return 0
    sheet = Path(arguments.out or f"{arguments.name}_contact_sheet.png")
    tiles = load_tiles(arguments.name, arguments.data_root, confounders=confounders, **size)
    print("\n".join(map(printable, check(tiles, sheet))))
    return 0


def _draw_slides(arguments: argparse.Namespace, options: dict) -> int:
    from crc_helpers.course.slide import prepare_slides  # OpenSlide, which nothing else needs

    wrong = options.keys() - {"n", "seed", "mpp"}
    if wrong or arguments.action != "prepare":
        raise UsageError("data slide: expected prepare, with --out, --n, --seed and --mpp only")
    print(f"slides are ready in {prepare_slides(arguments.out, **options)}")
    return 0


def prepare(
    name: str,
    out: str | Path | None = None,
    confounders: Confounders = NO_CONFOUNDERS,
    **size: int,
) -> Path:
    """Draw "synthetic" or download "ebhi" into a folder, and return it.

    size: n and seed of `write_benchmark`. DataError for others, with how to get them.
    """
    folder = Path(out or cache_folder() / name).expanduser()
    if name == "synthetic":
        return write_benchmark(folder, confounders=confounders, **size)
    if name == "ebhi":
        return download_ebhi(folder).parent
    raise DataError(f"data {name!r}: cannot be fetched, {SOURCES[name].layout} (--data-root)")


def check(tiles: Tiles, sheet: str | Path | None = None) -> list[str]:
    """Describe the tiles in lines of text, and draw a contact sheet (PNG) at the path `sheet`."""
    height, width = tiles.images.shape[-2:]
    lines = [
        f"{tiles.name}: {len(tiles):,} tiles of {width}×{height} px, {tiles.source}",
        f"licence: {tiles.licence}",
        *tiles.notes,
    ]
    lines += [f"class {name}: {len(members):,}" for name, members in _members(tiles)]
    lines += [_describe_groups(tiles)]
    if tiles.partition is not None:
        counts = Counter(tiles.partition.tolist())
        lines.append("partition: " + ", ".join(f"{k} {v:,}" for k, v in sorted(counts.items())))
    lines += _describe_duplicates(tiles)
    if sheet is not None:
        with atomic_path(Path(sheet).expanduser().absolute()) as temporary:
            _contact_sheet(tiles).save(temporary, "PNG")
        lines.append(f"contact sheet: {sheet}")
    return lines


def _members(tiles: Tiles) -> list[tuple[str, np.ndarray]]:
    """Name and tile indices of each class, and of the unlabelled where there are any."""
    names = [*enumerate(tiles.class_names), (-1, "(none in this task)")]
    members = [(name, np.flatnonzero(tiles.labels == label)) for label, name in names]
    return [pair for pair in members if len(pair[1])]


def _describe_groups(tiles: Tiles) -> str:
    if tiles.groups is None:
        return "groups: not published; tiles of one slide may lie in both train and test"
    sizes = pd.Series(tiles.groups).value_counts()
    line = f"groups: {len(sizes):,}, of {sizes.min()} to {sizes.max()} tiles"
    if tiles.partition is not None:
        parts = pd.Series(tiles.partition).groupby(tiles.groups).nunique()
        line += f"; in two partitions: {(parts > 1).sum():,}"
    return line


def _describe_duplicates(tiles: Tiles) -> list[str]:
    """Exact duplicates by SHA-256 of the pixels, near ones by perceptual hash."""
    first, exact = {}, []
    for i, image in enumerate(tiles.images):
        j = first.setdefault(hashlib.sha256(image).digest(), i)
        exact += [(j, i)] if j != i else []
    few = np.linspace(0, len(tiles) - 1, min(len(tiles), NEAR_LIMIT)).astype(int)
    near = few[_near_pairs(np.array([_dhash(tiles.images[i]) for i in few], np.uint64))]
    near = sorted(set(map(tuple, near.tolist())) - set(exact))
    among = f" (among {len(few):,} of the tiles)" if len(few) < len(tiles) else ""
    lines = []
    for kind, pairs in (("exact duplicates", exact), (f"near duplicates{among}", near)):
        line = f"{kind}: {len(pairs):,}"
        if pairs and tiles.groups is not None:
            line += f", {sum(tiles.groups[i] != tiles.groups[j] for i, j in pairs):,} across groups"
        lines.append(line + "".join(f"; {tiles.ids[i]} = {tiles.ids[j]}" for i, j in pairs[:3]))
    return lines


def _dhash(image: np.ndarray) -> int:
    """64 bits: is a cell brighter than its right neighbour, on a grid of 8 × 9 grey cells?"""
    grey = cv2.resize(image.mean(axis=0), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def _near_pairs(hashes: np.ndarray, distance: int = 4) -> np.ndarray:
    """Each hash that differs in at most `distance` bits from an earlier one, as (earlier, it).

    `hashes`: uint64 (N,); returns int64 (P, 2), P < N, so that blank tiles don't make N² pairs.
    """
    pairs, order = [], np.arange(len(hashes))
    for start in range(0, len(hashes), 128):
        j = order[start : start + 128, None]
        close = (np.bitwise_count(hashes[j] ^ hashes) <= distance) & (order < j)
        pairs.append(np.column_stack([close.argmax(axis=1), j])[close.any(axis=1)])
    return np.concatenate(pairs)


def _contact_sheet(tiles: Tiles, columns: int = 8, side: int = 112) -> Image.Image:
    """A row a class, its tiles taken evenly."""
    rows = _members(tiles)[:40]  # of a folder with thousands of classes, the first
    sheet = Image.new("RGB", (columns * (side + 4) + 4, len(rows) * (side + 24) + 4), "white")
    for row, (name, members) in enumerate(rows):
        top = row * (side + 24)
        ImageDraw.Draw(sheet).text((6, top + 6), f"{name}: {len(members):,} tiles", "black")
        picked = members[np.linspace(0, len(members) - 1, min(columns, len(members))).astype(int)]
        for column, i in enumerate(picked):
            tile = Image.fromarray(tiles.images[i].transpose(1, 2, 0)).resize((side, side))
            sheet.paste(tile, (4 + column * (side + 4), top + 22))
    return sheet
