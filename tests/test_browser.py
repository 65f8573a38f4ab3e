"""The explorers in a real JupyterLab: every control of every lesson, in headless Chromium.

Left in `runs/screenshots/` (`CRC_SCREENSHOTS` names another folder): how each explorer looks at two
widths, before and after, and `seconds.json`, from a control's change to the new picture on screen.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -e '.[test]'")
from browser import (
    CHROMIUM,
    HASH,
    describe,
    evaluate,
    jupyterlab,
    open_lesson,
    pictures,
    small_lessons,
    stop_kernels,
    timed,
    unfold,
    whole,
)
from playwright.sync_api import sync_playwright

from crc_helpers import runs
from crc_helpers.course.settings import lesson_files
from crc_helpers.figures import set_style

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(  # in CI a missing browser fails: there nobody reads what was skipped
        CHROMIUM is None and not os.environ.get("CRC_BROWSER"),
        reason="no Chromium here: apt-get install chromium",
    ),
]
EXPLORERS = {"01": 1, "02": 1, "03": 2, "04": 1, "05": 1, "06": 2}  # how many, in each lesson
BYTES = "async p => Array.from(new Uint8Array(await (await fetch(p.src)).arrayBuffer()))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copies of the lessons, in a folder with a difficult name."""
    set_style()
    folder = tmp_path_factory.mktemp("lab") / "a course für all"
    folder.mkdir()
    small_lessons(folder)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    with jupyterlab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def shots():
    return runs.run_folder(os.environ.get("CRC_SCREENSHOTS", "runs/screenshots"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("dialog", lambda box: (page.errors.append(f"dialog: {box.message}"), box.dismiss()))
    yield page
    page.close()


def errors_of(page):
    """What the console complained about, and the cells.

    Not counted: a missing icon, and that JupyterLab asked a kernel for its debugger too early.
    """
    failed = page.locator(".jp-RenderedText[data-mime-type*=error]").all_inner_texts()
    known = "favicon", "Canceled future for"
    return [e for e in page.errors if not any(words in e for words in known)] + failed


def redrawn(page, control, act, may_stay=False):
    """Do something to a control; its explorer's picture must change and say no error.

    Returns the milliseconds until it had, or None where it may stay and did.
    """
    milliseconds, box = timed(page, control, act, 2000 if may_stay else 30_000)
    said = [label.inner_text() for label in box.query_selector_all(".widget-label")]
    assert not [text for text in said if text.startswith("Not drawn")], said
    assert may_stay or milliseconds is not None, control.evaluate("c => c.outerHTML")[:300]
    return milliseconds


def keep_pictures(page, shots, name):
    """Screenshots at two widths; at both, the picture must be seen whole and not too small."""
    for width in (1280, 900):
        page.set_viewport_size({"width": width, "height": 1500})
        page.wait_for_timeout(500)
        for k, picture in enumerate(pictures(page)):
            picture.scroll_into_view_if_needed()
            seen = picture.bounding_box()
            assert seen["width"] > 400 and seen["x"] + seen["width"] <= width
            whole(picture).screenshot(path=shots / f"{name}_{k}_{width}.png")
    page.set_viewport_size({"width": 1280, "height": 1000})


@pytest.mark.parametrize("number", EXPLORERS)
def test_every_control_of_every_explorer(page, lab, shots, number):
    open_lesson(page, lab, number)
    assert errors_of(page) == []
    assert len(pictures(page)) == EXPLORERS[number]
    keep_pictures(page, shots, f"{number}_before")
    if number == "02":
        by_keys(page)
    unfold(page)
    took = {}
    if number == "06":
        took |= by_mouse(page)
    for handle in page.locator(".noUi-handle").all():
        words = describe(handle)
        handle.scroll_into_view_if_needed()
        handle.focus()  # by keyboard alone
        # Where the square is, shows only once it has a size; it is given one first.
        key = "End"
        if words == "smallest crop" or words.startswith("point"):
            key = "Home"
        elif words == "threshold":  # one step: at its ends nothing, or all, is called SSA
            key = "ArrowLeft"
        if words.startswith("point"):  # from one end to the other: the middle may be at one's tile
            redrawn(page, handle, lambda: page.keyboard.press("End"), may_stay=True)
        took[words] = redrawn(page, handle, lambda k=key: page.keyboard.press(k))
    for select in page.locator(".widget-dropdown select").all():
        words, count = describe(select), select.locator("option").count()
        if count > 1 and select.is_enabled():  # two methods need no layer
            chosen = int(select.evaluate("s => s.selectedIndex"))
            assert chosen >= 0, f"nothing is selected in {words}"
            after = (chosen + 1) % count
            # Other tiles may be offered, and the one shown be among them.
            took[words] = redrawn(page, select, lambda s=select, k=after: s.select_option(index=k),
                                  may_stay=words == "offer tiles")  # fmt: skip
            if words == "offer tiles":
                assert_offered(page, selected(page, words))
    for field in page.locator(".widget-text input[type=number]").all():
        field.fill("7")
        took[describe(field)] = redrawn(page, field, lambda f=field: f.press("Enter"))
    for box in page.locator(".widget-checkbox input").all():
        took["checkbox"] = redrawn(page, box, lambda b=box: b.click())
    for button in page.locator("button.jupyter-button:not(.widget-upload):visible").all():
        took[button.inner_text()] = redrawn(page, button, lambda b=button: b.click())
    assert took
    now = drawn_now(lab)
    assert len(now) == EXPLORERS[number]
    for k, expected in enumerate(now):
        assert_same_picture(page, k, expected)
    for link, picture in zip(page.locator("a[download]").all(), pictures(page), strict=True):
        with page.expect_download() as saved:
            link.click()
        assert list(Path(saved.value.path()).read_bytes()) == picture.evaluate(BYTES)
    if number == "06":
        upload(page)
    keep_pictures(page, shots, f"{number}_after")
    if number == "01":
        run_again(page, lab)
    assert errors_of(page) == []
    stop_kernels(lab)
    file = shots / "seconds.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    runs.save_json(file, known | {number: {k: v and round(v / 1e3, 3) for k, v in took.items()}})


def by_mouse(page):
    """A click on a thumbnail, and an arrow, choose a tile; one in the picture covers a place."""
    strip, picture = page.locator(".strip img").first, pictures(page)[0]
    strip.scroll_into_view_if_needed()
    box, took = strip.bounding_box(), {}
    second = {"x": box["width"] / 4, "y": box["height"] / 4}
    took["a thumbnail"] = redrawn(page, strip, lambda: strip.click(position=second))
    assert selected(page, "tile").startswith("2: ")
    redrawn(page, strip, lambda: strip.press("ArrowRight"))
    assert selected(page, "tile").startswith("3: ") and "Chosen: 3: " in strip.get_attribute("alt")
    tile = {"x": 200, "y": 200}
    took["the picture"] = redrawn(page, picture, lambda: picture.click(position=tile))
    assert "by the square" in picture.get_attribute("alt")
    return took


def upload(page):
    """A good picture is explained; a bad one gets a sentence, and the explorer goes on."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    control = page.locator(".widget-upload").first

    def give(name, content):
        with page.expect_file_chooser() as chooser:
            control.click()
        chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})

    redrawn(page, control, lambda: give("<b>$bold$</b>.png", buffer.getvalue()))
    assert selected(page, "tile") == "1: your own, <b>$bold$</b>.png"
    before = pictures(page)[0].evaluate(HASH)
    give("broken.png", buffer.getvalue()[:100])
    page.wait_for_selector(".widget-label:has-text('Not drawn: broken.png')", timeout=20_000)
    assert pictures(page)[0].evaluate(HASH) == before
    redrawn(page, control, lambda: give("again.png", buffer.getvalue()))
    noise = np.random.default_rng(1).integers(0, 255, (2050, 2050, 3), np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), "PNG")
    assert buffer.tell() > 12e6  # more than Jupyter lets through unless `make lab` allows it
    redrawn(page, control, lambda: give("large.png", buffer.getvalue()))
    assert selected(page, "tile") == "1: your own, large.png"


def by_keys(page):
    """Tab leads from the cell to the first control and on to the button; keys operate both.

    A list is opened first (arrows alone are JupyterLab's, and go to the next cell). While it
    draws, the explorer says so where it can be seen.
    """
    page.evaluate("""() => {
      window.said = []
      const seen = label => label.offsetHeight && label.textContent == "drawing …"
      const look = () => [...document.querySelectorAll(".widget-label")].some(seen) && said.push(1)
      new MutationObserver(look).observe(document.body,
                                         {subtree: true, childList: true, characterData: true})
    }""")
    tile = page.locator(".widget-dropdown select").first
    tile.evaluate("c => c.closest('.jp-CodeCell').focus()")
    reached = []
    for kind, keys in (("SELECT", ("Space", "ArrowDown", "Enter")), ("BUTTON", ("Enter",))):
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.tagName"))
            if page.evaluate("document.activeElement.closest('.widget-vbox') !== null") and (
                reached[-1] == kind
            ):
                break
        assert reached[-1] == kind, reached
        redrawn(page, tile, lambda keys=keys: [page.keyboard.press(key) for key in keys])
    assert page.evaluate("said.length") >= 2


def run_again(page, lab):
    """Run the explorer's cell once more: one explorer stays, and answers; nothing else is kept."""
    alive = "(gc.collect(), sum(isinstance(o, explorers.Explorer) for o in gc.get_objects()))[1]"
    assert evaluate(lab, alive) == 1
    before = pictures(page)[0].evaluate(HASH)
    whole(pictures(page)[0]).locator("xpath=ancestor::*[contains(@class,'jp-CodeCell')]").locator(
        ".jp-InputArea-editor"
    ).click()
    page.keyboard.press("Control+Enter")
    for _ in range(60):
        page.wait_for_timeout(500)
        found = pictures(page)
        if len(found) == 1 and found[0].evaluate(HASH) != before:
            break
    handle = page.locator(".noUi-handle").first
    handle.focus()
    redrawn(page, handle, lambda: page.keyboard.press("End"))
    assert len(pictures(page)) == 1 and evaluate(lab, alive) == 1


def assert_offered(page, kind):
    """The list of tiles holds tiles of the class that was asked for, and no other."""
    lists = page.locator(".widget-dropdown select").all()
    tiles = next(s for s in lists if describe(s) == "tile")
    offered = options_of(tiles)
    name = kind.removeprefix("class ")
    assert offered and all(f": {name}," in text for text in offered), (kind, offered)


def options_of(select):
    """The words of a list."""
    texts = select.locator("option").all_text_contents()
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]


def assert_same_picture(page, k, expected):
    """Explorer k's picture is that of the pure function; two levels off is rounding."""
    shown = bytes(pictures(page)[k].evaluate(BYTES))
    shown, expected = (np.asarray(Image.open(io.BytesIO(b))).astype(int) for b in (shown, expected))
    np.testing.assert_allclose(shown, expected, atol=2)


def selected(page, words, which=0):
    """The option chosen in one of the lists with these words beside it, the first."""
    lists = page.locator(".widget-dropdown select").all()
    chosen = [s for s in lists if describe(s) == words][which]
    text = chosen.evaluate("s => s.selectedOptions[0].textContent")
    return text.replace("\N{NO-BREAK SPACE}", " ")


def drawn_now(lab):
    """What each explorer of the page draws of its controls as they stand, a PNG each."""
    return evaluate(lab, "[explorers.base.as_png(e.pages()) for _, shown in "
                    "explorers.base.SHOWN.values() for e in shown]")  # fmt: skip


@pytest.mark.parametrize("file", lesson_files(), ids=lambda f: f.stem)
def test_the_page_without_a_kernel_has_the_pictures_and_no_broken_widget(page, file):
    """nbconvert's HTML of the committed lesson: still twins are there, and no dead controls."""
    html, _ = HTMLExporter(embed_images=True).from_filename(str(file))
    page.route("http*://**", lambda route: route.abort())  # offline
    page.set_content(html)
    assert page.locator("img").count() >= 1
    assert page.locator(".jupyter-widgets, [data-mime-type*=widget]").count() == 0
    assert "Loading widget" not in page.inner_text("body")
