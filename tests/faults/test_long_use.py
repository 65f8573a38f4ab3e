"""A kernel that lives long, and lessons opened in other ways than we would."""

import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
from test_data import fake_tiles

from crc_helpers.augmentation import VIEWS
from crc_helpers.course.settings import lesson_files, parameters_of
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
from crc_helpers.runs import ROOT

UPDATES = 500
WARM_UP = 60  # fonts, caches, the allocator


def memory():
    """Bytes of this process that are its own, after a collection."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # free memory goes back to the system: what is left is used
    return psutil.Process().memory_full_info().uss


@pytest.mark.nightly
def test_explorers_do_not_grow():
    """Each update draws and encodes a figure."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 3, 64, 64), np.uint8)
    tiles = replace(fake_tiles(np.arange(6) % 2), images=images)
    models = {"a": Classifier(Encoder("resnet8"), 2).eval()}
    index, row = np.arange(6), np.linspace([0, 0], [1, 0], 6)  # each step points at another
    cam = GradCamExplorer(models, tiles, index, 64)
    views = ViewsExplorer(tiles, index, VIEWS["paper"], 64)
    cosines = np.corrcoef(rng.random((8, 16)))
    heat = TemperatureExplorer(cosines, list("abcdefgh"), [0, 1, 0, 1], 0.2)
    bar = ThresholdExplorer(tiles, rng.random(6))
    near = EmbeddingExplorer(tiles, {"a": rng.random((6, 4))}, {"a": row})
    tissue, live = TissueExplorer(["severity"]), LiveExplorer(models, 64, ["severity"])
    controls = {
        cam: cam.chooser.tile,
        bar: bar.threshold,
        heat: heat.temperature,
        views: views.again,
        near: near.across,
        tissue: tissue.sliders["severity"],
        live: live.sliders["severity"],
    }
    explorers = [*controls]
    drawn = 0
    for i in range(WARM_UP + UPDATES):
        if i == WARM_UP:
            before = memory()
        which, k = i % len(explorers), i // len(explorers) + 1
        explorer = explorers[which]
        shown = explorer.picture.value
        step = 0.1 + 0.8 * (k % 40) / 40
        controls[explorer].value = {cam: k % 6, views: k, near: k % 6 / 5}.get(explorer, step)
        drawn += explorer.picture.value != shown and not explorer.message.value
    assert drawn == WARM_UP + UPDATES and not plt.get_fignums()
    growth = memory() / before - 1
    assert growth < 0.05


# --- lessons -------------------------------------------------------------------------------------

SMALL = {"N_TILES": 160, "IMAGE_SIZE": 64, "VIEWS": ["tissue"], "FINE_TUNE_LR": [1e-3]}
SMALL |= {"PRETRAIN_EPOCHS": 4, "PRETRAIN_BATCH": 16, "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_BATCH": 16}

RUNNER = """
import ctypes, json, sys, gc, matplotlib, psutil
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
    ctypes.CDLL(None).malloc_trim(0)  # free memory goes back to the system
    print("MEMORY", psutil.Process().memory_full_info().uss)
print("ALL DONE")
"""


def cells_of(file, run, twice=False, back=False):
    """A lesson's code with its parameters set; each cell twice, or from the last to the first."""
    given = {**SMALL, "RUN": str(run), "START_FROM": "run"}
    mine = {name: value for name, value in given.items() if name in parameters_of(file)}
    code = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
    sources = []
    for cell in code:
        sources += [cell.source] * (2 if twice else 1)
        if "parameters" in cell.metadata.get("tags", []):
            sources.append("\n".join(f"{name} = {value!r}" for name, value in mine.items()))
            code = [c for c in code if c is not cell]  # not on the way back: it would reset them
    return sources + [cell.source for cell in reversed(code) if back]


