"""Metrics, intervals, calibration and baselines (lesson 05)."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.classification import binary_calibration_error

# Table 2 of Jain & Lynn (2025) as counts: rows truth, columns prediction, in the order HP, SSA.
# It is the only matrix of 99 + 99 images that gives the printed accuracy and recalls.
PAPER_COUNTS = np.array([[84, 15], [13, 86]])

Statistic = Callable[[np.ndarray], float]  # of the test tiles at an index array
Groups = np.ndarray | None  # slide or case of each test tile


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) for n = 0.

    Raises ValueError unless 0 <= successes <= n.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: give a count from 0 to n")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Statistic, n: int, groups: Groups = None, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of n test tiles.

    statistic: takes an index array, returns a number (NaN where undefined, e.g. one class only).
    groups: (n,) slide or case ids; whole groups are drawn, because tiles of one slide are alike and
    would make the interval too narrow. (NaN, NaN) for fewer than two groups (without groups: tiles)
    or where every sample gives NaN. Where all tiles are right, or all wrong, the interval has zero
    width; use `share_interval`.
    Source: Efron & Tibshirani 1993, chapters 13 and 8.
    """
    ids = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if n == 0 or ids.max() == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    order = np.argsort(ids, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(ids))[:-1])
    draws = (rng.integers(0, len(members), len(members)) for _ in range(samples))
    values = np.array([statistic(np.concatenate([members[d] for d in drawn])) for drawn in draws])
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def share_interval(hit: np.ndarray, groups: Groups = None) -> tuple[float, float]:
    """Return the 95 % interval of the share of tiles that are a hit, bool (n,).

    Wilson's, or with groups (n,) a bootstrap over them. Where all or none are hits, the bootstrap
    interval would have zero width; Wilson's is used then, with groups counted in place of tiles.
    """
    if groups is None or not len(hit):
        return wilson_interval(int(hit.sum()), len(hit))
    if hit.all() or not hit.any():
        count = len(np.unique(groups))
        return wilson_interval(count * bool(hit.all()), count)
    return bootstrap_interval(lambda k: hit[k].mean(), len(hit), groups)


def macro_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the area under the ROC curve, one-vs-rest mean for more than two classes.

    labels (N,), probabilities (N, C). NaN where a class has no tile; ties count half. By ranks
    (Mann-Whitney), because a bootstrap computes it a thousand times; equal to scikit-learn's.
    """
    count = np.bincount(labels, minlength=probabilities.shape[1])
    if (count == 0).any():
        return float("nan")
    columns = [1] if len(count) == 2 else range(len(count))
    areas = []
    for c in columns:
        ranks, n = rankdata(probabilities[:, c]), count[c]
        areas.append((ranks[labels == c].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))
    return float(np.mean(areas))


def summarise(
    labels: np.ndarray, probabilities: np.ndarray, groups: Groups = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return accuracy, balanced accuracy and AUC, each with `value`, `low` and `high`.

    labels int64 (N,), probabilities (N, C). Intervals are 95 %: accuracy without groups has
    Wilson's, all else a bootstrap, over groups where given, without the samples that lack a class.
    At 0 or 1 the bootstrap interval has zero width; Wilson's is used then, counting the groups
    (without groups: tiles) of the rarest class. What is not defined is NaN, such as the AUC where
    only one class is present.

    Raises ValueError for probabilities that are NaN.
    """
    if np.isnan(probabilities).any():
        raise ValueError("a probability is NaN: the network that gave it is broken, train it again")
    right, present = probabilities.argmax(axis=1) == labels, np.unique(labels)

    def balanced(i: np.ndarray) -> float:
        recalls = [right[i][labels[i] == c] for c in present]
        return np.mean([r.mean() for r in recalls]) if len(i) and all(map(len, recalls)) else np.nan

    statistics: dict[str, Statistic] = {
        "accuracy": lambda i: right[i].mean() if len(i) else np.nan,
        "balanced_accuracy": balanced,
        "auc": lambda i: macro_auc(labels[i], probabilities[i]),
    }
    units = np.arange(len(labels)) if groups is None else groups
    rarest = min((len(np.unique(units[labels == c])) for c in present), default=0)
    result = {}
    for name, statistic in statistics.items():
        value = float(statistic(np.arange(len(labels))))
        if name == "accuracy" and groups is None:
            low, high = wilson_interval(int(right.sum()), len(labels))
        elif value in (0, 1):  # and so in every sample
            low, high = wilson_interval(int(value * rarest), rarest)
        else:
            low, high = bootstrap_interval(statistic, len(labels), groups, seed=seed)
        result[name] = {"value": value, "low": low, "high": high}
    return result


