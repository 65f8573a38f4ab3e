"""Readers of the files other people made: MHIST, EBHI-Seg, and a folder a class.

A reader lists what lies on disk and checks it; `data.py` decodes the list into its cache. Whatever
is wrong ends in a `DataError` of one line: the file or value, what was expected, what to do.
"""

import contextlib
import csv
import glob
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import shutil
import stat
import threading
import uuid
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pooch
import requests
import urllib3
from filelock import FileLock
from joblib import cpu_count
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from crc_helpers import printable
from crc_helpers.tile_store import TileStore

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "TIFF")
CHUNK = 512  # files decoded before the progress bar moves
CONVERTED = ("1", "L", "P", "CMYK", "YCbCr", "LA", "PA", "RGBA")  # 8-bit modes read as RGB

EBHI_RECORD = "https://api.figshare.com/v2/articles/21540159"
EBHI_PAGE = "https://figshare.com/articles/dataset/EBHI-SEG/21540159"
UNPACKED_LIMIT = 4_000_000_000  # bytes; the record's 4,454 small PNGs stay far below
MEMBER_LIMIT = 50_000  # files in an archive
ANSWER_LIMIT = 10_000_000  # bytes of the record that lists the archives
FILE_LIMIT = 500_000_000  # bytes of one image or table: what is read at once
TABLE_LIMIT = 60_000_000  # bytes of a table: a million rows
PIXEL_LIMIT = 50_000_000  # of one image
LARGE = (
    4_000_000  # pixels from which images are decoded one at a time, however many cores there are
)
LARGE_FILE = 20_000_000  # bytes from which files are read one at a time
COLUMN_LIMIT = 1000
EBHI_CLASSES = (
    "Normal",
    "Polyp",
    "Low-grade IN",
    "High-grade IN",
    "Serrated adenoma",
    "Adenocarcinoma",
)
MHIST_COLUMNS = {
    "id": "Image Name",
    "class": "Majority Vote Label",
    "votes": "Number of Annotators who Selected SSA (Out of 7)",
    "partition": "Partition",
}
METADATA = ("Scanner", "Polyp Size (mm)", "Colon Site")  # what our tables may hold besides
MHIST_FORM = (
    "MHIST is given out by its authors after a form (Dataset Research Use Agreement) at "
    "https://bmirds.github.io/MHIST : fill it in, unpack images.zip beside annotations.csv, "
    "and pass that folder as root (--data-root)"
)


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


# --- listing -------------------------------------------------------------------------------------


def scan(root: Path, folders: Sequence[str], tables: Sequence[str] = ()) -> Scan:
    """List the images of `folders`, decoding nothing: 100,000 files take about 0.7 s."""
    digest, files = hashlib.sha256(), {}
    try:
        for folder in folders:
            files[folder], stamps = _scan_folder(root, folder)
            digest.update("\n".join([folder, *stamps]).encode("utf-8", "surrogateescape"))
        for table in tables:
            if (root / table).exists():
                info = _inside(root, root / table).stat()
                digest.update(repr((table, info.st_size, info.st_mtime_ns)).encode())
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); "
            "check that it exists and that you may read it"
        ) from error
    return Scan(files, digest.hexdigest())


