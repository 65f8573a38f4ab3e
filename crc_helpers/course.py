"""The command line: run the lessons, look after data, check the machine."""

import argparse
import ast
import contextlib
import errno
import importlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import yaml

from crc_helpers import __version__, printable
from crc_helpers.runs import (
    ARTEFACTS,
    MOST_TILES,
    NOTES,
    ROOT,
    SEEDS,
    RunError,
    atomic_path,
    device_name,
    file_hash,
    fingerprint,
    first_alone,
    has_fast_bf16,
    note,
    only_one,
    read_json,
    read_notes,
    run_folder,
    save_json,
    versions,
    write_weights,
)

LESSONS = "lessons"  # the lock of a run folder is called so
LIMITS = {  # smallest and largest, by the last word of a parameter's name
    "SEED": SEEDS, "TILES": (2, MOST_TILES), "SIZE": (8, 2048), "EPOCHS": (1, 100_000),
    "BATCH": (2, 100_000), "STEPS": (1, 1_000_000), "LR": (1e-9, 10), "RATES": (1e-9, 10),
    "TEMPERATURE": (0.001, 1000), "TEST": (0.001, 0.999), "VALIDATION": (0, 0.999),
    "THRESHOLD": (0.001, 1), "LABELS": (0.001, 1),
}  # fmt: skip
GIVEN = ("RUN", "START_FROM")  # parameters that are for those who open a lesson by hand
ABOUT_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
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


def run(arguments: argparse.Namespace) -> int:
    """Execute lessons in order into a run folder; skip what is done with the same parameters."""
    lessons = lesson_files(arguments.lessons)
    parameters = {file: parameters_of(file) for file in lesson_files()}
    settings = _settings(arguments, parameters)
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
    code = fingerprint(code={f.name: f.read_text(encoding="utf-8") for f in _sources()})
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


def _settings(arguments: argparse.Namespace, parameters: dict[Path, dict]) -> dict[str, Any]:
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


def pretrain(arguments: argparse.Namespace) -> int:
    """Pre-train as lesson 03 does, on several devices or machines; lesson 03 goes on from there."""
    import torch

    from crc_helpers import data
    from crc_helpers.runs import make_fabric

    parameters = {file: parameters_of(file) for file in lesson_files()}
    first, _, third = list(parameters.values())[:3]
    p = {**first, **third, **_settings(arguments, parameters)}
    run = run_folder(p["RUN"])
    world = arguments.devices * arguments.num_nodes
    if min(arguments.devices, arguments.num_nodes) < 1:
        raise UsageError("--devices and --num-nodes: give at least 1")
    if p["PRETRAIN_BATCH"] < 2 or p["PRETRAIN_BATCH"] % world:
        raise UsageError(
            f"PRETRAIN_BATCH is {p['PRETRAIN_BATCH']}: {world} processes cannot share it evenly,"
            " give a multiple of their number (--set)"
        )
    here = torch.cuda.device_count()
    if here and arguments.devices > here:
        raise UsageError(f"--devices {arguments.devices}: there are {here} on this machine")
    # Before the other processes start: they find the tiles decoded, and errors are said once.
    tiles = data.load_tiles(p["DATA"], p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"],
                            seed=p["SEED"])  # fmt: skip
    fabric = make_fabric(p["SEED"], arguments.devices, arguments.num_nodes)
    fabric.launch()
    shares = {"test": p["TEST"], "validation": p["VALIDATION"], "seed": p["SEED"]}
    parts = data.split(tiles, p["SPLIT"], **shares)
    with contextlib.ExitStack() as held:  # the lessons may be at work in this folder
        first_alone(lambda: held.enter_context(only_one(run / LESSONS)))
        _pretrain(p, run, tiles, parts, shares, fabric)
        fabric.print(f"lesson 03 goes on from here: crc-course run {_as_given(arguments)}")
        return 0


