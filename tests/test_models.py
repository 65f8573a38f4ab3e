"""The networks have the shapes, the sizes and the refusals that their docstrings promise."""

import pytest
import torch
import torchvision

from crc_helpers.models import (
    Encoder,
    ProjectionHead,
    build_backbone,
    count_parameters,
    synchronise_statistics,
)


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
        (lambda: build_backbone("resnet8", weights="imagenet"), "resnet8 has no published weights"),
        (lambda: build_backbone("resnet8_fine", weights="imagenet"), "resnet8_fine has no publ"),
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
