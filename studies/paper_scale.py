"""The paper at its own scale: ResNet-50, 224 px, 200 + 100 epochs, beside its missing controls.

    python studies/paper_scale.py pretrain paper --out runs/paper_scale
    python studies/paper_scale.py fine_tune paper --out runs/paper_scale
    python studies/paper_scale.py probes paper --out runs/paper_scale

Pre-trained arms are `paper` (Table 1 to the letter) and `tissue` (this course's views, temperature
and schedule, the same number of steps). Fine-tuned arms are these two, `scratch_paper` and
`scratch_tissue` (random weights, the fine-tuning of either), and `tissue_10` and `scratch_10` (a
tenth of the labels, 960 steps). No arm has a validation part, as in the paper, so nothing is
chosen: rates and epochs stand below. The tiles are drawn, as many as MHIST has; every arm is
scored on the tenth that the paper's split keeps, whose slides are in training too, and on tiles of
new slides.
`paper_scale_report.py` turns what is left in --out into tables and figures.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric

from crc_helpers import data, runs
from crc_helpers.augmentation import VIEWS, shrink
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict, probe_classifier
from crc_helpers.grad_cam import grad_cam, stage_names
from crc_helpers.models import Classifier, Encoder, ProjectionHead, load_weights
from crc_helpers.pretraining import embed, pretrain, to_device

FRESH_SEED = 1000  # a cohort that shares no slide with the one trained on
SHARES = (0.05, 0.10, 0.25)  # of the labels, for probes
DRAWS = 5  # of the labels at each share


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults are the paper's."""

    tiles: int = 3152
    fresh: int = 977  # as many as MHIST's official test part
    size: int = 224
    backbone: str = "resnet50"
    epochs: int = 200
    batch: int = 128
    tune_epochs: int = 100
    tune_batch: int = 64
    tenth_steps: int = 960
    watched: tuple[int, ...] = (0, 10, 25, 50, 100, 150, 200)  # epochs whose features are kept


SCALES = {
    "paper": Scale(),
    # Small enough for a test: it proves that every step runs, and measures nothing.
    "tiny": Scale(120, 60, 64, "resnet18", 2, 16, 2, 16, 4, (0, 1, 2)),
}


@dataclass(frozen=True)
class Recipe:
    """How an arm is trained, before and after it meets labels."""

    views: str
    temperature: float
    lr: float
    optimizer: str
    tune_views: str
    tune_lr: float


PAPER = Recipe("paper", 0.7, 3e-4, "adam", "paper", 1e-4)
TISSUE = Recipe("tissue", 0.2, 1e-3, "adamw-one-cycle", "gentle", 3e-4)
PRETRAINED = {"paper": PAPER, "tissue": TISSUE}
# Arm: its recipe, the encoder it begins with, and the share of the labels.
TUNED = {
    "paper": (PAPER, "paper", 1.0),
    "tissue": (TISSUE, "tissue", 1.0),
    "scratch_paper": (PAPER, None, 1.0),
    "scratch_tissue": (TISSUE, None, 1.0),
    "tissue_10": (TISSUE, "tissue", 0.1),
    "scratch_10": (TISSUE, None, 0.1),
}


@dataclass(frozen=True)
class Material:
    """The tiles of the study: `seen` are scored on the paper's split, `fresh` are other slides."""

    tiles: data.Tiles
    parts: data.Split
    fresh: data.Tiles

    def images(self, part: str) -> np.ndarray:
        """Return uint8 tiles (N, 3, H, W) of "train", "test" (the paper's) or "fresh"."""
        if part == "fresh":
            return self.fresh.images[:]
        return self.tiles.images[getattr(self.parts, part)]

    def labels(self, part: str) -> np.ndarray:
        """Return int64 labels (N,) of the same tiles."""
        if part == "fresh":
            return self.fresh.labels
        return self.tiles.labels[getattr(self.parts, part)]


