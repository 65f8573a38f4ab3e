"""Figures take as many classes as there are, and arrays as well as lists."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from crc_helpers import figures


def test_nine_classes_have_nine_colours():
    names = [f"class {k}" for k in range(9)]
    points = np.random.default_rng(0).random((18, 2))
    figure = figures.embedding_maps({"network": points}, np.arange(18) % 9, names)
    colours = [tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections]
    plt.close(figure)
    assert len(colours) == len(set(colours)) == 9


def test_tiles_take_their_masks_as_one_array():
    images, masks = np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    masks[:, 2:6, 2:6] = 1
    figure = figures.tile_grid(images, masks=masks)
    outlined = [len(ax.collections) + len(ax.lines) + len(ax.patches) for ax in figure.axes[:2]]
    plt.close(figure)
    assert min(outlined) > 0


def test_long_names_of_classes_are_broken_and_leave_room_for_the_tiles():
    title = "truth Adenocarcinoma, said Low-grade IN"
    tiles, heats = np.zeros((2, 3, 32, 32), np.uint8), np.ones((2, 6, 6), np.float32)
    large, boxes = np.ones((2, 32, 32), np.float32), [[], []]
    with plt.rc_context():
        figures.set_style()  # as lessons do
        drawn = (figures.heat_rows(tiles, {"Grad-CAM": heats, "edges": heats}, [title] * 2),
                 figures.tile_grid(tiles, [title] * 2),
                 figures.explanations(tiles, large, boxes, [(title, title)] * 2))  # fmt: skip
        for figure in drawn:
            figure.canvas.draw()
            first = figure.axes[0]
            room = first.get_window_extent()
            (words,) = (t for t in (*first.texts, first.title) if "truth" in t.get_text())
            text = words.get_window_extent()
            plt.close(figure)
            assert room.width / figure.dpi > 1.8 and words.get_text().count("\n") == 1
            assert min(text.width, text.height) < max(text.width, text.height) <= room.width


def test_colours_that_do_not_vary_are_drawn_all_the_same():
    features = np.random.default_rng(0).random((12, 15))
    features[:, 3] = 1.0  # all tiles show some glass
    figure = figures.colour_scatter(features, np.arange(12) % 2, ("HP", "SSA"))
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    plt.close(figure)
    assert points.shape == (12, 2) and np.isfinite(points).all()


def test_chance_of_the_neighbours_is_one_over_the_classes():
    log = pd.DataFrame({"epoch": [0, 1], "loss": [4.0, 3.0], "knn": [0.2, 0.3]})
    figure = figures.loss_curve({"tissue": log}, 4.8, 0.6, classes=6)
    heights = [line.get_ydata()[0] for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    plt.close(figure)
    assert 1 / 6 in heights
