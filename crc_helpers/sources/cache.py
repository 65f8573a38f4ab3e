"""The cache: each tile is decoded, or drawn, once; later calls only open it.

100,000 tiles take less than a second and next to no memory. The cache lies in `CRC_HELPERS_CACHE`
or the user's cache folder; deleting it costs nothing but the time to decode again.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pooch
from filelock import FileLock

from crc_helpers.runs import save_json
from crc_helpers.sources.base import METADATA, DataError
from crc_helpers.sources.store import HASHES


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where decoded tiles lie: `cache`, else `CRC_HELPERS_CACHE`, else the user's cache folder."""
    folder = cache or os.environ.get("CRC_HELPERS_CACHE") or pooch.os_cache("crc_helpers")
    return Path(folder).expanduser()


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
    except OSError as error:
        raise DataError(
            f"{final.parent}: cannot be written ({error}); set the environment variable "
            "CRC_HELPERS_CACHE to a folder that can"
        ) from error
    return final


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path | None]:
    """A temporary sibling that becomes `final` at the end, or leaves nothing behind.

    One process at a time fills it; others wait, and get None. What a killed one has left goes
    first.
    """
    final = Path(os.path.abspath(final))
    if not final.name:
        raise DataError(f"{final}: the whole disk; choose a new folder in it (--out)")
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f".{final.name}.part")
    with FileLock(final.with_name(f".{final.name}.lock")):  # a dead process holds none
        if final.is_dir():  # from before, or another process was faster and made the same
            yield None
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            yield unfinished
            unfinished.rename(final)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def hashes(folder: Path, pattern: str = "[!.]*") -> dict[str, str]:
    """SHA-256 of each file of a folder but for HASHES itself, and for what a system puts there."""
    files = sorted(path for path in folder.glob(pattern) if path.name != HASHES)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def code_of(package: ModuleType) -> str:
    """A digest of a package's source: tiles that other code has made are made again."""
    return repr(hashes(Path(package.__file__).parent, "*.py"))


def write_table(folder: Path, table: pd.DataFrame, notes: Iterable[str]) -> None:
    """The table and the notes, which are said once: here, where the tiles are made."""
    columns = ("id", "class", "group", "partition", "votes", *METADATA)
    keep = [c for c in columns if c in table]
    table[keep].to_csv(folder / "table.csv", index=False, lineterminator="\n")
    (folder / "notes.txt").write_text("\n".join(notes), encoding="utf-8")
    for note in notes:
        print(note)
