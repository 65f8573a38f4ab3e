"""One encoder, trained without labels, and several questions to it: which does it answer?"""

import numpy as np
from common import BRIEF, Study, Trainer, features_of, main, rows_of

from crc_helpers.claims import FIRST_SEED, labelled_subset, scores
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.tissue.cohort import make_cohort
from crc_helpers.tissue.parameters import KINDS

ENCODERS = ("pre-trained", "random", "pre-trained longer")
QUESTIONS = ("tube or ring?", "which scanner?", "adenoma or not?", "HP or SSA?")


def plan(seeds: int) -> list[dict]:
    """Plan all questions to all encoders; to the one that is eight times as costly three times."""
    rows = rows_of(seeds, encoder=ENCODERS, question=QUESTIONS, fraction=(0.1, 1.0))
    order = ("seed", "question", "fraction", "encoder")  # of the table's columns
    return [
        {k: row[k] for k in order}
        for row in rows
        if row["encoder"] != "pre-trained longer" or row["seed"] < 3
    ]


def row(t: Trainer, question: str, fraction: float, encoder: str) -> dict:
    """A probe's AUC for one question, on four kinds of drawn tissue, with a share of the labels."""
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
    included = serrated if question == "HP or SSA?" else np.ones(len(kind), bool)
    train, val, test = (p[included[p]] for p in (t.parts.train, t.parts.val, t.parts.test))
    train = train[labelled_subset(y[train], fraction, t.seed)]
    features = features_of(t, encoder)
    probe = linear_probe(features[train], y[train], features[val], y[val])
    return {"labels": len(train)} | scores(y[test], probe.predict_proba(features[test].numpy()))


STUDY = Study("questions", plan, row, BRIEF, all_classes=True, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