def _scan_folder(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Names, and names with size and time (ns), both sorted; strings alone, for speed."""
    names, stamps = [], []
    with os.scandir(_inside(root, root / folder)) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                continue  # .DS_Store, ._x.png, Thumbs.db, README
            if entry.is_symlink():
                _inside(root, Path(entry.path))
            _require_text(entry.path)
            info = entry.stat()
            names.append(entry.name)
            stamps.append(f"{entry.name}/{info.st_size}/{info.st_mtime_ns}")
    return sorted(names), sorted(stamps)


def _inside(root: Path, path: Path) -> Path:
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise DataError(
            f"{path}: a link to itself; copy the file into the folder instead"
        ) from None
    if not inside:
        raise DataError(f"{path}: a link that leaves {root}; copy the file into the folder instead")
    return path


def _require_text(path: str) -> None:
    """Names may hold anything that UTF-8 can write and a line of a table can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: a name that is not UTF-8; rename the file") from None
    if "\r" in path:
        raise DataError(f"{path}: a carriage return in the name; rename the file")


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path | None]:
    """A temporary sibling that becomes `final` at the end, or leaves nothing behind.

    One process at a time fills it; others wait. What a killed one has left goes first.
    """
    final = Path(os.path.abspath(final))
    if not final.name:
        raise DataError(f"{final}: the whole disk; choose a new folder in it (--out)")
    if final.is_dir():
        yield None
        return
    unfinished = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    final.parent.mkdir(parents=True, exist_ok=True)

    def clear() -> None:
        for left in final.parent.glob(f".{glob.escape(final.name)}.{'[0-9a-f]' * 8}"):
            shutil.rmtree(left, ignore_errors=True)

    with FileLock(final.with_name(f".{final.name}.lock")):  # a dead process holds none
        if final.is_dir():  # another process was faster, and made the same
            yield None
            return
        try:
            clear()
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(final)
        finally:
            clear()  # again: workers of a killed process finish the tile that they are drawing


def and_more(count: int) -> str:
    """The tail of a message about the first of several, empty where there is only one."""
    return f" (and {count - 1:,} more like it)" if count > 1 else ""


# --- tables --------------------------------------------------------------------------------------


