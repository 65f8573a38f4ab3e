"""The four sources, the cache, the split, check and prepare; faults/ has what is refused."""

import dataclasses
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pooch
import pytest
from PIL import Image

from crc_helpers.course.check import check, prepare
from crc_helpers.data import Tiles, load_tiles, split
from crc_helpers.runs import UserError
from crc_helpers.sources import ebhi
from crc_helpers.sources import files as data_files
from crc_helpers.sources import images as image_reader
from crc_helpers.sources.store import TileStore, save_shard

HEADER = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
ROWS = """MHIST_aaa.png,HP,0,train
MHIST_aab.png,SSA,7,train
MHIST_aac.png,HP,3,test
MHIST_aad.png,SSA,4,test""".splitlines()


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
    for seed, row in enumerate(ROWS):
        save(root / "images" / row.split(",")[0], seed)
    (root / "annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def make_folder(root, classes=("benign", "malignant"), count=3):
    for c, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", 10 * c + i)
    return root


def make_groups(root, rows):
    (root / "groups.csv").write_text("\n".join(["file,group", *rows]), encoding="utf-8")


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
    ids, images = np.arange(len(labels)).astype(str), np.zeros((len(labels), 3, 2, 2), np.uint8)
    known = (labels, class_names, ids, groups, partition, None, None, None, None)
    return Tiles(images, *known, "fake", "", "")


def refused(call, *words):
    """`call` raises a UserError of one line that holds all the words."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in: {message}"


# --- The sources ---------------------------------------------------------------------------------


def test_mhist_as_published(tmp_path):
    tiles = load_tiles("mhist", make_mhist(tmp_path / "mhist"), size=16)
    assert tiles.class_names == ("HP", "SSA")
    assert tiles.labels.tolist() == [0, 1, 0, 1] and tiles.labels.dtype == np.int64
    assert tiles.votes.tolist() == [0, 7, 3, 4] and tiles.votes.dtype == np.int64
    assert tiles.partition.tolist() == ["train", "train", "test", "test"]
    assert tiles.ids[0] == "MHIST_aaa.png" and tiles.groups is None and tiles.masks is None
    np.testing.assert_array_equal(tiles.images[2], pixels(2).transpose(2, 0, 1))
    assert tiles.mpp == 2.0 * 224 / 16


def test_mhist_of_an_awkward_table_with_slides(tmp_path, capsys):
    root = make_mhist(tmp_path / "mhist")
    header = " image name ,MAJORITY VOTE LABEL,number of annotators  who selected SSA (out of 7),"
    rows = [f"{r.lower().replace('mhist', 'MHIST')},slide{i // 2},x" for i, r in enumerate(ROWS)]
    lines = [header + "partition,Slide,Comment", *rows, ",,,,,", ""]
    (root / "annotations.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    tiles = load_tiles("mhist", root, size=16)
    assert tiles.labels.tolist() == [0, 1, 0, 1]
    assert tiles.groups.tolist() == ["slide0", "slide0", "slide1", "slide1"]
    assert any("columns not used: Comment" in note for note in tiles.notes)
    assert "Comment" in capsys.readouterr().out


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("L", (16, 16), 90), (90, 90, 90)),
        (Image.new("1", (16, 16), 1), (255, 255, 255)),
        (Image.new("LA", (16, 16), (90, 0)), (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGB", (16, 16), (9, 8, 7)).quantize(4), (9, 8, 7)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), (255, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_other_colour_modes_are_converted_and_said(tmp_path, image, expected):
    root = make_folder(tmp_path / "f", count=1)
    save(root / "benign" / ("x.tif" if image.mode == "CMYK" else "x.png"), image)
    tiles = load_tiles("folder", root, size=16)
    assert tuple(tiles.images[1, :, 5, 5]) == expected  # the second by name
    assert any(f"1 {image.mode}: converted to RGB" in note for note in tiles.notes)


def test_folder_of_any_size(tmp_path, capsys):
    root = make_folder(tmp_path / "f")
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # the central square
    save(root / "malignant" / "wide.JPG", wide)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees
    Image.fromarray(pixels(7)).save(root / "malignant" / "turned.png", exif=exif)
    tiles = load_tiles("folder", root, size=16)
    assert tiles.labels.tolist() == [0] * 3 + [1] * 5
    assert tiles.images[tiles.ids == "malignant/wide.JPG"].min() > 240
    turned = np.rot90(pixels(7), -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles.images[tiles.ids == "malignant/turned.png"][0], turned)
    said = "7 of 16×16 px, 1 of 1 other sizes: cropped to their central square and resized to 16 px"
    assert said in capsys.readouterr().out and any(said in note for note in tiles.notes)
    load_tiles("folder", root, size=16)
    assert capsys.readouterr().out == ""  # said once


def test_what_a_folder_holds_besides_is_said(tmp_path, capsys):
    root = make_folder(tmp_path / "f")
    for system in ("__MACOSX", "lost+found", "@eaDir", ".thumbnails"):
        (root / system / "x").mkdir(parents=True)
    (root / "benign" / "empty").mkdir()
    for name in ("a.webp", "b.WEBP", "notes.txt", ".DS_Store", "._0.png"):
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
    for part, count in (("train", 4), ("Test", 2), ("val", 1)):
        make_folder(tmp_path / "parts" / part, count=count)
    tiles = load_tiles("folder", tmp_path / "parts", size=16)
    assert tiles.class_names == ("benign", "malignant") and tiles.groups is None
    parts = split(tiles)
    assert parts.scheme == "official" and set(tiles.partition) == {"train", "test"}
    assert len(parts.test) == 4 and "val are joined to train" in capsys.readouterr().out
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
    slides = {"ä": "ä", "b": "a\u0308"}  # the same, written in both forms
    rows = [f"{c}\\ü{i}.png;{'NA' if i else slides[c]}" for c in "äb" for i in range(2)]
    (root / "groups.csv").write_text("\n".join(["sep=;", "File;Group", *rows]), encoding="utf-8")
    tiles = load_tiles("folder", root, size=16, classes=["b", "ä"])
    assert tiles.groups.tolist() == ["ä", "NA", "ä", "NA"]
    assert tiles.labels.tolist() == [1, 1, 0, 0]
    (root / "groups.csv").write_text("sep=;\nfile;group\nx.png;1\n", encoding="utf-8")
    refused(lambda: load_tiles("folder", root, size=16), "line 3: 'x.png' has no file")


def test_classes_are_compared_as_text_and_are_two(tmp_path):
    root = make_folder(tmp_path / "f", classes=("0", "1", "10"), count=1)
    assert load_tiles("folder", root, size=16, classes=[0, 10]).class_names == ("0", "10")
    for one in (["1"], "1", ["1", "1"]):
        refused(lambda one=one: load_tiles("folder", root, size=16, classes=one), "one class only")


@pytest.mark.parametrize("inner", ["", "EBHI-SEG"])
def test_ebhi_quirks(tmp_path, inner):
    tiles = load_tiles("ebhi", make_ebhi(tmp_path / "e") / inner, size=16)
    assert len(tiles) == len(set(tiles.ids)) == 13  # the doubled prefix is left out
    assert tiles.class_names == ("Low-grade IN", "Adenocarcinoma")
    assert np.bincount(tiles.labels + 1).tolist() == [8, 3, 2]
    assert set(tiles.groups) == {"GTXC1900", "GTXC1901", "GTXC1902", "GT2012149"}
    assert tiles.mask_name == "glands"
    assert tiles.masks[:].reshape(13, -1).max(axis=1).tolist() == [0, 1, 0, 1, 0, 0, 1] + [0, 1] * 3
    assert any("GTGT2012149" in note for note in tiles.notes)
    few = tiles.subset(np.array([4, 2]))
    assert few.ids.tolist() == tiles.ids[[4, 2]].tolist() and few.masks.shape == (2, 16, 16)
    assert few.images.flags.writeable and len(tiles.subset(tiles.labels >= 0)) == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiles.name = "other"


def test_ebhi_classes_need_no_new_decoding(tmp_path, monkeypatch):
    root = make_ebhi(tmp_path / "e")
    tiles = load_tiles("ebhi", root, size=16, classes=("Polyp", "Normal"))
    assert tiles.class_names == ("Polyp", "Normal")
    assert np.bincount(tiles.labels + 1).tolist() == [9, 2, 2]
    monkeypatch.setattr(image_reader, "decode", None)
    everything = load_tiles("ebhi", root, size=16, classes="all")
    assert everything.class_names == ebhi.EBHI_CLASSES and everything.labels.min() == 0
    refused(lambda: load_tiles("ebhi", root, size=16, classes=["Polyp", "HP"]), "'HP'", "Polyp")


def test_synthetic_tiles_of_two_classes(cache):
    tiles = load_tiles(n=20, seed=1, size=48)
    assert tiles.images.shape == (20, 3, 48, 48) and tiles.images[:].std() > 20
    assert tiles.labels.tolist() == (tiles.votes >= 4).astype(int).tolist()
    assert len(set(tiles.groups)) == 4 and tiles.partition is None
    assert tiles.mask_name == "diagnostic region" and tiles.masks.shape == (20, 48, 48)
    assert tiles.mpp == pytest.approx(448 / 48)  # the same field of view, coarser
    assert list(tiles.metadata) == ["Scanner", "Polyp Size (mm)", "Colon Site"]
    few = tiles.subset(np.array([3, 1])).metadata["Scanner"]
    assert few.tolist() == tiles.metadata["Scanner"][[3, 1]].tolist()
    turned = load_tiles(n=20, seed=1, size=48, classes=["SSA", "HP"])  # the same tiles
    assert turned.class_names == ("SSA", "HP")
    np.testing.assert_array_equal(turned.labels, 1 - tiles.labels)
    assert len(list(cache.glob("synthetic-*"))) == 1


def test_synthetic_tiles_of_four_classes():
    tiles = load_tiles(n=240, seed=2, size=48, classes="all")
    assert tiles.class_names == ("Normal", "HP", "SSA", "Tubular adenoma")
    assert np.bincount(tiles.labels, minlength=4).min() > 20 and tiles.votes is None
    assert tiles.masks[:].any((1, 2)).all()
    glands = [tiles.masks[tiles.labels == c].mean() for c in range(4)]
    assert min(glands[0], glands[3]) > max(glands[1], glands[2])  # whole crypts, not lower halves
    assert tiles.metadata["Polyp Size (mm)"].between(1, 40).all()
    parts = split(tiles, seed=1)
    owners = [set(tiles.groups[getattr(parts, p)]) for p in ("train", "val", "test")]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 40


# --- The cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["content", "groups", "code"])
def test_cache_notices_a_change(tmp_path, cache, monkeypatch, change):
    root = make_folder(tmp_path / "f")
    load_tiles("folder", root, size=16)
    if change == "content":
        os.utime(save(root / "benign" / "0.png", 77), ns=(1, 1))
    elif change == "groups":
        make_groups(root, [f"{path.parent.name}/{path.name},s" for path in root.glob("*/*.png")])
    elif change == "code":
        monkeypatch.setattr(data_files, "code_of", lambda module: "edited")
    load_tiles("folder", root, size=16)
    assert len(visible(cache)) == 2


def test_cache_full_or_forbidden(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "f")
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", Mock(side_effect=OSError(28, "No space left on device")))
        words = [str(cache), "cannot be written", "No space left", "CRC_HELPERS_CACHE"]
        refused(lambda: load_tiles("folder", root, size=8), *words)
    (tmp_path / "file").write_text("")
    words = ["file", "cannot be written", "CRC_HELPERS_CACHE"]
    refused(lambda: load_tiles("folder", root, size=8, cache=tmp_path / "file"), *words)
    assert not visible(cache)


def test_the_store_is_like_an_array(tmp_path):
    """Eleven tiles in shards of four."""
    array = np.random.default_rng(0).integers(0, 256, (11, 3, 5, 5), np.uint8)
    for number in range(3):
        save_shard(tmp_path, number, images=array[4 * number : 4 * number + 4])
    stored = TileStore(tmp_path, "images")
    assert (stored.shape, stored.ndim, stored.dtype, len(stored)) == ((11, 3, 5, 5), 4, "uint8", 11)
    lists = [[10, 0, 10], np.array([], int), np.arange(11) % 2 == 0]
    slices = [slice(None), slice(2, 9, 3), slice(8, 2, -1)]
    for key in (0, -1, np.int64(7), (5, 0), *slices, *lists, np.s_[1:6, :, ::2]):
        np.testing.assert_array_equal(stored[key], array[key])
    np.testing.assert_array_equal(np.stack(list(stored)), array)
    np.testing.assert_array_equal(stored.pick(np.array([9, 3, 4]))[[2, 0]], array[[4, 9]])
    assert len(stored.pick(np.arange(11) > 8)) == 2 and len(stored) == 11
    with pytest.raises(IndexError):
        stored[11]
    stored.files[2].write_bytes(stored.files[2].read_bytes()[:-1])
    with pytest.raises(OSError, match="cut short"):
        stored[10]


# --- The split -----------------------------------------------------------------------------------

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
    parts = split(fake_tiles(LABELS, partition=partition))
    np.testing.assert_array_equal(parts.test, np.flatnonzero((LABELS >= 0) & (partition == "test")))
    assert (partition[parts.val] == "train").all() and (partition[parts.train] == "train").all()
    assert len(parts.val) == pytest.approx(0.15 * 675, abs=2)
    assert (partition[parts.unlabelled] == "train").all() and len(parts.unlabelled) == 225
    assert parts.scheme == "official" and not parts.grouped


@pytest.mark.parametrize("seed", range(2))
def test_no_group_straddles(seed):
    tiles = fake_tiles(LABELS, GROUPS)
    parts = split(tiles, seed=seed)
    assert parts.grouped and parts.scheme == "grouped"
    assert not np.array_equal(parts.test, split(tiles, seed=seed + 2).test)
    train, val, test = (set(GROUPS[i]) for i in (parts.pretraining, parts.val, parts.test))
    assert not train & val and not train & test and not val & test
    assert set(LABELS[parts.unlabelled]) == {-1}
    for label in (0, 1):
        share = (LABELS[parts.test] == label).sum() / np.count_nonzero(label == LABELS)
        assert share == pytest.approx(0.25, abs=0.05)
    everyone = np.concatenate([parts.train, parts.val, parts.test])
    np.testing.assert_array_equal(np.sort(everyone), np.flatnonzero(LABELS >= 0))
    table = parts.to_frame(tiles)
    assert list(table.columns) == ["id", "group", "label", "part"] and len(table) == len(tiles)
    assert set(table["part"]) == {"train", "val", "test", "unlabelled", "held out"}
    assert table["label"][parts.train[0]] == "HP" and table["label"][parts.unlabelled[0]] == ""


@pytest.mark.parametrize("seed", range(3))
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
    alone = split(fake_tiles([0] * 40 + [1] * 3), "random", seed=seed)
    assert [(part >= 40).sum() for part in (alone.train, alone.val, alone.test)] == [1, 1, 1]


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


# --- Check and prepare ---------------------------------------------------------------------------


def test_check_reports_and_draws(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    root = make_folder(tmp_path / "f")
    save(root / "malignant" / "copy.png", 0)  # the same as benign/0.png
    smooth = cv2.resize(pixels(5), (64, 64), interpolation=cv2.INTER_CUBIC)
    save(root / "malignant" / "near1.png", smooth)
    save(root / "malignant" / "near2.png", (smooth * 0.9).astype(np.uint8))
    make_groups(root, [f"{p.parent.name}/{p.name},{p.stem}" for p in root.glob("*/*.png")])
    sheet = tmp_path / "out" / "sheet.png"
    lines = "\n".join(check(load_tiles("folder", "~/f", size=64), "~/out/sheet.png"))
    assert "9 tiles of 64×64 px" in lines
    assert "class benign: 3" in lines and "class malignant: 6" in lines
    assert "groups: 6, of 1 to 2 tiles" in lines
    assert "exact duplicates: 1, 1 across groups; benign/0.png = malignant/copy.png" in lines
    assert "near duplicates: 1, 1 across groups; malignant/near1.png = malignant/near2.png" in lines
    with Image.open(sheet) as image:
        assert image.size == (8 * 116 + 4, 2 * 136 + 4)
    assert [path.name for path in visible(sheet.parent)] == ["sheet.png"]


@pytest.fixture
def record(tmp_path):
    """A record of one archive on this machine, as `ebhi_record` gives it, by its MD5."""
    served = tmp_path / "served"
    served.mkdir()
    source = make_ebhi(tmp_path / "source") / "EBHI-SEG"
    archive = Path(shutil.make_archive(served / "EBHI-SEG", "zip", source))
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": Mock()}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=served))
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


def test_a_network_that_is_down_is_said(tmp_path, monkeypatch):
    dead = {"http": "http://127.0.0.1:9", "https": "http://127.0.0.1:9"}
    monkeypatch.setattr("requests.utils.getproxies", lambda: dead)
    monkeypatch.setattr("requests.sessions.get_environ_proxies", lambda *_, **__: dead)
    refused(lambda: ebhi.download_ebhi(tmp_path / "out"), "not downloaded", "by hand")
