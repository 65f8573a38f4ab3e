"""Film two explorers for the README, into `figures/`; needs Chromium.

Run as `python tools/film.py`.
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from crc_helpers.runs import ROOT

sys.path.append(str(ROOT / "tests"))
from browser import (  # the lessons in JupyterLab, as their tests operate them
    CHROMIUM,
    PICTURE,
    control,
    jupyterlab,
    open_lesson,
    pictures,
    quiet,
    small_lessons,
    stop_kernels,
    whole,
)


def film(page, address: str, number: str, scenes: list[tuple[str, str, int]], path: Path) -> None:
    """Film the first explorer of a lesson: (a control's words, a key or "next", how often).

    A picture that answers to keys is named by its selector.
    """
    open_lesson(page, address, number)
    explorer = whole(pictures(page)[0])
    explorer.scroll_into_view_if_needed()
    frames = []
    for words, key, times in [("", "", 1), *scenes]:
        for _ in range(times):
            if words:
                moved = page.locator(words).first if "img" in words else control(page, words)
                if key == "next":  # of a list
                    moved.select_option(index=moved.evaluate("list => list.selectedIndex + 1"))
                else:
                    moved.press(key)
                page.wait_for_timeout(1500)
                quiet(page)
            frames.append(Image.open(io.BytesIO(explorer.screenshot())).convert("RGB"))
    stop_kernels(address)
    times = [700] * (len(frames) - 1) + [2500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0,
                   quality=60, method=6)  # fmt: skip


def main() -> None:
    """Film the tissue explorer and Grad-CAM into `figures/`."""
    folder = Path(tempfile.mkdtemp())
    small_lessons(folder)
    with jupyterlab(folder) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        up = [("severity", "PageUp", 7), ("cut angle", "PageUp", 7)]
        film(page, address, "01", up, ROOT / "figures" / "explorer_tissue.webp")
        shown = [(".strip img", "ArrowRight", 5), (".strip img", "ArrowDown", 1)]
        shown += [(PICTURE, "ArrowLeft", 4), (PICTURE, "ArrowUp", 3), ("network", "next", 3)]
        film(page, address, "06", shown, ROOT / "figures" / "explorer_grad_cam.webp")
        browser.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
