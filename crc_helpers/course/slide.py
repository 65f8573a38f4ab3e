"""Predict a whole slide and leave its map, and draw slides to practise on."""

import argparse
import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from crc_helpers import slides, style
from crc_helpers.figures import save
from crc_helpers.runs import (
    SHIPPED,
    atomic_path,
    device_name,
    file_hash,
    locked,
    make_fabric,
    save_json,
    save_table,
    versions,
    writing,
)
from crc_helpers.sources.base import DataError
from crc_helpers.tissue.whole import DOWN, TRUTH, write_slide

BATCH = 64  # tiles


def slide(arguments: argparse.Namespace) -> int:
    """Predict a slide tile by tile; leave tiles.csv, map.png, map.geojson and slide.json."""
    path, began = Path(arguments.file), time.perf_counter()
    weights = Path(arguments.weights or SHIPPED / "classifier.safetensors")
    out = Path(arguments.out or f"runs/slide_{path.stem}").absolute()
    model, facts = slides.load_network(weights, arguments.field)
    opened = slides.open_slide(path)
    scale = slides.scale_of(opened, facts["field"], arguments.mpp)
    slides.require_detail(scale, facts["size"])
    thumb = slides.thumbnail(opened, scale)
    tissue = slides.find_tissue(thumb)
    cells = slides.tile_cells(tissue)
    with locked(out / "slide"):
        rows = _begun(out, path, weights, scale, cells)
        answer = slides.classify(model, facts["size"], make_fabric(0))
        p = _predict(rows, opened, cells, scale, (answer, facts))
        at = slides.corners(cells, scale.side)
        table = pd.DataFrame({"x": at[:, 0], "y": at[:, 1], "side": round(scale.side)})
        names = facts["classes"]
        table[[f"p_{name}" for name in names]] = p.round(6)
        save_table(out / "tiles.csv", table.to_dict("records"))
        shown = names[1:] if len(names) == 2 else names
        _save_maps(out, thumb, tissue, cells, scale, {n: p[:, names.index(n)] for n in shown})
        about = {
            "slide": path.name,
            "microns_per_pixel": scale.mpp,
            "width": opened.dimensions[0],
            "height": opened.dimensions[1],
            "tile_microns": scale.field,
            "tiles": len(cells),
            "tissue_mm2": round(float(tissue.sum() * (scale.down * scale.mpp / 1000) ** 2), 2),
            "score": {n: slides.slide_scores(p[:, names.index(n)]) for n in shown},
            "weights": weights.name,
            "weights_sha256": file_hash(weights),
            "versions": versions() | {"openslide": version("openslide-python")},
            "device": device_name(),
            "seconds": round(time.perf_counter() - began, 1),
        }
        save_json(out / "slide.json", about)
        rows.unlink()
    for name, score in about["score"].items():
        print(f"{name}: mean {score['mean']:.3f}, ten hottest tiles {score['top_10']:.3f}")
    print(f"{len(cells):,} tiles; map, tables and scores are in {out}. Not for diagnosis.")
    return 0


def _begun(out: Path, path: Path, weights: Path, scale: slides.Scale, cells: np.ndarray) -> Path:
    """The file for the rows of this slide, network and scale; a stopped run has left some in it."""
    stat = path.stat()
    key = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, file_hash(weights), vars(scale)]
    mark = hashlib.sha256(json.dumps(key).encode() + cells.tobytes()).hexdigest()[:16]
    return out / f".tiles-{mark}.csv"


def _predict(rows: Path, opened: Any, cells: np.ndarray, scale: slides.Scale, network: tuple):
    """Probabilities (n, C) of all tiles, each batch on disk before the next is read."""
    answer, facts = network
    done = []
    if rows.is_file():  # without a last line that was cut short
        done = rows.read_text().rpartition("\n")[0].splitlines()
        done = done[: len(done) // BATCH * BATCH]
    at = slides.corners(cells, scale.side)[len(done) :]
    batches = slides.predict_tiles(opened, at, scale.side, answer, facts["size"], BATCH)
    with (
        writing(rows),
        rows.open("w", newline="") as file,
        tqdm(total=len(cells), initial=len(done), desc="tiles", unit="tile", disable=None) as bar,
    ):
        file.writelines(f"{line}\n" for line in done)
        for batch in batches:
            file.writelines(",".join(map(repr, row)) + "\n" for row in batch.tolist())
            file.flush()
            bar.update(len(batch))
    return np.loadtxt(rows, delimiter=",", ndmin=2)


def _save_maps(
    out: Path, thumb: np.ndarray, tissue: np.ndarray, cells: np.ndarray, scale, by_class: dict
) -> None:
    heats = {n: slides.heat_map(cells, p, tissue.shape) for n, p in by_class.items()}
    for name, heat in heats.items():
        file = "map.png" if len(heats) == 1 else f"map_{list(heats).index(name)}.png"
        save(slides.draw_map(thumb, tissue, heat, scale, name), out / file)
    regions = {"tissue": tissue} | {n: heat >= 0.5 for n, heat in heats.items()}
    inks = dict(zip(heats, style.CLASSES[len(heats) == 1 :], strict=False)) | {"tissue": "#808080"}
    down = [scale.down] + [scale.side / 2] * len(heats)
    save_json(out / "map.geojson", slides.geojson(regions, down, inks))


def prepare_slides(out: str | Path | None, n: int = 20, seed: int = 0, mpp: float = 1.0) -> Path:
    """Draw n slides, every other one SSA, with truth as PNG and GeoJSON, and `slides.csv`.

    Slides that are there already are kept, so that the same command goes on. Returns the folder.
    """
    if not out:
        raise DataError("slides take 30 MB each: say where to put them (--out)")
    if not 0.25 <= mpp <= 4 or n < 1:
        raise DataError(f"--mpp {mpp:g}, --n {n}: expected 0.25 to 4 microns, and 1 slide or more")
    folder, rows = Path(out), []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(n), desc="drawing slides", unit="slide", disable=None):
        name, ssa = f"slide_{seed}_{i:03d}", bool(i % 2)
        rows.append({"file": f"{name}.tiff", "label": ("HP", "SSA")[ssa], "mpp": mpp})
        if (folder / f"{name}.tiff").is_file():
            continue
        own = int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
        with atomic_path(folder / f"{name}.tiff") as temporary:
            truth = write_slide(temporary, own, ssa, mpp)
            Image.fromarray(truth).save(folder / f"{name}_truth.png")
            regions = {"tissue": truth > 0, "SSA": truth == TRUTH["SSA"]}
            inks = {"tissue": "#808080", "SSA": style.CLASSES[1]}
            save_json(folder / f"{name}_truth.geojson", slides.geojson(regions, [DOWN] * 2, inks))
    save_table(folder / "slides.csv", rows)
    return folder
