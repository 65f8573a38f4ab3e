"""Tiles from four sources, in one store, and their division for an honest test.

Each tile is decoded (or drawn) once, into a cache that later calls only open: 100,000 tiles take
less than a second and next to no memory. The cache lies in `CRC_HELPERS_CACHE` or the user's
cache folder; deleting it costs nothing but the time to decode again.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pooch
from PIL import Image, ImageDraw

from crc_helpers import data_readers as readers
from crc_helpers import tile_store
from crc_helpers.data_readers import About, DataError
from crc_helpers.runs import (
    MOST_TILES,
    ROOT,
    SEEDS,
    RunError,
    as_text,
    file_hash,
    read_json,
    save_json,
    save_table,
    say_misfits,
    start_file,
    work_on,
)
from crc_helpers.tile_store import HASHES, TileStore

NEAR_LIMIT = 20_000  # tiles compared each with each; a few seconds
SCHEMES = ("auto", "paper", "random")


@dataclass(frozen=True, eq=False)
class Tiles:
    """Image tiles with whatever is known of each; N tiles of H × W pixels, all of one size."""

    images: TileStore  # uint8 (N, 3, H, W), on disk; indexing reads
    labels: np.ndarray  # int64 (N,), index into class_names; -1: no label in this task
    class_names: tuple[str, ...]
    ids: np.ndarray  # str (N,), file name or synthetic id
    groups: np.ndarray | None  # str (N,), slide or case; None where it is not published
    partition: np.ndarray | None  # str (N,), official "train" / "test"
    votes: np.ndarray | None  # int64 (N,), how many of seven readers chose class 1 of two
    masks: TileStore | None  # uint8 0/1 (N, H, W), on disk
    mask_name: str | None  # what the mask outlines
    mpp: float | None  # microns per pixel
    name: str
    source: str
    licence: str
    notes: tuple[str, ...] = ()  # what was converted, resized, left out
    metadata: pd.DataFrame | None = None  # a row a tile: scanner, polyp size, site in the colon
    digest: str | None = None  # SHA-256 over pixels and table, of all tiles loaded

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> "Tiles":
        """The tiles at `index` (integers or booleans), their images and masks copied to memory."""
        fields = ("images", "labels", "ids", "groups", "partition", "votes", "masks")
        present = {name: getattr(self, name) for name in fields}
        chosen = {k: None if v is None else v[index] for k, v in present.items()}
        if self.metadata is not None:
            chosen["metadata"] = self.metadata.iloc[index].reset_index(drop=True)
        return replace(self, **chosen)


def load_tiles(
    name: str = "synthetic",
    root: str | Path | None = None,
    *,
    classes: Sequence[str] | str | None = None,
    n: int = 2000,
    seed: int = 0,
    size: int = 224,
    mpp: float | None = None,
    shortcut: str | None = None,
    strength: float = 0.9,
    scanner: str | None = None,
    cache: str | Path | None = None,
) -> Tiles:
    """Load `synthetic`, `mhist`, `ebhi` or `folder`, decoding or drawing only the first time.

    `root`: the data set's folder. `classes`: the task, two or more names in the order of their
    labels, or "all"; tiles of other classes stay, with label -1, for label-free pre-training.
    `size`: side in pixels. `mpp`: microns per pixel, where you know better (MHIST's is disputed).
    Synthetic only: `n`, `seed`, how many tiles, which ones; `shortcut`, `strength`, `scanner`, see
    `synthetic_cohort.make_cohort`; `mpp` is what they are drawn at, by default 448 µm a tile.
    Synthetic tiles are of HP and SSA unless `classes` names others of `synthetic_tissue.KINDS`:
    they are then drawn too, and there are no votes, because readers vote on HP and SSA only.
    Raises DataError, one line, for anything that is wrong with the data.
    """
    if name == "synthetic":
        if root is not None:
            raise DataError(
                f"{root}: synthetic tiles are drawn and come from no folder; say which data it is"
                " (--data folder, or mhist for what `data prepare synthetic` wrote)"
            )
        plan = {"n": n, "seed": seed, "shortcut": shortcut, "strength": strength}
        plan |= {"scanner": scanner}
        folder, about = _synthetic(plan, classes, size, mpp or 448 / size, cache)
    elif name in readers.SOURCES:
        if classes and (known := readers.SOURCES[name].about.class_names):
            _choose_classes(classes, known)  # said before minutes of decoding
        folder, about = _foreign(name, root, size, cache)
    else:
        choices = ", ".join(["synthetic", *readers.SOURCES])
        raise DataError(f"data {name!r}: unknown, expected one of {choices}")
    tiles = _open(folder, name, about, classes)
    return replace(tiles, mpp=mpp or (tiles.mpp and tiles.mpp * 224 / size))


# --- the cache -----------------------------------------------------------------------------------


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where decoded tiles lie: `cache`, else `CRC_HELPERS_CACHE`, else the user's cache folder."""
    return Path(cache or os.environ.get("CRC_HELPERS_CACHE") or pooch.os_cache("crc_helpers"))


def _cached(
    name: str, parts: tuple, cache: str | Path | None, build: Callable[[Path], None]
) -> Path:
    """The folder of this key; where it is not there yet, `build` fills it, all or nothing."""
    key = hashlib.sha256(repr((name, *parts)).encode()).hexdigest()[:24]
    final = cache_folder(cache) / f"{name}-{key}"
    try:
        if not final.is_dir():
            with readers.whole_folder(final) as unfinished:
                if unfinished:
                    build(unfinished)
                    save_json(unfinished / HASHES, _hashes(unfinished))
    except (OSError, RunError) as error:
        raise DataError(
            f"{final.parent}: cannot be written ({error}); set the environment variable "
            "CRC_HELPERS_CACHE to a folder that can"
        ) from error
    return final


def _hashes(folder: Path) -> dict[str, dict]:
    """Size and SHA-256 of each file of a cache."""
    files = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name != HASHES)
    return {f.name: {"size": f.stat().st_size, "sha256": file_hash(f)} for f in files}


