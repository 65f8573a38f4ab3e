"""Contrastive pre-training without labels: NT-Xent, the loop, what to watch (lesson 03)."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from crc_helpers.augmentation import Views, shrink, two_views
from crc_helpers.models import Encoder, evaluating, synchronise_statistics
from crc_helpers.runs import Checkpoint, fingerprint, on_first_rank, randomness, save_table
from crc_helpers.sources.store import content_hash

WATCHED = 2000  # tiles that a monitor looks at


@dataclass(frozen=True)
class Training:
    """How a network is trained, on views of which size, for how long and how fast."""

    size: int  # side of a view in pixels
    epochs: int  # passes over the tiles
    batch: int  # tiles in a batch
    lr: float  # learning rate, the highest of the schedule
    optimizer: str = "adam"  # see `make_optimizer`
    seed: int = 0  # of batches and views

    def require(self, tiles: int, stage: str) -> int:
        """Return how many batches of `tiles` an epoch has; `stage` begins the parameters' names.

        Raises ValueError where this cannot train.
        """
        if self.batch < 2 or self.epochs < 1:
            raise ValueError(
                f"{stage}_BATCH is {self.batch}, {stage}_EPOCHS {self.epochs}: at least 2 and 1 are"
                " needed"
            )
        if tiles < self.batch:
            raise ValueError(
                f"{tiles} tiles are fewer than one batch of {self.batch}: lower {stage}_BATCH"
            )
        return tiles // self.batch


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, fabric: Fabric | None = None) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of two batches of views.

    z1, z2: float (N, D), row i of both from the same tile, not yet normalised.
    Returns a scalar, the mean over all 2N anchors. ln(2N - 1) when nothing is learnt. fabric: where
    it has several processes, each brings N tiles, takes its negatives from all of them and returns
    the mean over its own anchors; gradients flow back to every process.

    Raises ValueError for N < 2 (no negative) or a temperature that is not positive.
    Source: Chen et al. 2020, arXiv 2002.05709 (SimCLR), equation 1.
    """
    world = fabric.world_size if fabric else 1
    if len(z1) * world < 2 or z1.shape != z2.shape:
        raise ValueError(f"need two equal batches of 2 or more, got {z1.shape} and {z2.shape}")
    if not temperature > 0:
        raise ValueError(f"TEMPERATURE is {temperature}: it must be above 0, e.g. 0.2")
    n = len(z1)
    exact = torch.promote_types(z1.dtype, torch.float32)  # bf16 is too coarse for exp
    z = F.normalize(torch.cat([z1, z2]).to(exact), dim=1)  # (2N, D)
    everyone, itself = z, torch.arange(2 * n, device=z.device)
    if world > 1:
        everyone = fabric.all_gather(z, sync_grads=True).flatten(0, 1)  # (world x 2N, D)
        itself = itself + fabric.global_rank * 2 * n
    similarity = z @ everyone.T / temperature  # (2N, 2N or more) cosines over temperature
    # A view is not its own negative.
    similarity = similarity.scatter(1, itself[:, None], -torch.inf)
    return F.cross_entropy(similarity, itself.roll(n))  # i's partner is i + N, mod 2N


def chance_loss(batch: int) -> float:
    """Return the NT-Xent of identical embeddings, ln(2N - 1): nothing told apart."""
    return math.log(2 * batch - 1)


def floor_loss(batch: int, temperature: float) -> float:
    """Return the NT-Xent of perfect positives and orthogonal negatives."""
    return math.log1p((2 * batch - 2) * math.exp(-1 / temperature))


def uniformity(z: Tensor) -> Tensor:
    """Return log mean exp(-2 d^2) over pairs of rows of z (N, D) on the unit sphere; lower is
    more evenly spread.

    Source: Wang & Isola 2020, arXiv 2005.10242.
    """
    return torch.pdist(F.normalize(z, dim=1)).square().mul(-2).exp().mean().log()


