"""A kernel that lives long, and lessons opened in other ways than we would."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from test_data import fake_tiles, make_folder

from crc_helpers import runs
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

FULL = bool(os.environ.get("CRC_FAULTS"))  # `make test-faults`
on_demand = pytest.mark.skipif(not FULL, reason="minutes: make test-faults")
UPDATES = 500 if FULL else 60
WARM_UP = 60  # fonts, caches, the allocator


def memory():
    """Bytes of this process that are its own, after a collection."""
    gc.collect()
    with runs.memory_kept():  # its end gives free memory back to the system: what is left is used
        pass
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

SMALL = {"N_TILES": 160, "IMAGE_SIZE": 64, "PRETRAIN_EPOCHS": 4, "PRETRAIN_BATCH": 16,
         "VIEWS": ["tissue"], "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_BATCH": 16,
         "FINE_TUNE_LR": [1e-3]}  # fmt: skip

RUNNER = """
import json, sys, gc, matplotlib, psutil
matplotlib.use("agg")
import matplotlib.pyplot as plt
from crc_helpers.runs import memory_kept
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cells in json.load(open(sys.argv[1])):
    for cell in cells:
        result = shell.run_cell(cell, silent=True)
        result.raise_error()
        plt.close("all")
    gc.collect()
    with memory_kept():  # its end gives free memory back
        pass
    print("MEMORY", psutil.Process().memory_full_info().uss)
print("ALL DONE")
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


def begin(tmp_path, lessons, environment=None, cwd=None):
    """Start an interpreter that runs lists of cells, one list after the other."""
    script, listed = tmp_path / "runner.py", tmp_path / "cells.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(lessons))
    return subprocess.Popen([sys.executable, script, listed], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment,
                            cwd=cwd or tmp_path)  # fmt: skip


def execute(*begun, **more):
    """Begin, and wait for the end; what the cells have printed."""
    said, errors = begin(*begun, **more).communicate(timeout=900)
    assert "ALL DONE" in said, said[-2000:] + errors[-2000:]
    return said


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


MADE_BY = {0: ["data.json", "split.csv"], 2: ["encoder.safetensors", "pretraining*"],
           3: ["classifier.safetensors", "scratch.safetensors", "fine_tuning*",
               "*.ckpt"]}  # fmt: skip


def kept(run):
    """What lessons 01 to 04 leave for others: the bytes of data, split and weights by name."""
    files = [run / "data.json", run / "split.csv", *run.glob("*.safetensors")]
    assert len(files) == 5
    return {path.name: path.read_bytes() for path in files}


@on_demand
def test_three_lessons_in_one_kernel_do_not_grow(tmp_path, cache, lessons_01_to_04):
    """Lessons 01, 02 and 04 in turn: the second and third round cost no memory."""
    files = lesson_files()
    round_ = [cells_of(files[i], lessons_01_to_04) for i in (0, 1, 3)]
    said = execute(tmp_path, round_ * 3, environment(CRC_HELPERS_CACHE=str(cache)))
    used = [int(line.split()[1]) for line in said.splitlines() if line.startswith("MEMORY")]
    growth = used[-1] / used[2] - 1
    print("after each lesson, MB:", [value // 10**6 for value in used], f"{growth:+.1%}")
    assert growth < 0.05


@on_demand
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


@on_demand
def test_a_kernel_restarted_in_the_middle_goes_on(tmp_path, cache, lessons_01_to_04):
    """Lesson 03 until it has trained an epoch or two of four; the whole of it in a new kernel."""
    run, surroundings = tmp_path / "run", environment(CRC_HELPERS_CACHE=str(cache))
    run.mkdir()
    for name in ("data.json", "split.csv"):
        shutil.copy(lessons_01_to_04 / name, run)
    third = cells_of(lesson_files()[2], run)
    until, log = time.monotonic() + 300, run / "pretraining_tissue.csv"
    first = begin(tmp_path, [third], surroundings)
    while not log.is_file() and time.monotonic() < until:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert not (run / "encoder.safetensors").exists()
    assert 1 <= pd.read_csv(log)["epoch"].max() < SMALL["PRETRAIN_EPOCHS"]  # in the middle
    said = execute(tmp_path, [third], surroundings)
    assert f"of {SMALL['PRETRAIN_EPOCHS']}" in said.split("going on after epoch ")[1]
    before = (lessons_01_to_04 / "encoder.safetensors").read_bytes()
    assert (run / "encoder.safetensors").read_bytes() == before


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
    surroundings = environment(PYTHONPATH=paths, HOME=None, CRC_HELPERS_CACHE=None,
                               XDG_CACHE_HOME=str(tmp_path / "täglich"))  # fmt: skip
    lesson = checkout / "notebooks" / lesson_files()[0].name
    done = subprocess.run([sys.executable, "-c", OPEN, lesson, tmp_path / "out.ipynb", elsewhere],
                          env=surroundings, cwd=elsewhere, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    assert {"data.json", "split.csv"} <= {p.name for p in (checkout / "runs/by_hand").iterdir()}
    assert list((tmp_path / "täglich").rglob("images-*.npy")) and not list(elsewhere.iterdir())


def test_the_network_is_watched(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        OFFLINE.replace("{log!r}", repr(str(tmp_path / "asked")))
    )
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment(PYTHONPATH=str(tmp_path)))  # fmt: skip
    assert (
        "there is no network here" in done.stderr
        and "192.0.2.1" in (tmp_path / "asked").read_text()
    )


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    """A home that is none, and no other folder named."""
    (tmp_path / "file").write_text("")
    surroundings = environment(HOME=str(tmp_path / "file"), CRC_HELPERS_CACHE=None,
                               XDG_CACHE_HOME=None)  # fmt: skip
    command = [sys.executable, "-m", "crc_helpers", "run", "--lessons", "01", "--set", "N_TILES=48"]
    done = subprocess.run([*command, "--out", tmp_path / "run"], env=surroundings, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("crc-course: ")]
    assert "cannot be written" in line and "set the environment variable CRC_HELPERS_CACHE" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["elsewhere", "a path with späces & quotes '"])
def test_a_run_is_recalled_from_any_folder(tmp_path, cache, where):
    """From another working directory, a run folder of any name, without home or network."""
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
