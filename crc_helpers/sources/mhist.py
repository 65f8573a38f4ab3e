"""MHIST's layout: `annotations.csv` beside `images/`, and masks where tissue is drawn."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from crc_helpers.runs import read_json
from crc_helpers.sources.base import METADATA, About, Listing, Source
from crc_helpers.sources.tables import match, read_table, refuse

MHIST_COLUMNS = {
    "id": "Image Name",
    "class": "Majority Vote Label",
    "votes": "Number of Annotators who Selected SSA (Out of 7)",
    "partition": "Partition",
}
MHIST = About(
    "MHIST, Wei et al. 2021, arXiv 2101.12355",
    "Dataset Research Use Agreement; not redistributable",
    class_names=("HP", "SSA"),
    mask_name="diagnostic region",  # where there are masks: drawn tiles in MHIST's layout
    mpp=2.0,
)
LAYOUT = (
    "expected images/ beside annotations.csv. MHIST is given out by its authors after a form"
    " (Dataset Research Use Agreement) at https://bmirds.github.io/MHIST : fill it in, unpack"
    " images.zip beside annotations.csv, and give that folder"
)
MASKS = "masks/diagnostic"


def _folders(root: Path) -> list[str]:
    return ["images", *([MASKS] if (root / MASKS).is_dir() else [])]


def tabulate(root: Path, listing: Listing) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `annotations.csv`, each checked and with its image, and notes."""
    path = root / "annotations.csv"
    table, notes = read_table(path, MHIST_COLUMNS, optional=["Slide", *METADATA])
    for name in ["images", MASKS]:
        if name in listing.files:
            files = match(path, table["id"], listing.files[name], root / name)
            table["file" if name == "images" else "mask"] = f"{name}/" + files
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
    return table, notes


def described(root: Path, about: About) -> About:
    """The description with what `about.json` adds, so that drawn tiles do not pass for MHIST."""
    path = root / "about.json"
    if not path.is_file():
        return about
    own = {"source": about.origin, "licence": about.licence, "mpp": about.mpp} | read_json(path)
    return replace(about, origin=own["source"], licence=own["licence"], mpp=own["mpp"])


PARTS = ("annotations.csv", "images")
SOURCE = Source(MHIST, LAYOUT, PARTS, lambda folder: folder, _folders, tabulate)
