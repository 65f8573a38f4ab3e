"""The drawn benchmark for explanations, written as files that any program can read."""

from functools import partial
from pathlib import Path

import numpy as np

from crc_helpers import __version__
from crc_helpers.data import NO_CONFOUNDERS, Confounders, take
from crc_helpers.runs import save_json, writing
from crc_helpers.sources.base import DataError
from crc_helpers.sources.cache import whole_folder
from crc_helpers.sources.drawn import FIELD, SYNTHETIC, plan
from crc_helpers.tissue.cohort import Cohort
from crc_helpers.tissue.parameters import CRITERIA, UNEQUIVOCAL
from crc_helpers.tissue.write import MASKS, draw_all, to_files

README = """# Drawn colorectal polyps: does an explanation point at the evidence?

{tiles:,} tiles of {size} × {size} pixels ({mpp:g} µm each), drawn, not photographed, by
crc_helpers {version}: hyperplastic polyps (HP) and sessile serrated adenomas (SSA) in H&E. What
decides the diagnosis is known for each pixel. For research and teaching, not for diagnosis: no
number measured here says anything about patients.

| file | content |
|---|---|
| `images/` | RGB tiles, PNG |
| `masks/diagnostic/` | the region that decides the diagnosis, 0 or 255; names as in `images/` |
| `masks/glands/`, `lumina/`, `nuclei/`, `ink/` | other structures, likewise |
| `annotations.csv` | label, votes of seven readers, partition, slide, scanner, size, site |
| `truth.csv` | the diagnosis by the rule, severity, distortion of the worst crypt |
| `split.csv` | train, val or test; no slide is in two parts |
| `about.json` | source, licence, µm per pixel at 224 px, and the options it was drawn with |

**The rule.** The distortion of a crypt, from 0 to 1, is a weighted mean of three features:
{criteria}. A tile is SSA if one crypt has a distortion of at least {unequivocal}, else HP. The
published label is the majority of seven readers who see the distortion with errors, so it differs
from the rule on some tiles. The label is never painted on.

**The diagnostic region.** In SSA the lower halves of the distorted crypts; in HP the lower halves
of all crypts, because all of them must be regular.

**Use.** Train on `train`, choose layers and options on `val`, report `test` once. A slide has six
tiles that resemble each other: compute intervals over slides.

Licence: {licence}. How to score an explanation: docs/benchmark.md of the course.
"""


def write_benchmark(
    out: Path,
    n: int = 3152,
    seed: int = 0,
    size: int = 224,
    confounders: Confounders = NO_CONFOUNDERS,
) -> Path:
    """Draw a cohort into a new folder in MHIST's layout, with masks, truth and split.

    All or nothing; returns the folder, whose `README.md` describes it. n: tiles; size: pixels.
    """
    cohort, mpp = plan(n, seed, confounders), FIELD / size
    with writing(out), whole_folder(out) as folder:
        if not folder:
            raise DataError(f"{out}: is there already; choose another --out, or remove it")
        for name in ("images", *(f"masks/{mask}" for mask in MASKS)):
            (folder / name).mkdir(parents=True)
        for _ in draw_all(cohort, partial(to_files, folder), size, mpp):
            pass
        _write_tables(folder, cohort)
        options = {"n": n, "seed": seed}
        options |= vars(confounders) if confounders != NO_CONFOUNDERS else {}
        # The scale is that of a tile at 224 px, as in `About`.
        about = {"source": SYNTHETIC.origin, "licence": SYNTHETIC.licence, "mpp": SYNTHETIC.mpp}
        save_json(folder / "about.json", about | {"plan": options})
        words = (f"{name.replace('_', ' ')} ({weight})" for name, weight in CRITERIA.items())
        facts = {"criteria": ", ".join(words), "unequivocal": UNEQUIVOCAL, "version": __version__}
        readme = README.format(tiles=n, size=size, mpp=mpp, licence=about["licence"], **facts)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return out


def _write_tables(folder: Path, cohort: Cohort) -> None:
    published = cohort.annotations()
    part = published["Partition"].to_numpy(object, copy=True)
    # As `data.split` with seed 0 takes it.
    train, rng = np.flatnonzero(part == "train"), np.random.default_rng(0)
    part[take(train, cohort.label, cohort.slide, 0.15, rng, leave=1)] = "val"
    split = published[["Image Name", "Slide"]].assign(Part=part)
    for name, table in (("annotations", published), ("truth", cohort.truth()), ("split", split)):
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
