"""The explorers: every control redraws, numbers are those of the module, nothing is left."""

import base64
import copy
import datetime
import gc
import io
import os
import sys
import weakref
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from operate import every_control
from PIL import Image
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import NearestNeighbors
from traitlets import TraitError

from crc_helpers.augmentation import VIEWS, draw_parameters, shrink
from crc_helpers.data import Tiles, load_tiles
from crc_helpers.evaluation import wilson_interval
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
    explanation_figure,
    nearest,
    temperature_figure,
    threshold_figure,
    tissue_figure,
    views_figure,
)
from crc_helpers.explorers import base as base_explorer
from crc_helpers.explorers import grad_cam as cam_explorer
from crc_helpers.explorers import heat as heat_explorer
from crc_helpers.explorers.grad_cam import Asked
from crc_helpers.explorers.heat import paint_over
from crc_helpers.explorers.views import still_shown, views_of
from crc_helpers.fine_tuning import predict
from crc_helpers.grad_cam import grad_cam
from crc_helpers.models import Classifier, Encoder
from crc_helpers.pretraining import nt_xent
from crc_helpers.tissue.parameters import TissueParameters


@pytest.fixture
def parts():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[:2, 10:30, 10:30] = 1  # the third tile's region is not known
    tiles = Tiles(
        images=rng.integers(0, 255, (3, 3, 64, 64), np.uint8), labels=np.array([0, 1, -1]),
        class_names=("HP", "SSA"), ids=np.array(["a", "b", "c"]), groups=None, partition=None,
        votes=None, masks=masks, mask_name="diagnostic region", mpp=2.0, name="test",
        source="random numbers", licence="none",
    )  # fmt: skip
    return Classifier(Encoder("resnet8"), 2).eval(), tiles


@pytest.fixture
def explorer(parts):
    torch.manual_seed(1)
    other = Classifier(Encoder("resnet8"), 2).eval()
    return GradCamExplorer({"trained": parts[0], "random": other}, parts[1], np.arange(3), size=64)


@pytest.mark.parametrize(
    ("control", "value"),
    [("tile", 1), ("tile", 2), ("model", "random"), ("target", 0), ("layer", "layer1"),
     ("method", "LayerCAM"), ("scale", "same for all"), ("raw", True), ("threshold", 0.1),
     ("threshold", 0.9), ("opacity", 0.1)],
)  # fmt: skip
def test_every_control_redraws(explorer, control, value):
    if control != "tile":
        explorer.tile.value = 1  # not the tile whose map ends the common scale
    before = explorer.picture.value
    getattr(explorer, control).value = value
    assert explorer.message.value == "" and explorer.picture.value != before
    assert Image.open(io.BytesIO(explorer.picture.value)).size[0] > 500


def test_the_square_covers_and_its_effect_is_said(explorer):
    assert [place.disabled for place in explorer.square] == [False, True, True]
    for slider, value in zip(explorer.square, (0.4, 0.3, 0.7), strict=True):
        before = explorer.picture.value
        slider.value = value
        assert explorer.picture.value != before
    assert not any(place.disabled for place in explorer.square)
    figure = explorer.figure()
    assert "the square moves p(SSA) by" in figure._supxlabel.get_text()
    plt.close(figure)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "random"), ("target", 0), ("layer", "layer2"), ("method", "LayerCAM")],
)
def test_a_comparison_stands_below(explorer, field, value):
    alone = Image.open(io.BytesIO(explorer.picture.value)).size
    explorer.beside.value = (field, value)
    page = Image.open(io.BytesIO(explorer.picture.value))
    assert page.size == (alone[0], 2 * alone[1])
    halves = [page.crop((0, y, alone[0], y + alone[1])) for y in (0, alone[1])]
    getattr(explorer, field).value, explorer.beside.value = value, ()
    np.testing.assert_array_equal(halves[1], Image.open(io.BytesIO(explorer.picture.value)))


