"""EBHI-Seg: its layout, and its archive from the open record."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pooch

from crc_helpers.sources.base import About, DataError, Listing, Source
from crc_helpers.sources.cache import whole_folder

EBHI_DOI = "doi:10.6084/m9.figshare.21540159.v1/"
EBHI_PAGE = "https://figshare.com/articles/dataset/EBHI-SEG/21540159"
EBHI_CLASSES = (
    "Normal",
    "Polyp",
    "Low-grade IN",
    "High-grade IN",
    "Serrated adenoma",
    "Adenocarcinoma",
)
EBHI = About(
    "EBHI-Seg, Shi et al. 2023, doi 10.3389/fmed.2023.1114673, figshare record 21540159",
    "CC BY 4.0 as second-hand sources state it; check the record",
    class_names=EBHI_CLASSES,
    default_classes=("Low-grade IN", "Adenocarcinoma"),
    mask_name="glands",
)
LAYOUT = (
    "expected all of EBHI-Seg's classes; run `crc-course data prepare ebhi`, or give the folder"
    " with EBHI-SEG"
)
PARTS = tuple(f"{name}/image" for name in EBHI_CLASSES)


def _locate(folder: Path) -> Path:
    places = (path for depth in range(4) for path in sorted(folder.glob("*/" * depth + PARTS[0])))
    return next((path.parents[1] for path in places), folder)


def _folders(root: Path) -> list[str]:
    masks = [f"{name}/label" for name in EBHI_CLASSES]
    return [*PARTS, *(name for name in masks if (root / name).is_dir())]


def ebhi_case(file: str) -> str:
    """Case id of an EBHI-Seg file name: `GTxc1900-1-400-001.png` and `GTXC1900-…` are one case."""
    if "-" not in file.lstrip("-"):
        raise DataError(
            f"{file}: no case id in the file name, expected "
            "<case>-<block>-<magnification>-<sequence>.png; restore its name"
        )
    return re.sub("^GTGT", "GT", file.split("-")[0].upper())


def _tabulate(_: Path, listing: Listing) -> tuple[pd.DataFrame, list[str]]:
    rows, repeated, unmasked = [], [], 0
    for name in EBHI_CLASSES:
        files, masks = listing.files[f"{name}/image"], set(listing.files.get(f"{name}/label", ()))
        for file in files:
            if file.startswith("GTGT") and file[2:] in files:
                repeated.append(file)  # the one doubled prefix repeats its neighbour exactly
                continue
            unmasked += file not in masks
            mask = f"{name}/label/{file}" if file in masks else ""
            # a file name alone is not unique: some cases count their tiles anew in each class
            rows.append((f"{name}/{file}", name, ebhi_case(file), f"{name}/image/{file}", mask))
    notes = [f"{file}: left out, it repeats {file[2:]}" for file in repeated]
    if unmasked:
        notes.append(f"tiles without a published gland mask, theirs is all zero: {unmasked:,}")
    return pd.DataFrame(rows, columns=["id", "class", "group", "file", "mask"]), notes


def ebhi_record(out: Path) -> pooch.Pooch:
    """The files of the open record, with their MD5, as figshare lists them; to be kept in `out`."""
    record = pooch.create(out, EBHI_DOI)
    record.load_registry_from_doi()
    return record


def download_ebhi(out: Path, record: Callable[[Path], pooch.Pooch] = ebhi_record) -> Path:
    """Fetch EBHI-Seg's archive into `out`, verify it, unpack it; returns `out/EBHI-SEG`.

    An archive that already lies in `out` (fetched by hand) is unpacked instead. Names in it that
    climb out of the folder, and links, become plain files inside (`zipfile`).
    """
    final, step = out / "EBHI-SEG", "EBHI-Seg: not downloaded"
    if final.is_dir():
        SOURCE.root(final)
        return final
    try:
        out.mkdir(parents=True, exist_ok=True)
        archive = next(iter(sorted(out.glob("*.zip"))), None)
        if archive is None:
            files = record(out)
            name = next(name for name in files.registry if name.lower().endswith(".zip"))
            archive = Path(files.fetch(name, progressbar=True))
        step = f"{archive}: not unpacked"
        with whole_folder(final) as unfinished:
            if unfinished:
                pooch.Unzip(extract_dir=str(unfinished))(str(archive), "update", None)
                SOURCE.root(unfinished)
    # Of requests, pooch and zipfile.
    except (LookupError, OSError, RuntimeError, StopIteration, ValueError, zipfile.BadZipFile) as e:
        raise DataError(
            f"{step} ({e}); try again, or remove it, and fetch its archive by hand from {EBHI_PAGE}"
            f" into {out}"
        ) from e
    return final


SOURCE = Source(EBHI, LAYOUT, PARTS, _locate, _folders, _tabulate)
