"""A whole slide: pieces of a polyp on glass, folds, pen; a pyramid that OpenSlide reads."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import tifffile

from crc_helpers.tissue.cohort import as_parameters, plan_artefacts, plan_morphology, plan_slides
from crc_helpers.tissue.colour import within
from crc_helpers.tissue.crypts import GAP, wobble
from crc_helpers.tissue.parameters import CLASS_NAMES, TissueParameters, kind_of
from crc_helpers.tissue.section import cloud, pitch
from crc_helpers.tissue.slide import draw_slide

GLASS = 20_480, 8_192  # micrometres that the scanner took, width and height
DOWN = 16  # the last level, and the truth, are so many times smaller
BLOCK = 256  # pixels, the side of a block of the file
POOL = 120  # tiles planned a slide; pieces take from them, by kind
ROOM = 160.0  # micrometres of glass above and below a piece, into which it may bend
# Pieces: micrometres from surface to deep edge, places along the mucosa, range of the cut's angle.
PIECES = ((760.0, 6, (0, 6)), (1100.0, 4, (55, 72)), (760.0, 6, (0, 6)))
MARKERS = np.array([(0.9, 0.5, 0.1), (1.1, 0.3, 0.8), (0.8, 0.8, 0.7)], np.float32)  # densities
TRUTH = {"glass": 0, "HP": 127, "SSA": 255}  # grey levels of the mask


@dataclass(frozen=True)
class Piece:
    """A piece of tissue: its tiles along the mucosa, and where it lies, in micrometres."""

    tiles: tuple[TissueParameters, ...]
    seed: int
    side: float
    left: float
    top: float
    turned: bool  # the surface looks down


def plan_pieces(seed: int, ssa: bool) -> list[Piece]:
    """Plan the pieces of one polyp: two cut along the crypts, one across them.

    HP throughout; with ssa, a stretch of one or two pieces is SSA. What the places of a slide
    share, such as stain, scanner and width of the crypts, is drawn as for the tiles of a cohort.
    """
    seed = int(np.random.SeedSequence((seed, 10)).generate_state(1)[0])  # not that of a cohort
    rng, polyp = np.random.default_rng(seed), np.zeros(POOL, int)
    columns = plan_morphology(POOL, polyp, np.full(POOL, ssa), seed) | plan_artefacts(POOL, seed)
    pool = as_parameters(columns | plan_slides(polyp, seed, None)[0])
    of_kind = {name: [p for p in pool if kind_of(p) == name] for name in CLASS_NAMES}
    pieces = []
    carriers = rng.permutation(len(PIECES))[: rng.integers(1, 3)] if ssa else ()
    for i, (side, count, angles) in enumerate(PIECES):
        kinds = ["HP"] * count
        if i in carriers:
            long = int(rng.integers(2, count // 2 + 1))
            first = int(rng.integers(0, count - long + 1))
            kinds[first : first + long] = ["SSA"] * long
        tiles = [of_kind[kind].pop() for kind in kinds]
        # Only the fold is there on every slide, the pen is drawn on the glass.
        place = int(rng.integers(count))
        tiles = [replace(t, fold=float(j == place), pen=0.0) for j, t in enumerate(tiles)]
        angle = rng.uniform(*angles)
        tiles = [replace(t, cut_angle=angle, base_position=0.78) for t in tiles]
        width = count * side + (count - 1) * GAP
        left = rng.uniform(400, GLASS[0] - width - 400)
        top = rng.uniform(200, 700) + i * GLASS[1] / len(PIECES)
        turned = bool(rng.random() < 0.5)
        pieces.append(Piece(tuple(tiles), int(rng.integers(2**31)), side, left, top, turned))
    return pieces


def glass_colour(p: TissueParameters) -> np.ndarray:
    """What light through nothing looks like, float32 (3,); as in `colour.photograph`."""
    lamp = [1 - 0.06 * max(p.lamp, 0), 0.985, 0.98 + 0.10 * min(p.lamp, 0)]
    return np.round(255 * np.array(lamp)).astype(np.float32)


def draw_piece(piece: Piece, mpp: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a piece: uint8 (h, w, 3); where tissue and where SSA is, uint8 0 or 1 (h, w).

    Its edge is ragged, it bends, and around it is plain glass. SSA is the mucosa, surface to base,
    of the places that were planned as SSA.
    """
    size, k = round(piece.side / mpp), 1 / mpp
    drawn = draw_slide(piece.tiles, piece.seed, size, mpp)
    image, glass = drawn.image.transpose(1, 2, 0), glass_colour(piece.tiles[0])
    rng, shape = np.random.default_rng(piece.seed), image.shape[:2]
    y, x = np.ogrid[: shape[0], : shape[1]]
    border = np.minimum(np.minimum(x, shape[1] - 1 - x), np.minimum(y, shape[0] - 1 - y)) * mpp
    ragged = within(border - 45 - 22 * cloud(rng, shape, 220 * k, 3), 3)
    clear = cv2.blur(image, (9, 9)).min(axis=2) > 0.95 * glass.min()
    _, label = cv2.connectedComponents(clear.astype(np.uint8), connectivity=4)
    tops = np.unique(label[0])
    ragged = ragged * ~np.isin(label, tops[tops > 0])  # glass above the surface
    image = glass + ragged[..., None].astype(np.float32) * (image - glass)
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, round(120 * k)),) * 2)
    tissue, mucosa = (
        cv2.morphologyEx(mask, cv2.MORPH_CLOSE, near)
        for mask in ((ragged > 0.5).astype(np.uint8), drawn.glands)
    )
    columns = np.zeros(shape[1], bool)
    step = pitch(size, mpp)
    for i, tile in enumerate(piece.tiles):
        if kind_of(tile) == "SSA":
            columns[i * step : i * step + size] = True
            if i + 1 < len(piece.tiles) and kind_of(piece.tiles[i + 1]) == "SSA":
                columns[i * step + size : (i + 1) * step] = True
    layers = [np.round(image).astype(np.uint8), tissue, mucosa * tissue * columns]
    room = round(ROOM * k)
    blank = [glass.astype(int).tolist(), 0, 0]
    return tuple(
        np.ascontiguousarray(np.rot90(bend(layer, value, room, piece.seed), 2 * piece.turned))
        for layer, value in zip(layers, blank, strict=True)
    )


