"""The command line, the presets and the files that must agree with each other."""

import copy
import errno
import json
import os
import re
import subprocess
import sys
import tomllib

import nbformat
import numpy as np
import publish
import pytest
import torch
import yaml
from test_data import make_folder

from crc_helpers import augmentation, data, models, pretraining, runs
from crc_helpers.augmentation import VIEWS
from crc_helpers.course import cli as course_cli
from crc_helpers.course import doctor
from crc_helpers.course import page as course_page
from crc_helpers.course import run as course_run
from crc_helpers.course import settings as course_settings
from crc_helpers.course.cli import main
from crc_helpers.course.settings import lesson_files, parameters_of, read_settings
from crc_helpers.runs import ROOT, RunError, locked, make_fabric, read_json, save_json

new = nbformat.v4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))


def last_line_of(capsys):
    """The sentence that a command ends in."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


# --- Settings ------------------------------------------------------------------------------------


def test_lesson_ranges():
    assert [f.name[:2] for f in lesson_files("02-04")] == ["02", "03", "04"]
    assert [f.name[:2] for f in lesson_files("05")] == ["05"]
    assert lesson_files("") == lesson_files("01-")


def test_values_of_set_are_typed():
    known = {"A", "B", "C", "D", "N_TILES", "IMAGE_SIZE"}
    settings = read_settings("class", ["A=1", "B=1e-3", "C=[tissue]", "D=null"], known)
    assert settings == {"A": 1, "B": 1e-3, "C": ["tissue"], "D": None}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("[0, 1]", ["0", "1"]),
        ("[no,yes]", ["no", "yes"]),
        ("('HP', 'SSA')", ["HP", "SSA"]),
        ("all", "all"),
    ],
)
def test_names_of_classes_are_text(given, found):
    settings = read_settings("class", [f"CLASSES={given}"], {"CLASSES"})
    assert settings["CLASSES"] in (found, tuple(found))


def settings_of(*words):
    given = course_cli.parse(["run", *words])
    return course_settings.lesson_settings(given, {f: parameters_of(f) for f in lesson_files()})


def test_one_value_is_a_list_of_one_for_the_command_and_for_papermill():
    settings = settings_of("--set", "VIEWS=tissue", "--set", "FINE_TUNE_LR=1e-3")
    assert (settings["VIEWS"], settings["FINE_TUNE_LR"]) == (["tissue"], [1e-3])
    for file in lesson_files():
        lists = {k: v[:1] for k, v in parameters_of(file).items() if isinstance(v, list)}
        found = {"runs": runs} | {name: one[0] for name, one in lists.items()}
        lines = "\n".join(code_of(file.name[:2])).splitlines()
        exec("\n".join(line for line in lines if " = runs.as_list(" in line), found)
        assert {name: found[name] for name in lists} == lists


def test_a_folder_and_a_cache_are_those_of_where_one_stands_or_of_its_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_of("--set", "DATA_ROOT=tiles")["DATA_ROOT"] == str(tmp_path / "tiles")
    seen = []
    monkeypatch.setattr(course_run, "run", lambda given: seen.append(given) or 0)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for typed, meant in (("mine", "mine"), ("~/crc", "home/crc")):
        monkeypatch.setenv("CRC_HELPERS_CACHE", typed)
        assert main(["run", "--out=~/x", "--data-root=~/f"]) == 0
        assert os.environ["CRC_HELPERS_CACHE"] == str(tmp_path / meant)
    home = str(tmp_path / "home")
    assert (seen[0].out, seen[0].data_root) == (f"{home}/x", f"{home}/f")
    settings = settings_of("--out", seen[0].out, "--set", "DATA_ROOT=~/g")
    assert (settings["RUN"], settings["DATA_ROOT"]) == (f"{home}/x", f"{home}/g")


def test_environment_names_the_packages_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(d["pip"] for d in conda if isinstance(d, dict))
    there = {d for d in [*conda, *pip] if isinstance(d, str)} - {"pip", "-e ."}
    wanted = {re.sub("^torch>", "pytorch>", d) for d in project["dependencies"]}
    assert there == wanted | {"python" + project["requires-python"]}


def test_the_lock_names_no_index_but_pypi():
    hosts = re.findall(r'"https?://([^/"]+)', (ROOT / "uv.lock").read_text(encoding="utf-8"))
    assert set(hosts) == {"pypi.org", "files.pythonhosted.org"}


# --- What goes wrong -----------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device", "a\x1b.csv")
GONE = OSError(errno.ENOENT, "No such file or directory", "a.csv")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FULL, "a\\x1b.csv': make room, or"),
        (GONE, "'a.csv'; the same command"),
        (MemoryError("Unable to allocate 7 TiB"), "not enough memory (Unable to allocate 7 TiB)"),
    ],
)
def test_what_the_system_refuses_is_said_with_its_own_advice(error, words, capsys, monkeypatch):
    def fail(_arguments):
        raise error

    monkeypatch.setattr(doctor, "doctor", fail)
    assert main(["doctor"]) == 2
    said = last_line_of(capsys)
    assert words in said and said.isprintable() and ("make room" in said) == (error is FULL)


def test_doctor_ends_in_ok_or_says_what_to_do(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.strip().endswith("OK") and "torch" in out and "kernel" in out
    old = {**doctor.versions(), "torch": "2.4.0"}
    monkeypatch.setattr(doctor, "versions", lambda: old)
    assert main(["doctor"]) == 1
    assert "FAIL\n- torch 2.11 or newer is needed: pip install" in capsys.readouterr().out


def test_without_its_notebooks_the_doctor_and_the_run_say_what_to_do(tmp_path, monkeypatch, capsys):
    """As after `pip install .`, which takes the package alone."""
    monkeypatch.setattr(course_settings, "NOTEBOOKS", tmp_path)
    assert main(["doctor"]) == 1
    assert "holds no lesson: clone the repository, and" in capsys.readouterr().out
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert "holds no lesson: clone the repository, and" in last_line_of(capsys)


INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from crc_helpers.course.cli import main
sys.exit(main(["doctor"]))
"""


