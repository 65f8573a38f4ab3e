"""Cut a folder of slides into tiles that the lessons and `pretrain` read with `--data folder`."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from crc_helpers import slides
from crc_helpers.course.slide import Tiled, cut
from crc_helpers.sources.base import DataError
from crc_helpers.sources.cache import whole_folder
from crc_helpers.sources.tables import read_table

TABLE = "slides.csv"  # file and label of each slide


def tiles(arguments: argparse.Namespace) -> int:
    """Write OUT/<label>/<slide>/<x>_<y>.png, tiles that do not overlap, half tissue or more.

    Slides that are cut already are kept, so that the same command goes on.
    """
    folder, out = Path(arguments.slides), Path(arguments.out)
    labels = slide_labels(folder)
    for name, label in tqdm(labels.items(), desc="cutting", unit="slide", disable=None):
        with whole_folder(out / label / Path(name).stem) as unfinished:
            if unfinished:
                try:
                    _write_tiles(folder / name, unfinished, arguments)
                except DataError as error:
                    raise DataError(f"{folder / name}: {error}") from None
    n = sum(1 for _ in out.glob("*/*/*.png"))
    root = f"--data folder --data-root {out}"
    print(f"{n:,} tiles of {len(labels)} slides are in {out}: crc-course run {root}")
    return 0


def slide_labels(folder: Path) -> dict[str, str]:
    """Return each slide's file name and label, from slides.csv; DataError where there is none."""
    if not (folder / TABLE).is_file():
        raise DataError(
            f"{folder / TABLE}: no such file; write one, with the columns file and label. Without"
            " labels give two groups of any kind, e.g. scanners: pre-training does not read them"
        )
    table, _ = read_table(folder / TABLE, {"file": "file", "label": "label"})
    return dict(zip(table["file"], table["label"], strict=True))


def _write_tiles(path: Path, out: Path, options: argparse.Namespace) -> None:
    tiled: Tiled = cut(path, {"field": options.field, "size": options.size}, options.mpp)
    cells = tiled.cells[(tiled.cells % 2 == 0).all(axis=1)]  # every second cell: no overlap
    rng = np.random.default_rng(options.seed)
    at = slides.corners(rng.permutation(cells)[: options.n], tiled.scale.side)
    for x, y in at.tolist():
        tile = slides.read_tile(tiled.slide, x, y, tiled.scale.side, options.size)
        Image.fromarray(tile.transpose(1, 2, 0)).save(out / f"{x}_{y}.png")