def _code(module: ModuleType) -> str:
    """A digest of a module's source: tiles made by other code than today's are made again."""
    return file_hash(Path(module.__file__))


def _stores(folder: Path, count: int, size: int, masks: bool) -> tuple[TileStore, TileStore | None]:
    """New stores of images and masks, after a look at the space left."""
    needed, free = count * size * size * (4 if masks else 3), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder.parent}: {needed / 1e9:.1f} GB needed for the decoded tiles, "
            f"{free / 1e9:.1f} GB free; make room or set CRC_HELPERS_CACHE"
        )
    images = tile_store.create(folder, "images", (count, 3, size, size))
    return images, tile_store.create(folder, "masks", (count, size, size)) if masks else None


def _open(folder: Path, name: str, about: About, classes: Sequence[str] | str | None) -> Tiles:
    masks = None
    try:
        known = read_json(folder / HASHES)
        for file, written in known.items():
            if (folder / file).stat().st_size != written["size"]:
                raise ValueError(f"{file} has another size than was written")
        digest = [v["sha256"] for k, v in sorted(known.items()) if k != "notes.txt"]
        images = TileStore(folder, "images")
        if list(folder.glob("masks-*.npy")):
            masks = TileStore(folder, "masks")
        table = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False)
        if not len(table) == len(images) == len(images if masks is None else masks):
            raise ValueError(f"{len(images):,} tiles, {len(table):,} in the table")
        notes = (folder / "notes.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError, TypeError, RunError) as error:
        raise DataError(f"{folder}: a damaged cache ({error}); delete this folder") from error
    known = about.class_names or tuple(sorted(table["class"].unique()))
    chosen = _choose_classes(classes or about.default_classes or known, known)
    lookup = {name: label for label, name in enumerate(chosen)}
    labels = table["class"].map(lookup).fillna(-1).to_numpy(np.int64)
    _require_classes(labels, chosen, name)
    columns = {c: table[c].to_numpy().astype(str) for c in ("group", "partition") if c in table}
    return Tiles(
        images,
        labels,
        chosen,
        table["id"].to_numpy().astype(str),
        columns.get("group"),
        columns.get("partition"),
        table["votes"].to_numpy(np.int64) if "votes" in table else None,
        masks,
        None if masks is None else about.mask_name,
        about.mpp,
        name,
        about.origin,
        about.licence,
        tuple(notes),
        _metadata(table),
        hashlib.sha256(" ".join(digest).encode()).hexdigest(),
    )


def _metadata(table: pd.DataFrame) -> pd.DataFrame | None:
    known = table[[c for c in readers.METADATA if c in table]].copy()
    for name in known.columns.intersection(["Polyp Size (mm)"]):
        known[name] = pd.to_numeric(known[name], errors="coerce")  # empty: not known
    return known if len(known.columns) else None


def _choose_classes(classes: Sequence[str] | str, known: tuple[str, ...]) -> tuple[str, ...]:
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


def _require_classes(labels: np.ndarray, chosen: tuple[str, ...], name: str) -> None:
    for label, class_name in enumerate(chosen):
        if not (labels == label).any():
            raise DataError(
                f"{name}: one class only, no tile of class {class_name!r}; "
                "add tiles of it or choose other classes"
            )


def _write_table(folder: Path, table: pd.DataFrame, notes: Iterable[str]) -> None:
    """The table and the notes, which are said once: here, where the tiles are made."""
    columns = ("id", "class", "group", "partition", "votes", *readers.METADATA)
    keep = [c for c in columns if c in table]
    table[keep].to_csv(folder / "table.csv", index=False, lineterminator="\n")
    (folder / "notes.txt").write_text("\n".join(notes), encoding="utf-8")
    for note in notes:
        print(note)


# --- tiles from files ----------------------------------------------------------------------------


def _listed(name: str, root: str | Path | None) -> tuple[readers.Source, Path, readers.Scan]:
    source = readers.SOURCES[name]
    if name == "ebhi" and not root:
        root = ebhi_folder()
    try:
        root = source.locate(Path(root) if root else None).resolve()
        return source, root, readers.scan(root, source.folders(root), source.tables)
    except OSError as error:
        raise DataError(
            f"{root}: cannot be listed ({error.strerror}); check that you may read it"
        ) from error


def _foreign(
    name: str, root: str | Path | None, size: int, cache: str | Path | None
) -> tuple[Path, About]:
    source, root, found = _listed(name, root)

    def build(folder: Path) -> None:
        table, notes = source.read(root, found)
        if table.empty:
            raise DataError(f"{root}: no image in it; expected the layout of {name!r}")
        images, masks = _stores(folder, len(table), size, "mask" in table)
        notes += readers.decode_all(root, table, images, masks)
        _write_table(folder, table, notes)

    key = (str(root), size, found.fingerprint, _code(readers), _code(tile_store))
    return _cached(name, key, cache, build), readers.declared(root, source.about)


# --- drawn tiles ---------------------------------------------------------------------------------


def _synthetic(
    plan: dict[str, Any],
    classes: Sequence[str] | str | None,
    size: int,
    mpp: float,
    cache: str | Path | None,
) -> tuple[Path, About]:
    from crc_helpers import synthetic_cohort, synthetic_tissue

    kinds = _choose_classes(classes or synthetic_tissue.CLASS_NAMES, synthetic_tissue.KINDS)
    cohort = _plan(plan | {"kinds": kinds})
    drawn = cohort.class_names
    about = replace(readers.SYNTHETIC, mpp=mpp * size / 224, class_names=drawn)

    def build(folder: Path) -> None:
        _stores(folder, len(cohort.seeds), size, masks=True)
        synthetic_cohort.draw_all(cohort, partial(synthetic_cohort.to_arrays, folder), size, mpp)
        names = {"Image Name": "id", **{v: k for k, v in readers.MHIST_COLUMNS.items()}}
        table = cohort.annotations().rename(columns=names | {"Slide": "group"})
        table["id"] = table["id"].str.removesuffix(".png")
        unread = [] if drawn == synthetic_tissue.CLASS_NAMES else ["votes"]
        _write_table(folder, table.drop(columns=["partition", *unread]), [])

    modules = (synthetic_tissue, synthetic_cohort, tile_store)
    key = (*plan.values(), drawn, size, mpp, *map(_code, modules))
    return _cached("synthetic", key, cache, build), about


def _plan(plan: dict[str, Any]):
    from crc_helpers.synthetic_cohort import make_cohort

    for name, (low, high) in {"n": (2, MOST_TILES), "seed": SEEDS}.items():
        if not isinstance(plan[name], Integral) or not low <= plan[name] <= high:
            raise DataError(
                f"{name} = {plan[name]!r}: expected a whole number from {low:,} to {high:,} of"
                " synthetic tiles; correct it"
            )
    try:
        return make_cohort(**plan)
    except ValueError as error:
        raise DataError(str(error)) from error


def write_synthetic(
    out: Path, n: int = 3152, size: int = 224, mpp: float = 2.0, **plan: Any
) -> Path:
    """Draw a cohort into a folder in MHIST's layout, all or nothing, and return the folder.

    `images/`, `annotations.csv` with MHIST's columns and Slide, Scanner, Polyp Size (mm), Colon
    Site; `masks/<what>/`, 0 or 255, of glands, lumina, nuclei and the diagnostic region; apart from
    them `truth.csv`, the diagnosis by the rule, severity and distortion. plan: see `make_cohort`.
    """
    from crc_helpers import synthetic_cohort

    cohort = _plan({"n": n, "seed": 0} | plan)
    if set(cohort.class_names) != {"HP", "SSA"}:
        raise DataError(
            f"kinds {', '.join(plan['kinds'])}: MHIST's layout knows HP and SSA only; "
            "load_tiles(classes=...) draws the others"
        )
    try:
        with readers.whole_folder(out) as folder:
            if not folder or out.exists():
                raise DataError(f"{out}: is there already; choose another --out, or remove it")
            for name in ("images", *(f"masks/{mask}" for mask in synthetic_cohort.MASKS)):
                (folder / name).mkdir(parents=True)
            synthetic_cohort.draw_all(cohort, partial(synthetic_cohort.to_files, folder), size, mpp)
            for name in ("annotations", "truth"):
                table = getattr(cohort, name)()
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
            about = replace(readers.SYNTHETIC, mpp=mpp * size / 224)
            known = {"source": about.origin, "licence": about.licence, "mpp": about.mpp}
            save_json(folder / "about.json", known | {"plan": {"n": n, "seed": 0} | plan})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); choose another --out") from error
    return out


