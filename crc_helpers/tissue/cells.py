"""Cells of the epithelium, the stroma and the vessels, drawn into a section."""

import cv2
import numpy as np

from crc_helpers.tissue.crypts import cap, wobble
from crc_helpers.tissue.parameters import stream
from crc_helpers.tissue.section import SUPERSAMPLING, Scene, cloud, fill, stamp


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
