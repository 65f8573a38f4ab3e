"""Each cohort is split 90:10 again and again, in three ways."""

from dataclasses import replace
from functools import partial

from common import Study, Trainer, features_after, main, rows_of

from crc_helpers.claims import scores
from crc_helpers.data import split as divide
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.runs import RunError

SPLITS = 50
WAYS = {"as in the paper": "paper", "by tile": "random", "by slide": "auto"}  # of `data.split`


plan = partial(rows_of, scheme=WAYS, split=range(SPLITS))


def row(t: Trainer, scheme: str, split: int) -> dict:
    """Scores of a probe on one pre-trained encoder: only the split of the labels changes.

    "as in the paper" draws tiles after the surplus of the common class is thrown away.
    """
    if t.tiles.groups is None:
        raise RunError(f"splits: {t.tiles.name} does not say which tiles share a slide")
    tiles = replace(t.tiles, partition=None)
    parts = divide(tiles, WAYS[scheme], test=0.1, validation=0.1, seed=split)
    features, train, val = features_after(t, t.recipe.pretrain_epochs), parts.train, parts.val
    probe = linear_probe(features[train], t.labels(train), features[val], t.labels(val))
    probabilities = probe.predict_proba(features[parts.test].numpy())
    return {"tested": len(parts.test)} | scores(t.labels(parts.test), probabilities)


STUDY = Study("splits", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
