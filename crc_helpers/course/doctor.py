"""Check this machine and this installation."""

import argparse
import contextlib
import importlib
import os
from pathlib import Path

from crc_helpers.course.settings import UsageError, lesson_files
from crc_helpers.runs import ROOT, device_name, has_fast_bf16, versions


def doctor(_arguments: argparse.Namespace) -> int:
    """Check versions, device, write permission and kernel; print OK, or FAIL and what to do."""
    import torch
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from packaging.version import Version

    problems = []
    for name, installed in versions().items():
        print(f"{name:<14} {installed}")
    for module in ("cv2", "ipywidgets", "papermill", "seaborn", "timm"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            problems.append(f"{module} cannot be imported ({error}): pip install -e .")
    for name, needed in (("torch", "2.11"), ("torchvision", "0.26")):
        if Version(versions()[name]) < Version(needed):
            problems.append(f"{name} {needed} or newer is needed: pip install --upgrade {name}")
    print(f"{'device':<14} {device_name()}")
    print(f"{'bf16':<14} {'used' if has_fast_bf16() else 'not used: slower than fp32 here'}")
    print(f"{'memory':<14} {_memory()}")
    if not torch.isfinite(torch.ones(2, 2) @ torch.ones(2, 2)).all():
        problems.append("torch computes wrongly: install it again")
    try:
        print(f"{'lessons':<14} {len(lesson_files())}")
    except UsageError as error:
        problems.append(str(error))
    for folder in (ROOT, Path.cwd()):
        if not os.access(folder, os.W_OK):
            problems.append(f"{folder} is read-only: give --out a folder that you may write to")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
        print(f"{'kernel':<14} python3 ({command})")
    except NoSuchKernel:
        problems.append("no Jupyter kernel 'python3': python -m ipykernel install --sys-prefix")
    print("OK" if not problems else "FAIL\n" + "\n".join(f"- {p}" for p in problems))
    return 1 if problems else 0


def _memory() -> str:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return "unknown"
