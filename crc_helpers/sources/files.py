"""The data sets that are read from files, by name, and the cache of their tiles."""

from pathlib import Path

from crc_helpers import sources
from crc_helpers.sources import ebhi, folder, mhist
from crc_helpers.sources.base import About, DataError, Scan, Source, declared, scan
from crc_helpers.sources.cache import cached, code_of, new_stores, write_table
from crc_helpers.sources.images import decode_all

SOURCES = {"mhist": mhist.SOURCE, "ebhi": ebhi.SOURCE, "folder": folder.SOURCE}


def listed(name: str, root: str | Path | None) -> tuple[Source, Path, Scan]:
    """A data set by its name, its own root, and what lies there, nothing decoded."""
    source = SOURCES[name]
    if name == "ebhi" and not root:
        root = ebhi.ebhi_folder()
    try:
        root = source.locate(Path(root) if root else None).resolve()
        return source, root, scan(root, source.folders(root), source.tables)
    except OSError as error:
        raise DataError(
            f"{root}: cannot be listed ({error.strerror}); check that you may read it"
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
        images, masks = new_stores(unfinished, len(table), size, "mask" in table)
        notes += decode_all(root, table, images, masks)
        write_table(unfinished, table, notes)

    key = (str(root), size, found.fingerprint, code_of(sources))
    return cached(name, key, cache, build), declared(root, source.about)
