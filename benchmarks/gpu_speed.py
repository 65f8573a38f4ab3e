"""ResNet-50 at 224 px on one GPU: pre-training beside lightly and the limit, and what speeds it up.

    python benchmarks/gpu_speed.py --out runs/gpu_speed

Pairs a second of the lesson's loop, of lightly's recipe from PNG files, and of the same network on
views that lie ready on the device (the limit); the limit again in other ways of computing it; the
batch from 128 to 1,024; memory; the share of the device's peak; and what views, a checkpoint and a
step of fine-tuning cost. Every figure goes to `gpu_speed.json` as soon as it is measured.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
import torch
from pretraining_speed import lightly_steps, ours
from torch.utils.flop_counter import FlopCounterMode

from crc_helpers import data, runs
from crc_helpers.augmentation import PAPER, TISSUE, two_views
from crc_helpers.models import Classifier, Encoder, ProjectionHead
from crc_helpers.pretraining import channels_last, nt_xent, to_device

# Dense bf16 operations a second, from the datasheets.
PEAK = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}


def seconds(work: Callable[[], object], repeats: int, warm: int = 2) -> float:
    """Return the median seconds of one call, after `warm` calls that are not counted."""
    times = []
    for turn in range(warm + repeats):
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        if turn >= warm:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Step:
    """One training step on ready inputs: contrastive on `n` pairs, or supervised on n tiles.

    layout: "channels last" (the course's) or "contiguous". way: "eager" (the course's), "compiled"
    or "CUDA graph".
    """

    def __init__(
        self, backbone: str, size: int, n: int, *, contrastive: bool, layout: str, way: str
    ) -> None:
        torch.manual_seed(0)
        self.kind = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = Encoder(backbone)
        head = ProjectionHead(encoder.dim)
        model = torch.nn.Sequential(encoder, head) if contrastive else Classifier(encoder, 2)
        images = torch.rand((1 + contrastive) * n, 3, size, size, device=self.kind)
        if layout == "channels last":
            model, images = model.to(memory_format=torch.channels_last), channels_last(images)
        self.model, self.images, self.contrastive = model.to(self.kind).train(), images, contrastive
        self.labels = torch.arange(n, device=self.kind) % 2
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=True, capturable=way == "CUDA graph"
        )
        self.run = torch.compile(self.model) if way == "compiled" else self.model
        self.step = self.capture() if way == "CUDA graph" else self.eager

    def eager(self) -> None:
        """Forward, loss, backward, optimizer."""
        # Captured weights must be cast anew in each replay, hence no cache.
        with torch.autocast(self.kind, torch.bfloat16, cache_enabled=self.run is self.model):
            outputs = self.run(self.images)
        if self.contrastive:
            loss = nt_xent(*outputs.chunk(2), 0.2)
        else:
            loss = torch.nn.functional.cross_entropy(outputs.float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def capture(self) -> Callable[[], None]:
        """Record the step once; what is returned replays it without Python."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self.eager()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.eager()
        return graph.replay

    def flops(self) -> int:
        """Return the floating-point operations of one step, matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.eager()
        return counter.get_total_flops()


class Measured:
    """Figures by name, on disk as soon as they are there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict = {"device": runs.device_name(), **runs.versions()}

    def keep(self, name: str, measure: Callable[[], object]) -> None:
        """Measure a figure; where that fails, record the error instead and go on."""
        start = time.perf_counter()
        try:
            self.figures[name] = measure()
        except Exception as error:  # a network too large for the card must not end the others
            self.figures[name] = f"{type(error).__name__}: {str(error)[:200]}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"{name}: {self.figures[name]} ({time.perf_counter() - start:.0f} s)", flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")


