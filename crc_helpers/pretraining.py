"""Contrastive pre-training without labels: NT-Xent, the loop, what to watch (lesson 03)."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

from crc_helpers.augmentation import VIEWS, Views, require_views, shrink, two_views
from crc_helpers.models import Encoder, ProjectionHead, evaluating, synchronise_statistics
from crc_helpers.runs import (
    atomic_path,
    fingerprint,
    first_alone,
    is_finite,
    load_checkpoint,
    memory_kept,
    one_writer,
    randomness,
    restore,
    save_checkpoint,
    save_table,
)
from crc_helpers.sources.store import content_hash


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


def alignment(z1: Tensor, z2: Tensor) -> Tensor:
    """Return the mean squared distance of positive pairs (N, D) on the unit sphere; 0 is best.

    Source: Wang & Isola 2020, arXiv 2005.10242.
    """
    return (F.normalize(z1, dim=1) - F.normalize(z2, dim=1)).square().sum(dim=1).mean()


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


def knn_accuracy(bank: Tensor, bank_labels, queries: Tensor, query_labels, k: int = 20) -> float:
    """Return the balanced accuracy of a cosine k-nearest-neighbour vote.

    bank (N, D) with labels (N,), queries (M, D) with labels (M,). Votes count in inverse
    proportion to their class's share of the bank, or the common class would win every vote.
    """
    bank_labels, query_labels = np.asarray(bank_labels), np.asarray(query_labels)
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T  # (M, N)
    neighbours = bank_labels[similarity.topk(min(k, len(bank)), dim=1).indices.numpy()]  # (M, k)
    classes, counts = np.unique(bank_labels, return_counts=True)
    votes = np.stack(
        [(neighbours == c).sum(axis=1) / n for c, n in zip(classes, counts, strict=True)]
    )
    predicted = classes[votes.argmax(axis=0)]
    return float(
        np.mean([(predicted[query_labels == c] == c).mean() for c in np.unique(query_labels)])
    )


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


@one_writer
@memory_kept()
def pretrain(
    encoder: Encoder,
    head: ProjectionHead,
    images: np.ndarray,
    views: Views,
    fabric: Fabric,
    *,
    size: int,
    epochs: int,
    batch: int,
    lr: float,
    temperature: float,
    optimizer: str = "adam",
    seed: int = 0,
    checkpoint: Path | None = None,
    mark: str = "",
    monitor: Callable[[Encoder, int], dict[str, float]] | None = None,
    objective: nn.Module | None = None,
) -> pd.DataFrame:
    """Train encoder and head in place on tiles without labels; return the log, a row an epoch.

    images: uint8 (N, 3, H, W), an array or a `TileStore`. size: side of a view in pixels.
    checkpoint: file written after every epoch; a run with the same `mark` goes on from it and ends
    in the same weights. monitor: called with (encoder, epoch), its numbers join the log.
    objective: another loss than NT-Xent, called with (model, views, other views, positions of the
    tiles), where model is encoder and head; what it has to learn itself is trained along.

    Where `fabric` has several processes, `batch` is shared among them, and views, negatives and
    batch statistics are those of one process with the whole batch; the first one alone watches
    and writes. A checkpoint may be gone on from with another number of processes.

    Raises ValueError for fewer tiles than a batch, or a batch that the processes cannot share
    evenly; FloatingPointError for a loss that is no number.
    """
    if batch < 2 or epochs < 1:
        raise ValueError(
            f"PRETRAIN_BATCH is {batch}, PRETRAIN_EPOCHS {epochs}: at least 2 and 1 are needed"
        )
    if len(images) < batch:
        raise ValueError(
            f"{len(images)} tiles are fewer than one batch of {batch}: lower PRETRAIN_BATCH"
        )
    if batch % fabric.world_size:
        raise ValueError(
            f"PRETRAIN_BATCH is {batch}: {fabric.world_size} processes need a multiple of their"
            " number"
        )
    if objective and fabric.world_size > 1:
        raise ValueError("on several devices NT-Xent is the only objective: take one device")
    model = nn.Sequential(encoder, head)
    if fabric.world_size > 1:
        synchronise_statistics(model, fabric.device)
    steps = epochs * (len(images) // batch)
    model = model.to(memory_format=torch.channels_last)
    objective = (objective or Contrast(temperature, fabric)).to(fabric.device)
    optim, schedule = make_optimizer(nn.ModuleList([model, objective]), optimizer, lr, steps)
    model, optim = fabric.setup(model, optim)
    # The first process reads for all: the others may not see its disk.
    state = first_alone(lambda: load_checkpoint(checkpoint, mark)) if checkpoint else None
    rows: list[dict[str, float]] = []

    def watch(epoch: int) -> dict[str, float]:
        return {k: float(v) for k, v in monitor(encoder, epoch).items()} if monitor else {}

    def keep() -> None:
        save_checkpoint(
            checkpoint, mark, model=model.state_dict(), objective=objective.state_dict(),
            optimizer=optim.state_dict(), schedule=schedule.state_dict(), rows=rows,
        )  # fmt: skip
        save_table(checkpoint.with_suffix(".csv"), rows)

    if state:
        rows = restore(checkpoint, state, model=model, objective=objective, optimizer=optim,
                       schedule=schedule)  # fmt: skip
        fabric.print(f"going on after epoch {rows[-1]['epoch']} of {epochs}")
        # A kill may have come between checkpoint and table.
        first_alone(lambda: save_table(checkpoint.with_suffix(".csv"), rows))
    elif seen := first_alone(lambda: watch(0)):
        rows.append({"epoch": 0, **seen})
    first = int(rows[-1]["epoch"]) + 1 if state else 1
    bar = tqdm(range(first, epochs + 1), desc="pre-training", unit="epoch",
               disable=not fabric.is_global_zero)  # fmt: skip
    for epoch in bar:
        start = time.perf_counter()
        with randomness(seed, epoch):
            row = _train_epoch(model, objective, optim, schedule, images, views, fabric, size,
                               batch, seed, epoch, checkpoint)  # fmt: skip
        seconds = max(time.perf_counter() - start, 1e-9)
        row["seconds"] = round(seconds, 2)
        row["pairs_per_second"] = round(len(images) // batch * batch / seconds, 1)
        row |= first_alone(lambda epoch=epoch: watch(epoch))
        rows.append(row)
        if collapsed(row):
            fabric.print(f"epoch {epoch}: the encoder has collapsed, tiles look alike to it: lower"
                         " PRETRAIN_LR, or take a larger batch or another TEMPERATURE")  # fmt: skip
        bar.set_postfix(loss=f"{row['loss']:.3f}", pairs_per_s=row["pairs_per_second"])
        if checkpoint:
            first_alone(keep)
    return pd.DataFrame(rows)


class Contrast(nn.Module):
    """The objective of the course: NT-Xent of a batch's two views, in one forward pass."""

    def __init__(self, temperature: float, fabric: Fabric | None = None) -> None:
        super().__init__()
        self.temperature, self.fabric = temperature, fabric

    def forward(self, model: nn.Module, v1: Tensor, v2: Tensor, _index: np.ndarray) -> Tensor:
        z1, z2 = model(channels_last(torch.cat([v1, v2]))).chunk(2)  # 2 x (N, out_dim)
        return nt_xent(z1, z2, self.temperature, self.fabric)


