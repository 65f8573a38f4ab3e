"""One encoder, trained without labels, and several questions to it: which does it answer?"""

import itertools
from collections.abc import Iterable

import numpy as np
from common import Study, main

from crc_helpers import claims
from crc_helpers.claims import FIRST_SEED, Trial, scores
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.tissue.cohort import make_cohort
from crc_helpers.tissue.parameters import KINDS

QUESTIONS = ("tube or ring?", "which scanner?", "adenoma or not?", "HP or SSA?")


def plan(seeds: int) -> Iterable[dict]:
    """One encoder, trained without labels, and several questions to it: which does it answer?"""
    encoders = ("pre-trained", "random", "pre-trained longer")
    for seed, encoder, question, fraction in itertools.product(
        range(seeds), encoders, QUESTIONS, (0.1, 1.0)
    ):
        if encoder == "pre-trained longer" and seed >= 3:  # eight times as costly
            continue
        yield {"seed": seed, "question": question, "fraction": fraction, "encoder": encoder}


def row(t: Trial, question: str, fraction: float, encoder: str) -> dict:
    """A probe's AUC for one question, on four kinds of drawn tissue, with a share of the labels."""
    t = t.many
    cohort = make_cohort(t.recipe.n_tiles, FIRST_SEED + t.seed, kinds=KINDS)
    kind = t.tiles.labels
    answers = {
        "tube or ring?": np.array([p.cut_angle > 45 for p in cohort.parameters]),
        "which scanner?": (t.tiles.metadata["Scanner"] == "Scanner B").to_numpy(),
        "adenoma or not?": kind == KINDS.index("Tubular adenoma"),
        "HP or SSA?": kind == KINDS.index("SSA"),
    }
    y = answers[question].astype(int)
    serrated = np.isin(kind, [KINDS.index("HP"), KINDS.index("SSA")])
    asked = serrated if question == "HP or SSA?" else np.ones(len(kind), bool)
    train, val, test = (p[asked[p]] for p in (t.parts.train, t.parts.val, t.parts.test))
    train = train[claims.labelled_subset(y[train], fraction, t.seed)]
    which = {
        "pre-trained": "known",
        "pre-trained longer": "known_longer",
        "random": "known_untrained",
    }
    known = getattr(t, which[encoder])
    probe = linear_probe(known[train], y[train], known[val], y[val])
    return {"labels": len(train)} | scores(y[test], probe.predict_proba(known[test].numpy()))


STUDY = Study("questions", plan, row, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
