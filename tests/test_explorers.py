"""The Grad-CAM explorer: every control redraws, nothing is left behind."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from crc_helpers.data import Tiles
from crc_helpers.explorers import (
    GradCamExplorer,
    TissueExplorer,
    explanation_figure,
    tissue_figure,
)
from crc_helpers.models import Classifier, Encoder
from crc_helpers.synthetic_tissue import TissueParameters


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
    return GradCamExplorer(*parts, np.array([0, 1, 2]), size=64)


@pytest.mark.parametrize(
    ("control", "value"),
    [("tile", 1), ("tile", 2), ("target", 0), ("layer", "layer1"), ("threshold", 0.1),
     ("threshold", 0.9)],
)  # fmt: skip
def test_every_control_redraws(explorer, control, value):
    before = explorer.picture.value
    getattr(explorer, control).value = value
    assert explorer.picture.value != before
    assert Image.open(io.BytesIO(explorer.picture.value)).size[0] > 500


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
    figure = explanation_figure(*parts, 0, 64, target=1, layer="layer2", threshold=0.7)
    text = figure._supxlabel.get_text()
    assert "layer2" in text and "70%" in text
    assert figure.axes[0].get_title() == "truth: HP"
    plt.close(figure)


def test_the_widget_has_its_controls_and_picture(explorer):
    layout = explorer.show()
    assert layout.children[-1] is explorer.picture


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
