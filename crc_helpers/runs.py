"""Seeds, device, precision, checkpoints and the folder that a run leaves its results in."""

import contextlib
import ctypes
import functools
import glob
import hashlib
import io
import json
import logging
import math
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from lightning.fabric import Fabric, seed_everything
from safetensors.torch import save
from torch import nn

ROOT = Path(__file__).resolve().parent.parent  # the checkout; the package is installed editable
SHIPPED = ROOT / "weights"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one
MOST_TILES = 200_000  # drawn at once: 40 GB at 224 px
SEEDS = (0, 2**32 - 1)  # what every generator takes
ARTEFACTS = (".json", ".csv", ".safetensors", ".npz")  # results; notebooks may be opened, changed
NOTES = "made_from.json"  # in the folder of a run: what each result in it was made from
_made_from: dict[str, str] = {}  # hashes of what this process works on; see `work_on`
_at_work: dict[str, Path] = {}  # "run": the folder that it leaves its results in


def printable(message: str) -> str:
    """One line of bounded length: a file or a cell may hold what a terminal obeys, or anything."""
    line = " ".join(message.split())
    if len(line) > 1000:
        line = f"{line[:500]} … {line[-400:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class RunError(RuntimeError):
    """A run folder lacks what a lesson needs; the message names the file and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def has_fast_bf16() -> bool:
    """Return whether bf16 is faster than fp32 here: recent GPUs, and CPUs with bf16 units.

    CPUs without them emulate bf16, ten times slower than fp32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def make_fabric(seed: int, devices: int = 1, nodes: int = 1) -> Fabric:
    """Seed every generator and return Lightning Fabric on the fastest device there is.

    devices: how many on each of `nodes` machines; more than one need `launch()`, see
    `crc-course pretrain`.
    """
    seed_everything(seed, verbose=False)
    # It repeats what `device_name` says, in red on every page.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # CPU or CUDA: Apple's MPS lacks operations that the views and Grad-CAM use.
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16-mixed" if has_fast_bf16() else "32-true"
    strategy = "ddp" if devices * nodes > 1 else "auto"
    return Fabric(
        accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy,
        precision=precision,
    )  # fmt: skip


def run_folder(name: str | Path) -> Path:
    """Return the folder of a run, made if missing; relative names count from the checkout."""
    path = Path(name)
    path = path if path.is_absolute() else ROOT / path
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a full disk or a read-only folder into one RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror or error}): make room, or choose a folder"
            " that you may write to (RUN, --out); what was done before is kept, run again to go on"
        ) from error


@contextlib.contextmanager
def only_one(path: Path, patience: float = 0) -> Iterator[None]:
    """Hold the lock of a file, or a folder, that one process at a time may write.

    The system takes it from a process that dies. patience: seconds to wait for it, -1 for ever.
    Raises RunError where another process holds it.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
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


def first_alone(do: Callable[[], Any]) -> Any:
    """Have the first of the processes that train together do something; all return its result.

    What stops it there ends the others too, without a word: they would wait for it.
    """
    if not dist.is_initialized():
        return do()
    answer: list[Any] = [None, False]
    if dist.get_rank():
        dist.broadcast_object_list(answer, src=0)
        if answer[1]:
            raise SystemExit(2)
        return answer[0]
    try:
        answer[0] = do()
    except Exception:
        dist.broadcast_object_list([None, True], src=0)
        raise
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def one_writer(train: Callable) -> Callable:
    """Decorate a function that trains: one process at a time may do so into a `checkpoint`."""

    @functools.wraps(train)
    def locked(*arguments: Any, checkpoint: Path | None = None, **settings: Any) -> Any:
        with contextlib.ExitStack() as held:
            if checkpoint:  # a kernel outlives the program that started it by a second or two
                lock = only_one(checkpoint, patience=5)
                first_alone(lambda: held.enter_context(lock))
            return train(*arguments, checkpoint=checkpoint, **settings)

    return locked


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_kept = False


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Within the block, keep freed memory for what is allocated next; a decorator, too.

    glibc gives every buffer of more than 32 MB back to the system when it is freed, and the system
    zeroes its pages when they are asked for again: a fifth of a training step on a CPU. Where the C
    library is another, this does nothing (an old glibc may refuse, too). Afterwards all that is
    free is given back.
    """
    global _kept
    if _kept or not _libc:
        yield
        return
    _kept = True
    _libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # what glibc itself arrives at
        _libc.mallopt(M_TRIM_THRESHOLD, 2**26)
        _libc.malloc_trim(0)
        _kept = False


