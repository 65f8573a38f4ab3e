"""Grad-CAM against pytorch-grad-cam and against CAM; what it leaves behind; maps by hand."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from crc_helpers.grad_cam import (
    as_grid,
    boxes,
    captured,
    enlarge,
    evidence,
    grad_cam,
    hits,
    last_stage,
    mass_inside,
    overlap,
    stage_names,
)
from crc_helpers.models import Classifier, Encoder


def make_model(name="resnet8", classes=3, seed=0):
    """A random network whose last layer weighs features enough for maps worth comparing."""
    torch.manual_seed(seed)
    model = Classifier(Encoder(name), classes).eval()
    nn.init.normal_(model.fc.weight)
    return model


def make_images(n=3, size=64, seed=0):
    """Coloured squares: maps of them have hot and cold places."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (size, size), mode="nearest")


def assert_same_maps(found, expected, tolerance=1e-4):
    """Hold maps equal to a share of their largest value, which must be there to compare with."""
    top = expected.abs().max()
    assert top > 0
    torch.testing.assert_close(found / top, expected / top, atol=tolerance, rtol=0)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def images():
    return make_images()


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


# --- The map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.0"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_maps_are_pytorch_grad_cams(name, layer):
    # In float64, because float32 noise grows to 1e-3 through fifty random layers.
    model, images = make_model(name).double(), make_images(3, 96).double()
    targets = [0, 1, 2]
    with GradCAM(model, [model.encoder.stage(layer)]) as reference:
        theirs = reference(images.clone(), [ClassifierOutputTarget(c) for c in targets])
    ours = grad_cam(model, images, torch.tensor(targets), layer).maps
    assert (ours.amax(dim=(1, 2)) > 0).sum() >= 2  # a map of zeros would compare nothing
    # Theirs are scaled to [0, 1] before enlarging, and again after.
    scaled = scale_cam_image(enlarge(torch.from_numpy(scale_cam_image(ours.numpy())), 96))
    np.testing.assert_allclose(scaled, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
def test_before_one_linear_layer_grad_cam_is_cam_over_the_number_of_cells(name):
    model, images = make_model(name), make_images(2, 96)
    with torch.no_grad(), captured(model.encoder.stage("layer4")) as outputs:
        model(images)
    cells = outputs[0].shape[2] * outputs[0].shape[3]
    assert cells in (36, 9)
    for target in range(3):
        cam = torch.einsum("k,nkhw->nhw", model.fc.weight[target].detach(), outputs[0])
        positive = grad_cam(model, images, target).maps
        model.fc.weight.data.neg_()  # what ReLU hid is the map of the opposite weights
        negative = grad_cam(model, images, target).maps
        model.fc.weight.data.neg_()
        assert_same_maps(positive - negative, cam / cells)


def test_maps_are_raw_and_as_coarse_as_their_layer(model, images):
    explanation = grad_cam(model, images, 0, "layer2")
    assert explanation.maps.shape == (3, 8, 8) and explanation.maps.dtype == torch.float32
    assert explanation.maps.min() >= 0
    model.fc.weight.data.mul_(10)
    assert_same_maps(grad_cam(model, images, 0, "layer2").maps, 10 * explanation.maps)


def test_by_default_the_last_stage_that_computes_is_explained(model, images):
    assert last_stage(model) == "layer3"  # the fourth of resnet8 is empty
    assert last_stage(make_model("resnet18")) == "layer4"
    expected = grad_cam(model, images, 0, "layer3").maps
    assert_same_maps(grad_cam(model, images, 0).maps, expected)


def test_a_backbone_without_stages_is_asked_about(model, images):
    layers = nn.Conv2d(3, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model.encoder.backbone = nn.Sequential(*layers)
    with pytest.raises(ValueError, match="say which layer"):
        grad_cam(model, images)
    assert grad_cam(model, images, 0, "0").maps.shape == (3, 62, 62)


def test_a_layer_is_explained_before_what_follows_changes_it_in_place(model, images):
    twin = make_model()
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = grad_cam(twin, images, 0, "bn1").maps
    assert_same_maps(grad_cam(model, images, 0, "bn1").maps, expected)


def test_many_images_are_explained_as_one_is(model, images):
    together = grad_cam(model, images)
    for i in range(3):
        alone = grad_cam(model, images[i : i + 1])
        assert_same_maps(together.maps[i], alone.maps[0])
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-5, rtol=1e-4)
        assert together.targets[i] == alone.targets[0]


def test_the_logits_are_the_models(model, images):
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, images).logits, model(images))


