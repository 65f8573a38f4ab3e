"""Draw H&E tiles of colorectal mucosa whose diagnosis is known to the pixel.

A slide is a strip of mucosa: crypts, bodies in three dimensions, stand on a lattice over the
muscularis mucosae and are cut by a plane. Upright, turned or distorted, a crypt is described once;
whether it shows as a tube, a ring or an island follows from the angle of the cut. The cut is filled
with cells, coloured by the Beer-Lambert law and divided into tiles. The label is never painted on:
`diagnose` reads it from the distortion of the crypts, `kind_of` from that, dysplasia and serration.

Sources: WHO Classification of Tumours, Digestive System (2019) for the criteria; Ruifrok &
Johnston, Anal Quant Cytol Histol 23:291 (2001) for the stain vectors. A teaching model of
hyperplastic polyps (HP), sessile serrated adenomas (SSA), normal mucosa and tubular adenomas of low
grade, not for diagnosis.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import cv2
import numpy as np

CLASS_NAMES = ("HP", "SSA")
KINDS = ("Normal", "HP", "SSA", "Tubular adenoma")
UNEQUIVOCAL = 0.5  # distortion, or dysplasia, from which a crypt alone makes the diagnosis
WITHIN_NORMAL = 0.1  # serration and distortion below which a mucosa is normal
# The lower half of a crypt is diagnostic: there HP is straight, narrow and not serrated, and all
# that the rule counts shows there: dilatation, sideways growth, serration where none belongs.
BASAL_SHARE = 0.5
CRITERIA = {"basal_dilatation": 0.4, "horizontal_growth": 0.4, "serration_depth": 0.2}
# What may differ between tiles of a slide; all else is the patient's, the lab's, the scanner's.
OF_A_TILE = ("severity", *CRITERIA, "fold", "bubble", "pen", "ink_dot")

# Optical density of unit concentration in red, green and blue. The third is what two stains
# cannot explain: the yellow of haemoglobin in red cells.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
HAEMOGLOBIN = np.array([0.02, 0.35, 0.80], np.float32)

SUPERSAMPLING = 2  # canvas pixels a tile pixel and axis: smooth edges
EDGE = 8  # tile pixels drawn around the slide and cut off, so that its border looks like the rest
CUT_HEIGHT = 45.0  # micrometres above the base at which a cross section meets the first row
OFF_AXIS = 12.0  # micrometres by which a slanted cut may miss the axis of the first row's bases
SCRATCH = 110.0  # square micrometres of lumen below which there is none
LEAN = 0.2  # micrometres aside that crypts lean at most, a micrometre of height
MEMBRANE = 14.0  # micrometres of lamina propria that two crypts leave between them
SPARED = 0.6  # susceptibility up to which a crypt of an adenoma is not dysplastic: one in eight
REACH = 140.0  # micrometres from its axis that a crypt may reach
TAPER = 130.0  # micrometres from a milder neighbour within which a crypt is no worse than it
STREAMS = ("turn", "plane", "crypt", "cells", "stroma", "vessels", "texture", "sensor", "artefacts")
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
    dysplasia: float = bounded(0.0, 0, 1)  # nuclei long, dark, in tiers; mucin lost; up to the top
    prolapse: float = bounded(0.0, 0, 1)  # crypts wide in the middle, muscle fibres between them
    cut_angle: float = bounded(0.0, 0, 90)  # degrees from the crypts' axis; 90 is a cross section
    base_position: float = bounded(0.8, 0.55, 0.95)  # height of the bases, 0 top to 1 bottom
    crypt_length: float = bounded(420.0, 370, 510)  # micrometres
    crypt_diameter: float = bounded(70.0, 50, 90)  # micrometres
    crypt_spacing: float = bounded(100.0, 85, 130)  # micrometres from axis to axis
    cellularity: float = bounded(0.5, 0, 1)  # lymphocytes in the lamina propria, none to dense
    thickness: float = bounded(4.0, 2, 8)  # micrometres of the section; thick ones are dark
    haematoxylin: float = bounded(1.0, 0.5, 1.6)  # stain strength, relative
    eosin: float = bounded(1.0, 0.4, 1.8)  # stain strength, relative
    stain_turn: float = bounded(0.0, -12, 12)  # degrees that the stain vectors turn, red to blue
    lamp: float = bounded(0.0, -1, 1)  # colour of the light, -1 yellow to 1 blue
    contrast: float = bounded(1.0, 0.7, 1.4)  # exponent of the scanner's tone curve
    focus: float = bounded(0.7, 0, 5)  # blur, standard deviation in micrometres
    noise: float = bounded(2.0, 0, 10)  # sensor noise, standard deviation in grey levels
    fold: float = bounded(0.0, 0, 1)  # a crease where the section lies double
    bubble: float = bounded(0.0, 0, 1)  # an air bubble under the cover slip
    pen: float = bounded(0.0, 0, 1)  # a stroke of the pathologist's marker
    ink_dot: float = bounded(0.0, 0, 1)  # a dot of ink in a corner: the planted shortcut

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


@dataclass(frozen=True)
class Crypt:
    """One crypt: where it stands, in micrometres, and its features from 0 to 1.

    x runs along the section, z out of it; `base` is how far the base lies above the muscularis.
    """

    site: tuple[int, int]  # row and column in the lattice, which key its random numbers
    x: float
    z: float
    base: float
    dysplasia: float
    dilatation: float
    growth: float
    serration: float

    @property
    def distortion(self) -> float:
        """Weighted mean of the three criteria, 0 to 1."""
        return float(weigh(self.dilatation, self.growth, self.serration))


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


def diagnose(distortions: Sequence[float]) -> int:
    """1 (SSA) if one crypt is unequivocally distorted, else 0 (HP): WHO 2019."""
    return int((np.asarray(distortions) >= UNEQUIVOCAL).any())


def kind_of(parameters: TissueParameters) -> str:
    """What a tile shows, one of KINDS, by the rules alone.

    Dysplasia decides first: serrated lesions that turn dysplastic have no kind of their own here.
    """
    worst = distortion(parameters)
    if parameters.dysplasia >= UNEQUIVOCAL:
        return "Tubular adenoma"
    if max(worst, parameters.serration) < WITHIN_NORMAL:
        return "Normal"
    return CLASS_NAMES[diagnose([worst])]


# --- Layout --------------------------------------------------------------------------------------


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """Random numbers for one feature of one slide, independent of every other feature's."""
    return np.random.default_rng(np.random.SeedSequence((seed, STREAMS.index(name), index)))


