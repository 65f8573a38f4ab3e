"""The lessons: form, shown code equal to shared code, executed end to end and judged by nbval."""

import ast
import contextlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from PIL import Image

from crc_helpers import (
    augmentation,
    claims,
    evaluation,
    explanations,
    fine_tuning,
    grad_cam,
    models,
    pretraining,
)
from crc_helpers.course.cli import main
from crc_helpers.course.settings import (
    NOTEBOOKS,
    PRESETS,
    lesson_files,
    parameters_of,
    read_settings,
)
from crc_helpers.tissue.cohort import make_cohort

LESSONS = lesson_files()
ids = [f.stem for f in LESSONS]
each_lesson = pytest.mark.parametrize("file", LESSONS, ids=ids)


def cells(file: Path, kind: str = "code"):
    return [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == kind]


def shown(number: int, **given):
    """Namespace of a lesson's imports, functions and constants, without running its cells."""
    namespace = dict(given)
    (lesson,) = lesson_files(f"{number:02}")
    for cell in cells(lesson):
        for node in ast.parse(cell.source).body:
            constant = (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and re.fullmatch("[A-Z_]+", node.targets[0].id)
            )
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) or constant:
                # What needs a cell's data (a constant, a default) is left out.
                with contextlib.suppress(NameError):
                    exec(compile(ast.Module([node], []), str(number), "exec"), namespace)
    return namespace


# --- form ----------------------------------------------------------------------------------------


def test_lessons_are_numbered_without_a_gap():
    assert [int(f.name[:2]) for f in LESSONS] == list(range(1, len(LESSONS) + 1))


@each_lesson
def test_parameters_are_a_dozen_literals_with_a_comment_each(file):
    (cell,) = [c for c in cells(file) if "parameters" in c.metadata.get("tags", [])]
    names = parameters_of(file)  # literal_eval: fails on anything but literals
    assert 1 <= len(names) <= 12
    assert all("#" in line for line in cell.source.splitlines())


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_key_is_a_parameter(preset):
    known = {name for file in LESSONS for name in parameters_of(file)}
    read_settings(preset.stem, [], known)  # raises for an unknown one


def test_a_parameter_has_the_same_default_in_every_lesson():
    seen = {}
    for file in LESSONS:
        for name, value in parameters_of(file).items():
            assert seen.setdefault(name, value) == value, (file.name, name)


def test_paper_preset_is_table_1():
    known = {name for file in LESSONS for name in parameters_of(file)}
    paper = read_settings("paper", [], known)
    table = {"BACKBONE": "resnet50", "IMAGE_SIZE": 224, "HEAD": "linear", "TEMPERATURE": 0.7,
             "PRETRAIN_LR": 3e-4, "PRETRAIN_EPOCHS": 200, "PRETRAIN_BATCH": 128,
             "FINE_TUNE_LR": [1e-4], "FINE_TUNE_EPOCHS": 100, "FINE_TUNE_BATCH": 64,
             "OPTIMIZER": "adam", "SPLIT": "paper"}  # fmt: skip
    assert {k: paper[k] for k in table} == table


@each_lesson
def test_lesson_opens_and_closes_in_the_form_of_the_course(file):
    texts = [c.source for c in cells(file, "markdown")]
    for words in ("**The question.**", "After this lesson you can", "**You need**", "**Time**",
                  "**Hardware**", "Not for diagnosis"):  # fmt: skip
        assert words in texts[0], words
    end = "\n".join(texts[-2:])
    for words in ("What we have seen", "**Limits.**", "Try it yourself", "**References**"):
        assert words in end, words


@each_lesson
def test_lesson_is_made_of_short_cells(file):
    lengths = [len(c.source.splitlines()) for c in cells(file)]
    assert max(lengths) <= 30 and np.median(lengths) <= 15


