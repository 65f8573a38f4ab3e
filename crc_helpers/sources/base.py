"""What every source of tiles shares: how it is described, listed and refused."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from crc_helpers.runs import printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FILE_LIMIT = 500_000_000  # bytes of one image or table: what is read at once
METADATA = ("Scanner", "Polyp Size (mm)", "Colon Site")  # what our tables may hold besides


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
    tables: tuple[str, ...] = ()


def scan(root: Path, folders: Sequence[str], tables: Sequence[str] = ()) -> Scan:
    """List the images of `folders`, decoding nothing: 100,000 files take about 0.7 s."""
    digest, files = hashlib.sha256(), {}
    try:
        for folder in folders:
            files[folder], stamps = scan_folder(root, folder)
            digest.update("\n".join([folder, *stamps]).encode("utf-8", "surrogateescape"))
        for table in tables:
            if (root / table).exists():
                info = inside(root, root / table).stat()
                digest.update(repr((table, info.st_size, info.st_mtime_ns)).encode())
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); "
            "check that it exists and that you may read it"
        ) from error
    return Scan(files, digest.hexdigest())


def scan_folder(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Names, and names with size and time (ns), both sorted; strings alone, for speed."""
    names, stamps = [], []
    with os.scandir(inside(root, root / folder)) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                continue  # .DS_Store, ._x.png, Thumbs.db, README
            if entry.is_symlink():
                inside(root, Path(entry.path))
            require_text(entry.path)
            info = entry.stat()
            names.append(entry.name)
            stamps.append(f"{entry.name}/{info.st_size}/{info.st_mtime_ns}")
    return sorted(names), sorted(stamps)


def inside(root: Path, path: Path) -> Path:
    try:
        within = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise DataError(
            f"{path}: a link to itself; copy the file into the folder instead"
        ) from None
    if not within:
        raise DataError(f"{path}: a link that leaves {root}; copy the file into the folder instead")
    return path


def require_text(path: str) -> None:
    """Names may hold anything that UTF-8 can write and a line of a table can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: a name that is not UTF-8; rename the file") from None
    if "\r" in path:
        raise DataError(f"{path}: a carriage return in the name; rename the file")


def require_small(path: Path, limit: int = FILE_LIMIT) -> None:
    """Only regular files of bounded size are read: a pipe would block, a giant fill the memory."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise DataError(f"{path}: unreadable, not a regular file; remove it or copy it again")
    if info.st_size > limit:
        raise DataError(f"{path}: {info.st_size:,} bytes, more than {limit:,}; cut it first")


def given_root(root: Path | None, name: str, hint: str) -> Path:
    """The folder given, which must exist."""
    if root is None:
        raise DataError(f"{name}: no folder given; {hint}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; {hint}")
    return Path(root)


def choose_classes(classes: Sequence[str] | str, known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(classes, str):
        classes = known if classes == "all" else [classes]
    chosen = tuple(classes)
    for name in chosen:
        if name not in known:
            raise DataError(f"class {name!r}: unknown, expected some of {', '.join(known)}")
    if len(set(chosen)) < max(2, len(chosen)):
        raise DataError(
            f"classes {list(chosen)}: expected two or more different ones; "
            "a classifier has nothing to learn from one class only"
        )
    return chosen


def and_more(count: int) -> str:
    """The tail of a message about the first of several, empty where there is only one."""
    return f" (and {count - 1:,} more like it)" if count > 1 else ""


def progress(total: int | None, what: str, unit: str = "tile") -> tqdm:
    """A progress bar, where standard error is a terminal or a notebook."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None)


def declared(root: Path, about: About) -> About:
    """What a data set says of itself in `about.json`, so that drawn tiles stay drawn tiles."""
    path = root / "about.json"
    if not path.exists():
        return about
    try:
        require_small(inside(root, path))
        known = json.loads(path.read_text(encoding="utf-8"))
        mpp = float(known["mpp"])
        if not 0 < mpp < 1000:
            raise ValueError(f"mpp {mpp}")
        return replace(about, origin=str(known["source"]), licence=str(known["licence"]), mpp=mpp)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise DataError(
            f"{path}: expected source, licence and mpp as JSON ({error!r}); restore or remove it"
        ) from error