def bend(layer: np.ndarray, blank: int | list[int], room: int, seed: int) -> np.ndarray:
    """Add `room` rows of `blank` above and below a layer, and let it rise and fall by as much."""
    layer = cv2.copyMakeBorder(layer, room, room, 0, 0, cv2.BORDER_CONSTANT, value=blank)
    start = np.random.default_rng([seed, 1]).random()
    rise = wobble(start, np.linspace(0, 1, layer.shape[1]), 2.5)
    rise = (room * np.clip(rise / 1.6, -1, 1)).astype(np.float32)
    y, x = np.mgrid[: layer.shape[0], : layer.shape[1]].astype(np.float32)
    kind = cv2.INTER_LINEAR if layer.ndim == 3 else cv2.INTER_NEAREST
    return cv2.remap(layer, x, y + rise, kind, borderMode=cv2.BORDER_CONSTANT, borderValue=blank)


def draw_pen(seed: int, shape: tuple[int, int], k: float) -> np.ndarray:
    """A stroke of marker on the glass: its density, float32 (h, w), at k pixels a micron."""
    rng, canvas = np.random.default_rng([seed, 2]), np.zeros(shape, np.uint8)
    start, length = rng.uniform(0.05, 0.6) * GLASS[0], rng.uniform(3000, 6000)
    t = np.linspace(0, 1, 60)
    height = (0.5 + rng.uniform(-0.08, 0.08)) * GLASS[1] + 500 * wobble(rng.random(), t, 1)
    path = np.stack([start + length * t, height], 1) * k
    cv2.polylines(canvas, [np.round(path).astype(np.int32)], False, 255, max(1, round(260 * k)))
    return cv2.GaussianBlur(canvas, (0, 0), 1.2).astype(np.float32) / 400


