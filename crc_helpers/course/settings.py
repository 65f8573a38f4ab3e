"""The lessons, their parameters, and what a command line says about them."""

import argparse
import ast
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crc_helpers.runs import ROOT, as_list, printable

GIVEN = ("RUN", "START_FROM")  # parameters that are for those who open a lesson by hand
NOTEBOOKS = ROOT / "notebooks"
PRESETS = ROOT / "presets"


class UsageError(ValueError):
    """The command was given something it cannot use; one line, exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def lesson_files(which: str = "") -> list[Path]:
    """Return the notebooks of a range such as "03", "01-06" or "03-"; all for "".

    Raises UsageError for a range that is none or holds no lesson.
    """
    files = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise UsageError(
            f"{NOTEBOOKS} holds no lesson: clone the repository, and there pip install -e ."
        )
    low, _, high = which.partition("-")
    high = high or ("99" if which.endswith("-") or not which else low)
    try:
        chosen = [f for f in files if int(low or 0) <= int(f.name[:2]) <= int(high)]
    except ValueError:
        raise UsageError(
            f"--lessons {which!r}: give one lesson or a range, e.g. 03 or 01-06"
        ) from None
    if not chosen:
        raise UsageError(f"--lessons {which!r}: no such lesson in {NOTEBOOKS}")
    return chosen


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Return the names and literals of a notebook's cell tagged `parameters`."""
    import papermill  # a second

    found = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(one["default"]) for name, one in found.items()}


def read_settings(preset: str, given: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Return the preset's parameters with `given` NAME=VALUE pairs over them.

    Raises UsageError for a preset, name or value that is none.
    """
    file = PRESETS / f"{preset}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UsageError(f"--preset {preset!r} is unknown: choose one of {names}")
    settings = dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r}: give NAME=VALUE")
        settings[name] = _value(pair, value, as_text=name == "CLASSES")
    if unknown := sorted(set(map(str, settings)) - known):
        raise UsageError(
            f"unknown parameter {', '.join(unknown)}: the lessons have {', '.join(sorted(known))}"
        )
    return settings


def _value(pair: str, text: str, as_text: bool) -> Any:
    """The value of a NAME=VALUE pair; as_text: names of folders, which may be 0 or no."""
    with contextlib.suppress(ValueError, SyntaxError):  # Python first: YAML takes 1e-3 for a word
        value = ast.literal_eval(text)
        if not as_text or all(isinstance(item, str) for item in as_list(value)):
            return value
    try:
        return yaml.load(text, yaml.BaseLoader if as_text else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {pair!r}: not a value ({str(error).splitlines()[0]})") from None


def lesson_settings(arguments: argparse.Namespace, parameters: dict[Path, dict]) -> dict[str, Any]:
    """Return what the command line says about the lessons' parameters.

    Raises UsageError for what would fail hours later: views or a backbone that are none.
    """
    usual = {name: value for p in parameters.values() for name, value in p.items()}
    settings = read_settings(arguments.preset, arguments.set, set(usual))
    if given := next((name for name in GIVEN if name in settings), None):
        raise UsageError(f"{given} is set by this command: give --out for the run's folder")
    for name, value in settings.items():
        if isinstance(usual[name], list):
            settings[name] = as_list(value)
    settings |= {"RUN": str(Path(arguments.out).expanduser().resolve()), "START_FROM": "run"}
    if arguments.data:
        settings["DATA"] = arguments.data
    if root := arguments.data_root or settings.get("DATA_ROOT"):
        # Lessons run in another folder.
        settings["DATA_ROOT"] = str(Path(str(root)).expanduser().resolve())
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
