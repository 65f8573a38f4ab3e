"""The explorers: every control redraws, numbers are those of the module, nothing is left."""

import base64
import ctypes
import datetime
import gc
import io
import os
import sys
import weakref
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pytest
import torch
from lightning.fabric import Fabric
from operate import every_control
from PIL import Image
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors
from test_data import fake_tiles

from crc_helpers.augmentation import VIEWS, draw_parameters, shrink
from crc_helpers.data import load_tiles
from crc_helpers.evaluation import wilson_interval
from crc_helpers.explanations import (
    cascade,
    centre_map,
    hires_cam,
    integrated_gradients,
    layer_cam,
    occlusion,
    stain_map,
)
from crc_helpers.explorers import (
    EmbeddingExplorer,
    GradCamExplorer,
    LiveExplorer,
    TemperatureExplorer,
    ThresholdExplorer,
    TissueExplorer,
    ViewsExplorer,
    cell_figure,
    embedding_figure,
    explain,
    temperature_figure,
    threshold_figure,
)
from crc_helpers.explorers import base as base_explorer
from crc_helpers.explorers import heat as maps
from crc_helpers.explorers.chooser import COLUMNS, OWN, SIDE
from crc_helpers.explorers.grad_cam import Question
from crc_helpers.explorers.heat import paint_over
from crc_helpers.explorers.views import still_shown, views_of
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import grad_cam
from crc_helpers.models import Classifier, Encoder
from crc_helpers.pretraining import nearest, nt_xent

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture
def parts():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[:2, 10:30, 10:30] = 1  # the third tile's region is not known
    images = rng.integers(0, 255, (3, 3, 64, 64), np.uint8)
    tiles = replace(fake_tiles([0, 1, -1]), images=images, masks=masks, mask_name="region", mpp=2.0)
    return Classifier(Encoder("resnet8"), 2).eval(), tiles


@pytest.fixture
def explorer(parts):
    torch.manual_seed(1)
    other = Classifier(Encoder("resnet8"), 2).eval()
    return GradCamExplorer({"trained": parts[0], "random": other}, parts[1], np.arange(3), size=64)


def test_the_answer_is_that_of_the_controls(explorer, parts, monkeypatch):
    """Each control moves the picture; the network is asked only where the answer may be another."""
    asked = []
    monkeypatch.setattr(maps, "explain", lambda *given: asked.append(given) or explain(*given))
    looks = [("threshold", 0.2), ("opacity", 0.1), ("raw", True)]
    questions = [("layer", "layer1"), ("target", 0), ("model", "random"), ("method", "LayerCAM")]
    explorer.chooser.tile.value = 1
    for name, value in looks + questions:
        before, count = explorer.picture.value, len(asked)
        getattr(explorer, name).value = value
        assert explorer.picture.value != before and explorer.message.value == ""
        assert len(asked) - count == ((name, value) in questions)
    assert [place.disabled for place in explorer.cover] == [False, True, True]
    explorer.cover[0].value = 0.3
    assert not any(place.disabled for place in explorer.cover)
    heat = explorer.answer(Question("random", 0, "layer1", "LayerCAM"))
    image = torch.from_numpy(paint_over(parts[1].images[1], (0.5, 0.5, explorer.cover[0].value)))
    pixels = shrink(image[None], 64)
    expected = layer_cam(explorer.models["random"], pixels, torch.tensor([0]), "layer1")[0]
    np.testing.assert_array_equal(heat.cells, expected)
    assert heat.change is not None and f"p(HP)={heat.probabilities[0]:.2f}" in explorer.picture.alt
    explorer.method.value = "occlusion"
    assert explorer.layer.disabled and "occlusion" in explorer.picture.alt


def test_a_comparison_stands_beside_and_nothing_jumps(explorer, parts, monkeypatch):
    alone, drawn, draw = explorer.picture.value, [], maps.explanation_figure
    monkeypatch.setattr(maps, "explanation_figure", lambda *a: drawn.append(a) or draw(*a))
    explorer.beside.value = ("model", "random")
    pixels = shrink(torch.from_numpy(parts[1].images[:1]), 64)
    for heat, network in zip((drawn[0][0], drawn[0][-1]), explorer.models.values(), strict=True):
        np.testing.assert_allclose(heat.cells, grad_cam(network, pixels, 1).maps[0], atol=1e-6)
    sizes = {Image.open(io.BytesIO(png)).size for png in (alone, explorer.picture.value)}
    assert len(sizes) == 1


