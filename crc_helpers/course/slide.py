"""Predict a whole slide and leave its map, and draw slides to practise on."""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from openslide import OpenSlide
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
    try:
        return _slide(arguments)
    except DataError as error:
        named = any(str(error).startswith(str(f)) for f in (arguments.file, arguments.weights))
        raise error if named else DataError(f"{arguments.file}: {error}") from None


def _slide(arguments: argparse.Namespace) -> int:
    path, began = Path(arguments.file), time.perf_counter()
    weights = Path(arguments.weights or SHIPPED / "classifier.safetensors")
    out = Path(arguments.out or f"runs/slide_{path.stem}").absolute()
    model, facts = slides.load_network(weights, arguments.field)
    names, size = facts["classes"], facts["size"]
    tiled = cut(path, facts, arguments.mpp)
    with locked(out / "slide"):
        rows = _begun(out, path, weights, tiled)
        p = _predict(rows, tiled, slides.classify(model, size, make_fabric(0)), size)
        at = slides.corners(tiled.cells, tiled.scale.side)
        table = pd.DataFrame({"x": at[:, 0], "y": at[:, 1], "side": round(tiled.scale.side)})
        table[[f"p_{name}" for name in names]] = p.round(6)
        save_table(out / "tiles.csv", table.to_dict("records"))
        shown = {n: p[:, names.index(n)] for n in (names[1:] if len(names) == 2 else names)}
        _save_maps(out, tiled, shown)
        scores = {n: slides.slide_scores(values) for n, values in shown.items()}
        about = {"score": scores, "weights": weights.name, "weights_sha256": file_hash(weights)}
        about |= {"seconds": round(time.perf_counter() - began, 1)}
        save_json(out / "slide.json", _describe(path, tiled) | about)
        rows.unlink()
    for name, score in scores.items():
        print(f"{name}: mean {score['mean']:.3f}, ten hottest tiles {score['top_10']:.3f}")
    print(f"{len(at):,} tiles; map, tables and scores are in {out}. Not for diagnosis.")
    return 0


@dataclass(frozen=True)
class Tiled:
    """A slide that is open, its small picture, where tissue is, and the cells of its tiles."""

    slide: OpenSlide
    scale: slides.Scale
    thumb: np.ndarray
    tissue: np.ndarray
    cells: np.ndarray


def cut(path: Path, facts: dict[str, Any], mpp: float | None) -> Tiled:
    """Open a slide and find its tiles, of facts["field"] microns and facts["size"] pixels."""
    opened = slides.open_slide(path)
    scale = slides.scale_of(opened, facts["field"], mpp)
    slides.require_detail(scale, facts["size"])
    thumb = slides.thumbnail(opened, scale)
    tissue = slides.find_tissue(thumb)
    return Tiled(opened, scale, thumb, tissue, slides.tile_cells(tissue))


def _begun(out: Path, path: Path, weights: Path, tiled: Tiled) -> Path:
    """The file for the rows of this slide, network and scale; a stopped run has left some in it."""
    stat = path.stat()
    key = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, file_hash(weights)]
    key = json.dumps([*key, vars(tiled.scale)]).encode() + tiled.cells.tobytes()
    return out / f".tiles-{hashlib.sha256(key).hexdigest()[:16]}.csv"


def _predict(rows: Path, tiled: Tiled, network: Callable, size: int) -> np.ndarray:
    """Probabilities (n, C) of all tiles, each batch on disk before the next is read."""
    done, side = [], tiled.scale.side
    if rows.is_file():  # without a last line that was cut short
        done = rows.read_text().rpartition("\n")[0].splitlines()
        done = done[: len(done) // BATCH * BATCH]
    at = slides.corners(tiled.cells, side)
    batches = slides.predict_tiles(tiled.slide, at[len(done) :], side, network, size, BATCH)
    with (
        writing(rows),
        rows.open("w", newline="") as file,
        tqdm(total=len(at), initial=len(done), desc="tiles", unit="tile", disable=None) as bar,
    ):
        file.writelines(f"{line}\n" for line in done)
        for batch in batches:
            file.writelines(",".join(map(repr, row)) + "\n" for row in batch.tolist())
            file.flush()
            bar.update(len(batch))
    return np.loadtxt(rows, delimiter=",", ndmin=2)


def _save_maps(out: Path, tiled: Tiled, by_class: dict[str, np.ndarray]) -> None:
    """Save a map for each class, one of two classes, and what is above 0.5 as GeoJSON."""
    tissue, scale = tiled.tissue, tiled.scale
    heats = {n: slides.heat_map(tiled.cells, p, tissue.shape) for n, p in by_class.items()}
    for i, (name, heat) in enumerate(heats.items()):
        file = out / ("map.png" if len(heats) == 1 else f"map_{i}.png")
        save(slides.draw_map(tiled.thumb, tissue, heat, scale, name), file)
    regions = {"tissue": tissue} | {n: heat >= 0.5 for n, heat in heats.items()}
    inks = {n: style.CLASSES[(i + (len(heats) == 1)) % 6] for i, n in enumerate(heats)}
    down = [scale.down] + [scale.side / 2] * len(heats)
    content = slides.geojson(regions, down, {"tissue": "#808080"} | inks)
    save_json(out / "map.geojson", content)


def _describe(path: Path, tiled: Tiled) -> dict[str, Any]:
    scale, (width, height) = tiled.scale, tiled.slide.dimensions
    square_mm = (scale.down * scale.mpp / 1000) ** 2  # of a pixel of the small picture
    return {
        "slide": path.name,
        "microns_per_pixel": scale.mpp,
        "width": width,
        "height": height,
        "tile_microns": scale.field,
        "tiles": len(tiled.cells),
        "tissue_mm2": round(float(tiled.tissue.sum() * square_mm), 2),
        "versions": versions() | {"openslide": version("openslide-python")},
        "device": device_name(),
    }


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
