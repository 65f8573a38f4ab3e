"""Other networks by name, from scratch."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from common import Study, main

from crc_helpers.claims import BACKBONES, Trial


def plan(seeds: int) -> Iterable[dict]:
    """Other networks by name, from scratch."""
    for seed, name in itertools.product(range(seeds), BACKBONES):
        yield {"seed": seed, "network": name}


def row(t: Trial, network: str) -> dict:
    """From scratch, on the test part, at 96 px, of which each leaves Grad-CAM some cells."""
    r = replace(t.recipe, backbone=network, size=max(t.recipe.size, 96))
    start = replace(t, recipe=r)
    found = start.score(start.train(start.random_encoder))
    return found | {"size": r.size, "backbone": network}


STUDY = Study("backbones", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
