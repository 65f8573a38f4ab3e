"""A kernel that lives long, and lessons opened in other ways than we would."""

import gc
import json
import os
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
import torch
from test_data import fake_tiles, make_folder

from crc_helpers.augmentation import VIEWS
from crc_helpers.course import ROOT, lesson_files, parameters_of
from crc_helpers.explorers import (
    EmbeddingExplorer,
    GradCamExplorer,
    LiveExplorer,
    TemperatureExplorer,
    ThresholdExplorer,
    TissueExplorer,
    ViewsExplorer,
)
from crc_helpers.models import Classifier, Encoder

FULL = bool(os.environ.get("CRC_FAULTS"))  # `make test-faults`
on_demand = pytest.mark.skipif(not FULL, reason="minutes: make test-faults")
UPDATES = 500 if FULL else 60
WARM_UP = 60  # fonts, caches, the allocator


def memory():
    """Bytes of this process that are its own, after a collection."""
    gc.collect()
    return psutil.Process().memory_full_info().uss


def test_explorers_do_not_grow():
    """Each update draws and encodes a figure."""
    rng = np.random.default_rng(0)
    tiles = fake_tiles(np.arange(6) % 2)
    object.__setattr__(tiles, "images", rng.integers(0, 256, (6, 3, 64, 64), np.uint8))
    models = {"a": Classifier(Encoder("resnet8"), 2).eval()}
    z, index = torch.nn.functional.normalize(torch.randn(8, 16)), np.arange(6)
    flat = {"a": np.stack([index / 5, 0 * index], axis=1)}  # in a row: each step points at another
    heat = TemperatureExplorer((z @ z.T).numpy(), list("abcdefgh"), [0, 1, 0, 1], 0.2)
    cam = GradCamExplorer(models, tiles, index, size=64)
    bar = ThresholdExplorer(tiles, rng.random(6))
    views = ViewsExplorer(tiles, index, VIEWS["paper"], 64)
    near = EmbeddingExplorer(tiles, {"a": rng.standard_normal((6, 4))}, flat)
    tissue, live = TissueExplorer(["severity"]), LiveExplorer(models, 64, ["severity"])
    controls = [cam.tile, bar.threshold, heat.temperature, views.again, near.across]
    controls += [tissue.sliders["severity"], live.sliders["severity"]]
    explorers = [cam, bar, heat, views, near, tissue, live]
    drawn = 0
    for i in range(WARM_UP + UPDATES):
        if i == WARM_UP:
            before = memory()
        which, k = i % len(explorers), i // len(explorers) + 1
        explorer, control = explorers[which], controls[which]
        shown = explorer.picture.value
        step = 0.1 + 0.8 * (k % 40) / 40
        control.value = {cam: k % 6, views: k, near: k % 6 / 5}.get(explorer, step)
        drawn += explorer.picture.value != shown and not explorer.message.value
    assert drawn == WARM_UP + UPDATES and not plt.get_fignums()
    growth = memory() / before - 1
    print(f"{UPDATES} updates: {growth:+.1%}")
    assert growth < 0.05


# --- lessons -------------------------------------------------------------------------------------

SMALL = {"N_TILES": 160, "IMAGE_SIZE": 64, "PRETRAIN_EPOCHS": 1, "PRETRAIN_BATCH": 16,
         "VIEWS": ["tissue"], "FINE_TUNE_EPOCHS": 1, "FINE_TUNE_BATCH": 16,
         "FINE_TUNE_LR": [1e-3]}  # fmt: skip

RUNNER = """
import json, sys, gc, matplotlib, psutil
matplotlib.use("agg")
import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cells in json.load(open(sys.argv[1])):
    for cell in cells:
        result = shell.run_cell(cell, silent=True)
        result.raise_error()
        plt.close("all")
    gc.collect()
    print("MEMORY", psutil.Process().memory_full_info().uss)
"""


def cells_of(file, run, start_from="run", twice=False, back=False):
    """A lesson's code with its parameters set; each cell twice, or from the last to the first."""
    given = {**SMALL, "RUN": str(run), "START_FROM": start_from}
    mine = {name: value for name, value in given.items() if name in parameters_of(file)}
    code = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
    sources = []
    for cell in code:
        sources += [cell.source] * (2 if twice else 1)
        if "parameters" in cell.metadata.get("tags", []):
            sources.append("\n".join(f"{name} = {value!r}" for name, value in mine.items()))
            code = [c for c in code if c is not cell]  # not on the way back: it would reset them
    return sources + [cell.source for cell in reversed(code) if back]


