"""Pairs a second of contrastive pre-training, from PNG files: ours, lightly's recipe, the limit.

    python benchmarks/pretraining_speed.py

lightly: its dataset, SimCLR transform, projection head, loss and two forward passes, as its
tutorial has them, with a worker process a core, in float32; where ours computes in bf16, lightly's
once more in bf16, so that the recipe alone differs. Ours: tiles decoded once (not timed, once a
course), read from the store, the lesson's own loop. limit: our loop on views that lie ready.
"""

import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import keep, race
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import nn
from torch.utils.data import ConcatDataset

from crc_helpers import data, models, pretraining, runs
from crc_helpers.augmentation import VIEWS
from crc_helpers.course import check as data_check
from crc_helpers.course.run import MEMORY

GPU = torch.cuda.is_available()
# claim: backbone, pixels of a view, batch, batches a round, aims against lightly and the limit
SETTINGS = {
    "pre-training, ResNet-18, 96 px": ("resnet18", 96, 128, 48 if GPU else 8, 2.5, 0.90),
}
LARGE = (128, 48, 5.0, 0.85) if GPU else (16, 2, 2.0, None)
SETTINGS["pre-training, ResNet-50, 224 px"] = ("resnet50", 224, *LARGE)


def lightly_recipe(backbone, size, batch, folder, fabric, precision):
    """One epoch over a folder of PNG files as lightly's SimCLR tutorial trains."""
    steps = lightly_steps(backbone, size, batch, folder, fabric, precision)
    return lambda: deque(steps(), maxlen=0)


def lightly_steps(
    backbone: str,
    size: int,
    batch: int,
    folder: Path,
    fabric,
    precision: torch.dtype,
    repeats: int = 1,
) -> Callable[[], Iterator[None]]:
    """Return a function that yields after each training step of an epoch over the files.

    repeats: how often each file is in that epoch.
    """
    encoder = models.Encoder(backbone)
    model = nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, encoder.dim, 128))
    model = model.to(fabric.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    criterion = NTXentLoss()
    dataset = LightlyDataset(str(folder), transform=SimCLRTransform(input_size=size))
    batches = {"batch_size": batch, "shuffle": True, "drop_last": True}
    workers = {"num_workers": os.cpu_count(), "persistent_workers": True, "pin_memory": GPU}
    several = ConcatDataset([dataset] * repeats)
    loader = torch.utils.data.DataLoader(several, **batches, **workers)

    kind = fabric.device.type

    def epoch() -> Iterator[None]:
        model.train()
        for (v1, v2), _, _ in loader:
            with torch.autocast(kind, precision, enabled=precision != torch.float32):
                z1 = model(v1.to(fabric.device, non_blocking=True))
                z2 = model(v2.to(fabric.device, non_blocking=True))
            loss = criterion(z1, z2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield

    return epoch


def ours(backbone: str, size: int, batch: int, images, fabric, ready: bool):
    """One epoch of the lesson's own loop; ready: its views drawn beforehand, on the device."""
    torch.manual_seed(0)
    encoder = models.Encoder(backbone)
    model = nn.Sequential(encoder, models.ProjectionHead(encoder.dim))
    optimizer, schedule = pretraining.make_optimizer(model, "adamw-one-cycle", 1e-3, 10**6)
    model = model.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(model, optimizer)
    drawn = torch.rand(2 * batch, 3, size, size, device=fabric.device)
    views = pretraining.channels_last(drawn)
    learn = partial(pretraining.descend, optimizer, schedule, fabric)
    training = pretraining.Training(size, epochs=1, batch=batch, lr=1e-3)

    def epoch() -> None:
        model.train()
        for _ in range(len(images) // batch):
            z1, z2 = model(views).chunk(2)
            loss = pretraining.nt_xent(z1, z2, 0.2)
            learn(loss)

    objective = pretraining.Contrast(0.2)

    def lesson() -> None:
        pretraining.contrastive_epoch(
            model, objective, learn, images, VIEWS["tissue"], fabric, training, epoch=1
        )

    return epoch if ready else lesson


def main() -> None:
    """Race, at both sizes."""
    torch.set_num_threads(os.cpu_count())
    fabric = runs.make_fabric(0)
    for claim, (backbone, size, batch, batches, than_lightly, of_limit) in SETTINGS.items():
        n = batch * batches
        with tempfile.TemporaryDirectory() as temporary:
            folder = data_check.prepare("synthetic", Path(temporary) / "tissue", n=n) / "images"
            tiles = data.load_tiles("synthetic", n=n, cache=temporary)
            assert np.array_equal(tiles.images[0], _read(sorted(folder.iterdir())[0]))
            peer = partial(lightly_recipe, backbone, size, batch, folder, fabric)
            contenders = {
                "ours": ours(backbone, size, batch, tiles.images, fabric, ready=False),
                "lightly": peer(torch.float32),
                "limit": ours(backbone, size, batch, tiles.images, fabric, ready=True),
            }
            bars = {"ours / lightly": than_lightly, "ours / limit": of_limit}
            if runs.has_fast_bf16():
                contenders["lightly in bf16"] = peer(torch.bfloat16)
                bars["ours / lightly in bf16"] = None
            seconds = race(contenders)
        keep(f"{claim}, batch {batch}", seconds, n, "pairs", bars)


def _read(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path)).transpose(2, 0, 1)


if __name__ == "__main__":
    if not os.environ.keys() >= MEMORY.keys():  # read as a program starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MEMORY)
    main()
