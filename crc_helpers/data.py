"""Tiles, their split into train, val and test, and the record of both in a run (lesson 01)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crc_helpers.runs import (
    SHIPPED,
    RunError,
    as_text,
    file_hash,
    read_json,
    save_json,
    save_table,
    start_file,
)
from crc_helpers.sources.base import METADATA, About, DataError, and_more, choose_classes, plain
from crc_helpers.sources.drawn import NO_CONFOUNDERS, Confounders, draw_tiles
from crc_helpers.sources.files import SOURCES, decode_source
from crc_helpers.sources.store import HASHES, TileStore

SCHEMES = ("auto", "paper", "random")


@dataclass(frozen=True, eq=False)
class Tiles:
    """N image tiles of H × W pixels, with their labels and what else a data set gives."""

    images: TileStore  # uint8 (N, 3, H, W), on disk; indexing returns an array
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
    confounders: Confounders = NO_CONFOUNDERS,
    cache: str | Path | None = None,
) -> Tiles:
    """Load `synthetic`, `mhist`, `ebhi` or `folder`, decoding or drawing only the first time.

    root: the data set's folder. classes: the task, two or more names in the order of their
    labels, or "all"; tiles of other classes stay, with label -1, for label-free pre-training.
    size: side in pixels. Synthetic only: n, seed, how many tiles, which ones; confounders.
    Synthetic tiles are of HP and SSA unless `classes` names others of `tissue.parameters.KINDS`:
    they are then drawn too, and there are no votes, because readers vote on HP and SSA only.
    Raises DataError for data that cannot be used.
    """
    if name not in ("synthetic", *SOURCES) or (name == "synthetic" and root is not None):
        raise DataError(
            f"data {name!r}, folder {root}: expected one of {', '.join(['synthetic', *SOURCES])};"
            " synthetic tiles are drawn, and come from no folder"
        )
    if name == "synthetic":
        folder, about = draw_tiles(n, seed, confounders, classes, size, cache)
    else:
        if classes and (names := SOURCES[name].about.class_names):
            choose_classes(classes, names)  # before minutes of decoding
        folder, about = decode_source(name, root, size, cache)
    return _open(folder, name, about, classes, size)


def _open(
    folder: Path, name: str, about: About, classes: Sequence[str] | str | None, size: int
) -> Tiles:
    try:
        images = TileStore(folder, "images")
        masks = TileStore(folder, "masks") if list(folder.glob("masks-*.npy")) else None
        table = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False)
        table = table.set_axis(images.rows)  # fails unless there is a row a tile
        notes = (folder / "notes.txt").read_text(encoding="utf-8").splitlines()
        digest = file_hash(folder / HASHES)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: a damaged cache ({error}); delete this folder") from error
    names = about.class_names or tuple(sorted(table["class"].unique()))
    chosen = choose_classes(classes or about.default_classes or names, names)
    sizes = table["class"].value_counts()
    absent = [c for c in chosen if c not in sizes]
    if absent or len(set(chosen)) < max(2, len(chosen)):
        raise DataError(
            f"{name}: classes {list(chosen)}, one class only, or no tile of class"
            f" {(absent or chosen)[0]!r}; add tiles of it, or choose two or more others"
        )
    labels = table["class"].map({c: label for label, c in enumerate(chosen)})
    metadata = table[[c for c in METADATA if c in table]].copy()
    if METADATA[1] in metadata:  # an empty size is not known
        metadata[METADATA[1]] = pd.to_numeric(metadata[METADATA[1]], errors="coerce")
    columns = {c: table[c].map(plain).to_numpy(str) for c in ("group", "partition") if c in table}
    return Tiles(
        images=images,
        labels=labels.fillna(-1).to_numpy(np.int64),
        class_names=chosen,
        ids=table["id"].to_numpy().astype(str),
        groups=columns.get("group"),
        partition=columns.get("partition"),
        votes=table["votes"].to_numpy(np.int64) if "votes" in table else None,
        masks=masks,
        mask_name=None if masks is None else about.mask_name,
        mpp=about.mpp and about.mpp * 224 / size,
        name=name,
        source=about.origin,
        licence=about.licence,
        notes=tuple(notes),
        metadata=metadata if len(metadata.columns) else None,
        digest=digest,
    )


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of a data set: int64 indices into its tiles, sorted."""

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
) -> Split:
    """Divide the labelled tiles into train, val and test, the same for the same seed.

    "auto": the official partition where there is one, else whole groups (over all classes at once)
    where they are given, else stratified random. "paper": the majority class cut to the size of
    the other, then 90:10 at random (`test` is not used). "random": stratified random, groups
    ignored. `test` is a fraction of the tiles, `validation` a fraction of what test leaves; 0 gives
    an empty val. Raises DataError where a part lacks a class.
    """
    if scheme not in SCHEMES or not (0 < test < 1 and 0 <= validation < 1):
        raise ValueError(
            f"scheme {scheme!r}, test {test}, validation {validation}: expected one of"
            f" {', '.join(SCHEMES)}, and fractions below 1"
        )
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
        tested = take(kept, tiles.labels, groups, test, rng, leave=2 if validation else 1)
        used = "grouped" if groups is not None else "random" if scheme == "auto" else scheme
    rest = np.setdiff1d(kept, tested)
    val = take(rest, tiles.labels, groups, validation, rng, leave=1) if validation else nothing
    rest = np.setdiff1d(rest, val)
    has_label = tiles.labels >= 0
    result = Split(
        *(part[has_label[part]] for part in (rest, val, tested)),
        rest[~has_label[rest]],
        groups is not None,
        used,
        discarded,
    )
    _require_parts(tiles, result, validation)
    return result


