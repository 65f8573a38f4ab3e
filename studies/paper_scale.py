"""The paper at its own scale: ResNet-50, 224 px, 200 + 100 epochs, beside its missing controls.

    python studies/paper_scale.py all --out runs/paper_scale

does every step of every arm; `fine_tune paper` in place of `all` does one.
Pre-trained arms are `paper` (Table 1 to the letter) and `tissue` (this course's views, temperature
and schedule, the same number of steps). Fine-tuned arms are these two, `scratch_paper` and
`scratch_tissue` (random weights, the fine-tuning of either), and `tissue_10` and `scratch_10` (a
tenth of the labels, 960 steps). No arm has a validation part, as in the paper, so nothing is
chosen: rates and epochs stand below. The tiles are drawn, as many as MHIST has; every arm is
scored on the tenth that the paper's split keeps, whose slides are in training too, and on tiles of
new slides. `paper_scale_report.py` turns what is left in --out into tables and figures.
"""

import argparse
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from crc_helpers import data, runs
from crc_helpers.augmentation import VIEWS, shrink
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict, probe_classifier
from crc_helpers.grad_cam import grad_cam, stage_names
from crc_helpers.models import Classifier, Encoder, ProjectionHead, load_weights, save_weights
from crc_helpers.pretraining import Contrast, Training, embed, pretrain, to_device

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


@dataclass(frozen=True)
class Recipe:
    """How an arm is trained, before and after it meets labels."""

    views: str
    temperature: float
    lr: float
    optimizer: str
    tune_views: str
    tune_lr: float


# "tiny" is for a test: it proves that every step runs, and measures nothing.
SCALES = {"paper": Scale(), "tiny": Scale(120, 60, 64, "resnet18", 2, 16, 2, 16, 4, (0, 1, 2))}
PAPER = Recipe("paper", 0.7, 3e-4, "adam", "paper", 1e-4)
TISSUE = Recipe("tissue", 0.2, 1e-3, "adamw-one-cycle", "gentle", 3e-4)
PRETRAINED = {"paper": PAPER, "tissue": TISSUE}
TUNED = {  # arm: its recipe, the encoder it begins with, and the share of the labels
    "paper": (PAPER, "paper", 1.0),
    "tissue": (TISSUE, "tissue", 1.0),
    "scratch_paper": (PAPER, None, 1.0),
    "scratch_tissue": (TISSUE, None, 1.0),
    "tissue_10": (TISSUE, "tissue", 0.1),
    "scratch_10": (TISSUE, None, 0.1),
}


@lru_cache(maxsize=1)
def material(scale: Scale) -> dict[str, data.Tiles]:
    """Return the tiles by part: "train", "test" as the paper splits them, "fresh" of new slides."""
    tiles = data.load_tiles("synthetic", n=scale.tiles, seed=0)
    parts = data.split(tiles, "paper", validation=0.0, seed=0)
    fresh = data.load_tiles("synthetic", n=scale.fresh, seed=1000)
    sets = {"train": tiles.subset(parts.train), "test": tiles.subset(parts.test)}
    return sets | {"fresh": fresh.subset(np.arange(len(fresh)))}


def few_labels(labels: np.ndarray, share: float, draw: int) -> np.ndarray:
    """Return the positions of a share of the labels, as many of each class, sorted."""
    rng = np.random.default_rng([draw, round(share * 1000)])
    each = max(2, round(share * len(labels) / 2))
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:each] for c in (0, 1)])
    )


def pretrain_arm(arm: str, scale: Scale, out: Path) -> None:
    """Pre-train without labels; leave the encoder, the log and the features of watched epochs."""
    recipe, fabric = PRETRAINED[arm], runs.make_fabric(0)
    torch.manual_seed(0)
    encoder = Encoder(scale.backbone)

    def keep_features(network: Encoder, epoch: int) -> dict[str, float]:
        if epoch in scale.watched:
            parts = material(scale).items()
            arrays = {
                k: embed(network, t.images, scale.size, fabric).half().numpy() for k, t in parts
            }
            np.savez(out / f"features_{arm}_{epoch}.npz", **arrays)
        return {}

    log = pretrain(
        torch.nn.Sequential(encoder, ProjectionHead(encoder.dim)),
        material(scale)["train"].images,
        VIEWS[recipe.views],
        fabric,
        Training(scale.size, scale.epochs, scale.batch, recipe.lr, recipe.optimizer),
        Contrast(recipe.temperature, fabric),
        monitor=keep_features,
    )
    log.to_csv(out / f"pretraining_{arm}.csv", index=False)
    save_weights(out / f"encoder_{arm}.safetensors", encoder)


