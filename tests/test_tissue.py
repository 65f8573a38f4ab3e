"""The tissue generator keeps its promises: reproducible, bounded, and right about its labels."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest

from crc_helpers.tissue import cells as tissue_cells
from crc_helpers.tissue import parameters as tissue_parameters
from crc_helpers.tissue import section as tissue_section
from crc_helpers.tissue import slide as tissue_slide
from crc_helpers.tissue.cohort import Cohort, make_cohort
from crc_helpers.tissue.parameters import TissueParameters
from crc_helpers.tissue.slide import divide, draw, draw_slide

MASKS = ("glands", "lumina", "nuclei", "diagnostic", "ink")
FIELDS = {f.name: f for f in fields(TissueParameters)}


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort(4000, seed=0)


@pytest.fixture(scope="module")
def drawings(cohort) -> list[tissue_slide.Drawing]:
    return [tile for i in range(6) for tile in cohort.one(i).draw()]


def pixels(parameters: TissueParameters, seed: int) -> bytes:
    drawing = draw(parameters, seed, size=96)
    return b"".join(getattr(drawing, f.name).tobytes() for f in fields(drawing))


# --- One tile ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, mpp", [(96, 2.0), (100, 4.0), (224, 1.0), (320, 2.0), (97, 3.0)])
def test_size_and_scale_are_free(size, mpp):
    drawing = draw(TissueParameters(severity=0.9), 3, size, mpp)
    assert drawing.image.shape == (3, size, size)
    assert drawing.diagnostic.shape == (size, size) and drawing.diagnostic.any()


def test_the_same_seed_draws_the_same_bytes():
    p = TissueParameters(severity=0.7)
    assert pixels(p, 5) == pixels(p, 5)
    assert pixels(p, 5) != pixels(p, 6)


@pytest.mark.parametrize("item", fields(TissueParameters), ids=lambda f: f.name)
def test_out_of_bounds_names_field_value_and_bounds(item):
    low, high = item.metadata["bounds"]
    for value in (low - 1, high + 1, float("nan")):
        with pytest.raises(ValueError, match=item.name) as error:
            TissueParameters(**{item.name: value})
        assert str(value) in str(error.value) and f"[{low}, {high}]" in str(error.value)


def test_the_diagnostic_region_is_there_and_of_moderate_size(drawings):
    shares = np.array([drawing.diagnostic.mean() for drawing in drawings])
    assert shares.min() > 0.01 and shares.max() < 0.55
    assert 0.1 < shares.mean() < 0.35


# --- One feature at a time -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["haematoxylin", "stain_turn", "lamp", "focus", "noise"])
def test_colour_and_optics_leave_every_mask(name):
    low, high = next(f for f in fields(TissueParameters) if f.name == name).metadata["bounds"]
    one, two = (draw(TissueParameters(**{name: value}), 4, size=96) for value in (low, high))
    for mask in MASKS:
        np.testing.assert_array_equal(getattr(one, mask), getattr(two, mask))
    assert (one.image != two.image).any()


def test_severity_widens_the_base_step_by_step():
    films = [
        [
            draw(TissueParameters(severity=s, branching=0), seed).lumina.mean()
            for s in (0.1, 0.4, 0.7, 1.0)
        ]
        for seed in range(4)
    ]
    assert (np.diff(np.mean(films, 0)) > 0).all()


GEOMETRY = ["severity", "gape", "prolapse", "cut_angle", "crypt_spacing", "dysplasia"]


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("angle", [4.0, pytest.param(60.0, marks=pytest.mark.nightly)])
def test_a_slider_makes_a_smooth_film(name, angle):
    """Between two of 61 frames no more than a few of a hundred pixels change, and some do."""
    base = TissueParameters(severity=0.75, cut_angle=angle)
    films = [
        draw(replace(base, **{name: float(value)}), 6, size=112, mpp=4.0)
        for value in np.linspace(*FIELDS[name].metadata["bounds"], 61)
    ]
    steps = [
        ((one.glands != two.glands) | (one.lumina != two.lumina)).mean()
        for one, two in pairwise(films)
    ]
    # The cut and the crypts' places move the whole picture; their films need more frames.
    most = {"cut_angle": 0.12, "base_position": 0.10, "crypt_spacing": 0.10}.get(name, 0.03)
    assert max(steps) < most and sum(steps) > 0.002, (max(steps), sum(steps))
    assert max(steps) < 8 * np.mean(steps) + 0.01


def cells(dysplasia: float, seed: int) -> list[float]:
    """Of the epithelium: shares of nuclei and mucin; mean depth of nuclei, micrometres."""
    p = TissueParameters(severity=0, serration=0, goblet_share=0.7, dysplasia=dysplasia)
    scene = tissue_section.cut([p], seed, 160, 2.0)
    to_membrane, to_lumen = tissue_section.settle(scene)
    tissue_cells.draw_cells(scene, to_lumen)
    layers = scene.layers
    epithelium = (layers["gland"] > 0) & (layers["lumen"] == 0)
    nuclei, mucin = ((layers[name] > 0) & epithelium for name in ("nuclei", "mucin"))
    return [
        nuclei.sum() / epithelium.sum(),
        (mucin & ~nuclei).sum() / epithelium.sum(),
        to_membrane[nuclei].mean(),
    ]


def test_dysplasia_crowds_and_stacks_nuclei_and_takes_the_mucin():
    film = np.array([np.mean([cells(d, s) for s in range(3)], 0) for d in (0, 0.35, 0.7, 1)])
    nuclei, mucin, depth = film.T
    assert (np.diff(nuclei) > 0.02).all() and nuclei[-1] > 2.3 * nuclei[0]
    assert (np.diff(mucin) < -0.02).all() and mucin[-1] < 0.3 * mucin[0]
    assert (np.diff(depth) > 0).all() and depth[-1] > 1.5 * depth[0]


def test_tiles_of_a_slide_are_cut_out_of_it():
    tiles = [TissueParameters(severity=s, cut_angle=3) for s in (0.1, 0.9, 0.3)]
    slide = draw_slide(tiles, 4, size=96)
    pitch = tissue_section.pitch(96, 2.0)
    assert slide.image.shape == (3, 96, 2 * pitch + 96)
    for i, tile in enumerate(divide(slide, 4)):
        window = slide.image[:, :, i * pitch : i * pitch + 96]
        turned = [np.rot90(window, k, (1, 2)) for k in range(4)]
        assert any(
            np.array_equal(tile.image, t) or np.array_equal(tile.image, t[..., ::-1])
            for t in turned
        )


def test_tiles_of_a_slide_share_stain_and_plane():
    tiles = [TissueParameters(), TissueParameters(eosin=1.2)]
    with pytest.raises(ValueError, match="horizontal_growth"):
        draw_slide(tiles, 1)


@pytest.mark.parametrize("name", ["fold", "bubble", "pen", "ink_dot"])
def test_artefacts_lie_over_the_tissue_and_change_none_of_it(name):
    clean, spoilt = (draw(TissueParameters(**{name: v}), 2) for v in (0.0, 1.0))
    for mask in MASKS[:4]:
        np.testing.assert_array_equal(getattr(clean, mask), getattr(spoilt, mask))
    changed = (clean.image != spoilt.image).any(0).mean()
    assert 0.002 < changed < 0.9
    assert spoilt.ink.any() == (name in ("pen", "ink_dot")) and not clean.ink.any()


def test_a_crypt_shows_as_tube_or_ring_by_the_angle_of_the_cut():
    """Lengthwise a gland is several times as long as wide; across it is about round."""
    import cv2

    def longest(angle):
        p = TissueParameters(severity=0.05, branching=0, cut_angle=angle, base_position=0.8)
        drawn = draw_slide([p], 3)
        count, _, stats, _ = cv2.connectedComponentsWithStats(drawn.glands[:, 20:-20])
        ratios = stats[1:, cv2.CC_STAT_HEIGHT] / stats[1:, cv2.CC_STAT_WIDTH]
        return np.median(ratios[stats[1:, cv2.CC_STAT_AREA] > 100]), count

    tube, ring = longest(0.0), longest(80.0)
    assert tube[0] > 2.5 and 0.6 < ring[0] < 1.7
    assert ring[1] > 2 * tube[1]


# --- The rule ------------------------------------------------------------------------------------


def test_the_label_follows_from_crypts_and_masks():
    """Of each tile: which crypts have their base in the tile, and how distorted are they?"""
    cohort = make_cohort(252, seed=5)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(reread, (cohort.one(i) for i in range(cohort.slides)), chunksize=8))
    labels, visible, marked = map(np.concatenate, zip(*found, strict=True))
    np.testing.assert_array_equal(labels, cohort.true_label)
    assert visible[labels == 1].min() > 0.001  # what makes the diagnosis can be seen
    assert marked.min() > 0.001


def reread(slide) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label of each tile, from the basal pixels of each crypt; shares of the pixels that decide."""
    size = 112
    scene = tissue_section.cut(slide.parameters, slide.seed, size, 4.0)
    owner = scene.label[:: tissue_section.SUPERSAMPLING, :: tissue_section.SUPERSAMPLING]
    gland = scene.coverage("gland") >= 0.5
    basal = (
        gland
        & (scene.height(owner, scene.h) < tissue_slide.BASAL_SHARE)
        & (owner <= len(scene.crypts))
    )
    region = tissue_slide.diagnostic_region(scene, size) & gland
    labels, visible, marked, pitch = [], [], [], tissue_section.pitch(size, 4.0)
    for i in range(len(slide.parameters)):
        here = np.s_[
            tissue_section.EDGE : -tissue_section.EDGE,
            tissue_section.EDGE + i * pitch : tissue_section.EDGE + i * pitch + size,
        ]
        pixels = np.bincount(owner[here][basal[here]], minlength=len(scene.crypts) + 1)[1:]
        distorted = [c.distortion >= tissue_parameters.UNEQUIVOCAL for c in scene.crypts]
        labels.append(
            tissue_parameters.diagnose(
                [c.distortion for c, n in zip(scene.crypts, pixels, strict=True) if n > 8]
            )
        )
        visible.append(pixels[distorted].sum() / size**2)
        marked.append(region[here].mean())
    return np.array(labels), np.array(visible), np.array(marked)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("Normal", {"severity": 0, "serration": 0}),
        ("HP", {"severity": 0}),
        ("HP", {"severity": 0.3, "serration": 0}),
        ("HP", {"dysplasia": 0.49}),
        ("SSA", {"severity": 0.6, "serration": 0}),
        ("Tubular adenoma", {"severity": 0, "serration": 0, "dysplasia": 0.5}),
        ("Tubular adenoma", {"severity": 0.9, "dysplasia": 1}),
    ],
)
def test_the_kind_is_read_from_the_tissue(kind, changes):
    assert tissue_parameters.kind_of(TissueParameters(**changes)) == kind


TO_THE_SURFACE = TissueParameters(
    severity=0, serration=0, branching=0, base_position=0.95, crypt_length=370
)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_diagnostic_of_normal_mucosa_and_of_an_adenoma(seed):
    """All crypts, but not the surface; all that is dysplastic, the surface too."""
    normal, adenoma = (
        draw_slide([replace(TO_THE_SURFACE, dysplasia=d)] * 4, seed) for d in (0.0, 0.8)
    )
    np.testing.assert_array_equal(normal.glands, adenoma.glands)
    np.testing.assert_array_equal(normal.diagnostic[64:], normal.glands[64:])
    surface = (normal.glands & ~normal.diagnostic & 1) > 0
    assert 0.15 < surface[:60].any(0).mean() < 0.6  # between the mouths of crypts
    assert adenoma.diagnostic[surface].all()
    epithelium = (adenoma.glands & ~adenoma.lumina & 1) > 0
    ill, spared = epithelium & (adenoma.diagnostic > 0), epithelium & (adenoma.diagnostic == 0)
    assert 0.01 < spared.sum() / epithelium.sum() < 0.35
    assert adenoma.nuclei[ill].mean() > 1.4 * adenoma.nuclei[spared].mean()
