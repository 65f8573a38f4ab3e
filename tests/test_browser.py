"""The explorers in a real JupyterLab: every control of every lesson, in headless Chromium.

Screenshots at two widths are left in `runs/screenshots/` (`CRC_SCREENSHOTS` names another folder).
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from crc_helpers.course import lesson_files, parameters_of, read_settings
from crc_helpers.explorers import as_png, tissue_figure
from crc_helpers.figures import set_style
from crc_helpers.runs import run_folder
from crc_helpers.synthetic_tissue import TissueParameters

if not os.environ.get("CRC_BROWSER"):
    pytest.skip("on demand: make test-browser", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
# Lesson: explorers in it, and the parameters it gets: what trains, trains as little as it can.
LESSONS = {"01": 1, "02": 1, "03": 2, "04": 1, "05": 1, "06": 2}
SHIPPED = {"02", "05", "06"}
HASH = """async picture => {
  const bytes = await (await fetch(picture.src)).arrayBuffer()
  return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-1", bytes))).join()
}"""
# The innermost box around a control that also holds a picture is its explorer.
EXPLORER = """control => {
  let box = control
  while (!box.querySelector("img.widget-image")) box = box.parentElement
  return box
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab over copies of the lessons, in a folder with a difficult name."""
    folder = tmp_path_factory.mktemp("lab") / "a course für all"
    folder.mkdir()
    settings = read_settings("ci", [], {n for f in lesson_files() for n in parameters_of(f)})
    settings["RUN"] = str(folder / "run")
    for file in lesson_files():
        book, known = nbformat.read(file, as_version=4), parameters_of(file)
        given = {"RUN": settings["RUN"]} if file.name[:2] in SHIPPED else settings
        if file.name[:2] == "03":
            given = given | {"START_FROM": "run"}
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = [f"{n} = {v!r}" for n, v in given.items() if n in known]
                cell.source += "\n" + "\n".join(lines)
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(book, folder / file.name)
    # JupyterLab would build only what is in view; the test wants all of a lesson at once.
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text(
        '{"windowingMode": "none", "autoStartDefaultKernel": true}'
    )
    news = tracker.parent / "apputils-extension"
    news.mkdir()
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--allow-root",
               "--IdentityProvider.token=course", f"--ServerApp.root_dir={folder}",
               f"--LabApp.user_settings_dir={folder / 'settings'}"]  # fmt: skip
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    yield address
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    page.close()


def open_lesson(page, lab, number):
    """Open a lesson, run all cells, wait for the end, and return its file name."""
    name = next(f.name for f in lesson_files(number))
    page.goto(f"{lab}/lab/workspaces/w{number}/tree/{name}?token=course")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    idle = '.jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_selector(idle, timeout=90_000)
    for _ in range(6):  # JupyterLab drops what it is told before the kernel's line is up
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        page.wait_for_timeout(4000)
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        if any("*" in text or any(c.isdigit() for c in text) for text in prompts):
            break
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
          const failed = document.querySelector(".jp-RenderedText[data-mime-type*=error]")
          return failed || prompts.every(p => /\\[\\d+\\]/.test(p.textContent))
        }""",
        timeout=420_000,
    )
    return name


def errors_of(page):
    """What the console complained about, less a missing icon, and what the cells did."""
    failed = page.locator(".jp-RenderedText[data-mime-type*=error]").all_inner_texts()
    return [e for e in page.errors if "favicon" not in e] + failed


def pictures(page):
    """Every explorer's picture: the last image of its box."""
    return page.locator(".widget-vbox > img.widget-image:not(.strip)").all()


def redrawn(page, control, act, may_stay=False):
    """Do something to a control; its explorer's picture must change and say no error."""
    box = control.evaluate_handle(EXPLORER)
    picture = box.query_selector_all("img.widget-image")[-1]
    before = picture.evaluate(HASH)
    act()
    deadline = time.monotonic() + 20
    while picture.evaluate(HASH) == before and time.monotonic() < deadline:
        if may_stay and time.monotonic() > deadline - 17:
            break
        page.wait_for_timeout(40)
    said = [label.inner_text() for label in box.query_selector_all(".widget-label")]
    assert not [text for text in said if text.startswith("Not drawn")], said
    assert may_stay or picture.evaluate(HASH) != before, control.evaluate("c => c.outerHTML")[:300]


def describe(control):
    """The words beside a control."""
    row = "xpath=ancestor::*[contains(@class,'widget-inline-hbox')][1]"
    return control.locator(row).inner_text().split("\n")[0]


