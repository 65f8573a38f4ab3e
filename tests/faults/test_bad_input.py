"""Bad and hostile input, one example a message: the input, and words of the sentence it ends in."""

import io
import json
import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from test_data import HEADER, ROWS, make_ebhi, make_folder, make_mhist
from torch import nn

from crc_helpers.course.cli import main
from crc_helpers.data import load_tiles, recall, remember, split
from crc_helpers.models import load_weights, read_facts
from crc_helpers.runs import Checkpoint, RunError
from crc_helpers.sources import ebhi
from crc_helpers.sources.base import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
NOISE = Image.fromarray(PIXELS)
PAGES = {"save_all": True, "append_images": [NOISE, NOISE]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))


def refused(call, words):
    """`call` ends in an error made for people: one printable line that holds the words."""
    with pytest.raises((DataError, RunError)) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    for word in words.split("|"):
        assert word in message, f"{word!r} not in: {message}"


def rows(table):
    """A table of (name, ..., words) as parameters named by their first column."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


# --- images --------------------------------------------------------------------------------------


def image(kind="PNG", picture=NOISE, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def tiff(pixels, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(pixels, width=40, height=40, bits=8, colour=2):
    """A PNG of any header, with the right checksums."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


WIDE = (PIXELS.astype(np.uint16) * 256).transpose(2, 0, 1)
DEEP = "x.png: more than 8 bits a channel|expected 8-bit RGB; convert it"
IMAGES = [
    ("no image", b"<html>404</html>", "x.png: not a PNG, JPEG or TIFF image|download it again"),
    ("cut", image()[:2000], "x.png: unreadable, truncated or damaged|download it again"),
    ("wrong checksum", image()[:-20] + b"\1" + image()[-19:], "truncated or damaged"),
    ("bomb", png(b"", width=20_000, height=20_000), "x.png: Image size (400000000|cut it"),
    ("large enough to warn", png(b"", width=10_000, height=9_000), "x.png: Image size|cut it"),
    ("16 bits", png(bytes(40 * 241), bits=16), DEEP),
    ("planar 16 bits", tiff(WIDE, photometric="rgb", planarconfig="separate"), DEEP),
    ("16 bits with alpha", tiff(np.dstack([*WIDE, WIDE[0]]), photometric="rgb"), DEEP),
    ("big-endian tiles", tiff(WIDE.transpose(1, 2, 0), photometric="rgb", tile=(16, 16),
                              byteorder=">"), DEEP),
    ("16-bit CMYK", tiff(np.dstack([*WIDE, WIDE[0]]), photometric="separated"), DEEP),
    ("grey floats", tiff(PIXELS[..., 0].astype(np.float32)), DEEP),
    ("float RGB", tiff(PIXELS.astype(np.float32), photometric="rgb"),
     "x.png: a TIFF of 3 × float32 a pixel, RGB, compression NONE; expected 8-bit RGB; convert"),
    ("uint32", tiff(PIXELS.astype(np.uint32), photometric="rgb"), "3 × uint32 a pixel|convert"),
    ("three grey samples", tiff(PIXELS, photometric="minisblack", planarconfig="contig"),
     "3 × uint8 a pixel, MINISBLACK|convert"),
    ("JPEG 2000", tiff(PIXELS, photometric="rgb").replace(
        struct.pack("<HHIHH", 259, 3, 1, 1, 0), struct.pack("<HHIHH", 259, 3, 1, 34712, 0)),
     "compression JPEG2000|convert"),
    ("Lab", image("TIFF", Image.new("LAB", (9, 9))), "x.png: colour mode LAB; expected 8-bit RGB"),
    ("pages", image("TIFF", NOISE, **PAGES), "x.png: 3 pages, expected one; export one page"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(IMAGES))
def test_bad_images(tmp_path, content, words):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(content)
    refused(lambda: load_tiles("folder", root, size=16), words)
    assert not list((tmp_path / "cache").glob("[!.]*"))


UNUSUAL = [
    ("1 x 1", image(picture=NOISE.crop((0, 0, 1, 1)))),
    ("65,535 wide", image(picture=Image.new("L", (65535, 1)))),
    ("progressive", image("JPEG", progressive=True)),
    ("two pictures (MPO)", image("MPO", NOISE, **PAGES)),
    ("transparent palette", image("PNG", NOISE.quantize(4), transparency=0)),
    ("tiff group 4", image("TIFF", NOISE.convert("1"), compression="group4")),
    ("big tiff", tiff(PIXELS, photometric="rgb", bigtiff=True)),
    ("planar tiff", tiff(PIXELS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")),
]


@pytest.mark.parametrize("content", rows(UNUSUAL))
def test_unusual_images_are_read(tmp_path, content):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(content)
    assert load_tiles("folder", root, size=16).images.shape == (3, 3, 16, 16)


FILES = [
    ("pipe", os.mkfifo, "x.png: called like an image, but not a file; remove it"),
    ("link to itself", lambda path: path.symlink_to(path), "x.png: cannot be read"),
    ("name in latin-1", lambda path: path.with_name(os.fsdecode(b"\xe4.png")).touch(),
     "\\udce4.png: a name that is not text in UTF-8; rename"),
    ("class without images", lambda path: (path.parents[1] / "none").mkdir(),
     "none: no image in it, expected <class>/*.png"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), rows(FILES))
def test_bad_files(tmp_path, make, words):
    root = make_folder(tmp_path / "f", count=1)
    make(root / "benign" / "x.png")
    refused(lambda: load_tiles("folder", root, size=16), words)


NAMES = ["a b", 'say "x"', "new\nline", "änderung", "日本", "-rf", "a,b", "<script>", "=1+1",
         "$x^{", "NA", "null", "0", "\\", "\u202egnp", "\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text(tmp_path, name):
    """As a class, a file and the folder above, through cache, split, its table and the report."""
    root = make_folder(tmp_path / name, classes=(name, "z"), count=8)
    for path in root.glob("*/*.png"):
        path.rename(path.with_name(f"{name}{path.name}"))
    tiles = load_tiles("folder", root, classes=[name, "z"])
    assert tiles.class_names == (name, "z")
    assert set(tiles.ids) == {f"{c}/{name}{i}.png" for c in (name, "z") for i in range(8)}
    settings = {"root": root, "classes": [name, "z"], "n": 0, "scheme": "auto", "seed": 0}
    remember(tmp_path, tiles, split(tiles), test=0.25, validation=0.15, **settings)
    again, _ = recall(tmp_path, "run")
    assert sorted(again.class_names) == sorted(tiles.class_names)
    cells = (tmp_path / "split.csv").read_text().split(",")
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    sheet = str(tmp_path / "sheet.png")
    assert main(["data", "check", "folder", "--data-root", str(root), "--out", sheet]) == 0


# --- tables --------------------------------------------------------------------------------------


def table(*lines):
    return "\n".join([HEADER, *ROWS[:3], *lines]).encode() + b"\n"


LAST = "MHIST_aad.png,SSA,4,test"
TABLES = [
    ("utf-16", table(LAST).decode().encode("utf-16"), "cannot be read as a table|UTF-8"),
    ("a row too long", table(f"{LAST},x,y"), "cannot be read as a table|comma-separated"),
    ("header only", HEADER.encode(), "MHIST_aaa.png: has no row in|(and 3 more"),
    ("semicolons", table(LAST).replace(b",", b";"), "'Image Name' is missing|commas between"),
    ("column twice", table(LAST).replace(b"Partition", b"Image Name"), "'Image Name' is there tw"),
    ("no such file", table("../../x.png,SSA,4,test"), "line 5: '../../x.png' has no file|restore"),
    ("terminal codes", table("\x1b[31mx,SSA,4,test"), "x1b[31mx' has no file"),
    ("a row twice", table(LAST, LAST), "line 6: 'MHIST_aad.png' is listed twice; keep one"),
    ("a file without row", table(), "MHIST_aad.png: has no row in|add the row"),
    ("formula as label", table("MHIST_aad.png,=1+1,4,test"), "'=1+1' is no label; write HP or"),
    ("votes of 8", table("MHIST_aad.png,SSA,8,test"), "line 5: '8' is no number of votes|0 to 7"),
    ("votes in wide digits", table("MHIST_aad.png,SSA,４,test"), "is no number of votes"),
    ("votes against the label", table("MHIST_aad.png,SSA,3,test"), "line 5|contradict|correct"),
    ("partition", table("MHIST_aad.png,SSA,4,dev"), "line 5: 'dev' is no partition; write train"),
]


@pytest.mark.parametrize(("content", "words"), rows(TABLES))
def test_bad_tables(tmp_path, content, words):
    root = make_mhist(tmp_path / "m")
    (root / "annotations.csv").write_bytes(content)
    refused(lambda: load_tiles("mhist", root, size=16), words)


@pytest.mark.parametrize(("slides", "words"), [
    (("s1", "s1", "s1", "s2"), "'s1' is in both partitions; keep all tiles"),
    (("s1", "s1", "", "s2"), "has no slide; fill the column Slide"),
])  # fmt: skip
def test_bad_slides(tmp_path, slides, words):
    lines = [f"{row},{slide}" for row, slide in zip(ROWS, slides, strict=True)]
    root = make_mhist(tmp_path / "m", lines, HEADER + ",Slide")
    refused(lambda: load_tiles("mhist", root, size=16), words)


@pytest.mark.parametrize(("content", "words"), [
    (b"file,group\nbenign/0.png,\nmalignant/0.png,1\n", "line 2: 'benign/0.png' has no group"),
    (None, "groups.csv"),  # a folder
])  # fmt: skip
def test_bad_groups(tmp_path, content, words):
    path = make_folder(tmp_path / "f", count=1) / "groups.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    refused(lambda: load_tiles("folder", path.parent, size=16), words)


# --- archives ------------------------------------------------------------------------------------


def archive(*members):
    """A zip archive of (name, mode, content)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        for name, mode, body in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            opened.writestr(info, body)
    return content.getvalue()


ONE = archive(("Normal/image/a.png", 0o100644, image()))
ARCHIVES = [
    ("not a zip", b"PK not really", "x.zip: not unpacked (File is not a zip|remove it|by hand"),
    ("damaged", ONE[:60] + bytes([ONE[60] ^ 1]) + ONE[61:], "x.zip: not unpacked (Bad CRC-32"),
    (
        "not ours",
        archive(("readme.txt", 0o100644, b"x")),
        "Normal/image: missing, expected all of EBHI-Seg",
    ),
    ("one class of six", ONE, "Polyp/image: missing, expected all of EBHI-Seg"),
]


@pytest.mark.parametrize(("content", "words"), rows(ARCHIVES))
def test_bad_archives(tmp_path, content, words):
    (tmp_path / "x.zip").write_bytes(content)
    refused(lambda: ebhi.download_ebhi(tmp_path), words)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["x.zip"]


def test_an_archive_never_writes_outside(tmp_path):
    """Names that climb, absolute ones, links and what is written through them."""
    source, out = make_ebhi(tmp_path / "source"), tmp_path / "a" / "out"
    out.mkdir(parents=True)
    link = stat.S_IFLNK | 0o777
    good = [(str(p.relative_to(source)), 0o100644, p.read_bytes()) for p in source.rglob("*.png")]
    outside = tmp_path / "absolute.png"
    evil = [("../../evil.png", 0o100644, b"x"), (str(outside), 0o100644, b"x"),
            ("Normal/../../../../evil.png", 0o100644, b"x"),
            ("link", link, str(tmp_path).encode()), ("link2/evil.png", 0o100644, b"x")]  # fmt: skip
    (out / "x.zip").write_bytes(archive(*evil, *good))
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    ebhi.download_ebhi(out)
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert len(load_tiles("ebhi", out, size=16)) == 13


# --- weights, checkpoints, records ---------------------------------------------------------------


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_no_file_of_weights_or_checkpoint_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, tmp_path / "w.safetensors")
    refused(lambda: load_weights(tmp_path / "w.safetensors", nn.Linear(3, 2)), "w.safetensors|del")
    refused(lambda: read_facts(tmp_path / "w.safetensors"), "w.safetensors holds no weights")
    torch.save({"model": Malicious()}, tmp_path / "x_a.ckpt")
    refused(Checkpoint(tmp_path / "x.ckpt", "a").load, "x_a.ckpt is no checkpoint|delete it")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("state", "words"), [
    (None, "w.safetensors is missing"),
    ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "does not fit Linear|size mismatch"),
    ({"weight": torch.ones(2, 3)}, "does not fit Linear"),
])  # fmt: skip
def test_bad_weights(tmp_path, state, words):
    if state:
        save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(RunError) as caught:
        load_weights(tmp_path / "w.safetensors", nn.Linear(3, 2))
    assert all(word in str(caught.value) for word in words.split("|"))


GOOD = {"name": "synthetic", "root": None, "classes": None, "n": 6, "scheme": "auto", "test": 0.3,
        "validation": 0.1, "seed": 0}  # fmt: skip
RECORDS = [
    ("no json", "{", "data.json is damaged"),
    ("unknown data", GOOD | {"name": "../x"}, "data '../x'|expected one of synthetic"),
    ("n of 10^12", GOOD | {"n": 10**12}, "n = 1000000000000|from 2 to 200,000"),
    ("seed a list", GOOD | {"seed": [1, "x"]}, "seed = [1, 'x']: "),
    ("unknown class", GOOD | {"classes": ["HP", "<b>"]}, "class '<b>': unknown, expected some of"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(RECORDS))
def test_bad_records(tmp_path, content, words):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "data.json").write_text(text)
    refused(lambda: recall(tmp_path, "run"), words)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(("harm", "words"), [
    (lambda f: (f / "images-00000.npy").unlink(), "images-00000.npy"),
    (lambda f: truncate(f / "images-00000.npy"), "mmap length"),
    (lambda f: (f / "hashes.json").unlink(), "hashes.json"),
    (lambda f: (f / "table.csv").write_text("id,class\n"), "Length mismatch"),
])  # fmt: skip
def test_damaged_caches(tmp_path, harm, words):
    root = make_folder(tmp_path / "f", count=1)
    harm(load_tiles("folder", root, size=16).images.folder)
    refused(lambda: load_tiles("folder", root, size=16), f"a damaged cache|delete this|{words}")


# --- the command line ----------------------------------------------------------------------------

COMMANDS = [
    ("value a program", "run --set SEED=!!python/name:os.abort --out {tmp}/o", "not a value"),
    ("no such folder", "data check folder --data-root /no/such", "/no/such: missing, expected"),
    ("no folder given", "data check folder", "missing, expected|--data-root"),
    ("no image", "data check folder --data-root {tmp}/empty", "no folder of images in it"),
    ("drawn tiles from a folder", "data check synthetic --data-root {tmp}/empty", "come from no f"),
    ("prepare mhist", "data prepare mhist", "Dataset Research Use Agreement"),
    ("prepare there already", "data prepare synthetic --n 4 --out {tmp}/empty", "there already"),
    ("prepare below a file", "data prepare synthetic --n 4 --out {tmp}/file/x", "cannot be writ"),
    ("prepare on the disk", "data prepare synthetic --n 4 --out /", "/: is there already|--out"),
    ("prepare 10^12", "data prepare synthetic --n 1000000000000 --out {tmp}/new", "2 to 200,000"),
    ("a scanner", "data prepare synthetic --scanner X --out {tmp}/new", "scanner 'X': expected"),
    ("strength", "data prepare synthetic --shortcut ink --strength 7 --out {tmp}/new", "strength"),
    (
        "sheet here",
        "data check folder --data-root {tmp}/tiles --out .",
        "cannot be written (Is a directory)",
    ),
]


@pytest.mark.parametrize(("command", "words"), rows(COMMANDS))
def test_bad_commands(tmp_path, command, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "tiles")
    assert main(command.format(tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    for word in words.split("|"):
        assert word in error, error
