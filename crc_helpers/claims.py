"""Rivals, other ways to learn, remedies, and the statistics of comparing (lesson 07)."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from crc_helpers.augmentation import VIEWS, Views
from crc_helpers.data import Split, Tiles, load_tiles, split
from crc_helpers.evaluation import macro_auc
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict
from crc_helpers.models import Classifier, Encoder, ProjectionHead, load_weights
from crc_helpers.pretraining import (
    Contrast,
    channels_last,
    embed,
    pretrain,
)
from crc_helpers.runs import (
    ROOT,
    RunError,
    file_hash,
    fingerprint,
    make_fabric,
    save_weights,
)
from crc_helpers.sources.cache import cache_folder
from crc_helpers.sources.drawn import KINDS, make_cohort
from crc_helpers.sources.store import content_hash

FOLDER = ROOT / "studies"
FIRST_SEED = 200  # of the cohorts: none that the course was developed on
RETESTED = 0.54  # of EBHI-Seg, a quarter of all tiles by whole cases: 287 tested, 534 not
LONGER = 8  # times the recipe's epochs of pre-training, or steps with labels
FRACTIONS = (0.01, 0.05, 0.10, 0.25, 0.50, 1.0)
LABEL_ARMS = (
    *("pre-trained, fine-tuned", "from scratch", "frozen probe", "random encoder, probe"),
    *("pre-trained longer, fine-tuned", "pre-trained longer, frozen probe"),
)
CONFIRMED = (
    *("from scratch", "random encoder, probe", "pre-trained, frozen probe"),
    *("pre-trained, fine-tuned", "pre-trained, probe first", "the paper's recipe, fine-tuned"),
)
BACKBONES = ("resnet8", "convnext_atto", "vit_tiny_patch16_224")
FEW = ", 10 % of the labels"
RIGHT = ("Cecum", "Ascending colon", "Transverse colon")  # sites of the right colon

# --- A rival --------------------------------------------------------------------------------------


class PlainCNN(nn.Module):
    """A stack of convolutions and poolings without shortcuts, in the manner of MA_ColonNet.

    Images (N, 3, H, W) to features (N, 256). It stands for the plain network of Yildirim et al.
    2022, whose layers it does not repeat.
    """

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean(dim=(2, 3))


# --- Other ways to learn without labels, on the loop of lesson 03 ---------------------------------


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding each query's own key among it and a queue.

    queries, keys: (N, D), row i of both from the same tile; queue: (K, D) keys of earlier batches.
    Source: He et al. 2020, arXiv 1911.05722 (MoCo), equation 1.
    """
    q, k, queue = (F.normalize(x, dim=1) for x in (queries, keys, queue))
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1)  # (N, 1 + K)
    return F.cross_entropy(logits / temperature, torch.zeros(len(q), dtype=torch.long).to(q.device))


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """Return the mean negative cosine of predictions (N, D) and the other view's projections.

    No gradient flows into the projections: without this stop everything collapses.
    Source: Chen & He 2021, arXiv 2011.10566 (SimSiam), equation 4.
    """
    one, other = (F.cosine_similarity(p, z.detach()) for p, z in ((p1, z2), (p2, z1)))
    return -(one.mean() + other.mean()) / 2


def barlow_twins_loss(z1: Tensor, z2: Tensor, redundancy: float = 5e-3) -> Tensor:
    """Return how far the correlation matrix of two batches of views (N, D) is from identity.

    redundancy: weight of what lies off the diagonal.
    Source: Zbontar et al. 2021, arXiv 2103.03230, equation 1.
    """
    one, other = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    correlation = one.T @ other / len(z1)  # (D, D)
    gap = (correlation - torch.eye(len(correlation), device=z1.device)).square()
    return gap.diagonal().sum() + redundancy * (gap.sum() - gap.diagonal().sum())


