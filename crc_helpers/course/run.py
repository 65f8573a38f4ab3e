"""Execute lessons into a run folder, in order, and skip what is done."""

import argparse
import sys
import time
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
    ARTEFACTS,
    NOTES,
    RunError,
    atomic_path,
    file_hash,
    fingerprint,
    note,
    only_one,
    read_json,
    read_notes,
    run_folder,
    save_json,
)

LESSONS = "lessons"  # the lock of a run folder is called so


def run(arguments: argparse.Namespace) -> int:
    """Execute lessons in order into a run folder; skip what is done with the same parameters."""
    lessons = lesson_files(arguments.lessons)
    parameters = {file: parameters_of(file) for file in lesson_files()}
    settings = lesson_settings(arguments, parameters)
    out = run_folder(settings["RUN"])
    with only_one(out / LESSONS):
        return _run(arguments, lessons, parameters, settings, out)


def _run(
    arguments: argparse.Namespace,
    lessons: list[Path],
    parameters: dict[Path, dict],
    settings: dict[str, Any],
    out: Path,
) -> int:
    from crc_helpers.data import load_tiles  # imports of seconds wait until they are needed

    first = {**parameters[lesson_files()[0]], **settings}
    if lessons[0] == lesson_files()[0]:  # bad data is said here, in one line, and not from a cell
        data = load_tiles(first["DATA"], first["DATA_ROOT"], classes=first["CLASSES"],
                          n=first["N_TILES"], seed=first["SEED"]).digest  # fmt: skip
    else:  # what lesson 01 has seen; the others refuse data that is no longer that
        seen = out / "data.json"
        data = read_json(seen).get("digest") if seen.is_file() else None
    record = out / "lessons.json"
    done = _done(record)
    code = fingerprint(code={str(f): f.read_text(encoding="utf-8") for f in _sources()})
    usual = {name: value for literals in parameters.values() for name, value in literals.items()}
    changed = {k: v for k, v in settings.items() if v != usual[k] and k not in GIVEN}
    mark = fingerprint(data=data)
    for file, literals in parameters.items():
        mine = {name: settings[name] for name in literals if name in settings}
        # Each lesson's mark holds the one before: a change runs all that builds on it again.
        mark = fingerprint(before=mark, parameters=mine, notebook=_code_of(file), code=code)
        before = done.get(file.stem, {})
        kept = {k: v for k, v in (literals | mine).items() if k != "RUN"}  # folders may move
        if file not in lessons:
            known = before.get("parameters") or _by_hand(out, file)
            asked = kept if before else {name: mine[name] for name in mine if name in kept}
            _require_same(out, file.stem, known, asked)
            continue
        if before.get("mark") == mark and (out / file.name).is_file():
            if not (changed := _changed(out, before.get("files", {}))):
                print(f"{file.stem}: done before with these parameters, skipped")
                continue
            print(f"{file.stem}: {changed} is not what it left, so it is run again")
        start, there = time.perf_counter(), _artefacts(out)
        if status := _execute(file, out, mine, changed):
            return status
        left = {name: file_hash(out / name)
                for name, when in _artefacts(out).items() if there.get(name) != when}  # fmt: skip
        done[file.stem] = {"mark": mark, "seconds": round(time.perf_counter() - start, 1),
                           "parameters": kept, "files": left}  # fmt: skip
        save_json(record, done)
    _complete_metrics(out, done, arguments.preset)
    total = sum(lesson["seconds"] for lesson in done.values())
    print(
        f"\nThe lessons took {total / 60:.1f} minutes. Open {out / lessons[0].stem}.html to read."
    )
    if (out / "metrics.json").is_file():
        print(f"Numbers are in {out / 'metrics.json'}.")
    return 0


def _done(record: Path) -> dict[str, dict[str, Any]]:
    """What `run` noted of each lesson."""
    done = read_json(record) if record.is_file() else {}
    kinds = {"mark": str, "seconds": int | float, "parameters": dict, "files": dict}
    if not all(isinstance(lesson, dict) and all(isinstance(lesson.get(k), kinds[k]) for k in kinds)
               for lesson in done.values()):  # fmt: skip
        raise UsageError(f"{record} is not what this command wrote: delete it, and run again")
    return done


def _by_hand(out: Path, lesson: Path) -> dict[str, Any]:
    """The parameters of data that lesson 01 left when nobody noted them: it was run by hand."""
    file = out / "data.json"
    if lesson != lesson_files()[0] or not file.is_file():
        return {}
    known = dict(read_json(file))
    names = {"DATA": "name", "DATA_ROOT": "root", "N_TILES": "n", "SPLIT": "scheme"}
    names |= {name: name.lower() for name in ("CLASSES", "SEED", "TEST", "VALIDATION")}
    return {name: known[key] for name, key in names.items() if key in known}


def _artefacts(out: Path) -> dict[str, int]:
    """Results in a run folder and when they were written (ns)."""
    own = ("lessons.json", "metrics.json", NOTES)  # which lessons and this command add to
    files = [f for f in out.glob("[!.]*") if f.suffix in ARTEFACTS and f.name not in own]
    return {file.name: file.stat().st_mtime_ns for file in sorted(files)}


def _changed(out: Path, files: dict[str, str]) -> str:
    """The first of the files that is not as it was left, or an empty word."""
    same = (name for name, before in files.items()
            if not (out / name).is_file() or file_hash(out / name) != before)  # fmt: skip
    return next(same, "")


def _require_same(out: Path, lesson: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(before.keys() & now.keys()):
        if before.get(name) != now.get(name):
            raise UsageError(
                f"{out} holds {lesson} with {name}={before.get(name)!r}, and now it is"
                f" {now.get(name)!r}: run that lesson too (--lessons), or choose another --out"
            )


def _sources() -> list[Path]:
    return sorted(Path(__file__).parents[1].rglob("*.py"))


def _code_of(notebook: Path) -> list[str]:
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def _execute(file: Path, out: Path, parameters: dict[str, Any], changed: dict[str, Any]) -> int:
    import papermill
    from nbclient.exceptions import DeadKernelError

    target, unfinished = out / file.name, out / f".{file.name}"  # papermill writes in place
    failed = out / f"{file.stem}.failed.ipynb"  # what succeeded before is kept
    try:
        papermill.execute_notebook(
            file, unfinished, parameters, cwd=str(NOTEBOOKS), kernel_name="python3",
            progress_bar={"desc": file.stem}, start_timeout=180,
            extra_arguments=["--IPKernelApp.log_level=50"],  # no tracebacks of a stopped kernel
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        unfinished.replace(failed)
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        said = " ".join(f"{error.ename}: {error.evalue}".split())
        cell = f"cell {error.cell_index} of {failed}"
        print(f"\n{file.stem} failed in {cell}: {said}", file=sys.stderr)
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


def _complete_metrics(out: Path, done: dict[str, Any], preset: str) -> None:
    path = out / "metrics.json"
    if not path.is_file():
        return
    metrics = read_json(path)
    metrics |= {"preset": preset, "seconds": {k: v["seconds"] for k, v in done.items()}}
    save_json(path, metrics)
    if before := read_notes(out).get(path.name):
        note(path, before["made_from"], before["parameters"])
