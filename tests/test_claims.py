"""Objectives and tests against peers, and intervals over seeds that cover."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from scipy.stats import norm, ttest_1samp
from scripts import STUDIES
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from crc_helpers import claims, runs
from crc_helpers import objectives as losses
from crc_helpers.augmentation import VIEWS
from crc_helpers.models import contrastive_model
from crc_helpers.pretraining import Training, nt_xent, pretrain

close = torch.testing.assert_close
objectives = STUDIES["objectives"]


def pair(n=12, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


# --- Objectives -----------------------------------------------------------------------------------


def test_losses_are_lightlys():
    (q, k), (queue, _) = pair(), pair(32, 16, 1)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    theirs.memory_bank.bank = F.normalize(queue, dim=1)
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    close(losses.moco_loss(q.requires_grad_(), k, queue, 0.2), theirs(q, k))
    z1, z2 = pair(64, 8)
    twins = BarlowTwinsLoss(lambda_param=5e-3)(z1, z2)
    close(losses.barlow_twins_loss(z1, z2), twins, rtol=1e-4, atol=0)
    (p1, p2), (z1, z2) = pair(), pair(seed=1)
    z1.requires_grad_(), p1.requires_grad_()
    cosine = NegativeCosineSimilarity()
    ours = losses.simsiam_loss(p1, p2, z1, z2)
    close(ours, (cosine(p1, z2) + cosine(p2, z1)) / 2)
    ours.backward()
    assert z1.grad is None and p1.grad.abs().sum() > 0  # the gradient is stopped


def test_sup_con_by_its_definition_and_with_a_label_each_nt_xent():
    z1, z2 = pair(5, 4)
    labels, tau = torch.tensor([0, 1, 0, 1, 1]), 0.5
    z, y = F.normalize(torch.cat([z1, z2]), dim=1), torch.cat([labels, labels])
    total = 0.0
    for i in range(10):
        others = [k for k in range(10) if k != i]
        log_p = dict(zip(others, (z[i] @ z[others].T / tau).log_softmax(dim=0), strict=True))
        total -= torch.stack([log_p[k] for k in others if y[k] == y[i]]).mean()
    close(losses.sup_con_loss(z1, z2, labels, tau), total / 10)
    alone = losses.sup_con_loss(z1, z2, torch.arange(5), 0.3)
    close(alone, nt_xent(z1, z2, 0.3))


@pytest.mark.parametrize("name", ["MoCo", "SimSiam", "Barlow Twins", "SupCon"])
def test_an_objective_trains_and_goes_on_to_the_same_weights(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)
    images = np.random.default_rng(0).integers(0, 255, (16, 3, 32, 32), np.uint8)
    training, fabric = Training(size=32, epochs=2, batch=8, lr=1e-3), runs.make_fabric(0)

    def learn(checkpoint=None, monitor=None):
        model = contrastive_model("resnet8", "mlp", 0)
        before = model[0].state_dict()["backbone.conv1.weight"].clone()
        objective = objectives.OBJECTIVES[name](model, 0.2, np.arange(16) % 2)
        given = model, images, VIEWS["tissue"], fabric, training, objective
        log = pretrain(*given, checkpoint=checkpoint, monitor=monitor)
        after = model[0].state_dict()["backbone.conv1.weight"]
        assert np.isfinite(log["loss"]).all() and not torch.equal(before, after)
        return after

    def stop(_encoder, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "state.ckpt", stop)
    close(learn(tmp_path / "state.ckpt"), learn(), rtol=0, atol=0)
    assert "going on after epoch 1 of 2" in capsys.readouterr().out


def test_moco_follows_slowly_and_fills_its_queue():
    model = contrastive_model("resnet8", "linear", 0)
    moco = objectives.MoCo(model, 0.2, np.zeros(4), size=6)
    first, queue = next(moco.keys.parameters()).clone(), moco.queue.clone()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    views = torch.rand(4, 3, 32, 32)
    moco(model, views, views, np.arange(4)).backward()
    close(next(moco.keys.parameters()), first + 0.01)
    close(moco.queue[4:], queue[:2])  # the newest in front
    assert all(p.grad is None for p in moco.keys.parameters())


# --- Labels, stain, metadata ----------------------------------------------------------------------


def test_subsets_are_nested_and_keep_every_class():
    labels = np.repeat([0, 1, 2], [200, 60, 3])
    sets = [set(claims.labelled_subset(labels, f, 4)) for f in (0.01, 0.1, 0.5, 1.0)]
    assert all(small < large for small, large in itertools.pairwise(sets))
    assert all({0, 1, 2} == set(labels[list(s)]) for s in sets) and len(sets[-1]) == len(labels)
    assert np.bincount(labels[list(sets[2])]).tolist() == [100, 30, 2]
    assert sets[1] != set(claims.labelled_subset(labels, 0.1, 5))


# --- Comparing ------------------------------------------------------------------------------------


def test_delong_by_its_definition():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 40)
    scores = np.round(rng.normal(y[:, None] * 0.8, 1, (40, 2)), 1)  # with ties
    difference, error, p = claims.delong_test(y, *scores.T)
    areas = [roc_auc_score(y, s) for s in scores.T]
    assert difference == pytest.approx(areas[0] - areas[1])
    pairs = [(s[y == 1][:, None], s[y == 0]) for s in scores.T]
    wins = [(a > b) + 0.5 * (a == b) for a, b in pairs]
    v10, v01 = (np.array([w.mean(axis=k) for w in wins]) for k in (1, 0))
    s = np.cov(v10) / (y == 1).sum() + np.cov(v01) / (y == 0).sum()
    assert error == pytest.approx(np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1]))
    assert p == pytest.approx(2 * norm.sf(abs(difference) / error))
    assert claims.delong_test(y, y, y) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="1 positive and 3 negative tiles"):
        claims.delong_test(np.array([0, 0, 0, 1]), y[:4], y[:4])


def test_mcnemar_has_the_power_that_was_planned():
    n, difference, disagreement = claims.tiles_needed(0.05, 0.15), 0.05, 0.15
    rng = np.random.default_rng(3)
    better, worse = (disagreement + difference) / 2, (disagreement - difference) / 2
    counts = rng.multinomial(n, [better, worse, 1 - disagreement], 500)
    found = np.mean([mcnemar([[0, a], [b, 0]]).pvalue < 0.05 for a, b, _ in counts])
    assert 0.7 < found < 0.88
    with pytest.raises(ValueError, match=r"difference 0.2 <= disagreement 0.1"):
        claims.tiles_needed(0.2, 0.1)


def test_interval_over_seeds_is_scipys_and_one_seed_has_none():
    values = [0.6, 0.7, 0.65, 0.72]
    mean, low, high = claims.over_seeds(values)
    found = ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((np.mean(values), found.low, found.high))
    assert claims.over_seeds([0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert claims.over_seeds([0.6])[0] == 0.6 and np.isnan(claims.over_seeds([0.6])[1:]).all()
    assert claims.p_over_seeds(values) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert np.isnan([claims.p_over_seeds([0.6]), claims.p_over_seeds([0.1, 0.1])]).all()


def test_splits_of_one_data_set_get_the_interval_that_new_data_would():
    # A third of the same 90 tiles is tested each time: any two of the thirds share a third.
    rng, caught = np.random.default_rng(0), Counter()
    for _ in range(1000):
        tiles = rng.standard_normal(90)  # the truth is 0
        found = [tiles[rng.permutation(90)[:30]].mean() for _ in range(5)]
        for name, retested in (("naive", 0.0), ("corrected", 0.5)):
            _, low, high = claims.over_seeds(found, retested)
            caught[name] += low <= 0 <= high
            assert (claims.p_over_seeds(found, retested) > 0.05) == (low <= 0 <= high)
    assert caught["naive"] < 850 and 925 < caught["corrected"] < 975  # 950 are 95 %


def test_pairs_are_of_the_same_seed_and_incomplete_ones_left_out():
    arms, aucs = ["b", "a", "b", "a", "a"], [0.5, 0.9, 0.6, 0.7, 1.0]
    rows = pd.DataFrame({"seed": [2, 1, 1, 2, 3], "arm": arms, "auc": aucs})
    np.testing.assert_allclose(claims.paired(rows, "arm", "a", "b", "auc"), [0.3, 0.2])
