"""Sweeps behind lessons 07 and 08: many runs, a row each, kept in `studies/NAME.csv`.

A study is a plan, the rows there shall be, and a function that measures one. A row names its seed,
its parameters, its result, its machine and the commit; rows that are there are not measured again,
so a study can be stopped and gone on with. A seed is another cohort, another split and another
initialisation: on drawn tissue another tissue, on real tiles another split by case.
"""

import hashlib
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from crc_helpers import claims_on_trial as claims
from crc_helpers import explanations_on_trial as trials
from crc_helpers.augmentation import VIEWS, Views
from crc_helpers.data import Split, Tiles, balance, cache_folder, load_tiles
from crc_helpers.data import split as divide
from crc_helpers.evaluation import colour_baseline, colour_statistics, macro_auc
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict, probe_classifier
from crc_helpers.models import Classifier, Encoder, ProjectionHead, published_on_disk
from crc_helpers.pretraining import effective_rank, embed, knn_accuracy, pretrain
from crc_helpers.runs import (
    ROOT,
    RunError,
    device_name,
    file_hash,
    fingerprint,
    load_weights,
    make_fabric,
    only_one,
    save_table,
    save_weights,
)
from crc_helpers.synthetic_cohort import make_cohort
from crc_helpers.synthetic_tissue import KINDS
from crc_helpers.tile_store import content_hash

FOLDER = ROOT / "studies"
FIRST_SEED = 200  # of the cohorts: none that the course was developed on


@dataclass(frozen=True)
class Recipe:
    """What all rows of a study share unless they say otherwise: the size of the experiment."""

    n_tiles: int = 1000  # drawn tissue only
    size: int = 64  # side of a view, pixels
    backbone: str = "resnet8"
    pretrain_epochs: int = 10
    pretrain_batch: int = 64
    pretrain_lr: float = 1e-3
    optimizer: str = "adamw-one-cycle"  # of pre-training
    temperature: float = 0.2
    head: str = "linear"
    views: Views = VIEWS["tissue"]
    objective: str = "NT-Xent"
    steps: int = 120  # of labelled training, whatever the number of labels
    batch: int = 32
    rates: tuple[float, ...] = (3e-4, 1e-3)  # tried by each arm, chosen on validation


