"""Rivals on the same tiles, with the same steps and the same search for a rate."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from common import Study, main

from crc_helpers import claims
from crc_helpers.claims import Trial
from crc_helpers.evaluation import colour_baseline, colour_statistics
from crc_helpers.models import Encoder, published_on_disk

BASELINES = {
    "majority": "says the common class",
    "colour only": "15 colour numbers, logistic regression",
    "random encoder, probe": "untrained filters, logistic regression",
    "from scratch": "the small ResNet",
    "plain CNN": "after Yildirim et al. 2022",
    "ResNet-18": "after Wei et al. 2020",
    "Inception-ResNet-v2": "after Gupta et al. 2021",
    "ResNet-18, ImageNet": "weights from natural images, where they are on disk",
    "ensemble of three": "after Dif et al. 2020",
    "pre-trained, probe": "frozen",
    "pre-trained, fine-tuned": "the paper's method",
    "pre-trained longer, probe": "frozen",
    "pre-trained longer, fine-tuned": "the paper's method, LONGER times the epochs without labels",
}


def plan(seeds: int) -> Iterable[dict]:
    """Rivals on the same tiles, with the same steps and the same search for a rate."""
    # The largest is twenty times as slow as the others, and so is tried three times at most.
    for seed, arm in itertools.product(range(seeds), BASELINES):
        if arm == "Inception-ResNet-v2" and seed > 2:
            continue
        if arm == "ResNet-18, ImageNet" and not published_on_disk("resnet18"):
            continue
        yield {"seed": seed, "arm": arm}


def row(t: Trial, arm: str) -> dict:
    """One rival, on the test part."""
    return t.score(fit(t, arm))


def fit(t: Trial, arm: str, labelled: np.ndarray | None = None) -> Callable:
    """Train a rival; return it as a function from tiles to probabilities (N, C).

    labelled: the training tiles whose labels it gets; all if not given.
    """
    train = t.parts.train if labelled is None else labelled
    y = t.labels(train)
    if arm == "majority":
        share = np.bincount(y, minlength=len(t.tiles.class_names)) / len(y)
        return lambda index: np.tile(share, (len(index), 1))
    if arm == "colour only":
        known = colour_baseline(colour_statistics(t.tiles.images[train]), y)
        return lambda index: known.predict_proba(colour_statistics(t.tiles.images[index]))
    start = {
        "random encoder, probe": t.random_encoder,
        "from scratch": t.random_encoder,
        "plain CNN": partial(t.random_encoder, claims.PlainCNN),
        "ResNet-18": partial(t.random_encoder, "resnet18"),
        "ResNet-18, ImageNet": partial(Encoder, "resnet18", "imagenet"),
        "pre-trained, probe": t.pretrained,
        "pre-trained, fine-tuned": t.pretrained,
        "pre-trained longer, probe": t.longer,
        "pre-trained longer, fine-tuned": t.longer,
    }
    if arm.endswith("probe"):
        return t.probe(start[arm](), train)
    if arm == "ensemble of three":
        members = [t.scratch if labelled is None else t.train(t.random_encoder, train)]
        members += [t.train(partial(t.random_encoder, salt=k), train, salt=k) for k in (1, 2)]
        return lambda index: np.mean([member(index) for member in members], axis=0)
    if arm == "Inception-ResNet-v2":  # tiles under 75 px vanish in it
        r = replace(t.recipe, size=max(t.recipe.size, 96))
        return t.train(partial(t.random_encoder, "inception_resnet_v2"), train, recipe=r)
    if arm == "from scratch" and labelled is None:
        return t.scratch
    return t.train(start[arm], train)


STUDY = Study("baselines", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