def lattice(seed: int) -> np.ndarray:
    """Uniform random numbers of each crypt of a slide, (rows, columns, 32); far off they recur."""
    return stream(seed, "crypt").random((16, 128, 32))


def lay_out(tiles: Sequence[TissueParameters], seed: int, fov: float = 448.0) -> list[Crypt]:
    """The crypts that a slide of tiles of fov micrometres may meet.

    They stand on a jittered hexagonal lattice; in each tile the one of the first row nearest to
    the middle carries the full severity. Near the border of two tiles a crypt takes after the
    milder, so that no tile shows what its own parameters do not say.
    """
    p, width = tiles[0], len(tiles) * fov
    dx, dz = p.crypt_spacing, 0.87 * p.crypt_spacing
    offset = stream(seed, "plane", 1).uniform(-0.5, 0.5)
    # Rows and columns that the section runs through, and those whose feet reach it.
    z = np.sin(np.deg2rad(p.cut_angle)) * fov * (p.base_position - np.array([1, 0]))
    rows = np.round((z + np.array([-REACH, REACH])) / dz).astype(int)
    columns = int((0.5 * width + REACH) / dx) + 1
    row, column = np.mgrid[rows[0] : rows[1] + 1, -columns : columns + 1].reshape(2, -1)
    u = lattice(seed)[row % 16, column % 128].T
    swing = 3.4 * (u[:3] + u[3:6] - 1)  # about normal, and never far out
    x = width / 2 + (column + offset + 0.5 * (row % 2) + 0.09 * swing[0]) * dx
    # The section meets the first row near its axis.
    z = (row + np.where(row == 0, 0.025, 0.05) * swing[1]) * dz
    susceptibility = u[6] ** (1 / 4)  # a polyp's crypts resemble each other
    tile = np.clip(x / fov, 0, len(tiles) - 1).astype(int)
    worst, own = np.array([distortion(tile) for tile in tiles]), tile
    for step in (-1, 1):
        other = np.clip(own + step, 0, len(tiles) - 1)
        near = np.abs(x - (own + max(step, 0)) * fov) < TAPER
        tile = np.where(near & (worst[other] < worst[tile]), other, tile)
    first = np.flatnonzero(row == 0)
    for i in range(len(tiles)):
        carrier = first[np.argmin(np.abs(x[first] - (i + 0.5) * fov))]
        tile[carrier], susceptibility[carrier] = i, 1.0
    return [
        Crypt(
            (int(row[i]), int(column[i])),
            float(x[i]),
            float(z[i]),
            float(10 * swing[2, i]),
            p.dysplasia * float(susceptibility[i] > SPARED),
            *express(tiles[tile[i]], float(susceptibility[i])),
        )
        for i in range(len(x))
    ]


# --- Crypts --------------------------------------------------------------------------------------


def visible(feature: np.ndarray) -> np.ndarray:
    """How much of a feature shows, 0 to 1: a mild one hardly, a florid one plainly."""
    f = np.clip((np.asarray(feature) - 0.2) / 0.6, 0, 1)
    return f**3 * (6 * f**2 - 15 * f + 10)


