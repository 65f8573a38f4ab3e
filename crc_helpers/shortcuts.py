"""Networks trained again, on shuffled labels, or on a dot of ink that gives the answer (lesson 09).

The ink is a shortcut whose place is known: a map of a network that took it should be hot there.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from crc_helpers.augmentation import VIEWS, shrink
from crc_helpers.claims import FIRST_SEED, Experiment, trained_once
from crc_helpers.data import Confounders, Tiles, load_tiles
from crc_helpers.explanations import all_maps, at_size, blind_maps, cascade
from crc_helpers.fine_tuning import fine_tune, predict
from crc_helpers.grad_cam import grad_cam, hits, mass_inside
from crc_helpers.models import Classifier, Encoder
from crc_helpers.pretraining import Training
from crc_helpers.runs import file_hash
from crc_helpers.sources.store import content_hash

RETRAINED = {"trained again": 1, **{f"trained again {k}": k for k in (2, 3, 4)}}  # arm: seed


def tile_batch(tiles: Tiles, index: np.ndarray, size: int) -> Tensor:
    """Return tiles at `index` as the network takes them, float (N, 3, size, size) in [0, 1]."""
    parts = [index[i : i + 128] for i in range(0, len(index), 128)]
    return torch.cat([shrink(torch.from_numpy(tiles.images[p].copy()), size) for p in parts])


def train_network(t: Experiment, arm: str) -> Classifier:
    """Return the network of an arm, from the cache if it was trained before.

    arm: "trained", one of RETRAINED, which differ from it in nothing but the seed of weights and
    batches, "shuffled labels", "ink" or "untrained".
    """
    r, seed = t.recipe, t.seed + 1000 * RETRAINED.get(arm, 0)
    torch.manual_seed(seed)
    network = Classifier(Encoder(r.backbone), len(t.tiles.class_names)).to(t.fabric.device)
    if arm == "untrained":
        return network.eval()
    train, val, labels = t.parts.train, t.parts.val, t.tiles.labels
    if arm == "ink":
        train, val = marked_part(t, train), marked_part(t, val)
    elif arm == "shuffled labels":  # learnt by heart: there is nothing for validation to choose
        labels, labelled, val = labels.copy(), labels >= 0, val[:0]  # -1: no class of this task
        labels[labelled] = np.random.default_rng(seed).permutation(labels[labelled])
    images = [with_ink(t, p) if arm == "ink" else t.tiles.images[p] for p in (train, val)]
    epochs = max(1, round(r.steps / max(1, len(train) // r.batch)))
    training = Training(r.size, epochs, r.batch, r.rates[-1], "adamw-one-cycle", seed)

    def learn() -> None:
        parts = [(x, labels[part]) for x, part in zip(images, (train, val), strict=True)]
        fine_tune(network, *parts, VIEWS["gentle"], t.fabric, training)

    facts = {"tiles": [content_hash(x) for x in images], "labels": labels[train].tolist()}
    facts |= {"arm": arm, "backbone": r.backbone, "training": vars(training)}
    return trained_once(network, learn, **facts, code=file_hash(Path(__file__))).eval()


@lru_cache(maxsize=1)
def _drawn_with_ink(t: Experiment) -> Tiles:
    """The first of an experiment's drawn tiles, with a dot of ink on every one of class 1."""
    n, inked = min(240, t.recipe.n_tiles), Confounders(shortcut="ink", strength=1.0)
    return load_tiles("synthetic", n=n, seed=FIRST_SEED + t.seed, confounders=inked)


def marked_part(t: Experiment, part: np.ndarray) -> np.ndarray:
    """Return those of an experiment's tiles that have a twin with ink; of real tiles all."""
    return part[part < len(_drawn_with_ink(t))] if t.tiles.name == "synthetic" else part


def with_ink(t: Experiment, index: np.ndarray) -> np.ndarray:
    """Return tiles, uint8 (N, 3, H, W), with a dot of ink in a corner of every one of class 1."""
    if t.tiles.name == "synthetic":
        return _drawn_with_ink(t).images[index]
    return paint_dots(t.tiles.images[index], t.labels(index) == 1)


