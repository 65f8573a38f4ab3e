"""The section: the plane that cuts the crypts, and the layers that it fills."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from crc_helpers.tissue.crypts import GAP, LEAN, Crypt, Tube, build, lay_out, span, wobble
from crc_helpers.tissue.parameters import TissueParameters, stream

SUPERSAMPLING = 2  # canvas pixels a tile pixel and axis: smooth edges
EDGE = 8  # tile pixels drawn around the slide and cut off, so that its border looks like the rest
CUT_HEIGHT = 45.0  # micrometres above the base at which a cross section meets the first row
OFF_AXIS = 12.0  # micrometres by which a slanted cut may miss the axis of the first row's bases
SCRATCH = 110.0  # square micrometres of lumen below which there is none
MEMBRANE = 14.0  # micrometres of lamina propria that two crypts leave between them
LAYERS = ("gland", "lumen", "outside", "free", "border", "mucin", "nuclei", "vessel", "red")


@dataclass
class Scene:
    """A slide while it is drawn.

    Coordinates are float32 (m, w), a tile pixel each, in micrometres: x along the mucosa, v above
    the muscularis in the section, h above it in the body, z out of the upright plane. The label
    and the uint8 layers lie on the canvas, SUPERSAMPLING times finer.
    """

    tiles: Sequence[TissueParameters]
    seed: int
    k: float  # tile pixels a micrometre
    crypts: list[Crypt]
    x: np.ndarray
    v: np.ndarray
    h: np.ndarray
    z: np.ndarray
    clouds: list[np.ndarray]  # noise of 60, 12 and 2 micrometres
    label: np.ndarray  # place of the nearest crypt in the list + 1; SURFACE
    layers: dict[str, np.ndarray]

    @property
    def p(self) -> TissueParameters:
        """What all tiles of the slide share."""
        return self.tiles[0]

    @property
    def surface(self) -> int:
        """The label of the epithelium that covers the mucosa."""
        return len(self.crypts) + 1

    def table(self, values: Sequence[float], surface: float) -> np.ndarray:
        """A lookup from label to one value a crypt, float32; the first is not used."""
        return np.array([0, *values, surface], np.float32)

    def height(self, label: np.ndarray, h: np.ndarray) -> np.ndarray:
        """Height in its crypt of each place, 0 base to 1 mouth."""
        base = self.table([c.base for c in self.crypts], -1e6)[label]
        return np.clip((h - base) / self.p.crypt_length, 0, 1)

    def coverage(self, name: str) -> np.ndarray:
        """A layer at the tile's resolution, float32 (m, w), 0 to 1."""
        layer, (m, w) = self.layers[name], self.x.shape
        return cv2.resize(layer, (w, m), interpolation=cv2.INTER_AREA) / np.float32(255)

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column on the canvas of points (n, 2), clipped to it."""
        rows, columns = self.label.shape
        return (
            np.clip(points[:, 1].astype(int), 0, rows - 1),
            np.clip(points[:, 0].astype(int), 0, columns - 1),
        )


def cloud(rng: np.random.Generator, shape: tuple, grain: float, octaves: int = 2) -> np.ndarray:
    """Smooth noise, float32, about zero mean and unit spread, with spots of grain pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        m, n = (int(np.ceil(side * 2**octave / grain)) + 2 for side in shape)
        grid = rng.standard_normal((m, n), dtype=np.float32)
        total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total * 1.2


def pitch(size: int, mpp: float) -> int:
    """Pixels from the left border of one tile of a slide to that of the next."""
    return size + round(GAP / mpp)


