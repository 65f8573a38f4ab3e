"""Tissue, prediction and map that follow the tissue's parameters (lesson 06)."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from crc_helpers.explorers.base import choice
from crc_helpers.explorers.heat import explain, explanation_figure, layer_choice
from crc_helpers.explorers.tissue import TissueExplorer
from crc_helpers.models import Classifier
from crc_helpers.tissue.parameters import CLASS_NAMES, TissueParameters, diagnose, distortion
from crc_helpers.tissue.slide import draw


def live_figure(
    model: Classifier,
    size: int,
    parameters: TissueParameters,
    seed: int,
    target: int = 1,
    layer: str | None = None,
) -> Figure:
    """Draw a tile of these parameters, and what a network makes of it; HP is class 0, SSA 1."""
    drawing, worst = draw(parameters, seed), distortion(parameters)
    title = f"by the rule: {CLASS_NAMES[diagnose([worst])]}\n(distortion {worst:.2f})"
    heat = explain(model, drawing.image, size, target, layer)
    return explanation_figure(heat, CLASS_NAMES, title, drawing.diagnostic, "diagnostic region")


class LiveExplorer(TissueExplorer):
    """Turn the tissue's parameters and watch prediction and map follow; HP is class 0, SSA 1.

    models: name to network, in evaluation mode; size: their input side in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], size: int, names: Sequence[str], seed: int = 0
    ) -> None:
        self.models, self.size = models, size
        first = next(iter(models.values()))
        self.model = choice("network", list(models))
        self.target = choice("class explained", {n: c for c, n in enumerate(CLASS_NAMES)}, 1)
        self.layer = layer_choice(first, size)
        super().__init__(names, seed, [self.model, self.target, self.layer])

    def figure(self) -> Figure:
        """Draw what the network makes of the tile of the sliders."""
        where = self.parameters(), self.seed.value, self.target.value, self.layer.value
        return live_figure(self.models[self.model.value], self.size, *where)