def effective_rank(z: Tensor) -> float:
    """Return exp(entropy of the normalised singular values) of centred z (N, D): 1 is collapse.

    Raises FloatingPointError for features that are no numbers.
    Source: Roy & Vetterli 2007, EUSIPCO.
    """
    if not z.isfinite().all():
        raise FloatingPointError("features hold NaN or infinity: the encoder's weights are too big")
    values = torch.linalg.svdvals((z - z.mean(dim=0)).double())
    if not values.sum() > 0:
        return 1.0
    p = values / values.sum()
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def embed(
    network: nn.Module, images: np.ndarray, size: int, fabric: Fabric, batch: int = 128
) -> Tensor:
    """Return the network's outputs (N, D), float32 on the CPU, for whole uint8 tiles.

    The network is moved to the engine's device, runs in evaluation mode and is left in the mode it
    was in. No tiles give (0, D).
    """
    outputs, n = [], len(images)
    if n == 0:  # a transformer takes no empty batch, but knows D
        images = np.zeros((1, 3, size, size), np.uint8)
    with evaluating(network.to(fabric.device)), fabric.autocast():
        for start in range(0, len(images), batch):
            tiles = to_device(images[start : start + batch], fabric)
            outputs.append(network(channels_last(shrink(tiles, size))).float())
    return torch.cat(outputs).cpu()[:n]


def nearest(features: Tensor, k: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the k rows of features (N, D) with the highest cosine to each row, int64 (N, k).

    groups: (N,); no neighbour is of the row's own slide or case. Without them only the row itself
    is left out. Where fewer than k are left, all of them, and then some that are left out.
    """
    unit = F.normalize(features, dim=1)
    ids = np.arange(len(unit)) if groups is None else np.unique(groups, return_inverse=True)[1]
    ids, neighbours = torch.from_numpy(ids), []
    for rows in torch.arange(len(unit)).split(1000):  # all at once would be N x N numbers
        own = ids[rows, None] == ids
        similarity = (unit[rows] @ unit.T).masked_fill(own, -torch.inf)  # (1000, N)
        neighbours.append(similarity.topk(min(k, len(unit)), dim=1).indices)
    return torch.cat(neighbours).numpy()


def knn_accuracy(
    features: Tensor, labels: np.ndarray, groups: np.ndarray | None = None, k: int = 20
) -> float:
    """Return the balanced accuracy of a vote of each tile's k nearest tiles of other groups.

    features (N, D), labels (N,), groups (N,) or None: see `nearest`. Votes count in inverse
    proportion to their class's share, or the common class would win every vote.
    """
    _, label, counts = np.unique(labels, return_inverse=True, return_counts=True)
    neighbours = label[nearest(features, k, groups)]  # (N, k)
    votes = np.stack([(neighbours == c).sum(axis=1) / n for c, n in enumerate(counts)])
    return float(balanced_accuracy_score(label, votes.argmax(axis=0)))


def to_device(images: np.ndarray, fabric: Fabric) -> Tensor:
    """Return an array on the training device, without waiting for the device."""
    images = np.asarray(images)
    tensor = torch.from_numpy(images if images.flags.writeable else images.copy())
    if fabric.device.type == "cuda":
        tensor = tensor.pin_memory()  # from pageable memory the copy waits for the step before
    return tensor.to(fabric.device, non_blocking=True)


def channels_last(images: Tensor) -> Tensor:
    """Lay images out with the channels innermost, which convolutions read faster."""
    return images.contiguous(memory_format=torch.channels_last)


def make_optimizer(
    module: nn.Module, name: str, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return optimizer and schedule, stepped once a batch.

    name: "adam" at a constant rate (the paper's), or "adamw-one-cycle", which warms up over the
    first 15 % of `steps` and decays to zero, so that a short run ends settled.

    Raises ValueError for another name.
    """
    if name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=lr, fused=True)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if name == "adamw-one-cycle":
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-2, fused=True)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=max(steps, 2), pct_start=0.15
        )
    raise ValueError(f"OPTIMIZER is {name!r}: choose 'adam' (the paper's) or 'adamw-one-cycle'")


