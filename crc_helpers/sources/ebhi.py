"""EBHI-Seg: its layout, and its archive from the open record."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pooch

from crc_helpers.sources.base import About, DataError, Scan, Source, given_root
from crc_helpers.sources.cache import cache_folder, whole_folder

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


def _locate(root: Path | None) -> Path:
    hint = "run `crc-course data prepare ebhi`, or pass the folder with EBHI-SEG (--data-root)"
    root = given_root(root, "ebhi", hint)
    wanted = [f"{name}/image" for name in EBHI_CLASSES]
    places = (path for depth in range(4) for path in sorted(root.glob("*/" * depth + wanted[0])))
    root = next((path.parents[1] for path in places), root)
    for name in wanted:
        if not (root / name).is_dir():
            raise DataError(f"{root / name}: missing, expected all of EBHI-Seg's classes; {hint}")
    return root


def _folders(root: Path) -> list[str]:
    labels = [f"{name}/label" for name in EBHI_CLASSES if (root / name / "label").is_dir()]
    return [f"{name}/image" for name in EBHI_CLASSES] + labels


def ebhi_case(file: str) -> str:
    """Case id of an EBHI-Seg file name: `GTxc1900-1-400-001.png` and `GTXC1900-…` are one case."""
    if "-" not in file.lstrip("-"):
        raise DataError(
            f"{file}: no case id in the file name, expected "
            "<case>-<block>-<magnification>-<sequence>.png; restore its name"
        )
    return re.sub("^GTGT", "GT", file.split("-")[0].upper())


def _read(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
    rows, dropped, unmasked = [], [], 0
    for name in EBHI_CLASSES:
        files, masks = found.files[f"{name}/image"], set(found.files.get(f"{name}/label", ()))
        for file in files:
            if file.startswith("GTGT") and file[2:] in files:
                dropped.append(file)  # the one doubled prefix repeats its neighbour exactly
                continue
            unmasked += file not in masks
            mask = f"{name}/label/{file}" if file in masks else ""
            # a file name alone is not unique: some cases count their tiles anew in each class
            rows.append((f"{name}/{file}", name, ebhi_case(file), f"{name}/image/{file}", mask))
    notes = [f"{file}: left out, it repeats {file[2:]}" for file in dropped]
    if unmasked:
        notes.append(f"tiles without a published gland mask, theirs is all zero: {unmasked:,}")
    return pd.DataFrame(rows, columns=["id", "class", "group", "file", "mask"]), notes


def ebhi_folder() -> Path:
    """Where `prepare("ebhi")` puts the data set unless it is told otherwise."""
    return cache_folder() / "ebhi"


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
    out = out.expanduser()
    final = out / "EBHI-SEG"
    if final.is_dir():
        _locate(final)
        return final
    by_hand = f"fetch its archive by hand from {EBHI_PAGE} and put it into {out}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        archive = next(iter(sorted(out.glob("*.zip"))), None)
        if archive is None:
            listed = record(out)
            name = next(name for name in listed.registry if name.lower().endswith(".zip"))
            archive = Path(listed.fetch(name, progressbar=True))
    except (OSError, ValueError, LookupError, StopIteration) as error:  # of requests and pooch
        raise DataError(f"EBHI-Seg: not downloaded ({error}); try again, or {by_hand}") from error
    try:
        with whole_folder(final) as unfinished:
            if unfinished:
                pooch.Unzip(extract_dir=str(unfinished))(str(archive), "update", None)
                _locate(unfinished)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not unpacked ({error}); remove it, and {by_hand}") from error
    return final


SOURCE = Source(EBHI, _locate, _folders, _read)
