"""Grad-CAM against pytorch-grad-cam and CAM; any network; what it leaves behind; maps by hand."""

import os
import re
import threading

import numpy as np
import pytest
import timm
import torch
import torchvision
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
    last_layer,
    layer_names,
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
    with torch.no_grad(), captured(model, "layer4") as outputs:
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


def test_by_default_the_last_layer_with_places_is_explained(model, images):
    assert last_layer(model, images) == "layer3"  # the fourth of resnet8 is empty
    assert layer_names(model, images) == ["layer1", "layer2", "layer3"]
    assert torch.equal(grad_cam(model, images, 0).maps, grad_cam(model, images, 0, "layer3").maps)


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
    with pytest.raises(KeyError, match="inside"), captured(model, "fc") as outputs:
        model(images)
        assert count_hooks(model) == 1
        raise KeyError("inside")
    assert count_hooks(model) == 0
    model(images)
    assert len(outputs) == 1


def test_a_layer_that_is_not_there_is_refused_naming_those_that_are(model, images):
    with pytest.raises(ValueError, match=r"no layers called 'layer9': .*layer1.*layer3"):
        grad_cam(model, images, layer="layer9")


# --- Any network ---------------------------------------------------------------------------------

NIGHTLY = pytest.mark.skipif("CRC_FULL" not in os.environ, reason="tried nightly, with CRC_FULL=1")
NETWORKS = {  # by library and name: options, height and width, layer explained by default, its grid
    "torchvision/resnet18": ({}, (64, 96), "layer4", (2, 3)),
    "torchvision/swin_t": ({}, (64, 96), "norm", (2, 3)),
    "timm/vit_tiny_patch16_224": ({"dynamic_img_size": True}, (48, 80), "blocks.11.norm1", (3, 5)),
    "timm/convit_tiny": ({"img_size": 64}, (64, 64), "blocks.11.norm1", (4, 4)),
    "timm/cait_xxs24_224": ({"img_size": 64}, (64, 64), "blocks_token_only.1.norm1", (4, 4)),
    "timm/xcit_nano_12_p16_224": ({}, (64, 96), "cls_attn_blocks.1.norm1", (4, 6)),
    "timm/hrnet_w18_small": ({}, (96, 96), "final_layer", (3, 3)),
    "timm/hiera_tiny_224": ({"img_size": (64, 96)}, (64, 96), "blocks.11", (2, 3)),
    "timm/twins_svt_small": ({"img_size": (64, 96)}, (64, 96), "norm", (2, 3)),
    "timm/twins_pcpvt_small": ({"img_size": (64, 96)}, (64, 96), "norm", (2, 3)),
    "timm/flexivit_small": ({"img_size": (64, 96)}, (64, 96), "blocks.11.norm1", (4, 6)),
    "torchvision/vit_b_16": (
        {"image_size": 64},
        (64, 64),
        "encoder.layers.encoder_layer_11.ln_1",
        (4, 4),
    ),
    "timm/deit_tiny_distilled_patch16_224": (
        {"img_size": (64, 96)},
        (64, 96),
        "blocks.11.norm1",
        (4, 6),
    ),
    "timm/vit_small_patch14_reg4_dinov2": (
        {"img_size": (70, 98)},
        (70, 98),
        "blocks.11.norm1",
        (5, 7),
    ),
    "timm/eva02_tiny_patch14_224": ({"img_size": (70, 98)}, (70, 98), "blocks.11", (5, 7)),
    "timm/crossvit_tiny_240": ({}, (240, 240), "blocks.2.fusion.1.norm1", (20, 20)),
    "timm/coat_lite_tiny": ({"img_size": 96}, (96, 96), "serial_blocks4.1.norm1", (3, 3)),
    "timm/pit_ti_224": ({"img_size": 96}, (96, 96), "transformers.2.blocks.3.norm1", (3, 3)),
    "timm/tnt_s_legacy_patch16_224": ({"img_size": 64}, (64, 64), "blocks.11.norm_out", (4, 4)),
    "timm/volo_d1_224": ({"img_size": 96}, (96, 96), "norm", (6, 6)),
    "timm/mvitv2_tiny": ({"img_size": 96}, (96, 96), "norm", (3, 3)),
    "timm/pvt_v2_b0": ({}, (96, 128), "stages.3", (3, 4)),
    "timm/swin_tiny_patch4_window7_224": (
        {"img_size": (96, 128), "window_size": 4},
        (96, 128),
        "norm",
        (3, 4),
    ),
    "timm/mixer_s32_224": ({}, (224, 224), "norm", (7, 7)),
    "timm/gmlp_ti16_224": ({"img_size": 64}, (64, 64), "norm", (4, 4)),
    "timm/resmlp_12_224": ({"img_size": 64}, (64, 64), "norm", (4, 4)),
    "timm/poolformer_s12": ({}, (96, 128), "stages.3", (3, 4)),
    "timm/nest_tiny": ({"img_size": 64}, (64, 64), "norm", (4, 4)),
    "timm/gcvit_xxtiny": ({}, (224, 224), "stages.3", (7, 7)),
    "timm/coatnet_0_224": ({"img_size": 96}, (96, 96), "stages.3", (3, 3)),
    "timm/edgenext_xx_small": ({}, (96, 128), "stages.3", (3, 4)),
    "timm/mobilevit_xxs": ({}, (96, 128), "final_conv", (3, 4)),
    "timm/efficientformer_l1": ({}, (224, 224), "norm", (7, 7)),
    "timm/davit_tiny": ({}, (96, 128), "stages.3", (3, 4)),
    "timm/focalnet_tiny_srf": ({}, (96, 128), "norm", (3, 4)),
    "timm/visformer_tiny": ({"img_size": 96}, (96, 96), "norm", (3, 3)),
    "timm/vitamin_small_224": ({"img_size": 96}, (96, 96), "blocks.13", (6, 6)),
    "timm/sequencer2d_s": ({"img_size": 96}, (96, 96), "norm", (6, 6)),
    "torchvision/vgg11": ({}, (96, 128), "features", (3, 4)),
    "torchvision/alexnet": ({}, (96, 160), "features", (2, 4)),
    "torchvision/densenet121": ({}, (96, 128), "features", (3, 4)),
    "torchvision/squeezenet1_1": ({}, (96, 128), "classifier.1", (5, 7)),
    "torchvision/mobilenet_v3_small": ({}, (96, 128), "features", (3, 4)),
    "torchvision/mnasnet0_5": ({}, (96, 128), "layers", (3, 4)),
    "torchvision/shufflenet_v2_x0_5": ({}, (96, 128), "conv5", (3, 4)),
    "torchvision/efficientnet_b0": ({}, (96, 128), "features", (3, 4)),
    "torchvision/regnet_y_400mf": ({}, (96, 128), "trunk_output", (3, 4)),
    "torchvision/googlenet": ({"init_weights": False}, (96, 128), "inception5b", (3, 4)),
    "torchvision/inception_v3": ({"init_weights": False}, (150, 250), "Mixed_7c", (3, 6)),
    "torchvision/convnext_tiny": ({}, (96, 128), "features", (3, 4)),
    "torchvision/swin_v2_t": ({}, (96, 128), "norm", (3, 4)),
    "torchvision/maxvit_t": ({}, (224, 224), "blocks.3", (7, 7)),
    "timm/dpn68": ({}, (96, 128), "features", (3, 4)),
    "timm/fastvit_t8": ({}, (96, 128), "final_conv", (3, 4)),
    "timm/mambaout_femto": ({}, (96, 128), "stages.3", (3, 4)),
    "timm/starnet_s1": ({}, (96, 128), "norm", (3, 4)),
    "timm/tresnet_m": ({}, (96, 128), "body", (3, 4)),
}
DAILY = [*NETWORKS][:8]  # the others nightly


