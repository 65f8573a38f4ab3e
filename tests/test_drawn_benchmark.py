"""The drawn benchmark: its split is the course's, and its page's function scores maps rightly."""

import re

import numpy as np
import pandas as pd
import pytest

from crc_helpers import data
from crc_helpers.course.benchmark import write_benchmark
from crc_helpers.runs import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("drawn") / "tiles", 240, size=48, seed=5)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path_factory.getbasetemp() / "drawn_cache"))


def test_the_split_is_that_of_the_course(folder):
    tiles = data.load_tiles("mhist", folder, size=48)
    parts, written = data.split(tiles), pd.read_csv(folder / "split.csv")
    assert written["Image Name"].tolist() == tiles.ids.tolist()
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(np.flatnonzero(written["Part"] == name), getattr(parts, name))
    assert written.groupby("Slide")["Part"].nunique().max() == 1


def test_the_function_of_the_page_scores_a_perfect_map_and_a_flat_one(folder):
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    shown: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], shown)
    tiles, parts = data.load_tiles("mhist", folder, size=48), pd.read_csv(folder / "split.csv")
    masks = tiles.masks[np.flatnonzero((parts["Part"] == "test") & (tiles.labels == 1))]

    def always(images):
        return np.ones(len(images), int)

    perfect = shown["score"](lambda _: masks.astype(float), always, folder, size=48)
    assert perfect["tiles"] == len(masks) and perfect["blank"] == (masks.max((1, 2)) == 0).mean()
    assert perfect["hit"] == perfect["mass"] == perfect["overlap"] == 1
    flat = shown["score"](lambda images: np.ones(masks.shape), always, folder, size=48)
    assert flat["mass"] == pytest.approx(flat["chance"]) and 0.02 < flat["chance"] < 0.9
