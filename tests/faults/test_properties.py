"""Properties that hold for any input: loaders, splits, metrics, boxes; and strange numbers.

With CRC_FULL=1 (`make test-all`) twenty times as many inputs are tried, other ones each time.
"""

import csv
import io
import math
import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
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
from crc_helpers.sources import folder as folder_reader
from crc_helpers.sources import images as image_reader
from crc_helpers.sources import mhist, tables
from crc_helpers.sources.base import DataError, Listing

FULL = "CRC_FULL" in os.environ
checks = {
    "deadline": None,
    "database": None,
    "derandomize": not FULL,
    "suppress_health_check": list(HealthCheck),
}
settings.register_profile("course", max_examples=2000 if FULL else 100, **checks)
settings.load_profile("course")

# --- Loaders -------------------------------------------------------------------------------------

KINDS = [("PNG", {}), ("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"})]
GROUPS = b'file,group\nhp/a.png,s1\n"ssa/b.png",s2\n'
ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


def good_images():
    """Images of each kind and mode."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    for kind, options in KINDS:
        for mode in ("RGB", "L", *(("RGBA", "P", "1", "LA") if kind == "PNG" else ("CMYK",))):
            content = io.BytesIO()
            noise.convert(mode).save(content, kind, **options)
            yield content.getvalue()


@st.composite
def damaged(draw, goods):
    """A good file with up to three injuries."""
    content = bytearray(draw(st.sampled_from(goods)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "double", "insert"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
        else:
            content[at:at] = draw(st.binary(max_size=20))
    return bytes(content)


@st.composite
def annotations(draw):
    """Rows of the right files with words that a reader might take for labels, votes or parts."""
    rows = [HEADER.split(",")]
    for name in draw(st.permutations(["a.png", "b.png"])):
        right = [("HP", "0"), ("hp ", "3"), ("SSA", "4"), ("ssa", "7")]
        label, votes = draw(st.sampled_from(right))
        part = draw(st.sampled_from(["train", "test", " TEST"]))
        if draw(st.integers(0, 2)) == 0:
            label = draw(st.sampled_from(["HP", "SSA", "=HP"]) | ODD)
            votes = draw(st.integers(-1, 8).map(str) | st.sampled_from(["7.0", "٤", "1e0"]) | ODD)
            part = draw(st.sampled_from(["test", "val"]) | ODD)
        rows.append([name, label, votes, part])
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=draw(st.sampled_from(",,,;\t"))).writerows(rows)
    return content.getvalue().encode("utf-8", "replace")


def read_image(path):
    tile, *_ = image_reader.decode(path, 8, path.read_bytes())
    assert tile.shape == (3, 8, 8) and tile.dtype == np.uint8


def read_mask(path):
    mask = image_reader.decode_mask(path, 16, (24, 24))
    assert mask.shape == (16, 16) and set(np.unique(mask)) <= {0, 1}


def read_annotations(path):
    tables.read_table(path, mhist.MHIST_COLUMNS)
    table, _ = mhist.tabulate(path.parent, Listing({"images": ["a.png", "b.png"]}, ""))
    assert set(table["class"]) <= {"HP", "SSA"} and set(table["partition"]) <= {"train", "test"}
    assert table["votes"].astype(int).between(0, 7).all() and set(table["id"]) == {"a.png", "b.png"}


def read_groups(path):
    found, _ = folder_reader._read_groups(path, pd.Series(["hp/a.png", "ssa/b.png"]))
    assert len(found) == 2


IMAGES = damaged(list(good_images())) | st.binary(max_size=400)
FILES = {
    "image": ("x.png", IMAGES, read_image),
    "mask": ("x.png", IMAGES, read_mask),
    "annotations": ("annotations.csv", annotations(), read_annotations),
    "groups": ("groups.csv", damaged([GROUPS]) | st.binary(max_size=100), read_groups),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_file_is_read_or_refused_in_a_sentence(tmp_path, kind):
    """Whole, with injuries, and bytes that are none."""
    name, contents, read = FILES[kind]
    path, seen = tmp_path / name, Counter()

    @given(contents)
    def check(content):
        path.write_bytes(content)
        try:
            read(path)
            seen["read"] += 1
        except DataError as error:
            assert str(error).isprintable() and len(str(error)) < 1100
            seen["refused"] += 1

    check()
    assert min(seen["read"], seen["refused"]) >= 5, seen


# --- Splits --------------------------------------------------------------------------------------


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


SHARES = st.floats(0.2, 0.5) | st.floats(0.01, 0.99)
PLANS = {
    "scheme": st.sampled_from(["auto", "paper", "random"]),
    "test": SHARES,
    "validation": st.just(0.0) | SHARES,
    "seed": st.integers(0, 2**32 - 1),
}


def test_any_split_divides_or_says_why_not():
    seen = Counter()

    @given(cohorts(), st.booleans(), st.fixed_dictionaries(PLANS))
    def check(tiles, grouped, plan):
        labels, groups = np.array(tiles).T
        made = fake_tiles(labels, groups.astype(str) if grouped else None, None, ("a", "b", "c"))
        try:
            parts = split(made, **plan)
        except DataError as error:
            assert "fake" in str(error)
            seen["refused"] += 1
            return
        every = [parts.train, parts.val, parts.test, parts.unlabelled, parts.discarded]
        together = np.concatenate(every)
        assert len(together) == len(np.unique(together))  # no tile is in two parts
        for part in (parts.train, parts.test, *([parts.val] if plan["validation"] else [])):
            assert set(labels[part]) == {0, 1, 2}
        if parts.grouped:
            known, held = np.concatenate([parts.pretraining, parts.val]), parts.test
            assert not set(groups[known]) & set(groups[held])
            assert not set(groups[parts.pretraining]) & set(groups[parts.val])
        else:
            assert len(together) == len(labels)  # every tile is in one
        again = split(made, **plan)
        for a, b in zip(every[:3], (again.train, again.val, again.test), strict=True):
            assert (a == b).all()
        seen["grouped" if parts.grouped else "divided"] += 1

    check()
    assert min(seen.values()) >= 10 and len(seen) == 3, seen


# --- Intervals and metrics -----------------------------------------------------------------------


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
    expected = roc_auc_score(labels, scores) if len(set(labels)) > 1 else np.nan
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_a_test_part_of_one_class_or_none_has_defined_metrics(n):
    labels, found, groups = np.zeros(n, int), np.tile([0.5, 0.5], (n, 1)), np.arange(n) // 3
    m = summarise(labels, found, groups)
    assert set(m) == {"accuracy", "balanced_accuracy", "auc"} and math.isnan(m["auc"]["value"])
    assert m["accuracy"]["value"] == 1 if n else math.isnan(m["accuracy"]["value"])
    row = per_class(labels, labels, ("a", "b"), groups).loc["b"]
    assert row[["precision", "recall", "f1", "recall_low", "recall_high"]].tolist() == [0] * 4 + [1]
    assert math.isnan(expected_calibration_error(labels, found)) == (n == 0)


def test_undefined_numbers_are_null_in_json_and_nan_is_refused(tmp_path):
    save_json(tmp_path / "m.json", {"auc": {"value": math.nan, "low": [math.inf, 1.5]}})
    written = (tmp_path / "m.json").read_text()
    assert "NaN" not in written and "1.5" in written
    assert math.isnan(precision_at_prevalence(0.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="NaN: the network that gave it is broken"):
        summarise(np.array([0]), np.array([[np.nan, 1.0]]))


# --- Boxes and maps ------------------------------------------------------------------------------

shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
maps = arrays(np.float32, shapes, elements=st.floats(0, 1e6, width=32))


@given(maps, st.floats(0.01, 1), st.integers(0, 2**32))
def test_boxes_cover_what_is_hot_and_scores_of_a_map_are_shares_or_undefined(heat, threshold, seed):
    found, covered = boxes(heat, threshold), np.zeros_like(heat, bool)
    for x, y, width, height in found:
        assert 0 <= x < x + width <= heat.shape[1] and 0 <= y < y + height <= heat.shape[0]
        covered[y : y + height, x : x + width] = True
    assert bool(found) == bool(heat.max() > 0)
    assert not found or covered[heat >= threshold * heat.max()].all()
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
