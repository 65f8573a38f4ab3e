"""The command line: run the lessons, look after data, check the machine."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from crc_helpers import __version__
from crc_helpers.course.doctor import doctor
from crc_helpers.course.pretrain import pretrain
from crc_helpers.course.run import run
from crc_helpers.course.settings import UsageError
from crc_helpers.runs import RunError, printable
from crc_helpers.sources.base import DataError

ABOUT_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def data(arguments: argparse.Namespace) -> int:
    """Check a data set, or prepare one."""
    from crc_helpers.course.check import check, check_deep, prepare
    from crc_helpers.data import load_tiles

    given = {k: getattr(arguments, k) for k in ("n", "seed", "shortcut", "strength", "scanner")}
    plan = {k: v for k, v in given.items() if v is not None}
    if plan and arguments.name != "synthetic":
        raise UsageError(f"--{next(iter(plan))}: for synthetic tiles only")
    if "strength" in plan and "shortcut" not in plan:
        raise UsageError("--strength is that of a --shortcut: name one, ink or stain")
    if arguments.action == "check":
        sheet = Path(arguments.out or f"{arguments.name}_contact_sheet.png")
        tiles = load_tiles(arguments.name, arguments.data_root, **plan)
        print("\n".join(map(printable, check(tiles, sheet))))
        if arguments.deep:
            print(check_deep(tiles, arguments.data_root))
    else:
        folder = prepare(arguments.name, arguments.out or arguments.data_root, **plan)
        print(f"{arguments.name} is ready in {folder}")
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="crc-course", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="run | pretrain | data | doctor")
    lessons = argparse.ArgumentParser(add_help=False)
    lessons.add_argument("--preset", default="class", help="ci, class (default) or paper")
    lessons.add_argument("--data", choices=("synthetic", "ebhi", "mhist", "folder"))
    lessons.add_argument("--data-root", metavar="DIR", help="where the tiles are")
    lessons.add_argument("--out", default="runs/latest", metavar="runs/NAME")
    lessons.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                         help="a parameter of the lessons; may be given again")  # fmt: skip
    sub = commands.add_parser("run", parents=[lessons],
                              help="execute the lessons, in order, into a folder")  # fmt: skip
    sub.add_argument("--lessons", default="", metavar="01-06", help="a lesson or a range")
    sub.set_defaults(do=run)
    sub = commands.add_parser("pretrain", parents=[lessons],
                              help="lesson 03's training on several devices")  # fmt: skip
    # torchrun says what it has started; Fabric's own launcher gives its children no local size.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local if local else 1
    sub.add_argument("--devices", type=int, default=local or 1, metavar="N", help="on each machine")
    sub.add_argument("--num-nodes", type=int, default=nodes, metavar="M", help="how many machines")
    sub.set_defaults(do=pretrain)
    sub = commands.add_parser("data", help="look at a data set, or fetch and unpack it")
    sub.add_argument("action", choices=("check", "prepare"))
    sub.add_argument("name", choices=("synthetic", "ebhi", "mhist", "folder"))
    sub.add_argument("--data-root", metavar="DIR")
    sub.add_argument("--out", metavar="DIR", help="where to put the data, or the contact sheet")
    sub.add_argument("--deep", action="store_true",
                     help="check: hash the cache, decode the files again and compare")  # fmt: skip
    sub.add_argument("--n", type=int, help="synthetic: how many tiles"
                     " (prepare: 3,152; check: 2,000)")  # fmt: skip
    sub.add_argument("--seed", type=int, help="synthetic: which ones (0)")
    sub.add_argument("--shortcut", choices=("ink", "stain"),
                     help="synthetic: plant a mark that goes with the label")  # fmt: skip
    sub.add_argument("--strength", type=float, metavar="-1..1", help="... how closely (0.9)")
    sub.add_argument("--scanner", metavar="NAME", help="synthetic: one site only, 'Scanner A'")
    sub.set_defaults(do=data)
    sub = commands.add_parser("doctor", help="check this machine and installation")
    sub.set_defaults(do=doctor)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for what the user can mend."""
    for stream in (sys.stdout, sys.stderr):  # a log on Windows cannot hold every name
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if cache := os.environ.get("CRC_HELPERS_CACHE"):  # the lessons run in a folder of their own
        os.environ["CRC_HELPERS_CACHE"] = str(Path(cache).resolve())
    arguments = parse(argv)
    # What pre-training refuses is a ValueError, written for users; elsewhere that is a mistake.
    refused = (ValueError, FloatingPointError) if arguments.do is pretrain else ()
    try:
        return arguments.do(arguments)
    except (UsageError, DataError, RunError, *refused) as error:
        print(f"crc-course: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        room = ": make room, or choose a folder that you may write to (--out)"
        advice = room * (error.errno in ABOUT_ROOM)
        print(f"crc-course: {printable(f'{error}{advice}')}; the same command goes on from here",
              file=sys.stderr)  # fmt: skip
        return 2
    except MemoryError as error:
        print(f"crc-course: not enough memory ({printable(str(error))}): close other programs, or"
              " take fewer or smaller tiles", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
