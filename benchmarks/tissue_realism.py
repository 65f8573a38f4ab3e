"""How near is the drawn tissue to real H&E? Statistics of both, tile by tile, in one table.

    python benchmarks/tissue_realism.py --data-root <folder of EBHI-Seg> [--picture FILE.png]

Real: Normal, Polyp, Serrated adenoma and Low-grade IN of EBHI-Seg, one tile a case, halved to 112
px: then a crypt is about as many pixels wide as a drawn one at the course's 2 µm a pixel (EBHI-Seg
says "400x", its scale is not published). Drawn: as many, one a slide. EBHI-Seg is other tissue (no
HP, no SSA, as far as is known), so this compares stain, nuclei and texture, not architecture.
Writes `benchmarks/TISSUE_REALISM.md`. The picture holds real tiles (CC BY 4.0): keep it out of the
repository.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import wasserstein_distance

from crc_helpers import data
from crc_helpers.tissue.cohort import make_cohort
from crc_helpers.tissue.colour import EOSIN, HAEMATOXYLIN
from crc_helpers.tissue.slide import draw

HERE = Path(__file__).parent
CLASSES = ("Normal", "Polyp", "Serrated adenoma", "Low-grade IN")


def optical_density(image: np.ndarray) -> np.ndarray:
    """uint8 (3, H, W) to float (H * W, 3)."""
    return -np.log((image.reshape(3, -1).T.astype(float) + 1) / 256)


def macenko(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stain vectors, haematoxylin first, of unit length; Macenko et al., ISBI 2009."""
    stained = density[(density > 0.15).all(1)]
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, 1:]
    plane *= np.sign(plane.sum(0))
    angle = np.arctan2(*(stained @ plane).T[::-1])
    ends = [plane @ [np.cos(a), np.sin(a)] for a in np.percentile(angle, [1, 99])]
    ends = [end / np.linalg.norm(end) for end in ends]
    return tuple(sorted(ends, key=lambda end: -end[0]))  # haematoxylin absorbs more red


def describe(image: np.ndarray) -> dict[str, float]:
    """Numbers of one tile (3, H, W)."""
    density = optical_density(image)
    stains = np.stack([HAEMATOXYLIN, EOSIN])
    h = np.clip((density @ np.linalg.pinv(stains))[:, 0], 0, 3)
    grey = np.uint8(h * 85).reshape(image.shape[1:])
    _, nuclei = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)
    first, second = macenko(density)
    return {
        "nuclei, share (Otsu on haematoxylin)": (nuclei > 0).mean(),
        "white, share (lumen, mucin, gaps)": (density.max(1) < 0.25).mean(),
        "red, mean": image[0].mean(),
        "green, mean": image[1].mean(),
        "blue, mean": image[2].mean(),
        "grey, spread": image.mean(0).std(),
        "haematoxylin vector, red": first[0],
        "haematoxylin vector, green": first[1],
        "haematoxylin vector, blue": first[2],
        "eosin vector, red": second[0],
        "eosin vector, green": second[1],
        "eosin vector, blue": second[2],
        "power spectrum, slope": slope(image.mean(0)),
    }


def slope(grey: np.ndarray) -> float:
    """Of the logarithm of radial power over the logarithm of frequency, 0.03-0.45 cycles/px."""
    size = len(grey)
    window = np.outer(*[np.hanning(size)] * 2)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2))
    edges = np.geomspace(0.03, 0.45, 12)
    band = np.digitize(f.ravel(), edges)
    mean = [power.ravel()[band == i].mean() for i in range(1, len(edges))]
    return np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(mean), 1)[0]


def histogram_distances(real: np.ndarray, drawn: np.ndarray) -> list[str]:
    """Wasserstein distance of the pooled colours, and what two halves of the cases give."""
    lines, order = [], np.random.default_rng(0).permutation(len(real))
    halves = real[order[::2]], real[order[1::2]]
    for i, name in enumerate(("red", "green", "blue")):
        apart = wasserstein_distance(real[:, i, ::2, ::2].ravel(), drawn[:, i, ::2, ::2].ravel())
        within = wasserstein_distance(*(half[:, i, ::2, ::2].ravel() for half in halves))
        one = [
            wasserstein_distance(tile[i, ::2, ::2].ravel(), real[:, i, ::2, ::2].ravel())
            for tile in real
        ]
        lines.append(f"| {name} | {apart:.1f} | {within:.1f} | {np.median(one):.1f} |")
    return lines


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    tiles = data.load_tiles("ebhi", arguments.data_root, classes=CLASSES)
    _, first = np.unique(np.where(tiles.labels >= 0, tiles.groups, ""), return_index=True)
    real = tiles.images[first[tiles.labels[first] >= 0]]
    n, _, size, _ = real.shape
    real = real.reshape(n, 3, size // 2, 2, size // 2, 2).mean((3, 5)).round().astype(np.uint8)
    cohort = make_cohort(6 * len(real), seed=0)
    drawn = np.stack(
        [
            draw(cohort.parameters[i], int(cohort.seeds[i]), size=112).image
            for i in range(0, 6 * len(real), 6)
        ]
    )
    numbers = [
        {k: np.array([d[k] for d in map(describe, group)]) for k in describe(real[0])}
        for group in (real, drawn)
    ]
    lines = [
        "| | real: median [5 %, 95 %] | drawn: median [5 %, 95 %] | "
        "the drawn median among the real, percentile |",
        "|---|---|---|---|",
    ]
    for name in numbers[0]:
        cells = [
            "{1:.2f} [{0:.2f}, {2:.2f}]".format(*np.percentile(v[name], [5, 50, 95]))
            for v in numbers
        ]
        place = (numbers[0][name] < np.median(numbers[1][name])).mean()
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {100 * place:.0f} |")
    text = (
        "# How near the drawn tissue is to real H&E\n\n"
        f"`python benchmarks/tissue_realism.py --data-root <EBHI-Seg>`: {len(real)} tiles of as "
        "many cases ("
        + ", ".join(CLASSES)
        + f"), {len(drawn)} drawn tiles of as many slides, both "
        "112 px at about 2 µm a pixel. EBHI-Seg's scale is not published and its tissue is not HP "
        "or SSA: compare stain, nuclei and texture, not architecture.\n\n"
        + "\n".join(lines)
        + "\n\nDistance between the colour histograms (Wasserstein, grey levels):\n\n"
        "| channel | drawn to real | one half of the real cases to the other | "
        "one real tile to all real |\n|---|---|---|---|\n"
        + "\n".join(histogram_distances(real, drawn))
        + "\n"
    )
    (HERE / "TISSUE_REALISM.md").write_text(text, encoding="utf-8")
    print(text)
    if arguments.picture:
        rows = [
            np.concatenate([np.concatenate(group[i : i + 6], 2) for group in (real, drawn)], 1)
            for i in (0, 6, 12)
        ]
        cv2.imwrite(str(arguments.picture), np.concatenate(rows, 1).transpose(1, 2, 0)[..., ::-1])


if __name__ == "__main__":
    main()
