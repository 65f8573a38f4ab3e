"""Beyond the tile: what size and site of the polyp add, and what happens without them."""

import numpy as np
from common import Study, Trainer, main, rows_of
from scipy.special import expit, logit

from crc_helpers.claims import clinical_answers
from crc_helpers.evaluation import macro_auc


def row(t: Trainer) -> dict:
    """AUC on the test part of image, metadata, both, and both with half of one missing."""
    test, clinical = t.parts.test, clinical_answers(t)
    image = t.train(t.random_encoder)(test)[:, 1]
    missing = np.random.default_rng(t.seed).random(len(test)) < 0.5
    arms = {
        "image": image,
        "metadata": clinical,
        "both": fuse(image, clinical),
        "half without metadata": fuse(image, np.where(missing, np.nan, clinical)),
        "half without image": fuse(np.where(missing, np.nan, image), clinical),
    }
    y = t.labels(test)
    return {name: macro_auc(y, np.stack([1 - p, p], axis=1)) for name, p in arms.items()}


def fuse(*probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of classifiers' log odds as a probability, (N,): late fusion.

    probabilities: (N,) each, of class 1; a NaN is a missing answer, and the others decide.
    """
    odds = np.stack([logit(np.clip(p, 1e-6, 1 - 1e-6)) for p in probabilities])
    return expit(np.nanmean(odds, axis=0))


STUDY = Study("metadata", rows_of, row, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
