"""NT-Xent against a double loop and against lightly; the monitors by hand; the loop to the bit."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightly.loss import NTXentLoss
from lightning.fabric import Fabric
from torch import nn

from crc_helpers import pretraining, runs
from crc_helpers.augmentation import VIEWS, shrink, two_views
from crc_helpers.models import Encoder, ProjectionHead
from crc_helpers.pretraining import (
    Contrast,
    Training,
    batches,
    chance_loss,
    effective_rank,
    embed,
    floor_loss,
    knn_accuracy,
    make_optimizer,
    nearest,
    nt_xent,
    pretrain,
    uniformity,
)

SIZES = [(2, 3), (5, 8), (16, 128)]  # tiles, dimensions
TEMPERATURES = [0.07, 0.2, 0.7]


def make_pair(n=8, dim=16, seed=0, **kind):
    return torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed)).to(**kind)


def slow_nt_xent(z1, z2, temperature):
    """Equation 1 of SimCLR as it is printed, one anchor and one other view at a time."""
    views, n = [*z1, *z2], len(z1)

    def similarity(i, j):
        a, b = views[i], views[j]
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()) / temperature

    total = 0.0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        others = sum(similarity(i, k).exp() for k in range(2 * n) if k != i)
        total = total - (similarity(i, partner).exp() / others).log()
    return total / (2 * n)


# --- NT-Xent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("size", SIZES)
def test_nt_xent_is_the_double_loop_and_lightlys(size, temperature):
    z1, z2 = make_pair(*size)
    found, expected = (
        nt_xent(z1, z2, temperature),
        slow_nt_xent(z1.double(), z2.double(), temperature),
    )
    # Float32 cosines are right to 1e-7, and the temperature divides them.
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(found, NTXentLoss(temperature)(z1, z2))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_of_bf16_inputs_is_as_exact_as_of_fp32(temperature):
    z1, z2 = make_pair(16, 128, dtype=torch.bfloat16)
    loss = nt_xent(z1, z2, temperature)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, NTXentLoss(temperature)(z1.float(), z2.float()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradients_of_nt_xent_are_the_double_loops(temperature):
    ours, slow = make_pair().requires_grad_(), make_pair(dtype=torch.float64).requires_grad_()
    nt_xent(*ours, temperature).backward()
    slow_nt_xent(*slow, temperature).backward()
    torch.testing.assert_close(ours.grad.double(), slow.grad, atol=1e-6, rtol=1e-4)


def test_nt_xent_has_gradients_at_embeddings_of_zero():
    z = torch.zeros(2, 4, 8, requires_grad=True)
    nt_xent(*z, 0.2).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("n", [2, 3, 64])
def test_identical_embeddings_cost_the_logarithm_of_the_choices(n):
    same = make_pair(1, 16)[0].expand(n, -1)
    assert nt_xent(same, same, 0.2).item() == pytest.approx(math.log(2 * n - 1), abs=1e-5)
    assert chance_loss(n) == pytest.approx(math.log(2 * n - 1))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("n", [2, 16])
def test_perfect_positives_and_orthogonal_negatives_reach_the_floor(n, temperature):
    loss = nt_xent(torch.eye(n), torch.eye(n), temperature).item()
    assert floor_loss(n, temperature) == pytest.approx(loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("left", "right"), [((1, 4), (1, 4)), ((3, 4), (2, 4)), ((3, 4), (3, 5))])
def test_nt_xent_refuses_one_tile_and_unequal_batches(left, right):
    with pytest.raises(ValueError, match="two equal batches"):
        nt_xent(torch.ones(left), torch.ones(right), 0.2)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_nt_xent_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="TEMPERATURE"):
        nt_xent(*make_pair(), temperature)


# --- Monitors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0], [5, 0], [2, 0]], 0.0),  # one direction: exp(0)
        ([[1, 0], [-1, 0]], -8.0),  # opposite: d^2 = 4
        ([[1, 0], [0, 2]], -4.0),  # orthogonal: d^2 = 2
        ([[1, 0], [1, 0], [-1, 0]], math.log((1 + 2 * math.exp(-8)) / 3)),
    ],
)
def test_uniformity_by_hand(rows, expected):
    assert uniformity(torch.tensor(rows).float()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.ones(5, 3), 1.0),  # collapse to a point
        (torch.tensor([[1.0, 2], [2, 4], [3, 6]]), 1.0),  # collapse to a line
        (torch.cat([torch.eye(4), -torch.eye(4)]), 4.0),  # as far as four dimensions go
        # Singular values in the proportion 3 to 1.
        (
            torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]]),
            math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)),
        ),
    ],
)
def test_effective_rank_by_hand(rows, expected):
    assert effective_rank(rows) == pytest.approx(expected, abs=1e-6)
    assert effective_rank(10 * rows + 5) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(FloatingPointError, match="features hold NaN or infinity"):
        effective_rank(torch.inf * rows)


def directions(degrees):
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float32))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_neighbours_tell_separate_classes_apart():
    features, labels = directions([*range(10), *range(90, 100)]), np.array([0] * 10 + [1] * 10)
    features[3] *= 17  # length does not count
    assert knn_accuracy(features, labels, k=5) == 1
    labels[0] = 1  # its neighbours say 0, and it is one of eleven
    assert knn_accuracy(features, labels, k=5) == pytest.approx((1 + 10 / 11) / 2)


def test_rare_neighbours_count_for_more():
    # Around 0 degrees lie three of thirty common tiles and two of five rare ones besides the one
    # asked about: a plain vote says common (3 to 2), the weighted one rare (2/5 to 3/30).
    features = directions([0, 1, 2, *range(90, 117), 0.5, 1.5, 200, 201, 1.0])
    labels = np.array([0] * 30 + [1] * 5)
    alone = np.arange(35) == 34
    right = knn_accuracy(features, np.where(alone, 1, labels), k=5)
    assert right > knn_accuracy(features, np.where(alone, 0, labels), k=5)


def test_no_neighbour_is_of_the_own_slide():
    rng, n = np.random.default_rng(0), 1100  # more than are compared at once
    features, groups = torch.from_numpy(rng.normal(size=(n, 5))), rng.integers(0, 9, n)
    found = nearest(features, 4, groups)
    unit = (features / features.square().sum(dim=1, keepdim=True).sqrt()).numpy()
    cosine = unit @ unit.T
    for i, row in enumerate(found[::7]):
        i *= 7
        others = np.flatnonzero(groups != groups[i])
        assert list(row) == list(others[np.argsort(-cosine[i, others])][:4])
    assert all(i not in row for i, row in enumerate(nearest(features, 4)))


# --- Embedding -----------------------------------------------------------------------------------


def test_embedding_is_the_network_in_evaluation_mode(coloured_tiles, fabric):
    encoder = Encoder("resnet8").eval()
    with torch.no_grad():
        expected = encoder(shrink(torch.from_numpy(coloured_tiles), 16))
    found = embed(encoder.train(), coloured_tiles, 16, fabric, batch=5)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)  # batches sum differently


@pytest.mark.parametrize("training", [True, False])
def test_embedding_leaves_the_mode_and_the_statistics(coloured_tiles, fabric, training):
    encoder = Encoder("resnet8").train(training)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    embed(encoder, coloured_tiles, 16, fabric)
    assert encoder.training == training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# --- Batches and schedules -----------------------------------------------------------------------


def test_an_epoch_shows_each_tile_at_most_once_in_whole_batches():
    found = list(batches(23, 5, seed=0, epoch=1))
    assert [len(b) for b in found] == [5, 5, 5, 5]
    assert len(set(np.concatenate(found))) == 20
    assert set(np.concatenate(found)) <= set(range(23))


def test_epochs_and_seeds_have_orders_of_their_own():
    first, next_epoch, next_seed = (
        np.concatenate(list(batches(64, 16, *key))) for key in [(0, 1), (0, 2), (1, 1)]
    )
    assert not np.array_equal(first, next_epoch) and not np.array_equal(first, next_seed)


def rates(name, steps, lr=0.1):
    """The learning rate of each of `steps` batches."""
    optimizer, schedule = make_optimizer(nn.Linear(2, 1), name, lr, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_one_cycle_warms_up_to_its_rate_and_decays_to_nothing():
    found = rates("adamw-one-cycle", 100)
    assert max(found) == pytest.approx(0.1) and found.index(max(found)) == pytest.approx(15, abs=1)
    assert found[0] < 0.1 / 20 and found[-1] < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_cycle_bears_a_run_of_few_batches(steps):
    assert all(0 < rate <= 0.1 for rate in rates("adamw-one-cycle", steps))


def test_an_unknown_optimizer_is_refused_naming_the_choices():
    with pytest.raises(ValueError, match=r"'sgd'.*adam.*adamw-one-cycle"):
        make_optimizer(nn.Linear(2, 1), "sgd", 0.1, 10)


# --- The loop ------------------------------------------------------------------------------------

SETTINGS = {"size": 16, "epochs": 4, "batch": 8, "lr": 3e-3}
CLOCK = ["seconds", "pairs_per_second"]  # the columns that no two runs share


@pytest.fixture(autouse=True)
def every_epoch_kept(monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)


def start_of(start=0):
    torch.manual_seed(start)
    return nn.Sequential(Encoder("resnet8"), ProjectionHead(256, 16))


def train(tiles, fabric, model=None, views="tissue", temperature=0.2, **changes):
    """Pre-train a small network: (its weights, the log)."""
    options = {k: changes.pop(k) for k in ("checkpoint", "monitor") if k in changes}
    model, loss = model or start_of(), Contrast(temperature, fabric)
    training = Training(**SETTINGS | changes)
    log = pretrain(model, tiles, VIEWS[views], fabric, training, loss, **options)
    return model.state_dict(), log


def assert_same(first, second):
    """Hold two results of `train` equal to the bit."""
    assert all(torch.equal(value, second[0][key]) for key, value in first[0].items())
    first, second = (log.drop(columns=CLOCK) for _, log in (first, second))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def watch(encoder, epoch):
    """A monitor whose number gives every change of the weights away."""
    return {"sum": float(sum(p.detach().double().sum() for p in encoder.parameters()))}


def interrupting(last):
    """A monitor that is `watch` until the user loses patience after an epoch."""

    def monitor(encoder, epoch):
        if epoch == last:
            raise KeyboardInterrupt
        return watch(encoder, epoch)

    return monitor


@pytest.mark.parametrize(("last", "optimizer"), [(1, "adam"), (3, "adamw-one-cycle")])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    coloured_tiles, fabric, tmp_path, last, optimizer, capsys
):
    whole = train(coloured_tiles, fabric, optimizer=optimizer, monitor=watch)
    kept = {"checkpoint": tmp_path / "run.ckpt", "optimizer": optimizer}
    with pytest.raises(KeyboardInterrupt):
        train(coloured_tiles, fabric, monitor=interrupting(last), **kept)
    assert len(list(tmp_path.glob("run_*.ckpt"))) == (last > 1)  # the epoch itself was not kept
    assert_same(whole, train(coloured_tiles, fabric, monitor=watch, **kept))
    assert f"going on after epoch {last - 1} of 4" in capsys.readouterr().out or last == 1


def test_a_finished_run_is_not_trained_again(coloured_tiles, fabric, tmp_path):
    kept = {"checkpoint": tmp_path / "run.ckpt", "epochs": 2}
    first = train(coloured_tiles, fabric, **kept)
    again = train(coloured_tiles, fabric, **kept)
    assert_same(first, again)
    assert list(first[1]["seconds"]) == list(again[1]["seconds"])


def test_each_setting_has_a_state_that_no_other_overwrites(
    coloured_tiles, fabric, tmp_path, capsys
):
    kept = {"checkpoint": tmp_path / "run.ckpt"}
    whole = train(coloured_tiles, fabric, monitor=watch)
    with pytest.raises(KeyboardInterrupt):
        train(coloured_tiles, fabric, monitor=interrupting(3), **kept)
    short = kept | {"epochs": 1}
    for change in ({}, {"temperature": 0.7}, {"lr": 1e-3}, {"views": "paper"}, {"seed": 1}):
        train(coloured_tiles, fabric, **short, **change)
    train(coloured_tiles, fabric, start_of(5), **short)
    train(coloured_tiles[::-1], fabric, **short)
    assert len(list(tmp_path.glob("run_*.ckpt"))) == 8
    assert "going on" not in capsys.readouterr().out
    assert_same(whole, train(coloured_tiles, fabric, monitor=watch, **kept))
    assert "going on after epoch 2 of 4" in capsys.readouterr().out


def test_the_log_and_its_file_have_a_row_an_epoch(coloured_tiles, fabric, tmp_path):
    kept = {"checkpoint": tmp_path / "run.ckpt", "monitor": watch}
    _, log = train(coloured_tiles, fabric, epochs=3, **kept)
    assert list(log["epoch"]) == [0, 1, 2, 3]  # the monitor sees the untrained network too
    assert {"loss", "lr", *CLOCK} <= set(log) and log["sum"].nunique() == 4
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run.csv"), log)


def test_the_schedule_steps_once_a_batch(coloured_tiles, fabric):
    # 20 epochs of 4 batches: stepped once an epoch, the cycle would end near its top.
    _, log = train(coloured_tiles, fabric, epochs=20, batch=4, optimizer="adamw-one-cycle", size=8)
    assert log["lr"].max() > 0.9 * SETTINGS["lr"]
    assert log["lr"].iloc[-1] < 0.01 * SETTINGS["lr"]


def test_the_loss_falls_on_tiles_that_differ(coloured_tiles, fabric):
    # Gentle views keep a tile's colour, which is all there is to tell these tiles apart.
    _, log = train(
        coloured_tiles,
        fabric,
        views="gentle",
        optimizer="adamw-one-cycle",
        epochs=16,
        batch=16,
        lr=1e-3,
    )
    assert log["loss"].iloc[-3:].mean() < 0.6 * log["loss"].iloc[0]
    assert floor_loss(16, 0.2) < log["loss"].min() and log["loss"].max() < chance_loss(16)


def test_every_epoch_draws_views_of_its_own(coloured_tiles, fabric, monkeypatch):
    views = []

    def recorded(*arguments):
        views.append(two_views(*arguments))
        return views[-1]

    monkeypatch.setattr(pretraining, "two_views", recorded)
    train(coloured_tiles, fabric, epochs=2, batch=16)  # one batch an epoch, of the same tiles
    assert len(views) == 2 and not torch.equal(views[0][0], views[1][0])


def test_training_in_mixed_precision_keeps_the_loss_in_float32(coloured_tiles, monkeypatch):
    kinds = []

    def recorded(*given):
        loss = nt_xent(*given)
        kinds.append(loss.dtype)
        return loss

    monkeypatch.setattr(pretraining, "nt_xent", recorded)
    mixed = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    weights, log = train(coloured_tiles, mixed, epochs=1)
    assert kinds == [torch.float32, torch.float32] and math.isfinite(log["loss"].iloc[0])
    assert weights["1.layers.weight"].dtype == torch.float32


def test_fewer_tiles_than_a_batch_are_refused(coloured_tiles, fabric):
    with pytest.raises(ValueError, match=r"7 tiles.*PRETRAIN_BATCH"):
        train(coloured_tiles[:7], fabric)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    coloured_tiles, fabric, tmp_path, monkeypatch
):
    def failing(*given):
        calls.append(1)
        return nt_xent(*given) * (math.nan if len(calls) > 3 else 1.0)

    calls = []
    monkeypatch.setattr(pretraining, "nt_xent", failing)
    checkpoint = tmp_path / "run.ckpt"
    words = r"loss of epoch 2 is no number since step 2 of 2: lower PRETRAIN_LR"
    with pytest.raises(FloatingPointError, match=words):
        train(coloured_tiles, fabric, checkpoint=checkpoint)
    (kept,) = tmp_path.glob("run_*.ckpt")
    state = torch.load(kept, weights_only=True)
    assert [row["epoch"] for row in state["rows"]] == [1]
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_network_that_drops_features_goes_on_to_the_same_weights(
    coloured_tiles, fabric, tmp_path
):
    """Dropout draws from torch's own generator, which no checkpoint holds."""

    def dropping(**changes):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Dropout(0.5), nn.Flatten())
        backbone.num_features = 8 * 7 * 7
        encoder = Encoder(backbone)
        model = nn.Sequential(encoder, ProjectionHead(encoder.dim, 16))
        before = torch.get_rng_state()
        weights, log = train(coloured_tiles, fabric, model, **changes)
        assert torch.equal(before, torch.get_rng_state())  # left as training found it
        return weights, log

    kept = {"checkpoint": tmp_path / "run.ckpt"}
    whole = dropping(monitor=watch)
    with pytest.raises(KeyboardInterrupt):
        dropping(monitor=interrupting(3), **kept)
    assert_same(whole, dropping(monitor=watch, **kept))