def cut(tiles: Sequence[TissueParameters], seed: int, size: int, mpp: float) -> Scene:
    """Lay the section through the crypts: where each pixel lies in the body of the mucosa."""
    p, k, fov = tiles[0], 1 / mpp, size * mpp
    shape = size + 2 * EDGE, pitch(size, mpp) * (len(tiles) - 1) + size + 2 * EDGE
    rng = stream(seed, "texture")
    clouds = [cloud(rng, shape, 60 * k, 3), cloud(rng, shape, 12 * k), cloud(rng, shape, 2.2 * k)]
    # The mucosa rises and falls a little, and leans to one side and the other.
    rng, along = stream(seed, "plane"), np.linspace(0, 1, shape[1])
    x = ((np.arange(shape[1], dtype=np.float32) - EDGE + 0.5) * mpp)[None]
    swell = np.clip(8 * wobble(rng.random(), along, 0.7 * len(tiles)), -9, 9)
    lean = np.clip(0.12 * wobble(rng.random(), along, 0.5 * len(tiles)), -LEAN, LEAN)
    y = ((np.arange(shape[0], dtype=np.float32) - EDGE + 0.5) * mpp)[:, None]
    v = (p.base_position * fov + swell - y).astype(np.float32)
    c, s = np.cos(np.deg2rad(p.cut_angle)), np.sin(np.deg2rad(p.cut_angle))
    label = np.zeros([SUPERSAMPLING * side for side in shape], np.uint16)
    scene = Scene(
        tiles,
        seed,
        k,
        lay_out(tiles, seed, fov, pitch(size, mpp) * mpp),
        (x - lean * c * v).astype(np.float32),
        v,
        (v * c + CUT_HEIGHT * s).astype(np.float32),
        (v * s - min(0.35 * p.crypt_length * s, OFF_AXIS)).astype(np.float32),
        clouds,
        label,
        {name: np.zeros(label.shape, np.uint8) for name in LAYERS},
    )
    carve(scene)
    cover(scene)
    return scene


def carve(scene: Scene) -> None:
    """Where the section meets crypts and their lumina; between two a membrane's width is left."""
    p, (m, w) = scene.p, scene.x.shape
    best, second = (np.full((m, w), -1e3, np.float32) for _ in range(2))
    inside, owner = best.copy(), np.zeros((m, w), np.uint16)
    low, high = float(scene.z.min()), float(scene.z.max())
    scene.crypts = [c for c in scene.crypts if low - span(c, p) < c.z < high + span(c, p)]
    angle = np.deg2rad(p.cut_angle)
    for place, (crypt, tubes) in enumerate(
        zip(scene.crypts, build(scene.crypts, p, scene.seed), strict=True), 1
    ):
        boxes = [window(scene, crypt, tube, np.cos(angle), np.sin(angle)) for tube in tubes]
        met = [(box, tube) for box, tube in zip(boxes, tubes, strict=True) if box]
        if not met:
            continue
        r0, c0 = (min(box[axis].start for box, _ in met) for axis in (0, 1))
        r1, c1 = (max(box[axis].stop for box, _ in met) for axis in (0, 1))
        outer, lumen = (np.full((r1 - r0, c1 - c0), -1e3, np.float32) for _ in range(2))
        # Over the width of one crypt the mucosa is level.
        column = min(max(int(crypt.x * scene.k) + EDGE, 0), w - 1)
        for (rows, columns), tube in met:
            part = np.s_[rows.start - r0 : rows.stop - r0, columns.start - c0 : columns.stop - c0]
            z, h = (a[rows, column : column + 1] for a in (scene.z, scene.h))
            found = tube(scene.x[rows, columns] - crypt.x, z - crypt.z, h)
            np.maximum(outer[part], found[0], out=outer[part])
            np.maximum(lumen[part], found[1], out=lumen[part])
        box = slice(r0, r1), slice(c0, c1)
        claim = outer + np.float32(30 * crypt.distortion)  # the more distorted takes the room
        wins = claim > best[box]
        np.maximum(second[box], np.minimum(claim, best[box]), out=second[box])
        np.maximum(best[box], claim, out=best[box])
        np.copyto(inside[box], lumen, where=wins)
        owner[box][wins] = place
    bonus = scene.table([30 * crypt.distortion for crypt in scene.crypts], 0)[owner]
    depth = np.clip(np.minimum(best - bonus, best - second - MEMBRANE), -20, 20)
    depth = cv2.GaussianBlur(depth, (0, 0), 3.0 * scene.k)  # round corners where tubes meet
    inside = cv2.GaussianBlur(np.clip(inside, -20, 20), (0, 0), 2.4 * scene.k)
    size = scene.label.shape[::-1]
    finer = [cv2.resize(a, size, interpolation=cv2.INTER_LINEAR) for a in (depth, inside)]
    scene.layers["gland"][finer[0] > 0] = 255
    scene.layers["lumen"][(finer[0] > 0) & (finer[1] > 1)] = 255
    scene.label = cv2.resize(owner, size, interpolation=cv2.INTER_NEAREST)


