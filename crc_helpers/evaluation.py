"""Metrics, intervals, calibration and baselines (lesson 05)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

# Table 2 of Jain & Lynn (2025) as counts: rows truth, columns prediction, in the order HP, SSA.
# It is the only matrix of 99 + 99 images that gives the printed accuracy and recalls.
PAPER_COUNTS = np.array([[84, 15], [13, 86]])


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) for n = 0.

    Raises ValueError unless 0 <= successes <= n.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: give a count from 0 to n")
    if n == 0:
        return 0.0, 1.0
    z = norm.ppf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At 0 and n the bound is exactly 0 or 1; rounding must not take it past.
    low, high = float(max(0.0, centre - half)), float(min(1.0, centre + half))
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    groups: np.ndarray | None = None,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic of n test tiles.

    statistic: takes an index array, returns a number (NaN where undefined, e.g. one class only).
    groups: (n,) slide or case ids: whole groups are drawn, because tiles of one slide are not
    independent and an interval that treats them so is too narrow. (NaN, NaN) for fewer than two
    groups (tiles without), which show no spread, or where the statistic is undefined in every
    sample.
    Source: Efron & Tibshirani 1993, chapters 13 and 8.
    """
    ids = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    if n == 0 or ids.max() == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    order = np.argsort(ids, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(ids))[:-1])
    values = np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(0, len(members), len(members))
        values[i] = statistic(np.concatenate([members[d] for d in drawn]))
    tail = (1 - confidence) / 2
    if np.isnan(values).all():  # one class only, say
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(hit: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the share of tiles that are a hit, bool (n,).

    Wilson's, or with groups (n,) a bootstrap over them. Of all or none a bootstrap knows no doubt;
    the interval is then Wilson's for as many trials as there are groups.
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
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return accuracy, balanced accuracy and AUC, each with `value`, `low` and `high`.

    labels int64 (N,), probabilities (N, C). Without groups the accuracy has Wilson's interval;
    everything else, and everything with groups, is bootstrapped (over groups where given), samples
    that lack a class left out. Of a value of 1 or 0 a bootstrap knows no doubt; the bound is then
    Wilson's for as many trials as the rarest class has groups (tiles without). What is not defined,
    as the AUC of one class only, anything of no tile or a bootstrap of one group, is NaN.

    Raises ValueError for probabilities that are NaN.
    """
    if np.isnan(probabilities).any():
        raise ValueError("a probability is NaN: the network that gave it is broken, train it again")
    predicted = probabilities.argmax(axis=1)

    def mean(values: Sequence) -> float:
        return float(np.mean(values)) if len(values) else float("nan")

    present = np.unique(labels)

    def balanced(i: np.ndarray) -> float:
        recalls = [(predicted[i][labels[i] == c] == c) for c in present]
        return mean([r.mean() for r in recalls]) if all(map(len, recalls)) else float("nan")

    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda i: mean(predicted[i] == labels[i]),
        "balanced_accuracy": balanced,
        "auc": lambda i: macro_auc(labels[i], probabilities[i]),
    }
    units = np.arange(len(labels)) if groups is None else groups
    trials = min((len(np.unique(units[labels == c])) for c in present), default=0)
    result = {}
    for name, statistic in statistics.items():
        value = statistic(np.arange(len(labels)))
        if name == "accuracy" and groups is None:
            low, high = wilson_interval(int((predicted == labels).sum()), len(labels))
        elif value in (0, 1):  # and so in every sample
            low, high = wilson_interval(int(value * trials), trials)
        else:
            low, high = bootstrap_interval(statistic, len(labels), groups, seed=seed)
        result[name] = {"value": value, "low": low, "high": high}
    return result


def per_class(
    labels: np.ndarray,
    predicted: np.ndarray,
    class_names: tuple[str, ...],
    groups: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class, with intervals.

    labels, predicted: int (N,). The intervals are `share_interval`'s, over groups (N,) where tiles
    come in them. F1 is no proportion of trials and has none.
    """
    rows = []
    for c, name in enumerate(class_names):
        called, true, hit = predicted == c, labels == c, (predicted == c) & (labels == c)
        row = {"class": name}
        for metric, among in (("precision", called), ("recall", true)):
            low, high = share_interval(hit[among], None if groups is None else groups[among])
            row |= {metric: hit.sum() / max(among.sum(), 1)}
            row |= {f"{metric}_low": low, f"{metric}_high": high}
        f1 = 2 * hit.sum() / max(called.sum() + true.sum(), 1)
        rows.append(row | {"f1": f1, "support": int(true.sum())})
    return pd.DataFrame(rows).set_index("class")


def expand_counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels, predictions) of a test set with these counts (C, C), rows truth."""
    truth, predicted = (
        np.repeat(i.ravel(), confusion.ravel()) for i in np.indices(confusion.shape)
    )
    return truth, predicted


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
    """Return the mean gap between confidence and accuracy over equal-width bins, weighted by size.

    labels (N,), probabilities (N, C). Source: Guo et al. 2017, arXiv 1706.04599.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[bin_of == b].mean() - right[bin_of == b].mean()) * (bin_of == b).mean()
        for b in np.unique(bin_of)
    ]
    return float(np.sum(gaps)) if gaps else float("nan")  # no tile


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
    return make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=3000, class_weight="balanced")
    ).fit(features, labels)