def material(scale: Scale) -> Material:
    """Draw the tiles, or open them where they have been drawn, and split them as the paper does."""
    tiles = data.load_tiles("synthetic", n=scale.tiles, seed=0)
    parts = data.split(tiles, "paper", validation=0.0, seed=0)
    return Material(tiles, parts, data.load_tiles("synthetic", n=scale.fresh, seed=FRESH_SEED))


def few_labels(labels: np.ndarray, share: float, draw: int) -> np.ndarray:
    """Return the positions of a share of the labels, as many of each class, sorted."""
    rng = np.random.default_rng([draw, round(share * 1000)])
    each = max(2, round(share * len(labels) / 2))
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:each] for c in (0, 1)]
    return np.sort(np.concatenate(chosen))


def pretrain_arm(arm: str, scale: Scale, out: Path) -> None:
    """Pre-train without labels; leave the encoder, the log and the features of watched epochs."""
    recipe, stuff, fabric = PRETRAINED[arm], material(scale), runs.make_fabric(0)
    torch.manual_seed(0)
    encoder = Encoder(scale.backbone)
    watched = {part: stuff.images(part) for part in ("train", "test", "fresh")}

    def keep_features(network: Encoder, epoch: int) -> dict[str, float]:
        if epoch in scale.watched:
            features = {part: embed(network, images, scale.size, fabric).half().numpy()
                        for part, images in watched.items()}  # fmt: skip
            np.savez(out / f"features_{arm}_{epoch}.npz", **features)
        return {}

    start = time.perf_counter()
    log = pretrain(
        encoder, ProjectionHead(encoder.dim), watched["train"], VIEWS[recipe.views], fabric,
        size=scale.size, epochs=scale.epochs, batch=scale.batch, lr=recipe.lr,
        temperature=recipe.temperature, optimizer=recipe.optimizer, monitor=keep_features,
    )  # fmt: skip
    log.to_csv(out / f"pretraining_{arm}.csv", index=False)
    runs.save_weights(out / f"encoder_{arm}.safetensors", encoder)
    record(out, f"pretrain {arm}", start)