def test_controls_are_what_they_are_called(explorer, parts):
    """Each beside the map that has to beat it: two ask no network, two know nothing."""
    for name in ("centre", "haematoxylin", "random weights", "another tile's map"):
        explorer.beside.value = ("control", name)
        assert explorer.message.value == "" and f"; {name}" in explorer.picture.alt
    question, pixels = explorer.questions()[0], shrink(torch.from_numpy(parts[1].images), 64)
    centre, stain, untrained, elsewhere = (
        explorer.answer(question._replace(control=name)).cells
        for name in ("centre", "haematoxylin", "random weights", "another tile's map")
    )
    np.testing.assert_allclose(centre, centre_map(1, 64)[0])
    cells = explorer.answer(question).cells.shape[-1]
    np.testing.assert_allclose(stain, stain_map(pixels[:1], 64 / cells / 2)[0])
    np.testing.assert_allclose(elsewhere, grad_cam(parts[0], pixels[1:2], 1).maps[0])
    *_, (_, fresh) = cascade(parts[0])
    np.testing.assert_allclose(untrained, grad_cam(fresh, pixels[:1], 1).maps[0])


@pytest.mark.parametrize("names", [("HP", "SSA"), ("all", "right")])
def test_filters_offer_the_tiles_they_name(parts, names):
    """Whatever the classes are called, and anew where the network is another."""
    torch.manual_seed(1)
    models = {"nothing": parts[0], "all": Classifier(Encoder("resnet8"), 2).eval()}
    tiles = replace(parts[1], class_names=names)
    explorer, labels = GradCamExplorer(models, tiles, np.arange(3), 64), tiles.labels
    for model, network in models.items():
        explorer.model.value = model
        said = predict(network, tiles.images, 64, Fabric(accelerator="cpu", devices=1))
        expected = {f"class {name}": [c] for c, name in enumerate(names)} | {
            "right": np.flatnonzero(said.argmax(1) == labels),
            "wrong": np.flatnonzero((said.argmax(1) != labels) & (labels >= 0)),
            "least sure": np.argsort(said.max(1)),
            "all": [0, 1, 2],
        }
        for name, found in expected.items():
            explorer.chooser.filter.value = name
            offered = [value for _, value in explorer.chooser.tile.options]
            assert offered == (list(found) if len(found) else [0, 1, 2])
            assert (explorer.message.value == "") == (len(found) > 0)
    assert "readers 4 : 3" not in dict(explorer.chooser.filter.options)  # these have no votes


def test_a_click_on_a_thumbnail_chooses_it_and_the_strip_frames_it(explorer):
    chooser = explorer.chooser
    for k in (2, 0, 1):
        before = explorer.picture.value
        chooser.strip.point = [(k + 0.9) / COLUMNS, 0.1]
        row = np.asarray(Image.open(io.BytesIO(chooser.strip.value)))
        frames = [(row[40, SIDE * j : SIDE * j + 3] == 0).all() for j in range(3)]
        assert frames == [j == k for j in range(3)] and chooser.tile.value == k
        assert explorer.picture.value != before and chooser.strip.alt.endswith(chooser.tile.label)
    chooser.strip.point = [0.9, 0.9]  # no tile is there
    assert chooser.tile.value == 1 and explorer.message.value == ""


def test_a_click_in_the_picture_covers_that_place_and_one_beside_it_uncovers(explorer):
    side, across, down = explorer.cover
    for beside in ((), ("control", "centre")):
        explorer.beside.value = beside
        for left, bottom, width, height in maps.places(1 + len(explorer.questions())):
            explorer.picture.point = [left + 0.25 * width, 1 - bottom - 0.5 * height]
            assert (across.value, down.value) == pytest.approx((0.25, 0.5)) and side.value > 0
            covered = explorer.answer(explorer.questions()[0])
            assert covered.change is not None and "by the square" in explorer.picture.alt
            assert np.ptp(covered.image[0, 29:35, 13:19]) == 0  # of noise
            explorer.picture.point = [0.5, 0.01]
            assert side.value == 0 and "by the square" not in explorer.picture.alt


