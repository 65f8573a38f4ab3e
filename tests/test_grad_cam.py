"""Grad-CAM against pytorch-grad-cam and CAM; any network; what it leaves behind; maps by hand."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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

NIGHTLY = pytest.mark.skipif("CRC_FULL" not in os.environ, reason="tried nightly, with CRC_FULL=1")


def make_model(name="resnet8", classes=3):
    """A random network whose last layer weighs features enough for maps worth comparing."""
    torch.manual_seed(0)
    model = Classifier(Encoder(name), classes).eval()
    nn.init.normal_(model.fc.weight)
    return model


def make_images(n=3, size=64):
    """Coloured squares: maps of them have hot and cold places."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (size, size), mode="nearest")


def assert_same_maps(found, expected, tolerance=1e-4):
    """Hold maps equal to a share of their largest value, which must be there to compare with."""
    top = expected.abs().max()
    assert top > 0
    torch.testing.assert_close(found / top, expected / top, atol=tolerance, rtol=0)


def assert_same_as_peer(maps, theirs):
    """Theirs are scaled to [0, 1] before enlarging, and again after."""
    assert (maps.amax(dim=(1, 2)) > 0).sum() >= 2  # a map of zeros would compare nothing
    size = theirs.shape[-1]
    scaled = scale_cam_image(enlarge(torch.from_numpy(scale_cam_image(maps.numpy())), size))
    np.testing.assert_allclose(scaled, theirs, atol=1e-5)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture
def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).eval()


# --- The map -------------------------------------------------------------------------------------

PLACES_OF = {  # of the activations of networks that keep them otherwise
    "vit": lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (4, 4)),
    "swin": lambda x: x.permute(0, 3, 1, 2),
}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("ours/resnet18", "layer4"),
        ("ours/resnet50", "layer2.0"),
        ("timm/vit_tiny_patch16_224", "blocks.11.norm1"),
        ("torchvision/swin_t", "features.7.1.norm1"),
        pytest.param("torchvision/efficientnet_b0", "features", marks=NIGHTLY),
    ],
)
def test_maps_are_pytorch_grad_cams(name, layer):
    # In float64, because float32 noise grows to 1e-3 through fifty random layers.
    ours = name.startswith("ours/")
    model = (make_model(name[5:]) if ours else build_network(name)).double()
    module = model.encoder.stage(layer) if ours else model.get_submodule(layer)
    pictures, targets = make_images().double(), (0, 1, 2)
    places = next((p for kind, p in PLACES_OF.items() if kind in name), None)
    with GradCAM(model, [module], places) as peer:
        theirs = peer(pictures.clone(), [ClassifierOutputTarget(c) for c in targets])
    assert_same_as_peer(grad_cam(model, pictures, torch.tensor(targets), layer).maps, theirs)


def test_before_one_linear_layer_grad_cam_is_cam_over_the_number_of_cells(model, images):
    with torch.no_grad(), captured(model, "layer3") as outputs:
        model(images)
    cam = torch.einsum("k,nkhw->nhw", model.fc.weight[1].detach(), outputs[0])
    positive = grad_cam(model, images, 1).maps
    model.fc.weight.data.neg_()  # what ReLU hid is the map of the opposite weights
    negative = grad_cam(model, images, 1).maps
    assert_same_maps(positive - negative, cam / 16)  # 4 x 4 cells; nothing is rescaled
    assert positive.min() >= 0 and positive.dtype == torch.float32


def test_by_default_the_last_layer_with_places_and_the_predicted_class_are_explained(model, images):
    assert last_layer(model, images) == "layer3"  # the fourth of resnet8 is empty
    assert layer_names(model, images) == ["layer1", "layer2", "layer3"]
    model.fc.bias.data = torch.tensor([0.0, 0.0, 100.0])
    explanation = grad_cam(model, images)
    assert explanation.targets.tolist() == [2, 2, 2] and explanation.layer == "layer3"
    assert torch.equal(explanation.maps, grad_cam(model, images, 2, "layer3").maps)


