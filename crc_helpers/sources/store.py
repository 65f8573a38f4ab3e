"""Tiles on disk in shards, read when they are asked for.

100,000 tiles of 224 px are 15 GB, more than a laptop's memory. They lie in plain NumPy files of
`SHARD` tiles each and are read with ordinary reads: the pages of a memory map would count as this
process's own memory for as long as the system has no other use for them.
"""

import errno
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from crc_helpers.tissue.slide import Drawing, Slide

HASHES = "hashes.json"  # beside the shards: size and SHA-256 of each file of their folder
SHARD = 4096  # tiles in a file: 617 MB at 224 px


class TileStore:
    """An array (N, ...) of uint8 in shards. Indexing reads from disk and returns a NumPy array."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, folder: Path, name: str, rows: np.ndarray | None = None, writable: bool = False
    ) -> None:
        """Open `<folder>/<name>-*.npy`. rows: int64, which of the tiles in it; None: all.

        Raises ValueError for a shard that is cut short, of another kind, or missing before another
        (that the last is there, only the number of tiles can tell).
        """
        self.folder, self.name, self.writable = folder, name, writable
        self.files = sorted(folder.glob(f"{name}-*.npy"))
        if not self.files:
            raise ValueError(f"no {name}-*.npy in {folder}")
        shapes = []
        for number, file in enumerate(self.files):
            with file.open("rb") as opened:
                try:
                    npy.read_magic(opened)
                    shape, fortran, dtype = npy.read_array_header_1_0(opened)
                except Exception as error:  # of a damaged header, it may be any
                    raise ValueError(f"{file} has no header of a shard ({error})") from None
                self.start = opened.tell()  # of the first tile: headers are of one length
            self.tile_bytes = int(np.prod(shape[1:]))
            whole = file.stat().st_size == self.start + math.prod(shape)
            alike = len(shape) > 1 and shape[1:] == shapes[0][1:] if shapes else len(shape) > 1
            whole &= alike and not fortran and dtype == self.dtype
            if file != _file(folder, name, number) or not whole:
                raise ValueError(f"{file} is not a whole shard of tiles, or one before it is gone")
            shapes.append(shape)
        total = sum(shape[0] for shape in shapes)
        self.rows = np.arange(total) if rows is None else rows
        self.shape = (len(self.rows), *shapes[0][1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def pick(self, index: np.ndarray) -> "TileStore":
        """The tiles at `index` (integers or booleans), nothing read yet."""
        return TileStore(self.folder, self.name, self.rows[index])

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple):  # the first index chooses tiles, the others pixels
            if not all(isinstance(k, int | np.integer | slice) for k in key[1:]) or key[0] is ...:
                raise IndexError("after the tiles, give numbers and slices only")
            read = self[key[0]]
            one = isinstance(key[0], int | np.integer)
            return read[key[1:] if one else (slice(None), *key[1:])]
        rows = self.rows[key]
        read = np.empty((rows.size, *self.shape[1:]), self.dtype)
        for place, opened, wanted in self._places(np.atleast_1d(rows), "rb"):
            opened.seek(place)
            if opened.readinto(memoryview(read[wanted]).cast("B")) != self.tile_bytes:
                raise OSError(f"{opened.name} has become shorter while it was read")
        return read.reshape(*rows.shape, *self.shape[1:])

    def __setitem__(self, key, tiles: np.ndarray) -> None:
        """Write tiles; several processes may write different ones."""
        if not self.writable:
            raise ValueError(
                f"{self.folder} is a cache of others too: copy the tiles to change them"
            )
        rows = self.rows[key]
        tiles = np.broadcast_to(np.asarray(tiles, self.dtype), (*rows.shape, *self.shape[1:]))
        tiles = tiles.reshape(rows.size, *self.shape[1:])
        for place, opened, given in self._places(np.atleast_1d(rows), "r+b"):
            opened.seek(place)
            # Unbuffered writes may stop short, and a disk may be full in the middle of a tile.
            if opened.write(np.ascontiguousarray(tiles[given]).data) != self.tile_bytes:
                raise OSError(errno.ENOSPC, "a tile was not written whole", opened.name)

    def _places(self, rows: np.ndarray, mode: str) -> Iterator[tuple[int, object, int]]:
        """Byte offset, open file and position in `rows`, of each row, a shard at a time."""
        shard, within = np.divmod(rows, SHARD)
        for number in np.unique(shard):
            # Unbuffered: a tile is read in one call, straight into its place.
            try:
                opened = self.files[number].open(mode, buffering=0)
            except FileNotFoundError:
                raise OSError(
                    f"{self.files[number]} has been removed while it was in use: load the tiles"
                    " again, and they are prepared anew"
                ) from None
            with opened:
                for i in np.flatnonzero(shard == number):
                    yield self.start + int(within[i]) * self.tile_bytes, opened, int(i)


def content_hash(tiles: np.ndarray | TileStore) -> str:
    """A hash of tiles: of an array's bytes; of a store, what was noted when it was written."""
    if not isinstance(tiles, TileStore):
        return hashlib.sha256(np.ascontiguousarray(tiles).data).hexdigest()
    noted = tiles.folder / HASHES
    found = [noted.read_bytes()] if noted.is_file() else [f.read_bytes() for f in tiles.files]
    return hashlib.sha256(b"".join([*found, tiles.rows.tobytes()])).hexdigest()


def _file(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:05d}.npy"


def create(folder: Path, name: str, shape: tuple[int, ...]) -> TileStore:
    """Make the shards of an array of zeros; they take disk space as tiles are written."""
    for number, first in enumerate(range(0, shape[0], SHARD)):
        here = (min(SHARD, shape[0] - first), *shape[1:])
        header = {"descr": "|u1", "fortran_order": False, "shape": here}
        with _file(folder, name, number).open("wb") as opened:
            npy.write_array_header_1_0(opened, header)
            opened.truncate(opened.tell() + int(np.prod(here)))
    return TileStore(folder, name, writable=True)


def to_arrays(folder: Path, slide: Slide, drawings: list[Drawing]) -> None:
    """Keep images and diagnostic regions in the stores "images" and "masks" of a folder."""
    rows = slice(slide.first, slide.first + len(drawings))
    TileStore(folder, "images", writable=True)[rows] = np.stack([d.image for d in drawings])
    TileStore(folder, "masks", writable=True)[rows] = np.stack([d.diagnostic for d in drawings])
