"""The tissue's parameters as sliders (lesson 01)."""

from collections.abc import Sequence
from dataclasses import fields

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from crc_helpers.explorers.base import Explorer, fixed_axes, number, slider
from crc_helpers.figures import show_tile
from crc_helpers.style import CLASSES
from crc_helpers.tissue.cohort import reader_votes
from crc_helpers.tissue.parameters import (
    CLASS_NAMES,
    UNEQUIVOCAL,
    TissueParameters,
    diagnose,
    distortion,
)
from crc_helpers.tissue.slide import draw


def tissue_figure(parameters: TissueParameters, seed: int) -> Figure:
    """Draw a tile, the same with the region that decides, and how readers like ours would vote."""
    drawing, worst = draw(parameters, seed), distortion(parameters)
    places = [(0.004, 0.11, 0.35, 0.8), (0.364, 0.11, 0.35, 0.8), (0.8, 0.25, 0.19, 0.58)]
    figure, axes = fixed_axes(3.5, places)
    show_tile(axes[0], drawing.image, "what a reader sees")
    show_tile(axes[1], drawing.image, "the pixels that decide", drawing.diagnostic)
    panels = reader_votes(np.full(2000, worst), np.random.default_rng(0))  # many panels of seven
    share = np.bincount(panels, minlength=8) / len(panels)
    axes[2].bar(range(8), share, color=[CLASSES[k > 3] for k in range(8)])
    axes[2].set(ylim=(0, 1), xticks=range(8))
    axes[2].set_xlabel("votes for SSA, of seven", fontsize=10)
    axes[2].set_ylabel("share of panels", fontsize=10)
    axes[2].tick_params(labelsize=9)
    axes[2].set_title(f"label SSA:\n{share[4:].sum():.0%} of panels", fontsize=10)
    rule = f"distortion of the worst crypt {worst:.2f}, SSA from {UNEQUIVOCAL}"
    figure.supxlabel(f"by the rule: {CLASS_NAMES[diagnose([worst])]} ({rule})", fontsize=11)
    return figure


class TissueExplorer(Explorer):
    """The tissue generator's parameters as sliders; the same seed keeps the same crypts.

    names: fields of TissueParameters, a slider each; more: controls below them.
    """

    def __init__(
        self, names: Sequence[str], seed: int = 0, more: Sequence[widgets.Widget] = ()
    ) -> None:
        parameters = {f.name: f for f in fields(TissueParameters)}
        self.sliders = {}
        for name in names:
            (low, high), value = parameters[name].metadata["bounds"], parameters[name].default
            self.sliders[name] = slider(name.replace("_", " "), value, low, high)
        self.seed = number("which tile", seed)
        super().__init__([*self.sliders.values(), self.seed, *more])

    def parameters(self) -> TissueParameters:
        """What the sliders say."""
        return TissueParameters(**{name: slider.value for name, slider in self.sliders.items()})

    def figure(self) -> Figure:
        """Draw the tile of the sliders."""
        return tissue_figure(self.parameters(), self.seed.value)
