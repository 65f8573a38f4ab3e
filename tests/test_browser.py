"""The explorers in a real JupyterLab: every control of every lesson, in headless Chromium.

Left in `runs/screenshots/` (`CRC_SCREENSHOTS` names another folder): how each explorer looks at two
widths, before and after, and `seconds.json`, from a control's change to the new picture on screen.
"""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
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
    open_notebook,
    pictures,
    small_lessons,
    stop_kernels,
    timed,
    whole,
)
from playwright.sync_api import sync_playwright

from crc_helpers import data, explorers, models, runs
from crc_helpers.augmentation import VIEWS, shrink
from crc_helpers.course.settings import lesson_files
from crc_helpers.explorers import base as base_explorer
from crc_helpers.explorers import heat as heat_explorer
from crc_helpers.explorers import views as views_explorer
from crc_helpers.figures import set_style
from crc_helpers.fine_tuning import predict
from crc_helpers.tissue.parameters import CLASS_NAMES, TissueParameters

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
def test_every_control_of_every_explorer(page, lab, folder, shots, number):
    open_lesson(page, lab, number)
    assert errors_of(page) == []
    assert len(pictures(page)) == EXPLORERS[number]
    keep_pictures(page, shots, f"{number}_before")
    if number == "06":  # before the rest: its network is the shipped one
        assert_same_picture(page, 0, grad_cam_at_first(page, folder / "run 06"))
    if number == "02":
        by_keys(page)
    took = {}
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
        if count > 1:
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
    now = PICTURES_NOW[number](page, folder / f"run {number}", lab)
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
    assert selected(page, "tile") == "your own: <b>$bold$</b>.png"
    before = pictures(page)[0].evaluate(HASH)
    give("broken.png", buffer.getvalue()[:100])
    page.wait_for_selector(".widget-label:has-text('Not drawn: broken.png')", timeout=20_000)
    assert pictures(page)[0].evaluate(HASH) == before
    redrawn(page, control, lambda: give("again.png", buffer.getvalue()))
    noise = np.random.default_rng(1).integers(0, 255, (2050, 2050, 3), np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), "PNG")
    assert buffer.tell() > 12e6  # more than Jupyter lets through unless `make lab` allows it
    redrawn(page, control, lambda: give("large.png", buffer.getvalue()))
    assert selected(page, "tile") == "your own: large.png"


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


def given(lab, kind, names):
    """What a lesson gave the explorer of this kind that it shows; names: its attributes."""
    values = ", ".join(f"e.{name}" for name in names.split())
    return evaluate(lab, f"next(({values},) for _, shown in base_explorer.SHOWN.values()"
                    f" for e in shown if type(e).__name__ == {kind!r})")  # fmt: skip


def at_ends(names):
    """Tissue of these parameters' highest values."""
    known = TissueParameters.__dataclass_fields__
    return TissueParameters(**{name: known[name].metadata["bounds"][1] for name in names})


def tissue_now(page, run, lab):
    """What the tissue explorer should show with each slider at its end."""
    names = [describe(h).replace(" ", "_") for h in page.locator(".noUi-handle").all()]
    return [base_explorer.as_png([explorers.tissue_figure(at_ends(names), 7)])]


def views_now(page, run, lab):
    """What the views explorer should show with each transform at its strongest, no flips, turns."""
    tiles, _ = data.recall(run, "run")
    i = list(tiles.ids).index(selected(page, "tile").split(", ")[1])
    ends = {name: high for name, _, high in views_explorer.STRENGTHS.values()}
    ends |= {
        "crop": (views_explorer.STRENGTHS["smallest crop"][1], 1.0),
        "flip": False,
        "turn": True,
    }
    ends["blur_sigma"] = VIEWS["paper"].blur_sigma[0], ends["blur_sigma"]
    views = replace(VIEWS["paper"], **ends)
    figure = explorers.views_figure(tiles.images[i], views, 64, 8, tiles.masks[i])
    return [base_explorer.as_png([figure])]


def embedding_now(page, run, lab):
    """What the embedding explorer should show of the tile at the map's upper left corner."""
    shown, features, maps = given(lab, "EmbeddingExplorer", "tiles.ids features maps")
    tiles, _ = data.recall(run, "run")
    tiles = tiles.subset(np.array([list(tiles.ids).index(i) for i in shown]))
    name = selected(page, "encoder")
    at = maps[name] - maps[name].min(0)
    i = int(np.hypot(*(at / at.max(0) - [0, 1]).T).argmin())
    given_so = maps[name], features[name], tiles, i, selected(page, "colour by"), name
    return [base_explorer.as_png([explorers.embedding_figure(*given_so)])]


def temperature_now(page, run, lab):
    """What the temperature explorer should show at 1, and the embedding below it."""
    similarity, names, labels = given(lab, "TemperatureExplorer", "similarity names labels")
    figure = explorers.temperature_figure(similarity, names, 1.0, labels)
    return [base_explorer.as_png([figure]), *embedding_now(page, run, lab)]


def classifier(run):
    """The shipped network, and the side of its input."""
    facts = models.read_facts(run / "classifier.safetensors")
    model = models.Classifier(models.Encoder(facts["backbone"]), 2)
    return models.load_weights(run / "classifier.safetensors", model).eval(), facts["size"]


