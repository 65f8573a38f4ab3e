"""Other heat maps, and the trials that any of them has to pass (lesson 08).

Maps come as Tensors at the size that their method works at; trials take them enlarged to pixels.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor

from crc_helpers.augmentation import UNSTAIN, VIEWS, shrink
from crc_helpers.data import cache_folder
from crc_helpers.fine_tuning import fine_tune, predict
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    evidence,
    grad_cam,
    hits,
    mass_inside,
    overlap,
    stage_names,
)
from crc_helpers.models import Classifier, Encoder, evaluating
from crc_helpers.pretraining import channels_last
from crc_helpers.runs import file_hash, fingerprint, load_weights, save_weights
from crc_helpers.tile_store import content_hash

# --- Four more ways to make a map -----------------------------------------------------------------


def hires_cam(
    model: Classifier, images: Tensor, target: Tensor, layer: str | None = None
) -> Tensor:
    """Return maps (N, h, w) whose weights are the gradient itself, cell by cell, without a mean.

    Source: Draelos & Carin 2020, arXiv 2011.08891.
    """
    activations, gradient, *_ = evidence(model, images, target, layer)
    return (gradient * activations).sum(dim=1).relu().float().cpu()


def layer_cam(
    model: Classifier, images: Tensor, target: Tensor, layer: str | None = None
) -> Tensor:
    """Return maps (N, h, w) to which only cells contribute that would raise the score.

    Source: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943.
    """
    activations, gradient, *_ = evidence(model, images, target, layer)
    return (gradient.relu() * activations).sum(dim=1).relu().float().cpu()


def mean_colour(images: Tensor) -> Tensor:
    """Return each tile's mean colour as an image of the same shape (N, 3, H, W)."""
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def integrated_gradients(
    model: Classifier, images: Tensor, target: Tensor, steps: int = 16
) -> Tensor:
    """Return signed maps (N, H, W): gradients summed on the way from the mean colour to the tile.

    Each sums to the tile's logit less that of its mean colour. Source: Sundararajan et al. 2017,
    arXiv 1703.01365; computed by captum.
    """
    with evaluating(model):
        found = IntegratedGradients(model).attribute(
            images, mean_colour(images), target=target.to(images.device), n_steps=steps,
            internal_batch_size=256,
        )  # fmt: skip
    return found.sum(dim=1).detach().float().cpu()


@torch.no_grad()
def occlusion(
    model: Classifier, images: Tensor, target: Tensor, window: int = 24, stride: int = 12
) -> Tensor:
    """Return signed maps (N, H, W): by how much the logit falls when a square is covered.

    The square, of `window` pixels, is painted in the tile's mean colour; where squares overlap,
    their mean counts. Source: Zeiler & Fergus 2014, arXiv 1311.2901; computed by captum.
    """
    with evaluating(model):
        found = Occlusion(model).attribute(
            images, (3, window, window), strides=(3, stride, stride),
            baselines=mean_colour(images), target=target.to(images.device),
        )  # fmt: skip
    return found[:, 0].float().cpu()  # the same for the three channels


# --- Controls: maps that know nothing of the network ----------------------------------------------


def edge_map(images: Tensor, grain: float) -> np.ndarray:
    """Return the strength of brightness edges (N, H, W), blurred to a `grain` in pixels."""
    drawn = []
    for grey in images.mean(dim=1).cpu().numpy():
        edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        drawn.append(cv2.GaussianBlur(edges, (0, 0), grain))
    return np.stack(drawn)


def stain_map(images: Tensor, grain: float) -> np.ndarray:
    """Return the optical density of haematoxylin (N, H, W), blurred to a `grain` in pixels.

    images: float (N, 3, H, W) in [0, 1]. Source: Ruifrok & Johnston 2001.
    """
    density = -images.cpu().clamp(min=1 / 255).log()
    blue = torch.einsum("nchw,cs->nshw", density, UNSTAIN)[:, 0].clamp(min=0).numpy()
    return np.stack([cv2.GaussianBlur(b, (0, 0), grain) for b in blue])


def centre_map(count: int, size: int) -> np.ndarray:
    """Return a bump in the middle of each of `count` squares, float32 (N, size, size)."""
    side = np.linspace(-1, 1, size)
    bump = np.exp(-2 * (side[:, None] ** 2 + side[None] ** 2)).astype(np.float32)
    return np.broadcast_to(bump, (count, size, size))