def test_an_error_stays_until_a_change_that_works(parts):
    """A network may have no layer of that name; what it offers must not hide the sentence."""
    other = Classifier(Encoder("vit_tiny_patch16_224"), 2).eval()
    models = {"one": parts[0], "other": other}
    explorer = GradCamExplorer(models, parts[1], np.arange(3), size=224)
    before = explorer.picture.value
    explorer.model.value = "other"
    assert explorer.message.value.startswith("Not drawn: ") and "layer" in explorer.message.value
    explorer.threshold.value = 0.2
    assert explorer.message.value.startswith("Not drawn: ") and explorer.picture.value == before
    explorer.model.value = "one"
    assert explorer.message.value == "" and explorer.picture.value != before


def test_one_scale_for_all_is_the_highest_of_all_maps_shown(explorer, parts):
    explorer.scale.value = "same for all"
    pixels = shrink(torch.from_numpy(parts[1].images), 64)
    highest = {n: float(grad_cam(m, pixels, 1).maps.max()) for n, m in explorer.models.items()}
    assert explorer.top() == pytest.approx(highest["trained"])
    explorer.beside.value = ("model", "random")  # noise beside evidence is on evidence's scale
    assert explorer.top() == pytest.approx(max(highest.values()))
    explorer.chooser.offered, explorer.cover[0].value = np.array([1]), 0.3  # not in the strip
    shown = [float(explorer.answer(question).cells.max()) for question in explorer.questions()]
    assert explorer.top() >= max(shown)


@pytest.mark.parametrize("method", maps.METHODS)
def test_every_method_draws_its_own_map(parts, method):
    model, image, target = parts[0], parts[1].images[0], torch.tensor([1])
    found = explain(model, image, 64, 1, "layer2", method=method).cells
    given = model, shrink(torch.from_numpy(image[None]), 64), target
    expected = {
        "Grad-CAM": lambda: grad_cam(*given, "layer2").maps,
        "HiResCAM": lambda: hires_cam(*given, "layer2"),
        "LayerCAM": lambda: layer_cam(*given, "layer2"),
        "Integrated Gradients": lambda: integrated_gradients(*given, 8).relu(),
        "occlusion": lambda: occlusion(*given, 16, 8).relu(),
    }[method]()
    np.testing.assert_allclose(found, expected[0], atol=1e-6)


def test_painting_over_stays_inside_and_keeps_the_original():
    image = np.random.default_rng(0).integers(0, 255, (3, 50, 50), np.uint8)
    kept = image.copy()
    painted = paint_over(image, (0.0, 1.0, 0.4))  # a corner
    np.testing.assert_array_equal(image, kept)
    changed = (painted != image).any(0)
    assert changed[40:, :10].mean() > 0.9 and not changed[:40].any() and not changed[:, 10:].any()
    np.testing.assert_array_equal(paint_over(image, (0.5, 0.5, 0.0)), image)


def uploaded(name: str, content: bytes) -> tuple:
    when = datetime.datetime.now(datetime.UTC)
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": when}
    return (file | {"content": memoryview(content)},)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_pictures_of_your_own_stay_until_others_take_their_place(explorer):
    chooser = explorer.chooser
    hostile = "<b>$x^{</b> and a name that goes on.png"
    colours = {"pink.png": "pink", hostile: "green"}
    pictures = {name: Image.new("RGB", (300, 200), colour) for name, colour in colours.items()}
    chooser.upload.value = tuple(uploaded(n, encoded(p))[0] for n, p in pictures.items())
    for k, (name, image) in enumerate(pictures.items()):
        chooser.strip.point = [(k + 0.5) / COLUMNS, 0.2]
        assert explorer.message.value == "" and chooser.tile.label == f"{k + 1}: your own, {name}"
        shown, mask, title = chooser.chosen()
        np.testing.assert_array_equal(shown[:, 0, 0], np.asarray(image)[0, 0])
        np.testing.assert_array_equal(explorer.answer(explorer.questions()[0]).image, shown)
        assert mask is None and ", 300×200 px\nits middle 200×200 px, scale not" in title
        assert max(map(len, title.split("\n"))) < 42
    chooser.filter.value = "class SSA"  # offers other tiles, and leaves the pictures
    assert chooser.tile.value == OWN - 1 and len(chooser.tile.options) == 3
    chooser.tile.value = 1
    assert chooser.chosen()[2] == "truth: SSA"
    chooser.upload.value = uploaded("blue.png", encoded(Image.new("RGB", (64, 64), "blue")))
    assert [value for _, value in chooser.tile.options] == [OWN, 1]
    assert chooser.chosen()[2] == "blue.png, 64×64 px\nall of it, scale not known"


