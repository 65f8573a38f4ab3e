"""The lessons: their form; each executed by papermill in one run, and by nbval opened alone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from crc_helpers.course.cli import main
from crc_helpers.course.settings import (
    NOTEBOOKS,
    PRESETS,
    lesson_files,
    parameters_of,
    read_settings,
)

LESSONS = lesson_files()
KNOWN = {name for file in LESSONS for name in parameters_of(file)}
each_lesson = pytest.mark.parametrize("file", LESSONS, ids=lambda f: f.stem)
# Those with explorers are opened and operated in a browser, where there is one, and here at night.
IN_BROWSER = shutil.which("chromium") or os.environ.get("CRC_BROWSER")
JUDGED = [
    pytest.param(f, marks=[pytest.mark.nightly] if IN_BROWSER and f.stem < "07" else [], id=f.stem)
    for f in LESSONS
]


def code_cells(file: Path):
    return [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]


def tagged(cells, tag):
    return [c for c in cells if tag in c.metadata.get("tags", [])]


# --- form ----------------------------------------------------------------------------------------


@each_lesson
def test_lesson_has_short_cells_and_one_of_parameters(file):
    cells = code_cells(file)
    assert "not for diagnosis" in nbformat.read(file, as_version=4).cells[0].source.lower()
    (cell,) = tagged(cells, "parameters")
    assert 1 <= len(parameters_of(file)) <= 12  # which fails on anything but literals
    assert all("#" in line for line in cell.source.splitlines())
    lengths = [len(c.source.splitlines()) for c in cells]
    assert max(lengths) <= 30 and np.median(lengths) <= 15


def test_a_parameter_has_one_default_and_a_preset_only_parameters():
    seen = {}
    for file in LESSONS:
        for name, value in parameters_of(file).items():
            assert seen.setdefault(name, value) == value, (file.name, name)
    for preset in PRESETS.glob("*.yaml"):
        read_settings(preset.stem, [], KNOWN)  # raises for an unknown one


def test_paper_preset_is_table_1():
    paper = read_settings("paper", [], KNOWN)
    table = {"BACKBONE": "resnet50", "IMAGE_SIZE": 224, "HEAD": "linear", "TEMPERATURE": 0.7}
    table |= {"PRETRAIN_LR": 3e-4, "PRETRAIN_EPOCHS": 200, "PRETRAIN_BATCH": 128}
    table |= {"FINE_TUNE_LR": [1e-4], "FINE_TUNE_EPOCHS": 100, "FINE_TUNE_BATCH": 64}
    table |= {"OPTIMIZER": "adam", "SPLIT": "paper"}
    assert {k: paper[k] for k in table} == table


@each_lesson
def test_committed_outputs_are_complete_clean_and_small(file):
    book = nbformat.read(file, as_version=4)
    code = code_cells(file)
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert all(c.outputs for c in tagged(code, "nbval-check-output"))
    assert "widgets" not in book.metadata and len({c.id for c in book.cells}) == len(book.cells)
    assert file.stat().st_size < 1_500_000
    text = file.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root/" not in text and str(NOTEBOOKS.parent) not in text
    assert not re.search(r"T_[0-9a-f]{5}_level| at 0x", text)  # other in every run


@each_lesson
def test_every_picture_has_an_alt_text(file):
    """Also for tables of several pictures: one text a cell, in its metadata."""
    for cell in code_cells(file):
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        text = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        assert text or not {"image/jpeg", "image/png"} & kinds, cell.id


@each_lesson
def test_every_explorer_has_a_still_picture_beside_it(file):
    code = code_cells(file)
    shown = [{kind for o in c.outputs for kind in o.get("data", {})} for c in code]
    stills = [bool({"image/jpeg", "image/png"} & kinds) for kinds in shown]
    for k, cell in enumerate(code):
        if ".show()" in cell.source:
            assert stills[k - 1] or any(stills[k + 1 : k + 2]), cell.id


@pytest.mark.parametrize("file", LESSONS[2:4], ids=lambda f: f.stem)
def test_no_lesson_before_the_evaluation_looks_at_the_test_part(file):
    """A choice made by test tiles would make lesson 05's figures too good."""
    code = "\n".join(c.source for c in code_cells(file))
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Attribute)]
    assert any(n.attr == "train" for n in nodes) and not any(n.attr == "test" for n in nodes)


# --- executed: each lesson by papermill in one run, and by nbval opened alone ---------------------