def test_every_image_is_explained_as_if_alone_for_a_target_of_its_own(model, images):
    together = grad_cam(model, images, torch.tensor([2, 0, 1]))
    for i, target in enumerate([2, 0, 1]):
        assert_same_maps(together.maps[i], grad_cam(model, images[i : i + 1], target).maps[0])


def test_a_layer_is_explained_before_what_follows_changes_it_in_place(model, images):
    twin = make_model()
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = grad_cam(twin, images, 0, "bn1").maps
    assert_same_maps(grad_cam(model, images, 0, "bn1").maps, expected)


# --- What it leaves, and what it refuses ---------------------------------------------------------


def state_of(model):
    """All that an explanation might change of a network."""
    parameters = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())
    values = [v.clone() for v in model.state_dict().values()]
    return parameters, hooks, [m.training for m in model.modules()], values


def assert_untouched(model, before):
    *others, values = state_of(model)
    assert others == list(before[:3])
    assert all(torch.equal(a, b) for a, b in zip(values, before[3], strict=True))


@pytest.mark.parametrize(
    "prepare",
    [
        lambda m: m.train(),
        lambda m: m.train().encoder.eval(),  # as one who trains the last layer alone does
        lambda m: m.requires_grad_(False),
        lambda m: setattr(m.fc.weight, "grad", torch.ones_like(m.fc.weight)),
    ],
    ids=["training", "head training", "frozen", "with a gradient"],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_network_is_explained_in_any_state_and_left_in_it(model, images, prepare, gradients):
    expected = grad_cam(make_model(), images, 0).maps  # of a twin
    prepare(model)
    before, pictures = state_of(model), images.clone()
    with torch.set_grad_enabled(gradients):
        explanation = grad_cam(model, images, 0)
        assert torch.is_grad_enabled() == gradients
    assert_same_maps(explanation.maps, expected)
    assert_untouched(model, before)
    assert torch.equal(images, pictures) and not images.requires_grad
    assert not explanation.maps.requires_grad and not explanation.logits.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 3}, "out of range: there are 3 classes"),
        ({"target": torch.tensor([0, -1, 1])}, "out of range: there are 3 classes"),
        ({"layer": "layer9"}, r"no layers called 'layer9': .*layer1.*layer3"),
        ({"layer": nn.Conv2d(3, 3, 1)}, "Classifier has no layers called 'Conv2d'"),
        ({"layer": "0.conv1"}, r"has 3 layers called '0\.conv1': .*layer1\.0\.conv1'"),
        ({"layer": "fc"}, "layer 'fc'"),
        ({"images": torch.ones(1, 5, 9, 9)}, "cannot take images of 9"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "torch.uint8.*give float"),
        ({"images": torch.zeros(3, 64, 64)}, r"\(3, 64, 64\): give float \(N, 3, H, W\)"),
        ({"model": nn.Conv2d(3, 3, 3)}, "no layer of Conv2d"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 3))}, r"gives \(1, 3, 62, 62\): wrap it"),
    ],
)
def test_what_cannot_be_explained_is_refused_and_nothing_is_left(model, images, change, message):
    before = state_of(model.train())
    with pytest.raises((ValueError, RuntimeError), match=message):
        grad_cam(**{"model": model, "images": images} | change)
    assert_untouched(model, before)


# --- Any network ---------------------------------------------------------------------------------

