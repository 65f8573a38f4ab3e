"""The data sets that are read from files, by name, and the cache of their tiles."""

from functools import partial
from pathlib import Path

from crc_helpers import sources
from crc_helpers.sources import ebhi, folder, mhist
from crc_helpers.sources.base import About, DataError, Scan, Source, scan
from crc_helpers.sources.cache import cached, code_of, write_table
from crc_helpers.sources.images import decode_all
from crc_helpers.sources.store import save_shard

SOURCES = {"mhist": mhist.SOURCE, "ebhi": ebhi.SOURCE, "folder": folder.SOURCE}


def listed(name: str, root: str | Path | None) -> tuple[Source, Path, Scan]:
    """A data set by its name, its own root, and what lies there, nothing decoded."""
    source = SOURCES[name]
    if name == "ebhi" and not root:
        root = ebhi.ebhi_folder()
    try:
        root = source.locate(Path(root).expanduser() if root else None).resolve()
        return source, root, scan(root, source.folders(root))
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check that it exists "
            "and that you may read it"
        ) from error


def decoded(
    name: str, root: str | Path | None, size: int, cache: str | Path | None
) -> tuple[Path, About]:
    """Decode a data set into the cache, if it is not there; its folder, and what is known of it."""
    source, root, found = listed(name, root)

    def build(unfinished: Path) -> None:
        table, notes = source.read(root, found)
        if table.empty:
            raise DataError(f"{root}: no image in it; expected the layout of {name!r}")
        notes += decode_all(root, table, size, partial(save_shard, unfinished))
        write_table(unfinished, table, notes)

    key = (str(root), size, found.fingerprint, code_of(sources))
    return cached(name, key, cache, build), mhist.declared(root, source.about)
