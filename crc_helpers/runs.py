"""Seeds, device, precision, checkpoints and the folder that a run leaves its results in."""

import contextlib
import functools
import glob
import hashlib
import io
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.plugins.environments import LightningEnvironment

ROOT = Path(__file__).resolve().parent.parent  # the checkout; the package is installed editable
SHIPPED = ROOT / "weights"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # text that begins so is a formula to a spreadsheet
SAVE_EVERY = 30.0  # seconds between two checkpoints of a training


def printable(message: str) -> str:
    """Escape control characters and cut a message to one line of 1,000 characters."""
    line = " ".join(message.split())
    if len(line) > 1000:
        line = f"{line[:500]} … {line[-400:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class UserError(Exception):
    """An error that the user can mend: one line names the file or value and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RunError(UserError, RuntimeError):
    """A file or folder of a run is missing, damaged, in use or cannot be written."""


def has_fast_bf16() -> bool:
    """Return whether bf16 is faster than fp32 here: recent GPUs, and CPUs with bf16 units.

    CPUs without them emulate bf16, ten times slower than fp32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def make_fabric(seed: int, devices: int = 1, nodes: int = 1) -> Fabric:
    """Seed all random numbers and return Lightning Fabric on a GPU, or on the CPU without one.

    devices: how many on each of `nodes` machines; more than one need `launch()`.
    """
    seed_everything(seed, verbose=False)
    # Its message about the device would stand in red on every page.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    several = devices * nodes > 1
    return Fabric(
        # CPU or CUDA: Apple's MPS lacks operations that the views and Grad-CAM use.
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision="bf16-mixed" if has_fast_bf16() else "32-true",
        # A notebook server started by SLURM has its variables; one device does not look at them.
        plugins=None if several else LightningEnvironment(),
    )


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and another value as a list of one: `papermill -p VIEWS tissue`."""
    return list(value) if isinstance(value, list | tuple) else [value]


# --- Files ----------------------------------------------------------------------------------------


def run_folder(name: str | Path) -> Path:
    """Return the folder of a run, made if missing; a relative name is one in the checkout."""
    path = ROOT / Path(name).expanduser()
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError where the block cannot write: a full disk, a read-only folder."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): make room, or choose a folder"
            " that you may write to (RUN, --out, CRC_HELPERS_CACHE); what was done before is kept,"
            " run again to go on"
        ) from error


@contextlib.contextmanager
def locked(path: Path, patience: float = 0) -> Iterator[None]:
    """Hold the lock of a path for the block, so that one process at a time writes there.

    A process that dies loses its lock. patience: seconds to wait for another process.
    Raises RunError where that one still holds it.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise RunError(
                f"another process is writing {path}: wait until it ends, or choose another folder"
                " (RUN, --out)"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` only if the block succeeds.

    Raises RunError where that cannot be written; the old file is kept.
    """
    begin, end = f".{path.stem}-", path.suffix
    temporary = path.with_name(f"{begin}{os.getpid():08}{end}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What killed processes have left: after an hour nobody writes to it any more.
        for left in path.parent.glob(f"{glob.escape(begin)}????????{glob.escape(end)}"):
            with contextlib.suppress(OSError):  # another process may be faster
                if left.stat().st_mtime < time.time() - 3600:
                    left.unlink()
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())  # or a power cut may leave the new name on no content
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically; NaN, which JSON lacks, becomes null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a run; raises RunError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and run its lesson again") from None


def save_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically, a ' before text that a spreadsheet takes for a formula."""
    with atomic_path(path) as temporary:
        as_text(pd.DataFrame(rows)).to_csv(temporary, index=False)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with a ' before text that a spreadsheet would run (OWASP, CSV injection)."""
    return table.map(lambda v: f"'{v}" if isinstance(v, str) and v.startswith(FORMULA) else v)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def start_file(name: str, run: str | Path, start_from: str) -> Path:
    """Return the path of a file of an earlier lesson: shipped with the course, or of this run."""
    if start_from not in ("shipped", "run"):
        raise ValueError(f"START_FROM is {start_from!r}: give 'shipped' or 'run'")
    return (SHIPPED if start_from == "shipped" else run_folder(run)) / name


# --- Training -------------------------------------------------------------------------------------


@functools.cache
def training_code() -> str:
    """Return the SHA-256 of the modules that training runs through."""
    names = ("augmentation", "fine_tuning", "models", "pretraining")
    return " ".join(file_hash(Path(__file__).with_name(f"{name}.py")) for name in names)


def fingerprint(**settings: Any) -> str:
    """Return a short hash of settings and training code, which names what they lead to."""
    text = json.dumps({"code": training_code()} | settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoint:
    """The state of a training on disk, written at most every `SAVE_EVERY` seconds and at the end.

    mark: the fingerprint of all that the training depends on. It is part of the file's name, so
    that trainings with other settings have other files.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path = path.with_stem(f"{path.stem}_{mark}")
        self.written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the state, or None where there is none; runs no code that a file may hold.

        Raises RunError for a damaged file.
        """
        if not self.path.is_file():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind, and torch's advice is to trust the file
            raise RunError(
                f"{self.path} is no checkpoint, or damaged ({type(error).__name__}): delete it, and"
                " training starts afresh"
            ) from None

    def save(self, last: bool, **parts: Any) -> None:
        """Write values, and the states of modules, optimizer and schedule, if it is time to.

        last: after the last epoch, when it always is.
        """
        if not last and time.monotonic() < self.written + SAVE_EVERY:
            return
        state = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in parts.items()}
        content = io.BytesIO()  # torch writes to a full disk without an OSError
        torch.save(state, content)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
        self.written = time.monotonic()


def on_first_rank(do: Callable[[], Any]) -> Any:
    """Call a function in the process of rank 0 and return its result in all.

    If it raises, rank 0 raises and all other ranks exit.
    """
    if not dist.is_initialized():
        return do()
    result, failure = None, None
    if dist.get_rank() == 0:
        try:
            result = do()
        except Exception as error:
            failure = error
    shared = [result, failure is not None]
    dist.broadcast_object_list(shared, src=0)
    if failure:
        raise failure
    return sys.exit(2) if shared[1] else shared[0]


@contextlib.contextmanager
def randomness(seed: int, epoch: int) -> Iterator[None]:
    """Draw the random numbers of layers, such as dropout, from (seed, epoch) within the block.

    So a resumed run draws what an uninterrupted one draws.
    """
    # The device at work only: by default every GPU of the machine would be opened.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed * 100_003 + epoch)
        yield


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    packages = ("torch", "torchvision", "lightning", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def device_name() -> str:
    """Return the name of the GPU, or the CPU's threads and arithmetic, on which results depend."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    words = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{words}, bf16" if has_fast_bf16() else words