# Of a library: name, height x width, layer explained by default, its grid, options.
NETWORKS = """
torchvision/resnet18 64x96 layer4 2x3
timm/vit_tiny_patch16_224 48x80 blocks.11.norm1 3x5 dynamic_img_size=True
timm/hrnet_w18_small 96x96 final_layer 3x3
torchvision/swin_t 64x96 norm 2x3
timm/cait_xxs24_224 64x64 blocks_token_only.1.norm1 4x4 img_size=64
timm/hiera_tiny_224 64x96 blocks.11 2x3 img_size=(64,96)
timm/convit_tiny 64x64 blocks.11.norm1 4x4 img_size=64
timm/xcit_nano_12_p16_224 64x96 cls_attn_blocks.1.norm1 4x6
timm/twins_svt_small 64x96 norm 2x3 img_size=(64,96)
timm/flexivit_small 64x96 blocks.11.norm1 4x6 img_size=(64,96)
timm/deit_tiny_distilled_patch16_224 64x96 blocks.11.norm1 4x6 img_size=(64,96)
timm/vit_small_patch14_reg4_dinov2 70x98 blocks.11.norm1 5x7 img_size=(70,98)
timm/eva02_tiny_patch14_224 70x98 blocks.11 5x7 img_size=(70,98)
timm/crossvit_tiny_240 240x240 blocks.2.fusion.1.norm1 20x20
timm/pit_ti_224 96x96 transformers.2.blocks.3.norm1 3x3 img_size=96
timm/tnt_s_legacy_patch16_224 64x64 blocks.11.norm_out 4x4 img_size=64
timm/volo_d1_224 96x96 norm 6x6 img_size=96
timm/mvitv2_tiny 96x96 norm 3x3 img_size=96
timm/swin_tiny_patch4_window7_224 96x128 norm 3x4 img_size=(96,128),window_size=4
timm/mixer_s32_224 224x224 norm 7x7
timm/gmlp_ti16_224 64x64 norm 4x4 img_size=64
timm/gcvit_xxtiny 224x224 stages.3 7x7
timm/coatnet_0_224 96x96 stages.3 3x3 img_size=96
timm/mobilevit_xxs 96x128 final_conv 3x4
timm/efficientformer_l1 224x224 norm 7x7
torchvision/vgg11 96x128 features 3x4
torchvision/squeezenet1_1 96x128 classifier.1 5x7
torchvision/efficientnet_b0 96x128 features 3x4
torchvision/inception_v3 150x250 Mixed_7c 3x6 init_weights=False
torchvision/maxvit_t 224x224 blocks.3 7x7
"""
NETWORKS = {line.split()[0]: line.split()[1:] for line in NETWORKS.strip().splitlines()}
DAILY = [*NETWORKS][:3]  # the others nightly


def numbers(text, separator):
    return tuple(map(int, text.split(separator)))


def build_network(name):
    """A network with random weights, also where it starts with zeros, which would hide faults."""
    library, short = name.split("/")
    create = torchvision.models.get_model if library == "torchvision" else timm.create_model
    torch.manual_seed(0)
    options = eval(f"dict({''.join(NETWORKS[name][3:])})")
    network = create(short, num_classes=3, **options).eval()
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
    further = {1: [(0, 2), (0, 3), (1, 2), (1, 3)], 2: [(0, 1), (0, 3), (2, 1), (2, 3)]}
    for axis, pairs in further.items():
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
    size, layer, grid, *_ = NETWORKS[name]
    network, pictures = build_network(name), paint_corners(*numbers(size, "x"))
    assert last_layer(network, pictures) == layer
    activations, gradient, *_ = evidence(network, pictures, 0)
    assert activations.shape[2:] == gradient.shape[2:] == numbers(grid, "x")
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


def with_extra(x, first, last):
    """Tokens with some that stand for no place before and after them."""
    return nn.functional.pad(in_rows(x), (0, 0, first, last), value=0.5)


@pytest.mark.parametrize(
    ("arrange", "axis", "place"),
    [
        (in_rows, 1, lambda t: t),
        (partial(with_extra, first=1, last=0), 1, lambda t: t[:, 1:]),
        (partial(with_extra, first=0, last=1), 1, lambda t: t[:, :-1]),
        (partial(with_extra, first=1, last=4), 1, lambda t: t[:, 1:-4]),
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
        lambda x: in_rows(torch.cat([x[:, :, ::2], x[:, :, 1::2]], dim=2)),  # rows 0, 2, 1, 3
        lambda x: in_rows(x).cumsum(dim=1)[:, -1:].expand(-1, 24, -1),  # the same everywhere
    ],
    ids=["columns", "mirrored", "rows interleaved", "no places"],
)
def test_tokens_out_of_place_are_refused(arrange):
    model, images = Tokens(arrange), torch.rand(2, 3, 64, 96)
    with pytest.raises(ValueError, match=r"gives \(N, 24, 8\), in which the places") as error:
        grad_cam(model, images, 0, "tokens")
    assert_refused_with_a_remedy(error, model, images)
    assert last_layer(model, images) == "patches"


