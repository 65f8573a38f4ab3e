"""Execute lessons into a run folder, in order, and skip what is done."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import nbformat

from crc_helpers.course.page import page
from crc_helpers.course.settings import (
    GIVEN,
    NOTEBOOKS,
    UsageError,
    lesson_files,
    lesson_settings,
    parameters_of,
)
from crc_helpers.runs import (
    RunError,
    atomic_path,
    locked,
    printable,
    read_json,
    run_folder,
    save_json,
)

# glibc gives every large buffer back to the system when it is freed, which zeroes its pages when
# they are asked for again: a sixth of a training step. The Makefile sets the same.
MEMORY = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824"}


def run(arguments: argparse.Namespace) -> int:
    """Execute lessons in order into a run folder; skip what is done with the same parameters."""
    lessons = lesson_files(arguments.lessons)
    usual = {file: parameters_of(file) for file in lesson_files()}
    settings = lesson_settings(arguments, usual)
    out = run_folder(settings["RUN"])
    with locked(out / "lessons"):
        if status := _run(lessons, usual, settings, out):
            return status
        seconds = {f.stem: m["duration"] for f in lesson_files() if (m := record(out / f.name))}
        if (out / "metrics.json").is_file():
            metrics = read_json(out / "metrics.json")
            save_json(
                out / "metrics.json", metrics | {"preset": arguments.preset, "seconds": seconds}
            )
            print(f"Numbers are in {out / 'metrics.json'}.")
    total = sum(seconds.values()) / 60
    print(f"The lessons took {total:.1f} minutes. Open {out / lessons[0].stem}.html to read.")
    return 0


def _run(lessons: list[Path], usual: dict[Path, dict], settings: dict[str, Any], out: Path) -> int:
    literals = {name: value for parameters in usual.values() for name, value in parameters.items()}
    changed = {k: v for k, v in settings.items() if v != literals[k] and k not in GIVEN}
    again = lessons[0] == lesson_files()[0] and _data_has_changed(literals | settings, out)
    for file in lesson_files():
        mine = {name: settings[name] for name in usual[file] if name in settings}
        if file not in lessons:
            _require_same(out / file.name, usual[file], mine)
        elif not again and is_done(out / file.name, file, usual[file], mine):
            print(
                f"{file.stem}: done before with these parameters, skipped"
                f" (delete {out / file.name} to run it again)"
            )
        else:
            again = True
            if status := _execute(file, out, mine, changed):
                return status
    return 0


def _data_has_changed(p: dict[str, Any], out: Path) -> bool:
    """Whether the tiles differ from those of lesson 01; DataError before any cell has run."""
    from crc_helpers.data import load_tiles  # imports of seconds wait until they are needed

    tiles = load_tiles(
        p["DATA"], p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"], seed=p["SEED"]
    )
    before = out / "data.json"
    return before.is_file() and read_json(before).get("digest") != tiles.digest


def record(executed: Path) -> dict[str, Any]:
    """Return papermill's metadata of an executed notebook; empty where there is none."""
    if not executed.is_file():
        return {}
    return dict(nbformat.read(executed, as_version=4).metadata.get("papermill", {}))


def is_done(executed: Path, lesson: Path, usual: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Return whether a lesson was executed without an error, with this code and parameters."""
    metadata = record(executed)
    if metadata.get("exception") or not metadata.get("end_time"):
        return False
    # The folder may have moved.
    was, now = ({**usual, **p, "RUN": ""} for p in (metadata["parameters"], mine))
    return was == now and _code_of(executed) == _code_of(lesson)


def _require_same(executed: Path, usual: dict[str, Any], mine: dict[str, Any]) -> None:
    was = usual | record(executed)["parameters"] if executed.is_file() else mine
    for name in sorted(mine.keys() - {"RUN"}):
        if was[name] != mine[name]:
            raise UsageError(
                f"{executed} has {name}={was[name]!r}, and now it is {mine[name]!r}: run that"
                " lesson too (--lessons), or choose another --out"
            )


def _code_of(notebook: Path) -> list[str]:
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    return [c.source for c in cells if "injected-parameters" not in c.metadata.get("tags", ())]


def _execute(file: Path, out: Path, parameters: dict[str, Any], changed: dict[str, Any]) -> int:
    import papermill
    from nbclient.exceptions import DeadKernelError

    os.environ |= MEMORY | os.environ  # of the kernel that starts now
    target, unfinished = out / file.name, out / f".{file.name}"  # papermill writes in place
    failed = out / f"{file.stem}.failed.ipynb"  # beside an earlier one that succeeded
    try:
        papermill.execute_notebook(
            file,
            unfinished,
            parameters,
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar={"desc": file.stem},
            start_timeout=180,
            extra_arguments=["--IPKernelApp.log_level=50"],  # no tracebacks of a stopped kernel
        )
    except papermill.PapermillExecutionError as error:
        unfinished.replace(failed)
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        message = printable(f"{error.ename}: {error.evalue}")
        cell = f"cell {error.cell_index} of {failed}"
        print(f"\n{file.stem} failed in {cell}: {message}", file=sys.stderr)
        return 2 if error.ename in ("DataError", "RunError") else 1
    except DeadKernelError:
        raise RunError(
            f"{file.stem}: its kernel died, mostly for want of memory; close other programs or"
            " lower the batch; the same command goes on from here"
        ) from None
    unfinished.replace(target)
    failed.unlink(missing_ok=True)
    with atomic_path(target.with_suffix(".html")) as temporary:
        temporary.write_text(page(target, changed), encoding="utf-8")
    return 0
