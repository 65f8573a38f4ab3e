"""Sweeps: plans, rows that can be gone on with, and each kind of row on a little tissue."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scripts import STUDIES, common

from crc_helpers import claims
from crc_helpers.augmentation import VIEWS
from crc_helpers.data import load_tiles
from crc_helpers.evaluation import macro_auc
from crc_helpers.runs import RunError, work_on
from crc_helpers.tissue.parameters import KINDS

SMALL = claims.Recipe(n_tiles=96, size=32, pretrain_epochs=1, pretrain_batch=16, steps=4, batch=8,
                       rates=(1e-3,))  # fmt: skip


@pytest.fixture
def t(tmp_path, monkeypatch):
    """A small trial, its encoders kept apart from the user's."""
    monkeypatch.setattr(claims, "cache_folder", lambda: tmp_path)
    return claims.Trial(0, recipe=SMALL)


@pytest.mark.parametrize("name", STUDIES)
def test_a_plan_names_every_row_once_and_more_seeds_only_add(name):
    plan = STUDIES[name].plan
    few, many = list(plan(2)), list(plan(3))
    keys = [json.dumps(row) for row in many]
    assert len(set(keys)) == len(keys)
    assert all(json.dumps(row) in keys for row in few)


@pytest.fixture
def counted():
    """A study that only counts how often it is measured, and its count."""
    calls = []

    def row(t, arm):
        calls.append((t.seed, arm))
        return {"value": 10 * t.seed + len(arm)}

    def plan(seeds):
        return [{"seed": s, "arm": a} for s in range(seeds) for a in ("a", "bb")]

    return common.Study("counted", plan, row), calls


def test_rows_that_are_there_are_not_measured_again(counted, tmp_path, monkeypatch):
    study, calls = counted
    monkeypatch.setattr(common, "_commit", lambda: "5940e75")  # a commit that reads as a number
    first = common.do(study, seeds=1, folder=tmp_path)
    assert calls == [(0, "a"), (0, "bb")] and first["value"].tolist() == [1, 2]
    both = common.do(study, seeds=2, folder=tmp_path)
    assert calls[2:] == [(1, "a"), (1, "bb")] and both["value"].tolist() == [1, 2, 11, 12]
    assert {"device", "seconds", "n_tiles", "size", "backbone"} <= set(both)
    assert set(both["commit"]) == {"5940e75"}
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    pd.testing.assert_frame_equal(claims.read_study("counted"), both)


def test_rows_of_another_size_are_not_mixed(counted, tmp_path):
    study, calls = counted
    common.do(study, seeds=1, folder=tmp_path)
    with pytest.raises(
        RunError, match=r"synthetic.csv holds rows of another .*nothing; now: size 32\).*out"
    ):
        common.do(study, seeds=1, folder=tmp_path, recipe=claims.Recipe(size=32))
    with pytest.raises(RunError, match=r"temperature 0.7, head mlp"):
        other = claims.Recipe(temperature=0.7, head="mlp")
        common.do(study, seeds=1, folder=tmp_path, recipe=other)
    assert len(calls) == 2


