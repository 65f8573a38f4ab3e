"""The lessons, their parameters, and how the command line sets them."""

import argparse
import ast
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crc_helpers.runs import ROOT, UserError, as_list

GIVEN = ("RUN", "START_FROM")  # set by the command; for those who open a lesson by hand
NOTEBOOKS = ROOT / "notebooks"
PRESETS = ROOT / "presets"


class UsageError(UserError, ValueError):
    """A command with an option or a value that cannot be used."""


def lesson_files(which: str = "") -> list[Path]:
    """Return the notebooks of a range such as "03", "01-06" or "03-"; all for ""."""
    lessons = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not lessons:
        raise UsageError(
            f"{NOTEBOOKS} holds no lesson: clone the repository, and there pip install -e ."
        )
    low, dash, high = which.partition("-")
    high = high or (low if which and not dash else "99")
    numbers = re.fullmatch(r"\d*-?\d*", which) and range(int(low or 0), int(high) + 1)
    chosen = [file for file in lessons if int(file.name[:2]) in (numbers or ())]
    if not chosen:
        raise UsageError(
            f"--lessons {which!r}: no such lesson in {NOTEBOOKS}; give one or a range, e.g. 03 or"
            " 01-06"
        )
    return chosen


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Return the names and literals of a notebook's cell tagged `parameters`."""
    import papermill  # a second

    parameters = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(one["default"]) for name, one in parameters.items()}


def read_settings(preset: str, pairs: Sequence[str], names: set[str]) -> dict[str, Any]:
    """Return the preset's parameters with NAME=VALUE pairs over them.

    names: the parameters there are. Raises UsageError for a preset, name or value that is none.
    """
    presets = {file.stem: file for file in PRESETS.glob("*.yaml")}
    if preset not in presets:
        choices = ", ".join(sorted(presets))
        raise UsageError(f"--preset {preset!r} is unknown: choose one of {choices}")
    settings = dict(yaml.safe_load(presets[preset].read_text(encoding="utf-8")) or {})
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if equals and name in names:
            with contextlib.suppress(yaml.YAMLError):
                settings[name] = _value(name, text)
                continue
        raise UsageError(
            f"--set {pair!r}: unknown parameter, or not a value; expected NAME=VALUE with one of"
            f" {', '.join(sorted(names))}"
        )
    return settings


def _value(name: str, text: str) -> Any:
    """The value of a parameter; classes are text, for names of folders may be 0 or no."""
    as_text = name == "CLASSES"
    with contextlib.suppress(ValueError, SyntaxError):  # Python first: YAML takes 1e-3 for a word
        value = ast.literal_eval(text)
        if not as_text or all(isinstance(item, str) for item in as_list(value)):
            return value
    return yaml.load(text, yaml.BaseLoader if as_text else yaml.SafeLoader)


def lesson_settings(arguments: argparse.Namespace, parameters: dict[Path, dict]) -> dict[str, Any]:
    """Return the lessons' parameters that the command line and its preset set.

    Raises UsageError for what would fail hours later, such as views or a backbone that are none.
    """
    usual = {name: value for p in parameters.values() for name, value in p.items()}
    settings = read_settings(arguments.preset, arguments.set, usual.keys() - GIVEN)
    for name, value in settings.items():
        if isinstance(usual[name], list):
            settings[name] = as_list(value)
    settings |= {"RUN": str(Path(arguments.out).expanduser().resolve()), "START_FROM": "run"}
    if arguments.data:
        settings["DATA"] = arguments.data
    if root := arguments.data_root or settings.get("DATA_ROOT"):
        # Lessons run in another folder.
        settings["DATA_ROOT"] = str(Path(str(root)).expanduser().resolve())
    kind, at, file = str(settings.get("BACKBONE", "")).partition("@")
    if at:
        settings["BACKBONE"] = f"{kind}@{Path(file).expanduser().resolve()}"
    try:
        _require_trainable(settings, usual | settings)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return settings


def _require_trainable(settings: dict[str, Any], values: dict[str, Any]) -> None:
    for name in settings:
        if name.endswith("VIEWS"):
            from crc_helpers.augmentation import require_views  # imports of seconds wait

            require_views(name, *as_list(values[name]))
    if {"BACKBONE", "IMAGE_SIZE"} & settings.keys():
        from crc_helpers.models import require_size

        require_size(values["BACKBONE"], values["IMAGE_SIZE"])
