"""Seeds, device, precision, checkpoints and the folder that a run leaves its results in."""

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric import Fabric, seed_everything
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

ROOT = Path(__file__).resolve().parent.parent  # the checkout; the package is installed editable
SHIPPED = ROOT / "weights"


class RunError(RuntimeError):
    """A run folder lacks what a lesson needs; the message names the file and what to do."""


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
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are for reading
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically."""
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


@cache
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
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_weights(path: Path, module: nn.Module, half: bool = False, **facts: Any) -> None:
    """Write a module's state as safetensors with `facts` as its metadata; half stores fp16."""
    state = {
        name: value.detach().cpu().contiguous().to(torch.float16 if half else value.dtype)
        if value.is_floating_point()
        else value.detach().cpu()
        for name, value in module.state_dict().items()
    }
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


def read_facts(path: Path) -> dict[str, Any]:
    """Return the metadata of a weight file.

    Raises RunError where the file is missing or is no safetensors file.
    """
    if not path.is_file():
        raise RunError(
            f"{path} is missing: run the lesson that makes it, or set START_FROM to 'shipped'"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {k: _parse(v) for k, v in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise RunError(
            f"{path} is not a safetensors file ({error}): delete it and run again"
        ) from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # another program's metadata
        return text


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """Fill a module from a weight file and return it.

    Raises RunError where the file does not fit the module.
    """
    read_facts(path)
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()  # line 0 names the class only
        raise RunError(f"{path} does not fit {type(module).__name__} ({first})") from None
    return module


def start_file(name: str, run: str | Path, start_from: str) -> Path:
    """Return where a lesson finds what an earlier one made: shipped with the course, or the run.

    Raises ValueError for another word than "shipped" or "run".
    """
    if start_from not in ("shipped", "run"):
        raise ValueError(f"START_FROM is {start_from!r}: give 'shipped' or 'run'")
    return (SHIPPED if start_from == "shipped" else run_folder(run)) / name


def save_checkpoint(path: Path, mark: str, **state: Any) -> None:
    """Write a training state, atomically; `mark` is the fingerprint of its settings."""
    with atomic_path(path) as temporary:
        torch.save({"mark": mark, **state}, temporary)


def load_checkpoint(path: Path, mark: str) -> dict[str, Any] | None:
    """Return the state saved under `mark`, or None where there is none or it is another's."""
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.pop("mark") == mark:
        return state
    print(f"{path.name} belongs to other settings, data or code: training starts afresh")
    return None


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    packages = ("torch", "torchvision", "lightning", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: version(p) for p in packages}}


def device_name() -> str:
    """Return what computes, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
