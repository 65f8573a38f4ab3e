"""Grad-CAM, its boxes, and how far a map agrees with a known region (lesson 06)."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crc_helpers.models import Classifier, evaluating
from crc_helpers.pretraining import channels_last


@dataclass(frozen=True)
class Explanation:
    """What Grad-CAM says about N images."""

    maps: Tensor  # float32 (N, h, w), raw: not negative, not scaled, at the layer's own resolution
    logits: Tensor  # float32 (N, C)
    targets: Tensor  # int64 (N,), the class whose logit is explained


@contextlib.contextmanager
def captured(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which every forward pass appends the module's output, to differentiate by.

    The graph begins at that output: what comes before is computed without one, which saves most
    of the memory and time of a backward pass, and is why frozen layers do not matter. Hook and
    gradient mode end with the block, whatever happens inside. A pass through a module that gives
    anything but a tensor raises ValueError.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {type(module).__name__} gives a {type(output).__name__}: Grad-CAM needs one"
                " tensor, choose another layer"
            )
        torch.set_grad_enabled(True)  # until the end of the block
        outputs.append(output.detach().requires_grad_(True))
        return outputs[-1].clone()  # for the network to go on with: its ReLU would overwrite ours

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            yield outputs
    finally:
        handle.remove()


def grad_cam(
    model: Classifier, images: Tensor, target: int | Tensor | None = None, layer: str | None = None
) -> Explanation:
    """Explain one logit of each image by the activations of a layer.

    images: float (N, 3, H, W) in [0, 1]. target: a class for all, (N,) a class each, or None for
    the class predicted. layer: a name in the backbone, by default its last convolutional stage.
    The model's mode, its parameters' `requires_grad` and their gradients are left as they are.

    The score is the logit before softmax: softmax would mix in the evidence on other classes.
    Raises ValueError for a layer that is not there, whose output is not (N, K, h, w), or a target
    out of range. Source: Selvaraju et al. 2017, arXiv 1610.02391.
    """
    activations, gradient, logits, targets = evidence(model, images, target, layer)
    weights = gradient.mean(dim=(2, 3))  # (N, K)
    maps = torch.einsum("nk,nkhw->nhw", weights, activations).relu()
    return Explanation(maps.float().cpu(), logits.float().cpu(), targets.cpu())


def evidence(
    model: Classifier, images: Tensor, target: int | Tensor | None = None, layer: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a layer's activations, the gradient of one logit with respect to them, both
    (N, K, h, w), the logits (N, C) and the classes explained (N,). Arguments as in `grad_cam`.
    """
    name = layer or last_stage(model)
    # Batch statistics would make an explanation depend on the other images, hence evaluating.
    with evaluating(model), captured(model.encoder.stage(name)) as outputs:
        logits = model(channels_last(images.detach()))  # (N, C)
        targets = _targets(target, logits)
        score = logits.gather(1, targets[:, None]).sum()  # images do not interact in eval mode
        (gradient,) = torch.autograd.grad(score, outputs[0])  # stops at the layer
    activations, gradient = (as_grid(x, model, name) for x in (outputs[0].detach(), gradient))
    return activations, gradient, logits.detach(), targets


