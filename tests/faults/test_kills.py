"""SIGKILL at random moments, full disks, two runs at once: nothing corrupt, the next resumes."""

import functools
import json
import multiprocessing
import os
import signal
import time
import zipfile

import nbformat
import numpy as np
import pandas as pd
import pytest
import tasks
import torch
from PIL import Image
from safetensors.torch import load_file
from test_data import make_folder

from crc_helpers import runs
from crc_helpers.course import cli as course_cli
from crc_helpers.course import run as course_run
from crc_helpers.models import save_weights
from crc_helpers.runs import RunError, locked
from crc_helpers.sources import store as tile_store

FULL = bool(os.environ.get("CRC_FAULTS"))  # `make test-faults`
KILLS = 14 if FULL else 2  # of each task
RUN_KILLS = 5 if FULL else 1  # of `crc-course run`, which takes its time
TASKS = [tasks.pretraining, tasks.fine_tuning, tasks.caching, tasks.drawing, tasks.commanding]
CLOCK = ["seconds", "pairs_per_second"]  # the columns that no two runs share

KILLED: list[int] = []
WHOLE_RUN: dict = {}  # results and seconds of lessons that nobody disturbs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")

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


READERS = {
    ".csv": pd.read_csv,
    ".json": lambda f: json.loads(f.read_text()),
    ".npy": np.load,
    ".ckpt": functools.partial(torch.load, weights_only=True),
    ".safetensors": load_file,
    ".png": lambda f: Image.open(f).load(),
    ".jpg": lambda f: Image.open(f).load(),
    ".txt": lambda f: f.read_text(),
    ".md": lambda f: f.read_text(),
    ".bin": lambda f: f.read_bytes(),
    ".html": lambda f: f.read_text().index("</html>"),
    ".ipynb": lambda f: nbformat.read(f, 4),
}


def whole_archive(path):
    with zipfile.ZipFile(path) as content:
        assert content.testzip() is None


READERS[".zip"] = whole_archive


def exact(state):
    """A checkpoint with its tensors as bytes, all of them, and its log without the clock."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return {name: exact(part) for name, part in state.items() if name not in CLOCK}
    return [exact(part) for part in state] if isinstance(state, list | tuple) else state


def results(folder):
    """Read every visible file; its bytes (logs without the clock) by its name."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # locks, and what the next writer of the same file clears away
        content = READERS[path.suffix](path)
        if path.suffix == ".csv":
            content = content.drop(columns=CLOCK, errors="ignore").to_csv()
        if path.suffix == ".ckpt":
            content = exact(content)
        elif path.suffix in (".ipynb", ".html"):  # they hold the times of their cells
            content = "whole"
        elif path.suffix != ".csv":
            content = path.read_bytes()
        found[name] = content
    return found


def test_states_that_differ_in_one_number_are_told_apart():
    state = {"optimizer": [torch.zeros(5000), 1], "rows": [{"loss": 1.0, "seconds": 1}]}
    other = {"optimizer": [torch.zeros(5000), 1], "rows": [{"loss": 1.0, "seconds": 2}]}
    assert exact(state) == exact(other)
    other["optimizer"][0][2500] = 1e-9
    assert exact(state) != exact(other)


@functools.cache
def whole(task, inputs, folder):
    """Results of a run that nobody disturbs, and its seconds (of a second one, all warm)."""
    took = [run(task, inputs, new_folder(folder / str(i))) for i in range(2)][-1]
    return results(folder / "1"), took


def new_folder(path):
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_a_killed_task_leaves_nothing_corrupt_and_resumes(task, seed, inputs, tmp_path):
    expected, seconds = whole(task, inputs, inputs / "whole" / task.__name__)
    out = new_folder(tmp_path / "out")
    moments = np.random.default_rng([seed, TASKS.index(task)]).uniform(0, seconds, 1 + seed % 3)
    killed = [run(task, inputs, out, kill_after=moment) for moment in moments]
    assert set(results(out)) <= set(expected)  # and all were read
    KILLED.append(killed.count(None))
    run(task, inputs, out)
    assert results(out) == expected
    left = [p for p in out.rglob(".*") if p.suffix != ".lock"]
    assert all(p.is_file() for p in left)  # half-written folders are gone


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUN_KILLS))
def test_a_killed_run_of_lessons_resumes(seed, inputs, tmp_path):
    """The command is killed, its kernel is not: that ends by itself, while the next run begins."""
    task = functools.partial(tasks.running, lessons="01-02" if FULL else "01")
    if not WHOLE_RUN:
        out = new_folder(inputs / "whole" / "running")
        WHOLE_RUN.update(seconds=run(task, inputs, out), results=results(out))
    out = new_folder(tmp_path / "out")
    moment = np.random.default_rng(seed).uniform(0.1, 0.9) * WHOLE_RUN["seconds"]
    KILLED.append(run(task, inputs, out, kill_after=moment) is None)
    assert set(results(out)) <= set(WHOLE_RUN["results"])  # and all were read
    run(task, inputs, out)
    assert results(out) == WHOLE_RUN["results"]


@pytest.mark.slow
def test_a_kernel_that_dies_is_said(tmp_path):
    code = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[code], metadata=kernel), tmp_path / "a.ipynb")
    with pytest.raises(RunError, match=r"a: its kernel died.*the same command goes on from here"):
        course_run._execute(tmp_path / "a.ipynb", new_folder(tmp_path / "out"), {}, {})
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_kills_have_met_their_tasks_alive():
    print(f"{sum(KILLED)} kills")
    assert sum(KILLED) >= (50 if FULL else 5)


# --- full disks, folders that vanish, two at once ------------------------------------------------


LIMITS = [
    (task, limit)
    for task in TASKS[:4]  # a command says its own sentence, and ends
    for limit in (1000, 100_000, 1_000_000)
    if FULL or task is not tasks.drawing or limit == 100_000
]


@pytest.mark.parametrize(("task", "limit"), LIMITS, ids=lambda v: getattr(v, "__name__", v))
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
    assert results(out) == whole(task, inputs, inputs / "whole" / task.__name__)[0]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: runs.save_json(path / "a.json", {}),
        lambda path: runs.run_folder(path / "run"),
        lambda path: runs.save_table(path / "a.csv", []),
        lambda path: locked(path / "a").__enter__(),
        lambda path: runs.Checkpoint(path / "a.ckpt", "mark").save(True),
        lambda path: save_weights(path / "a.safetensors", torch.nn.Linear(1, 1)),
    ],
)
@pytest.mark.parametrize("where", ["/proc/no", "a file"])
def test_a_folder_that_cannot_be_written_is_said(write, where, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if where == "a file" else runs.Path(where)
    with pytest.raises(RunError, match=r"cannot be written .*choose a folder .*run again to go on"):
        write(folder)


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
    expected, _ = whole(tasks.commanding, inputs, inputs / "whole" / "commanding")
    assert results(out) == expected


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


def test_what_killed_writers_leave_is_swept_after_an_hour(tmp_path):
    old, new, other = (tmp_path / f".a-{name}.json" for name in ("12345678", "abcdefgh", "1234"))
    for path in (old, new, other):
        path.write_text("{")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    runs.save_json(tmp_path / "a.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, new.name, "a.json"]
