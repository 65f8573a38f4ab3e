"""What several test files share: an engine, and tiles small enough to train on."""

import os
import sys

# One thread each, for the kernels and programs that tests start too: on networks this small several
# threads only wait for each other, and `make test` has several processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric

from crc_helpers import runs
from crc_helpers.course.cli import main

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


@pytest.fixture(scope="session")
def ci_run(tmp_path_factory):
    """The folder of one run of all lessons by papermill, with the ci preset."""
    out = tmp_path_factory.mktemp("runs") / "ci"
    assert main(["run", "--preset", "ci", "--out", str(out)]) == 0
    return out