def _train_epoch(
    model, objective, optim, schedule, images, views, fabric, size, batch, seed, epoch, checkpoint
) -> dict[str, float]:
    model.train()
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    losses, lr = [], optim.param_groups[0]["lr"]
    share = fabric.global_rank, fabric.world_size
    for index in batches(len(images), batch, seed, epoch):
        tiles = to_device(images[index[share[0] :: share[1]]], fabric)
        v1, v2 = two_views(tiles, views, size, generator, share)  # 2 x (N, 3, size, size)
        loss = objective(model, v1, v2, index)
        optim.zero_grad()
        fabric.backward(loss)
        optim.step()
        schedule.step()
        losses.append(loss.detach())  # read once an epoch: reading it here would stall a GPU
    mean = float(fabric.all_reduce(torch.stack(losses).mean()))  # equal shares: mean of means
    if not (math.isfinite(mean) and is_finite(model)):  # a last step may ruin what had a loss
        stop(losses, mean, images, batches(len(images), batch, seed, epoch), epoch,
             checkpoint if fabric.is_global_zero else None,
             "lower PRETRAIN_LR or raise TEMPERATURE")  # fmt: skip
    return {"epoch": epoch, "loss": mean, "lr": lr}


def collapsed(row: dict[str, float]) -> bool:
    """Return whether a monitor's numbers say that all tiles have come to lie on a point or line."""
    return row.get("std", 1.0) < 1e-3 or row.get("effective_rank", 2.0) < 2


