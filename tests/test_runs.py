"""Files are whole or absent, checkpoints cannot run code, and bad files are refused by name."""

import hashlib
import json
import pickle

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
    has_fast_bf16,
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


@pytest.fixture
def weights(tmp_path):
    """A good weight file of a small module."""
    path = tmp_path / "small.safetensors"
    save_weights(path, nn.Linear(3, 2), backbone="small net")
    return path


# --- Files ---------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_results_are_for_others_to_read(tmp_path):
    save_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o444 == 0o444


def test_json_and_tables_read_back(tmp_path):
    content = {"a": [1, 2.5, None], "b": "é"}
    save_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    save_table(tmp_path / "a.csv", rows)
    assert pd.read_csv(tmp_path / "a.csv").to_dict("records") == rows


def test_an_object_that_json_lacks_leaves_the_old_file(tmp_path):
    save_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        save_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_file_hash_is_its_sha_256(tmp_path):
    (tmp_path / "a").write_bytes(b"tissue")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"tissue").hexdigest()


def test_a_fingerprint_knows_values_and_not_their_order():
    first = fingerprint(a=1, b=[1, 2], c={"x": 1, "y": 2})
    assert first == fingerprint(c={"y": 2, "x": 1}, b=[1, 2], a=1)
    others = [
        fingerprint(a=2, b=[1, 2], c={"x": 1, "y": 2}),
        fingerprint(a=1, b=[2, 1]),
        fingerprint(a=1, b=[1, 2]),
    ]
    assert len({first, *others}) == 4


def test_a_lesson_starts_from_what_is_shipped_or_from_the_run(tmp_path):
    assert start_file("a", tmp_path / "run", "shipped") == runs.SHIPPED / "a"
    assert start_file("a", tmp_path / "run", "run") == tmp_path / "run" / "a"
    with pytest.raises(ValueError, match=r"START_FROM is 'latest'.*'shipped'.*'run'"):
        start_file("a", tmp_path, "latest")


def test_one_word_is_a_list_of_one():
    assert runs.as_list("tissue") == ["tissue"] == runs.as_list(["tissue"])


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


# --- Weights -------------------------------------------------------------------------------------


def test_weights_and_facts_read_back(tmp_path, encoder):
    facts = {"backbone": "resnet8", "size": 96, "scores": [0.5, None], "by": "É"}
    save_weights(tmp_path / "e.safetensors", encoder, **facts)
    assert read_facts(tmp_path / "e.safetensors") == facts
    other = Encoder("resnet8")
    assert load_weights(tmp_path / "e.safetensors", other) is other
    for key, value in other.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key])


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, encoder):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_weights(full, encoder)
    save_weights(half, encoder, half=True)
    assert half.stat().st_size == pytest.approx(full.stat().st_size / 2, rel=0.02)
    loaded = load_weights(half, Encoder("resnet8")).state_dict()
    for key, value in encoder.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], expected)


def test_weights_laid_out_channels_last_read_back(tmp_path, encoder):
    save_weights(tmp_path / "e.safetensors", encoder.to(memory_format=torch.channels_last))
    loaded = load_file(tmp_path / "e.safetensors")
    assert torch.equal(loaded["backbone.conv1.weight"], encoder.backbone.conv1.weight)


def test_weights_of_others_load_whatever_metadata_they_carry(tmp_path):
    theirs, path = nn.Linear(3, 2), tmp_path / "theirs.safetensors"
    save_file(theirs.state_dict(), path, {"format": "pt"})  # as most libraries write it
    assert torch.equal(load_weights(path, nn.Linear(3, 2)).weight, theirs.weight)


def test_missing_weights_are_named_with_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"encoder\.safetensors is missing: run lesson 03, or set"):
        load_weights(tmp_path / "encoder.safetensors", nn.Linear(3, 2))