def test_a_last_step_that_ruins_the_weights_is_noticed(coloured_tiles, fabric, tmp_path):
    kept = {"checkpoint": tmp_path / "run.ckpt"}
    with pytest.raises(FloatingPointError, match=r"loss of epoch 1 .*lower PRETRAIN_LR"):
        train(coloured_tiles, fabric, epochs=1, lr=1e38, optimizer="adam", **kept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backbone", ["resnet8", "vit_tiny_patch16_224"])
def test_no_tiles_have_no_features(fabric, coloured_tiles, backbone):
    encoder = Encoder(backbone)
    assert embed(encoder, coloured_tiles[:0], 32, fabric).shape == (0, encoder.dim)


def test_a_monitor_looks_at_few_of_many_tiles(monkeypatch, coloured_tiles, fabric):
    monkeypatch.setattr(pretraining, "WATCHED", 6)
    picked = []
    images = SimpleNamespace(pick=lambda index: picked.append(index) or coloured_tiles[index])
    tiles = SimpleNamespace(images=images, labels=np.arange(16) % 2, groups=None)
    pretraining.make_monitor(tiles, np.arange(16), 16, 2, fabric)(Encoder("resnet8"), 0)
    assert len(picked[0]) == 6 and 0 < tiles.labels[picked[0]].mean() < 1
