"""What all studies share: rows measured one by one, each on disk before the next begins.

A study is a plan, the rows there shall be, and a function that measures one. A row names its seed,
its parameters, its result, its machine and the commit; rows that are there are not measured again,
so a study can be stopped and gone on with. A seed is another cohort, another split and another
initialisation: on drawn tissue another tissue, on real tiles another split by case.
"""

import argparse
import ast
import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from crc_helpers.claims import FOLDER, Recipe, Trial, read_rows
from crc_helpers.data import Tiles
from crc_helpers.runs import ROOT, RunError, device_name, only_one, printable, save_table
from crc_helpers.sources.base import DataError


@dataclass(frozen=True)
class Study:
    """What a script of this folder measures: NAME, for the tables NAME_DATA.csv, and how."""

    name: str
    plan: Callable[[int], Iterable[dict]]
    row: Callable[..., dict]
    recipe: Recipe = field(default_factory=Recipe)
    drawn_only: bool = False  # what it asks about, real tiles do not tell


@lru_cache(maxsize=1)
def trial(seed: int, data: str, root: str | None, recipe: Recipe) -> Trial:
    """The trial of a seed, made once for the rows that follow each other."""
    return Trial(seed, data, root, recipe=recipe)


def do(
    study: Study,
    data: str = "synthetic",
    root: str | None = None,
    seeds: int = 5,
    recipe: Recipe | None = None,
    folder: Path = FOLDER,
) -> pd.DataFrame:
    """Measure what is missing of a study, and return it; every row is on disk once it is measured.

    Raises RunError for data that the study cannot use, or a file whose rows are of another recipe.
    """
    if study.drawn_only and data != "synthetic":
        raise RunError(f"study {study.name!r} is about drawn tissue: --data {data} does not tell"
                       " enough")  # fmt: skip
    recipe = recipe or study.recipe
    file = folder / f"{study.name}_{data}.csv"
    with only_one(file):
        changed = changes(recipe, study.recipe)
        return _measure(study.plan, study.row, file, (data, root, recipe), seeds, changed)


def changes(recipe: Recipe, usual: Recipe) -> str:
    """Return in words what a recipe does differently; rows of different recipes never mix."""
    new, old = vars(recipe), vars(usual)
    return ", ".join(f"{k} {new[k]}" for k in new if new[k] != old[k]) or "nothing"


def _measure(
    plan: Callable, measure: Callable, file: Path, source: tuple, seeds: int, changed: str
) -> pd.DataFrame:
    rows = read_rows(file).to_dict("records") if file.is_file() else []
    if others := {row.get("changed") for row in rows} - {changed}:
        raise RunError(
            f"{file} holds rows of another recipe (changed: {others.pop()}; now: {changed}): give"
            " another folder with --out"
        )
    size = {k: getattr(source[-1], k) for k in ("n_tiles", "size", "backbone", "steps")}
    facts = {"changed": changed, "device": device_name(), "commit": _commit()}
    for key in plan(seeds):
        if any(all(str(row.get(k)) == str(v) for k, v in key.items()) for row in rows):
            continue
        start = time.perf_counter()
        t = trial(key["seed"], *source)
        facts["tiles"] = "drawn" if source[0] == "synthetic" else _which(t.tiles)
        if others := {row.get("tiles") for row in rows} - {facts["tiles"]}:
            raise RunError(
                f"{file} holds rows of other tiles ({others.pop()}; {source[1]} holds"
                f" {facts['tiles']}): give another folder with --out"
            )
        found = measure(t, **{k: v for k, v in key.items() if k != "seed"})
        seconds = {"seconds": round(time.perf_counter() - start, 1)}
        rows.append(key | size | {"n_tiles": len(t.tiles)} | found | seconds | facts)
        save_table(file, rows)
        said = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
        print(", ".join(said), flush=True)
    return pd.DataFrame(rows)


def _which(tiles: Tiles) -> str:
    """Return a short hash of names and labels: the same wherever the files lie."""
    text = "\n".join(tiles.ids) + tiles.labels.astype(int).tobytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _commit() -> str:
    """Name of the code: the commit, "-dirty" where tracked files but tables differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True)
        return found.stdout.strip()

    try:
        name = git("describe", "--always")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":!studies/*.csv")
    except FileNotFoundError:  # no git here
        return "no repository"
    if not name:
        return "no repository"
    return f"{name}-dirty" if dirty else name


def settings(pairs: Sequence[str], usual: Recipe) -> dict[str, Any]:
    """Return what NAME=VALUE pairs say of a recipe.

    Raises RunError for a name that it lacks, or a value of another kind than the usual one.
    """
    known = {name: value for name, value in vars(usual).items() if name != "views"}
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise RunError(f"--set {pair!r}: give NAME=VALUE, with a name of {', '.join(known)}")
        with contextlib.suppress(ValueError, SyntaxError):  # else it is a word
            value = ast.literal_eval(value)
        value = tuple(value) if isinstance(value, list) else value
        kinds = (int, float) if isinstance(known[name], float) else type(known[name])
        if not isinstance(value, kinds) or isinstance(value, bool) or value == ():
            raise RunError(f"{name} is {value!r}, expected something like {known[name]!r}")
        found[name] = value
    return found


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Measure what is missing of a study; return the exit status, 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=study.plan.__doc__)
    parser.add_argument("--data", choices=("synthetic", "ebhi", "mhist", "folder"),
                        default="synthetic")  # fmt: skip
    parser.add_argument("--data-root", metavar="DIR", help="where the tiles are")
    parser.add_argument("--seeds", type=int, default=5,
                        help="cohorts, splits and initialisations (5)")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="folder of the CSV file, instead of studies/")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="another size of the experiment, e.g. size=96")  # fmt: skip
    given = parser.parse_args(argv)
    try:
        if given.seeds < 1:
            raise RunError(f"--seeds {given.seeds}: give at least 1")
        recipe = replace(study.recipe, **settings(given.set, study.recipe))
        root = str(Path(given.data_root).resolve()) if given.data_root else None
        folder = Path(given.out) if given.out else FOLDER
        rows = do(study, given.data, root, given.seeds, recipe, folder)
    except (DataError, RunError, ValueError, FloatingPointError) as error:
        print(f"{study.name}: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{len(rows)} rows in {folder / f'{study.name}_{given.data}.csv'}")
    return 0
