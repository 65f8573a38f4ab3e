"""Lesson 03's training on several devices or machines."""

import argparse
import contextlib
import shlex
from pathlib import Path
from typing import Any

import torch

from crc_helpers import augmentation, data, pretraining
from crc_helpers.course.settings import UsageError, lesson_files, lesson_settings, parameters_of
from crc_helpers.models import contrastive_model
from crc_helpers.runs import locked, make_fabric, on_first_rank, run_folder


def pretrain_on_devices(arguments: argparse.Namespace) -> int:
    """Pre-train as lesson 03 does, on several devices or machines; lesson 03 goes on from there."""
    parameters = {file: parameters_of(file) for file in lesson_files()}
    first, _, third = list(parameters.values())[:3]
    p = {**first, **third, **lesson_settings(arguments, parameters)}
    run = run_folder(p["RUN"])
    _require_devices(arguments.devices, arguments.num_nodes, p["PRETRAIN_BATCH"])
    # Before the other processes start: the tiles are then in the cache, and one process complains.
    tiles = data.load_tiles(
        p["DATA"], p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"], seed=p["SEED"]
    )
    fabric = make_fabric(p["SEED"], arguments.devices, arguments.num_nodes)
    fabric.launch()
    with contextlib.ExitStack() as held:  # the lessons may be at work in this folder
        on_first_rank(lambda: held.enter_context(locked(run / "lessons", patience=5)))
        _pretrain(p, run, tiles, fabric)
        fabric.print(f"lesson 03 goes on from here: crc-course run {_options(arguments)}")
        return 0


def _require_devices(devices: int, nodes: int, batch: int) -> None:
    here = torch.cuda.device_count() or devices  # on CPUs, any number of processes
    if not (1 <= devices <= here and nodes >= 1) or batch % (devices * nodes):
        raise UsageError(
            f"--devices {devices}: there are {here} on this machine; give 1 to {here}, at least one"
            f" of --num-nodes, and a PRETRAIN_BATCH (now {batch}) that all can share evenly (--set)"
        )


def _pretrain(p: dict[str, Any], run: Path, tiles: data.Tiles, fabric: Any) -> None:
    shares = {"test": p["TEST"], "validation": p["VALIDATION"], "seed": p["SEED"]}
    parts = data.split(tiles, p["SPLIT"], **shares)
    settings = {"root": p["DATA_ROOT"], "classes": p["CLASSES"], "n": p["N_TILES"]} | shares
    on_first_rank(lambda: data.remember(run, tiles, parts, scheme=p["SPLIT"], **settings))
    names = ("IMAGE_SIZE", "PRETRAIN_EPOCHS", "PRETRAIN_BATCH", "PRETRAIN_LR", "OPTIMIZER", "SEED")
    training = pretraining.Training(*(p[name] for name in names))
    monitor = pretraining.make_monitor(tiles, parts.train, training.size, training.epochs, fabric)
    images = tiles.images.pick(parts.pretraining)
    for name in p["VIEWS"]:
        log = pretraining.pretrain(
            contrastive_model(p["BACKBONE"], p["HEAD"], p["SEED"]),
            images,
            augmentation.VIEWS[name],
            fabric,
            training,
            pretraining.Contrast(p["TEMPERATURE"], fabric),
            checkpoint=run / f"pretraining_{name}.ckpt",
            monitor=monitor,
        )
        fabric.print(
            f"{name} views: loss {log['loss'].iloc[-1]:.3f} after epoch {training.epochs},"
            f" {log['pairs_per_second'].iloc[-1]:.0f} pairs/s"
        )


def _options(arguments: argparse.Namespace) -> str:
    """The options about lessons, as they are typed."""
    words = ["--preset", arguments.preset, "--out", arguments.out]
    for name, value in (("--data", arguments.data), ("--data-root", arguments.data_root)):
        words += [name, value] if value else []
    for pair in arguments.set:
        words += ["--set", pair]
    return shlex.join(words)