@pytest.mark.slow
def test_run_leaves_every_artefact_and_asks_nobody(ci_run):
    assert not (ci_run.parent / "asked").exists(), (ci_run.parent / "asked").read_text()
    assert not list((ci_run.parent / "elsewhere").iterdir())
    made = "split.csv data.json encoder.safetensors pretraining.csv classifier.safetensors"
    made += " fine_tuning.csv predictions.csv metrics.json explanations.npz"
    for name in [*made.split(), "figure_1.png", "figure_2.jpg", "figure_4.png", "figure_5.jpg"]:
        assert (ci_run / name).stat().st_size > 0, name
    for file in LESSONS:
        assert (ci_run / file.name).is_file() and (ci_run / f"{file.stem}.html").is_file()
    with np.load(ci_run / "explanations.npz") as file:
        maps = file["maps"]
    assert maps.ndim == 3 and maps.dtype == np.float32 and (maps >= 0).all()


@pytest.mark.slow
def test_tagged_outputs_are_as_stored(ci_run):
    for file in LESSONS:
        stored, found = (
            tagged(code_cells(f), "nbval-check-output") for f in (file, ci_run / file.name)
        )
        for one, other in zip(stored, found, strict=True):
            assert [said(o) for o in one.outputs] == [said(o) for o in other.outputs], one.id


def said(output):
    return output.get("text") or output["data"]["text/plain"]


@pytest.mark.slow
def test_metrics_have_the_documented_form_and_agree_with_predictions(ci_run):
    metrics = json.loads((ci_run / "metrics.json").read_text(encoding="utf-8"))
    names = "data preset seed n_train n_val n_test grouped classes confusion per_class baselines"
    for name in [*names.split(), "seconds", "device", "versions", "weights_sha256"]:
        assert name in metrics, name
    assert metrics["preset"] == "ci" and metrics["grouped"] is True
    assert np.sum(metrics["confusion"]) == metrics["n_test"]
    assert set(metrics["seconds"]) == {file.stem for file in LESSONS}
    baselines = metrics["baselines"]
    assert {"majority", "colour_only", "random_encoder", "encoder_probe"} <= set(baselines)
    for scores in (metrics, *baselines.values()):
        for metric in ("accuracy", "balanced_accuracy", "auc"):
            value = scores[metric]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1, metric
    assert baselines["majority"]["auc"]["value"] == 0.5
    table = pd.read_csv(ci_run / "predictions.csv")
    correct = (table["label"] == table["predicted"]).mean()
    assert correct == pytest.approx(metrics["accuracy"]["value"])
    split = pd.read_csv(ci_run / "split.csv").set_index("id")
    assert (split.loc[table["id"], "part"] == "test").all()


@pytest.mark.slow
def test_second_run_skips_what_is_done(ci_run, capsys):
    assert main(["run", "--preset", "ci", "--out", str(ci_run)]) == 0
    assert capsys.readouterr().out.count("skipped") == len(LESSONS)


@pytest.mark.nightly
def test_lessons_run_on_the_layout_of_mhist_and_on_a_folder(tmp_path):
    root = tmp_path / "tiles"
    assert main(["data", "prepare", "synthetic", "--n", "160", "--out", str(root)]) == 0
    table = pd.read_csv(root / "annotations.csv").iloc[:, :4]  # MHIST's own columns: no slides
    table.to_csv(root / "annotations.csv", index=False)
    for name, label in zip(table["Image Name"], table["Majority Vote Label"], strict=True):
        (tmp_path / "by_class" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "images" / name, tmp_path / "by_class" / label)
    run = ["run", "--preset", "ci", "--set", "VALIDATION=0.0", "--data"]  # as in the paper
    mhist = [*run, "mhist", "--data-root", str(root), "--out", str(tmp_path / "mhist")]
    assert main([*mhist, "--lessons", "01"]) == main([*mhist, "--lessons", "03-05"]) == 0
    metrics = json.loads((tmp_path / "mhist" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["split"], metrics["grouped"]) == ("official", False)
    assert metrics["n_test"] == (table["Partition"] == "test").sum()
    folder = [*run, "folder", "--data-root", str(tmp_path / "by_class"), "--lessons", "01"]
    assert main([*folder, "--out", str(tmp_path / "folder")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("file", JUDGED)
def test_nbval_accepts_a_lesson_opened_alone(file, tmp_path):
    """nbval runs a copy with the ci parameters, from what is shipped: no cell fails, and tagged
    outputs are as stored.

    At its end every control of every explorer is moved, and none may answer with an error.
    """
    book = nbformat.read(file, as_version=4)
    settings = read_settings("ci", [], KNOWN) | {"RUN": str(tmp_path), "START_FROM": "shipped"}
    (cell,) = tagged(book.cells, "parameters")
    given = {name: settings[name] for name in parameters_of(file) if name in settings}
    cell.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in given.items())
    explorers = sum(".show()" in c.source for c in book.cells if c.cell_type == "code")
    if explorers:
        moved = f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\nimport operate\n"
        last = moved + f"assert operate.all_alive() == {explorers}"
        book.cells.append(nbformat.v4.new_code_cell(last, id="moved"))
    nbformat.write(book, tmp_path / file.name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["--nbval-lax", "--nbval-cell-timeout=300", file.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