# --- Targets -------------------------------------------------------------------------------------


def test_without_a_target_the_predicted_class_is_explained(model, images):
    model.fc.bias.data = torch.tensor([0.0, 0.0, 100.0])
    explanation = grad_cam(model, images)
    assert explanation.targets.tolist() == [2, 2, 2]
    assert torch.equal(explanation.maps, grad_cam(model, images, 2).maps)


def test_every_image_may_have_a_target_of_its_own(model, images):
    mixed = grad_cam(model, images, torch.tensor([2, 0, 1]))
    assert mixed.targets.tolist() == [2, 0, 1]
    for i, target in enumerate([2, 0, 1]):
        assert_same_maps(mixed.maps[i], grad_cam(model, images, target).maps[i])


def test_classes_have_maps_of_their_own(model, images):
    first, second = grad_cam(model, images, 0).maps, grad_cam(model, images, 1).maps
    assert (first - second).abs().max() > 0.1 * first.max()


@pytest.mark.parametrize("target", [3, -1, torch.tensor([0, 1, 3])])
def test_a_target_out_of_range_is_refused(model, images, target):
    with pytest.raises(ValueError, match="out of range: there are 3 classes"):
        grad_cam(model, images, target)


# --- What it needs and what it leaves ------------------------------------------------------------


def test_a_frozen_model_is_explained_all_the_same(model, images):
    expected = grad_cam(model, images, 0).maps
    model.requires_grad_(False)
    assert_same_maps(grad_cam(model, images, 0).maps, expected)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_is_explained_where_gradients_are_off(model, images):
    expected = grad_cam(model, images, 0).maps
    with torch.no_grad():
        assert_same_maps(grad_cam(model, images, 0).maps, expected)
        assert not torch.is_grad_enabled()


def test_no_gradient_is_left_and_none_is_touched(model, images):
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    grad_cam(model, images)
    others = [p.grad for n, p in model.named_parameters() if n != "fc.weight"]
    assert all(gradient is None for gradient in others)
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))


def test_the_images_are_left_as_they_were(model, images):
    before = images.clone()
    explanation = grad_cam(model, images)
    assert torch.equal(images, before)
    assert not images.requires_grad and images.grad is None
    assert not explanation.maps.requires_grad and not explanation.logits.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_statistics_are_left_as_they_were(model, images, training):
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grad_cam(model, images)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_part_is_left_in_the_mode_of_its_own(model, images):
    model.train()
    model.encoder.eval()  # as one who trains the last layer alone does
    grad_cam(model, images)
    assert model.training and not model.encoder.training


def test_a_training_model_is_explained_in_evaluation_mode(model, images):
    expected = grad_cam(model, images, 0).maps
    assert_same_maps(grad_cam(model.train(), images, 0).maps, expected)


def test_no_hook_is_left(model, images):
    grad_cam(model, images)
    assert count_hooks(model) == 0


@pytest.mark.parametrize(
    "change",
    [{"target": 7}, {"layer": "fc"}, {"layer": "nowhere"}, {"images": torch.ones(1, 5, 9, 9)}],
)
def test_after_an_error_no_hook_is_left_and_the_mode_is_as_it_was(model, images, change):
    model.train()
    with pytest.raises((ValueError, RuntimeError)):
        grad_cam(model, **{"images": images} | change)
    assert count_hooks(model) == 0
    assert model.training


def test_a_hook_ends_with_its_block_and_hides_no_error(model, images):
    with pytest.raises(KeyError, match="inside"), captured(model.fc) as outputs:
        model(images)
        assert count_hooks(model) == 1
        raise KeyError("inside")
    assert count_hooks(model) == 0
    model(images)
    assert len(outputs) == 1


