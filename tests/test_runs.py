"""Files are whole or absent, checkpoints cannot run code, and bad files are refused by name."""

import hashlib
import json
import pickle
import platform
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crc_helpers import runs
from crc_helpers.models import Encoder, load_weights, read_facts
from crc_helpers.runs import (
    RunError,
    atomic_path,
    file_hash,
    fingerprint,
    has_fast_bf16,
    load_checkpoint,
    make_fabric,
    run_folder,
    save_checkpoint,
    save_json,
    save_table,
    save_weights,
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
    save_weights(path, nn.Linear(3, 2), seed=7)
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
    others = [fingerprint(a=2, b=[1, 2], c={"x": 1, "y": 2}), fingerprint(a=1, b=[2, 1]),
              fingerprint(a=1, b=[1, 2])]  # fmt: skip
    assert len({first, *others}) == 4


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
    with pytest.raises(RunError, match=r"none\.safetensors is missing.*START_FROM"):
        load_weights(tmp_path / "none.safetensors", nn.Linear(3, 2))


def test_weights_of_another_shape_are_refused_saying_what_does_not_fit(weights):
    with pytest.raises(RunError, match=r"small\.safetensors does not fit Linear") as caught:
        load_weights(weights, nn.Linear(4, 2))
    assert "weight" in str(caught.value).split("fit Linear")[1]


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(RunError, match=r"small\.safetensors does not fit Encoder"):
        load_weights(weights, Encoder("resnet8"))


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_weight_file_is_refused_by_name(weights, keep):
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"small\.safetensors is not a safetensors file"):
        load_weights(weights, nn.Linear(3, 2))


def test_a_pickle_in_the_name_of_safetensors_is_refused(tmp_path):
    path = tmp_path / "renamed.safetensors"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(RunError, match=r"renamed\.safetensors is not a safetensors file"):
        load_weights(path, nn.Linear(3, 2))


def test_weights_name_what_they_were_made_from_and_are_not_mixed(tmp_path):
    encoder, classifier = tmp_path / "encoder.safetensors", tmp_path / "classifier.safetensors"
    runs.work_on("data of lesson 01")
    save_weights(encoder, nn.Linear(3, 2))
    load_weights(encoder, nn.Linear(3, 2))
    save_weights(classifier, nn.Linear(3, 2))
    made_from = read_facts(classifier)["made_from"]
    assert made_from["data"] == "data of lesson 01" and len(made_from["code"]) == 16
    assert made_from["encoder.safetensors"] == file_hash(encoder)
    load_weights(classifier, nn.Linear(3, 2))
    save_weights(encoder, nn.Linear(3, 2))  # another one, and the classifier is the old one's
    with pytest.raises(RunError, match=r"made from other encoder\.safetensors than there is now"):
        load_weights(classifier, nn.Linear(3, 2))
    runs.work_on("data of another lesson 01")
    with pytest.raises(RunError, match="made from other data than there is now"):
        load_weights(encoder, nn.Linear(3, 2))