def test_a_network_that_keeps_no_place_is_sent_to_occlusion(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
    for layer in (None, "1"):
        with pytest.raises(ValueError, match=r"^[^.]*: take occlusion \(captum\.attr\.Occlusion\)"):
            grad_cam(model, images, 0, layer)


def test_a_class_token_leaves_its_patches_without_a_say(images):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3).eval()
    nn.init.normal_(model.head.weight)
    for layer in ("norm", "blocks.11.mlp"):
        with pytest.raises(ValueError, match="has no say in the score at any place") as error:
            grad_cam(model, images, 0, layer)
        assert_refused_with_a_remedy(error, model, images)
    assert layer_names(model, images) == [*(f"blocks.{i}" for i in range(11)), "blocks.11.norm1"]
    nn.init.zeros_(model.head.weight)  # now nothing speaks for any class, which is an answer
    assert not grad_cam(model, images, 0, "blocks.11").maps.any()


def test_a_broken_network_has_a_map_all_the_same(model, images):
    for parameter in model.encoder.backbone.layer2.parameters():
        nn.init.constant_(parameter, torch.nan)
    assert grad_cam(model, images, 0).maps.shape == (3, 4, 4)


def test_a_layer_that_is_never_called_is_refused(images):
    model = timm.create_model("twins_svt_small", img_size=64, num_classes=3).eval()
    with pytest.raises(ValueError, match=r"layer 'blocks\.3' is never called itself") as error:
        grad_cam(model, images, 0, "blocks.3")  # a list of the last stage's blocks
    assert_refused_with_a_remedy(error, model, images)
    assert stage_names(model)[-1] == "blocks.3.3"


def test_a_module_called_again_and_again_is_explained_by_its_last_call(resnet18, images):
    shared = resnet18.layer4[1].relu  # called twice in its block
    expected = grad_cam(resnet18, images, 0, "layer4").maps
    assert_same_maps(grad_cam(resnet18, images, 0, shared).maps, expected)


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


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.Sequential(nn.Identity(), m)])
def test_a_network_may_be_wrapped(wrap, resnet18, images):
    expected, wrapped = grad_cam(resnet18, images, 0, "layer3").maps, wrap(resnet18)
    for layer in ("layer3", resnet18.layer3, f"{list(wrapped._modules)[-1]}.layer3"):
        assert_same_maps(grad_cam(wrapped, images, 0, layer).maps, expected)
    assert last_layer(wrapped, images).endswith("layer4")


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
    expected = grad_cam(model, images, 0).maps
    with torch.inference_mode():
        found, made_here = grad_cam(model, images.clone(), 0).maps, make_model()
    assert_same_maps(found, expected)
    with pytest.raises(ValueError, match=r"made in torch\.inference_mode\(\): make it outside"):
        grad_cam(made_here, images)


def test_threads_take_turns(model, images):
    expected = grad_cam(model, images, 0).maps
    model.train()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: grad_cam(model, images, 0).maps, range(15)))
    for maps in found:
        assert_same_maps(maps, expected)
    assert all(module.training for module in model.modules())


# --- Maps by hand --------------------------------------------------------------------------------


def test_enlarging_repeats_cells_or_stays_between_them():
    maps = torch.tensor([[[0.0, 4.0], [4.0, 8.0]]])
    expected = maps.numpy().repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(enlarge(maps, 6, smooth=False), expected)
    smooth = enlarge(maps, 8)
    assert smooth.dtype == np.float32
    assert smooth.min() == 0 and smooth.max() == 8  # raw values: nothing is rescaled
    assert smooth[0, 0].tolist() == [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]


