"""The four sources, what is refused and how it is said, the cache, the split, check and prepare."""

import dataclasses
import os
import shutil
import threading
import types
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pooch
import pytest
from PIL import Image

from crc_helpers.course.check import check, prepare
from crc_helpers.data import Confounders, Tiles, load_tiles, split
from crc_helpers.runs import UserError
from crc_helpers.sources import ebhi
from crc_helpers.sources import files as data_files
from crc_helpers.sources import images as image_reader
from crc_helpers.sources.store import TileStore, save_shard

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
    """`call` raises a UserError of one line that holds all the words."""
    with pytest.raises(UserError) as caught:
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


# --- any source ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, missing", [("mhist", "annotations.csv"), ("ebhi", "Normal")])
def test_wrong_root(tmp_path, name, missing):
    refused(lambda: load_tiles(name, tmp_path), missing, "missing")


def test_unknown_source():
    refused(lambda: load_tiles("tcga"), "'tcga'", "synthetic, mhist, ebhi, folder")


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


def test_folder_without_images(tmp_path):
    make_folder(tmp_path / "f")
    (tmp_path / "f" / "empty").mkdir()
    refused(lambda: load_tiles("folder", tmp_path / "f"), "empty: no image in it", "elsewhere")
    words = ["no folder of images in it", "give the folder above"]
    refused(lambda: load_tiles("folder", tmp_path / "f" / "benign"), *words)


def test_what_a_folder_holds_besides_is_said(tmp_path, capsys):
    root = make_folder(tmp_path / "f")
    for system in ("__MACOSX", "lost+found", "@eaDir", ".thumbnails"):
        (root / system / "x").mkdir(parents=True)
    (root / "benign" / "empty").mkdir()
    for name in ("a.webp", "b.WEBP", "notes.txt", ".DS_Store"):
        (root / "benign" / name).touch()
    for name in ("Groups.csv", "groups.csv.txt", "groups.xlsx"):
        (root / name).write_text("file,group")
    save(root / "stray.png")
    tiles = load_tiles("folder", root, size=16)
    assert tiles.class_names == ("benign", "malignant") and tiles.groups is None
    said = capsys.readouterr().out
    assert "benign: left out 1 × .txt, 2 × .webp\n" in said
    for name in ("Groups.csv", "groups.csv.txt", "groups.xlsx"):
        assert f"{name}: NOT read; groups come from a text table, groups.csv" in said
    assert "NOT read: 1 images beside the folders of the classes" in said


def test_parts_cases_and_wrappers_are_understood(tmp_path, capsys):
    """train/<class>, <class>/<case> and images/images/<class>."""
    make_folder(tmp_path / "parts" / "train", count=4)
    make_folder(tmp_path / "parts" / "Test", count=2)
    tiles = load_tiles("folder", tmp_path / "parts", size=16)
    assert tiles.class_names == ("benign", "malignant") and tiles.groups is None
    assert split(tiles).scheme == "official" and set(tiles.partition) == {"train", "test"}
    assert len(split(tiles).test) == 4
    make_folder(tmp_path / "parts" / "val", count=1)
    assert len(split(load_tiles("folder", tmp_path / "parts", size=16)).test) == 4
    assert "val are joined to train" in capsys.readouterr().out
    for case in "pqr":
        for name in ("benign", "malignant"):
            save(tmp_path / "cases" / name / f"{case} {name[0]}" / "1.png")
    tiles = load_tiles("folder", tmp_path / "cases", size=16)
    assert tiles.class_names == ("benign", "malignant") and len(set(tiles.groups)) == 6
    assert "taken for slides or cases" in capsys.readouterr().out
    save(tmp_path / "cases" / "benign" / "bare.png")
    words = ["bare.png: lies beside folders of slides or cases", "groups.csv"]
    refused(lambda: load_tiles("folder", tmp_path / "cases", size=16), *words)
    make_folder(tmp_path / "wrapped" / "images" / "images")
    tiles = load_tiles("folder", tmp_path / "wrapped", size=16)
    assert tiles.class_names == ("benign", "malignant")
    save(tmp_path / "deep" / "benign" / "case" / "block" / "1.png")
    refused(lambda: load_tiles("folder", tmp_path / "deep", size=16), "too deep", "--data-root")


