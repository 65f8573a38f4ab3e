"""Trained on some scanners, tested on the same slides from these and from others, both ways."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from common import Study, main

from crc_helpers import claims
from crc_helpers.augmentation import VIEWS
from crc_helpers.claims import FIRST_SEED, Trial
from crc_helpers.data import load_tiles
from crc_helpers.evaluation import macro_auc

CURES = ("none", "jitter of stain and colour", "Reinhard", "Macenko")
WAYS = {"scanners A and B": ("as they are", "Scanner C"), "scanner C": ("Scanner C", "as they are")}


def plan(seeds: int) -> Iterable[dict]:
    """Trained on some scanners, tested on the same slides from these and from others, both ways."""
    for trained_on, seed, cure in itertools.product(WAYS, range(seeds), CURES):
        yield {"seed": seed, "trained_on": trained_on, "cure": cure}


def row(t: Trial, trained_on: str, cure: str) -> dict:
    """AUC at home and away; jitter acts in training, normalisation on all tiles."""
    plain = replace(VIEWS["gentle"], stain=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    slides = {
        "as they are": t.tiles,
        "Scanner C": load_tiles(n=t.recipe.n_tiles, seed=FIRST_SEED + t.seed, scanner="Scanner C"),
    }
    tiles = {k: slides[v] for k, v in zip(("home", "away"), WAYS[trained_on], strict=True)}
    if cure in ("Reinhard", "Macenko"):
        reference = tiles["home"].images[t.parts.train[0]]
        tiles = {
            place: replace(there, images=claims.normalise_stain(there.images[:], reference, cure))
            for place, there in tiles.items()
        }
    here = replace(t, given=tiles["home"], divided=t.parts)
    classify = here.train(
        t.random_encoder, views=VIEWS["gentle"] if cure.startswith("jitter") else plain
    )
    test = t.parts.test
    return {place: macro_auc(t.labels(test), classify(test, tiles[place])) for place in tiles}


STUDY = Study("site", plan, row, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
