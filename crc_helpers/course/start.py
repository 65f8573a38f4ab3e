"""Copy lessons and exercises to a folder of a student's, and later bring what is new."""

import argparse
import shutil
from pathlib import Path

from crc_helpers.course.settings import UsageError
from crc_helpers.runs import ROOT, atomic_path, file_hash, read_json, save_json

# Documents and the drawing are what lessons show or link to; weights are found in the checkout.
COPIED = ("notebooks/*.ipynb", "exercises/*.ipynb", "exercises/solutions/*.ipynb")
COPIED += ("exercises/README.md", "docs/*.md", "benchmarks/*.md", "figures/*.svg")
LIST = ".crc-course.json"  # SHA-256 of each file as it was copied


def start(arguments: argparse.Namespace) -> int:
    """Copy the course's files; with `update` those that are new, over files nobody has edited."""
    folder = Path(arguments.folder).expanduser().resolve()
    names = sorted(f.relative_to(ROOT).as_posix() for kind in COPIED for f in ROOT.glob(kind))
    _require(folder, names, arguments.update)
    copied = read_json(folder / LIST) if arguments.update else {}
    save_json(folder / LIST, copied)  # first: after a kill, --update goes on
    count = 0
    for name in names:
        source, target = ROOT / name, folder / name
        new, now = file_hash(source), file_hash(target) if target.is_file() else None
        if now in (None, copied.get(name)) and now != new:
            with atomic_path(target) as temporary:
                shutil.copy(source, temporary)
            count += 1
        elif now != new:
            if copied.get(name) != new:
                print(f"kept {name}, which you have edited; the course has a newer one: {source}")
            continue
        copied[name] = new
    save_json(folder / LIST, copied)
    print(f'{count} files copied to {folder}. Open them: jupyter lab "{folder}"')
    return 0


def _require(folder: Path, names: list[str], update: bool) -> None:
    """Raise UsageError where a folder was not started before an update, or has such files."""
    if update and not (folder / LIST).is_file():
        raise UsageError(f"{folder} was not made by crc-course start: leave out --update")
    if update:
        return
    if (folder / LIST).is_file():
        raise UsageError(f"{folder} was started before: add --update to bring what is new")
    if there := [name for name in names if (folder / name).exists()]:
        raise UsageError(f"{folder / there[0]} exists already: give a new folder")