def test_filters_offer_the_tiles_they_name(explorer, parts):
    said = predict(parts[0], parts[1].images, 64, Fabric(accelerator="cpu", devices=1))
    labels = parts[1].labels
    expected = {
        "class HP": [0], "class SSA": [1], "all": [0, 1, 2],
        "right": np.flatnonzero(said.argmax(1) == labels),
        "wrong": np.flatnonzero((said.argmax(1) != labels) & (labels >= 0)),
        "least sure": np.argsort(said.max(1)),
    }  # fmt: skip
    for name, found in expected.items():
        explorer.filter.value = name
        if len(found):
            assert [value for _, value in explorer.tile.options] == list(found)
            assert explorer.message.value == ""
        else:
            assert f"no tile here is '{name}'" in explorer.message.value
            assert explorer.filter.value == "all" and len(explorer.tile.options) == 3
    assert "readers 4 : 3" not in explorer.filter.options  # these tiles have no votes


def test_an_upload_stays_in_the_list_until_another_takes_its_place(explorer, monkeypatch):
    drawn = []
    draw = explorer._draw
    monkeypatch.setattr(explorer, "_draw", lambda: drawn.append(explorer.tile.value) or draw())
    explorer.upload.value = uploaded("broken.png", b"no picture")
    assert explorer.message.value.startswith("Not drawn: broken.png")
    explorer.tile.value = 1
    assert explorer.message.value == "" and explorer.chosen()[2] == "truth: SSA"
    for colour in ("pink", "green"):
        image = Image.new("RGB", (64, 64), colour)
        explorer.upload.value = uploaded(f"{colour}.png", encoded(image))
        assert explorer.tile.label == f"your own: {colour}.png"
        heat = explorer.explained(explorer.rows()[0])[0]
        np.testing.assert_array_equal(heat.image[:, 0, 0], np.asarray(image)[0, 0])
    row = np.asarray(Image.open(io.BytesIO(explorer.strip.value)))
    assert not [k for k in range(3) if (row[40, 78 * k : 78 * k + 3] == 0).all()]  # no frame
    explorer.filter.value = "class SSA"  # offers other tiles, and leaves the picture
    assert explorer.tile.value == cam_explorer.OWN and explorer.message.value == ""
    explorer.filter.value = "all"
    explorer.tile.value = 1
    assert explorer.chosen()[2] == "truth: SSA"
    explorer.tile.value = cam_explorer.OWN
    assert explorer.chosen()[2].startswith("green.png")
    assert drawn == [-1, 1, -1, -1, -1, -1, 1, -1]  # once each


def test_a_network_that_fails_while_tiles_are_offered_becomes_a_sentence(explorer, monkeypatch):
    def fail(*_):
        raise RuntimeError("the lamp is broken")

    monkeypatch.setattr(cam_explorer, "predict", fail)
    before = explorer.picture.value
    explorer.filter.value = "wrong"
    assert explorer.message.value == "Not drawn: the lamp is broken"
    assert explorer.picture.value == before


def test_what_cannot_be_drawn_even_once_raises(parts):
    with pytest.raises(IndexError):
        GradCamExplorer({"trained": parts[0]}, parts[1], np.array([3]), size=64)


def test_another_network_is_asked_where_it_is_wrong(explorer):
    explorer.filter.value = "least sure"
    for name in ("random", "trained"):
        explorer.model.value = name
        said = explorer.probabilities()
        assert list(explorer.offered) == list(np.argsort(said.max(1)))


def test_the_strip_frames_the_chosen_tile(explorer):
    explorer.tile.value = 1
    row = np.asarray(Image.open(io.BytesIO(explorer.strip.value)))
    frames = [(row[40, 78 * k : 78 * k + 3] == 0).all() for k in range(3)]
    assert frames == [False, True, False]


def test_a_button_below_each_picture_of_the_strip_chooses_it(explorer):
    for k in (2, 0):
        explorer.picks[k].click()
        assert explorer.tile.value == k and explorer.message.value == ""
    explorer.filter.value = "class SSA"
    seen = [button.layout.visibility for button in explorer.picks]
    assert seen == ["visible"] + 11 * ["hidden"]
    explorer.picks[5].click()  # as a program could
    assert explorer.tile.value == 1
    explorer.upload.value = uploaded("pink.png", encoded(Image.new("RGB", (64, 64), "pink")))
    explorer.picks[0].click()
    assert explorer.tile.value == 1


def test_the_link_saves_the_picture_shown(explorer):
    explorer.opacity.value = 0.2
    encoded = explorer.link.value.split("base64,")[1].split('"')[0]
    assert base64.b64decode(encoded) == explorer.picture.value


