"""Five steps of pre-training by however many processes torchrun starts; run by test_scaling.py."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from crc_helpers import pretraining, runs
from crc_helpers.augmentation import VIEWS
from crc_helpers.models import Encoder, ProjectionHead


class Exact(Encoder):
    """An encoder in double precision: what remains of a difference is a mistake, not rounding."""

    def forward(self, images):
        return super().forward(images.double())


def main(out: Path, epochs: int, devices: int) -> None:
    torch.set_num_threads(1)
    runs.has_fast_bf16 = lambda: False  # where the processor has it, autocast would round
    fabric = runs.make_fabric(0, devices)
    fabric.launch()
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (40, 3, 8, 8), np.uint8).repeat(4, 2).repeat(4, 3)
    torch.manual_seed(0)
    encoder = Exact("resnet8").double()
    head = ProjectionHead(encoder.dim).double()

    def monitor(_encoder, epoch):
        return {"asked_in_process": fabric.global_rank}

    log = pretraining.pretrain(
        encoder, head, tiles, VIEWS["tissue"], fabric, size=32, epochs=epochs, batch=8, lr=1e-3,
        temperature=0.2, checkpoint=out.with_suffix(".ckpt"), mark="same", monitor=monitor,
    )  # fmt: skip
    state = {"encoder": encoder.state_dict(), "head": head.state_dict()}
    if head.layers.weight.grad is not None:
        pairs = [*encoder.named_parameters(), *head.named_parameters()]
        state["gradient"] = {name: p.grad for name, p in pairs}
    torch.save(state | {"loss": log["loss"].tolist(), "world": fabric.world_size,
                "asked": log.get("asked_in_process", pd.Series()).tolist()},
               f"{out}-{fabric.global_rank}.pt")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
