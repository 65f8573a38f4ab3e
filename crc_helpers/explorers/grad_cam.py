"""Heat maps of any tile, or of a picture of your own, as under a microscope (lesson 06)."""

from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure

from crc_helpers.augmentation import shrink
from crc_helpers.data import Tiles
from crc_helpers.explanations import MANY_PASSES, cascade
from crc_helpers.explorers import heat as maps
from crc_helpers.explorers.base import Explorer, choice, named, slider
from crc_helpers.explorers.chooser import TileChooser
from crc_helpers.fine_tuning import predict
from crc_helpers.models import Classifier

RANDOM, ELSEWHERE = "random weights", "another tile's map"
BLIND = "centre", "haematoxylin", "edges"


class Question(NamedTuple):
    """What is to be explained of a tile, and how: a value of each control of that name."""

    model: str
    target: int
    layer: str
    method: str
    control: str = ""  # RANDOM, ELSEWHERE or of BLIND: what a map has to beat, in its place


class GradCamExplorer(Explorer):
    """A heat map of a tile, or of a picture of your own, as you like to see it.

    models: name to network, in evaluation mode; indices: rows of `tiles` to choose from; size:
    input side of the networks in pixels.
    """

    def __init__(
        self, models: dict[str, Classifier], tiles: Tiles, indices: np.ndarray, size: int
    ) -> None:
        self.models, self.tiles, self.size = models, tiles, size
        self.chooser = TileChooser(tiles, indices, lambda: self.probabilities(self.model.value))
        # Answers are kept: most controls only change how one looks.
        self.probabilities, self.network = lru_cache(self._probabilities), lru_cache(self._network)
        self.heat, self.highest = lru_cache(8)(self._heat), lru_cache(self._highest)
        self._make_controls()
        self.stage = self.chooser.filter, self.chooser.tile, self.model, self.target
        self.folded = {
            "How the map is made": (self.method, self.layer),
            "How it is drawn": (self.scale, self.raw, self.threshold, self.opacity),
            "Compare with": (self.beside,),
            "Cover a place": self.cover,
            "Pictures of your own": (self.chooser.upload, self.chooser.mpp),
        }
        super().__init__([*self.stage, *(c for held in self.folded.values() for c in held)])
        self.picture.answers = "drag"
        self.picture.observe(lambda c: self._attempt(partial(self._cover, *c["new"])), "point")

    def _make_controls(self) -> None:
        first, names = next(iter(self.models.values())), self.tiles.class_names
        self.model = choice("network", list(self.models))
        self.target = choice("class explained", {name: c for c, name in enumerate(names)}, 1)
        self.layer = maps.layer_choice(first, self.size)
        self.method = choice("method", list(maps.METHODS))
        self.asked = self.model, self.target, self.layer, self.method  # in the order of Question
        others = [(f"control: {n}", ("control", n)) for n in (*BLIND, ELSEWHERE, RANDOM)] + [
            (f"{control.description}: {label}", (field, value))
            for field, control in zip(Question._fields, self.asked, strict=False)
            for label, value in control.options
        ]
        self.beside = choice("compare with", [("nothing", ()), *others])
        self.scale = choice("colours", ["own maximum", "same for all"])
        self.raw = widgets.Checkbox(value=False, **named("raw cells"))
        self.threshold = slider("boxes at", 0.5, 0.1, 0.9)
        self.opacity = slider("opacity", 0.55, 0, 1)
        places = [slider(f"cover: {name}", 0.5, 0, 1) for name in ("across", "down")]
        self.cover = [slider("cover: side", 0, 0, 0.6), *places]
        for place in places:  # of a square that may not be there
            widgets.dlink((self.cover[0], "value"), (place, "disabled"), lambda side: side == 0)
        link = (self.method, "value"), (self.layer, "disabled")
        widgets.dlink(*link, MANY_PASSES.__contains__)  # these need no layer

    def prepare(self, control: widgets.Widget) -> str:
        """Let the chooser offer what a control asks for; return its words on that."""
        chooser = self.chooser
        if control in (chooser.upload, chooser.mpp):
            self.heat.cache_clear()  # other pictures take the place of the first
            chooser.take_uploads(*[chooser.tile.value] * (control is chooser.mpp))
        # Another network is wrong elsewhere.
        return chooser.offer() if control in (chooser.filter, self.model) else ""

    def _cover(self, x: float, y: float) -> None:
        """Put the square where the picture was pointed at; take it away for a place beside it."""
        side, across, down = self.cover
        for left, bottom, width, height in maps.places(1 + len(self.questions())):
            at = (x - left) / width, 1 - (1 - y - bottom) / height
            if 0 <= min(at) <= max(at) <= 1:
                across.value, down.value, side.value = *at, side.value or 0.24
                return
        side.value = 0

    def _probabilities(self, model: str) -> np.ndarray:
        """What a network says of all tiles there are to choose from, float (N, C)."""
        network, images = self.models[model], self.tiles.images[self.chooser.indices]
        fabric = Fabric(accelerator=next(network.parameters()).device.type, devices=1)
        return predict(network, images, self.size, fabric)

    def _network(self, model: str, control: str) -> Classifier:
        """A network by its name; for one of the controls, one alike with random weights."""
        if control != RANDOM:
            return self.models[model]
        with torch.random.fork_rng():
            return list(cascade(self.models[model]))[-1][1]

    def _heat(self, question: Question, tile: int, cover: tuple) -> maps.Heat:
        """The map that answers a question about a tile; tile: its row, or that of an upload."""
        model, target, layer, method, control = question
        if control in BLIND:
            found = self.heat(question._replace(control=""), tile, cover)
            return maps.control_heat(found, control, self.size)
        image, asked, square = self.chooser.image(tile), tile, cover
        if control == ELSEWHERE:  # half of all tiles further on, most often of another slide
            rows, square = self.chooser.indices, (0, 0, 0)
            asked = rows[(np.argmax(rows == tile) + len(rows) // 2) % len(rows)]
        how = self.size, target, layer, square, method
        found = maps.explain(self.network(model, control), self.chooser.image(asked), *how)
        found = replace(found, source=f"{control or model}\n{found.source}")
        if control == ELSEWHERE:
            found = replace(found, image=maps.paint_over(image, cover), probabilities=None)
        return found

    def _highest(self, question: Question, offered: tuple[int, ...]) -> float:
        """The highest value of the maps of the tiles offered."""
        model, target, layer, method, control = question
        network, images = self.network(model, control), self.tiles.images[list(offered)]
        inputs = torch.from_numpy(images).to(next(network.parameters()).device)
        targets = torch.full((len(images),), target, device=inputs.device)
        return float(maps.METHODS[method](network, shrink(inputs, self.size), targets, layer).max())

    def questions(self) -> list[Question]:
        """What is answered in the picture: one question, or two that differ in one thing."""
        question, other = Question(*(c.value for c in self.asked)), self.beside.value
        return [question, question._replace(**dict([other]))] if other else [question]

    def answer(self, question: Question) -> maps.Heat:
        """The map of the tile chosen, with the square of the sliders."""
        side, across, down = (control.value for control in self.cover)
        return self.heat(question, self.chooser.tile.value, (across, down, side))

    def top(self) -> float | None:
        """End of the colour scale: the highest value of all that is shown or in the strip, or None.

        One end for both maps, if both are of this tile's score: on scales of their own, noise and
        evidence would look alike.
        """
        if self.scale.value == "own maximum":
            return None
        offered = tuple(self.chooser.offered)
        scored = [q for q in self.questions() if q.control in ("", RANDOM)]
        shown = [float(self.answer(question).cells.max()) for question in scored]
        return max(*shown, *(self.highest(question, offered) for question in scored))

    def figure(self) -> Figure:
        """Draw the explanation, and what it is compared with beside it."""
        self.chooser.draw_strip()
        _, mask, title = self.chooser.chosen()
        look = maps.Look(self.threshold.value, self.opacity.value, self.raw.value, self.top())
        heat, *beside = map(self.answer, self.questions())
        given = self.tiles.class_names, title, mask, self.tiles.mask_name, look
        return maps.explanation_figure(heat, *given, *beside)

    def arranged(self) -> widgets.Widget:
        """The strip and the first choices, the picture, and the rest folded below it."""
        for control in self.stage:
            control.layout.width, control.style.description_width = "340px", "110px"
        stage = [self.chooser.strip, widgets.VBox(self.stage)]
        folded = [  # each by itself: one may want two open
            widgets.Accordion([widgets.VBox(held)], titles=(title,), selected_index=None)
            for title, held in self.folded.items()
        ]
        hint = "Click a thumbnail to choose it, the picture to cover a place, beside it to uncover."
        rows = [widgets.HBox(stage, layout={"flex_flow": "row wrap"}), widgets.Label(hint)]
        return widgets.VBox([*rows, self.picture, self.message, self.link, *folded])
