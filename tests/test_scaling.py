"""Several processes are one process with the whole batch."""

import subprocess
import sys

import pytest
import several_processes
import torch
from torch import nn

from crc_helpers.pretraining import Contrast, _require_processes
from crc_helpers.runs import locked


def start(processes, *arguments):
    """Run the script under torchrun and return the finished process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [f"--nproc-per-node={processes}", several_processes.__file__, *map(str, arguments)]
    return subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=300)


def train(out, processes, epochs=1, stop=0):
    """Train in several processes and return what each has left."""
    done = start(processes, "steps", out, epochs, processes, stop)
    assert done.returncode == 0, done.stderr
    if stop:
        return []
    return [torch.load(f"{out}-{rank}.pt", weights_only=True) for rank in range(processes)]


def assert_alike(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.nightly
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_are_one_with_the_whole_batch(tmp_path, processes):
    """Loss, gradient and weights after five steps, the network in double precision."""
    (one,) = train(tmp_path / "one", 1)
    several = train(tmp_path / "several", processes)
    for each in several:
        assert each["world"] == processes
        assert each["asked"] == [0, 0]  # the first alone watches, and tells the others
        assert each["loss"][-1] == pytest.approx(one["loss"][-1], rel=1e-7)
        for part in ("gradient", "encoder", "head"):
            assert_alike(each[part], one[part])


@pytest.mark.nightly
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    (whole,) = train(tmp_path / "whole", 1, epochs=2)
    train(tmp_path / "moved", 2, epochs=2, stop=2)
    (moved,) = train(tmp_path / "moved", 1, epochs=2)
    assert_alike(moved["encoder"], whole["encoder"])
    assert len(moved["loss"]) == 3  # before training, and two epochs


@pytest.mark.nightly
def test_lesson_03_goes_on_from_what_two_devices_have_trained(tmp_path):
    done = start(2, "course", "pretrain", "--preset", "ci", "--out", tmp_path, "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pairs/s") == 2  # two kinds of views, not said by each process
    run = [sys.executable, "-m", "crc_helpers", "run", "--preset", "ci", "--lessons", "03"]
    subprocess.run([*run, "--out", tmp_path], check=True, timeout=600)
    lesson = (tmp_path / "03_contrastive_pretraining.ipynb").read_text(encoding="utf-8")
    assert lesson.count("going on after epoch 1 of 1") == 2


@pytest.mark.nightly
def test_what_the_first_process_is_refused_ends_all(tmp_path):
    """One sentence, and no process waits for the first."""
    with locked(tmp_path / "lessons"):
        done = start(2, "course", "pretrain", "--preset", "ci", "--devices", "2", "--out", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("crc-course: another process is writing") == 1


def test_a_batch_that_the_processes_cannot_share_is_refused():
    _require_processes(4, 8, Contrast(0.2))
    with pytest.raises(ValueError, match=r"PRETRAIN_BATCH is 8: 3 processes"):
        _require_processes(3, 8, Contrast(0.2))
    with pytest.raises(ValueError, match="NT-Xent is the only objective"):
        _require_processes(2, 8, nn.Identity())
