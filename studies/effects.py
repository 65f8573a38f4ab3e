"""What pre-training and Grad-CAM are worth: the figures behind lessons 03 to 06, on fresh cohorts.

Network and recipe were chosen on the cohort of seed 201, by the tiles outside its training part.
The seeds here chose nothing: 0 is the course's own cohort, the others repeat it.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial

import numpy as np
import torch
from common import Study, Trainer, main

from crc_helpers.augmentation import shrink
from crc_helpers.claims import Answer, Recipe, labelled_subset, scores
from crc_helpers.evaluation import bootstrap_interval, colour_baseline, colour_statistics, macro_auc
from crc_helpers.explanations import centre_map, edge_map
from crc_helpers.fine_tuning import linear_probe, predict, probe_classifier
from crc_helpers.grad_cam import enlarge, grad_cam, hits, mass_inside
from crc_helpers.models import Classifier, Encoder, contrastive_model, load_weights, save_weights
from crc_helpers.pretraining import Contrast, Training, pretrain
from crc_helpers.runs import fingerprint
from crc_helpers.sources.cache import cache_folder
from crc_helpers.sources.store import content_hash

SEEDS = (0, 401, 402, 403, 404, 405)
EPOCHS = (0, 10, 20, 30)  # and the last, after which the frozen features are tested
SHARE, DRAWS = 0.05, 10  # of the labels, and how often it is drawn on the course's own cohort
CHEAP = ("frozen, pre-trained", "frozen, random", "colour only")
TRAINED = ("from scratch", "from scratch, patient", "fine-tuned whole", "probe first, fine-tuned")
MAPS = (
    "trained",
    "frozen, pre-trained",
    "from scratch",
    "random weights",
    "edges",
    "centre",
    "another tile",
    "chance",
)
PATIENT = 4  # times the labelled steps of the other arms
FEW_RATE = 3e-3  # from scratch on few labels: best of 3e-4, 1e-3, 3e-3, 1e-2 on cohort 201
RECIPE = Recipe(
    1300, 96, "resnet8_fine", pretrain_epochs=50, pretrain_batch=64, steps=120, rates=(1e-3,)
)


def plan(seeds: int) -> list[dict]:
    """Plan all figures, seed by seed; what trains for minutes has fewer draws on fresh cohorts."""
    rows = []
    probes = [*EPOCHS, RECIPE.pretrain_epochs]
    for seed in SEEDS[:seeds]:
        rows += [{"seed": seed, "figure": "probe", "arm": f"epoch {e}"} for e in probes]
        rows += [{"seed": seed, "figure": "map", "arm": arm} for arm in MAPS]
        few = {"seed": seed, "figure": "labels", "share": SHARE}
        trained = 2 if seed else DRAWS
        rows += [few | {"draw": d, "arm": a} for a in CHEAP for d in range(DRAWS)]
        rows += [few | {"draw": d, "arm": a} for a in TRAINED for d in range(trained)]
    return rows


def row(t: Trainer, figure: str, arm: str, share: float = 1.0, draw: int = 0) -> dict:
    """The frozen probe by epochs, few labels, and where Grad-CAM points, on the test part."""
    if figure == "probe":
        return probe_row(t, min(int(arm.split()[1]), t.recipe.pretrain_epochs))
    if figure == "map":
        return map_row(t, arm)
    labelled = t.parts.train[labelled_subset(t.labels(t.parts.train), share, 1000 * t.seed + draw)]
    return {"labels": len(labelled)} | t.score(answer(t, arm, labelled))


@lru_cache(maxsize=1)
def encoders(t: Trainer) -> dict[int, Encoder]:
    """Return the encoder after each of EPOCHS and the last, from the cache if they are there."""
    r, images = t.recipe, t.tiles.images.pick(t.parts.pretraining)
    wanted = {min(e, r.pretrain_epochs) for e in (*EPOCHS, r.pretrain_epochs)}
    mark = fingerprint(**vars(r), tiles=content_hash(images), seed=t.seed)
    files = {e: cache_folder() / "studies" / f"{mark}_{e}.safetensors" for e in wanted}

    def keep(encoder: Encoder, epoch: int) -> dict[str, float]:
        if epoch in files:
            save_weights(files[epoch], encoder)
        return {}

    if not files[r.pretrain_epochs].is_file():
        model = contrastive_model(r.backbone, r.head, t.seed)
        training = Training(
            r.size, r.pretrain_epochs, r.pretrain_batch, r.pretrain_lr, r.optimizer, t.seed
        )
        loss = Contrast(r.temperature)
        pretrain(model, images, r.views, t.fabric, training, loss, monitor=keep)
    return {e: load_weights(file, Encoder(r.backbone)).eval() for e, file in files.items()}


def last(t: Trainer) -> Encoder:
    """Return a pre-trained encoder that its caller may train on."""
    return copy.deepcopy(encoders(t)[t.recipe.pretrain_epochs])


@cache
def features(t: Trainer, epoch: int) -> torch.Tensor:
    """Return what the encoder after an epoch says of all tiles, float32 (N, D)."""
    return t.features(encoders(t)[epoch], np.arange(len(t.tiles)))


def frozen(t: Trainer, epoch: int, labelled: np.ndarray) -> Answer:
    """Fit a probe on the features after an epoch, its strength chosen on validation."""
    f, val = features(t, epoch), t.parts.val
    probe = linear_probe(f[labelled], t.labels(labelled), f[val], t.labels(val))
    return lambda index: probe.predict_proba(f[index].numpy())


def probe_row(t: Trainer, epoch: int) -> dict:
    """AUC of the frozen probe, and its gain over the random encoder, paired over slides."""
    test, labels = t.parts.test, t.labels(t.parts.test)
    now, before = (frozen(t, e, t.parts.train)(test) for e in (epoch, 0))

    def gain(k: np.ndarray) -> float:
        return macro_auc(labels[k], now[k]) - macro_auc(labels[k], before[k])

    low, high = interval(t, gain)
    ends = interval(t, lambda k: macro_auc(labels[k], now[k]))
    return (
        scores(labels, now)
        | {"low": ends[0], "high": ends[1]}
        | {"gain": gain(np.arange(len(test))), "gain_low": low, "gain_high": high}
    )


def interval(t: Trainer, statistic: Callable, index: np.ndarray | None = None) -> tuple:
    """Return the bootstrap interval of a statistic of test tiles, over slides where known."""
    index = t.parts.test if index is None else index
    groups = None if t.tiles.groups is None else t.tiles.groups[index]
    return bootstrap_interval(statistic, len(index), groups)


def answer(t: Trainer, arm: str, labelled: np.ndarray) -> Answer:
    """Train or fit one arm on the labelled tiles; validation chooses its epoch or strength."""
    if arm == "colour only":
        numbers = colour_statistics(t.tiles.images[labelled])
        colour = colour_baseline(numbers, t.labels(labelled))
        return lambda index: colour.predict_proba(colour_statistics(t.tiles.images[index]))
    if arm.startswith("frozen"):
        return frozen(t, t.recipe.pretrain_epochs if "pre-trained" in arm else 0, labelled)
    steps = t.recipe.steps * (PATIENT if arm.endswith("patient") else 1)
    if arm == "probe first, fine-tuned":
        probe = t.fit_probe(last(t), labelled)
        start, rates = lambda: probe_classifier(last(t), probe), (1e-4, 3e-4)
    elif arm.startswith("from scratch"):
        start, rates = t.random_encoder, (FEW_RATE,)
    else:
        start, rates = partial(last, t), t.recipe.rates
    return t.train(start, labelled, recipe=replace(t.recipe, steps=steps, rates=rates))


@cache
def networks(t: Trainer) -> dict[str, Classifier]:
    """Return the networks whose maps are scored, trained with all labels."""
    probe = t.fit_probe(last(t))
    longer = replace(t.recipe, steps=10 * (len(t.parts.train) // t.recipe.batch))
    torch.manual_seed(t.seed)
    random = Classifier(t.random_encoder(), len(t.tiles.class_names)).eval()
    return {
        "trained": t.fit(partial(last, t), recipe=longer),
        "from scratch": t.fit(t.random_encoder, recipe=longer),
        "frozen, pre-trained": probe_classifier(last(t), probe),
        "random weights": random,
    }


@cache
def recognised(t: Trainer) -> np.ndarray:
    """Return the test tiles of the second class that the trained network recognises."""
    test = t.parts.test[t.labels(t.parts.test) == 1]
    called = predict(networks(t)["trained"], t.tiles.images[test], t.recipe.size, t.fabric)
    return test[called.argmax(axis=1) == 1]


def heat(t: Trainer, arm: str) -> np.ndarray:
    """Return what an arm marks as evidence for the second class, (n, H, W)."""
    index, size = recognised(t), t.tiles.images.shape[-1]
    x = shrink(torch.from_numpy(np.array(t.tiles.images[index])), t.recipe.size)
    network = networks(t).get(arm, networks(t)["trained"])
    batches = [grad_cam(network.cpu(), part, target=1).maps for part in x.split(64)]
    maps = enlarge(torch.cat(batches), size)
    if arm == "another tile":
        return np.roll(maps, len(maps) // 2, axis=0)  # half of all tiles on: another slide
    if arm == "centre":
        return centre_map(len(maps), size)
    if arm == "edges":
        grain = t.recipe.size / batches[0].shape[-1] / 2
        return enlarge(torch.from_numpy(edge_map(x, grain)), size)
    return maps


def map_row(t: Trainer, arm: str) -> dict:
    """Pointing game and heat inside the region, of the tiles of SSA that are recognised as such."""
    index = recognised(t)
    if t.tiles.masks is None:  # nothing to score a map against
        return {"tiles_scored": 0}
    region = t.tiles.masks[index]
    if arm == "chance":
        area = region.mean(axis=(1, 2))
        measured = {"hit": area, "mass": area}
    else:
        maps = heat(t, arm)
        measured = {"hit": hits(maps, region), "mass": mass_inside(maps, region)}
    row: dict = {"tiles_scored": len(index)}
    for name, value in measured.items():
        kept = ~np.isnan(value)
        ends = interval(t, lambda k, v=value[kept]: v[k].mean(), index[kept])
        row |= {name: float(value[kept].mean()), f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return row


STUDY = Study("effects", plan, row, RECIPE, first_seed=0)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
