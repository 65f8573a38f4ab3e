"""Other heat maps, and the trials that any of them has to pass (lesson 09).

Maps come as Tensors at the size that their method works at; trials take them enlarged to pixels.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, Occlusion
from scipy.stats import pearsonr, rankdata
from skimage.metrics import structural_similarity
from torch import Tensor

from crc_helpers.augmentation import UNSTAIN
from crc_helpers.evaluation import bootstrap_interval
from crc_helpers.grad_cam import enlarge, evidence, grad_cam, layer_names, stage_names
from crc_helpers.models import Classifier, Encoder, evaluating
from crc_helpers.pretraining import channels_last

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

    Each sums to the tile's logit minus that of its mean colour. Source: Sundararajan et al. 2017,
    arXiv 1703.01365; computed by captum.
    """
    how = {"target": target.to(images.device), "n_steps": steps, "internal_batch_size": 256}
    with evaluating(model):
        attribution = IntegratedGradients(model).attribute(images, mean_colour(images), **how)
    return attribution.sum(dim=1).detach().float().cpu()


@torch.no_grad()
def occlusion(
    model: Classifier, images: Tensor, target: Tensor, window: int = 24, stride: int = 12
) -> Tensor:
    """Return signed maps (N, H, W): by how much the logit falls when a square is covered.

    The square, of `window` pixels, is painted in the tile's mean colour; where squares overlap,
    their mean counts. Source: Zeiler & Fergus 2014, arXiv 1311.2901; computed by captum.
    """
    how = {"strides": (3, stride, stride), "baselines": mean_colour(images)}
    how["target"] = target.to(images.device)
    with evaluating(model):
        attribution = Occlusion(model).attribute(images, (3, window, window), **how)
    return attribution[:, 0].float().cpu()  # the same for the three channels


# --- Controls: maps that know nothing of the network ----------------------------------------------


def edge_map(images: Tensor, grain: float) -> np.ndarray:
    """Return the strength of brightness edges (N, H, W), blurred to a `grain` in pixels."""
    grey = images.mean(dim=1).cpu().numpy()
    slopes = ([cv2.Sobel(g, cv2.CV_32F, *axis) for g in grey] for axis in ((1, 0), (0, 1)))
    return _blur(np.hypot(*slopes), grain)


def stain_map(images: Tensor, grain: float) -> np.ndarray:
    """Return the optical density of haematoxylin (N, H, W), blurred to a `grain` in pixels.

    images: float (N, 3, H, W) in [0, 1]. Source: Ruifrok & Johnston 2001.
    """
    density = -images.cpu().clamp(min=1 / 255).log()
    return _blur(torch.einsum("nchw,c->nhw", density, UNSTAIN[:, 0]).clamp(min=0).numpy(), grain)


def _blur(maps: np.ndarray, grain: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(one, (0, 0), grain) for one in maps])


def centre_map(count: int, size: int) -> np.ndarray:
    """Return a bump in the middle of each of `count` squares, float32 (N, size, size)."""
    side = np.linspace(-1, 1, size)
    bump = np.exp(-2 * (side[:, None] ** 2 + side[None] ** 2)).astype(np.float32)
    return np.broadcast_to(bump, (count, size, size))


MANY_PASSES = ("Integrated Gradients", "occlusion")


def all_maps(
    model: Classifier, images: Tensor, targets: Tensor, costly: int | None = None, windows: int = 4
) -> dict[str, Tensor]:
    """Return the maps of five methods by name, with evidence against the class set to zero.

    costly: of how many images the maps of MANY_PASSES are made; None: of all. windows: squares a
    side that occlusion covers one by one.
    """
    early, square = layer_names(model, images)[-2:][0], images.shape[-1] // windows
    methods = {
        "Grad-CAM": lambda x, y: grad_cam(model, x, y).maps,
        "HiResCAM": lambda x, y: hires_cam(model, x, y, early),
        "LayerCAM": lambda x, y: layer_cam(model, x, y),
        "Integrated Gradients": lambda x, y: integrated_gradients(model, x, y, 8).relu(),
        "occlusion": lambda x, y: occlusion(model, x, y, square, square).relu(),
    }
    maps = {}
    for name, explain in methods.items():
        n = costly if name in MANY_PASSES else None
        batches = zip(images[:n].split(64), targets[:n].split(64), strict=True)
        maps[name] = torch.cat([explain(x, y) for x, y in batches])
    return maps


