import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from torch import nn

from crc_helpers import claims as claims
from crc_helpers.augmentation import VIEWS
from crc_helpers.models import Classifier, Encoder, ProjectionHead
from crc_helpers.pretraining import nt_xent, pretrain
from crc_helpers.runs import make_fabric

METHODS = ("NT-Xent", "MoCo", "SimSiam", "Barlow Twins", "SupCon")


def pair(n=12, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


# --- Losses ---------------------------------------------------------------------------------------


def test_moco_is_lightlys_loss_with_a_memory_bank():
    (q, k), (queue, _) = pair(), pair(32, 16, 1)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    theirs.memory_bank.bank = F.normalize(queue, dim=1)
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    ours = claims.moco_loss(q.requires_grad_(), k, queue, 0.2)
    torch.testing.assert_close(ours, theirs(q, k))


def test_simsiam_is_lightlys_and_stops_the_gradient():
    (p1, p2), (z1, z2) = pair(), pair(seed=1)
    z1.requires_grad_(), p1.requires_grad_()
    theirs = NegativeCosineSimilarity()
    ours = claims.simsiam_loss(p1, p2, z1, z2)
    torch.testing.assert_close(ours, (theirs(p1, z2) + theirs(p2, z1)) / 2)
    ours.backward()
    assert z1.grad is None and p1.grad.abs().sum() > 0


def test_barlow_twins_is_lightlys():
    z1, z2 = pair(64, 8)
    theirs = BarlowTwinsLoss(lambda_param=5e-3)
    torch.testing.assert_close(claims.barlow_twins_loss(z1, z2), theirs(z1, z2), rtol=1e-4, atol=0)
    assert claims.barlow_twins_loss(z1, z1) < claims.barlow_twins_loss(z1, z2)


def test_sup_con_with_a_label_each_is_nt_xent_and_lightlys():
    z1, z2 = pair()
    ours = claims.sup_con_loss(z1, z2, torch.arange(12), 0.3)
    torch.testing.assert_close(ours, nt_xent(z1, z2, 0.3))
    torch.testing.assert_close(ours, NTXentLoss(temperature=0.3)(z1, z2))


def test_sup_con_by_its_definition():
    z1, z2 = pair(5, 4)
    labels, tau = torch.tensor([0, 1, 0, 1, 1]), 0.5
    z, y = F.normalize(torch.cat([z1, z2]), dim=1), torch.cat([labels, labels])
    total = 0.0
    for i in range(10):
        others = [k for k in range(10) if k != i]
        denominator = sum((z[i] @ z[k] / tau).exp() for k in others)
        positives = [k for k in others if y[k] == y[i]]
        total -= sum(((z[i] @ z[k] / tau).exp() / denominator).log() for k in positives) / len(
            positives
        )
    torch.testing.assert_close(claims.sup_con_loss(z1, z2, labels, tau), total / 10)


@pytest.mark.parametrize("name", METHODS)
def test_every_objective_trains_on_the_loop_and_goes_on_to_the_same_weights(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (16, 3, 32, 32), np.uint8)
    labels, weights = np.arange(16) % 2, []

    def learn(epochs, checkpoint):
        torch.manual_seed(0)
        encoder = Encoder("resnet8")
        head = ProjectionHead(encoder.dim, kind="mlp")
        model = nn.Sequential(encoder, head)
        before = encoder.state_dict()["backbone.conv1.weight"].clone()
        log = pretrain(
            encoder, head, images, VIEWS["tissue"], make_fabric(0), size=32, epochs=epochs, batch=8,
            lr=1e-3, temperature=0.2, seed=0, checkpoint=checkpoint,
            objective=claims.make_objective(name, model, 0.2, labels),
        )  # fmt: skip
        after = encoder.state_dict()["backbone.conv1.weight"]
        assert np.isfinite(log["loss"]).all() and not torch.equal(before, after)
        return after

    weights = learn(2, tmp_path / "whole.ckpt")
    learn(1, tmp_path / "parts.ckpt")
    torch.testing.assert_close(learn(2, tmp_path / "parts.ckpt"), weights, rtol=0, atol=0)


def test_moco_follows_slowly_and_fills_its_queue():
    model = nn.Sequential(Encoder("resnet8"), ProjectionHead(256))
    moco = claims.MoCo(model, 0.2, size=6)
    first, queue = next(moco.keys.parameters()).clone(), moco.queue.clone()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    views = torch.rand(4, 3, 32, 32)
    moco(model, views, views, np.arange(4)).backward()
    torch.testing.assert_close(next(moco.keys.parameters()), first + 0.01)
    torch.testing.assert_close(moco.queue[4:], queue[:2])  # the newest in front
    assert all(p.grad is None for p in moco.keys.parameters())


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match=r"'SimCLR' is unknown: choose one of NT-Xent, MoCo"):
        claims.make_objective("SimCLR", nn.Linear(2, 2), 0.2, np.zeros(2))


