"""The lessons, their parameters, and what a command line says about them."""

import argparse
import ast
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from crc_helpers.runs import MOST_TILES, ROOT, SEEDS, printable

LIMITS = {  # smallest and largest, by the last word of a parameter's name
    "SEED": SEEDS, "TILES": (2, MOST_TILES), "SIZE": (8, 2048), "EPOCHS": (1, 100_000),
    "BATCH": (2, 100_000), "STEPS": (1, 1_000_000), "LR": (1e-9, 10), "RATES": (1e-9, 10),
    "TEMPERATURE": (0.001, 1000), "TEST": (0.001, 0.999), "VALIDATION": (0, 0.999),
    "THRESHOLD": (0.001, 1), "LABELS": (0.001, 1),
}  # fmt: skip
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
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            statements = ast.parse(cell.source).body
            return {s.targets[0].id: ast.literal_eval(s.value) for s in statements}
    raise UsageError(f"{notebook} has no cell tagged 'parameters'")


def read_settings(preset: str, given: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Return the preset's parameters with `given` NAME=VALUE pairs over them.

    Raises UsageError for a preset, name or value that is none.
    """
    file = PRESETS / f"{preset}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UsageError(f"--preset {preset!r} is unknown: choose one of {names}")
    try:
        settings = dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}: not a table of parameters ({type(error).__name__}): restore it"
        ) from None
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r}: give NAME=VALUE")
        settings[name] = _value(pair, value)
    if unknown := sorted(set(map(str, settings)) - known):
        raise UsageError(
            f"unknown parameter {', '.join(unknown)}: the lessons have {', '.join(sorted(known))}"
        )
    return settings


def _value(pair: str, text: str) -> Any:
    with contextlib.suppress(ValueError, SyntaxError):  # Python first: YAML takes 1e-3 for a word
        return ast.literal_eval(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {pair!r}: not a value ({str(error).splitlines()[0]})") from None


def lesson_settings(arguments: argparse.Namespace, parameters: dict[Path, dict]) -> dict[str, Any]:
    """What the command line says about the lessons' parameters."""
    literals = {name: value for p in parameters.values() for name, value in p.items()}
    settings = read_settings(arguments.preset, arguments.set, set(literals))
    for name, value in settings.items():
        require_value(name, value, literals[name])
        if name.endswith("VIEWS"):  # said now, and not hours later
            from crc_helpers.augmentation import require_views

            try:
                require_views(name, *([value] if isinstance(value, str) else value))
            except ValueError as error:
                raise UsageError(str(error)) from None
        if name in GIVEN:
            raise UsageError(f"{name} is set by this command: give --out for the run's folder")
    settings |= {"RUN": str(Path(arguments.out).resolve()), "START_FROM": "run"}
    if arguments.data:
        settings["DATA"] = arguments.data
    if root := arguments.data_root or settings.get("DATA_ROOT"):
        settings["DATA_ROOT"] = str(Path(str(root)).resolve())  # lessons run in another folder
    return settings


def require_value(name: str, value: Any, usual: Any) -> None:
    """A parameter must be of the kind of the usual value, each item of a list too, and in range.

    Where None is usual, text and lists are the others. Raises UsageError.
    """
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,), list: (list, tuple),
             tuple: (list, tuple), type(None): (str, list, tuple, type(None))}  # fmt: skip
    allowed = kinds[type(usual)]
    fits = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
    if not fits or (isinstance(usual, list | tuple) and not value):
        raise UsageError(f"{name} is {value!r}, expected something like {usual!r}")
    if isinstance(usual, list | tuple):
        for item in value:
            require_value(name, item, usual[0])
    low, high = LIMITS.get(name.split("_")[-1].upper(), (None, None))
    if low is not None and isinstance(value, int | float) and not low <= value <= high:
        raise UsageError(f"{name} is {value!r}, expected {low:,} to {high:,}: correct it (--set)")
