"""What explorers share: controls over a pure function that draws, and one picture of it."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial

import cv2
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crc_helpers.data import Tiles
from crc_helpers.explorers.pointer import PointedImage

WIDTH = 8.0  # inches of a figure: at 100 dots an inch it fits beside JupyterLab's list of files
THIRDS = [(left, 0.14, 0.324, 0.72) for left in (0.004, 0.338, 0.672)]  # for three pictures
SHOWN: dict[str, tuple[str, list["Explorer"]]] = {}  # id of a cell: its last run, and what it shows


def fixed_axes(
    height: float, places: Sequence[tuple[float, float, float, float]]
) -> tuple[Figure, list[Axes]]:
    """A figure, `height` inches high, with axes at places: left, bottom, width, height, as shares.

    Nothing jumps when a number gains a digit, and there is no layout to solve at every move of a
    slider, which took half of its time.
    """
    figure = plt.figure(figsize=(WIDTH, height), layout="none")
    return figure, [figure.add_axes(place) for place in places]


def as_png(figures: Iterable[Figure]) -> bytes:
    """Turn figures of one width into one PNG, below each other; each is closed before the next."""
    pictures = []
    for figure in figures:
        try:
            figure.set_dpi(100)
            canvas = FigureCanvasAgg(figure)  # whatever matplotlib's backend is
            canvas.draw()
            pictures.append(np.asarray(canvas.buffer_rgba())[..., 2::-1])  # OpenCV has BGR
        finally:
            plt.close(figure)  # or every move of a slider leaves a figure in memory
    return cv2.imencode(".png", np.concatenate(pictures))[1].tobytes()  # twice as fast as Pillow's


def words_of(figure: Figure) -> str:
    """Return what a figure says of itself: titles and notes, for those who cannot see it."""
    texts = [*(ax.title for ax in figure.axes), *figure.texts]
    return "; ".join(" ".join(t.get_text().split()) for t in texts if t.get_text())


def running_cell() -> tuple[str, str] | None:
    """Return the ids of the running cell and of its run; None outside a notebook."""
    parent = getattr(get_ipython(), "get_parent", dict)()
    cell = parent.get("metadata", {}).get("cellId")
    return (cell, parent["header"]["msg_id"]) if cell else None


def close(widget: widgets.Widget) -> None:
    """Close a widget, its children, its layout and its style."""
    looks = (getattr(widget, name, None) for name in ("layout", "style"))
    for held in (*getattr(widget, "children", ()), *filter(None, looks)):
        close(held)
    widget.close()


class Explorer:
    """Controls over a pure function that draws a figure: one picture, updated in place.

    A subclass makes `controls` and says in `figure` what they show. An error while drawing stands
    in the explorer as a sentence, the picture before it stays, and the controls go on working; but
    what cannot be drawn even once raises, or a lesson could be broken without anyone being told.
    """

    def __init__(self, controls: list[widgets.Widget]) -> None:
        self.controls, self.busy = controls, False
        self.picture = PointedImage(answers="")
        self.message, self.link = widgets.Label(layout={"min_height": "28px"}), widgets.HTML()
        for control in controls:
            control.observe(self._redraw, names="value")
        self._draw()

    def figure(self) -> Figure:
        """Draw the figure that the controls ask for."""
        raise NotImplementedError

    def pages(self) -> Iterable[Figure]:
        """Yield the figures to show, from top to bottom."""
        yield self.figure()

    def prepare(self, control: widgets.Widget) -> str:
        """Do what a change of a control asks for, but drawing; return words on it, or none."""
        return ""

    def _draw(self) -> None:
        said: list[str] = []
        picture = as_png(said.append(words_of(figure)) or figure for figure in self.pages())
        self.picture.value, self.picture.alt = picture, "; ".join(said)
        # The picture itself is in the link: saved by the browser, nothing written here.
        address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        self.link.value = f'<a download="{type(self).__name__}.png" href="{address}">save</a>'

    def _redraw(self, change: dict) -> None:
        self._attempt(partial(self.prepare, change["owner"]))

    def _attempt(self, act: Callable[[], str | None]) -> None:
        """Act and draw once, whatever other controls that moves; a sentence where it fails."""
        if self.busy:
            return
        self.busy, self.message.value = True, "drawing …"
        try:
            words = act()
            self._draw()
            self.message.value = words or ""
        except Exception as error:
            self.message.value = f"Not drawn: {error}"
        finally:
            self.busy = False

    def show(self) -> widgets.Widget:
        """Return the widget, for the last line of a cell; what an earlier run showed is closed."""
        if cell := running_cell():
            run, shown = SHOWN.get(cell[0], ("", []))
            if run != cell[1]:
                for old in shown:
                    if old is not self:
                        old.close()
                shown = []
            SHOWN[cell[0]] = cell[1], [*shown, self]
        return self.whole

    @cached_property
    def whole(self) -> widgets.Widget:
        """The widget of controls and picture, built once."""
        return self.arranged()

    def close(self) -> None:
        """Let go of all widgets; ipywidgets keeps the others, with networks and tiles, for ever."""
        close(self.whole)
        self.whole.children = ()  # the box itself stays in IPython's list of outputs

    def arranged(self) -> widgets.Widget:
        """The controls in two columns, over the picture."""
        half = -(-len(self.controls) // 2)
        columns = [widgets.VBox(self.controls[:half]), widgets.VBox(self.controls[half:])]
        rows = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        return widgets.VBox([rows, self.message, self.picture, self.link])


def named(description: str) -> dict:
    """Style and width of a control with its name to the left."""
    style = {"description_width": "140px"}
    return {"description": description, "style": style, "layout": {"width": "400px"}}


def choice(description: str, options: Iterable, value: object = None) -> widgets.Dropdown:
    """A list to choose from: names, pairs of name and value, or values by name."""
    options = list(options.items() if isinstance(options, Mapping) else options)
    options = [o if isinstance(o, tuple) else (o, o) for o in options]
    value = options[0][1] if value is None else value
    return widgets.Dropdown(options=options, value=value, **named(description))


def slider(
    description: str, value: float, low: float, high: float, steps: int = 50
) -> widgets.FloatSlider:
    """A slider that reports when it is let go."""
    look = {"continuous_update": False, "readout_format": ".2f", **named(description)}
    step = (high - low) / steps
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, **look)


def number(description: str, value: int) -> widgets.BoundedIntText:
    """A field for a whole number from 0 to 9999."""
    return widgets.BoundedIntText(value=value, min=0, max=9999, **named(description))


def tile_options(tiles: Tiles, indices: np.ndarray, first: int = 1) -> list[tuple[str, int]]:
    """Number, counted from `first`, class and id of tiles, for a list to choose from."""
    numbered = enumerate(indices, first)
    return [(f"{k}: {label(tiles, i)}, {tiles.ids[i]}", int(i)) for k, i in numbered]


def label(tiles: Tiles, i: int) -> str:
    """The class of a tile, in words."""
    return tiles.class_names[tiles.labels[i]] if tiles.labels[i] >= 0 else "no label"


def shortened(text: str, n: int) -> str:
    """A text of at most n characters."""
    return text if len(text) <= n else f"{text[: n - 1]}…"