def window(scene: Scene, crypt: Crypt, tube: Tube, c: float, s: float) -> tuple | None:
    """Rows and columns in which the section may meet a tube; None where it doesn't."""
    low, high = ((height - CUT_HEIGHT * s) / max(c, 1e-3) for height in tube.heights)
    if s > 1e-3:
        shift = min(0.35 * scene.p.crypt_length * s, OFF_AXIS)
        low = max(low, (crypt.z + shift - tube.reach) / s)
        high = min(high, (crypt.z + shift + tube.reach) / s)
    (m, w), top, slack = scene.x.shape, float(scene.v[0, 0]), 20  # the mucosa rises less than that
    rows = max(0, int((top - high - slack) * scene.k)), min(m, int((top - low + slack) * scene.k))
    middle, half = crypt.x * scene.k + EDGE, (tube.reach + LEAN * max(high, 0)) * scene.k
    columns = max(0, int(middle - half)), min(w, int(middle + half) + 2)
    if low > high or rows[0] >= rows[1] or columns[0] >= columns[1]:
        return None
    return slice(*rows), slice(*columns)


def cover(scene: Scene) -> None:
    """The epithelium of the surface, and what lies beyond it."""
    noise = 9 * scene.clouds[0] + 2 * scene.clouds[1]
    depth = cv2.resize(scene.p.crypt_length - scene.h + noise, scene.label.shape[::-1])
    layers, gland = scene.layers, scene.layers["gland"] > 0
    surface = (depth < 22) & ~gland
    scene.label[surface] = scene.surface
    layers["gland"][surface] = 255
    layers["outside"][surface & (depth < 0) | (depth < -12)] = 255
    layers["lumen"] |= layers["outside"]


def settle(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Keep the epithelium whole; distances to membrane and lumen, canvas pixels."""
    k, layers = scene.k * SUPERSAMPLING, scene.layers
    to_membrane = cv2.distanceTransform(layers["gland"], cv2.DIST_L2, 3)
    layers["lumen"][(to_membrane < 9.5 * k) & (layers["outside"] == 0)] = 0
    # What a tangential cut leaves of single teeth would look like scratches.
    _, label, stats, _ = cv2.connectedComponentsWithStats(layers["lumen"], connectivity=4)
    layers["lumen"][(stats[:, cv2.CC_STAT_AREA] < SCRATCH * k**2)[label]] = 0
    to_lumen = cv2.distanceTransform(255 - layers["lumen"], cv2.DIST_L2, 3)
    return to_membrane, to_lumen


def fill(canvas: np.ndarray, polygon: np.ndarray, value: int = 255) -> None:
    """Fill a polygon (n, 2), canvas pixels, in place."""
    cv2.fillPoly(canvas, [np.round(polygon * 8).astype(np.int32)], value, shift=3)


def fill_eggs(
    canvas: np.ndarray,
    centre: np.ndarray,
    along: np.ndarray,
    across: np.ndarray,
    angle: np.ndarray,
    value: np.ndarray,
) -> None:
    """Fill n egg shapes in place: centres (n, 2), semi-axes (n,) in canvas pixels, grey 0-255."""
    a = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    u = along[:, None] * np.cos(a)
    v = across[:, None] * np.sin(a) * (1 + 0.25 * np.cos(a))
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    points = centre[:, None, :] + np.stack([u * c - v * s, u * s + v * c], 2)
    for polygon, grey in zip(np.round(points * 8).astype(np.int32), value.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, grey, shift=3)