def as_grid(output: Tensor, model: Classifier, layer: str) -> Tensor:
    """Return a layer's output as (N, K, h, w): a transformer's tokens (N, T, K) put back in rows.

    Tokens that stand for no place, such as the class token, are left out; channels that a network
    keeps last are put first. Raises ValueError for any other output.
    """
    if output.ndim == 3:
        tokens = output[:, getattr(model.encoder.backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side**2 == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    if output.ndim != 4:
        raise ValueError(
            f"layer {layer!r} gives {tuple(output.shape)}: Grad-CAM needs (N, K, h, w), or tokens"
            " (N, T, K) of a square grid"
        )
    if getattr(model.encoder.backbone, "output_fmt", "") == "NHWC":  # timm's Swin, for one
        return output.permute(0, 3, 1, 2)
    return output


def _targets(target: int | Tensor | None, logits: Tensor) -> Tensor:
    n, classes = logits.shape
    if target is None:
        return logits.detach().argmax(dim=1)
    targets = torch.as_tensor(target, device=logits.device).expand(n)
    if targets.min() < 0 or targets.max() >= classes:
        raise ValueError(f"target {target} is out of range: there are {classes} classes, from 0")
    return targets


def stage_names(model: Classifier) -> list[str]:
    """Return the names of the backbone's stages that hold weights, "layer1" and on in a ResNet.

    A transformer's are its blocks, "blocks.0" and on. Raises ValueError where the names of the
    backbone's children give no hint.
    """
    children = dict(model.encoder.backbone.named_children())
    parts = [(n, m) for n, m in children.items() if n.startswith(("layer", "features"))]
    for name in ("stages", "layers", "blocks"):  # timm keeps them in one container
        if name in children:
            parts = [(f"{name}.{n}", m) for n, m in children[name].named_children()]
    stages = [name for name, part in parts if list(part.parameters())]
    if not stages:
        raise ValueError(f"say which layer to explain: {model.encoder.name} has {list(children)}")
    return stages


def last_stage(model: Classifier) -> str:
    """Return the name of the last stage, "layer4" in a ResNet-50."""
    return stage_names(model)[-1]


def enlarge(maps: Tensor, size: int, smooth: bool = True) -> np.ndarray:
    """Return maps (N, h, w) at `size` pixels, float32 (N, size, size), values kept.

    smooth interpolates between cells; otherwise each cell stays a flat square.
    """
    mode = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    return F.interpolate(maps[:, None], size=(size, size), **mode)[:, 0].numpy()


def boxes(enlarged: np.ndarray, threshold: float = 0.5) -> list[tuple[int, int, int, int]]:
    """Return (x, y, width, height) around each region above `threshold` times the maximum.

    enlarged: one map (H, W). Largest region first; none for a map that is zero everywhere.
    Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: give a share of the maximum in (0, 1]")
    if not enlarged.max() > 0:
        return []
    hot = (enlarged >= threshold * enlarged.max()).astype(np.uint8)
    regions = cv2.connectedComponentsWithStats(hot)[2][1:]  # (n, 5), without the background
    return [tuple(map(int, r[:4])) for r in sorted(regions, key=lambda r: -r[4])]


def mass_inside(enlarged: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the share of each map's sum that lies inside its region, (N,); NaN for a zero map.

    enlarged (N, H, W), mask (N, H, W) of 0 and 1. Chance is the region's share of the area.
    """
    inside, total = (enlarged * mask).sum(axis=(1, 2)), enlarged.sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(total), np.nan), where=total > 0)


def hits(enlarged: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return whether each map's maximum lies inside its region, float (N,); NaN for a zero map.

    This is the pointing game (Zhang et al. 2018, arXiv 1608.00507) without its tolerance. Chance
    is the region's share of the area.
    """
    pixels = enlarged[0].size if len(enlarged) else 1
    flat = enlarged.reshape(len(enlarged), pixels)
    hit = mask.reshape(len(mask), pixels)[np.arange(len(flat)), flat.argmax(axis=1)].astype(float)
    return np.where(flat.max(axis=1) > 0, hit, np.nan)


def overlap(enlarged: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each region and the map's hottest pixels, (N,).

    As many pixels are taken as the region has, so that no threshold is tuned: (N, H, W) both.
    """
    scores = []
    for heat, region in zip(enlarged, mask, strict=True):
        k = int(region.sum())
        hottest = np.zeros(heat.size, bool)
        hottest[np.argpartition(-heat.ravel(), k - 1)[:k]] = k > 0
        both = (hottest & (region.ravel() > 0)).sum()
        scores.append(both / max(2 * k - both, 1) if heat.max() > 0 else np.nan)
    return np.array(scores)