def wobble(start: np.ndarray | float, t: np.ndarray, cycles: float) -> np.ndarray:
    """Smooth noise along t (0 to 1) of about unit height; start, 0 to 1, says which."""
    at = t * (2 * STEPS * cycles) + start * len(NOISE)
    return NOISE[at.astype(np.int32) & (len(NOISE) - 1)]


def smooth_noise(knots: np.ndarray, steps: int) -> np.ndarray:
    """A closed curve through knots (n,), float32 (n * steps,), by smoothstep."""
    w = np.arange(steps) / steps
    w = w * w * (3 - 2 * w)
    return (knots[:, None] * (1 - w) + np.roll(knots, -1)[:, None] * w).astype(np.float32).ravel()


STEPS = 64  # places between two knots
NOISE = smooth_noise(np.random.default_rng(0).standard_normal(128), STEPS)


def cap(s: np.ndarray, radius: float, power: np.ndarray | float = 2.0) -> np.ndarray:
    """Half-width of a rounded end at distance s from its tip, relative; a high power is flat."""
    return (1 - np.clip(1 - s / radius, 0, 1) ** power) ** (1 / power)


_cycle = np.linspace(0, 1, 256, endpoint=False, dtype=np.float32)
# A tooth: a sharp outward point and a round tuft of epithelium.
TOOTH = np.where(_cycle < 0.6, _cycle / 0.6, (1 - _cycle) / 0.4) ** 1.6
_turn = np.arange(64) * 2 * np.pi / 64
RIMS = np.float32([wave(f * _turn) for f in (2, 3, 4) for wave in (np.cos, np.sin)])


@dataclass(frozen=True)
class Tube:
    """A bent tube of epithelium, tabulated along its length, float32 (n,) a table.

    (u, w) is its axis across the direction it runs in: upwards, or with an `azimuth` (radians)
    along the muscularis. The phase of the teeth swings around the lumen, so that a cut along the
    tube shows a saw and a cut across it a star.
    """

    azimuth: float | None
    start: float  # height at which an upright tube begins, micrometres
    length: float  # micrometres
    u: np.ndarray
    w: np.ndarray
    radius: np.ndarray
    lumen: np.ndarray
    tooth: np.ndarray  # height of the teeth
    phase: np.ndarray  # which grows by one a tooth
    lobes: int  # teeth around the lumen
    rim: np.ndarray  # (64,), relative radius around the axis

    @property
    def reach(self) -> float:
        """How far from the axis of the crypt the tube may reach sideways, micrometres."""
        across = float(np.abs(self.u).max() + self.radius.max()) * 1.15
        return across if self.azimuth is None else self.length + across

    @property
    def heights(self) -> tuple[float, float]:
        """Lowest and highest place."""
        if self.azimuth is None:
            return self.start - 3, self.start + self.length
        return -5.0, float((self.w + self.radius).max()) + 3

    def __call__(self, x: np.ndarray, z: np.ndarray, h: np.ndarray):
        """Depth under the outer surface and under the lumen's, micrometres, negative outside.

        x (m, n), z and h (m, 1) from the foot of the crypt; float32 (m, n) each.
        """
        if self.azimuth is None:
            along, across, up = h - self.start, x, z
        else:
            c, s = float(np.cos(self.azimuth)), float(np.sin(self.azimuth))
            along, across, up = c * x + s * z, c * z - s * x, h
        inside = np.clip(along, 0, self.length)
        i = (inside * ((len(self.radius) - 1) / self.length)).astype(np.int32)
        across = across - self.u[i]
        up = np.broadcast_to(up - self.w[i], across.shape).copy()
        distance, angle = cv2.cartToPolar(across, up)  # 0 to 2 pi
        rim = self.rim[(angle * (64 / (2 * np.pi))).astype(np.int32) & 63]
        at = 256 * self.phase[i] + 128 * np.cos(self.lobes * angle)
        teeth = self.tooth[i] * TOOTH[at.astype(np.int32) & 255]
        distance += np.abs(along - inside)
        return self.radius[i] * rim - distance, self.lumen[i] * rim + teeth - distance


def tabulate(
    n: int, lobes: np.ndarray, azimuths: list, starts, lengths, rims, **tables
) -> list[Tube]:
    """n tubes from tables (n, places) or of one row, of any float type."""
    rim = (1 + 0.12 * (rims.T - 0.5) @ RIMS).astype(np.float32)
    places = max(table.shape[-1] for table in tables.values())
    tables = {
        name: np.broadcast_to(table, (n, places)).astype(np.float32)
        for name, table in tables.items()
    }
    return [
        Tube(
            azimuths[i],
            float(starts[i]),
            float(lengths[i]),
            lobes=int(lobes[i]),
            rim=rim[i],
            **{name: table[i] for name, table in tables.items()},
        )
        for i in range(n)
    ]