def build_network(name):
    """A network with random weights, also where it starts with zeros, which would hide faults."""
    library, name = name.split("/")
    create = torchvision.models.get_model if library == "torchvision" else timm.create_model
    torch.manual_seed(0)
    network = create(name, num_classes=3, **NETWORKS[f"{library}/{name}"][0]).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if not key.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.1)
    return network


def paint_corners(height, width):
    """A picture of noise, and four copies with one quarter-sided corner painted over: top left, top
    right, bottom left, bottom right.
    """
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(5))
    pictures = noise.repeat(5, 1, 1, 1)
    h, w = height // 4, width // 4
    for picture, (y, x) in zip(pictures[1:], [(0, 0), (0, -w), (-h, 0), (-h, -w)], strict=True):
        picture[:, y:, x:][:, :h, :w] = torch.tensor([1.0, 0.0, 0.2])[:, None, None]
    return pictures


def assert_follows(activations):
    """Hold that what changes lies further down and right where the picture is changed there."""
    changed = (activations[1:] - activations[:1]).abs().sum(dim=1)  # (4, h, w)
    for axis, pairs in (
        (1, [(0, 2), (0, 3), (1, 2), (1, 3)]),
        (2, [(0, 1), (0, 3), (2, 1), (2, 3)]),
    ):
        if changed.shape[axis] > 1:
            share = changed.sum(dim=3 - axis)
            middle = (share * torch.arange(share.shape[1])).sum(dim=1) / share.sum(dim=1)
            assert all(middle[a] < middle[b] for a, b in pairs), middle


