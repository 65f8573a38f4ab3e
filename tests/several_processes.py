"""Pre-training by however many processes torchrun starts, on CPUs; run by test_scaling.py.

several_processes.py steps OUT EPOCHS DEVICES [STOP]   five steps an epoch, left in OUT-RANK.pt
several_processes.py course ARGUMENT ...               the command line
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce

from crc_helpers import pretraining, runs
from crc_helpers.augmentation import VIEWS
from crc_helpers.course.cli import main
from crc_helpers.models import Encoder, ProjectionHead


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all processes, for CPUs: torch's needs a GPU."""

    def forward(self, x):
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


def synchronise_on_cpus(module, _device):
    """Stand in for `models.synchronise_statistics`: the same weights and buffers, in place."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronisedBatchNorm2d
    return module


class Exact(Encoder):
    """An encoder in double precision: what remains of a difference is a mistake, not rounding."""

    def forward(self, images):
        return super().forward(images.double())


def steps(out: Path, epochs: int, devices: int, stop: int = 0) -> None:
    """Train, the first process failing as it watches epoch `stop`, and leave the weights."""
    runs.SAVE_EVERY = 0
    runs.has_fast_bf16 = lambda: False  # where the processor has it, autocast would round
    fabric = runs.make_fabric(0, devices)
    fabric.launch()
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (40, 3, 8, 8), np.uint8).repeat(4, 2).repeat(4, 3)
    torch.manual_seed(0)
    encoder = Exact("resnet8").double()
    head = ProjectionHead(encoder.dim).double()

    def monitor(_encoder, epoch):
        if stop and epoch == stop:
            raise RuntimeError("stopped")
        return {"asked_in_process": fabric.global_rank}

    model, training = nn.Sequential(encoder, head), pretraining.Training(32, epochs, 8, 1e-3)
    loss = pretraining.Contrast(0.2, fabric)
    try:
        given = model, tiles, VIEWS["tissue"], fabric, training, loss
        checkpoint = out.with_suffix(".ckpt")
        log = pretraining.pretrain(*given, monitor=monitor, checkpoint=checkpoint)
    except (RuntimeError, SystemExit):
        if not stop:
            raise
        return
    state = {"encoder": encoder.state_dict(), "head": head.state_dict()}
    if head.layers.weight.grad is not None:
        pairs = [*encoder.named_parameters(), *head.named_parameters()]
        state["gradient"] = {name: p.grad for name, p in pairs}
    state |= {"loss": log["loss"].tolist(), "world": fabric.world_size}
    state["asked"] = log.get("asked_in_process", pd.Series()).tolist()
    torch.save(state, f"{out}-{fabric.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretraining.synchronise_statistics = synchronise_on_cpus
    what, *given = sys.argv[1:]
    if what == "course":
        raise SystemExit(main(given))
    steps(Path(given[0]), *map(int, given[1:]))
