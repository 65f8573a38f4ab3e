"""Drawn tiles: planned, drawn into the cache, or written as files in MHIST's layout."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from crc_helpers import sources, tissue
from crc_helpers.runs import save_json
from crc_helpers.sources.base import About, DataError, choose_classes
from crc_helpers.sources.cache import cached, code_of, whole_folder, write_table
from crc_helpers.sources.mhist import MHIST, MHIST_COLUMNS
from crc_helpers.sources.store import SHARD, save_shard
from crc_helpers.tissue.cohort import TILES_PER_SLIDE, Cohort, make_cohort
from crc_helpers.tissue.parameters import CLASS_NAMES, KINDS
from crc_helpers.tissue.write import MASKS, draw_all, to_arrays, to_files

LIMITS = {"n": (2, 200_000), "seed": (0, 2**32 - 1)}  # the most: 40 GB at 224 px
SYNTHETIC = replace(MHIST, origin="drawn by crc_helpers.tissue", licence="MIT")


def drawn_tiles(
    plan: dict[str, Any],
    classes: Sequence[str] | str | None,
    size: int,
    mpp: float,
    cache: str | Path | None,
) -> tuple[Path, About]:
    """Draw a cohort into the cache, if it is not there; its folder, and what is known of it.

    plan: arguments of `make_cohort` without kinds; the others as in `data.load_tiles`.
    """
    kinds = choose_classes(classes or CLASS_NAMES, KINDS)
    cohort = _plan(plan | {"kinds": kinds})
    kinds = cohort.class_names
    about = replace(SYNTHETIC, mpp=mpp * size / 224, class_names=kinds)

    def build(folder: Path) -> None:
        slides = draw_all(cohort, to_arrays, size, mpp)
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

    key = (*plan.values(), kinds, size, mpp, code_of(tissue), code_of(sources))
    return cached("synthetic", key, cache, build), about


def _plan(plan: dict[str, Any]) -> Cohort:
    for name, (low, high) in LIMITS.items():
        if not isinstance(plan[name], Integral) or not low <= plan[name] <= high:
            raise DataError(
                f"{name} = {plan[name]!r}: expected a whole number from {low:,} to {high:,} of"
                " synthetic tiles; correct it"
            )
    try:
        return make_cohort(**plan)
    except ValueError as error:
        raise DataError(str(error)) from error


def write_synthetic(
    out: Path, n: int = 3152, size: int = 224, mpp: float = 2.0, **plan: Any
) -> Path:
    """Draw a cohort into a folder in MHIST's layout, all or nothing, and return the folder.

    `images/`, `annotations.csv` with MHIST's columns and Slide, Scanner, Polyp Size (mm), Colon
    Site; `masks/<what>/`, 0 or 255, of glands, lumina, nuclei and the diagnostic region; apart from
    them `truth.csv`, the diagnosis by the rule, severity and distortion. plan: see `make_cohort`.
    """
    cohort = _plan({"n": n, "seed": 0} | plan)
    if set(cohort.class_names) != {"HP", "SSA"}:
        raise DataError(
            f"kinds {', '.join(plan['kinds'])}: MHIST's layout knows HP and SSA only; "
            "load_tiles(classes=...) draws the others"
        )
    try:
        with whole_folder(out) as folder:
            if not folder or out.exists():
                raise DataError(f"{out}: is there already; choose another --out, or remove it")
            for name in ("images", *(f"masks/{mask}" for mask in MASKS)):
                (folder / name).mkdir(parents=True)
            for _ in draw_all(cohort, partial(to_files, folder), size, mpp):
                pass
            for name in ("annotations", "truth"):
                table = getattr(cohort, name)()
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            about = replace(SYNTHETIC, mpp=mpp * size / 224)
            known = {"source": about.origin, "licence": about.licence, "mpp": about.mpp}
            save_json(folder / "about.json", known | {"plan": {"n": n, "seed": 0} | plan})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); choose another --out") from error
    return out
