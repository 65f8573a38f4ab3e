"""Sweeps: plans, rows that can be gone on with, and each kind of row on a little tissue."""

import json

import numpy as np
import pandas as pd
import pytest

from crc_helpers import studies
from crc_helpers.course import main
from crc_helpers.runs import RunError, work_on

SMALL = studies.Recipe(n_tiles=96, size=32, pretrain_epochs=1, pretrain_batch=16, steps=4, batch=8,
                       rates=(1e-3,))  # fmt: skip


@pytest.fixture
def t(tmp_path, monkeypatch):
    """A small trial, its encoders kept apart from the user's."""
    monkeypatch.setattr(studies, "cache_folder", lambda: tmp_path)
    return studies.Trial(0, recipe=SMALL)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_plan_names_every_row_once_and_more_seeds_only_add(name):
    plan, _ = studies.STUDIES[name]
    few, many = list(plan(2)), list(plan(3))
    keys = [json.dumps(row) for row in many]
    assert len(set(keys)) == len(keys)
    assert all(json.dumps(row) in keys for row in few)


@pytest.fixture
def counted(monkeypatch):
    """A study that only counts how often it is measured."""
    calls = []

    def row(t, arm):
        calls.append((t.seed, arm))
        return {"value": 10 * t.seed + len(arm)}

    def plan(seeds):
        return [{"seed": s, "arm": a} for s in range(seeds) for a in ("a", "bb")]

    monkeypatch.setitem(studies.STUDIES, "counted", (plan, row))
    return calls


def test_rows_that_are_there_are_not_measured_again(counted, tmp_path):
    first = studies.do("counted", seeds=1, folder=tmp_path)
    assert counted == [(0, "a"), (0, "bb")] and first["value"].tolist() == [1, 2]
    both = studies.do("counted", seeds=2, folder=tmp_path)
    assert counted[2:] == [(1, "a"), (1, "bb")] and both["value"].tolist() == [1, 2, 11, 12]
    assert {"device", "commit", "seconds", "n_tiles", "size", "backbone"} <= set(both)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "counted_synthetic.csv"), both)


def test_rows_of_another_size_are_not_mixed(counted, tmp_path):
    studies.do("counted", seeds=1, folder=tmp_path)
    with pytest.raises(
        RunError, match=r"counted_synthetic.csv holds rows of size 64, not 32: .*out"
    ):
        studies.do("counted", seeds=1, folder=tmp_path, recipe=studies.Recipe(size=32))
    assert len(counted) == 2


def test_what_is_measured_is_on_disk_when_the_next_row_fails(tmp_path, monkeypatch):
    def row(t, k):
        if k == 1:
            raise FloatingPointError("no number")
        return {"value": 1.0}

    monkeypatch.setitem(
        studies.STUDIES, "failing", (lambda seeds: [{"seed": 0, "k": k} for k in (0, 1)], row)
    )
    with pytest.raises(FloatingPointError):
        studies.do("failing", folder=tmp_path)
    assert pd.read_csv(tmp_path / "failing_synthetic.csv")["k"].tolist() == [0]


def test_what_is_unknown_or_missing_is_named(tmp_path, monkeypatch, capsys):
    assert main(["study", "everything", "--out", str(tmp_path)]) == 2
    assert "study 'everything' is unknown: choose one of labels" in capsys.readouterr().err
    assert main(["study", "labels", "--set", "sise=3", "--out", str(tmp_path)]) == 2
    assert "'sise=3': give NAME=VALUE, with a name of n_tiles, size" in capsys.readouterr().err
    monkeypatch.setattr(studies, "FOLDER", tmp_path)
    with pytest.raises(RunError, match="crc-course study labels --data ebhi"):
        studies.read("labels", "ebhi")


