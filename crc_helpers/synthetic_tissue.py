"""Draw H&E tiles of colorectal polyps whose diagnosis is known to the pixel.

A tile shows hyperplastic-polyp-like (HP) or sessile-serrated-adenoma-like (SSA) crypts. Geometry
is laid out in micrometres in an upright frame (surface up, muscularis mucosae down), turned into
the tile's frame, filled with cells, and coloured by the Beer-Lambert law. The label is never
painted on: `diagnose` reads it from the distortion of the crypts that are drawn.

Sources: WHO Classification of Tumours, Digestive System (2019) for the criteria; Ruifrok &
Johnston, Anal Quant Cytol Histol 23:291 (2001) for the stain vectors; Wei et al., arXiv 2101.12355
(2021) for the votes of seven readers. A teaching model, not for diagnosis.
"""

from dataclasses import dataclass, field, fields

import cv2
import numpy as np

CLASS_NAMES = ("HP", "SSA")
UNEQUIVOCAL = 0.5  # distortion from which a crypt alone makes the diagnosis of SSA
BASAL_SHARE = 0.27  # the lowest part of a crypt, as a share of its length, that is diagnostic
CRITERIA = {"basal_dilatation": 0.4, "horizontal_growth": 0.4, "serration_depth": 0.2}

# Optical density of unit concentration in red, green and blue. The third is what two stains
# cannot explain: the yellow of haemoglobin in red cells.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
HAEMOGLOBIN = np.array([0.02, 0.35, 0.80], np.float32)

SUPERSAMPLING = 2  # canvas pixels a tile pixel and axis: smooth edges
PAD = 16  # canvas pixels drawn around the tile and cut off, so that its border looks like the rest
SURFACE = 255  # label of the epithelium that covers the mucosa
DEEP = 0.3  # cross sections below this level of the crypt show its base
LENGTHWISE = 20.0  # degrees: below this angle of cut a crypt runs through the whole tile
STREAMS = ("pose", "layout", "shape", "cells", "stroma", "vessels", "texture", "fibres", "sensor")
LAYERS = ("gland", "lumen", "outside", "free", "border", "mucin", "nuclei", "vessel", "red")


def bounded(default: float, low: float, high: float):
    """A dataclass field with a default and the closed interval it must lie in."""
    return field(default=default, metadata={"bounds": (low, high)})


@dataclass(frozen=True)
class TissueParameters:
    """One tile, as a histologist would describe it; out of bounds raises ValueError.

    `severity` is the architectural distortion of the tile's worst crypt. The three criteria
    of the rule scale what that severity brings: 1 is typical, 0 absent, 2 twice as much.
    """

    severity: float = bounded(0.2, 0, 1)  # latent distortion, 0 none to 1 florid
    serration_depth: float = bounded(1.0, 0, 2)  # how far serration reaches down, relative
    basal_dilatation: float = bounded(1.0, 0, 2)  # width of the crypt base, relative
    horizontal_growth: float = bounded(1.0, 0, 2)  # feet along the muscularis (L, T), relative
    serration: float = bounded(0.6, 0, 1)  # height of the saw teeth in the upper crypt
    goblet_share: float = bounded(0.4, 0, 1)  # goblet cells among the cells of the upper half
    goblet_share_at_base: float = bounded(0.1, 0, 1)  # the same among the cells of the base
    gape: float = bounded(0.4, 0, 1)  # width of the lumen where nothing dilates it
    mucus: float = bounded(0.3, 0, 1)  # bluish mucus in the lumen, none to thick
    branching: float = bounded(0.2, 0, 1)  # share of crypts with a side branch
    cut_angle: float = bounded(0.0, 0, 90)  # degrees from the crypts' axis; 90 is a cross section
    base_position: float = bounded(0.8, 0.55, 0.95)  # height of the bases, 0 top to 1 bottom
    crypt_length: float = bounded(420.0, 370, 510)  # micrometres
    crypt_diameter: float = bounded(64.0, 50, 90)  # micrometres
    crypt_spacing: float = bounded(104.0, 90, 130)  # micrometres from axis to axis
    cellularity: float = bounded(0.5, 0, 1)  # lymphocytes in the lamina propria, none to dense
    haematoxylin: float = bounded(1.0, 0.5, 1.6)  # stain strength, relative
    eosin: float = bounded(1.0, 0.4, 1.8)  # stain strength, relative
    stain_turn: float = bounded(0.0, -12, 12)  # degrees that the stain vectors turn, red to blue
    lamp: float = bounded(0.0, -1, 1)  # colour of the light, -1 yellow to 1 blue
    focus: float = bounded(1.0, 0, 5)  # blur, standard deviation in micrometres
    noise: float = bounded(2.0, 0, 10)  # sensor noise, standard deviation in grey levels

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (low, high) = getattr(self, item.name), item.metadata["bounds"]
            if not low <= value <= high:
                raise ValueError(f"{item.name} = {value} is outside [{low}, {high}]")


@dataclass(frozen=True)
class Drawing:
    """A tile and what is known about each of its pixels.

    image: uint8 (3, H, W), RGB. The masks are uint8 (H, W), 0 or 1. glands: crypts with their
    lumen, and the surface epithelium. lumina: inside of crypts. nuclei: all nuclei. diagnostic:
    in SSA the basal parts of the distorted crypts, which alone make the diagnosis; in HP the
    basal parts of all crypts, because their straight narrow shape is what rules SSA out.
    """

    image: np.ndarray
    glands: np.ndarray
    lumina: np.ndarray
    nuclei: np.ndarray
    diagnostic: np.ndarray