@dataclass
class Trial:
    """One seed's tiles and split, and the means to train and to score on them."""

    seed: int
    data: str = "synthetic"
    root: str | None = None
    classes: Any = None
    recipe: Recipe = field(default_factory=Recipe)
    given: Tiles | None = None  # instead of the seed's own
    divided: Split | None = None  # instead of the seed's own

    @cached_property
    def fabric(self) -> Fabric:
        """The device."""
        return make_fabric(self.seed)

    @cached_property
    def tiles(self) -> Tiles:
        """The cohort of this seed; real tiles are the same for all."""
        if self.given:
            return self.given
        return load_tiles(self.data, self.root, classes=self.classes, n=self.recipe.n_tiles,
                          seed=FIRST_SEED + self.seed)  # fmt: skip

    @cached_property
    def marked(self) -> Tiles:
        """The first of these tiles, drawn tissue only, with a dot of ink on every SSA."""
        return load_tiles("synthetic", n=min(240, self.recipe.n_tiles), seed=FIRST_SEED + self.seed,
                          shortcut="ink", strength=1.0)  # fmt: skip

    @cached_property
    def parts(self) -> Split:
        """By slide or case where they are known; an official partition is not used."""
        return self.divided or divide(
            replace(self.tiles, partition=None), test=0.35, seed=self.seed
        )

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Labels of some tiles."""
        return self.tiles.labels[index]

    def random_encoder(
        self, backbone: str | Callable[[], nn.Module] | None = None, salt: int = 0
    ) -> Encoder:
        """An encoder nobody has trained; the same for the same seed and salt.

        backbone: a name, or what makes a network, if not the recipe's.
        """
        torch.manual_seed(self.seed + 1000 * salt)
        made = backbone() if callable(backbone) else backbone
        return Encoder(made or self.recipe.backbone)

    def pretrained(self, recipe: Recipe | None = None, index: np.ndarray | None = None) -> Encoder:
        """The encoder after pre-training; kept in the cache, as many rows begin with the same one.

        index: tiles to learn from without labels; those for training if not given.
        """
        r = recipe or self.recipe
        index = self.parts.pretraining if index is None else index
        settings = {k: v for k, v in vars(r).items() if k not in ("steps", "batch", "rates")}
        labels = self.tiles.labels[index]
        mark = fingerprint(tiles=content_hash(self.tiles.images.pick(index)), seed=self.seed,
                           labels=labels.tolist() if r.objective == "SupCon" else None,
                           objectives=file_hash(Path(claims.__file__)), **settings)  # fmt: skip
        file = cache_folder() / "studies" / f"{mark}.safetensors"
        encoder = self.random_encoder(r.backbone)
        if file.is_file():
            return load_weights(file, encoder).to(self.fabric.device)
        head = ProjectionHead(encoder.dim, kind=r.head)
        objective = claims.make_objective(r.objective, nn.Sequential(encoder, head), r.temperature,
                                          labels)  # fmt: skip
        pretrain(
            encoder, head, self.tiles.images.pick(index), r.views, self.fabric, size=r.size,
            epochs=r.pretrain_epochs, batch=r.pretrain_batch, lr=r.pretrain_lr,
            temperature=r.temperature, optimizer=r.optimizer, seed=self.seed,
            objective=objective,
        )  # fmt: skip
        save_weights(file, encoder, origin=False)
        return encoder

    def longer(self) -> Encoder:
        """The encoder after LONGER times as many epochs of pre-training."""
        epochs = LONGER * self.recipe.pretrain_epochs
        return self.pretrained(replace(self.recipe, pretrain_epochs=epochs))

    @cached_property
    def many(self) -> "Trial":
        """The same on all classes: four kinds of drawn tissue, or all that the real tiles have."""
        return replace(self, classes=KINDS if self.data == "synthetic" else "all")

    @cached_property
    def scratch(self) -> "Fitted":
        """The network from scratch with all labels, which several rows need."""
        return self.train(self.random_encoder)

    @cached_property
    def known(self) -> Tensor:
        """What the pre-trained encoder says of all tiles, float32 (N, D)."""
        return self.features(self.pretrained(), np.arange(len(self.tiles)))

    @cached_property
    def known_longer(self) -> Tensor:
        """What the encoder pre-trained longer says of all tiles, float32 (N, D)."""
        return self.features(self.longer(), np.arange(len(self.tiles)))

    @cached_property
    def known_untrained(self) -> Tensor:
        """What a random encoder says of all tiles, float32 (N, D)."""
        return self.features(self.random_encoder(), np.arange(len(self.tiles)))

    def features(self, encoder: nn.Module, index: np.ndarray) -> Tensor:
        """What an encoder says of some tiles, float32 (N, D)."""
        return embed(encoder, self.tiles.images[index], self.recipe.size, self.fabric)

    def fit_probe(self, encoder: Encoder, labelled: np.ndarray | None = None) -> Pipeline:
        """A linear probe on some of the training tiles, its strength chosen on validation."""
        train = self.parts.train if labelled is None else labelled
        val = self.parts.val
        return linear_probe(self.features(encoder, train), self.labels(train),
                            self.features(encoder, val), self.labels(val))  # fmt: skip

    def probe(self, encoder: Encoder, labelled: np.ndarray | None = None) -> Callable:
        """The same as a function from tiles to probabilities (N, C)."""
        fitted = self.fit_probe(encoder, labelled)
        return lambda index: fitted.predict_proba(self.features(encoder, index).numpy())

    def train(
        self,
        start: Callable[[], Encoder | Classifier],
        labelled: np.ndarray | None = None,
        views: Views = VIEWS["gentle"],
        recipe: Recipe | None = None,
        salt: int = 0,
        **options: Any,
    ) -> "Fitted":
        """Train a classifier for `steps`, at each rate; the best on validation is returned.

        start: gives the encoder to begin with, or a classifier that has it. labelled: tiles to
        train on, which may recur.
        """
        r = recipe or self.recipe
        index = self.parts.train if labelled is None else labelled
        # Few tiles recur, each time as another view, so that all arms are validated about as often.
        index = np.sort(np.resize(index, max(len(index), r.batch * max(1, r.steps // 10))))
        best, kept = np.inf, None
        for rate in r.rates:
            begun = start()
            torch.manual_seed(self.seed + 1000 * salt)
            named = isinstance(begun, Classifier)
            classifier = begun if named else Classifier(begun, len(self.tiles.class_names))
            log = fine_tune(
                classifier, self.tiles.images[index], self.labels(index),
                self.tiles.images[self.parts.val], self.labels(self.parts.val), views,
                self.fabric, size=r.size, batch=r.batch, lr=rate, optimizer="adamw-one-cycle",
                epochs=max(1, round(r.steps / (len(index) // r.batch))), 
                seed=self.seed + 1000 * salt, **options,
            )  # fmt: skip
            judge = "val_loss" if "val_loss" in log else "loss"  # the paper has no validation
            loss = log.loc[log["chosen"], judge].iloc[0]
            if loss < best:
                best, kept = loss, classifier
        return Fitted(kept, self, r.size)

    def score(self, classify: Callable, index: np.ndarray | None = None) -> dict[str, float]:
        """Balanced accuracy, accuracy and AUC, on the test part unless another is given."""
        index = self.parts.test if index is None else index
        return scores(self.labels(index), classify(index))


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Balanced accuracy, accuracy and AUC, macro averages where there are more than two classes."""
    said = probabilities.argmax(axis=1)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, said)),
        "accuracy": float((said == labels).mean()),
        "auc": macro_auc(labels, probabilities),
    }