def test_painting_over_stays_inside_and_keeps_the_original():
    image = np.random.default_rng(0).integers(0, 255, (3, 50, 50), np.uint8)
    kept = image.copy()
    painted = paint_over(image, (0.0, 1.0, 0.4))  # a corner
    np.testing.assert_array_equal(image, kept)
    changed = (painted != image).any(0)
    assert changed[40:, :10].mean() > 0.9 and not changed[:40].any() and not changed[:, 10:].any()
    np.testing.assert_array_equal(paint_over(image, (0.5, 0.5, 0.0)), image)


def test_one_scale_for_all_is_the_highest_of_all_maps_shown(explorer, parts):
    explorer.scale.value = "same for all"
    pixels = shrink(torch.from_numpy(parts[1].images), 64)
    highest = {n: float(grad_cam(m, pixels, 1).maps.max()) for n, m in explorer.models.items()}
    assert explorer.top() == pytest.approx(highest["trained"])
    explorer.model.value = "random"
    assert explorer.top() == pytest.approx(highest["random"])
    explorer.beside.value = ("model", "trained")  # noise beside evidence is on evidence's scale
    assert explorer.top() == pytest.approx(max(highest.values()))
    explorer.method.value = "HiResCAM"
    figure = explorer.figure()
    assert figure.axes[1].get_title().endswith(f"colours to {explorer.top():.2g}")
    plt.close(figure)


@pytest.mark.parametrize("how", ["uploaded", "covered", "not offered"])
def test_one_scale_for_all_includes_what_is_shown_outside_the_strip(explorer, monkeypatch, how):
    explorer.scale.value = "same for all"
    monkeypatch.setattr(explorer, "_end", lambda row: 1e-6)  # as if the strip were fainter
    if how == "uploaded":
        explorer.upload.value = uploaded("pink.png", encoded(Image.new("RGB", (64, 64), "pink")))
    elif how == "covered":
        explorer.square[0].value = 0.3
    else:
        explorer.offered = np.array([1])
    explorer.beside.value = ("model", "random")
    ends = [float(explorer.explained(row)[0].cells.max()) for row in explorer.rows()]
    assert explorer.top() == max(*ends, 1e-6) > 1e-6


@pytest.mark.parametrize("method", heat_explorer.METHODS)
def test_every_method_draws_its_own_map(explorer, parts, method):
    explorer.layer.value, explorer.method.value = "layer2", method
    found = explorer.explained(Asked("trained", 1, "layer2", method))[0]
    gradient, pixels = [], shrink(torch.from_numpy(parts[1].images[:1]), 64)
    stage = parts[0].encoder.stage("layer2")
    hook = stage.register_forward_hook(lambda *a: a[2].retain_grad() or gradient.append(a[2]))
    parts[0](pixels)[0, 1].backward()
    hook.remove()
    a, g = gradient[0], gradient[0].grad
    weight = {"Grad-CAM": g.mean((2, 3), keepdim=True), "HiResCAM": g, "LayerCAM": g.relu()}
    expected = (weight[method] * a).sum(1).relu()[0].detach()
    np.testing.assert_allclose(found.cells, expected, atol=1e-6)
    assert found.source == f"{method}, layer2"


def uploaded(name: str, content: bytes) -> tuple:
    when = datetime.datetime.now(datetime.UTC)
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": when}
    return (file | {"content": memoryview(content)},)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "image", "form"),
    [("a.png", Image.new("RGB", (300, 200), "pink"), "PNG"),
     ("grey.png", Image.new("L", (64, 64), 90), "PNG"),
     ("clear.png", Image.new("RGBA", (64, 64), (9, 9, 9, 9)), "PNG"),
     ("$\\frac{1$ and a name that goes on and on.jpg", Image.new("RGB", (10_000, 500)), "JPEG"),
     ("b.jpg", Image.new("RGB", (600, 30), "purple"), "JPEG"),
     ("print.tif", Image.new("CMYK", (80, 80)), "TIFF")],
)  # fmt: skip
def test_a_picture_of_your_own(explorer, name, image, form):
    before = explorer.picture.value
    explorer.upload.value = uploaded(name, encoded(image, form))
    assert explorer.message.value == "" and explorer.picture.value != before
    shown, mask, title = explorer.chosen()
    assert shown.shape == (3, 64, 64) and mask is None
    short = name if len(name) <= 24 else f"{name[:23]}…"
    assert title == f"{short}, {image.width}×{image.height} px"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"holiday", "not a PNG"), (b"<script>alert(1)</script>", "not a PNG"),
     (encoded(Image.new("RGB", (99, 99), "red"))[:150], "truncated"),
     (encoded(Image.new("1", (20_000, 20_000))), "bomb"),
     (encoded(Image.new("1", (20_000, 1500))), "20000×1500 px; a side may have 10,000 px"),
     (encoded(Image.new("1", (20_000, 3))), "20000×3 px"),
     (encoded(Image.new("L", (30, 601))), "30×601 px"),
     (encoded(Image.fromarray(np.zeros((9, 9), np.uint16))), "16 bits")],
    ids=["empty", "text", "html", "truncated", "bomb", "too wide", "line", "strip", "16 bit"],
)  # fmt: skip
def test_a_file_that_is_no_tile_becomes_a_sentence(explorer, content, words):
    before = explorer.picture.value
    explorer.upload.value = uploaded("holiday.png", content)
    assert (
        explorer.message.value.startswith("Not drawn: holiday.png")
        and words in explorer.message.value
    )
    assert explorer.picture.value == before
    explorer.tile.value = 0  # back to the tiles
    assert explorer.message.value == ""


