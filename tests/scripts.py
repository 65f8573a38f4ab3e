"""The scripts of `studies/`, loaded as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import common

from crc_helpers.claims import FOLDER


def load(file: Path) -> ModuleType:
    """Load a script under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location(f"study_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STUDIES = {file.stem: load(file) for file in sorted(FOLDER.glob("*.py")) if file.stem != "common"}

__all__ = ["STUDIES", "common"]
