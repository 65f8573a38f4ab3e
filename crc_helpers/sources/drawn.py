"""Drawn tiles: planned, drawn into the cache, or written as files in MHIST's layout."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from crc_helpers import tissue
from crc_helpers.runs import MOST_TILES, SEEDS, save_json
from crc_helpers.sources import store
from crc_helpers.sources.base import About, DataError, choose_classes
from crc_helpers.sources.cache import cached, code_of, new_stores, whole_folder, write_table
from crc_helpers.sources.mhist import MHIST, MHIST_COLUMNS
from crc_helpers.sources.store import to_arrays
from crc_helpers.tissue.cohort import Cohort, make_cohort
from crc_helpers.tissue.parameters import CLASS_NAMES, KINDS
from crc_helpers.tissue.write import MASKS, draw_all, to_files

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
    drawn = cohort.class_names
    about = replace(SYNTHETIC, mpp=mpp * size / 224, class_names=drawn)

    def build(folder: Path) -> None:
        new_stores(folder, len(cohort.seeds), size, masks=True)
        draw_all(cohort, partial(to_arrays, folder), size, mpp)
        names = {"Image Name": "id", **{v: k for k, v in MHIST_COLUMNS.items()}}
        table = cohort.annotations().rename(columns=names | {"Slide": "group"})
        table["id"] = table["id"].str.removesuffix(".png")
        unread = [] if drawn == CLASS_NAMES else ["votes"]
        write_table(folder, table.drop(columns=["partition", *unread]), [])

    key = (*plan.values(), drawn, size, mpp, code_of(tissue), code_of(store))
    return cached("synthetic", key, cache, build), about


def _plan(plan: dict[str, Any]) -> Cohort:
    for name, (low, high) in {"n": (2, MOST_TILES), "seed": SEEDS}.items():
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
            draw_all(cohort, partial(to_files, folder), size, mpp)
            for name in ("annotations", "truth"):
                table = getattr(cohort, name)()
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            about = replace(SYNTHETIC, mpp=mpp * size / 224)
            known = {"source": about.origin, "licence": about.licence, "mpp": about.mpp}
            save_json(folder / "about.json", known | {"plan": {"n": n, "seed": 0} | plan})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); choose another --out") from error
    return out