def threshold_now(page, run, lab):
    """What the threshold explorer should show one step below 0.5, at the highest prevalence."""
    tiles, parts = data.recall(run, "run")
    model, size = classifier(run)
    engine = runs.make_fabric(0)  # the lesson's: where a processor has bf16, it rounds
    score = predict(model, tiles.images.pick(parts.test), size, engine)[:, 1]
    test = tiles.subset(parts.test)
    metrics = explorers.threshold_figure(test.labels, score, tiles.class_names, 0.48, 0.99)
    return [base_explorer.as_png([metrics, explorers.cell_figure(test, score, 0.48, 0, 0)])]


def chosen_tile(page, run):
    """What `explanation_figure` is to say of the tile chosen, whatever network explains it."""
    tiles, _ = data.recall(run, "run")
    i = list(tiles.ids).index(selected(page, "tile").split(", ")[1])
    title = f"truth: {tiles.class_names[tiles.labels[i]]}"
    words = {"class_names": tiles.class_names, "mask": tiles.masks[i]}
    return tiles, np.array(tiles.images[i]), title, words | {"mask_name": tiles.mask_name}


def grad_cam_at_first(page, run):
    """What the Grad-CAM explorer should show before anything is changed."""
    _, image, title, words = chosen_tile(page, run)
    title = f"{title}\n{selected(page, 'network')}"
    model, size = classifier(run)
    figure = explorers.explanation_figure(model, image, size, target=1, title=title, **words)
    return base_explorer.as_png([figure])


def grad_cam_now(page, run, lab):
    """What the Grad-CAM explorer should show, sliders at their ends; and the live one."""
    networks, size = given(lab, "GradCamExplorer", "models size")
    tiles, image, title, words = chosen_tile(page, run)
    listed = next(s for s in page.locator(".widget-dropdown select").all() if describe(s) == "tile")
    ids = [text.split(", ")[1] for text in options_of(listed)]
    offered = np.isin(tiles.ids, ids)
    assert offered.sum() == len(ids) and selected(page, "colours") == "same for all"
    method, layer = selected(page, "method"), selected(page, "layer")
    target = tiles.class_names.index(selected(page, "class explained"))
    compared = selected(page, "compare with").removeprefix("network: ")
    rows, square = [selected(page, "network"), compared], (1.0, 1.0, 0.6)
    covered = heat_explorer.paint_over(image, square)
    strip = torch.from_numpy(np.stack([*tiles.images[offered], covered]))
    top = max(
        float(
            heat_explorer.METHODS[method](networks[name], shrink(strip, size), target, layer).max()
        )
        for name in rows
    )
    live = explorers.live_figure(
        networks[selected(page, "network", 1)], size, at_ends(live_knobs(page)), 7,
        CLASS_NAMES.index(selected(page, "class explained", 1)), selected(page, "layer", 1),
    )  # fmt: skip
    figures = [
        explorers.explanation_figure(
            networks[name], image, size, target=target, layer=layer, cover=square, method=method,
            title=f"{title}\n{name}", threshold=0.9, opacity=1.0, raw=True, top=top, **words,
        )
        for name in rows
    ]  # fmt: skip
    return [base_explorer.as_png(figures), base_explorer.as_png([live])]


def live_knobs(page):
    """The tissue's parameters that have a slider."""
    words = [describe(h).replace(" ", "_") for h in page.locator(".noUi-handle").all()]
    return [name for name in words if name in TissueParameters.__dataclass_fields__]


PICTURES_NOW = {"01": tissue_now, "02": views_now, "03": temperature_now, "04": embedding_now,
                "05": threshold_now, "06": grad_cam_now}  # fmt: skip


def test_a_class_called_as_markup_is_shown_as_text(page, lab, folder):
    name = "<img src=x onerror=alert(1)>"
    code = f"""import dataclasses, numpy as np
from crc_helpers import data, explorers, figures
figures.set_style()
tiles, parts = data.recall({str(folder / "run 05")!r}, "run")
few = dataclasses.replace(tiles.subset(parts.test[:20]), class_names=({name!r}, {name[::-1]!r}))
explorers.ThresholdExplorer(few, np.linspace(0, 1, 20)).show()"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(book, folder / "hostile.ipynb")
    open_notebook(page, lab, "hostile.ipynb")
    cells = page.locator(".widget-dropdown select").first
    assert options_of(cells)[1] == f"{name} called {name}"
    redrawn(page, cells, lambda: cells.select_option(index=1))
    assert page.locator("img[src=x]").count() == 0 and errors_of(page) == []
    stop_kernels(lab)


@pytest.mark.parametrize("file", lesson_files(), ids=lambda f: f.stem)
def test_the_page_without_a_kernel_has_the_pictures_and_no_broken_widget(page, file):
    """nbconvert's HTML of the committed lesson: still twins are there, and no dead controls."""
    html, _ = HTMLExporter(embed_images=True).from_filename(str(file))
    page.route("http*://**", lambda route: route.abort())  # offline
    page.set_content(html)
    assert page.locator("img").count() >= 1
    assert page.locator(".jupyter-widgets, [data-mime-type*=widget]").count() == 0
    assert "Loading widget" not in page.inner_text("body")
