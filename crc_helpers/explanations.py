"""Other heat maps, and the trials that any of them has to pass (lesson 08).

Maps come as Tensors at the size that their method works at; trials take them enlarged to pixels.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor

from crc_helpers.augmentation import UNSTAIN, VIEWS, shrink
from crc_helpers.claims import Trial
from crc_helpers.data import Tiles
from crc_helpers.evaluation import bootstrap_interval
from crc_helpers.fine_tuning import fine_tune, predict
from crc_helpers.grad_cam import (
    boxes,
    enlarge,
    evidence,
    grad_cam,
    hits,
    layer_names,
    mass_inside,
    stage_names,
)
from crc_helpers.models import Classifier, Encoder, evaluating, load_weights
from crc_helpers.pretraining import channels_last
from crc_helpers.runs import file_hash, fingerprint, save_weights
from crc_helpers.sources.cache import cache_folder
from crc_helpers.sources.store import content_hash

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


def all_maps(
    model: Classifier, images: Tensor, targets: Tensor, costly: int | None = None, windows: int = 4
) -> dict[str, Tensor]:
    """Return the maps of five methods by name, what speaks for the class only.

    costly: of how many images those maps are made that need many passes; None: of all. windows:
    squares a side that occlusion covers one by one.
    """
    early, square = layer_names(model, images)[-2:][0], images.shape[-1] // windows
    cheap = {
        "Grad-CAM": lambda x, y: grad_cam(model, x, y).maps,
        "HiResCAM": lambda x, y: hires_cam(model, x, y, early),
        "LayerCAM": lambda x, y: layer_cam(model, x, y),
    }
    many_passes = {
        "Integrated Gradients": lambda x, y: integrated_gradients(model, x, y, 8).relu(),
        "occlusion": lambda x, y: occlusion(model, x, y, square, square).relu(),
    }
    found = {}
    for name, make in (cheap | many_passes).items():
        n = len(images) if name in cheap or costly is None else min(costly, len(images))
        pieces = [slice(i, min(i + 64, n)) for i in range(0, n, 64)]
        found[name] = torch.cat([make(images[p], targets[p]) for p in pieces])
    return found


def blind_maps(images: Tensor, cells: int) -> dict[str, Tensor]:
    """Return maps that know no network, by name, as coarse as `cells` a side."""
    grain, images = images.shape[-1] / cells / 2, images.cpu()
    return {
        "edges": torch.from_numpy(edge_map(images, grain)),
        "colour unlike the mean": (images - mean_colour(images)).abs().sum(dim=1),
        "haematoxylin": torch.from_numpy(stain_map(images, grain)),
        "centre": torch.from_numpy(centre_map(len(images), images.shape[-1]).copy()),
    }


def blank(maps: Tensor) -> np.ndarray:
    """Return which maps (N, h, w) are zero everywhere, bool (N,)."""
    return (maps.flatten(1).amax(dim=1) <= 0).numpy()


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
    """Return Spearman's correlation of each pair of maps (N, H, W), (N,).

    A flat map has no order to share: 0 where one is flat, NaN where both are.
    """
    ranks = [rankdata(m.reshape(len(m), -1), axis=1) for m in (one, other)]
    a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    spread = np.stack([(a**2).sum(axis=1), (b**2).sum(axis=1)])
    nothing = np.where(spread.max(axis=0) > 0, 0.0, np.nan)
    return np.divide((a * b).sum(axis=1), np.sqrt(spread.prod(axis=0)), out=nothing,
                     where=spread.min(axis=0) > 0)  # fmt: skip


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair of maps (N, H, W), (N,).

    Each is divided by its own maximum first, as what the eye compares is pictures. A blank map is
    like no picture: 0 where one is zero everywhere, NaN where both are.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its window; by scikit-image.
    """
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return np.array([
        structural_similarity(a / a.max(), b / b.max(), data_range=1.0, **window)
        if min(a.max(), b.max()) > 0 else 0.0 if max(a.max(), b.max()) > 0 else np.nan
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


def road(
    model: Classifier, images: Tensor, target: Tensor, heat: np.ndarray, shares: Sequence[float]
) -> np.ndarray:
    """Return how much more probable each tile's class is with the coldest pixels gone than with the
    hottest, halved and averaged over shares: (N,), 0 for a map that knows nothing.

    What is gone is imputed. Source: Rong et al. 2022, arXiv 2202.00449; halved as in
    pytorch-grad-cam's `ROADCombined`.
    """
    hottest, coldest = (
        perturbation_curve(model, images, target, order, imputed_fill, shares)
        for order in (heat, -heat)
    )
    return (coldest - hottest).mean(axis=1) / 2


# --- A verdict ------------------------------------------------------------------------------------


def over_networks(
    values: np.ndarray, groups: np.ndarray | None = None, samples: int = 400
) -> tuple[float, float, float]:
    """Return the mean of values (networks, N) and its 95 % interval over networks and slides.

    Both are drawn with replacement, for another network is as much luck as another slide. NaN is
    left out.
    """
    rng, networks = np.random.default_rng(0), len(values)
    low, high = bootstrap_interval(
        lambda tiles: np.nanmean(values[rng.integers(0, networks, networks)][:, tiles]),
        values.shape[1], groups, samples=samples,
    )  # fmt: skip
    return float(np.nanmean(values)), low, high


def verdict(low: float, high: float, asked: float, below: bool = False) -> str:
    """Return whether an interval lies on the wanted side of what is asked.

    "yes": all of it, above (or below) `asked`. "no": all of it on the other side. "not shown": it
    holds `asked`, or is not known. A wide interval never earns a yes or a no.
    """
    wanted, other = (high < asked, low > asked) if below else (low > asked, high < asked)
    return "yes" if wanted else "no" if other else "not shown"


# --- The shortcut ---------------------------------------------------------------------------------


def marked_part(t: Trial, part: np.ndarray) -> np.ndarray:
    """Return those of a trial's tiles that have a twin with ink; of real tiles all."""
    return part[part < len(t.marked)] if t.data == "synthetic" else part


def with_ink(t: Trial, index: np.ndarray) -> np.ndarray:
    """Return tiles, uint8 (N, 3, H, W), with a dot of ink in a corner of every one of class 1."""
    if t.data == "synthetic":
        return t.marked.images[index]
    return stamp(t.tiles.images[index], t.labels(index) == 1)


def stamp(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return uint8 tiles (N, 3, H, W), those that `which` (N,) names with a dot, as drawn tiles
    have it: round, blue, 14 % of a side wide, in the upper left corner.
    """
    side = (np.arange(images.shape[-1]) + 0.5) / images.shape[-1] - 0.13
    dot = np.hypot(side[:, None], side[None]) < 0.072
    light = np.exp(-np.array([1.4, 0.6, 0.9]))[:, None, None]  # what the ink lets through
    inked = np.where(dot, images * light, images).astype(np.uint8)
    return np.where(which[:, None, None, None], inked, images)


def turned(images: np.ndarray) -> np.ndarray:
    """Return images (N, ..., H, W), the first as it is, each by a quarter turn more than the last.

    Ink then lies in any corner, and a map that is always hot in one has no advantage.
    """
    return np.stack([np.rot90(image, k, (-2, -1)) for k, image in enumerate(images)])


def ink_mask(marked: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return where a dot of ink was put, uint8 (N, H, W): where a tile differs from its twin.

    marked, clean: uint8 (N, 3, H, W), the same tissue with ink and without.
    """
    return (np.abs(marked.astype(int) - clean).max(axis=1) > 25).astype(np.uint8)


def ink_decided(dotted: np.ndarray, with_ink: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return on which tiles the ink decided the answer, bool (N,): wiped off, the class changes.

    dotted: bool (N,); with_ink, without: classes predicted (N,).
    """
    return dotted & (with_ink != without)


def four_corners(mask: np.ndarray) -> np.ndarray:
    """Return where ink could have been, uint8 (H, W): in all corners, where half the dots reach.

    mask: (N, H, W) of 0 and 1, with a dot in one corner or none.
    """
    share = mask[mask.any(axis=(1, 2))].mean(axis=0)
    return (sum(np.rot90(share, k) for k in range(4)) > 0.5).astype(np.uint8)


def cells_of(region: np.ndarray, cells: int) -> np.ndarray:
    """Return which cells of a coarse grid hold a region, bool (N, cells, cells).

    region: (N, H, W) of 0 and 1. They are those that are at least half as full as the fullest;
    none for an empty region.
    """
    share = at_size(torch.from_numpy(region.astype(np.float32)), cells)
    return (share > 0) & (share >= share.max(axis=(1, 2), keepdims=True) / 2)


def ink_scores(
    maps: dict[str, Tensor], place: np.ndarray, cells: int
) -> dict[tuple[str, str], np.ndarray]:
    """Return each map's scores (N,) with the ink, by score and name.

    hit: is the hottest cell of a grid, on which all maps are compared, one that holds ink? mass:
    the share of the heat in the ink itself. place: (N, H, W) of 0 and 1.
    """
    holds, found = cells_of(place, cells), {}
    for name, heat in maps.items():
        found["hit", name] = hits(at_size(heat, cells), holds)
        found["mass", name] = mass_inside(at_size(heat, place.shape[-1]), place)
    return found


def ink_table(t: Trial, network: Classifier, test: np.ndarray) -> pd.DataFrame:
    """Return what a network that saw ink does with each test tile, a row a tile.

    label; dotted; said, said_without: the class with ink and with it wiped off; decided: the ink
    decided, for wiped off the answer is another; free: no ink, and said to be of class 0, as such
    tiles taught. Then "hit NAME" and "mass NAME" of each map with the ink, or on a free tile with
    the four places where it could have been; "chance hit" and "chance mass", of a blind map; and
    "other hit NAME", "other mass NAME" of the map for class 1, on free tiles.
    """
    marked, clean = turned(with_ink(t, test)), turned(t.tiles.images[test])
    place = ink_mask(marked, clean)
    with_it, without = (predict(network, x, t.recipe.size, t.fabric) for x in (marked, clean))
    said, dotted = with_it.argmax(axis=1), place.any(axis=(1, 2))
    table = pd.DataFrame({"label": t.labels(test), "dotted": dotted, "said": said,
                          "said_without": without.argmax(axis=1), "p": with_it[:, 1]})  # fmt: skip
    table["decided"] = ink_decided(dotted, said, table["said_without"].to_numpy())
    table["free"] = free = ~dotted & (said == 0)
    place[~dotted] = four_corners(place)
    place = place[:, ::2, ::2]
    images = shrink(torch.from_numpy(marked), t.recipe.size).to(t.fabric.device)
    cells, scores = _ink_maps(network, images, torch.from_numpy(said), place, t.seed)
    holds = cells_of(place, cells)
    table["chance hit"], table["chance mass"] = holds.mean(axis=(1, 2)), place.mean(axis=(1, 2))
    if free.any():
        other = all_maps(network, images[free], torch.ones(free.sum(), dtype=int), windows=8)
        for (score, name), values in ink_scores(other, place[free], cells).items():
            scores[f"other {score}", name] = np.full(len(test), np.nan)
            scores[f"other {score}", name][free] = values
    columns = {f"{score} {name}": values for (score, name), values in scores.items()}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


def _ink_maps(
    network: Classifier, images: Tensor, said: Tensor, place: np.ndarray, seed: int
) -> tuple[int, dict]:
    """The grid's cells a side, and the scores of all maps and controls."""
    maps = all_maps(network, images, said, windows=8)
    cells, (*_, (_, untrained)) = maps["Grad-CAM"].shape[-1], cascade(network, seed)
    other = np.random.default_rng(seed).permutation(len(images))
    maps["untrained network"] = grad_cam(untrained, images, said).maps
    maps["another tile's map"] = maps["Grad-CAM"][other]
    maps |= blind_maps(images, cells)
    return cells, ink_scores(maps, place, cells)


# --- Networks, trained once -----------------------------------------------------------------------

AGAIN = {"trained again": 1, **{f"trained again {k}": k for k in (2, 3, 4)}}


def tile_batch(tiles: Tiles, index: np.ndarray, size: int) -> Tensor:
    """Return tiles at `index` as the network takes them, float (N, 3, size, size) in [0, 1]."""
    parts = [index[i : i + 128] for i in range(0, len(index), 128)]
    return torch.cat([shrink(torch.from_numpy(tiles.images[p].copy()), size) for p in parts])


def train_network(t: Trial, arm: str) -> Classifier:
    """Return the network of an arm, from the cache if it was trained before.

    "trained again" and its like differ from "trained" in nothing but the seed of weights and
    batches.
    """
    r, seed = t.recipe, t.seed + 1000 * AGAIN.get(arm, 0)
    torch.manual_seed(seed)
    network = Classifier(Encoder(r.backbone), len(t.tiles.class_names)).to(t.fabric.device)
    if arm == "untrained":
        return network.eval()
    parts, labels = (t.parts.train, t.parts.val), t.tiles.labels
    if arm == "ink":
        train, val = (marked_part(t, part) for part in parts)
        images = [with_ink(t, part) for part in (train, val)]
    else:
        train, val = parts
        if arm == "shuffled labels":  # learnt by heart: there is nothing for validation to choose
            labels, known, val = labels.copy(), labels >= 0, val[:0]  # -1: no class of this task
            labels[known] = np.random.default_rng(seed).permutation(labels[known])
        images = [t.tiles.images[part] for part in (train, val)]
    settings = dict(size=r.size, batch=r.batch, lr=r.rates[-1], seed=seed,
                    epochs=max(1, round(r.steps / max(1, len(train) // r.batch))))  # fmt: skip
    mark = fingerprint(tiles=[content_hash(x) for x in images], labels=labels[train].tolist(),
                       arm=arm, network=r.backbone, code=file_hash(Path(__file__)),
                       **settings)  # fmt: skip
    file = cache_folder() / "studies" / f"{mark}.safetensors"
    if not file.is_file():
        fine_tune(network, images[0], labels[train], images[1], labels[val],
                  VIEWS["gentle"], t.fabric, optimizer="adamw-one-cycle", name=arm,
                  **settings)  # fmt: skip
        save_weights(file, network, origin=False)
    return load_weights(file, network).eval()
