"""1,000, 10,000 and 100,000 tiles of 224 px: to decode, to open again, to go through once.

    python benchmarks/many_tiles.py [--counts 1000 10000 100000]

The files are drawn tiles under many names (hard links), read with `load_tiles("folder")` as a
user's own would be; 100,000 of them need 15 GB of disk while this runs. Going through is what an
epoch reads: every tile once, in random batches of 128, reduced to 64 px; nothing is trained, which
would hide the reading. Each step runs in a process of its own, whose largest resident memory is
reported.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import keep_figures

from crc_helpers import augmentation, data, pretraining, runs
from crc_helpers.course import check as data_check

DRAWN = 600


def make_files(folder: Path, count: int, drawn: list[Path]) -> None:
    """Two classes of `count` files in all, each the hard link of a drawn one."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        os.link(drawn[i % len(drawn)], folder / "ab"[i % 2] / f"{i:06d}.png")


def measure(step: str, root: str, cache: str) -> dict[str, float]:
    """Decode, open or go through the tiles; seconds, and resident gigabytes at the most."""
    before = time.perf_counter()
    tiles = data.load_tiles("folder", root, cache=cache)
    seconds = time.perf_counter() - before
    if step == "epoch":
        for file in tiles.images.files:  # out of the page cache: an epoch shall read from the disk
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before, fabric = time.perf_counter(), runs.make_fabric(0)
        for index in pretraining.batches(len(tiles), 128, seed=0, epoch=1):
            augmentation.shrink(pretraining.to_device(tiles.images[index], fabric), 64)
        seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    return {"seconds": seconds, "gigabytes": peak}


def main() -> None:
    """Measure every step for every count, in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = data_check.prepare("synthetic", folder / "drawn", n=DRAWN) / "images"
        drawn = sorted(images.iterdir())
        for count in arguments.counts:
            make_files(folder / f"{count}", count, drawn)
            found = {}
            for step in ("decode", "open", "epoch"):
                command = [sys.executable, __file__, "--measure", step, folder / f"{count}"]
                done = subprocess.run(
                    [*command, folder / "cache"], stdout=subprocess.PIPE, text=True, check=True
                )
                found[step] = json.loads(done.stdout.splitlines()[-1])
            keep_figures(
                f"{count:,} tiles",
                {
                    "decoding, ms a tile": (1e3 * found["decode"]["seconds"] / count, None),
                    "decoding, largest resident GB": (found["decode"]["gigabytes"], 2),
                    "opening again, s": (found["open"]["seconds"], 1),
                    "going through once, ms a tile": (
                        1e3 * found["epoch"]["seconds"] / count,
                        None,
                    ),
                    "going through, largest resident GB": (found["epoch"]["gigabytes"], 2),
                },
            )


if __name__ == "__main__":
    main()
