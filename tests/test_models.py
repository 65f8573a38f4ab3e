"""The networks have the shapes, the sizes and the refusals that their docstrings promise."""

import pytest
import torch
import torchvision
from torch import nn

from crc_helpers import models
from crc_helpers.models import (
    Classifier,
    Encoder,
    ProjectionHead,
    build_backbone,
    count_parameters,
)


@pytest.fixture(scope="module")
def encoder():
    return Encoder("resnet8").eval()


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("resnet8", 256),
        ("resnet18", 512),
        ("resnet50", 2048),
        ("resnet10t", 512),
        ("mobilenetv3_small_050", 1024),  # of timm
    ],
)
def test_an_encoder_gives_one_feature_vector_an_image(name, dim):
    encoder = Encoder(name).eval()
    assert encoder.dim == dim
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, dim)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s"])
def test_a_size_that_a_backbone_is_not_built_for_is_refused_naming_both(name):
    message = rf"{name} cannot take images of 100 pixels: change BACKBONE, or IMAGE_SIZE to .*224"
    with pytest.raises(ValueError, match=message):
        Encoder(name)(torch.rand(2, 3, 100, 100))


def test_resnet8_has_six_by_six_cells_at_96_px(encoder):
    shapes = []
    stage = encoder.stage("layer3")
    handle = stage.register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    encoder(torch.rand(1, 3, 96, 96))
    handle.remove()
    assert shapes == [(1, 256, 6, 6)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_torchvisions_without_its_last_layer(name):
    theirs = torchvision.models.get_model(name, weights=None)
    without_fc = count_parameters(theirs) - count_parameters(theirs.fc)
    assert count_parameters(build_backbone(name)) == without_fc


def test_an_encoder_keeps_no_classification_weights(encoder):
    assert not [key for key in encoder.state_dict() if "fc" in key]


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(ValueError, match="resnet19000"):
        build_backbone("resnet19000")


def test_a_network_that_timm_cannot_build_like_the_others_is_refused_by_name():
    with pytest.raises(ValueError, match="'vit_relpos_small_patch16_224' has options of its own"):
        build_backbone("vit_relpos_small_patch16_224")


def test_weights_that_nobody_published_are_refused():
    with pytest.raises(ValueError, match="resnet8 has no published weights"):
        build_backbone("resnet8", weights="imagenet")


def test_a_stage_is_the_module_of_that_name(encoder):
    assert encoder.stage("layer2") is encoder.backbone.layer2
    assert encoder.stage("layer2.0.conv1") is encoder.backbone.layer2[0].conv1


def test_a_stage_that_is_not_there_is_refused_naming_those_that_are(encoder):
    with pytest.raises(ValueError, match=r"layer9.*layer1.*layer3"):
        encoder.stage("layer9")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_maps_features_to_the_loss_space(kind):
    assert ProjectionHead(32, out_dim=8, kind=kind)(torch.rand(5, 32)).shape == (5, 8)


def is_affine(function):
    """Whether f(a + b) + f(0) = f(a) + f(b), which holds for affine maps alone."""
    a, b = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    left, right = function(a + b) + function(torch.zeros_like(a)), function(a) + function(b)
    return torch.allclose(left, right, atol=1e-5)


def test_the_papers_head_is_one_linear_layer():
    head = ProjectionHead(32, out_dim=8)
    assert count_parameters(head) == 32 * 8 + 8
    assert is_affine(head)


def test_simclrs_head_has_a_hidden_layer_and_bends():
    head = ProjectionHead(32, out_dim=8, kind="mlp")
    assert count_parameters(head) == 32 * 32 + 32 + 32 * 8 + 8
    assert not is_affine(head)


def test_an_unknown_head_is_refused_naming_the_kinds():
    with pytest.raises(ValueError, match=r"'conv'.*linear.*mlp"):
        ProjectionHead(32, kind="conv")


def test_a_classifier_is_one_linear_layer_on_the_features(encoder):
    classifier, images = Classifier(encoder, num_classes=3).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(images) @ classifier.fc.weight.T + classifier.fc.bias
        torch.testing.assert_close(classifier(images), expected)
    assert expected.shape == (2, 3)


def test_counting_leaves_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert count_parameters(model) == 4 * 2 + 2


def test_batch_normalisation_of_another_kind_is_refused_on_several_devices():
    network = models.Encoder("mobilenetv3_small_050")
    with pytest.raises(ValueError, match=r"BatchNormAct2d.*one device"):
        models.synchronise_statistics(network, torch.device("meta"))


def test_several_cpus_are_refused():
    with pytest.raises(ValueError, match="several devices need GPUs"):
        models.synchronise_statistics(models.Encoder("resnet8"), torch.device("cpu"))
