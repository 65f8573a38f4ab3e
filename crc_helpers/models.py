"""Networks of the course: encoder, projection head, classifier (lessons 03 and 04).

Every network takes float images (N, 3, H, W) scaled to [0, 1], as the paper does. In a ResNet batch
normalisation in the first block makes a further standardisation unnecessary; other networks, and
published weights, which were trained on standardised images, have to adapt.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, ResNet

from crc_helpers.runs import RunError, misfit, note_weights


def build_backbone(name: str, weights: str | None = None) -> nn.Module:
    """Return a network without its classification layer, with `num_features` set.

    name: "resnet8" (for CPUs: the first three stages of a ResNet with one block each; at 96 px its
    map has 6 x 6 cells, about the 7 x 7 of ResNet-50 at 224 px), any ResNet of torchvision
    ("resnet18", "resnet50"), or any model name of timm. weights: None for random, "imagenet" for
    the library's own (on disk, or fetched by the library).

    Raises ValueError for a name that neither library knows, or that timm cannot build like this.
    """
    if name == "resnet8":
        if weights:
            raise ValueError(
                "resnet8 has no published weights: set BACKBONE to resnet18 or resnet50"
            )
        network: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1])
        network.layer4, network.fc = nn.Identity(), nn.Linear(256, 1)
    elif name in torchvision.models.list_models(include="resnet*"):
        network = torchvision.models.get_model(name)
        if weights:
            published = torchvision.models.get_model_weights(name).DEFAULT
            network.load_state_dict(published.get_state_dict(check_hash=True, weights_only=True))
    else:
        import timm  # seconds to import, and rarely needed

        if name not in timm.list_models():
            raise ValueError(
                f"backbone {name!r} is unknown: give resnet8, resnet18, resnet50 or a model of timm"
            )
        # A ViT takes any size of tile, and averages its tokens as a ResNet its cells: a class token
        # would leave the others without a gradient in the last block, and Grad-CAM without a map.
        vit = {"dynamic_img_size": True} if name.startswith(("vit_", "deit")) else {}
        pool = {"global_pool": "avg"} if vit and not weights else {}
        try:
            network = timm.create_model(
                name, pretrained=bool(weights), num_classes=0, **vit, **pool
            )
        except (AssertionError, TypeError) as error:
            raise ValueError(
                f"backbone {name!r} has options of its own ({error}): build it with timm and give"
                " the network in place of its name"
            ) from error
        # Some, as MobileNetV3 and VGG, have a layer more behind their pooling.
        network.num_features = getattr(network, "head_hidden_size", network.num_features)
        return network
    network.num_features = network.fc.in_features
    network.fc = nn.Identity()
    return network


def published_on_disk(name: str) -> bool:
    """Return whether torchvision's weights of a ResNet lie on disk, so that nothing is fetched."""
    address = torchvision.models.get_model_weights(name).DEFAULT.url
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(address).name).is_file()


class Encoder(nn.Module):
    """Backbone up to its global average pooling: images (N, 3, H, W) to features (N, D).

    backbone: a name that `build_backbone` knows, or a network of your own with `num_features` set.
    Images of a size that the backbone is not built for raise ValueError.
    """

    def __init__(self, backbone: str | nn.Module = "resnet50", weights: str | None = None) -> None:
        super().__init__()
        named = isinstance(backbone, str)
        self.name = backbone if named else type(backbone).__name__
        self.backbone = build_backbone(backbone, weights) if named else backbone
        self.dim: int = self.backbone.num_features

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.backbone(images)  # (N, 3, H, W) -> (N, D)
        except AssertionError as error:  # transformers of timm are built for one size, or for steps
            raise ValueError(
                f"{self.name} cannot take images of {images.shape[-1]} pixels ({error}): change"
                " IMAGE_SIZE or BACKBONE"
            ) from error

    def stage(self, name: str) -> nn.Module:
        """Return the module called `name` inside the backbone, e.g. "layer4".

        Raises ValueError naming the layers there are.
        """
        modules = dict(self.backbone.named_modules())
        if name not in modules:
            names = [n for n, _ in self.backbone.named_children()]
            raise ValueError(f"{self.name} has no layer {name!r}: choose one of {names}")
        return modules[name]


class ProjectionHead(nn.Module):
    """Map from features (N, D) to the space of the contrastive loss (N, `out_dim`).

    kind "linear" is the paper's; "mlp" is SimCLR's (Chen et al. 2020, arXiv 2002.05709).
    """

    def __init__(self, dim: int, out_dim: int = 128, kind: str = "linear") -> None:
        super().__init__()
        self.out_dim = out_dim
        if kind == "linear":
            self.layers: nn.Module = nn.Linear(dim, out_dim)
        elif kind == "mlp":
            self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))
        else:
            raise ValueError(f"HEAD is {kind!r}: choose 'linear' (the paper's) or 'mlp' (SimCLR's)")

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)  # (N, D) -> (N, out_dim)