def test_a_known_scale_shows_as_much_tissue_as_a_tile(explorer):
    """These tiles of 64 px have 2 µm a pixel; at 0.5 that is 256 px of the upload."""
    chooser = explorer.chooser
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[22:278, 72:328] = 200
    chooser.upload.value = uploaded("grey.png", encoded(Image.fromarray(picture)))
    assert chooser.chosen()[0].min() == 0
    chooser.mpp.value = "0,5"
    image, _, title = chooser.chosen()
    assert image.shape == (3, 64, 64) and image.min() == 200
    assert title == "grey.png, 400×300 px\nits middle 256×256 px, at the tiles' scale"
    for words, why in (("0.3", "a tile is 427 px"), ("x", "is no number")):
        before, chooser.mpp.value = explorer.picture.value, words
        assert why in explorer.message.value and explorer.picture.value == before


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"holiday", "not a PNG"), (encoded(Image.new("1", (20_000, 3))), "may have 10,000 px")],
    ids=["text", "line"],
)
def test_a_file_that_is_no_tile_becomes_a_sentence(explorer, content, words):
    before = explorer.picture.value
    explorer.chooser.upload.value = uploaded("holiday.png", content)
    assert explorer.message.value.startswith("Not drawn: holiday.png")
    assert words in explorer.message.value and explorer.picture.value == before
    explorer.chooser.tile.value = 1
    assert explorer.message.value == "" and explorer.picture.value != before


def test_nothing_of_an_upload_is_written_to_disk(explorer, tmp_path):
    opened, watching = [], True

    def watch(event, given):
        if watching and event == "open":
            opened.extend([given] if set(given[1] or "") & set("wax+") or given[2] & WRITES else [])

    sys.addaudithook(watch)  # for ever: it is deaf afterwards
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    for form in ("PNG", "JPEG", "TIFF"):
        content = encoded(Image.fromarray(noise), form)
        explorer.chooser.upload.value = uploaded(f"mine.{form}", content)
        assert explorer.message.value == ""
    explorer.chooser.upload.value = uploaded("broken.png", content[:5000])
    assert not opened
    (tmp_path / "seen").write_text("that the watch is awake")
    assert opened
    watching = False


def test_an_error_becomes_a_sentence_and_the_picture_stays(monkeypatch):
    def fail():
        raise ValueError("the lamp is broken")

    tissue = TissueExplorer(["severity"], seed=9)
    before = tissue.picture.value
    with monkeypatch.context() as patch:
        patch.setattr(tissue, "figure", fail)
        tissue.sliders["severity"].value = 0.11
        assert tissue.message.value == "Not drawn: the lamp is broken"
        assert tissue.picture.value == before
    tissue.sliders["severity"].value = 0.77
    assert tissue.message.value == "" and tissue.picture.value != before
    link = tissue.link.value.split("base64,")[1].split('"')[0]  # saves what is shown
    assert base64.b64decode(link) == tissue.picture.value


# --- all of them ---------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"
KINDS = {  # each of three tiles, a network, and the first class's name
    "tissue": lambda tiles, model, name: TissueExplorer(["severity", "eosin"]),
    "views": lambda tiles, model, name: ViewsExplorer(tiles, np.arange(3), VIEWS["paper"], 64),
    "temperature": lambda tiles, model, name: TemperatureExplorer(
        np.eye(8), [name, *"bcdABCD"], [0, 0, 1, 1], 0.2
    ),
    "embedding": lambda tiles, model, name: EmbeddingExplorer(
        tiles, {name: np.eye(3)}, {name: np.eye(3)[:, :2]}
    ),
    "threshold": lambda tiles, model, name: ThresholdExplorer(
        tiles.subset(np.arange(2)), np.array([0.2, 0.7])
    ),
    "Grad-CAM": lambda tiles, model, name: GradCamExplorer({name: model}, tiles, np.arange(3), 64),
    "live": lambda tiles, model, name: LiveExplorer({name: model}, 64, ["severity"]),
}


def build(kind, parts, model=None):
    return KINDS[kind](parts[1], model or parts[0], parts[1].class_names[0])


def inside(widget) -> list:
    """A widget and all that it holds."""
    return [widget, *(w for child in getattr(widget, "children", ()) for w in inside(child))]


