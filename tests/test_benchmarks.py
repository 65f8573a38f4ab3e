"""Each speed benchmark runs, at its smallest, and its rows reach the page. No time is judged."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A function that imports a benchmark, made small, whose page is written to tmp_path."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    harness = importlib.import_module("harness")
    monkeypatch.setattr(harness, "RECORD", tmp_path / "speed.json")
    monkeypatch.setattr(harness, "HERE", tmp_path)

    def small(name, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        if hasattr(module, "race"):
            monkeypatch.setattr(module, "race", partial(harness.race, rounds=2))
        return module

    threads = torch.get_num_threads()
    yield small
    torch.set_num_threads(threads)
    for module in ("harness", *(f.stem for f in BENCHMARKS.glob("*.py"))):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("name", "constants", "contenders"),
    [
        ("views_speed", {"BATCH": 4}, ["ours", "kornia", "torchvision"]),
        ("grad_cam_speed", {"TILES": 2}, ["ours", "pytorch-grad-cam", "forward"]),
        (
            "pretraining_speed",
            {"SETTINGS": {"small": ("resnet18", 64, 8, 1, 2.0, None)}},
            ["ours", "lightly", "limit"],
        ),
    ],
)
def test_a_race_ends_in_a_ratio_with_its_spread(bench, tmp_path, name, constants, contenders):
    bench(name, **constants).main()
    (here,) = json.loads((tmp_path / "speed.json").read_text()).values()
    for claim, race in here["claims"].items():
        assert set(contenders) <= set(race["seconds"])
        assert all(len(v) == 2 and min(v) > 0 for v in race["seconds"].values())
        assert f"| {claim} | ours / {contenders[1]} | **" in (tmp_path / "SPEED.md").read_text()
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_tiles_that_are_many_are_decoded_opened_and_gone_through(bench, tmp_path, monkeypatch):
    module = bench("many_tiles", DRAWN=4)
    monkeypatch.setattr(sys, "argv", ["many_tiles.py", "--counts", "130"])
    module.main()
    (here,) = json.loads((tmp_path / "speed.json").read_text()).values()
    measured = here["figures"]["130 tiles"]
    assert len(measured) == 5 and all(value > 0 for value, _ in measured.values())


def test_every_explorer_answers_the_benchmark(bench, tmp_path, monkeypatch):
    module = bench("explorers_speed", MOVES=2, UPDATES=4)
    monkeypatch.setattr(module, "in_browser", lambda: None)  # tests/test_browser.py operates these
    module.main()
    (here,) = json.loads((tmp_path / "speed.json").read_text()).values()
    assert {"Grad-CAM, boxes", "tissue", "embedding"} <= set(
        here["figures"]["explorers, ms to answer"]
    )