def per_class(
    labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...], groups: Groups = None
) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class, with intervals.

    labels, predicted: int (N,). Intervals: see `share_interval`; F1 is no proportion and has none.
    """
    rows = []
    for c, name in enumerate(class_names):
        called, true, hit = predicted == c, labels == c, (predicted == c) & (labels == c)
        row = {"class": name}
        for metric, among in (("precision", called), ("recall", true)):
            low, high = share_interval(hit[among], None if groups is None else groups[among])
            value = hit.sum() / max(among.sum(), 1)
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        f1 = 2 * hit.sum() / max(called.sum() + true.sum(), 1)
        rows.append(row | {"f1": f1, "support": int(true.sum())})
    return pd.DataFrame(rows).set_index("class")


def expand_counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels, predictions) of a test set with these counts (C, C), rows truth."""
    truth, predicted = np.indices(confusion.shape)
    return np.repeat(truth, confusion.ravel()), np.repeat(predicted, confusion.ravel())


def precision_at_prevalence(recall: float, specificity: float, prevalence: float) -> float:
    """Return the precision of the same classifier where the class is this common (Bayes).

    NaN for a classifier that never says so.
    """
    hits = recall * prevalence
    called = hits + (1 - specificity) * (1 - prevalence)
    return hits / called if called else float("nan")


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 10
) -> float:
    """Return the mean gap between the second class's probability and its share of the tiles, over
    equal-width bins of that probability, weighted by their tiles.

    labels (N,), probabilities (N, C). Source: Guo et al. 2017, arXiv 1706.04599.
    """
    if not len(labels):
        return float("nan")
    score, positive = torch.from_numpy(probabilities[:, 1].copy()), torch.from_numpy(labels == 1)
    return float(binary_calibration_error(score, positive.long(), bins, validate_args=False))


def scale_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities (N, C) that a network gives once its logits are divided by a
    temperature.

    Needs no logits: softmax(logits / T) is p ** (1 / T), made to sum to one.
    """
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature, from 0.05 to 20, that minimises the log loss; 1 without tiles.

    labels (N,), probabilities (N, C), of the validation part. Source: as above.
    """

    def loss(log_temperature: float) -> float:
        scaled = scale_temperature(probabilities, np.exp(log_temperature))
        return log_loss(labels, scaled, labels=range(probabilities.shape[1]))

    if not len(labels):
        return 1.0
    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


def colour_statistics(images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Return 15 colour statistics a tile, float64 (N, 15): per channel mean, standard deviation
    and the 10th, 50th and 90th percentile.

    images: uint8 (N, 3, H, W). They know the stain and nothing of the architecture.
    """
    parts = []
    for start in range(0, len(images), batch):
        pixels = np.asarray(images[start : start + batch, :, ::2, ::2], dtype=np.float32)
        pixels = pixels.reshape(len(pixels), 3, -1) / 255  # every fourth pixel is plenty
        quantiles = np.quantile(pixels, [0.1, 0.5, 0.9], axis=2)  # (3, n, 3)
        features = [pixels.mean(axis=2), pixels.std(axis=2), *quantiles]
        parts.append(np.concatenate(features, axis=1))
    return np.concatenate(parts).astype(np.float64)


def colour_baseline(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Fit logistic regression on colour statistics (N, 15); has `predict_proba`."""
    regression = LogisticRegression(max_iter=3000, class_weight="balanced")
    return make_pipeline(StandardScaler(), regression).fit(features, labels)
