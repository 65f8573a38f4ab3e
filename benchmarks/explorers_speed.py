"""How long an explorer takes to answer, and whether it grows: 30 moves and 500.

    python benchmarks/explorers_speed.py

In the kernel: from the change of a control to the new picture ready to be sent; the network is the
class preset's, of random weights. In the browser, where there is Chromium: from a key or a click in
JupyterLab to the new picture on the screen, with the shipped network. Memory is this process's
resident memory.
"""

import itertools
import resource
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import keep_figures

from crc_helpers import data, explorers, figures, models, runs
from crc_helpers.augmentation import VIEWS

sys.path.append(str(Path(__file__).parents[1] / "tests"))
MOVES, UPDATES = 30, 500
# Lesson, words beside the control, keys to press in turn, the aim in milliseconds.
IN_BROWSER = [
    ("01", "severity", ["ArrowRight", "ArrowLeft"], 200),
    ("02", "stain", ["ArrowRight", "ArrowLeft"], 200),
    ("03", "temperature τ", ["ArrowRight", "ArrowLeft"], 200),
    ("03", "point: across", ["End", "Home"], 200),  # a step may point at the same tile
    ("05", "threshold", ["ArrowRight", "ArrowLeft"], 200),
    ("06", "boxes at", ["ArrowRight", "ArrowLeft"], 100),
    ("06", "opacity", ["ArrowRight", "ArrowLeft"], 100),
    ("06", "colours", ["a list"], 100),
    ("06", "tile", ["a list"], 400),
    ("06", "eosin", ["ArrowRight", "ArrowLeft"], 400),
]


def moves(explorer, control, values=None) -> float:
    """Median milliseconds of moving a control, a slider to thirty places if no values are given."""
    if values is None:
        order = np.random.default_rng(0).permutation(MOVES)
        values = np.linspace(control.min, control.max, MOVES)[order]
    seconds = []
    for value in values:
        start = time.perf_counter()
        control.value = value
        seconds.append(time.perf_counter() - start)
        assert explorer.message.value == "", explorer.message.value
    return 1e3 * float(np.median(seconds))


def main() -> None:
    """Measure each explorer."""
    figures.set_style()
    torch.manual_seed(0)
    tiles = data.load_tiles("synthetic", n=240)
    rng, index = np.random.default_rng(0), np.arange(len(tiles))
    networks = {
        name: models.Classifier(models.Encoder("resnet8"), 2).eval() for name in ("one", "other")
    }
    knobs = ["severity", "horizontal_growth", "cut_angle", "eosin"]
    cosines = np.corrcoef(rng.standard_normal((8, 16)))
    tissue = explorers.TissueExplorer(knobs)
    views = explorers.ViewsExplorer(tiles, index[:12], VIEWS["tissue"], 96)
    temperature = explorers.TemperatureExplorer(cosines, list("abcdABCD"), [0, 0, 1, 1], 0.2)
    features = {"network": rng.standard_normal((len(tiles), 256))}
    flat = {"network": features["network"][:, :2]}
    embedding = explorers.EmbeddingExplorer(tiles, features, flat)
    threshold = explorers.ThresholdExplorer(tiles, rng.random(len(tiles)))
    cam = explorers.GradCamExplorer(networks, tiles, index, 96)
    live = explorers.LiveExplorer(networks, 96, knobs)
    offered = [value for _, value in cam.chooser.tile.options][1:]
    scales = [value for _, value in cam.scale.options]
    measured = {
        "tissue": (
            moves(tissue, tissue.sliders["severity"]),
            200,
        ),
        "views": (moves(views, views.strengths["stain"]), 200),
        "temperature": (
            moves(temperature, temperature.temperature),
            200,
        ),
        "embedding": (moves(embedding, embedding.across), 200),
        "threshold": (moves(threshold, threshold.threshold), 200),
        "Grad-CAM, another tile": (moves(cam, cam.chooser.tile, (offered * 4)[:MOVES]), 400),
        "Grad-CAM, boxes": (moves(cam, cam.threshold), 100),
        "Grad-CAM, opacity": (moves(cam, cam.opacity), 100),
        "Grad-CAM, colours": (
            moves(cam, cam.scale, scales * (MOVES // 2)),
            100,
        ),
        "Grad-CAM, live tissue": (
            moves(live, live.sliders["eosin"]),
            400,
        ),
    }
    keep_figures("explorers, ms to answer", measured)
    before = resident()
    for k in range(UPDATES):
        cam.chooser.tile.value = offered[k % len(offered)]
    keep_figures(f"explorers, {UPDATES} updates", {"growth, MB": (resident() - before, 50)})
    in_browser()
    print(runs.device_name())


def in_browser() -> None:
    """Median milliseconds from input to changed pixels, of each control of IN_BROWSER."""
    import browser
    from playwright.sync_api import sync_playwright

    if browser.CHROMIUM is None:
        print("no Chromium here: the figures in the browser stay as they were")
        return
    folder, measured, there = Path(tempfile.mkdtemp()), {}, ""
    browser.small_lessons(folder)
    with browser.jupyterlab(folder) as address, sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser.CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        for lesson, words, keys, aim in IN_BROWSER:
            if lesson != there:
                browser.stop_kernels(address)
                browser.open_lesson(page, address, lesson)
                browser.unfold(page)
                there = lesson
            moved = browser.control(page, words)
            moved.scroll_into_view_if_needed()
            count = moved.locator("option").count()
            acts = [partial(moved.press, key) for key in keys]
            if count:
                acts = [
                    partial(moved.select_option, index=k) for k in (*range(1, min(count, 4)), 0)
                ]
            took = [
                browser.timed(page, moved, act)[0]
                for act, _ in zip(itertools.cycle(acts), range(MOVES), strict=False)
            ]
            measured[f"{lesson}, {words}"] = float(np.median(took)), aim
        chromium.close()
    shutil.rmtree(folder)
    keep_figures("explorers in JupyterLab, ms from key to picture", measured)


def resident() -> float:
    """Resident megabytes of this process now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    except OSError:  # no Linux: the most there ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
