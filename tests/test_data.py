"""The four sources, what is refused and how it is said, the cache, the split, check and prepare."""

import dataclasses
import hashlib
import json
import os
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from crc_helpers.course import check as data_check
from crc_helpers.course.check import check, prepare
from crc_helpers.data import Split, Tiles, load_tiles, split, watched
from crc_helpers.sources import cache as tile_cache
from crc_helpers.sources import drawn, ebhi
from crc_helpers.sources import files as data_files
from crc_helpers.sources import images as image_reader
from crc_helpers.sources import store as tile_store
from crc_helpers.sources.base import DataError

EBHI_SEG = Path(__file__).resolve().parents[2] / "shared" / "data" / "ebhi_seg"
HEADER = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
ROWS = [
    "MHIST_aaa.png,HP,0,train", "MHIST_aab.png,SSA,7,train", "MHIST_aac.png,HP,3,test",
    "MHIST_aad.png,SSA,4,test",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def visible(folder):
    """What lies in a folder, but for lock files: they stay, or two processes might hold two."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def pixels(seed=0, shape=(16, 16, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, image=0):
    """Write an array, an image, or random pixels of this seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(image, Image.Image):
        image = Image.fromarray(pixels(image) if isinstance(image, int) else image)
    image.save(path)
    return path


def make_mhist(root, rows=ROWS, header=HEADER):
    for seed in range(len(ROWS)):
        save(root / "images" / ROWS[seed].split(",")[0], seed)
    (root / "annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def make_folder(root, classes=("benign", "malignant"), count=3):
    for c, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", 10 * c + i)
    return root


def make_ebhi(root):
    for c, name in enumerate(ebhi.EBHI_CLASSES):
        for i in range(2):
            file = f"{'GTxc' if i else 'GTXC'}190{c // 2}-1-400-00{i}.png"
            save(root / "EBHI-SEG" / name / "image" / file, 10 * c + i)
            save(root / "EBHI-SEG" / name / "label" / file, np.full((16, 16), 255 * i, np.uint8))
    low = root / "EBHI-SEG" / "Low-grade IN" / "image"
    save(low / "GT2012149-2-400-001.png", 99)
    save(low / "GTGT2012149-2-400-001.png", 99)
    return root


def fake_tiles(labels, groups=None, partition=None, class_names=("HP", "SSA")):
    labels = np.asarray(labels)
    return Tiles(
        np.zeros((len(labels), 3, 2, 2), np.uint8), labels, class_names,
        np.arange(len(labels)).astype(str), groups, partition, None, None, None, None,
        "fake", "", "",
    )  # fmt: skip


def refused(call, *words):
    """`call` raises a DataError of one line that holds all the words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in: {message}"


# --- mhist ---------------------------------------------------------------------------------------


def test_mhist_as_published(tmp_path):
    tiles = load_tiles("mhist", make_mhist(tmp_path / "mhist"), size=16)
    assert tiles.class_names == ("HP", "SSA")
    assert tiles.labels.tolist() == [0, 1, 0, 1] and tiles.labels.dtype == np.int64
    assert tiles.votes.tolist() == [0, 7, 3, 4] and tiles.votes.dtype == np.int64
    assert tiles.partition.tolist() == ["train", "train", "test", "test"]
    assert tiles.ids[0] == "MHIST_aaa.png"
    assert tiles.groups is None and tiles.masks is None
    np.testing.assert_array_equal(tiles.images[2], pixels(2).transpose(2, 0, 1))
    assert "not redistributable" in tiles.licence
    assert tiles.mpp == 2.0 * 224 / 16
    assert load_tiles("mhist", tmp_path / "mhist", size=16, mpp=1.5).mpp == 1.5


def test_mhist_awkward_table(tmp_path, capsys):
    root = make_mhist(tmp_path / "mhist")
    header = " image name ,MAJORITY VOTE LABEL,number of annotators  who selected SSA (out of 7),"
    lines = [header + "partition,Comment", *(row.lower().replace("mhist", "MHIST") + ",x"
                                             for row in ROWS), ",,,,", ""]  # fmt: skip
    (root / "annotations.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    tiles = load_tiles("mhist", root, size=16)
    assert tiles.labels.tolist() == [0, 1, 0, 1]
    assert any("columns not used: Comment" in note for note in tiles.notes)
    assert "Comment" in capsys.readouterr().out


def test_mhist_slides_become_groups(tmp_path):
    rows = [f"{row},slide{i // 2}" for i, row in enumerate(ROWS)]
    tiles = load_tiles("mhist", make_mhist(tmp_path / "m", rows, HEADER + ",Slide"), size=16)
    assert tiles.groups.tolist() == ["slide0", "slide0", "slide1", "slide1"]


@pytest.mark.parametrize(
    "rows, words",
    [
        ([*ROWS, "MHIST_zzz.png,HP,0,train"], ["line 6", "MHIST_zzz.png", "has no file", "drop"]),
        (ROWS[:2], ["MHIST_aac.png", "has no row", "1 more", "add the row"]),
        ([*ROWS[:3], "MHIST_aad.png,Polyp,4,test"], ["line 5", "'POLYP'", "HP or SSA"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA,8,test"], ["line 5", "'8'", "0 to 7"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA,-1,test"], ["line 5", "'-1'", "0 to 7"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA,many,test"], ["line 5", "'many'", "0 to 7"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA,3,test"], ["line 5", "3 votes", "contradict"]),
        ([*ROWS[:3], "MHIST_aad.png,HP,4,test"], ["line 5", "4 votes", "label HP", "correct"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA,4,dev"], ["line 5", "'dev'", "train or test"]),
        ([*ROWS, ROWS[0]], ["line 6", "MHIST_aaa.png", "twice", "keep one"]),
        ([*ROWS, "../secret.png,HP,0,train"], ["line 6", "../secret.png", "leaves"]),
        ([*ROWS, "C:\\x.png,HP,0,train"], ["line 6", "leaves"]),
        ([*ROWS, "..,HP,0,train"], ["line 6", "leaves"]),
        ([*ROWS[:3], "MHIST_aad.png,SSA"], ["line 5", "''"]),
        ([], ["annotations.csv", "no rows"]),
        ([*ROWS, 'x"y,"'], ["annotations.csv"]),
    ],
)
def test_mhist_bad_rows(tmp_path, cache, rows, words):
    root = make_mhist(tmp_path / "mhist", rows)
    refused(lambda: load_tiles("mhist", root, size=16), "annotations.csv", *words)
    assert not cache.exists() or not visible(cache)


@pytest.mark.parametrize(
    "header, words",
    [
        (HEADER.replace("Partition", "Part"), ["'Partition'", "missing", "Part", "header"]),
        (HEADER.replace("Image Name", "Partition"), ["'Image Name'", "missing"]),
        (HEADER + ",partition", ["'Partition'", "twice"]),
        (HEADER.replace(",", ";"), ["comma-separated"]),
    ],
)
def test_mhist_bad_header(tmp_path, header, words):
    extra = ",train" if header.count(",") == 4 else ""
    root = make_mhist(tmp_path / "mhist", [row + extra for row in ROWS], header)
    refused(lambda: load_tiles("mhist", root, size=16), "annotations.csv", *words)


def test_mhist_slide_in_two_partitions(tmp_path):
    root = make_mhist(tmp_path / "m", [row + ",s1" for row in ROWS], HEADER + ",Slide")
    refused(lambda: load_tiles("mhist", root, size=16), "'s1'", "both partitions", "keep")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary\xff", b"a,b\n1,2,3\n1,2,3,4\n"])
def test_mhist_table_is_no_table(tmp_path, content):
    root = make_mhist(tmp_path / "mhist")
    (root / "annotations.csv").write_bytes(content)
    refused(lambda: load_tiles("mhist", root, size=16), "annotations.csv")


# --- any source ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mhist", "ebhi", "folder"])
def test_missing_root(tmp_path, name):
    refused(lambda: load_tiles(name, tmp_path / "absent"), "absent", "no such folder", "root")
    refused(lambda: load_tiles(name), name if name != "ebhi" else "prepare ebhi")


@pytest.mark.parametrize("name, missing", [("mhist", "annotations.csv"), ("ebhi", "Normal")])
def test_wrong_root(tmp_path, name, missing):
    refused(lambda: load_tiles(name, tmp_path), missing, "missing")


def test_unknown_source():
    refused(lambda: load_tiles("tcga"), "'tcga'", "synthetic, mhist, ebhi, folder")


def png(**text):
    return cv2.imencode(".png", pixels())[1].tobytes()


def cut_png():
    return png()[:-200]


def wrong_checksum():
    content = bytearray(png())
    content[-16] ^= 1  # inside the CRC of the pixel data
    return bytes(content)


def png_16bit_grey():
    return cv2.imencode(".png", pixels(shape=(16, 16)).astype(np.uint16) * 256)[1].tobytes()


def png_16bit_colour():
    return cv2.imencode(".png", pixels().astype(np.uint16) * 256)[1].tobytes()


def tiff_16bit_colour():
    return cv2.imencode(".tiff", pixels().astype(np.uint16) * 256)[1].tobytes()


def tiff_float():
    return cv2.imencode(".tiff", pixels(shape=(16, 16)).astype(np.float32))[1].tobytes()


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("bad.png", b"", ["empty file (0 bytes)", "again"]),
        ("bad.png", b"<html>not found</html>", ["not a PNG, JPEG or TIFF", "again"]),
        ("bad.png", b"GIF89a" + bytes(50), ["not a PNG, JPEG or TIFF"]),
        ("bad.png", cut_png(), ["truncated or damaged", "again"]),
        ("bad.png", wrong_checksum(), ["truncated or damaged"]),
        ("bad.jpg", cv2.imencode(".jpg", pixels(shape=(64, 64, 3)))[1].tobytes()[:900],
         ["truncated"]),
        ("bad.png", png_16bit_grey(), ["16 bits", "convert it to 8-bit"]),
        ("bad.png", png_16bit_colour(), ["16 bits", "convert it to 8-bit"]),
        ("bad.tif", tiff_16bit_colour(), ["16 bits", "convert it to 8-bit"]),
        ("bad.tiff", tiff_float(), ["16 bits", "convert it to 8-bit"]),
    ],
)  # fmt: skip
def test_bad_image(tmp_path, cache, name, content, words):
    root = make_folder(tmp_path / "f")
    (root / "benign" / name).write_bytes(content)
    refused(lambda: load_tiles("folder", root, size=16), f"benign{os.sep}{name}", *words)
    assert not visible(cache)


def test_decompression_bomb(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "f")
    monkeypatch.setattr(image_reader, "PIXEL_LIMIT", 100)
    refused(lambda: load_tiles("folder", root, size=16), "0.png", "bomb", "5 more", "tiles")


def test_several_pages(tmp_path):
    root = make_folder(tmp_path / "f")
    page = Image.fromarray(pixels())
    page.save(root / "benign" / "stack.tif", save_all=True, append_images=[page, page])
    refused(lambda: load_tiles("folder", root, size=16), "stack.tif", "3 pages", "export one")


def test_unreadable_file(tmp_path):
    root = make_folder(tmp_path / "f")
    (root / "benign" / "x.png").mkdir()  # readable for nobody, root included
    refused(lambda: load_tiles("folder", root, size=16), "x.png", "unreadable")
    (root / "benign" / "x.png").rmdir()
    (root / "benign" / "x.png").symlink_to(root / "benign" / "gone.png")
    refused(lambda: load_tiles("folder", root, size=16), "x.png", "cannot be read", "check")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_permissions(tmp_path):
    root = make_folder(tmp_path / "f")
    (root / "benign" / "1.png").chmod(0)
    refused(lambda: load_tiles("folder", root, size=16), "1.png", "Permission denied")


def test_links_that_leave_the_root(tmp_path):
    root, outside = make_folder(tmp_path / "f"), save(tmp_path / "secret.png")
    (root / "benign" / "inside.png").symlink_to(root / "benign" / "0.png")
    assert len(load_tiles("folder", root, size=16)) == 7
    (root / "benign" / "link.png").symlink_to(outside)
    refused(lambda: load_tiles("folder", root, size=16), "link.png", "leaves", "copy")
    (root / "benign" / "link.png").unlink()
    make_folder(tmp_path / "elsewhere")
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "benign", target_is_directory=True)
    refused(lambda: load_tiles("folder", root, size=16), "linked", "leaves")


def test_all_files_wrong_names_the_first_and_counts(tmp_path):
    root = make_folder(tmp_path / "f")
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    refused(lambda: load_tiles("folder", root, size=16), f"benign{os.sep}0.png", "5 more like it")


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("L", (16, 16), 90), (90, 90, 90)),
        (Image.new("1", (16, 16), 1), (255, 255, 255)),
        (Image.new("LA", (16, 16), (90, 0)), (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGB", (16, 16), (9, 8, 7)).quantize(4), (9, 8, 7)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
    ],
)
def test_other_colour_modes_are_converted_and_said(tmp_path, image, expected):
    root = make_folder(tmp_path / "f")
    save(root / "benign" / ("x.tif" if image.mode == "CMYK" else "x.png"), image)
    tiles = load_tiles("folder", root, size=16)
    i = [file.split("/")[1][0] for file in tiles.ids].index("x")
    assert tuple(tiles.images[i, :, 5, 5]) == expected
    assert any(f"1 {image.mode}: converted to RGB" in note for note in tiles.notes)


def test_exif_orientation_is_applied(tmp_path):
    root = make_folder(tmp_path / "f")
    image, exif = Image.fromarray(pixels(7)), Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees
    image.save(root / "benign" / "x.png", exif=exif)
    tiles = load_tiles("folder", root, size=16)
    turned = np.rot90(pixels(7), -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles.images[tiles.ids == "benign/x.png"][0], turned)


# --- folder --------------------------------------------------------------------------------------


def test_folder_of_any_size(tmp_path, capsys):
    root = make_folder(tmp_path / "f")
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the central square
    save(root / "malignant" / "wide.JPG", wide)
    save(root / "malignant" / "tall.tiff", pixels(3, (40, 30, 3)))
    (root / ".hidden").mkdir()
    (root / "benign" / "._0.png").write_bytes(b"resource fork")
    (root / "benign" / "readme.txt").write_text("no image")
    tiles = load_tiles("folder", root, size=16)
    assert tiles.images.shape == (8, 3, 16, 16)
    assert tiles.class_names == ("benign", "malignant")
    assert tiles.labels.tolist() == [0] * 3 + [1] * 5
    assert tiles.images[tiles.ids == "malignant/wide.JPG"].min() > 240
    said = "6 of 16×16 px, 2 of 2 other sizes: cropped to their central square and resized to 16 px"
    assert said in capsys.readouterr().out
    assert any(said in note for note in tiles.notes)
    load_tiles("folder", root, size=16)
    assert capsys.readouterr().out == ""  # said once


def test_folder_groups(tmp_path):
    root = make_folder(tmp_path / "f", count=2)
    rows = ["benign/0.png,s1", "benign\\1.png,s2", "malignant/0.png,NA", "malignant/1.png,s2"]
    (root / "groups.csv").write_text("\n".join(["File,Group", *rows]))
    tiles = load_tiles("folder", root, size=16)
    assert tiles.groups.tolist() == ["s1", "s2", "NA", "s2"]
    assert load_tiles("folder", root, size=16).groups.tolist() == tiles.groups.tolist()


@pytest.mark.parametrize(
    "rows, words",
    [
        (["file,group", "benign/0.png,s1"], ["benign/1.png", "no row", "add the row"]),
        (["file,group", "benign/9.png,s1"], ["line 2", "benign/9.png", "no file"]),
        (["file,group", "../0.png,s1"], ["line 2", "../0.png", "leaves"]),
        (["file,group", "/etc/0.png,s1"], ["line 2", "/etc/0.png", "leaves"]),
        (["file,group", "benign/0.png,s1", "benign/0.png,s1"], ["line 3", "twice"]),
        (["file,slide", "benign/0.png,s1"], ["'group'", "missing"]),
        (["file;group", "benign/0.png;s1"], ["'file'", "missing", "with commas between"]),
        (["file,group", "benign/0.png,", "benign/1.png,a", "m/0.png,b"], ["groups.csv"]),
    ],
)
def test_folder_bad_groups(tmp_path, rows, words):
    root = make_folder(tmp_path / "f", count=2)
    (root / "groups.csv").write_text("\n".join(rows))
    refused(lambda: load_tiles("folder", root, size=16), "groups.csv", *words)


def test_folder_without_images(tmp_path):
    refused(lambda: load_tiles("folder", tmp_path), str(tmp_path), "no image")
    make_folder(tmp_path / "f")
    (tmp_path / "f" / "empty").mkdir()
    refused(lambda: load_tiles("folder", tmp_path / "f"), "empty", "no image", "elsewhere")
    (tmp_path / "f" / "empty").rmdir()
    make_folder(tmp_path / "f" / "deeper")
    words = ["deeper: no image", f"--data-root '{tmp_path / 'f' / 'deeper'}'"]
    refused(lambda: load_tiles("folder", tmp_path / "f"), *words)
    refused(lambda: load_tiles("folder", tmp_path / "f" / "benign"), "directly in it")


def test_what_a_folder_holds_besides_is_said(tmp_path):
    root = make_folder(tmp_path / "f")
    (root / "__MACOSX" / "x").mkdir(parents=True)
    (root / "benign" / "patient 1").mkdir()
    for name in ("a.webp", "b.WEBP", "notes.txt", ".DS_Store"):
        (root / "benign" / name).touch()
    tiles = load_tiles("folder", root, size=16)
    assert tiles.class_names == ("benign", "malignant")
    assert "benign: left out 1 × .txt, 2 × .webp, 1 × folder" in tiles.notes


def test_one_class_only(tmp_path):
    root = make_folder(tmp_path / "f", classes=("benign",))
    refused(lambda: load_tiles("folder", root, size=16), "benign", "one class only")
    rows = [ROWS[0], ROWS[2]]
    root = make_mhist(tmp_path / "m", rows)
    for row in (ROWS[1], ROWS[3]):
        (root / "images" / row.split(",")[0]).unlink()
    refused(lambda: load_tiles("mhist", root, size=16), "one class only", "'SSA'", "add tiles")


# --- ebhi ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "EBHI-SEG"])
def test_ebhi_quirks(tmp_path, inner):
    tiles = load_tiles("ebhi", make_ebhi(tmp_path / "e") / inner, size=16)
    assert len(tiles) == 13  # the doubled prefix is left out
    assert tiles.class_names == ("Low-grade IN", "Adenocarcinoma")
    assert np.bincount(tiles.labels + 1).tolist() == [8, 3, 2]
    assert set(tiles.groups) == {"GTXC1900", "GTXC1901", "GTXC1902", "GT2012149"}
    assert tiles.mask_name == "glands"
    assert tiles.masks[:].reshape(13, -1).max(axis=1).tolist() == [0, 1, 0, 1, 0, 0, 1] + [0, 1] * 3
    assert any("GTGT2012149" in note for note in tiles.notes)
    assert len(set(tiles.ids)) == 13


def test_ebhi_classes(tmp_path, monkeypatch):
    root = make_ebhi(tmp_path / "e")
    tiles = load_tiles("ebhi", root, size=16, classes=("Polyp", "Normal"))
    assert tiles.class_names == ("Polyp", "Normal")
    assert np.bincount(tiles.labels + 1).tolist() == [9, 2, 2]
    monkeypatch.setattr(image_reader, "decode", None)  # other classes need no new decoding
    everything = load_tiles("ebhi", root, size=16, classes="all")
    assert everything.class_names == ebhi.EBHI_CLASSES and everything.labels.min() == 0
    refused(lambda: load_tiles("ebhi", root, size=16, classes=["Polyp", "HP"]), "'HP'", "Polyp")
    for one in (["Polyp"], "Polyp", ["Polyp", "Polyp"]):
        refused(lambda one=one: load_tiles("ebhi", root, size=16, classes=one), "one class only")


@pytest.mark.parametrize(
    "file, case",
    [
        ("GT2001837-1-400-001.png", "GT2001837"),
        ("GTxc1900-1-400-001.png", "GTXC1900"),
        ("GTGT2012149-2-400-001.png", "GT2012149"),
    ],
)
def test_ebhi_case(file, case):
    assert ebhi.ebhi_case(file) == case


def test_ebhi_bad_names_and_masks(tmp_path):
    root = make_ebhi(tmp_path / "e")
    bad = save(root / "EBHI-SEG" / "Polyp" / "image" / "tile.png")
    refused(lambda: load_tiles("ebhi", root, size=16), "tile.png", "no case id", "<case>")
    bad.unlink()
    mask = next((root / "EBHI-SEG" / "Polyp" / "label").iterdir())
    save(mask, np.zeros((8, 8), np.uint8))
    refused(lambda: load_tiles("ebhi", root, size=16), mask.name, "8×8", "16×16", "restore")
    save(mask, np.uint8([[127, 128]] * 2))
    assert image_reader.decode_mask(mask, 2, (2, 2)).tolist() == [[0, 1]] * 2
    save(mask, np.eye(16, dtype=np.uint8))  # 0 and 1, as many label files have it
    refused(lambda: load_tiles("ebhi", root, size=16), mask.name, "brightest value is 1", "255")


@pytest.mark.skipif(not EBHI_SEG.is_dir(), reason="needs ../shared/data/ebhi_seg (real tiles)")
def test_ebhi_real_tiles(tmp_path):
    tiles = load_tiles("ebhi", EBHI_SEG, size=32)
    assert np.bincount(tiles.labels + 1).tolist() == [472, 433, 388]
    assert len(set(tiles.groups)) == 215 and len(set(tiles.ids)) == 1293
    assert 0.3 < tiles.masks[:].mean() < 0.8
    assert tiles.mpp is None
    manifest = pd.read_csv(EBHI_SEG / "manifest.csv")
    assert set(tiles.groups) == set(manifest["case"])
    parts = split(tiles)
    assert parts.grouped and 0.2 < len(parts.test) / 821 < 0.3
    assert len(parts.unlabelled) > 250
    assert not set(tiles.groups[parts.pretraining]) & set(tiles.groups[parts.test])


# --- synthetic -----------------------------------------------------------------------------------


def test_synthetic_tiles():
    tiles = load_tiles(n=20, seed=1, size=48)
    assert tiles.images.shape == (20, 3, 48, 48) and tiles.images[:].std() > 20
    assert tiles.labels.tolist() == (tiles.votes >= 4).astype(int).tolist()
    assert len(set(tiles.groups)) == 4 and tiles.partition is None
    assert tiles.mask_name == "diagnostic region" and tiles.masks.shape == (20, 48, 48)
    assert tiles.mpp == pytest.approx(448 / 48)  # the same field of view, coarser
    assert list(tiles.metadata) == ["Scanner", "Polyp Size (mm)", "Colon Site"]
    assert (
        tiles.subset(np.array([3, 1])).metadata["Scanner"].tolist()
        == tiles.metadata["Scanner"][[3, 1]].tolist()
    )
    assert load_tiles(n=20, seed=1, size=48, mpp=2.0).mpp == 2.0


def test_synthetic_tiles_of_two_classes_are_the_same_named_or_not(cache):
    plain, named, turned = (
        load_tiles(n=18, seed=1, size=48, classes=c) for c in (None, ("HP", "SSA"), ["SSA", "HP"])
    )
    for field in ("images", "masks", "labels", "votes", "groups", "ids"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(named, field))
    pd.testing.assert_frame_equal(plain.metadata, named.metadata)
    assert turned.class_names == ("SSA", "HP")
    np.testing.assert_array_equal(turned.labels, 1 - plain.labels)
    assert len(list(cache.glob("synthetic-*"))) == 1


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory):
    return load_tiles(n=240, seed=2, size=48, classes="all", cache=tmp_path_factory.mktemp("four"))


def test_synthetic_tiles_of_four_classes(four_classes):
    tiles = four_classes
    assert tiles.class_names == ("Normal", "HP", "SSA", "Tubular adenoma")
    assert np.bincount(tiles.labels, minlength=4).min() > 20 and tiles.votes is None
    assert tiles.masks[:].any((1, 2)).all()
    glands = [tiles.masks[tiles.labels == c].mean() for c in range(4)]
    assert min(glands[0], glands[3]) > max(glands[1], glands[2])  # whole crypts, not lower halves
    assert list(tiles.metadata) == ["Scanner", "Polyp Size (mm)", "Colon Site"]
    assert tiles.metadata["Polyp Size (mm)"].between(1, 40).all()


def test_a_split_of_four_classes_keeps_slides_whole(four_classes):
    parts = split(four_classes, seed=1)
    assert parts.grouped and len(parts.unlabelled) == 0
    owners = [set(four_classes.groups[getattr(parts, p)]) for p in ("train", "val", "test")]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 40
    for part in ("train", "val", "test"):
        assert set(four_classes.labels[getattr(parts, part)]) == {0, 1, 2, 3}


def test_synthetic_classes_decide_what_is_drawn_and_labelled(cache):
    tiles = load_tiles(n=60, size=24, classes=["Tubular adenoma", "Normal"])
    assert set(tiles.labels) == {0, 1} and len(set(tiles.groups)) == 10
    tiles = load_tiles(n=60, size=24, classes=["Normal", "HP"])
    assert set(tiles.labels) == {-1, 0, 1}  # SSA tiles come with HP, without a label


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"n": 1}, ["n = 1"]),
        ({"classes": ["HP", "Cancer"]}, ["Cancer", "Normal, HP, SSA, Tubular adenoma"]),
        ({"classes": ["Normal"]}, ["two or more"]),
        ({"shortcut": "glue"}, ["glue", "ink, stain"]),
        ({"scanner": "Scanner D"}, ["Scanner D", "Scanner A"]),
        ({"shortcut": "ink", "strength": 2}, ["strength 2"]),
    ],
)
def test_impossible_synthetic_tiles_are_refused(wrong, words):
    refused(lambda: load_tiles(**({"n": 12} | wrong)), *words)


def test_synthetic_is_drawn_again_when_it_should(cache, monkeypatch):
    for _ in range(2):
        load_tiles(n=6, size=24)
    assert len(visible(cache)) == 1
    load_tiles(n=6, size=24, seed=1)
    load_tiles(n=6, size=24, shortcut="ink")
    monkeypatch.setattr(drawn, "code_of", lambda module: "edited")
    load_tiles(n=6, size=24)
    assert len(visible(cache)) == 4


# --- the cache -----------------------------------------------------------------------------------


def test_cache_opens_and_never_decodes_twice(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "f")
    first = load_tiles("folder", root, size=16)
    monkeypatch.setattr(image_reader, "decode", None)
    again = load_tiles("folder", root, size=16)
    with pytest.raises(ValueError, match="copy the tiles"):
        again.images[0] = 0
    for field in ("images", "labels", "ids"):
        np.testing.assert_array_equal(getattr(again, field), getattr(first, field))
    assert again.notes == first.notes


@pytest.mark.parametrize("change", ["content", "new file", "groups", "size", "code"])
def test_cache_notices_a_change(tmp_path, cache, monkeypatch, change):
    root = make_folder(tmp_path / "f")
    load_tiles("folder", root, size=16)
    if change == "content":
        save(root / "benign" / "0.png", 77)
        os.utime(root / "benign" / "0.png", ns=(1, 1))
    elif change == "new file":
        save(root / "benign" / "9.png", 77)
    elif change == "groups":
        files = [f"{path.parent.name}/{path.name},s" for path in root.glob("*/*.png")]
        (root / "groups.csv").write_text("\n".join(["file,group", *files]))
    elif change == "code":
        monkeypatch.setattr(data_files, "code_of", lambda module: "edited")
    load_tiles("folder", root, size=8 if change == "size" else 16)
    assert len(visible(cache)) == 2


def test_cache_lost_race_uses_the_winner(tmp_path, cache):
    root = make_folder(tmp_path / "f")
    with ThreadPoolExecutor(4) as pool:
        tiles = list(pool.map(lambda _: load_tiles("folder", root, size=16), range(4)))
    assert len({t.images[:].tobytes() for t in tiles}) == 1
    assert len(visible(cache)) == 1


def test_cache_damaged_full_or_forbidden(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "f")
    load_tiles("folder", root, size=16)
    built = visible(cache)[0]
    (built / "images-00000.npy").write_bytes(b"\x93NUMPY")
    refused(lambda: load_tiles("folder", root, size=16), built.name, "damaged", "delete")
    (built / "images-00000.npy").unlink()
    refused(lambda: load_tiles("folder", root, size=16), built.name, "damaged", "delete")
    tile_store.create(built, "images", (1, 3, 16, 16))
    refused(lambda: load_tiles("folder", root, size=16), built.name, "another size", "delete")
    monkeypatch.setattr(tile_cache.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    refused(lambda: load_tiles("folder", root, size=8), str(cache), "free", "make room")
    (tmp_path / "file").write_text("")
    refused(lambda: load_tiles("folder", root, size=8, cache=tmp_path / "file"),
            "file", "cannot be written", "CRC_HELPERS_CACHE")  # fmt: skip
    assert [path.name for path in visible(cache)] == [built.name]


def test_subset_is_in_memory(tmp_path):
    tiles = load_tiles("ebhi", make_ebhi(tmp_path / "e"), size=16)
    few = tiles.subset(np.array([4, 2]))
    assert len(few) == 2 and few.ids.tolist() == tiles.ids[[4, 2]].tolist()
    assert few.images.flags.writeable and few.masks.shape == (2, 16, 16)
    assert len(tiles.subset(tiles.labels >= 0)) == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiles.name = "other"


# --- the split -----------------------------------------------------------------------------------

LABELS = np.repeat([0, 1, -1], [600, 300, 300])
GROUPS = np.array([f"g{i}" for i in np.random.default_rng(0).integers(0, 90, len(LABELS))])


def test_paper_split_counts():
    tiles = fake_tiles(np.repeat([0, 1], [2162, 990]))
    parts = split(tiles, "paper", validation=0)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (1782, 0, 198)
    assert np.bincount(tiles.labels[parts.train]).tolist() == [891, 891]
    assert np.bincount(tiles.labels[parts.test]).tolist() == [99, 99]
    assert len(parts.discarded) == 1172 and set(tiles.labels[parts.discarded]) == {0}
    assert parts.scheme == "paper" and not parts.grouped
    counts = parts.to_frame(tiles)["part"].value_counts().to_dict()
    assert counts == {"train": 1782, "discarded": 1172, "test": 198}
    assert len(split(tiles, "paper").val) == 268


def test_official_partition_is_kept():
    partition = np.where(np.arange(len(LABELS)) % 4 == 0, "test", "train")
    tiles = fake_tiles(LABELS, partition=partition)
    parts = split(tiles)
    labelled = LABELS >= 0
    np.testing.assert_array_equal(parts.test, np.flatnonzero(labelled & (partition == "test")))
    assert (partition[parts.val] == "train").all() and (partition[parts.train] == "train").all()
    assert len(parts.val) == pytest.approx(0.15 * 675, abs=2)
    assert (partition[parts.unlabelled] == "train").all() and len(parts.unlabelled) == 225
    assert parts.scheme == "official" and not parts.grouped


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles(seed):
    parts = split(fake_tiles(LABELS, GROUPS), seed=seed)
    assert parts.grouped and parts.scheme == "grouped"
    train, val, test = (set(GROUPS[i]) for i in (parts.pretraining, parts.val, parts.test))
    assert not train & val and not train & test and not val & test
    assert set(LABELS[parts.unlabelled]) == {-1}
    for label in (0, 1):
        share = (LABELS[parts.test] == label).sum() / np.count_nonzero(label == LABELS)
        assert share == pytest.approx(0.25, abs=0.05)
    everyone = np.concatenate([parts.train, parts.val, parts.test])
    np.testing.assert_array_equal(np.sort(everyone), np.flatnonzero(LABELS >= 0))


@pytest.mark.parametrize("validation", [0.15, 0])
def test_a_monitor_asks_about_slides_that_it_does_not_know(validation):
    tiles = fake_tiles(LABELS, GROUPS)
    parts = split(tiles, validation=validation)
    known, asked = watched(tiles, parts, seed=1)
    assert not set(GROUPS[known]) & set(GROUPS[asked])
    train = np.sort(np.concatenate([known, asked]) if validation == 0 else known)
    np.testing.assert_array_equal(train, parts.train)
    assert len(asked) == (len(parts.val) or pytest.approx(len(train) / 5, rel=0.25))
    assert not np.array_equal(asked, np.sort(asked))  # the first of them are no one slide's


def test_a_monitor_of_one_slide_asks_about_half_of_its_tiles():
    tiles = fake_tiles([0, 1] * 10, np.zeros(20, int))
    none = np.arange(0)
    parts = Split(np.arange(20), none, none, none, True, "grouped", none)
    known, asked = watched(tiles, parts, seed=1)
    assert len(known) == len(asked) == 10 and not set(known) & set(asked)
    assert sorted(tiles.labels[asked]) == [0] * 5 + [1] * 5


def test_random_split_ignores_groups():
    parts = split(fake_tiles(LABELS, GROUPS), "random")
    assert not parts.grouped and parts.scheme == "random"
    assert set(GROUPS[parts.train]) & set(GROUPS[parts.test])
    assert np.bincount(LABELS[parts.test]).tolist() == [150, 75]
    assert len(parts.unlabelled) == 300
    assert split(fake_tiles(LABELS)).scheme == "random"


@pytest.mark.parametrize("scheme", ["auto", "paper", "random"])
def test_split_depends_on_the_seed_alone(scheme):
    first, same, other = (split(fake_tiles(LABELS, GROUPS), scheme, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.test, same.test)
    np.testing.assert_array_equal(first.val, same.val)
    assert not np.array_equal(first.test, other.test)
    assert first.train.dtype == np.int64


def test_split_table():
    tiles = fake_tiles(LABELS, GROUPS)
    parts = split(tiles)
    table = parts.to_frame(tiles)
    assert list(table.columns) == ["id", "group", "label", "part"] and len(table) == len(tiles)
    assert set(table["part"]) == {"train", "val", "test", "unlabelled", "held out"}
    assert table["label"][parts.train[0]] == "HP" and table["label"][parts.unlabelled[0]] == ""


def test_split_refuses():
    tiles = fake_tiles(LABELS, GROUPS)
    with pytest.raises(ValueError, match="auto, paper, random"):
        split(tiles, "by slide")
    with pytest.raises(ValueError, match="fractions"):
        split(tiles, test=0)
    refused(lambda: split(tiles, batch_size=1000), "fake", "fewer than a batch of 1000", "smaller")
    refused(lambda: split(fake_tiles([0] * 20 + [1])), "'SSA'", "in val", "TEST and VALIDATION")
    everything_in_one = np.full(len(LABELS), "g")
    refused(lambda: split(fake_tiles(LABELS, everything_in_one)), "'HP'", "1 group (")
    half = np.where(np.arange(len(LABELS)) % 2, "test", "train")
    refused(lambda: split(fake_tiles(LABELS, GROUPS, half)), "group 'g", "in train and in test")
    only_train = np.full(len(LABELS), "train")
    refused(lambda: split(fake_tiles(LABELS, partition=only_train)), "'HP'", "test")


# --- check ---------------------------------------------------------------------------------------


def test_check_reports_and_draws(tmp_path):
    root = make_folder(tmp_path / "f")
    save(root / "malignant" / "copy.png", 0)  # the same as benign/0.png
    smooth = cv2.resize(pixels(5), (64, 64), interpolation=cv2.INTER_CUBIC)
    save(root / "malignant" / "near1.png", smooth)
    save(root / "malignant" / "near2.png", (smooth * 0.9).astype(np.uint8))
    files = [f"{path.parent.name}/{path.name},{path.stem}" for path in root.glob("*/*.png")]
    (root / "groups.csv").write_text("\n".join(["file,group", *files]))
    sheet = tmp_path / "out" / "sheet.png"
    lines = "\n".join(check(load_tiles("folder", root, size=64), sheet))
    assert "9 tiles of 64×64 px" in lines
    assert "class benign: 3" in lines and "class malignant: 6" in lines
    assert "groups: 6, of 1 to 2 tiles" in lines
    assert "exact duplicates: 1, 1 across groups; benign/0.png = malignant/copy.png" in lines
    assert "near duplicates: 1, 1 across groups; malignant/near1.png = malignant/near2.png" in lines
    with Image.open(sheet) as image:
        assert image.size == (8 * 116 + 4, 2 * 136 + 4)
    assert [path.name for path in visible(sheet.parent)] == ["sheet.png"]


def test_check_of_partitions_and_limits(monkeypatch):
    partition = np.where(np.arange(len(LABELS)) % 4 == 0, "test", "train")
    monkeypatch.setattr(data_check, "NEAR_LIMIT", 100)
    lines = "\n".join(check(fake_tiles(LABELS, GROUPS, partition)))
    assert "partition: test 300, train 900" in lines and "in two partitions: " in lines
    assert "class (none in this task): 300" in lines and "among 100 of the tiles" in lines


def test_check_sheet_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    tiles = fake_tiles([0, 1])
    refused(lambda: check(tiles, tmp_path / "file" / "sheet.png"), "sheet.png", "cannot be written")


# --- prepare -------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    """A figshare record served on this machine; `.files` may be changed, `.asked` is a log."""
    state = types.SimpleNamespace(asked=[], break_after=None, md5=None)
    archive = tmp_path / "made.zip"
    source = make_ebhi(tmp_path / "source")
    with zipfile.ZipFile(archive, "w") as content:
        for path in sorted(source.rglob("*.png")):
            content.write(path, path.relative_to(source))
        content.writestr("EBHI-SEG/padding.bin", bytes(300_000))
    state.archive = archive.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append((self.path, self.headers.get("Range")))
            if self.path == "/record":
                md5 = state.md5 or hashlib.md5(state.archive).hexdigest()
                file = {"name": "EBHI-SEG.zip", "download_url": f"{state.url}/zip",
                        "computed_md5": md5}  # fmt: skip
                return self.reply(200, json.dumps({"files": [file]}).encode())
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            body = state.archive[start:]
            self.reply(206 if start else 200, body, body[: state.break_after])

        def reply(self, status, body, sent=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if sent is None else sent)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def test_prepare_ebhi_downloads_verifies_and_unpacks(tmp_path, record):
    out = tmp_path / "out"
    assert ebhi.download_ebhi(out, f"{record.url}/record") == out / "EBHI-SEG"
    assert len(load_tiles("ebhi", out, size=16)) == 13
    assert sorted(path.name for path in visible(out)) == ["EBHI-SEG", "EBHI-SEG.zip"]
    record.asked.clear()
    assert prepare("ebhi", out) == out and not record.asked


def test_prepare_ebhi_resumes(tmp_path, record):
    out, api = tmp_path / "out", f"{record.url}/record"
    record.break_after = 200_000
    refused(lambda: ebhi.download_ebhi(out, api), "failed", "goes on where it stopped")
    assert (out / "EBHI-SEG.zip.part").stat().st_size == 196_608  # whole blocks
    assert not (out / "EBHI-SEG").exists()
    record.break_after = None
    ebhi.download_ebhi(out, api)
    assert record.asked[-1] == ("/zip", "bytes=196608-")
    assert len(load_tiles("ebhi", out, size=16)) == 13


def test_prepare_ebhi_refuses_another_file(tmp_path, record):
    record.md5 = "0" * 32
    out = tmp_path / "out"
    refused(lambda: ebhi.download_ebhi(out, f"{record.url}/record"), "EBHI-SEG.zip", "MD5")
    assert not visible(out)


def test_prepare_ebhi_without_network(tmp_path):
    out = tmp_path / "out"
    refused(lambda: ebhi.download_ebhi(out, "http://127.0.0.1:9/record"),
            "failed", "by hand", ebhi.EBHI_PAGE, str(out))  # fmt: skip


@pytest.mark.parametrize("nested", ["", "deep/er/"])
def test_prepare_ebhi_takes_an_archive_fetched_by_hand(tmp_path, nested):
    source, out = make_ebhi(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    with zipfile.ZipFile(out / "21540159.zip", "w") as content:
        for path in source.rglob("*.png"):
            content.write(path, nested + str(path.relative_to(source / "EBHI-SEG")))
    prepare("ebhi", out)
    assert len(load_tiles("ebhi", out, size=16)) == 13


def member(name, mode=0o100644, content=b"x"):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


@pytest.mark.parametrize(
    "entry, words",
    [
        (member("../evil.png"), ["../evil.png", "leaves"]),
        (member("/etc/evil.png"), ["/etc/evil.png", "leaves"]),
        (member("C:/evil.png"), ["C:/evil.png", "leaves"]),
        (member("a/link.png", 0o120777, b"/etc/passwd"), ["a/link.png", "is a link"]),
        (member("big.png", content=bytes(3000)), ["more than 2,000 bytes"]),
        (member("readme.txt"), ["no folder Normal/image", "not EBHI-Seg"]),
    ],
)
def test_prepare_ebhi_unpacks_safely(tmp_path, monkeypatch, entry, words):
    monkeypatch.setattr(ebhi, "UNPACKED_LIMIT", 2000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as content:
        content.writestr(*entry)
    refused(lambda: prepare("ebhi", tmp_path), "x.zip", *words)
    assert [path.name for path in visible(tmp_path)] == ["x.zip"]


def test_prepare_ebhi_damaged_archive(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK not really")
    refused(lambda: prepare("ebhi", tmp_path), "x.zip", "damaged", "fetch it again")


def test_prepare_others(tmp_path):
    refused(lambda: prepare("mhist"), "form", "annotations.csv")
    refused(lambda: prepare("folder"), "'folder'", "--data-root")
    out = tmp_path / "tissue"
    assert prepare("synthetic", out, n=6, seed=2, shortcut="ink") == out
    assert len(pd.read_csv(out / "annotations.csv")) == 6
    assert '"ink"' in (out / "about.json").read_text()


def test_what_a_dead_writers_helpers_leave_while_another_writes_is_cleared_too(tmp_path):
    final = tmp_path / "made"
    with tile_cache.whole_folder(final) as folder:
        (folder / "own").touch()
        orphan = tmp_path / ".made.0123abcd" / "images"
        orphan.mkdir(parents=True)
        (orphan / "late.png").touch()
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["made"]
    assert (final / "own").is_file()
