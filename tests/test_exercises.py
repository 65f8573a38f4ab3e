"""The exercises: solutions pass every check, unfilled and wrong ones fail with a reason."""

import contextlib

import matplotlib.pyplot as plt
import nbformat
import pytest
import wrong_solutions
import wrong_solutions_later

import exercises

WRONG = wrong_solutions.WRONG | wrong_solutions_later.WRONG
each = pytest.mark.parametrize("file", exercises.source_files(), ids=lambda f: f.stem)


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