@each_lesson
def test_committed_outputs_are_complete_clean_and_small(file):
    book = nbformat.read(file, as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert "widgets" not in book.metadata
    assert len({c.id for c in book.cells}) == len(book.cells)
    assert file.stat().st_size < 1_500_000
    text = file.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root/" not in text and str(NOTEBOOKS.parent) not in text
    assert not re.search(r"T_[0-9a-f]{5}_level| at 0x", text)  # other in every run


@each_lesson
def test_cells_that_nbval_compares_hold_an_output(file):
    tagged = [c for c in cells(file) if "nbval-check-output" in c.metadata.get("tags", [])]
    assert all(c.outputs for c in tagged)


@each_lesson
def test_every_explorer_has_a_still_picture_beside_it(file):
    code = [c for c in cells(file) if c.cell_type == "code"]
    stills = [any("image/jpeg" in o.get("data", {}) or "image/png" in o.get("data", {})
                  for o in c.outputs) for c in code]  # fmt: skip
    for k, cell in enumerate(code):
        if ".show()" in cell.source:
            assert stills[k - 1] or any(stills[k + 1 : k + 2]), cell.id


def test_there_are_cells_for_nbval_to_compare():
    tags = [t for f in LESSONS for c in cells(f) for t in c.metadata.get("tags", [])]
    assert tags.count("nbval-check-output") >= 6


# --- shown = shared ------------------------------------------------------------------------------


def test_nt_xent_shown_is_nt_xent_shared():
    nt_xent = shown(3)["nt_xent"]
    body = next(c.source for c in cells(LESSONS[2]) if "def nt_xent" in c.source)
    function = ast.parse(body).body[0]
    assert function.end_lineno - function.lineno + 1 <= 15
    for n, tau in ((2, 0.07), (5, 0.5), (16, 1.0)):
        z1, z2 = torch.randn(n, 8), torch.randn(n, 8)
        torch.testing.assert_close(nt_xent(z1, z2, tau), pretraining.nt_xent(z1, z2, tau))


def same_steps(start, one, other):
    """Whether two networks moved from `start` alike, to 3 % of the way.

    Not to the bit: memory layouts sum in another order, and Adam makes a step of full length out
    of a gradient that is only rounding.
    """
    networks = (start, one, other)
    vectors = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in networks]
    moved = (vectors[1] - vectors[0]).norm()
    return bool((vectors[1] - vectors[2]).norm() < 0.03 * moved)


def test_loop_shown_ends_in_the_weights_of_the_shared_loop():
    torch.manual_seed(100)  # how far rounding drives two runs apart depends on the tiles
    tiles = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8).numpy()
    common = dict(size=32, batch=8, lr=1e-3, temperature=0.2, seed=3)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = models.Encoder("resnet8")
        networks.append((encoder, models.ProjectionHead(encoder.dim)))
    shown(3)["train_steps"](*networks[0], tiles, augmentation.TISSUE, **common)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")  # as the lesson's loop
    pretraining.pretrain(*networks[1], tiles, augmentation.TISSUE, fabric, epochs=1, **common)
    torch.manual_seed(0)
    assert same_steps(models.Encoder("resnet8"), networks[0][0], networks[1][0])


def test_supervised_loop_shown_ends_in_the_weights_of_the_shared_loop():
    torch.manual_seed(100)  # how far rounding drives two runs apart depends on the tiles
    tiles = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8).numpy()
    labels = np.arange(24) % 2
    common = dict(size=32, batch=8, lr=1e-3, seed=3)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(models.Classifier(models.Encoder("resnet8"), 2))
    shown(4)["train_one_epoch"](networks[0], tiles, labels, augmentation.GENTLE, **common)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")  # as the lesson's loop
    fine_tuning.fine_tune(networks[1], tiles, labels, tiles[:0], labels[:0], augmentation.GENTLE,
                          fabric, epochs=1, **common)  # fmt: skip
    torch.manual_seed(0)
    start = models.Classifier(models.Encoder("resnet8"), 2)
    assert same_steps(start, *networks)
    assert not same_steps(start, networks[0], start)


@pytest.mark.parametrize("backbone", ["resnet8", "vit_tiny_patch16_224"])
def test_steps_shown_end_in_the_map_shared(backbone, capsys):
    torch.manual_seed(0)
    model = models.Classifier(models.Encoder(backbone), 2).eval()
    x = torch.rand(1, 3, 32, 32)
    given = {"model": model, "x": x, "LAYER": grad_cam.last_layer(model, x),
             "names": ("HP", "SSA"), "grad_cam": grad_cam, "torch": torch}  # fmt: skip
    cells = {cell.id: cell.source for cell in nbformat.read(lesson_files("06")[0], 4).cells}
    for step in ("007", "009", "011", "013", "017"):
        exec(cells[f"06-{step}"], given)
    assert "equal to the steps above: True" in capsys.readouterr().out


