"""Draw a cohort on all cores, and write its tiles and masks as PNG in MHIST's layout."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed
from PIL import Image
from tqdm.auto import tqdm

from crc_helpers.tissue.cohort import Cohort
from crc_helpers.tissue.slide import Drawing, Slide

MASKS = ("glands", "lumina", "nuclei", "diagnostic", "ink")


def draw_all(
    cohort: Cohort,
    keep: Callable[[Slide, list[Drawing]], Any],
    size: int = 224,
    mpp: float = 2.0,
    processes: int | None = None,
) -> Iterator[Any]:
    """Draw a cohort on all cores, a slide at a time, and yield what `keep` makes of each, in order.

    A slide has its own seed, so the number of processes changes nothing; memory stays flat.
    """
    jobs = (delayed(_draw)(cohort.one(i), keep, size, mpp) for i in range(cohort.slides))
    # joblib's own processes: no fork of a process with threads, no `__main__` guard in a script.
    # If the program is killed they live on, and end after that many idle seconds.
    work = Parallel(processes or cpu_count(), return_as="generator", idle_worker_timeout=30)
    with tqdm(total=len(cohort.seeds), desc="drawing tissue", unit="tile", disable=None) as bar:
        for tiles, kept in work(jobs):
            bar.update(tiles)
            yield kept


def _draw(slide: Slide, keep: Callable, size: int, mpp: float) -> tuple[int, Any]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # there is a process a core
    try:
        return len(slide.parameters), keep(slide, slide.draw(size, mpp))
    finally:
        cv2.setNumThreads(threads)


def to_arrays(_: Slide, drawings: list[Drawing]) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (n, 3, H, W), and diagnostic regions, uint8 0/1 (n, H, W), of a slide."""
    return np.stack([d.image for d in drawings]), np.stack([d.diagnostic for d in drawings])


def to_files(folder: Path, slide: Slide, drawings: list[Drawing]) -> None:
    """Save each tile in `images/` and its masks, 0 or 255, in `masks/<what>/`, as PNG."""
    for name, drawing in zip(slide.names, drawings, strict=True):
        Image.fromarray(drawing.image.transpose(1, 2, 0)).save(folder / "images" / name)
        for mask in MASKS:
            path = folder / "masks" / mask / name
            Image.fromarray(getattr(drawing, mask) * 255).save(path)
