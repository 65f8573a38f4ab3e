"""The reading room: what is shown when, what is written down, and how it is counted."""

from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from crc_helpers.course.cli import main
from crc_helpers.data import load_tiles
from crc_helpers.evaluation import wilson_interval
from crc_helpers.explorers import Reading, ReadingRoom, reading_table
from crc_helpers.explorers import reading as module
from crc_helpers.runs import ROOT


@pytest.fixture(scope="module")
def tiles():
    return load_tiles(n=12, seed=3)


@pytest.fixture
def room(tiles, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network.append(nn.Linear(4, 2))
    return ReadingRoom(network.eval(), tiles, np.arange(4), 32, tmp_path / "reading.csv", seed=2)


def test_readings_are_counted_as_by_hand():
    columns = ("before", "after", "network", "truth", "votes")
    answers = [
        ("HP", "HP", "HP", "HP", 1),
        ("HP", "SSA", "SSA", "SSA", 6),  # the map helped
        ("SSA", "HP", "HP", "SSA", 7),  # the map misled
        ("unsure", "unsure", "HP", "HP", 4),
    ]
    table = reading_table(pd.DataFrame(answers, columns=columns), ("HP", "SSA"))
    shares = {
        "you and the truth, before the map": 2,
        "you and the truth, after the map": 2,
        "you and the network, before the map": 1,
        "you and the network, after the map": 3,
        "you and most of seven readers, before the map": 2,
        "the network and the truth": 3,
        "the map helped (wrong or unsure, then right)": 1,
        "the map misled (right, then wrong or unsure)": 1,
    }
    for name, hits in shares.items():
        row = table.loc[name]
        assert (row["n"], row["share"]) == (4, hits / 4), name
        assert (row["low"], row["high"]) == wilson_interval(hits, 4)
    without = pd.DataFrame(answers, columns=columns).assign(votes=-1)
    assert not any("seven" in name for name in reading_table(without, ("HP", "SSA")).index)


def test_nothing_is_shown_before_it_is_due(room, tiles, monkeypatch):
    drawn = []
    draw = module.reading_figure
    monkeypatch.setattr(
        module, "reading_figure", lambda *given: drawn.append(given) or draw(*given)
    )
    room.begin()
    heat, mask = drawn[-1][2:]
    assert heat is None and mask is None and "network" not in room.words.value
    assert room.map.layout.visibility == "hidden"
    room.picture.point = [0.25, 0.75]
    assert drawn[-1][1] == [0.25, 0.75]
    room.votes[0].click()
    heat, mask = drawn[-1][2:]
    assert heat.shape == tiles.images.shape[2:] and mask is None
    assert "The network says" in room.words.value and "Truth" not in room.words.value
    assert not room.reading.file.exists() and room.next.disabled
    room.picture.point = [0.5, 0.5]  # too late: the place was to be named before the map
    room.votes[1].click()
    assert (drawn[-1][3] == tiles.masks[room.tile]).all()
    assert "Truth" in room.picture.alt and all(button.disabled for button in room.votes)
    (row,) = pd.read_csv(room.reading.file).to_dict("records")
    assert (row["x"], row["y"]) == (0.25, 0.75)
    assert [row["before"], row["after"]] == list(tiles.class_names)
    assert row["truth"] == tiles.class_names[tiles.labels[room.tile]]
    assert row["votes"] == tiles.votes[room.tile]


def test_a_reading_goes_on_where_it_stopped_and_meets_every_tile_once(room, tiles):
    read = []
    for _ in range(4):
        read.append(room.tile)
        room.votes[2].click()
        room.votes[2].click()
        room.next.click()
        room = ReadingRoom(room.model, tiles, np.arange(4), 32, room.reading.file, seed=2)
    assert sorted(read) == [0, 1, 2, 3] and read != [0, 1, 2, 3]  # shuffled
    assert room.step == "done" and str(room.reading.file) in room.words.value
    assert room.next.disabled and "the network and the truth" in room.tally.value


def test_readings_of_other_tiles_are_refused(room, tiles):
    room.votes[0].click()
    room.votes[0].click()
    others = replace(tiles, ids=np.array([f"other {i}" for i in range(12)]))
    with pytest.raises(ValueError, match=r"reading.csv holds readings of other tiles \(.*another"):
        Reading(others, np.arange(4), room.reading.file)


@pytest.mark.slow
def test_the_app_serves_a_room_that_works_to_this_machine_only(tmp_path, monkeypatch):
    served = []

    def launch(argv):
        served.append((argv, nbformat.read(argv[0], as_version=4)))

    monkeypatch.setattr("voila.app.Voila.launch_instance", launch)
    assert main(["app", "--out", str(tmp_path)]) == 0
    ((argv, notebook),) = served
    assert "--Voila.ip=127.0.0.1" in argv
    names = {}
    for cell in notebook.cells:
        exec(cell.source, names)
    room = names["room"]
    room.vote("HP")
    room.vote("unsure")
    assert len(pd.read_csv(tmp_path / "reading.csv")) == 1


def test_the_app_names_weights_that_it_cannot_use(tmp_path, capsys):
    for weights in (tmp_path / "missing.safetensors", ROOT / "weights" / "encoder.safetensors"):
        assert main(["app", "--weights", str(weights), "--out", str(tmp_path)]) == 2
        assert str(weights) in capsys.readouterr().err