# --- Trial 1: against a known region --------------------------------------------------------------


def iou_curve(heat: np.ndarray, mask: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the intersection over union of each region with the hottest share of its tile.

    heat, mask: (N, H, W). shares: of the tile's area, S of them; the result is (N, S), NaN for a
    map that is zero. Taking areas, not shares of a maximum, makes maps of any scale comparable.
    """
    n, pixels = len(heat), heat[0].size
    order = np.argsort(-heat.reshape(n, pixels), axis=1, kind="stable")
    inside = np.take_along_axis(mask.reshape(n, pixels) > 0, order, axis=1).cumsum(axis=1)
    taken = np.maximum(np.round(np.asarray(shares) * pixels).astype(int), 1)  # (S,)
    both = inside[:, taken - 1]
    iou = both / (taken + inside[:, -1:] - both)
    return np.where(heat.max(axis=(1, 2))[:, None] > 0, iou, np.nan)


def box_overlap(heat: np.ndarray, mask: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return the best intersection over union of the box round the largest hot region with the box
    of any part of the region, (N,); NaN for a zero map, 0 for an empty region.

    Source: the localisation score of Choe et al. 2020, arXiv 2001.07437, at one threshold.
    """
    scores = []
    for one, region in zip(heat, mask, strict=True):
        found = boxes(one, threshold)[:1]
        true = boxes((region > 0).astype(np.float32), 1.0)
        best = max((_box_iou(found[0], box) for box in true), default=0.0) if found else np.nan
        scores.append(best)
    return np.array(scores)


def _box_iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


# --- Trials 2 and 4: do two maps agree? -----------------------------------------------------------


def at_size(maps: Tensor, size: int) -> np.ndarray:
    """Return maps (N, h, w) at `size` pixels: interpolated if that is more, else averaged."""
    if maps.shape[-1] <= size:
        return enlarge(maps, size)
    return F.interpolate(maps[:, None], size=(size, size), mode="area")[:, 0].numpy()


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each pair of maps (N, H, W), (N,); NaN for a flat map."""
    ranks = [rankdata(m.reshape(len(m), -1), axis=1) for m in (one, other)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair of maps (N, H, W), (N,); NaN for a zero map.

    Each is divided by its own maximum first, as what the eye compares is pictures.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its window; by scikit-image.
    """
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array([
        structural_similarity(a / a.max(), b / b.max(), data_range=1.0, **window)
        if a.max() > 0 and b.max() > 0 else np.nan
        for a, b in zip(one.astype(float), other.astype(float), strict=True)
    ])  # fmt: skip


def cascade(model: Classifier, seed: int = 0) -> Iterator[tuple[str, Classifier]]:
    """Yield copies of a network with ever more layers forgotten, from the last to the first.

    Each comes with the name of the layer that was set back last; the final one is untrained.
    Source: Adebayo et al. 2018, arXiv 1810.03292.
    """
    torch.manual_seed(seed)
    fresh = Classifier(Encoder(model.encoder.name), model.fc.out_features)
    forgetting = copy.deepcopy(model)
    forgetting.fc.load_state_dict(fresh.fc.state_dict())
    yield "fc", copy.deepcopy(forgetting)
    for name in reversed(stage_names(model)):
        forgetting.encoder.stage(name).load_state_dict(fresh.encoder.stage(name).state_dict())
        yield name, copy.deepcopy(forgetting)
    forgetting.load_state_dict(fresh.state_dict())
    yield "all", forgetting


# --- Trial 3: does the prediction change where the map is hot? ------------------------------------

Fill = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, H, W), gone bool (N, H, W) -> images
_AROUND = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]).view(1, 1, 3, 3) / 12


def mean_fill(images: Tensor, gone: Tensor) -> Tensor:
    """Paint what is gone in the tile's mean colour."""
    return torch.where(gone[:, None], mean_colour(images), images)


