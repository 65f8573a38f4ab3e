"""What the other studies suggested, asked once more of cohorts that suggested nothing."""

from dataclasses import replace
from functools import partial

from common import Study, Trainer, main, rows_of

from crc_helpers.augmentation import VIEWS
from crc_helpers.claims import CONFIRMED, Recipe, labelled_subset
from crc_helpers.fine_tuning import probe_classifier
from crc_helpers.models import Classifier

FRESH = 100  # the first seed of cohorts and splits that chose no recipe


def plan(seeds: int) -> list[dict]:
    rows = rows_of(seeds, fraction=(0.1, 1.0), arm=CONFIRMED)
    return [row | {"seed": FRESH + row["seed"]} for row in rows]


def row(t: Trainer, fraction: float, arm: str) -> dict:
    """One arm with a share of the labels, on the test part of new cohorts; all try the same rates.

    "the paper's recipe" is its views, temperature, optimizer and rate of pre-training. "probe
    first" begins fine-tuning with the probe as last layer (Kumar et al. 2022, arXiv 2202.10054).
    """
    train = t.parts.train
    labelled = train[labelled_subset(t.labels(train), fraction, t.seed)]
    paper = {"views": VIEWS["paper"], "temperature": 0.7, "pretrain_lr": 3e-4, "optimizer": "adam"}

    def probe_first() -> Classifier:
        encoder = t.pretrained()
        return probe_classifier(encoder, t.fit_probe(encoder, labelled))

    start = {
        "from scratch": t.random_encoder,
        "random encoder, probe": t.random_encoder,
        "pre-trained, frozen probe": t.pretrained,
        "pre-trained, fine-tuned": t.pretrained,
        "pre-trained, probe first": probe_first,
        "the paper's recipe, fine-tuned": partial(t.pretrained, replace(t.recipe, **paper)),
    }[arm]
    fit = t.probe(start(), labelled) if arm.endswith("probe") else t.train(start, labelled)
    return {"labels": len(labelled)} | t.score(fit)


RECIPE = Recipe(pretrain_epochs=80, rates=(1e-4, 3e-4, 1e-3))
STUDY = Study("confirmation", plan, row, RECIPE)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
