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
from test_data import HEADER, ROWS, make_ebhi, make_folder, make_mhist, save
from torch import nn

from crc_helpers.course.cli import main
from crc_helpers.data import load_tiles, recall, remember, split
from crc_helpers.models import load_weights, read_facts
from crc_helpers.runs import Checkpoint, RunError
from crc_helpers.sources import ebhi
from crc_helpers.sources import images as image_reader
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


def examples(table):
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


def bomb(width, height):
    """A PNG of any size, with the right checksums and nothing in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b""), b"IEND"]
    sealed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def camera_jpeg():
    """A JPEG with a second picture behind it (MPO); Pillow 11.0 writes one that nobody can read."""
    jpeg = image("JPEG")
    first = len(jpeg) + 90  # bytes of the first picture with the segment that lists both
    listed = struct.pack("<2sHIHHHI4s", b"II", 42, 8, 3, 0xB000, 7, 4, b"0100")
    listed += struct.pack("<HHIIHHIII", 0xB001, 4, 1, 2, 0xB002, 7, 32, 50, 0)
    listed += struct.pack("<8I", 0x30000, first, 0, 0, 0, len(jpeg), first - 10, 0)
    segment = b"\xff\xe2" + struct.pack(">H4s", len(listed) + 6, b"MPF\0") + listed
    return jpeg[:2] + segment + jpeg[2:] + jpeg


WIDE = (PIXELS.astype(np.uint16) * 256).transpose(2, 0, 1)
FLOATS = tiff(PIXELS.astype(np.float32), photometric="rgb")
GREYS = tiff(PIXELS, photometric="minisblack", planarconfig="contig")
NEITHER, JPEG_2000 = (struct.pack("<HHIHH", 259, 3, 1, code, 0) for code in (1, 34712))
IMAGES = [
    ("no image", b"<html>404</html>", "x.png: not a PNG, JPEG or TIFF image|download it again"),
    ("cut", image()[:2000], "x.png: unreadable, truncated or damaged|download it again"),
    ("bomb", bomb(20_000, 20_000), "x.png: Image size (400000000|cut it"),
    (
        "planar 16 bits",
        tiff(WIDE, photometric="rgb", planarconfig="separate"),
        "x.png: more than 8 bits a channel|expected 8-bit RGB; convert it",
    ),
    (
        "float RGB",
        FLOATS,
        "x.png: a TIFF of 3 × float32 a pixel, RGB, compression NONE; expected 8-bit RGB; convert",
    ),
    ("three grey samples", GREYS, "3 × uint8 a pixel, MINISBLACK|convert"),
    (
        "JPEG 2000",
        tiff(PIXELS, photometric="rgb").replace(NEITHER, JPEG_2000),
        "compression JPEG2000|convert",
    ),
    ("Lab", image("TIFF", Image.new("LAB", (9, 9))), "x.png: colour mode LAB; expected 8-bit RGB"),
    ("pages", image("TIFF", NOISE, **PAGES), "x.png: 3 pages, expected one; export one page"),
]


@pytest.mark.parametrize(("content", "words"), examples(IMAGES))
def test_bad_images(tmp_path, content, words):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(content)
    refused(lambda: load_tiles("folder", root, size=16), words)
    assert not list((tmp_path / "cache").glob("[!.]*"))


UNUSUAL = {
    "65,535 wide": image(picture=Image.new("L", (65535, 1))),
    "two pictures (MPO)": camera_jpeg(),
    "transparent palette": image("PNG", NOISE.quantize(4), transparency=0),
    "planar tiff": tiff(PIXELS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_images_are_read(tmp_path, kind):
    root = make_folder(tmp_path / "f", count=1)
    (root / "benign" / "x.png").write_bytes(UNUSUAL[kind])
    assert load_tiles("folder", root, size=16).images.shape == (3, 3, 16, 16)


def make_nameless(path):
    path.with_name(os.fsdecode(b"\xe4.png")).touch()


FILES = [
    ("pipe", os.mkfifo, "x.png: called like an image, but not a file; remove it"),
    ("name in latin-1", make_nameless, "\\udce4.png: a name that is not text in UTF-8; rename"),
    ("no image", lambda path: path.parents[1].joinpath("none").mkdir(), "none: no image in it"),
    ("three broken", lambda p: [p.with_name(f"{i}.png").touch() for i in "345"], "2 more like it"),
]


@pytest.mark.parametrize(("make", "words"), examples(FILES))
def test_bad_files(tmp_path, make, words):
    root = make_folder(tmp_path / "f", count=1)
    make(root / "benign" / "x.png")
    refused(lambda: load_tiles("folder", root, size=16), words)


def test_bad_names_and_masks_of_ebhi(tmp_path):
    root = make_ebhi(tmp_path / "e")
    bad = save(root / "EBHI-SEG" / "Polyp" / "image" / "tile.png")
    refused(lambda: load_tiles("ebhi", root, size=16), "tile.png|no case id|<case>")
    bad.unlink()
    mask = next((root / "EBHI-SEG" / "Polyp" / "label").iterdir())
    save(mask, np.zeros((8, 8), np.uint8))
    refused(lambda: load_tiles("ebhi", root, size=16), f"{mask.name}|8×8|16×16|restore")
    save(mask, np.eye(16, dtype=np.uint8))  # 0 and 1, as many label files have it
    refused(lambda: load_tiles("ebhi", root, size=16), f"{mask.name}|brightest value is 1|255")
    save(mask, np.uint8([[127, 128]] * 2))
    assert image_reader.decode_mask(mask, 2, (2, 2)).tolist() == [[0, 1]] * 2


NAMES = ["new\nline", "日本", "-rf", "a,b", "=1+1", "$x^{", "NA", "\\", "\u202egnp", "\x1b[31m"]


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
    ("semicolons", table(LAST).replace(b",", b";"), "'Image Name' is missing|commas between"),
    ("terminal codes", table("\x1b[31mx,SSA,4,test"), "line 5|x1b[31mx' has no file|restore"),
    ("a file without row", table(), "MHIST_aad.png: has no row in|add the row"),
    ("formula as label", table("MHIST_aad.png,=1+1,4,test"), "'=1+1' is no label; write HP or"),
    ("votes in wide digits", table("MHIST_aad.png,SSA,４,test"), "is no number of votes|0 to 7"),
    ("votes against the label", table("MHIST_aad.png,SSA,3,test"), "line 5|contradict|correct"),
    ("partition", table("MHIST_aad.png,SSA,4,dev"), "line 5: 'dev' is no partition; write train"),
]


@pytest.mark.parametrize(("content", "words"), examples(TABLES))
def test_bad_tables(tmp_path, content, words):
    root = make_mhist(tmp_path / "m")
    (root / "annotations.csv").write_bytes(content)
    refused(lambda: load_tiles("mhist", root, size=16), words)


def test_bad_groups(tmp_path):
    lines = [f"{row},{slide}" for row, slide in zip(ROWS, ("s1", "s1", "s1", "s2"), strict=True)]
    root = make_mhist(tmp_path / "slides", lines, HEADER + ",Slide")
    refused(lambda: load_tiles("mhist", root, size=16), "'s1' is in both partitions")
    folder = make_folder(tmp_path / "f", count=1)
    (folder / "groups.csv").write_text("file,group\nbenign/0.png,\nmalignant/0.png,1\n")
    words = "line 2: 'benign/0.png' has no group"
    refused(lambda: load_tiles("folder", folder, size=16), words)


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
    ("one class of six", ONE, "Polyp/image: missing, expected all of EBHI-Seg"),
]


@pytest.mark.parametrize(("content", "words"), examples(ARCHIVES))
def test_bad_archives(tmp_path, content, words):
    (tmp_path / "x.zip").write_bytes(content)
    refused(lambda: ebhi.download_ebhi(tmp_path), words)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["x.zip"]


def test_an_archive_fetched_by_hand_never_writes_outside(tmp_path):
    """Names that climb, absolute ones, links and what is written through them."""
    source, out = make_ebhi(tmp_path / "source"), tmp_path / "a" / "out"
    out.mkdir(parents=True)
    link, outside = stat.S_IFLNK | 0o777, str(tmp_path / "absolute.png")
    names = "../../evil.png", outside, "Normal/../../../../evil.png", "link2/evil.png"
    evil = [(name, 0o100644, b"x") for name in names]
    evil += [("link", link, str(tmp_path).encode())]
    good = [(f"a/{p.relative_to(source)}", 0o100644, p.read_bytes()) for p in source.rglob("*.png")]
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
    file = tmp_path / "w.safetensors"
    torch.save({"weight": Malicious()}, file)
    refused(lambda: load_weights(file, nn.Linear(3, 2)), "w.safetensors holds no weights|del")
    refused(lambda: read_facts(file), "w.safetensors holds no weights")
    torch.save({"model": Malicious()}, tmp_path / "x_a.ckpt")
    refused(Checkpoint(tmp_path / "x.ckpt", "a").load, "x_a.ckpt is no checkpoint|delete it")
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "x_a.ckpt", weights_only=False)  # and it would have
    assert (tmp_path / "harm").exists()


def test_bad_weights(tmp_path):
    file = tmp_path / "w.safetensors"
    said = "w.safetensors is missing: run the lesson that makes it, or set"
    refused(lambda: load_weights(file, nn.Linear(3, 2)), said)
    facts = {"crc_helpers": json.dumps({"backbone": "small net"})}
    save_file({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, file, facts)
    with pytest.raises(RunError, match=r"w\.safetensors does not fit Linear(.|\n)*size mismatch"):
        load_weights(file, nn.Linear(3, 2))
    for keep in (20, 0):
        file.write_bytes(file.read_bytes()[:keep])
        refused(lambda: load_weights(file, nn.Linear(3, 2)), "w.safetensors holds no weights")


GOOD = {"name": "synthetic", "root": None, "classes": None, "n": 6, "scheme": "auto"}
GOOD |= {"test": 0.3, "validation": 0.1, "seed": 0}
RECORDS = [
    ("no json", "{", "data.json is damaged"),
    ("unknown data", GOOD | {"name": "../x"}, "data '../x'|expected one of synthetic"),
    ("seed a list", GOOD | {"seed": [1, "x"]}, "seed = [1, 'x']: "),
    ("unknown class", GOOD | {"classes": ["HP", "<b>"]}, "class '<b>': unknown, expected some of"),
]


@pytest.mark.parametrize(("content", "words"), examples(RECORDS))
def test_bad_records(tmp_path, content, words):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "data.json").write_text(text)
    refused(lambda: recall(tmp_path, "run"), words)


DAMAGE = {
    "images-00000.npy": lambda f: (f / "images-00000.npy").unlink(),
    "mmap length": lambda f: os.truncate(f / "images-00000.npy", 1000),
    "hashes.json": lambda f: (f / "hashes.json").unlink(),
    "Length mismatch": lambda f: (f / "table.csv").write_text("id,class\n"),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damaged_caches(tmp_path, words):
    root = make_folder(tmp_path / "f", count=1)
    DAMAGE[words](load_tiles("folder", root, size=16).images.folder)
    refused(lambda: load_tiles("folder", root, size=16), f"a damaged cache|delete this|{words}")


# --- the command line ----------------------------------------------------------------------------

COMMANDS = """
run --set NO_SUCH=1                                => 'NO_SUCH=1': unknown parameter
run --set SEED=!!python/name:os.abort              => not a value
run --set FINE_TUNE_VIEWS=gentel                   => FINE_TUNE_VIEWS has 'gentel': choose some of
run --set RUN=elsewhere                            => 'RUN=elsewhere': unknown parameter
run --preset huge                                  => choose one of ci, class, paper
run --lessons 77                                   => no such lesson
data check folder                                  => missing, expected|--data-root
data check folder --data-root empty                => no folder of images in it
data check mhist --data-root empty                 => annotations.csv|missing
data check folder --data-root tiles --out .        => cannot be written (Is a directory)
data check synthetic --data-root empty             => come from no f
data prepare mhist                                 => Dataset Research Use Agreement
data prepare mhist --n 5                           => --n: for synthetic
data prepare synthetic --n 4 --out empty           => there already
data prepare synthetic --n 4 --out /               => /: is there already|--out
data prepare synthetic --n 1000000000000 --out new => 2 to 200,000
data prepare synthetic --scanner X --out new       => scanner 'X': expected
data prepare synthetic --shortcut ink --strength 7 --out new => strength
"""


@pytest.mark.parametrize("line", COMMANDS.strip().splitlines())
def test_bad_commands(tmp_path, line, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "tiles")
    command, words = line.split("=>")
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    for word in words.strip().split("|"):
        assert word in error, error
