"""What the other studies suggested, asked once more of cohorts that suggested nothing."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from common import Study, main

from crc_helpers import claims
from crc_helpers.augmentation import VIEWS
from crc_helpers.claims import CONFIRMED, Recipe, Trial
from crc_helpers.fine_tuning import probe_classifier
from crc_helpers.models import Classifier

FRESH = 100  # the first seed of cohorts and splits that chose no recipe


def plan(seeds: int) -> Iterable[dict]:
    """What the other studies suggested, asked once more of cohorts that suggested nothing."""
    for seed, fraction, arm in itertools.product(range(seeds), (0.1, 1.0), CONFIRMED):
        yield {"seed": FRESH + seed, "fraction": fraction, "arm": arm}


def row(t: Trial, fraction: float, arm: str) -> dict:
    """One arm with a share of the labels, on the test part; all try the same rates.

    "the paper's recipe" is its views, temperature, optimizer and rate of pre-training. "probe
    first" begins fine-tuning with the probe as last layer (Kumar et al. 2022, arXiv 2202.10054).
    """
    train = t.parts.train
    labelled = train[claims.labelled_subset(t.labels(train), fraction, t.seed)]
    paper = replace(t.recipe, views=VIEWS["paper"], temperature=0.7, pretrain_lr=3e-4,
                    optimizer="adam")  # fmt: skip

    def probe_first() -> Classifier:
        encoder = t.pretrained()
        return probe_classifier(encoder, t.fit_probe(encoder, labelled))

    if arm.endswith("probe"):
        fit = t.probe((t.pretrained if arm.startswith("pre") else t.random_encoder)(), labelled)
    else:
        start = {
            "from scratch": t.random_encoder,
            "pre-trained, fine-tuned": t.pretrained,
            "pre-trained, probe first": probe_first,
            "the paper's recipe, fine-tuned": partial(t.pretrained, paper),
        }
        fit = t.train(start[arm], labelled)
    return {"labels": len(labelled)} | t.score(fit)


RECIPE = Recipe(pretrain_epochs=80, rates=(1e-4, 3e-4, 1e-3))
STUDY = Study("confirmation", plan, row, RECIPE)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