def test_a_layer_that_is_not_there_is_refused_naming_those_that_are(model, images):
    with pytest.raises(ValueError, match=r"layer9.*layer1.*layer3"):
        grad_cam(model, images, layer="layer9")


def test_a_layer_without_cells_is_refused_with_its_shape(model, images):
    with pytest.raises(ValueError, match=r"'fc' gives \(3, 256\).*\(N, K, h, w\)"):
        grad_cam(model, images, layer="fc")


def test_a_layer_that_gives_no_tensor_is_refused(images):
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x

    layer = Pair()
    with captured(layer), pytest.raises(ValueError, match="Pair gives a tuple: Grad-CAM needs one"):
        layer(images)


# --- Enlarging -----------------------------------------------------------------------------------


def test_enlarging_to_squares_repeats_every_cell():
    maps = torch.arange(8.0).view(2, 2, 2)
    expected = maps.numpy().repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(enlarge(maps, 6, smooth=False), expected)


def test_enlarging_smoothly_stays_between_the_cells():
    maps = torch.tensor([[[0.0, 4.0], [4.0, 8.0]]])
    enlarged = enlarge(maps, 8)
    assert enlarged.shape == (1, 8, 8) and enlarged.dtype == np.float32
    assert enlarged.min() == 0 and enlarged.max() == 8  # raw values: nothing is rescaled
    assert enlarged[0, 0].tolist() == [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]


# --- Boxes ---------------------------------------------------------------------------------------


def make_map(*rectangles, size=20):
    """A map of zeros with rectangles (x, y, width, height, value) drawn in this order."""
    drawn = np.zeros((size, size), np.float32)
    for x, y, width, height, value in rectangles:
        drawn[y : y + height, x : x + width] = value
    return drawn


def test_two_regions_have_two_boxes_the_larger_first():
    assert boxes(make_map((1, 2, 3, 4, 1.0), (10, 8, 6, 5, 0.9))) == [(10, 8, 6, 5), (1, 2, 3, 4)]


def test_regions_are_ordered_by_their_pixels_however_thin():
    assert boxes(make_map((1, 2, 12, 1, 1.0), (4, 10, 3, 3, 1.0))) == [(1, 2, 12, 1), (4, 10, 3, 3)]


def test_a_region_inside_the_ring_of_another_has_a_box_too():
    ring = make_map((2, 2, 16, 16, 1.0), (4, 4, 12, 12, 0.0), (8, 9, 4, 3, 1.0))
    assert boxes(ring) == [(2, 2, 16, 16), (8, 9, 4, 3)]


def test_a_flat_map_is_one_box():
    assert boxes(np.full((7, 9), 0.3, np.float32)) == [(0, 0, 9, 7)]


def test_a_map_of_zeros_has_no_box():
    assert boxes(make_map()) == []


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.1, [(2, 2, 10, 10)]),
        (0.5, [(2, 2, 10, 10)]),  # the share itself is in
        (0.51, [(5, 5, 3, 3)]),
        (1.0, [(5, 5, 3, 3)]),
    ],
)
def test_a_threshold_is_a_share_of_the_maximum(threshold, expected):
    assert boxes(make_map((2, 2, 10, 10, 2.0), (5, 5, 3, 3, 4.0)), threshold) == expected


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold.*\(0, 1\]"):
        boxes(make_map((2, 2, 4, 4, 1.0)), threshold)


def test_boxes_are_plain_numbers():
    assert all(type(v) is int for v in boxes(make_map((1, 2, 3, 4, 1.0)))[0])


# --- Agreement with a region ---------------------------------------------------------------------

REGION = make_map((0, 0, 10, 20, 1)).astype(np.uint8)  # the left half
CASES = {  # map: share of its mass inside, whether its maximum is
    "inside": (make_map((1, 1, 4, 4, 2.0)), 1.0, 1.0),
    "outside": (make_map((12, 1, 4, 4, 2.0)), 0.0, 0.0),
    "flat": (np.ones((20, 20), np.float32), 0.5, 1.0),  # of equal maxima the first counts
    "three to one": (make_map((8, 0, 3, 2, 1.0), (8, 0, 1, 2, 2.0)), 0.75, 1.0),
    "nothing": (make_map(), np.nan, np.nan),
}
MAPS, MASS, HIT = (np.array(column) for column in zip(*CASES.values(), strict=True))
REGIONS = np.stack([REGION] * len(MAPS))