def balance(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Discard random tiles of the larger classes until all are as small as the smallest.

    labels: (N,), those below 0 are kept. Returns indices kept and indices discarded, sorted.
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
    leave: int = 0,
) -> np.ndarray:
    """Return a fraction of the tiles `index`, sorted: of each class about its share, whole groups.

    index: int (n,); labels (N,), -1 for none; groups (N,), or None to draw tile by tile. With
    `leave`, each class is in what is taken, and that many tiles, or groups, of it are left.
    """
    if not (labels[index] >= 0).any():
        return index[:0]
    if groups is not None:
        return index[_whole_groups(groups[index], labels[index], fraction, rng, leave)]
    taken = []
    for label in np.unique(labels[index][labels[index] >= 0]):
        members = rng.permutation(index[labels[index] == label])
        count = round(fraction * len(members))
        if leave:
            count = max(min(max(count, 1), len(members) - leave), 0)
        taken.append(members[:count])
    return np.sort(np.concatenate(taken))


def _whole_groups(
    groups: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator, leave: int
) -> np.ndarray:
    """Return the best of 200 random choices of whole groups, booleans (N,).

    The best comes nearest the fraction of each class, unlabelled tiles being a class too. Choices
    without a group of some class, or that leave fewer than `leave` of it, come after all others.
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
        if leave:
            taken = (counts[order][:, classes >= 0] > 0).cumsum(axis=0)  # groups of each class
            distance += 2 * ((taken == 0) | (taken[-1] - taken < leave)).any(axis=1)
        if distance.min() < best:
            best, chosen = distance.min(), order[: distance.argmin() + 1]
    return np.isin(group, chosen)


def _require_parts(tiles: Tiles, parts: Split, validation: float) -> None:
    for part in ("train", "val", "test") if validation else ("train", "test"):
        labels = tiles.labels[getattr(parts, part)]
        missing = [c for i, c in enumerate(tiles.class_names) if i not in labels]
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
        others = np.concatenate([parts.pretraining, parts.val])
        shared = np.intersect1d(tiles.groups[others], tiles.groups[parts.test])
        if len(shared):
            raise DataError(
                f"{tiles.name}: group {str(shared[0])!r} is in train and in test"
                f"{and_more(len(shared))}; keep all tiles of a group in one partition"
            )


def remember(run: Path, tiles: Tiles, parts: Split, **settings: Any) -> None:
    """Write the data and split of lesson 01: `split.csv` (a row a tile), `data.json` for `recall`.

    settings: root, classes, n, scheme, test, validation, seed, as given to `load_tiles`, `split`.
    """
    if settings["root"] is not None:
        settings["root"] = str(Path(settings["root"]).expanduser().resolve())
    save_table(run / "split.csv", parts.to_frame(tiles).to_dict("records"))
    save_json(run / "data.json", {"name": tiles.name, **settings, "digest": tiles.digest})


def recall(run: str | Path, start_from: str) -> tuple[Tiles, Split]:
    """Load the tiles and the split of lesson 01, of this run or as shipped.

    Raises RunError where lesson 01 has not run, or the data has changed since.
    """
    file = start_file("data.json", run, start_from)
    if not file.is_file():
        raise RunError(
            f"{file} is missing: run lesson 01 with RUN = {str(run)!r} first, or set START_FROM to"
            " 'shipped'"
        )
    s = read_json(file)
    tiles = load_tiles(s["name"], s["root"], classes=s["classes"], n=s["n"], seed=s["seed"])
    shares = {"test": s["test"], "validation": s["validation"]}
    parts = split(tiles, s["scheme"], seed=s["seed"], **shares)
    same = s.get("digest") in (None, tiles.digest)  # None: shipped, drawn on another machine
    table = file.with_name("split.csv")
    if table.is_file():
        before = pd.read_csv(table, keep_default_na=False, dtype=str)
        now = as_text(parts.to_frame(tiles).astype(str))
        same = same and before.reindex(columns=now.columns).equals(now)
    if not same:
        raise RunError(f"{table} does not fit the data any more: run lesson 01 again")
    return tiles, parts


def is_shipped(run: str | Path, start_from: str) -> bool:
    """Return whether a run has the course's own tiles and split: the shipped ones, or as drawn."""
    own, shipped = (
        read_json(file) | {"digest": None}
        for file in (start_file("data.json", run, start_from), SHIPPED / "data.json")
    )
    return own == shipped
