"""Remedies for uneven classes, at natural prevalence."""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from common import Study, main
from torch import nn

from crc_helpers import claims
from crc_helpers.claims import Trial, scores
from crc_helpers.data import balance
from crc_helpers.runs import RunError

REMEDIES = ("none", "discarding", "class weights", "focal loss", "oversampling", "threshold moved")


def plan(seeds: int) -> Iterable[dict]:
    """Remedies for uneven classes, at natural prevalence."""
    for seed, remedy in itertools.product(range(seeds), REMEDIES):
        yield {"seed": seed, "remedy": remedy}


def row(t: Trial, remedy: str) -> dict:
    """One remedy, from scratch, on the test part as common as the classes are.

    All are judged by balanced accuracy, so validation chooses by the balanced loss for all.
    """
    train = t.parts.train
    y = t.labels(train)
    count = np.bincount(y)
    if len(count) != 2:
        raise RunError(f"imbalance: there are {len(count)} classes, sensitivity is defined for two")
    weight = torch.tensor(len(y) / count / len(count), dtype=torch.float32)
    options = {"val_criterion": nn.CrossEntropyLoss(weight)}
    if remedy == "discarding":
        train = train[balance(y, np.random.default_rng(t.seed))[0]]
    elif remedy == "class weights":
        options["criterion"] = nn.CrossEntropyLoss(weight.to(t.fabric.device))
    elif remedy == "focal loss":
        options["criterion"] = claims.focal_loss
    elif remedy == "oversampling":
        train = train[claims.oversampled(y)]
    classify = t.train(t.random_encoder, train, **options)
    threshold = 0.5
    if remedy == "threshold moved":
        val = t.parts.val
        threshold = claims.best_threshold(t.labels(val), classify(val)[:, 1])
    y, found = t.labels(t.parts.test), classify(t.parts.test)
    said = found[:, 1] >= threshold
    sensitivity, specificity = float(said[y == 1].mean()), float(1 - said[y == 0].mean())
    return scores(y, found) | {
        "accuracy": float((said == (y == 1)).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


STUDY = Study("imbalance", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
