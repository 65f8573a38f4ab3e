"""Sweeps: plans, rows that can be gone on with, and which tiles and networks a row is about."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scripts import STUDIES, common
from test_data import make_folder

from crc_helpers import claims
from crc_helpers.data import load_tiles
from crc_helpers.runs import RunError
from crc_helpers.tissue.parameters import KINDS

PARTS = ("train", "val", "test")
SMALL = claims.Recipe(96, 32, pretrain_epochs=1, pretrain_batch=16, steps=4, batch=8, rates=(1e-3,))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Networks trained here are kept apart from the user's."""
    monkeypatch.setattr(claims, "cache_folder", lambda: tmp_path)


@pytest.fixture
def t(own_cache):
    return common.Trainer.of_seed(0, SMALL)


# --- A table and its rows -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in STUDIES if "paper" not in n])
def test_a_plan_names_every_row_once_and_more_seeds_only_add(name):
    few, many = (list(map(json.dumps, STUDIES[name].STUDY.plan(n))) for n in (2, 3))
    assert len(set(many)) == len(many) and set(few) < set(many)


def test_rows_are_measured_once_and_never_mixed_with_others(tmp_path, monkeypatch):
    calls = []

    def row(t, arm):
        calls.append((t.seed, arm))
        return {"value": 10 * t.seed + len(arm)}

    def plan(seeds):
        return common.rows_of(seeds, arm=("a", "bb"))

    study = common.Study("counted", plan, row, SMALL)
    monkeypatch.setattr(common, "commit", lambda: "5940e75")  # a commit that reads as a number
    first = common.measure(study, seeds=1, folder=tmp_path)
    assert calls == [(0, "a"), (0, "bb")] and first["value"].tolist() == [1, 2]
    both = common.measure(study, seeds=2, folder=tmp_path)
    assert calls[2:] == [(1, "a"), (1, "bb")] and both["value"].tolist() == [1, 2, 11, 12]
    assert {"device", "seconds", "n_tiles", "size", "backbone"} <= set(both)
    assert set(both["commit"]) == {"5940e75"}
    monkeypatch.setattr(claims, "STUDIES", tmp_path)
    pd.testing.assert_frame_equal(claims.read_study("counted"), both)
    with pytest.raises(RunError, match=r"synthetic.csv holds rows .*nothing; now: size 48, head m"):
        other = replace(SMALL, size=48, head="mlp")
        common.measure(study, seeds=1, folder=tmp_path, recipe=other)
    one, other = (str(make_folder(tmp_path / str(count), count=count)) for count in (4, 5))
    common.measure(study, "folder", one, 1, folder=tmp_path)
    with pytest.raises(RunError, match=r"holds rows of another experiment \(tiles: .*--out"):
        common.measure(study, "folder", other, 2, folder=tmp_path)
    assert len(calls) == 6


