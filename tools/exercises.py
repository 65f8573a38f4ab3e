"""Write the students' exercises and the solutions from `exercises/source`.

Run as `python tools/exercises.py`, or `make exercises`.
"""

import copy
from pathlib import Path
from typing import Any

import nbformat
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)
from publish import save_notebook

from crc_helpers.runs import ROOT

EXERCISES = ROOT / "exercises"
MARKS = ("### BEGIN SOLUTION", "### END SOLUTION")


def source_files() -> list[Path]:
    """Return the source notebooks, in order."""
    return sorted((EXERCISES / "source").glob("*.ipynb"))


def versions(source: Any) -> dict[Path, Any]:
    """Return the student's notebook and the solution of a source, by their folder."""
    return {EXERCISES: student_version(source), EXERCISES / "solutions": solution(source)}


def student_version(source: Any) -> Any:
    """Return a source without its solutions, its checks locked: what nbgrader would release."""
    book = copy.deepcopy(source)
    for step in (LockCells, ClearSolutions, ClearOutput, CheckCellMetadata, ComputeChecksums):
        book, _ = step().preprocess(book, {})
    return book


def solution(source: Any) -> Any:
    """Return a source as a plain notebook: without the marks around solutions, and not run."""
    book, _ = ClearOutput().preprocess(copy.deepcopy(source), {})
    for cell in book.cells:
        cell.metadata.pop("nbgrader", None)
        lines = cell.source.splitlines()
        text = "\n".join(line for line in lines if line.strip() not in MARKS)
        # The solution lies a folder deeper than the student's notebook.
        cell.source = text.replace("](../", "](../../").replace("](solutions/", "](")
    return book


def main() -> None:
    """Write both versions of every source."""
    for file in source_files():
        for folder, book in versions(nbformat.read(file, as_version=4)).items():
            save_notebook(folder / file.name, book)


if __name__ == "__main__":
    main()
