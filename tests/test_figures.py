"""Every plot draws: with any number of classes, with names in any script, and to scale."""

import warnings
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from crc_helpers import figures, style

RNG = np.random.default_rng(0)
TILES, MASKS = RNG.integers(0, 255, (4, 3, 24, 24), np.uint8), np.zeros((4, 24, 24), np.uint8)
MASKS[:, 5:20, 5:20] = 1
HEATS = RNG.random((4, 6, 6)).astype(np.float32)
LABELS, SCORE = np.arange(60) % 2, RNG.random(60)
ROWS = [("one", 0.6, 0.5, 0.7), ("other", np.nan, np.nan, np.nan)]
LOG = pd.DataFrame({"epoch": [0, 1], "loss": [4.0, 3.0], "knn": [0.2, 0.3]})
TUNED = LOG.assign(val_loss=1.0, val_balanced_accuracy=0.6, chosen=[False, True])
CURVE = np.array([[0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.2, 0.3, 0.4]])
LARGE = np.ones((4, 24, 24), np.float32)


def every_plot(a: str, b: str) -> dict:
    """Each plot that a lesson shows, of two classes of these names."""
    names, titles = [a, b], [a, b, a, b]
    _points, groups = RNG.random((60, 2)), np.array([a, b] * 30)
    counts = pd.DataFrame([[3, 2], [1, 1]], ["train", "test"], names)
    curves = {name: np.array(SCORE) for name in names}
    return {
        "tile_grid": lambda: figures.tile_grid(TILES, titles, 2, MASKS),
        "labelled": lambda: figures.labelled(TILES[0], {a: (3, 5), b: (9, 7)}, 1.0),
        "slide": lambda: figures.slide(np.concatenate([*TILES], 2), np.hstack([*MASKS]), titles),
        "explanations": lambda: figures.explanations(
            TILES, LARGE, [[(1, 1, 9, 9)]] * 4, [names] * 4, MASKS
        ),
        "heat_row": lambda: figures.heat_row(TILES[0], {a: HEATS[0], b: HEATS[1]}, MASKS[0]),
        "heat_rows": lambda: figures.heat_rows(TILES, {a: HEATS, b: HEATS}, titles, MASKS),
        "class_and_split": lambda: figures.class_and_split(counts, 3),
        "votes": lambda: figures.votes_histogram(np.arange(8), names, np.arange(1, 9)),
        "colours": lambda: figures.colour_scatter(RNG.random((60, 15)), LABELS, names, groups),
        "similarity": lambda: figures.similarity_matrix(np.eye(4), list("abAB")),
        "loss": lambda: figures.loss_curve({"tissue": LOG}, 4.8, 0.6, classes=6),
        "learning": lambda: figures.learning_curves({"tuned": TUNED, "cut short": LOG}, 0.5),
        "confusion": lambda: figures.confusion(np.eye(2, dtype=int), names, a),
        "roc": lambda: figures.roc_and_precision_recall(LABELS, curves, np.arange(60) // 3),
        "intervals": lambda: figures.intervals([(a, 0.6, 0.5, 0.7)], "accuracy", 0.5),
        "panels": lambda: figures.interval_panels({a: ROWS}, {a: (0.5, "chance")}, ["other"]),
        "curves": lambda: figures.curve_panels({a: {"x": CURVE}}, ["1", "2", "pair"], ("x", "y")),
        "seeds": lambda: figures.curve_panels({a: {"x": CURVE}}, [1, 2, 3], ("x", "y"), seeds=True),
    }


# Machado et al. 2009, doi:10.1109/TVCG.2009.113, severity 1: without red cones, without green ones.
NO_RED = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
NO_GREEN = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]


