"""The Grad-CAM explorer: every control redraws, nothing is left behind."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from traitlets import TraitError

from crc_helpers.data import Tiles
from crc_helpers.explorers import GradCamExplorer, explanation_figure
from crc_helpers.models import Classifier, Encoder


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
