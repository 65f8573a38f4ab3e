"""MHIST's layout: `annotations.csv` beside `images/`, and masks where tissue is drawn."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import METADATA, About, DataError, Scan, Source, given_root
from crc_helpers.sources.tables import match, read_table, refuse

MHIST_COLUMNS = {
    "id": "Image Name",
    "class": "Majority Vote Label",
    "votes": "Number of Annotators who Selected SSA (Out of 7)",
    "partition": "Partition",
}
MHIST_FORM = (
    "MHIST is given out by its authors after a form (Dataset Research Use Agreement) at "
    "https://bmirds.github.io/MHIST : fill it in, unpack images.zip beside annotations.csv, "
    "and pass that folder as root (--data-root)"
)
MHIST = About(
    "MHIST, Wei et al. 2021, arXiv 2101.12355",
    "Dataset Research Use Agreement; not redistributable",
    class_names=("HP", "SSA"),
    mask_name="diagnostic region",  # where there are masks: drawn tiles in MHIST's layout
    mpp=2.0,
)


def _locate(root: Path | None) -> Path:
    root = given_root(root, "mhist", MHIST_FORM)
    for part in ("annotations.csv", "images"):
        if not (root / part).exists():
            raise DataError(f"{root / part}: missing; {MHIST_FORM}")
    return root


def _folders(root: Path) -> list[str]:
    masks = ["masks/diagnostic"] if (root / "masks" / "diagnostic").is_dir() else []
    return ["images", *masks]


def read(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `annotations.csv`, each checked against its image, and what must be said."""
    path = root / "annotations.csv"
    table, notes = read_table(path, MHIST_COLUMNS, optional=["Slide", *METADATA])
    images = match(path, table["id"], found.files["images"], root / "images")
    table["class"] = table["class"].str.upper()
    table["partition"] = table["partition"].str.lower()
    label, part, votes = table["class"], table["partition"], table["votes"]
    refuse(~label.isin(["HP", "SSA"]), path, label, "is no label; write HP or SSA")
    refuse(~part.isin(["train", "test"]), path, part, "is no partition; write train or test")
    why = "is no number of votes; write a whole number from 0 to 7"
    refuse(~votes.str.fullmatch("[0-7]"), path, votes, why)
    both = votes + " votes of 7 for SSA, label " + label
    why = "contradict each other; 4 or more votes make SSA, correct one of them"
    refuse((votes.astype(int) >= 4) != (label == "SSA"), path, both, why)
    if "Slide" in table:
        table = table.rename(columns={"Slide": "group"})
        refuse(table["group"] == "", path, table["id"], "has no slide; fill the column Slide")
        parts = table.groupby("group")["partition"].transform("nunique")
        why = "is in both partitions; keep all tiles of a slide in one"
        refuse(parts > 1, path, table["group"], why)
    table["file"] = "images/" + images
    if "masks/diagnostic" in found.files:
        folder = root / "masks" / "diagnostic"
        masks = match(path, table["id"], found.files["masks/diagnostic"], folder)
        table["mask"] = "masks/diagnostic/" + masks
    return table, notes


def declared(root: Path, about: About) -> About:
    """What a data set says of itself in `about.json`, so that drawn tiles stay drawn tiles."""
    path = root / "about.json"
    if not path.is_file():
        return about
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        mpp = float(known["mpp"])
        if not 0 < mpp < 1000:
            raise ValueError(f"mpp {mpp}")
        return replace(about, origin=str(known["source"]), licence=str(known["licence"]), mpp=mpp)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected source, licence and mpp as JSON ({error!r}); restore or remove it"
        ) from error


SOURCE = Source(MHIST, _locate, _folders, read)