def test_the_same_seed_has_the_same_tissue_split_and_encoder(t, tmp_path):
    other = studies.Trial(0, recipe=SMALL)
    np.testing.assert_array_equal(t.parts.test, other.parts.test)
    one, two = t.random_encoder(), other.random_encoder()
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    salted = t.random_encoder(salt=1)
    assert not (next(one.parameters()) == next(salted.parameters())).all()
    slides = [set(t.tiles.groups[p]) for p in (t.parts.train, t.parts.val, t.parts.test)]
    assert not slides[0] & slides[1] and not slides[0] & slides[2] and not slides[1] & slides[2]


def test_pre_training_is_kept_and_another_recipe_is_another_encoder(t, tmp_path, monkeypatch):
    first = t.pretrained()
    monkeypatch.setattr(studies, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    again = t.pretrained()
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert (a.cpu() == b.cpu()).all()
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        t.pretrained(studies.replace(SMALL, temperature=0.5))


def test_a_network_of_a_study_serves_runs_of_other_data(t):
    work_on("one run's data")
    first = t.pretrained()
    work_on("another run's data")
    again = t.pretrained()
    assert (next(first.parameters()) == next(again.parameters())).all()


def test_few_labels_take_as_many_steps_as_many(t, monkeypatch):
    steps = []

    def fine_tune(classifier, images, labels, *args, batch, epochs, **options):
        steps.append(epochs * (len(images) // batch))
        return pd.DataFrame({"chosen": [True], "val_loss": [1.0]})

    monkeypatch.setattr(studies, "fine_tune", fine_tune)
    big = studies.Trial(0, recipe=studies.replace(SMALL, steps=60))
    for fraction in studies.FRACTIONS:
        index = big.parts.train
        big.train(big.random_encoder, index[: max(2, round(fraction * len(index)))])
    assert min(steps) > 45 and max(steps) < 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("labels", {"fraction": 0.1, "arm": "pre-trained, fine-tuned"}, "auc"),
        ("labels", {"fraction": 0.5, "arm": "frozen probe"}, "auc"),
        ("recipe", {"factor": "none", "value": "the recipe"}, "knn"),
        ("recipe", {"factor": "crop", "value": 0.7}, "knn"),
        ("recipe", {"factor": "tiles", "value": "balanced"}, "knn"),
        ("recipe", {"factor": "tiles", "value": "test tiles too"}, "knn"),
        ("metadata", {}, "both"),
        ("classes", {"arm": "pre-trained, probe"}, "auc"),
        ("classes", {"arm": "pre-trained, fine-tuned" + studies.FEW}, "auc"),
        *(("questions", {"question": q, "fraction": 1.0, "encoder": "random"}, "auc")
          for q in studies.QUESTIONS),
        ("splits", {"scheme": "by tile", "split": 3}, "accuracy"),
        ("splits", {"scheme": "by slide", "split": 3}, "accuracy"),
        *(("baselines", {"arm": a}, "auc") for a in studies.BASELINES if "Inception" not in a),
        *(("imbalance", {"remedy": remedy}, "sensitivity") for remedy in studies.REMEDIES),
        *(("site", {"cure": cure}, "away") for cure in ("stain jitter", "Macenko")),
        *(("objectives", {"objective": o}, "effective_rank") for o in studies.OBJECTIVES),
        ("backbones", {"network": "resnet8"}, "auc"),
    ],
)  # fmt: skip
def test_every_kind_of_row_is_measured(t, name, key, expected):
    if name in ("classes", "questions", "recipe", "objectives"):  # all kinds in every part
        t = studies.replace(t, recipe=studies.replace(SMALL, n_tiles=240))
    found = studies.STUDIES[name][1](t, **key)
    if name == "classes":
        counts = json.loads(found.pop("confusion"))
        assert np.sum(counts) == len(t.many.parts.test) and np.shape(counts) == (4, 4)
    for column, value in found.items():
        high = (
            256
            if column == "effective_rank"
            else len(t.tiles)
            if column in ("labels", "tested")
            else 1
        )
        assert 0 <= value <= high, column
    assert expected in found


@pytest.mark.slow
def test_majority_is_chance_and_a_balanced_subset_is_balanced(t):
    row = studies.baselines_row(t, "majority")
    assert row["auc"] == 0.5 and row["balanced_accuracy"] == 0.5