def batches(n: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the epoch's batches of indices; the last, incomplete one is left out.

    The order depends on (seed, epoch) alone, which is why a resumed run sees the same batches.
    """
    order = np.random.default_rng([seed, epoch]).permutation(n)
    for start in range(0, n - size + 1, size):
        yield np.sort(order[start : start + size])  # sorted: neighbours on disk are read together


def pretrain(
    model: nn.Sequential,
    images: np.ndarray,
    views: Views,
    fabric: Fabric,
    training: Training,
    objective: nn.Module,
    *,
    checkpoint: Path | None = None,
    monitor: Callable[[Encoder, int], dict[str, float]] | None = None,
) -> pd.DataFrame:
    """Train encoder and head in place on tiles without labels; return the log, a row an epoch.

    model: nn.Sequential(encoder, projection head). images: uint8 (N, 3, H, W), an array or a
    `TileStore`. objective: the loss, `Contrast(temperature, fabric)` or another module called with
    (model, views, other views, positions of the tiles); what it has to learn is trained along.
    checkpoint: see `runs.Checkpoint`; the same call goes on from it and ends in the same weights,
    and the log lies beside it. monitor: called with (encoder, epoch), its numbers join the log.

    Where `fabric` has several processes, `batch` is shared among them, and views, negatives and
    batch statistics are those of one process with the whole batch; the first one alone watches
    and writes. A checkpoint may be gone on from with another number of processes.

    Raises ValueError for fewer tiles than a batch, or a batch that the processes cannot share
    evenly; FloatingPointError for a loss that is no number.
    """
    steps = training.require(len(images), "PRETRAIN")
    _require_processes(fabric.world_size, training.batch, objective)
    kept = None
    if checkpoint:
        mark = fingerprint(
            training=vars(training),
            views=vars(views),
            images=content_hash(images),
            start=state_hash(model),
            objective=_name(objective),
        )
        kept = Checkpoint(checkpoint, mark)
    if fabric.world_size > 1:
        model = synchronise_statistics(model, fabric.device)
    encoder, model = model[0], model.to(memory_format=torch.channels_last)
    objective = objective.to(fabric.device)
    optim, schedule = make_optimizer(
        nn.ModuleList([model, objective]), training.optimizer, training.lr, training.epochs * steps
    )
    model, optim = fabric.setup(model, optim)
    learn = partial(descend, optim, schedule, fabric)
    parts = {"model": model, "objective": objective, "optimizer": optim, "schedule": schedule}
    # The first process reads for all: the others may not see its disk.
    state = on_first_rank(kept.load) if kept else None
    rows: list[dict[str, float]] = state["rows"] if state else []

    def watch(epoch: int) -> dict[str, float]:
        return {k: float(v) for k, v in monitor(encoder, epoch).items()} if monitor else {}

    def keep() -> None:
        kept.save(rows[-1]["epoch"] == training.epochs, rows=rows, **parts)
        save_table(checkpoint.with_suffix(".csv"), rows)

    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        fabric.print(f"going on after epoch {rows[-1]['epoch']} of {training.epochs}")
        on_first_rank(lambda: save_table(checkpoint.with_suffix(".csv"), rows))
    elif seen := on_first_rank(lambda: watch(0)):
        rows.append({"epoch": 0, **seen})
    first = int(rows[-1]["epoch"]) + 1 if state else 1
    quiet = not fabric.is_global_zero
    bar = tqdm(range(first, training.epochs + 1), desc="pre-training", unit="epoch", disable=quiet)
    for epoch in bar:
        start, lr = time.perf_counter(), optim.param_groups[0]["lr"]
        with randomness(training.seed, epoch):
            row = contrastive_epoch(model, objective, learn, images, views, fabric, training, epoch)
        seconds = max(time.perf_counter() - start, 1e-9)
        row |= {"lr": lr, "seconds": round(seconds, 2)}
        row["pairs_per_second"] = round(steps * training.batch / seconds, 1)
        row |= on_first_rank(lambda epoch=epoch: watch(epoch))
        rows.append(row)
        if collapsed(row):
            fabric.print(
                f"epoch {epoch}: the encoder has collapsed, tiles look alike to it: lower"
                " PRETRAIN_LR, or take a larger batch or another TEMPERATURE"
            )
        bar.set_postfix(loss=f"{row['loss']:.3f}", pairs_per_s=row["pairs_per_second"])
        if kept:
            on_first_rank(keep)
    return pd.DataFrame(rows)


def _require_processes(world: int, batch: int, objective: nn.Module) -> None:
    if batch % world:
        raise ValueError(
            f"PRETRAIN_BATCH is {batch}: {world} processes need a multiple of their number"
        )
    if world > 1 and not isinstance(objective, Contrast):
        raise ValueError("on several devices NT-Xent is the only objective: take one device")


def state_hash(module: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers, with their names."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _name(objective: nn.Module) -> list[str]:
    """Kind, numbers and start of an objective."""
    numbers = {k: v for k, v in vars(objective).items() if isinstance(v, int | float)}
    return [type(objective).__name__, str(numbers), state_hash(objective)]


class Contrast(nn.Module):
    """The objective of the course: NT-Xent of a batch's two views, in one forward pass."""

    def __init__(self, temperature: float, fabric: Fabric | None = None) -> None:
        super().__init__()
        self.temperature, self.fabric = temperature, fabric

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        z1, z2 = model(channels_last(torch.cat([v1, v2]))).chunk(2)  # 2 x (N, out_dim)
        return nt_xent(z1, z2, self.temperature, self.fabric)


def contrastive_epoch(
    model, objective, learn, images, views, fabric, training: Training, epoch: int
) -> dict[str, float]:
    """Train one epoch on pairs of views, calling `learn` with each loss; return the mean loss."""
    model.train()
    generator = torch.Generator().manual_seed(training.seed * 100_003 + epoch)
    losses = []
    share = fabric.global_rank, fabric.world_size
    for index in batches(len(images), training.batch, training.seed, epoch):
        tiles = to_device(images[index[share[0] :: share[1]]], fabric)
        v1, v2 = two_views(tiles, views, training.size, generator, share)  # 2 x (N, 3, S, S)
        loss = objective(model, v1, v2, index)
        learn(loss)
        losses.append(loss.detach())  # read once an epoch: reading it here would stall a GPU
    advice = "lower PRETRAIN_LR or raise TEMPERATURE"
    return {"epoch": epoch, "loss": mean_loss(losses, model, fabric, epoch, advice)}


def descend(optim, schedule, fabric: Fabric, loss: Tensor) -> None:
    """Move the weights once, down the gradient of a loss."""
    optim.zero_grad()
    fabric.backward(loss)
    optim.step()
    schedule.step()


def mean_loss(
    losses: list[Tensor], model: nn.Module, fabric: Fabric, epoch: int, advice: str
) -> float:
    """Return the mean of an epoch's losses over all processes, whose shares are equal.

    Raises FloatingPointError, naming epoch and step, where a loss or, after it, a weight is no
    number.
    """
    every = torch.stack(losses)
    mean = float(fabric.all_reduce(every.mean()))
    if math.isfinite(mean) and is_finite(model):
        return mean
    bad = (~every.isfinite()).nonzero().flatten().tolist()
    at = f"is no number since step {bad[0] + 1}" if bad else "led to infinite weights"
    raise FloatingPointError(f"the loss of epoch {epoch} {at} of {len(losses)}: {advice}")


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights are numbers; one look, so that a GPU is waited for once."""
    flat = [v.detach().abs().max() for v in model.state_dict().values() if v.numel()]
    return bool(torch.stack([value.float() for value in flat]).isfinite().all())


def collapsed(row: dict[str, float]) -> bool:
    """Return whether a monitor's numbers say that all tiles have come to lie on a point or line."""
    return row.get("std", 1.0) < 1e-3 or row.get("effective_rank", 2.0) < 2


def make_monitor(
    tiles, index: np.ndarray, size: int, epochs: int, fabric: Fabric
) -> Callable[[Encoder, int], dict[str, float]]:
    """Return what `pretrain` calls: kNN accuracy and signs of collapse, every fifth epoch and at
    the end. Labels are used to watch, never to train.

    tiles: `data.Tiles`; index: the labelled training tiles, of which WATCHED at most are used, by
    chance: watching should cost little. Each is asked about its nearest tiles of other slides, see
    `knn_accuracy`.
    """
    if len(index) > WATCHED:
        index = np.sort(np.random.default_rng(0).choice(index, WATCHED, replace=False))
    groups = None if tiles.groups is None else tiles.groups[index]

    def monitor(encoder: Encoder, epoch: int) -> dict[str, float]:
        if epoch % 5 and epoch != epochs:
            return {}
        features = embed(encoder, tiles.images.pick(index), size, fabric)
        unit = F.normalize(features, dim=1)
        return {
            "knn": knn_accuracy(features, tiles.labels[index], groups),
            "std": float(unit.std(dim=0).mean() * math.sqrt(unit.shape[1])),
            "effective_rank": effective_rank(features),
            "uniformity": float(uniformity(features)),
        }

    return monitor
