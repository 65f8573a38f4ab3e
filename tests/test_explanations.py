"""Maps against peers and by hand; every trial against a case whose answer is known."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_grad_cam import HiResCAM, LayerCAM
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from scipy.stats import spearmanr
from scripts import STUDIES, common
from skimage.metrics import structural_similarity
from torch import nn

from crc_helpers import claims, figures
from crc_helpers import explanations as trial
from crc_helpers.augmentation import STAINS
from crc_helpers.data import load_tiles
from crc_helpers.evaluation import bootstrap_interval
from crc_helpers.grad_cam import enlarge, grad_cam, overlap
from crc_helpers.models import Classifier, Encoder
from crc_helpers.runs import RunError
from crc_helpers.tissue.parameters import TissueParameters
from crc_helpers.tissue.slide import draw

study = STUDIES["explanations"]


def make_model(name="resnet8", classes=3):
    torch.manual_seed(0)
    model = Classifier(Encoder(name), classes).eval()
    nn.init.normal_(model.fc.weight)
    return model


def make_images(n=3, size=64):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (size, size), mode="nearest")


def square(x, y, width, height, size=20):
    """A map of zeros with one rectangle of ones."""
    drawn = np.zeros((size, size), np.float32)
    drawn[y : y + height, x : x + width] = 1
    return drawn


class Spotter(nn.Module):
    """Two logits, -s and s: s is ten times the mean of red in one square, and nothing else."""

    place = (slice(8, 16), slice(8, 16))

    def forward(self, images):
        spot = 10 * images[:, 0][:, *self.place].mean(dim=(1, 2))
        return torch.stack([-spot, spot], dim=1)


# --- Maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet8", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
)
def test_every_backbone_gets_all_maps_and_is_forgotten_to_the_last_weight(name):
    model = make_model(name)
    maps = trial.all_maps(model, make_images(2), torch.tensor([0, 2]), costly=1)
    assert tuple(maps) == study.METHODS
    assert [len(found) for found in maps.values()] == [2, 2, 2, 1, 1]
    assert all(found.ndim == 3 and found.isfinite().all() for found in maps.values())
    *_, (last, forgotten) = trial.cascade(model, seed=1)
    learned = dict(model.named_parameters())
    assert last == "all" and forgotten.encoder.name == name
    assert all(
        p.eq(learned[n]).all() == p.eq(p.flatten()[0]).all()  # scales and biases start all equal
        for n, p in forgotten.named_parameters()
    )


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
@pytest.mark.parametrize(
    ("ours", "peer"), [(trial.hires_cam, HiResCAM), (trial.layer_cam, LayerCAM)]
)
def test_maps_are_pytorch_grad_cams(ours, peer, layer):
    # In float64, because float32 noise grows through many random layers.
    model, images = make_model("resnet18").double(), make_images(3, 96).double()
    with peer(model, [model.encoder.stage(layer)]) as reference:
        theirs = reference(images.clone(), [ClassifierOutputTarget(c) for c in range(3)])
    found = ours(model, images, torch.arange(3), layer)
    assert (found.amax(dim=(1, 2)) > 0).sum() >= 2  # a map of zeros would compare nothing
    # Theirs are scaled to [0, 1] before enlarging, and again after.
    scaled = scale_cam_image(enlarge(torch.from_numpy(scale_cam_image(found.numpy())), 96))
    np.testing.assert_allclose(scaled, theirs, atol=1e-5)


def test_hires_cam_is_grad_cam_in_the_last_layer_and_not_before():
    model, images, target = make_model(), make_images(), torch.tensor([0, 1, 2])
    last = grad_cam(model, images, target).maps
    torch.testing.assert_close(trial.hires_cam(model, images, target), last, atol=1e-6, rtol=1e-4)
    earlier = grad_cam(model, images, target, "layer2").maps
    other = trial.hires_cam(model, images, target, "layer2")
    assert (other - earlier).abs().max() > 0.1 * earlier.max()


def test_layer_cam_is_never_below_hires_cam():
    model, images, target = make_model(), make_images(), torch.tensor([0, 1, 2])
    for layer in ("layer2", "layer3"):
        higher = trial.layer_cam(model, images, target, layer)
        assert (higher >= trial.hires_cam(model, images, target, layer) - 1e-6).all()


def test_integrated_gradients_add_up_to_the_change_of_the_logit():
    model, images, target = make_model(), make_images(), torch.tensor([2, 0, 1])
    maps = trial.integrated_gradients(model, images, target, steps=200)
    with torch.no_grad():
        change = model(images) - model(trial.mean_colour(images))
    change = change.gather(1, target[:, None])[:, 0]
    assert change.abs().max() > 0.1
    torch.testing.assert_close(maps.sum(dim=(1, 2)), change, atol=0.02, rtol=0.02)


def test_integrated_gradients_of_a_linear_score_are_weight_times_distance():
    images = make_images(2, 32)
    maps = trial.integrated_gradients(Spotter(), images, torch.tensor([1, 1]), steps=2)
    distance = (images - trial.mean_colour(images))[:, 0] * 10 / 64
    inside = (slice(None), *Spotter.place)
    torch.testing.assert_close(maps[inside], distance[inside])
    maps[inside] = 0
    assert maps.abs().max() == 0


def test_occlusion_finds_the_one_square_that_counts():
    images = torch.full((2, 3, 32, 32), 0.25)
    images[0, :, 8:16, 8:16] = 1.0
    maps = trial.occlusion(Spotter(), images, torch.tensor([1, 1]), window=8, stride=8)
    mean = 0.25 + 0.75 / 16
    expected = torch.zeros(2, 32, 32)
    expected[0, 8:16, 8:16] = 10 * (1 - mean)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)  # a plain tile has nothing
    against = trial.occlusion(Spotter(), images, torch.tensor([0, 0]), window=8, stride=8)
    torch.testing.assert_close(against, -expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [trial.integrated_gradients, trial.occlusion])
def test_what_is_explained_is_left_as_it_was(method):
    model, images = make_model().train(), make_images()
    before = images.clone()
    maps = method(model, images, torch.tensor([0, 1, 2]))
    assert maps.shape == (3, 64, 64) and not maps.requires_grad
    assert model.training and torch.equal(images, before) and not images.requires_grad
    assert all(p.grad is None for p in model.parameters())


# --- Controls ------------------------------------------------------------------------------------


def test_edges_are_where_brightness_jumps():
    images = torch.zeros(1, 3, 32, 32)
    images[..., 20:] = 1
    edges = trial.edge_map(images, 0.5)[0]
    assert edges[:, 19:21].min() > 1 and edges[:, :16].max() == 0


def test_stain_map_sees_haematoxylin_and_not_eosin():
    density = torch.zeros(1, 32, 32, 3)
    density[0, :, :16], density[0, :, 16:] = 0.7 * STAINS[0], 0.9 * STAINS[1]
    found = trial.stain_map((-density).exp().movedim(-1, 1), 0.1)[0]
    np.testing.assert_allclose(found[:, :16], 0.7, atol=1e-3)
    np.testing.assert_allclose(found[:, 16:], 0, atol=1e-3)


def test_centre_is_the_centre():
    bump = trial.centre_map(2, 21)
    assert bump.shape == (2, 21, 21) and np.unravel_index(bump[1].argmax(), (21, 21)) == (10, 10)


# --- Against a region ----------------------------------------------------------------------------


def test_iou_of_the_hottest_share_by_hand():
    region, heat = square(0, 0, 10, 20), square(0, 0, 20, 5) * 2 + square(0, 0, 5, 20)
    found = trial.iou_curve(heat[None], region[None], [0.25])
    # The hottest quarter is the five upper rows, of which half lies in the left half.
    np.testing.assert_allclose(found, [[50 / (100 + 200 - 50)]])


def test_iou_curve_peaks_at_one_for_the_region_itself_and_ends_at_its_area():
    region = square(2, 3, 8, 5)
    found = trial.iou_curve(region[None], region[None], [0.05, 0.1, 0.2, 1.0])
    np.testing.assert_allclose(found, [[0.5, 1.0, 0.5, 0.1]])


def test_iou_curve_at_the_regions_own_share_is_overlap():
    rng = np.random.default_rng(0)
    heat, region = rng.random((4, 20, 20)), np.stack([square(3, 3, 10, 8)] * 4)
    np.testing.assert_allclose(trial.iou_curve(heat, region, [0.2])[:, 0], overlap(heat, region))


def test_iou_curve_of_a_zero_map_is_undefined():
    region = square(0, 0, 5, 5)
    assert np.isnan(trial.iou_curve(0 * region[None], region[None], [0.1, 0.5])).all()


def test_box_overlap_by_hand():
    region = square(4, 4, 4, 4) + square(14, 14, 2, 2)
    heats = np.stack([
        square(4, 4, 4, 4), square(6, 4, 4, 4), square(14, 14, 2, 2), square(0, 10, 3, 3),
        0.4 * square(0, 0, 20, 20) + square(4, 4, 4, 4),  # what is below half is not boxed
        square(4, 4, 4, 4) + square(0, 12, 8, 8),  # of two hot regions the larger one speaks
        square(0, 0, 0, 0),
    ])  # fmt: skip
    found = trial.box_overlap(heats, np.stack([region] * len(heats)))
    np.testing.assert_allclose(found, [1, 8 / 24, 1, 0, 1, 0, np.nan])
    assert trial.box_overlap(heats[:1], np.zeros((1, 20, 20))).tolist() == [0]


def test_panels_of_different_curves_have_a_legend_each():
    curve = np.array([[0.1, 0.2], [0.0, 0.1], [0.2, 0.3]])
    apart = figures.curve_panels({"a": {"one": curve}, "b": {"two": curve}}, [0, 1], "x", "y")
    names = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in apart.axes]
    assert names == [["one"], ["two"]] and not apart.legends
    shared = figures.curve_panels({"a": {"one": curve}, "b": {"one": curve}}, [0, 1], "x", "y")
    assert [t.get_text() for t in shared.legends[0].get_texts()] == ["one"]
    assert not any(ax.get_legend() for ax in shared.axes)
    plt.close("all")


# --- Agreement -----------------------------------------------------------------------------------


def make_pairs():
    one = make_images(4, 48).mean(dim=1).numpy()
    noise = np.random.default_rng(0).random(one.shape).astype(np.float32)
    return one, 0.7 * one + 0.3 * noise


def test_rank_correlation_is_scipys():
    one, other = make_pairs()
    expected = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(trial.rank_correlation(one, other), expected)
    np.testing.assert_allclose(trial.rank_correlation(one, -(one**3)), -1)
    flat = 0 * one[:1]  # has no order to share
    assert trial.rank_correlation(one[:1], flat) == trial.rank_correlation(flat, one[:1]) == 0
    assert np.isnan(trial.rank_correlation(flat, flat)).all()


def test_ssim_is_scikit_images():
    one, other = make_pairs()
    expected = [
        structural_similarity(a / a.max(), b / b.max(), data_range=1, gaussian_weights=True,
                              sigma=1.5, use_sample_covariance=False)
        for a, b in zip(one.astype(float), other.astype(float), strict=True)
    ]  # fmt: skip
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_allclose(trial.ssim(one, other), expected, atol=1e-6)
    np.testing.assert_allclose(trial.ssim(one, 5 * one), 1)
    blank = 0 * one[:1]
    assert trial.ssim(one[:1], blank) == trial.ssim(blank, one[:1]) == 0
    assert np.isnan(trial.ssim(blank, blank)).all()


def test_at_size_averages_fine_maps_and_interpolates_coarse_ones():
    fine = torch.arange(16.0).view(1, 4, 4)
    np.testing.assert_allclose(trial.at_size(fine, 2)[0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(trial.at_size(fine, 12), enlarge(fine, 12))


def test_cascade_forgets_from_the_last_layer_to_the_first():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = list(trial.cascade(model, seed=3))
    assert [name for name, _ in steps] == ["fc", "layer3", "layer2", "layer1", "all"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kept = []
    for name, network in steps:
        # Normalisation starts from ones in both, so only weights with two dimensions can differ.
        weights = {k: v for k, v in network.named_parameters() if v.ndim > 1}
        same = {k for k, v in weights.items() if torch.equal(v, before[k])}
        assert not any(k.startswith((name, f"encoder.backbone.{name}.")) for k in same)
        kept.append(same)
    assert all(later < earlier for earlier, later in pairwise(kept))
    torch.manual_seed(3)
    fresh = Classifier(Encoder("resnet8"), 3).state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in steps[-1][1].state_dict().items())


# --- Faithfulness --------------------------------------------------------------------------------


def make_hole(size=32):
    gone = torch.zeros(2, size, size, dtype=torch.bool)
    gone[0, 8:20, 5:14], gone[1, :6, 20:] = True, True
    return gone


def make_smooth(size=32):
    x = torch.linspace(0, 1, size)
    plane = 0.2 + 0.5 * x[:, None] + 0.2 * x[None]
    return torch.stack([plane, plane.T, 1 - plane]).expand(2, 3, size, size).clone()


def test_mean_fill_paints_the_mean_and_nothing_else():
    images, gone = make_images(2, 32), make_hole()
    filled = trial.mean_fill(images, gone)
    holes = gone[:, None].expand_as(images)
    torch.testing.assert_close(filled[holes], trial.mean_colour(images)[holes])
    assert torch.equal(filled[~holes], images[~holes])


def test_imputed_fill_comes_near_roads_exact_solution():
    images, gone = make_images(2, 32), make_hole()
    gone[0, ::3, ::2] = True  # scattered pixels beside a block
    exact = torch.stack([
        NoisyLinearImputer(noise=0)(image, (~hole).float())
        for image, hole in zip(images, gone, strict=True)
    ])  # fmt: skip
    ours = trial.imputed_fill(images, gone, noise=0)
    holes = gone[:, None].expand_as(images)
    assert (trial.mean_fill(images, gone) - exact)[holes].abs().mean() > 0.1
    assert (ours - exact)[holes].abs().mean() < 0.01
    assert torch.equal(ours[~holes], images[~holes])


def test_imputed_fill_continues_a_plane():
    gone = make_hole()[:1].expand(2, -1, -1)  # inside: at the border neighbours are on one side
    filled = trial.imputed_fill(make_smooth(), gone, noise=0, rounds=200)
    torch.testing.assert_close(filled, make_smooth(), atol=0.01, rtol=0)


def test_imputed_fill_adds_the_noise_it_is_asked_for():
    images, gone = make_smooth(), make_hole()
    rough = trial.imputed_fill(images, gone, 0.05) - trial.imputed_fill(images, gone, 0)
    holes = gone[:, None].expand_as(images)
    assert rough[holes].std() == pytest.approx(0.05, rel=0.15) and rough[~holes].abs().max() == 0


def test_imputed_fill_survives_a_tile_of_which_nothing_is_left():
    everything = torch.ones(2, 32, 32, dtype=torch.bool)
    assert trial.imputed_fill(make_smooth(), everything).isfinite().all()


def spotted():
    """Two red squares on black, where Spotter looks; a map that is hot there, and its contrary."""
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, 8:16, 8:16] = 1
    return images, images[:, 0].numpy(), 1 - images[:, 0].numpy()


SHARES = (0.0, 1 / 32, 1 / 16, 0.5)  # the square has a sixteenth of the pixels


def test_deletion_falls_where_the_map_is_right_and_not_where_it_is_wrong():
    images, right, wrong = spotted()
    target, sure, mean = torch.tensor([1, 1]), 1 / (1 + np.exp(-20)), 1 / 16
    arguments = (trial.mean_fill, SHARES)
    falls = trial.perturbation_curve(Spotter(), images, target, right, *arguments)
    half, none = (1 + mean) / 2, mean
    expected = [1 / (1 + np.exp(-20 * s)) for s in (1, half, none, none)]
    np.testing.assert_allclose(falls, [expected, expected], atol=1e-5)
    stays = trial.perturbation_curve(Spotter(), images, target, wrong, *arguments)
    np.testing.assert_allclose(stays, np.full((2, 4), sure), atol=1e-5)


def test_insertion_rises_as_soon_as_the_right_pixels_are_there():
    images, right, wrong = spotted()
    target = torch.tensor([0, 1])
    rises = trial.perturbation_curve(
        Spotter(), images, target, right, trial.mean_fill, SHARES, True
    )
    np.testing.assert_allclose(rises[1, 2:], 1, atol=1e-5)
    assert rises[1, 0] < rises[1, 1] < rises[1, 2]
    np.testing.assert_allclose(rises[0], 1 - rises[1], atol=1e-5)  # the class asked about
    late = trial.perturbation_curve(Spotter(), images, target, wrong, trial.mean_fill, SHARES, True)
    np.testing.assert_allclose(late[1], rises[1, 0], atol=1e-5)


def test_area_under_is_a_mean_height():
    curves, shares = np.array([[0.3, 0.3, 0.3], [1.0, 0.5, 0.0]]), [0.1, 0.3, 0.5]
    np.testing.assert_allclose(trial.area_under(curves, shares), [0.3, 0.5])
    np.testing.assert_allclose(trial.area_under(np.array([[1.0, 0, 0]]), [0, 0.1, 1]), [0.05])


def test_road_of_the_right_map_the_wrong_one_and_of_chance():
    images, right, wrong = spotted()
    target, shares = torch.tensor([1, 1]), (1 / 16, 0.5)  # the square, and more
    found = {
        name: trial.road(Spotter(), images, target, heat, shares)
        for name, heat in (("right", right), ("wrong", wrong))
    }
    # Without the square, filled from the black around it, p is a half; without the rest it is 1.
    np.testing.assert_allclose(found["right"], (1 - 0.5) / 2, atol=0.03)
    np.testing.assert_allclose(found["wrong"], -found["right"], atol=1e-6)


def test_road_is_pytorch_grad_cams():
    images, right, _ = spotted()
    heat = right + 0.01 * np.random.default_rng(0).random(right.shape).astype(np.float32)
    peer = ROADCombined(percentiles=[50, 75, 90])  # of the pixels are kept
    target = [ClassifierOutputSoftmaxTarget(1)] * 2
    theirs = peer(images, heat, target, Spotter())
    ours = trial.road(Spotter(), images, torch.tensor([1, 1]), heat, (0.5, 0.25, 0.1))
    assert ours.min() > 0.2
    np.testing.assert_allclose(ours, theirs, atol=0.02)


# --- A verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.2, 0.4, "yes", "no"),
        (-0.2, 0.05, "no", "yes"),
        (0.05, 0.15, "not shown", "not shown"),  # narrow, and on both sides
        (-9, 9, "not shown", "not shown"),
        (0.1, 0.2, "not shown", "not shown"),  # what is asked is one of its ends
        (np.nan, np.nan, "not shown", "not shown"),
    ],
)
def test_verdict_takes_the_whole_interval(low, high, above, below):
    assert trial.verdict(low, high, 0.1) == above
    assert trial.verdict(low, high, 0.1, below=True) == below


def test_over_networks_of_equal_networks_is_the_interval_over_slides():
    tiles, groups = np.random.default_rng(0).normal(size=40), np.arange(40) // 4
    mean, low, high = trial.over_networks(np.stack([tiles] * 6), groups)
    expected = bootstrap_interval(lambda k: tiles[k].mean(), 40, groups, samples=400)
    assert mean == pytest.approx(tiles.mean())
    np.testing.assert_allclose((low, high), expected)


def test_over_networks_counts_the_luck_of_a_network_and_leaves_out_what_is_unknown():
    values = np.repeat([[0.0], [1.0]], 50, axis=1)  # two networks that differ, tiles that do not
    values[0, :10] = np.nan
    mean, low, high = trial.over_networks(values)
    assert mean == pytest.approx(50 / 90) and (low, high) == (0, 1)


# --- Ink -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_ink_is_found_where_it_was_put(seed):
    plain, marked = (draw(TissueParameters(ink_dot=dot), seed) for dot in (0, 1))
    found = trial.ink_mask(marked.image[None], plain.image[None])[0]
    both, either = (found & marked.ink).sum(), (found | marked.ink).sum()
    assert marked.ink.sum() > 500 and both / either > 0.9
    assert not trial.ink_mask(plain.image[None], plain.image[None]).any()


def test_a_stamp_is_the_dot_of_drawn_tiles():
    marked = draw(TissueParameters(ink_dot=1), 1)
    white = np.full((2, 3, *marked.ink.shape), 240, np.uint8)
    stamped = trial.stamp(white, np.array([False, True]))
    assert (stamped[0] == 240).all() and (white == 240).all()
    assert stamped[1].min(axis=(1, 2)).tolist() == [59, 131, 97]  # 240 times e to -1.4, -0.6, -0.9
    dot = stamped[1, 0] < 240
    assert dot.sum() == pytest.approx(marked.ink.sum(), rel=0.05)
    for found in (dot, marked.ink > 0):  # a drawn tile is turned at the end: any corner
        from_centre = abs(np.argwhere(found).mean(axis=0) - 111.5) / 224
        assert ((from_centre > 0.35) & (from_centre < 0.42)).all()


def test_ink_decided_where_wiping_it_off_changes_the_class():
    dotted, clean = np.array([True, True, False, False]), np.array([0, 1, 0, 0])
    found = trial.ink_decided(dotted, np.array([1, 1, 1, 0]), clean)
    assert found.tolist() == [True, False, False, False]  # a change without ink is not the ink's
    assert not trial.ink_decided(dotted, clean, clean).any()


def test_turned_turns_each_tile_once_more():
    corner = np.zeros((5, 1, 4, 4))
    corner[:, 0, 0, 0] = 1
    found = [np.argwhere(image[0])[0].tolist() for image in trial.turned(corner)]
    assert found == [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]


def test_four_corners_are_where_half_the_dots_reach():
    dots = np.zeros((4, 8, 8), np.uint8)
    dots[:3, 0, 0], dots[0, 0, 1] = 1, 1  # one of three dots is larger; the fourth tile has none
    found = trial.four_corners(dots)
    assert sorted(map(tuple, np.argwhere(found))) == [(0, 0), (0, 7), (7, 0), (7, 7)]


def test_cells_of_a_region_are_those_half_as_full_as_the_fullest():
    region = np.zeros((3, 8, 8), np.uint8)
    region[0, 0, 0] = 1
    region[1, 1, 0:4], region[1, 2, 0] = 1, 1  # two pixels in each of two cells, one in a third
    found = trial.cells_of(region, 4)
    assert [tuple(x) for x in np.argwhere(found)] == [(0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0)]


def test_ink_scores_by_hand():
    place = np.zeros((2, 16, 16), np.uint8)
    place[:, :2, :2] = 1
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 1, 1
    fine = torch.zeros(2, 16, 16)
    fine[:, 0, 0], fine[:, 15, 15] = 3, 1
    found = trial.ink_scores({"coarse": maps, "fine": fine, "none": 0 * maps}, place, 4)
    assert found["hit", "coarse"].tolist() == [1, 0]  # the cell counts, not the pixel
    assert found["hit", "fine"].tolist() == [1, 1] and found["mass", "fine"].tolist() == [0.75] * 2
    # Enlarged, the hot cell fades into its neighbours: 0.25 of its heat is in 4 of its 16 pixels.
    assert 4 / 36 < found["mass", "coarse"][0] <= 0.25 and found["mass", "coarse"][1] == 0
    assert np.isnan(found["hit", "none"]).all() and np.isnan(found["mass", "none"]).all()


def ink_case(monkeypatch, said, said_without):
    """A trial of six real tiles, three of them of class 1, with the answers that are given."""
    images = np.full((6, 3, 64, 64), 200, np.uint8)
    labels = np.array([1, 0, 1, 0, 1, 0])
    t = SimpleNamespace(
        data="ebhi", seed=0, recipe=claims.Recipe(size=64), labels=labels.take,
        tiles=SimpleNamespace(images=images), fabric=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    answers = iter([said, said_without])
    monkeypatch.setattr(trial, "predict", lambda *_: np.eye(2)[next(answers)])
    return t, trial.ink_table(t, make_model(classes=2), np.arange(6))


def test_ink_table_says_which_tiles_the_ink_decided(monkeypatch):
    _, table = ink_case(monkeypatch, [1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1])
    assert table["dotted"].tolist() == [True, False] * 3
    assert table["decided"].tolist() == [True] + [False] * 5
    assert table["free"].tolist() == [False, True, False, False, False, True]
    # 8 x 8 cells of a 64 px tile at layer3: 4 x 4. A dot lies in one of them, four dots in four.
    np.testing.assert_allclose(table["chance hit"], [1 / 16, 4 / 16] * 3)
    assert table["chance mass"].between(0.01, 0.09).all()
    assert table.loc[table["free"], "other mass Grad-CAM"].notna().any()
    assert table.loc[~table["free"], "other mass Grad-CAM"].isna().all()


def test_the_row_of_the_ink_counts_what_its_table_holds(monkeypatch):
    table = pd.DataFrame({
        "label": [1, 1, 1, 1, 0, 0, 0], "dotted": [True] * 4 + [False] * 3,
        "said": [1, 1, 1, 0, 0, 0, 1], "said_without": [0, 0, 1, 0, 0, 0, 1],
        "decided": [True, True] + [False] * 5, "free": [False] * 4 + [True, True, False],
        "p": [0.9, 0.8, 0.7, 0.2, 0.1, 0.3, 0.6], "chance hit": [0.1] * 7,
    })  # fmt: skip
    for name in study.METHODS:
        table[f"hit {name}"] = [1, 0, 0, 1, 1, 0, 1]
        table[f"other hit {name}"] = [np.nan] * 4 + [1, 1, np.nan]
    monkeypatch.setattr(study, "ink_table", lambda *_: table)
    monkeypatch.setattr(study, "train_network", lambda *_: None)
    t = SimpleNamespace(
        data="ebhi", tiles=SimpleNamespace(class_names=("HP", "SSA")),
        parts=SimpleNamespace(test=np.arange(7)),
        score=lambda classify, _: claims.scores(table["label"].to_numpy(), classify(0)),
    )  # fmt: skip
    row = study.row(t, "ink")
    assert row["accuracy"] == pytest.approx(5 / 7)  # the probabilities of its table, in order
    assert row["accuracy_without_ink"] == pytest.approx(3 / 7) and row["flips"] == 0.5
    counts = [row[f"{k} tiles"] for k in ("decided", "undecided", "free")]
    assert counts == [2, 2, 2] and row["dotted said 1"] == 3 and row["tested"] == 7
    hit = [row[f"{k}hit occlusion"] for k in ("", "undecided ", "free ", "free other ")]
    assert hit == [0.5, 0.5, 0.5, 1]
    assert row["given away Grad-CAM"] == pytest.approx(1 / 3)


# --- The study -----------------------------------------------------------------------------------


def test_region_scores_leave_out_tiles_without_a_region():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 1, 1
    region = np.zeros((2, 16, 16), np.uint8)
    region[0, :8, :8] = 1
    found = study.region_scores({"one": maps, "few": maps[:1]}, region)
    assert found["hit one"] == found["hit few"] == 1 and found["area"] == 0.25
    assert found["mass one"] == found["mass few"] > 0.99


def test_agreement_scores_of_a_network_with_itself_and_with_a_blank_one():
    maps = {"Grad-CAM": torch.rand(8, 6, 6, generator=torch.Generator().manual_seed(0))}
    same, nothing = (
        study.agreement_scores(maps, {"Grad-CAM": k * maps["Grad-CAM"]}) for k in (2, 0)
    )
    assert same["spearman Grad-CAM"] == pytest.approx(1) and same["ssim Grad-CAM"] == pytest.approx(
        1
    )
    assert nothing["spearman Grad-CAM"] == nothing["ssim Grad-CAM"] == 0
    assert (same["blank"], nothing["blank"]) == (0, 1)
    assert abs(same["pair Grad-CAM"]) < 0.3 and same["pair Grad-CAM"] == nothing["pair Grad-CAM"]


def test_agreement_scores_of_few_tiles_pair_none_with_itself():
    maps = {"Grad-CAM": torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))}
    assert study.agreement_scores(maps, maps)["pair Grad-CAM"] < 0.6  # and not 1 every third time


def test_fewer_tiles_than_a_batch_are_refused_in_words(tmp_path, monkeypatch):
    t = claims.Trial(0, recipe=claims.Recipe(n_tiles=96, size=32, steps=4, batch=512))
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="54 labelled tiles are fewer than one batch of 512"):
        trial.train_network(t, "trained")


def test_the_trials_are_of_two_classes():
    t = SimpleNamespace(tiles=SimpleNamespace(class_names=("a", "b", "c")))
    with pytest.raises(RunError, match="explanations: there are 3 classes"):
        study.row(t, "ink")


def test_study_plans_every_arm_of_every_seed_and_twice_as_much_ink():
    plan = [(row["seed"], row["arm"]) for row in study.plan(2)]
    assert len(set(plan)) == len(plan) == 2 * 7 + 4
    assert {arm for seed, arm in plan if seed == 1} == {*study.ARMS, "ink"}
    assert {arm for seed, arm in plan if seed == 3} == {"ink"}


@pytest.mark.slow
def test_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))
    small = claims.Recipe(n_tiles=120, size=32, steps=4, batch=16)
    rows = common.do(study.STUDY, seeds=1, recipe=small, folder=tmp_path).set_index("arm")
    assert list(rows.index) == [*study.ARMS, "ink", "ink"]
    networks = rows.loc[list(study.ARMS)]
    alike = networks[[f"spearman {m}" for m in study.METHODS]]
    assert alike.loc["trained"].to_numpy() == pytest.approx(1, abs=0.01)
    assert (alike.loc[list(trial.AGAIN)] < 0.9).to_numpy().all()
    assert networks["area"].nunique() == 1 and networks["mass centre"].nunique() == 1
    assert rows.loc["ink", "chance mass"].max() < 0.05 < networks["area"].iloc[0]
    before = (tmp_path / "explanations_synthetic.csv").read_bytes()
    monkeypatch.setattr(study, "train_network", None)  # nothing is measured twice
    again = common.do(study.STUDY, seeds=1, recipe=small, folder=tmp_path)
    assert len(again) == 9 and (tmp_path / "explanations_synthetic.csv").read_bytes() == before


@pytest.mark.slow
def test_each_training_has_its_own_seed_and_ink_its_own_tiles(tmp_path, monkeypatch):
    t = claims.Trial(0, recipe=claims.Recipe(n_tiles=96, size=32, steps=4, batch=8))
    seen = {}
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(trial, "fine_tune", lambda network, images, *_, name, seed, **__:
                        seen.update({name: (seed, images)}))  # fmt: skip
    for arm in ("trained", *trial.AGAIN, "ink"):
        trial.train_network(t, arm)
    assert [seed for seed, _ in seen.values()] == [0, 1000, 2000, 3000, 4000, 0]
    clean, inked = seen["trained"][1], seen["ink"][1]
    assert all((images == clean).all() for _, images in list(seen.values())[:5])
    dotted = trial.ink_mask(inked, clean).any(axis=(1, 2))
    assert (dotted == (t.labels(t.parts.train) == 1)).all() and dotted.any()


@pytest.mark.slow
def test_labels_are_shuffled_among_the_tiles_that_have_one(tmp_path, monkeypatch):
    tiles = load_tiles(n=96, seed=1)
    labels = tiles.labels.copy()
    labels[::5] = -1  # as EBHI-Seg's tiles of classes outside the task
    t = claims.Trial(0, given=replace(tiles, labels=labels),
                      recipe=claims.Recipe(size=32, steps=4, batch=8))  # fmt: skip
    seen = []
    monkeypatch.setattr(trial, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(trial, "fine_tune", lambda network, images, y, *_, **__: seen.append(y))
    trial.train_network(t, "shuffled labels")
    own = labels[t.parts.train]
    assert (own >= 0).all() and set(seen[0].tolist()) == {0, 1}
    assert (seen[0] != own).mean() > 0.2
