"""Sweeps behind lessons 07 and 08: many runs, a row each, kept in `studies/NAME.csv`.

A study is a plan, the rows there shall be, and a function that measures one. A row names its seed,
its parameters, its result, its machine and the commit; rows that are there are not measured again,
so a study can be stopped and gone on with. A seed is another cohort, another split and another
initialisation: on drawn tissue another tissue, on real tiles another split by case.
"""

import itertools
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from crc_helpers import claims_on_trial as claims
from crc_helpers import explanations_on_trial as trials
from crc_helpers.augmentation import VIEWS, Views
from crc_helpers.data import Split, Tiles, cache_folder, load_tiles, split
from crc_helpers.evaluation import macro_auc
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict
from crc_helpers.models import Classifier, Encoder, ProjectionHead
from crc_helpers.pretraining import embed, pretrain
from crc_helpers.runs import (
    ROOT,
    RunError,
    device_name,
    fingerprint,
    load_weights,
    make_fabric,
    save_table,
    save_weights,
)

FOLDER = ROOT / "studies"
FIRST_SEED = 200  # of the cohorts: none that the course was developed on


@dataclass(frozen=True)
class Recipe:
    """What all rows of a study share unless they say otherwise: the size of the experiment."""

    n_tiles: int = 1000  # drawn tissue only
    size: int = 64  # side of a view, pixels
    backbone: str = "resnet8"
    pretrain_epochs: int = 20
    pretrain_batch: int = 64
    pretrain_lr: float = 1e-3
    temperature: float = 0.2
    head: str = "linear"
    views: Views = VIEWS["tissue"]
    objective: str = "NT-Xent"
    steps: int = 200  # of labelled training, whatever the number of labels
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

    @cached_property
    def fabric(self) -> Fabric:
        """The device."""
        return make_fabric(self.seed)

    @cached_property
    def tiles(self) -> Tiles:
        """The cohort of this seed; real tiles are the same for all."""
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
        return split(replace(self.tiles, partition=None), test=0.35, seed=self.seed)

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Labels of some tiles."""
        return self.tiles.labels[index]

    def random_encoder(self, backbone: str | None = None) -> Encoder:
        """An encoder nobody has trained; for one seed always the same."""
        torch.manual_seed(self.seed)
        return Encoder(backbone or self.recipe.backbone)

    def pretrained(self, recipe: Recipe | None = None, index: np.ndarray | None = None) -> Encoder:
        """The encoder after pre-training; kept in the cache, as many rows begin with the same one.

        index: tiles to learn from without labels; those for training if not given.
        """
        r = recipe or self.recipe
        index = self.parts.pretraining if index is None else index
        settings = {k: v for k, v in vars(r).items() if k not in ("steps", "batch", "rates")}
        mark = fingerprint(tiles=self.tiles.ids[index].tolist(), source=self.tiles.source,
                           seed=self.seed, **settings)  # fmt: skip
        file = cache_folder() / "studies" / f"{mark}.safetensors"
        encoder = self.random_encoder(r.backbone)
        if file.is_file():
            return load_weights(file, encoder).to(self.fabric.device)
        head = ProjectionHead(encoder.dim, kind=r.head)
        labels = self.tiles.labels[index]
        objective = claims.make_objective(r.objective, nn.Sequential(encoder, head), r.temperature,
                                          labels)  # fmt: skip
        pretrain(
            encoder, head, self.tiles.images.pick(index), r.views, self.fabric, size=r.size,
            epochs=r.pretrain_epochs, batch=r.pretrain_batch, lr=r.pretrain_lr,
            temperature=r.temperature, optimizer="adamw-one-cycle", seed=self.seed,
            objective=objective,
        )  # fmt: skip
        save_weights(file, encoder)
        return encoder

    def features(self, encoder: nn.Module, index: np.ndarray) -> Tensor:
        """What an encoder says of some tiles, float32 (N, D)."""
        return embed(encoder, self.tiles.images.pick(index), self.recipe.size, self.fabric)

    def probe(self, encoder: Encoder, labelled: np.ndarray | None = None) -> Callable:
        """A linear probe on some of the training tiles, as a function from tiles to (N, C)."""
        train = self.parts.train if labelled is None else labelled
        val = self.parts.val
        fitted = linear_probe(self.features(encoder, train), self.labels(train),
                              self.features(encoder, val), self.labels(val))  # fmt: skip
        return lambda index: fitted.predict_proba(self.features(encoder, index).numpy())

    def train(
        self,
        start: Callable[[], Encoder],
        labelled: np.ndarray | None = None,
        views: Views = VIEWS["gentle"],
        recipe: Recipe | None = None,
        **options: Any,
    ) -> Callable:
        """Train a classifier for `steps`, at each rate; the best on validation is returned, as a
        function from tiles to probabilities (N, C).

        start: gives the encoder to begin with. labelled: tiles to train on, which may recur.
        """
        r = recipe or self.recipe
        index = self.parts.train if labelled is None else labelled
        # Fewer tiles than a batch recur in it, each time as another view.
        index = np.sort(np.resize(index, max(len(index), r.batch)))
        best, kept = np.inf, None
        for rate in r.rates:
            encoder = start()
            torch.manual_seed(self.seed)
            classifier = Classifier(encoder, len(self.tiles.class_names))
            log = fine_tune(
                classifier, self.tiles.images[index], self.labels(index),
                self.tiles.images[self.parts.val], self.labels(self.parts.val), views,
                self.fabric, size=r.size, batch=r.batch, lr=rate, optimizer="adamw-one-cycle",
                epochs=max(1, round(r.steps / (len(index) // r.batch))), seed=self.seed, **options,
            )  # fmt: skip
            loss = log.loc[log["chosen"], "val_loss"].iloc[0]
            if loss < best:
                best, kept = loss, classifier
        return lambda index: predict(kept, self.tiles.images.pick(index), r.size, self.fabric)

    def score(self, classify: Callable, index: np.ndarray | None = None) -> dict[str, float]:
        """Balanced accuracy, accuracy and AUC, on the test part unless another is given."""
        index = self.parts.test if index is None else index
        found, y = classify(index), self.labels(index)
        said = found.argmax(axis=1)
        return {
            "balanced_accuracy": float(balanced_accuracy_score(y, said)),
            "accuracy": float((said == y).mean()),
            "auc": macro_auc(y, found),
        }


@lru_cache(maxsize=1)
def trial(seed: int, data: str, root: str | None, recipe: Recipe) -> Trial:
    """The trial of a seed, made once for the rows that follow each other."""
    return Trial(seed, data, root, recipe=recipe)


# --- The studies ----------------------------------------------------------------------------------

FRACTIONS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.0)


def labels_plan(seeds: int) -> Iterable[dict]:
    """Label efficiency: the same steps with ever fewer labels."""
    arms = ("pre-trained, fine-tuned", "from scratch", "frozen probe", "random encoder, probe")
    for seed, fraction, arm in itertools.product(range(seeds), FRACTIONS, arms):
        yield {"seed": seed, "fraction": fraction, "arm": arm}


def labels_row(t: Trial, fraction: float, arm: str) -> dict:
    """One arm with a share of the labels, on the test part."""
    train = t.parts.train
    labelled = train[claims.labelled_subset(t.labels(train), fraction, t.seed)]
    encoder = t.pretrained if arm.startswith(("pre", "frozen")) else t.random_encoder
    probe = arm.endswith("probe")
    fit = t.probe(encoder(), labelled) if probe else t.train(encoder, labelled)
    return {"labels": len(labelled)} | t.score(fit)


STUDIES: dict[str, tuple[Callable[[int], Iterable[dict]], Callable[..., dict]]] = {
    "labels": (labels_plan, labels_row),
    "explanations": (trials.explanations_plan, trials.explanations_row),
}


# --- Doing them -----------------------------------------------------------------------------------


def read(name: str, data: str = "synthetic") -> pd.DataFrame:
    """Return the rows of a study.

    Raises RunError where there are none yet.
    """
    file = FOLDER / f"{name}_{data}.csv"
    if not file.is_file():
        raise RunError(f"{file} is missing: crc-course study {name} --data {data}")
    return pd.read_csv(file)


def do(
    name: str,
    data: str = "synthetic",
    root: str | None = None,
    seeds: int = 5,
    recipe: Recipe | None = None,
    folder: Path = FOLDER,
) -> pd.DataFrame:
    """Measure what is missing of a study, and return it; every row is on disk once it is measured.

    Raises ValueError for a name that is none.
    """
    if name not in STUDIES:
        raise ValueError(f"study {name!r} is unknown: choose one of {', '.join(STUDIES)}")
    plan, measure = STUDIES[name]
    file, recipe = folder / f"{name}_{data}.csv", recipe or Recipe()
    rows = pd.read_csv(file).to_dict("records") if file.is_file() else []
    facts = {"device": device_name(), "commit": _commit()}
    for key in plan(seeds):
        if any(all(str(row.get(k)) == str(v) for k, v in key.items()) for row in rows):
            continue
        start = time.perf_counter()
        what = {k: v for k, v in key.items() if k != "seed"}
        found = measure(trial(key["seed"], data, root, recipe), **what)
        size = {"n_tiles": recipe.n_tiles, "size": recipe.size, "backbone": recipe.backbone}
        seconds = {"seconds": round(time.perf_counter() - start, 1)}
        rows.append(key | found | size | seconds | facts)
        save_table(file, rows)
        print(*(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in
                (key | found).items()), sep=", ", flush=True)  # fmt: skip
    return pd.DataFrame(rows)


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True,
                           capture_output=True)  # fmt: skip
    return found.stdout.strip() or "no repository"
