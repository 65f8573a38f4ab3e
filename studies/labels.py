"""Does pre-training on one's own tiles beat ImageNet, and with how many labels? On real tissue.

Fixed before any row was measured, and committed before the table (a trial for timing had shown the
random and the ImageNet encoder on the first split):

- Data: EBHI-Seg, split by case over all six classes; three splits. No encoder is
  pre-trained on a tile of the validation or test part, not even without its label.
- Primary comparison: six classes, 5 % of the labels, balanced accuracy of a linear probe on the
  frozen encoder of one's own tiles minus that on the frozen ImageNet encoder, both at 64 px; mean
  over splits and ten draws of labels, with a 95 % bootstrap interval over cases. All other
  differences are descriptions.
- Tasks besides: Low-grade IN or Adenocarcinoma, which is near its ceiling; and one hard pair,
  High-grade IN or Adenocarcinoma, chosen by what the labels mean: the cells look alike, and only
  invasion tells them apart.
- Arms: own is the class preset's recipe (resnet8_fine, 50 epochs). ImageNet is EfficientNet-Lite0
  as published, also at the 224 px that it was trained on, which costs it nothing but time.
  Continued: five more epochs of contrastive pre-training on one's own tiles at a rate of 1e-4,
  neither of them tuned. With one draw of 5 % of the labels two networks are trained whole: from
  scratch with four times the steps, and ImageNet with a probe first, then fine-tuned. Validation,
  which keeps all its labels, chooses their rate and epoch, and the strength of all probes.

`cells` of a row are [case, class, tiles, right]: how many tiles of the test part a case has, and
how many of them, summed over draws, were called right. See `claims.over_cases`.
"""

import json
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from common import Study, Trainer, main, rows_of
from torch import Tensor

from crc_helpers.claims import Recipe, labelled_subset, scores
from crc_helpers.fine_tuning import linear_probe, probe_classifier
from crc_helpers.models import Classifier, Encoder

TASKS = {
    "six classes": None,
    "Low-grade IN or Adenocarcinoma": ("Low-grade IN", "Adenocarcinoma"),
    "High-grade IN or Adenocarcinoma": ("High-grade IN", "Adenocarcinoma"),
}
DRAWS = {0.01: 10, 0.05: 10, 0.10: 5, 0.25: 3, 1.0: 1}  # of the labels, for each share
FROZEN = ("own", "ImageNet", "ImageNet, 224 px", "random", "ImageNet, continued")
TRAINED = ("from scratch, patient", "ImageNet, fine-tuned")
RECIPE = Recipe(size=64, backbone="resnet8_fine", pretrain_epochs=50, steps=120, rates=(1e-3, 3e-3))
CONTINUED = {"backbone": "imagenet", "pretrain_epochs": 5, "pretrain_lr": 1e-4}
PATIENT, FINE_RATES = 4, (1e-4, 3e-4)  # times the steps, from scratch; rates of fine-tuning


def plan(seeds: int) -> list[dict]:
    """Plan all arms; first, split by split, those of the primary comparison and its controls."""
    rows = rows_of(seeds, arm=FROZEN[:4], task=TASKS, share=DRAWS)
    rows += rows_of(seeds, arm=FROZEN[4:], task=TASKS, share=DRAWS)
    return rows + rows_of(seeds, arm=TRAINED, task=["six classes"], share=[0.05])


def row(t: Trainer, arm: str, task: str, share: float) -> dict:
    """Own pre-training, ImageNet or both, with a share of the labels, on the test part."""
    names = TASKS[task] or t.tiles.class_names
    y = np.full(len(t.tiles), -1)
    for label, name in enumerate(names):
        y[t.tiles.labels == t.tiles.class_names.index(name)] = label
    train, val, test = (p[y[p] >= 0] for p in (t.parts.train, t.parts.val, t.parts.test))
    draws = DRAWS[share] if arm in FROZEN else 1
    found, right = [], np.zeros(len(test), int)
    for draw in range(draws):
        labelled = train[labelled_subset(y[train], share, 1000 * t.seed + draw)]
        if arm in FROZEN:
            known = features(t, arm)
            probe = linear_probe(known[labelled], y[labelled], known[val], y[val])
            answers = probe.predict_proba(known[test].numpy())
        else:
            answers = trained(t, arm, labelled)(test)
        found.append(scores(y[test], answers))
        right += answers.argmax(axis=1) == y[test]
    means = {k: float(np.mean([one[k] for one in found])) for k in found[0]}
    return {"labels": len(labelled), "draws": draws} | means | {"cells": cells(t, y, test, right)}


def cells(t: Trainer, y: np.ndarray, test: np.ndarray, right: np.ndarray) -> str:
    """Return [case, class, tiles, right] as JSON; cases are numbered, not named."""
    case = np.unique(t.tiles.groups, return_inverse=True)[1][test]
    keys, place, tiles = np.unique(
        np.stack([case, y[test]]), axis=1, return_inverse=True, return_counts=True
    )
    summed = np.bincount(place.ravel(), right).astype(int)
    return json.dumps(np.column_stack([keys.T, tiles, summed]).tolist(), separators=(",", ":"))


@lru_cache(maxsize=2)
def features(t: Trainer, arm: str) -> Tensor:
    """Return a frozen encoder's features of all tiles, float32 (N, D)."""
    if arm.endswith("224 px"):
        t = replace(t, recipe=replace(t.recipe, size=224))
    start = {
        "random": t.random_encoder,
        "own": t.pretrained,
        "ImageNet, continued": partial(t.pretrained, replace(t.recipe, **CONTINUED)),
    }
    encoder = start.get(arm, partial(Encoder, "imagenet", published=True))()
    return t.features(encoder, np.arange(len(t.tiles)))


def trained(t: Trainer, arm: str, labelled: np.ndarray):
    """Train a network whole, the rate and epoch chosen on validation."""
    if arm.startswith("from scratch"):
        patient = replace(t.recipe, steps=PATIENT * t.recipe.steps)
        return t.train(t.random_encoder, labelled, recipe=patient)
    probe = t.fit_probe(Encoder("imagenet", published=True), labelled)

    def start() -> Classifier:
        return probe_classifier(Encoder("imagenet", published=True), probe)

    return t.train(start, labelled, recipe=replace(t.recipe, rates=FINE_RATES))


STUDY = Study("labels", plan, row, RECIPE, all_classes=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