def test_names_are_matched_in_any_unicode_form_and_case(tmp_path):
    """As macOS writes them, as Windows does, and with Excel's own line above the header."""
    root = tmp_path / "f"
    for name in ("a\u0308", "b"):  # ä in two characters
        for i in range(2):
            save(root / name / f"u\u0308{i}.PNG", i)
    rows = [f"{c}/ü{i}.png;{c}{i}" for c in "äb" for i in range(2)]
    (root / "groups.csv").write_text("\n".join(["sep=;", "file;group", *rows]), encoding="utf-8")
    tiles = load_tiles("folder", root, size=16, classes=["b", "ä"])
    assert tiles.groups.tolist() == ["ä0", "ä1", "b0", "b1"] and tiles.labels.tolist() == [
        1,
        1,
        0,
        0,
    ]
    (root / "groups.csv").write_text("sep=;\nfile;group\nx.png;1\n", encoding="utf-8")
    refused(lambda: load_tiles("folder", root, size=16), "line 3: 'x.png' has no file")


def test_classes_are_compared_as_text(tmp_path):
    root = make_folder(tmp_path / "f", classes=("0", "1", "10"))
    assert load_tiles("folder", root, size=16, classes=[0, 10]).class_names == ("0", "10")


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


# --- the cache -----------------------------------------------------------------------------------


def test_cache_opens_and_never_decodes_twice(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "f")
    first = load_tiles("folder", root, size=16)
    monkeypatch.setattr(image_reader, "decode", None)
    again = load_tiles("folder", root, size=16)
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


def test_cache_full_or_forbidden(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "f")
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(np, "save", Mock(side_effect=full))
        words = [str(cache), "cannot be written", "No space left", "CRC_HELPERS_CACHE"]
        refused(lambda: load_tiles("folder", root, size=8), *words)
    (tmp_path / "file").write_text("")
    words = ["file", "cannot be written", "CRC_HELPERS_CACHE"]
    refused(lambda: load_tiles("folder", root, size=8, cache=tmp_path / "file"), *words)
    assert not visible(cache)


def test_a_path_in_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CRC_HELPERS_CACHE", "~/tiles")
    make_folder(tmp_path / "f")
    assert load_tiles("folder", "~/f", size=16).images.folder.parent == tmp_path / "tiles"


@pytest.fixture
def store(tmp_path):
    """Eleven tiles in shards of four, and the array they came from."""
    array = np.random.default_rng(0).integers(0, 256, (11, 3, 5, 5), np.uint8)
    for number in range(3):
        save_shard(tmp_path, number, images=array[4 * number : 4 * number + 4])
    return TileStore(tmp_path, "images"), array


@pytest.mark.parametrize(
    "key",
    [0, -1, np.int64(7), slice(None), slice(2, 9, 3), slice(8, 2, -1), [10, 0, 10],
     np.array([], int), np.arange(11) % 2 == 0, (5, 0),
     (slice(1, 6), slice(None), slice(None, None, 2))],
    ids=str,
)  # fmt: skip
def test_the_store_reads_what_an_array_would(store, key):
    stored, array = store
    np.testing.assert_array_equal(stored[key], array[key])


def test_the_store_is_like_an_array(store):
    stored, array = store
    assert (stored.shape, stored.ndim, stored.dtype, len(stored)) == ((11, 3, 5, 5), 4, "uint8", 11)
    np.testing.assert_array_equal(np.asarray(stored), array)
    np.testing.assert_array_equal(np.stack(list(stored)), array)
    some = stored.pick(np.array([9, 3, 4]))
    np.testing.assert_array_equal(some[[2, 0]], array[[4, 9]])
    assert len(stored.pick(np.arange(11) > 8)) == 2 and len(stored) == 11
    with pytest.raises(IndexError):
        stored[11]
    stored.files[2].write_bytes(stored.files[2].read_bytes()[:-1])
    with pytest.raises(OSError, match="cut short"):
        stored[10]


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


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("tiles, ill", [([5] * 10, 3), ([60, 3, 2, 2, 1], 5), ([1] * 40, 3)])
def test_a_few_patients_make_three_parts(tiles, ill, seed):
    """Of each class there is one group in each part, though no choice of groups has the shares."""
    groups = np.repeat(np.arange(len(tiles)), tiles)
    labels = (groups < ill).astype(int)
    if ill == len(tiles):  # every patient has tiles of both classes
        labels = np.arange(len(groups)) % 2
    parts = split(fake_tiles(labels, groups.astype(str)), seed=seed)
    for part in (parts.train, parts.val, parts.test):
        assert set(labels[part]) == {0, 1}
    assert not set(groups[parts.test]) & set(groups[np.append(parts.train, parts.val)])
    assert not set(groups[parts.val]) & set(groups[parts.train])


def test_three_tiles_of_a_class_make_three_parts():
    parts = split(fake_tiles([0] * 40 + [1] * 3), "random")
    assert [np.isin([40, 41, 42], p).sum() for p in (parts.train, parts.val, parts.test)] == [1] * 3


