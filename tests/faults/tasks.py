"""What the kill tests start in processes of their own: small forms of the course's long tasks."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from joblib.externals.loky import get_reusable_executor
from lightning.fabric import Fabric

from crc_helpers import data, runs
from crc_helpers.augmentation import VIEWS
from crc_helpers.course import check as data_check
from crc_helpers.course.cli import main
from crc_helpers.fine_tuning import fine_tune
from crc_helpers.models import Classifier, Encoder, contrastive_model, save_weights
from crc_helpers.pretraining import Contrast, Training, pretrain
from crc_helpers.runs import save_table
from crc_helpers.sources import store as tile_store

TRAINING = Training(size=16, epochs=6, batch=16, lr=1e-3)
SMALL = "N_TILES=160 IMAGE_SIZE=16 PRETRAIN_EPOCHS=6 PRETRAIN_BATCH=16 VIEWS=[tissue]"


def _engine() -> Fabric:
    runs.SAVE_EVERY = 0
    torch.set_num_threads(1)
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


def pretraining(inputs: Path, out: Path) -> None:
    """Lesson 03: a checkpoint and a log an epoch, at the end weights and log."""
    fabric, images = _engine(), tile_store.TileStore(inputs / "store", "images")
    model, loss = contrastive_model("resnet8", "linear", seed=0), Contrast(0.2, fabric)
    checkpoint = out / "pretraining_tissue.ckpt"
    log = pretrain(model, images, VIEWS["tissue"], fabric, TRAINING, loss, checkpoint=checkpoint)
    save_table(out / "pretraining.csv", log.to_dict("records"))
    save_weights(out / "encoder.safetensors", model[0], size=16, backbone="resnet8")


def fine_tuning(inputs: Path, out: Path) -> None:
    """Lesson 04, one arm of it."""
    fabric, images = _engine(), tile_store.TileStore(inputs / "store", "images")
    labels = np.arange(48) % 2
    torch.manual_seed(0)
    classifier, checkpoint = Classifier(Encoder("resnet8"), 2), out / "fine_tuning.ckpt"
    train, val = (images.pick(labels >= 0), labels), (images[:12], labels[:12])
    given = classifier, train, val, VIEWS["gentle"], fabric, TRAINING
    log = fine_tune(*given, checkpoint=checkpoint)
    save_table(out / "log.csv", log.to_dict("records"))
    save_weights(out / "classifier.safetensors", classifier, size=16)


def caching(inputs: Path, out: Path) -> None:
    """Decode a folder of tiles into the cache."""
    data.load_tiles("folder", inputs / "folder", size=64, cache=out)


def dismiss() -> None:
    """End the workers that draw: a forked process would wait for them to tire, and for those of the
    process that it was forked from for ever.
    """
    get_reusable_executor().shutdown()


def drawing(inputs: Path, out: Path) -> None:
    """`crc-course data prepare synthetic`, with its own worker processes."""
    if not (out / "tissue").exists():  # which it would say, and stop; killed as it was done
        data_check.prepare("synthetic", out / "tissue", n=16, seed=0)
    dismiss()


def command(*words: str) -> None:
    """Run a command of the course; exit with its status where that is not 0."""
    if status := main([*words]):
        raise SystemExit(status)
    dismiss()


def commanding(inputs: Path, out: Path) -> None:
    """`crc-course pretrain`, the whole command."""
    torch.set_num_threads(1)
    runs.SAVE_EVERY = 0
    given = [word for setting in SMALL.split() for word in ("--set", setting)]
    command("pretrain", "--preset", "ci", "--out", str(out), *given)


def hesitating(inputs: Path, out: Path) -> None:
    """`commanding` that rests after each checkpoint, so that there is time to stop it."""
    save = runs.Checkpoint.save

    def save_and_rest(*arguments, **state):
        save(*arguments, **state)
        time.sleep(2)

    runs.Checkpoint.save = save_and_rest
    commanding(inputs, out)


def running(inputs: Path, out: Path) -> None:
    """`crc-course run`: papermill, kernels, the cache that they fill, pages."""
    os.environ["CRC_HELPERS_CACHE"] = str(out / "cache")
    given = ["run", "--preset", "ci", "--lessons", "01-02", "--set", "N_TILES=48", "--out"]
    command(*given, str(out / "run"))


def heard(task, inputs: Path, out: Path, said: Path) -> None:
    """Run a task, and keep what it says to standard error."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    task(inputs, out)


def limited(task, limit: int, inputs: Path, out: Path, said: Path) -> None:
    """Run a task where no file may grow beyond `limit` bytes, as on a full disk; keep its words."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        task(inputs, out)
    except Exception as error:
        said.write_text(f"{type(error).__name__}: {error}")
