"""Bad and hostile input, a row each: the file, and words of the sentence that it must end in.

Nothing may be executed, written outside the test's folder, or take more than 2 GB.
"""

import io
import json
import os
import resource
import shutil
import stat
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_data import HEADER, ROWS, make_folder, make_mhist
from torch import nn

from crc_helpers import data, figures, pretraining
from crc_helpers.augmentation import VIEWS
from crc_helpers.course import check as data_check
from crc_helpers.course.cli import main
from crc_helpers.data import load_tiles, recall, remember, split
from crc_helpers.fine_tuning import fine_tune
from crc_helpers.models import Classifier, Encoder, ProjectionHead, load_weights, read_facts
from crc_helpers.runs import RunError, load_checkpoint, save_checkpoint, save_weights
from crc_helpers.sources import ebhi
from crc_helpers.sources import images as image_reader
from crc_helpers.sources import store as tile_store
from crc_helpers.sources.base import DataError

# --- nothing leaves its folder, nothing is run ---------------------------------------------------

WATCH: dict = {"inside": None, "seen": []}
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "ctypes.dlopen")
CHANGES = {  # what changes files, and which of its arguments name them
    "os.remove": [0], "os.mkdir": [0], "os.rmdir": [0], "os.truncate": [0], "os.chmod": [0],
    "os.chown": [0], "os.rename": [0, 1], "os.link": [0, 1], "os.symlink": [1],
    "shutil.move": [0, 1], "shutil.copyfile": [1], "shutil.copytree": [1], "shutil.rmtree": [0],
    "shutil.unpack_archive": [1],
}  # fmt: skip


def _watch(event, arguments):
    """Python's own log of what a program does (PEP 578)."""
    if WATCH["inside"] is None:
        return
    if event in RUNS and arguments[0] != "libnvidia-ml.so.1":  # torch looks for a GPU
        WATCH["seen"].append((event, arguments[0]))
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return  # relative to an open folder, whose own removal is seen
    for position in [0] if writes else CHANGES.get(event, ()):
        if isinstance(arguments[position], str | bytes | os.PathLike):
            path = Path(os.path.abspath(os.fsdecode(arguments[position])))
            if not path.is_relative_to(WATCH["inside"]) and path != Path(os.devnull):
                WATCH["seen"].append((event, path))


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def watched(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))
    WATCH.update(inside=tmp_path, seen=[])
    yield
    WATCH["inside"] = None
    assert not WATCH["seen"]
    assert peak_memory() < 2e9


@pytest.fixture(autouse=True, scope="module")
def fresh_peak():
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here


@pytest.mark.parametrize("harm", [
    lambda here, there: os.rename(here, there), lambda here, there: os.replace(here, there),
    lambda here, there: os.symlink(here, there), lambda here, there: os.link(here, there),
    lambda here, there: shutil.move(here, there), lambda here, there: shutil.copy(here, there),
    lambda here, there: there.write_bytes(b""), lambda here, there: there.mkdir(),
    lambda here, there: os.chmod(there.parent, 0o700), lambda here, there: os.system("true"),
])  # fmt: skip
def test_the_watch_sees_harm(harm, tmp_path, tmp_path_factory):
    (tmp_path / "here").write_bytes(b"")
    outside = tmp_path_factory.mktemp("outside")
    WATCH["seen"].clear()
    harm(tmp_path / "here", outside / "there")
    assert WATCH["seen"]
    WATCH["seen"].clear()


def peak_memory():
    """The most memory this process had, in bytes."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def image(kind="PNG", picture=PIXELS, **options):
    content = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(content, kind, **options)
    return content.getvalue()


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(*chunks, width=40, height=40, bits=8, colour=2, rest=(0, 0, 0)):
    """A PNG of any header and chunks, with the right checksums."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, *rest)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + end


def idat(size, fill=b"\0"):
    return chunk(b"IDAT", zlib.compress(fill * size))