@contextlib.contextmanager
def randomness(seed: int, epoch: int) -> Iterator[None]:
    """What layers draw within the block (dropout, paths dropped) depends on (seed, epoch) alone.

    So a resumed run draws what an uninterrupted one draws; outside, nothing is changed.
    """
    # Only of the device at work: by default every GPU of the machine would be opened.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed * 100_003 + epoch)
        yield


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place only if the block succeeds.

    Raises RunError where the disk is full or the folder read-only; the old file is kept.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())  # or a power cut may leave the new name on no content
            os.chmod(temporary, 0o644)  # mkstemp makes files private; results are for reading
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    if _made_from and path.parent == _at_work.get("run"):
        made_from = {name: value for name, value in _made_from.items() if name != path.name}
        note(path, made_from | {"code": fingerprint()}, _constants())


def _sweep(path: Path) -> None:
    """Remove what killed processes have left of `path`; an hour old, it is no one's any more."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink()


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically; NaN, which JSON lacks, becomes null."""
    with atomic_path(path) as temporary:
        text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Return the dictionary in a JSON file of a run.

    Raises RunError where it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and run its lesson again") from None


def save_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; text that a spreadsheet would run has a ' before it."""
    with atomic_path(path) as temporary:
        as_text(pd.DataFrame(rows)).to_csv(temporary, index=False)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose text no spreadsheet takes for a formula (OWASP, CSV injection)."""
    return table.map(lambda v: f"'{v}" if isinstance(v, str) and v.startswith(FORMULA) else v)


@functools.cache
def training_code() -> str:
    """Return the SHA-256 of each module that decides what training does."""
    names = ("augmentation", "fine_tuning", "models", "pretraining")
    return " ".join(file_hash(Path(__file__).with_name(f"{name}.py")) for name in names)


def fingerprint(**settings: Any) -> str:
    """Return a short hash of settings and training code, to tell whether a checkpoint is theirs."""
    text = json.dumps({"code": training_code()} | settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def work_on(data: str, run: Path | None = None) -> None:
    """Note the hash of the data this process works on; weights that it saves will name it.

    So will `NOTES` for each result that it leaves in the folder `run`.
    """
    _made_from.clear()
    _made_from["data"] = data
    _at_work.update({"run": run} if run else {})


def note(path: Path, made_from: dict[str, str], parameters: dict[str, Any]) -> None:
    """Write into `NOTES` beside a result its hash, and what it was made from."""
    if path.suffix not in ARTEFACTS or path.name == NOTES:
        return
    entry = {"sha256": file_hash(path), "made_from": made_from, "parameters": parameters}
    notes = path.with_name(NOTES)
    with only_one(notes, patience=60):
        save_json(notes, dict(sorted({**read_notes(path.parent), path.name: entry}.items())))


def read_notes(run: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each result in the folder of a run, by its name.

    Raises RunError for a file that no lesson wrote.
    """
    path, kinds = run / NOTES, {"sha256": str, "made_from": dict, "parameters": dict}
    notes = read_json(path) if path.is_file() else {}
    if not all(isinstance(entry, dict) and all(isinstance(entry.get(k), kinds[k]) for k in kinds)
               for entry in notes.values()):  # fmt: skip
        raise RunError(f"{path} is not what lessons write: delete it")
    return notes


def say_misfits(run: Path) -> None:
    """Say which results of a run were made from other data or weights, or changed since."""
    notes = {name: entry for name, entry in read_notes(run).items() if (run / name).is_file()}
    odd = [
        name
        for name, entry in notes.items()
        if file_hash(run / name) != entry["sha256"] or misfit(run / name, entry["made_from"])
    ]
    if odd:
        print(f"{run}: {', '.join(map(printable, odd))} made from other data or weights than there"
              " are now, or changed since: run their lessons again", file=sys.stderr)  # fmt: skip


def _constants() -> dict[str, Any]:
    """The constants of the notebook at work, its parameters; not its folder, which may move."""
    found = {}
    for name, value in vars(sys.modules["__main__"]).items():
        if name.isupper() and name not in ("RUN", "DATA_ROOT"):
            with contextlib.suppress(TypeError, ValueError):  # an array is no parameter
                if len(json.dumps(value)) < 200:
                    found[name] = value
    return found


