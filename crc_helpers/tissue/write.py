"""Draw a cohort on all cores, and write its tiles and masks as PNG in MHIST's layout."""

from collections.abc import Callable
from pathlib import Path

import cv2
from joblib import Parallel, cpu_count, delayed
from PIL import Image
from tqdm.auto import tqdm

from crc_helpers.tissue.cohort import Cohort
from crc_helpers.tissue.slide import Drawing, Slide

MASKS = ("glands", "lumina", "nuclei", "diagnostic", "ink")
Keep = Callable[[Slide, list[Drawing]], None]


def draw_all(
    cohort: Cohort, keep: Keep, size: int = 224, mpp: float = 2.0, processes: int | None = None
) -> None:
    """Draw a cohort on all cores, a slide at a time, and hand each slide to `keep`.

    A slide has its own seed, so the number of processes changes nothing; memory stays flat.
    """
    jobs = (delayed(_draw)(cohort.one(i), keep, size, mpp) for i in range(cohort.slides))
    # joblib's own processes: no fork of a process with threads, no `__main__` guard in a script.
    # If the program is killed they live on, and end after that many idle seconds.
    work = Parallel(processes or cpu_count(), return_as="generator", idle_worker_timeout=30)
    with tqdm(total=len(cohort.seeds), desc="drawing tissue", unit="tile", disable=None) as bar:
        for drawn in work(jobs):
            bar.update(drawn)


def _draw(slide: Slide, keep: Keep, size: int, mpp: float) -> int:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # there is a process a core
    try:
        keep(slide, slide.draw(size, mpp))
    finally:
        cv2.setNumThreads(threads)
    return len(slide.parameters)


def to_files(folder: Path, slide: Slide, drawings: list[Drawing]) -> None:
    """Save each tile in `images/` and its masks, 0 or 255, in `masks/<what>/`, as PNG."""
    for name, drawing in zip(slide.names, drawings, strict=True):
        Image.fromarray(drawing.image.transpose(1, 2, 0)).save(folder / "images" / name)
        for mask in MASKS:
            path = folder / "masks" / mask / name
            Image.fromarray(getattr(drawing, mask) * 255).save(path)
