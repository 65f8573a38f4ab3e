"""A folder of your own: a sub-folder of images a class, and `groups.csv` if there is one."""

from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd

from crc_helpers.sources.base import (
    SUFFIXES,
    About,
    DataError,
    Scan,
    Source,
    given_root,
    require_text,
    scan_folder,
)
from crc_helpers.sources.tables import read_table, refuse, require_match

FOLDER = About("your own folder", "yours to state")


def _locate_folder(root: Path | None) -> Path:
    hint = "pass a folder with one sub-folder of images a class (--data-root)"
    return given_root(root, "folder", hint)


def _folders_folder(root: Path) -> list[str]:
    for path in root.iterdir():
        require_text(str(path))
    return sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _read_folder(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    if not found.files and scan_folder(root, ".")[0]:
        raise DataError(f"{root}: images lie directly in it, expected <class>/*.png; give the"
                        " folder above, or put them into one sub-folder a class")  # fmt: skip
    for name, files in found.files.items():
        if not files:
            deeper = any(
                p.is_dir() and scan_folder(root, str(p))[0] for p in (root / name).iterdir()
            )
            mend = (
                f"if these are the classes, give --data-root {str(root / name)!r}"
                if deeper
                else "put images there (others convert to PNG), or move the folder elsewhere"
            )
            raise DataError(
                f"{root / name}: no image in it, expected <class>/*.png, .jpg or .tif; {mend}"
            )
    rows = [(f"{name}/{file}", name) for name, files in found.files.items() for file in files]
    table = pd.DataFrame(rows, columns=["id", "class"])
    table["file"] = table["id"]
    notes = _left_out(root, found)
    if (root / "groups.csv").exists():
        groups, said = _read_groups(root / "groups.csv", list(table["file"]))
        table["group"] = table["file"].map(groups)
        notes += said
    return table, notes


def _left_out(root: Path, found: Scan) -> list[str]:
    """What lies in the folders of classes and is no image that can be read."""
    notes = []
    for name in found.files:
        others = [p for p in (root / name).iterdir() if not p.name.startswith(".")]
        folders = sum(p.is_dir() for p in others)
        kinds = Counter(p.suffix.lower() or "no ending" for p in others
                        if not p.is_dir() and not p.name.lower().endswith(SUFFIXES))  # fmt: skip
        if folders:
            kinds["folder"] = folders
        if kinds:
            said = ", ".join(f"{n:,} × {kind}" for kind, n in sorted(kinds.items()))
            notes.append(f"{name}: left out {said}")
    return notes


def _read_groups(path: Path, files: list[str]) -> tuple[pd.Series, list[str]]:
    table, notes = read_table(path, {"file": "file", "group": "group"})
    names = table["file"].str.replace("\\", "/")  # a table written on Windows
    leaves = names.map(lambda name: PurePosixPath(name).is_absolute() or ".." in name.split("/"))
    refuse(leaves, path, names, "leaves the folder; write <class>/<file>")
    require_match(path, names, files, str(path.parent))
    refuse(table["group"] == "", path, names, "has no group; write its slide or case")
    return pd.Series(table["group"].to_numpy(), index=names), notes


SOURCE = Source(FOLDER, _locate_folder, _folders_folder, _read_folder, ("groups.csv",))