QUICK = ("threshold", "embedding")  # to operate by every control; the others are slow


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_a_name_with_markup_stays_text(parts, kind):
    """What ipywidgets takes as HTML holds no name; all else it shows as text."""
    tiles = replace(parts[1], class_names=(HOSTILE, "SSA"), ids=np.array([HOSTILE] * 3))
    explorer, says_it = build(kind, (parts[0], tiles)), 0
    assert every_control(explorer) > 1 and not plt.get_fignums()
    for widget in inside(explorer.show()):
        state = widget.get_state()
        if state["_view_name"] == "HTMLView":
            assert "<img" not in state["value"] and widget is explorer.link
        for allowed in ("description_allow_html", "tooltip_allow_html"):
            assert not state.get(allowed)
        says_it += HOSTILE in str(state)
    assert says_it or kind in ("tissue", "temperature")  # else nothing was tried


@pytest.mark.parametrize("kind", ["views", "Grad-CAM", "live"])
def test_a_cell_that_is_run_again_lets_its_explorer_go(parts, kind, monkeypatch):
    """And no other: the page's other cells, and what the same run showed, stay."""
    now = ["cell 1", "run 1"]
    monkeypatch.setattr(base_explorer, "running_cell", lambda: tuple(now))
    monkeypatch.setattr(base_explorer, "SHOWN", {})
    models = [Classifier(Encoder("resnet8"), 2).eval() for _ in range(4)]
    first, second, elsewhere = (build(kind, parts, model) for model in models[:3])
    outputs = [first.show(), second.show()]  # as IPython's Out has them
    now[:] = ["cell 2", "run 2"]
    elsewhere.show()
    gone = [weakref.ref(thing) for thing in (first, second, *models[:2])]
    stays = weakref.ref(elsewhere)
    del first, second, elsewhere, models[:2]
    gc.collect()
    assert gone[0]() and gone[1]()  # ipywidgets keeps what is shown
    now[:] = ["cell 1", "run 3"]
    again = build(kind, parts, models[1])
    outputs.append(again.show())
    now[1] = "run 4"
    assert again.show() is outputs[-1]  # made in another cell, and shown once more
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4 and stays() is not None
    assert again.whole.comm is not None and stays().picture.comm is not None
    assert outputs[0].comm is None and outputs[0].children == ()


@pytest.mark.parametrize("kind", KINDS)
def test_each_first_control_says_that_it_draws_and_redraws(parts, kind):
    """Whatever matplotlib's backend is."""
    plt.switch_backend("svg")
    explorer, said = build(kind, parts), []
    before = explorer.picture.value
    explorer.message.observe(lambda change: said.append(change["new"]), names="value")
    control = next(c for c in explorer.controls if hasattr(c, "max"))
    control.value = control.min if kind == "embedding" else control.max
    plt.switch_backend("agg")
    assert said == ["drawing …", ""] and explorer.picture.value != before


@pytest.mark.nightly
def test_explorers_do_not_grow(parts):
    explorers = [build(kind, parts) for kind in KINDS]

    def operate(rounds):
        """Hundreds of updates; the bytes that are this process's own after them."""
        assert sum(every_control(e) for e in explorers for _ in range(rounds)) > 20 * rounds
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # free memory goes back to the system
        return psutil.Process().memory_full_info().uss

    before = operate(2)  # fonts, caches, the allocator
    assert operate(6) / before - 1 < 0.05


# --- views ---------------------------------------------------------------------------------------


def test_still_shown_is_what_warping_the_mask_shows():
    """Against the warp itself: the region's area in the view, scaled by the crop's area."""
    mask = np.zeros((200, 200), np.uint8)
    mask[60:140, 20:120] = 1
    drawn = draw_parameters(12, VIEWS["paper"], torch.Generator().manual_seed(1))
    picture = torch.from_numpy(mask)[None, None].float().expand(12, 3, -1, -1)
    grid = torch.nn.functional.affine_grid(drawn.warp, [12, 3, 400, 400], align_corners=False)
    seen = torch.nn.functional.grid_sample(picture, grid, align_corners=False, padding_mode="zeros")
    scale = torch.linalg.det(drawn.warp[:, :, :2]).abs()
    expected = seen[:, 0].mean((1, 2)) * scale * 200 * 200 / mask.sum()
    np.testing.assert_allclose(still_shown(mask, drawn.warp.numpy()).mean(1), expected, atol=0.02)


