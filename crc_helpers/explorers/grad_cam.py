"""Grad-CAM on any tile, or on a picture of your own (lesson 06)."""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure

from crc_helpers.augmentation import shrink
from crc_helpers.data import Tiles
from crc_helpers.explorers.base import Explorer, choice, named, slider
from crc_helpers.explorers.chooser import SIDE, STRIP, TileChooser
from crc_helpers.explorers.heat import (
    CAMS,
    Heat,
    Look,
    explain,
    explanation_figure,
    layer_choice,
)
from crc_helpers.fine_tuning import predict
from crc_helpers.models import Classifier


class Question(NamedTuple):
    """What is to be explained of a tile, and how: a value of each control of that name."""

    model: str
    target: int
    layer: str
    method: str


class GradCamExplorer(Explorer):
    """Grad-CAM on a tile, or a picture of your own, as you like to see it.

    models: name to network, in evaluation mode; indices: rows of `tiles` to choose from; size:
    input side of the networks in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], tiles: Tiles, indices: np.ndarray, size: int
    ) -> None:
        self.models, self.tiles, self.size = models, tiles, size
        self.chooser = TileChooser(tiles, indices, lambda: self.probabilities(self.model.value))
        # Answers are kept: most controls only change how one looks.
        self.probabilities = lru_cache(self._probabilities)
        self.heat, self.highest = lru_cache(4)(self._heat), lru_cache(self._highest)
        self._make_controls()
        super().__init__(
            [
                self.chooser.tile,
                self.model,
                self.beside,
                *self.question_controls[1:],
                *self.look,
                *self.cover,
            ]
        )
        self.controls[:1] = [self.chooser.filter, self.chooser.tile, self.chooser.upload]
        acts = {self.chooser.filter: self.chooser.offer, self.chooser.upload: self._take_upload}
        acts[self.model] = self.chooser.offer  # another network is wrong elsewhere
        for control, act in acts.items():
            control.observe(lambda _, act=act: self._attempt(partial(self._choose, act)), "value")

    def _make_controls(self) -> None:
        first, names = next(iter(self.models.values())), self.tiles.class_names
        self.model = choice("network", list(self.models))
        self.target = choice("class explained", {name: c for c, name in enumerate(names)}, 1)
        self.layer = layer_choice(first, self.size)
        self.method = choice("method", list(CAMS))
        self.question_controls = (
            self.model,
            self.target,
            self.layer,
            self.method,
        )  # in the order of Question
        others = [
            (f"{control.description}: {label}", (field, value))
            for field, control in zip(Question._fields, self.question_controls, strict=True)
            for label, value in control.options
        ]
        self.beside = choice("compare with", [("nothing", ()), *others])
        self.scale = choice("colours", ["own maximum", "same for all"])
        self.raw = widgets.Checkbox(value=False, **named("raw cells"))
        self.threshold, self.opacity = (
            slider("boxes at", 0.5, 0.1, 0.9),
            slider("opacity", 0.55, 0, 1),
        )
        self.look = self.scale, self.raw, self.threshold, self.opacity
        places = [slider(f"cover: {name}", 0.5, 0, 1) for name in ("across", "down")]
        self.cover = [slider("cover: side", 0, 0, 0.6), *places]
        for place in places:  # of a square that may not be there
            widgets.dlink((self.cover[0], "value"), (place, "disabled"), lambda side: side == 0)

    def _take_upload(self) -> bool:
        self.heat.cache_clear()  # a second picture takes the place of the first
        return self.chooser.take_upload()

    def _choose(self, act: Callable[[], bool]) -> None:
        """Let the chooser do something, and draw what it offers."""
        before = self.chooser.tile.value
        if act() and self.chooser.tile.value == before:  # else choosing another tile has drawn
            self._draw()

    def _probabilities(self, model: str) -> np.ndarray:
        """What a network says of all tiles there are to choose from, float (N, C)."""
        network, images = self.models[model], self.tiles.images[self.chooser.indices]
        fabric = Fabric(accelerator=next(network.parameters()).device.type, devices=1)
        return predict(network, images, self.size, fabric)

    def _heat(self, question: Question, tile: int, cover: tuple[float, float, float]) -> Heat:
        """The map that answers a question about a tile; tile: its row, or OWN."""
        model, target, layer, method = question
        image = self.chooser.chosen()[0]
        return explain(self.models[model], image, self.size, target, layer, cover, method)

    def _highest(self, question: Question, offered: tuple[int, ...]) -> float:
        """The highest value of the maps of the tiles offered."""
        model, target, layer, method = question
        network, images = self.models[model], torch.from_numpy(self.tiles.images[list(offered)])
        inputs = shrink(images.to(next(network.parameters()).device), self.size)
        targets = torch.full((len(inputs),), target, device=inputs.device)
        return float(CAMS[method](network, inputs, targets, layer).max())

    def questions(self) -> list[Question]:
        """What is answered in the picture: one question, or two that differ in one thing."""
        question = Question(*(control.value for control in self.question_controls))
        other = dict([self.beside.value] if self.beside.value else [])
        return [question, question._replace(**other)] if other else [question]

    def answer(self, question: Question) -> Heat:
        """The map of the tile chosen, with the square of the sliders."""
        side, across, down = (control.value for control in self.cover)
        return self.heat(question, self.chooser.tile.value, (across, down, side))

    def top(self) -> float | None:
        """End of the colour scale: the highest value of all that is shown or in the strip, or None.

        One end for both rows: on scales of their own, noise and evidence would look alike.
        """
        if self.scale.value == "own maximum":
            return None
        offered, questions = tuple(self.chooser.offered), self.questions()
        shown = [float(self.answer(question).cells.max()) for question in questions]
        return max(*shown, *(self.highest(question, offered) for question in questions))

    def pages(self) -> Iterable[Figure]:
        """Draw the explanation, and the one it is compared with below."""
        self.chooser.draw_strip()
        _, mask, title = self.chooser.chosen()
        look = Look(self.threshold.value, self.opacity.value, self.raw.value, self.top())
        for question in self.questions():
            words = f"{title}\n{question.model}"
            region = mask, self.tiles.mask_name
            names = self.tiles.class_names
            yield explanation_figure(self.answer(question), names, words, *region, look)

    def arranged(self) -> widgets.Widget:
        """The strip of tiles, and a button for each, over the controls and the picture."""
        picks = widgets.HBox(self.chooser.picks, layout={"max_width": f"{STRIP * (SIDE + 6)}px"})
        return widgets.VBox([self.chooser.strip, picks, super().arranged()])