def write_slide(path: Path, seed: int, ssa: bool, mpp: float = 1.0) -> np.ndarray:
    """Draw a slide into a tiled TIFF of three levels, each 4 times smaller than the one before.

    Returns the truth, uint8 (h, w) at the last level, with the grey levels of TRUTH. In memory are
    a piece of tissue, a row of blocks and the smaller levels. mpp: microns a pixel, at most 4.
    """
    width, height = (round(side / mpp / BLOCK) * BLOCK for side in GLASS)
    pieces = plan_pieces(seed, ssa)
    glass = glass_colour(pieces[0].tiles[0]).astype(np.uint8)
    truth = np.zeros((height // DOWN, width // DOWN), np.uint8)
    pasted = []
    for piece in pieces:
        image, tissue, region = draw_piece(piece, mpp)
        # To whole pixels of the truth, so that picture and truth lie on one grid.
        row, column = (int(at / mpp) // DOWN * DOWN for at in (piece.top, piece.left))
        pasted.append((row, column, image))
        place, small = np.s_[row // DOWN :, column // DOWN :], [s // DOWN for s in tissue.shape]
        view = truth[place][: small[0], : small[1]]
        for layer, value in ((tissue, TRUTH["HP"]), (region, TRUTH["SSA"])):
            view[cv2.resize(255 * layer, small[::-1], interpolation=cv2.INTER_AREA) > 127] = value
    pen = draw_pen(seed, truth.shape, 1 / (mpp * DOWN))
    marker = MARKERS[seed % len(MARKERS)]
    smaller = np.zeros((height // 4, width // 4, 3), np.uint8)

    def blocks() -> Iterator[np.ndarray]:
        for top in range(0, height, BLOCK):
            band = np.empty((BLOCK, width, 3), np.uint8)
            band[:] = glass
            for row, column, image in pasted:
                part = image[max(0, top - row) : max(0, top + BLOCK - row)]
                start = max(0, row - top)
                band[start : start + len(part), column : column + image.shape[1]] = part
            stroke = pen[top // DOWN : (top + BLOCK) // DOWN]
            if stroke.any():
                stroke = cv2.resize(stroke, (width, BLOCK), interpolation=cv2.INTER_LINEAR)
                where = stroke > 0
                light = np.exp(-stroke[where][:, None] * marker)
                band[where] = np.round(band[where] * light).astype(np.uint8)
            smaller[top // 4 : (top + BLOCK) // 4] = shrink(band)
            yield from cut_blocks(band)

    with tifffile.TiffWriter(path) as file:
        write_level(file, blocks(), (height, width), mpp)
        write_level(file, smaller, smaller.shape[:2], 4 * mpp, smaller=True)
        smallest = shrink(smaller)
        write_level(file, smallest, smallest.shape[:2], 16 * mpp, smaller=True)
    return truth


def write_level(
    file: tifffile.TiffWriter, data: object, shape: tuple, mpp: float, smaller: bool = False
) -> None:
    """Write one level of the pyramid, its blocks or its picture, to the file."""
    file.write(
        data,
        shape=(*shape, 3),
        dtype=np.uint8,
        tile=(BLOCK, BLOCK),
        photometric="rgb",
        compression="zlib",
        predictor=True,
        subfiletype=int(smaller),
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def shrink(image: np.ndarray) -> np.ndarray:
    """Average every 4 x 4 pixels."""
    size = image.shape[1] // 4, image.shape[0] // 4
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def cut_blocks(band: np.ndarray) -> Iterator[np.ndarray]:
    """The blocks of a row, left to right."""
    for left in range(0, band.shape[1], BLOCK):
        yield np.ascontiguousarray(band[:, left : left + BLOCK])
