"""Properties that hold for any input: loaders, splits, metrics, boxes; and strange numbers."""

import csv
import io
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzz import damaged, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import roc_auc_score
from test_data import HEADER, fake_tiles

from crc_helpers.data import split
from crc_helpers.evaluation import (
    bootstrap_interval,
    expected_calibration_error,
    macro_auc,
    per_class,
    precision_at_prevalence,
    summarise,
    wilson_interval,
)
from crc_helpers.grad_cam import boxes, hits, mass_inside, overlap
from crc_helpers.models import Encoder
from crc_helpers.pretraining import collapsed, make_monitor
from crc_helpers.runs import save_json
from crc_helpers.sources import images as image_reader
from crc_helpers.sources import mhist, tables
from crc_helpers.sources.base import DataError

settings.register_profile("course", deadline=None, derandomize=True, max_examples=100,
                          suppress_health_check=list(HealthCheck))  # fmt: skip
settings.load_profile("course")

GOOD = seeds()  # images
shares = st.floats(0.01, 0.99)
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


# --- loaders -------------------------------------------------------------------------------------


def test_any_image_is_a_tile_or_a_sentence():
    """Images of every kind, whole or with an injury; and bytes that are none."""
    seen = Counter()

    @given(st.sampled_from(GOOD) | damaged(GOOD, most=1) | st.binary(max_size=400))
    def check(content):
        try:
            tile, _, _ = image_reader.decode(Path("x.png"), 8, content)
            assert tile.shape == (3, 8, 8) and tile.dtype == np.uint8
            seen["read"] += 1
        except DataError as error:
            assert str(error).isprintable() and "x.png" in str(error)
            seen["refused"] += 1

    check()
    assert min(seen["read"], seen["refused"]) >= 20, seen


row = st.tuples(text, st.sampled_from(["HP", "SSA", "hp"]), st.integers(0, 7).map(str),
                st.sampled_from(["train", "test"]))  # fmt: skip


def test_any_table_is_rows_or_a_sentence(tmp_path):
    """Rows as annotations have them, names of any text; and rows of any text."""
    path, seen = tmp_path / "any.csv", Counter()
    anything = st.lists(st.lists(text, min_size=4, max_size=4), max_size=4)

    @given(st.lists(row, min_size=1, max_size=4) | anything, st.sampled_from(",,,;\t"))
    def check(rows, separator):
        content = io.StringIO(newline="")
        csv.writer(content, delimiter=separator).writerows([HEADER.split(","), *rows])
        path.write_bytes(content.getvalue().encode())
        try:
            table, _ = tables.read_table(path, mhist.MHIST_COLUMNS)
            assert len(table) <= len(rows)
            assert list(table) == list(mhist.MHIST_COLUMNS)
            seen["read"] += 1
        except DataError as error:
            assert str(error).isprintable() and "any.csv" in str(error)
            seen["refused"] += 1

    check()
    assert min(seen["read"], seen["refused"]) >= 20, seen


# --- splits --------------------------------------------------------------------------------------


@st.composite
def cohorts(draw):
    """Labels 0, 1, 2 and -1 (none in this task), and a slide for each tile: each class on enough
    slides for three parts, some slides of two classes; or a few tiles of any kind.
    """
    if draw(st.integers(0, 4)) == 0:
        return draw(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 9)), min_size=1))
    sizes = st.lists(st.integers(1, 4), min_size=8, max_size=16)
    slides = [(label, size) for label in (0, 1, 2, -1) for size in draw(sizes)]
    tiles = [(label, slide) for slide, (label, size) in enumerate(slides) for _ in range(size)]
    others = draw(st.lists(st.integers(0, len(slides) - 1), max_size=3))
    return tiles + [(draw(st.integers(-1, 2)), slide) for slide in others]


def test_any_split_divides_or_says_why_not():
    seen = Counter()

    @given(cohorts(), st.booleans(), st.sampled_from(["auto", "paper", "random"]),
           st.floats(0.2, 0.5) | shares, st.just(0.0) | st.floats(0.2, 0.5) | st.floats(0, 0.9),
           st.integers(0, 2**32 - 1))  # fmt: skip
    def check(tiles, grouped, scheme, test, validation, seed):
        labels, groups = np.array(tiles).T
        made = fake_tiles(labels, groups.astype(str) if grouped else None, None, ("a", "b", "c"))
        given_to = {"test": test, "validation": validation, "seed": seed}
        try:
            parts = split(made, scheme, **given_to)
        except DataError as error:
            assert "fake" in str(error)
            seen["refused"] += 1
            return
        every = [parts.train, parts.val, parts.test, parts.unlabelled, parts.discarded]
        together = np.concatenate(every)
        assert len(together) == len(np.unique(together))  # no tile is in two parts
        for part in (parts.train, parts.test, *([parts.val] if validation else [])):
            assert set(labels[part]) == {0, 1, 2}
        if parts.grouped:
            known, held = np.concatenate([parts.pretraining, parts.val]), parts.test
            assert not set(groups[known]) & set(groups[held])
            assert not set(groups[parts.pretraining]) & set(groups[parts.val])
        else:
            assert len(together) == len(labels)  # every tile is in one
        again = split(made, scheme, **given_to)
        assert all((a == b).all() for a, b in zip(every[:3], [again.train, again.val, again.test],
                                                   strict=True))  # fmt: skip
        seen["grouped" if parts.grouped else "divided"] += 1

    check()
    assert min(seen["grouped"], seen["refused"]) >= 10 and seen["divided"] >= 30, seen


