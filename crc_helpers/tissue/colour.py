"""Stain, by the Beer-Lambert law, the scanner, and what spoils a slide."""

import cv2
import numpy as np

from crc_helpers.tissue.cells import darkness_at
from crc_helpers.tissue.parameters import stream
from crc_helpers.tissue.section import EDGE, SUPERSAMPLING, Scene, pitch

# Optical density of unit concentration in red, green and blue. The third is what two stains
# cannot explain: the yellow of haemoglobin in red cells.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
HAEMOGLOBIN = np.array([0.02, 0.35, 0.80], np.float32)


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
    dark = darkness_at(scene, label, scene.height(label, scene.h))
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
        start = EDGE + i * pitch(size, 1 / scene.k)
        part = slice(None), slice(start, start + size)
        density[part], ink[part] = spoil(density[part], scene, i, start)
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
    density: np.ndarray, scene: Scene, index: int, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fold, air bubble, marker and ink dot of one tile, in optical density (m, size, 3).

    Also where ink lies, booleans (m, size). start: the tile's first column in the scene.
    """
    size = density.shape[1]
    p = scene.tiles[index]
    if not (p.fold or p.bubble or p.pen or p.ink_dot):
        return density, np.zeros(density.shape[:2], bool)
    rng = stream(scene.seed, "artefacts", index)
    y, x = np.mgrid[: len(density), :size].astype(np.float32) / np.float32(scene.k)
    fov = size / scene.k
    wave = scene.clouds[0][:, start : start + size]
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
