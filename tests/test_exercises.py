"""The exercises: solutions pass every check, unfilled and wrong ones fail with a reason."""

import contextlib
import copy
import os
import re
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import wrong_solutions
import wrong_solutions_last
import wrong_solutions_later
from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

import exercises
from crc_helpers.runs import ROOT

WRONG = wrong_solutions.WRONG | wrong_solutions_later.WRONG | wrong_solutions_last.WRONG
each = pytest.mark.parametrize("file", exercises.source_files(), ids=lambda f: f.stem)


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """Cells draw here, and tests of explorers count open figures."""
    yield
    plt.close("all")


def cells_of(book, **marks):
    """The code cells, those with these marks of nbgrader's by their grade_id."""
    code = [c for c in book.cells if c.cell_type == "code"]
    if not marks:
        return code
    known = [(c.metadata.get("nbgrader", {}), c) for c in code]
    return {m["grade_id"]: c for m, c in known if m and all(m[k] == v for k, v in marks.items())}


def run(cell, names):
    """Execute a code cell as a kernel does, with these global names."""
    exec(compile(cell.source, cell.id, "exec"), names)


@each
def test_committed_versions_are_what_the_tool_makes(file):
    source = nbformat.read(file, as_version=4)
    for folder, book in exercises.versions(source).items():
        committed = nbformat.read(folder / file.name, as_version=4)
        assert committed == book, f"{folder / file.name} is not of its source: run make exercises"
        text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        assert links and not [link for link in links if not (folder / link).is_file()]


@each
def test_every_task_has_a_check_and_three_wrong_solutions(file):
    source = nbformat.read(file, as_version=4)
    tasks, checks = cells_of(source, solution=True), cells_of(source, grade=True)
    assert 4 <= len(tasks) <= 7 and list(checks) == [f"check_{name}" for name in tasks]
    assert all(c.metadata.nbgrader.points > 0 for c in checks.values())
    assert WRONG[file.stem].keys() == tasks.keys()
    assert all(len(wrong) >= 3 for wrong in WRONG[file.stem].values())


@pytest.mark.slow
@each
def test_checks_pass_the_solution_and_no_other(file, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    source = nbformat.read(file, as_version=4)
    versions = exercises.versions(source)
    solved = {"__name__": "__main__"}
    for cell in cells_of(versions[exercises.EXERCISES / "solutions"]):
        run(cell, solved)
    checks = cells_of(source, grade=True)
    for task, wrong in WRONG[file.stem].items():
        for code, word in wrong:
            names = dict(solved)
            exec(code, names)
            with pytest.raises(AssertionError) as error:
                run(checks[f"check_{task}"], names)
            assert word in str(error.value), (task, code, str(error.value))
    empty = {"__name__": "__main__"}
    failed = set()
    for cell in cells_of(versions[exercises.EXERCISES]):
        with contextlib.suppress(Exception):
            failed.add(cell.id)
            run(cell, empty)
            failed.discard(cell.id)
    assert {cell.id for cell in checks.values()} <= failed


@pytest.mark.slow
def test_nbgrader_marks_a_right_and_a_wrong_submission(tmp_path, monkeypatch):
    """A course of a teacher: assignment, two submissions, marks, feedback."""
    file = exercises.source_files()[0]
    (tmp_path / "source" / "01").mkdir(parents=True)
    shutil.copy(file, tmp_path / "source" / "01")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # alembic
    patient = Config(Execute={"timeout": 300, "iopub_timeout": 120})  # as exercises/README.md says
    grader = NbGraderAPI(CourseDirectory(root=str(tmp_path)), config=patient)
    assert grader.generate_assignment("01")["success"]
    released = nbformat.read(tmp_path / "release" / "01" / file.name, as_version=4)
    committed = nbformat.read(exercises.EXERCISES / file.name, as_version=4)
    assert [c.source for c in released.cells] == [c.source for c in committed.cells]

    solutions = {c.id: c.source for c in exercises.solution(nbformat.read(file, 4)).cells}
    code, word = WRONG[file.stem]["against_the_others"][0]
    filled = {"ann": solutions, "bob": {k: solutions[k] for k in ("pair-agreement",)}}
    filled["bob"]["against-the-others"] = code
    for student, answers in filled.items():
        for cell in released.cells:
            cell.source = answers.get(cell.id, cell.source)
        folder = tmp_path / "submitted" / student / "01"
        folder.mkdir(parents=True)
        nbformat.write(released, folder / file.name)
        released = copy.deepcopy(committed)
    assert all(grader.autograde("01", student)["success"] for student in filled)
    assert all(grader.generate_feedback("01", student)["success"] for student in filled)

    checks = cells_of(committed, grade=True)
    with grader.gradebook as book:
        marks = {s.student.id: s.score for s in book.assignment_submissions("01")}
    assert marks["ann"] == sum(c.metadata.nbgrader.points for c in checks.values())
    assert marks["bob"] == checks["check_pair_agreement"].metadata.nbgrader.points
    feedback = tmp_path / "feedback" / "bob" / "01" / f"{file.stem}.html"
    assert word in feedback.read_text(encoding="utf-8")