def test_a_table_that_is_missing_or_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STUDIES", tmp_path)
    with pytest.raises(RunError, match=r"python studies/labels\.py --data ebhi"):
        claims.read_study("labels", "ebhi")
    (tmp_path / "recipe_synthetic.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"recipe_synthetic\.csv is no table"):
        claims.read_study("recipe")


@pytest.mark.slow
def test_a_script_measures_its_rows_as_a_program(tmp_path):
    command = [sys.executable, claims.STUDIES / "objectives.py", "--seeds", "1", "--out", tmp_path]
    command += ["--n_tiles", "240", "--size", "32", "--pretrain_epochs", "1", "--rates", "1e-3"]
    environment = {**os.environ, "CRC_HELPERS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "6 rows of objectives_synthetic.csv" in done.stdout, done.stderr
    row = pd.read_csv(tmp_path / "objectives_synthetic.csv").iloc[0]
    assert row["changed"] == "n_tiles 240, size 32, pretrain_epochs 1, rates (0.001,)"


def test_what_a_script_cannot_do_it_says_in_a_sentence(tmp_path, capsys):
    assert common.main(STUDIES["splits"].STUDY, ["--seeds", "0", "--out", str(tmp_path)]) == 2
    assert "splits: --seeds 0: give at least 1" in capsys.readouterr().err
    with pytest.raises(RunError, match="study 'questions' is about drawn tissue"):
        common.measure(STUDIES["questions"].STUDY, "folder", str(tmp_path), folder=tmp_path)


@pytest.mark.parametrize("file", sorted(claims.STUDIES.glob("*.csv")), ids=lambda f: f.stem)
def test_a_table_that_is_committed_has_every_row_of_its_plan_once(file):
    """What a lesson draws is all that was planned: no arm has lost a seed on the way."""
    name, _, data_name = file.stem.rpartition("_")
    plan = STUDIES[name].STUDY.plan
    rows = claims.read_study(name, data_name)
    # On EBHI-Seg rivals learn enough in the usual steps.
    told_of = "steps 120" if file.stem == "baselines_ebhi" else "nothing"
    assert set(rows["changed"]) == {told_of}
    keys = sorted({key for row in plan(1) for key in row})

    def told(rows):
        return sorted([f"{k} {row[k]}" for k in keys if not pd.isna(row.get(k))] for row in rows)

    plans = (plan(seeds) for seeds in range(1, rows["seed"].nunique() + 1))
    assert told(rows.to_dict("records")) in map(told, plans)


def test_a_row_with_a_draw_is_not_measured_again_where_others_have_none(tmp_path):
    rows, calls = [{"seed": 0, "arm": "map"}, {"seed": 0, "arm": "few", "draw": 0}], []
    row = lambda t, **given: calls.append(given) or {"value": 1.0}  # noqa: E731
    study = common.Study("drawn", lambda seeds: rows[:seeds], row, SMALL)
    for seeds in (2, 2):
        assert len(common.measure(study, seeds=seeds, folder=tmp_path)) == 2
    assert len(calls) == 2


# --- An experiment --------------------------------------------------------------------------------


def test_the_same_seed_has_the_same_tissue_split_and_encoder(t):
    other = common.Trainer.of_seed(0, SMALL)
    np.testing.assert_array_equal(t.parts.test, other.parts.test)
    one, two, salted = t.random_encoder(), other.random_encoder(), t.random_encoder(salt=1)
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not (next(one.parameters()) == next(salted.parameters())).all()
    slides = [set(t.tiles.groups[p]) for p in (t.parts.train, t.parts.val, t.parts.test)]
    assert not slides[0] & slides[1] and not slides[0] & slides[2] and not slides[1] & slides[2]


def test_pre_training_is_kept_and_another_recipe_is_another_encoder(t, monkeypatch):
    first = t.pretrained()
    monkeypatch.setattr(common, "pretrain", lambda *_, **__: pytest.fail("trained again"))
    again = t.pretrained()
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert (a.cpu() == b.cpu()).all()
    other = STUDIES["objectives"].SimSiam
    for changed in ({"recipe": replace(SMALL, temperature=0.5)}, {"objective": other}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            t.pretrained(**changed)


def test_few_labels_take_as_many_steps_as_many(monkeypatch):
    steps = []

    def fine_tune(classifier, train, val, views, fabric, training, **_):
        steps.append(training.epochs * (len(train[0]) // training.batch))
        return pd.DataFrame({"chosen": [True], "val_loss": [1.0]})

    monkeypatch.setattr(claims, "fine_tune", fine_tune)
    big = claims.Experiment.of_seed(0, replace(SMALL, steps=60))
    for fraction in (0.01, 0.1, 1.0):
        index = big.parts.train
        big.train(big.random_encoder, index[: max(2, round(fraction * len(index)))])
    assert min(steps) > 45 and max(steps) < 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("recipe", {"factor": "crop", "value": 0.7}, "knn"),
        ("classes", {"arm": "pre-trained, probe" + claims.FEW}, "auc"),
        ("questions", {"epochs": 2, "question": "which scanner?", "fraction": 0.1}, "auc"),
        ("splits", {"scheme": "by slide", "split": 3}, "accuracy"),
        ("baselines", {"arm": "ensemble of three"}, "auc"),
        ("objectives", {"objective": "SupCon"}, "effective_rank"),
    ],
)
def test_every_kind_of_row_is_measured(own_cache, name, key, expected):
    all_classes = STUDIES[name].STUDY.all_classes
    recipe = replace(SMALL, n_tiles=240) if all_classes else SMALL  # all kinds in every part
    t = common.Trainer.of_seed(0, recipe, classes=KINDS if all_classes else None)
    found = STUDIES[name].row(t, **key)
    if name == "classes":
        counts = json.loads(found.pop("confusion"))
        assert np.sum(counts) == len(t.parts.test) and np.shape(counts) == (4, 4)
    scores = found.keys() - {"size", "backbone", "steps", "labels", "tested", "effective_rank"}
    assert expected in found and all(0 <= found[column] <= 1 for column in scores)


EFFECTS = STUDIES["effects"]


@pytest.mark.slow
def test_the_effects_of_a_tiny_recipe_are_finite(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path))
    t = common.Trainer.of_seed(0, SMALL)
    # So small a network may recognise none, and an interval needs two slides.
    monkeypatch.setattr(EFFECTS, "recognised", lambda t: t.parts.test)
    # A network that has hardly learnt may have maps without heat, which score NaN.
    asked = [("probe", "epoch 50"), *(("map", arm) for arm in ("edges", "centre", "chance"))]
    asked += [("labels", arm) for arm in (*EFFECTS.CHEAP, *EFFECTS.TRAINED)]
    for figure, arm in asked:
        found = EFFECTS.row(t, figure, arm, **({"share": 0.5} if figure == "labels" else {}))
        assert np.isfinite([*found.values()]).all(), arm


@pytest.mark.slow
def test_majority_is_chance_and_splits_by_slide_need_slides(t):
    row = STUDIES["baselines"].row(t, "majority")
    assert row["auc"] == 0.5 and row["balanced_accuracy"] == 0.5
    t.tiles = replace(t.tiles, groups=None)
    with pytest.raises(RunError, match="splits: synthetic does not say which tiles share a slide"):
        STUDIES["splits"].row(t, "by tile", 0)


# --- Which tiles a row trains on, chooses with and is scored on -----------------------------------


class Numbered(np.ndarray):
    """Tiles whose every pixel is the tile's number, picked as from a store."""

    def pick(self, index):
        return self[index]


class Watched:
    """An experiment on numbered tiles, and what was done with which of them; answers are random."""

    def __init__(self, monkeypatch, kinds=None):
        tiles = load_tiles(classes=kinds, n=240, seed=claims.FIRST_SEED)
        number = np.arange(len(tiles), dtype=np.uint8)[:, None, None, None]
        images = (number * np.ones((1, 3, 4, 4), np.uint8)).view(Numbered)
        whole = common.Trainer.of_seed(0, replace(SMALL, n_tiles=240, steps=30), classes=kinds)
        self.t = replace(whole, tiles=replace(whole.tiles, images=images))
        rng = np.random.default_rng(0)
        self.p = rng.dirichlet(np.ones(len(tiles.class_names)), len(tiles))
        self.known = torch.from_numpy(rng.normal(size=(len(tiles), 6))).float()
        self.trained, self.chosen, self.pretrained, self.embedded = [], [], [], set()
        for name in ("fine_tune", "predict"):
            monkeypatch.setattr(claims, name, getattr(self, name))
        for name in ("embed", "pretrain"):
            monkeypatch.setattr(common, name, getattr(self, name))
        train = lambda network, train, **_: (train(), network)[1]  # noqa: E731
        monkeypatch.setattr(common, "trained_once", train)

    def fine_tune(self, classifier, train, val, *_):
        self.trained.append(train[0][:, 0, 0, 0].tolist())
        self.labels = train[1]
        self.chosen.append(set(val[0][:, 0, 0, 0].tolist()))
        return pd.DataFrame({"chosen": [True], "val_loss": [1.0]})

    def predict(self, classifier, images, *_):
        return self.p[images[:, 0, 0, 0]]

    def embed(self, network, images, *_):
        numbers = np.asarray(images[:, 0, 0, 0])
        self.embedded |= set(numbers.tolist())
        return self.known[numbers.astype(int)]

    def pretrain(self, model, images, views, fabric, training, objective):
        self.pretrained.append((set(images[:, 0, 0, 0].tolist()), training.epochs))

    def of(self, part):
        return set(getattr(self.t.parts, part).tolist())


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


@pytest.mark.parametrize("fraction", [0.1, 1.0])
@pytest.mark.parametrize("arm", ["from scratch", "pre-trained, fine-tuned"])
def test_an_arm_trains_chooses_and_is_scored_on_its_own_part(watched, arm, fraction):
    t = watched.t
    labelled = t.parts.train[claims.labelled_subset(t.labels(t.parts.train), fraction, 0)]
    row = t.score(STUDIES["baselines"].fit(t, arm, labelled))
    assert set(watched.trained[0]) == set(labelled.tolist())
    assert (watched.labels == t.labels(np.array(watched.trained[0]))).all()
    assert watched.chosen == [watched.of("val")]
    by_hand = claims.scores(t.labels(t.parts.test), watched.p[t.parts.test])
    assert row == by_hand
    assert watched.pretrained == ([] if "scratch" in arm else [(watched.of("train"), 1)])


def test_the_recipe_never_meets_the_test_part_and_takes_as_many_steps(monkeypatch):
    watched = Watched(monkeypatch, KINDS)
    t = replace(watched.t, recipe=replace(SMALL, pretrain_epochs=100))
    for value in ("the recipe", *STUDIES["recipe"].FACTORS["tiles"]):
        factor = "none" if value == "the recipe" else "tiles"
        assert set(STUDIES["recipe"].row(t, factor, value)) == {"knn", "auc", "auc_of_a_tenth"}
    train, val = watched.of("train"), watched.of("val")
    (usual, _), (balanced, more), (too, fewer) = watched.pretrained
    assert usual == train and too == train | val
    assert balanced < train and len(set(np.bincount(t.labels(np.array(sorted(balanced)))))) == 1
    assert more * len(balanced) == pytest.approx(100 * len(train), rel=0.02)
    assert fewer * len(too) == pytest.approx(100 * len(train), rel=0.02)
    assert watched.embedded == train | val


IMAGENET = STUDIES["labels"]


@pytest.mark.parametrize("task", ["six classes", "two of four"])
def test_a_probe_learns_and_is_scored_within_its_task_and_its_cells_say_whose_tiles(
    monkeypatch, task
):
    t, probed = Watched(monkeypatch, KINDS).t, []
    monkeypatch.setitem(IMAGENET.TASKS, "two of four", KINDS[2:])
    number = torch.arange(len(t.tiles))[:, None]
    monkeypatch.setattr(IMAGENET, "features", lambda *_: number)
    kinds = range(2, 4) if task == "two of four" else range(4)
    wrong = t.parts.test[::3]

    class Probe:
        def __init__(self, *given):
            probed.append([np.ravel(part) for part in given])

        def predict_proba(self, index):
            said = t.labels(index.ravel()) - kinds[0]
            return np.eye(len(kinds))[(said + np.isin(index.ravel(), wrong)) % len(kinds)]

    monkeypatch.setattr(IMAGENET, "linear_probe", Probe)
    row = IMAGENET.row(t, "own", task, 0.25)
    asked = {n: getattr(t.parts, n)[np.isin(t.labels(getattr(t.parts, n)), kinds)] for n in PARTS}
    for train, y, val, y_val in probed:
        assert set(train) < set(asked["train"]) and set(val) == set(asked["val"])
        assert (y == t.labels(train) - kinds[0]).all() and len(y_val) == len(val)
    assert len({str(given[0]) for given in probed}) == row["draws"] == IMAGENET.DRAWS[0.25]
    case = np.unique(t.tiles.groups, return_inverse=True)[1]
    expected = pd.DataFrame({"case": case[asked["test"]], "y": t.labels(asked["test"]) - kinds[0]})
    expected["right"] = 3 * ~np.isin(asked["test"], wrong)
    expected = expected.groupby(["case", "y"])["right"].agg(["size", "sum"]).reset_index()
    assert json.loads(row["cells"]) == expected.to_numpy().tolist()


def test_own_pre_training_and_imagenet_begin_with_the_network_of_their_name(asked, monkeypatch):
    t, notes = asked
    monkeypatch.setattr(IMAGENET, "Encoder", lambda name, published: f"{name}, {published}")
    monkeypatch.setattr(IMAGENET, "probe_classifier", lambda encoder, _: f"probe on {encoder}")
    begun = lambda _, r=SMALL: f"{r.backbone}, {r.pretrain_epochs} epochs"  # noqa: E731
    monkeypatch.setattr(common.Trainer, "pretrained", begun)
    embedded = lambda t, encoder, _: f"{t.recipe.size} px: {encoder}"  # noqa: E731
    monkeypatch.setattr(common.Trainer, "features", embedded)
    assert [IMAGENET.features.__wrapped__(t, arm) for arm in IMAGENET.FROZEN] == [
        "32 px: resnet8, 1 epochs",
        "32 px: imagenet, True",
        "224 px: imagenet, True",
        "32 px: random usual",
        "32 px: imagenet, 5 epochs",
    ]
    monkeypatch.setattr(common.Trainer, "fit_probe", lambda *_: None)
    for arm in IMAGENET.TRAINED:
        IMAGENET.trained(t, arm, t.parts.train)
    assert notes == [
        "trained 120 steps: random usual, salt 0",
        "trained 30 steps: probe on imagenet, True, salt 0",
    ]


# --- Which network an arm begins with -------------------------------------------------------------


@pytest.fixture
def asked(watched, monkeypatch):
    """What networks an arm begins with, and how they are trained."""
    t, notes = watched.t, []

    def pretrained(self, recipe=None, index=None):
        return f"pre-trained {(recipe or self.recipe).pretrain_epochs}"

    def random_encoder(self, backbone=None, salt=0):
        return f"random {getattr(backbone, '__name__', backbone) or 'usual'}"

    def train(self, start, labelled=None, recipe=None, salt=0, **_):
        notes.append(f"trained {(recipe or self.recipe).steps} steps: {start()}, salt {salt}")
        return lambda index: np.full((len(index), 2), 0.5)

    def fit_probe(self, encoder, labelled=None, fit=common.Trainer.fit_probe):
        notes.append(f"probe: {encoder}")
        return fit(self, encoder, labelled)

    for method in (pretrained, random_encoder, train, fit_probe):
        monkeypatch.setattr(common.Trainer, method.__name__, method)
    return t, notes


SCRATCH, PRETRAINED = "trained 30 steps: random usual, salt 0", "pre-trained 1"
BEGINS = {
    "from scratch": SCRATCH,
    "plain CNN": SCRATCH.replace("usual", "plain_cnn"),
    "ResNet-18": SCRATCH.replace("usual", "resnet18"),
    "random encoder, probe": "probe: random usual",
    "pre-trained, probe": f"probe: {PRETRAINED}",
    "pre-trained, fine-tuned": SCRATCH.replace("random usual", PRETRAINED),
}


@pytest.mark.parametrize("arm", BEGINS)
def test_an_arm_begins_with_the_network_of_its_name(asked, arm):
    t, notes = asked
    STUDIES["baselines"].row(t, arm)
    assert notes == [BEGINS[arm]]


@pytest.mark.slow
def test_the_papers_scale_runs_in_small_from_drawing_to_its_page(tmp_path, monkeypatch):
    scale, report = STUDIES["paper_scale"], STUDIES["paper_scale_report"]
    for folder in ("docs", "studies/paper_scale", "figures"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "docs" / "results.md").write_text("\n".join(["a", *report.MARKS, "b"]))
    options = ["--out", str(tmp_path / "run"), "--scale", "tiny"]
    monkeypatch.setattr(sys, "argv", ["paper_scale.py", "all", *options])
    scale.main()
    monkeypatch.setattr(sys, "argv", ["report.py", *options, "--into", str(tmp_path)])
    report.main()
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page.startswith("a\n") and page.endswith("\nb")
    assert all(f"| {name} |" in page for arm, name in report.NAMES.items())
    told = json.loads((tmp_path / "studies" / "paper_scale.json").read_text())
    assert set(told["seconds"]) == {f"{step} {arm}" for step, arm in scale.ALL}
    assert len(list((tmp_path / "figures").iterdir())) == 3
