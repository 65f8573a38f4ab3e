"""Each cohort is split 90:10 again and again, in three ways."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from common import Study, main

from crc_helpers.claims import Trial, scores
from crc_helpers.data import split as divide
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.runs import RunError

SPLITS = 50
SCHEMES = {"as in the paper": "paper", "by tile": "random", "by slide": "auto"}


def plan(seeds: int) -> Iterable[dict]:
    """Each cohort is split 90:10 again and again, in three ways."""
    for seed, scheme, number in itertools.product(range(seeds), SCHEMES, range(SPLITS)):
        yield {"seed": seed, "scheme": scheme, "split": number}


def row(t: Trial, scheme: str, split: int) -> dict:
    """Scores of a probe on one pre-trained encoder: only the split of the labels changes.

    "as in the paper" draws tiles after the surplus of the common class is thrown away.
    """
    if t.tiles.groups is None:
        raise RunError(f"splits: {t.tiles.name} does not say which tiles share a slide, and the"
                       " study compares splits by tile with splits by slide")  # fmt: skip
    tiles = replace(t.tiles, partition=None)
    parts = divide(tiles, SCHEMES[scheme], test=0.1, validation=0.1, seed=split)
    probe = linear_probe(t.known[parts.train], t.labels(parts.train), t.known[parts.val],
                         t.labels(parts.val))  # fmt: skip
    found = probe.predict_proba(t.known[parts.test].numpy())
    return {"tested": len(parts.test)} | scores(t.labels(parts.test), found)


STUDY = Study("splits", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