def ready(backbone: str, size: int, n: int, repeats: int = 8, **way) -> dict[str, float]:
    """Return rate, memory and, at the first call, seconds of a `Step`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = Step(backbone, size, n, **way)
    step.step()
    synchronise()
    first = time.perf_counter() - start
    each = seconds(step.step, repeats)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return {
        "per_second": round(n / each, 1),
        "seconds": round(each, 4),
        "first_call_seconds": round(first, 1),
        "memory_gib": round(peak, 1),
    }


def beside_lightly(backbone: str, size: int, batch: int, tiles: int, fabric) -> dict[str, float]:
    """Return pairs a second of the lesson's loop, of the limit and of lightly's recipe in bf16.

    lightly reads PNG files with a worker a core; its first batches, one a worker, in which the
    workers and the network warm up, are not counted.
    """
    drawn = data.load_tiles("synthetic", n=tiles, seed=0).images
    n, workers = len(drawn) // batch * batch, os.cpu_count() or 1
    images = drawn[:n]
    race = {
        "ours": ours(backbone, size, batch, images, fabric, ready=False),
        "limit": ours(backbone, size, batch, images, fabric, ready=True),
    }
    rates = {name: n / seconds(epoch, 3, warm=1) for name, epoch in race.items()}
    with tempfile.TemporaryDirectory() as folder, ThreadPool(workers) as threads:
        threads.map(
            lambda i: cv2.imwrite(f"{folder}/{i:05}.png", images[i].transpose(1, 2, 0)), range(n)
        )
        repeats = -(-3 * workers * batch // n)
        steps = lightly_steps(backbone, size, batch, folder, fabric, torch.bfloat16, repeats)
        ends = [time.perf_counter() for _ in steps()]
        synchronise()
        counted = len(ends) - workers
        rates["lightly in bf16"] = counted * batch / (time.perf_counter() - ends[workers - 1])
    return {name: round(rate, 1) for name, rate in rates.items()}


def views(size: int, batch: int) -> dict[str, float]:
    """Return milliseconds of two views of a batch of 224 px tiles, and of their transfer."""
    fabric = runs.make_fabric(0)
    tiles = np.random.default_rng(0).integers(0, 256, (batch, 3, 224, 224), np.uint8)
    there, generator = to_device(tiles, fabric), torch.Generator().manual_seed(0)
    return {
        "tissue": round(1e3 * seconds(lambda: two_views(there, TISSUE, size, generator), 8), 2),
        "paper": round(1e3 * seconds(lambda: two_views(there, PAPER, size, generator), 8), 2),
        "transfer": round(1e3 * seconds(lambda: to_device(tiles, fabric), 8), 2),
    }


def checkpoint(backbone: str) -> float:
    """Return the seconds of writing one training state."""
    encoder = Encoder(backbone)
    optimizer = torch.optim.AdamW(encoder.parameters())
    encoder(torch.rand(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    state = {"model": encoder.state_dict(), "optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        kept = runs.Checkpoint(Path(folder) / "state.ckpt", "speed")
        return round(seconds(lambda: kept.save(True, **state), 3, warm=1), 2)


def main() -> None:
    """Measure everything, what matters most first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs" / "gpu_speed")
    parser.add_argument("--tiny", action="store_true", help="prove that it runs; measures nothing")
    given = parser.parse_args()
    given.out = given.out.expanduser()
    given.out.mkdir(parents=True, exist_ok=True)
    name, size, batch, tune = ("resnet18", 64, 8, 4) if given.tiny else ("resnet50", 224, 128, 64)
    tiles, scaled = (120, (16,)) if given.tiny else (3152, (256, 512, 1024))
    gpu, fabric = torch.cuda.is_available(), runs.make_fabric(0)
    measured = Measured(given.out / "gpu_speed.json")
    common = {"layout": "channels last", "way": "eager"}

    def limit(n: int = batch, contrastive: bool = True, repeats: int = 8, **way) -> dict:
        return ready(name, size, n, repeats, contrastive=contrastive, **common | way)

    def utilisation() -> dict:
        flops = Step(name, size, 2, contrastive=True, **common).flops() / 2
        peak = next((v for k, v in PEAK.items() if runs.device_name().startswith(k)), float("nan"))
        rate = measured.figures["pre-training, limit"]["per_second"]
        share = round(rate * flops / peak, 3)
        return {"gflop_a_pair": round(flops / 1e9, 1), "share_of_peak": share}

    measured.keep("pre-training, limit", limit)
    measured.keep("utilisation", utilisation)
    measured.keep(
        "pre-training, beside lightly", lambda: beside_lightly(name, size, batch, tiles, fabric)
    )
    measured.keep("views, milliseconds", lambda: views(size, batch))
    measured.keep("fine-tuning, limit", lambda: limit(tune, False))
    measured.keep("pre-training, contiguous", lambda: limit(layout="contiguous"))
    for n in scaled:
        measured.keep(f"pre-training, limit, batch {n}", lambda n=n: limit(n, repeats=3))
    measured.keep("a checkpoint, seconds", lambda: checkpoint(name))
    for way in ("compiled", "CUDA graph") if gpu else ():
        measured.keep(f"pre-training, {way}", lambda w=way: limit(way=w))
        measured.keep(f"fine-tuning, {way}", lambda w=way: limit(tune, False, way=w))


if __name__ == "__main__":
    main()
