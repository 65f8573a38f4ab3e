"""Read tiles blind, then with the network's heat map, then with the truth (lesson 06)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from crc_helpers.data import Tiles
from crc_helpers.evaluation import wilson_interval
from crc_helpers.explorers.base import as_png, label
from crc_helpers.explorers.heat import explain
from crc_helpers.explorers.pointer import PointedImage
from crc_helpers.figures import overlay, show_tile
from crc_helpers.models import Classifier
from crc_helpers.runs import save_table
from crc_helpers.style import BOX

UNSURE = "unsure"
COLUMNS = ("tile", "before", "x", "y", "after", "network", "p", "truth", "votes", "seconds")


def reading_table(rows: pd.DataFrame, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Return how often readings agree with the truth, the network and the seven readers.

    rows: of COLUMNS; class_names: two. A row a question, with n, the share and its Wilson interval,
    which takes tiles as independent. "Unsure" agrees with nobody. The majority of seven is left out
    where tiles have no votes.
    """
    truth, network = rows["truth"], rows["network"]
    agree = {}
    for when, words in (("before", "before the map"), ("after", "after the map")):
        agree[f"you and the truth, {words}"] = rows[when] == truth
        agree[f"you and the network, {words}"] = rows[when] == network
        if (rows["votes"] >= 0).all():
            majority = np.where(rows["votes"] > 3, class_names[1], class_names[0])
            agree[f"you and most of seven readers, {words}"] = rows[when] == majority
    agree["the network and the truth"] = network == truth
    right, still = rows["before"] == truth, rows["after"] == truth
    agree["the map helped (wrong or unsure, then right)"] = ~right & still
    agree["the map misled (right, then wrong or unsure)"] = right & ~still
    table = {}
    for name, hits in agree.items():
        low, high = wilson_interval(int(hits.sum()), len(hits))
        table[name] = {"n": len(hits), "share": hits.mean(), "low": low, "high": high}
    return pd.DataFrame(table).T


@dataclass
class Reading:
    """The answers of one reader, on disk after each tile; a second start goes on with the next.

    tiles: with labels; order: rows of `tiles` in the order in which they are read; file: CSV.
    """

    tiles: Tiles
    order: np.ndarray
    file: Path
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.is_file():
            self.rows = pd.read_csv(self.file, dtype={"tile": str}).to_dict("records")
            unknown = {row["tile"] for row in self.rows} - set(self.tiles.ids[self.order])
            if unknown:
                raise ValueError(
                    f"{self.file} holds readings of other tiles ({min(unknown)}): give another file"
                )

    @property
    def current(self) -> int | None:
        """Row of the tile to read next; None after the last."""
        read = {row["tile"] for row in self.rows}
        return next((int(i) for i in self.order if self.tiles.ids[i] not in read), None)

    def add(self, **answers: object) -> None:
        """Write down the answers on the current tile."""
        i = self.current
        votes = -1 if self.tiles.votes is None else int(self.tiles.votes[i])
        facts = {"tile": str(self.tiles.ids[i]), "truth": label(self.tiles, i), "votes": votes}
        self.rows.append({name: (facts | answers)[name] for name in COLUMNS})
        save_table(self.file, self.rows)


def reading_figure(
    image: np.ndarray, point: list[float], heat: np.ndarray | None, mask: np.ndarray | None
) -> Figure:
    """Draw a tile (3, H, W), the place pointed at, and, if given, its map and region (H, W)."""
    figure, ax = plt.subplots(figsize=(4.2, 4.2), layout="none")
    ax.set_position((0, 0, 1, 1))
    if heat is None:
        show_tile(ax, image)
    else:
        overlay(ax, image, heat, float(heat.max()), mask=mask)
    if point:
        side = image.shape[-1]
        ax.plot(point[0] * side, point[1] * side, "+", color=BOX, markersize=22, markeredgewidth=3)
    return figure