# --- the split -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Who trains, who chooses, who tests: int64 indices into the tiles, sorted."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    unlabelled: np.ndarray  # no label in this task; where grouped, no group-mate in val or test
    grouped: bool  # no slide or case in two parts
    scheme: str  # "official", "grouped", "random" or "paper"
    discarded: np.ndarray  # labelled, left out to balance the classes

    @property
    def pretraining(self) -> np.ndarray:
        """All tiles that pre-training, which uses no labels, may see: train and unlabelled."""
        return np.concatenate([self.train, self.unlabelled])

    def to_frame(self, tiles: Tiles) -> pd.DataFrame:
        """One row a tile: id, group, label, part ("held out": unlabelled, mate of a test tile)."""
        part = np.full(len(tiles), "held out", dtype=object)
        for name in ("train", "val", "test", "unlabelled", "discarded"):
            part[getattr(self, name)] = name
        label = np.append(tiles.class_names, "")[tiles.labels]  # -1 is the last: no label
        group = "" if tiles.groups is None else tiles.groups
        return pd.DataFrame({"id": tiles.ids, "group": group, "label": label, "part": part})


def split(
    tiles: Tiles,
    scheme: str = "auto",
    *,
    test: float = 0.25,
    validation: float = 0.15,
    seed: int = 0,
    batch_size: int = 1,
) -> Split:
    """Divide the labelled tiles into train, val and test, the same for the same seed.

    "auto": the official partition where there is one, else whole groups (over all classes at once)
    where they are known, else stratified random. "paper": the majority class cut to the size of
    the other, then 90:10 at random (`test` is not used). "random": stratified random, groups
    ignored. `test` is a fraction of the tiles, `validation` a fraction of what test leaves; 0 gives
    an empty val. Raises DataError where a part lacks a class or train is smaller than a batch.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r}: unknown, expected one of {', '.join(SCHEMES)}")
    if not (0 < test < 1 and 0 <= validation < 1):
        raise ValueError(f"test {test}, validation {validation}: expected fractions below 1")
    rng = np.random.default_rng(seed)
    everything, nothing = np.arange(len(tiles)), np.empty(0, np.int64)
    groups = tiles.groups if scheme == "auto" else None
    kept, discarded = everything, nothing
    if scheme == "paper":
        kept, discarded = balance(tiles.labels, rng)
        test = 0.10
    if scheme == "auto" and tiles.partition is not None:
        tested, used = np.flatnonzero(tiles.partition == "test"), "official"
    else:
        tested = take(kept, tiles.labels, groups, test, rng)
        used = "grouped" if groups is not None else "random" if scheme == "auto" else scheme
    rest = np.setdiff1d(kept, tested)
    val = take(rest, tiles.labels, groups, validation, rng) if validation else nothing
    rest = np.setdiff1d(rest, val)
    has_label = tiles.labels >= 0
    result = Split(
        *(part[has_label[part]] for part in (rest, val, tested)),
        rest[~has_label[rest]],
        groups is not None,
        used,
        discarded,
    )
    _require_parts(tiles, result, validation, batch_size)
    return result


def balance(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Discard random tiles of the larger classes until all are as small as the smallest.

    labels (N,), those below 0 are kept; returns positions kept and positions discarded, sorted.
    """
    classes = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    fewest = min(map(len, classes), default=0)
    larger = [rng.permutation(members)[fewest:] for members in classes]
    discarded = np.concatenate([np.empty(0, np.int64), *larger])
    return np.setdiff1d(np.arange(len(labels)), discarded), np.sort(discarded)


