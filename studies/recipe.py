"""What matters in pre-training: one factor at a time is moved away from the recipe."""

from dataclasses import replace

import numpy as np
from common import Study, Trainer, main

from crc_helpers.claims import labelled_subset
from crc_helpers.data import balance
from crc_helpers.evaluation import macro_auc
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.pretraining import knn_accuracy

FACTORS: dict[str, tuple] = {
    "none": ("the recipe",),
    "temperature": (0.07, 0.1, 0.4, 0.7),
    "head": ("mlp",),
    "crop": (0.08, 0.7),  # the smallest share of the tile's area kept
    "stain": (0.0, 0.7),
    "pretrain_batch": (32, 128),
    "pretrain_epochs": (10, 20, 40),
    "tiles": ("balanced", "the scored ones too"),  # without labels, either way
}


def plan(seeds: int) -> list[dict]:
    pairs = [(factor, value) for factor, values in FACTORS.items() for value in values]
    return [{"seed": s, "factor": f, "value": v} for s in range(seeds) for f, v in pairs]


def row(t: Trainer, factor: str, value: float | str) -> dict:
    """kNN and probe, on validation, of an encoder pre-trained with one thing changed.

    On all classes: the study `questions` shows what pre-training can gain there.
    """
    r, train, val, index = t.recipe, t.parts.train, t.parts.val, None
    y = t.labels(train)
    if factor == "crop":
        r = replace(r, views=replace(r.views, crop=(value, 1.0)))
    elif factor == "stain":
        r = replace(r, views=replace(r.views, stain=value))
    elif factor == "tiles":
        more = np.concatenate([train, val])
        index = train[balance(y, np.random.default_rng(t.seed))[0]] if value == "balanced" else more
        # As many steps as on the usual tiles.
        r = replace(r, pretrain_epochs=round(r.pretrain_epochs * len(train) / len(index)))
    elif factor != "none":
        r = replace(r, **{factor: value})
    encoder = t.pretrained(r, index)
    features, val_features = t.features(encoder, train), t.features(encoder, val)
    groups = None if t.tiles.groups is None else t.tiles.groups[train]
    result = {"knn": knn_accuracy(features, y, groups)}
    few = labelled_subset(y, 0.1, t.seed)
    for name, chosen in (("auc", np.arange(len(y))), ("auc_of_a_tenth", few)):
        # The strength is not chosen: validation, which would choose it, is what scores here.
        probe = linear_probe(features[chosen], y[chosen], features[:0], y[:0])
        result[name] = macro_auc(t.labels(val), probe.predict_proba(val_features.numpy()))
    return result


STUDY = Study("recipe", plan, row, all_classes=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
