"""Statistics for comparing, and the experiment that studies repeat (lesson 07)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from crc_helpers.augmentation import VIEWS, Views
from crc_helpers.data import Split, Tiles, load_tiles, split
from crc_helpers.evaluation import bootstrap_interval, macro_auc
from crc_helpers.fine_tuning import fine_tune, predict
from crc_helpers.models import Classifier, Encoder, load_weights, save_weights
from crc_helpers.pretraining import Training
from crc_helpers.runs import ROOT, RunError, fingerprint, make_fabric
from crc_helpers.sources.cache import cache_folder

STUDIES = ROOT / "studies"  # where the tables lie
FIRST_SEED = 200  # of the cohorts: none that the course was developed on
RETESTED = 0.54  # of EBHI-Seg, a quarter of all tiles by whole cases: 287 tested, 534 not
FEW_ARMS = {  # arms of the study `effects` with few labels, and their names in metrics.json
    "frozen, pre-trained": "frozen_pretrained",
    "frozen, random": "frozen_random",
    "colour only": "colour_only",
    "from scratch, patient": "scratch",
    "fine-tuned whole": "fine_tuned",
    "probe first, fine-tuned": "probe_first",
}
FEW = ", 10 % of the labels"


def labelled_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the positions of a share of the tiles, at least one a class, sorted.

    Each class gives its share. For one seed, smaller subsets lie inside larger ones, so that a
    curve over fractions doesn't jump because other tiles were drawn.
    """
    rng, taken = np.random.default_rng(seed), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        taken.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(taken))


# --- Comparing ------------------------------------------------------------------------------------