def build(crypts: list[Crypt], p: TissueParameters, seed: int) -> list[list[Tube]]:
    """The tubes of each crypt: its trunk, perhaps a side branch, and two feet at the base."""
    sites = np.array([crypt.site for crypt in crypts])
    u = lattice(seed)[sites[:, 0] % 16, sites[:, 1] % 128].T[7:, :, None]  # (25, n, 1)
    features = [[c.base, c.dilatation, c.growth, c.serration] for c in crypts]
    base, dilatation, growth, serration = np.array(features).T[..., None]
    trunks = build_trunks(p, u, base, dilatation, serration)
    tubes = [[trunk] for trunk in trunks]
    for own, branch, chance in zip(
        tubes, build_branches(p, u, base, growth, trunks), u[0], strict=True
    ):
        if chance < p.branching:
            own.append(branch)
    for feet in build_feet(p, u, base, growth, serration):
        for own, foot in zip(tubes, feet, strict=True):
            if foot.length > 3:  # else hidden in the trunk
                own.append(foot)
    return tubes


def build_trunks(p: TissueParameters, u, base, dilatation, serration) -> list[Tube]:
    """The upright part of each crypt; u (25, n, 1) random, features (n, 1)."""
    n, radius = len(base), p.crypt_diameter / 2
    s = np.arange(0.0, p.crypt_length + 45)  # micrometres from the base, a little past the mouth
    t = np.minimum(s / p.crypt_length, 1.1)
    belly = visible(dilatation) * np.exp(-((s / (1.9 * radius)) ** 2))
    waist = p.prolapse * np.clip(1 - np.abs(t - 0.42) / 0.34, 0, 1)  # a diamond, not a flask
    outer = radius * (0.86 + 0.32 * t + 0.05 * wobble(u[1], t, 8) + 1.1 * belly + 0.55 * waist)
    reach = 0.42 + 0.62 * serration  # HP: the upper half; SSA: down to the base
    depth = 32 * p.serration * np.clip((t - 1 + reach) / 0.15, 0, 1) * (0.7 + 0.3 * t) * (s > 22)
    inner = 2 + (4 + 10 * p.gape) * np.clip(t * 1.6 - 0.25, 0, 1) + 20 * belly + 15 * waist
    inner += 6 * p.dysplasia  # round and even, from the base up
    irregular, away = wobble(u[2], t, 12), 6 * np.clip(2 * t, 0, 1)
    return tabulate(
        n,
        4 + 3 * u[3, :, 0],
        [None] * n,
        base[:, 0],
        np.full(n, s[-1]),
        u[4:10, :, 0],
        u=away * wobble(u[10], t, 1.5) + wobble(u[11], t, 6),
        w=away * wobble(u[12], t, 1.5),
        radius=outer * cap(s, 0.9 * radius, 2 + dilatation),
        lumen=inner * cap(np.clip(s - 19, 0, None), 14),
        tooth=depth * (0.75 + 0.25 * irregular),
        phase=s / 30 + 0.45 * irregular + u[13],
    )


def build_branches(p: TissueParameters, u, base, growth, trunks: list[Tube]) -> list[Tube]:
    """A side branch for each crypt, which leaves the trunk and turns down beside it.

    In distorted crypts it is longer: asymmetric, like the branching of SSA.
    """
    n, radius, side = len(base), p.crypt_diameter / 2, np.where(u[14] < 0.5, -1, 1)
    root, length = (0.38 + 0.34 * u[15]) * p.crypt_length, 95 + 70 * visible(growth)
    t = np.linspace(0, 1, 96)  # from its blind end up to where it leaves the trunk
    left = t * length + 1
    lumen = 4 * cap(np.clip(left - 17, 0, None), 12) * (t < 0.9)
    leaves = [
        (trunk.u[int(at)], trunk.w[int(at)]) for trunk, at in zip(trunks, root[:, 0], strict=True)
    ]
    at_u, at_w = np.array(leaves).T[..., None]
    return tabulate(
        n,
        np.full(n, 5),
        [None] * n,
        (base + root - length)[:, 0],
        length[:, 0],
        u[4:10, ::-1, 0],
        u=at_u + side * 1.5 * radius * np.cos(t * np.pi / 2) + 3 * wobble(u[16], t, 2),
        w=at_w,
        radius=0.7 * radius * cap(left, 0.7 * radius),
        lumen=lumen,
        tooth=6 * p.serration * (lumen > 2),
        phase=left / 20,
    )


