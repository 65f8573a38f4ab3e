"""Grad-CAM of any network, its boxes, and how far a map agrees with a known region (lesson 06)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crc_helpers.layers import (
    Grid,
    Layer,
    find_grids,
    find_layer,
    hooked,
    layer_name,
    prepared,
    stage_names,
    trial_pictures,
    trials,
)
from crc_helpers.models import Classifier

OTHERWISE = "occlusion (captum.attr.Occlusion), which needs no layer"


@dataclass(frozen=True)
class Explanation:
    """What Grad-CAM says about N images."""

    maps: Tensor  # float32 (N, h, w), raw: not negative, not scaled, at the layer's own resolution
    logits: Tensor  # float32 (N, C)
    targets: Tensor  # int64 (N,), the class whose logit is explained
    layer: Layer  # whose activations explain it


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    layer: Layer | None = None,
) -> Explanation:
    """Explain one logit of each image by the activations of a layer.

    model: any network from float images (N, 3, H, W) to logits (N, C). target: a class for all,
    (N,) a class each, or None for the class predicted. layer: by default `last_layer`. The model's
    mode, its parameters' `requires_grad` and their gradients are left as they are.

    The score is the logit before softmax: softmax would mix in the evidence on other classes.
    Raises ValueError for a target out of range, and for a layer that is not there, has no say in
    the score, or whose output cannot be laid on the picture; it then names one that can.
    Source: Selvaraju et al. 2017, arXiv 1610.02391.
    """
    layer = last_layer(model, images) if layer is None else layer
    activations, gradient, logits, targets = evidence(model, images, target, layer)
    weights = gradient.mean(dim=(2, 3))  # (N, K)
    maps = torch.einsum("nk,nkhw->nhw", weights, activations).relu()
    return Explanation(maps.float().cpu(), logits.float().cpu(), targets.cpu(), layer)


def evidence(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor | None = None,
    layer: Layer | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a layer's activations, the gradient of one logit with respect to them, both
    (N, K, h, w), the logits (N, C) and the classes explained (N,). Arguments as in `grad_cam`.
    """
    with prepared(model, images) as network:
        # Channels innermost are faster, but a network of another make may not take them.
        layout = torch.channels_last if isinstance(network, Classifier) else torch.preserve_format
        images = images.detach().clone(memory_format=layout)  # for the network to change
        module = _last(network, images) if layer is None else find_layer(model, layer)
        grid = _grid(network, images, module)
        calls, logits, targets = _differentiate(network, images, module, target)
        if len(calls) > 1:
            raise _refusal(network, images, module, f"acts on the score in {len(calls)} calls")
        # A map of zeros is an answer if nothing speaks for the class, and none if nothing could.
        if not calls or not (grid(calls[0][1]).any() or _may_be_silent(network, images, module)):
            raise _refusal(network, images, module, "has no say in the score at any place")
    activations, gradient = calls[0]
    return grid(activations), grid(gradient), logits, targets


@contextlib.contextmanager
def captured(model: nn.Module, layer: Layer) -> Iterator[list[Tensor]]:
    """Yield a list to which every call of the layer appends its output, to differentiate by.

    The graph begins at that output: what comes before is computed without one, which saves most
    of the memory and time of a backward pass, and is why frozen layers do not matter. Hook and
    frozen parameters are put back with the end of the block, whatever happens inside.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # a network may compute its features under no_grad
        outputs.append(output.detach().requires_grad_(True))
        return outputs[-1].clone()  # for the network to go on with: its ReLU would overwrite ours

    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad(), hooked([find_layer(model, layer)], keep):
            yield outputs
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _differentiate(
    network: nn.Module, images: Tensor, module: nn.Module, target: int | Tensor | None = None
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Return output and gradient of each call that the score depends on, logits and classes."""
    with captured(network, module) as outputs:
        logits = network(images)  # (N, C)
        targets = _targets(target, logits)
        score = logits.gather(1, targets[:, None]).sum()  # images do not interact in eval mode
        if not score.requires_grad:
            return [], logits, targets
        gradients = torch.autograd.grad(score, outputs, allow_unused=True)  # stops at the layer
    calls = [(a.detach(), g) for a, g in zip(outputs, gradients, strict=True) if g is not None]
    return calls, logits.detach(), targets