def assert_refused_with_a_remedy(error, model, images):
    """Hold that an error is one sentence, and that the layer it names is explained."""
    message = str(getattr(error, "value", error))
    remedy = re.fullmatch(r"layer '\S+' [^.\n]*: take layer='(\S+)'", message)
    assert remedy, message
    assert grad_cam(model, images, 0, remedy[1]).maps.ndim == 3


@pytest.mark.parametrize(
    "name", [n if n in DAILY else pytest.param(n, marks=NIGHTLY) for n in NETWORKS]
)
def test_the_map_of_any_network_lies_on_the_picture(name):
    _, size, layer, grid = NETWORKS[name]
    network, pictures = build_network(name), paint_corners(*size)
    assert last_layer(network, pictures) == layer
    activations, gradient, *_ = evidence(network, pictures, 0)
    assert activations.shape[2:] == gradient.shape[2:] == grid
    assert gradient.any()
    assert_follows(activations)
    # Any other layer is laid on the picture too, or refused in a sentence that says what to take.
    modules = [*network.named_modules()][1:]
    for other, module in modules[:: len(modules) // 6]:
        try:
            activations = evidence(network, pictures, 0, other)[0]
        except ValueError as error:
            assert_refused_with_a_remedy(error, network, pictures)
            continue
        # Half a step of a random convolution is a blur; but its channels are first in any case.
        convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
        if not convolves and min(activations.shape[2:]) > 2:
            assert_follows(activations)


class Tokens(nn.Module):
    """Patches of 16 pixels, and the same as tokens in another order, which are averaged."""

    def __init__(self, arrange, axis=1):
        super().__init__()
        self.patches, self.arrange, self.axis = nn.Conv2d(3, 8, 16, 16), arrange, axis
        self.tokens, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.tokens(self.arrange(self.patches(images))).mean(dim=self.axis))


def in_rows(x):
    """Cells (N, K, h, w) as tokens (N, T, K), row by row."""
    return x.flatten(2).transpose(1, 2)


def with_extra(first, last):
    """Tokens with some that stand for no place before and after them."""
    return lambda x: nn.functional.pad(in_rows(x), (0, 0, first, last), value=0.5)