class ReadingRoom:
    """Each tile in three steps: alone; with the network's answer and map; with the truth.

    model: a classifier of the tiles' two classes; indices: rows of `tiles`, read in an order that
    `seed` shuffles; size: input side of the network in pixels; file: CSV for the answers.
    """

    def __init__(
        self,
        model: Classifier,
        tiles: Tiles,
        indices: np.ndarray,
        size: int,
        file: Path,
        seed: int = 0,
    ) -> None:
        order = np.random.default_rng(seed).permutation(indices)
        self.model, self.tiles, self.size = model, tiles, size
        self.reading = Reading(tiles, order, file)
        self.picture, self.map = PointedImage(), widgets.Image(format="png")
        self.words, self.tally = widgets.HTML(), widgets.HTML()
        self.votes = [self._button(name, self.vote) for name in (*tiles.class_names, UNSURE)]
        self.next = self._button("next tile", lambda _: self.begin())
        self.picture.observe(lambda change: self.point_at(change["new"]), names="point")
        self.begin()

    def _button(self, name: str, act: Callable[[str], None]) -> widgets.Button:
        button = widgets.Button(description=name, layout={"width": "140px"})
        button.on_click(lambda _: act(name))
        return button

    def begin(self) -> None:
        """Show the next tile without anything else."""
        self.tile, self.answers, self.heat, self.start = self.reading.current, {}, None, time.time()
        self.step, self.point = "done" if self.tile is None else "before", []
        self.picture.point = []
        self.draw()

    def vote(self, name: str) -> None:
        """Take a vote: the first brings the map, the second the truth."""
        self.answers[self.step] = name
        if self.step == "before":
            self.answers["seconds"] = round(time.time() - self.start, 1)
            self.answers |= zip("xy", self.point or (np.nan, np.nan), strict=True)
            self.ask_network()
            self.step = "after"
        else:
            self.reading.add(**self.answers)
            self.step = "truth"
        self.draw()

    def ask_network(self) -> None:
        """Get the network's class, its probability and the map for that class."""
        image = np.array(self.tiles.images[self.tile])
        p = explain(self.model, image, self.size, 0).probabilities
        called = int(p.argmax())
        self.answers |= {"network": self.tiles.class_names[called], "p": round(float(p[called]), 4)}
        self.heat = explain(self.model, image, self.size, called).smooth

    def point_at(self, point: list[float]) -> None:
        """Mark the place pointed at; what was answered before the map stays."""
        if self.step == "before" and point:
            self.point = point
            self.draw()

    def draw(self) -> None:
        """Show what belongs to the step, and nothing that comes later."""
        for button in self.votes:
            button.disabled = self.step not in ("before", "after")
        self.next.disabled = self.step != "truth"
        read, total, words = len(self.reading.rows), len(self.reading.order), self.sentence()
        self.words.value = f"<b>{read} of {total} tiles read.</b> {words}"
        self.picture.alt = words
        if self.step != "done":
            image, mask = np.array(self.tiles.images[self.tile]), None
            if self.step == "truth" and self.tiles.masks is not None:
                mask = self.tiles.masks[self.tile]
            self.picture.value = as_png([reading_figure(image, self.point, None, mask)])
            if self.heat is not None:
                self.map.value = as_png([reading_figure(image, self.point, self.heat, mask)])
            self.map.layout.visibility = "hidden" if self.heat is None else "visible"
        if self.step in ("truth", "done") and read:
            table = reading_table(pd.DataFrame(self.reading.rows), self.tiles.class_names)
            self.tally.value = table.round(2).astype({"n": int}).to_html(border=0, justify="left")

    def sentence(self) -> str:
        """Return what to do now, in words."""
        names, step = self.tiles.class_names, self.step
        if step == "done":
            return f"The answers are in {self.reading.file}."
        if step == "before":
            return "A tile without truth or heat map. Click the place that decides, then vote."
        network = "The network says {network}, p = {p:.2f}; its map is shown.".format(
            **self.answers
        )
        if step == "after":
            return f"{network} Vote again: the same, or another answer."
        votes = "" if self.tiles.votes is None else f" {self.tiles.votes[self.tile]} of 7 readers"
        votes += f" say {names[1]}." * bool(votes)
        return f"Truth: {label(self.tiles, self.tile)}.{votes} {network}"

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell."""
        wrap = {"layout": {"flex_flow": "row wrap"}}
        buttons = widgets.HBox([*self.votes, self.next], **wrap)
        pictures = widgets.HBox([self.picture, self.map], **wrap)
        return widgets.VBox([self.words, buttons, pictures, self.tally])
