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

from crc_helpers.runs import file_hash, save_json, writing
from crc_helpers.sources.base import METADATA
from crc_helpers.sources.store import HASHES


def cache_folder(cache: str | Path | None = None) -> Path:
    """The folder of decoded tiles: `cache`, else `CRC_HELPERS_CACHE`, else the user's cache."""
    folder = cache or os.environ.get("CRC_HELPERS_CACHE") or pooch.os_cache("crc_helpers")
    return Path(folder).expanduser()


def cached(
    name: str, parts: tuple, cache: str | Path | None, build: Callable[[Path], None]
) -> Path:
    """The folder in the cache for this name and these parts; `build` fills a new one."""
    key = hashlib.sha256(repr((name, *parts)).encode()).hexdigest()[:24]
    final = cache_folder(cache) / f"{name}-{key}"
    with writing(final.parent), whole_folder(final) as unfinished:
        if unfinished:
            build(unfinished)
            save_json(unfinished / HASHES, hashes(unfinished))
    return final


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path | None]:
    """A temporary folder that becomes `final` if the block succeeds, else is removed.

    One process at a time fills it; None where `final` is there. What a killed process has left is
    removed first.
    """
    if final.exists():
        yield None
        return
    final = final.absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f".{final.name}.part")
    with FileLock(final.with_name(f".{final.name}.lock")):  # a dead process holds none
        if final.exists():  # another process was faster
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
    """SHA-256 of each visible file of a folder, by its name, but for HASHES itself."""
    return {p.name: file_hash(p) for p in sorted(folder.glob(pattern)) if p.name != HASHES}


def code_of(package: ModuleType) -> str:
    """A digest of a package's source: tiles that other code has made are made again."""
    return repr(hashes(Path(package.__file__).parent, "*.py"))


def write_table(folder: Path, table: pd.DataFrame, notes: Iterable[str]) -> None:
    """Write the table of a cache's tiles and its notes, and print the notes this once."""
    columns = ("id", "class", "group", "partition", "votes", *METADATA)
    keep = [c for c in columns if c in table]
    table[keep].to_csv(folder / "table.csv", index=False, lineterminator="\n")
    (folder / "notes.txt").write_text("\n".join(notes), encoding="utf-8")
    for note in notes:
        print(note)