def test_rows_of_other_tiles_are_not_mixed(counted, tmp_path):
    study, calls = counted
    for folder, names in (("one", "abcd"), ("other", "abce")):
        for kind, (k, name) in itertools.product(("HP", "SSA"), enumerate(names)):
            (tmp_path / folder / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.full((32, 32, 3), 40 * k + len(kind), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / kind / f"{kind} {name}.png")
    common.do(study, "folder", str(tmp_path / "one"), 1, folder=tmp_path)
    common.do(study, "folder", str(tmp_path / "one"), 2, folder=tmp_path)
    with pytest.raises(RunError, match=r"holds rows of other tiles \(.*; .*other holds .*out"):
        common.do(study, "folder", str(tmp_path / "other"), 3, folder=tmp_path)
    assert len(calls) == 4


def test_a_question_to_drawn_tissue_is_not_asked_of_real_tiles(tmp_path):
    with pytest.raises(RunError, match="study 'site' is about drawn tissue: --data folder"):
        common.do(STUDIES["site"].STUDY, "folder", str(tmp_path), folder=tmp_path)


def test_rows_are_kept_where_there_is_no_git(counted, tmp_path, monkeypatch):
    study, _ = counted
    monkeypatch.setenv("PATH", "")
    found = common.do(study, seeds=1, folder=tmp_path)
    assert set(found["commit"]) == {"no repository"}


def test_a_commit_is_dirty_by_code_and_not_by_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    assert common._commit() == "no repository"

    def git(*words):
        own = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "studies").mkdir()
    for name in ("code.py", "studies/rows.csv"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = common._commit()
    assert len(clean) >= 7 and "dirty" not in clean
    (tmp_path / "studies/rows.csv").write_text("2")
    assert common._commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert common._commit() == f"{clean}-dirty"


def test_what_is_measured_is_on_disk_when_the_next_row_fails(tmp_path):
    def row(t, k):
        if k == 1:
            raise FloatingPointError("no number")
        return {"value": 1.0}

    failing = common.Study("failing", lambda seeds: [{"seed": 0, "k": k} for k in (0, 1)], row)
    with pytest.raises(FloatingPointError):
        common.do(failing, folder=tmp_path)
    assert pd.read_csv(tmp_path / "failing_synthetic.csv")["k"].tolist() == [0]


def test_a_missing_table_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "FOLDER", tmp_path)
    with pytest.raises(RunError, match=r"python studies/labels\.py --data ebhi"):
        claims.read_study("labels", "ebhi")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--set sise=3", "'sise=3': give NAME=VALUE, with a name of n_tiles, size"),
        ("--set size=x", "size is 'x', expected something like 64"),
        ("--set rates=[x]", "rates is '[x]', expected something like"),
        ("--set views=paper", "with a name of n_tiles"),
        ("--seeds 0", "--seeds 0: give at least 1"),
    ],
)
def test_what_a_script_is_not_told_rightly_it_says(tmp_path, capsys, given, words):
    study = STUDIES["labels"].STUDY
    assert common.main(study, [*given.split(), "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_table_that_is_none_is_named(tmp_path):
    (tmp_path / "metadata_synthetic.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"metadata_synthetic\.csv is no table"):
        common.do(STUDIES["metadata"].STUDY, seeds=1, folder=tmp_path)


def test_a_script_measures_its_rows_as_a_program(tmp_path):
    command = [sys.executable, claims.FOLDER / "metadata.py", "--seeds", "1", "--out", tmp_path]
    command += ["--set", "n_tiles=120", "--set", "size=32", "--set", "steps=4"]
    environment = {**os.environ, "CRC_HELPERS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 rows in" in done.stdout, done.stderr
    rows = pd.read_csv(tmp_path / "metadata_synthetic.csv")
    assert len(rows) == 1 and rows["n_tiles"].tolist() == [120]


def test_splits_by_slide_need_slides(t):
    t.tiles = replace(t.tiles, groups=None)
    with pytest.raises(RunError, match="splits: synthetic does not say which tiles share a slide"):
        STUDIES["splits"].row(t, "by tile", 0)


def test_the_same_seed_has_the_same_tissue_split_and_encoder(t, tmp_path):
    other = claims.Trial(0, recipe=SMALL)
    np.testing.assert_array_equal(t.parts.test, other.parts.test)
    one, two = t.random_encoder(), other.random_encoder()
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    salted = t.random_encoder(salt=1)
    assert not (next(one.parameters()) == next(salted.parameters())).all()
    slides = [set(t.tiles.groups[p]) for p in (t.parts.train, t.parts.val, t.parts.test)]
    assert not slides[0] & slides[1] and not slides[0] & slides[2] and not slides[1] & slides[2]


def test_pre_training_is_kept_and_another_recipe_is_another_encoder(t, tmp_path, monkeypatch):
    first = t.pretrained()
    monkeypatch.setattr(claims, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    again = t.pretrained()
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert (a.cpu() == b.cpu()).all()
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        t.pretrained(replace(SMALL, temperature=0.5))


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

    monkeypatch.setattr(claims, "fine_tune", fine_tune)
    big = claims.Trial(0, recipe=replace(SMALL, steps=60))
    for fraction in claims.FRACTIONS:
        index = big.parts.train
        big.train(big.random_encoder, index[: max(2, round(fraction * len(index)))])
    assert min(steps) > 45 and max(steps) < 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("labels", {"fraction": 0.1, "arm": "pre-trained, fine-tuned"}, "auc"),
        ("labels", {"fraction": 0.5, "arm": "frozen probe"}, "auc"),
        ("labels", {"fraction": 0.1, "arm": "pre-trained longer, frozen probe"}, "auc"),
        ("labels", {"fraction": 0.1, "arm": "from scratch, longer"}, "auc"),
        ("recipe", {"factor": "none", "value": "the recipe"}, "knn"),
        ("recipe", {"factor": "crop", "value": 0.7}, "knn"),
        ("recipe", {"factor": "tiles", "value": "balanced"}, "knn"),
        ("recipe", {"factor": "tiles", "value": "the scored ones too"}, "knn"),
        ("metadata", {}, "both"),
        ("classes", {"arm": "pre-trained, probe"}, "auc"),
        ("classes", {"arm": "pre-trained, fine-tuned" + claims.FEW}, "auc"),
        *(("questions", {"question": q, "fraction": 1.0, "encoder": "random"}, "auc")
          for q in STUDIES["questions"].QUESTIONS),
        ("questions", {"question": "HP or SSA?", "fraction": 0.1,
                       "encoder": "pre-trained longer"}, "auc"),
        ("splits", {"scheme": "by tile", "split": 3}, "accuracy"),
        ("splits", {"scheme": "by slide", "split": 3}, "accuracy"),
        *(("baselines", {"arm": a}, "auc")  # none slow or fetched
          for a in STUDIES["baselines"].BASELINES
          if a not in ("Inception-ResNet-v2", "ResNet-18, ImageNet")),
        *(("imbalance", {"remedy": remedy}, "sensitivity")
          for remedy in STUDIES["imbalance"].REMEDIES),
        *(("site", {"trained_on": way, "cure": cure}, "away")
          for way, cure in zip(STUDIES["site"].WAYS, ("jitter of stain and colour", "Macenko"),
                              strict=True)),
        *(("confirmation", {"fraction": 0.1, "arm": arm}, "auc") for arm in claims.CONFIRMED),
        *(("objectives", {"objective": o}, "effective_rank")
          for o in STUDIES["objectives"].OBJECTIVES),
        ("backbones", {"network": "resnet8"}, "auc"),
    ],
)  # fmt: skip
def test_every_kind_of_row_is_measured(t, name, key, expected):
    if name in ("classes", "questions", "recipe", "objectives"):  # all kinds in every part
        t = replace(t, recipe=replace(SMALL, n_tiles=240))
    found = STUDIES[name].row(t, **key)
    if name == "classes":
        counts = json.loads(found.pop("confusion"))
        assert np.sum(counts) == len(t.many.parts.test) and np.shape(counts) == (4, 4)
    for column, value in found.items():
        if column in ("size", "backbone", "steps"):  # where they are not the recipe's
            continue
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
def test_majority_is_chance(t):
    row = STUDIES["baselines"].row(t, "majority")
    assert row["auc"] == 0.5 and row["balanced_accuracy"] == 0.5


# --- which tiles a row trains on, chooses with and is scored on -----------------------------------


class Numbered(np.ndarray):
    """Tiles whose every pixel is the tile's number, picked as from a store."""

    def pick(self, index):
        return self[index]


class Watched:
    """A trial of numbered tiles, and what was done with which of them; answers are by lot."""

    def __init__(self, monkeypatch, tmp_path, kinds=None):
        tiles = load_tiles(classes=kinds, n=240, seed=claims.FIRST_SEED)
        images = np.arange(len(tiles), dtype=np.uint8)[:, None, None, None] * np.ones(
            (1, 3, 4, 4), np.uint8
        )
        given = replace(tiles, images=images.view(Numbered))
        self.t = claims.Trial(0, given=given, recipe=replace(SMALL, steps=30))
        self.t.__dict__["many"] = self.t
        rng = np.random.default_rng(0)
        self.p = rng.dirichlet(np.ones(len(tiles.class_names)), len(tiles))
        self.known = torch.from_numpy(rng.normal(size=(len(tiles), 6))).float()
        self.trained, self.chosen, self.pretrained, self.embedded = [], [], [], set()
        self.checked = True
        for name in ("fine_tune", "predict", "embed", "pretrain"):
            monkeypatch.setattr(claims, name, getattr(self, name))
        monkeypatch.setattr(claims, "cache_folder", lambda: tmp_path)

    def fine_tune(self, classifier, images, labels, val_images, val_labels, *_, **options):
        self.trained.append(images[:, 0, 0, 0].tolist())
        self.chosen.append(set(val_images[:, 0, 0, 0].tolist()))
        self.options = options
        assert not self.checked or (labels == self.t.labels(images[:, 0, 0, 0])).all()
        return pd.DataFrame({"chosen": [True], "val_loss": [1.0]})

    def predict(self, classifier, images, *_):
        return self.p[images[:, 0, 0, 0]]

    def embed(self, network, images, *_):
        numbers = np.asarray(images[:, 0, 0, 0])
        self.embedded |= set(numbers.tolist())
        return self.known[numbers.astype(int)]

    def pretrain(self, encoder, head, images, *_, epochs, **__):
        self.pretrained.append((set(images[:, 0, 0, 0].tolist()), epochs))

    def of(self, part):
        return set(getattr(self.t.parts, part).tolist())


@pytest.fixture
def watched(monkeypatch, tmp_path):
    return Watched(monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 1.0])
@pytest.mark.parametrize("arm", ["from scratch", "pre-trained, fine-tuned"])
def test_an_arm_trains_chooses_and_is_scored_on_its_own_part(watched, arm, fraction):
    t = watched.t
    row = STUDIES["labels"].row(t, fraction, arm)
    labelled = t.parts.train[claims.labelled_subset(t.labels(t.parts.train), fraction, 0)]
    assert set(watched.trained[0]) == set(labelled.tolist()) and row["labels"] == len(labelled)
    assert watched.chosen == [watched.of("val")]
    test = t.parts.test
    by_hand = claims.scores(t.labels(test), watched.p[test])
    assert {k: row[k] for k in by_hand} == by_hand
    assert watched.pretrained == ([] if "scratch" in arm else [(watched.of("train"), 1)])


@pytest.mark.slow
@pytest.mark.parametrize("remedy", STUDIES["imbalance"].REMEDIES)
def test_a_remedy_changes_what_it_says_and_nothing_else(watched, remedy):
    t = watched.t
    row, train, y = (
        STUDIES["imbalance"].row(t, remedy),
        watched.of("train"),
        t.labels(t.parts.train),
    )
    seen = watched.trained[0]
    count = np.bincount(t.labels(np.array(seen)))
    if remedy == "discarding":
        assert set(seen) < train and count[0] == count[1]
    else:
        assert set(seen) == train
    if remedy == "oversampling":
        assert abs(count[0] - count[1]) <= 0.1 * count.sum()
    elif remedy != "discarding":
        assert count[0] > 1.2 * count[1]
    loss = watched.options.get("criterion")
    assert (loss is None) == (remedy not in ("class weights", "focal loss"))
    # The rare class weighs as much as the common one, in all remedies when it comes to choosing.
    weight = watched.options["val_criterion"].weight
    assert weight[1] / weight[0] == pytest.approx((y == 0).sum() / (y == 1).sum())
    p, truth = watched.p[:, 1], t.tiles.labels
    threshold = 0.5
    if remedy == "threshold moved":
        candidates = np.sort(p[t.parts.val])
        val = truth[t.parts.val]
        reached = [(p[t.parts.val][val == 1] >= c).mean() + (p[t.parts.val][val == 0] < c).mean()
                   for c in candidates]  # fmt: skip
        said = p[t.parts.val] >= claims.best_threshold(val, p[t.parts.val])
        assert said[val == 1].mean() + (~said[val == 0]).mean() == pytest.approx(max(reached))
        threshold = claims.best_threshold(val, p[t.parts.val])
    said, truth = p[t.parts.test] >= threshold, truth[t.parts.test]
    assert row["sensitivity"] == pytest.approx(said[truth == 1].mean())
    assert row["specificity"] == pytest.approx(1 - said[truth == 0].mean())
    assert row["balanced_accuracy"] == (row["sensitivity"] + row["specificity"]) / 2


@pytest.mark.slow
def test_the_recipe_never_meets_the_test_part_and_takes_as_many_steps(monkeypatch, tmp_path):
    watched = Watched(monkeypatch, tmp_path, KINDS)
    t = replace(watched.t, recipe=replace(SMALL, pretrain_epochs=100))
    t.__dict__["many"] = t
    for value in ("the recipe", *STUDIES["recipe"].FACTORS["tiles"]):
        factor = "none" if value == "the recipe" else "tiles"
        found = STUDIES["recipe"].row(t, factor, value)
        assert set(found) == {"knn", "auc", "auc_of_a_tenth"}
    train, val = watched.of("train"), watched.of("val")
    (usual, _), (balanced, more), (too, fewer) = watched.pretrained
    assert usual == train and too == train | val
    assert balanced < train and len(set(np.bincount(t.labels(np.array(sorted(balanced)))))) == 1
    assert more * len(balanced) == pytest.approx(100 * len(train), rel=0.02)
    assert fewer * len(too) == pytest.approx(100 * len(train), rel=0.02)
    assert watched.embedded == train | val


@pytest.mark.slow
@pytest.mark.parametrize("trained_on", STUDIES["site"].WAYS)
def test_away_is_where_training_was_not(watched, monkeypatch, trained_on):
    asked, t = [], watched.t

    def away(n, seed, scanner):
        asked.append((n, seed, scanner))
        turned = (len(t.tiles) - 1 - t.tiles.images).view(Numbered)
        return replace(t.tiles, images=turned)

    monkeypatch.setattr(STUDIES["site"], "load_tiles", away)
    watched.checked = False  # scanner C's tiles are numbered from the end here
    row = STUDIES["site"].row(t, trained_on, "none")
    assert asked == [(SMALL.n_tiles, claims.FIRST_SEED, "Scanner C")]
    test, y = t.parts.test, t.labels(t.parts.test)
    as_they_are = macro_auc(y, watched.p[test])
    scanner_c = macro_auc(y, watched.p[len(t.tiles) - 1 - test])
    expected = [as_they_are, scanner_c]
    assert [row["home"], row["away"]] == (expected if "A" in trained_on else expected[::-1])
    assert row["home"] != row["away"]
    last = len(t.tiles) - 1
    learnt = (
        set(watched.trained[0]) if "A" in trained_on else {last - i for i in watched.trained[0]}
    )
    assert learnt == watched.of("train")


@pytest.mark.slow
def test_metadata_stand_beside_the_image_and_not_in_its_place(watched):
    row, t = STUDIES["metadata"].row(watched.t), watched.t
    y = t.labels(t.parts.test)
    assert row["image"] == pytest.approx(macro_auc(y, watched.p[t.parts.test]))
    assert row["metadata"] > 0.6 > row["image"]  # answers by lot
    assert row["metadata"] > row["half without metadata"] > row["image"]


@pytest.mark.slow
def test_another_network_is_not_the_row_of_the_usual_one(t, tmp_path):
    row = common.do(STUDIES["backbones"].STUDY, seeds=1, recipe=SMALL, folder=tmp_path).iloc[0]
    assert (row["backbone"], row["size"], row["n_tiles"]) == (row["network"], 96, 96)


def test_longer_is_eight_times_as_long_and_of_the_same_tiles(t, monkeypatch):
    epochs = []

    def watched(encoder, head, tiles, views, fabric, **settings):
        epochs.append((settings["epochs"], len(tiles)))

    monkeypatch.setattr(claims, "pretrain", watched)
    for arm in claims.LABEL_ARMS:
        STUDIES["labels"].row(t, 0.5, arm)
    assert set(epochs) == {(1, len(t.parts.train)), (8, len(t.parts.train))}
    for arm in STUDIES["labels"].CONTROLS:  # the longer encoder is in the cache by now
        assert STUDIES["labels"].row(t, 0.5, arm)["steps"] == 8 * SMALL.steps
    assert len(epochs) == 2


class Asked:
    """A trial that notes which networks an arm begins with, and how they are trained."""

    def __init__(self, monkeypatch, tmp_path):
        self.t, self.notes = Watched(monkeypatch, tmp_path).t, []
        monkeypatch.setattr(claims.Trial, "pretrained", self.pretrained)
        monkeypatch.setattr(claims.Trial, "random_encoder", self.random_encoder)
        monkeypatch.setattr(claims.Trial, "train", self.train)
        monkeypatch.setattr(STUDIES["confirmation"], "probe_classifier",
                            lambda e, _: self.note(f"probe on {e}"))  # fmt: skip
        monkeypatch.setattr(STUDIES["baselines"], "Encoder", lambda *given: " ".join(given))
        fitted = claims.Trial.fit_probe
        monkeypatch.setattr(claims.Trial, "fit_probe", lambda t, e, labelled=None: (
            self.note(f"probe: {e}"), fitted(t, e, labelled))[1])  # fmt: skip

    def note(self, text):
        self.notes.append(text)
        return text

    def pretrained(self, recipe=None, index=None):
        r = recipe or self.t.recipe
        kind = "as in the paper" if r.views == VIEWS["paper"] else "usual"
        return f"pre-trained {r.pretrain_epochs}, {kind}, tau {r.temperature}, {r.optimizer}"

    def random_encoder(self, backbone=None, salt=0):
        name = backbone if isinstance(backbone, str) else getattr(backbone, "__name__", "usual")
        return f"random {name} {salt}"

    def train(self, start, labelled=None, recipe=None, salt=0, **_):
        steps = (recipe or self.t.recipe).steps
        self.note(f"trained {steps} steps: {start()}, salt {salt}")
        return lambda index: self.t.__dict__["answers"][index]


BEGINS = {
    "from scratch": ["trained 30 steps: random usual 0, salt 0"],
    "plain CNN": ["trained 30 steps: random PlainCNN 0, salt 0"],
    "ResNet-18": ["trained 30 steps: random resnet18 0, salt 0"],
    "ResNet-18, ImageNet": ["trained 30 steps: resnet18 imagenet, salt 0"],
    "Inception-ResNet-v2": ["trained 30 steps: random inception_resnet_v2 0, salt 0"],
    "ensemble of three": [f"trained 30 steps: random usual {k}, salt {k}" for k in range(3)],
    "random encoder, probe": ["probe: random usual 0"],
    "pre-trained, probe": ["probe: pre-trained 1, usual, tau 0.2, adamw-one-cycle"],
    "pre-trained, fine-tuned": [
        "trained 30 steps: pre-trained 1, usual, tau 0.2, adamw-one-cycle, salt 0"
    ],
    "pre-trained longer, probe": ["probe: pre-trained 8, usual, tau 0.2, adamw-one-cycle"],
    "pre-trained longer, fine-tuned": [
        "trained 30 steps: pre-trained 8, usual, tau 0.2, adamw-one-cycle, salt 0"
    ],
}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    found = Asked(monkeypatch, tmp_path)
    found.t.__dict__["answers"] = np.full((len(found.t.tiles), 2), 0.5)
    return found


@pytest.mark.parametrize("arm", [arm for arm in STUDIES["baselines"].BASELINES if arm in BEGINS])
def test_a_rival_begins_with_the_network_of_its_name(asked, arm):
    STUDIES["baselines"].row(asked.t, arm)
    assert asked.notes == BEGINS[arm]


def test_every_rival_that_is_a_network_is_known_to_the_test_before():
    assert set(STUDIES["baselines"].BASELINES) - set(BEGINS) == {"majority", "colour only"}


@pytest.mark.parametrize(
    ("arm", "notes"),
    [
        *((arm, BEGINS[arm]) for arm in claims.LABEL_ARMS if arm in BEGINS),
        ("frozen probe", BEGINS["pre-trained, probe"]),
        ("pre-trained longer, frozen probe", BEGINS["pre-trained longer, probe"]),
        ("from scratch, longer", ["trained 240 steps: random usual 0, salt 0"]),
        ("pre-trained longer, fine-tuned longer",
         ["trained 240 steps: pre-trained 8, usual, tau 0.2, adamw-one-cycle, salt 0"]),
    ],
)  # fmt: skip
def test_an_arm_of_the_labels_begins_with_the_network_of_its_name(asked, arm, notes):
    STUDIES["labels"].row(asked.t, 0.5, arm)
    assert asked.notes == notes


@pytest.mark.parametrize(
    ("arm", "notes"),
    [
        ("from scratch", BEGINS["from scratch"]),
        ("random encoder, probe", BEGINS["random encoder, probe"]),
        ("pre-trained, frozen probe", BEGINS["pre-trained, probe"]),
        ("pre-trained, fine-tuned", BEGINS["pre-trained, fine-tuned"]),
        ("pre-trained, probe first",
         ["probe: pre-trained 1, usual, tau 0.2, adamw-one-cycle",
          "probe on pre-trained 1, usual, tau 0.2, adamw-one-cycle",
          "trained 30 steps: probe on pre-trained 1, usual, tau 0.2, adamw-one-cycle, salt 0"]),
        ("the paper's recipe, fine-tuned",
         ["trained 30 steps: pre-trained 1, as in the paper, tau 0.7, adam, salt 0"]),
    ],
)  # fmt: skip
def test_an_arm_of_the_confirmation_begins_with_the_network_of_its_name(asked, arm, notes):
    STUDIES["confirmation"].row(asked.t, 0.5, arm)
    assert asked.notes == notes


@pytest.mark.parametrize("file", sorted(claims.FOLDER.glob("*.csv")), ids=lambda f: f.stem)
def test_a_table_that_is_committed_has_every_row_of_its_plan_once(file, monkeypatch):
    """What a lesson draws is all that was planned: no arm has lost a seed on the way."""
    monkeypatch.setattr(STUDIES["baselines"], "published_on_disk", lambda _: False)
    name, _, data_name = file.stem.rpartition("_")
    plan = STUDIES[name].plan
    rows = claims.read_study(name, data_name)
    assert set(rows["changed"]) == {"nothing"}
    keys = list(next(iter(plan(1))))
    there = [tuple(map(str, row)) for row in rows[keys].itertuples(index=False)]
    assert len(set(there)) == len(there)
    assert any(
        set(there) == {tuple(str(row[k]) for k in keys) for row in plan(seeds)}
        for seeds in range(1, rows["seed"].nunique() + 1)
    )
