"""Label efficiency: the same steps with ever fewer labels."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from common import Study, main

from crc_helpers import claims
from crc_helpers.claims import FRACTIONS, LABEL_ARMS, LONGER, Trial

CONTROLS = ("from scratch, longer", "pre-trained longer, fine-tuned longer")


def plan(seeds: int) -> Iterable[dict]:
    """Label efficiency: the same steps with ever fewer labels."""
    for seed, fraction, arm in itertools.product(range(seeds), FRACTIONS, LABEL_ARMS):
        yield {"seed": seed, "fraction": fraction, "arm": arm}
    # Is it the pre-training, or only more training? Costly controls, so at two shares.
    for fraction, arm, seed in itertools.product((0.10, 1.0), CONTROLS, range(seeds)):
        yield {"seed": seed, "fraction": fraction, "arm": arm}


def row(t: Trial, fraction: float, arm: str) -> dict:
    """One arm with a share of the labels, on the test part."""
    train = t.parts.train
    labelled = train[claims.labelled_subset(t.labels(train), fraction, t.seed)]
    r = t.recipe
    encoder = t.pretrained if arm.startswith(("pre", "frozen")) else t.random_encoder
    if arm.startswith("pre-trained longer"):
        encoder = t.longer
    if arm in CONTROLS:
        r = replace(r, steps=LONGER * r.steps)
    if arm.endswith("probe"):
        fit = t.probe(encoder(), labelled)
    else:
        fit = t.train(encoder, labelled, recipe=r)
    return {"labels": len(labelled), "steps": r.steps} | t.score(fit)


STUDY = Study("labels", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
