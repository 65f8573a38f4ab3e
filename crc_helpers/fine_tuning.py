"""Supervised training of a classifier, whole or frozen, chosen on validation (lesson 04)."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

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
    batches,
    channels_last,
    embed,
    keep_batch,
    make_optimizer,
    stop,
    to_device,
)
from crc_helpers.runs import (
    is_finite,
    load_checkpoint,
    memory_kept,
    one_writer,
    put_aside,
    randomness,
    restore,
    save_checkpoint,
    save_table,
)
from crc_helpers.sources.store import content_hash


@one_writer
@memory_kept()
def fine_tune(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    val_images: np.ndarray,
    val_labels: np.ndarray,
    views: Views,
    fabric: Fabric,
    *,
    size: int,
    epochs: int,
    batch: int,
    lr: float,
    optimizer: str = "adam",
    seed: int = 0,
    checkpoint: Path | None = None,
    mark: str = "",
    name: str = "fine-tuning",
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    val_criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> pd.DataFrame:
    """Train a classifier in place with cross-entropy; return the log, a row an epoch.

    images: uint8 (N, 3, H, W); labels: int64 (N,) in 0..C-1. The weights left in `classifier` are
    those of the epoch with the lowest validation loss, marked `chosen` in the log; with an empty
    validation set (the paper's case) those of the last epoch. checkpoint, mark: as in `pretrain`.
    criterion, val_criterion: the losses of logits (N, C) and labels (N,) to train and to choose
    with.

    Raises ValueError for fewer tiles than a batch, FloatingPointError for a loss that is no number.
    """
    if batch < 2 or epochs < 1:
        raise ValueError(
            f"FINE_TUNE_BATCH is {batch}, FINE_TUNE_EPOCHS {epochs}: at least 2 and 1 are needed"
        )
    if len(images) < batch:
        raise ValueError(
            f"{len(images)} labelled tiles are fewer than one batch of {batch}:"
            " lower FINE_TUNE_BATCH"
        )
    optim, schedule = make_optimizer(classifier, optimizer, lr, epochs * (len(images) // batch))
    model, optim = fabric.setup(classifier.to(memory_format=torch.channels_last), optim)
    rows: list[dict] = []
    best = None
    used = (images, labels, val_images, val_labels)
    data = " ".join(map(content_hash, used)) if checkpoint else ""
    state = load_checkpoint(checkpoint, mark) if checkpoint else None
    if state and state.get("data") != data:
        put_aside(checkpoint, "other tiles or labels")
    elif state:
        best = state.get("best")
        # It is loaded at the end: what does not fit must be said before hours of training.
        restore(checkpoint, state | {"model": best}, model=classifier)
        rows = restore(checkpoint, state, model=model, optimizer=optim, schedule=schedule)
        print(f"going on after epoch {rows[-1]['epoch']} of {epochs}")
    bar = tqdm(range(len(rows) + 1, epochs + 1), desc=name, unit="epoch")
    for epoch in bar:
        start = time.perf_counter()
        with randomness(seed, epoch):
            row = _train_epoch(
                model, optim, schedule, images, labels, views, fabric, size, batch, seed, epoch,
                criterion, checkpoint,
            )  # fmt: skip
        if len(val_images):
            row |= validate(classifier, val_images, val_labels, size, fabric, val_criterion)
            if not math.isfinite(row["val_loss"]):
                _stop_choosing(classifier, val_images, size, fabric, checkpoint, epoch, row, batch)
        row["seconds"] = round(time.perf_counter() - start, 2)
        rows.append(row)
        before = min((r["val_loss"] for r in rows[:-1] if "val_loss" in r), default=math.inf)
        if row.get("val_loss", -math.inf) < before:  # without validation, every epoch replaces
            best = copy.deepcopy(classifier.state_dict())
        bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_loss") if k in row})
        if checkpoint:
            save_checkpoint(
                checkpoint, mark, model=model.state_dict(), optimizer=optim.state_dict(),
                schedule=schedule.state_dict(), rows=rows, best=best, data=data,
            )  # fmt: skip
    classifier.load_state_dict(best)
    log = mark_chosen(pd.DataFrame(rows))
    if checkpoint:
        save_table(checkpoint.with_suffix(".csv"), log.to_dict("records"))
    return log


def _train_epoch(
    model,
    optim,
    schedule,
    images,
    labels,
    views,
    fabric,
    size,
    batch,
    seed,
    epoch,
    criterion,
    checkpoint,
) -> dict[str, float]:
    model.train()
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    losses = []
    for index in batches(len(images), batch, seed, epoch):
        tiles, target = to_device(images[index], fabric), to_device(labels[index], fabric)
        logits = model(channels_last(one_view(tiles, views, size, generator)))  # (N, C)
        loss = criterion(logits, target)
        optim.zero_grad()
        fabric.backward(loss)
        optim.step()
        schedule.step()
        losses.append(loss.detach())
    mean = float(torch.stack(losses).mean())
    if not (math.isfinite(mean) and is_finite(model)):
        order = batches(len(images), batch, seed, epoch)
        stop(losses, mean, images, order, epoch, checkpoint, "lower FINE_TUNE_LR")
    return {"epoch": epoch, "loss": mean}


def _stop_choosing(classifier, images, size, fabric, checkpoint, epoch, row, batch) -> NoReturn:
    """Raise FloatingPointError, the validation tiles saved whose logits are no numbers.

    Where all are, the loss itself has failed, and the first tiles stand for all; a batch at most.
    """
    logits = embed(classifier, images, size, fabric)
    odd = (~logits.isfinite().all(dim=1)).nonzero().flatten().numpy()
    index = (odd if len(odd) else np.arange(len(images)))[:batch]
    where = keep_batch(checkpoint, images, index, epoch, -1)
    raise FloatingPointError(
        f"the validation loss of epoch {epoch} is {row['val_loss']}{where}: lower FINE_TUNE_LR"
    )


def validate(
    classifier, images, labels, size: int, fabric: Fabric, criterion: Callable = F.cross_entropy
) -> dict[str, float]:
    """Return loss and balanced accuracy of a classifier on whole tiles."""
    logits = embed(classifier, images, size, fabric)
    loss = float(criterion(logits, torch.from_numpy(labels)))
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
        found = probe.predict_proba(val_features.numpy())
        return log_loss(val_labels, found, labels=probe.classes_)

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
