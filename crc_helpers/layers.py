"""The layers of any network: their names, and how the output of one lies on the picture."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from crc_helpers.models import Classifier, evaluating

Layer = str | nn.Module  # a module, or its dotted name

# Where trial pictures are painted over, as shares of the way down and to the right.
SPOTS = [(0, 0), (0, 1), (1, 0), (1, 1), (0.3, 0), (0.6, 1), (0.15, 0.55), (0.45, 0.2), (0.4, 0.75)]
SPOTS += [(0.7, 0.4), (0.85, 0.65), (0.55, 0.9)]
PATCHES = (6, 14)  # how often what is painted fits into a side: for up to 6 rows, and for more
AGREEMENT = 0.9  # correlation from which a layer is said to change where the picture changed
CONVOLUTIONS = (nn.Conv2d, nn.BatchNorm2d)  # have their channels first
MOST_EXTRA = 8  # tokens that stand for no place: class, distillation and register tokens
ORDERS = {4: [(0, 1, 2, 3), (0, 3, 1, 2)], 3: [(0, 2, 1), (1, 2, 0), (0, 1, 2)]}
ROUNDINGS = {4: [(1, 1)], 3: [(1, 0), (0, 1)]}  # by how much cells may be too few, too many

# --- Names ----------------------------------------------------------------------------------------


def find_layer(model: nn.Module, layer: Layer) -> nn.Module:
    """Return the module with this dotted name, or the outermost whose name ends like this, such as
    "module.layer4" for "layer4".

    Raises ValueError where there is none, or more than one.
    """
    names = dict(list(model.named_modules(remove_duplicate=False))[1:])  # without the model itself
    if isinstance(layer, nn.Module):
        own = (name for name, module in names.items() if module is layer)
        layer = next(own, type(layer).__name__)
    ending = [name for name in names if f".{name}".endswith(f".{layer}")]
    outermost = min((name.count(".") for name in ending), default=0)
    matches = [name for name in ending if name.count(".") == outermost]
    if len(matches) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(matches) or 'no'} layers called {layer!r}: choose one"
            f" of {matches or stage_names(model)}"
        )
    return names[matches[0]]


def layer_name(network: nn.Module, module: nn.Module) -> str:
    """Return a module's dotted name; in our own Classifier, the one inside its backbone."""
    names = {module: name for name, module in network.named_modules()}
    return names[module].removeprefix("encoder.backbone.")


def stage_names(model: nn.Module) -> list[str]:
    """Return the names of the stages that hold weights, in networks built as torchvision's and
    timm's: "layer1" and on in a ResNet, a transformer's blocks "blocks.0" and on.
    """
    network = model.encoder.backbone if isinstance(model, Classifier) else model
    children = dict(network.named_children())
    parts = {n: m for n, m in children.items() if n.startswith(("layer", "features", "stage"))}
    for name in ("stages", "layers", "blocks"):  # timm keeps them in one container
        if name in children:
            parts = {f"{name}.{n}": m for n, m in children[name].named_children()}
    stages = []
    for name, part in (parts or children).items():
        while isinstance(part, nn.ModuleList) and len(part):  # which is never called itself
            name, part = f"{name}.{len(part) - 1}", part[-1]
        stages += [name] if list(part.parameters()) else []
    return stages


# --- Looking into a network -----------------------------------------------------------------------

_ALONE = threading.RLock()  # a network's mode and hooks are the same for all threads


@contextlib.contextmanager
def prepared(model: nn.Module, images: Tensor) -> Iterator[nn.Module]:
    """Yield the network inside its wrapper, for this thread alone and in evaluation mode: batch
    statistics would make images depend on each other.

    Raises ValueError for images, or a network, whose layers cannot be looked into.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}: give float (N, 3, H, W)"
        )
    network = getattr(model, "_orig_mod", model)  # of torch.compile, which heeds no new hook
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    if any(p.is_inference() for p in network.parameters()):
        raise ValueError("the network was made in torch.inference_mode(): make it outside of that")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise ValueError("TorchScript shows no layer: give the network that it was made from")
    with _ALONE, torch.inference_mode(False), evaluating(network):
        yield network


@contextlib.contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Call `hook(module, output)` after each call of these modules by this thread in the block."""
    thread = threading.get_ident()

    def own(module: nn.Module, _inputs: tuple, output: Any) -> Any:
        return hook(module, output) if threading.get_ident() == thread else None

    handles = [module.register_forward_hook(own) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- How an output lies on the picture ------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How to lay a layer's output on the picture."""

    order: tuple[int, ...]  # of its axes: images, channels, then rows and columns, or tokens
    size: tuple[int, int]  # rows and columns
    skip: int = 0  # tokens before the first that stands for a place

    def __call__(self, output: Tensor) -> Tensor:
        """Return an output, or its gradient, as (N, K, h, w)."""
        output = output.permute(self.order)
        if output.ndim == 3:
            output = output[:, :, self.skip :][:, :, : math.prod(self.size)]
            output = output.unflatten(2, self.size)
        return output


@dataclass
class Trials:
    """What trials have shown of a network, for one size of picture."""

    grids: dict[nn.Module, Grid] = field(default_factory=dict)
    last: nn.Module | None = None


_TRIALS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Trials]] = WeakKeyDictionary()


