"""A folder of your own: a sub-folder of images a class, and `groups.csv` if there is one.

Two common layouts are understood besides: `train/` and `test/` with the classes in each, and a
sub-folder a slide or case in each class. What is ambiguous is refused with the cause.
"""

import os
from collections import Counter
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import SUFFIXES, About, DataError, Listing, Source, list_folder
from crc_helpers.sources.tables import match, read_table, refuse

ABOUT = About("your own folder", "yours to state")
LAYOUT = (
    "expected <class>/*.png, one sub-folder of images a class; where images lie directly in it,"
    " give the folder above"
)
PARTITIONS = {"test": "test"} | dict.fromkeys(("train", "val", "valid", "validation"), "train")
WRAPPERS = ("images", "data", "dataset")  # what archives put around the folders of classes


def _locate(folder: Path) -> Path:
    inner = [folder / name for name in _below(folder)]
    is_wrapper = len(inner) == 1 and inner[0].name.lower() in (*WRAPPERS, folder.name.lower())
    return _locate(inner[0]) if is_wrapper and not _images(inner[0]) else folder


def _below(folder: Path) -> list[str]:
    return sorted(entry.name for entry in list_folder(folder) if entry.is_dir())


def _images(folder: Path) -> list[str]:
    names = (entry.name for entry in list_folder(folder))
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def _folders(root: Path) -> list[str]:
    """Every folder with images below the root, and every class without any, which is refused."""
    folders = []
    for top in _below(root):
        walked = (Path(path) for path, *_ in os.walk(root / top))
        inside = [path for path in walked if _images(path)]
        folders += sorted(path.relative_to(root).as_posix() for path in inside) or [top]
    return folders


def _tabulate(root: Path, listing: Listing) -> tuple[pd.DataFrame, list[str]]:
    folders = listing.files
    tops = {folder.split("/")[0].lower() for folder in folders}
    divided = {"train", "test"} <= tops <= PARTITIONS.keys() and all("/" in f for f in folders)
    has_groups = (root / "groups.csv").exists()
    rows = []
    for folder, files in folders.items():
        top, *rest = folder.split("/")
        part, (name, *case) = (PARTITIONS[top.lower()], rest) if divided else ("", [top, *rest])
        mixed = not case and any(other.startswith(f"{folder}/") for other in folders)
        if not files or len(case) > 1 or (mixed and not has_groups):
            raise DataError(_misplaced(root / folder, files, mixed))
        rows += [(f"{folder}/{file}", name, "/".join(case), part) for file in files]
    table = pd.DataFrame(rows, columns=["file", "class", "group", "partition"])
    table.insert(0, "id", table["file"])
    notes = _left_out(root, listing)
    if not divided:
        table = table.drop(columns="partition")
    elif tops - {"train", "test"}:
        notes.append("the tiles of val are joined to train, of which lesson 01 takes its own part")
    if has_groups:
        table["group"], more = _read_groups(root / "groups.csv", table["file"])
        notes += more
    elif table["group"].any():
        notes.append("the folders in the classes are taken for slides or cases: no split parts one")
    else:
        table = table.drop(columns="group")
    return table, notes


def _misplaced(folder: Path, files: list[str], mixed: bool) -> str:
    """Why a folder cannot be read, and what to do."""
    if mixed:
        return (
            f"{folder / files[0]}: lies beside folders of slides or cases; move it into one, or"
            " give all their groups in groups.csv"
        )
    if files:
        return (
            f"{folder}: images too deep, expected <class>/*.png or <class>/<case>/*.png; give"
            " --data-root"
        )
    others = sorted({Path(entry.name).suffix.lower() for entry in list_folder(folder)})
    endings = f" ({', '.join(others)} in it)" if any(others) else ""
    return (
        f"{folder}: no image in it{endings}, expected <class>/*.png, .jpg or .tif; put images there"
        " (others convert to PNG), or move the folder elsewhere"
    )


def _left_out(root: Path, listing: Listing) -> list[str]:
    """Notes on files that are not read, beside the classes and among their images."""
    notes = []
    for entry in sorted(list_folder(root), key=lambda entry: entry.name):
        if entry.name.lower().startswith("group") and entry.name != "groups.csv":
            notes.append(f"{entry.name}: NOT read; groups come from a text table, groups.csv")
    if strays := _images(root):
        notes.append(f"NOT read: {len(strays):,} images beside the folders of the classes")
    for folder in listing.files:
        endings = Counter(
            Path(entry.name).suffix.lower() or "no ending"
            for entry in list_folder(root / folder)
            if entry.is_file() and not entry.name.lower().endswith(SUFFIXES)
        )
        if endings:
            counts = ", ".join(f"{n:,} × {ending}" for ending, n in sorted(endings.items()))
            notes.append(f"{folder}: left out {counts}")
    return notes


def _read_groups(path: Path, files: pd.Series) -> tuple[pd.Series, list[str]]:
    table, notes = read_table(path, {"file": "file", "group": "group"})
    names = table["file"].str.replace("\\", "/")  # a table written on Windows
    own = match(path, names, files.to_list(), path.parent)
    refuse(table["group"] == "", path, names, "has no group; write its slide or case")
    return files.map(dict(zip(own, table["group"], strict=True))), notes


SOURCE = Source(ABOUT, LAYOUT, (), _locate, _folders, _tabulate)