def test_ctrl_c_while_it_imports_ends_in_a_sentence():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "stopped; the same command goes on from here"


def test_a_check_is_of_the_cohort_that_is_asked_for(capsys, tmp_path):
    """The lessons draw other tiles than a check does by default."""
    tiles, sheet = data.load_tiles("synthetic", n=6, seed=3), tmp_path / "sheet.png"
    command = ["data", "check", "synthetic", "--n", "6", "--seed", "3", "--out", str(sheet)]
    assert main(command) == 0 and sheet.is_file()
    assert f"synthetic: {len(tiles)} tiles" in capsys.readouterr().out
    assert len(list(tiles.images.folder.parent.glob("synthetic-*/"))) == 1  # drawn once


# --- Pages and publishing ------------------------------------------------------------------------


def test_pages_are_read_offline(tmp_path):
    """Widgets load their code from the net and are dead without a kernel."""
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Bar()"}
    outputs = [new.new_output("display_data", view), new.new_output("stream", text="0.91 ± 0.02")]
    outputs.append(new.new_output("display_data", {"image/png": "iVBORw0KGgo="}))
    text = {"mystnb": {"image": {"alt": "Two <tiles>"}}}
    cells = [new.new_code_cell("show()", outputs=outputs, metadata=text)]
    cells.append(new.new_markdown_cell("$x^2$"))
    state = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    book = new.new_notebook(cells=cells, metadata={"widgets": state})
    nbformat.write(book, tmp_path / "a.ipynb")
    html = course_page.page(tmp_path / "a.ipynb")
    assert "0.91 ± 0.02" in html and "<title>a</title>" in html
    assert "widget-view" not in html and "widget-state" not in html and "Bar()" not in html
    remote = re.findall(r"""(?:src|href)=["'](https?://[^"']*)|import\(["'](https?:[^"']*)""", html)
    assert all("mathjax" in address.lower() for address, _ in remote) and len(remote) == 1
    assert re.search('<img[^>]* alt="Two &lt;tiles&gt;"', html)
    assert 'src=""' not in html and "A run of its own" not in html
    assert nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[0].outputs  # left as it was


def test_a_page_of_other_settings_says_so_and_links_to_what_is_there(tmp_path):
    text = "[next](02_augmentation_gallery.ipynb) [speed](../benchmarks/SPEED.md)"
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell(text)]), tmp_path / "a.ipynb")
    html = course_page.page(tmp_path / "a.ipynb", {"SEED": 7, "DATA_ROOT": "`<script>"})
    assert html.index("A run of its own") < html.index(">next<")
    assert "SEED = 7" in html and "'&lt;script&gt;" in html
    assert 'href="02_augmentation_gallery.html"' in html
    there = re.search(r'href="([^"]*/benchmarks/SPEED.md)"', html)[1]
    assert (tmp_path / there).resolve() == ROOT / "benchmarks" / "SPEED.md"