def stop(
    losses: list[Tensor],
    mean: float,
    images: np.ndarray,
    order: Iterable[np.ndarray],
    epoch: int,
    checkpoint: Path | None,
    advice: str,
) -> NoReturn:
    """Raise FloatingPointError for the first loss that is no number, its batch saved.

    order: the epoch's batches of indices. The batch goes to `<checkpoint>_bad_batch.npz`: tiles,
    their indices, epoch and step. The last checkpoint is kept, and leads to the same batch again.
    """
    bad = (~torch.stack(losses).isfinite()).nonzero().flatten().tolist()
    step = bad[0] if bad else len(losses) - 1
    where = keep_batch(checkpoint, images, next(itertools.islice(order, step, None)), epoch, step)
    what = f"the loss of epoch {epoch} is {mean}, since" if bad else "weights became infinite in"
    raise FloatingPointError(f"{what} batch {step + 1}{where}: {advice}")


def keep_batch(
    checkpoint: Path | None, images: np.ndarray, index: np.ndarray, epoch: int, step: int
) -> str:
    """Save the tiles at `index` beside the checkpoint, if there is one; return where, in words.

    step: which batch of the epoch, from 0; -1 for tiles of validation.
    """
    if not checkpoint:
        return ""
    path = checkpoint.with_name(f"{checkpoint.stem}_bad_batch.npz")
    with atomic_path(path) as temporary:
        np.savez(temporary, images=images[index], index=index, epoch=epoch, step=step)
    return f"; its tiles are kept in {path}"


def pretrain_encoder(
    tiles,
    index: np.ndarray,
    run: Path,
    fabric: Fabric,
    *,
    views: str,
    backbone: str,
    head: str,
    seed: int,
    monitor: Callable[[Encoder, int], dict[str, float]] | None = None,
    **settings,
) -> tuple[Encoder, pd.DataFrame]:
    """Build encoder and head from `seed`, `pretrain` them on the tiles at `index`, labels unused.

    tiles: `data.Tiles`. views: a name in `augmentation.VIEWS`. backbone, head: see `models`.
    settings: as in `pretrain`. Checkpoint and log go to `pretraining_<views>` in the folder `run`.
    Lesson 03 and `crc-course pretrain` both call this: each goes on from what the other has left.
    Raises ValueError for unknown views, and what `pretrain` raises.
    """
    require_views("VIEWS", views)
    torch.manual_seed(seed)
    encoder = Encoder(backbone)
    images = tiles.images.pick(index)
    mark = fingerprint(tiles=tiles.ids[index].tolist(), pixels=content_hash(images), views=views,
                       data=tiles.name, head=head, backbone=backbone, seed=seed,
                       **settings)  # fmt: skip
    log = pretrain(
        encoder, ProjectionHead(encoder.dim, kind=head), images, VIEWS[views], fabric, **settings,
        seed=seed, checkpoint=run / f"pretraining_{views}.ckpt", mark=mark, monitor=monitor,
    )  # fmt: skip
    return encoder, log


def make_monitor(
    tiles, bank: np.ndarray, queries: np.ndarray, size: int, epochs: int, fabric: Fabric
) -> Callable[[Encoder, int], dict[str, float]]:
    """Return what `pretrain` calls: kNN accuracy and signs of collapse, every second epoch and at
    the end. Labels are used to watch, never to train.

    tiles: `data.Tiles`; bank, queries: the indices to vote and to be voted on, of which no more
    than 400 and 2,000 are used: watching should cost little.
    """
    bank, queries = bank[:400], queries[:2000]

    def monitor(encoder: Encoder, epoch: int) -> dict[str, float]:
        if epoch % 2 and epoch != epochs:
            return {}
        known = embed(encoder, tiles.images.pick(bank), size, fabric)
        asked = embed(encoder, tiles.images.pick(queries), size, fabric)
        unit = F.normalize(known, dim=1)
        return {
            "knn": knn_accuracy(known, tiles.labels[bank], asked, tiles.labels[queries]),
            "std": float(unit.std(dim=0).mean() * math.sqrt(unit.shape[1])),
            "effective_rank": effective_rank(known),
            "uniformity": float(uniformity(known)),
        }

    return monitor