def _targets(target: int | Tensor | None, logits: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network gives {shape}: wrap it so that it gives logits (N, C)")
    n, classes = logits.shape
    if target is None:
        return logits.detach().argmax(dim=1)
    targets = torch.as_tensor(target, device=logits.device).expand(n).clone()
    if ((targets < 0) | (targets >= classes)).any():
        raise ValueError(f"target {target} is out of range: there are {classes} classes, from 0")
    return targets


def as_grid(output: Tensor, model: nn.Module, layer: Layer, images: Tensor) -> Tensor:
    """Return a layer's output for these images, or its gradient, as (N, K, h, w).

    Tokens are put back in rows, without those that stand for no place; channels that a network
    keeps last are put first. Raises ValueError for a layer of which that is not known.
    """
    with prepared(model, images) as network:
        return _grid(network, images, find_layer(model, layer))(output)


def last_layer(model: nn.Module, images: Tensor) -> str:
    """Return the name of the last layer with weights that keeps the picture's places and has a say
    in the score: where a class token alone is read, the norm before the last attention.
    """
    return layer_names(model, images)[-1]


def layer_names(model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of the stages that can be explained, with `last_layer` at the end."""
    with prepared(model, images) as network:
        last = _last(network, images)
        grids = trials(network, images).grids
        stages = [find_layer(network, name) for name in stage_names(network)]
        before = [m for m in stages if m in grids and last not in m.modules()]
        return [layer_name(network, module) for module in [*before, last]]


def _grid(network: nn.Module, images: Tensor, module: nn.Module) -> Grid:
    grids = trials(network, images).grids
    if module not in grids:
        grid = find_grids(network, images, [module]).get(module, "is never called itself")
        if isinstance(grid, str):
            raise _refusal(network, images, module, grid)
        grids[module] = grid
    return grids[module]


def _last(network: nn.Module, images: Tensor) -> nn.Module:
    results = trials(network, images)
    if results.last is None:
        # A linear layer is half a step: a query or a key, or what is yet to be added.
        steps = [m for m in [*network.modules()][1:] if not isinstance(m, nn.Linear)]
        grids = find_grids(network, images, [m for m in steps if list(m.parameters())])
        results.grids |= {m: grid for m, grid in grids.items() if isinstance(grid, Grid)}
        layers = [m for m in grids if m in results.grids and max(results.grids[m].size) > 1]
        if not layers:
            raise ValueError(
                f"no layer of {type(network).__name__} is known to keep the places of a picture of"
                f" {tuple(images.shape[2:])} pixels: take {OTHERWISE}"
            )
        last = next((m for m in reversed(layers) if _acts(network, images, m)), layers[-1])
        stages = [find_layer(network, name) for name in stage_names(network)]
        if isinstance(last, nn.Sequential) and last[-1] in stages:
            last = last[-1]  # the last of a container of stages gives the same
        results.last = last
    return results.last


def _acts(network: nn.Module, images: Tensor, module: nn.Module) -> bool:
    """Return whether the score of a trial picture depends on a place of the layer, by one call."""
    calls, *_ = _differentiate(network, trial_pictures(images)[:1], module)
    return len(calls) == 1 and bool(_grid(network, images, module)(calls[0][1]).any())


def _may_be_silent(network: nn.Module, images: Tensor, module: nn.Module) -> bool:
    """Return whether zero gradients are an answer: the layer does act on the score of a trial
    picture, or no layer of the network does.
    """
    return _acts(network, images, module) or not _acts(network, images, _last(network, images))


def _refusal(network: nn.Module, images: Tensor, module: nn.Module, why: str) -> ValueError:
    last = _last(network, images)
    other = last is not module and _acts(network, images, last)
    remedy = f"layer={layer_name(network, last)!r}" if other else OTHERWISE
    return ValueError(f"layer {layer_name(network, module)!r} {why}: take {remedy}")


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