def sup_con_loss(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent with every view of the same class as a positive: the bound with labels.

    z1, z2: (N, D); labels: (N,). With a label for each tile of its own it is NT-Xent.
    Source: Khosla et al. 2020, arXiv 2004.11362, equation 2.
    """
    z, y = F.normalize(torch.cat([z1, z2]).float(), dim=1), torch.cat([labels, labels])
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = (y[:, None] == y) & ~itself  # (2N, 2N)
    log_p = logits.log_softmax(dim=1).masked_fill(~positive, 0)
    return -(log_p.sum(dim=1) / positive.sum(dim=1)).mean()


class MoCo(nn.Module):
    """Momentum contrast: keys from a slowly following copy, negatives from a queue of them.

    size: of the queue, far below the number of tiles, or a tile would often be its own negative.
    Batch normalisation is not shuffled among devices as in the paper: there is one device.
    """

    def __init__(self, model: nn.Sequential, temperature: float, size: int = 256) -> None:
        super().__init__()
        self.temperature, self.keys = temperature, copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("queue", torch.randn(size, model[-1].out_dim))

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        with torch.no_grad():
            for key, query in zip(self.keys.parameters(), model.parameters(), strict=True):
                key.lerp_(query, 0.01)
            keys = self.keys(channels_last(v2)).float()
        loss = moco_loss(model(channels_last(v1)).float(), keys, self.queue, self.temperature)
        self.queue = torch.cat([keys, self.queue])[: len(self.queue)]  # the oldest drop out
        return loss


class SimSiam(nn.Module):
    """Two views, a predictor, no negatives; projections are normalised over the batch."""

    def __init__(self, model: nn.Sequential, hidden: int = 64) -> None:
        super().__init__()
        width = model[-1].out_dim
        self.norm = nn.BatchNorm1d(width)
        self.predictor = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        z1, z2 = self.norm(model(channels_last(torch.cat([v1, v2]))).float()).chunk(2)
        return simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)


class BarlowTwins(nn.Module):
    """Two views whose features shall agree one by one and not repeat each other."""

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        return barlow_twins_loss(*model(channels_last(torch.cat([v1, v2]))).float().chunk(2))


class SupCon(nn.Module):
    """Contrast with labels, those of the tiles trained on: no method without labels may use it."""

    def __init__(self, temperature: float, labels: np.ndarray) -> None:
        super().__init__()
        self.temperature, self.labels = temperature, torch.from_numpy(labels)

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, index: np.ndarray) -> Tensor:
        z1, z2 = model(channels_last(torch.cat([v1, v2]))).chunk(2)
        return sup_con_loss(z1, z2, self.labels[index].to(z1.device), self.temperature)


def make_objective(
    name: str, model: nn.Sequential, temperature: float, labels: np.ndarray
) -> nn.Module:
    """Return what `pretraining.pretrain` takes as `objective`.

    name: "NT-Xent", "MoCo", "SimSiam", "Barlow Twins" or "SupCon". model: encoder and head in a
    row, which MoCo copies. labels: int64 (N,) of the tiles, which SupCon alone looks at.
    Raises ValueError for another name.
    """
    known = {
        "NT-Xent": lambda: Contrast(temperature),
        "MoCo": lambda: MoCo(model, temperature),
        "SimSiam": lambda: SimSiam(model),
        "Barlow Twins": BarlowTwins,
        "SupCon": lambda: SupCon(temperature, labels),
    }
    if name not in known:
        raise ValueError(f"objective {name!r} is unknown: choose one of {', '.join(known)}")
    return known[name]()


# --- Few labels, uneven labels --------------------------------------------------------------------


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


def oversampled(labels: np.ndarray) -> np.ndarray:
    """Return positions in which every class is as frequent as the most common: rare ones recur."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([np.resize(c, max(map(len, classes))) for c in classes]))


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return cross-entropy that forgets what is already right: times (1 - p) to the gamma.

    logits (N, C), labels (N,). Source: Lin et al. 2017, arXiv 1708.02002, equation 4.
    """
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return -((1 - log_p.exp()) ** gamma * log_p).mean()


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold on the score of class 1 with the best balanced accuracy.

    labels (N,) of 0 and 1, scores (N,). To be chosen on validation, and applied to test.
    """
    candidates = np.unique(scores)
    called = scores >= candidates[:, None]  # (thresholds, N)
    sensitivity = called[:, labels == 1].mean(axis=1)
    specificity = 1 - called[:, labels == 0].mean(axis=1)
    return float(candidates[(sensitivity + specificity).argmax()])


# --- Another site, and what is known besides the tile ---------------------------------------------


def normalise_stain(images: np.ndarray, reference: np.ndarray, method: str) -> np.ndarray:
    """Return tiles with the stain of a reference, by torchstain.

    images: uint8 (N, 3, H, W); reference: uint8 (3, H, W). method: "Macenko" or "Reinhard". A tile
    of nearly nothing but glass, or of one colour, is left as it is.
    Sources: Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250; Reinhard et al. 2001,
    doi:10.1109/38.946629. Raises ValueError for another method.
    """
    from torchstain.numpy import normalizers  # rarely needed

    known = {"Macenko": normalizers.NumpyMacenkoNormalizer,
             "Reinhard": normalizers.NumpyReinhardNormalizer}  # fmt: skip
    if method not in known:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(known)}")
    normalizer = known[method]()
    normalizer.fit(reference.transpose(1, 2, 0))
    done = np.array(images)
    for i, image in enumerate(images):
        stained = (image.max(axis=0) < 205).mean()  # optical density above 0.15 in every channel
        if stained > 0.01 and image.std(axis=(1, 2)).min() > 0:  # else there is none to estimate
            found = normalizer.normalize(image.transpose(1, 2, 0))
            found = found[0] if method == "Macenko" else found  # it gives the stains apart, too
            done[i] = np.clip(found, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    return done


def clinical_features(metadata: pd.DataFrame) -> np.ndarray:
    """Return logarithm of the polyp's size in mm, and 1 in the right colon, 0 in the left: (N, 2).

    metadata: with the columns "Polyp Size (mm)" and "Colon Site". NaN where not known or empty.
    """
    site = metadata["Colon Site"].replace("", np.nan)
    size = np.log(metadata["Polyp Size (mm)"].to_numpy(float))
    right = site.isin(RIGHT).where(site.notna(), np.nan)
    return np.stack([size, right], axis=1).astype(float)


def fuse(*probabilities: np.ndarray) -> np.ndarray:
    """Return the mean of classifiers' log odds as a probability, (N,): late fusion.

    probabilities: (N,) each, of class 1; a NaN is a missing answer, and the others decide.
    """
    odds = np.stack([logit(np.clip(p, 1e-6, 1 - 1e-6)) for p in probabilities])
    return expit(np.nanmean(odds, axis=0))


# --- Comparing ------------------------------------------------------------------------------------


def mcnemar_test(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Return the exact p value for two classifiers being right equally often on the same tiles.

    first_right, second_right: bool (N,). Only tiles on which one alone is right count.
    Source: McNemar 1947, doi:10.1007/BF02295996, in its exact form.
    """
    first, second = (first_right & ~second_right).sum(), (second_right & ~first_right).sum()
    return float(binomtest(int(first), int(first + second)).pvalue) if first + second else 1.0


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


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values (N,) made larger so that any false alarm among all N stays as rare as said.

    Source: Holm 1979, Scand J Stat 6:65.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def tiles_needed(
    difference: float, disagreement: float, power: float = 0.8, level: float = 0.05
) -> int:
    """Return how many independent tiles McNemar's test takes to see a difference of accuracies.

    disagreement: share of tiles on which one classifier alone is right, no less than `difference`.
    Raises ValueError otherwise. Source: Connor 1987, doi:10.2307/2531961 (normal approximation).
    """
    if not 0 < abs(difference) <= disagreement <= 1:
        raise ValueError(
            f"difference {difference}, disagreement {disagreement}: expected"
            " 0 < difference <= disagreement <= 1"
        )
    z_level, z_power = norm.ppf(1 - level / 2), norm.ppf(power)
    spread = math.sqrt(disagreement - difference**2)
    return math.ceil((z_level * math.sqrt(disagreement) + z_power * spread) ** 2 / difference**2)


def over_seeds(values: Sequence[float], retested: float = 0.0) -> tuple[float, float, float]:
    """Return mean and 95 % interval (Student's t) of one number a seed; NaN ends for one seed.

    retested: where seeds split one data set again and again, its test tiles over the others. Such
    splits share most of what they train on and agree more than new data would; the interval is
    widened for it. Source: Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.
    """
    mean, error, count = _standard_error(values, retested)
    half = student.ppf(0.975, count - 1) * error if count > 1 else np.nan
    return mean, mean - half, mean + half


def p_over_seeds(values: Sequence[float], retested: float = 0.0) -> float:
    """Return the two-sided p value of a mean of zero; NaN for one seed or values without spread.

    Arguments as in `over_seeds`.
    """
    mean, error, count = _standard_error(values, retested)
    return float(2 * student.sf(abs(mean) / error, count - 1)) if error else np.nan


def _standard_error(values: Sequence[float], retested: float) -> tuple[float, float, int]:
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), np.nan, len(values)
    error = values.std(ddof=1) * math.sqrt(1 / len(values) + retested)
    return float(values.mean()), float(error), len(values)


def paired(rows: pd.DataFrame, arms: str, arm: str, control: str, metric: str) -> np.ndarray:
    """Return the metric of one arm less that of another, a number for each seed that has both.

    rows: of a study, with the columns `seed`, `arms` and `metric`. Both arms of a seed share
    tissue, split and test tiles, so their difference varies less than either.
    """
    wide = rows.pivot(index="seed", columns=arms, values=metric)
    return (wide[arm] - wide[control]).dropna().to_numpy()


# --- The experiment that studies repeat -----------------------------------------------------------


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
        return self.divided or split(replace(self.tiles, partition=None), test=0.35, seed=self.seed)

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
                           objectives=file_hash(Path(__file__)), **settings)  # fmt: skip
        file = cache_folder() / "studies" / f"{mark}.safetensors"
        encoder = self.random_encoder(r.backbone)
        if file.is_file():
            return load_weights(file, encoder).to(self.fabric.device)
        head = ProjectionHead(encoder.dim, kind=r.head)
        objective = make_objective(r.objective, nn.Sequential(encoder, head), r.temperature,
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


def clinical_answers(t: Trial) -> np.ndarray:
    """P(SSA) on the test part (n,), by logistic regression on the polyp's size and site."""
    known = clinical_features(t.tiles.metadata)
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


def read_study(name: str, data: str = "synthetic") -> pd.DataFrame:
    """Return the rows of a study.

    Raises RunError where there are none yet.
    """
    file = FOLDER / f"{name}_{data}.csv"
    if not file.is_file():
        raise RunError(f"{file} is missing: python studies/{name}.py --data {data}")
    return read_rows(file)


def read_rows(file: Path) -> pd.DataFrame:
    """Return the rows of a table of a study.

    Raises RunError where it is none.
    """
    try:
        # A commit such as 5940e75 would be read as a number, and be lost.
        table = pd.read_csv(file, dtype={"commit": str, "tiles": str})
        return table.copy()  # in one block: pandas warns of a column added to its hundred
    except (OSError, ValueError) as error:  # ValueError: what pandas and UTF-8 raise
        raise RunError(f"{file} is no table of a study ({error}): delete or restore it") from None