class Classifier(nn.Module):
    """Encoder and one linear layer: images (N, 3, H, W) to logits (N, C)."""

    def __init__(self, encoder: Encoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(images))  # (N, 3, H, W) -> (N, D) -> (N, C)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, for CPUs: torch's needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world, given = torch.distributed.get_world_size(), x.dtype
        x = x.to(torch.promote_types(given, torch.float32))  # sums of bf16 would be too coarse
        mean = all_reduce(x.mean(dim=(0, 2, 3))) / world  # (C,); the processes' shares are equal
        centred = x - mean.view(-1, 1, 1)
        variance = all_reduce(centred.square().mean(dim=(0, 2, 3))) / world
        n = x.numel() // x.shape[1] * world
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(given)


def synchronise_statistics(module: nn.Module, device: torch.device) -> None:
    """Make batch normalisation, in place, one over the images of all processes.

    Raises ValueError for a kind that would not be the same afterwards, such as timm's with an
    activation inside.
    """
    kinds = {type(part) for part in module.modules() if isinstance(part, _BatchNorm)}
    if other := kinds - {nn.BatchNorm2d, nn.SyncBatchNorm, SynchronisedBatchNorm2d}:
        raise ValueError(
            f"BACKBONE has {other.pop().__name__}, which several devices cannot share: take one"
            " device, or a ResNet of torchvision, or a network without batch normalisation"
        )
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronisedBatchNorm2d  # the same weights and buffers


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """Switch a network to evaluation mode for a block; every module gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield network.eval()
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# --- Weight files ---------------------------------------------------------------------------------


class Facts(dict):
    """The metadata of a weight file; what it lacks is said with the file's name."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self.path = path

    def __missing__(self, name: str) -> None:
        raise RunError(f"{self.path} does not say its {name}: take weights that a lesson has made")


def read_facts(path: Path) -> dict[str, Any]:
    """Return the metadata of a weight file.

    Raises RunError where the file is missing or is no safetensors file, on asking for a fact that
    it lacks, and for a size that is none or a network that it is too small to fill.
    """
    if not path.is_file():
        raise RunError(
            f"{path} is missing: run the lesson that makes it, or set START_FROM to 'shipped'"
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = Facts(path, {k: _parse(v) for k, v in (file.metadata() or {}).items()})
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} is not a safetensors file ({error}): delete it and run again"
        ) from None
    for name, kind in (("backbone", str), ("classes", list)):
        if name in facts and not isinstance(facts[name], kind):
            raise RunError(f"{path} says its {name} is {facts[name]!r}: delete it")
    size = facts.get("size", 96)
    if type(size) is not int or not 8 <= size <= 2048:
        raise RunError(f"{path} says its size is {size!r}, expected 8 to 2048 pixels: delete it")
    if "backbone" in facts:
        _require_room(facts, sum(map(math.prod, shapes)))
    return facts


def _require_room(facts: "Facts", numbers: int) -> None:
    """Lessons build the network that a file names before they fill it: the file must hold as many
    numbers as that network has. It is built on torch's meta device, which takes no memory.
    """
    name, classes = facts["backbone"], len(facts.get("classes", ()))
    try:
        with torch.device("meta"):
            network = build_backbone(name)
    except ValueError as error:
        raise RunError(f"{facts.path}: {error}, or take weights that a lesson has made") from None
    needed = sum(value.numel() for value in network.state_dict().values())
    needed += classes * network.num_features
    if needed > numbers:
        raise RunError(
            f"{facts.path} says its backbone is {name!r}, with {classes} classes, which has"
            f" {needed:,} numbers, and it holds {numbers:,}: take weights that a lesson has made"
        )


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # another program's metadata
        return text


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """Fill a module from a weight file and return it.

    Raises RunError where the file does not fit the module, holds numbers that are none, or was
    made from other data or other weights than there are now.
    """
    if other := misfit(path, read_facts(path).get("made_from")):
        raise RunError(
            f"{path} was made from other {other} than there is now: run the lesson that makes it"
            " again"
        )
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    with safe_open(path, framework="pt") as file:  # shapes first: nothing large is read in vain
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise RunError(
                f"{path} does not fit {type(module).__name__} ({name} is"
                f" {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing so called')}):"
                " take weights of the same network"
            )
    try:
        state = load_file(path)
    except SafetensorError as error:  # a kind of number that torch lacks
        raise RunError(f"{path} cannot be read ({error}): take a lesson's weights") from None
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise RunError(f"{path} holds NaN or infinity in {name}: delete it and run again")
    module.load_state_dict(state)
    note_weights(path)
    return module
