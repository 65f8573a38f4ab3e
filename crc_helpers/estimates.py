"""Plots of numbers with their intervals, or with the seeds that they come from."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crc_helpers import style

Names = Sequence[str]
Rows = Sequence[tuple[str, float, float, float]]  # name, value, low and high end of its interval


def intervals(
    rows: Rows, xlabel: str, landmark: float | None = None, landmark_name: str = "chance"
) -> Figure:
    """Draw (name, value, low, high) rows as points with their intervals, in numbers beside them."""
    figure, ax = plt.subplots(figsize=(8.5, 0.7 + 0.42 * len(rows)))
    draw_intervals(ax, rows, (landmark, landmark_name), "{:.3f} [{:.3f}, {:.3f}]")
    ax.set_xlabel(xlabel)
    return figure


def interval_panels(
    panels: dict[str, Rows], marks: dict | None = None, controls=(), width=3.3, shares: Names = ()
) -> Figure:
    """Draw several scores of the same things side by side, a panel of rows as `intervals` has each.

    marks: a panel's value and name of chance; controls: names of rows drawn as squares; shares:
    panels whose quantity lies from 0 to 1, where the intervals end.
    """
    size = width * len(panels) + 1.9, 0.95 + 0.34 * max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        if title in shares:
            rows = [(name, value, *np.clip(ends, 0, 1)) for name, value, *ends in rows]
        draw_intervals(ax, rows, (marks or {}).get(title, (None, "")), "{:z.2f}", controls)
        ax.set_title(style.drawable(title), fontsize=11)
    return figure


def seed_panels(panels: dict[str, pd.DataFrame], marks: dict | None = None, width=3.6) -> Figure:
    """Draw a dot for each seed and a bar at their mean, a panel for each score, on common rows.

    panels: by title, a row of values for each name and a column for each seed, NaN where there is
    none. marks: a panel's value and name of chance; panels that all have the same share their axis.
    """
    names, marks = list(next(iter(panels.values())).index), marks or {}
    same = len(marks) == len(panels) and len(set(marks.values())) == 1
    size = width * len(panels) + 1.9, 0.95 + 0.34 * len(names)
    shared = {"sharex": same, "sharey": True}
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, **shared)
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        for y, (name, values) in enumerate(table.iterrows()):
            colour, mean = style.named_colour(name) or style.VALUE, values.mean()
            ax.plot(values, np.full(len(values), y), "o", color=colour, markersize=5, alpha=0.5)
            ax.plot(mean, y, "|", color=colour, markersize=17, markeredgewidth=2.5)
            place = {"xy": (1.01, y), "xycoords": ("axes fraction", "data"), "va": "center"}
            ax.annotate(f"{mean:z.2f}", fontsize=10, color=colour, **place)
        _landmark(ax, marks.get(title, (None, "")), names)
        ax.set_title(style.drawable(title), fontsize=11)
    return figure


def draw_intervals(
    ax: Axes, rows: Rows, mark: tuple[float | None, str], numbers: str, controls: Names = ()
) -> None:
    """Draw rows as points with intervals; numbers: a format of value, low and high beside them."""
    for y, (name, value, low, high) in enumerate(rows):
        colour, shape = (style.CONTROLS[0], "s") if name in controls else (style.VALUE, "o")
        colour = style.named_colour(name) or colour
        ax.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
        ax.plot(value, y, shape, color=colour, markersize=6.5)
        text = "none" if np.isnan(value) else numbers.format(value, low, high)
        place = {"xy": (1.01, y), "xycoords": ("axes fraction", "data"), "va": "center"}
        ax.annotate(text, fontsize=10, color=colour, **place)
    _landmark(ax, mark, [row[0] for row in rows])


def _landmark(ax: Axes, mark: tuple[float | None, str], names: Names) -> None:
    """Draw a line at `mark`, a value and its name, and write the names of the rows."""
    if mark[0] is not None:
        ax.axvline(mark[0], **style.CHANCE)
        ax.text(mark[0], len(names) - 0.45, f" {mark[1]}", va="bottom", color="0.35", fontsize=9)
    words = [style.drawable(name) for name in names]
    ax.set(yticks=range(len(names)), yticklabels=words, ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(labelsize=10)
    ax.grid(axis="x", color="0.9")


def curve_panels(
    panels: dict[str, dict[str, np.ndarray]],
    x: Sequence,
    labels: Names,
    controls: Names = (),
    apart=0,
    seeds=False,
) -> Figure:
    """Draw curves by name over x (S,), a panel a title.

    A curve is value, low and high (3, S), drawn with a band; or with `seeds` a row a seed (n, S),
    drawn as its mean and the seeds as faint lines. labels: of the axes; controls: drawn in grey;
    apart: how many of the last points are landmarks of their own.
    """
    rows, end = -(-len(panels) // 2), len(x) - apart
    figure, axes = plt.subplots(rows, 2, figsize=(11.6, 3.3 * rows), squeeze=False, sharey="row")
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        inks = dict(zip(controls, style.CONTROLS, strict=False))
        inks |= style.colours([name for name in curves if name not in controls])
        for name, curve in curves.items():
            value = np.nanmean(curve, axis=0) if seeds else curve[0]
            look = {"color": inks[name], "linestyle": ":" if name in controls else "-"}
            ax.plot(x[:end], value[:end], marker="o", markersize=4, label=name, **look)
            if seeds:
                ax.plot(x[:end], curve[:, :end].T, linewidth=0.8, alpha=0.3, **look)
            else:
                ax.fill_between(
                    x[:end], *curve[1:, :end], color=inks[name], alpha=0.13, linewidth=0
                )
            ax.plot(x[end:], value[end:], "D", color=inks[name], markersize=7)
        ax.set(title=style.drawable(title), xlabel=labels[0], ylabel=labels[1])
        ax.label_outer()
        ax.legend(frameon=False, fontsize=9)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    return figure
