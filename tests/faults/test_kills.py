"""SIGKILL at random moments, full disks, two runs at once: nothing corrupt, the next resumes."""

import functools
import json
import multiprocessing
import os
import signal
import time
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import tasks
import torch
from PIL import Image
from safetensors.torch import load_file
from test_data import make_folder

from crc_helpers.course import cli as course_cli
from crc_helpers.course import run as course_run
from crc_helpers.runs import RunError, locked
from crc_helpers.sources import store as tile_store

KILLED_AT = 10  # random moments of each task
TASKS = [tasks.pretraining, tasks.fine_tuning, tasks.caching, tasks.drawing]
TASKS += [tasks.commanding, tasks.running]  # these say their own sentences
CLOCK = ["seconds", "pairs_per_second"]  # the columns that no two runs share

KILLED: list[int] = []
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")]

# A fork has imported everything already: a real process to kill, milliseconds instead of seconds.
CONTEXT = multiprocessing.get_context("fork" if os.name != "nt" else None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Tiles, and a folder of images."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "store").mkdir()
    tiles = np.random.default_rng(0).integers(0, 256, (48, 3, 24, 24), np.uint8)
    tile_store.save_shard(folder / "store", 0, images=tiles)
    make_folder(folder / "folder", count=150)
    return folder


def run(task, *arguments, kill_after=None):
    """Run a task in a process of its own; the seconds it took, or None if it was killed first."""
    tasks.dismiss()
    process = CONTEXT.Process(target=task, args=arguments)
    start = time.perf_counter()
    process.start()
    process.join(kill_after)
    took = time.perf_counter() - start
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    assert process.exitcode == 0
    return took


def whole_archive(path):
    with zipfile.ZipFile(path) as content:
        assert content.testzip() is None


READERS = {
    ".csv": lambda f: pd.read_csv(f).drop(columns=CLOCK, errors="ignore").to_csv(),
    ".ckpt": lambda f: exact(torch.load(f, weights_only=True)),
    # Of these the bytes are compared, once they can be read.
    ".json": lambda f: json.loads(f.read_text()) and f.read_bytes(),
    ".npy": lambda f: np.load(f).ndim and f.read_bytes(),
    ".safetensors": lambda f: load_file(f) and f.read_bytes(),
    ".png": lambda f: Image.open(f).load() and f.read_bytes(),
    ".zip": whole_archive,
    # These hold the times of their cells.
    ".html": lambda f: f.read_text().index("</html>") > 0,
    ".ipynb": lambda f: nbformat.read(f, 4).nbformat,
}


def exact(state):
    """A checkpoint with its tensors as bytes, all of them, and its log without the clock."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return {name: exact(part) for name, part in state.items() if name not in CLOCK}
    return [exact(part) for part in state] if isinstance(state, list | tuple) else state


def results(folder):
    """Read every visible file; what is compared of it by its name.

    Hidden are locks, and what the next writer of the same file clears away.
    """
    paths = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    seen = [p for p in paths if not any(part.startswith(".") for part in p.parts)]
    return {str(p): READERS.get(p.suffix, Path.read_bytes)(folder / p) for p in seen}


def test_states_that_differ_in_one_number_are_told_apart():
    state = {"optimizer": [torch.zeros(5000), 1], "rows": [{"loss": 1.0, "seconds": 1}]}
    other = {"optimizer": [torch.zeros(5000), 1], "rows": [{"loss": 1.0, "seconds": 2}]}
    assert exact(state) == exact(other)
    other["optimizer"][0][2500] = 1e-9
    assert exact(state) != exact(other)


@functools.cache
def whole(task, inputs):
    """Results of a run that nobody disturbs, and its seconds (of a second one, all warm)."""
    folder = inputs / "whole" / task.__name__
    took = [run(task, inputs, new_folder(folder / str(i))) for i in range(2)][-1]
    return results(folder / "1"), took


def new_folder(path):
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("task", "seed"),
    [(t, seed) for t in TASKS for seed in range(4 if t is tasks.running else KILLED_AT)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_killed_task_leaves_nothing_corrupt_and_resumes(task, seed, inputs, tmp_path):
    """Of lessons the command is killed, its kernel is not: that ends while the next run begins."""
    expected, seconds = whole(task, inputs)
    out = new_folder(tmp_path / "out")
    moments = np.random.default_rng([seed, TASKS.index(task)]).uniform(0, seconds, 1 + seed % 3)
    killed = [run(task, inputs, out, kill_after=moment) for moment in moments]
    assert set(results(out)) <= set(expected)  # and all were read
    KILLED.append(killed.count(None))
    run(task, inputs, out)
    assert results(out) == expected
    left = [p for p in out.rglob(".*") if p.suffix != ".lock"]
    assert task is tasks.running or all(p.is_file() for p in left)  # half-written folders are gone


def test_a_kernel_that_dies_is_said(tmp_path):
    code = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[code], metadata=kernel), tmp_path / "a.ipynb")
    with pytest.raises(RunError, match=r"a: its kernel died.*the same command goes on from here"):
        course_run._execute(tmp_path / "a.ipynb", new_folder(tmp_path / "out"), {}, {})
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_kills_have_met_their_tasks_alive():
    assert sum(KILLED) >= 50


# --- full disks, folders that vanish, two at once ------------------------------------------------


@pytest.mark.parametrize("limit", [1000, 100_000, 1_000_000])
@pytest.mark.parametrize("task", TASKS[:4], ids=lambda task: task.__name__)
def test_a_full_disk_ends_in_a_sentence_and_can_be_gone_on_from(task, limit, inputs, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the same writes."""
    out, said = new_folder(tmp_path / "out"), tmp_path / "said"
    run(tasks.limited, task, limit, inputs, out, said)
    if said.exists():
        assert said.read_text().startswith(("RunError: ", "DataError: "))
        assert "cannot be written" in said.read_text() and str(out) in said.read_text()
    else:
        assert limit > 100_000  # small files only: nothing was refused
    run(task, inputs, out)
    assert results(out) == whole(task, inputs)[0]


def test_ctrl_c_ends_in_a_sentence_and_the_command_goes_on(inputs, tmp_path):
    out, said = new_folder(tmp_path / "out"), tmp_path / "said"
    process = CONTEXT.Process(target=tasks.heard, args=(tasks.hesitating, inputs, out, said))
    process.start()
    until = time.monotonic() + 60
    while not list(out.glob("pretraining_tissue_*.ckpt")) and time.monotonic() < until:
        time.sleep(0.001)
    while process.is_alive() and time.monotonic() < until:  # Python loses one in a destructor
        os.kill(process.pid, signal.SIGINT)
        process.join(5)
    assert process.exitcode == 130
    assert said.read_text().splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in said.read_text()
    run(tasks.commanding, inputs, out)
    assert results(out) == whole(tasks.commanding, inputs)[0]


def hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(60)


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, capsys):
    ready = CONTEXT.Event()
    first = CONTEXT.Process(target=hold, args=(tmp_path / "lessons", ready))
    first.start()
    assert ready.wait(20)
    assert course_cli.main(["run", "--preset", "ci", "--out", str(tmp_path)]) == 2
    assert "another process is writing" in capsys.readouterr().err
    first.kill()
    first.join()
    with locked(tmp_path / "lessons"):  # a dead process holds no lock
        pass
