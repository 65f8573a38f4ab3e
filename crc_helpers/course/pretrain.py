"""Lesson 03's training on several devices or machines."""

import argparse
import contextlib
import shlex
from pathlib import Path
from typing import Any

from crc_helpers.course.run import LESSONS
from crc_helpers.course.settings import UsageError, lesson_files, lesson_settings, parameters_of
from crc_helpers.runs import first_alone, only_one, run_folder


def pretrain(arguments: argparse.Namespace) -> int:
    """Pre-train as lesson 03 does, on several devices or machines; lesson 03 goes on from there."""
    import torch

    from crc_helpers import data
    from crc_helpers.runs import make_fabric

    parameters = {file: parameters_of(file) for file in lesson_files()}
    first, _, third = list(parameters.values())[:3]
    p = {**first, **third, **lesson_settings(arguments, parameters)}
    run = run_folder(p["RUN"])
    world = arguments.devices * arguments.num_nodes
    if min(arguments.devices, arguments.num_nodes) < 1:
        raise UsageError("--devices and --num-nodes: give at least 1")
    if p["PRETRAIN_BATCH"] < 2 or p["PRETRAIN_BATCH"] % world:
        raise UsageError(
            f"PRETRAIN_BATCH is {p['PRETRAIN_BATCH']}: {world} processes cannot share it evenly,"
            " give a multiple of their number (--set)"
        )
    here = torch.cuda.device_count()
    if here and arguments.devices > here:
        raise UsageError(f"--devices {arguments.devices}: there are {here} on this machine")
    # Before the other processes start: they find the tiles decoded, and errors are said once.
    tiles = data.load_tiles(p["DATA"], p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"],
                            seed=p["SEED"])  # fmt: skip
    fabric = make_fabric(p["SEED"], arguments.devices, arguments.num_nodes)
    fabric.launch()
    shares = {"test": p["TEST"], "validation": p["VALIDATION"], "seed": p["SEED"]}
    parts = data.split(tiles, p["SPLIT"], **shares)
    with contextlib.ExitStack() as held:  # the lessons may be at work in this folder
        first_alone(lambda: held.enter_context(only_one(run / LESSONS)))
        _pretrain(p, run, tiles, parts, shares, fabric)
        fabric.print(f"lesson 03 goes on from here: crc-course run {_as_given(arguments)}")
        return 0


def _pretrain(
    p: dict[str, Any], run: Path, tiles: Any, parts: Any, shares: dict[str, Any], fabric: Any
) -> None:
    from crc_helpers import data, pretraining

    first_alone(lambda: data.remember(
        run, tiles, parts, root=p["DATA_ROOT"], classes=p["CLASSES"], n=p["N_TILES"],
        scheme=p["SPLIT"], **shares))  # fmt: skip
    size, epochs = p["IMAGE_SIZE"], p["PRETRAIN_EPOCHS"]
    rest, queries = data.watched(tiles, parts, p["SEED"])
    monitor = pretraining.make_monitor(tiles, rest, queries, size, epochs, fabric)
    for views in p["VIEWS"]:
        _, log = pretraining.pretrain_encoder(
            tiles, parts.pretraining, run, fabric, views=views, backbone=p["BACKBONE"],
            head=p["HEAD"], monitor=monitor, size=size, epochs=epochs, batch=p["PRETRAIN_BATCH"],
            lr=p["PRETRAIN_LR"], temperature=p["TEMPERATURE"], optimizer=p["OPTIMIZER"],
            seed=p["SEED"],
        )  # fmt: skip
        fabric.print(f"{views} views: loss {log['loss'].iloc[-1]:.3f} after epoch {epochs},"
                     f" {log['pairs_per_second'].iloc[-1]:.0f} pairs/s")  # fmt: skip


def _as_given(arguments: argparse.Namespace) -> str:
    """The options about lessons, to be typed again."""
    words = ["--preset", arguments.preset, "--out", arguments.out]
    for name, value in (("--data", arguments.data), ("--data-root", arguments.data_root)):
        words += [name, value] if value else []
    for pair in arguments.set:
        words += ["--set", pair]
    return shlex.join(words)