def test_objectives_shown_are_those_shared():
    lesson = shown(7)
    z = [torch.randn(6, 8) for _ in range(4)]
    labels, queue = torch.tensor([0, 1, 0, 2, 1, 0]), torch.randn(9, 8)
    for name, given in {
        "moco_loss": (z[0], z[1], queue, 0.2),
        "simsiam_loss": z,
        "barlow_twins_loss": (z[0], z[1]),
        "sup_con_loss": (z[0], z[1], labels, 0.2),
    }.items():
        torch.testing.assert_close(lesson[name](*given), getattr(claims, name)(*given))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_shown_is_colour_shared(name):
    image = 0.3 + 0.4 * torch.rand(1, 3, 20, 20)  # the middle of the range: nothing clips
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | {name: 0.8}
    shared = augmentation.jitter_colour(image, *(torch.tensor([v]) for v in factors.values()))
    torch.testing.assert_close(shown(2)[name](image, 0.8), shared)


def test_stain_blur_and_warp_shown_are_those_shared():
    lesson, image = shown(2), torch.rand(1, 3, 32, 32)
    shared = augmentation.jitter_stain(image, torch.tensor([[0.7, 1.3, 1.0]]))
    torch.testing.assert_close(lesson["stain"](image, 0.7, 1.3), shared, atol=1e-4, rtol=1e-4)
    shared = augmentation.blur(image, torch.tensor([1.5]))
    torch.testing.assert_close(lesson["blur"](image, 1.5), shared)
    matrix = lesson["crop_matrix"](0.5, 0.1, -0.2) @ lesson["affine_matrix"](30.0, shear=5.0)
    one = torch.ones(1)
    side = math.sqrt(0.5) * one
    shared = augmentation.compose_warp(side, side, 0.1 * one, -0.2 * one, one, one,
                                       torch.deg2rad(30 * one), torch.deg2rad(5 * one).tan(),
                                       0 * one, 0 * one)  # fmt: skip
    torch.testing.assert_close(matrix[None, :2], shared)
    torch.testing.assert_close(lesson["warp"](image, matrix), augmentation.warp(image, shared, 32))


def test_two_views_shown_are_the_two_views_shared():
    tiles = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    pairs = [f(tiles, augmentation.PAPER, 32, torch.Generator().manual_seed(1))
             for f in (shown(2)["two_views"], augmentation.two_views)]  # fmt: skip
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b)


def test_split_shown_keeps_groups_whole():
    groups = np.array([f"g{i % 17}" for i in range(200)])
    rest, test = shown(1)["split_by_group"](groups, 0.3, seed=1)
    assert not set(groups[rest]) & set(groups[test])
    assert (rest ^ test).all() and 0.15 < test.mean() <= 0.3


def test_interval_shown_is_the_interval_shared():
    wilson = shown(5)["wilson"]
    for k, n in ((0, 5), (170, 198), (7, 7)):
        assert wilson(k, n) == pytest.approx(evaluation.wilson_interval(k, n), abs=1e-9)


def test_grad_cam_shown_is_grad_cam_shared():
    lesson = shown(6)
    model = models.Classifier(models.Encoder("resnet8"), 3).eval()
    images = torch.rand(2, 3, 64, 64)
    logits, activations = lesson["forward_with_hook"](model, images.clone(), "layer2")
    gradient = lesson["gradient_of_score"](logits, activations, 2)
    raw = lesson["weighted_sum"](lesson["channel_weights"](gradient), activations).relu()
    shared = grad_cam.grad_cam(model, images, 2, "layer2")
    torch.testing.assert_close(raw.detach(), shared.maps, atol=1e-6, rtol=1e-4)


def test_tests_shown_in_lesson_07_are_those_shared():
    lesson, rng = shown(7), np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.random((2, 90)) < 0.7
        assert lesson["mcnemar"](first, second) == claims.mcnemar_test(first, second)
    p = rng.random(6) / 5
    np.testing.assert_allclose(lesson["holm"](p), claims.holm(p))


@pytest.fixture
def explained():
    """A random network, two tiles, a class each."""
    torch.manual_seed(0)
    model = models.Classifier(models.Encoder("resnet8"), 3).eval()
    torch.nn.init.normal_(model.fc.weight)
    coarse = torch.rand(2, 3, 4, 4)
    return model, F.interpolate(coarse, (64, 64)), torch.tensor([2, 0])


@pytest.mark.parametrize("name", ["hires_cam", "layer_cam"])
@pytest.mark.parametrize("layer", ["layer2", "layer3"])
def test_other_cams_shown_are_those_shared(explained, name, layer):
    found = shown(8)[name](*grad_cam.evidence(*explained, layer)[:2])
    shared = getattr(explanations, name)(*explained, layer)
    assert shared.max() > 0
    torch.testing.assert_close(found, shared)