@dataclass(frozen=True)
class Crypt:
    """One crypt in the upright frame; lengths in micrometres, features from 0 to 1."""

    number: int  # also keys its random stream
    x: float
    base: float  # y of the base; in cross sections of the centre
    height: float  # level of a cross section, 0 base to 1 mouth; -1 for a lengthwise crypt
    dilatation: float
    growth: float
    serration: float

    @property
    def distortion(self) -> float:
        """Weighted mean of the three criteria, 0 to 1."""
        return float(weigh(self.dilatation, self.growth, self.serration))


@dataclass(frozen=True)
class Frame:
    """Where the upright frame lies on the canvas: k canvas pixels a micrometre."""

    n: int
    k: float
    fov: float
    matrix: np.ndarray  # (2, 2), micrometres to canvas pixels about the centre

    def to_canvas(self, points: np.ndarray) -> np.ndarray:
        """Micrometres (n, 2) to canvas pixels (n, 2)."""
        return points @ self.matrix.T + (self.n - 1) / 2

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Upright x and y of every tile pixel, padding included, float32 (n / 2, n / 2) each."""
        axis = np.arange(0.5, self.n, SUPERSAMPLING, np.float32) - (self.n - 1) / 2
        (a, b), (c, d) = np.linalg.inv(self.matrix).astype(np.float32)
        return a * axis + b * axis[:, None], c * axis + d * axis[:, None]


# --- The rule ------------------------------------------------------------------------------------


def weigh(dilatation, growth, serration):
    """The distortion of a crypt: the mean of its three features, weighted by CRITERIA."""
    return (
        CRITERIA["basal_dilatation"] * dilatation
        + CRITERIA["horizontal_growth"] * growth
        + CRITERIA["serration_depth"] * serration
    )


def distortion(parameters: TissueParameters) -> float:
    """Distortion of the worst crypt of a tile, 0 to 1, known before anything is drawn."""
    return float(weigh(*express(parameters, 1.0)))


def express(parameters: TissueParameters, susceptibility: float) -> tuple[float, float, float]:
    """Dilatation, growth and depth of serration, 0 to 1, of a crypt more or less susceptible."""
    scale = parameters.severity * susceptibility
    return tuple(min(1.0, scale * getattr(parameters, name)) for name in CRITERIA)


def diagnose(distortions: np.ndarray) -> int:
    """1 (SSA) if one crypt is unequivocally distorted, else 0 (HP): WHO 2019."""
    return int((np.asarray(distortions) >= UNEQUIVOCAL).any())


# --- Layout --------------------------------------------------------------------------------------


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """Random numbers for one feature of one tile, independent of every other feature's."""
    return np.random.default_rng(np.random.SeedSequence((seed, STREAMS.index(name), index)))


def pose(seed: int, size: int, mpp: float) -> Frame:
    """Turn the tile by a multiple of 90 degrees and a small tilt, and mirror every second."""
    rng = stream(seed, "pose")
    angle = np.deg2rad(90 * rng.integers(4) + rng.uniform(-8, 8))
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    k = SUPERSAMPLING / mpp
    return Frame(size * SUPERSAMPLING + 2 * PAD, k, size * mpp, k * turn @ mirror)


def lay_out(parameters: TissueParameters, seed: int, fov: float = 448.0) -> list[Crypt]:
    """The crypts of a tile of fov micrometres; one well in view carries the full severity."""
    rng = stream(seed, "layout")
    lengthwise = parameters.cut_angle < LENGTHWISE
    places = (row_of_crypts if lengthwise else field_of_crypts)(parameters, fov, rng)
    x, base, height = places.T
    susceptibility = rng.beta(3.0, 1.0, len(x))  # a polyp's crypts resemble each other
    in_view = (np.abs(x) < 0.25 * fov) & (height < 0.2) & (np.abs(base) < 0.46 * fov)
    off_centre = np.abs(x) + 0.5 * np.abs(base) + np.where(in_view, 0, 10 * fov)
    susceptibility[np.argmin(off_centre)] = 1.0
    return [Crypt(i, *places[i], *express(parameters, susceptibility[i])) for i in range(len(x))]


def row_of_crypts(p: TissueParameters, fov: float, rng: np.random.Generator) -> np.ndarray:
    """Lengthwise crypts side by side: x, base and height = -1, float (n, 3)."""
    n = int(np.ceil(1.4 * fov / p.crypt_spacing)) + 1
    x = (np.arange(n) - (n - 1) / 2 + rng.uniform(-0.5, 0.5)) * p.crypt_spacing
    x = x + 0.07 * p.crypt_spacing * rng.standard_normal(n)
    base = (p.base_position - 0.5) * fov + 12 * rng.standard_normal(n)
    return np.stack([x, base, np.full(n, -1.0)], 1)


def field_of_crypts(p: TissueParameters, fov: float, rng: np.random.Generator) -> np.ndarray:
    """Cross sections on a jittered hexagonal grid, deep at the bottom: x, y, height, (n, 3)."""
    dx, dy = p.crypt_spacing, 0.87 * p.crypt_spacing / np.sin(np.deg2rad(p.cut_angle))
    rows, columns = int(1.3 * fov / dy) + 2, int(1.4 * fov / dx) + 2
    y, x = np.mgrid[:rows, :columns].reshape(2, -1).astype(float)
    deepest = (p.base_position - 0.5) * fov
    x = (x - columns / 2 + 0.5 * (y % 2)) * dx + 0.1 * dx * rng.standard_normal(len(x))
    y = deepest - 0.35 * dx - y * dy + 0.08 * dx * rng.standard_normal(len(y))
    # A slanted cut meets the crypts the higher, the farther they stand from the muscularis.
    height = np.clip((deepest - y) / (1.1 * fov) - 0.05, 0, 0.95)
    return np.stack([x, y, height], 1)


