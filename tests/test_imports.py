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
    *("layers", "grad_cam", "claims", "objectives", "explanations", "shortcuts", "slides"),
)
SHARED = {"models", "runs", "figures", "estimates", "style"}
ROOMS = {*LESSONS, *SHARED, "sources", "tissue"}
SCRIPTS = {f.stem: f for folder in ("studies", "tools") for f in (ROOT / folder).glob("*.py")}
STUDIES = {name for name, file in SCRIPTS.items() if file.parent.name == "studies"}
OTHERS = {  # what each may import of ours, itself included
    **{room: SHARED for room in SHARED - {"runs"}},
    "runs": {"runs"},
    "__init__": set(),
    "tissue": {"tissue"},
    "sources": {"sources", "tissue", "runs"},
    "explorers": {"explorers", *ROOMS},
    "course": {"course", *ROOMS, "version"},
    "__main__": {"course"},
    "notebooks": {*ROOMS, "explorers"},
    "source": ROOMS,  # of the exercises: graders stop at widgets
    "studies": ROOMS | STUDIES,
}


def allowed(room: str) -> set[str]:
    """Return what a room may import of ours: a lesson's, earlier ones, the shared and sources."""
    if room in LESSONS:
        return {*LESSONS[: LESSONS.index(room) + 1], *SHARED, "sources"}
    return OTHERS[room]


def imported(code: str) -> Iterator[str]:
    """Yield each room, or script, of ours that code imports, wherever in it."""
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
            elif top in {*SCRIPTS, "studies", "tools"}:
                yield top


def code_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


FOLDERS = {"crc_helpers": "*.py", "notebooks": "*.ipynb", "studies": "*.py"}
FOLDERS["exercises/source"] = "*.ipynb"
FILES = [file for folder, kind in FOLDERS.items() for file in sorted((ROOT / folder).rglob(kind))]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_file_imports_what_its_room_may(file):
    """Nothing imports `course`, `studies` or `tools`; only lessons import `explorers`."""
    inside = file.is_relative_to(PACKAGE)
    room = file.relative_to(PACKAGE).with_suffix("").parts[0] if inside else file.parent.name
    found = set(imported(code_of(file)))
    assert found <= allowed(room), f"{file}: {found - allowed(room)}"
    assert found or inside