# --- intervals and metrics -----------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0.5, 0.999))
def test_wilson_holds_its_share(a, b, confidence):
    low, high = wilson_interval(a, a + b, confidence)
    assert 0 <= low <= (a / (a + b) if a + b else 0.5) <= high <= 1


@given(arrays(float, st.integers(0, 40), elements=st.floats(-1e6, 1e6) | st.just(np.nan)))
def test_bootstrap_is_ordered_or_undefined(values):
    low, high = bootstrap_interval(lambda i: values[i].mean(), len(values), samples=50)
    assert low <= high or (math.isnan(low) and math.isnan(high))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40))
def test_area_counts_ties_half_and_one_class_as_undefined(pairs):
    labels, scores = np.array(pairs).T
    found = macro_auc(labels, np.column_stack([3 - scores, scores]) / 3)
    if len(set(labels)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels, scores))


@settings(max_examples=25)
@given(st.integers(0, 30), st.booleans(), st.integers(0, 1))
def test_a_test_part_of_one_class_or_none_has_defined_metrics(n, grouped, label):
    labels, found = np.full(n, label), np.tile([0.5, 0.5], (n, 1))
    groups = np.arange(n) // 3 if grouped else None
    m = summarise(labels, found, groups)
    assert set(m) == {"accuracy", "balanced_accuracy", "auc"} and math.isnan(m["auc"]["value"])
    assert m["accuracy"]["value"] == (label == 0) if n else math.isnan(m["accuracy"]["value"])
    table = per_class(np.zeros(n, int), np.zeros(n, int), ("a", "b"), groups)
    assert table.loc["b", ["precision", "recall", "f1"]].tolist() == [0, 0, 0]
    assert table.loc["b", ["recall_low", "recall_high"]].tolist() == [0, 1]
    assert math.isnan(expected_calibration_error(labels, found)) == (n == 0)


def test_undefined_numbers_are_null_in_json_and_nan_is_refused(tmp_path):
    save_json(tmp_path / "m.json", {"auc": {"value": math.nan, "low": [math.inf, 1.5]}})
    written = (tmp_path / "m.json").read_text()
    assert "NaN" not in written and "1.5" in written
    assert math.isnan(precision_at_prevalence(0.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="NaN: the network that gave it is broken"):
        summarise(np.array([0]), np.array([[np.nan, 1.0]]))


# --- boxes and maps ------------------------------------------------------------------------------

maps = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12),
              elements=st.floats(0, 1e6, width=32))  # fmt: skip


@given(maps, st.floats(0.01, 1))
def test_boxes_cover_what_is_hot_and_lie_inside(heat, threshold):
    found = boxes(heat, threshold)
    covered = np.zeros_like(heat, bool)
    for x, y, width, height in found:
        assert 0 <= x < x + width <= heat.shape[1] and 0 <= y < y + height <= heat.shape[0]
        covered[y : y + height, x : x + width] = True
    assert bool(found) == bool(heat.max() > 0)
    assert not found or covered[heat >= threshold * heat.max()].all()


@given(maps, st.integers(0, 2**32))
def test_scores_of_a_map_are_shares_or_undefined(heat, seed):
    mask = np.random.default_rng(seed).integers(0, 2, heat.shape).astype(np.uint8)
    for score in (mass_inside, hits, overlap):
        (value,) = score(heat[None], mask[None])
        assert -1e-6 <= value <= 1 + 1e-5 if heat.max() > 0 else math.isnan(value)
    assert boxes(np.full((3, 3), np.nan)) == []


def test_a_collapsed_encoder_is_noticed(coloured_tiles, fabric):
    images = SimpleNamespace(pick=lambda index: coloured_tiles[index])
    tiles = SimpleNamespace(images=images, labels=np.arange(16) % 2, groups=None)
    monitor = make_monitor(tiles, np.arange(16), 16, 2, fabric)
    encoder = Encoder("resnet8")
    assert not collapsed(monitor(encoder, 2)) and not collapsed({})
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)  # says the same of every tile
    assert collapsed(monitor(encoder, 2))
