"""Rivals on the same tiles, with the same steps and the same search for a rate."""

from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from common import Study, Trainer, main, rows_of
from torch import nn
from torchvision.ops import Conv2dNormActivation

from crc_helpers.claims import Answer, Recipe
from crc_helpers.evaluation import colour_baseline, colour_statistics

BASELINES = (
    "majority",  # says the common class
    "colour only",  # 15 colour numbers, logistic regression
    "random encoder, probe",  # untrained filters, logistic regression
    "from scratch",  # the small ResNet
    "plain CNN",
    "ResNet-18",
    "ensemble of three",
    "pre-trained, probe",
    "pre-trained, fine-tuned",  # the paper's method
)


plan = partial(rows_of, arm=BASELINES)


def row(t: Trainer, arm: str) -> dict:
    """Rivals on the same tiles, with the same steps and the same search for a rate."""
    return t.score(fit(t, arm))


def plain_cnn() -> nn.Module:
    """Make convolutions and poolings without shortcuts: (N, 3, H, W) to features (N, 256)."""
    blocks = []
    for before, after in pairwise((3, 32, 64, 128, 256)):
        blocks += [Conv2dNormActivation(before, after), nn.MaxPool2d(2)]
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.num_features = 256
    return network


@lru_cache(maxsize=1)
def scratch(t: Trainer) -> Answer:
    """Train the network from scratch with all labels, which two rows need."""
    return t.train(t.random_encoder)


def fit(t: Trainer, arm: str, labelled: np.ndarray | None = None) -> Answer:
    """Train a rival.

    labelled: the training tiles whose labels it gets; all if not given.
    """
    train = t.parts.train if labelled is None else labelled
    y = t.labels(train)
    if arm == "majority":
        share = np.bincount(y, minlength=len(t.tiles.class_names)) / len(y)
        return lambda index: np.tile(share, (len(index), 1))
    if arm == "colour only":
        regression = colour_baseline(colour_statistics(t.tiles.images[train]), y)
        return lambda index: regression.predict_proba(colour_statistics(t.tiles.images[index]))
    if arm == "from scratch" and labelled is None:
        return scratch(t)
    if arm == "ensemble of three":
        others = [t.train(partial(t.random_encoder, salt=k), train, salt=k) for k in (1, 2)]
        members = [fit(t, "from scratch", labelled), *others]
        return lambda index: np.mean([member(index) for member in members], axis=0)
    start = {
        "random encoder": t.random_encoder,
        "from scratch": t.random_encoder,
        "plain CNN": partial(t.random_encoder, plain_cnn),
        "ResNet-18": partial(t.random_encoder, "resnet18"),
        "pre-trained": t.pretrained,
    }[arm.removesuffix(", probe").removesuffix(", fine-tuned")]
    return t.probe(start(), train) if arm.endswith("probe") else t.train(start, train)


# Four times the usual steps: after 120 a network from scratch has hardly begun to learn.
STUDY = Study("baselines", plan, row, Recipe(steps=480))

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