def test_clean_keeps_the_parameters_cell_and_drops_what_changes():
    tagged = {"tags": ["parameters"]}
    source = new.new_notebook(cells=[new.new_code_cell("A = 1", metadata=tagged)])
    table = {"text/html": '<th id="T_0a1b2_row0">', "text/plain": "<Styler at 0x7f01>"}
    outputs = [
        new.new_output("stream", name="stdout", text="/somewhere/run/file.csv\n"),
        new.new_output("stream", name="stderr", text="50%"),
        new.new_output("display_data", table),
    ]
    cells = [
        new.new_code_cell("A = 1", metadata=tagged | {"papermill": {"x": 1}}),
        new.new_code_cell("A = 2", metadata={"tags": ["injected-parameters"]}),
        new.new_code_cell("print(A)", execution_count=3, outputs=outputs),
    ]
    executed = new.new_notebook(cells=cells, metadata={"widgets": {"state": 1}})
    cleaned = publish.clean(executed, source, "/somewhere/run")
    assert [c.source for c in cleaned.cells] == ["A = 1", "print(A)"]
    assert [c.execution_count for c in cleaned.cells] == [1, 2]
    said, table = cleaned.cells[1].outputs
    assert said.text == "file.csv\n"
    assert table.data == {"text/html": '<th id="T_2_row0">', "text/plain": "<Styler>"}
    assert "widgets" not in cleaned.metadata and "papermill" not in cleaned.cells[0].metadata


# --- Data of a run -------------------------------------------------------------------------------


def test_recall_gives_what_remember_was_given_and_refuses_data_that_changed(tmp_path):
    root = make_folder(tmp_path / "tiles", count=20)
    tiles = data.load_tiles("folder", root)
    parts = data.split(tiles, "paper", validation=0.2, seed=5)
    settings = dict(root=root, classes=None, n=0, seed=5, scheme="paper", test=0.3, validation=0.2)
    data.remember(tmp_path, tiles, parts, **settings)
    again, same = data.recall(tmp_path, "run")
    assert (again.ids == tiles.ids).all()
    for part in ("train", "val", "test"):
        assert (getattr(same, part) == getattr(parts, part)).all()
    next(root.glob("*/*.png")).unlink()
    with pytest.raises(RunError, match=r"split\.csv does not fit the data any more"):
        data.recall(tmp_path, "run")


def test_the_shipped_split_is_told_from_others(tmp_path):
    shipped = read_json(runs.SHIPPED / "data.json")
    save_json(tmp_path / "data.json", shipped | {"digest": "of another machine"})
    assert data.is_shipped(tmp_path, "shipped") and data.is_shipped(tmp_path, "run")
    save_json(tmp_path / "data.json", shipped | {"seed": shipped["seed"] + 1})
    assert not data.is_shipped(tmp_path, "run") and data.is_shipped(tmp_path, "shipped")


# --- Runs ----------------------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch):
    """The numbers of the lessons that the command executes, which here costs nothing."""
    ran = []

    def execute(file, out, parameters, changed):
        ran.append(file.name[:2])
        book = nbformat.read(file, as_version=4)
        said = {"parameters": parameters, "exception": None, "end_time": "now", "duration": 60.0}
        book.metadata["papermill"] = said
        nbformat.write(book, out / file.name)
        return 0

    monkeypatch.setattr(course_run, "_execute", execute)
    return ran


def test_a_lesson_runs_again_where_the_data_has_changed(tmp_path, executed):
    root, out = make_folder(tmp_path / "tiles", count=20), tmp_path / "run"
    command = ["run", "--lessons", "01", "--data", "folder"]
    command += ["--data-root", str(root), "--out", str(out)]
    assert main(command) == main(command) == 0 and executed == ["01"]
    save_json(out / "data.json", {"digest": data.load_tiles("folder", root).digest})
    assert main(command) == 0 and executed == ["01"]
    next(root.glob("*/*.png")).unlink()
    assert main(command) == 0 and executed == ["01", "01"]


def test_a_lesson_is_skipped_while_it_and_all_before_it_stand_as_they_would_be(
    tmp_path, executed, capsys
):
    out = tmp_path / "run"

    def run(*more):
        executed.clear()
        assert main(["run", "--preset", "ci", "--out", str(out), "--lessons", *more]) == 0
        return executed

    assert run("02-04") == ["02", "03", "04"]
    assert run("02-04") == [] and "skipped (delete" in capsys.readouterr().out
    assert run("02-05") == ["05"]
    changed = ("--set", "HEAD=mlp")
    assert run("02-04", *changed) == ["03", "04"]
    assert run("02-04", *changed) == []
    file = next(out.glob("03_*.ipynb"))
    for damage in ({"exception": True}, {"end_time": None}):
        book = nbformat.read(file, as_version=4)
        book.metadata["papermill"] |= damage
        nbformat.write(book, file)
        assert run("02-04", *changed) == ["03", "04"]
    book = nbformat.read(file, as_version=4)
    next(c for c in book.cells if c.cell_type == "code").source = "other = 1"
    nbformat.write(book, file)
    assert run("03", *changed) == ["03"]
    out = out.rename(tmp_path / "moved")
    assert run("02-04", *changed) == []
    save_json(out / "metrics.json", {"value": 1})
    run("02")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["value"] == 1 and metrics["preset"] == "ci" and len(metrics["seconds"]) == 4