@pytest.fixture(scope="module")
def written():
    """Switched on by `written.clear()`: what this process opens for writing, or makes."""
    seen, writes = [None], os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def watch(event, given):
        if seen != [None] and (
            event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.Popen")
            or (event == "open" and (set(given[1] or "") & set("wax+") or given[2] & writes))
        ):
            seen.append((event, given))

    sys.addaudithook(watch)  # for ever: it is deaf before and after
    yield seen
    seen[:] = [None]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "broken"])
def test_nothing_of_an_upload_is_written_to_disk(explorer, written, tmp_path, form):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8))
    content = encoded(image)[:5000] if form == "broken" else encoded(image, form)
    written.clear()
    explorer.upload.value = uploaded(f"mine.{form}", content)
    explorer.beside.value = ("model", "random")
    assert explorer.message.value.startswith("Not drawn: mine") == (form == "broken")
    assert not written
    (tmp_path / "seen").write_text("that the watch is awake")
    assert written
    written[:] = [None]


def test_what_only_changes_the_look_asks_the_network_nothing(explorer, monkeypatch):
    asked = []
    whole = heat_explorer.grad_cam
    monkeypatch.setattr(heat_explorer, "grad_cam", lambda *a: asked.append(a) or whole(*a))
    for control, value in (("threshold", 0.2), ("opacity", 0.1), ("raw", True)):
        getattr(explorer, control).value = value
    assert not asked
    for control, value in (("tile", 1), ("layer", "layer1"), ("target", 0), ("model", "random")):
        getattr(explorer, control).value = value
        assert len(asked) == 1, control
        asked.clear()
    explorer.square[0].value = 0.3
    assert len(asked) == 1
    heat = explorer.explained(Asked("random", 0, "layer1", "Grad-CAM"))[0]
    tile = torch.from_numpy(explorer.chosen()[0])[None]
    painted = torch.from_numpy(paint_over(tile[0].numpy(), (0.5, 0.5, explorer.square[0].value)))
    expected = whole(explorer.models["random"], shrink(painted[None], 64), 0, "layer1").maps[0]
    np.testing.assert_array_equal(heat.cells, expected)


def test_every_value_of_every_control_is_drawn(explorer):
    assert every_control(explorer) > 30


def test_a_control_that_fails_is_noticed(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "figure", lambda *_: 1 / 0)
    with pytest.raises(AssertionError, match="division by zero"):
        every_control(explorer)


@pytest.mark.parametrize(("value", "words"), [(0, "0 everywhere"), (np.nan, "NaN or infinity")])
def test_a_map_without_heat_says_which_kind(parts, value, words):
    heat = heat_explorer.explain(parts[0], parts[1].images[0], 64, 1)
    heat = replace(heat, cells=0 * heat.cells + value, smooth=0 * heat.smooth + value)
    figure = heat_explorer.draw_heat(heat, ("HP", "SSA"), mask=parts[1].masks[0])
    assert words in figure.axes[1].get_title()
    base_explorer.as_png([figure])


