"""The data sets that are read from files, by name, and the cache of their tiles."""

from functools import partial
from pathlib import Path

from crc_helpers import sources
from crc_helpers.sources import ebhi, folder, mhist
from crc_helpers.sources.base import About, DataError, Listing, Source, list_files
from crc_helpers.sources.cache import cache_folder, cached, code_of, write_table
from crc_helpers.sources.images import decode_all
from crc_helpers.sources.store import save_shard

SOURCES = {"mhist": mhist.SOURCE, "ebhi": ebhi.SOURCE, "folder": folder.SOURCE}


def list_source(name: str, root: str | Path | None) -> tuple[Source, Path, Listing]:
    """A data set by its name, its root and its files, nothing decoded."""
    source = SOURCES[name]
    if name == "ebhi" and not root:
        root = cache_folder() / "ebhi"
    try:
        root = source.root(Path(root).expanduser() if root else None).resolve()
        return source, root, list_files(root, source.folders(root))
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check that it exists "
            "and that you may read it"
        ) from error


def decode_source(
    name: str, root: str | Path | None, size: int, cache: str | Path | None
) -> tuple[Path, About]:
    """Decode a data set into the cache, if it is not there; its folder, and its description."""
    source, root, listing = list_source(name, root)

    def build(unfinished: Path) -> None:
        table, notes = source.tabulate(root, listing)
        if table.empty:
            raise DataError(f"{root}: no folder of images in it, {source.layout} (--data-root)")
        notes += decode_all(root, table, size, partial(save_shard, unfinished))
        write_table(unfinished, table, notes)

    key = (str(root), size, listing.digest, code_of(sources))
    return cached(name, key, cache, build), mhist.described(root, source.about)
