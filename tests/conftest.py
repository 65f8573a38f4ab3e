"""What several test files share: an engine, and tiles small enough to train on."""

import os
import shutil
import subprocess
import sys

# One thread each, for the kernels and programs that tests start too: on networks this small several
# threads only wait for each other, and `make test` has several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric

from crc_helpers import runs

# Scripts, to be imported by tests; after all else, for one may be called as a module of Python is.
sys.path += [str(runs.ROOT / folder) for folder in ("studies", "tools")]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep on one process of pytest-xdist a file, or the tests of one run of the lessons; a lesson
    opened alone needs nothing of others. What takes long begins first.
    """
    groups = {}
    for item in items:
        group = item.path.stem
        if group == "test_notebooks":
            group = "ci_run" if "ci_run" in item.fixturenames else item.nodeid
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    slow = {g: sum("slow" in item.keywords for item in members) for g, members in groups.items()}
    first = sorted(groups, key=lambda g: -slow[g])
    items[:] = [item for group in first for item in groups[group]]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Compute on one thread here too, however many the environment allows."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fabric():
    """The training engine on the CPU in full precision, where equal means equal to the bit."""
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


@pytest.fixture(scope="session")
def coloured_tiles():
    """Sixteen tiles, uint8 (16, 3, 24, 24), each of a colour of its own under a little noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (16, 3, 1, 1))
    return (colours + rng.integers(-20, 21, (16, 3, 24, 24))).astype(np.uint8)


# Refuses every connection but to this machine, and writes down who asked for one.
OFFLINE = """
import sys
HERE = ("127.0.0.1", "::1", "localhost", "", None, "0.0.0.0")
def refuse(event, given):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = given[1] if event in ("socket.connect", "socket.sendto") else given
        if isinstance(address, tuple) and address[0] not in HERE:
            with open({asked!r}, "a") as asked:
                asked.write(f"{event} {address}\\n")
            raise OSError("there is no network here")
sys.addaudithook(refuse)
"""


@pytest.fixture(scope="session")
def ci_run(tmp_path_factory):
    """The folder of one run of all lessons by papermill, with the ci preset.

    In a checkout with a space, an umlaut and a quote in its path, from another working directory,
    with no home, no cache folder named, and no network.
    """
    base = tmp_path_factory.mktemp("runs")
    checkout, elsewhere = base / "späte Kopie 'n'", base / "elsewhere"
    elsewhere.mkdir()
    for name in ("crc_helpers", "figures", "notebooks", "presets", "studies", "weights"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(runs.ROOT / name, checkout / name, ignore=leave)
    (base / "sitecustomize.py").write_text(OFFLINE.replace("{asked!r}", repr(str(base / "asked"))))
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "CRC_HELPERS_CACHE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(base), str(checkout)])
    command = [sys.executable, "-m", "crc_helpers", "run", "--preset", "ci", "--out", base / "ci"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return base / "ci"
