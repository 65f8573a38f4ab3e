"""Other ways to learn without labels, on the same loop and with the same MLP head."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from common import Study, main

from crc_helpers.claims import Trial
from crc_helpers.pretraining import effective_rank

OBJECTIVES = ("random encoder", "NT-Xent", "MoCo", "SimSiam", "Barlow Twins", "SupCon")


def plan(seeds: int) -> Iterable[dict]:
    """Other ways to learn without labels, on the same loop and with the same MLP head."""
    for seed, objective in itertools.product(range(seeds), OBJECTIVES):
        yield {"seed": seed, "objective": objective}


def row(t: Trial, objective: str) -> dict:
    """Probe for all classes, on the test part, and the effective rank of the features."""
    t = t.many
    r = replace(t.recipe, head="mlp", objective=objective)
    encoder = t.random_encoder() if objective == "random encoder" else t.pretrained(r)
    rank = effective_rank(t.features(encoder, t.parts.train))
    return {"effective_rank": rank} | t.score(t.probe(encoder))


STUDY = Study("objectives", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