def test_the_plain_network_is_an_encoder():
    images = torch.rand(2, 3, 64, 64)
    assert Classifier(Encoder(claims.PlainCNN()), 3)(images).shape == (2, 3)


# --- Labels ---------------------------------------------------------------------------------------


def test_subsets_are_nested_and_keep_every_class():
    labels = np.repeat([0, 1, 2], [200, 60, 3])
    sets = [set(claims.labelled_subset(labels, f, 4)) for f in (0.01, 0.1, 0.5, 1.0)]
    assert all(small < large for small, large in itertools.pairwise(sets))
    assert all({0, 1, 2} == set(labels[list(s)]) for s in sets)
    assert len(sets[-1]) == len(labels)
    assert np.bincount(labels[list(sets[2])]).tolist() == [100, 30, 2]
    assert sets[1] != set(claims.labelled_subset(labels, 0.1, 5))


def test_oversampling_makes_classes_even_and_loses_none():
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    index = claims.oversampled(labels)
    assert np.bincount(labels[index]).tolist() == [5, 5, 5]
    assert set(index) == set(range(8))


def test_focal_loss_by_hand_and_without_focus():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    p = torch.tensor([np.exp(2) / (np.exp(2) + 1), 1 / (1 + np.e)], dtype=torch.float32)
    torch.testing.assert_close(claims.focal_loss(logits, labels), -((1 - p) ** 2 * p.log()).mean())
    torch.testing.assert_close(
        claims.focal_loss(logits, labels, 0.0), F.cross_entropy(logits, labels)
    )


def test_no_threshold_is_better_than_the_best():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 80), rng.random(80).round(1)
    best = claims.best_threshold(labels, scores)
    found = [balanced_accuracy_score(labels, scores >= t) for t in np.unique(scores)]
    assert balanced_accuracy_score(labels, scores >= best) == pytest.approx(max(found))


# --- Site, metadata -------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "left"), [("Macenko", 0.9), ("Reinhard", 0.1)])
def test_normalised_tiles_come_nearer_to_the_reference_and_glass_stays(method, left):
    from crc_helpers.tissue.parameters import TissueParameters
    from crc_helpers.tissue.slide import draw

    pale = draw(TissueParameters(haematoxylin=0.6, eosin=0.6), 1, 96).image
    dark = draw(TissueParameters(haematoxylin=1.4, eosin=1.4), 1, 96).image
    glass = np.full_like(pale, 250)
    flat = np.full_like(pale, 120)
    speck = np.broadcast_to(np.uint8([230, 210, 215])[:, None, None], pale.shape).copy()
    speck[:, 3, 3:5] = 80  # two pixels have no two stains
    done = claims.normalise_stain(np.stack([pale, glass, flat, speck]), dark, method)
    gap = [np.abs(i.mean(axis=(1, 2)) - dark.mean(axis=(1, 2))).mean() for i in (pale, done[0])]
    assert gap[1] < left * gap[0]
    assert done.dtype == np.uint8 and np.array_equal(done[1:], [glass, flat, speck])
    with pytest.raises(ValueError, match="'Vahadane' is unknown: choose one of Macenko, Reinhard"):
        claims.normalise_stain(done, dark, "Vahadane")


def test_clinical_features_and_what_is_not_known():
    table = pd.DataFrame(
        {"Polyp Size (mm)": [10, np.nan, 1, 1], "Colon Site": ["Cecum", "Rectum", None, ""]}
    )
    found = claims.clinical_features(table)
    np.testing.assert_allclose(found[0], [np.log(10), 1])
    assert np.isnan(found[1, 0]) and found[1, 1] == 0
    assert (found[2:, 0] == 0).all() and np.isnan(found[2:, 1]).all()


