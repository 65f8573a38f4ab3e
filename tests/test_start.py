"""`crc-course start`: a student's copy, and what an update may overwrite."""

import nbformat
import pytest
from nbclient import NotebookClient

from crc_helpers.course import start
from crc_helpers.course.cli import main


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A small checkout of three files, and the folder of a student."""
    for name in ("notebooks/01.ipynb", "exercises/01.ipynb", "exercises/02.ipynb"):
        (tmp_path / "course" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "course" / name).write_text(f"old {name}")
    monkeypatch.setattr(start, "ROOT", tmp_path / "course")
    return tmp_path / "course", tmp_path / "mine"


def test_update_brings_what_is_new_and_keeps_what_was_edited(course, capsys):
    root, mine = course
    assert main(["start", str(mine)]) == 0
    (mine / "exercises/01.ipynb").write_text("my answer")
    (mine / "exercises/02.ipynb").write_text("my other answer")
    for name in ("notebooks/01.ipynb", "notebooks/02.ipynb", "exercises/01.ipynb"):
        (root / name).write_text(f"new {name}")
    capsys.readouterr()
    for _ in range(2):  # the second time nothing is left to do
        assert main(["start", str(mine), "--update"]) == 0
        said = capsys.readouterr().out
        assert "kept exercises/01.ipynb" in said and "exercises/02.ipynb" not in said
        found = {f.relative_to(mine).as_posix(): f.read_text() for f in mine.glob("*/*.ipynb")}
        assert found == {
            "notebooks/01.ipynb": "new notebooks/01.ipynb",
            "notebooks/02.ipynb": "new notebooks/02.ipynb",
            "exercises/01.ipynb": "my answer",
            "exercises/02.ipynb": "my other answer",
        }
    assert "0 files copied" in said


def test_a_killed_start_is_completed_by_an_update(course, monkeypatch):
    _, mine = course
    copy = start.shutil.copy

    def stopped(source, target):
        if source.name == "02.ipynb":
            raise KeyboardInterrupt
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(start.shutil, "copy", stopped)
        assert main(["start", str(mine)]) == 130
    assert main(["start", str(mine), "--update"]) == 0
    assert (mine / "exercises/02.ipynb").read_text() == "old exercises/02.ipynb"


def test_no_file_of_the_student_is_overwritten(course, capsys):
    root, mine = course
    (mine / "exercises").mkdir(parents=True)
    (mine / "exercises/01.ipynb").write_text("mine")
    assert main(["start", str(mine)]) == 2 and main(["start", str(mine), "--update"]) == 2
    assert main(["start", str(root)]) == 2  # the checkout itself
    assert "exists already" in capsys.readouterr().err
    assert [f.name for f in mine.rglob("*")] == ["exercises", "01.ipynb"]
    assert main(["start", str(mine / "new")]) == 0 and main(["start", str(mine / "new")]) == 2
    assert "--update" in capsys.readouterr().err


@pytest.mark.slow
def test_a_copied_exercise_runs_from_the_students_folder(tmp_path):
    assert main(["start", str(tmp_path / "mine")]) == 0
    folder = tmp_path / "mine" / "exercises" / "solutions"
    book = nbformat.read(folder / "03_contrastive_pretraining.ipynb", as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [o.text for c in book.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert sum("passed." in text for text in shown) == 6
    assert (tmp_path / "mine" / "notebooks" / "03_contrastive_pretraining.ipynb").is_file()