def test_a_network_in_training_mode_explains_as_in_evaluation_and_learns_nothing(parts):
    model = copy.deepcopy(parts[0])
    first = heat_explorer.explain(model.eval(), parts[1].images[0], 64, 1)
    again = heat_explorer.explain(model.train(), parts[1].images[0], 64, 1)
    np.testing.assert_array_equal(first.chances, again.chances)
    assert model.training and all(
        torch.equal(a, b) for a, b in zip(model.buffers(), parts[0].buffers(), strict=True)
    )


def test_updates_leave_no_figure_open(explorer):
    plt.close("all")
    for threshold in (0.2, 0.4, 0.6):
        explorer.threshold.value = threshold
    assert plt.get_fignums() == []


def test_a_value_that_is_not_there_is_refused_and_the_picture_stays(explorer):
    before = explorer.picture.value
    with pytest.raises(TraitError):
        explorer.layer.value = "layer9"
    assert explorer.picture.value == before


def test_figure_says_class_layer_and_overlap(parts):
    model, tiles = parts
    figure = explanation_figure(
        model, tiles.images[0], 64, class_names=tiles.class_names, target=1, layer="layer2",
        threshold=0.7, title="truth: HP", mask=tiles.masks[0], mask_name="gland",
    )  # fmt: skip
    text = figure._supxlabel.get_text()
    assert "layer2" in text and "70%" in text and "heat in the gland" in text
    assert figure.axes[0].get_title() == "truth: HP"
    plt.close(figure)


@pytest.mark.parametrize("side", [64, 224])  # of 24 cells, 224 pixels are no multiple
def test_raw_cells_are_those_of_the_layer(parts, side):
    model, rng = parts[0], np.random.default_rng(0)
    image = rng.integers(0, 255, (3, side, side), np.uint8)
    size = 64 if side == 64 else 96
    options = {"class_names": ("HP", "SSA"), "target": 1, "layer": "layer1"}
    figure = explanation_figure(model, image, size, raw=True, **options)
    cells = np.asarray(figure.axes[1].images[1].get_array())
    expected = grad_cam(model, shrink(torch.from_numpy(image[None]), size), 1, "layer1").maps[0]
    n = len(expected)
    assert n == size // 4
    middles = ((np.arange(n) + 0.5) * side / n).astype(int)
    np.testing.assert_allclose(cells[np.ix_(middles, middles)], expected)
    plt.close(figure)


def test_the_widget_has_its_controls_and_picture(explorer):
    layout = explorer.show()
    strip, picks, below = layout.children
    assert strip is explorer.strip and explorer.picture in below.children
    assert picks.children == tuple(explorer.picks)


@pytest.mark.parametrize(
    ("name", "value"),
    [("severity", 0.9), ("cut_angle", 80.0), ("model", "random"), ("target", 0),
     ("layer", "layer1")],
)  # fmt: skip
def test_prediction_and_map_follow_the_tissue(explorer, name, value):
    live = LiveExplorer(explorer.models, 64, ["severity", "cut_angle"], seed=3)
    before = live.picture.value
    control = live.sliders[name] if name in live.sliders else getattr(live, name)
    control.value = value
    assert live.picture.value != before and live.message.value == ""


@pytest.fixture(scope="module")
def tissue():
    return TissueExplorer(["severity", "horizontal_growth", "cut_angle", "eosin"], seed=9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("severity", 0.9), ("horizontal_growth", 2.0), ("cut_angle", 70.0), ("eosin", 1.7)],
)
def test_every_slider_of_the_tissue_redraws(tissue, name, value):
    before = tissue.picture.value
    tissue.sliders[name].value = value
    assert tissue.picture.value != before and tissue.message.value == ""


def test_another_tile_redraws(tissue):
    before = tissue.picture.value
    tissue.seed.value = 10
    assert tissue.picture.value != before


@pytest.mark.parametrize(
    "severity, label", [(0.3, "HP"), (0.49, "HP"), (0.51, "SSA"), (0.9, "SSA")]
)
def test_the_tissue_figure_says_what_the_rule_says(severity, label):
    figure = tissue_figure(TissueParameters(severity=severity), 3)
    assert figure._supxlabel.get_text().startswith(f"by the rule: {label} ")
    votes = [bar.get_height() for bar in figure.axes[2].patches]
    assert sum(votes) == pytest.approx(1)
    assert (sum(votes[4:]) > 0.5) == (severity > 0.5) or abs(severity - 0.5) < 0.02
    plt.close(figure)