def blind_maps(images: Tensor, cells: int) -> dict[str, Tensor]:
    """Return control maps that use no network, by name, as coarse as `cells` a side."""
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
    pair = [m.reshape(len(m), -1) for m in (one, other)]
    there = np.stack([np.ptp(m, axis=1) > 0 for m in pair])
    correlation, both = np.where(there.any(axis=0), 0.0, np.nan), there.all(axis=0)
    if both.any():
        correlation[both] = pearsonr(*(rankdata(m[both], axis=1) for m in pair), axis=1).statistic
    return correlation


def ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair of maps (N, H, W), (N,), by scikit-image.

    Each is divided by its own maximum first, as what the eye compares is pictures. A blank map is
    like no picture: 0 where one is zero everywhere, NaN where both are.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its window.
    """
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    there = np.stack([m.max(axis=(1, 2)) > 0 for m in (one, other)])
    similarity = np.where(there.any(axis=0), 0.0, np.nan)
    for k in np.flatnonzero(there.all(axis=0)):
        a, b = (m[k].astype(float) / m[k].max() for m in (one, other))
        similarity[k] = structural_similarity(a, b, data_range=1.0, **window)
    return similarity


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


def _guess(values: Tensor, present: Tensor) -> Tensor:
    """Fill missing pixels with the mean of present ones nearby, from the coarsest grid down."""
    if values.shape[-1] == 1:
        return values / present.clamp(min=1e-6)
    coarse = _guess(F.avg_pool2d(values, 2), F.avg_pool2d(present, 2))
    wide = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(present > 0, values / present.clamp(min=1e-6), wide)


@torch.no_grad()
def perturbation_curve(
    model: Classifier,
    images: Tensor,
    target: Tensor,
    heat: np.ndarray,
    fill: Fill,
    shares: Sequence[float],
    keep: bool = False,
) -> np.ndarray:
    """Return the probability (N, S) of each tile's class with its hottest pixels gone, or kept.

    heat: (N, H, W) of the images' own size. shares: of the pixels that are gone ("deletion") or,
    with `keep`, that alone are there ("insertion"). Source: Petsiuk et al. 2018, arXiv 1806.07421.
    """
    n, pixels = len(heat), heat[0].size
    order = np.argsort(-heat.reshape(n, pixels), axis=1, kind="stable")
    rank = torch.from_numpy(order.argsort(axis=1).reshape(heat.shape)).to(images.device)
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
    """Return how much more the class loses without the hottest pixels than without the coldest.

    Half the difference in the probability of each tile's class, averaged over shares, (N,): 0 for a
    map that knows nothing.
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

    Both are drawn with replacement: another network is chance as much as another slide. NaN is left
    out.
    """
    rng, networks = np.random.default_rng(0), len(values)

    def mean(tiles: np.ndarray) -> float:
        return np.nanmean(values[rng.integers(0, networks, networks)][:, tiles])

    return float(np.nanmean(values)), *bootstrap_interval(mean, values.shape[1], groups, samples)


def verdict(low: float, high: float, threshold: float, below: bool = False) -> str:
    """Return whether an interval lies on the wanted side of a threshold.

    "yes": all of it lies above (or, with `below`, below). "no": all of it lies on the other side.
    "not shown": it includes the threshold, or its ends are NaN.
    """
    wanted, other = (
        (high < threshold, low > threshold) if below else (low > threshold, high < threshold)
    )
    return "yes" if wanted else "no" if other else "not shown"
