"""Every plot draws: with any number of classes, with names in any script, and to scale."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

from crc_helpers import figures

RNG = np.random.default_rng(0)
TILES, MASKS = RNG.integers(0, 255, (4, 3, 24, 24), np.uint8), np.zeros((4, 24, 24), np.uint8)
MASKS[:, 5:20, 5:20] = 1
HEATS = RNG.random((4, 6, 6)).astype(np.float32)
LABELS, SCORE = np.arange(60) % 2, RNG.random(60)
ROWS = [("one", 0.6, 0.5, 0.7), ("other", np.nan, np.nan, np.nan)]
LOG = pd.DataFrame({"epoch": [0, 1], "loss": [4.0, 3.0], "knn": [0.2, 0.3]})
TUNED = LOG.assign(val_loss=1.0, val_balanced_accuracy=0.6, chosen=[False, True])
LUCK = pd.DataFrame({"scheme": ["by tile"] * 9, "split": range(9), "accuracy": RNG.random(9)})
CURVE = np.array([[0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4]])
LARGE = np.ones((4, 24, 24), np.float32)


def every_plot(a: str, b: str) -> dict:
    """Each plot that a lesson shows, of two classes of these names."""
    names, titles = [a, b], [a, b, a, b]
    points, groups = RNG.random((60, 2)), np.array([a, b] * 30)
    counts = pd.DataFrame([[3, 2], [1, 1]], ["train", "test"], names)
    curves = {name: np.array(SCORE) for name in names}
    return {
        "tile_grid": lambda: figures.tile_grid(TILES, titles, 2, MASKS),
        "image_rows": lambda: figures.image_rows([TILES[:2], TILES[2:]], names, names),
        "films": lambda: figures.films({a: [(TILES[0], b)], b: [(TILES[1], a)]}),
        "slide": lambda: figures.slide(np.concatenate([*TILES], 2), np.hstack([*MASKS]), titles),
        "explanations": lambda: figures.explanations(
            TILES, LARGE, [[(1, 1, 9, 9)]] * 4, [names] * 4, MASKS
        ),
        "heat_row": lambda: figures.heat_row(TILES[0], {a: HEATS[0], b: HEATS[1]}, MASKS[0]),
        "heat_rows": lambda: figures.heat_rows(TILES, {a: HEATS, b: HEATS}, titles, MASKS),
        "class_and_split": lambda: figures.class_and_split(counts, 3),
        "votes": lambda: figures.votes_histogram(np.arange(8), names, np.arange(1, 9)),
        "colours": lambda: figures.colour_scatter(RNG.random((60, 15)), LABELS, names, groups),
        "maps": lambda: figures.embedding_maps({a: points, b: points, "c": points}, LABELS, names),
        "similarity": lambda: figures.similarity_matrix(np.eye(4), list("abAB")),
        "temperature": lambda: figures.temperature_curves([0.1, 0.7]),
        "loss": lambda: figures.loss_curve({"tissue": LOG}, 4.8, 0.6, classes=6),
        "learning": lambda: figures.learning_curves({"tuned": TUNED, "cut short": LOG}, 0.5),
        "confusion": lambda: figures.confusion(np.eye(2, dtype=int), names, a),
        "roc": lambda: figures.roc_and_precision_recall(LABELS, curves, np.arange(60) // 3),
        "calibration": lambda: figures.calibration(LABELS, SCORE),
        "intervals": lambda: figures.intervals([(a, 0.6, 0.5, 0.7)], "accuracy", 0.5),
        "panels": lambda: figures.interval_panels({a: ROWS}, {a: (0.5, "chance")}, ["other"]),
        "luck": lambda: figures.split_luck(LUCK),
        "curves": lambda: figures.curve_panels({a: {"x": CURVE}}, ["1", "2", "pair"], "x", "y"),
    }


@pytest.fixture(autouse=True)
def as_in_lessons():
    with plt.rc_context():
        figures.set_style()
        yield
    plt.close("all")


@pytest.mark.parametrize("kind", every_plot("HP", "SSA"))
def test_every_plot_draws_names_in_any_script(kind, monkeypatch):
    """Latin letters as they are; what no font here has as numbers, without a warning of its own."""
    monkeypatch.setattr(figures, "font_with", lambda c: "DejaVu Sans" if c < "\u2e80" else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # a box is drawn
        every_plot("HP", "腺瘤 $x^{")[kind]().canvas.draw()


def test_a_font_that_has_a_name_is_used_and_a_missing_one_is_said(monkeypatch):
    """Escaped where none has it; `tau` stays: DejaVu is on every machine that has matplotlib."""
    known = font_manager.fontManager.ttflist
    no_asian = [font for font in known if "CJK" not in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", no_asian)
    figures.font_with.cache_clear()
    with pytest.warns(UserWarning, match="no font here has 腺"):
        assert figures.drawable("τ 腺\x1b\n") == "τ \\u817a\\x1b\n"
    figures.font_with.cache_clear()
    symbol = chr(0x1D49C)  # not in DejaVu Sans, but in a font that matplotlib brings
    assert figures.drawable(symbol) == symbol and len(plt.rcParams["font.family"]) > 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        plt.figtext(0.5, 0.5, symbol).figure.canvas.draw()


def test_long_names_of_classes_are_broken_and_leave_room_for_the_tiles():
    title, maps = "truth Adenocarcinoma, said Low-grade IN", {"a": HEATS, "b": HEATS}
    for figure in (
        figures.heat_rows(TILES, maps, [title] * 4),
        figures.tile_grid(TILES, [title] * 4),
        figures.explanations(TILES, LARGE, [[]] * 4, [(title, title)] * 4),
    ):
        figure.canvas.draw()
        first = figure.axes[0]
        room = first.get_window_extent()
        (words,) = (t for t in (*first.texts, first.title) if "truth" in t.get_text())
        text = words.get_window_extent()
        assert room.width / figure.dpi > 1.7 and words.get_text().count("\n") == 1
        assert min(text.width, text.height) < max(text.width, text.height) <= room.width


def test_nine_classes_have_nine_colours_and_colours_that_do_not_vary_are_drawn():
    names = [f"class {k}" for k in range(9)]
    figure = figures.embedding_maps({"network": RNG.random((18, 2))}, np.arange(18) % 9, names)
    colours = [tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections]
    assert len(colours) == len(set(colours)) == 9
    features = RNG.random((12, 15))
    features[:, 3] = 1.0  # all tiles show some glass
    figure = figures.colour_scatter(features, np.arange(12) % 2, ("HP", "SSA"))
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    assert points.shape == (12, 2) and np.isfinite(points).all()