def save_weights(
    path: Path, module: nn.Module, half: bool = False, origin: bool = True, **facts: Any
) -> None:
    """Write a module's state as safetensors with `facts` as its metadata; half stores fp16.

    `made_from` joins the facts: hashes of the data and of the weights this process has loaded;
    origin: not for networks of a study, which have data of their own.
    """
    state = {
        name: value.detach().cpu().contiguous().to(torch.float16 if half else value.dtype)
        if value.is_floating_point()
        else value.detach().cpu()
        for name, value in module.state_dict().items()
    }
    made_from = {name: value for name, value in _made_from.items() if name != path.name}
    if origin and made_from:
        facts["made_from"] = made_from | {"code": fingerprint()}
    write_weights(path, state, {k: json.dumps(v) for k, v in facts.items()})


def write_weights(path: Path, state: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
    """Write tensors and facts as safetensors, atomically: the same content, the same bytes."""
    content = save(state, facts)
    start = 8 + int.from_bytes(content[:8], "little")
    # The library orders the facts anew each time; a hash of the file must not depend on that.
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary:
        temporary.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def misfit(path: Path, origin: Any) -> str:
    """The first of what a result was made from that is another now, or an empty word."""
    for name, before in origin.items() if isinstance(origin, dict) else ():
        if not name or Path(name).name != name or len(name) > 100:  # no file of a run
            continue
        beside = path.with_name(name)
        now = file_hash(beside) if beside.is_file() else _made_from.get(name, before)
        if now != before and name != "code":  # newer code may read older weights
            return name
    return ""


def note_weights(path: Path) -> None:
    """Note the hash of weights that this process has loaded, once it has data to `work_on`."""
    if _made_from:
        _made_from[path.name] = file_hash(path)


def start_file(name: str, run: str | Path, start_from: str) -> Path:
    """Return where a lesson finds what an earlier one made: shipped with the course, or the run.

    Raises ValueError for another word than "shipped" or "run".
    """
    if start_from not in ("shipped", "run"):
        raise ValueError(f"START_FROM is {start_from!r}: give 'shipped' or 'run'")
    return (SHIPPED if start_from == "shipped" else run_folder(run)) / name


def save_checkpoint(path: Path, mark: str, **state: Any) -> None:
    """Write a training state, atomically; `mark` is the fingerprint of its settings."""
    content = io.BytesIO()  # torch writes to a full disk without an OSError
    torch.save({"mark": mark, **state}, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, mark: str) -> dict[str, Any] | None:
    """Return the state saved under `mark`, or None where there is none or it is another's, which
    is then put aside.

    Raises RunError for a file that is no checkpoint, or holds more than numbers and text.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as content:  # torch packs nothing: a bomb would
            if any(member.compress_type != zipfile.ZIP_STORED for member in content.infolist()):
                raise ValueError("compressed")
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state.pop("mark")
    except Exception as error:  # on damaged bytes it may raise anything; its advice is to trust
        raise RunError(
            f"{path} is no checkpoint of this course, or damaged ({type(error).__name__}): delete"
            " it, and training starts afresh"
        ) from None
    if theirs == mark:
        return state
    put_aside(path, "other settings, data or code")
    return None


def put_aside(path: Path, owner: str) -> None:
    """Rename a checkpoint that training cannot go on from to `NAME.old.ckpt`, and say so.

    It may be hours of training, and the fault a setting that was forgotten.
    """
    kept = path.with_name(f"{path.stem}.old{path.suffix}")
    with writing(path):
        path.replace(kept)
    print(f"{path.name} belongs to {owner}, and is now {kept.name}: training starts afresh")


def restore(path: Path, state: dict[str, Any], **parts: Any) -> list[dict[str, Any]]:
    """Give modules, optimizer and schedule what a checkpoint kept under their names.

    Returns the rows of its log, an epoch each. Raises RunError where it does not fit, or holds
    weights that are no numbers or no log.
    """
    try:
        rows = state["rows"]
        if not rows or not all(isinstance(row["epoch"], int) for row in rows):
            raise ValueError("no log")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if not is_finite(parts["model"]):
            raise ValueError("NaN or infinity")
        return rows
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise RunError(
            f"{path} does not fit this network, or is damaged ({type(e).__name__}): delete it, and"
            " training starts afresh"
        ) from None


def is_finite(model: nn.Module) -> bool:
    """Return whether all weights are numbers; one look, so that a GPU is waited for once."""
    flat = [v.detach().abs().max() for v in model.state_dict().values() if v.numel()]
    return bool(torch.stack([value.float() for value in flat]).isfinite().all())


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    packages = ("torch", "torchvision", "lightning", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def device_name() -> str:
    """Return what computes, in words; CPUs with another arithmetic are other machines."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    words = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{words}, bf16" if has_fast_bf16() else words