def take(
    index: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    fraction: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a fraction of the tiles `index`, sorted: of each class about its share, whole groups.

    index: int (n,); labels (N,), -1 for none; groups (N,), or None to draw tile by tile.
    """
    if not (labels[index] >= 0).any():
        return index[:0]
    if groups is not None:
        return index[_whole_groups(groups[index], labels[index], fraction, rng)]
    taken = []
    for label in np.unique(labels[index][labels[index] >= 0]):
        members = rng.permutation(index[labels[index] == label])
        taken.append(members[: round(fraction * len(members))])
    return np.sort(np.concatenate(taken))


def watched(tiles: Tiles, parts: Split, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiles a monitor may look up neighbours in and those it asks about, shuffled.

    Validation tiles ask; where there are none, a fifth of the training part does, by whole groups,
    and is left out of the first. Where the training part is one group, half of its tiles ask.
    """
    rng = np.random.default_rng(seed)
    if len(parts.val):
        return rng.permutation(parts.train), rng.permutation(parts.val)
    asked = take(parts.train, tiles.labels, tiles.groups, 0.2, rng)
    if len(asked) in (0, len(parts.train)):
        asked = take(parts.train, tiles.labels, None, 0.5, rng)
    return rng.permutation(np.setdiff1d(parts.train, asked)), rng.permutation(asked)


def _whole_groups(
    groups: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Of 200 random choices of whole groups, the one that comes nearest the fraction, each class.

    Returns booleans (N,). Counts have one column a class, unlabelled tiles being a class too.
    """
    names, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group, label), 1)
    best, chosen = np.inf, names[:0]
    for _ in range(200):
        order = rng.permutation(len(names))
        share = counts[order].cumsum(axis=0) / counts.sum(axis=0)  # after 1, 2, … groups
        distance = np.abs(share - fraction).max(axis=1)
        if distance.min() < best:
            best, chosen = distance.min(), order[: distance.argmin() + 1]
    return np.isin(group, chosen)


def _require_parts(tiles: Tiles, parts: Split, validation: float, batch_size: int) -> None:
    for part in ("train", "val", "test") if validation else ("train", "test"):
        here = np.unique(tiles.labels[getattr(parts, part)])
        missing = [c for i, c in enumerate(tiles.class_names) if i not in here]
        if missing:
            own = tiles.labels == tiles.class_names.index(missing[0])
            n, groups = int(own.sum()), len(np.unique(tiles.groups[own])) if parts.grouped else 0
            count = f"{n:,} tile{'s' * (n != 1)}"
            if groups:  # which no split may tear apart
                count += f" in {groups:,} group{'s' * (groups != 1)} (slides or cases)"
            raise DataError(
                f"{tiles.name}: no tile of class {missing[0]!r} in {part}; it has {count}: add"
                " some, or change the shares TEST and VALIDATION"
            )
    if parts.grouped:
        seen = np.concatenate([parts.pretraining, parts.val])
        shared = np.intersect1d(tiles.groups[seen], tiles.groups[parts.test])
        if len(shared):
            raise DataError(
                f"{tiles.name}: group {str(shared[0])!r} is in train and in test"
                f"{readers.and_more(len(shared))}; keep all tiles of a group in one partition"
            )
    if len(parts.train) < batch_size:
        raise DataError(
            f"{tiles.name}: {len(parts.train):,} training tiles are fewer than a batch "
            f"of {batch_size}; add tiles or choose a smaller batch"
        )


# --- what `crc-course data` does -----------------------------------------------------------------


def ebhi_folder() -> Path:
    """Where `prepare("ebhi")` puts the data set unless it is told otherwise."""
    return cache_folder() / "ebhi"


def prepare(name: str, out: str | Path | None = None, **plan: Any) -> Path:
    """Fetch what may be fetched, or say how to get it; returns the folder that was filled.

    "synthetic" is drawn, see `write_synthetic`; "ebhi" is downloaded; MHIST never is.
    """
    if name == "synthetic":
        return write_synthetic(Path(out or cache_folder() / "synthetic"), **plan)
    if name == "ebhi":
        return readers.download_ebhi(ebhi_folder() if out is None else Path(out)).parent
    if name == "mhist":
        raise DataError(f"mhist: cannot be fetched for you; {readers.MHIST_FORM}")
    raise DataError(
        f"data {name!r}: nothing to prepare, expected synthetic, ebhi or mhist; "
        "a folder of your own is passed as root (--data-root)"
    )


def check(tiles: Tiles, sheet: str | Path | None = None) -> list[str]:
    """Describe the tiles in lines of text, and draw a contact sheet (PNG) where `sheet` says."""
    height, width = tiles.images.shape[-2:]
    lines = [
        f"{tiles.name}: {len(tiles):,} tiles of {width}×{height} px, {tiles.source}",
        f"licence: {tiles.licence}",
        *tiles.notes,
    ]
    lines += [f"class {name}: {len(members):,}" for name, members in _members(tiles)]
    lines += [_check_groups(tiles)]
    if tiles.partition is not None:
        counts = Counter(tiles.partition.tolist())
        lines.append("partition: " + ", ".join(f"{k} {v:,}" for k, v in sorted(counts.items())))
    lines += _check_duplicates(tiles)
    if sheet is not None:
        _contact_sheet(tiles, Path(sheet))
        lines.append(f"contact sheet: {sheet}")
    return lines


def check_deep(tiles: Tiles, root: str | Path | None = None) -> str:
    """Hash the cache against what was written, and decode the source again to compare each tile.

    root: as given to `load_tiles`. Raises DataError for the first file that differs.
    """
    folder = tiles.images.folder
    written, now = read_json(folder / HASHES), _hashes(folder)
    for file in sorted(written.keys() | now.keys()):
        if written.get(file) != now.get(file):
            raise DataError(
                f"{folder / file}: not what was written into this cache; delete {folder}"
            )
    said = f"cache: {len(now)} files as they were written"
    if tiles.name == "synthetic":
        return said
    source, root, found = _listed(tiles.name, root)
    table, _ = source.read(root, found)
    masks = None if tiles.masks is None else _Compared(tiles.masks, root, table["mask"])
    readers.decode_all(root, table, _Compared(tiles.images, root, table["file"]), masks)
    return f"{said}; {len(table):,} tiles decoded again, all as in the cache"


class _Compared:
    """Takes the place of a store in `decode_all`: refuses a tile that differs from the kept one."""

    def __init__(self, store: TileStore, root: Path, files: pd.Series) -> None:
        self.store, self.root, self.files, self.shape = store, root, files.to_list(), store.shape

    def __setitem__(self, row: int, tile: np.ndarray) -> None:
        if not np.array_equal(self.store[row], tile):
            raise DataError(
                f"{self.root / self.files[row]}: changed since it was decoded, with the same size "
                f"and time; delete {self.store.folder}"
            )


def _members(tiles: Tiles) -> list[tuple[str, np.ndarray]]:
    """Name and tile indices of each class, and of the unlabelled where there are any."""
    names = [*enumerate(tiles.class_names), (-1, "(none in this task)")]
    members = [(name, np.flatnonzero(tiles.labels == label)) for label, name in names]
    return [pair for pair in members if len(pair[1])]


def _check_groups(tiles: Tiles) -> str:
    if tiles.groups is None:
        return "groups: not published; tiles of one slide may lie in both train and test"
    sizes = pd.Series(tiles.groups).value_counts()
    line = f"groups: {len(sizes):,}, of {sizes.min()} to {sizes.max()} tiles"
    if tiles.partition is not None:
        parts = pd.Series(tiles.partition).groupby(tiles.groups).nunique()
        line += f"; in two partitions: {(parts > 1).sum():,}"
    return line


def _check_duplicates(tiles: Tiles) -> list[str]:
    """Exact duplicates by SHA-256 of the pixels, near ones by perceptual hash."""
    first, pairs = {}, []
    for i, image in enumerate(tiles.images):
        j = first.setdefault(hashlib.sha256(image).digest(), i)
        pairs += [(j, i)] if j != i else []
    few = np.linspace(0, len(tiles) - 1, min(len(tiles), NEAR_LIMIT)).astype(int)
    near = few[_near_pairs(np.array([_dhash(tiles.images[i]) for i in few], np.uint64))]
    near = sorted(set(map(tuple, near.tolist())) - set(pairs))
    among = f" (among {len(few):,} of the tiles)" if len(few) < len(tiles) else ""
    return [
        _say_pairs(tiles, "exact duplicates", pairs),
        _say_pairs(tiles, f"near duplicates{among}", near),
    ]


def _say_pairs(tiles: Tiles, what: str, pairs: list[tuple[int, int]]) -> str:
    line = f"{what}: {len(pairs):,}"
    if pairs and tiles.groups is not None:
        line += f", {sum(tiles.groups[i] != tiles.groups[j] for i, j in pairs):,} across groups"
    return line + "".join(f"; {tiles.ids[i]} = {tiles.ids[j]}" for i, j in pairs[:3])


def _dhash(image: np.ndarray) -> int:
    """64 bits: is a cell brighter than its right neighbour, on a grid of 8 × 9 grey cells?"""
    grey = cv2.resize(image.mean(axis=0), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(grey[:, :-1] > grey[:, 1:]).tobytes(), "big")


def _near_pairs(hashes: np.ndarray, distance: int = 4) -> np.ndarray:
    """Each hash that differs in at most `distance` bits from an earlier one, as (earlier, it).

    `hashes`: uint64 (N,); returns int64 (P, 2), P < N, so that blank tiles don't make N² pairs.
    """
    found, order = [], np.arange(len(hashes))
    for start in range(0, len(hashes), 128):
        j = order[start : start + 128, None]
        close = (np.bitwise_count(hashes[j] ^ hashes) <= distance) & (order < j)
        found.append(np.column_stack([close.argmax(axis=1), j])[close.any(axis=1)])
    return np.concatenate(found)


def _contact_sheet(tiles: Tiles, path: Path, columns: int = 8, side: int = 112) -> None:
    """A row a class, its tiles taken evenly; the file appears whole or not at all."""
    rows = _members(tiles)[:40]  # of a folder with thousands of classes, the first
    sheet = Image.new("RGB", (columns * (side + 4) + 4, len(rows) * (side + 24) + 4), "white")
    for row, (name, members) in enumerate(rows):
        top = row * (side + 24)
        ImageDraw.Draw(sheet).text((6, top + 6), f"{name}: {len(members):,} tiles", "black")
        picked = members[np.linspace(0, len(members) - 1, min(columns, len(members))).astype(int)]
        for column, i in enumerate(picked):
            tile = Image.fromarray(tiles.images[i].transpose(1, 2, 0)).resize((side, side))
            sheet.paste(tile, (4 + column * (side + 4), top + 22))
    path = Path(os.path.abspath(path))
    if path.is_dir():
        raise DataError(f"{path}: a folder; give the contact sheet a name (--out {path / 'a.png'})")
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(unfinished, "PNG")
        unfinished.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


# --- what a run knows of its data ----------------------------------------------------------------


def remember(run: Path, tiles: Tiles, parts: Split, **settings: Any) -> None:
    """Write what lesson 01 decided: `split.csv` (a row a tile) and `data.json` for `recall`.

    settings: root, classes, n, scheme, test, validation, seed, as given to `load_tiles`, `split`.
    """
    if settings["root"] is not None:
        settings["root"] = str(Path(settings["root"]).resolve())
    table = parts.to_frame(tiles)
    work_on(_digest(tiles, table), run)
    save_table(run / "split.csv", table.to_dict("records"))
    save_json(run / "data.json", {"name": tiles.name, **settings, "digest": tiles.digest})
    say_misfits(run)


def _digest(tiles: Tiles, table: pd.DataFrame) -> str:
    """A hash of pixels, labels and parts: what weights are trained on."""
    return hashlib.sha256(f"{tiles.digest}\n{table.to_csv()}".encode()).hexdigest()


def recall(run: str | Path, start_from: str) -> tuple[Tiles, Split]:
    """Load the tiles and the split that lesson 01 decided on, in this run or as shipped.

    What the run holds of other data is said.
    Raises RunError where lesson 01 has left nothing, or the data is no longer what it saw.
    """
    file = start_file("data.json", run, start_from)
    if not file.is_file():
        raise RunError(f"{file} is missing: run lesson 01 with RUN = {str(run)!r} first,"
                       " or set START_FROM to 'shipped'")  # fmt: skip
    settings = read_json(file)
    try:
        tiles = load_tiles(settings["name"], settings["root"], classes=settings["classes"],
                           n=settings["n"], seed=settings["seed"])  # fmt: skip
        parts = split(tiles, settings["scheme"], test=settings["test"],
                      validation=settings["validation"], seed=settings["seed"])  # fmt: skip
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error!r}): run lesson 01 again") from None
    table = parts.to_frame(tiles)
    same = settings.get("digest") in (None, tiles.digest)  # None: shipped, drawn on another machine
    recorded = file.with_name("split.csv")
    if recorded.is_file():
        try:
            before = pd.read_csv(recorded, keep_default_na=False, dtype=str)
        except ValueError as error:
            raise RunError(f"{recorded} is damaged ({error}): run lesson 01 again") from None
        now = as_text(table.astype(str))
        same = same and before.reindex(columns=now.columns).equals(now)
    if not same:
        raise RunError(f"{recorded} does not fit the data any more: run lesson 01 again")
    work_on(_digest(tiles, table), ROOT / run)
    if start_from == "run":
        say_misfits(ROOT / run)
    return tiles, parts
