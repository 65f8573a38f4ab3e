"""Crypts, bodies in three dimensions: where they stand, and the tubes that they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from crc_helpers.tissue.parameters import TissueParameters, distortion, express, stream, weigh

LEAN = 0.2  # micrometres aside that crypts lean at most, a micrometre of height
SPARED = 0.6  # susceptibility up to which a crypt of an adenoma is not dysplastic: one in eight
REACH = 140.0  # micrometres from its axis that a crypt may reach
GAP = 130.0  # micrometres of tissue between two tiles of a slide: what either may show a part of


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


def lattice(seed: int) -> np.ndarray:
    """Uniform random numbers of each crypt of a slide, (rows, columns, 32); far off they recur."""
    return stream(seed, "crypt").random((16, 128, 32))


def lay_out(
    tiles: Sequence[TissueParameters], seed: int, fov: float = 448.0, pitch: float = 448.0 + GAP
) -> list[Crypt]:
    """The crypts that a slide may meet; its tiles, of fov micrometres, begin every pitch ones.

    They stand on a jittered hexagonal lattice. In each tile one crypt of the first row, anywhere in
    it, has the tile's full severity. A crypt between two tiles may be seen in both: it takes the
    milder tile's severity, so a mild tile never shows a neighbour's crypt.
    """
    p, width = tiles[0], (len(tiles) - 1) * pitch + fov
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
    tile = np.clip(x / pitch, 0, len(tiles) - 1).astype(int)
    worst, following = [distortion(t) for t in tiles], np.minimum(tile + 1, len(tiles) - 1)
    milder = np.where(np.take(worst, following) < np.take(worst, tile), following, tile)
    tile = np.where(x > tile * pitch + fov, milder, tile)
    first = np.flatnonzero(row == 0)
    for i, place in enumerate(stream(seed, "plane", 2).uniform(0.1, 0.9, len(tiles))):
        carrier = first[np.argmin(np.abs(x[first] - i * pitch - place * fov))]
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


def make_tubes(
    n: int, lobes: np.ndarray, azimuths: list, starts, lengths, rims, **tables
) -> list[Tube]:
    """Build n tubes; `tables` are the arrays of `Tube`, (n, places), or one row for all."""
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
    return make_tubes(
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
    return make_tubes(
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
        tubes = make_tubes(
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
