"""What all sources of tiles share: their description, the listing of files, names of classes."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crc_helpers.runs import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
METADATA = ("Scanner", "Polyp Size (mm)", "Colon Site")  # columns of tables, where there are any
SYSTEM = ("lost+found", "@eadir", "__macosx", "$recycle.bin", "system volume information")


class DataError(UserError, ValueError):
    """Data that cannot be used."""


@dataclass(frozen=True)
class Listing:
    """Image names of each folder of a data set, sorted, and a digest of names, sizes and times."""

    files: dict[str, list[str]]
    digest: str


@dataclass(frozen=True)
class About:
    """Description of a data set."""

    origin: str
    licence: str
    class_names: tuple[str, ...] | None = None  # None: the names of the table, sorted
    default_classes: tuple[str, ...] | None = None  # None: all
    mask_name: str | None = None
    mpp: float | None = None  # microns per pixel of the 224 px tile


@dataclass(frozen=True)
class Source:
    """How the files of a data set are found, listed and put into a table."""

    about: About
    layout: str  # what its folder holds and where it comes from, after "missing, "
    parts: tuple[str, ...]  # what its root must hold
    locate: Callable[[Path], Path]  # from a folder that exists to the root, in it or itself
    folders: Callable[[Path], list[str]]  # folders with images, relative to the root
    tabulate: Callable[[Path, Listing], tuple[pd.DataFrame, list[str]]]  # a row a tile, and notes

    def root(self, folder: Path | None) -> Path:
        """The root of the data set in a folder; DataError where a part of it is missing."""
        if folder and folder.is_dir():
            folder = self.locate(folder)
        places = [folder, *(folder / part for part in self.parts)] if folder else []
        missing = [place for place in places if not place.exists()]
        if missing or not folder:
            place = missing[0] if missing else "folder of the tiles"
            raise DataError(f"{place}: missing, {self.layout} (--data-root)")
        return folder


def list_files(root: Path, folders: Sequence[str]) -> Listing:
    """List the images of `folders`, decoding nothing: 100,000 files take about 0.7 s.

    The digest is of these and of the files in the root itself, such as tables.
    """
    digest, files = hashlib.sha256(), {}
    for folder in ("", *folders):
        entries = [e for e in list_folder(root / folder) if folder or e.is_file()]
        if folder:
            entries = [e for e in entries if e.name.lower().endswith(SUFFIXES)]
            files[folder] = sorted(e.name for e in entries)
        stamps = sorted(f"{e.name}/{(s := e.stat()).st_size}/{s.st_mtime_ns}" for e in entries)
        digest.update("\n".join([folder, *stamps]).encode())
    return Listing(files, digest.hexdigest())


def list_folder(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder without hidden and system files, in any order.

    Raises DataError for a name that no table can hold, and for what is named like an image and is
    no file, such as a pipe.
    """
    with os.scandir(folder) as opened:
        entries = [e for e in opened if not e.name.startswith(".") and e.name.lower() not in SYSTEM]
    for entry in entries:
        why = ""
        if entry.name.lower().endswith(SUFFIXES) and not entry.is_file():
            why = "called like an image, but not a file; remove it"
        if entry.name.encode(errors="replace").decode() != entry.name or "\r" in entry.name:
            why = "a name that is not text in UTF-8; rename the file"
        if why:
            raise DataError(f"{entry.path}: {why}")
    return entries


def choose_classes(classes: Sequence[Any] | str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Of a data set's class names those asked for, compared as text; "all" are all."""
    if isinstance(classes, str):
        classes = names if classes == "all" else [classes]
    by_name = {plain(name): name for name in names}
    wanted = [plain(str(name)) for name in classes]
    if unknown := [name for name in wanted if name not in by_name]:
        raise DataError(f"class {unknown[0]!r}: unknown, expected some of {', '.join(names)}")
    return tuple(by_name[name] for name in wanted)


def plain(name: str) -> str:
    """A name in the Unicode form (NFC) in which names are compared: macOS writes another."""
    return unicodedata.normalize("NFC", name)


def and_more(count: int) -> str:
    """The end of a message about the first of several; empty where there is only one."""
    return f" (and {count - 1:,} more like it)" if count > 1 else ""