@pytest.mark.parametrize("number", LESSONS)
def test_every_control_of_every_explorer(page, lab, number):
    open_lesson(page, lab, number)
    assert len(pictures(page)) == LESSONS[number]
    operated = []
    for handle in page.locator(".noUi-handle").all():
        words = describe(handle)
        handle.scroll_into_view_if_needed()
        handle.focus()  # by keyboard alone
        key = "Home" if words in ("smallest crop",) else "End"
        # Where the square is, shows only once it has a size; it is given one first.
        redrawn(page, handle, lambda k=key: page.keyboard.press(k))
        operated.append(words)
    for select in page.locator(".widget-dropdown select").all():
        words = describe(select)
        count = select.locator("option").count()
        if count > 1:
            now = int(select.evaluate("s => s.selectedIndex"))
            redrawn(page, select, lambda s=select, k=(now + 1) % count: s.select_option(index=k),
                    may_stay=words in ("offer tiles", "colours"))  # fmt: skip
        operated.append(words)
    for field in page.locator(
        ".widget-text input[type=number], .widget-text input[type=text]"
    ).all():
        redrawn(page, field, lambda f=field: (f.fill("7"), f.press("Enter")))
        operated.append(describe(field))
    for box in page.locator(".widget-checkbox input").all():
        redrawn(page, box, lambda b=box: b.click())
        operated.append("checkbox")
    assert operated
    if number == "06":
        upload(page)
    assert errors_of(page) == []
    shots = Path(os.environ.get("CRC_SCREENSHOTS") or run_folder("runs/screenshots"))
    for width in (1280, 900):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)
        for k, picture in enumerate(pictures(page)):
            box = picture.locator("xpath=..")
            box.scroll_into_view_if_needed()
            inside = picture.bounding_box()
            assert inside["width"] > 400 and inside["x"] + inside["width"] <= width
            box.screenshot(path=shots / f"{number}_{k}_{width}.png")


def upload(page):
    """A good picture is explained; a bad one gets a sentence, and the explorer goes on."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)).save(
        buffer, "PNG"
    )
    control = page.locator(".jupyter-widgets.widget-upload, .widget-upload").first
    box = control.evaluate_handle(EXPLORER)
    picture = box.query_selector_all("img.widget-image")[-1]
    before = picture.evaluate(HASH)

    def give(name, content):
        with page.expect_file_chooser() as chooser:
            control.click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})

    give("holiday <b>bold</b>.png", buffer.getvalue())
    for _ in range(200):
        if picture.evaluate(HASH) != before:
            break
        page.wait_for_timeout(50)
    assert picture.evaluate(HASH) != before
    give("broken.png", buffer.getvalue()[:100])
    page.wait_for_selector(".widget-label:has-text('Not drawn: broken.png')", timeout=20_000)
    give("again.png", buffer.getvalue())
    page.wait_for_selector(".widget-label:has-text('Not drawn')", state="detached")


def test_the_picture_in_the_browser_is_that_of_the_pure_function(page, lab):
    open_lesson(page, lab, "01")
    names = [describe(h) for h in page.locator(".noUi-handle").all()]
    severity = page.locator(".noUi-handle").nth(names.index("severity"))
    severity.focus()
    redrawn(page, severity, lambda: page.keyboard.press("End"))
    content = pictures(page)[-1].evaluate(
        "async p => Array.from(new Uint8Array(await (await fetch(p.src)).arrayBuffer()))"
    )
    set_style()
    tile = int(page.locator(".widget-text input").first.input_value())
    expected = as_png([tissue_figure(TissueParameters(severity=1.0), tile)])
    decoded = [np.asarray(Image.open(io.BytesIO(b))) for b in (bytes(content), expected)]
    np.testing.assert_array_equal(*decoded)


@pytest.mark.parametrize("file", lesson_files(), ids=lambda f: f.stem)
def test_the_page_without_a_kernel_has_the_pictures_and_no_broken_widget(page, file):
    """nbconvert's HTML of the committed lesson: still twins are there, and no dead controls."""
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter(embed_images=True).from_filename(str(file))
    page.route("http*://**", lambda route: route.abort())  # offline
    page.set_content(html)
    assert page.locator("img").count() >= 1
    assert page.locator(".jupyter-widgets, [data-mime-type*=widget]").count() == 0
    assert "Loading widget" not in page.inner_text("body")
