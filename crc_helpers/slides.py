"""Whole slides: tissue, tiles read in microns, the map of a slide and its score (lesson 10)."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
from lightning.fabric import Fabric
from matplotlib.figure import Figure
from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError
from scipy import ndimage
from torch import nn

from crc_helpers import figures, style
from crc_helpers.fine_tuning import predict
from crc_helpers.models import Classifier, load_classifier, read_facts
from crc_helpers.sources.base import DataError
from crc_helpers.sources.drawn import FIELD

CELL = 16  # pixels of the thumbnail from one tile to the next, half a tile
LARGEST = 1e9  # pixels of the level that the thumbnail is made of
FAINT = 20  # grey levels of saturation that tissue has more than glass, at least
KNOWN = ("synthetic", "mhist")  # data sets whose tiles show FIELD microns


@dataclass(frozen=True)
class Scale:
    """Microns a pixel of level 0, and microns along a tile."""

    mpp: float
    field: float

    @property
    def side(self) -> float:
        """Pixels of level 0 along a tile."""
        return self.field / self.mpp

    @property
    def down(self) -> float:
        """Pixels of level 0 along a pixel of the thumbnail."""
        return self.side / 2 / CELL


# --- Open and read --------------------------------------------------------------------------------


def open_slide(path: Path) -> OpenSlide:
    """Open a slide; DataError for a file that is none, or is damaged."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a slide, such as .svs, .ndpi, .mrxs or .tiff")
    try:
        return OpenSlide(path)
    except OpenSlideUnsupportedFormatError:
        why = "not a slide that OpenSlide reads, whatever its name; give a tiled TIFF, SVS or NDPI"
    except OpenSlideError as error:
        why = f"damaged or cut short ({error}); copy it again"
    raise DataError(f"{path}: {why}")


def scale_of(slide: OpenSlide, field: float, mpp: float | None = None) -> Scale:
    """Return a slide's scale, with tiles of `field` microns; mpp: where the file does not say it.

    Raises DataError where neither does.
    """
    mpp = mpp or float(slide.properties.get("openslide.mpp-x", 0))
    if not 0 < mpp < math.inf:
        raise DataError("the slide does not say its microns per pixel: give them with --mpp")
    return Scale(mpp, field)


def read_region(slide: OpenSlide, x: int, y: int, level: int, size: tuple) -> np.ndarray:
    """Return a region as uint8 (h, w, 3); what the scanner left out is white.

    x, y: pixels of level 0. size: width and height in pixels of the level. DataError for damage.
    """
    try:
        region = np.asarray(slide.read_region((x, y), level, size))
    except OpenSlideError as error:
        raise DataError(f"the slide is damaged or cut short ({error}): copy it again") from None
    return np.where(region[..., 3:] == 0, 255, region[..., :3]).astype(np.uint8)


def thumbnail(slide: OpenSlide, scale: Scale) -> np.ndarray:
    """Return the whole slide, uint8 (h, w, 3), with CELL pixels to half a tile.

    Read in strips, so that memory stays small. Raises DataError for a large slide of one level.
    """
    level = slide.get_best_level_for_downsample(scale.down)
    (w, h), zoom = slide.level_dimensions[level], slide.level_downsamples[level]
    if w * h > LARGEST:
        raise DataError(
            f"the slide's smallest level has {w:,} x {h:,} pixels: give it smaller ones, e.g. vips"
            " tiffsave SLIDE NEW.tif --tile --pyramid --compression jpeg"
        )
    width, height = (math.ceil(side / scale.down) for side in slide.dimensions)
    strips = []
    for top in range(0, height, 64):
        rows = min(64, height - top)
        a, b = (round(row * scale.down / zoom) for row in (top, top + rows))
        strip = read_region(slide, 0, round(a * zoom), level, (w, max(b - a, 1)))
        strips.append(cv2.resize(strip, (width, rows), interpolation=cv2.INTER_AREA))
    return np.concatenate(strips)


# --- Tissue and tiles -----------------------------------------------------------------------------