def execute(tmp_path, lessons, environment=None, cwd=None, **process):
    """Run lists of cells, one list after the other, in one interpreter; memory after each."""
    script, listed = tmp_path / "runner.py", tmp_path / "cells.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(lessons))
    done = subprocess.run([sys.executable, script, listed], capture_output=True, text=True,
                          env=environment, cwd=cwd or tmp_path, timeout=900, **process)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("MEMORY")]


def environment(**changes):
    base = {"PYTHONPATH": str(ROOT), **os.environ, "PYTHONWARNINGS": "ignore"} | changes
    return {name: value for name, value in base.items() if value is not None}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def lessons_01_to_04(tmp_path_factory, cache):
    """A run folder that the first four lessons have filled, by hand."""
    folder = tmp_path_factory.mktemp("lessons")
    cells = [cells_of(file, folder / "run") for file in lesson_files("01-04")]
    execute(folder, cells, environment(CRC_HELPERS_CACHE=str(cache)))
    return folder / "run"


@on_demand
def test_three_lessons_in_one_kernel_do_not_grow(tmp_path, cache, lessons_01_to_04):
    """Lessons 01, 02 and 04 in turn: the second and third round cost no memory."""
    files = lesson_files()
    round_ = [cells_of(files[i], lessons_01_to_04) for i in (0, 1, 3)]
    used = execute(tmp_path, round_ * 3, environment(CRC_HELPERS_CACHE=str(cache)))
    growth = used[-1] / used[2] - 1
    print("after each lesson, MB:", [value // 10**6 for value in used], f"{growth:+.1%}")
    assert growth < 0.05


@on_demand
@pytest.mark.parametrize("order", ["twice", "back"])
@pytest.mark.parametrize("number", range(len(lesson_files())))
def test_cells_may_be_run_in_any_order(tmp_path, cache, lessons_01_to_04, number, order):
    """Each cell twice; or all of them, and then from the last to the first."""
    shutil.copytree(lessons_01_to_04, tmp_path / "run")
    lesson = cells_of(lesson_files()[number], tmp_path / "run", **{order: True})
    execute(tmp_path, [lesson], environment(CRC_HELPERS_CACHE=str(cache)))


@on_demand
def test_a_kernel_restarted_in_the_middle_goes_on(tmp_path, cache, lessons_01_to_04):
    """Lesson 03 up to its training, then the whole of it in a new interpreter."""
    run, surroundings = tmp_path / "run", environment(CRC_HELPERS_CACHE=str(cache))
    run.mkdir()
    for name in ("data.json", "split.csv"):
        shutil.copy(lessons_01_to_04 / name, run)
    third = cells_of(lesson_files()[2], run)
    middle = next(i for i, cell in enumerate(third) if "pretrain_encoder(" in cell)
    execute(tmp_path, [third[: middle + 1]], surroundings)
    kept = (run / "pretraining_tissue.ckpt").read_bytes()
    execute(tmp_path, [third], surroundings)
    assert (run / "pretraining_tissue.ckpt").read_bytes() == kept
    before = (lessons_01_to_04 / "encoder.safetensors").read_bytes()
    assert (run / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize("where", ["elsewhere", "a path with späces & quotes '"])
def test_a_lesson_opens_from_any_folder(tmp_path, cache, where):
    """From another working directory, into a run folder of any name, without home or network."""
    out = tmp_path / where
    out.mkdir()
    root = make_folder(out / "tiles", count=8)
    cell = (
        "from crc_helpers import data, runs\n"
        f"root, run = {str(root)!r}, runs.run_folder({str(out / 'rün 1')!r})\n"
        "tiles = data.load_tiles('folder', root)\n"
        "data.remember(run, tiles, data.split(tiles), root=root, classes=None, n=0, scheme='auto',"
        " test=0.25, validation=0.15, seed=0)\n"
        "data.recall(run, 'run')"
    )
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    surroundings = environment(CRC_HELPERS_CACHE=str(cache / where), HOME=None, **nowhere)
    execute(tmp_path, [[cell]], surroundings, cwd=out)
    assert (out / "rün 1" / "data.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="users of Unix")
def test_a_read_only_checkout_says_what_to_do(tmp_path):
    """A checkout that belongs to another: the run folder cannot be made in it."""
    checkout = tmp_path / "checkout"
    checkout.mkdir(mode=0o555)
    code = (
        "import os; from pathlib import Path; from crc_helpers import runs;"
        f"runs.ROOT = Path({str(checkout)!r});"
        "os.geteuid() or os.seteuid(65534)\n"
        "try: runs.run_folder('runs/by_hand')\n"
        "except runs.RunError as error: print('SAID', error)"
    )
    for folder in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(folder, 0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment())  # fmt: skip
    assert "SAID" in done.stdout and "choose a folder that you may write to" in done.stdout