@dataclass(frozen=True)
class Fitted:
    """A trained classifier, as a function from tiles to probabilities (N, C)."""

    classifier: Classifier
    trial: Trial
    size: int

    def __call__(self, index: np.ndarray, tiles: Tiles | None = None) -> np.ndarray:
        """Of some of the trial's tiles, or of others: the same slides on another scanner."""
        images = (tiles or self.trial.tiles).images[index]
        return predict(self.classifier, images, self.size, self.trial.fabric)


@lru_cache(maxsize=1)
def trial(seed: int, data: str, root: str | None, recipe: Recipe) -> Trial:
    """The trial of a seed, made once for the rows that follow each other."""
    return Trial(seed, data, root, recipe=recipe)


# --- The studies ----------------------------------------------------------------------------------

FRACTIONS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.0)
RETESTED = 0.54  # of EBHI-Seg, a quarter of all tiles by whole cases: 287 tested, 534 not
LONGER = 8  # times the recipe's epochs of pre-training, or steps with labels
LABEL_ARMS = (
    *("pre-trained, fine-tuned", "from scratch", "frozen probe", "random encoder, probe"),
    *("pre-trained longer, fine-tuned", "pre-trained longer, frozen probe"),
)
CONTROLS = ("from scratch, longer", "pre-trained longer, fine-tuned longer")


def labels_plan(seeds: int) -> Iterable[dict]:
    """Label efficiency: the same steps with ever fewer labels."""
    for seed, fraction, arm in itertools.product(range(seeds), FRACTIONS, LABEL_ARMS):
        yield {"seed": seed, "fraction": fraction, "arm": arm}
    # Is it the pre-training, or only more training? Costly controls, so at two shares.
    for fraction, arm, seed in itertools.product((0.10, 1.0), CONTROLS, range(seeds)):
        yield {"seed": seed, "fraction": fraction, "arm": arm}


def labels_row(t: Trial, fraction: float, arm: str) -> dict:
    """One arm with a share of the labels, on the test part."""
    train = t.parts.train
    labelled = train[claims.labelled_subset(t.labels(train), fraction, t.seed)]
    r = t.recipe
    encoder = t.pretrained if arm.startswith(("pre", "frozen")) else t.random_encoder
    if arm.startswith("pre-trained longer"):
        encoder = t.longer
    if arm in CONTROLS:
        r = replace(r, steps=LONGER * r.steps)
    if arm.endswith("probe"):
        fit = t.probe(encoder(), labelled)
    else:
        fit = t.train(encoder, labelled, recipe=r)
    return {"labels": len(labelled), "steps": r.steps} | t.score(fit)


CONFIRMED = (
    *("from scratch", "random encoder, probe", "pre-trained, frozen probe"),
    *("pre-trained, fine-tuned", "pre-trained, probe first", "the paper's recipe, fine-tuned"),
)
FRESH = 100  # the first seed of cohorts and splits that chose no recipe


def confirmation_plan(seeds: int) -> Iterable[dict]:
    """What the other studies suggested, asked once more of cohorts that suggested nothing."""
    for seed, fraction, arm in itertools.product(range(seeds), (0.1, 1.0), CONFIRMED):
        yield {"seed": FRESH + seed, "fraction": fraction, "arm": arm}