def find_tissue(thumb: np.ndarray) -> np.ndarray:
    """Return where tissue is, booleans (h, w): saturated places, their small holes filled.

    Otsu's threshold, IEEE Trans Syst Man Cybern 9:62 (1979). Pieces and holes under a quarter of a
    tile are dropped. DataError where nothing is more saturated than the rest.
    """
    saturation = cv2.medianBlur(cv2.cvtColor(thumb, cv2.COLOR_RGB2HSV)[..., 1], 5)
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)
    tissue = saturation > threshold
    if not tissue.any() or saturation[tissue].mean() - saturation[~tissue].mean() < FAINT:
        raise DataError("no tissue on the slide: no part is more saturated than the rest")
    tissue = ~drop_small(~drop_small(tissue, CELL**2), CELL**2)
    if not tissue.any():
        raise DataError("no tissue on the slide that is as large as a quarter of a tile")
    return tissue


def drop_small(mask: np.ndarray, least: int) -> np.ndarray:
    """Return a mask without its connected parts of fewer than `least` pixels."""
    label, _ = ndimage.label(mask)
    large = np.bincount(label.ravel()) >= least
    large[0] = False
    return large[label]


def tile_cells(tissue: np.ndarray) -> np.ndarray:
    """Return row and column, int (n, 2), of the tiles that are at least half tissue.

    In cells of CELL pixels of the thumbnail: a tile is two cells wide and begins at every cell.
    """
    rows, columns = (side // CELL for side in tissue.shape)
    cells = tissue[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    share = cells.mean(axis=(1, 3))
    tiles = (share[1:, 1:] + share[1:, :-1] + share[:-1, 1:] + share[:-1, :-1]) / 4
    found = np.argwhere(tiles >= 0.5)
    if not len(found):
        raise DataError("no tile of the slide is half filled with tissue: it is too small a piece")
    return found


def read_tile(slide: OpenSlide, x: int, y: int, side: float, size: int) -> np.ndarray:
    """Return the tile at (x, y), `side` pixels of level 0 wide, as uint8 (3, size, size)."""
    level = slide.get_best_level_for_downsample(side / size)
    pixels = round(side / slide.level_downsamples[level])
    tile = read_region(slide, x, y, level, (pixels, pixels))
    return cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)


def corners(cells: np.ndarray, side: float) -> np.ndarray:
    """Return the upper left corners (x, y) of tiles, int (n, 2), in pixels of level 0."""
    return np.round(cells[:, ::-1] * side / 2).astype(int)


def predict_tiles(
    slide: OpenSlide, at: np.ndarray, side: float, network: Callable, size: int, batch: int = 64
) -> Iterator[np.ndarray]:
    """Yield the answers to the tiles at corners (n, 2), a batch at a time; `network` takes tiles.

    Tiles are read by several threads, and only one batch is in memory.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(at), batch):
            read = partial(read_tile, slide, side=side, size=size)
            yield network(np.stack(list(pool.map(read, *at[start : start + batch].T.tolist()))))


def load_network(weights: Path, field: float | None = None) -> tuple[Classifier, dict[str, Any]]:
    """Return a classifier and its facts, with `field`, the microns of its training tiles.

    Raises DataError for an encoder, and where nobody says how large its tiles were.
    """
    facts = read_facts(weights)
    if "classes" not in facts:
        raise DataError(f"{weights}: weights of no classifier; give those of lesson 04")
    field = field or facts.get("field") or (FIELD if facts["data"] in KNOWN else None)
    if not field:
        raise DataError(
            f"{weights}: their scale is unknown; give a tile's side in microns with --field"
        )
    model, _ = load_classifier(weights)
    return model, facts | {"field": float(field)}


def require_detail(scale: Scale, size: int) -> None:
    """Raise DataError for a slide that is coarser than the tiles that a network was trained on."""
    if scale.side < 0.9 * size:
        raise DataError(
            f"the slide has {scale.mpp:g} microns per pixel and the network was trained at"
            f" {scale.field / size:.2g}: scan it at a higher magnification"
        )


def classify(model: nn.Module, size: int, fabric: Fabric) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from tiles, uint8 (n, 3, H, W), to probabilities (n, C)."""
    return partial(predict, model, size=size, fabric=fabric)


# --- Map and score --------------------------------------------------------------------------------


def heat_map(cells: np.ndarray, p: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mean p of the tiles over each cell, float (rows, columns); NaN without a tile.

    cells: (n, 2), and p: (n,) of tiles that are two cells wide. shape: of the thumbnail, pixels.
    """
    total, count = np.zeros((2, *(side // CELL for side in shape)))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.add.at(total, (cells[:, 0] + row, cells[:, 1] + column), p)
        np.add.at(count, (cells[:, 0] + row, cells[:, 1] + column), 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def share_of(mask: np.ndarray, shape: tuple[int, int], side: float) -> np.ndarray:
    """Return a mask's share of each cell of a map of this shape; side: mask pixels a cell."""
    part = mask[: round(shape[0] * side), : round(shape[1] * side)].astype(np.float32)
    return cv2.resize(part, shape[::-1], interpolation=cv2.INTER_AREA)


def top_k(p: np.ndarray, k: int = 10) -> float:
    """Return the mean of the k largest of p (n,), of all where there are fewer."""
    return float(np.sort(p)[-k:].mean())


def slide_scores(p: np.ndarray) -> dict[str, float]:
    """Return a slide's scores from its tiles' p (n,): their mean, and that of the top ten."""
    return {"mean": float(p.mean()), "top_10": top_k(p)}


def draw_map(
    thumb: np.ndarray, tissue: np.ndarray, heat: np.ndarray, scale: Scale, name: str
) -> Figure:
    """Draw a slide, its tissue outlined, and its map of p(name) on a scale from 0 to 1."""
    step = -(-max(tissue.shape) // 2000)  # finer than the page would only take memory
    thumb, tissue, cell = thumb[::step, ::step], tissue[::step, ::step], CELL / step
    height, width = thumb.shape[:2]
    wide = width > height  # then the map lies below, else beside
    inches = (18 if wide else 4.5) * height / width + 0.9
    figure = plt.figure(figsize=(10.5, inches), layout="constrained")
    slide, map_ = figure.subplots(2 if wide else 1, 1 if wide else 2)
    figures.show_tile(slide, thumb.transpose(2, 0, 1), "slide, tissue outlined", tissue)
    map_.imshow(thumb.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    extent = (0, heat.shape[1] * cell, heat.shape[0] * cell, 0)
    look = {"cmap": style.HEAT, "vmin": 0, "vmax": 1, "alpha": 0.75, "interpolation": "nearest"}
    shown = map_.imshow(heat, extent=extent, **look)
    figures.outline(map_, tissue)
    map_.set(xlim=slide.get_xlim(), ylim=slide.get_ylim())
    map_.set_title(f"map, mean of the tiles over each {scale.field / 2:g} µm", fontsize=10)
    map_.set_axis_off()
    microns = scale.down * scale.mpp * step
    bar = max(n for n in (50, 200, 500, 2000, 5000) if n <= max(width * microns / 5, 50))
    for ax in (slide, map_):
        figures.scale_bar(ax, microns, bar)
    words = {"label": f"p({style.drawable(name)}), fixed scale", "shrink": 0.5, "aspect": 25}
    figure.colorbar(shown, ax=[slide, map_], **words)
    return figure


def polygons(mask: np.ndarray, down: float) -> list[list[list[list[float]]]]:
    """Return the outlines of a mask's parts as polygons of GeoJSON (RFC 7946).

    A polygon is its outer ring, then its holes, the other way round. down: as in `geojson`.
    """
    fine = np.kron(mask, np.ones((4, 4), np.uint8)).astype(np.uint8)  # outlines between pixels
    rings, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found: dict[int, list] = {}
    for i in sorted(range(len(rings)), key=lambda i: tree[0][i][3] >= 0):  # outer ones first
        ring, parent = (rings[i][:, 0] + 0.5) * down / 4, int(tree[0][i][3])
        area = cv2.contourArea(ring.astype(np.float32), oriented=True)
        ring = ring if (area > 0) == (parent < 0) else ring[::-1]
        closed = np.concatenate([ring, ring[:1]]).round(1).tolist()
        found.setdefault(i if parent < 0 else parent, []).append(closed)
    return list(found.values())


def geojson(regions: dict[str, np.ndarray], down: Sequence[float], colours: dict) -> dict:
    """Return regions by name as a FeatureCollection, in pixels of level 0, as QuPath imports it.

    down: pixels of level 0 along a pixel of each region's mask. colours: "#rrggbb" by name.
    """
    features = []
    for (name, mask), factor in zip(regions.items(), down, strict=True):
        rgb = [int(colours[name][i : i + 2], 16) for i in (1, 3, 5)]
        about = {"objectType": "annotation", "classification": {"name": name, "color": rgb}}
        for rings in polygons(mask, factor):
            shape = {"type": "Polygon", "coordinates": rings}
            features.append({"type": "Feature", "geometry": shape, "properties": about})
    return {"type": "FeatureCollection", "features": features}
