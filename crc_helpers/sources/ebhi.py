"""EBHI-Seg: its layout, and its archive from the open record."""

import json
import lzma
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pooch
import requests
import urllib3
from filelock import FileLock

from crc_helpers.sources.base import About, DataError, Scan, Source, given_root, progress
from crc_helpers.sources.cache import cache_folder, whole_folder

EBHI_RECORD = "https://api.figshare.com/v2/articles/21540159"
EBHI_PAGE = "https://figshare.com/articles/dataset/EBHI-SEG/21540159"
UNPACKED_LIMIT = 4_000_000_000  # bytes; the record's 4,454 small PNGs stay far below
MEMBER_LIMIT = 50_000  # files in an archive
ANSWER_LIMIT = 10_000_000  # bytes of the record that lists the archives
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


def _locate_ebhi(root: Path | None) -> Path:
    hint = (
        "run `crc-course data prepare ebhi`, or pass the folder that holds EBHI-SEG (--data-root)"
    )
    root = given_root(root, "ebhi", hint)
    root = root / "EBHI-SEG" if (root / "EBHI-SEG").is_dir() else root
    for name in EBHI_CLASSES:
        if not (root / name / "image").is_dir():
            raise DataError(
                f"{root / name / 'image'}: missing, expected the six class folders of "
                f"EBHI-SEG; {hint}"
            )
    return root


def _folders_ebhi(root: Path) -> list[str]:
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


def _read_ebhi(root: Path, found: Scan) -> tuple[pd.DataFrame, list[str]]:
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


def download_ebhi(out: Path, api: str = EBHI_RECORD) -> Path:
    """Fetch EBHI-Seg's archive into `out`, verify it, unpack it; returns `out/EBHI-SEG`.

    An archive that already lies in `out` (fetched by hand) is unpacked instead. A download that
    breaks off leaves a `.part` file, from which the next call goes on.
    """
    final = out / "EBHI-SEG"
    if final.is_dir():
        if missing := _missing_classes(final):
            raise DataError(
                f"{final / missing[0]}: is missing; remove {final}, and the same command makes it"
                " anew"
            )
        return final
    by_hand = (
        f"or fetch its archive by hand from {EBHI_PAGE} and unpack it so that "
        f"{final / EBHI_CLASSES[0] / 'image'} exists (a zip archive may just be put into {out})"
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        archives = sorted(out.glob("*.zip")) or _fetch_record(out, api)
        for archive in archives[:1]:
            with whole_folder(final) as unfinished:
                if unfinished:
                    _unpack(archive, unfinished)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = getattr(getattr(error, "response", None), "reason", None) or type(error).__name__
        raise DataError(
            f"EBHI-Seg: the download failed ({reason}); try again, it goes on where it "
            f"stopped, {by_hand}"
        ) from error
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); choose another --out") from error
    if not archives:
        raise DataError(f"EBHI-Seg: no zip archive listed by {api}; try again later, {by_hand}")
    return final


def _fetch_record(out: Path, api: str) -> list[Path]:
    """Download the zip files of a figshare record, each checked against the record's MD5."""
    with requests.get(api, timeout=30, stream=True) as answer:
        answer.raise_for_status()
        content = bytearray()
        for block in answer.iter_content(1 << 16):
            content += block
            if len(content) > ANSWER_LIMIT:
                raise DataError(
                    f"{api}: its answer has more than {ANSWER_LIMIT:,} bytes; try later"
                )
        try:
            listed = [(str(f["name"]), str(f["download_url"]), str(f["computed_md5"]))
                      for f in json.loads(content)["files"]]  # fmt: skip
            if not all(name.isprintable() for name, *_ in listed):
                raise ValueError("a name that is no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{api}: its answer is no list of files ({error!r}); try later"
            ) from None
    archives = []
    for name, url, md5 in listed:
        if not name.lower().endswith(".zip"):
            continue
        archive = out / (name := Path(name).name)
        part = archive.with_name(f"{archive.name}.part")
        with FileLock(archive.with_name(f".{name}.lock")):
            if part.is_symlink():
                raise DataError(f"{part}: a link, and a download would write through it; remove it")
            _resume(part, url)
            if pooch.file_hash(part, "md5") != md5:
                part.unlink()
                raise DataError(
                    f"{archive.name}: downloaded, but not the file that {api} describes "
                    "(its MD5 differs); give the same command again"
                )
            part.replace(archive)
        archives.append(archive)
    return archives


def _resume(part: Path, url: str) -> None:
    """Fetch a file into `part`, going on with the bytes already there."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:  # nothing is left to fetch; the checksum decides
            return
        answer.raise_for_status()
        have *= answer.status_code == 206  # a server without ranges starts again
        length = answer.headers.get("Content-Length", "")  # of any text; the bar does without
        total = have + int(length) if re.fullmatch("[0-9]{1,15}", length) else None
        with part.open("ab" if have else "wb") as file, progress(total, part.stem, "B") as bar:
            bar.update(have)
            for block in answer.iter_content(1 << 16):
                bar.update(file.write(block))
                if file.tell() > UNPACKED_LIMIT:
                    raise DataError(f"{url}: more than {UNPACKED_LIMIT:,} bytes; not EBHI-Seg")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the class folders of a zip archive into `folder`, trusting none of its names."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                _refuse_member(archive, member)
            size = sum(member.file_size for member in members)
            if size > UNPACKED_LIMIT or len(members) > MEMBER_LIMIT:
                raise DataError(
                    f"{archive}: would unpack to more than {UNPACKED_LIMIT:,} bytes or "
                    f"{MEMBER_LIMIT:,} files; it is not EBHI-Seg, remove it"
                )
            content.extractall(folder / "unpacked")
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
        *(EOFError, RuntimeError, ValueError, OSError),
    ) as error:
        # RuntimeError: a password, or a compression that this Python lacks. OSError without a
        # number is bzip2's word for damage; with one it is the system's.
        if getattr(error, "errno", None):
            raise
        raise DataError(
            f"{archive}: a damaged archive ({error}); remove it and fetch it again"
        ) from error
    found = sorted((folder / "unpacked").rglob(f"{EBHI_CLASSES[0]}/image"))
    if not found:
        raise DataError(
            f"{archive}: no folder {EBHI_CLASSES[0]}/image in it, so it is not "
            "EBHI-Seg; remove it and fetch the right one"
        )
    if missing := _missing_classes(found[0].parents[1]):
        raise DataError(
            f"{archive}: no folder {missing[0]} in it, so it is not all of EBHI-Seg; remove it and"
            " fetch it again"
        )
    for path in found[0].parents[1].iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "unpacked")


def _missing_classes(folder: Path) -> list[str]:
    return [f"{name}/image" for name in EBHI_CLASSES if not (folder / name / "image").is_dir()]


def _refuse_member(archive: Path, member: zipfile.ZipInfo) -> None:
    parts = re.split(r"[/\\]", member.filename)
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise DataError(f"{archive}: {member.filename!r} in it leaves the folder; remove the file")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive}: {member.filename!r} in it is a link; remove the file")


SOURCE = Source(EBHI, _locate_ebhi, _folders_ebhi, _read_ebhi)
