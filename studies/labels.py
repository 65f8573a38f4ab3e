"""Label efficiency: the same steps with ever fewer labels."""

from dataclasses import replace

from common import Study, Trainer, main, rows_of

from crc_helpers.claims import FRACTIONS, LABEL_ARMS, LONGER, labelled_subset

CONTROLS = ("from scratch, longer", "pre-trained longer, fine-tuned longer")


def plan(seeds: int) -> list[dict]:
    """Plan all arms, and at two shares the costly controls: is it only more training?"""
    rows = rows_of(seeds, fraction=FRACTIONS, arm=LABEL_ARMS)
    return rows + rows_of(seeds, fraction=(0.10, 1.0), arm=CONTROLS)


def row(t: Trainer, fraction: float, arm: str) -> dict:
    """Label efficiency: one arm with a share of the labels, on the test part."""
    train = t.parts.train
    labelled = train[labelled_subset(t.labels(train), fraction, t.seed)]
    steps = t.recipe.steps * (LONGER if arm in CONTROLS else 1)
    start = t.pretrained if arm.startswith(("pre", "frozen")) else t.random_encoder
    if arm.startswith("pre-trained longer"):
        start = t.longer
    if arm.endswith("probe"):
        fit = t.probe(start(), labelled)
    else:
        fit = t.train(start, labelled, recipe=replace(t.recipe, steps=steps))
    return {"labels": len(labelled), "steps": steps} | t.score(fit)


STUDY = Study("labels", plan, row)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