def read_table(
    path: Path, columns: dict[str, str], optional: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV file as text, forgiving what spreadsheets do to it: BOM, CRLF, case, spaces.

    `columns` maps our names to the published ones. Returns the rows, indexed by line number, and
    the notes to be said (columns that are not used).
    """
    try:
        _require_small(path, TABLE_LIMIT)
        content = path.read_bytes()
        if b"\0" in content:
            raise DataError(f"{path}: holds null bytes; save it as comma-separated UTF-8 text")
        head = io.StringIO(content[: 1 << 20].decode("utf-8-sig", "replace"), newline="")
        with contextlib.suppress(csv.Error):  # pandas will say what is wrong
            if max(map(len, itertools.islice(csv.reader(head), 9)), default=0) > COLUMN_LIMIT:
                raise DataError(
                    f"{path}: more than {COLUMN_LIMIT:,} columns; it is no table of tiles"
                )
        table = pd.read_csv(
            io.BytesIO(content),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except DataError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: what pandas and UTF-8 raise
        raise DataError(
            f"{path}: cannot be read as a table ({error}); save it as comma-separated UTF-8 text"
        ) from error
    table = table.fillna("").apply(lambda column: column.str.strip())
    table.index += 1  # now the line number
    titles, table = list(table.iloc[0]), table[(table != "").any(axis=1)].iloc[1:]
    wanted = {_plain(title): short for short, title in columns.items()}
    wanted |= {_plain(title): title for title in optional}
    short = [wanted.get(_plain(title), f"extra: {title}") for title in titles]
    for name, title in columns.items():
        if short.count(name) != 1:
            problem = "is there twice" if short.count(name) else "is missing"
            raise DataError(
                f"{path}: column {title!r} {problem}, expected once and found "
                f"{titles}; correct the header line"
                + ", with commas between the columns"
                * any(";" in str(t) for t in titles)
            )
    if table.empty:
        raise DataError(f"{path}: holds a header but no rows; expected one row a tile")
    extra = [name.removeprefix("extra: ") for name in short if name.startswith("extra: ")]
    table.columns = short
    notes = [f"{path.name}: columns not used: {', '.join(extra)}"] if extra else []
    return table[[name for name in short if not name.startswith("extra: ")]].copy(), notes


def _require_small(path: Path, limit: int = FILE_LIMIT) -> None:
    """Only regular files of bounded size are read: a pipe would block, a giant fill the memory."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise DataError(f"{path}: unreadable, not a regular file; remove it or copy it again")
    if info.st_size > limit:
        raise DataError(f"{path}: {info.st_size:,} bytes, more than {limit:,}; cut it first")


def _plain(title: str) -> str:
    return " ".join(title.split()).casefold()


def _refuse(bad: pd.Series, path: Path, values: pd.Series, why: str) -> None:
    if bad.any():
        line = bad.idxmax()
        raise DataError(f"{path}, line {line}: {values[line]!r} {why}{and_more(int(bad.sum()))}")


def _match(path: Path, rows: pd.Series, files: Sequence[str], folder: str) -> None:
    """Each row needs its file, and each file its row, once."""
    _refuse(rows.duplicated(), path, rows, "is listed twice; keep one row a tile")
    _refuse(~rows.isin(files), path, rows, f"has no file in {folder}; restore it or drop the row")
    left = sorted(set(files) - set(rows))
    if left:
        raise DataError(
            f"{folder}/{left[0]}: has no row in {path}{and_more(len(left))}; "
            "add the row or move the file away"
        )


# --- the three layouts ---------------------------------------------------------------------------


def given_root(root: Path | None, name: str, hint: str) -> Path:
    """The folder given, which must exist."""
    if root is None:
        raise DataError(f"{name}: no folder given; {hint}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; {hint}")
    return Path(root)


def _locate_mhist(root: Path | None) -> Path:
    root = given_root(root, "mhist", MHIST_FORM)
    for part in ("annotations.csv", "images"):
        if not (root / part).exists():
            raise DataError(f"{root / part}: missing; {MHIST_FORM}")
    return root


def _folders_mhist(root: Path) -> list[str]:
    masks = ["masks/diagnostic"] if (root / "masks" / "diagnostic").is_dir() else []
    return ["images", *masks]


def _read_mhist(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    path = root / "annotations.csv"
    table, notes = read_table(path, MHIST_COLUMNS, optional=["Slide", *METADATA])
    bare = table["id"].map(lambda name: name not in ("", "..") and not re.search(r"[/\\]", name))
    _refuse(~bare, path, table["id"], "leaves the folder images; give the bare file name")
    _match(path, table["id"], found.files["images"], str(root / "images"))
    table["class"] = table["class"].str.upper()
    table["partition"] = table["partition"].str.lower()
    _refuse(
        ~table["class"].isin(["HP", "SSA"]), path, table["class"], "is no label; write HP or SSA"
    )
    _refuse(
        ~table["partition"].isin(["train", "test"]),
        path,
        table["partition"],
        "is no partition; write train or test",
    )
    _refuse(
        ~table["votes"].str.fullmatch("[0-7]"),
        path,
        table["votes"],
        "is no number of votes; write a whole number from 0 to 7",
    )
    against = (table["votes"].astype(int) >= 4) != (table["class"] == "SSA")
    _refuse(
        against,
        path,
        table["votes"] + " votes of 7 for SSA, label " + table["class"],
        "contradict each other; 4 or more votes make SSA, correct one of them",
    )
    if "Slide" in table:
        table = table.rename(columns={"Slide": "group"})
        _refuse(table["group"] == "", path, table["id"], "has no slide; fill the column Slide")
        parts = table.groupby("group")["partition"].transform("nunique")
        _refuse(
            parts > 1,
            path,
            table["group"],
            "is in both partitions; keep all tiles of a slide in one",
        )
    table["file"] = "images/" + table["id"]
    if "masks/diagnostic" in found.files:
        folder = str(root / "masks" / "diagnostic")
        _match(path, table["id"], found.files["masks/diagnostic"], folder)
        table["mask"] = "masks/diagnostic/" + table["id"]
    return table, notes


def declared(root: Path, about: About) -> About:
    """What a data set says of itself in `about.json`, so that drawn tiles stay drawn tiles."""
    path = root / "about.json"
    if not path.exists():
        return about
    try:
        _require_small(_inside(root, path))
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


def _locate_ebhi(root: Path | None) -> Path:
    hint = (
        "run `crc-course data prepare ebhi`, or pass the folder that holds EBHI-SEG (--data-root)"
    )
    root = given_root(root, "ebhi", hint)
    root = root / "EBHI-SEG" if (root / "EBHI-SEG").is_dir() else root
    for name in EBHI_CLASSES:
        if not (root / name / "image").is_dir():
            raise DataError(
                f"{root / name / 'image'}: missing, expected the six class folders of "
                f"EBHI-SEG; {hint}"
            )
    return root


def _folders_ebhi(root: Path) -> list[str]:
    labels = [f"{name}/label" for name in EBHI_CLASSES if (root / name / "label").is_dir()]
    return [f"{name}/image" for name in EBHI_CLASSES] + labels


def ebhi_case(file: str) -> str:
    """Case id of an EBHI-Seg file name: `GTxc1900-1-400-001.png` and `GTXC1900-…` are one case."""
    if "-" not in file.lstrip("-"):
        raise DataError(
            f"{file}: no case id in the file name, expected "
            "<case>-<block>-<magnification>-<sequence>.png; restore its name"
        )
    return re.sub("^GTGT", "GT", file.split("-")[0].upper())


def _read_ebhi(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    rows, dropped, unmasked = [], [], 0
    for name in EBHI_CLASSES:
        files, masks = found.files[f"{name}/image"], set(found.files.get(f"{name}/label", ()))
        for file in files:
            if file.startswith("GTGT") and file[2:] in files:
                dropped.append(file)  # the one doubled prefix repeats its neighbour exactly
                continue
            unmasked += file not in masks
            mask = f"{name}/label/{file}" if file in masks else ""
            # a file name alone is not unique: some cases count their tiles anew in each class
            rows.append((f"{name}/{file}", name, ebhi_case(file), f"{name}/image/{file}", mask))
    notes = [f"{file}: left out, it repeats {file[2:]}" for file in dropped]
    if unmasked:
        notes.append(f"tiles without a published gland mask, theirs is all zero: {unmasked:,}")
    return pd.DataFrame(rows, columns=["id", "class", "group", "file", "mask"]), notes


def _locate_folder(root: Path | None) -> Path:
    hint = "pass a folder with one sub-folder of images a class (--data-root)"
    return given_root(root, "folder", hint)


def _folders_folder(root: Path) -> list[str]:
    for path in root.iterdir():
        _require_text(str(path))
    return sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _read_folder(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    if not found.files and _scan_folder(root, ".")[0]:
        raise DataError(f"{root}: images lie directly in it, expected <class>/*.png; give the"
                        " folder above, or put them into one sub-folder a class")  # fmt: skip
    for name, files in found.files.items():
        if not files:
            deeper = any(
                p.is_dir() and _scan_folder(root, str(p))[0] for p in (root / name).iterdir()
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
    _refuse(leaves, path, names, "leaves the folder; write <class>/<file>")
    _match(path, names, files, str(path.parent))
    _refuse(table["group"] == "", path, names, "has no group; write its slide or case")
    return pd.Series(table["group"].to_numpy(), index=names), notes


MHIST = About(
    "MHIST, Wei et al. 2021, arXiv 2101.12355",
    "Dataset Research Use Agreement; not redistributable",
    class_names=("HP", "SSA"),
    mask_name="diagnostic region",  # where there are masks: drawn tiles in MHIST's layout
    mpp=2.0,
)
SYNTHETIC = replace(MHIST, origin="drawn by crc_helpers.synthetic_tissue", licence="MIT")
EBHI = About(
    "EBHI-Seg, Shi et al. 2023, doi 10.3389/fmed.2023.1114673, figshare record 21540159",
    "CC BY 4.0 as second-hand sources state it; check the record",
    class_names=EBHI_CLASSES,
    default_classes=("Low-grade IN", "Adenocarcinoma"),
    mask_name="glands",
)
FOLDER = About("your own folder", "yours to state")

SOURCES = {
    "mhist": Source(
        MHIST, _locate_mhist, _folders_mhist, _read_mhist, ("annotations.csv", "about.json")
    ),
    "ebhi": Source(EBHI, _locate_ebhi, _folders_ebhi, _read_ebhi),
    "folder": Source(FOLDER, _locate_folder, _folders_folder, _read_folder, ("groups.csv",)),
}


# --- decoding ------------------------------------------------------------------------------------


def decode(
    path: Path, size: int, content: bytes | None = None
) -> tuple[np.ndarray, str, tuple[int, int]]:
    """Decode one image: uint8 (3, size, size), its mode and its (width, height) on disk.

    An image that is not square is cropped to its central square; it is then resized (bicubic).
    `content`, where it was not read from `path` but uploaded: then `path` only names it.
    """
    with _in_turn(path, content) as content:
        image = _load(path, content)
        mode, shape = image.mode, image.size
        image = _to_rgb(path, image)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1), mode, shape


def decode_mask(path: Path, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Decode one grey mask, uint8 0/1 (size, size); foreground is above 127 (edges are smooth)."""
    with _in_turn(path, None) as content:
        image = _load(path, content)
        if image.size != shape:
            raise DataError(
                f"{path}: a mask of {image.size[0]}×{image.size[1]} px, expected the size "
                f"of its image, {shape[0]}×{shape[1]}; restore it"
            )
        image = image.convert("L")
        if 0 < (brightest := image.getextrema()[1]) <= 127:
            raise DataError(
                f"{path}: a mask whose brightest value is {brightest}, expected 0 outside and 255"
                " inside; convert it"
            )
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return (np.asarray(image) > 127).astype(np.uint8)


AGAIN = "copy or download it again"


def _content(path: Path) -> bytes:
    try:
        _require_small(path)
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: unreadable ({reason}); {AGAIN}") from error


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _in_turn(path: Path, content: bytes | None) -> Iterator[bytes]:
    """What is in the file, if it was not given; a large file is read, and a large image decoded,
    one at a time.
    """
    with contextlib.ExitStack() as held:
        if content is None:
            with contextlib.suppress(OSError):  # `_content` says it
                if path.stat().st_size > LARGE_FILE:
                    held.enter_context(_one_at_a_time)
            content = _content(path)
        with contextlib.suppress(Exception):  # `_load` says it
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                large = image.width * image.height > LARGE
            if large:
                held.enter_context(_one_at_a_time)
        yield content


def _load(path: Path, content: bytes) -> Image.Image:
    """Open an image that was read from `path`, or is called so."""
    try:
        if not content:
            raise DataError(f"{path}: an empty file (0 bytes); {AGAIN}")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_unusual(path, image)
            image.verify()  # checksums; the file has to be opened again afterwards
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        image = ImageOps.exif_transpose(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a PNG, JPEG or TIFF image; {AGAIN}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut it into tiles first") from error
    except Exception as error:  # on damaged bytes a decoder may raise anything
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: unreadable, truncated or damaged ({reason}); {AGAIN}") from error
    return image


def _refuse_unusual(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise DataError(
            f"{path}: {width}×{height} px is more than the {PIXEL_LIMIT:,} "
            "a tile may have (decompression bomb?); cut it into tiles first"
        )
    if min(width, height) < 1:
        raise DataError(f"{path}: an image of {width}×{height} px; remove or replace it")
    # Pillow would read 16-bit colour as 8-bit in silence: only its raw mode tells them apart
    if image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile):
        raise DataError(
            f"{path}: 16 bits or more a channel, expected 8; convert it to 8-bit RGB, "
            "choosing the intensity range yourself"
        )
    # A JPEG may hold a preview beside its picture (MPO); pages and animations are several pictures.
    if image.format in ("TIFF", "PNG") and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path}: {image.n_frames} pages, expected one; export one page as a tile")


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode != "RGB" and image.mode not in CONVERTED:
        raise DataError(f"{path}: colour mode {image.mode}, expected RGB; convert it to 8-bit RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)  # by its transparency, without a copy
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_all(
    root: Path, table: pd.DataFrame, images: TileStore, masks: TileStore | None
) -> list[str]:
    """Decode every file of `table` into `images` and `masks`; memory stays flat.

    `images`: uint8 (N, 3, S, S), `masks`: uint8 (N, S, S), filled in place. Returns what must be
    said. Raises DataError, naming the first file that cannot be used and how many more there are.
    """
    files, size = table["file"].to_list(), images.shape[-1]
    mask_files = table["mask"].to_list() if masks is not None else [""] * len(files)
    seen, errors = [], []

    def work(row: int) -> None:
        try:
            images[row], mode, shape = decode(root / files[row], size)
            if mask_files[row]:
                masks[row] = decode_mask(root / mask_files[row], size, shape)
            seen.append((mode, shape))
        except DataError as error:
            errors.append((row, error))

    with (
        ThreadPoolExecutor(cpu_count()) as pool,
        warnings.catch_warnings(),
        progress(len(files), "decoding") as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_load` refuses these
        for start in range(0, len(files), CHUNK):  # a future for each of 100,000 files is memory
            rows = range(start, min(start + CHUNK, len(files)))
            list(pool.map(work, rows))
            bar.update(len(rows))
    if errors:
        first = min(errors, key=lambda error: error[0])[1]
        raise DataError(f"{first}{and_more(len(errors))}")
    modes, shapes = zip(*seen, strict=True)
    return _describe(Counter(modes), Counter(shapes), size)


def _describe(modes: Counter, shapes: Counter, size: int) -> list[str]:
    listed = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
    converted = "" if set(modes) == {"RGB"} else ": converted to RGB, transparency over white"
    (width, height), count = shapes.most_common(1)[0]
    sizes = f"{count:,} of {width}×{height} px"
    sizes += f", {shapes.total() - count:,} of {len(shapes) - 1:,} other sizes" * (len(shapes) > 1)
    fitted = (
        ""
        if set(shapes) == {(size, size)}
        else (f": cropped to their central square and resized to {size} px")
    )
    return [f"colour modes: {listed}{converted}", f"image sizes: {sizes}{fitted}"]


def progress(total: int | None, what: str, unit: str = "tile") -> tqdm:
    """A progress bar, where standard error is a terminal or a notebook."""
    return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None)


# --- the open record -----------------------------------------------------------------------------


def download_ebhi(out: Path, api: str = EBHI_RECORD) -> Path:
    """Fetch EBHI-Seg's archive into `out`, verify it, unpack it; returns `out/EBHI-SEG`.

    An archive that already lies in `out` (fetched by hand) is unpacked instead. A download that
    breaks off leaves a `.part` file, from which the next call goes on.
    """
    final = out / "EBHI-SEG"
    if final.is_dir():
        if missing := _missing_classes(final):
            raise DataError(
                f"{final / missing[0]}: is missing; remove {final}, and the same command makes it"
                " anew"
            )
        return final
    by_hand = (
        f"or fetch its archive by hand from {EBHI_PAGE} and unpack it so that "
        f"{final / EBHI_CLASSES[0] / 'image'} exists (a zip archive may just be put into {out})"
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        archives = sorted(out.glob("*.zip")) or _fetch_record(out, api)
        for archive in archives[:1]:
            with whole_folder(final) as unfinished:
                if unfinished:
                    _unpack(archive, unfinished)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = getattr(getattr(error, "response", None), "reason", None) or type(error).__name__
        raise DataError(
            f"EBHI-Seg: the download failed ({reason}); try again, it goes on where it "
            f"stopped, {by_hand}"
        ) from error
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); choose another --out") from error
    if not archives:
        raise DataError(f"EBHI-Seg: no zip archive listed by {api}; try again later, {by_hand}")
    return final


def _fetch_record(out: Path, api: str) -> list[Path]:
    """Download the zip files of a figshare record, each checked against the record's MD5."""
    with requests.get(api, timeout=30, stream=True) as answer:
        answer.raise_for_status()
        content = bytearray()
        for block in answer.iter_content(1 << 16):
            content += block
            if len(content) > ANSWER_LIMIT:
                raise DataError(
                    f"{api}: its answer has more than {ANSWER_LIMIT:,} bytes; try later"
                )
        try:
            listed = [(str(f["name"]), str(f["download_url"]), str(f["computed_md5"]))
                      for f in json.loads(content)["files"]]  # fmt: skip
            if not all(name.isprintable() for name, *_ in listed):
                raise ValueError("a name that is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{api}: its answer is no list of files ({error!r}); try later"
            ) from None
    archives = []
    for name, url, md5 in listed:
        if not name.lower().endswith(".zip"):
            continue
        archive = out / (name := Path(name).name)
        part = archive.with_name(f"{archive.name}.part")
        with FileLock(archive.with_name(f".{name}.lock")):
            if part.is_symlink():
                raise DataError(f"{part}: a link, and a download would write through it; remove it")
            _resume(part, url)
            if pooch.file_hash(part, "md5") != md5:
                part.unlink()
                raise DataError(
                    f"{archive.name}: downloaded, but not the file that {api} describes "
                    "(its MD5 differs); give the same command again"
                )
            part.replace(archive)
        archives.append(archive)
    return archives


def _resume(part: Path, url: str) -> None:
    """Fetch a file into `part`, going on with the bytes already there."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:  # nothing is left to fetch; the checksum decides
            return
        answer.raise_for_status()
        have *= answer.status_code == 206  # a server without ranges starts again
        length = answer.headers.get("Content-Length", "")  # of any text; the bar does without
        total = have + int(length) if re.fullmatch("[0-9]{1,15}", length) else None
        with part.open("ab" if have else "wb") as file, progress(total, part.stem, "B") as bar:
            bar.update(have)
            for block in answer.iter_content(1 << 16):
                bar.update(file.write(block))
                if file.tell() > UNPACKED_LIMIT:
                    raise DataError(f"{url}: more than {UNPACKED_LIMIT:,} bytes; not EBHI-Seg")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the class folders of a zip archive into `folder`, trusting none of its names."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                _refuse_member(archive, member)
            size = sum(member.file_size for member in members)
            if size > UNPACKED_LIMIT or len(members) > MEMBER_LIMIT:
                raise DataError(
                    f"{archive}: would unpack to more than {UNPACKED_LIMIT:,} bytes or "
                    f"{MEMBER_LIMIT:,} files; it is not EBHI-Seg, remove it"
                )
            content.extractall(folder / "unpacked")
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
        *(EOFError, RuntimeError, ValueError, OSError),
    ) as error:
        # RuntimeError: a password, or a compression that this Python lacks. OSError without a
        # number is bzip2's word for damage; with one it is the system's.
        if getattr(error, "errno", None):
            raise
        raise DataError(
            f"{archive}: a damaged archive ({error}); remove it and fetch it again"
        ) from error
    found = sorted((folder / "unpacked").rglob(f"{EBHI_CLASSES[0]}/image"))
    if not found:
        raise DataError(
            f"{archive}: no folder {EBHI_CLASSES[0]}/image in it, so it is not "
            "EBHI-Seg; remove it and fetch the right one"
        )
    if missing := _missing_classes(found[0].parents[1]):
        raise DataError(
            f"{archive}: no folder {missing[0]} in it, so it is not all of EBHI-Seg; remove it and"
            " fetch it again"
        )
    for path in found[0].parents[1].iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "unpacked")


def _missing_classes(folder: Path) -> list[str]:
    return [f"{name}/image" for name in EBHI_CLASSES if not (folder / name / "image").is_dir()]


def _refuse_member(archive: Path, member: zipfile.ZipInfo) -> None:
    parts = re.split(r"[/\\]", member.filename)
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise DataError(f"{archive}: {member.filename!r} in it leaves the folder; remove the file")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive}: {member.filename!r} in it is a link; remove the file")
