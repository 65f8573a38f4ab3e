"""Beyond two classes: four kinds of drawn tissue, or all that the real tiles have."""

import itertools
import json
from collections.abc import Iterable

from baselines import fit
from common import Study, main
from sklearn.metrics import confusion_matrix

from crc_helpers import claims
from crc_helpers.claims import FEW, Trial, scores

CLASS_ARMS = ("colour only", "pre-trained, probe", "from scratch", "pre-trained, fine-tuned")
CLASS_ARMS += tuple(arm + FEW for arm in CLASS_ARMS[1:])


def plan(seeds: int) -> Iterable[dict]:
    """Beyond two classes: four kinds of drawn tissue, or all that the real tiles have."""
    for seed, arm in itertools.product(range(seeds), CLASS_ARMS):
        yield {"seed": seed, "arm": arm}


def row(t: Trial, arm: str) -> dict:
    """One arm on all classes: macro averages, and the confusion matrix, rows truth."""
    many = t.many
    train, rival, labelled = many.parts.train, arm.removesuffix(FEW), None
    if rival != arm:
        labelled = train[claims.labelled_subset(many.labels(train), 0.1, t.seed)]
    y, found = many.labels(many.parts.test), fit(many, rival, labelled)(many.parts.test)
    counts = confusion_matrix(y, found.argmax(axis=1), labels=range(len(many.tiles.class_names)))
    return scores(y, found) | {"confusion": json.dumps(counts.tolist())}


STUDY = Study("classes", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
