"""A drawn slide, its tiles, and the region that decides in each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np

from crc_helpers.tissue.cells import draw_cells, draw_stroma, draw_vessels, dysplasia_at
from crc_helpers.tissue.colour import photograph, stain
from crc_helpers.tissue.parameters import (
    KINDS,
    OF_A_TILE,
    UNEQUIVOCAL,
    TissueParameters,
    kind_of,
    stream,
)
from crc_helpers.tissue.section import EDGE, SUPERSAMPLING, Scene, cut, pitch, settle

# The lower half of a crypt is diagnostic: there HP is straight, narrow and not serrated, and all
# that the rule counts shows there: dilatation, sideways growth, serration where none belongs.
BASAL_SHARE = 0.5


@dataclass(frozen=True)
class Drawing:
    """A tile and what is known about each of its pixels.

    image: uint8 (3, H, W), RGB. The masks are uint8 (H, W), 0 or 1. glands: crypts with their
    lumen, and the surface epithelium. lumina: inside of crypts. nuclei: all nuclei. diagnostic:
    in SSA the lower halves of the distorted crypts, which alone make the diagnosis; in HP the
    lower halves of all crypts, because their straight narrow shape is what rules SSA out; in
    tubular adenoma all dysplastic epithelium, that of the surface too; in normal mucosa all
    crypts from base to mouth, because only that nothing is wrong with any rules the others out.
    ink: marker and ink dot, which say nothing about the tissue.
    """

    image: np.ndarray
    glands: np.ndarray
    lumina: np.ndarray
    nuclei: np.ndarray
    diagnostic: np.ndarray
    ink: np.ndarray


def diagnostic_region(scene: Scene, size: int) -> np.ndarray:
    """What decides in each tile, as `Drawing` says, booleans (m, w); what is not gland is free."""
    label = scene.label[::SUPERSAMPLING, ::SUPERSAMPLING]
    distorted = scene.table([c.distortion >= UNEQUIVOCAL for c in scene.crypts], 0)[label] > 0
    kind = np.array([KINDS.index(kind_of(tile)) for tile in scene.tiles])
    width = scene.x.shape[1] - 2 * EDGE
    kind = kind[np.arange(width) // pitch(size, 1 / scene.k)]
    normal, _, ssa, adenoma = (np.pad(kind == i, EDGE, mode="edge") for i in range(4))
    basal = scene.height(label, scene.h) < BASAL_SHARE
    crypts = (normal | basal & np.where(ssa, distorted, ~distorted)) & (label != scene.surface)
    return np.where(adenoma, dysplasia_at(scene, label) >= UNEQUIVOCAL, crypts)


def draw_slide(
    tiles: Sequence[TissueParameters], seed: int, size: int = 224, mpp: float = 2.0
) -> Drawing:
    """Draw a strip of mucosa with all its tiles, which may differ in OF_A_TILE only, or ValueError.

    Upright: the surface is up. `divide` cuts the tiles out of it.
    """
    shared = [{k: v for k, v in asdict(t).items() if k not in OF_A_TILE} for t in tiles]
    if any(other != shared[0] for other in shared):
        raise ValueError(f"tiles of one slide may differ in {', '.join(OF_A_TILE)} only")
    scene = cut(tiles, seed, size, mpp)
    noise = 8 * scene.clouds[0]
    muscle = 0.5 + 0.5 * np.tanh((-scene.h - 34 + noise) / 8)
    to_membrane, to_lumen = settle(scene)
    layers = scene.layers
    layers["free"] = cv2.bitwise_not(cv2.dilate(layers["gland"], np.ones((5, 5), np.uint8)))
    draw_stroma(scene, muscle)
    draw_vessels(scene)
    draw_cells(scene, to_lumen)
    near = [a[::SUPERSAMPLING, ::SUPERSAMPLING] / SUPERSAMPLING for a in (to_membrane, to_lumen)]
    image, ink = photograph(scene, stain(scene, *near, muscle), size)
    layers["outside"][scene.label != scene.surface] = 0
    tissue = scene.coverage("outside") < 0.5
    gland = (scene.coverage("gland") >= 0.5) & tissue
    masks = [
        gland,
        (scene.coverage("lumen") >= 0.5) & tissue,
        scene.coverage("nuclei") >= 0.25,
        diagnostic_region(scene, size) & gland,
        ink,
    ]
    masks = [mask[EDGE:-EDGE, EDGE:-EDGE].astype(np.uint8) for mask in masks]
    return Drawing(image.transpose(2, 0, 1), *masks)


def divide(slide: Drawing, seed: int, mpp: float = 2.0) -> list[Drawing]:
    """The square tiles of a slide, left to right, each turned and mirrored as it happens to be."""
    size, width = slide.glands.shape
    starts = range(0, width, pitch(size, mpp))
    tiles = []
    for start, turn in zip(starts, stream(seed, "turn").integers(0, 8, len(starts)), strict=True):
        parts = [getattr(slide, f.name)[..., start : start + size] for f in fields(slide)]
        parts = [np.rot90(part, turn % 4, (-2, -1)) for part in parts]
        parts = [np.ascontiguousarray(part[..., ::-1] if turn > 3 else part) for part in parts]
        tiles.append(Drawing(*parts))
    return tiles


def draw(parameters: TissueParameters, seed: int, size: int = 224, mpp: float = 2.0) -> Drawing:
    """Draw one tile of size pixels at mpp micrometres a pixel: the same arguments, same bytes."""
    return divide(draw_slide([parameters], seed, size, mpp), seed, mpp)[0]


@dataclass(frozen=True)
class Slide:
    """The parameters of a slide's tiles, its seed, its first row in the cohort, file names."""

    parameters: tuple[TissueParameters, ...]
    seed: int
    first: int
    names: tuple[str, ...]

    def draw(self, size: int = 224, mpp: float = 2.0) -> list[Drawing]:
        """Its tiles."""
        return divide(draw_slide(self.parameters, self.seed, size, mpp), self.seed, mpp)