def test_mass_inside_is_the_share_of_the_sum():
    np.testing.assert_allclose(mass_inside(MAPS, REGIONS), MASS, rtol=1e-6)


def test_hits_ask_where_the_maximum_is():
    np.testing.assert_array_equal(hits(MAPS, REGIONS), HIT)


def test_overlap_takes_as_many_pixels_as_the_region_has():
    region = make_map((4, 4, 4, 4, 1)).astype(np.uint8)
    same, scaled = make_map((4, 4, 4, 4, 3.0)), make_map((4, 4, 4, 4, 3.0)) + 0.5
    half, apart = make_map((6, 4, 4, 4, 1.0)), make_map((12, 12, 4, 4, 1.0))
    found = overlap(np.stack([same, scaled, half, apart]), np.stack([region] * 4))
    # Half of 16 pixels shared: 8 of the 24 that either has.
    np.testing.assert_allclose(found, [1, 1, 1 / 3, 0])


def test_overlap_of_a_zero_map_is_undefined_and_of_an_empty_region_none():
    one = make_map((4, 4, 4, 4, 1.0))
    found = overlap(np.stack([make_map(), one]), np.stack([one > 0, one < 0]).astype(np.uint8))
    np.testing.assert_array_equal(found, [np.nan, 0])


def test_overlap_with_the_whole_tile_is_complete():
    assert overlap(MAPS[:1], np.ones((1, 20, 20), np.uint8)).tolist() == [1]


def test_no_tile_has_no_score():
    """Of a network that recognises nothing there is nothing to score, and nothing to crash on."""
    maps, masks = np.zeros((0, 8, 8)), np.zeros((0, 8, 8), np.uint8)
    for score in (hits, mass_inside, overlap):
        assert score(maps, masks).shape == (0,)


# --- transformers --------------------------------------------------------------------------------


def test_tokens_return_to_their_places():
    class Backbone(torch.nn.Module):
        num_prefix_tokens = 2

    model = Classifier(Encoder("resnet8"), 2)
    model.encoder.backbone = Backbone()
    tokens = torch.arange(2.0 + 9).view(1, 11, 1) - 2  # -2 and -1 of no place, then 0 to 8
    grid = as_grid(tokens, model, "blocks")
    torch.testing.assert_close(grid[0, 0], torch.arange(9.0).view(3, 3))
    with pytest.raises(ValueError, match=r"'blocks' gives \(1, 10, 1\).*square grid"):
        as_grid(tokens[:, :10], model, "blocks")


def test_the_map_of_a_transformer_is_its_last_tokens_weighed():
    torch.manual_seed(0)
    model = Classifier(Encoder("vit_tiny_patch16_224"), 3).eval()
    images = torch.rand(2, 3, 64, 64)
    activations, gradient, logits, _ = evidence(model, images, 1)
    assert activations.shape == gradient.shape == (2, 192, 4, 4)
    # Tokens are averaged, so that each has the same say, and the map is one of sums over channels.
    torch.testing.assert_close(gradient, gradient[..., :1, :1].expand_as(gradient))
    maps = grad_cam(model, images, 1).maps
    torch.testing.assert_close(maps, (activations * gradient).sum(dim=1).relu())
    torch.testing.assert_close(logits, model(images).detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)]),
        ("swin_tiny_patch4_window7_224", [f"layers.{i}" for i in range(4)]),
        ("convnext_atto", [f"stages.{i}" for i in range(4)]),
        ("mobilenetv3_small_050", [f"blocks.{i}" for i in range(6)]),
        ("vgg11", ["features"]),
    ],
)
def test_every_backbone_by_name_has_stages(name, stages):
    assert stage_names(Classifier(Encoder(name), 2)) == stages


def test_channels_that_a_network_keeps_last_are_put_first():
    model = Classifier(Encoder("swin_tiny_patch4_window7_224"), 2).eval()
    explained = grad_cam(model, torch.rand(1, 3, 224, 224), 1)
    assert explained.maps.shape == (1, 7, 7)