def trials(network: nn.Module, images: Tensor) -> Trials:
    """Return what trials have shown of a network as it is built now; later trials add to it."""
    state = (*images.shape[1:], *map(id, network.modules()))
    return _TRIALS.setdefault(network, {}).setdefault(state, Trials())


def find_grids(
    network: nn.Module, images: Tensor, modules: Iterable[nn.Module]
) -> dict[nn.Module, Grid | str]:
    """Return the grid of each module, or why it has none, in the order in which they end.

    Shapes suggest grids. Where no convolution makes it plain, a trial decides: tokens and channels
    kept last must change where the picture is changed. What is not called is left out.
    """
    grids: dict[nn.Module, Grid | str | None] = {}
    pictures = trial_pictures(images)

    def look(module: nn.Module, output: Any) -> None:
        grids.pop(module, None)  # the last call of several counts
        grids[module] = _recognise(module, output, 1, *images.shape[2:])

    def try_out(module: nn.Module, output: Any) -> None:
        grids[module] = _recognise(module, output, len(pictures), *images.shape[2:])

    with torch.no_grad():
        with hooked(modules, look):
            network(pictures[:1].clone())
        if undecided := [module for module, grid in grids.items() if grid is None]:
            with hooked(undecided, try_out):
                network(pictures)
    return grids


def trial_pictures(images: Tensor) -> Tensor:
    """Return a picture of noise, and copies painted over at SPOTS, all in each size of PATCHES."""
    _, channels, height, width = images.shape
    noise = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(0))
    pictures = [noise]
    for part in PATCHES:
        h, w = math.ceil(height / part), math.ceil(width / part)
        for down, right in SPOTS:
            y, x = round(down * (height - h)), round(right * (width - w))
            pictures.append(noise.clone())
            pictures[-1][:, y : y + h, x : x + w] += 2
    return torch.stack(pictures).to(images)


def _recognise(
    module: nn.Module, output: Any, pictures: int, height: int, width: int
) -> Grid | str | None:
    """Return the grid of a layer's output for so many trial pictures, why there is none, or None
    if only more pictures can tell.
    """
    if not isinstance(output, Tensor):
        return f"gives a {type(output).__name__} and not one tensor"
    shape = ", ".join(map(str, output.shape[1:]))
    unknown = f"gives (N, {shape}), in which the places of the picture are not found"
    grids = list(_candidates(output.shape, pictures, height, width))
    if not grids:
        return unknown
    if isinstance(module, CONVOLUTIONS) and grids[0].order == ORDERS[4][0]:
        return grids[0]
    convolves = any(isinstance(part, CONVOLUTIONS) for part in module.modules())
    if output.ndim == 4 and len(grids) == 1 and (convolves or min(grids[0].size) < 3):
        return grids[0]  # two rows are too few for a trial
    if pictures == 1:
        return None
    scores = {grid: _agreement(grid, output) for grid in grids}
    best = max(scores, key=lambda grid: np.nan_to_num(scores[grid], nan=-1))
    return best if scores[best] >= AGREEMENT else unknown


def _candidates(shape: torch.Size, pictures: int, height: int, width: int) -> Iterator[Grid]:
    """Yield the grids that an output of this shape may have, for so many pictures."""
    for order in ORDERS.get(len(shape), []):
        first, _, *places = [shape[axis] for axis in order]
        sizes = [(*places, 0)]
        if len(places) == 1:
            (tokens,) = places
            cells = range(max(2, tokens - MOST_EXTRA), tokens + 1)
            sizes = [(h, n // h, tokens - n) for n in cells for h in range(1, n + 1) if n % h == 0]
        for h, w, extra in sizes:
            if first == pictures and _fits(h, w, height, width, ROUNDINGS[len(shape)]):
                yield from (Grid(order, (h, w), skip) for skip in range(extra + 1))


def _fits(h: int, w: int, height: int, width: int, roundings: list[tuple[int, int]]) -> bool:
    """Return whether one stride gives both numbers of cells, but for a rounding."""
    return any(
        h <= height
        and w <= width
        and max(height / (h + few), width / (w + few))
        < min(height / max(h - many, 0.1), width / max(w - many, 0.1))
        for few, many in roundings
    )


def _agreement(grid: Grid, output: Tensor) -> float:
    """Return how closely the middle of what changes follows SPOTS: the correlation, on the axis
    where it is less; NaN if nothing changes.
    """
    laid = grid(output).float()
    changed = (laid[1:] - laid[:1]).square().sum(dim=1)  # (patches x spots, h, w)
    fine = int(max(grid.size) > PATCHES[0])
    changed = changed.unflatten(0, (len(PATCHES), len(SPOTS)))[fine]
    answers = changed.sum(dim=(1, 2)) > 0
    if answers.sum() < 4:
        return math.nan
    share = changed[answers] / changed[answers].sum(dim=(1, 2), keepdim=True)
    spots, correlations = torch.tensor(SPOTS).to(share)[answers], [1.0]
    for axis, length in enumerate(grid.size):
        if length > 1:
            middle = share.sum(dim=2 - axis) @ torch.arange(length).to(share)  # (spots,)
            correlations.append(float(torch.corrcoef(torch.stack([middle, spots[:, axis]]))[0, 1]))
    return float(np.min(correlations))
