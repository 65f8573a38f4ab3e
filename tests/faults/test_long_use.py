"""Lessons opened in other ways than we would."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from crc_helpers.course.settings import lesson_files, parameters_of
from crc_helpers.runs import ROOT

# --- lessons -------------------------------------------------------------------------------------

SMALL = {"N_TILES": 160, "IMAGE_SIZE": 64, "VIEWS": ["tissue"], "FINE_TUNE_LR": [1e-3]}
SMALL |= {"PRETRAIN_EPOCHS": 2, "PRETRAIN_BATCH": 16, "FINE_TUNE_EPOCHS": 2, "FINE_TUNE_BATCH": 16}

RUNNER = """
import json, sys, matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[1])):
    shell.run_cell(cell, silent=True).raise_error()
    plt.close("all")
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


def execute(tmp_path, cells, environment):
    """Run cells in a new kernel."""
    script, listed = tmp_path / "runner.py", tmp_path / "cells.json"
    script.write_text(RUNNER)
    listed.write_text(json.dumps(cells))
    command, how = [sys.executable, script, listed], {"capture_output": True, "text": True}
    done = subprocess.run(command, env=environment, cwd=tmp_path, timeout=900, **how)
    assert "ALL DONE" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


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
    cells = [cell for file in lesson_files("01-04") for cell in cells_of(file, folder / "run")]
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
    execute(tmp_path, lesson, environment(CRC_HELPERS_CACHE=str(cache)))
    assert kept(run) == kept(lessons_01_to_04)