def fine_tune_arm(arm: str, scale: Scale, out: Path) -> None:
    """Fine-tune whole; leave the log, the predictions and the Grad-CAM maps of all test tiles."""
    (recipe, origin, share), fabric = TUNED[arm], runs.make_fabric(0)
    torch.manual_seed(0)
    encoder = Encoder(scale.backbone)
    if origin:
        load_weights(out / f"encoder_{origin}.safetensors", encoder)
    classifier, epochs = Classifier(encoder, 2), scale.tune_epochs
    images, labels = material(scale)["train"].images, material(scale)["train"].labels
    if share < 1:
        few = few_labels(labels, share, draw=0)
        images, labels = images[few], labels[few]
        epochs = -(-scale.tenth_steps // max(1, len(few) // scale.tune_batch))
    batch = min(scale.tune_batch, len(images))
    training = Training(scale.size, epochs, batch, recipe.tune_lr, recipe.optimizer)
    none = images[:0], labels[:0]  # no validation part
    log = fine_tune(classifier, (images, labels), none, VIEWS[recipe.tune_views], fabric, training)
    log.to_csv(out / f"fine_tuning_{arm}.csv", index=False)
    explain(classifier, arm, scale, out)


def explain(
    classifier: Classifier, name: str, scale: Scale, out: Path, target: int | None = 1
) -> None:
    """Write predictions, and raw maps of a class (SSA) at the last two stages, under a name."""
    left, fabric = {}, runs.make_fabric(0)
    for part in ("test", "fresh"):
        images = material(scale)[part].images
        left[f"p_{part}"] = predict(classifier, images, scale.size, fabric)
        batches = [images[i : i + 64] for i in range(0, len(images), 64)]
        inputs = [shrink(to_device(batch, fabric), scale.size) for batch in batches]
        for layer in stage_names(classifier)[-2:]:
            maps = [grad_cam(classifier, x, target, layer).maps.half().numpy() for x in inputs]
            left[f"{layer}_{part}"] = np.concatenate(maps)
    np.savez_compressed(out / f"tuned_{name}.npz", **left)


def explain_random(_arm: str | None, scale: Scale, out: Path) -> None:
    """Write the maps of a network with random weights, the control of every other map.

    They explain the class that it predicts: for the other its maps may all be zero.
    """
    fabric = runs.make_fabric(0)
    torch.manual_seed(1)
    classifier = Classifier(Encoder(scale.backbone), 2).to(fabric.device)
    explain(classifier, "random", scale, out, target=None)


def explain_probe(arm: str, scale: Scale, out: Path) -> None:
    """Write predictions and maps of a pre-trained encoder, frozen, under a linear probe."""
    features = np.load(out / f"features_{arm}_{scale.watched[-1]}.npz")["train"]
    probe = fit_probe(torch.from_numpy(features).float(), material(scale)["train"].labels)
    encoder = load_weights(out / f"encoder_{arm}.safetensors", Encoder(scale.backbone))
    explain(probe_classifier(encoder, probe), f"probe_{arm}", scale, out)


def fit_probe(features: torch.Tensor, labels: np.ndarray) -> Pipeline:
    """Fit a linear probe without a validation part: nothing is chosen."""
    return linear_probe(features, labels, features[:0], labels[:0])


def probe_arm(arm: str, scale: Scale, out: Path) -> None:
    """Fit linear probes on the features that `pretrain` kept; leave p(SSA) of all test tiles.

    Names in the file: `<epoch>_<share>_<draw>_<part>`; epoch 0 is the random encoder.
    """
    labels, left = material(scale)["train"].labels, {}
    for epoch in scale.watched:
        kept = np.load(out / f"features_{arm}_{epoch}.npz")
        features = {part: torch.from_numpy(kept[part]).float() for part in kept}
        some = SHARES if epoch in (0, scale.watched[-1]) else ()
        for share, draw in [(1.0, 0), *product(some, range(DRAWS))]:
            few = few_labels(labels, share, draw) if share < 1 else np.arange(len(labels))
            probe = fit_probe(features["train"][few], labels[few])
            for part in ("test", "fresh"):
                p = probe.predict_proba(features[part].numpy())[:, 1]
                left[f"{epoch}_{share}_{draw}_{part}"] = p
    np.savez_compressed(out / f"probes_{arm}.npz", **left)


STEPS = {
    "draw": lambda _arm, scale, _out: material(scale),
    "pretrain": pretrain_arm,
    "probes": probe_arm,
    "probe_maps": explain_probe,
    "fine_tune": fine_tune_arm,
    "random": explain_random,
}


ALL = (
    *product(("pretrain", "probes", "probe_maps"), PRETRAINED),
    *product(["fine_tune"], TUNED),
    ("random", None),
)


def main() -> None:
    """Do one step for one arm, or all; append to `seconds.jsonl` how long it took and on what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("all", *STEPS))
    parser.add_argument("arm", nargs="?", choices=TUNED, help="which; see the top of the file")
    parser.add_argument("--out", type=Path, default=runs.ROOT / "runs" / "paper_scale")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    options = parser.parse_args()
    options.out = options.out.expanduser()
    options.out.mkdir(parents=True, exist_ok=True)
    material(SCALES[options.scale])  # drawn before the clock runs
    for step, arm in ALL if options.step == "all" else [(options.step, options.arm)]:
        start = time.perf_counter()
        STEPS[step](arm, SCALES[options.scale], options.out)
        entry = {"what": f"{step} {arm}", "seconds": round(time.perf_counter() - start, 1)}
        with (options.out / "seconds.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry | {"device": runs.device_name(), **runs.versions()}) + "\n")
        print(entry["what"], entry["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