def _pretrain(
    p: dict[str, Any], run: Path, tiles: Any, parts: Any, shares: dict[str, Any], fabric: Any
) -> None:
    from crc_helpers import data, pretraining

    first_alone(lambda: data.remember(
        run, tiles, parts, root=p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"],
        scheme=p["SPLIT"], **shares))  # fmt: skip
    size, epochs = p["IMAGE_SIZE"], p["PRETRAIN_EPOCHS"]
    rest, queries = data.watched(tiles, parts, p["SEED"])
    monitor = pretraining.make_monitor(tiles, rest, queries, size, epochs, fabric)
    for views in p["VIEWS"]:
        _, log = pretraining.pretrain_encoder(
            tiles, parts.pretraining, run, fabric, views=views, backbone=p["BACKBONE"],
            head=p["HEAD"], monitor=monitor, size=size, epochs=epochs, batch=p["PRETRAIN_BATCH"],
            lr=p["PRETRAIN_LR"], temperature=p["TEMPERATURE"], optimizer=p["OPTIMIZER"],
            seed=p["SEED"],
        )  # fmt: skip
        fabric.print(f"{views} views: loss {log['loss'].iloc[-1]:.3f} after epoch {epochs},"
                     f" {log['pairs_per_second'].iloc[-1]:.0f} pairs/s")  # fmt: skip


def _as_given(arguments: argparse.Namespace) -> str:
    """The options about lessons, to be typed again."""
    words = ["--preset", arguments.preset, "--out", arguments.out]
    for name, value in (("--data", arguments.data), ("--data-root", arguments.data_root)):
        words += [name, value] if value else []
    for pair in arguments.set:
        words += ["--set", pair]
    return shlex.join(words)


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.py"))


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


def publish(arguments: argparse.Namespace) -> int:
    """Turn a class-preset run into the committed outputs: notebooks, figures and weights.

    Removes what changes from run to run or belongs to one machine, so that diffs are small.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    out = Path(arguments.out).resolve()
    for file in lesson_files():
        executed = nbformat.read(out / file.name, as_version=4)
        save_notebook(file, clean(executed, nbformat.read(file, as_version=4), str(out)))
    for picture in sorted(out.glob("figure_*.*g")):
        shutil.copy(picture, ROOT / "figures" / picture.name)
    for name in ("encoder.safetensors", "classifier.safetensors", "scratch.safetensors"):
        with safe_open(out / name, framework="pt") as file:
            facts = {k: v for k, v in file.metadata().items() if k != "made_from"}
        state = {
            k: v.half() if v.is_floating_point() else v for k, v in load_file(out / name).items()
        }
        write_weights(ROOT / "weights" / name, state, facts)
    settings = read_json(out / "data.json")
    del settings["digest"]  # other machines draw the same tissue, and not always the same bits
    save_json(ROOT / "weights" / "data.json", settings)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    recipe = {key: metrics[key] for key in ("data", "preset", "seed", "device", "versions")}
    save_json(ROOT / "figures" / "recipe.json", recipe)
    save_json(ROOT / "figures" / "metrics.json", metrics)
    return 0


def clean(executed: Any, source: Any, run_path: str) -> Any:
    """Return the executed notebook with the source's parameters cell, counts 1..n, no timestamps,
    no widget state and no path of the run.
    """
    drop_widgets(executed)
    cells = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "text" in output:
                output.text = output.text.replace(f"{run_path}/", "").replace(run_path, "")
            for kind in {"text/html", "text/plain"} & set(output.get("data", {})):
                # A styled table has another id in every run, an object another address.
                named = re.sub(r"\bT_[0-9a-f]{5}(?=[_\W])", f"T_{count}", output.data[kind])
                output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", named)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    for cell in cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
    executed.cells = cells
    executed.metadata = source.metadata
    executed.metadata.pop("widgets", None)
    return executed


def drop_widgets(notebook: Any) -> Any:
    """Take progress bars and explorers out, dead without a kernel; a still picture is beside each.

    Returns the notebook, changed in place.
    """
    view = "application/vnd.jupyter.widget-view+json"
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if view not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)
    return notebook


def page(notebook: Path, changed: dict[str, Any] | None = None) -> str:
    """An executed notebook as one HTML file, to be read offline: of all that it could load, only
    MathJax, which sets the formulas, is left.

    changed: the parameters that are not the published run's; the page says that it is another run.
    """
    from nbconvert import HTMLExporter

    content = drop_widgets(nbformat.read(notebook, as_version=4))
    if changed:
        said = (f"{name} = {value!r}".replace("`", "'") for name, value in changed.items())
        settings = ", ".join(f"`{one}`" for one in said)
        content.cells.insert(0, nbformat.v4.new_markdown_cell(
            f"> **A run of its own**, with {settings}. The printed numbers and the figures are this"
            " run's. The text (*What to see*) describes the run that the course is published with:"
            " its numbers are others, and so may be what there is to see."))  # fmt: skip
    remote = ("require_js_url", "mermaid_js_url", "mermaid_layout_elk_js_url", "jquery_url")
    exporter = HTMLExporter(embed_images=True, **dict.fromkeys(remote, ""))
    html, _ = exporter.from_notebook_node(
        content, {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}}
    )
    # The next lesson is a page beside this one; what lies beside the notebooks is in the checkout.
    html = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', html)
    html = html.replace('href="../', f'href="{os.path.relpath(ROOT, notebook.parent)}/')
    return html.replace('<script src=""></script>', "")


def save_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook, atomically."""
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def data(arguments: argparse.Namespace) -> int:
    """Check a data set, or prepare one."""
    from crc_helpers.data import check, check_deep, load_tiles, prepare

    given = {k: getattr(arguments, k) for k in ("n", "seed", "shortcut", "strength", "scanner")}
    plan = {k: v for k, v in given.items() if v is not None}
    if plan and arguments.name != "synthetic":
        raise UsageError(f"--{next(iter(plan))}: for synthetic tiles only")
    if "strength" in plan and "shortcut" not in plan:
        raise UsageError("--strength is that of a --shortcut: name one, ink or stain")
    if arguments.action == "check":
        sheet = Path(arguments.out or f"{arguments.name}_contact_sheet.png")
        tiles = load_tiles(arguments.name, arguments.data_root, **plan)
        print("\n".join(map(printable, check(tiles, sheet))))
        if arguments.deep:
            print(check_deep(tiles, arguments.data_root))
    else:
        folder = prepare(arguments.name, arguments.out or arguments.data_root, **plan)
        print(f"{arguments.name} is ready in {folder}")
    return 0