def delong_test(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[float, float, float]:
    """Return difference of two areas under the ROC curve, its standard error and p value.

    labels (N,) of 0 and 1; first, second: scores (N,) of the same tiles, taken as independent.
    Raises ValueError where a class has fewer than two tiles.
    Source: DeLong et al. 1988, doi:10.2307/2531595; by ranks, Sun & Xu 2014.
    """
    positive, negative = labels == 1, labels == 0
    m, n = positive.sum(), negative.sum()
    if min(m, n) < 2:
        raise ValueError(f"{m} positive and {n} negative tiles: DeLong's test needs two of each")
    over_negatives, over_positives = [], []  # each tile's share of the other class it beats
    for scores in (first, second):
        ranks = rankdata(scores)
        over_negatives.append((ranks[positive] - rankdata(scores[positive])) / n)
        over_positives.append(1 - (ranks[negative] - rankdata(scores[negative])) / m)
    areas = np.mean(over_negatives, axis=1)
    covariance = np.cov(over_negatives) / m + np.cov(over_positives) / n  # (2, 2)
    difference = float(areas[0] - areas[1])
    error = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    if error == 0:
        return difference, 0.0, 1.0 if difference == 0 else 0.0
    return difference, error, float(2 * norm.sf(abs(difference) / error))


def tiles_needed(difference: float, disagreement: float) -> int:
    """Return how many independent tiles McNemar's test takes to see a difference of accuracies.

    In four of five repetitions, at a level of 5 %. disagreement: the share of tiles on which one
    classifier alone is right, no less than `difference`; else ValueError.
    Source: Connor 1987, doi:10.2307/2531961 (normal approximation).
    """
    if not 0 < abs(difference) <= disagreement <= 1:
        raise ValueError(f"need 0 < difference {difference} <= disagreement {disagreement} <= 1")
    z_level, z_power = norm.ppf(0.975), norm.ppf(0.8)
    spread = math.sqrt(disagreement - difference**2)
    return math.ceil((z_level * math.sqrt(disagreement) + z_power * spread) ** 2 / difference**2)


def over_seeds(values: Sequence[float], retested: float = 0.0) -> tuple[float, float, float]:
    """Return the mean of one number per seed, and its 95 % confidence interval (Student's t).

    The ends are NaN for one seed. retested: 0 where each seed has new tiles; where seeds split the
    same tiles again and again, the tiles tested over those that are not. Such splits share most
    training tiles and agree more than new data would, so the interval is widened.
    Source: Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    values = np.asarray(values, float)
    low, high = student.interval(0.95, len(values) - 1)
    mean, error = values.mean(), _standard_error(values, retested)
    return float(mean), float(mean + low * error), float(mean + high * error)


def p_over_seeds(values: Sequence[float], retested: float = 0.0) -> float:
    """Return the two-sided p value of a mean of zero; NaN for one seed or values without spread.

    Arguments as in `over_seeds`.
    """
    values = np.asarray(values, float)
    error = _standard_error(values, retested)
    return float(2 * student.sf(abs(values.mean()) / error, len(values) - 1)) if error else np.nan


def _standard_error(values: np.ndarray, retested: float) -> float:
    if len(values) < 2:
        return np.nan
    return values.std(ddof=1) * math.sqrt(1 / len(values) + retested)


def paired(rows: pd.DataFrame, arms: str, arm: str, control: str, metric: str) -> np.ndarray:
    """Return the metric of one arm minus that of another, a number for each seed that has both.

    rows: of a study, with the columns `seed`, `arms` and `metric`. Both arms of a seed share
    tissue, split and test tiles, so their difference varies less than either.
    """
    wide = rows.pivot(index="seed", columns=arms, values=metric)
    return (wide[arm] - wide[control]).dropna().to_numpy()


def over_cases(
    rows: pd.DataFrame, arm: str, control: str, samples: int = 1000
) -> tuple[float, float, float]:
    """Return the difference of two arms' balanced accuracy, and its 95 % interval over cases.

    rows: of the study `labels`, one task and share. Its splits test the same cases again and
    again, so a case is drawn with all its tiles of all splits. The interval says nothing of other
    tiles to train on.
    """
    tables, rows = [], rows[rows["arm"].isin([arm, control])]
    both = rows.groupby("seed")["arm"].transform("nunique") == 2  # a trained arm may have one split
    for row in rows[both].itertuples():
        cells = pd.DataFrame(json.loads(row.cells), columns=["case", "label", "tiles", "right"])
        sign = 1 if row.arm == arm else -1
        tables.append(cells.assign(seed=row.seed, gap=sign * cells["right"] / row.draws))
    keys = ["seed", "label", "case", "tiles"]
    table = pd.concat(tables).groupby(keys, as_index=False)["gap"].sum()
    part = table.groupby(["seed", "label"]).ngroup().to_numpy()  # a class of a split
    gap, tiles, parts = table["gap"].to_numpy(), table["tiles"].to_numpy(), part.max() + 1

    def difference(k: np.ndarray) -> float:
        there = np.bincount(part[k], tiles[k], parts)
        return np.mean(np.bincount(part[k], gap[k], parts) / there) if there.all() else np.nan

    everything = np.arange(len(table))
    ends = bootstrap_interval(difference, len(table), table["case"].to_numpy(), samples)
    return float(difference(everything)), *ends


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return balanced accuracy, accuracy and AUC, macro averages for more than two classes.

    labels int64 (N,), probabilities (N, C).
    """
    predicted = probabilities.argmax(axis=1)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "accuracy": float((predicted == labels).mean()),
        "auc": macro_auc(labels, probabilities),
    }


# --- The experiment that studies repeat -----------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Size and settings of an experiment, the same for all rows of a study unless they say so."""

    n_tiles: int = 1000  # drawn tissue only
    size: int = 64  # side of a view, pixels
    backbone: str = "resnet8"
    pretrain_epochs: int = 80
    pretrain_batch: int = 64
    pretrain_lr: float = 1e-3
    optimizer: str = "adamw-one-cycle"  # of pre-training
    temperature: float = 0.2
    head: str = "linear"
    views: Views = VIEWS["tissue"]
    steps: int = 120  # of labelled training, whatever the number of labels
    batch: int = 32
    rates: tuple[float, ...] = (3e-4, 1e-3)  # tried by each arm, chosen on validation


USUAL = Recipe()
Answer = Callable[..., np.ndarray]  # from positions of tiles to class probabilities (N, C)