def test_failing_lesson_stops_the_run_with_its_cell_and_message(tmp_path, capsys, monkeypatch):
    lesson, out = tmp_path / "01_bad.ipynb", tmp_path / "out"
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "3"}}
    cells = [new.new_code_cell("raise ValueError('side\\x1bways')")]
    nbformat.write(new.new_notebook(cells=cells, metadata=kernel), lesson)
    out.mkdir()
    assert course_run._execute(lesson, out, {}, {}) == 1
    assert "01_bad failed in cell" in (said := last_line_of(capsys)) and "side\\x1bways" in said
    assert [path.name for path in out.iterdir()] == ["01_bad.failed.ipynb"]
    monkeypatch.setattr(course_run, "_execute", lambda file, *_: ran.append(file.name[:2]) or 1)
    ran = []
    assert main(["run", "--preset", "ci", "--out", str(out), "--lessons", "01-02"]) == 1
    assert ran == ["01"]


def test_a_lesson_before_those_asked_for_must_have_the_same_parameters(tmp_path, executed, capsys):
    command = ["run", "--preset", "ci", "--out", str(tmp_path), "--lessons"]
    assert main([*command, "02-03"]) == 0
    assert main([*command, "04", "--set", "IMAGE_SIZE=32"]) == 2
    assert "IMAGE_SIZE=64, and now it is 32: run that lesson too" in last_line_of(capsys)


def test_a_size_that_a_backbone_does_not_take_is_said_before_anything_trains(
    tmp_path, capsys, executed
):
    command = ["run", "--out", str(tmp_path), "--set", "BACKBONE=levit_128s"]
    assert main(command) == 2 and not executed
    assert "levit_128s cannot take images of 96 pixels: change" in last_line_of(capsys)
    assert main([*command, "--set", "IMAGE_SIZE=224", "--lessons", "03"]) == 0


def test_missing_weights_of_others_are_said_before_anything_trains_with_their_whole_path(
    tmp_path, capsys, executed, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # lessons run in another folder
    assert main(["run", "--out", "x", "--set", "BACKBONE=resnet18@w.pth"]) == 2 and not executed
    assert f"resnet18 has no file '{tmp_path / 'w.pth'}' of weights" in last_line_of(capsys)


def code_of(lesson):
    cells = nbformat.read(lesson_files(lesson)[0], as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def test_lesson_04_shows_its_loop_on_few_tiles(capsys):
    (cell,) = [source for source in code_of("04") if "def train_one_epoch" in source]
    given = {m.__name__.split(".")[-1]: m for m in (models, pretraining, augmentation, torch, copy)}
    given |= {"np": np, "F": torch.nn.functional, "CLASSES": 2, "SIZE": 16, "SEED": 0}
    given |= {"FINE_TUNE_BATCH": 4, "FINE_TUNE_VIEWS": "gentle", "labels": np.arange(12) % 2}
    given |= {"encoder": models.Encoder("resnet8"), "images": np.zeros((12, 3, 16, 16), np.uint8)}
    exec(cell, given)
    assert "first and last of 3 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_paper_preset_starts_steps_and_checkpoints(tmp_path):
    """ResNet-50 at 224 px with the preset's own settings; two tiles a step, to stay on a CPU."""
    known = {name for file in lesson_files() for name in parameters_of(file)}
    p = read_settings("paper", [], known)
    tiles = torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8).numpy()
    model, fabric = models.contrastive_model(p["BACKBONE"], p["HEAD"], 0), make_fabric(0)
    training = pretraining.Training(p["IMAGE_SIZE"], 1, 2, p["PRETRAIN_LR"], p["OPTIMIZER"])
    loss = pretraining.Contrast(p["TEMPERATURE"], fabric)
    given = model, tiles, VIEWS[p["VIEWS"][0]], fabric, training, loss
    log = pretraining.pretrain(*given, checkpoint=tmp_path / "pretraining.ckpt")
    assert np.isfinite(log["loss"]).all() and list(tmp_path.glob("pretraining_*.ckpt"))


def test_pretrain_waits_for_no_lesson_and_names_the_devices_there_are(
    tmp_path, monkeypatch, capsys
):
    """The lessons are at work in the folder: its data must not be replaced under them."""
    command = ["pretrain", "--preset", "ci", "--out", str(tmp_path), "--set", "N_TILES=160"]
    with locked(tmp_path / "lessons"):
        assert main(command) == 2
    assert "another process is writing" in last_line_of(capsys)
    assert not (tmp_path / "data.json").exists()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main([*command, "--devices", "4"]) == 2
    assert "--devices 4: there are 2 on this machine" in last_line_of(capsys)
