"""Metrics against scikit-learn, intervals that cover, and the paper's own counts."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from crc_helpers.claims import over_cases
from crc_helpers.evaluation import (
    PAPER_COUNTS,
    bootstrap_interval,
    colour_baseline,
    colour_statistics,
    expand_counts,
    expected_calibration_error,
    fit_temperature,
    macro_auc,
    per_class,
    precision_at_prevalence,
    scale_temperature,
    share_interval,
    summarise,
    wilson_interval,
)


def make_predictions(n=120, classes=2):
    """Labels and probabilities better than chance."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    scores = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    return labels, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


# --- The paper's table ---------------------------------------------------------------------------


def test_the_papers_counts_give_its_table():
    table = per_class(*expand_counts(PAPER_COUNTS), ("HP", "SSA"))
    found = [f"{x:.2%}" for x in table[["precision", "recall", "f1"]].to_numpy().ravel()]
    assert found == ["86.60%", "84.85%", "85.71%", "85.15%", "86.87%", "86.00%"]
    # Where SSA is as rare as in MHIST fewer calls of it are right.
    rare = precision_at_prevalence(recall=86 / 99, specificity=84 / 99, prevalence=0.314)
    assert f"{rare:.1%}" == "72.4%"
    counts = [[4, 1, 0], [0, 2, 2], [1, 0, 9]]
    assert confusion_matrix(*expand_counts(np.array(counts))).tolist() == counts


# --- Intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [(84, 99, (0.7650, 0.9060)), (0, 10, (0, 0.2775)), (10, 10, (0.7225, 1)), (0, 0, (0, 1))],
)
def test_wilson_by_hand(k, n, expected):
    assert wilson_interval(k, n) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match=f"{n + 1} successes of {n}"):
        wilson_interval(n + 1, n)


def mean_of(values):
    return lambda index: float(values[index].mean())


def test_a_bootstrap_repeats_with_its_seed_and_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), []
    for _ in range(200):
        statistic = mean_of(rng.normal(size=40))
        low, high = bootstrap_interval(statistic, 40, samples=200)
        covered.append(low <= 0 <= high)
    assert (low, high) == bootstrap_interval(statistic, 40, samples=200)
    assert (low, high) != bootstrap_interval(statistic, 40, samples=200, seed=1)
    # The percentile interval of 40 values falls a little short; 200 trials add 0.021 of error.
    assert 0.88 <= np.mean(covered) <= 0.98


def test_tiles_that_repeat_their_slide_widen_the_interval():
    slides = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(0).normal(size=20)[slides]  # ten copies of twenty numbers
    low, high = bootstrap_interval(mean_of(values), 200)
    group_low, group_high = bootstrap_interval(mean_of(values), 200, slides)
    # Two hundred tiles tell no more than twenty: sqrt(10) times the width.
    assert (group_high - group_low) / (high - low) == pytest.approx(np.sqrt(10), rel=0.15)
    for one in ((6, np.zeros(6, int)), (1, None)):  # one group, or one tile
        assert np.isnan(bootstrap_interval(mean_of(values), *one)).all()


def test_a_group_is_drawn_whole_whatever_its_name_and_size():
    groups = np.array(["b", "a", "c", "a", "b", "b"])
    members, drawn = {"a": (1, 3), "b": (0, 4, 5), "c": (2,)}, []
    bootstrap_interval(lambda i: drawn.append(i) or 0.0, 6, groups, samples=50)
    for index in drawn:
        count = np.bincount(index, minlength=6)
        assert all(len({count[row] for row in rows}) == 1 for rows in members.values())
        assert sum(count[rows[0]] for rows in members.values()) == 3  # groups, with repetition


def test_a_share_has_wilsons_interval_and_with_slides_a_wider_one():
    hit, slides = np.repeat([True, True, False, True], 10), np.repeat(np.arange(4), 10)
    assert share_interval(hit) == wilson_interval(30, 40)
    assert share_interval(hit[:20], slides[:20]) == wilson_interval(2, 2)  # slides, not tiles
    assert share_interval(~hit[:20], slides[:20]) == wilson_interval(0, 2)
    assert share_interval(hit[:0], slides[:0]) == (0, 1)
    low, high = share_interval(hit, slides)
    assert low < wilson_interval(30, 40)[0] and high == 1


# --- Metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_summary_is_scikit_learns_inside_its_intervals(classes, grouped):
    labels, p = make_predictions(classes=classes)
    labels = np.where(np.arange(120) < 30, 0, labels)  # imbalanced
    summary = summarise(labels, p, np.arange(len(labels)) // 4 if grouped else None)
    predicted, scores = p.argmax(axis=1), p if classes > 2 else p[:, 1]
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "auc": roc_auc_score(labels, scores, multi_class="ovr"),
    }
    assert {k: v["value"] for k, v in summary.items()} == pytest.approx(expected)
    for metric in summary.values():
        assert list(metric) == ["value", "low", "high"]
        assert all(type(number) is float for number in metric.values())  # fit for JSON
        assert 0 <= metric["low"] < metric["value"] < metric["high"] <= 1
    table = per_class(labels, predicted, tuple("abc"[:classes]))
    theirs = precision_recall_fscore_support(labels, predicted)
    np.testing.assert_allclose(table[["precision", "recall", "f1", "support"]].T, theirs)
    assert np.isnan(macro_auc(labels[labels > 0], p[labels > 0]))  # a class has no tile


