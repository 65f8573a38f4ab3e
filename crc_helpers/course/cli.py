"""The command line: run the lessons, look after data, check the machine."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crc_helpers import __version__

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
DATA = ("synthetic", "ebhi", "mhist", "folder")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `do` is the module of `crc_helpers.course` and its function."""
    parser = argparse.ArgumentParser(prog="crc-course", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        required=True, metavar="run | start | pretrain | slide | data | app | doctor"
    )

    lessons = argparse.ArgumentParser(add_help=False)
    add = lessons.add_argument
    add("--preset", default="class", help="ci, class (default) or paper")
    add("--data", choices=DATA)
    add("--data-root", metavar="DIR", help="where the tiles are")
    add("--out", default="runs/latest", metavar="runs/NAME")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a lesson's parameter")

    about = "execute the lessons, in order, into a folder"
    sub = commands.add_parser("run", parents=[lessons], help=about)
    sub.add_argument("--lessons", default="", metavar="01-06", help="a lesson or a range")
    sub.set_defaults(do="run:run")

    sub = commands.add_parser("start", help="copy lessons and exercises to a folder of your own")
    sub.add_argument("folder", metavar="DIR")
    sub.add_argument(
        "--update", action="store_true", help="bring what is new, keep what you edited"
    )
    sub.set_defaults(do="start:start")

    about = "lesson 03's training on several devices"
    sub = commands.add_parser("pretrain", parents=[lessons], help=about)
    # Of torchrun; Fabric's own launcher gives its children no local size.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local if local else 1
    sub.add_argument("--devices", type=int, default=local or 1, metavar="N", help="on each machine")
    sub.add_argument("--num-nodes", type=int, default=nodes, metavar="M", help="how many machines")
    sub.set_defaults(do="devices:pretrain_on_devices")

    sub = commands.add_parser("slide", help="predict a whole slide: tiles, map and score")
    add = sub.add_argument
    add("file", help="what OpenSlide reads: .svs, .ndpi, .mrxs, tiled .tiff ...")
    add("--weights", metavar="FILE", help="a classifier of lesson 04 (the one shipped)")
    add("--out", metavar="DIR", help="(runs/slide_NAME)")
    add("--mpp", type=float, metavar="MICRONS", help="a pixel, where the slide does not say it")
    add("--field", type=float, metavar="MICRONS", help="of a training tile, if weights don't say")
    sub.set_defaults(do="slide:slide")

    sub = commands.add_parser("tiles", help="cut slides into tiles, for --data folder")
    add = sub.add_argument
    add("slides", metavar="DIR", help="a folder of slides, with slides.csv (file, label)")
    add("--out", metavar="DIR", required=True)
    add("--n", type=int, default=200, help="tiles of a slide, at most (200)")
    add("--field", type=float, default=448, metavar="MICRONS", help="of a tile (448)")
    add("--size", type=int, default=224, metavar="PIXELS", help="of a tile (224)")
    add("--mpp", type=float, metavar="MICRONS", help="a pixel, where slides do not say it")
    add("--seed", type=int, default=0, help="which tiles (0)")
    sub.set_defaults(do="cut:tiles")

    sub = commands.add_parser("data", help="look at a data set, or fetch and unpack it")
    add = sub.add_argument
    add("action", choices=("check", "prepare"))
    add("name", choices=(*DATA, "slide"))
    add("--data-root", metavar="DIR")
    add("--out", metavar="DIR", help="where to put the data, or the contact sheet")
    tiles = "synthetic: how many tiles (prepare: 3,152; check: 2,000)"
    add("--n", type=int, help=f"{tiles}; slide: how many slides (20)")
    add("--seed", type=int, help="synthetic, slide: which ones (0)")
    add("--mpp", type=float, metavar="MICRONS", help="slide: microns a pixel (1)")
    add("--shortcut", choices=("ink", "stain"), help="synthetic: a mark that goes with the label")
    add("--strength", type=float, metavar="-1..1", help="... how closely (0.9)")
    add("--scanner", metavar="NAME", help="synthetic: one site only, 'Scanner A'")
    sub.set_defaults(do="check:data")

    sub = commands.add_parser("app", help="the reading room alone, in a browser")
    sub.add_argument("--weights", metavar="FILE", help="a classifier (the shipped one)")
    sub.add_argument("--out", default="runs/reading", metavar="DIR", help="for the answers")
    sub.add_argument("--port", type=int, default=8866)
    sub.set_defaults(do="app:app")

    sub = commands.add_parser("doctor", help="check this machine and installation")
    sub.set_defaults(do="doctor:doctor")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for what the user can mend."""
    for stream in (sys.stdout, sys.stderr):  # a log on Windows cannot hold every name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = parse(argv)
    for option in ("data_root", "out"):  # `--out=~/x` is not expanded by the shell
        if path := getattr(arguments, option, None):
            setattr(arguments, option, os.path.expanduser(path))
    if cache := os.environ.get("CRC_HELPERS_CACHE"):  # the lessons run in a folder of their own
        os.environ["CRC_HELPERS_CACHE"] = str(Path(cache).expanduser().resolve())
    try:
        return _do(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _do(arguments: argparse.Namespace) -> int:
    # Seconds of imports, in which Ctrl-C may come, and which `--help` does without.
    from crc_helpers.runs import UserError, printable

    module, function = arguments.do.split(":")
    # Pre-training refuses bad settings by ValueError; elsewhere that is a mistake of ours.
    refused = (ValueError, FloatingPointError) if module == "devices" else ()
    try:
        return getattr(importlib.import_module(f"crc_helpers.course.{module}"), function)(arguments)
    except (UserError, *refused) as error:
        message = str(error)
    except OSError as error:
        room = ": make room, or choose a folder that you may write to (--out)"
        advice = room * (error.errno in NO_ROOM)
        message = f"{error}{advice}; the same command goes on from here"
    except MemoryError as error:
        message = (
            f"not enough memory ({error}): close other programs, or take fewer or smaller tiles"
        )
    print(f"crc-course: {printable(message)}", file=sys.stderr)
    return 2
