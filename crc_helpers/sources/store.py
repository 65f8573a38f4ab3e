"""Tiles on disk in shards, plain NumPy files that are read when they are indexed.

100,000 tiles of 224 px are 15 GB, more than a laptop's memory. They are read with ordinary reads:
the pages of a memory map count as this process's own memory, and come from a cold disk more slowly.
"""

import copy
import hashlib
from pathlib import Path

import numpy as np

SHARD = 1020  # tiles in a file, whole slides of six tiles: 154 MB at 224 px
HASHES = "hashes.json"  # beside the shards: SHA-256 of each file of their folder


class TileStore:
    """An array (N, ...) of uint8 in shards. Indexing reads from disk and returns a NumPy array."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, name: str) -> None:
        """Open `<folder>/<name>-*.npy`; raises OSError or ValueError where one is damaged."""
        self.folder = folder
        self.files = sorted(folder.glob(f"{name}-*.npy")) or [folder / f"{name}-00000.npy"]
        shards = [np.load(file, mmap_mode="r") for file in self.files]  # their headers are read
        self.start = shards[0].offset  # bytes before the first tile
        self.shard, *self.tile_shape = shards[0].shape  # the last shard may be smaller
        self.rows = np.arange(sum(map(len, shards)))

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.rows), *self.tile_shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def pick(self, index: np.ndarray) -> "TileStore":
        """The tiles at `index` (integers or booleans), nothing read yet."""
        picked = copy.copy(self)
        picked.rows = self.rows[index]
        return picked

    def __getitem__(self, key) -> np.ndarray:
        """The tiles at `key`; in a tuple the first index chooses tiles, the others pixels."""
        first, *pixels = key if isinstance(key, tuple) else (key,)
        rows = self.rows[first]
        shard, within = np.divmod(np.atleast_1d(rows), self.shard)
        tiles = np.empty((rows.size, *self.tile_shape), self.dtype)
        for number in np.unique(shard):
            with self.files[number].open("rb", buffering=0) as opened:
                for i in np.flatnonzero(shard == number):
                    opened.seek(self.start + int(within[i]) * tiles[i].nbytes)
                    if opened.readinto(tiles[i]) != tiles[i].nbytes:
                        raise OSError(f"{opened.name} has been cut short: delete {self.folder}")
        tiles = tiles.reshape(*rows.shape, *self.tile_shape)
        return tiles[(*[slice(None)] * rows.ndim, *pixels)]


def save_shard(folder: Path, number: int, **tiles: np.ndarray) -> None:
    """Write one shard of each named array; all but the last of a name hold equally many tiles."""
    for name, array in tiles.items():
        np.save(folder / f"{name}-{number:05d}.npy", array)


def content_hash(tiles: np.ndarray | TileStore) -> str:
    """A hash of tiles: of an array's bytes; of a store, of its hashes and the rows chosen."""
    if not isinstance(tiles, TileStore):
        return hashlib.sha256(np.ascontiguousarray(tiles).data).hexdigest()
    written = tiles.folder / HASHES
    files = [written] if written.is_file() else tiles.files
    parts = [*(file.read_bytes() for file in files), tiles.rows.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()