def imputed_fill(images: Tensor, gone: Tensor, noise: float = 0.01, rounds: int = 60) -> Tensor:
    """Make each pixel that is gone the weighted mean of its eight neighbours, and a little noise.

    The shape of a hole is then hard to see, as it is not in `mean_fill`. A coarse-to-fine guess is
    smoothed `rounds` times, which comes near the exact solution. Source: the noisy linear
    imputation of ROAD, Rong et al. 2022, arXiv 2202.00449.
    """
    channels = images.shape[1]
    hole, kernel = gone[:, None], _AROUND.to(images).expand(channels, 1, 3, 3)
    values = torch.where(hole, _guess(images * ~hole, (~hole).to(images)), images)
    weight = F.conv2d(torch.ones_like(images[:1]), kernel, padding=1, groups=channels)
    for _ in range(rounds):
        around = F.conv2d(values, kernel, padding=1, groups=channels) / weight
        values = torch.where(hole, around, images)
    grain = noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(hole, values + grain.to(images), values)


def _guess(values: Tensor, known: Tensor) -> Tensor:
    """Means of what is known nearby, from the coarsest grid down."""
    if values.shape[-1] == 1:
        return values / known.clamp(min=1e-6)
    coarse = _guess(F.avg_pool2d(values, 2), F.avg_pool2d(known, 2))
    wide = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, values / known.clamp(min=1e-6), wide)


