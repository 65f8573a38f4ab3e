"""A folder of your own: a sub-folder of images a class, and `groups.csv` if there is one.

Two common layouts are understood besides: `train/` and `test/` with the classes in each, and a
sub-folder a slide or case in each class. What is ambiguous is refused with the cause.
"""

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import (
    SUFFIXES,
    About,
    DataError,
    Scan,
    Source,
    given_root,
    list_folder,
)
from crc_helpers.sources.tables import match, read_table, refuse

ABOUT = About("your own folder", "yours to state")
PARTS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "train")
WRAPPERS = ("images", "data", "dataset")  # what archives put around the folders of classes


def _locate(root: Path | None) -> Path:
    hint = "pass a folder with one sub-folder of images a class (--data-root)"
    root = given_root(root, "folder", hint)
    while len(inner := _below(root)) == 1 and inner[0].lower() in (*WRAPPERS, root.name.lower()):
        if _images(root / inner[0]):
            break
        root = root / inner[0]
    return root


def _below(folder: Path) -> list[str]:
    return sorted(entry.name for entry in list_folder(folder) if entry.is_dir())


def _images(folder: Path) -> list[str]:
    names = (entry.name for entry in list_folder(folder))
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def _folders(root: Path) -> list[str]:
    """Every folder with images below the root, and every class without any, which is refused."""
    found = []
    for top in _below(root):
        walked = (Path(path) for path, *_ in os.walk(root / top))
        inside = [path for path in walked if _images(path)]
        found += sorted(path.relative_to(root).as_posix() for path in inside) or [top]
    return found


def _read(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    if not found.files:
        raise DataError(
            f"{root}: no folder of images in it, expected <class>/*.png; where images lie directly"
            " in it, give the folder above, or put them into one sub-folder a class"
        )
    tops = {folder.split("/")[0].lower() for folder in found.files}
    divided = {"train", "test"} <= tops <= PARTS.keys() and all("/" in f for f in found.files)
    rows = []
    for folder, files in found.files.items():
        top, *rest = folder.split("/")
        part, (name, *case) = (PARTS[top.lower()], rest) if divided else ("", [top, *rest])
        if not files or len(case) > 1:
            raise DataError(f"{root / folder}: {_misplaced(root, folder, files)}")
        rows += [(f"{folder}/{file}", name, "/".join(case), part) for file in files]
    table = pd.DataFrame(rows, columns=["file", "class", "group", "partition"])
    table.insert(0, "id", table["file"])
    notes = _left_out(root, found)
    if not divided:
        table = table.drop(columns="partition")
    elif tops - {"train", "test"}:
        notes.append("the tiles of val are joined to train, of which lesson 01 takes its own part")
    if (root / "groups.csv").exists():
        table["group"], said = _read_groups(root / "groups.csv", table["file"])
        notes += said
    elif not table["group"].any():
        table = table.drop(columns="group")
    else:
        bare = table["group"] == ""
        if bare.any():
            raise DataError(
                f"{root / table['file'][bare].iloc[0]}: lies beside folders of slides or cases; "
                "move it into one, or give all their groups in groups.csv"
            )
        notes.append("the folders in the classes are taken for slides or cases: no split parts one")
    return table, notes


def _misplaced(root: Path, folder: str, files: list[str]) -> str:
    """Why a folder can't be read, and what to do."""
    if files:
        return "images too deep, expected <class>/*.png or <class>/<case>/*.png; give --data-root"
    others = sorted({Path(entry.name).suffix.lower() for entry in list_folder(root / folder)})
    held = f" ({', '.join(others)} in it)" if any(others) else ""
    return (
        f"no image in it{held}, expected <class>/*.png, .jpg or .tif; put images there (others"
        " convert to PNG), or move the folder elsewhere"
    )


def _left_out(root: Path, found: Scan) -> list[str]:
    """What is not read: files beside the classes that look meant, and others among the images."""
    notes = []
    for entry in sorted(list_folder(root), key=lambda entry: entry.name):
        if entry.name.lower().startswith("group") and entry.name != "groups.csv":
            notes.append(f"{entry.name}: NOT read; groups come from a text table, groups.csv")
    if strays := _images(root):
        notes.append(f"NOT read: {len(strays):,} images beside the folders of the classes")
    for folder in found.files:
        endings = Counter(
            Path(entry.name).suffix.lower() or "no ending"
            for entry in list_folder(root / folder)
            if entry.is_file() and not entry.name.lower().endswith(SUFFIXES)
        )
        if endings:
            said = ", ".join(f"{n:,} × {kind}" for kind, n in sorted(endings.items()))
            notes.append(f"{folder}: left out {said}")
    return notes


def _read_groups(path: Path, files: pd.Series) -> tuple[pd.Series, list[str]]:
    table, notes = read_table(path, {"file": "file", "group": "group"})
    names = table["file"].str.replace("\\", "/")  # a table written on Windows
    own = match(path, names, files.to_list(), path.parent)
    refuse(table["group"] == "", path, names, "has no group; write its slide or case")
    return files.map(dict(zip(own, table["group"], strict=True))), notes


SOURCE = Source(ABOUT, _locate, _folders, _read)
