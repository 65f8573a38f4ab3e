"""Trained on some scanners, tested on the same slides from these and from others, both ways."""

from dataclasses import replace

import numpy as np
from common import Study, Trainer, main
from torchstain.numpy import normalizers

from crc_helpers.augmentation import VIEWS
from crc_helpers.claims import FIRST_SEED
from crc_helpers.data import Confounders, load_tiles
from crc_helpers.evaluation import macro_auc

REMEDIES = ("none", "jitter of stain and colour", "Reinhard", "Macenko")
WAYS = {"scanners A and B": ("as they are", "Scanner C"), "scanner C": ("Scanner C", "as they are")}


def plan(seeds: int) -> list[dict]:
    ways = [(way, seed) for way in WAYS for seed in range(seeds)]
    return [{"seed": s, "trained_on": way, "cure": c} for way, s in ways for c in REMEDIES]


def row(t: Trainer, trained_on: str, cure: str) -> dict:
    """AUC at home and away; jitter acts in training, normalisation on all tiles."""
    plain = replace(VIEWS["gentle"], stain=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    away = Confounders(scanner="Scanner C")
    scanner_c = load_tiles(n=t.recipe.n_tiles, seed=FIRST_SEED + t.seed, confounders=away)
    slides = {"as they are": t.tiles, "Scanner C": scanner_c}
    tiles = {k: slides[v] for k, v in zip(("home", "away"), WAYS[trained_on], strict=True)}
    if cure in ("Reinhard", "Macenko"):
        reference = tiles["home"].images[t.parts.train[0]]
        for place, there in tiles.items():
            done = normalise_stain(there.images[:], reference, cure)
            tiles[place] = replace(there, images=done)
    home = replace(t, tiles=tiles["home"])
    views = VIEWS["gentle"] if cure.startswith("jitter") else plain
    classify = home.train(t.random_encoder, views=views)
    test = t.parts.test
    return {place: macro_auc(t.labels(test), classify(test, tiles[place])) for place in tiles}


def normalise_stain(images: np.ndarray, reference: np.ndarray, method: str) -> np.ndarray:
    """Return tiles with the stain of a reference, by torchstain.

    images: uint8 (N, 3, H, W); reference: uint8 (3, H, W). method: "Macenko" or "Reinhard". A tile
    of nearly nothing but glass, or of one colour, is left as it is.
    Sources: Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250; Reinhard et al. 2001,
    doi:10.1109/38.946629.
    """
    normalizer = getattr(normalizers, f"Numpy{method}Normalizer")()
    normalizer.fit(reference.transpose(1, 2, 0))
    done = np.array(images)
    for i, image in enumerate(images):
        stained = (image.max(axis=0) < 205).mean()  # optical density above 0.15 in every channel
        if stained > 0.01 and image.std(axis=(1, 2)).min() > 0:  # else there is none to estimate
            normalised = normalizer.normalize(image.transpose(1, 2, 0))
            normalised = (
                normalised[0] if method == "Macenko" else normalised
            )  # it gives the stains apart, too
            done[i] = np.clip(normalised, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return done


STUDY = Study("site", plan, row, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