def test_an_error_becomes_a_sentence_and_the_picture_stays(tissue, monkeypatch):
    def fail():
        raise ValueError("the lamp is broken")

    before = tissue.picture.value
    with monkeypatch.context() as patch:
        patch.setattr(tissue, "figure", fail)
        tissue.sliders["severity"].value = 0.11
        assert tissue.message.value == "Not drawn: the lamp is broken"
        assert tissue.picture.value == before
    tissue.sliders["severity"].value = 0.77
    assert tissue.message.value == "" and tissue.picture.value != before


# --- all of them ---------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>"
KINDS = {
    "tissue": lambda tiles, model: TissueExplorer(["severity", "eosin"]),
    "views": lambda tiles, model: ViewsExplorer(tiles, np.arange(3), VIEWS["paper"], 64),
    "temperature": lambda tiles, model: TemperatureExplorer(
        np.eye(8), [tiles.class_names[0], *"bcdABCD"], [0, 0, 1, 1], 0.2),
    "embedding": lambda tiles, model: EmbeddingExplorer(
        tiles, {tiles.class_names[0]: np.eye(3)}, {tiles.class_names[0]: np.eye(3)[:, :2]}),
    "threshold": lambda tiles, model: ThresholdExplorer(
        tiles.subset(np.arange(2)), np.array([0.2, 0.7])),
    "Grad-CAM": lambda tiles, model: GradCamExplorer(
        {tiles.class_names[0]: model}, tiles, np.arange(3), 64),
    "live": lambda tiles, model: LiveExplorer({tiles.class_names[0]: model}, 64, ["severity"]),
}  # fmt: skip


