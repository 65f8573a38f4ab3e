"""Other networks by name, from scratch."""

from dataclasses import replace
from functools import partial

from common import Study, Trainer, main, rows_of

from crc_helpers.claims import BACKBONES

plan = partial(rows_of, network=BACKBONES)


def row(t: Trainer, network: str) -> dict:
    """From scratch, on the test part, at 96 px, of which each leaves Grad-CAM some cells."""
    start = replace(t, recipe=replace(t.recipe, backbone=network, size=max(t.recipe.size, 96)))
    result = start.score(start.train(start.random_encoder))
    return result | {"size": start.recipe.size, "backbone": network}


STUDY = Study("backbones", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
