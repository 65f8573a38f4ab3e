"""Drawn whole slides nobody trained on: slide scores, and whether the map finds the SSA in them.

Run as `python studies/slides.py --slides 20`; rows that are there are not measured again.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import Study, commit
from openslide import OpenSlide

from crc_helpers import claims, slides
from crc_helpers.evaluation import macro_auc
from crc_helpers.grad_cam import hits, mass_inside
from crc_helpers.models import Classifier, Encoder
from crc_helpers.runs import SHIPPED, device_name, make_fabric, save_table
from crc_helpers.sources.drawn import FIELD
from crc_helpers.tissue.whole import DOWN, TRUTH, write_slide

FIRST = 70_000  # seed of the first slide; nothing was ever chosen on these
MPP = 2.0  # microns a pixel of level 0: the network reads 4.7
SHUFFLES = 100
CELL = FIELD / 2 / MPP / DOWN  # pixels of the truth a cell of the map


def plan(count: int) -> list[dict]:
    """Plan a row a slide; every other slide is SSA."""
    return [{"seed": i, "label": ("HP", "SSA")[i % 2]} for i in range(count)]


def row(seed: int, label: str) -> dict:
    """Draw a slide and score its map of SSA and those of the controls.

    mean, top_10: the slide's scores, with a name those of a control. On SSA slides also hit and
    mass of each map with the SSA region, which is a share `area` of the map, and tile_auc: tiles in
    the region against tiles outside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tiff"
        truth = write_slide(path, FIRST + seed, label == "SSA", MPP)
        with slides.open_slide(path) as slide:
            return measure(slide, truth, seed)


def measure(slide: OpenSlide, truth: np.ndarray, seed: int) -> dict:
    """Return the scores of one slide; truth is at 1/16 of its size."""
    trained, facts = slides.load_network(SHIPPED / "classifier.safetensors")
    torch.manual_seed(seed)
    untrained = Classifier(Encoder(facts["backbone"]), len(facts["classes"]))
    scale, fabric = slides.scale_of(slide, facts["field"]), make_fabric(seed)
    tissue = slides.find_tissue(slides.thumbnail(slide, scale))
    cells = slides.tile_cells(tissue)
    at, size = slides.corners(cells, scale.side), facts["size"]
    networks = [slides.classify(n, size, fabric) for n in (trained, untrained)]
    batches = slides.predict_tiles(
        slide, at, scale.side, lambda tiles: np.stack([n(tiles)[:, 1] for n in networks], 1), size
    )
    p, random = np.concatenate(list(batches)).T
    found = {"tiles": len(p), **slides.slide_scores(p)}
    found |= {f"{k} random weights": v for k, v in slides.slide_scores(random).items()}
    region = truth == TRUTH["SSA"]
    if not region.any():
        return found
    heat = slides.heat_map(cells, p, tissue.shape)
    maps = {"trained": heat, "random weights": slides.heat_map(cells, random, tissue.shape)}
    found["tile_auc"] = tile_auc(cells, p, slides.share_of(region, heat.shape, CELL))
    return found | region_scores(maps, region, seed)


def region_scores(maps: dict[str, np.ndarray], region: np.ndarray, seed: int) -> dict[str, float]:
    """Return hit and mass of maps (rows, columns) with a region (h, w), and of blind ones."""
    heat, rng = maps["trained"], np.random.default_rng(seed)
    covered = ~np.isnan(heat)
    distance = np.hypot(*(axis - np.median(axis[covered]) for axis in np.indices(heat.shape)))
    shuffled = np.tile(heat, (SHUFFLES, 1, 1))
    for one in shuffled:
        one[covered] = rng.permutation(heat[covered])
    maps = {name: one[None] for name, one in maps.items()} | {"shuffled": shuffled}
    distance /= distance[covered].std()
    maps["centre"] = np.where(covered, np.exp(-(distance**2)), np.nan)[None]
    inside = (slides.share_of(region, heat.shape, CELL) > 0.5).astype(np.uint8)
    found = {"area": float(inside[covered].mean())}
    for name, many in maps.items():
        given = np.nan_to_num(many), np.tile(inside, (len(many), 1, 1))
        found[f"hit {name}"] = float(np.nanmean(hits(*given)))
        found[f"mass {name}"] = float(np.nanmean(mass_inside(*given)))
    return found


def tile_auc(cells: np.ndarray, p: np.ndarray, share: np.ndarray) -> float:
    """Return the AUC of tiles that are mostly SSA against tiles without any."""
    places = ((0, 0), (0, 1), (1, 0), (1, 1))
    ssa = np.mean([share[cells[:, 0] + r, cells[:, 1] + c] for r, c in places], axis=0)
    use = (ssa > 0.5) | (ssa == 0)
    return macro_auc((ssa[use] > 0.5).astype(int), np.stack([1 - p, p], 1)[use])


def main() -> None:
    """Measure the slides that are missing in the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=20)
    file = claims.STUDIES / "slides_synthetic.csv"
    rows = claims.read_rows(file).to_dict("records") if file.is_file() else []
    for key in plan(parser.parse_args().slides)[len(rows) :]:
        start = time.perf_counter()
        found = key | row(**key)
        facts = {"changed": "nothing", "device": device_name(), "commit": commit()}
        rows.append(found | {"seconds": round(time.perf_counter() - start, 1)} | facts)
        save_table(file, rows)
        print(rows[-1], flush=True)


STUDY = Study("slides", plan, row, drawn_only=True)

if __name__ == "__main__":
    main()