def confirmation_row(t: Trial, fraction: float, arm: str) -> dict:
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


BASELINES = {
    "majority": "says the common class",
    "colour only": "15 colour numbers, logistic regression",
    "random encoder, probe": "untrained filters, logistic regression",
    "from scratch": "the small ResNet",
    "plain CNN": "after Yildirim et al. 2022",
    "ResNet-18": "after Wei et al. 2020",
    "Inception-ResNet-v2": "after Gupta et al. 2021",
    "ResNet-18, ImageNet": "weights from natural images, where they are on disk",
    "ensemble of three": "after Dif et al. 2020",
    "pre-trained, probe": "frozen",
    "pre-trained, fine-tuned": "the paper's method",
    "pre-trained longer, probe": "frozen",
    "pre-trained longer, fine-tuned": "the paper's method, LONGER times the epochs without labels",
}


def baselines_plan(seeds: int) -> Iterable[dict]:
    """Rivals on the same tiles, with the same steps and the same search for a rate."""
    # The largest is twenty times as slow as the others, and so is tried three times at most.
    for seed, arm in itertools.product(range(seeds), BASELINES):
        if arm == "Inception-ResNet-v2" and seed > 2:
            continue
        if arm == "ResNet-18, ImageNet" and not published_on_disk("resnet18"):
            continue
        yield {"seed": seed, "arm": arm}


def baselines_row(t: Trial, arm: str) -> dict:
    """One rival, on the test part."""
    return t.score(fit(t, arm))


def fit(t: Trial, arm: str, labelled: np.ndarray | None = None) -> Callable:
    """Train a rival; return it as a function from tiles to probabilities (N, C).

    labelled: the training tiles whose labels it gets; all if not given.
    """
    train = t.parts.train if labelled is None else labelled
    y = t.labels(train)
    if arm == "majority":
        share = np.bincount(y, minlength=len(t.tiles.class_names)) / len(y)
        return lambda index: np.tile(share, (len(index), 1))
    if arm == "colour only":
        known = colour_baseline(colour_statistics(t.tiles.images[train]), y)
        return lambda index: known.predict_proba(colour_statistics(t.tiles.images[index]))
    start = {
        "random encoder, probe": t.random_encoder,
        "from scratch": t.random_encoder,
        "plain CNN": partial(t.random_encoder, claims.PlainCNN),
        "ResNet-18": partial(t.random_encoder, "resnet18"),
        "ResNet-18, ImageNet": partial(Encoder, "resnet18", "imagenet"),
        "pre-trained, probe": t.pretrained,
        "pre-trained, fine-tuned": t.pretrained,
        "pre-trained longer, probe": t.longer,
        "pre-trained longer, fine-tuned": t.longer,
    }
    if arm.endswith("probe"):
        return t.probe(start[arm](), train)
    if arm == "ensemble of three":
        members = [t.scratch if labelled is None else t.train(t.random_encoder, train)]
        members += [t.train(partial(t.random_encoder, salt=k), train, salt=k) for k in (1, 2)]
        return lambda index: np.mean([member(index) for member in members], axis=0)
    if arm == "Inception-ResNet-v2":  # tiles under 75 px vanish in it
        r = replace(t.recipe, size=max(t.recipe.size, 96))
        return t.train(partial(t.random_encoder, "inception_resnet_v2"), train, recipe=r)
    if arm == "from scratch" and labelled is None:
        return t.scratch
    return t.train(start[arm], train)


FACTORS: dict[str, tuple] = {
    "temperature": (0.07, 0.1, 0.4, 0.7),
    "head": ("mlp",),
    "crop": (0.08, 0.7),  # the smallest share of the tile's area kept
    "stain": (0.0, 0.7),
    "pretrain_batch": (32, 128),
    "pretrain_epochs": (5, 20, 80),
    "tiles": ("balanced", "the scored ones too"),  # without labels, either way
}


def recipe_plan(seeds: int) -> Iterable[dict]:
    """What matters in pre-training: one factor at a time is moved away from the recipe."""
    for seed in range(seeds):
        yield {"seed": seed, "factor": "none", "value": "the recipe"}
        for factor, values in FACTORS.items():
            for value in values:
                yield {"seed": seed, "factor": factor, "value": value}


