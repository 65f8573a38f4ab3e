"""Remedies for uneven classes, at natural prevalence."""

from functools import partial

import numpy as np
import torch
from common import Study, Trainer, main, rows_of
from sklearn.metrics import roc_curve
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crc_helpers.claims import scores
from crc_helpers.data import balance
from crc_helpers.runs import RunError

REMEDIES = ("none", "discarding", "class weights", "focal loss", "oversampling", "threshold moved")


plan = partial(rows_of, remedy=REMEDIES)


def row(t: Trainer, remedy: str) -> dict:
    """One remedy for uneven classes, from scratch, on a test part as uneven as they are.

    All are judged by balanced accuracy, so validation chooses by the balanced loss for all.
    """
    train, val, test = t.parts.train, t.parts.val, t.parts.test
    y = t.labels(train)
    count = np.bincount(y)
    if len(count) != 2:
        raise RunError(f"imbalance: there are {len(count)} classes, sensitivity is defined for two")
    weight = torch.tensor(len(y) / count / len(count), dtype=torch.float32)
    learn, judge = cross_entropy, nn.CrossEntropyLoss(weight)
    if remedy == "discarding":
        train = train[balance(y, np.random.default_rng(t.seed))[0]]
    elif remedy == "class weights":
        learn = nn.CrossEntropyLoss(weight.to(t.fabric.device))
    elif remedy == "focal loss":
        learn = focal_loss
    elif remedy == "oversampling":
        train = train[oversampled(y)]
    classify = t.train(t.random_encoder, train, losses=(learn, judge))
    moved = remedy == "threshold moved"
    threshold = best_threshold(t.labels(val), classify(val)[:, 1]) if moved else 0.5
    y, probabilities = t.labels(test), classify(test)
    positive = probabilities[:, 1] >= threshold
    sensitivity, specificity = float(positive[y == 1].mean()), float(1 - positive[y == 0].mean())
    return scores(y, probabilities) | {
        "accuracy": float((positive == (y == 1)).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def oversampled(labels: np.ndarray) -> np.ndarray:
    """Return positions in which every class is as frequent as the most common: rare ones recur."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([np.resize(c, max(map(len, classes))) for c in classes]))


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return cross-entropy that forgets what is already right: times (1 - p) to the gamma.

    logits (N, C), labels (N,). Source: Lin et al. 2017, arXiv 1708.02002, equation 4.
    """
    loss = cross_entropy(logits, labels, reduction="none")  # -log p
    return ((1 - (-loss).exp()) ** gamma * loss).mean()


def best_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold on P(class 1) with the best balanced accuracy; labels, (N,) of 0 and 1.

    To be chosen on validation, and applied to test.
    """
    false_alarms, hits, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    return float(thresholds[::-1][(hits - false_alarms)[::-1].argmax()])  # the lowest of equals


STUDY = Study("imbalance", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
