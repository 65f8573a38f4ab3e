"""One encoder, trained without labels, and several questions to it: which does it answer?"""

from functools import partial

import numpy as np
from common import Study, Trainer, features_after, main, rows_of

from crc_helpers.claims import FIRST_SEED, labelled_subset, scores
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.tissue.cohort import make_cohort
from crc_helpers.tissue.parameters import KINDS

EPOCHS = (0, 10, 80)  # of pre-training
QUESTIONS = ("tube or ring?", "which scanner?", "adenoma or not?", "HP or SSA?")


plan = partial(rows_of, epochs=EPOCHS, question=QUESTIONS, fraction=(0.1, 1.0))


def row(t: Trainer, epochs: int, question: str, fraction: float) -> dict:
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
    features = features_after(t, epochs)
    probe = linear_probe(features[train], y[train], features[val], y[val])
    return {"labels": len(train)} | scores(y[test], probe.predict_proba(features[test].numpy()))


STUDY = Study("questions", plan, row, all_classes=True, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
