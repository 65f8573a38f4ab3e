"""Beyond the tile: what size and site of the polyp add, and what happens without them."""

from collections.abc import Iterable

import numpy as np
from common import Study, main

from crc_helpers import claims
from crc_helpers.claims import Trial, clinical_answers
from crc_helpers.evaluation import macro_auc


def plan(seeds: int) -> Iterable[dict]:
    """Beyond the tile: what size and site of the polyp add, and what happens without them."""
    for seed in range(seeds):
        yield {"seed": seed}


def row(t: Trial) -> dict:
    """AUC on the test part of image, metadata, both, and both with half of one missing."""
    test, clinical = t.parts.test, clinical_answers(t)
    image = t.train(t.random_encoder)(test)[:, 1]
    missing = np.random.default_rng(t.seed).random(len(test)) < 0.5
    arms = {
        "image": image,
        "metadata": clinical,
        "both": claims.fuse(image, clinical),
        "half without metadata": claims.fuse(image, np.where(missing, np.nan, clinical)),
        "half without image": claims.fuse(np.where(missing, np.nan, image), clinical),
    }
    y = t.labels(test)
    return {name: macro_auc(y, np.stack([1 - p, p], axis=1)) for name, p in arms.items()}


STUDY = Study("metadata", plan, row, drawn_only=True)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