def inside(widget) -> list:
    """A widget and all that it holds."""
    return [widget, *(w for child in getattr(widget, "children", ()) for w in inside(child))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_with_markup_stays_text(parts, kind):
    """What ipywidgets takes as HTML holds no name; all else it shows as text."""
    tiles = replace(parts[1], class_names=(HOSTILE, "SSA"), ids=np.array([HOSTILE] * 3))
    explorer, says_it = KINDS[kind](tiles, parts[0]), 0
    every_control(explorer)
    for widget in inside(explorer.show()):
        state = widget.get_state()
        if state["_view_name"] == "HTMLView":
            assert "<img" not in state["value"] and widget is explorer.link
        for allowed in ("description_allow_html", "tooltip_allow_html"):
            assert not state.get(allowed)
        says_it += HOSTILE in str(state)
    assert says_it or kind in ("tissue", "temperature")  # else nothing was tried


@pytest.mark.parametrize("names", [("all", "right"), ("wrong", "nothing"), ("none", "least sure")])
def test_a_class_may_be_called_as_a_filter_is(parts, names):
    tiles = replace(parts[1], class_names=names)
    explorer = GradCamExplorer({"nothing": parts[0], "all": parts[0]}, tiles, np.arange(3), 64)
    for c, name in enumerate(names):
        explorer.filter.value = f"class {name}"
        assert [value for _, value in explorer.tile.options] == [c]
    explorer.filter.value = "all"
    assert len(explorer.tile.options) == 3
    assert len(explorer.rows()) == 1
    labels = [label for label, _ in explorer.beside.options]
    assert len(set(labels)) == len(labels)
    for field, name in (("model", "nothing"), ("target", 1)):
        explorer.beside.value = (field, name)
        assert getattr(explorer.rows()[1], field) == name


def test_cells_of_the_matrix_are_told_apart_whatever_the_classes_are_called(drawn_tiles):
    tiles = replace(drawn_tiles, class_names=("x", "x called x"))
    explorer = ThresholdExplorer(tiles, np.linspace(0, 1, 12))
    assert [v for _, v in explorer.cell.options] == [(), (0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_draws_an_explorer_says_so(parts, kind, monkeypatch):
    explorer, said = KINDS[kind](parts[1], parts[0]), []
    draw = type(explorer).pages

    def slow(self):
        said.append(self.message.value)
        return draw(self)

    monkeypatch.setattr(type(explorer), "pages", slow)
    explorer.message.observe(lambda change: said.append(change["new"]), names="value")
    control = next(c for c in explorer.controls if hasattr(c, "max"))
    control.value = control.max
    # As it begins, while it draws, and when it is done.
    assert said == ["drawing …", "drawing …", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_that_is_run_again_lets_its_explorer_go(parts, kind, monkeypatch):
    """And no other: the page's other cells, and what the same run showed, stay."""
    now = ["cell 1", "run 1"]
    monkeypatch.setattr(base_explorer, "running_cell", lambda: tuple(now))
    monkeypatch.setattr(base_explorer, "SHOWN", {})
    models = [Classifier(Encoder("resnet8"), 2).eval() for _ in range(4)]
    first, second, elsewhere = (KINDS[kind](parts[1], model) for model in models[:3])
    outputs = [first.show(), second.show()]  # as IPython's Out has them
    now[:] = ["cell 2", "run 2"]
    elsewhere.show()
    gone = [weakref.ref(thing) for thing in (first, second, *models[:2])]
    stays = weakref.ref(elsewhere)
    del first, second, elsewhere, models[:2]
    gc.collect()
    assert gone[0]() and gone[1]()  # ipywidgets keeps what is shown
    now[:] = ["cell 1", "run 3"]
    again = KINDS[kind](parts[1], models[1])
    outputs.append(again.show())
    now[1] = "run 4"
    assert again.show() is outputs[-1]  # made in another cell, and shown once more
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4 and stays() is not None
    assert again.whole.comm is not None and stays().picture.comm is not None
    assert outputs[0].comm is None and outputs[0].children == ()


# --- views ---------------------------------------------------------------------------------------


def test_still_shown_counts_what_a_crop_keeps():
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :50] = 1  # the left half
    whole, left, right, mirrored = (
        np.array(m, float)
        for m in (
            [[1, 0, 0], [0, 1, 0]],
            [[0.5, 0, -0.5], [0, 1, 0]],
            [[0.5, 0, 0.5], [0, 1, 0]],
            [[-0.5, 0, -0.5], [0, 1, 0]],
        )
    )
    shares = still_shown(mask, np.stack([whole, left, right, mirrored])).mean(1)
    np.testing.assert_allclose(shares, [1, 1, 0, 1])


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop", 0.9), ("rotate", 40.0), ("shear", 25.0), ("brightness", 0.0), ("contrast", 0.0),
     ("saturation", 0.0), ("hue", 0.4), ("stain", 0.7), ("grayscale", 1.0), ("blur", 0.0),
     ("translate", 0.3), ("blur_sigma", 3.9), ("flip", False), ("turn", True)],
)  # fmt: skip
def test_every_transform_has_a_control_that_redraws(views, name, value):
    before = views.picture.value
    views.again.value = 2  # a draw in which both views are blurred
    assert views.picture.value != before
    before = views.picture.value
    views.strengths[name].value = value
    assert views.picture.value != before and views.message.value == ""


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


def test_draw_again_draws_other_views(views):
    before, number = views.picture.value, views.again.value
    views.controls[-1].click()
    assert views.again.value == number + 1 and views.picture.value != before


def test_the_views_say_what_is_left_of_the_region(drawn_tiles):
    whole = replace(VIEWS["paper"], crop=(1.0, 1.0), rotate=0, translate=0, shear=0)
    figure = views_figure(drawn_tiles.images[0], whole, 64, 0, drawn_tiles.masks[0])
    assert "100%" in figure.axes[1].get_title() and "yes" in figure._supxlabel.get_text()
    without = views_figure(drawn_tiles.images[0], whole, 64, 0)
    assert without.axes[1].get_title() == "view 1" and without._supxlabel is None
    plt.close("all")


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


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_no_words_of_the_temperature_figure_cover_others(temperature):
    figure = temperature_figure(np.eye(8), list("abcdABCD"), temperature, [0, 0, 1, 1])
    figure.canvas.draw()
    words = [*figure.axes[2].texts, figure.axes[2].title]
    boxes = [text.get_window_extent() for text in words]
    assert len(words) == 3 and boxes[2].y1 <= figure.bbox.y1
    assert not [1 for k in range(3) for box in boxes[:k] if boxes[k].overlaps(box)]
    plt.close(figure)


@pytest.mark.parametrize("severity", [0.2, 1.0])
def test_no_words_of_the_tissue_figure_are_cut_off(severity):
    figure = tissue_figure(TissueParameters(severity=severity), 7)
    figure.canvas.draw()
    words = [figure.axes[2].title, figure.axes[2].xaxis.label, figure._supxlabel]
    for box in (text.get_window_extent() for text in words):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    plt.close(figure)


def test_names_of_the_embedding_end_before_the_pictures(embedding):
    tiles, features, maps = embedding
    tiles = replace(tiles, class_names=("a name of a class that goes on", "SSA"))
    figure = embedding_figure(maps["after"], features["after"], tiles, 3, "class")
    figure.canvas.draw()
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x1 <= figure.axes[1].get_window_extent().x0
    plt.close(figure)


def test_the_temperature_slider_redraws():
    explorer = TemperatureExplorer(np.eye(8), list("abcdABCD"), [0, 0, 1, 1], 0.2)
    before = explorer.picture.value
    explorer.temperature.value = 0.7
    assert explorer.picture.value != before


# --- threshold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
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
    assert ("none called" in words) == (threshold == 1.0)
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


def test_every_control_of_the_threshold_redraws(drawn_tiles):
    explorer = ThresholdExplorer(drawn_tiles, np.linspace(0, 1, 12))
    # With None as a value, what is selected at first depended on PYTHONHASHSEED.
    assert explorer.cell.label == "none" and None not in dict(explorer.cell.options).values()
    for control, value in (
        ("threshold", 0.8),
        ("prevalence", 0.05),
        ("cell", (0, 1)),
        ("cell", ()),
    ):
        before = explorer.picture.value
        getattr(explorer, control).value = value
        assert explorer.picture.value != before and explorer.message.value == ""
    explorer.threshold.value = 1.0
    explorer.cell.value = (0, 1)  # an empty cell says so
    assert explorer.message.value == ""
    assert every_control(explorer) == 9  # the ends of two sliders, four cells and none


# --- embedding -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding(drawn_tiles):
    rng = np.random.default_rng(0)
    features = {name: rng.standard_normal((12, 6)) for name in ("before", "after")}
    return drawn_tiles, features, {name: f[:, :2] for name, f in features.items()}


def test_neighbours_are_scikit_learns(embedding):
    features = embedding[1]["after"]
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features)
    expected = search.kneighbors(features, return_distance=False)[:, 1:]
    found = [nearest(features, i) for i in range(12)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_in_a_collapsed_space_are_defined(dtype):
    features = np.zeros((7, 4), dtype)
    for i in range(7):  # all are as near: the first of the others
        assert nearest(features, i).tolist() == [k for k in range(7) if k != i][:5]
    features[2:4] = 1, -1, 0, 2
    assert nearest(features, 3, 2).tolist() == [2, 0]
    features[4] = np.nan  # even then no tile is its own neighbour
    assert all(i not in nearest(features, i, 6) for i in range(7))
    assert nearest(features[:3], 0).tolist() == [1, 2]


def test_shares_of_neighbours_are_counted_beside_chance(embedding):
    tiles, features, maps = embedding
    figure = embedding_figure(maps["after"], features["after"], tiles, 3, "class")
    near = nearest(features["after"], 3)
    same = np.mean(tiles.labels[near] == tiles.labels[3])
    chance = np.mean(np.delete(tiles.labels, 3) == tiles.labels[3])
    mates = np.mean(tiles.groups[near] == tiles.groups[3])
    said = figure._supxlabel.get_text()
    assert f"of its class {same:.0%} (chance {chance:.0%})" in said
    assert f"of its slide {mates:.0%} (chance 45%)" in said  # five slide-mates among eleven
    plt.close(figure)


def test_pointing_and_colouring_redraw(embedding):
    explorer = EmbeddingExplorer(*embedding)
    points = embedding[2]["after"]
    for corner, best in (((0.0, 0.0), points[:, 1] - points[:, 0]), ((1.0, 1.0), None)):
        explorer.across.value, explorer.down.value = corner
        assert 0 <= explorer.pointed() < 12
        if best is not None:
            assert explorer.pointed() in np.argsort(-best)[:4]
    assert set(explorer.kind.options) > {"class", "slide", "votes", "Scanner", "Colon Site"}
    for kind in explorer.kind.options[1:]:
        before = explorer.picture.value
        explorer.kind.value = kind
        assert explorer.picture.value != before and explorer.message.value == ""
    before = explorer.picture.value
    explorer.encoder.value = "before"
    assert explorer.picture.value != before and explorer.message.value == ""