def test_integrated_gradients_shown_are_those_shared(explained):
    model, images, target = explained
    shared = explanations.integrated_gradients(model, images, target, 100)
    for image, c, expected in zip(images, target, shared, strict=True):
        found = shown(8)["path_gradients"](model, image[None], int(c), 100)
        # Their points on the way differ, and so do the sums, a little.
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_occlusion_shown_is_the_occlusion_shared(explained):
    model, images, target = explained
    shared = explanations.occlusion(model, images, target, 16, 16)
    for image, c, expected in zip(images, target, shared, strict=True):
        found = shown(8)["cover"](model, image[None], int(c), 16)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_deletion_shown_is_the_deletion_shared(explained):
    model, images, target = explained
    heat, shares = np.random.default_rng(0).random((2, 64, 64)), (0, 0.1, 0.3, 0.8)
    shared = explanations.perturbation_curve(
        model, images, target, heat, explanations.mean_fill, shares
    )
    assert np.ptp(shared, axis=1).max() > 0.01
    with torch.no_grad():
        for k in range(2):
            found = shown(8)["deletion"](model, images[k : k + 1], int(target[k]), heat[k], shares)
            np.testing.assert_allclose(found, shared[k], atol=1e-5)


def test_cross_entropy_by_hand_is_torchs():
    (cell,) = [c for c in cells(LESSONS[3]) if "by_hand =" in c.source]
    namespace = {"torch": torch, "F": F}
    exec(cell.source, namespace)
    torch.testing.assert_close(
        namespace["by_hand"], F.cross_entropy(namespace["logits"], namespace["y"])
    )


# --- executed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ci_run(tmp_path_factory):
    """All lessons executed by papermill with the ci preset."""
    out = tmp_path_factory.mktemp("runs") / "ci"
    assert main(["run", "--preset", "ci", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_run_leaves_every_artefact(ci_run):
    for name in ("split.csv", "data.json", "encoder.safetensors", "pretraining.csv",
                 "classifier.safetensors", "fine_tuning.csv", "predictions.csv", "metrics.json",
                 "explanations.npz", "figure_1.png", "figure_2.jpg", "figure_4.png",
                 "figure_5.jpg"):  # fmt: skip
        assert (ci_run / name).stat().st_size > 0, name
    for file in LESSONS:
        assert (ci_run / file.name).is_file() and (ci_run / f"{file.stem}.html").is_file()


@pytest.mark.slow
def test_metrics_have_the_documented_form(ci_run):
    metrics = json.loads((ci_run / "metrics.json").read_text(encoding="utf-8"))
    for name in ("data", "preset", "seed", "n_train", "n_val", "n_test", "grouped", "classes",
                 "confusion", "per_class", "baselines", "seconds", "device", "versions",
                 "weights_sha256"):  # fmt: skip
        assert name in metrics, name
    assert metrics["preset"] == "ci" and metrics["grouped"] is True
    assert np.sum(metrics["confusion"]) == metrics["n_test"]
    assert set(metrics["seconds"]) == set(ids)
    baselines = metrics["baselines"]
    assert {"majority", "colour_only", "random_encoder", "encoder_probe"} <= set(baselines)
    for scores in (metrics, *baselines.values()):
        for metric in ("accuracy", "balanced_accuracy", "auc"):
            value = scores[metric]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1, metric
    assert baselines["majority"]["auc"]["value"] == 0.5


@pytest.mark.slow
def test_predictions_agree_with_metrics(ci_run):
    table = pd.read_csv(ci_run / "predictions.csv")
    metrics = json.loads((ci_run / "metrics.json").read_text(encoding="utf-8"))
    assert (table["label"] == table["predicted"]).mean() == pytest.approx(
        metrics["accuracy"]["value"]
    )
    split = pd.read_csv(ci_run / "split.csv").set_index("id")
    assert (split.loc[table["id"], "part"] == "test").all()


@pytest.mark.slow
def test_explanations_are_raw_maps(ci_run):
    with np.load(ci_run / "explanations.npz") as file:
        maps = file["maps"]
    assert maps.ndim == 3 and maps.dtype == np.float32 and (maps >= 0).all()


@pytest.mark.slow
def test_second_run_skips_what_is_done(ci_run, capsys):
    assert main(["run", "--preset", "ci", "--out", str(ci_run)]) == 0
    assert capsys.readouterr().out.count("skipped") == len(LESSONS)


@pytest.mark.slow
def test_failing_lesson_stops_the_run_with_its_cell_and_message(ci_run, tmp_path, capsys):
    arguments = ["run", "--preset", "ci", "--out", str(tmp_path / "bad"), "--set", "N_TILES=160",
                 "--lessons", "01-02", "--set", "SPLIT=sideways"]  # fmt: skip
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "01_data_exploration failed in cell" in error and "sideways" in error
    assert (tmp_path / "bad" / "01_data_exploration.failed.ipynb").is_file()
    assert not (tmp_path / "bad" / "01_data_exploration.ipynb").exists()
    assert not (tmp_path / "bad" / "02_augmentation_gallery.html").exists()


def write_drawn_tiles(folder, n=160):
    """Write drawn tiles both in MHIST's layout and as a folder a class; return their votes."""
    cohort = make_cohort(n, seed=1)
    drawings = [drawing for slide in range(cohort.slides) for drawing in cohort.one(slide).draw()]
    for i in range(n):
        image = Image.fromarray(np.moveaxis(drawings[i].image, 0, -1))
        for place in (folder / "images", folder / "by_class" / ("HP", "SSA")[cohort.label[i]]):
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"MHIST_{i:03d}.png")
    table = pd.DataFrame({
        "Image Name": [f"MHIST_{i:03d}.png" for i in range(n)],
        "Majority Vote Label": np.array(["HP", "SSA"])[cohort.label],
        "Number of Annotators who Selected SSA (Out of 7)": cohort.votes,
        "Partition": np.where(np.arange(n) % 3 == 0, "test", "train"),
    })  # fmt: skip
    table.to_csv(folder / "annotations.csv", index=False)


@pytest.mark.slow
def test_course_runs_on_the_layout_of_mhist_and_on_a_folder(tmp_path):
    write_drawn_tiles(tmp_path)
    common = ["run", "--preset", "ci", "--data-root"]
    out = tmp_path / "mhist"
    without = ["--set", "VALIDATION=0.0"]  # as in the paper
    assert main([*common, str(tmp_path), "--data", "mhist", "--out", str(out), *without]) == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["split"], metrics["grouped"], metrics["n_test"]) == ("official", False, 54)
    out, root = tmp_path / "folder", tmp_path / "by_class"
    assert (
        main([*common, str(root), "--data", "folder", "--out", str(out), "--lessons", "01-02"]) == 0
    )
    assert (out / "02_augmentation_gallery.html").is_file()