def fine_tune_arm(arm: str, scale: Scale, out: Path) -> None:
    """Fine-tune whole; leave the log, the predictions and the Grad-CAM maps of all test tiles."""
    recipe, origin, share = TUNED[arm]
    stuff, fabric = material(scale), runs.make_fabric(0)
    torch.manual_seed(0)
    encoder = Encoder(scale.backbone)
    if origin:
        load_weights(out / f"encoder_{origin}.safetensors", encoder)
    classifier = Classifier(encoder, 2)
    images, labels = stuff.images("train"), stuff.labels("train")
    epochs = scale.tune_epochs
    if share < 1:
        few = few_labels(labels, share, draw=0)
        images, labels = images[few], labels[few]
        epochs = -(-scale.tenth_steps // max(1, len(few) // scale.tune_batch))
    start = time.perf_counter()
    log = fine_tune(
        classifier, images, labels, images[:0], labels[:0], VIEWS[recipe.tune_views], fabric,
        size=scale.size, epochs=epochs, batch=min(scale.tune_batch, len(images)),
        lr=recipe.tune_lr, optimizer=recipe.optimizer,
    )  # fmt: skip
    log.to_csv(out / f"fine_tuning_{arm}.csv", index=False)
    record(out, f"fine_tune {arm}", start)
    explain(classifier, arm, stuff, scale, out, fabric)


def explain(
    classifier: Classifier, arm: str, stuff: Material, scale: Scale, out: Path, fabric: Fabric,
    target: int | None = 1,
) -> None:  # fmt: skip
    """Write predictions, and raw maps of a class (SSA) at the last two stages, as `arm`'s."""
    left: dict[str, np.ndarray] = {}
    layers = stage_names(classifier)[-2:]
    for part in ("test", "fresh"):
        images = stuff.images(part)
        left[f"p_{part}"] = predict(classifier, images, scale.size, fabric)
        for layer in layers:
            maps = [
                grad_cam(classifier, shrink(to_device(images[i : i + 64], fabric), scale.size),
                         target, layer).maps.half().numpy()
                for i in range(0, len(images), 64)
            ]  # fmt: skip
            left[f"{layer}_{part}"] = np.concatenate(maps)
    np.savez_compressed(out / f"tuned_{arm}.npz", **left)


def explain_random(scale: Scale, out: Path) -> None:
    """Write the maps of a network with random weights, the control of every other map.

    They explain the class that it predicts: for the other its maps may all be zero.
    """
    stuff, fabric = material(scale), runs.make_fabric(0)
    torch.manual_seed(1)
    classifier = Classifier(Encoder(scale.backbone), 2).to(fabric.device)
    explain(classifier, "random", stuff, scale, out, fabric, target=None)


def explain_probe(arm: str, scale: Scale, out: Path) -> None:
    """Write predictions and maps of a pre-trained encoder, frozen, under a linear probe."""
    stuff, fabric = material(scale), runs.make_fabric(0)
    features = np.load(out / f"features_{arm}_{scale.watched[-1]}.npz")["train"]
    labels, none = stuff.labels("train"), np.empty(0, np.int64)
    train = torch.from_numpy(features).float()
    probe = linear_probe(train, labels, train[:0], none)
    encoder = load_weights(out / f"encoder_{arm}.safetensors", Encoder(scale.backbone))
    explain(probe_classifier(encoder, probe), f"probe_{arm}", stuff, scale, out, fabric)


def probe_arm(arm: str, scale: Scale, out: Path) -> None:
    """Fit linear probes on the features that `pretrain` kept; leave p(SSA) of all test tiles.

    Names in the file: `<epoch>_<share>_<draw>_<part>`; epoch 0 is the random encoder.
    """
    stuff = material(scale)
    labels, left = stuff.labels("train"), {}
    for epoch in scale.watched:
        kept = np.load(out / f"features_{arm}_{epoch}.npz")
        features = {part: torch.from_numpy(kept[part]).float() for part in kept}
        shares = (1.0, *SHARES) if epoch in (0, scale.watched[-1]) else (1.0,)
        for share in shares:
            for draw in range(DRAWS if share < 1 else 1):
                few = few_labels(labels, share, draw) if share < 1 else np.arange(len(labels))
                none = features["train"][:0], labels[:0]  # no validation part, nothing is chosen
                probe = linear_probe(features["train"][few], labels[few], *none)
                for part in ("test", "fresh"):
                    p = probe.predict_proba(features[part].numpy())[:, 1]
                    left[f"{epoch}_{share}_{draw}_{part}"] = p
    np.savez_compressed(out / f"probes_{arm}.npz", **left)


def record(out: Path, what: str, start: float) -> None:
    """Append to `seconds.jsonl` what was done, how long it took and on what."""
    entry = {"what": what, "seconds": round(time.perf_counter() - start, 1),
             "device": runs.device_name(), **runs.versions()}  # fmt: skip
    with (out / "seconds.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    print(what, entry["seconds"], "s", flush=True)


STEPS = {
    "pretrain": pretrain_arm, "probes": probe_arm, "probe_maps": explain_probe,
    "fine_tune": fine_tune_arm,
}  # fmt: skip


def main() -> None:
    """Do one step for one arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["draw", "random", *STEPS])
    parser.add_argument("arm", nargs="?", choices=[*TUNED], help="which; see the top of the file")
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs" / "paper_scale")
    parser.add_argument("--scale", choices=list(SCALES), default="paper")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    scale = SCALES[given.scale]
    if given.step == "draw":
        material(scale)
    elif given.step == "random":
        explain_random(scale, given.out)
    else:
        STEPS[given.step](given.arm, scale, given.out)


if __name__ == "__main__":
    main()
