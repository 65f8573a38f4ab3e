"""What every source of tiles shares: how it is described, listed and refused."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crc_helpers.runs import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
METADATA = ("Scanner", "Polyp Size (mm)", "Colon Site")  # what our tables may hold besides
SYSTEM = ("lost+found", "@eadir", "__macosx", "$recycle.bin", "system volume information")


class DataError(ValueError):
    """Data that cannot be used: one line names the file or value, what was expected, the remedy."""

    def __init__(self, message: str):
        super().__init__(printable(message))


@dataclass(frozen=True)
class Scan:
    """Image names of each scanned folder, sorted, and a digest of names, sizes and times."""

    files: dict[str, list[str]]
    fingerprint: str


@dataclass(frozen=True)
class About:
    """What is known of a data set before a file is opened."""

    origin: str
    licence: str
    class_names: tuple[str, ...] | None = None  # None: the names found, sorted
    default_classes: tuple[str, ...] | None = None  # None: all
    mask_name: str | None = None
    mpp: float | None = None  # microns per pixel of the 224 px tile


@dataclass(frozen=True)
class Source:
    """How the files of a data set are found and listed."""

    about: About
    locate: Callable[[Path | None], Path]  # the folder given -> the data set's own root
    folders: Callable[[Path], list[str]]  # folders with images, relative to the root
    read: Callable[[Path, Scan], tuple[pd.DataFrame, list[str]]]  # -> rows, what must be said


def scan(root: Path, folders: Sequence[str]) -> Scan:
    """List the images of `folders`, decoding nothing: 100,000 files take about 0.7 s.

    The digest is of these and of what lies in the root itself, such as tables.
    """
    digest, files = hashlib.sha256(), {}
    for folder in ("", *folders):
        entries = [e for e in list_folder(root / folder) if folder or e.is_file()]
        if folder:
            entries = [e for e in entries if e.name.lower().endswith(SUFFIXES)]
            files[folder] = sorted(e.name for e in entries)
        stamps = sorted(f"{e.name}/{(s := e.stat()).st_size}/{s.st_mtime_ns}" for e in entries)
        digest.update("\n".join([folder, *stamps]).encode())
    return Scan(files, digest.hexdigest())


def list_folder(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, without hidden and system files, in any order.

    Raises DataError for what is called like an image and is no file, and for names that no table
    can hold.
    """
    with os.scandir(folder) as opened:
        entries = [
            entry
            for entry in opened
            if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM
        ]
    for entry in entries:
        if entry.name.encode(errors="replace").decode() != entry.name or "\r" in entry.name:
            raise DataError(f"{entry.path}: a name that is not text in UTF-8; rename the file")
        if entry.name.lower().endswith(SUFFIXES) and not entry.is_file():
            raise DataError(f"{entry.path}: called like an image, but not a file; remove it")
    return entries


def given_root(root: Path | None, name: str, hint: str) -> Path:
    """The folder given, which must exist."""
    if root is None:
        raise DataError(f"{name}: no folder given; {hint}")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; {hint}")
    return root


def choose_classes(classes: Sequence[Any] | str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The known names of the classes asked for, "all" being all; compared as text."""
    if isinstance(classes, str):
        classes = known if classes == "all" else [classes]
    chosen = []
    for name in classes:
        same = [k for k in known if plain(str(name)) == plain(k)]
        if not same:
            raise DataError(f"class {name!r}: unknown, expected some of {', '.join(known)}")
        chosen.append(same[0])
    if len(set(chosen)) < max(2, len(chosen)):
        raise DataError(
            f"classes {list(chosen)}: expected two or more different ones; "
            "a classifier has nothing to learn from one class only"
        )
    return tuple(chosen)


def plain(name: str) -> str:
    """A name in the one Unicode form (NFC) in which names are compared: macOS writes another."""
    return unicodedata.normalize("NFC", name)


def and_more(count: int) -> str:
    """The tail of a message about the first of several, empty where there is only one."""
    return f" (and {count - 1:,} more like it)" if count > 1 else ""