def test_split_refuses():
    tiles = fake_tiles(LABELS, GROUPS)
    with pytest.raises(ValueError, match="auto, paper, random"):
        split(tiles, "by slide")
    with pytest.raises(ValueError, match="fractions"):
        split(tiles, test=0)
    refused(lambda: split(fake_tiles([0] * 20 + [1])), "'SSA'", "in val", "1 tile:", "TEST and VAL")
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


def test_check_sheet_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    tiles = fake_tiles([0, 1])
    refused(lambda: check(tiles, tmp_path / "file" / "sheet.png"), "sheet.png", "cannot be written")


# --- prepare -------------------------------------------------------------------------------------


def make_archive(path, source, nested=""):
    with zipfile.ZipFile(path, "w") as content:
        for file in source.rglob("*.png"):
            content.write(file, nested + str(file.relative_to(source / "EBHI-SEG")))
    return path


@pytest.fixture
def record(tmp_path):
    """A record of one archive on this machine, as `ebhi_record` gives it, by its MD5."""
    served = tmp_path / "served"
    served.mkdir()
    archive = make_archive(served / "EBHI-SEG.zip", make_ebhi(tmp_path / "source"))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=served))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address, right = f"http://127.0.0.1:{server.server_port}/", pooch.file_hash(archive, "md5")
    yield lambda out, md5=right: pooch.create(out, address, registry={archive.name: f"md5:{md5}"})
    server.shutdown()
    server.server_close()


def test_prepare_ebhi_downloads_verifies_and_unpacks(tmp_path, record):
    out = tmp_path / "out"
    words = ["EBHI-Seg: not downloaded", "hash", "by hand", ebhi.EBHI_PAGE, str(out)]
    refused(lambda: ebhi.download_ebhi(out, partial(record, md5="0" * 32)), *words)
    assert not visible(out)
    assert ebhi.download_ebhi(out, record) == out / "EBHI-SEG"
    assert len(load_tiles("ebhi", out, size=16)) == 13
    assert sorted(path.name for path in visible(out)) == ["EBHI-SEG", "EBHI-SEG.zip"]
    assert prepare("ebhi", out) == out  # and asks for nothing
    shutil.rmtree(next(out.rglob("Polyp/image")))
    refused(lambda: prepare("ebhi", out), "Polyp/image: missing")


def test_the_record_is_asked_for_by_its_doi(tmp_path, monkeypatch):
    """Figshare's answers as pooch asks for them, and a network that is down."""
    page = f"{ebhi.EBHI_PAGE}/1"
    answers = {
        "https://doi.org/10.6084/m9.figshare.21540159.v1": {},
        "https://api.figshare.com/v2/articles?doi=10.6084/m9.figshare.21540159.v1": [{"id": 7}],
        "https://api.figshare.com/v2/articles/7/versions/1": {
            "files": [{"name": "EBHI-SEG.zip", "download_url": "x", "computed_md5": "abc"}]
        },
    }

    def get(url, **_):
        return types.SimpleNamespace(
            url=page, json=lambda: answers[url], status_code=200, raise_for_status=lambda: None
        )

    with monkeypatch.context() as patch:
        patch.setattr("requests.get", get)
        assert ebhi.ebhi_record(tmp_path).registry == {"EBHI-SEG.zip": "md5:abc"}
    dead = {"http": "http://127.0.0.1:9", "https": "http://127.0.0.1:9"}
    monkeypatch.setattr("requests.utils.getproxies", lambda: dead)
    monkeypatch.setattr("requests.sessions.get_environ_proxies", lambda *_, **__: dead)
    refused(lambda: ebhi.download_ebhi(tmp_path / "out"), "not downloaded", "by hand")


@pytest.mark.parametrize("nested", ["", "deep/er/"])
def test_prepare_ebhi_takes_an_archive_fetched_by_hand(tmp_path, nested):
    out = tmp_path / "out"
    out.mkdir()
    make_archive(out / "21540159.zip", make_ebhi(tmp_path / "source"), nested)
    prepare("ebhi", out)
    assert len(load_tiles("ebhi", out, size=16)) == 13


def test_prepare_others(tmp_path):
    refused(lambda: prepare("mhist"), "form", "annotations.csv")
    refused(lambda: prepare("folder"), "'folder'", "--data-root")
    out = tmp_path / "tissue"
    assert prepare("synthetic", out, Confounders("ink"), n=6, seed=2) == out
    assert len(pd.read_csv(out / "annotations.csv")) == 6
    assert '"ink"' in (out / "about.json").read_text()