def paint_dots(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return uint8 tiles (N, 3, H, W), those of `which`, bool (N,), with a dot as drawn tiles have.

    It is round, blue, 14 % of a side wide, and lies in the upper left corner.
    """
    side = (np.arange(images.shape[-1]) + 0.5) / images.shape[-1] - 0.13
    dot = np.hypot(side[:, None], side[None]) < 0.072
    light = np.exp(-np.array([1.4, 0.6, 0.9]))[:, None, None]  # what the ink lets through
    inked = np.where(dot, images * light, images).astype(np.uint8)
    return np.where(which[:, None, None, None], inked, images)


def turned(images: np.ndarray) -> np.ndarray:
    """Return images (N, ..., H, W), the first as it is, each by a quarter turn more than the last.

    Ink then lies in any corner, and a map that is always hot in one has no advantage.
    """
    return np.stack([np.rot90(image, k, (-2, -1)) for k, image in enumerate(images)])


def ink_mask(marked: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return where a dot of ink was put, uint8 (N, H, W): where a tile differs from its twin.

    marked, clean: uint8 (N, 3, H, W), the same tissue with ink and without.
    """
    return (np.abs(marked.astype(int) - clean).max(axis=1) > 25).astype(np.uint8)


def four_corners(mask: np.ndarray) -> np.ndarray:
    """Return where ink could have been, uint8 (H, W): in all corners, where half the dots reach.

    mask: (N, H, W) of 0 and 1, with a dot in one corner or none.
    """
    share = mask[mask.any(axis=(1, 2))].mean(axis=0)
    return (sum(np.rot90(share, k) for k in range(4)) > 0.5).astype(np.uint8)


def cells_of(region: np.ndarray, cells: int) -> np.ndarray:
    """Return which cells of a coarse grid hold a region, bool (N, cells, cells).

    region: (N, H, W) of 0 and 1. They are those that are at least half as full as the fullest;
    none for an empty region.
    """
    share = at_size(torch.from_numpy(region.astype(np.float32)), cells)
    return (share > 0) & (share >= share.max(axis=(1, 2), keepdims=True) / 2)


def ink_scores(
    maps: dict[str, Tensor], place: np.ndarray, cells: int
) -> dict[tuple[str, str], np.ndarray]:
    """Return each map's scores (N,) with the ink, by score and name.

    hit: is the hottest cell of a grid, on which all maps are compared, one that holds ink? mass:
    the share of the heat in the ink itself. place: (N, H, W) of 0 and 1.
    """
    holds, scores = cells_of(place, cells), {}
    for name, heat in maps.items():
        scores["hit", name] = hits(at_size(heat, cells), holds)
        scores["mass", name] = mass_inside(at_size(heat, place.shape[-1]), place)
    return scores


def ink_table(t: Experiment, network: Classifier, test: np.ndarray) -> pd.DataFrame:
    """Return what a network that saw ink does with each test tile, a row a tile.

    label; dotted: the tile has ink; said, said_without: the class predicted with the ink and
    without; p: P(class 1) with it; decided: the tile has ink, and without it the prediction
    changes; free: no ink, and predicted as class 0.
    hit NAME, mass NAME: scores of a map (see `ink_scores`) with the ink, or on tiles without any
    with the four corners where it could have been; chance hit, chance mass: of a map that is hot
    anywhere. other hit NAME, other mass NAME: the same for the map of class 1, on free tiles.
    """
    marked, clean = turned(with_ink(t, test)), turned(t.tiles.images[test])
    place = ink_mask(marked, clean)
    with_it, without = (predict(network, x, t.recipe.size, t.fabric) for x in (marked, clean))
    said, dotted = with_it.argmax(axis=1), place.any(axis=(1, 2))
    table = pd.DataFrame({"label": t.labels(test), "dotted": dotted, "said": said})
    table["said_without"], table["p"] = without.argmax(axis=1), with_it[:, 1]
    table["decided"] = dotted & (table["said"] != table["said_without"])
    table["free"] = free = ~dotted & (said == 0)
    place[~dotted] = four_corners(place)
    place = place[:, ::2, ::2]
    images = shrink(torch.from_numpy(marked), t.recipe.size).to(t.fabric.device)
    maps = all_maps(network, images, torch.from_numpy(said), windows=8)
    cells, (*_, (_, untrained)) = maps["Grad-CAM"].shape[-1], cascade(network, t.seed)
    maps["untrained network"] = grad_cam(untrained, images, torch.from_numpy(said)).maps
    maps["another tile's map"] = maps["Grad-CAM"][
        np.random.default_rng(t.seed).permutation(len(test))
    ]
    scores = ink_scores(maps | blind_maps(images, cells), place, cells)
    table["chance hit"] = cells_of(place, cells).mean(axis=(1, 2))
    table["chance mass"] = place.mean(axis=(1, 2))
    if free.any():
        other = all_maps(network, images[free], torch.ones(free.sum(), dtype=int), windows=8)
        for (score, name), values in ink_scores(other, place[free], cells).items():
            scores[f"other {score}", name] = np.full(len(test), np.nan)
            scores[f"other {score}", name][free] = values
    columns = {f"{score} {name}": values for (score, name), values in scores.items()}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)