def test_weights_of_another_shape_are_refused_saying_what_does_not_fit(weights):
    said = r"small\.safetensors does not fit Linear, .*those of \"small net\": build that"
    with pytest.raises(RunError, match=said):
        load_weights(weights, nn.Linear(4, 2))


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_truncated_weight_file_is_refused_by_name(weights, keep):
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"small\.safetensors holds no weights of a lesson"):
        load_weights(weights, nn.Linear(3, 2))


def test_a_pickle_in_the_name_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "renamed.safetensors"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(RunError, match=r"renamed\.safetensors holds no weights of a lesson"):
        load_weights(path, nn.Linear(3, 2))


# --- Checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_under_its_mark_alone(tmp_path):
    path, model = tmp_path / "run.ckpt", nn.Linear(3, 2)
    assert Checkpoint(path, "a").load() is None
    Checkpoint(path, "a").save(True, model=model, rows=[{"epoch": 1, "loss": 0.5}])
    state = Checkpoint(path, "a").load()
    assert set(state) == {"model", "rows"} and state["rows"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(state["model"]["weight"], model.weight)
    assert Checkpoint(path, "b").load() is None


def test_a_checkpoint_is_written_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    kept = Checkpoint(tmp_path / "run.ckpt", "a")
    seen = []
    for epoch, seconds in enumerate([1, 29, 31, 40, 62, 63]):
        now[0] = float(seconds)
        kept.save(epoch == 5, rows=[epoch])
        seen.append(kept.load() and kept.load()["rows"][0])
    assert seen == [None, None, 2, 2, 4, 5]


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    kept = Checkpoint(tmp_path / "run.ckpt", "a")
    kept.path.write_bytes(b"<html>")
    with pytest.raises(RunError, match=r"run_a\.ckpt is no checkpoint.*delete it"):
        kept.load()


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_a_checkpoint_cannot_run_code(tmp_path):
    kept = Checkpoint(tmp_path / "run.ckpt", "a")
    kept.save(True, model=Malicious(tmp_path / "harm"))
    with pytest.raises(RunError, match="no checkpoint"):
        kept.load()
    assert not (tmp_path / "harm").exists()


def test_the_malicious_object_is_one(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "harm")))
    assert (tmp_path / "harm").exists()


# --- Engine --------------------------------------------------------------------------------------


def test_fast_bf16_is_yes_or_no():
    assert type(has_fast_bf16()) is bool


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_engine_uses_bf16_where_it_is_fast(monkeypatch, fast, precision):
    monkeypatch.setattr(runs, "has_fast_bf16", lambda: fast)
    assert make_fabric(0).strategy.precision.precision == precision


def test_one_device_is_made_without_asking_slurm(monkeypatch):
    """A notebook server that SLURM started with four tasks leaves these variables."""
    for name, value in {
        "NTASKS": "4",
        "JOB_NAME": "hub",
        "JOB_ID": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert make_fabric(0).world_size == 1


def test_the_engine_seeds_what_draws_random_numbers():
    first, second, other = (make_fabric(seed) and torch.rand(3).tolist() for seed in (1, 1, 2))
    assert first == second != other


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The library orders metadata anew each time; the mark of a lesson is a hash of the file."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    facts = {name: [1, "two"] for name in ["notes", "rate", "views", "epochs", "data", "seed"]}
    hashes = set()
    for i in range(8):
        save_weights(tmp_path / f"{i}.safetensors", module, **facts)
        hashes.add(file_hash(tmp_path / f"{i}.safetensors"))
    assert len(hashes) == 1
    other = load_weights(tmp_path / "0.safetensors", torch.nn.Linear(3, 2))
    assert torch.equal(other.weight, module.weight)
    assert read_facts(tmp_path / "0.safetensors") == facts


def test_a_fingerprint_changes_with_settings_and_with_the_code_that_trains(monkeypatch):
    first = fingerprint(lr=1e-3)
    assert fingerprint(lr=1e-3) == first != fingerprint(lr=1e-2)
    monkeypatch.setattr(runs, "training_code", lambda: "edited")
    assert fingerprint(lr=1e-3) != first
