"""How hard is the drawn tissue? Colour, random encoder, network from scratch; site and shortcut.

    python benchmarks/tissue_difficulty.py [--seeds 5]

Each seed draws a cohort of its own and splits it by slide with the class preset of lessons 01-05;
the class preset's recipe is trained from random weights, with all labels, the learning rate chosen
on validation. Writes `benchmarks/TISSUE_DIFFICULTY.md`. About five minutes a seed on two cores.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from crc_helpers import augmentation, data, evaluation, fine_tuning, models, pretraining, runs
from crc_helpers.course import lesson_files, parameters_of
from crc_helpers.synthetic_cohort import make_cohort, read

HERE = Path(__file__).parent
SITES = ("Scanner A", "Scanner B")


def train(tiles, parts, recipe, seed, fabric, rates) -> models.Classifier:
    """The class preset from random weights; the rate with the lower validation loss is kept."""
    best, kept = np.inf, None
    for lr in rates:
        torch.manual_seed(seed)
        classifier = models.Classifier(models.Encoder(recipe["BACKBONE"]), 2)
        log = fine_tuning.fine_tune(
            classifier,
            tiles.images[parts.train],
            tiles.labels[parts.train],
            tiles.images[parts.val],
            tiles.labels[parts.val],
            augmentation.VIEWS[recipe["FINE_TUNE_VIEWS"]],
            fabric,
            size=recipe["IMAGE_SIZE"],
            epochs=recipe["FINE_TUNE_EPOCHS"],
            batch=recipe["FINE_TUNE_BATCH"],
            optimizer=recipe["OPTIMIZER"],
            lr=lr,
            seed=seed,
        )
        loss = log.loc[log["chosen"], "val_loss"].iloc[0]
        if loss < best:
            best, kept = loss, classifier
    return kept


def score(classifier, tiles, index, recipe, fabric) -> tuple[float, float]:
    """Accuracy and AUC against the label of seven readers."""
    found = fine_tuning.predict(classifier, tiles.images[index], recipe["IMAGE_SIZE"], fabric)
    y = tiles.labels[index]
    return (found.argmax(1) == y).mean(), roc_auc_score(y, found[:, 1])


def measure(seed: int, recipe: dict) -> dict[str, float]:
    """One seed: its own cohort, split, initial weights and batches."""
    fabric, n = runs.make_fabric(seed), recipe["N_TILES"]

    def load(**how):
        return data.load_tiles("synthetic", n=n, seed=seed, **how)

    tiles = load()
    parts = data.split(tiles, test=recipe["TEST"], validation=recipe["VALIDATION"], seed=seed)
    test, y, cohort = parts.test, tiles.labels, make_cohort(n, seed)
    result = {}
    colour = evaluation.colour_statistics(tiles.images)
    model = evaluation.colour_baseline(colour[parts.train], y[parts.train])
    result["colour only, AUC"] = roc_auc_score(y[test], model.predict_proba(colour[test])[:, 1])
    torch.manual_seed(seed)
    encoder = models.Encoder(recipe["BACKBONE"])
    features = [
        pretraining.embed(encoder, tiles.images[i], recipe["IMAGE_SIZE"], fabric)
        for i in (parts.train, parts.val, test)
    ]
    probe = fine_tuning.linear_probe(features[0], y[parts.train], features[1], y[parts.val])
    found = probe.predict_proba(features[2].numpy())
    result["random encoder, AUC"] = roc_auc_score(y[test], found[:, 1])
    classifier = train(tiles, parts, recipe, seed, fabric, recipe["FINE_TUNE_LR"])
    accuracy, auc = score(classifier, tiles, test, recipe, fabric)
    result |= {"from scratch, AUC": auc, "from scratch, accuracy": accuracy}
    # An eighth reader of the same kind, and one who knows the truth, against the majority of seven.
    truth = cohort.truth()["Distortion"].to_numpy()
    again = read(truth, np.random.default_rng(seed)) / 7
    alone = np.where(cohort.label == 1, again, 1 - again)[test].mean()
    result["single reader, accuracy"] = alone
    result["oracle, accuracy"] = (cohort.true_label == y)[test].mean()
    rate = recipe["FINE_TUNE_LR"][-1:]
    # The same slides on both scanners: nothing but the site differs.
    at = {site: load(scanner=site) for site in SITES}
    shifted = train(at[SITES[0]], parts, recipe, seed, fabric, rate)
    for site in SITES:
        result[f"trained on A, tested on {site[-1]}, AUC"] = score(
            shifted, at[site], test, recipe, fabric
        )[1]
    # The same slides with an ink dot that goes with the label, or against it, or none.
    inked = train(load(shortcut="ink"), parts, recipe, seed, fabric, rate)
    for name, how in {
        "with the label": {"shortcut": "ink"},
        "absent": {},
        "against the label": {"shortcut": "ink", "strength": -0.9},
    }.items():
        result[f"trained on ink, ink {name}, AUC"] = score(
            inked, load(**how), test, recipe, fabric
        )[1]
    return result


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    arguments = parser.parse_args()
    recipe = {}
    for lesson in lesson_files("01-04"):
        recipe |= parameters_of(lesson)
    rows = []
    for seed in range(
        arguments.first, arguments.first + arguments.seeds
    ):  # none of them used to develop the generator
        rows.append(measure(seed, recipe))
        print(seed, {k: round(float(v), 3) for k, v in rows[-1].items()}, flush=True)
    table = pd.DataFrame(rows)
    lines = ["| | mean | lowest | highest |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {c.mean():.3f} | {c.min():.3f} | {c.max():.3f} |" for name, c in table.items()
    ]
    text = (
        "# How hard the drawn tissue is\n\n"
        f"`python benchmarks/tissue_difficulty.py --seeds {arguments.seeds}`: "
        f"{recipe['N_TILES']:,} tiles a seed, split by slide, the class preset, test tiles read "
        "once a seed. Drawn tissue: none of this is about patients.\n\n" + "\n".join(lines) + "\n"
    )
    (HERE / "TISSUE_DIFFICULTY.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