def build_feet(p: TissueParameters, u, base, growth, serration) -> list[list[Tube]]:
    """Horizontal growth to one side (L, boot) or both (inverted T, anchor), for each crypt."""
    n, radius, growth = len(base), p.crypt_diameter / 2, visible(growth)
    t = np.linspace(0, 1, 64)  # from inside the trunk outward
    feet = []
    for i, share in enumerate((1.0, np.where(u[17] < 0.5, 0.6 + 0.8 * u[17], 0.0))):
        length = np.maximum((0.6 * radius + 95) * growth * share - 0.2 * radius, 1.0)
        left = (1 - t) * length  # micrometres to the tip
        turn = np.pi * ((u[18] < 0.5) ^ bool(i)) + 0.5 * (u[19 + i] - 0.5)
        tubes = tabulate(
            n,
            np.full(n, 5),
            turn[:, 0].tolist(),
            np.zeros(n),
            length[:, 0],
            u[4:10, :, 0],
            u=3 * wobble(u[21 + i], t, 1) * t,
            w=base
            + (0.75 + 0.5 * (1 - t) ** 2) * radius
            + (30 * u[23] - 6) * t**2
            + 4 * wobble(u[24], t, 1.5),
            radius=(0.58 + 0.3 * growth) * radius * cap(left, 0.8 * radius),
            lumen=(2 + 12 * growth) * cap(np.clip(left - 17, 0, None), 12),
            tooth=14 * p.serration * serration * np.clip((left - 20) / 10, 0, 1),
            phase=t * length / 22 + u[24],
        )
        feet.append(tubes)
    return feet


def span(crypt: Crypt, p: TissueParameters) -> float:
    """How far from its axis a crypt reaches at most, micrometres."""
    radius = p.crypt_diameter / 2
    trunk = radius * (1.4 + 1.1 * visible(crypt.dilatation) + 0.55 * p.prolapse) + 12
    return max(trunk, (0.6 * radius + 95) * visible(crypt.growth) + radius)


# --- The section ---------------------------------------------------------------------------------


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


def cut(tiles: Sequence[TissueParameters], seed: int, size: int, mpp: float) -> Scene:
    """Lay the section through the crypts: where each pixel lies in the body of the mucosa."""
    p, k, fov = tiles[0], 1 / mpp, size * mpp
    shape = size + 2 * EDGE, size * len(tiles) + 2 * EDGE
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
        lay_out(tiles, seed, fov),
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


# --- Cells ---------------------------------------------------------------------------------------


