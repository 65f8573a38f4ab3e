"""Beyond two classes: four kinds of drawn tissue, or all that the real tiles have."""

import json
from functools import partial

from baselines import fit
from common import Study, Trainer, main, rows_of
from sklearn.metrics import confusion_matrix

from crc_helpers.claims import FEW, labelled_subset, scores

CLASS_ARMS = ("colour only", "pre-trained, probe", "from scratch", "pre-trained, fine-tuned")
CLASS_ARMS += tuple(arm + FEW for arm in CLASS_ARMS[1:])


plan = partial(rows_of, arm=CLASS_ARMS)


def row(t: Trainer, arm: str) -> dict:
    """All classes: macro averages on the test part, and the confusion matrix, rows truth."""
    train, rival = t.parts.train, arm.removesuffix(FEW)
    few = None if rival == arm else train[labelled_subset(t.labels(train), 0.1, t.seed)]
    y, probabilities = t.labels(t.parts.test), fit(t, rival, few)(t.parts.test)
    counts = confusion_matrix(
        y, probabilities.argmax(axis=1), labels=range(len(t.tiles.class_names))
    )
    return scores(y, probabilities) | {"confusion": json.dumps(counts.tolist())}


STUDY = Study("classes", plan, row, all_classes=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