@pytest.fixture(scope="module")
def drawn_tiles(tmp_path_factory):
    return load_tiles(n=12, seed=3, size=96, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def views(drawn_tiles):
    return ViewsExplorer(drawn_tiles, np.arange(4), VIEWS["paper"], 64)


def test_every_field_of_a_recipe_has_a_control_that_sets_it(views):
    start = VIEWS["paper"]
    assert set(views.strengths) == set(vars(start))
    assert views_of(start, {n: c.value for n, c in views.strengths.items()}) == start
    for name, control in views.strengths.items():
        high = not control.value if isinstance(control.value, bool) else control.max
        chosen = {n: c.value for n, c in views.strengths.items()} | {name: high}
        expected = {"crop": (1.0, 1.0), "blur_sigma": (0.3, 4.0)}.get(name, high)
        assert views_of(start, chosen) == replace(start, **{name: expected})
    narrow = {n: c.value for n, c in views.strengths.items()} | {"blur_sigma": 0.3}
    assert views_of(replace(start, blur_sigma=(1.0, 2.0)), narrow).blur_sigma == (0.3, 0.3)


# --- temperature ---------------------------------------------------------------------------------


def test_the_temperature_figure_agrees_with_nt_xent():
    z1, z2 = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    for temperature in (0.07, 0.7):
        figure = temperature_figure((z @ z.T).numpy(), list("abcdABCD"), temperature, [0, 0, 1, 1])
        expected = float(nt_xent(z1, z2, temperature))
        assert figure.axes[2].get_title() == f"NT-Xent {expected:.3f}"
        bars = [bar.get_width() for bar in figure.axes[2].patches]
        assert np.mean(bars) == pytest.approx(expected, rel=1e-5)
        plt.close(figure)


# --- threshold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_threshold_figure_counts_as_scikit_learn_does(threshold):
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.4).astype(int)
    score = np.clip(0.3 * labels + 0.7 * rng.random(200), 0, 0.999)
    figure = threshold_figure(labels, score, ("HP", "SSA"), threshold, 0.3)
    shown = [int(text.get_text().split()[0]) for text in figure.axes[0].texts]
    assert shown == confusion_matrix(labels, score >= threshold).ravel().tolist()
    words = [text.get_text() for text in figure.axes[1].texts]
    low, high = wilson_interval(int((labels == (score >= threshold)).sum()), 200)
    assert words[0].endswith(f"[{low:.2f}, {high:.2f}]")
    assert ("none" in words) == (threshold == 1.0)
    plt.close(figure)


def test_the_tiles_below_are_the_surest_of_the_cell(drawn_tiles):
    score = np.random.default_rng(1).random(12)
    for truth, said in ((0, 0), (0, 1), (1, 0), (1, 1)):
        called = score >= 0.5 if said else score < 0.5
        expected = np.sort(score[(drawn_tiles.labels == truth) & called])[:: -1 if said else 1]
        figure = cell_figure(drawn_tiles, score, 0.5, truth, said)
        assert figure._suptitle.get_text().endswith(f": {len(expected)} tiles")
        titles = [ax.get_title() for ax in figure.axes]
        expected = [f"p(SSA) = {p:.2f}" for p in expected[:6]]
        assert titles == expected + [""] * (6 - len(expected))
        plt.close(figure)


# --- embedding -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding(drawn_tiles):
    rng = np.random.default_rng(0)
    features = {name: rng.standard_normal((12, 6)) for name in ("before", "after")}
    return drawn_tiles, features, {name: f[:, :2] for name, f in features.items()}


def test_shares_of_neighbours_are_counted_beside_chance(embedding):
    tiles, features, maps = embedding
    figure = embedding_figure(maps["after"], features["after"], tiles, 3, "class")
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features["after"])
    near = search.kneighbors(features["after"], return_distance=False)[3, 1:]
    np.testing.assert_array_equal(nearest(torch.from_numpy(features["after"]), 5)[3], near)
    same = np.mean(tiles.labels[near] == tiles.labels[3])
    chance = np.mean(np.delete(tiles.labels, 3) == tiles.labels[3])
    mates = np.mean(tiles.groups[near] == tiles.groups[3])
    said = figure._supxlabel.get_text()
    assert f"of its class {same:.0%} (chance {chance:.0%})" in said
    assert f"of its slide {mates:.0%} (chance 45%)" in said  # five slide-mates among eleven
    plt.close(figure)