def draw_cells(scene: Scene, to_lumen: np.ndarray) -> None:
    """Line every basement membrane with cells a few micrometres apart."""
    gland, k = scene.layers["gland"], scene.k * SUPERSAMPLING
    step = max(1, round(4.4 * k))
    contours, _ = cv2.findContours(gland, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    rims = [c[:, 0].astype(np.float32) for c in contours if len(c) > 8 * step]
    if not rims:
        return
    tangent = np.concatenate(
        [np.roll(r, -step, 0)[::step] - np.roll(r, step, 0)[::step] for r in rims]
    )
    points = np.concatenate([r[::step] for r in rims])
    inward = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    inward /= np.linalg.norm(inward, axis=1, keepdims=True) + 1e-6
    inward[gland[scene.at(points + 3 * k * inward)] == 0] *= -1
    draw_epithelium(scene, points, inward, to_lumen)


def draw_epithelium(
    scene: Scene, points: np.ndarray, inward: np.ndarray, to_lumen: np.ndarray
) -> None:
    """Border, mucin and basal nucleus of cells at points (n, 2) with inward normals (n, 2)."""
    p, k, layers = scene.p, scene.k * SUPERSAMPLING, scene.layers
    row, column = scene.at(points)
    # Each cell looks its random numbers up at its place, so it stays itself when others move.
    side = [n // 3 + 1 for n in to_lumen.shape]
    u = stream(scene.seed, "cells").random((*side, 9), np.float32)[row // 3, column // 3].T
    coarse = row // SUPERSAMPLING, column // SUPERSAMPLING
    label = scene.label[row, column]
    height = scene.height(label, scene.h[coarse])
    thick = np.clip(to_lumen[row, column], 9 * k, 27 * k)
    ill, crowd = dysplasia(scene, label), scene.clouds[1][coarse]
    dark = np.maximum(darkness(scene, label, height), ill)
    angle = np.arctan2(inward[:, 1], inward[:, 0])
    tip = points + inward * (0.95 * thick)[:, None]
    greys = (255 * u[7] ** 2).astype(int).tolist()  # some cells stain darker than others
    for a, b, grey in zip(
        points.astype(int).tolist(), tip.astype(int).tolist(), greys, strict=True
    ):
        cv2.line(layers["border"], a, b, grey, 1 + (grey > 120))
    share = np.interp(height, [0.15, 0.45], [p.goblet_share_at_base, p.goblet_share])
    share = share * (1 - 0.85 * ill)
    goblet = (u[0] < share) & (thick > 11 * k)
    mucin = points + inward * (thick * (0.52 + 0.2 * u[1]))[:, None]
    stamp(
        layers["mucin"],
        mucin[goblet],
        (thick * (0.24 + 0.16 * u[2]))[goblet],
        (k * (3.0 + 3.0 * u[3]))[goblet],
        angle[goblet],
        (160 + 95 * u[4])[goblet].astype(int),
    )
    # Crowded, tall, stratified nuclei in the proliferating base; small flat ones under mucin; some
    # lie outside the section. Dysplastic ones are pencils, in tiers up to the middle of the cell.
    aside = np.stack([-inward[:, 1], inward[:, 0]], 1)
    for tier in range(2 if ill.any() else 1):
        u = np.roll(u, tier, 0)
        depth = k * (3.4 + 1.6 * u[5] + (6 * dark + 3 + crowd) * u[6] ** 2)
        depth = depth + 0.2 * ill * thick * u[6]
        slip = aside * (k * 3.4 * (u[8] - 0.5))[:, None]
        tall = k * (2.4 + 2.0 * u[7] + 0.9 * dark - 0.7 * goblet) * (1 + 0.6 * ill)
        seen = u[4] < 0.8 * ill if tier else u[4] > 0.14 - 0.14 * dark - 0.05 * crowd
        stamp(
            layers["nuclei"],
            (points + inward * depth[:, None] + slip)[seen],
            tall[seen],
            (k * (1.3 + 1.1 * u[1]) * (1 - 0.3 * ill))[seen],
            (angle + (1.0 - 0.6 * ill) * (u[2] - 0.5))[seen],
            (105 + 115 * u[3] + 30 * dark).astype(int)[seen],
        )


def dysplasia(scene: Scene, label: np.ndarray) -> np.ndarray:
    """Dysplasia of the cells at each place, 0 to 1; that of the surface is the slide's."""
    return scene.table([c.dysplasia for c in scene.crypts], scene.p.dysplasia)[label]


def darkness(scene: Scene, label: np.ndarray, height: np.ndarray) -> np.ndarray:
    """How dark and crowded cells are, 0 to 1: the proliferating base of an undistorted crypt."""
    distorted = scene.table([c.distortion for c in scene.crypts], 1.0)[label]
    return np.clip(1 - height / 0.4, 0, 1) * (1 - distorted)


def draw_stroma(scene: Scene, muscle: np.ndarray) -> None:
    """Lymphocytes, plasma cells and fibroblasts where neither gland nor background is."""
    rng, k, (m, n) = stream(scene.seed, "stroma"), scene.k * SUPERSAMPLING, scene.label.shape
    u = rng.random((int(4200 * m * n / (k * 448) ** 2), 8), np.float32)
    at = u[:, 6:] * (n - 1, m - 1)
    row, column = scene.at(at)
    coarse = row // SUPERSAMPLING, column // SUPERSAMPLING
    crowd = np.clip(1 + 0.7 * cloud(rng, scene.x.shape, 9 * k)[coarse], 0.1, 2.5)
    deep = muscle[coarse] > 0.5
    density = np.where(deep, 0.10, (0.10 + 0.45 * scene.p.cellularity) * crowd)
    keep = (scene.layers["free"][row, column] > 0) & (u[:, 0] < density)
    at, u, deep = at[keep], u[keep].T, deep[keep]
    spindle = deep | (u[1] < 0.25)
    angle = np.where(deep, 0, np.pi / 2) + np.where(spindle, 0.8, 6.0) * (u[2] - 0.5)
    along = k * np.where(spindle, 3.6 + 2.5 * u[3], 2.2 + 1.3 * u[3])
    across = k * np.where(spindle, 1.0 + 0.5 * u[4], 1.9 + 1.0 * u[4])
    stamp(scene.layers["nuclei"], at, along, across, angle, (130 + 110 * u[5]).astype(int))


def draw_vessels(scene: Scene) -> None:
    """A dozen capillaries a tile: pale winding tubes, most with red cells in them."""
    rng, k, (m, n) = stream(scene.seed, "vessels"), scene.k * SUPERSAMPLING, scene.label.shape
    t, red = np.linspace(0, 1, 16), [np.zeros((0, 2))]
    for _ in range(int(14 * m * n / (k * 448) ** 2) + 1):
        length, width = rng.uniform(15, 55) * k, rng.uniform(2.5, 5.5) * k
        bend = rng.normal(np.pi / 2, 0.5) + 0.5 * wobble(rng.random(), t, 1)
        path = np.cumsum(np.stack([np.cos(bend), np.sin(bend)], 1), 0) * length / 16
        path = path + rng.random(2) * (n, m)
        sides = width * cap(np.minimum(t, 1 - t) * length, width)
        normal = np.stack([-np.sin(bend), np.cos(bend)], 1) * sides[:, None]
        fill(scene.layers["vessel"], np.concatenate([path + normal, (path - normal)[::-1]]))
        cells = path[rng.integers(0, 16, rng.integers(0, 18))]
        red.append(cells + rng.normal(0, 0.3 * width, cells.shape))
    red = np.concatenate(red)
    size = k * rng.uniform(2.0, 3.0, len(red))
    stamp(scene.layers["red"], red, size, 0.9 * size, size, rng.integers(150, 255, len(red)))
    scene.layers["vessel"] &= scene.layers["free"]
    scene.layers["red"] &= scene.layers["free"]


# --- Colour --------------------------------------------------------------------------------------


def blend(below: np.ndarray, above: np.ndarray | float, cover: np.ndarray) -> np.ndarray:
    """One concentration over another where it covers, all of one shape."""
    return below + (above - below) * cover


def fibres(grain: np.ndarray, x: np.ndarray, y: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Wavy streaks along y, float32 as x: drawn-out noise looked up at bent places."""
    at = x * 1.3 + wave + 256, y + wave + 256
    return cv2.remap(grain, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def stain(
    scene: Scene, to_membrane: np.ndarray, to_lumen: np.ndarray, muscle: np.ndarray
) -> list[np.ndarray]:
    """Concentrations of haematoxylin, eosin and haemoglobin, float32 at the tile's resolution."""
    (slow, mid, fine), k = scene.clouds, scene.k
    cover = {name: scene.coverage(name) for name in scene.layers}
    # Fibres run along the crypts in the lamina propria, across them in the muscularis.
    grain = stream(scene.seed, "texture", 1).standard_normal((10, 128), dtype=np.float32)
    grain = cv2.resize(grain, (512, 512), interpolation=cv2.INTER_CUBIC)
    wave = 9 * slow + 3 * mid
    upright = fibres(grain, scene.x, scene.v, wave)
    streaks = blend(upright, fibres(grain, scene.v, scene.x, wave), muscle)
    strand = scene.p.prolapse * np.clip(upright + 0.6, 0, 1) * (1 - muscle)  # ascending muscle
    h = 0.16 + 0.06 * (mid + 1.5 * fine + muscle)
    e = 0.40 + 0.30 * (muscle + strand) + 0.20 * streaks + 0.10 * slow + 0.08 * (mid + fine)
    h, e = blend(h, 0.05, cover["vessel"]), blend(e, 0.10, cover["vessel"])
    # Epithelium: basal cytoplasm darker, apical paler with microvesicles, a brush border.
    depth = to_membrane / (to_membrane + np.minimum(to_lumen, 30 * k) + 0.1)
    label = scene.label[::SUPERSAMPLING, ::SUPERSAMPLING]
    dark = darkness(scene, label, scene.height(label, scene.h))
    cell_h = 0.88 - 0.42 * depth + 0.25 * dark + 0.14 * fine + 0.07 * mid + 0.45 * cover["border"]
    brush = np.exp(-((np.minimum(to_lumen, 30 * k) / (1.6 * k)) ** 2))
    cell_e = 0.55 + 0.07 * (mid + fine) + 0.25 * brush + 0.15 * (1 - depth)
    h = blend(h, blend(cell_h, 0.20 + 0.05 * mid, cover["mucin"]), cover["gland"])
    e = blend(e, blend(cell_e, 0.12, cover["mucin"]), cover["gland"])
    e = e + 0.2 * np.exp(-((to_membrane / (1.3 * k)) ** 2)) * cover["gland"]
    slime = np.clip(0.24 * scene.p.mucus * (1 + 0.5 * slow + 0.25 * mid), 0, 0.35)
    slime = slime * (1 - cover["outside"])
    h, e = blend(h, slime, cover["lumen"]), blend(e, 0.02 + 0.4 * slime, cover["lumen"])
    chromatin = cover["nuclei"] * (1 - cover["lumen"])
    h, e = h + chromatin * (2.1 + 0.35 * fine), e + 0.2 * chromatin
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
    scene: Scene, concentrations: list[np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Light through the stains (Beer-Lambert), lamp, blur and sensor: uint8 (H, W, 3), no edge.

    Also where ink lies, booleans (m, w).
    """
    p = scene.p
    stains = np.stack(
        [
            turn_stain(HAEMATOXYLIN, p.stain_turn) * p.haematoxylin,
            turn_stain(EOSIN, p.stain_turn) * p.eosin,
            HAEMOGLOBIN,
        ]
    )
    density = cv2.transform(cv2.merge(concentrations), stains.T * np.float32(p.thickness / 4))
    ink = np.zeros(scene.x.shape, bool)
    for i in range(len(scene.tiles)):
        part = slice(None), slice(EDGE + i * size, EDGE + (i + 1) * size)
        density[part], ink[part] = spoil(density[part], scene, i, size)
    light = cv2.exp(-p.contrast * density)
    if p.focus > 0:
        light = cv2.GaussianBlur(light, (0, 0), p.focus * scene.k)
    lamp = 255 * np.array([1 - 0.06 * max(p.lamp, 0), 0.985, 0.98 + 0.10 * min(p.lamp, 0)])
    picture = light[EDGE:-EDGE, EDGE:-EDGE] * lamp.astype(np.float32)
    noise = stream(scene.seed, "sensor").standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.round(picture + p.noise * noise), 0, 255).astype(np.uint8), ink


def within(inside: np.ndarray, softness: float) -> np.ndarray:
    """1 where inside, in micrometres, is well above 0; 0 where well below."""
    return 0.5 + 0.5 * np.tanh(inside / (2 * softness))


def spoil(
    density: np.ndarray, scene: Scene, index: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fold, air bubble, marker and ink dot of one tile, in optical density (m, size, 3).

    Also where ink lies, booleans (m, size).
    """
    p = scene.tiles[index]
    if not (p.fold or p.bubble or p.pen or p.ink_dot):
        return density, np.zeros(density.shape[:2], bool)
    rng = stream(scene.seed, "artefacts", index)
    y, x = np.mgrid[: len(density), :size].astype(np.float32) / np.float32(scene.k)
    fov = size / scene.k
    wave = scene.clouds[0][:, EDGE + index * size : EDGE + (index + 1) * size]
    turn, (u, v), colour = rng.uniform(0, np.pi), rng.uniform(0.25, 0.75, 2), rng.integers(3)
    across = (x - u * fov) * np.cos(turn) + (y - v * fov) * np.sin(turn)
    if p.fold:  # twice the tissue, the second layer from elsewhere
        crease = within(8 + 16 * p.fold - np.abs(across + 9 * wave), 1.5)
        density = density + 0.9 * crease[..., None] * density[::-1, ::-1]
    distance = np.hypot(x - v * fov, y - u * fov) - 40 - 120 * p.bubble
    if p.bubble:  # a dark rim of refracted light, a brighter inside
        rim = np.exp(-((distance / 3.5) ** 2)) + 0.3 * np.exp(-(((distance + 8) / 2.5) ** 2))
        density = density * (1 - 0.35 * (distance < 0))[..., None] + 0.9 * rim[..., None]
    ink = np.zeros_like(distance)
    marker = np.array([(0.9, 0.5, 0.1), (1.1, 0.3, 0.8), (0.8, 0.8, 0.7)], np.float32)[colour]
    if p.pen:
        stroke = within(40 - np.abs(across + 14 * wave), 3) * (1 + 0.2 * wave)
        ink += p.pen * stroke
        density = density + (p.pen * stroke)[..., None] * marker
    if p.ink_dot:
        dot = within(30 - np.hypot(x - 0.13 * fov, y - 0.13 * fov), 2)
        ink += p.ink_dot * dot
        density = density + (p.ink_dot * dot)[..., None] * np.array([1.4, 0.6, 0.9], np.float32)
    return density.astype(np.float32), ink > 0.25


# --- A slide and its tiles -----------------------------------------------------------------------


def diagnostic_region(scene: Scene, size: int) -> np.ndarray:
    """What decides in each tile, as `Drawing` says, booleans (m, w); what is not gland is free."""
    label = scene.label[::SUPERSAMPLING, ::SUPERSAMPLING]
    distorted = scene.table([c.distortion >= UNEQUIVOCAL for c in scene.crypts], 0)[label] > 0
    kind = np.repeat([KINDS.index(kind_of(tile)) for tile in scene.tiles], size)
    normal, _, ssa, adenoma = (np.pad(kind == i, EDGE, mode="edge") for i in range(4))
    basal = scene.height(label, scene.h) < BASAL_SHARE
    crypts = (normal | basal & np.where(ssa, distorted, ~distorted)) & (label != scene.surface)
    return np.where(adenoma, dysplasia(scene, label) >= UNEQUIVOCAL, crypts)


def draw_slide(
    tiles: Sequence[TissueParameters], seed: int, size: int = 224, mpp: float = 2.0
) -> Drawing:
    """Draw a slide as wide as its tiles, which may differ in OF_A_TILE only, else ValueError.

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


def divide(slide: Drawing, seed: int) -> list[Drawing]:
    """The square tiles of a slide, left to right, each turned and mirrored as it happens to be."""
    size = slide.glands.shape[0]
    turns = stream(seed, "turn").integers(0, 8, slide.glands.shape[1] // size)
    tiles = []
    for i, turn in enumerate(turns):
        parts = [getattr(slide, f.name)[..., i * size : (i + 1) * size] for f in fields(slide)]
        parts = [np.rot90(part, turn % 4, (-2, -1)) for part in parts]
        parts = [np.ascontiguousarray(part[..., ::-1] if turn > 3 else part) for part in parts]
        tiles.append(Drawing(*parts))
    return tiles


def draw(parameters: TissueParameters, seed: int, size: int = 224, mpp: float = 2.0) -> Drawing:
    """Draw one tile of size pixels at mpp micrometres a pixel: the same arguments, same bytes."""
    return divide(draw_slide([parameters], seed, size, mpp), seed)[0]