@dataclass(eq=False)
class Experiment:
    """The tiles, split and recipe that all arms of one seed share."""

    seed: int
    tiles: Tiles
    parts: Split
    recipe: Recipe = USUAL

    @classmethod
    def of_seed(
        cls,
        seed: int,
        recipe: Recipe = USUAL,
        data: str = "synthetic",
        first: int = FIRST_SEED,
        **source: str | None,
    ) -> Self:
        """Return a seed's experiment: of drawn tissue a new cohort, of real tiles a new split.

        data, source: name, `root` and `classes` as in `data.load_tiles`. first: added to the seed
        of a drawn cohort. An official partition is not used.
        """
        tiles = load_tiles(data, n=recipe.n_tiles, seed=first + seed, **source)
        return cls(seed, tiles, _divide(tiles, seed), recipe)

    @cached_property
    def fabric(self) -> Fabric:
        """The device."""
        return make_fabric(self.seed)

    def labels(self, index: np.ndarray) -> np.ndarray:
        """Return the labels of some tiles."""
        return self.tiles.labels[index]

    def random_encoder(
        self, backbone: str | Callable[[], nn.Module] | None = None, salt: int = 0
    ) -> Encoder:
        """Return an encoder nobody has trained; the same for the same seed and salt.

        backbone: a name, or what makes a network, if not the recipe's.
        """
        torch.manual_seed(self.seed + 1000 * salt)
        made = backbone() if callable(backbone) else backbone
        return Encoder(made or self.recipe.backbone)

    def fit(
        self,
        start: Callable[[], Encoder | Classifier],
        labelled: np.ndarray | None = None,
        views: Views = VIEWS["gentle"],
        recipe: Recipe | None = None,
        salt: int = 0,
    ) -> Classifier:
        """Train a classifier for `steps` at each rate; return the one that validation chooses.

        start: gives the encoder to begin with, or a classifier that has it. labelled: tiles to
        train on, which may recur; all of the training part if not given.
        """
        r, seed = recipe or self.recipe, self.seed + 1000 * salt
        index = self.parts.train if labelled is None else labelled
        # Few tiles recur, each time as another view, so that all arms are validated about as often.
        index = np.sort(np.resize(index, max(len(index), r.batch * max(1, r.steps // 10))))
        given = [(self.tiles.images[i], self.labels(i)) for i in (index, self.parts.val)]
        epochs = max(1, round(r.steps / (len(index) // r.batch)))
        best, kept = np.inf, None
        for rate in r.rates:
            begun = start()
            torch.manual_seed(seed)
            named = isinstance(begun, Classifier)
            classifier = begun if named else Classifier(begun, len(self.tiles.class_names))
            training = Training(r.size, epochs, r.batch, rate, "adamw-one-cycle", seed)
            log = fine_tune(classifier, *given, views, self.fabric, training)
            judge = "val_loss" if "val_loss" in log else "loss"  # the paper has no validation
            loss = log.loc[log["chosen"], judge].iloc[0]
            if loss < best:
                best, kept = loss, classifier
        return kept

    def train(self, *given: Any, recipe: Recipe | None = None, **options: Any) -> Answer:
        """Return the classifier that `fit` trains, from the same arguments, as a function."""
        network, size = self.fit(*given, recipe=recipe, **options), (recipe or self.recipe).size
        return lambda index: predict(network, self.tiles.images[index], size, self.fabric)

    def score(self, classify: Answer) -> dict[str, float]:
        """Return `scores` on the test part of a function from tiles to probabilities (N, C)."""
        return scores(self.labels(self.parts.test), classify(self.parts.test))


def _divide(tiles: Tiles, seed: int) -> Split:
    return split(replace(tiles, partition=None), test=0.35, seed=seed)


def trained_once(
    network: nn.Module, train: Callable[[], object], /, **settings: object
) -> nn.Module:
    """Return a network with the weights that `train` gives it, from the cache if they are there.

    settings: all that decides these weights besides the training code.
    """
    file = cache_folder() / "studies" / f"{fingerprint(**settings)}.safetensors"
    if not file.is_file():
        train()
        save_weights(file, network)
    return load_weights(file, network)


def read_study(name: str, data: str = "synthetic") -> pd.DataFrame:
    """Return the rows of a study.

    Raises RunError where there are none yet.
    """
    file = STUDIES / f"{name}_{data}.csv"
    if not file.is_file():
        raise RunError(f"{file} is missing: python studies/{name}.py --data {data}")
    return read_rows(file)


def read_rows(file: Path) -> pd.DataFrame:
    """Return the rows of a table of a study.

    Raises RunError where it is none.
    """
    try:
        # A commit such as 5940e75 would be read as a number, and be lost; a draw as 0.0, and be
        # measured again, where other rows have none.
        table = pd.read_csv(file, dtype={"commit": str, "tiles": str, "draw": "Int64"})
        return table.copy()  # in one block: pandas warns of a column added to its hundred
    except (OSError, ValueError) as error:  # ValueError: what pandas and UTF-8 raise
        raise RunError(f"{file} is no table of a study ({error}): delete or restore it") from None