def test_results_of_a_run_are_noted_with_what_they_were_made_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "SEED", 3, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "RUN", "somewhere", raising=False)
    runs.work_on("some data", tmp_path)
    save_weights(tmp_path / "encoder.safetensors", nn.Linear(3, 2))
    load_weights(tmp_path / "encoder.safetensors", nn.Linear(3, 2))
    save_table(tmp_path / "predictions.csv", [{"a": 1}])
    with atomic_path(tmp_path / "maps.npz") as path:
        np.savez(path, a=1)
    save_json(tmp_path / "elsewhere" / "a.json", {})  # not in the run
    notes = runs.read_notes(tmp_path)
    assert list(notes) == ["encoder.safetensors", "maps.npz", "predictions.csv"]
    for name, entry in notes.items():
        assert entry["sha256"] == file_hash(tmp_path / name)
        assert entry["made_from"]["data"] == "some data" and len(entry["made_from"]["code"]) == 16
        assert entry["parameters"]["SEED"] == 3 and "RUN" not in entry["parameters"]
    weights = notes["encoder.safetensors"]["sha256"]
    assert notes["maps.npz"]["made_from"]["encoder.safetensors"] == weights
    runs.say_misfits(tmp_path)
    assert capsys.readouterr().err == ""
    before = (tmp_path / "maps.npz").read_bytes()
    (tmp_path / "maps.npz").write_bytes(b"by other hands")
    runs.say_misfits(tmp_path)
    assert "maps.npz made from other data or weights than there are now, or changed" in (
        capsys.readouterr().err
    )
    (tmp_path / "maps.npz").write_bytes(before)
    (tmp_path / "maps.npz").unlink()
    save_weights(tmp_path / "encoder.safetensors", nn.Linear(3, 2))  # another one
    runs.say_misfits(tmp_path)
    assert "predictions.csv made from other data or weights" in capsys.readouterr().err
    runs.work_on("other data", tmp_path)
    runs.say_misfits(tmp_path)
    said = capsys.readouterr().err
    assert "encoder.safetensors, predictions.csv made from other" in said and "maps" not in said


@pytest.mark.parametrize("content", ["{", "[]", '{"a.csv": 5}', '{"a.csv": {"made_from": []}}'])
def test_notes_that_no_lesson_wrote_are_refused(tmp_path, content):
    (tmp_path / runs.NOTES).write_text(content)
    with pytest.raises(RunError, match=r"made_from\.json is .*delete it"):
        runs.say_misfits(tmp_path)


def test_an_origin_that_is_no_file_of_the_run_is_passed_over(tmp_path):
    linear, path = nn.Linear(3, 2), tmp_path / "theirs.safetensors"
    origin = json.dumps({"": "x", ".": "x", "..": "x", "a/b": "x", "\0": "x"})
    save_file(linear.state_dict(), path, {"made_from": origin})
    assert torch.equal(load_weights(path, nn.Linear(3, 2)).weight, linear.weight)


# --- Checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_reads_back_under_its_mark(tmp_path):
    path, model = tmp_path / "run.ckpt", nn.Linear(3, 2)
    save_checkpoint(path, "a", model=model.state_dict(), rows=[{"epoch": 1, "loss": 0.5}])
    state = load_checkpoint(path, "a")
    assert set(state) == {"model", "rows"} and state["rows"] == [{"epoch": 1, "loss": 0.5}]
    assert torch.equal(state["model"]["weight"], model.weight)


def test_a_checkpoint_of_another_mark_and_none_at_all_are_none(tmp_path, capsys):
    assert load_checkpoint(tmp_path / "run.ckpt", "a") is None
    save_checkpoint(tmp_path / "run.ckpt", "a", epoch=1)
    assert load_checkpoint(tmp_path / "run.ckpt", "b") is None
    assert "run.ckpt belongs to other settings" in capsys.readouterr().out


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_a_checkpoint_cannot_run_code(tmp_path):
    save_checkpoint(tmp_path / "run.ckpt", "a", model=Malicious(tmp_path / "harm"))
    with pytest.raises(RunError, match="no checkpoint of this course"):
        load_checkpoint(tmp_path / "run.ckpt", "a")
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_kept_within_the_block_and_given_back_after_it():
    """In a process of its own: what other tests have left free would be used first."""
    measured = """
import resource, psutil, torch
from crc_helpers import runs

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(25_000_000)  # 100 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss

outside, start = faults(), resident()
with runs.memory_kept():
    faults()  # the first time they are new
    with runs.memory_kept():  # validation within training
        pass
    assert faults() < outside / 5 and resident() > start + 50e6, "kept"
assert resident() < start + 50e6, "given back"
torch.ones(100_000_000)  # more than any gap that is left
assert resident() < start + 50e6, "and not kept from then on"
"""
    child = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