def jpeg_of(width, height):
    """A JPEG whose header claims this size."""
    content = image("JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def tiff(*tags, little=True, following=0):
    """A TIFF of these (tag, type, count, value) and nothing else."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", following)


def cut(content, share):
    return content[: int(len(content) * share)]


NOISE = Image.fromarray(PIXELS)
PAGES = {"save_all": True, "append_images": [NOISE, NOISE]}
NOT = "x.png|not a PNG, JPEG or TIFF image|copy or download it again"
DAMAGED = "x.png|unreadable, truncated or damaged|copy or download it again"
IMAGES = [
    ("empty", b"", "x.png|empty file (0 bytes)|again"),
    ("one byte", b"\x89", NOT),
    ("html", b"<html>404</html>", NOT),
    ("gif", image("GIF"), NOT),
    ("animated gif", image("GIF", NOISE, **PAGES), NOT),
    ("bmp", image("BMP"), NOT),
    ("webp", image("WEBP"), NOT),
    ("ppm", image("PPM"), NOT),
    ("icns", image("ICNS"), NOT),
    ("jpeg 2000", image("JPEG2000"), NOT),
    ("eps, a program", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n", NOT),
    ("pdf", b"%PDF-1.7\n", NOT),
    ("svg", b"<svg onload='alert(1)'/>", NOT),
    ("pickle", b"\x80\x04cos\nsystem\n(S'touch x'\ntR.", NOT),
    ("zip", b"PK\x03\x04" + bytes(40), NOT),
    ("zeros", bytes(4000), NOT),
    ("png signature only", b"\x89PNG\r\n\x1a\n", NOT),
    ("png without pixels", png(), DAMAGED),
    ("png wrong checksum", image()[:-20] + b"\1" + image()[-19:], DAMAGED),
    ("png wrong header checksum", image()[:30] + b"\1" + image()[31:], NOT),
    ("png too few pixels", png(idat(30)), DAMAGED),
    ("png pixels are no zlib", png(chunk(b"IDAT", b"no zlib at all")), DAMAGED),
    ("png filter 9", png(idat(40 * 121, b"\x09")), DAMAGED),
    ("png of 0 x 0", png(idat(1), width=0, height=0), NOT),
    ("png of 0 columns", png(idat(40), width=0), NOT),
    ("png bomb", png(idat(10), width=20_000, height=20_000), "x.png|decompression bomb"),
    ("png of 2^31 columns", png(idat(10), width=2**31 - 1), "x.png|decompression bomb"),
    ("png just over the limit", png(idat(9), width=9460, height=9460), "x.png|bomb|cut it"),
    ("png colour type 5", png(idat(4840), colour=5), NOT),
    ("png of 16 bits grey", png(idat(40 * 81), bits=16, colour=0), "x.png|16 bits|convert"),
    ("png of 16 bits rgb", png(idat(40 * 241), bits=16), "x.png|16 bits|convert"),
    ("png of 16 bits rgba", png(idat(40 * 321), bits=16, colour=6), "x.png|16 bits|convert"),
    ("png of 3 bits", png(idat(4840), bits=3), NOT),
    ("png text bomb", png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), idat(4840)),
     DAMAGED),
    ("png colour profile bomb", png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))),
                                    idat(4840)), DAMAGED),
    ("png chunk of 4 GB", png().replace(b"\0\0\0\0IEND", b"\xff\xff\xff\xffIEND"), DAMAGED),
    ("animated png", image("PNG", NOISE, **PAGES), "x.png|3 pages, expected one"),
    ("jpeg markers only", b"\xff\xd8\xff\xd9", NOT),
    ("jpeg of 65,500 x 65,500", jpeg_of(65500, 65500), "x.png|decompression bomb|cut it"),
    ("jpeg of 0 rows", jpeg_of(40, 0), NOT),
    ("tiff without tags", tiff(), NOT),
    ("tiff of 2^32 tags", b"II*\0\x08\0\0\0\xff\xff", NOT),
    ("tiff bomb", tiff((256, 4, 1, 10**6), (257, 4, 1, 10**6), (258, 3, 1, 8), (259, 3, 1, 1),
                       (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)), "x.png|bomb"),
    ("tiff tag of 2^31 values", tiff((256, 4, 2**31, 8), (257, 4, 1, 8)), NOT),
    ("tiff pixels beyond its end", tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8),
                                        (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 10**9),
                                        (279, 4, 1, 64)), DAMAGED),
    ("tiff of pages", image("TIFF", NOISE, **PAGES), "x.png|3 pages|export one"),
    ("tiff float", image("TIFF", PIXELS[..., 0].astype(np.float32)), "x.png|16 bits or more"),
    ("tiff int32", image("TIFF", PIXELS[..., 0].astype(np.int32)), "x.png|16 bits or more"),
    ("tiff 16 bits", image("TIFF", PIXELS[..., 0].astype(np.uint16)), "x.png|16 bits or more"),
    ("tiff of Lab colour", image("TIFF", Image.new("LAB", (9, 9))), "x.png|colour mode LAB"),
    *((f"{kind} {compression or ''} cut at {share:.0%}",
       cut(image(kind, **({"compression": compression} if compression else {})), share),
       NOT if compression or (kind == "TIFF" and share == 0.01) else DAMAGED)  # tags come last
      for kind, compression in [("PNG", None), ("JPEG", None), ("TIFF", None), ("TIFF", "tiff_lzw"),
                                ("TIFF", "tiff_adobe_deflate"), ("TIFF", "jpeg")]
      for share in (0.01, 0.1, 0.5, 0.9)),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(IMAGES))
def test_bad_images(tmp_path, content, words):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(content)
    refused(lambda: load_tiles("folder", root, size=16), words)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


FILES = [
    ("folder", lambda path: path.mkdir(), "x.png|unreadable"),
    ("pipe", os.mkfifo, "x.png|not a regular file"),
    ("giant", lambda path: os.truncate(path.open("w").name, 10**10), "x.png|bytes, more than|cut"),
    ("link to itself", lambda path: path.symlink_to(path), "x.png: a link to itself|copy the file"),
    ("link to nothing", lambda path: path.symlink_to(path.with_name("no")),
     "x.png: cannot be read|check that it exists"),
    ("link outside", lambda path: path.symlink_to("/etc/hostname"), "x.png|leaves"),
    ("device", lambda path: path.symlink_to("/dev/zero"), "x.png|leaves"),
    ("name in latin-1", lambda path: path.with_name(os.fsdecode(b"\xe4.png")).write_bytes(image()),
     "\\udce4.png|not UTF-8|rename"),
    ("name with carriage return", lambda path: path.with_name("a\rb.png").write_bytes(image()),
     "carriage return|rename"),
    ("class in latin-1", lambda path: (path.parents[1] / os.fsdecode(b"\xe4")).mkdir(),
     "\\udce4|not UTF-8"),
    ("class without images", lambda path: (path.parents[1] / "none").mkdir(), "none|no image"),
    ("class is a link outside", lambda path: (path.parents[1] / "l").symlink_to("/etc"), "leaves"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), rows(FILES))
def test_bad_files(tmp_path, make, words):
    root = make_folder(tmp_path / "f", count=1)
    make(root / "benign" / "x.png")
    refused(lambda: load_tiles("folder", root, size=16), words)


UNUSUAL = [
    ("1 x 1", image(picture=PIXELS[:1, :1])),
    ("65,535 wide", image(picture=Image.new("L", (65535, 1)))),
    ("65,535 high", image(picture=Image.new("RGB", (1, 65535)))),
    ("jpeg of 65,500", image("JPEG", Image.new("RGB", (65500, 8)))),
    ("progressive", image("JPEG", progressive=True)),
    ("cmyk", image("JPEG", NOISE.convert("CMYK"))),
    ("grey jpeg", image("JPEG", NOISE.convert("L"))),
    ("two pictures (MPO)", image("MPO", NOISE, **PAGES)),
    ("palette", image(picture=NOISE.quantize(4))),
    ("transparent palette", image("PNG", NOISE.quantize(4), transparency=0)),
    ("tiff group 4", image("TIFF", NOISE.convert("1"), compression="group4")),
    ("big tiff", image("TIFF", big_tiff=True)), ("trailing bytes", image() + bytes(1000)),
    ("png without palette", png(idat(40 * 41), colour=3)),
    ("tiff whose pages are a ring", tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8),
                                         (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
                                         (279, 4, 1, 64), following=8)),
    ("ycbcr tiff", image("TIFF", NOISE.convert("YCbCr"))),
    *((f"exif {turn}", image("JPEG", exif=bytes.fromhex("457869660000") + tiff((274, 3, 1, turn))))
      for turn in range(10)),
]  # fmt: skip


@pytest.mark.parametrize("content", rows(UNUSUAL))
def test_unusual_images_are_read(tmp_path, content):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(content)
    assert load_tiles("folder", root, size=16).images.shape == (3, 3, 16, 16)


# --- names ---------------------------------------------------------------------------------------

NAMES = ["a b", "it's", 'say "x"', "new\nline", "tab\tin", "änderung", "日本", "-rf", "a..", "a,b",
         "%s", "<img src=x onerror=alert(1)>", "<script>", "&amp;", "=1+1", "@SUM(A1)", "+1", 
         "$x^{", "$\\frac$", "{0}", "a;b", "#", "NA", "nan", "null", "true", "0", "1e5", "'", "\\",
         "\u202egnp", "\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text(tmp_path, name, capsys):
    """As a class, a file and the folder above, through cache, tables, split and report."""
    root = make_folder(tmp_path / name, classes=(name, "z"), count=8)
    for path in root.glob("*/*.png"):
        path.rename(path.with_name(f"{name}{path.name}"))
    tiles = load_tiles("folder", root, size=16)
    assert sorted(tiles.class_names) == sorted([name, "z"])
    assert set(tiles.ids) == {f"{c}/{name}{i}.png" for c in (name, "z") for i in range(8)}
    parts = split(tiles)
    settings = {"root": root, "classes": None, "n": 0, "scheme": "auto", "seed": 0}
    remember(tmp_path, tiles, parts, test=0.25, validation=0.15, **settings)
    monkey_size(tiles, tmp_path)
    figures.set_style()
    drawn = [figures.confusion(np.eye(2, dtype=int), tiles.class_names, name),
             figures.image_rows([tiles.images[:2]], [name], tiles.class_names)]  # fmt: skip
    for figure in drawn:
        figure.canvas.draw()
        plt.close(figure)
    assert not [line for line in (tmp_path / "split.csv").read_text().split(",")
                if line.startswith(("=", "+", "-", "@"))]  # fmt: skip
    assert main(["data", "check", "folder", "--data-root", str(root), "--out",
                 str(tmp_path / "sheet.png")]) == 0  # fmt: skip
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def monkey_size(tiles, run):
    """`recall` at the size that `tiles` have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_tiles", lambda *_, **__: tiles)
        again, _ = recall(run, "run")
    assert again.ids.tolist() == tiles.ids.tolist()


# --- tables --------------------------------------------------------------------------------------


def table(*lines):
    return "\n".join([HEADER, *ROWS[:3], *lines]).encode() + b"\n"


TABLES = [
    ("empty", b"", "annotations.csv|cannot be read as a table|comma-separated UTF-8"),
    ("newlines", b"\n\n\n", "annotations.csv|cannot be read as a table"),
    ("header only", HEADER.encode(), "no rows"),
    ("invalid utf-8", table("MHIST_\xff.png,SSA,4,test").replace(b"\xc3", b""),
     "cannot be read as a table|UTF-8"),
    ("utf-16", table().decode().encode("utf-16"), "annotations.csv|null bytes|UTF-8"),
    ("null in the header", b"a\0" + table(), "annotations.csv|null bytes|UTF-8"),
    ("null in a row", table("MHIST_\0aad.png,SSA,4,test"), "null bytes"),
    ("a million columns", b"," * 10**6 + b"\n" + table(), "more than 1,000 columns"),
    ("a million columns in a row", table("," * 10**6), "annotations.csv|more than 1,000 columns"),
    ("open quote", table('"MHIST_aad.png,SSA,4,test'),
     "annotations.csv|cannot be read as a table"),
    ("a thousand columns under a line break", b'"a\n"' + b"," * 2000 + b"\n" + table(),
     "more than 1,000 columns"),
    ("a null far down", table("x" * 2_000_000 + "\0"), "null bytes"),
    ("70 MB", b"," * 70_000_000, "more than 60,000,000"),
    ("semicolons", table().replace(b",", b";"), "'Image Name' is missing|correct the header line"),
    ("tabs", table().replace(b",", b"\t"), "'Image Name' is missing"),
    ("json", b'{"a": 1}', "'Image Name' is missing"),
    ("html", b"<html><body>Login</body></html>", "'Image Name' is missing"),
    ("formula as name", table("=cmd|'/C calc'!A0,SSA,4,test"), "line 5|=cmd|leaves the folder"),
    ("formula as label", table("MHIST_aad.png,=1+1,4,test"), "'=1+1' is no label"),
    ("formula as votes", table("MHIST_aad.png,SSA,=4,test"), "'=4' is no number of votes"),
    ("formula as partition", table("MHIST_aad.png,SSA,4,@x"), "'@x' is no partition"),
    ("absolute name", table("/etc/passwd,SSA,4,test"), "/etc/passwd|leaves"),
    ("name that climbs", table("../../x.png,SSA,4,test"), "../../x.png|leaves"),
    ("name that climbs in Windows", table("..\\x.png,SSA,4,test"), "leaves"),
    ("drive", table("C:\\x.png,SSA,4,test"), "leaves"),
    ("share", table("\\\\host\\x.png,SSA,4,test"), "leaves"),
    ("url", table("https://host/x.png,SSA,4,test"), "leaves"),
    ("empty name", table(",SSA,4,test"), "line 5|leaves"),
    ("terminal codes", table("\x1b[31mx,SSA,4,test"), "x1b[31mx|has no file"),
    ("votes of 8", table("MHIST_aad.png,SSA,8,test"), "line 5|0 to 7"),
    ("votes of 7.0", table("MHIST_aad.png,SSA,7.0,test"), "line 5|0 to 7"),
    ("votes of -1", table("MHIST_aad.png,SSA,-1,test"), "line 5|0 to 7"),
    ("votes of 1e400", table("MHIST_aad.png,SSA,1e400,test"), "line 5|0 to 7"),
    ("votes in wide digits", table("MHIST_aad.png,SSA,４,test"), "line 5|0 to 7"),
    ("votes NaN", table("MHIST_aad.png,SSA,nan,test"), "line 5|0 to 7"),
    ("votes against the label", table("MHIST_aad.png,SSA,3,test"), "line 5|contradict"),
    ("a row too short", table("MHIST_aad.png"), "line 5|'' is no label|HP or SSA"),
    ("a row too long", table("MHIST_aad.png,SSA,4,test,x,y"),
     "cannot be read as a table|comma-separated UTF-8"),
    ("a row twice", table("MHIST_aad.png,SSA,4,test", "MHIST_aad.png,SSA,4,test"), "twice"),
    ("a file without row", table(), "MHIST_aad.png|no row"),
    ("column twice", table().replace(b"Partition", b"Image Name"), "there twice"),
    ("column missing", table().replace(b"Partition", b"Part"), "'Partition' is missing"),
    ("a cell of 20 MB", table("a" * 20_000_000 + ",SSA,4,test"), "has no file"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(TABLES))
def test_bad_tables(tmp_path, content, words):
    root = make_mhist(tmp_path / "m")
    (root / "annotations.csv").write_bytes(content)
    refused(lambda: load_tiles("mhist", root, size=16), words)


GROUPS = [
    ("no columns", b"a,b\n1,2\n", "'file' is missing"),
    ("climbs", b"file,group\n../x.png,1\n", "leaves the folder"),
    ("absolute", b"file,group\n/etc/x.png,1\n", "leaves the folder"),
    ("unknown file", b"file,group\nbenign/9.png,1\n", "has no file"),
    ("not all files", b"file,group\nbenign/0.png,1\n", "has no row"),
    ("no group", b"file,group\nbenign/0.png,\nmalignant/0.png,1\n", "has no group"),
    ("twice", b"file,group\nbenign/0.png,1\nbenign/0.png,2\n", "twice"),
    ("null", b"file,group\nbenign/\x000.png,1\n", "null bytes"),
    ("a folder", None, "groups.csv|not a regular file"),
]


@pytest.mark.parametrize(("content", "words"), rows(GROUPS))
def test_bad_groups(tmp_path, content, words):
    root = make_folder(tmp_path / "f", count=1)
    path = root / "groups.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    if content is None:
        words = "groups.csv"  # found where folders are listed as classes, or where it is read
    refused(lambda: load_tiles("folder", root, size=16), words)


ABOUTS = [
    ("no json", b"{", "expected source, licence and mpp"), ("a list", b"[1]", "expected source"),
    ("nothing in it", b"{}", "expected source"), ("deep", b"[" * 10**5, "expected source"),
    ("mpp a word", b'{"source": 1, "licence": 2, "mpp": "x"}', "expected source"),
    ("mpp NaN", b'{"source": 1, "licence": 2, "mpp": NaN}', "mpp nan"),
    ("mpp negative", b'{"source": 1, "licence": 2, "mpp": -1}', "mpp -1"),
    ("mpp infinite", b'{"source": 1, "licence": 2, "mpp": 1e999}', "mpp inf"),
    ("invalid utf-8", b'{"source": "\xff"}', "expected source"),
    ("mpp of 400 digits", b'{"source": 1, "licence": 2, "mpp": 1' + b"0" * 400 + b"}",
     "expected source"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(ABOUTS))
def test_bad_descriptions(tmp_path, content, words):
    root = make_mhist(tmp_path / "m")
    (root / "about.json").write_bytes(content)
    refused(lambda: load_tiles("mhist", root, size=16), f"about.json|{words}")


# --- archives ------------------------------------------------------------------------------------


def archive(*members, **options):
    """A zip archive of (name, mode, content)."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, **options) as opened:
        for name, mode, body in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            opened.writestr(info, body)
    return content.getvalue()


def evil(name, mode=0o100644, body=b"x"):
    return archive((name, mode, body))


def patched(content, old, new):
    assert old in content
    return content.replace(old, new)


def lzma_archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("a", bytes(range(256)))
    body = bytearray(content.getvalue())
    body[31 + 4 : 31 + 9] = b"\xff" * 5  # the decoder's properties
    return bytes(body)


def bzip2_archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as opened:
        opened.writestr("a", bytes(range(256)))
    return content.getvalue().replace(b"BZh9", b"BZh0")


PICTURE = archive(("Normal/image/a.png", 0o100644, image()))
LINK = stat.S_IFLNK | 0o777
ARCHIVES = [
    ("not a zip", b"PK not really", "damaged archive"), ("empty", b"", "damaged archive"),
    ("html", b"<html>429</html>", "damaged archive"),
    ("cut", cut(PICTURE, 0.5), "damaged archive"), ("cut late", PICTURE[:-3], "damaged archive"),
    ("climbs", evil("../evil.png"), "leaves the folder"),
    ("climbs deep", evil("a/b/../../../evil.png"), "leaves the folder"),
    ("climbs in Windows", evil("a\\..\\..\\evil.png"), "leaves the folder"),
    ("absolute", evil("/tmp/evil.png"), "leaves the folder"),
    ("drive", evil("C:/evil.png"), "leaves the folder"),
    ("share", evil("\\\\host\\evil.png"), "leaves the folder"),
    ("link", evil("a/link", LINK, b"/etc/passwd"), "is a link"),
    ("folder link and file through it",
     archive(("d", LINK, b"/tmp"), ("d/evil.png", 0o100644, b"x")), "is a link"),
    ("not ours", evil("readme.txt"), "not EBHI-Seg"),
    ("one class of six", PICTURE, "no folder Polyp/image|not all of EBHI-Seg"),
    ("damaged bzip2", bzip2_archive(), "x.zip: a damaged archive|fetch it again"),
    ("damaged LZMA", lzma_archive(), "damaged archive"),
    ("password", patched(patched(PICTURE, b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\1\0"),
                         b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
     "damaged archive|password"),
    ("unknown compression", patched(patched(PICTURE, b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"),
                                    b"\x14\0\0\0\x08\0"[:0] or b"PK\x05", b"PK\x05"),
     "damaged archive"),
    ("wrong checksum", PICTURE[:60] + bytes([PICTURE[60] ^ 1]) + PICTURE[61:], "damaged archive"),
    ("bomb by size", evil("Normal/image/a.png", body=bytes(3_000_000)), "would unpack to more"),
    ("bomb by number", archive(*((f"{i}", 0o100644, b"") for i in range(60))), "or 50 files"),
    ("file and folder of one name",
     archive(("a", 0o100644, b"x"), ("a/b", 0o100644, b"x")), "cannot be written"),
    ("a name too long", evil("a" * 300), "cannot be written"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(ARCHIVES))
def test_bad_archives(tmp_path, content, words, monkeypatch):
    monkeypatch.setattr(ebhi, "UNPACKED_LIMIT", 2_000_000)
    monkeypatch.setattr(ebhi, "MEMBER_LIMIT", 50)
    (tmp_path / "x.zip").write_bytes(content)
    refused(lambda: ebhi.download_ebhi(tmp_path), words)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.zip", ".EBHI-SEG.lock", "cache"}


ANSWERS = [
    ("no json", b"<html>", "no list of files"), ("a list", b"[1]", "no list of files"),
    ("no files", b"{}", "no list of files"), ("files null", b'{"files": null}', "no list of files"),
    ("a file without address", b'{"files": [{"name": "a.zip"}]}', "no list of files"),
    ("nothing", b'{"files": []}', "no zip archive listed"),
    ("no archive", b'{"files": [{"name": "a.txt", "download_url": "x", "computed_md5": "0"}]}',
     "no zip archive listed"),
    ("a file address", b'{"files": [{"name": "../../a.zip", "download_url": "file:///etc/passwd",'
     b' "computed_md5": "0"}]}', "the download failed"),
    ("deep", b"[" * 10**5, "no list of files"),
    ("a name with a null",
     b'{"files": [{"name": "a\\u0000.zip", "download_url": "x", "computed_md5": "0"}]}',
     "no list of files"),
    ("a host too long", b'{"files": [{"name": "a.zip", "download_url": "http://'
     + b"a" * 70 + b'.b", "computed_md5": "0"}]}', "the download failed"),
    ("longer than a list", b'{"files": [' + b" " * 11_000_000,
     "more than 10,000,000 bytes|try later"),
    ("no address", b'{"files": [{"name": "a.zip", "download_url": "::", "computed_md5": "0"}]}',
     "the download failed"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), rows(ANSWERS))
def test_bad_answers(tmp_path, content, words, monkeypatch):
    get = ebhi.requests.get

    def answered(url, **options):
        if url != "record":
            return get(url, **options)
        answer = ebhi.requests.Response()
        answer.status_code, answer._content, answer._content_consumed = 200, content, True
        return answer

    monkeypatch.setattr(ebhi.requests, "get", answered)
    refused(lambda: ebhi.download_ebhi(tmp_path / "out", "record"), words)


# --- weights and checkpoints ---------------------------------------------------------------------


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def weights(**changes):
    """A weight file of a Linear(3, 2), with tensors changed."""

    def write(path):
        state = nn.Linear(3, 2).state_dict() | changes
        save_file({k: v for k, v in state.items() if v is not None}, path)

    return write


def raw(header, body=b"", length=None):
    """A safetensors file of any header."""

    def write(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", length or len(text)) + text + body)

    return write


def pickled(content):
    return lambda path: torch.save(content, path)


def entry(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


NO = "w.safetensors is not a safetensors file|delete it"
UNFIT = "w.safetensors does not fit Linear"
WEIGHTS = [
    ("missing", lambda path: None, "w.safetensors is missing|START_FROM"),
    ("a folder", lambda path: path.mkdir(), "w.safetensors is missing"),
    ("empty", lambda path: path.write_bytes(b""), NO),
    ("noise", lambda path: path.write_bytes(np.random.default_rng(0).bytes(999)), NO),
    ("html", lambda path: path.write_bytes(b"<html>404 not found</html>"), NO),
    ("pickle with code", pickled({"weight": Malicious()}), NO),
    ("pickle of tensors", pickled(nn.Linear(3, 2).state_dict()), NO),
    ("header of 2^63 bytes", raw(b"{}", length=2**63), NO),
    ("header longer than the file", raw(b"{}", length=9999), NO),
    ("header of 200 MB", raw(b" " * 10, length=200_000_000), NO),
    ("header no json", raw(b"{{{{"), NO), ("header a list", raw([1]), NO),
    ("header deep", raw(b"[" * 10**5), NO), ("header not utf-8", raw(b'{"\xff": 1}'), NO),
    ("offsets beyond the end", raw({"weight": entry([2, 3], 0, 24)}, bytes(8)), NO),
    ("offsets backwards", raw({"weight": entry([2, 3], 24, 0)}, bytes(24)), NO),
    ("offsets overlap", raw({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), NO),
    ("shape of 2^80 values", raw({"weight": entry([2**40, 2**40], 0, 24)}, bytes(24)), NO),
    ("unknown type", raw({"weight": entry([2, 3], 0, 24, "EVIL")}, bytes(24)), NO),
    ("no tensors", raw({}), UNFIT),
    ("one missing", weights(bias=None), f"{UNFIT}|bias is missing"),
    ("one too many", weights(extra=torch.ones(1)), f"{UNFIT}|extra|nothing so called"),
    ("another shape", weights(weight=torch.ones(2, 4)), f"{UNFIT}|weight is [2, 4]"),
    ("a scalar", weights(weight=torch.tensor(1.0)), UNFIT),
    ("a giant", weights(weight=torch.ones(1000, 1000)), UNFIT),
    ("NaN", weights(bias=torch.tensor([1.0, torch.nan])), "NaN or infinity in bias|run again"),
    ("infinity", weights(weight=torch.full((2, 3), torch.inf)), "NaN or infinity in weight"),
    ("infinity as fp16", weights(bias=torch.tensor([1e9, 1]).half()), "NaN or infinity in bias"),
    *((f"cut at {keep}", lambda path, keep=keep: (save_weights(path, nn.Linear(3, 2)),
                                                  os.truncate(path, keep)), NO)
      for keep in (1, 7, 8, 20, 60, 100)),
    ("size a word", lambda path: save_weights(path, nn.Linear(3, 2), size="96"), "size is '96'"),
    ("size 0", lambda path: save_weights(path, nn.Linear(3, 2), size=0), "size is 0|8 to 2048"),
    ("size of 10^9", lambda path: save_weights(path, nn.Linear(3, 2), size=10**9), "8 to 2048"),
    ("numbers torch lacks", raw({"weight": entry([2, 3], 0, 3, "F4"), "bias": entry([2], 3, 11)},
                                bytes(11)), "w.safetensors cannot be read"),
    ("a name that a terminal obeys", weights(**{"\x1b[31m": torch.ones(1)}), "(\\x1b[31m is [1]"),
    ("backbone a number", lambda path: save_weights(path, nn.Linear(3, 2), backbone=5),
     "its backbone is 5"),
    ("a giant backbone", lambda path: save_weights(path, nn.Linear(3, 2),
                                                  backbone="eva_giant_patch14_224"),
     "w.safetensors says its backbone is 'eva_giant_patch14_224'|it holds 8: take weights"),
    ("a larger backbone", lambda path: save_weights(path, Encoder("resnet8"), backbone="resnet18"),
     "w.safetensors says its backbone is 'resnet18'|take weights that a lesson has made"),
    ("more classes than numbers", lambda path: save_weights(path, Encoder("resnet8"),
                                                            backbone="resnet8", classes=["a"] * 9),
     "'resnet8', with 9 classes|take weights"),
    ("backbone unknown", lambda path: save_weights(path, nn.Linear(3, 2), backbone="../evil"),
     "w.safetensors: backbone '../evil' is unknown|take weights"),
    ("classes a word", lambda path: save_weights(path, nn.Linear(3, 2), classes="HP"),
     "its classes is 'HP'"),
    ("other origin", lambda path: (weights()(path.with_name("encoder.safetensors")),
                                   save_file(nn.Linear(3, 2).state_dict(), path,
                                             {"made_from": '{"encoder.safetensors": "0"}'})),
     "made from other encoder.safetensors|run the lesson"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), rows(WEIGHTS))
def test_bad_weights(tmp_path, make, words):
    make(tmp_path / "w.safetensors")
    refused(lambda: load_weights(tmp_path / "w.safetensors", nn.Linear(3, 2)), words)
    assert not (tmp_path / "harm").exists()


def test_a_fact_that_weights_lack_is_said(tmp_path):
    weights()(tmp_path / "w.safetensors")
    facts = read_facts(tmp_path / "w.safetensors")
    refused(lambda: facts["backbone"], "w.safetensors does not say its backbone")
    with pytest.raises(ValueError, match=r"backbone .*evil' is unknown"):
        Encoder("../../evil")


BACK = "x.ckpt is no checkpoint of this course|delete it"
CHECKPOINTS = [
    ("empty", lambda path: path.write_bytes(b"")),
    ("noise", lambda path: path.write_bytes(b"\x80x")),
    ("html", lambda path: path.write_bytes(b"<html>")), ("code", pickled(Malicious())),
    ("code under a mark", pickled({"mark": "a", "model": Malicious()})),
    ("a list", pickled([1])), ("no mark", pickled({"model": {}})),
    ("a module", pickled(nn.Linear(1, 1))),
    ("compressed", lambda path: path.write_bytes(evil("x/data.pkl", body=bytes(10**6)))),
    ("bare pickle", lambda path: path.write_bytes(b"cos\nmkdir\n(S'harm'\ntR.")),
    *((f"cut at {share:.0%}", lambda path, share=share: (
        torch.save({"mark": "a", "m": torch.ones(999)}, path),
        os.truncate(path, int(share * path.stat().st_size)))) for share in (0.1, 0.5, 0.9, 0.99)),
]  # fmt: skip


@pytest.mark.parametrize("make", rows(CHECKPOINTS))
def test_bad_checkpoints(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.ckpt")
    refused(lambda: load_checkpoint(tmp_path / "x.ckpt", "a"), BACK)
    assert not (tmp_path / "harm").exists()


HOLLOW = [
    ("rows empty", {"rows": []}), ("rows missing", {"rows": None}), ("rows text", {"rows": "ab"}),
    ("rows without epoch", {"rows": [{"loss": 1.0}]}),
    ("rows of words", {"rows": [{"epoch": "1"}]}), ("no network", {"model": None}),
    ("no optimizer", {"optimizer": {}}), ("no best", {"best": None}),
    ("best of another", {"best": nn.Linear(3, 2).state_dict()}),
]  # fmt: skip


@pytest.mark.parametrize("what", ["pretrain", "fine_tune"])
@pytest.mark.parametrize("changes", rows(HOLLOW))
def test_checkpoints_that_hold_too_little(
    tmp_path, changes, what, coloured_tiles, fabric, monkeypatch
):
    """The right mark, and something missing."""
    path, labels = tmp_path / "x.ckpt", np.arange(16) % 2
    shared = {"size": 16, "batch": 8, "lr": 1e-3, "checkpoint": path, "mark": "a"}

    def train(epochs):
        encoder = Encoder("resnet8")
        if what == "pretrain":
            pretraining.pretrain(encoder, ProjectionHead(encoder.dim), coloured_tiles,
                                 VIEWS["tissue"], fabric, temperature=0.2, epochs=epochs,
                                 **shared)  # fmt: skip
        else:
            fine_tune(Classifier(encoder, 2), coloured_tiles, labels, coloured_tiles, labels,
                      VIEWS["gentle"], fabric, epochs=epochs, **shared)  # fmt: skip

    train(1)
    state = load_checkpoint(path, "a")
    save_checkpoint(path, "a", **state | changes)
    if what == "pretrain" and "best" in changes:  # which it does not keep
        return train(2)
    refused(lambda: train(2), "x.ckpt does not fit this network, or is damaged|delete it")


# --- records of a run, and the cache -------------------------------------------------------------

GOOD = {"name": "synthetic", "root": None, "classes": None, "n": 6, "scheme": "auto", "test": 0.3,
        "validation": 0.1, "seed": 0}  # fmt: skip
RECORDS = [
    ("empty", "", "data.json is damaged"),
    ("no json", "{", "data.json is damaged"),
    ("a list", "[]", "data.json is damaged"),
    ("deep", "[" * 10**5, "data.json is damaged"),
    ("nothing in it", "{}", "data.json is damaged|run lesson 01"),
    ("unknown data", GOOD | {"name": "../x"}, "data '../x': unknown"),
    ("no folder", GOOD | {"name": "mhist", "root": "/no/such"}, "/no/such: no such folder"),
    ("n a word", GOOD | {"n": "x"}, "n = 'x'|a whole number"),
    ("n negative", GOOD | {"n": -5}, "n = -5|from 2 to 200,000"),
    ("n of 10^12", GOOD | {"n": 10**12}, "n = 1000000000000|from 2 to 200,000"),
    ("n of 1e308", GOOD | {"n": 1e308}, "n = 1e+308|a whole number from 2 to 200,000"),
    ("seed negative", GOOD | {"seed": -1}, "seed = -1|from 0 to 4,294,967,295"),
    ("seed a list", GOOD | {"seed": [1, "x"]}, "seed = [1, 'x']|a whole number"),
    ("one class", GOOD | {"classes": ["HP"]}, "two or more"),
    ("unknown class", GOOD | {"classes": ["HP", "<b>"]}, "class '<b>': unknown"),
]


@pytest.mark.parametrize(("content", "words"), rows(RECORDS))
def test_bad_records(tmp_path, content, words):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "data.json").write_text(text)
    refused(lambda: recall(tmp_path, "run"), words)


def store_of(folder, header, body=b""):
    (folder / "images-00000.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body
    )


def npy(shape, descr="|u1", fortran=False):
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape})
    return text.ljust(117) + "\n"


DAMAGE = [
    ("images gone", lambda f: (f / "images-00000.npy").unlink(), "damaged"),
    ("images cut", lambda f: os.truncate(f / "images-00000.npy", 500), "another size"),
    ("table gone", lambda f: (f / "table.csv").unlink(), "damaged"),
    ("table empty", lambda f: (f / "table.csv").write_text(""), "another size"),
    ("notes gone", lambda f: (f / "notes.txt").unlink(), "damaged"),
    ("hashes gone", lambda f: (f / "hashes.json").unlink(), "damaged"),
    ("hashes no json", lambda f: (f / "hashes.json").write_text("{"), "damaged"),
    ("hashes of no size", lambda f: (f / "hashes.json").write_text('{"table.csv": {}}'), "damaged"),
]


@pytest.mark.parametrize(("harm", "words"), rows(DAMAGE))
def test_damaged_caches(tmp_path, harm, words):
    root = make_folder(tmp_path / "f", count=1)
    folder = load_tiles("folder", root, size=16).images.folder
    harm(folder)
    refused(lambda: load_tiles("folder", root, size=16), f"a damaged cache|delete this|{words}")


@pytest.mark.parametrize("header", [
    "{", npy(()), npy((2,)), npy((-2, 3, 4, 4)), npy((10**9, 10**9)), npy((2, 48), "|O"),
    "x" * 20000, npy((2, 48), fortran=True), npy((2, 48), "<f8"), "__import__('os').abort()\n",
])  # fmt: skip
def test_shards_that_are_none(tmp_path, header):
    store_of(tmp_path, header, bytes(96))
    with pytest.raises(ValueError):
        tile_store.TileStore(tmp_path, "images")


def test_a_deep_check_leaves_what_the_system_puts_there(tmp_path):
    root = make_folder(tmp_path / "f")
    tiles = load_tiles("folder", root, size=16)
    (tiles.images.folder / ".DS_Store").write_bytes(b"x")
    assert "all as in the cache" in data_check.check_deep(tiles, root)


def test_a_deep_check_finds_what_size_and_time_hide(tmp_path, capsys):
    root = make_folder(tmp_path / "f")
    sheet = ["--out", str(tmp_path / "s.png")]
    command = ["data", "check", "folder", "--deep", "--data-root", str(root), *sheet]
    assert main(command) == 0
    assert "6 tiles decoded again, all as in the cache" in capsys.readouterr().out
    path = root / "benign" / "0.png"
    before, content = path.stat(), bytearray(image(picture=PIXELS[:16, :16]))
    content += bytes(max(0, before.st_size - len(content)))
    path.write_bytes(bytes(content[: before.st_size]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if path.stat().st_size == before.st_size:
        assert main(command) == 2
        assert "0.png: changed since it was decoded" in capsys.readouterr().err
    tiles = load_tiles("folder", root)
    with (tiles.images.folder / "images-00000.npy").open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\x77")
    assert main(command) == 2
    assert "not what was written into this cache" in capsys.readouterr().err


# --- the command line ----------------------------------------------------------------------------

OUT = "{tmp}/out"
COMMANDS = [
    ("unknown parameter", "run --set X=1", "unknown parameter X"),
    ("no value", "run --set SEED", "NAME=VALUE"),
    ("value no yaml", "run --set SEED=[1", "not a value"),
    ("value a yaml program", "run --set SEED=!!python/name:os.abort", "not a value"),
    ("unknown preset", "run --preset ../../x", "--preset '../../x' is unknown"),
    ("lesson 99", "run --lessons 99", "no such lesson"), ("lesson x", "run --lessons x", "a range"),
    ("lessons backwards", "run --lessons 05-02", "no such lesson"),
    ("no such folder", "run --data mhist --data-root /no/such", "/no/such: no such folder"),
    ("no folder given", "run --data folder", "--data-root"),
    ("out is a file", "run --out {tmp}/file", "cannot be written"),
    ("out below a file", "run --out {tmp}/file/a", "cannot be written"),
    ("one tile", "run --set N_TILES=1", "N_TILES is 1, expected 2 to 200,000"),
    ("minus tiles", "run --set N_TILES=-3", "N_TILES is -3, expected 2 to 200,000"),
    ("unknown class", "run --set CLASSES=['a','b']", "class 'a': unknown"),
    ("one class", "run --set CLASSES=['HP']", "two or more"),
    ("damaged record", "run --set N_TILES=8 --lessons 04 --out {tmp}/bad", "lessons.json is dam"),
    ("other parameters", "run --set SEED=7 --lessons 04 --out {tmp}/done", "with SEED=0, and now"),
    ("other parameters by hand", "run --set N_TILES=7 --lessons 03 --out {tmp}/hand",
     "N_TILES=50, and now it is 7"),
    ("record of numbers", "run --lessons 04 --out {tmp}/odd", "not what this command wrote"),
    ("tiles a word", "run --set N_TILES=abc", "N_TILES is 'abc', expected something like 1300"),
    ("seed a fraction", "run --set SEED=1.5", "SEED is 1.5"),
    ("classes a number", "run --set CLASSES=5", "CLASSES is 5"),
    ("data a list", "run --set DATA=[1]", "DATA is [1]"),
    ("test a yes", "run --set TEST=True", "TEST is True"),
    ("pretrain batch a word", "pretrain --set PRETRAIN_BATCH=x", "PRETRAIN_BATCH is 'x'"),
    ("check nothing", "data check folder --data-root {tmp}/empty", "no image in it"),
    ("check a file", "data check folder --data-root {tmp}/file", "no such folder"),
    ("prepare mhist", "data prepare mhist", "Dataset Research Use Agreement"),
    ("prepare there already", "data prepare synthetic --n 4 --out {tmp}/empty", "there already"),
    ("prepare below a file", "data prepare synthetic --out {tmp}/file/x", "cannot be written"),
    ("prepare by strength", "data prepare synthetic --shortcut ink --strength 7", "strength"),
    ("prepare a scanner", "data prepare synthetic --scanner X --out {tmp}/new", "scanner 'X'"),
    ("pretrain batch 0", "pretrain --set PRETRAIN_BATCH=0", "PRETRAIN_BATCH"),
    ("pretrain devices 0", "pretrain --devices 0", "--devices and --num-nodes: give at least 1"),
    ("pretrain devices -1", "pretrain --devices -1", "give at least 1"),
    ("drawn tiles from a folder", "run --data-root {tmp}/empty", "synthetic tiles are drawn"),
    ("check drawn tiles", "data check synthetic --data-root {tmp}/empty", "come from no folder"),
    ("strength of nothing", "data check synthetic --strength 0.5", "--strength is that of a"),
    ("pretrain 3 devices", "pretrain --devices 3", "cannot share it evenly"),
    ("record of a number", "run --lessons 04 --out {tmp}/five", "not what this command wrote"),
    ("record of other files", "run --lessons 04 --out {tmp}/list", "not what this command wrote"),
    ("record of a time", "run --lessons 04 --out {tmp}/time", "not what this command wrote"),
    ("prepare here", "data prepare synthetic --n 4 --out .", "is there already|--out"),
    ("prepare on the disk", "data prepare synthetic --n 4 --out /", "/: the whole disk|--out"),
    ("sheet here", "data check folder --data-root {tmp}/tiles --out .", "a folder|give the"),
    ("sheet on the disk", "data check folder --data-root {tmp}/tiles --out /", "/: a folder|give"),
    ("check folder by seed", "data check folder --seed 1", "--seed: for synthetic tiles only"),
    ("pixels 0", "pretrain --set IMAGE_SIZE=0", "IMAGE_SIZE is 0, expected 8 to 2,048"),
    ("pixels -5", "pretrain --set IMAGE_SIZE=-5", "IMAGE_SIZE is -5, expected 8 to 2,048"),
    ("pixels 1", "run --set IMAGE_SIZE=1", "IMAGE_SIZE is 1, expected 8 to 2,048"),
    ("seed -1", "run --set SEED=-1", "SEED is -1, expected 0 to 4,294,967,295"),
    ("seed beyond", "pretrain --set SEED=4294967296", "SEED is 4294967296, expected 0 to"),
    ("tiles of 10^12", "run --set N_TILES=1000000000000", "N_TILES is 1000000000000, expected"),
    ("prepare 10^12", "data prepare synthetic --n 1000000000000 --out {tmp}/new",
     "n = 1000000000000: expected|2 to 200,000"),
    ("prepare seed -1", "data prepare synthetic --seed -1 --out {tmp}/new", "seed = -1|0 to 4,294"),
    ("rate a word", "run --set FINE_TUNE_LR=[x]", "FINE_TUNE_LR is 'x', expected something like"),
    ("rate -1", "run --set FINE_TUNE_LR=[-1.0]", "FINE_TUNE_LR is -1.0, expected 1e-09 to 10"),
    ("no rates", "run --set FINE_TUNE_LR=[]", "FINE_TUNE_LR is [], expected something like"),
    ("views a word", "pretrain --set VIEWS=tissue", "VIEWS is 'tissue', expected something like"),
    ("temperature NaN", "pretrain --set TEMPERATURE=.nan", "TEMPERATURE is nan, expected 0.001 to"),
    ("test of 1.5", "run --set TEST=1.5", "TEST is 1.5, expected 0.001 to 0.999"),
    ("epochs 0", "pretrain --set PRETRAIN_EPOCHS=0", "PRETRAIN_EPOCHS is 0, expected 1 to"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "words"), rows(COMMANDS))
def test_bad_commands(tmp_path, command, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "tiles")
    done = {"mark": "", "seconds": 1.0, "files": {}, "parameters": {"SEED": 0}}
    records = {"bad": "{", "done": json.dumps({"01_data_exploration": done}), "empty": "",
               "hand": "", "odd": '{"01_data_exploration": 5}'}  # fmt: skip
    wrong = {"five": {"parameters": 5}, "list": {"files": ["a"]}, "time": {"seconds": "1"}}
    records |= {k: json.dumps({"01_data_exploration": done | v}) for k, v in wrong.items()}
    for name, record in records.items():
        (tmp_path / name).mkdir()
        if record:
            (tmp_path / name / "lessons.json").write_text(record)
    (tmp_path / "hand" / "data.json").write_text(json.dumps(GOOD | {"n": 50}))
    argv = command.format(tmp=tmp_path).split()
    if argv[0] in ("run", "pretrain") and "--out" not in argv:
        argv += ["--out", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    for word in words.split("|"):
        assert word in error, error
    assert not (tmp_path / "harm").exists()


def test_a_download_does_not_write_through_a_link(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.zip.part").symlink_to(secret)
    answer = ebhi.requests.Response()
    answer.status_code = 200
    answer._content = b'{"files": [{"name": "a.zip", "download_url": "x", "computed_md5": "0"}]}'
    answer._content_consumed = True
    monkeypatch.setattr(ebhi.requests, "get", lambda *_, **__: answer)
    refused(lambda: ebhi.download_ebhi(tmp_path / "out", "record"), "a link")
    assert secret.read_text() == "mine"


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 9999, "٣", ""])
def test_a_length_that_is_none_does_not_stop_a_download(tmp_path, monkeypatch, length):
    answer = ebhi.requests.Response()
    answer.status_code, answer._content, answer._content_consumed = 200, b"tiles", True
    answer.headers["Content-Length"] = length
    monkeypatch.setattr(ebhi.requests, "get", lambda *_, **__: answer)
    ebhi._resume(tmp_path / "a.part", "x")
    assert (tmp_path / "a.part").read_bytes() == b"tiles"


def test_an_incomplete_folder_is_not_called_ready(tmp_path):
    (tmp_path / "EBHI-SEG" / "Normal" / "image").mkdir(parents=True)
    refused(lambda: ebhi.download_ebhi(tmp_path), "Polyp/image: is missing|remove")


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_reader, "LARGE", 100)
    busy, most, load = [], [], image_reader._load

    def slow(*given):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.05)
        busy.pop()
        return load(*given)

    monkeypatch.setattr(image_reader, "_load", slow)
    monkeypatch.setattr(image_reader, "cpu_count", lambda: 4)
    load_tiles("folder", make_folder(tmp_path / "f"), size=16)
    assert max(most) == 1


def test_large_files_are_read_one_at_a_time(tmp_path, monkeypatch):
    """What is read waits in memory for its turn to be decoded; so it must wait on disk."""
    monkeypatch.setattr(image_reader, "LARGE_FILE", 100)
    held, most = [], []
    read, load = image_reader._content, image_reader._load

    def slow_read(path):
        held.append(path)
        most.append(len(held))
        time.sleep(0.02)
        return read(path)

    def slow_load(path, content):
        time.sleep(0.02)
        held.remove(path)
        return load(path, content)

    monkeypatch.setattr(image_reader, "_content", slow_read)
    monkeypatch.setattr(image_reader, "_load", slow_load)
    monkeypatch.setattr(image_reader, "cpu_count", lambda: 4)
    load_tiles("folder", make_folder(tmp_path / "f"), size=16)
    assert max(most) == 1 and not held


def test_a_cache_removed_in_use_is_said(tmp_path):
    tiles = load_tiles("folder", make_folder(tmp_path / "f"), size=16)
    shutil.rmtree(tiles.images.folder)
    with pytest.raises(OSError, match="has been removed while it was in use: load the tiles again"):
        tiles.images[0]