def test_fusion_takes_the_mean_of_log_odds_and_does_without_what_is_missing():
    a, b = np.array([0.5, 0.9, 0.2]), np.array([0.8, np.nan, 0.2])
    np.testing.assert_allclose(claims.fuse(a, b), [2 / 3, 0.9, 0.2])
    assert np.isfinite(claims.fuse(np.array([0.0]), np.array([1.0]))).all()


# --- Comparing ------------------------------------------------------------------------------------


def test_mcnemar_is_statsmodels():
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.random(60) < 0.8, rng.random(60) < 0.7
        table = [[(first & second).sum(), (first & ~second).sum()],
                 [(~first & second).sum(), (~first & ~second).sum()]]  # fmt: skip
        assert claims.mcnemar_test(first, second) == pytest.approx(mcnemar(table).pvalue)
    assert claims.mcnemar_test(first, first) == 1.0


def test_holm_is_statsmodels():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5])
    np.testing.assert_allclose(claims.holm(p), multipletests(p, method="holm")[1])


def test_delong_by_its_definition():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 40)
    scores = np.round(rng.normal(y[:, None] * 0.8, 1, (40, 2)), 1)  # with ties
    difference, error, p = claims.delong_test(y, *scores.T)
    assert difference == pytest.approx(
        roc_auc_score(y, scores[:, 0]) - roc_auc_score(y, scores[:, 1])
    )
    wins = [(s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
            for s in scores.T]  # fmt: skip
    v10, v01 = (np.array([w.mean(axis=k) for w in wins]) for k in (1, 0))
    s = np.cov(v10) / (y == 1).sum() + np.cov(v01) / (y == 0).sum()
    assert error == pytest.approx(np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1]))
    assert p == pytest.approx(2 * norm.sf(abs(difference) / error))


def test_delong_of_the_same_scores_and_of_one_class():
    y = np.array([0, 0, 1, 1])
    assert claims.delong_test(y, y, y) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="1 positive and 3 negative tiles"):
        claims.delong_test(np.array([0, 0, 0, 1]), y, y)


def test_mcnemar_has_the_power_that_was_planned():
    n, difference, disagreement = claims.tiles_needed(0.05, 0.15), 0.05, 0.15
    rng = np.random.default_rng(3)
    better, worse = (disagreement + difference) / 2, (disagreement - difference) / 2
    counts = rng.multinomial(n, [better, worse, 1 - disagreement], 1500)
    found = np.mean([
        claims.mcnemar_test(np.arange(a + b) < a, np.arange(a + b) >= a) < 0.05
        for a, b, _ in counts
    ])  # fmt: skip
    assert 0.72 < found < 0.86
    with pytest.raises(ValueError, match="0 < difference <= disagreement"):
        claims.tiles_needed(0.2, 0.1)


def test_interval_over_seeds_is_scipys_and_one_seed_has_none():
    values = [0.6, 0.7, 0.65, 0.72]
    mean, low, high = claims.over_seeds(values)
    found = ttest_1samp(values, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((np.mean(values), found.low, found.high))
    assert claims.over_seeds([0.6])[0] == 0.6 and np.isnan(claims.over_seeds([0.6])[1:]).all()
    assert claims.p_over_seeds(values) == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert np.isnan([claims.p_over_seeds([0.6]), claims.p_over_seeds([0.1, 0.1])]).all()


def test_splits_of_one_data_set_get_the_interval_that_new_data_would():
    # A third of the same 90 tiles is tested each time: any two of the thirds share a third.
    rng, caught = np.random.default_rng(0), Counter()
    for _ in range(2000):
        tiles = rng.standard_normal(90)  # the truth is 0
        parts = [rng.permutation(90) for _ in range(5)]
        found = [tiles[p[:30]].mean() for p in parts]
        for name, retested in (("naive", 0.0), ("corrected", 0.5)):
            _, low, high = claims.over_seeds(found, retested)
            caught[name] += low <= 0 <= high
            assert (claims.p_over_seeds(found, retested) > 0.05) == (low <= 0 <= high)
    assert caught["naive"] < 1700 and 1860 < caught["corrected"] < 1940  # 1900 are 95 %


def test_pairs_are_of_the_same_seed_and_incomplete_ones_left_out():
    rows = pd.DataFrame({"seed": [2, 1, 1, 2, 3], "arm": ["b", "a", "b", "a", "a"],
                         "auc": [0.5, 0.9, 0.6, 0.7, 1.0]})  # fmt: skip
    np.testing.assert_allclose(claims.paired(rows, "arm", "a", "b", "auc"), [0.3, 0.2])
