"""One rule of imports: who may import whom."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from crc_helpers.runs import ROOT

PACKAGE = ROOT / "crc_helpers"
LESSONS = (  # a room imports those before it
    *("data", "augmentation", "pretraining", "fine_tuning", "evaluation"),
    *("layers", "grad_cam", "claims", "explanations", "shortcuts", "slides"),
)
SHARED = {"models", "runs", "figures", "estimates", "style"}
SCRIPTS = {"studies", "tools"}  # folders of scripts beside the package


def allowed(room: str) -> set[str]:
    """Return what a room of the package may import of ours, itself included."""
    if room in LESSONS:
        return {*LESSONS[: LESSONS.index(room) + 1], *SHARED, "sources"}
    if room in SHARED:
        return {"runs"} if room == "runs" else SHARED
    rooms = {*LESSONS, *SHARED, "sources", "tissue"}
    return {
        "": set(),  # the package itself
        "tissue": {"tissue"},
        "sources": {"sources", "tissue", "runs"},
        "explorers": {"explorers", *rooms},
        "course": {"course", *rooms, "version"},
        "__main__": {"course"},
    }[room]


def imported(code: str) -> Iterator[str]:
    """Yield each room, or script, of ours that code imports, wherever in it."""
    scripts = {f.stem for folder in SCRIPTS for f in (ROOT / folder).glob("*.py")}
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "say what is imported in full: from crc_helpers..."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            if top == "crc_helpers":
                yield rest[0] if rest and not rest[0].startswith("__") else "version"
            elif top in scripts | SCRIPTS:
                yield top


def room_of(file: Path) -> str:
    """Return the room that a module of the package is, or lies in."""
    first = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return "" if first == "__init__" else first


def code_of(notebook: Path) -> str:
    """Return a notebook's code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.name))
def test_a_room_imports_earlier_rooms_the_shared_three_and_sources(file):
    """A lesson's room imports earlier rooms, the shared three and `sources`; the shared three only
    each other, and `runs` nothing of ours; `sources` imports `tissue` and `runs`; `tissue` nothing
    of ours; nothing imports `explorers`, `course`, `studies` or `tools`.
    """
    found = set(imported(file.read_text(encoding="utf-8")))
    assert found <= allowed(room_of(file)), f"{file}: {found - allowed(room_of(file))}"


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda f: f.stem)
def test_a_lesson_imports_rooms_sources_tissue_and_explorers(file):
    """Only lessons import `explorers`; they too import no `course`, `studies` or `tools`."""
    found = set(imported(code_of(file)))
    assert found and found <= {*LESSONS, *SHARED, "sources", "tissue", "explorers"}, found


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.py")), ids=lambda f: f.stem)
def test_a_study_imports_rooms_and_other_studies(file):
    """Scripts beside the tables know the rooms, the tissue and each other."""
    own = {f.stem for f in (ROOT / "studies").glob("*.py")}
    found = set(imported(file.read_text(encoding="utf-8")))
    assert found <= {*LESSONS, *SHARED, "sources", "tissue", *own}, found
