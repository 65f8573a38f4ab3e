"""The cache: each tile is decoded, or drawn, once; later calls only open it.

100,000 tiles take less than a second and next to no memory. The cache lies in `CRC_HELPERS_CACHE`
or the user's cache folder; deleting it costs nothing but the time to decode again.
"""

import contextlib
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pooch
from filelock import FileLock

from crc_helpers.runs import RunError, file_hash, save_json
from crc_helpers.sources.base import METADATA, DataError
from crc_helpers.sources.store import HASHES, TileStore, create


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where decoded tiles lie: `cache`, else `CRC_HELPERS_CACHE`, else the user's cache folder."""
    return Path(cache or os.environ.get("CRC_HELPERS_CACHE") or pooch.os_cache("crc_helpers"))


def cached(
    name: str, parts: tuple, cache: str | Path | None, build: Callable[[Path], None]
) -> Path:
    """The folder of this key; where it is not there yet, `build` fills it, all or nothing."""
    key = hashlib.sha256(repr((name, *parts)).encode()).hexdigest()[:24]
    final = cache_folder(cache) / f"{name}-{key}"
    try:
        if not final.is_dir():
            with whole_folder(final) as unfinished:
                if unfinished:
                    build(unfinished)
                    save_json(unfinished / HASHES, hashes(unfinished))
    except (OSError, RunError) as error:
        raise DataError(
            f"{final.parent}: cannot be written ({error}); set the environment variable "
            "CRC_HELPERS_CACHE to a folder that can"
        ) from error
    return final


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


def hashes(folder: Path) -> dict[str, dict]:
    """Size and SHA-256 of each file of a cache."""
    files = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name != HASHES)
    return {f.name: {"size": f.stat().st_size, "sha256": file_hash(f)} for f in files}


def code_of(module: ModuleType) -> str:
    """A digest of a module's source, or of all in a package: tiles that other code has made are
    made again.
    """
    file = Path(module.__file__)
    files = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    return " ".join(map(file_hash, files))


def new_stores(
    folder: Path, count: int, size: int, masks: bool
) -> tuple[TileStore, TileStore | None]:
    """New stores of images and masks, after a look at the space left."""
    needed, free = count * size * size * (4 if masks else 3), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder.parent}: {needed / 1e9:.1f} GB needed for the decoded tiles, "
            f"{free / 1e9:.1f} GB free; make room or set CRC_HELPERS_CACHE"
        )
    images = create(folder, "images", (count, 3, size, size))
    return images, create(folder, "masks", (count, size, size)) if masks else None


def write_table(folder: Path, table: pd.DataFrame, notes: Iterable[str]) -> None:
    """The table and the notes, which are said once: here, where the tiles are made."""
    columns = ("id", "class", "group", "partition", "votes", *METADATA)
    keep = [c for c in columns if c in table]
    table[keep].to_csv(folder / "table.csv", index=False, lineterminator="\n")
    (folder / "notes.txt").write_text("\n".join(notes), encoding="utf-8")
    for note in notes:
        print(note)