def make_map(*rectangles, size=20):
    """A map of zeros with rectangles (x, y, width, height, value) drawn in this order."""
    drawn = np.zeros((size, size), np.float32)
    for x, y, width, height, value in rectangles:
        drawn[y : y + height, x : x + width] = value
    return drawn


TOWER = ((2, 2, 10, 10, 2.0), (5, 5, 3, 3, 4.0))
RING = ((2, 2, 16, 16, 1.0), (4, 4, 12, 12, 0.0), (8, 9, 4, 3, 1.0))


@pytest.mark.parametrize(
    ("rectangles", "threshold", "expected"),
    [
        (((1, 2, 3, 4, 1.0), (10, 8, 6, 5, 0.9)), 0.5, [(10, 8, 6, 5), (1, 2, 3, 4)]),
        (((1, 2, 12, 1, 1.0), (4, 10, 3, 3, 1.0)), 0.5, [(1, 2, 12, 1), (4, 10, 3, 3)]),  # pixels
        (RING, 0.5, [(2, 2, 16, 16), (8, 9, 4, 3)]),  # one inside the other
        (((0, 0, 20, 20, 0.3),), 0.5, [(0, 0, 20, 20)]),
        ((), 0.5, []),
        (TOWER, 0.5, [(2, 2, 10, 10)]),  # the share of the maximum itself is in
        (TOWER, 0.51, [(5, 5, 3, 3)]),
    ],
)
def test_boxes_by_hand(rectangles, threshold, expected):
    found = boxes(make_map(*rectangles), threshold)
    assert found == expected and all(type(v) is int for box in found for v in box)


def test_a_threshold_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"threshold.*\(0, 1\]"):
        boxes(make_map(), 1.01)


CASES = [  # map, share of its mass in the left half, whether its maximum is there
    (make_map((1, 1, 4, 4, 2.0)), 1.0, 1.0),
    (make_map((12, 1, 4, 4, 2.0)), 0.0, 0.0),
    (np.ones((20, 20), np.float32), 0.5, 1.0),  # of equal maxima the first counts
    (make_map((8, 0, 3, 2, 1.0), (8, 0, 1, 2, 2.0)), 0.75, 1.0),
    (make_map(), np.nan, np.nan),
]


def test_mass_and_hits_by_hand():
    maps, mass, hit = (np.array(column) for column in zip(*CASES, strict=True))
    regions = np.stack([make_map((0, 0, 10, 20, 1)).astype(np.uint8)] * len(maps))
    np.testing.assert_allclose(mass_inside(maps, regions), mass, rtol=1e-6)
    np.testing.assert_array_equal(hits(maps, regions), hit)


def test_overlap_takes_as_many_pixels_as_the_region_has():
    region = make_map((4, 4, 4, 4, 1.0))
    maps = [
        region * 3 + 0.5,
        make_map((6, 4, 4, 4, 1.0)),
        make_map((12, 12, 4, 4, 1.0)),
        0 * region,
    ]
    found = overlap(np.stack(maps), np.stack([region.astype(np.uint8)] * 4))
    # Half of 16 pixels shared: 8 of the 24 that either has.
    np.testing.assert_allclose(found, [1, 1 / 3, 0, np.nan])
    masks = np.stack([region < 0, region >= 0]).astype(np.uint8)  # nothing, and the whole tile
    assert overlap(np.stack([region] * 2), masks).tolist() == [0, 1]


def test_no_tile_has_no_score():
    """Of a network that recognises nothing there is nothing to score, and nothing to crash on."""
    maps, masks = np.zeros((0, 8, 8)), np.zeros((0, 8, 8), np.uint8)
    for score in (hits, mass_inside, overlap):
        assert score(maps, masks).shape == (0,)