def recipe_row(t: Trial, factor: str, value: Any) -> dict:
    """kNN and probe, on validation, of an encoder pre-trained with one thing changed.

    On all classes: the study `questions` shows what pre-training can gain there.
    """
    t = t.many
    r, train, val, index = t.recipe, t.parts.train, t.parts.val, None
    y = t.labels(train)
    if factor == "crop":
        r = replace(r, views=replace(r.views, crop=(value, 1.0)))
    elif factor == "stain":
        r = replace(r, views=replace(r.views, stain=value))
    elif factor == "tiles":
        more = np.concatenate([train, val])
        index = train[balance(y, np.random.default_rng(t.seed))[0]] if value == "balanced" else more
        # As many steps as on the usual tiles.
        r = replace(r, pretrain_epochs=round(r.pretrain_epochs * len(train) / len(index)))
    elif factor != "none":
        r = replace(r, **{factor: value})
    encoder = t.pretrained(r, index)
    known, asked = t.features(encoder, train), t.features(encoder, val)
    found = {"knn": knn_accuracy(known, y, asked, t.labels(val))}
    few = claims.labelled_subset(y, 0.1, t.seed)
    for name, given in (("auc", np.arange(len(y))), ("auc_of_a_tenth", few)):
        # The strength is not chosen: validation, which would choose it, is what scores here.
        probe = linear_probe(known[given], y[given], known[:0], y[:0])
        found[name] = macro_auc(t.labels(val), probe.predict_proba(asked.numpy()))
    return found


OBJECTIVES = ("random encoder", "NT-Xent", "MoCo", "SimSiam", "Barlow Twins", "SupCon")


def objectives_plan(seeds: int) -> Iterable[dict]:
    """Other ways to learn without labels, on the same loop and with the same MLP head."""
    for seed, objective in itertools.product(range(seeds), OBJECTIVES):
        yield {"seed": seed, "objective": objective}


def objectives_row(t: Trial, objective: str) -> dict:
    """Probe for all classes, on the test part, and the effective rank of the features."""
    t = t.many
    r = replace(t.recipe, head="mlp", objective=objective)
    encoder = t.random_encoder() if objective == "random encoder" else t.pretrained(r)
    rank = effective_rank(t.features(encoder, t.parts.train))
    return {"effective_rank": rank} | t.score(t.probe(encoder))


REMEDIES = ("none", "discarding", "class weights", "focal loss", "oversampling", "threshold moved")


def imbalance_plan(seeds: int) -> Iterable[dict]:
    """Remedies for uneven classes, at natural prevalence."""
    for seed, remedy in itertools.product(range(seeds), REMEDIES):
        yield {"seed": seed, "remedy": remedy}


