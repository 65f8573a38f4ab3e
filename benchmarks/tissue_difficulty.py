"""How hard is the drawn tissue? Colour, random encoder, network from scratch; site and shortcut.

    python benchmarks/tissue_difficulty.py [--seeds 5] [--parts base site jitter ink]

Each seed draws a cohort of its own and splits it by slide with the class preset of lessons 01-04;
the class preset's recipe is trained from random weights, with all labels, the learning rate chosen
on validation. About eight minutes a seed on two cores; results are kept after every part in
`tissue_difficulty.json`, parts that are there already are not measured again, and
`TISSUE_DIFFICULTY.md` is written from them.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from crc_helpers import augmentation, data, evaluation, fine_tuning, models, pretraining, runs
from crc_helpers.course.settings import lesson_files, parameters_of
from crc_helpers.tissue.cohort import make_cohort, reader_votes

HERE = Path(__file__).parent


def train(tiles, parts, recipe, seed, fabric, rates) -> models.Classifier:
    """The class preset from random weights; the rate with the lower validation loss is kept."""
    best, kept, views = np.inf, None, recipe["FINE_TUNE_VIEWS"]
    for lr in rates:
        torch.manual_seed(seed)
        classifier = models.Classifier(models.Encoder(recipe["BACKBONE"]), 2)
        log = fine_tuning.fine_tune(
            classifier,
            *((tiles.images[part], tiles.labels[part]) for part in (parts.train, parts.val)),
            views if isinstance(views, augmentation.Views) else augmentation.VIEWS[views],
            fabric,
            pretraining.Training(
                recipe["IMAGE_SIZE"],
                recipe["FINE_TUNE_EPOCHS"],
                recipe["FINE_TUNE_BATCH"],
                lr,
                recipe["OPTIMIZER"],
                seed,
            ),
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


def base(load, parts, recipe, seed, fabric) -> dict[str, float]:
    """Colour, random encoder and scratch, between a single reader and an oracle."""
    tiles, test, cohort = load(), parts.test, make_cohort(recipe["N_TILES"], seed)
    y, result = tiles.labels, {}
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
    again = reader_votes(truth, np.random.default_rng(seed)) / 7
    alone = np.where(cohort.label == 1, again, 1 - again)[test].mean()
    result["single reader, accuracy"] = alone
    result["oracle, accuracy"] = (cohort.true_label == y)[test].mean()
    return result


def site(load, parts, recipe, seed, fabric, name="site") -> dict[str, float]:
    """Train on sites A and B; test on the same slides as they are, and as site C has them."""
    tiles, away = load(), load(scanner="Scanner C")
    network = train(tiles, parts, recipe, seed, fabric, recipe["FINE_TUNE_LR"][-1:])
    here, there = (score(network, t, parts.test, recipe, fabric)[1] for t in (tiles, away))
    found = {"AUC at home": here, "AUC at site C": there, "lost": here - there}
    return {f"{name}: {what}": value for what, value in found.items()}


def jitter(load, parts, recipe, seed, fabric) -> dict[str, float]:
    """The same without any jitter of stain and colour in training."""
    none = dict.fromkeys(("stain", "brightness", "contrast", "saturation"), 0.0)
    plain = replace(augmentation.VIEWS[recipe["FINE_TUNE_VIEWS"]], **none)
    without = recipe | {"FINE_TUNE_VIEWS": plain}
    return site(load, parts, without, seed, fabric, "site, no colour jitter")


def ink(load, parts, recipe, seed, fabric) -> dict[str, float]:
    """The same slides with an ink dot that goes with the label, or against it, or none."""
    rate = recipe["FINE_TUNE_LR"][-1:]
    inked = train(load(shortcut="ink"), parts, recipe, seed, fabric, rate)
    tests = {
        "with the label": {"shortcut": "ink"},
        "absent": {},
        "against the label": {"shortcut": "ink", "strength": -0.9},
    }
    return {
        f"trained on ink, ink {name}, AUC": score(inked, load(**how), parts.test, recipe, fabric)[1]
        for name, how in tests.items()
    }


PARTS = {"base": base, "site": site, "jitter": jitter, "ink": ink}


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    recipe = {}
    for lesson in lesson_files("01-04"):
        recipe |= parameters_of(lesson)
    record = HERE / "tissue_difficulty.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        done, fabric = known.setdefault(str(seed), {}), runs.make_fabric(seed)

        def load(seed=seed, **how):
            confounders = data.Confounders(**how)
            return data.load_tiles(n=recipe["N_TILES"], seed=seed, confounders=confounders)

        shares = {"test": recipe["TEST"], "validation": recipe["VALIDATION"]}
        for name in arguments.parts:
            if name not in done:
                parts = data.split(load(), **shares, seed=seed)
                found = PARTS[name](load, parts, recipe, seed, fabric)
                done[name] = {k: round(float(v), 3) for k, v in found.items()}
                runs.save_json(record, known)
                print(seed, done[name], flush=True)
    (HERE / "TISSUE_DIFFICULTY.md").write_text(report(known, recipe["N_TILES"]), encoding="utf-8")


def spread(column: pd.Series) -> str:
    """The 95 % interval of the mean over seeds (Student's t), where there are three or more."""
    n = column.count()
    if n < 3:
        return ""
    half = stats.t.ppf(0.975, n - 1) * column.std() / n**0.5
    return f" [{column.mean() - half:.3f}, {column.mean() + half:.3f}]"


def report(known: dict, n: int) -> str:
    """The results of all seeds as Markdown."""
    rows = [{k: v for part in done.values() for k, v in part.items()} for done in known.values()]
    table = pd.DataFrame(rows)
    lines = ["| | mean [95 % interval] | lowest | highest | seeds |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {c.mean():.3f}{spread(c)} | {c.min():.3f} | {c.max():.3f} | {c.count()} |"
        for name, c in table.items()
    ]
    return (
        "# How hard the drawn tissue is\n\n"
        f"`python benchmarks/tissue_difficulty.py`: {n:,} tiles a seed, split by slide, the class "
        "preset, test tiles read once a seed and part. None of these seeds was used to develop "
        "the generator. Drawn tissue: none of this is about patients.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