def study(arguments: argparse.Namespace) -> int:
    """Measure what is missing of a study, a row a run, into `studies/NAME_DATA.csv`."""
    from crc_helpers import studies

    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: give at least 1")
    folder = Path(arguments.out) if arguments.out else studies.FOLDER
    root = str(Path(arguments.data_root).resolve()) if arguments.data_root else None
    recipe, usual = {}, {k: v for k, v in vars(studies.Recipe()).items() if k != "views"}
    for pair in arguments.set:
        name, equals, value = pair.partition("=")
        if not equals or name not in usual:
            known = ", ".join(usual)
            raise UsageError(f"--set {pair!r}: give NAME=VALUE, with a name of {known}")
        require_value(name, found := _value(pair, value), usual[name])
        recipe[name] = tuple(found) if isinstance(found, list) else found
    size = replace(studies.size_of(arguments.name), **recipe)
    rows = studies.do(arguments.name, arguments.data, root, arguments.seeds, size, folder)
    print(f"{len(rows)} rows in {folder / f'{arguments.name}_{arguments.data}.csv'}")
    return 0


def doctor(_arguments: argparse.Namespace) -> int:
    """Check versions, device, write permission and kernel; end in OK or FAIL with what to do."""
    import torch
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from packaging.version import Version

    problems = []
    for name, found in versions().items():
        print(f"{name:<14} {found}")
    for module in ("cv2", "ipywidgets", "papermill", "seaborn", "timm"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            problems.append(f"{module} cannot be imported ({error}): pip install -e .")
    for name, needed in (("torch", "2.11"), ("torchvision", "0.26")):
        if Version(versions()[name]) < Version(needed):
            problems.append(f"{name} {needed} or newer is needed: pip install --upgrade {name}")
    print(f"{'device':<14} {device_name()}")
    print(f"{'bf16':<14} {'used' if has_fast_bf16() else 'not used: slower than fp32 here'}")
    print(f"{'memory':<14} {_memory()}")
    if not torch.isfinite(torch.ones(2, 2) @ torch.ones(2, 2)).all():
        problems.append("torch computes wrongly: install it again")
    for folder in (ROOT, Path.cwd()):
        if not os.access(folder, os.W_OK):
            problems.append(f"{folder} is read-only: give --out a folder that you may write to")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
        print(f"{'kernel':<14} python3 ({command})")
    except NoSuchKernel:
        problems.append("no Jupyter kernel 'python3': python -m ipykernel install --sys-prefix")
    print("OK" if not problems else "FAIL\n" + "\n".join(f"- {p}" for p in problems))
    return 1 if problems else 0


def _memory() -> str:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="crc-course", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        required=True, metavar="run | pretrain | study | data | doctor"
    )
    lessons = argparse.ArgumentParser(add_help=False)
    lessons.add_argument("--preset", default="class", help="ci, class (default) or paper")
    lessons.add_argument("--data", choices=("synthetic", "ebhi", "mhist", "folder"))
    lessons.add_argument("--data-root", metavar="DIR", help="where the tiles are")
    lessons.add_argument("--out", default="runs/latest", metavar="runs/NAME")
    lessons.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                         help="a parameter of the lessons; may be given again")  # fmt: skip
    sub = commands.add_parser("run", parents=[lessons],
                              help="execute the lessons, in order, into a folder")  # fmt: skip
    sub.add_argument("--lessons", default="", metavar="01-06", help="a lesson or a range")
    sub.set_defaults(do=run)
    sub = commands.add_parser("pretrain", parents=[lessons],
                              help="lesson 03's training on several devices")  # fmt: skip
    # torchrun says what it has started; Fabric's own launcher gives its children no local size.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local if local else 1
    sub.add_argument("--devices", type=int, default=local or 1, metavar="N", help="on each machine")
    sub.add_argument("--num-nodes", type=int, default=nodes, metavar="M", help="how many machines")
    sub.set_defaults(do=pretrain)
    sub = commands.add_parser("data", help="look at a data set, or fetch and unpack it")
    sub.add_argument("action", choices=("check", "prepare"))
    sub.add_argument("name", choices=("synthetic", "ebhi", "mhist", "folder"))
    sub.add_argument("--data-root", metavar="DIR")
    sub.add_argument("--out", metavar="DIR", help="where to put the data, or the contact sheet")
    sub.add_argument("--deep", action="store_true",
                     help="check: hash the cache, decode the files again and compare")  # fmt: skip
    sub.add_argument("--n", type=int, help="synthetic: how many tiles"
                     " (prepare: 3,152; check: 2,000)")  # fmt: skip
    sub.add_argument("--seed", type=int, help="synthetic: which ones (0)")
    sub.add_argument("--shortcut", choices=("ink", "stain"),
                     help="synthetic: plant a mark that goes with the label")  # fmt: skip
    sub.add_argument("--strength", type=float, metavar="-1..1", help="... how closely (0.9)")
    sub.add_argument("--scanner", metavar="NAME", help="synthetic: one site only, 'Scanner A'")
    sub.set_defaults(do=data)
    sub = commands.add_parser("study", help="measure a sweep of lesson 07 or 08, a row a run")
    sub.add_argument("name", help="labels, baselines, recipe, ...; any other word lists them")
    sub.add_argument("--data", choices=("synthetic", "ebhi", "mhist", "folder"),
                     default="synthetic")  # fmt: skip
    sub.add_argument("--data-root", metavar="DIR", help="where the tiles are")
    sub.add_argument("--seeds", type=int, default=5, help="cohorts, splits and initialisations (5)")
    sub.add_argument("--out", metavar="DIR", help="folder of the CSV file, instead of studies/")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="another size of the experiment, e.g. size=96")  # fmt: skip
    sub.set_defaults(do=study)
    sub = commands.add_parser("doctor", help="check this machine and installation")
    sub.set_defaults(do=doctor)
    sub = commands.add_parser("publish")  # for maintainers: `make notebooks`
    sub.add_argument("--out", default="runs/published")
    sub.set_defaults(do=publish)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for what the user can mend."""
    from crc_helpers.data_readers import DataError

    for stream in (sys.stdout, sys.stderr):  # a log on Windows cannot hold every name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if cache := os.environ.get("CRC_HELPERS_CACHE"):  # the lessons run in a folder of their own
        os.environ["CRC_HELPERS_CACHE"] = str(Path(cache).resolve())
    arguments = parse(argv)
    # What pre-training refuses is a ValueError, written for users; elsewhere that is a mistake.
    refused = (ValueError, FloatingPointError) if arguments.do in (pretrain, study) else ()
    try:
        return arguments.do(arguments)
    except (UsageError, DataError, RunError, *refused) as error:
        print(f"crc-course: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        room = ": make room, or choose a folder that you may write to (--out)"
        advice = room * (error.errno in ABOUT_ROOM)
        print(f"crc-course: {printable(f'{error}{advice}')}; the same command goes on from here",
              file=sys.stderr)  # fmt: skip
        return 2
    except MemoryError as error:
        print(f"crc-course: not enough memory ({printable(str(error))}): close other programs, or"
              " take fewer or smaller tiles", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
