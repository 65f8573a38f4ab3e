"""Drawn tiles: planned, and drawn into the cache."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from crc_helpers import sources, tissue
from crc_helpers.sources.base import About, DataError, choose_classes
from crc_helpers.sources.cache import cached, code_of, write_table
from crc_helpers.sources.mhist import MHIST, MHIST_COLUMNS
from crc_helpers.sources.store import SHARD, save_shard
from crc_helpers.tissue.cohort import TILES_PER_SLIDE, Cohort, make_cohort
from crc_helpers.tissue.parameters import CLASS_NAMES, KINDS
from crc_helpers.tissue.write import draw_all, to_arrays

MOST = 200_000  # tiles in a cohort, 40 GB at 224 px
FIELD = 448  # micrometres, the side of a tile, whatever its size in pixels
SYNTHETIC = replace(MHIST, origin="drawn by crc_helpers.tissue", licence="MIT")


@dataclass(frozen=True)
class Confounders:
    """What drawn tiles may show besides tissue; see `tissue.cohort.make_cohort`."""

    shortcut: str | None = None  # "ink" or "stain", planted to go with the label
    strength: float = 0.9  # how closely, from -1 to 1
    scanner: str | None = None  # one for all slides, e.g. "Scanner C"


NO_CONFOUNDERS = Confounders()


def plan(n: int, seed: int, confounders: Confounders, kinds: Sequence[str] = CLASS_NAMES) -> Cohort:
    """Plan a cohort of n tiles, see `make_cohort`; DataError for what cannot be drawn."""
    if not 2 <= n <= MOST:
        raise DataError(f"n = {n}: expected a whole number from 2 to {MOST:,} of synthetic tiles")
    try:
        return make_cohort(n, seed, **asdict(confounders), kinds=kinds)
    except (TypeError, ValueError) as error:
        raise DataError(f"synthetic tiles of seed = {seed!r}: {error}") from error


def draw_tiles(
    n: int,
    seed: int,
    confounders: Confounders,
    classes: Sequence[str] | str | None,
    size: int,
    cache: str | Path | None,
) -> tuple[Path, About]:
    """Draw a cohort into the cache, if it is not there; its folder, and its description.

    The options are those of `data.load_tiles`.
    """
    cohort = plan(n, seed, confounders, choose_classes(classes or CLASS_NAMES, KINDS))
    kinds = cohort.class_names

    def build(folder: Path) -> None:
        slides = draw_all(cohort, to_arrays, size, FIELD / size)
        number = 0
        while shard := list(itertools.islice(slides, SHARD // TILES_PER_SLIDE)):
            images, masks = map(np.concatenate, zip(*shard, strict=True))
            save_shard(folder, number, images=images, masks=masks)
            number += 1
        names = {"Image Name": "id", **{v: k for k, v in MHIST_COLUMNS.items()}}
        table = cohort.annotations().rename(columns=names | {"Slide": "group"})
        table["id"] = table["id"].str.removesuffix(".png")
        unread = [] if kinds == CLASS_NAMES else ["votes"]
        write_table(folder, table.drop(columns=["partition", *unread]), [])

    key = (n, seed, confounders, kinds, size, code_of(tissue), code_of(sources))
    return cached("synthetic", key, cache, build), replace(SYNTHETIC, class_names=kinds)