def seen(colours: list[str], cones: list) -> np.ndarray:
    """CIELAB coordinates (N, 3) of colours as an eye with these cones has them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(
        cones
    )
    linear = linear.clip(0, 1)
    return rgb2lab(
        np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    )


def closest(one: np.ndarray, other: np.ndarray) -> float:
    """The least CIEDE2000 difference between two lists of colours, a colour and itself left out."""
    apart = deltaE_ciede2000(one[:, None], other[None])
    if one is other:
        np.fill_diagonal(apart, np.inf)
    return float(apart.min())


def test_no_two_meanings_share_a_colour_and_each_is_read_without_red_or_green():
    """Ten is a difference that is seen at a glance; of those with red and green gone, seven."""
    f = style
    named = (list(dict.fromkeys(d.values())) for d in (f.ARMS, f.RECIPES, f.METHODS, f.PARTS))
    marks = [f.VALUE, f.CHOSEN, f.REGION, f.BOX]
    meanings = [f.CLASSES, f.SLIDES, f.SPARE, f.CONTROLS, marks, *named]
    for a, b in combinations(meanings, 2):
        assert closest(seen(a, np.eye(3)), seen(b, np.eye(3))) > 10, (a, b)
    arms = ("pre-trained", "from scratch", "probe", "random encoder", "colour only")
    for colours in (*meanings, [*f.CLASSES[:2], *(f.ARMS[name] for name in arms)]):
        for cones in (np.eye(3), NO_RED, NO_GREEN):
            lab = seen(colours, cones)
            assert closest(lab, lab) > 7, colours


def test_an_arm_has_its_colour_in_any_company_and_other_names_have_others():
    names = [
        "pre-trained, 0.001",
        "unheard of",
        "random encoder, probe",
        "from scratch, longer",
        "another",
    ]
    found = figures.colours(names)
    assert found[names[0]] == style.ARMS["pre-trained"] == figures.colours(names[::-1])[names[0]]
    assert found["random encoder, probe"] == style.ARMS["random encoder"]
    assert found["from scratch, longer"] == style.ARMS["from scratch"]
    assert len(set(found.values())) == 5 and {found["unheard of"], found["another"]} < {
        *style.SPARE
    }
    assert len(set(figures.colours([f"unheard of {k}" for k in range(12)]).values())) == 12


def test_seeds_are_drawn_themselves_and_a_share_ends_at_one():
    figure = figures.curve_panels({"a": {"x": CURVE}}, [1, 2, 3], ("x", "y"), seeds=True)
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert not figure.axes[0].collections  # no band
    np.testing.assert_allclose(drawn, [CURVE.mean(axis=0), *CURVE])
    wide = {"share": [("one", 0.9, 0.7, 1.1)], "gain": [("one", 0.0, -0.1, 0.1)]}
    figure = figures.interval_panels(wide, shares=["share"])
    ends = [ax.lines[0].get_xdata().tolist() for ax in figure.axes]
    assert ends == [[0.7, 1.0], [-0.1, 0.1]]


@pytest.fixture(autouse=True)
def as_in_lessons():
    with plt.rc_context():
        figures.set_style()
        yield
    plt.close("all")


@pytest.mark.parametrize("kind", every_plot("HP", "SSA"))
def test_every_plot_draws_names_in_any_script(kind, monkeypatch):
    """Latin letters as they are; what no font here has as numbers, without a warning of its own."""
    monkeypatch.setattr(style, "font_with", lambda c: "DejaVu Sans" if c < "\u2e80" else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # a box is drawn
        every_plot("HP", "腺瘤 $x^{")[kind]().canvas.draw()


def test_a_font_that_has_a_name_is_used_and_a_missing_one_is_said(monkeypatch):
    """Escaped where none has it; `tau` stays: DejaVu is on every machine that has matplotlib."""
    known = font_manager.fontManager.ttflist
    no_asian = [font for font in known if "CJK" not in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", no_asian)
    style.font_with.cache_clear()
    with pytest.warns(UserWarning, match="no font here has 腺"):
        assert style.drawable("τ 腺\x1b\n") == "τ \\u817a\\x1b\n"
    style.font_with.cache_clear()
    symbol = chr(0x1D49C)  # not in DejaVu Sans, but in a font that matplotlib brings
    assert style.drawable(symbol) == symbol and len(plt.rcParams["font.family"]) > 1
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
    ax = plt.figure().subplots()
    figures.scatter(ax, RNG.random((18, 2)), np.arange(18) % 9, names, "network")
    colours = [tuple(dots.get_facecolor()[0]) for dots in ax.collections]
    assert len(colours) == len(set(colours)) == 9
    features = RNG.random((12, 15))
    features[:, 3] = 1.0  # all tiles show some glass
    figure = figures.colour_scatter(features, np.arange(12) % 2, ("HP", "SSA"))
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    assert points.shape == (12, 2) and np.isfinite(points).all()