@pytest.mark.parametrize(
    ("arrange", "axis", "place"),
    [
        (in_rows, 1, lambda t: t),
        (with_extra(1, 0), 1, lambda t: t[:, 1:]),
        (with_extra(0, 1), 1, lambda t: t[:, :-1]),
        (with_extra(1, 4), 1, lambda t: t[:, 1:-4]),
        (lambda x: in_rows(x).transpose(0, 1), 0, lambda t: t.transpose(0, 1)),
    ],
    ids=["tokens", "class first", "class last", "class first, registers last", "tokens outermost"],
)
def test_tokens_return_to_their_places(arrange, axis, place):
    model, images = Tokens(arrange, axis), torch.rand(2, 3, 64, 96)
    with captured(model, "tokens") as outputs:
        model(images)
    expected = place(outputs[0].detach()).transpose(1, 2).unflatten(2, (4, 6))
    assert torch.equal(as_grid(outputs[0], model, "tokens", images), expected)
    assert torch.equal(evidence(model, images, 1)[0], expected)  # and it is the default


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: in_rows(x.transpose(2, 3)),  # column by column
        lambda x: in_rows(x.flip(3)),
        lambda x: in_rows(x)[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))],
        lambda x: in_rows(torch.cat([x[:, :, ::2], x[:, :, 1::2]], dim=2)),  # rows 0, 2, 1, 3
        lambda x: in_rows(x).cumsum(dim=1)[:, -1:].expand(-1, 24, -1),  # the same everywhere
    ],
    ids=["columns", "mirrored", "shuffled", "rows interleaved", "no places"],
)
def test_tokens_out_of_place_are_refused(arrange):
    model, images = Tokens(arrange), torch.rand(2, 3, 64, 96)
    with pytest.raises(ValueError, match=r"gives \(N, 24, 8\), in which the places") as error:
        grad_cam(model, images, 0, "tokens")
    assert_refused_with_a_remedy(error, model, images)
    assert last_layer(model, images) == "patches"


def test_channels_are_told_from_places_where_both_are_as_many(images):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 3)
            self.last = nn.LayerNorm(8)

        def forward(self, x):
            x = self.first(x)  # (N, 8, 8, 8), channels first
            return self.head(self.last(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))

    model = Both()
    with captured(model, "last") as outputs:
        first = model.first(images)
        model(images)
    assert torch.equal(as_grid(first, model, "first", images), first)
    assert torch.equal(as_grid(outputs[0], model, "last", images), outputs[0].permute(0, 3, 1, 2))


def test_a_network_that_keeps_no_place_is_sent_to_occlusion(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
    for layer in (None, "1"):
        with pytest.raises(ValueError, match=r"^[^.]*: take occlusion \(captum\.attr\.Occlusion\)"):
            grad_cam(model, images, 0, layer)


def test_a_class_token_leaves_its_patches_without_a_say():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    nn.init.normal_(model.head.weight)
    images = torch.rand(2, 3, 64, 64)
    for layer in ("norm", "blocks.11", "blocks.11.mlp"):
        with pytest.raises(ValueError, match="has no say in the score at any place") as error:
            grad_cam(model, images, 0, layer)
        assert_refused_with_a_remedy(error, model, images)
    assert layer_names(model, images) == [*(f"blocks.{i}" for i in range(11)), "blocks.11.norm1"]
    nn.init.zeros_(model.head.weight)  # now nothing speaks for any class, which is an answer
    assert not grad_cam(model, images, 0, "blocks.11").maps.any()


@pytest.mark.parametrize("break_it", [torch.zero_, lambda p: p.fill_(torch.nan)])
def test_a_broken_network_has_a_map_all_the_same(model, images, break_it):
    with torch.no_grad():
        for parameter in model.encoder.backbone.layer2.parameters():
            break_it(parameter)
    assert grad_cam(model, images, 0).maps.shape == (3, 4, 4)


def test_a_layer_that_is_no_module_of_the_network_or_never_called_is_refused(images):
    model = timm.create_model("twins_svt_small", img_size=64, num_classes=3).eval()
    with pytest.raises(ValueError, match=r"layer 'blocks\.3' is never called itself") as error:
        grad_cam(model, images, 0, "blocks.3")  # a list of the last stage's blocks
    assert_refused_with_a_remedy(error, model, images)
    assert stage_names(model)[-1] == "blocks.3.3"
    with pytest.raises(ValueError, match="Twins has no layers called 'Conv2d'"):
        grad_cam(model, images, 0, nn.Conv2d(3, 3, 1))


def test_a_name_of_several_layers_is_refused(images):
    with pytest.raises(ValueError, match=r"has 4 layers called '0\.conv1': .*'layer1\.0\.conv1'"):
        grad_cam(torchvision.models.resnet18(), images, 0, "0.conv1")


def test_a_module_called_again_and_again_is_explained_by_its_last_call(images):
    model = torchvision.models.resnet18(num_classes=3).eval()
    shared = model.layer4[1].relu  # called twice in its block
    expected = grad_cam(model, images, 0, "layer4").maps
    assert_same_maps(grad_cam(model, images, 0, "layer4.1.relu").maps, expected)
    assert_same_maps(grad_cam(model, images, 0, shared).maps, expected)


def test_calls_side_by_side_are_refused(model, images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.stem = model, nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.network(x) + self.network(x / 2)

    with pytest.raises(ValueError, match="acts on the score in 2 calls") as error:
        grad_cam(Twice(), images, 0, "layer3")
    assert_refused_with_a_remedy(error, Twice(), images)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, nn.Sequential, lambda m: nn.Sequential(nn.Identity(), m)]
)
def test_a_network_may_be_wrapped(wrap, images):
    model = torchvision.models.resnet18(num_classes=3).eval()
    expected = grad_cam(model, images, 0, "layer3").maps
    for layer in ("layer3", model.layer3, f"{list(wrap(model)._modules)[-1]}.layer3"):
        assert_same_maps(grad_cam(wrap(model), images, 0, layer).maps, expected)
    assert last_layer(wrap(model), images).endswith("layer4")