# --- Shapes --------------------------------------------------------------------------------------


def visible(feature: float) -> float:
    """How much of a feature shows, 0 to 1: a mild one hardly, a florid one plainly."""
    return feature**3 * (6 * feature**2 - 15 * feature + 10)


def wobble(rng: np.random.Generator, t: np.ndarray, cycles: float) -> np.ndarray:
    """Smooth noise along t (0 to 1) of about unit height and so many cycles, 30 at most."""
    knots = rng.standard_normal(64)  # always as many, so that what follows keeps its numbers
    at = t * 2 * cycles
    i, w = at.astype(int), at % 1
    w = w * w * (3 - 2 * w)
    return knots[i] * (1 - w) + knots[i + 1] * w


def teeth(rng: np.random.Generator, t: np.ndarray, count: float) -> np.ndarray:
    """Saw teeth along t, 0 to 1: sharp outward points, round tufts of epithelium between."""
    phase = (t * count + rng.uniform() + 0.35 * wobble(rng, t, count / 3)) % 1
    ramp = np.where(phase < 0.65, phase / 0.65, (1 - phase) / 0.35)
    return ramp**1.6 * (0.75 + 0.25 * wobble(rng, t, count / 2))


def ribbon(centre: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Polygon (2n, 2) around a centre line (n, 2) with a width to either side."""
    along = np.gradient(centre, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    return np.concatenate(
        [centre + normal * left[:, None], (centre - normal * right[:, None])[::-1]]
    )


def cap(s: np.ndarray, radius: float, power: float = 2.0) -> np.ndarray:
    """Half-width of a rounded end at distance s from its tip, relative; a high power is flat."""
    return (1 - np.clip(1 - s / radius, 0, 1) ** power) ** (1 / power)


Outlines = tuple[list[np.ndarray], list[np.ndarray]]  # polygons of the gland and of its lumen


def lengthwise(crypt: Crypt, p: TissueParameters, rng: np.random.Generator) -> Outlines:
    """A crypt cut along its axis: trunk, two feet at the base and perhaps a side branch."""
    t = np.linspace(0, 1, 170)
    s = t * (p.crypt_length + 25)  # micrometres from the base, a little beyond the mouth
    radius = p.crypt_diameter / 2
    x = crypt.x + 7 * wobble(rng, t, 1.5) + 2 * wobble(rng, t, 6)
    centre = np.stack([x, crypt.base - s], 1)
    belly = visible(crypt.dilatation) * np.exp(-((s / (1.9 * radius)) ** 2))
    outer = radius * (0.80 + 0.28 * t + 0.06 * wobble(rng, t, 8) + 1.1 * belly)
    outer = outer * cap(s, 0.9 * radius, 2 + 2 * crypt.dilatation)
    reach = 0.42 + 0.62 * crypt.serration  # HP: the upper half; SSA: down to the base
    depth = 24 * p.serration * np.clip((t - 1 + reach) / 0.15, 0, 1) * (0.7 + 0.3 * t)
    inner = 1.5 + 11 * p.gape * np.clip(t * 1.6 - 0.25, 0, 1) + 20 * belly
    inner = inner * cap(np.clip(s - 19, 0, None), 14)
    sides = [inner + depth * teeth(rng, t, len(t) / 9) * (s > 22) for _ in range(2)]
    glands, lumina = [ribbon(centre, outer, outer)], [ribbon(centre, *sides)]
    for shape in (*branch(centre, radius, p, rng), *feet(crypt, radius, p, rng)):
        glands.append(shape[0])
        lumina.append(shape[1])
    return glands, lumina


def feet(crypt: Crypt, radius: float, p: TissueParameters, rng: np.random.Generator) -> list:
    """Horizontal growth to one side (L, boot) or both (inverted T, anchor)."""
    growth = visible(crypt.growth)
    side, both, curl = rng.choice([-1, 1]), rng.uniform() < 0.5, rng.uniform(-6, 18)
    shapes = []
    for direction, share in ((side, 1.0), (-side, rng.uniform(0.6, 1.0) if both else 0.1)):
        # From inside the trunk outward: without growth the foot stays hidden in it.
        length = radius * 0.25 + (0.6 * radius + 100) * growth * share
        t = np.linspace(0, 1, 60)
        left = (1 - t) * length  # micrometres to the tip
        lift = (0.75 + 0.9 * (1 - t) ** 2) * radius + curl * t**2 + 4 * wobble(rng, t, 2)
        centre = np.stack([crypt.x + direction * t * length, crypt.base - lift], 1)
        width = (0.58 + 0.3 * growth) * radius * cap(left, 0.8 * radius)
        width = width * (1 + 0.08 * wobble(rng, t, 3))
        inside = (2 + 12 * growth) * cap(np.clip(left - 17, 0, None), 12)
        bite = 14 * p.serration * crypt.serration * np.clip((left - 20) / 10, 0, 1)
        sides = [inside + bite * teeth(rng, t, length / 22) for _ in range(2)]
        shapes.append((ribbon(centre, width, width), ribbon(centre, *sides)))
    return shapes


def branch(trunk: np.ndarray, radius: float, p: TissueParameters, rng: np.random.Generator) -> list:
    """A side branch that leaves the trunk and turns down beside it, in a share of crypts."""
    chance, side = rng.uniform(), rng.choice([-1, 1])
    root, t = trunk[rng.integers(60, 120)], np.linspace(0, 1, 60)
    x = root[0] + side * (1.45 * radius) * np.sin(t * np.pi / 2)
    y = root[1] + 85 * t**1.5 + 3 * wobble(rng, t, 2)
    width = 0.68 * radius * cap((1 - t) * 110, 0.7 * radius)
    inside = 4 * cap(np.clip((1 - t) * 110 - 17, 0, None), 12) + 4 * p.serration * teeth(rng, t, 4)
    inside = inside * (t < 0.85)
    centre = np.stack([x, y], 1)
    shapes = [(ribbon(centre, width, width), ribbon(centre, inside, inside))]
    return shapes if chance < p.branching else []


def crosswise(crypt: Crypt, p: TissueParameters, rng: np.random.Generator) -> Outlines:
    """A crypt cut across: round below, star-shaped above; dilated and lobed where distorted."""
    a = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    deep, dilatation = np.clip(1.1 - crypt.height / 0.45, 0, 1), visible(crypt.dilatation)
    turn, lobes = rng.uniform(0, 2 * np.pi), rng.integers(1, 4)
    noise = sum(rng.normal(0, 0.05) * np.cos(f * a + rng.uniform(0, 7)) for f in (2, 3, 4, 5))
    lobe = np.maximum(0, np.cos(lobes * (a - turn) / 2)) ** 2 * 1.35 * visible(crypt.growth) * deep
    radius = p.crypt_diameter / 2 * (0.92 + 0.3 * crypt.height + 0.45 * dilatation * deep)
    outer = radius * (1 + noise + lobe)
    reach = np.clip((crypt.height - 1 + (0.55 + 0.6 * crypt.serration)) / 0.12, 0, 1)
    star = 13 * p.serration * reach * teeth(rng, a / (2 * np.pi), rng.integers(4, 8))
    inner = 2 + (3 + 6 * crypt.height) * 2 * p.gape + (21 * dilatation + 24 * lobe) * deep + star
    stretch = 1 / np.sin(np.deg2rad(p.cut_angle))
    rim = np.stack([np.cos(a), np.sin(a) * stretch], 1)
    centre = np.array([crypt.x, crypt.base])
    return [centre + rim * outer[:, None]], [centre + rim * inner[:, None]]


# --- Canvas --------------------------------------------------------------------------------------


@dataclass
class Scene:
    """One tile while it is drawn: uint8 layers (n, n) at double resolution, padded."""

    p: TissueParameters
    seed: int
    frame: Frame
    crypts: list[Crypt]
    label: np.ndarray  # number of the crypt + 1; SURFACE; 0 lamina propria
    layers: dict[str, np.ndarray]

    def table(self, values: list[float], surface: float) -> np.ndarray:
        """A lookup (256,) from label to one value a crypt; 0 for the lamina propria."""
        lookup = np.zeros(256, np.float32)
        lookup[[c.number + 1 for c in self.crypts]] = values
        lookup[SURFACE] = surface
        return lookup

    def height(self, label: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height in its crypt of each place, 0 base to 1 mouth, from label and upright y."""
        level = self.table([c.height for c in self.crypts], 1.0)[label]
        base = self.table([c.base for c in self.crypts], 0.0)[label]
        return np.where(level >= 0, level, np.clip((base - y) / self.p.crypt_length, 0, 1))

    def coverage(self, name: str) -> np.ndarray:
        """A layer at the tile's resolution, float32 (n / 2, n / 2), 0 to 1."""
        half = (self.frame.n // SUPERSAMPLING,) * 2
        return cv2.resize(self.layers[name], half, interpolation=cv2.INTER_AREA) / np.float32(255)


def fill(canvas: np.ndarray, polygon: np.ndarray, value: int = 255) -> np.ndarray:
    """Fill a polygon (n, 2), canvas pixels, in place; returns it in eighths of a pixel, int32."""
    points = np.round(polygon * 8).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, shift=3)
    return points


def stamp(
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


def cloud(rng: np.random.Generator, n: int, grain: float, octaves: int = 2) -> np.ndarray:
    """Smooth noise, float32 (n, n), about zero mean and unit spread, with spots of grain pixels."""
    total = np.zeros((n, n), np.float32)
    for octave in range(octaves):
        m = int(np.ceil(n * 2**octave / grain)) + 2
        grid = rng.standard_normal((m, m), dtype=np.float32)
        total += cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total * 1.2


def draw_crypts(scene: Scene) -> None:
    """Fill outlines and lumina; where two crypts would touch, the less distorted gives way."""
    p, frame = scene.p, scene.frame
    blocked = np.zeros_like(scene.label)
    outline = lengthwise if p.cut_angle < LENGTHWISE else crosswise
    in_sight = [c for c in scene.crypts if max(abs(c.x), abs(c.base)) < 0.5 * frame.fov + 90]
    for crypt in sorted(in_sight, key=lambda c: -c.distortion):
        glands, lumina = outline(crypt, p, stream(scene.seed, "shape", crypt.number))
        own, inside = np.zeros_like(blocked), np.zeros_like(blocked)
        drawn = [fill(own, frame.to_canvas(polygon)) for polygon in glands]
        for polygon in lumina:
            fill(inside, frame.to_canvas(polygon))
        cv2.bitwise_and(own, cv2.bitwise_not(blocked), dst=own)
        scene.label[own > 0] = crypt.number + 1
        scene.layers["lumen"] |= cv2.bitwise_and(inside, own)
        cv2.fillPoly(blocked, drawn, 255, shift=3)
        cv2.polylines(blocked, drawn, True, 255, max(1, round(14 * frame.k)), shift=3)


def draw_surface(scene: Scene, depth: np.ndarray) -> None:
    """The epithelium of the surface, from the depth (n, n) below it in micrometres."""
    scene.label[(depth < 22) & (scene.label == 0)] = SURFACE
    outside = (depth < 0) & (scene.label == SURFACE) | (depth < -12)
    scene.layers["outside"][outside] = 255
    scene.layers["lumen"] |= scene.layers["outside"]


def settle(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Round the corners, keep the epithelium whole; distances to membrane and lumen, (n, n)."""
    k, layers = scene.frame.k, scene.layers
    soft = cv2.GaussianBlur((scene.label > 0).astype(np.uint8) * 255, (0, 0), 3.5 * k)
    grown = cv2.dilate(scene.label, np.ones((9, 9), np.uint8))
    scene.label = np.where(soft > 127, np.where(scene.label > 0, scene.label, grown), 0)
    layers["gland"] = (scene.label > 0).astype(np.uint8) * 255
    to_membrane = cv2.distanceTransform(layers["gland"], cv2.DIST_L2, 3)
    layers["lumen"][(to_membrane < 9.5 * k) & (layers["outside"] == 0)] = 0
    to_lumen = cv2.distanceTransform(255 - layers["lumen"], cv2.DIST_L2, 3)
    return to_membrane, to_lumen


# --- Cells ---------------------------------------------------------------------------------------


def draw_cells(scene: Scene, to_lumen: np.ndarray, y: np.ndarray) -> None:
    """Line every basement membrane with cells a few micrometres apart."""
    gland, step = scene.layers["gland"], max(1, round(4.4 * scene.frame.k))
    contours, _ = cv2.findContours(gland, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    rims = [c[:, 0].astype(np.float32) for c in contours if len(c) > 12 * step]
    if not rims:
        return
    tangent = np.concatenate(
        [np.roll(r, -step, 0)[::step] - np.roll(r, step, 0)[::step] for r in rims]
    )
    points = np.concatenate([r[::step] for r in rims])
    inward = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    inward /= np.linalg.norm(inward, axis=1, keepdims=True) + 1e-6
    probe = np.clip(points + 3 * scene.frame.k * inward, 0, len(gland) - 1).astype(int)
    inward[gland[probe[:, 1], probe[:, 0]] == 0] *= -1
    draw_epithelium(scene, points, inward, to_lumen, y)


def draw_epithelium(
    scene: Scene, points: np.ndarray, inward: np.ndarray, to_lumen: np.ndarray, y: np.ndarray
) -> None:
    """Border, mucin and basal nucleus of cells at points (n, 2) with inward normals (n, 2)."""
    p, k, layers = scene.p, scene.frame.k, scene.layers
    column, row = points.astype(int).T
    # Each cell looks its random numbers up at its place, so it stays itself when others move.
    side = len(to_lumen) // 3 + 1
    u = stream(scene.seed, "cells").random((side, side, 9))[row // 3, column // 3].T
    up = y[row // SUPERSAMPLING, column // SUPERSAMPLING]
    height = scene.height(scene.label[row, column], up)
    thick = np.clip(to_lumen[row, column], 9 * k, 27 * k)
    dark = darkness(scene, scene.label[row, column], height)
    angle = np.arctan2(inward[:, 1], inward[:, 0])
    tip = points + inward * (0.95 * thick)[:, None]
    for a, b in zip(points.astype(int).tolist(), tip.astype(int).tolist(), strict=True):
        cv2.line(layers["border"], a, b, 255)
    share = np.interp(height, [0.15, 0.45], [p.goblet_share_at_base, p.goblet_share])
    goblet = (u[0] < share) & (thick > 11 * k)
    mucin = points + inward * (thick * (0.50 + 0.2 * u[1]))[:, None]
    stamp(
        layers["mucin"],
        mucin[goblet],
        (thick * (0.22 + 0.14 * u[2]))[goblet],
        (k * (2.9 + 2.6 * u[3]))[goblet],
        angle[goblet],
        (150 + 100 * u[4])[goblet].astype(int),
    )
    # Crowded, tall, stratified nuclei in the proliferating base; small flat ones under mucin.
    depth = k * (3.4 + 1.6 * u[5] + (6 * dark + 2.5) * u[6] ** 2)
    slip = np.stack([-inward[:, 1], inward[:, 0]], 1) * (k * 2.4 * (u[8] - 0.5))[:, None]
    tall = k * (2.5 + 1.9 * u[7] + 0.9 * dark - 0.7 * goblet)
    stamp(
        layers["nuclei"],
        points + inward * depth[:, None] + slip,
        tall,
        k * (1.4 + 0.9 * u[1]),
        angle + 1.0 * (u[2] - 0.5),
        (120 + 100 * u[3] + 30 * dark).astype(int),
    )


def darkness(scene: Scene, label: np.ndarray, height: np.ndarray) -> np.ndarray:
    """How dark and crowded cells are, 0 to 1: the proliferating base of an undistorted crypt."""
    distorted = scene.table([c.distortion for c in scene.crypts], 1.0)[label]
    return np.clip(1 - height / 0.4, 0, 1) * (1 - distorted)


def draw_stroma(scene: Scene, muscle: np.ndarray) -> None:
    """Lymphocytes, plasma cells and fibroblasts where neither gland nor background is."""
    rng, n, k = stream(scene.seed, "stroma"), scene.frame.n, scene.frame.k
    at, u = rng.uniform(0, n - 1, (int(4200 * (n / k / 448) ** 2), 2)), rng.random((9999, 6))
    u = np.resize(u, (len(at), 6))
    column, row = at.astype(int).T
    crowd = np.clip(1 + 0.7 * cloud(rng, n // 4, 18 * k)[row // 4 - 1, column // 4 - 1], 0.1, 2.5)
    deep = muscle[row // 2, column // 2] > 0.5
    density = np.where(deep, 0.10, (0.10 + 0.45 * scene.p.cellularity) * crowd)
    keep = (scene.layers["free"][row, column] > 0) & (u[:, 0] < density)
    at, u, deep = at[keep], u[keep].T, deep[keep]
    spindle = deep | (u[1] < 0.25)
    fibre = np.where(deep[:, None], [1.0, 0.0], [0.25, 1.0]) @ scene.frame.matrix.T
    angle = np.arctan2(fibre[:, 1], fibre[:, 0]) + np.where(spindle, 0.8, 6.0) * (u[2] - 0.5)
    along = k * np.where(spindle, 3.6 + 2.5 * u[3], 2.2 + 1.3 * u[3])
    across = k * np.where(spindle, 1.0 + 0.5 * u[4], 1.9 + 1.0 * u[4])
    stamp(scene.layers["nuclei"], at, along, across, angle, (130 + 110 * u[5]).astype(int))


def draw_vessels(scene: Scene) -> None:
    """A dozen capillaries: pale winding tubes, most with red cells in them."""
    rng, n, k = stream(scene.seed, "vessels"), scene.frame.n, scene.frame.k
    t, red = np.linspace(0, 1, 16), [np.zeros((0, 2))]
    for _ in range(int(14 * (n / k / 448) ** 2) + 1):
        length, width = rng.uniform(15, 55) * k, rng.uniform(2.5, 5.5) * k
        bend = rng.normal(np.pi / 2, 0.5) + 0.5 * wobble(rng, t, 1)
        path = np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), 0) * length / 16
        path = path @ (scene.frame.matrix / k).T + rng.uniform(0, n, 2)
        sides = width * cap(np.minimum(t, 1 - t) * length, width)
        fill(scene.layers["vessel"], ribbon(path, sides, sides))
        cells = path[rng.integers(0, 16, rng.integers(0, 18))]
        red.append(cells + rng.normal(0, 0.3 * width, cells.shape))
    red = np.concatenate(red)
    size = k * rng.uniform(2.0, 3.0, len(red))
    stamp(scene.layers["red"], red, size, 0.9 * size, size, rng.integers(150, 255, len(red)))
    scene.layers["vessel"] &= scene.layers["free"]
    scene.layers["red"] &= scene.layers["free"]


# --- Colour --------------------------------------------------------------------------------------


def blend(below: np.ndarray, above: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    """One concentration over another where it covers, all (n, n)."""
    return below + (above - below) * cover


def fibres(grain: np.ndarray, x: np.ndarray, y: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Wavy streaks along y, float32 as x: drawn-out noise looked up at bent places."""
    at = x * 1.3 + wave + 256, y + wave + 256
    return cv2.remap(grain, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def stain(
    scene: Scene,
    to_membrane: np.ndarray,
    to_lumen: np.ndarray,
    muscle: np.ndarray,
    noise: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
) -> list[np.ndarray]:
    """Concentrations of haematoxylin, eosin and haemoglobin, float32 at the tile's resolution."""
    slow, mid, fine = noise
    k, rng = scene.frame.k / SUPERSAMPLING, stream(scene.seed, "fibres")
    cover = {name: scene.coverage(name) for name in scene.layers}
    # Fibres run along the crypts in the lamina propria, across them in the muscularis.
    grain = rng.standard_normal((10, 128), dtype=np.float32)
    grain = cv2.resize(grain, (512, 512), interpolation=cv2.INTER_CUBIC)
    wave = 9 * slow + 3 * mid
    streaks = blend(fibres(grain, x, y, wave), fibres(grain, y, x, wave), muscle)
    h = 0.14 + 0.05 * (mid + fine + muscle)
    e = 0.30 + 0.22 * muscle + 0.13 * streaks + 0.07 * slow + 0.06 * mid
    h, e = blend(h, 0.05, cover["vessel"]), blend(e, 0.10, cover["vessel"])
    # Epithelium: basal cytoplasm darker, apical paler with microvesicles, a brush border.
    depth = to_membrane / (to_membrane + np.minimum(to_lumen, 30 * k) + 0.1)
    label = scene.label[::SUPERSAMPLING, ::SUPERSAMPLING]
    dark = darkness(scene, label, scene.height(label, y))
    cell_h = 0.62 - 0.30 * depth + 0.3 * dark + 0.11 * fine + 0.07 * mid + 0.16 * cover["border"]
    brush = np.exp(-((to_lumen / (1.6 * k)) ** 2))
    cell_e = 0.36 + 0.05 * (mid + fine) + 0.18 * brush + 0.10 * (1 - depth)
    h = blend(h, blend(cell_h, 0.16 + 0.04 * mid, cover["mucin"]), cover["gland"])
    e = blend(e, blend(cell_e, 0.06, cover["mucin"]), cover["gland"])
    e = e + 0.2 * np.exp(-((to_membrane / (1.3 * k)) ** 2)) * cover["gland"]
    slime = np.clip(0.24 * scene.p.mucus * (1 + 0.5 * slow + 0.25 * mid), 0, 0.35)
    slime = slime * (1 - cover["outside"])
    h, e = blend(h, slime, cover["lumen"]), blend(e, 0.02 + 0.4 * slime, cover["lumen"])
    chromatin = cover["nuclei"] * (1 - cover["lumen"])
    h, e = h + chromatin * (1.8 + 0.25 * fine), e + 0.15 * chromatin
    return [
        np.maximum(a, 0).astype(np.float32)
        for a in (blend(h, 0, cover["red"]), blend(e, 0.75, cover["red"]), 0.5 * cover["red"])
    ]


def turn_stain(vector: np.ndarray, degrees: float) -> np.ndarray:
    """A stain vector turned in the plane of red and blue; never negative."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    red, green, blue = vector
    return np.maximum([c * red - s * blue, green, s * red + c * blue], 0.01).astype(np.float32)


def photograph(
    concentrations: list[np.ndarray], p: TissueParameters, seed: int, k: float, size: int
) -> np.ndarray:
    """Light through the stains (Beer-Lambert), lamp, blur and sensor noise: uint8 (3, H, W)."""
    stains = np.stack(
        [
            turn_stain(HAEMATOXYLIN, p.stain_turn) * p.haematoxylin,
            turn_stain(EOSIN, p.stain_turn) * p.eosin,
            HAEMOGLOBIN,
        ]
    )
    light = cv2.exp(-cv2.transform(cv2.merge(concentrations), stains.T))
    if p.focus > 0:
        light = cv2.GaussianBlur(light, (0, 0), p.focus * k)
    lamp = 255 * np.array([1 - 0.06 * max(p.lamp, 0), 0.985, 0.98 + 0.10 * min(p.lamp, 0)])
    tile = crop(light, size) * lamp.astype(np.float32)
    tile += p.noise * stream(seed, "sensor").standard_normal(tile.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(np.round(tile), 0, 255).astype(np.uint8).transpose(2, 0, 1))


# --- A tile --------------------------------------------------------------------------------------


def crop(field_: np.ndarray, size: int) -> np.ndarray:
    """Cut the padding off a field at the tile's resolution."""
    edge = PAD // SUPERSAMPLING
    return field_[edge : edge + size, edge : edge + size]


def diagnostic_region(scene: Scene, y: np.ndarray) -> np.ndarray:
    """Basal parts of the crypts that decide: the distorted ones in SSA, all of them in HP."""
    ssa = diagnose(np.array([c.distortion for c in scene.crypts]))
    decisive = [c.height < DEEP and (c.distortion >= UNEQUIVOCAL or not ssa) for c in scene.crypts]
    label = scene.label[::SUPERSAMPLING, ::SUPERSAMPLING]
    lengthwise_cut = scene.p.cut_angle < LENGTHWISE
    basal = scene.height(label, y) < (BASAL_SHARE if lengthwise_cut else DEEP)
    return (scene.table(decisive, 0)[label] > 0) & basal


def draw(parameters: TissueParameters, seed: int, size: int = 224, mpp: float = 2.0) -> Drawing:
    """Draw one tile of size pixels at mpp micrometres a pixel: the same arguments, same bytes."""
    p, frame = parameters, pose(seed, size, mpp)
    n, m, k = frame.n, frame.n // SUPERSAMPLING, frame.k / SUPERSAMPLING
    layers = {name: np.zeros((n, n), np.uint8) for name in LAYERS}
    scene = Scene(p, seed, frame, lay_out(p, seed, frame.fov), np.zeros((n, n), np.uint8), layers)
    rng = stream(seed, "texture")
    noise = [cloud(rng, m, 60 * k, 3), cloud(rng, m, 12 * k), cloud(rng, m, 3 * k)]
    x, y = frame.grid()
    bases = (p.base_position - 0.5) * frame.fov
    muscle = 0.5 + 0.5 * np.tanh((y - bases - 34 + 8 * noise[0]) / 8)
    draw_crypts(scene)
    if p.cut_angle < LENGTHWISE:
        depth = y - bases + p.crypt_length + 9 * noise[0] + 2 * noise[1]
        draw_surface(scene, cv2.resize(depth, (n, n)))
    to_membrane, to_lumen = settle(scene)
    layers["free"] = cv2.bitwise_not(cv2.dilate(layers["gland"], np.ones((5, 5), np.uint8)))
    draw_stroma(scene, muscle)
    draw_vessels(scene)
    draw_cells(scene, to_lumen, y)
    near = [a[::SUPERSAMPLING, ::SUPERSAMPLING] / SUPERSAMPLING for a in (to_membrane, to_lumen)]
    image = photograph(stain(scene, *near, muscle, noise, x, y), p, seed, k, size)
    layers["outside"][scene.label != SURFACE] = 0
    tissue = scene.coverage("outside") < 0.5
    masks = [
        scene.coverage("gland") * tissue >= 0.5,
        scene.coverage("lumen") * tissue >= 0.5,
        (scene.coverage("nuclei") >= 0.25),
        diagnostic_region(scene, y) & tissue,
    ]
    return Drawing(image, *(np.ascontiguousarray(crop(a, size)).astype(np.uint8) for a in masks))


# --- A cohort ------------------------------------------------------------------------------------

SSA_SLIDES = 0.33  # share of polyps that are SSA
SSA_TILES = (0.05, 0.78)  # share of SSA-like tiles in the slides of either kind of polyp
# Severity of HP-like tiles is half a Beta variable, of SSA-like ones 0.5 + half another. These and
# the readers are fitted to the published histogram of votes (Wei et al. 2021).
SEVERITY = ((1.18, 1.30), (0.54, 0.39))
READER_BIAS = 0.115 * np.array([-1.5, -0.9, -0.4, 0.0, 0.35, 0.85, 1.6])  # added to the threshold
READER_SKILL = 7.4 * np.array([0.8, 1.3, 1.0, 1.2, 0.9, 1.1, 0.7])  # slope of the logistic curve


@dataclass(frozen=True)
class Cohort:
    """What is known about n tiles before one pixel is drawn.

    parameters: n of them. seeds: int64 (n,). slide: str (n,), one polyp each. true_label: int64
    (n,), by `diagnose`. votes: int64 (n,), readers of seven who say SSA. label: int64 (n,), the
    majority of the seven, which is what a data set would publish.
    """

    parameters: tuple[TissueParameters, ...]
    seeds: np.ndarray
    slide: np.ndarray
    true_label: np.ndarray
    votes: np.ndarray
    label: np.ndarray


def read(distortions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Votes for SSA, int64 (n,), of seven readers with a bias, a skill and logistic noise each."""
    evidence = (distortions[:, None] - UNEQUIVOCAL - READER_BIAS) * READER_SKILL
    return (evidence + rng.logistic(size=evidence.shape) > 0).sum(1)


def make_cohort(n: int, seed: int, tiles_per_slide: int = 6) -> Cohort:
    """Plan n tiles of n / tiles_per_slide polyps; a larger n begins with the same tiles."""
    if n < 1 or tiles_per_slide < 1:
        raise ValueError(f"n = {n} and tiles_per_slide = {tiles_per_slide} must be at least 1")
    number = np.arange(n) // tiles_per_slide
    columns = plan_morphology(n, number, seed)
    columns |= plan_slides(number, seed)
    names, rows = list(columns), np.stack(list(columns.values()), 1).tolist()
    parameters = tuple(TissueParameters(**dict(zip(names, row, strict=True))) for row in rows)
    found = np.array([distortion(p) for p in parameters])
    seeds = [np.random.SeedSequence((seed, i)).generate_state(1)[0] for i in range(n)]
    votes = read(found, column_stream(seed, "votes"))
    slide = np.array([f"slide-{i:04d}" for i in number + 1])
    true_label = (found >= UNEQUIVOCAL).astype(np.int64)
    return Cohort(
        parameters,
        np.array(seeds, np.int64),
        slide,
        true_label,
        votes.astype(np.int64),
        (votes >= 4).astype(np.int64),
    )


def column_stream(seed: int, name: str) -> np.random.Generator:
    """Random numbers for one column of a cohort, so that a longer column begins the same."""
    return np.random.default_rng([seed, *name.encode()])


def plan_morphology(n: int, slide: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Severity, the criteria that go with it, and confounders in both classes, (n,) each."""
    normal = {
        name: column_stream(seed, name).standard_normal(n)
        for name in (*CRITERIA, "goblets", "base", "length", "diameter", "spacing", "gape", "mucus")
    }
    uniform = {
        name: column_stream(seed, name).random(n)
        for name in ("kind", "rich", "position", "serration", "branching")
    }
    polyp = column_stream(seed, "polyp").random(slide[-1] + 1)[slide] < SSA_SLIDES
    ssa_like = uniform["kind"] < np.where(polyp, SSA_TILES[1], SSA_TILES[0])
    halves = [0.5 * column_stream(seed, f"severity {i}").beta(*SEVERITY[i], n) for i in (0, 1)]
    severity = np.where(ssa_like, np.minimum(0.5 + halves[1], 1), np.minimum(halves[0], 0.4999))
    gains = {name: np.exp(0.35 * normal[name]) for name in CRITERIA}
    mean = sum(weight * gains[name] for name, weight in CRITERIA.items())
    # A florid crypt meets all criteria; the milder one may meet mainly one of them.
    columns = {
        name: np.clip(1 + (gain / mean - 1) * (1 - severity), 0, 2) for name, gain in gains.items()
    }
    rich = uniform["rich"] < 0.15
    goblets = np.clip(0.45 + 0.25 * rich - 0.2 * severity + 0.2 * normal["goblets"], 0, 1)
    at_base = np.clip(0.08 + 0.35 * severity + 0.25 * rich + 0.12 * normal["base"], 0, 1)
    return columns | {
        "severity": severity,
        "goblet_share": goblets,
        "goblet_share_at_base": at_base,
        "serration": 0.45 + 0.45 * uniform["serration"],
        # HP gapes and is rich in goblet cells, SSA stands wider apart: the shares of white, of
        # gland and of stroma, which a colour meter can see, tell the two apart badly.
        "gape": np.clip(0.9 - 0.85 * severity + 0.3 * normal["gape"], 0, 1),
        "mucus": np.clip(0.3 + 0.2 * severity + 0.3 * normal["mucus"], 0, 1),
        "branching": 0.12 + 0.16 * uniform["branching"] + 0.15 * severity,
        "base_position": 0.68 + 0.26 * uniform["position"],
        "crypt_length": np.clip(425 + 28 * normal["length"], 370, 510),
        "crypt_diameter": np.clip(67 + 7 * normal["diameter"], 50, 90),
        "crypt_spacing": np.clip(97 + 22 * severity + 8 * normal["spacing"], 90, 130),
    }


def plan_slides(slide: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Stain, light, focus and plane of section: a slide's own, whatever the diagnosis."""
    slides = slide[-1] + 1
    normal = {
        name: column_stream(seed, name).standard_normal(slides)[slide]
        for name in ("haematoxylin", "eosin", "turn", "lamp", "focus", "cells")
    }
    plane = column_stream(seed, "plane").random(slides)[slide]
    stray, tilt = column_stream(seed, "stray").random((len(slide), 2)).T
    crossed = np.where(stray < 0.1, plane < 0.65, plane > 0.65)  # one tile in ten is cut otherwise
    return {
        "cut_angle": np.where(crossed, 45 + 45 * np.sqrt(tilt), 15 * tilt),
        "haematoxylin": np.clip(1.0 + 0.2 * normal["haematoxylin"], 0.6, 1.5),
        "eosin": np.clip(1.0 + 0.28 * normal["eosin"], 0.45, 1.7),
        "stain_turn": np.clip(5 * normal["turn"], -11, 11),
        "lamp": np.clip(0.5 * normal["lamp"], -1, 1),
        "focus": np.clip(1.1 + 0.4 * normal["focus"], 0.3, 2.4),
        "cellularity": np.clip(0.5 + 0.2 * normal["cells"], 0, 1),
    }
