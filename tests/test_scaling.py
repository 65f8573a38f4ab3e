"""Several processes are one process with the whole batch; more tiles than memory."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crc_helpers import pretraining
from crc_helpers.runs import only_one
from crc_helpers.sources import store as tile_store
from crc_helpers.sources.store import TileStore, create

SCRIPT = Path(__file__).with_name("several_processes.py")


def train(out, processes, epochs=1):
    """Run the script under torchrun and return what each process has left."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [f"--nproc-per-node={processes}", SCRIPT, out, str(epochs), str(processes)]
    done = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}-{rank}.pt", weights_only=True) for rank in range(processes)]


def assert_alike(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], **tolerance, msg=lambda m, n=name: f"{n} {m}"
        )


@pytest.mark.slow
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
            assert_alike(each[part], one[part], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    (whole,) = train(tmp_path / "whole", 1, epochs=2)
    train(tmp_path / "moved", 2, epochs=1)
    (moved,) = train(tmp_path / "moved", 1, epochs=2)
    assert_alike(moved["encoder"], whole["encoder"], rtol=0, atol=1e-6)
    assert len(moved["loss"]) == 3  # before training, and two epochs


@pytest.mark.slow
def test_lesson_03_goes_on_from_what_two_devices_have_trained(tmp_path):
    def course(command, *more):
        argv = [sys.executable, "-m", "crc_helpers", command, "--preset", "ci", "--out", tmp_path]
        done = subprocess.run([*argv, *more], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = course("pretrain", "--devices", "2")
    assert said.count("pairs/s") == 2  # two kinds of views, said once and not by each process
    course("run", "--lessons", "03")
    lesson = (tmp_path / "03_contrastive_pretraining.ipynb").read_text(encoding="utf-8")
    assert lesson.count("going on after epoch 1 of 1") == 2


@pytest.mark.slow
@pytest.mark.parametrize("held", ["lessons", "damaged", "notes"])
def test_what_the_first_process_is_refused_ends_all(tmp_path, held):
    """One sentence, and no process waits for the first."""
    if held == "damaged":
        (tmp_path / "pretraining_tissue.ckpt").write_bytes(b"no checkpoint")
    if held == "notes":
        (tmp_path / "made_from.json").write_text("[]")
    command = [sys.executable, "-m", "crc_helpers", "pretrain", "--preset", "ci", "--devices", "2",
               "--out", tmp_path, "--set", "VIEWS=[tissue]"]  # fmt: skip
    with only_one(tmp_path / held):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("crc-course: ") == 1 and "Traceback" not in done.stderr
    said = {"lessons": "another process is writing", "damaged": "is no checkpoint of this course",
            "notes": "made_from.json is damaged"}  # fmt: skip
    assert said[held] in done.stderr


def test_a_batch_that_the_processes_cannot_share_is_refused(coloured_tiles):
    odd = SimpleNamespace(world_size=3, device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"PRETRAIN_BATCH is 8: 3 processes"):
        pretraining.pretrain(None, None, coloured_tiles, None, odd, size=16, epochs=1, batch=8,
                             lr=1e-3, temperature=0.2)  # fmt: skip


# --- the store -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Eleven tiles in shards of four, and the array they came from."""
    monkeypatch.setattr(tile_store, "SHARD", 4)
    array = np.random.default_rng(0).integers(0, 256, (11, 3, 5, 5), np.uint8)
    create(tmp_path, "images", array.shape)[:] = array
    return TileStore(tmp_path, "images"), array


@pytest.mark.parametrize(
    "key",
    [0, -1, np.int64(7), slice(None), slice(2, 9, 3), slice(8, 2, -1), [10, 0, 10],
     np.array([], int), np.arange(11) % 2 == 0, (5, 0),
     (slice(1, 6), slice(None), slice(None, None, 2))],
    ids=str,
)  # fmt: skip
def test_the_store_reads_what_an_array_would(store, key):
    stored, array = store
    np.testing.assert_array_equal(stored[key], array[key])


def test_the_store_is_like_an_array(store):
    stored, array = store
    assert (stored.shape, stored.ndim, stored.dtype, len(stored)) == (
        array.shape,
        4,
        array.dtype,
        11,
    )
    np.testing.assert_array_equal(np.asarray(stored), array)
    np.testing.assert_array_equal(np.stack(list(stored)), array)
    some = stored.pick(np.array([9, 3, 4]))
    np.testing.assert_array_equal(some[[2, 0]], array[[4, 9]])
    assert len(stored.pick(np.arange(11) > 8)) == 2
    with pytest.raises(IndexError):
        stored[11]
    with pytest.raises(ValueError, match="copy the tiles"):
        stored[0] = 0


def test_shards_are_plain_numpy_files(store):
    stored, array = store
    assert [f.name for f in stored.files] == [f"images-0000{i}.npy" for i in range(3)]
    np.testing.assert_array_equal(np.concatenate([np.load(f) for f in stored.files]), array)


@pytest.mark.parametrize("damage", ["missing", "short", "other kind", "none"])
def test_a_damaged_store_is_not_opened(store, damage):
    first, middle, last = store[0].files
    if damage == "missing":
        middle.unlink()
    elif damage == "short":
        last.write_bytes(last.read_bytes()[:-1])
    elif damage == "other kind":
        np.save(middle, np.zeros((4, 3, 5, 5)))
    else:
        for file in (first, middle, last):
            file.unlink()
    with pytest.raises(ValueError, match=r"images-0000|no images"):
        TileStore(first.parent, "images")


def test_a_shard_cut_while_open_is_noticed(store):
    stored, _ = store
    stored.files[2].write_bytes(stored.files[2].read_bytes()[:-1])
    with pytest.raises(OSError, match="shorter"):
        stored[10]