@pytest.mark.slow
@each_lesson
def test_nbval_accepts_the_lesson(file, ci_run, tmp_path):
    """nbval runs a copy with the ci parameters: no cell fails, tagged outputs are as stored.

    At its end every control of every explorer is moved, and none may answer with an error.
    """
    book = nbformat.read(file, as_version=4)
    settings = read_settings("ci", [], {n for f in LESSONS for n in parameters_of(f)})
    settings |= {"RUN": str(ci_run), "START_FROM": "run"}
    for cell in book.cells:
        if "parameters" in cell.metadata.get("tags", []):
            mine = [n for n in parameters_of(file) if n in settings]
            cell.source += "\n" + "\n".join(f"{n} = {settings[n]!r}" for n in mine)
    shown = sum(".show()" in c.source for c in book.cells if c.cell_type == "code")
    if shown:
        moved = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport operate\n"
        last = moved + f"assert operate.all_alive() == {shown}"
        book.cells.append(nbformat.v4.new_code_cell(last, id="moved"))
    nbformat.write(book, tmp_path / file.name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax",
               "--nbval-cell-timeout=300", "-o", "addopts=", file.name]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@each_lesson
def test_lesson_runs_alone_from_what_is_shipped(file, tmp_path):
    if file.name[:2] in ("01", "03"):
        pytest.skip("these lessons start from data, not from weights; the run above covers them")
    import papermill

    settings = read_settings("ci", [], {n for f in LESSONS for n in parameters_of(f)})
    costly = {
        "04": ("FINE_TUNE_EPOCHS", "FINE_TUNE_LR"),
        "08": ("COSTLY_TILES", "PATH_STEPS", "PERTURBED_TILES", "INK_TILES", "INK_STEPS"),
    }
    small = {name: settings[name] for name in costly.get(file.name[:2], ())}  # fmt: skip
    out = tmp_path / file.name
    given = {"RUN": str(tmp_path), "START_FROM": "shipped", **small}
    papermill.execute_notebook(file, out, given, progress_bar=False, cwd=str(NOTEBOOKS))
    assert out.is_file()