def imbalance_row(t: Trial, remedy: str) -> dict:
    """One remedy, from scratch, on the test part as common as the classes are.

    All are judged by balanced accuracy, so validation chooses by the balanced loss for all.
    """
    train = t.parts.train
    y = t.labels(train)
    count = np.bincount(y)
    if len(count) != 2:
        raise RunError(f"imbalance: there are {len(count)} classes, sensitivity is defined for two")
    weight = torch.tensor(len(y) / count / len(count), dtype=torch.float32)
    options = {"val_criterion": nn.CrossEntropyLoss(weight)}
    if remedy == "discarding":
        train = train[balance(y, np.random.default_rng(t.seed))[0]]
    elif remedy == "class weights":
        options["criterion"] = nn.CrossEntropyLoss(weight.to(t.fabric.device))
    elif remedy == "focal loss":
        options["criterion"] = claims.focal_loss
    elif remedy == "oversampling":
        train = train[claims.oversampled(y)]
    classify = t.train(t.random_encoder, train, **options)
    threshold = 0.5
    if remedy == "threshold moved":
        val = t.parts.val
        threshold = claims.best_threshold(t.labels(val), classify(val)[:, 1])
    y, found = t.labels(t.parts.test), classify(t.parts.test)
    said = found[:, 1] >= threshold
    sensitivity, specificity = float(said[y == 1].mean()), float(1 - said[y == 0].mean())
    return scores(y, found) | {
        "accuracy": float((said == (y == 1)).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


CURES = ("none", "jitter of stain and colour", "Reinhard", "Macenko")


WAYS = {"scanners A and B": ("as they are", "Scanner C"), "scanner C": ("Scanner C", "as they are")}


def site_plan(seeds: int) -> Iterable[dict]:
    """Trained on some scanners, tested on the same slides from these and from others, both ways."""
    for trained_on, seed, cure in itertools.product(WAYS, range(seeds), CURES):
        yield {"seed": seed, "trained_on": trained_on, "cure": cure}


def site_row(t: Trial, trained_on: str, cure: str) -> dict:
    """AUC at home and away; jitter acts in training, normalisation on all tiles."""
    plain = replace(VIEWS["gentle"], stain=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
    slides = {
        "as they are": t.tiles,
        "Scanner C": load_tiles(n=t.recipe.n_tiles, seed=FIRST_SEED + t.seed, scanner="Scanner C"),
    }
    tiles = {k: slides[v] for k, v in zip(("home", "away"), WAYS[trained_on], strict=True)}
    if cure in ("Reinhard", "Macenko"):
        reference = tiles["home"].images[t.parts.train[0]]
        tiles = {
            place: replace(there, images=claims.normalise_stain(there.images[:], reference, cure))
            for place, there in tiles.items()
        }
    here = replace(t, given=tiles["home"], divided=t.parts)
    classify = here.train(
        t.random_encoder, views=VIEWS["gentle"] if cure.startswith("jitter") else plain
    )
    test = t.parts.test
    return {place: macro_auc(t.labels(test), classify(test, tiles[place])) for place in tiles}


BACKBONES = ("resnet8", "convnext_atto", "vit_tiny_patch16_224")


def backbones_plan(seeds: int) -> Iterable[dict]:
    """Other networks by name, from scratch."""
    for seed, name in itertools.product(range(seeds), BACKBONES):
        yield {"seed": seed, "network": name}


def backbones_row(t: Trial, network: str) -> dict:
    """From scratch, on the test part, at 96 px, of which each leaves Grad-CAM some cells."""
    r = replace(t.recipe, backbone=network, size=max(t.recipe.size, 96))
    start = replace(t, recipe=r)
    found = start.score(start.train(start.random_encoder))
    return found | {"size": r.size, "backbone": network}


FEW = ", 10 % of the labels"
CLASS_ARMS = ("colour only", "pre-trained, probe", "from scratch", "pre-trained, fine-tuned")
CLASS_ARMS += tuple(arm + FEW for arm in CLASS_ARMS[1:])


def classes_plan(seeds: int) -> Iterable[dict]:
    """Beyond two classes: four kinds of drawn tissue, or all that the real tiles have."""
    for seed, arm in itertools.product(range(seeds), CLASS_ARMS):
        yield {"seed": seed, "arm": arm}


def classes_row(t: Trial, arm: str) -> dict:
    """One arm on all classes: macro averages, and the confusion matrix, rows truth."""
    many = t.many
    train, rival, labelled = many.parts.train, arm.removesuffix(FEW), None
    if rival != arm:
        labelled = train[claims.labelled_subset(many.labels(train), 0.1, t.seed)]
    y, found = many.labels(many.parts.test), fit(many, rival, labelled)(many.parts.test)
    counts = confusion_matrix(y, found.argmax(axis=1), labels=range(len(many.tiles.class_names)))
    return scores(y, found) | {"confusion": json.dumps(counts.tolist())}


QUESTIONS = ("tube or ring?", "which scanner?", "adenoma or not?", "HP or SSA?")


def questions_plan(seeds: int) -> Iterable[dict]:
    """One encoder, trained without labels, and several questions to it: which does it answer?"""
    encoders = ("pre-trained", "random", "pre-trained longer")
    for seed, encoder, question, fraction in itertools.product(
        range(seeds), encoders, QUESTIONS, (0.1, 1.0)
    ):
        if encoder == "pre-trained longer" and seed >= 3:  # eight times as costly
            continue
        yield {"seed": seed, "question": question, "fraction": fraction, "encoder": encoder}


def questions_row(t: Trial, question: str, fraction: float, encoder: str) -> dict:
    """A probe's AUC for one question, on four kinds of drawn tissue, with a share of the labels."""
    t = t.many
    cohort = make_cohort(t.recipe.n_tiles, FIRST_SEED + t.seed, kinds=KINDS)
    kind = t.tiles.labels
    answers = {
        "tube or ring?": np.array([p.cut_angle > 45 for p in cohort.parameters]),
        "which scanner?": (t.tiles.metadata["Scanner"] == "Scanner B").to_numpy(),
        "adenoma or not?": kind == KINDS.index("Tubular adenoma"),
        "HP or SSA?": kind == KINDS.index("SSA"),
    }
    y = answers[question].astype(int)
    serrated = np.isin(kind, [KINDS.index("HP"), KINDS.index("SSA")])
    asked = serrated if question == "HP or SSA?" else np.ones(len(kind), bool)
    train, val, test = (p[asked[p]] for p in (t.parts.train, t.parts.val, t.parts.test))
    train = train[claims.labelled_subset(y[train], fraction, t.seed)]
    which = {
        "pre-trained": "known",
        "pre-trained longer": "known_longer",
        "random": "known_untrained",
    }
    known = getattr(t, which[encoder])
    probe = linear_probe(known[train], y[train], known[val], y[val])
    return {"labels": len(train)} | scores(y[test], probe.predict_proba(known[test].numpy()))


def metadata_plan(seeds: int) -> Iterable[dict]:
    """Beyond the tile: what size and site of the polyp add, and what happens without them."""
    for seed in range(seeds):
        yield {"seed": seed}


def metadata_row(t: Trial) -> dict:
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


def clinical_answers(t: Trial) -> np.ndarray:
    """P(SSA) on the test part (n,), by logistic regression on the polyp's size and site."""
    known = claims.clinical_features(t.tiles.metadata)
    regression = make_pipeline(StandardScaler(), LogisticRegression())
    regression.fit(known[t.parts.train], t.labels(t.parts.train))
    return regression.predict_proba(known[t.parts.test])[:, 1]


def undrawn(seed: int) -> Trial:
    """The trial of a seed on drawn tissue before one pixel is drawn: for what needs none."""
    n = Recipe().n_tiles
    cohort = make_cohort(n, FIRST_SEED + seed)
    known = dict.fromkeys(("partition", "votes", "masks", "mask_name", "mpp"))
    tiles = Tiles(
        np.zeros((n, 3, 1, 1), np.uint8), cohort.label, cohort.class_names,
        np.array(cohort.names), cohort.slide, name="synthetic", source="", licence="",
        metadata=cohort.table, **known,
    )  # fmt: skip
    return Trial(seed, given=tiles)


SPLITS = 50
SCHEMES = {"as in the paper": "paper", "by tile": "random", "by slide": "auto"}


def splits_plan(seeds: int) -> Iterable[dict]:
    """Each cohort is split 90:10 again and again, in three ways."""
    for seed, scheme, number in itertools.product(range(seeds), SCHEMES, range(SPLITS)):
        yield {"seed": seed, "scheme": scheme, "split": number}


def splits_row(t: Trial, scheme: str, split: int) -> dict:
    """Scores of a probe on one pre-trained encoder: only the split of the labels changes.

    "as in the paper" draws tiles after the surplus of the common class is thrown away.
    """
    if t.tiles.groups is None:
        raise RunError(f"splits: {t.tiles.name} does not say which tiles share a slide, and the"
                       " study compares splits by tile with splits by slide")  # fmt: skip
    tiles = replace(t.tiles, partition=None)
    parts = divide(tiles, SCHEMES[scheme], test=0.1, validation=0.1, seed=split)
    probe = linear_probe(t.known[parts.train], t.labels(parts.train), t.known[parts.val],
                         t.labels(parts.val))  # fmt: skip
    found = probe.predict_proba(t.known[parts.test].numpy())
    return {"tested": len(parts.test)} | scores(t.labels(parts.test), found)


STUDIES: dict[str, tuple[Callable[[int], Iterable[dict]], Callable[..., dict]]] = {
    "labels": (labels_plan, labels_row),
    "confirmation": (confirmation_plan, confirmation_row),
    "baselines": (baselines_plan, baselines_row),
    "recipe": (recipe_plan, recipe_row),
    "objectives": (objectives_plan, objectives_row),
    "imbalance": (imbalance_plan, imbalance_row),
    "site": (site_plan, site_row),
    "backbones": (backbones_plan, backbones_row),
    "classes": (classes_plan, classes_row),
    "questions": (questions_plan, questions_row),
    "metadata": (metadata_plan, metadata_row),
    "splits": (splits_plan, splits_row),
    "explanations": (trials.explanations_plan, trials.explanations_row),
}
SIZES = {  # where not the usual
    "explanations": Recipe(n_tiles=600, steps=150),
    "confirmation": Recipe(pretrain_epochs=80, rates=(1e-4, 3e-4, 1e-3)),
}
DRAWN_ONLY = ("site", "questions", "metadata")  # what they ask about, real tiles do not tell


# --- Doing them -----------------------------------------------------------------------------------


def size_of(name: str) -> Recipe:
    """Return the recipe of a study's rows."""
    return SIZES.get(name, Recipe())


def read(name: str, data: str = "synthetic") -> pd.DataFrame:
    """Return the rows of a study.

    Raises RunError where there are none yet.
    """
    file = FOLDER / f"{name}_{data}.csv"
    if not file.is_file():
        raise RunError(f"{file} is missing: crc-course study {name} --data {data}")
    return _read(file)


def _read(file: Path) -> pd.DataFrame:
    try:
        # A commit such as 5940e75 would be read as a number, and be lost.
        table = pd.read_csv(file, dtype={"commit": str, "tiles": str})
        return table.copy()  # in one block: pandas warns of a column added to its hundred
    except (OSError, ValueError) as error:  # ValueError: what pandas and UTF-8 raise
        raise RunError(f"{file} is no table of a study ({error}): delete or restore it") from None


def do(
    name: str,
    data: str = "synthetic",
    root: str | None = None,
    seeds: int = 5,
    recipe: Recipe | None = None,
    folder: Path = FOLDER,
) -> pd.DataFrame:
    """Measure what is missing of a study, and return it; every row is on disk once it is measured.

    Raises RunError for a name that is none, data that the study cannot use, or a file whose rows
    are of another recipe.
    """
    if name not in STUDIES:
        raise RunError(f"study {name!r} is unknown: choose one of {', '.join(STUDIES)}")
    if name in DRAWN_ONLY and data != "synthetic":
        raise RunError(f"study {name!r} is about drawn tissue: --data {data} does not tell enough")
    file = folder / f"{name}_{data}.csv"
    with only_one(file):
        source = data, root, recipe or size_of(name)
        return _measure(*STUDIES[name], file, source, seeds, changes(source[-1], size_of(name)))


def changes(recipe: Recipe, usual: Recipe) -> str:
    """Return in words what a recipe does differently; rows of different recipes never mix."""
    new, old = vars(recipe), vars(usual)
    return ", ".join(f"{k} {new[k]}" for k in new if new[k] != old[k]) or "nothing"


def _measure(
    plan: Callable, measure: Callable, file: Path, source: tuple, seeds: int, changed: str
) -> pd.DataFrame:
    rows = _read(file).to_dict("records") if file.is_file() else []
    if others := {row.get("changed") for row in rows} - {changed}:
        raise RunError(
            f"{file} holds rows of another recipe (changed: {others.pop()}; now: {changed}): give"
            " another folder with --out"
        )
    size = {k: getattr(source[-1], k) for k in ("n_tiles", "size", "backbone", "steps")}
    facts = {"changed": changed, "device": device_name(), "commit": _commit()}
    for key in plan(seeds):
        if any(all(str(row.get(k)) == str(v) for k, v in key.items()) for row in rows):
            continue
        start = time.perf_counter()
        t = trial(key["seed"], *source)
        facts["tiles"] = "drawn" if source[0] == "synthetic" else _which(t.tiles)
        if others := {row.get("tiles") for row in rows} - {facts["tiles"]}:
            raise RunError(
                f"{file} holds rows of other tiles ({others.pop()}; {source[1]} holds"
                f" {facts['tiles']}): give another folder with --out"
            )
        found = measure(t, **{k: v for k, v in key.items() if k != "seed"})
        seconds = {"seconds": round(time.perf_counter() - start, 1)}
        rows.append(key | size | {"n_tiles": len(t.tiles)} | found | seconds | facts)
        save_table(file, rows)
        said = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items())
        print(", ".join(said), flush=True)
    return pd.DataFrame(rows)


def _which(tiles: Tiles) -> str:
    """Return a short hash of names and labels: the same wherever the files lie."""
    text = "\n".join(tiles.ids) + tiles.labels.astype(int).tobytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _commit() -> str:
    """Name of the code: the commit, "-dirty" where tracked files but tables differ from it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True)
        return found.stdout.strip()

    try:
        name = git("describe", "--always")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":!studies")
    except FileNotFoundError:  # no git here
        return "no repository"
    if not name:
        return "no repository"
    return f"{name}-dirty" if dirty else name
