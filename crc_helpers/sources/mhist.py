"""MHIST's layout: `annotations.csv` beside `images/`, and masks where tissue is drawn."""

import re
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import METADATA, About, DataError, Scan, Source, given_root
from crc_helpers.sources.tables import read_table, refuse, require_match

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


def _locate_mhist(root: Path | None) -> Path:
    root = given_root(root, "mhist", MHIST_FORM)
    for part in ("annotations.csv", "images"):
        if not (root / part).exists():
            raise DataError(f"{root / part}: missing; {MHIST_FORM}")
    return root


def _folders_mhist(root: Path) -> list[str]:
    masks = ["masks/diagnostic"] if (root / "masks" / "diagnostic").is_dir() else []
    return ["images", *masks]


def _read_mhist(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    path = root / "annotations.csv"
    table, notes = read_table(path, MHIST_COLUMNS, optional=["Slide", *METADATA])
    bare = table["id"].map(lambda name: name not in ("", "..") and not re.search(r"[/\\]", name))
    refuse(~bare, path, table["id"], "leaves the folder images; give the bare file name")
    require_match(path, table["id"], found.files["images"], str(root / "images"))
    table["class"] = table["class"].str.upper()
    table["partition"] = table["partition"].str.lower()
    refuse(
        ~table["class"].isin(["HP", "SSA"]), path, table["class"], "is no label; write HP or SSA"
    )
    refuse(
        ~table["partition"].isin(["train", "test"]),
        path,
        table["partition"],
        "is no partition; write train or test",
    )
    refuse(
        ~table["votes"].str.fullmatch("[0-7]"),
        path,
        table["votes"],
        "is no number of votes; write a whole number from 0 to 7",
    )
    against = (table["votes"].astype(int) >= 4) != (table["class"] == "SSA")
    refuse(
        against,
        path,
        table["votes"] + " votes of 7 for SSA, label " + table["class"],
        "contradict each other; 4 or more votes make SSA, correct one of them",
    )
    if "Slide" in table:
        table = table.rename(columns={"Slide": "group"})
        refuse(table["group"] == "", path, table["id"], "has no slide; fill the column Slide")
        parts = table.groupby("group")["partition"].transform("nunique")
        refuse(
            parts > 1,
            path,
            table["group"],
            "is in both partitions; keep all tiles of a slide in one",
        )
    table["file"] = "images/" + table["id"]
    if "masks/diagnostic" in found.files:
        folder = str(root / "masks" / "diagnostic")
        require_match(path, table["id"], found.files["masks/diagnostic"], folder)
        table["mask"] = "masks/diagnostic/" + table["id"]
    return table, notes


SOURCE = Source(
    MHIST, _locate_mhist, _folders_mhist, _read_mhist, ("annotations.csv", "about.json")
)
