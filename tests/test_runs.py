"""Files are whole or absent, and the engine is the one asked for; faults/ has the bad files."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crc_helpers import runs
from crc_helpers.models import Encoder, load_weights, read_facts, save_weights
from crc_helpers.runs import (
    Checkpoint,
    RunError,
    atomic_path,
    file_hash,
    fingerprint,
    locked,
    make_fabric,
    run_folder,
    save_json,
    save_table,
    start_file,
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = Encoder("resnet8")
    encoder(torch.rand(4, 3, 32, 32))  # batch normalisation has statistics to keep
    return encoder


# --- Files ---------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "half" and path.stat().st_mode & 0o444 == 0o444  # for others to read
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


def test_json_and_tables_read_back(tmp_path):
    content = {"a": [1, 2.5, None], "b": "é"}
    save_json(tmp_path / "a.json", content)
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"a": object()})  # leaves the old file
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    save_table(tmp_path / "a.csv", rows)
    assert pd.read_csv(tmp_path / "a.csv").to_dict("records") == rows


def test_a_fingerprint_knows_values_the_training_code_and_no_order(monkeypatch):
    first = fingerprint(a=1, b=[1, 2], c={"x": 1, "y": 2})
    assert first == fingerprint(c={"y": 2, "x": 1}, b=[1, 2], a=1)
    others = [fingerprint(a=2, b=[1, 2]), fingerprint(a=1, b=[2, 1]), fingerprint(a=1, b=[1, 2])]
    monkeypatch.setattr(runs, "training_code", lambda: "edited")
    assert len({first, *others, fingerprint(a=1, b=[1, 2])}) == 5


def test_a_lesson_starts_from_what_is_shipped_or_from_the_run(tmp_path):
    assert start_file("a", tmp_path / "run", "shipped") == runs.SHIPPED / "a"
    assert start_file("a", tmp_path / "run", "run") == tmp_path / "run" / "a"
    with pytest.raises(ValueError, match=r"START_FROM is 'latest'.*'shipped'.*'run'"):
        start_file("a", tmp_path, "latest")


def test_a_run_folder_counts_from_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert run_folder("runs/one") == tmp_path / "runs" / "one"
    assert run_folder("runs/one").is_dir()
    assert run_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run_folder("~/mine") == tmp_path / "home" / "mine"


def test_a_lock_is_held_by_one(tmp_path):
    second = locked(tmp_path / "a")
    with locked(tmp_path / "a"), pytest.raises(RunError, match="another process is writing"):
        second.__enter__()
    with locked(tmp_path / "a"):
        pass


def test_what_killed_writers_leave_is_swept_after_an_hour(tmp_path):
    old, new, other = (tmp_path / f".a-{name}.json" for name in ("12345678", "abcdefgh", "1234"))
    for path in (old, new, other):
        path.write_text("{")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    save_json(tmp_path / "a.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, new.name, "a.json"]


WRITERS = {
    "json": lambda path: save_json(path / "a.json", {}),
    "folder": lambda path: run_folder(path / "run"),
    "table": lambda path: save_table(path / "a.csv", []),
    "lock": lambda path: locked(path / "a").__enter__(),
    "checkpoint": lambda path: Checkpoint(path / "a.ckpt", "mark").save(True),
    "weights": lambda path: save_weights(path / "a.safetensors", nn.Linear(1, 1)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_written_is_said(kind, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/no")):
        words = r"cannot be written .*choose a folder .*run again to go on"
        with pytest.raises(RunError, match=words):
            WRITERS[kind](folder)


# --- Weights and checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_weights_and_facts_read_back_and_are_the_same_bytes_each_time(tmp_path, encoder, half):
    """The library orders metadata anew each time; the mark of a lesson is a hash of the file."""
    files = [tmp_path / f"{i}.safetensors" for i in range(4)]
    facts = {"backbone": "resnet8", "size": 96, "scores": [0.5, None], "by": "É"}
    encoder.to(memory_format=torch.channels_last)
    for file in files:
        save_weights(file, encoder, half=half, **facts)
    assert len(set(map(file_hash, files))) == 1 and read_facts(files[0]) == facts
    assert load_file(files[0])["backbone.conv1.weight"].dtype == [torch.float32, torch.half][half]
    loaded = load_weights(files[0], Encoder("resnet8")).state_dict()
    for key, value in encoder.state_dict().items():
        expected = value.half().float() if half and value.is_floating_point() else value
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], expected)


def test_weights_of_others_load_whatever_metadata_they_carry(tmp_path):
    theirs, path = nn.Linear(3, 2), tmp_path / "theirs.safetensors"
    save_file(theirs.state_dict(), path, {"format": "pt"})  # as most libraries write it
    assert torch.equal(load_weights(path, nn.Linear(3, 2)).weight, theirs.weight)
    save_weights(path, theirs, backbone="small net")
    said = r"theirs\.safetensors does not fit Linear, .*those of \"small net\": build that"
    with pytest.raises(RunError, match=said):
        load_weights(path, nn.Linear(4, 2))


def test_a_checkpoint_is_written_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path / "run.ckpt", "a")
    for epoch, seconds in enumerate([1, 29, 31, 40, 62, 63]):
        now[0] = float(seconds)
        kept.save(epoch == 5, rows=[epoch])
        seen.append(kept.load() and kept.load()["rows"][0])
    assert seen == [None, None, 2, 2, 4, 5]


# --- Engine --------------------------------------------------------------------------------------


def test_one_device_is_made_without_asking_slurm(monkeypatch):
    """A notebook server that SLURM started with four tasks leaves these variables."""
    for name in ("JOB_ID", "PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "hub")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert make_fabric(0).world_size == 1