def execute(tmp_path, lessons, environment):
    """Run lists of cells, one list after the other, in a new kernel; what they have printed."""
    script, listed = tmp_path / "runner.py", tmp_path / "cells.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(lessons))
    command, how = [sys.executable, script, listed], {"capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, cwd=tmp_path, timeout=900, **how)
    assert "ALL DONE" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


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


MADE_BY = {
    0: ["data.json", "split.csv"],
    2: ["encoder.safetensors", "pretraining*"],
    3: ["classifier.safetensors", "scratch.safetensors", "fine_tuning*", "*.ckpt"],
}


def kept(run):
    """What lessons 01 to 04 leave for others: the bytes of data, split and weights by name."""
    files = [run / "data.json", run / "split.csv", *run.glob("*.safetensors")]
    assert len(files) == 5
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.nightly
def test_three_lessons_in_one_kernel_do_not_grow(tmp_path, cache, lessons_01_to_04):
    """Lessons 01, 02 and 04 in turn: the second and third round cost no memory."""
    files = lesson_files()
    round_ = [cells_of(files[i], lessons_01_to_04) for i in (0, 1, 3)]
    said = execute(tmp_path, round_ * 3, environment(CRC_HELPERS_CACHE=str(cache)))
    used = [int(line.split()[1]) for line in said.splitlines() if line.startswith("MEMORY")]
    growth = used[-1] / used[2] - 1
    assert growth < 0.05


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["twice", "back"])
@pytest.mark.parametrize("number", range(len(lesson_files())))
def test_cells_may_be_run_in_any_order(tmp_path, cache, lessons_01_to_04, number, order):
    """Each cell twice; or all of them, and then from the last to the first: the same results."""
    run = tmp_path / "run"
    shutil.copytree(lessons_01_to_04, run)
    for left in MADE_BY.get(number, ()):  # so that the lesson makes them again
        for path in run.glob(left):
            path.unlink()
    lesson = cells_of(lesson_files()[number], run, **{order: True})
    execute(tmp_path, [lesson], environment(CRC_HELPERS_CACHE=str(cache)))
    assert kept(run) == kept(lessons_01_to_04)


OFFLINE = """
import pathlib, sys
HERE = ("127.0.0.1", "::1", "localhost", "", None, "0.0.0.0")
def refuse(event, arguments):
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if isinstance(address, tuple) and address[0] not in HERE:
            with open({log!r}, "a") as log:
                log.write(f"{event} {address}\\n")
            raise OSError("there is no network here")
sys.addaudithook(refuse)
"""
OPEN = """
import sys, papermill
papermill.execute_notebook(sys.argv[1], sys.argv[2], {"N_TILES": 48}, kernel_name="python3",
                           cwd=sys.argv[3], progress_bar=False)
"""


@pytest.mark.slow
def test_a_lesson_opens_from_any_folder(tmp_path):
    """Lesson 01 in a checkout with a space and an umlaut in its path, from another working
    directory, with no home, no cache folder named, and no network.
    """
    checkout, elsewhere = tmp_path / "späte Kopie 'n'", tmp_path / "elsewhere"
    for name in ("crc_helpers", "notebooks", "presets"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    elsewhere.mkdir()
    (tmp_path / "sitecustomize.py").write_text(
        OFFLINE.replace("{log!r}", repr(str(tmp_path / "asked")))
    )
    paths = os.pathsep.join([str(tmp_path), str(checkout)])
    own = {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(tmp_path / "täglich")}
    surroundings = environment(HOME=None, CRC_HELPERS_CACHE=None, **own)
    lesson = checkout / "notebooks" / lesson_files()[0].name
    command = [sys.executable, "-c", OPEN, lesson, tmp_path / "out.ipynb", elsewhere]
    how = {"env": surroundings, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=elsewhere, timeout=300, **how)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    assert {"data.json", "split.csv"} <= {p.name for p in (checkout / "runs/by_hand").iterdir()}
    assert list((tmp_path / "täglich").rglob("images-*.npy")) and not list(elsewhere.iterdir())