@torch.no_grad()
def perturbation_curve(
    model: Classifier, images: Tensor, target: Tensor, heat: np.ndarray, fill: Fill,
    shares: Sequence[float], keep: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return the probability (N, S) of each tile's class with its hottest pixels gone, or kept.

    heat: (N, H, W) of the images' own size. shares: of the pixels that are gone ("deletion") or,
    with `keep`, that alone are there ("insertion"). Source: Petsiuk et al. 2018, arXiv 1806.07421.
    """
    n, pixels = len(heat), heat[0].size
    order = np.argsort(-heat.reshape(n, pixels), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(pixels)[None], axis=1)
    rank = torch.from_numpy(rank.reshape(heat.shape)).to(images.device)
    curve = []
    with evaluating(model):
        for share in shares:
            hot = rank < round(share * pixels)
            logits = model(channels_last(fill(images, ~hot if keep else hot)))
            curve.append(logits.float().softmax(dim=1).cpu().gather(1, target.cpu()[:, None])[:, 0])
    return torch.stack(curve, dim=1).numpy()


def area_under(curve: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the mean height of curves (N, S) over their shares (S,), (N,)."""
    return np.trapezoid(curve, shares, axis=1) / (shares[-1] - shares[0])


# --- The study: what costs training ---------------------------------------------------------------

ARMS = ("trained", "trained again", "shuffled labels", "untrained", "ink")


def explanations_plan(seeds: int) -> Iterator[dict]:
    """Yield five networks a seed."""
    yield from ({"seed": seed, "arm": arm} for seed in range(seeds) for arm in ARMS)


def explanations_row(t: Any, arm: str) -> dict:
    """Measure the maps of one network on the test tiles: t is a `studies.Trial`.

    hit, mass, overlap: with the diagnostic region, or in "ink" with the dot, on tiles whose answer
    changes when it is wiped off ("flips" is their share); area: of the region, which is chance.
    spearman, ssim: agreement with the maps of "trained", for the same classes; pair_...: of that
    network's maps of two different tiles. ..._near: with a cell's width of tolerance round the dot.
    """
    if arm == "ink":
        return _ink_row(t) if t.data == "synthetic" else {}
    test, network = t.parts.test, train_network(t, arm)
    found = t.score(lambda i: predict(network, t.tiles.images.pick(i), t.recipe.size, t.fabric))
    first = train_network(t, "trained")
    images = tile_batch(t.tiles, test, t.recipe.size).to(t.fabric.device)
    reference = grad_cam(first, images)
    one, other = (
        at_size(grad_cam(n, images, reference.targets).maps, 48) for n in (first, network)
    )
    shuffled = np.random.default_rng(t.seed).permutation(len(test))
    for name, agree in (("spearman", rank_correlation), ("ssim", ssim)):
        found |= {name: float(np.nanmean(agree(one, other)))}
        found |= {f"pair_{name}": float(np.nanmean(agree(one, one[shuffled])))}
    if t.tiles.masks is None:
        return found
    return found | region_scores(grad_cam(network, images).maps, t.tiles.masks[test])


def _ink_row(t: Any) -> dict:
    network, test = train_network(t, "ink"), t.parts.test
    test = test[test < len(t.marked)]  # the first, which both cohorts have
    mask = ink_mask(t.marked.images[test], t.tiles.images[test])

    def answers(tiles: Any) -> np.ndarray:
        return predict(network, tiles.images.pick(test), t.recipe.size, t.fabric)

    dotted, given = mask.any(axis=(1, 2)), {"ink": answers(t.marked), "no ink": answers(t.tiles)}
    found = t.score(lambda _: given["ink"], test)
    said = {name: p.argmax(axis=1) for name, p in given.items()}
    found |= {"accuracy_without_ink": float((said["no ink"] == t.labels(test)).mean()),
              "flips": float((said["ink"] != said["no ink"])[dotted].mean())}  # fmt: skip
    decided = ink_decided(dotted, said["ink"], said["no ink"])
    images = tile_batch(t.marked, test[decided], t.recipe.size).to(t.fabric.device)
    maps, mask = grad_cam(network, images).maps, mask[decided]
    cell = mask.shape[-1] // maps.shape[-1]
    wide = np.stack([cv2.dilate(m, np.ones((2 * cell + 1, 2 * cell + 1))) for m in mask])
    near = region_scores(maps, wide)
    found |= {"hit_near": near["hit"], "area_near": near["area"]}
    return found | region_scores(maps, mask)


def region_scores(maps: Tensor, region: np.ndarray) -> dict[str, float]:
    """Return mean hit, mass and overlap of maps with regions (N, H, W), and chance: the area."""
    there = region.any(axis=(1, 2))
    heat, region = enlarge(maps, region.shape[-1])[there], region[there]
    scores = {"hit": hits, "mass": mass_inside, "overlap": overlap}
    found = {k: float(np.nanmean(score(heat, region))) for k, score in scores.items()}
    return found | {"area": float(region.mean())}


def tile_batch(tiles: Any, index: np.ndarray, size: int) -> Tensor:
    """Return tiles at `index` as the network takes them, float (N, 3, size, size) in [0, 1]."""
    parts = [index[i : i + 128] for i in range(0, len(index), 128)]
    return torch.cat([shrink(torch.from_numpy(tiles.images[p].copy()), size) for p in parts])


def ink_mask(marked: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return where a dot of ink was put, uint8 (N, H, W): where a tile differs from its twin.

    marked, clean: uint8 (N, 3, H, W), the same tissue drawn with ink and without.
    """
    return (np.abs(marked.astype(int) - clean).max(axis=1) > 25).astype(np.uint8)


def ink_decided(dotted: np.ndarray, with_ink: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return on which tiles the ink decided the answer, bool (N,): wiped off, the class changes.

    dotted: bool (N,); with_ink, without: classes predicted (N,). Where it decided none, all dotted.
    """
    changed = dotted & (with_ink != without)
    return changed if changed.any() else dotted


def train_network(t: Any, arm: str) -> Classifier:
    """Return the network of an arm, from the cache if it was trained before.

    "trained again" differs from "trained" in nothing but the seed of weights and batches.
    """
    r, seed = t.recipe, t.seed + 1000 * (arm == "trained again")
    torch.manual_seed(seed)
    network = Classifier(Encoder(r.backbone), len(t.tiles.class_names)).to(t.fabric.device)
    if arm == "untrained":
        return network.eval()
    tiles = t.marked if arm == "ink" else t.tiles
    train, val = (part[part < len(tiles)] for part in (t.parts.train, t.parts.val))
    labels = tiles.labels
    if arm == "shuffled labels":  # to learn by heart: there is nothing for validation to choose
        labels, known, val = labels.copy(), labels >= 0, val[:0]  # -1: no class of this task
        labels[known] = np.random.default_rng(seed).permutation(labels[known])
    settings = dict(size=r.size, batch=r.batch, lr=r.rates[-1], seed=seed,
                    epochs=max(1, round(r.steps / (len(train) // r.batch))))  # fmt: skip
    used = [content_hash(tiles.images.pick(part)) for part in (train, val)]
    mark = fingerprint(tiles=used, labels=labels[train].tolist(), arm=arm, network=r.backbone,
                       code=file_hash(Path(__file__)), **settings)  # fmt: skip
    file = cache_folder() / "studies" / f"{mark}.safetensors"
    if not file.is_file():
        fine_tune(network, tiles.images[train], labels[train], tiles.images[val], labels[val],
                  VIEWS["gentle"], t.fabric, optimizer="adamw-one-cycle", name=arm,
                  **settings)  # fmt: skip
        save_weights(file, network, origin=False)
    return load_weights(file, network).eval()