def test_a_network_may_compute_its_features_without_gradients(model, images):
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.fc = model.encoder, model.fc

        def forward(self, x):
            with torch.no_grad():
                features = self.encoder(x)
            return self.fc(features)

    assert_same_maps(grad_cam(Probe(), images, 0).maps, grad_cam(model, images, 0).maps)


def test_a_network_is_explained_in_inference_mode(model, images):
    expected = grad_cam(model, images, torch.tensor([0, 1, 2])).maps
    with torch.inference_mode():
        found = grad_cam(model, images.clone(), torch.tensor([0, 1, 2])).maps
        made_here = make_model()
        assert torch.is_inference_mode_enabled()
    assert_same_maps(found, expected)
    with pytest.raises(ValueError, match=r"made in torch\.inference_mode\(\): make it outside"):
        grad_cam(made_here, images)


def test_threads_take_turns(model, images):
    expected, found = grad_cam(model, images, 0).maps, []
    model.train()

    def explain():
        found.extend(grad_cam(model, images, 0).maps for _ in range(5))

    threads = [threading.Thread(target=explain) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for maps in found:
        assert_same_maps(maps, expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "torch.uint8.*give float"),
        ({"images": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\): give float \(N, 3, H, W\)"),
        ({"model": nn.Conv2d(3, 3, 3)}, "no layer of Conv2d"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 3))}, r"gives \(1, 3, 62, 62\): wrap it"),
    ],
)
def test_what_cannot_be_explained_is_refused(model, images, change, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(**{"model": model, "images": images} | change)


def drop_class_token(x):
    return x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize(
    ("name", "layer", "as_cells"),
    [
        ("timm/vit_tiny_patch16_224", "blocks.11.norm1", drop_class_token),
        ("torchvision/swin_t", "features.7.1.norm1", lambda x: x.permute(0, 3, 1, 2)),
        pytest.param("torchvision/efficientnet_b0", "features", None, marks=NIGHTLY),
        pytest.param("timm/convnext_atto", "stages.3", None, marks=NIGHTLY),
    ],
)
def test_maps_of_other_networks_are_pytorch_grad_cams(name, layer, as_cells):
    options = {"img_size": 64} if "vit" in name else {}
    NETWORKS.setdefault(name, (options,))
    model, images = build_network(name).double(), make_images(3, 64).double()
    with GradCAM(model, [model.get_submodule(layer)], as_cells) as reference:
        theirs = reference(images.clone(), [ClassifierOutputTarget(c) for c in (0, 1, 2)])
    ours = grad_cam(model, images, torch.tensor([0, 1, 2]), layer).maps
    assert (ours.amax(dim=(1, 2)) > 0).any()
    scaled = scale_cam_image(enlarge(torch.from_numpy(scale_cam_image(ours.numpy())), 64))
    np.testing.assert_allclose(scaled, theirs, atol=1e-5)


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
