"""Turn a class-preset run into the committed outputs: notebooks, figures and weights.

Run as `python tools/publish.py --out runs/published`.
"""

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from safetensors import safe_open
from safetensors.torch import load_file

from crc_helpers.course.page import drop_widgets
from crc_helpers.course.settings import lesson_files
from crc_helpers.models import write_weights
from crc_helpers.runs import ROOT, atomic_path, read_json, save_json


def publish(out: Path) -> None:
    """Turn a class-preset run into the committed outputs: notebooks, figures and weights.

    Removes what changes from run to run or belongs to one machine, so that diffs are small.
    """
    for file in lesson_files():
        if not (out / file.name).is_file():  # a run of some lessons leaves the others as they are
            continue
        executed = nbformat.read(out / file.name, as_version=4)
        save_notebook(file, clean(executed, nbformat.read(file, as_version=4), str(out)))
    for picture in sorted(out.glob("figure_*.*g")):
        shutil.copy(picture, ROOT / "figures" / picture.name)
    for name in ("encoder", "encoder_tissue_10", "classifier", "scratch", "few"):
        name = f"{name}.safetensors"
        with safe_open(out / name, framework="pt") as file:
            facts = dict(file.metadata())
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
        kept = ("tags", "mystnb", "jupyter")  # parameters, texts of pictures, folded plots
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in kept and v}
    executed.cells = cells
    executed.metadata = source.metadata
    executed.metadata.pop("widgets", None)
    return executed


def save_notebook(path: Path, notebook: Any) -> None:
    """Write a notebook, atomically."""
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=publish.__doc__)
    parser.add_argument("--out", default="runs/published", help="the folder of the run")
    publish(Path(parser.parse_args().out).expanduser().resolve())
