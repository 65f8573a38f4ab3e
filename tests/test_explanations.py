"""Maps against peers and by hand; every trial against a case whose answer is known."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_grad_cam import HiResCAM, LayerCAM
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from scipy.stats import spearmanr
from scripts import STUDIES, common
from skimage.metrics import structural_similarity
from test_grad_cam import assert_same_as_peer, make_images, make_model
from torch import nn

from crc_helpers import claims, explanations, shortcuts
from crc_helpers.augmentation import STAINS
from crc_helpers.evaluation import bootstrap_interval
from crc_helpers.models import Classifier, Encoder
from crc_helpers.tissue.parameters import TissueParameters
from crc_helpers.tissue.slide import draw

study = STUDIES["explanations"]


class Spotter(nn.Module):
    """Two logits, -s and s: s is ten times the mean of red in one square, and nothing else."""

    def forward(self, images):
        spot = 10 * images[:, 0, 8:16, 8:16].mean(dim=(1, 2))
        return torch.stack([-spot, spot], dim=1)


# --- Maps and controls ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "vit_tiny_patch16_224"])
def test_every_backbone_gets_all_maps_and_is_forgotten_to_the_last_weight(name):
    model = make_model(name)
    maps = explanations.all_maps(model, make_images(2), torch.tensor([0, 2]), costly=1)
    assert tuple(maps) == study.MAPS
    assert [len(found) for found in maps.values()] == [2, 2, 2, 1, 1]
    assert all(found.ndim == 3 and found.isfinite().all() for found in maps.values())
    *_, (last, forgotten) = explanations.cascade(model, seed=1)
    learned = dict(model.named_parameters())
    assert last == "all" and forgotten.encoder.name == name
    assert all(
        p.eq(learned[n]).all() == p.eq(p.flatten()[0]).all()  # scales and biases start all equal
        for n, p in forgotten.named_parameters()
    )


@pytest.mark.parametrize(
    ("ours", "peer"), [(explanations.hires_cam, HiResCAM), (explanations.layer_cam, LayerCAM)]
)
def test_maps_are_pytorch_grad_cams(ours, peer):
    # In float64, because float32 noise grows through many random layers.
    model, images = make_model("resnet18").double(), make_images(3, 96).double()
    with peer(model, [model.encoder.stage("layer2")]) as reference:
        theirs = reference(images.clone(), [ClassifierOutputTarget(c) for c in range(3)])
    assert_same_as_peer(ours(model, images, torch.arange(3), "layer2"), theirs)


def test_integrated_gradients_add_up_to_the_change_of_the_logit():
    model, images, target = make_model(), make_images(), torch.tensor([2, 0, 1])
    maps = explanations.integrated_gradients(model, images, target, steps=100)
    with torch.no_grad():
        change = model(images) - model(explanations.mean_colour(images))
    change = change.gather(1, target[:, None])[:, 0]
    assert change.abs().max() > 0.1
    torch.testing.assert_close(maps.sum(dim=(1, 2)), change, atol=0.02, rtol=0.02)


def test_occlusion_finds_the_one_square_that_counts():
    images = torch.full((2, 3, 32, 32), 0.25)
    images[0, :, 8:16, 8:16] = 1.0
    expected = torch.zeros(2, 32, 32)
    expected[0, 8:16, 8:16] = 10 * (1 - (0.25 + 0.75 / 16))  # a plain tile has nothing
    for target, sign in ((1, 1), (0, -1)):
        maps = explanations.occlusion(Spotter(), images, torch.tensor([target] * 2), 8, 8)
        torch.testing.assert_close(maps, sign * expected, atol=1e-4, rtol=1e-4)


def test_controls_see_edges_and_haematoxylin():
    images = torch.zeros(1, 3, 32, 32)
    images[..., 20:] = 1
    edges = explanations.edge_map(images, 0.5)[0]
    assert edges[:, 19:21].min() > 1 and edges[:, :16].max() == 0
    density = torch.zeros(1, 32, 32, 3)
    density[0, :, :16], density[0, :, 16:] = 0.7 * STAINS[0], 0.9 * STAINS[1]
    found = explanations.stain_map((-density).exp().movedim(-1, 1), 0.1)[0]
    np.testing.assert_allclose(found[:, :16], 0.7, atol=1e-3)
    np.testing.assert_allclose(found[:, 16:], 0, atol=1e-3)


# --- Agreement ------------------------------------------------------------------------------------


def scikit_images(a, b):
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    a, b = (m.astype(float) / m.max() for m in (a, b))
    return structural_similarity(a, b, data_range=1, **window)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (explanations.rank_correlation, lambda a, b: spearmanr(a.ravel(), b.ravel())[0], np.square),
        (explanations.ssim, scikit_images, lambda m: 5 * m),
    ],
)
def test_agreement_of_maps_is_that_of_peers(ours, theirs, same):
    one = make_images(4, 48).mean(dim=1).numpy()
    noise = np.random.default_rng(0).random(one.shape).astype(np.float32)
    other, flat = 0.7 * one + 0.3 * noise, 0 * one[:1]
    expected = [theirs(a, b) for a, b in zip(one, other, strict=True)]
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_allclose(ours(one, other), expected, atol=1e-6)
    np.testing.assert_allclose(ours(one, same(one)), 1)
    assert ours(one[:1], flat) == ours(flat, one[:1]) == 0 and np.isnan(ours(flat, flat)).all()


def test_cascade_forgets_from_the_last_layer_to_the_first():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = list(explanations.cascade(model, seed=3))
    assert [name for name, _ in steps] == ["fc", "layer3", "layer2", "layer1", "all"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    kept = []
    for name, network in steps:
        # Normalisation starts from ones in both, so only weights with two dimensions can differ.
        weights = {k: v for k, v in network.named_parameters() if v.ndim > 1}
        same = {k for k, v in weights.items() if torch.equal(v, before[k])}
        assert not any(k.startswith((name, f"encoder.backbone.{name}.")) for k in same)
        kept.append(same)
    assert all(later < earlier for earlier, later in pairwise(kept))
    torch.manual_seed(3)
    fresh = Classifier(Encoder("resnet8"), 3).state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in steps[-1][1].state_dict().items())


# --- Faithfulness --------------------------------------------------------------------------------


def test_fills_paint_what_is_gone_and_nothing_else():
    images, gone = make_images(2, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    gone[0, 8:20, 5:14], gone[1, :6, 20:] = True, True
    gone[0, ::3, ::2] = True  # scattered pixels beside a block
    pairs = zip(images, gone, strict=True)
    road = torch.stack([NoisyLinearImputer(noise=0)(i, (~hole).float()) for i, hole in pairs])
    mean, ours = explanations.mean_fill(images, gone), explanations.imputed_fill(images, gone, 0)
    holes = gone[:, None].expand_as(images)
    torch.testing.assert_close(mean[holes], explanations.mean_colour(images)[holes])
    assert (mean - road)[holes].abs().mean() > 0.1  # so that coming near is worth something
    assert (ours - road)[holes].abs().mean() < 0.01
    assert torch.equal(ours[~holes], images[~holes]) and torch.equal(mean[~holes], images[~holes])


def spotted():
    """Two red squares on black, where Spotter looks; a map that is hot there, and its contrary."""
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, 8:16, 8:16] = 1
    return images, images[:, 0].numpy(), 1 - images[:, 0].numpy()


def test_deletion_falls_and_insertion_rises_where_the_map_is_right():
    images, right, wrong = spotted()
    shares, target = (0.0, 1 / 32, 1 / 16, 0.5), torch.tensor([1, 0])

    def curve(heat, keep):
        fill = explanations.mean_fill
        return explanations.perturbation_curve(Spotter(), images, target, heat, fill, shares, keep)

    mean = 1 / 16  # of the pixels are the square's
    expected = 1 / (1 + np.exp(-20 * np.array([1, (1 + mean) / 2, mean, mean])))
    np.testing.assert_allclose(curve(right, False), [expected, 1 - expected], atol=1e-5)
    np.testing.assert_allclose(curve(wrong, False)[0], expected[0], atol=1e-5)
    rises = curve(right, True)[0]
    assert rises[0] < rises[1] < rises[2] and rises[2:] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(curve(wrong, True)[0], rises[0], atol=1e-5)
    area = explanations.area_under(np.array([[0.3, 0.3, 0.3], [1.0, 0, 0]]), [0, 0.1, 1])
    np.testing.assert_allclose(area, [0.3, 0.05])


def test_road_is_pytorch_grad_cams():
    images, right, _ = spotted()
    heat = right + 0.01 * np.random.default_rng(0).random(right.shape).astype(np.float32)
    peer = ROADCombined(percentiles=[50, 75, 90])  # of the pixels are kept
    theirs = peer(images, heat, [ClassifierOutputSoftmaxTarget(1)] * 2, Spotter())
    ours = explanations.road(Spotter(), images, torch.tensor([1, 1]), heat, (0.5, 0.25, 0.1))
    assert ours.min() > 0.2
    np.testing.assert_allclose(ours, theirs, atol=0.02)


# --- A verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.2, 0.4, "yes", "no"),
        (-0.2, 0.05, "no", "yes"),
        (0.05, 0.15, "not shown", "not shown"),
        (0.1, 0.2, "not shown", "not shown"),  # what is asked is one of its ends
        (np.nan, np.nan, "not shown", "not shown"),
    ],
)
def test_verdict_takes_the_whole_interval(low, high, above, below):
    assert explanations.verdict(low, high, 0.1) == above
    assert explanations.verdict(low, high, 0.1, below=True) == below


def test_over_networks_is_the_interval_over_slides_and_counts_the_luck_of_a_network():
    tiles, groups = np.random.default_rng(0).normal(size=40), np.arange(40) // 4
    mean, *interval = explanations.over_networks(np.stack([tiles] * 6), groups)
    expected = bootstrap_interval(lambda k: tiles[k].mean(), 40, groups, samples=400)
    assert mean == pytest.approx(tiles.mean()) and interval == pytest.approx(expected)
    values = np.repeat([[0.0], [1.0]], 50, axis=1)  # two networks that differ, tiles that do not
    values[0, :10] = np.nan
    assert explanations.over_networks(values) == (pytest.approx(50 / 90), 0, 1)


# --- Ink -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """One tile without its dot of ink, and with it."""
    return [draw(TissueParameters(ink_dot=dot), 1) for dot in (0, 1)]


def test_ink_is_found_where_it_was_put(drawn):
    plain, marked = drawn
    found = shortcuts.ink_mask(marked.image[None], plain.image[None])[0]
    both, either = (found & marked.ink).sum(), (found | marked.ink).sum()
    assert marked.ink.sum() > 500 and both / either > 0.9
    assert not shortcuts.ink_mask(plain.image[None], plain.image[None]).any()


def test_a_stamp_is_the_dot_of_drawn_tiles(drawn):
    ink = drawn[1].ink
    white = np.full((2, 3, *ink.shape), 240, np.uint8)
    stamped = shortcuts.paint_dots(white, np.array([False, True]))
    assert (stamped[0] == 240).all() and (white == 240).all()
    assert stamped[1].min(axis=(1, 2)).tolist() == [59, 131, 97]  # 240 times e to -1.4, -0.6, -0.9
    dot = stamped[1, 0] < 240
    assert dot.sum() == pytest.approx(ink.sum(), rel=0.05)
    for found in (dot, ink > 0):  # a drawn tile is turned at the end: any corner
        from_centre = abs(np.argwhere(found).mean(axis=0) - 111.5) / 224
        assert ((from_centre > 0.35) & (from_centre < 0.42)).all()


def test_corners_and_cells_of_ink_by_hand():
    corner = np.zeros((5, 1, 4, 4))
    corner[:, 0, 0, 0] = 1
    found = [np.argwhere(image[0])[0].tolist() for image in shortcuts.turned(corner)]
    assert found == [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]
    dots = np.zeros((4, 8, 8), np.uint8)
    dots[:3, 0, 0], dots[0, 0, 1] = 1, 1  # one of three dots is larger; the fourth tile has none
    found = np.argwhere(shortcuts.four_corners(dots))
    assert sorted(map(tuple, found)) == [(0, 0), (0, 7), (7, 0), (7, 7)]
    region = np.zeros((3, 8, 8), np.uint8)
    region[0, 0, 0] = 1
    region[1, 1, 0:4], region[1, 2, 0] = 1, 1  # two pixels in each of two cells, one in a third
    found = np.argwhere(shortcuts.cells_of(region, 4))  # those half as full as the fullest
    assert found.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_ink_scores_by_hand():
    place = np.zeros((2, 16, 16), np.uint8)
    place[:, :2, :2] = 1
    maps, fine = torch.zeros(2, 4, 4), torch.zeros(2, 16, 16)
    maps[0, 0, 0], maps[1, 3, 3] = 1, 1
    fine[:, 0, 0], fine[:, 15, 15] = 3, 1
    found = shortcuts.ink_scores({"coarse": maps, "fine": fine, "none": 0 * maps}, place, 4)
    assert found["hit", "coarse"].tolist() == [1, 0]  # the cell counts, not the pixel
    assert found["hit", "fine"].tolist() == [1, 1] and found["mass", "fine"].tolist() == [0.75] * 2
    # Enlarged, the hot cell fades into its neighbours: 0.25 of its heat is in 4 of its 16 pixels.
    assert 4 / 36 < found["mass", "coarse"][0] <= 0.25 and found["mass", "coarse"][1] == 0
    assert np.isnan(found["hit", "none"]).all() and np.isnan(found["mass", "none"]).all()


def test_ink_table_says_which_tiles_the_ink_decided(monkeypatch):
    images, labels = np.full((6, 3, 64, 64), 200, np.uint8), np.array([1, 0, 1, 0, 1, 0])
    tiles, fabric = SimpleNamespace(images=images, name="ebhi"), SimpleNamespace(device="cpu")
    given = {"seed": 0, "labels": labels.take, "tiles": tiles, "fabric": fabric}
    answers = iter([[1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1]])  # with ink, and without
    monkeypatch.setattr(shortcuts, "predict", lambda *_: np.eye(2)[next(answers)])
    t = SimpleNamespace(recipe=claims.Recipe(size=64), **given)
    table = shortcuts.ink_table(t, make_model(classes=2), np.arange(6))
    assert table["dotted"].tolist() == [True, False] * 3
    assert table["decided"].tolist() == [True] + [False] * 5
    assert table["free"].tolist() == [False, True, False, False, False, True]
    # 8 x 8 cells of a 64 px tile at layer3: 4 x 4. A dot lies in one of them, four dots in four.
    np.testing.assert_allclose(table["chance hit"], [1 / 16, 4 / 16] * 3)
    assert table["chance mass"].between(0.01, 0.09).all()
    assert table.loc[table["free"], "other mass Grad-CAM"].notna().any()
    assert table.loc[~table["free"], "other mass Grad-CAM"].isna().all()


@pytest.mark.slow
def test_the_study_measures_every_arm(tmp_path, monkeypatch):
    monkeypatch.setenv("CRC_HELPERS_CACHE", str(tmp_path / "cache"))
    small = claims.Recipe(n_tiles=120, size=32, steps=4, batch=16)
    rows = common.measure(study.STUDY, seeds=1, recipe=small, folder=tmp_path).set_index("arm")
    assert list(rows.index) == [*study.ARMS, "ink", "ink"]
    networks = rows.loc[list(study.ARMS)]
    alike = networks[[f"spearman {m}" for m in study.MAPS]]
    assert alike.loc["trained"].to_numpy() == pytest.approx(1, abs=0.01)
    assert (alike.loc[list(shortcuts.RETRAINED)] < 0.9).to_numpy().all()
    assert networks["area"].nunique() == 1 and networks["mass centre"].nunique() == 1
    dots = rows.loc["ink", "chance mass"].dropna()  # so small a network may heed no dot
    assert (dots < 0.05).all() and networks["area"].iloc[0] > 0.05


@pytest.mark.slow
def test_each_training_has_its_own_seed_labels_and_ink(monkeypatch):
    seen = []

    def fine_tune(_network, train, _val, _views, _fabric, how):
        seen.append((*train, how.seed))

    monkeypatch.setattr(shortcuts, "trained_once", lambda network, learn, **_: learn() or network)
    monkeypatch.setattr(shortcuts, "fine_tune", fine_tune)
    t = claims.Experiment.of_seed(0, claims.Recipe(n_tiles=96, size=32, steps=4, batch=8))
    for arm in ("trained", *shortcuts.RETRAINED, "ink"):
        shortcuts.train_network(t, arm)
    assert [seed for *_, seed in seen] == [0, 1000, 2000, 3000, 4000, 0]
    clean, inked = seen[0][0], seen[-1][0]
    assert all((images == clean).all() for images, *_ in seen[:-1])
    dotted = shortcuts.ink_mask(inked, clean).any(axis=(1, 2))
    assert (dotted == (t.labels(t.parts.train) == 1)).all() and dotted.any()
    labels = t.tiles.labels.copy()
    labels[np.setdiff1d(np.arange(96), t.parts.train)[::2]] = -1  # of classes outside the task
    shortcuts.train_network(replace(t, tiles=replace(t.tiles, labels=labels)), "shuffled labels")
    shuffled, own = seen[-1][1], labels[t.parts.train]
    assert set(shuffled.tolist()) <= {0, 1} and (shuffled != own).mean() > 0.2
