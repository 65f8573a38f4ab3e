"""Supervised training of a classifier, whole or frozen, chosen on validation (lesson 04)."""

import copy
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from tqdm.auto import tqdm

from crc_helpers.augmentation import Views, one_view
from crc_helpers.models import Classifier, Encoder
from crc_helpers.pretraining import (
    Training,
    batches,
    channels_last,
    descend,
    embed,
    make_optimizer,
    mean_loss,
    state_hash,
    to_device,
)
from crc_helpers.runs import Checkpoint, fingerprint, randomness, save_table
from crc_helpers.sources.store import content_hash

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 (N, 3, H, W), labels int64 (N,) in 0..C-1


def fine_tune(
    classifier: Classifier,
    train: Labelled,
    val: Labelled,
    views: Views,
    fabric: Fabric,
    training: Training,
    *,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Train a classifier in place with cross-entropy; return the log, a row an epoch.

    train, val: images and labels. The weights left in `classifier` are those of the epoch with the
    lowest validation loss, marked `chosen` in the log; with an empty validation set (the paper's
    case) those of the last epoch. checkpoint: as in `pretrain`.

    Raises ValueError for fewer tiles than a batch, FloatingPointError for a loss that is no number.
    """
    steps = training.epochs * training.require(len(train[0]), "FINE_TUNE")
    kept = None
    if checkpoint:
        mark = fingerprint(
            training=vars(training),
            views=vars(views),
            start=state_hash(classifier),
            tiles=[content_hash(x) for x in (*train, *val)],
        )
        kept = Checkpoint(checkpoint, mark)
    optim, schedule = make_optimizer(classifier, training.optimizer, training.lr, steps)
    model, optim = fabric.setup(classifier.to(memory_format=torch.channels_last), optim)
    learn = partial(descend, optim, schedule, fabric)
    parts = {"model": model, "optimizer": optim, "schedule": schedule}
    rows: list[dict] = []
    best = None
    if state := kept and kept.load():
        rows, best = state["rows"], state["best"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"going on after epoch {rows[-1]['epoch']} of {training.epochs}")
    bar = tqdm(range(len(rows) + 1, training.epochs + 1), desc="fine-tuning", unit="epoch")
    for epoch in bar:
        start = time.perf_counter()
        with randomness(training.seed, epoch):
            row = supervised_epoch(model, learn, train, views, fabric, training, epoch)
        if len(val[0]):
            row |= validate(classifier, *val, training.size, fabric)
            if not math.isfinite(row["val_loss"]):
                raise FloatingPointError(
                    f"the validation loss of epoch {epoch} is {row['val_loss']}: lower FINE_TUNE_LR"
                )
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        before = min((r["val_loss"] for r in rows[:-1] if "val_loss" in r), default=math.inf)
        if row.get("val_loss", -math.inf) < before:  # without validation, every epoch replaces
            best = copy.deepcopy(classifier.state_dict())
        bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_loss") if k in row})
        if kept:
            kept.save(epoch == training.epochs, rows=rows, best=best, **parts)
    classifier.load_state_dict(best)
    log = mark_chosen(pd.DataFrame(rows))
    if checkpoint:
        save_table(checkpoint.with_suffix(".csv"), log.to_dict("records"))
    return log


def supervised_epoch(
    model, learn, labelled: Labelled, views, fabric, training: Training, epoch: int
) -> dict[str, float]:
    """Train one epoch on single views, calling `learn` with each loss; return the mean."""
    model.train()
    generator = torch.Generator().manual_seed(training.seed * 100_003 + epoch)
    losses = []
    for index in batches(len(labelled[0]), training.batch, training.seed, epoch):
        tiles, target = (to_device(part[index], fabric) for part in labelled)
        logits = model(channels_last(one_view(tiles, views, training.size, generator)))  # (N, C)
        loss = F.cross_entropy(logits, target)
        learn(loss)
        losses.append(loss.detach())
    return {"epoch": epoch, "loss": mean_loss(losses, model, fabric, epoch, "lower FINE_TUNE_LR")}


def validate(classifier, images, labels, size: int, fabric: Fabric) -> dict[str, float]:
    """Return loss and balanced accuracy of a classifier on whole tiles."""
    logits = embed(classifier, images, size, fabric)
    loss = float(F.cross_entropy(logits, torch.from_numpy(labels)))
    accuracy = balanced_accuracy_score(labels, logits.argmax(dim=1).numpy())
    return {"val_loss": loss, "val_balanced_accuracy": float(accuracy)}


def mark_chosen(log: pd.DataFrame) -> pd.DataFrame:
    """Add the column `chosen`: true for the epoch whose weights are kept."""
    best = log["val_loss"].idxmin() if "val_loss" in log else log.index[-1]
    return log.assign(chosen=log.index == best)


def predict(classifier: Classifier, images: np.ndarray, size: int, fabric: Fabric) -> np.ndarray:
    """Return class probabilities float64 (N, C) for whole uint8 tiles (N, 3, H, W)."""
    logits = embed(classifier, images, size, fabric)
    return torch.softmax(logits.double(), dim=1).numpy()


def linear_probe(
    features: Tensor, labels: np.ndarray, val_features: Tensor, val_labels: np.ndarray
) -> Pipeline:
    """Fit logistic regression on frozen features (N, D), its strength chosen on validation.

    Returns a scikit-learn pipeline (standardise, regress) with `predict_proba`. With an empty
    validation set the strength is scikit-learn's default times 1/100.
    """

    def fit(strength: float) -> Pipeline:
        regression = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        return make_pipeline(StandardScaler(), regression).fit(features.numpy(), labels)

    if not len(val_labels):
        return fit(0.01)
    probes = [fit(strength) for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]

    def loss(probe: Pipeline) -> float:
        probabilities = probe.predict_proba(val_features.numpy())
        return log_loss(val_labels, probabilities, labels=probe.classes_)

    return min(probes, key=loss)


def probe_classifier(encoder: Encoder, probe: Pipeline) -> Classifier:
    """Return an encoder, shared and in evaluation mode, with a linear probe as its last layer.

    It is for Grad-CAM to explain: its probabilities are those of the probe on the encoder's
    features. Of two classes each gets half of the probe's one score, with opposite signs, so that
    there is evidence for either.
    """
    scale, regression = probe[0], probe[1]
    weight = regression.coef_ / scale.scale_  # (C, D), or (1, D) for two classes
    bias = regression.intercept_ - weight @ scale.mean_
    if len(weight) == 1:
        weight, bias = np.stack([-weight[0], weight[0]]) / 2, np.array([-bias[0], bias[0]]) / 2
    classifier = Classifier(encoder, len(weight))
    with torch.no_grad():
        classifier.fc.weight.copy_(torch.from_numpy(weight))
        classifier.fc.bias.copy_(torch.from_numpy(bias))
    return classifier.to(next(encoder.parameters()).device).eval()
