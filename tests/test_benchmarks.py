"""Each speed benchmark runs, at its smallest, and its rows reach the page. No time is judged."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {"small": ("resnet18", 64, 8, 1, 2.0, None)}

pytestmark = pytest.mark.nightly


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A function that runs a benchmark, made small, and returns what it has written."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    harness, threads = importlib.import_module("harness"), torch.get_num_threads()
    monkeypatch.setattr(harness, "RECORD", tmp_path / "speed.json")
    monkeypatch.setattr(harness, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["many_tiles.py", "--counts", "130"])

    def measure(name, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        if hasattr(module, "race"):
            monkeypatch.setattr(module, "race", partial(harness.race, rounds=2))
        module.main()
        (here,) = json.loads((tmp_path / "speed.json").read_text()).values()
        return here

    yield measure
    torch.set_num_threads(threads)
    for module in ("harness", *(f.stem for f in BENCHMARKS.glob("*.py"))):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("name", "constants", "peer"),
    [
        ("views_speed", {"BATCH": 4}, "kornia"),
        ("grad_cam_speed", {"TILES": 2}, "pytorch-grad-cam"),
        ("pretraining_speed", {"SETTINGS": SMALL}, "lightly"),
    ],
)
def test_a_race_ends_in_a_ratio_with_its_spread(measured, tmp_path, name, constants, peer):
    for claim, race in measured(name, **constants)["claims"].items():
        assert {"ours", peer} <= set(race["seconds"])
        assert all(len(v) == 2 and min(v) > 0 for v in race["seconds"].values())
        assert f"| {claim} | ours / {peer} | **" in (tmp_path / "SPEED.md").read_text()
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_many_tiles_and_every_explorer_are_measured(measured):
    tiles = measured("many_tiles", DRAWN=4)["figures"]["130 tiles"]
    assert len(tiles) == 5 and all(value > 0 for value, _ in tiles.values())
    # In the browser test_browser.py operates them.
    explorers = measured("explorers_speed", MOVES=2, UPDATES=4, in_browser=lambda: None)
    answers = explorers["figures"]["explorers, ms to answer"]
    assert {"Grad-CAM, boxes", "tissue", "embedding"} <= set(answers)