@pytest.mark.parametrize("right", [True, False])
def test_all_right_or_all_wrong_on_few_slides_is_not_certain(right):
    labels, groups = np.repeat([0, 1], 40), np.arange(80) // 8  # five slides of each class
    predicted = labels if right else 1 - labels
    bounds = wilson_interval(5 * right, 5)
    summary = summarise(labels, np.eye(2)[predicted], groups)
    assert {(m["low"], m["high"]) for m in summary.values()} == {bounds}
    recall = per_class(labels, predicted, ("HP", "SSA"), groups)[["recall_low", "recall_high"]]
    assert {tuple(row) for row in recall.to_numpy()} == {bounds}
    # Without slides there are forty trials of each class, and eighty in all.
    alone = summarise(labels, np.eye(2)[predicted])
    assert (alone["auc"]["low"], alone["auc"]["high"]) == wilson_interval(40 * right, 40)
    assert (alone["accuracy"]["low"], alone["accuracy"]["high"]) == wilson_interval(80 * right, 80)


def test_bootstrap_samples_without_a_class_do_not_count_for_balanced_accuracy():
    labels = np.array([0] * 9 + [1])  # a third of the samples lack class 1
    summary = summarise(labels, np.eye(2)[np.zeros(10, int)])["balanced_accuracy"]
    assert summary == {"value": 0.5, "low": 0.5, "high": 0.5}  # not 1 where all are class 0


def test_the_calibration_error_by_hand():
    # Two tiles at 0.95 of which one is right, three at 0.25 of which one is: the error is of the
    # second class's probability, not of the class that is called.
    p = np.array([0.95, 0.95, 0.25, 0.25, 0.25])
    probabilities, labels = np.stack([1 - p, p], axis=1), np.array([1, 0, 0, 1, 0])
    expected = 2 / 5 * (0.95 - 1 / 2) + 3 / 5 * (1 / 3 - 0.25)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_divides_the_logits(temperature):
    logits = 5 * np.random.default_rng(0).normal(size=(30, 3))
    expected = softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(scale_temperature(softmax(logits, axis=1), temperature), expected)


def test_the_temperature_found_is_the_best_of_a_grid_and_undoes_overconfidence():
    logits = 2 * np.random.default_rng(0).normal(size=(4000, 2))
    labels = (np.random.default_rng(1).random(4000) < softmax(logits, axis=1)[:, 1]).astype(int)
    overconfident = softmax(2.5 * logits, axis=1)
    grid = np.linspace(1, 5, 401)
    losses = [log_loss(labels, softmax(2.5 * logits / t, axis=1)) for t in grid]
    found = fit_temperature(labels, overconfident)
    assert found == pytest.approx(grid[np.argmin(losses)], abs=0.01)
    assert found == pytest.approx(2.5, rel=0.1)
    repaired = scale_temperature(overconfident, found)
    errors = [expected_calibration_error(labels, p) for p in (overconfident, repaired)]
    assert errors[1] < 0.03 < 0.08 < errors[0]


def test_without_validation_tiles_nothing_is_scaled():
    assert fit_temperature(np.array([], int), np.empty((0, 2))) == 1


# --- Colour --------------------------------------------------------------------------------------


def test_colour_statistics_are_those_of_every_other_row_and_column():
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20), dtype=np.uint8)
    pixels = tiles[:, :, ::2, ::2].reshape(5, 3, 100) / 255
    expected = [pixels.mean(axis=2), pixels.std(axis=2)]
    expected += [np.percentile(pixels, q, axis=2) for q in (10, 50, 90)]
    found = colour_statistics(tiles, batch=2)  # batches of unequal size must not matter
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-6)


def test_the_colour_baseline_tells_colours_apart():
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    noise = rng.integers(0, 120, (60, 3, 16, 16)).astype(np.uint8)
    darker = colour_statistics(noise + (100 * labels).astype(np.uint8)[:, None, None, None])
    assert (colour_baseline(darker, labels).predict(darker) == labels).all()


def test_a_difference_over_cases_is_that_of_balanced_accuracies_and_draws_whole_cases():
    rng = np.random.default_rng(0)
    case, label = rng.integers(0, 12, 90), rng.integers(0, 3, 90)
    right = {"one": rng.random(90) < 0.8, "other": rng.random(90) < 0.6}

    def cells(hit):
        table = pd.DataFrame({"case": case, "label": label, "hit": hit})
        counts = table.groupby(["case", "label"])["hit"].agg(["size", "sum"]).reset_index()
        return json.dumps(counts.to_numpy().tolist())

    def difference(k):
        gap = right["one"][k].astype(float) - right["other"][k]
        return np.mean([gap[label[k] == c].mean() for c in range(3)])

    rows = pd.DataFrame([{"arm": arm, "cells": cells(hit)} for arm, hit in right.items()])
    rows = rows.assign(seed=0, draws=1)
    ends = bootstrap_interval(difference, 90, case)
    expected = pytest.approx((difference(np.arange(90)), *ends))
    assert over_cases(rows, "one", "other") == expected
    # Another split with the same answers on the same cases adds nothing to what is known.
    again = pd.concat([rows, rows.assign(seed=1)])
    assert over_cases(again, "one", "other") == expected
