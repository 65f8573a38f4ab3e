"""What a lesson shows is what it shares: functions taken out of the notebooks, and compared."""

import ast
import contextlib
import math
import re

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from crc_helpers import (
    augmentation,
    evaluation,
    explanations,
    fine_tuning,
    grad_cam,
    models,
    objectives,
    pretraining,
)
from crc_helpers.course.settings import lesson_files


def code_cells(number: int):
    (lesson,) = lesson_files(str(number))
    book = nbformat.read(lesson, as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def shown(number: int):
    """Namespace of a lesson's imports, functions and constants, without running its cells."""
    namespace = {}
    for cell in code_cells(number):
        for node in ast.parse(cell.source).body:
            constant = (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and re.fullmatch("[A-Z_]+", node.targets[0].id)
            )
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) or constant:
                # What needs a cell's data (a constant, a default) is left out.
                with contextlib.suppress(NameError):
                    exec(compile(ast.Module([node], []), str(number), "exec"), namespace)
    return namespace


def twins(make):
    """Three networks of equal weights: two to train, one to compare them with."""
    networks = []
    for _ in range(3):
        torch.manual_seed(0)
        networks.append(make())
    return networks


def same_steps(start, one, other):
    """Whether two networks moved from `start` alike, to 3 % of the way.

    Not to the bit: memory layouts sum in another order, and Adam makes a step of full length out
    of a gradient that is only rounding.
    """
    networks = (start, one, other)
    vectors = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in networks]
    moved = (vectors[1] - vectors[0]).norm()
    return bool(moved > 0 and (vectors[1] - vectors[2]).norm() < 0.03 * moved)


@pytest.fixture
def small_tiles():
    torch.manual_seed(100)  # how far rounding drives two runs apart depends on the tiles
    return torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8).numpy()


@pytest.fixture
def explained():
    """A random network, two tiles, a class each."""
    torch.manual_seed(0)
    model = models.Classifier(models.Encoder("resnet8"), 3).eval()
    torch.nn.init.normal_(model.fc.weight)
    return model, F.interpolate(torch.rand(2, 3, 4, 4), (64, 64)), torch.tensor([2, 0])


def test_split_shown_keeps_groups_whole():
    groups = np.array([f"g{i % 17}" for i in range(200)])
    rest, test = shown(1)["split_by_group"](groups, 0.3, seed=1)
    assert not set(groups[rest]) & set(groups[test])
    assert (rest ^ test).all() and 0.15 < test.mean() <= 0.3


def exact_mcnemar(a, b):
    return mcnemar([[0, (a & ~b).sum()], [(~a & b).sum(), 0]]).pvalue


Z = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
FLAT = 0.3 + 0.4 * torch.rand(1, 3, 20, 20)  # the middle of the range: nothing clips
RIGHT = np.random.default_rng(0).random((2, 90)) < 0.7
FUNCTIONS = [  # lesson, name there, what is shared, arguments
    (2, "blur", lambda image, sigma: augmentation.blur(image, torch.tensor([sigma])), (FLAT, 1.5)),
    (3, "nt_xent", pretraining.nt_xent, (Z[0, :2], Z[1, :2], 0.07)),
    (3, "nt_xent", pretraining.nt_xent, (*Z[:2], 1.0)),
    *((5, "wilson", evaluation.wilson_interval, counts) for counts in ((0, 5), (170, 198), (7, 7))),
    (8, "moco_loss", objectives.moco_loss, (*Z[:2], Z[2], 0.2)),
    (8, "simsiam_loss", objectives.simsiam_loss, tuple(Z[:4])),
    (8, "barlow_twins_loss", objectives.barlow_twins_loss, tuple(Z[:2])),
    (8, "sup_con_loss", objectives.sup_con_loss, (*Z[:2], torch.tensor([0, 1, 0, 2, 1, 0]), 0.2)),
    (7, "mcnemar", exact_mcnemar, tuple(RIGHT)),
    (7, "holm", lambda p: multipletests(p, method="holm")[1], (np.array([0.04, 0.01, 0.2, 0.03]),)),
]


@pytest.mark.parametrize(("number", "name", "shared", "given"), FUNCTIONS)
def test_function_shown_is_the_function_shared(number, name, shared, given):
    torch.testing.assert_close(shown(number)[name](*given), shared(*given), check_dtype=False)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_shown_is_colour_shared(name):
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | {name: 0.8}
    shared = augmentation.jitter_colour(FLAT, *(torch.tensor([v]) for v in factors.values()))
    torch.testing.assert_close(shown(2)[name](FLAT, 0.8), shared)


def test_stain_and_warp_shown_are_those_shared():
    lesson, image = shown(2), torch.rand(1, 3, 32, 32)
    shared = augmentation.jitter_stain(image, torch.tensor([[0.7, 1.3, 1.0]]))
    torch.testing.assert_close(lesson["stain"](image, 0.7, 1.3), shared, atol=1e-4, rtol=1e-4)
    matrix = lesson["crop_matrix"](0.5, 0.1, -0.2) @ lesson["affine_matrix"](30.0, shear=5.0)
    one = torch.ones(1)
    side = math.sqrt(0.5) * one
    turn, slope = torch.deg2rad(30 * one), torch.deg2rad(5 * one).tan()
    centre, flip, shift = (0.1 * one, -0.2 * one), (one, one), (0 * one, 0 * one)
    shared = augmentation.compose_warp((side, side), centre, flip, turn, slope, shift)
    torch.testing.assert_close(matrix[None, :2], shared)
    torch.testing.assert_close(lesson["warp"](image, matrix), augmentation.warp(image, shared, 32))


def test_two_views_shown_are_the_two_views_shared():
    tiles = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    given = tiles, augmentation.PAPER, 32
    one, other = shown(2)["two_views"], augmentation.two_views
    pairs = [f(*given, torch.Generator().manual_seed(1)) for f in (one, other)]
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b)


def test_loop_shown_ends_in_the_weights_of_the_shared_loop(small_tiles, fabric):
    common = dict(size=32, batch=8, lr=1e-3, temperature=0.2, seed=3)
    one, other, start = twins(lambda: models.Encoder("resnet8"))
    heads = twins(lambda: models.ProjectionHead(one.dim))
    shown(3)["train_steps"](one, heads[0], small_tiles, augmentation.TISSUE, **common)
    loss = pretraining.Contrast(common.pop("temperature"), fabric)
    training = pretraining.Training(epochs=1, **common)
    model = torch.nn.Sequential(other, heads[1])
    pretraining.pretrain(model, small_tiles, augmentation.TISSUE, fabric, training, loss)
    assert same_steps(start, one, other)


def test_supervised_loop_shown_ends_in_the_weights_of_the_shared_loop(small_tiles, fabric):
    tiles, labels = small_tiles, np.arange(24) % 2
    common = dict(size=32, batch=8, lr=1e-3, seed=3)
    one, other, start = twins(lambda: models.Classifier(models.Encoder("resnet8"), 2))
    shown(4)["train_one_epoch"](one, tiles, labels, augmentation.GENTLE, **common)
    training, none = pretraining.Training(epochs=1, **common), (tiles[:0], labels[:0])
    fine_tuning.fine_tune(other, (tiles, labels), none, augmentation.GENTLE, fabric, training)
    assert same_steps(start, one, other)


def test_cross_entropy_by_hand_is_torchs():
    (cell,) = [c for c in code_cells(4) if "by_hand =" in c.source]
    found = {"torch": torch, "F": F}
    exec(cell.source, found)
    torch.testing.assert_close(found["by_hand"], F.cross_entropy(found["logits"], found["y"]))


@pytest.mark.parametrize("backbone", ["resnet8", "vit_tiny_patch16_224"])
def test_steps_shown_end_in_the_map_shared(backbone, capsys):
    torch.manual_seed(0)
    model = models.Classifier(models.Encoder(backbone), 2).eval()
    x = torch.rand(1, 3, 32, 32)
    given = {"model": model, "x": x, "names": ("HP", "SSA"), "grad_cam": grad_cam, "torch": torch}
    given["FIRST"] = grad_cam.last_layer(model, x)
    sources = {cell.id: cell.source for cell in code_cells(6)}
    for step in ("007", "009", "011", "013", "017"):
        exec(sources[f"06-{step}"], given)
    assert "equal to the steps above: True" in capsys.readouterr().out


def test_grad_cam_shown_is_grad_cam_shared(explained):
    lesson, (model, images, _) = shown(6), explained
    logits, activations = lesson["forward_with_hook"](model, images.clone(), "layer2")
    gradient = lesson["gradient_of_score"](logits, activations, 2)
    raw = lesson["weighted_sum"](lesson["channel_weights"](gradient), activations).relu()
    shared = grad_cam.grad_cam(model, images, 2, "layer2")
    torch.testing.assert_close(raw.detach(), shared.maps, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["hires_cam", "layer_cam"])
@pytest.mark.parametrize("layer", ["layer2", "layer3"])
def test_other_cams_shown_are_those_shared(explained, name, layer):
    found = shown(9)[name](*grad_cam.evidence(*explained, layer)[:2])
    shared = getattr(explanations, name)(*explained, layer)
    assert shared.max() > 0
    torch.testing.assert_close(found, shared)


def test_gradients_occlusion_and_deletion_shown_are_those_shared(explained):
    lesson, (model, images, target) = shown(9), explained
    path = explanations.integrated_gradients(model, images, target, 100)
    covered = explanations.occlusion(model, images, target, 16, 16)
    heat, shares = np.random.default_rng(0).random((2, 64, 64)), (0, 0.1, 0.3, 0.8)
    curves = explanations.perturbation_curve(
        model, images, target, heat, explanations.mean_fill, shares
    )
    assert np.ptp(curves, axis=1).max() > 0.01
    for k, c in enumerate(target.tolist()):
        given = model, images[k : k + 1], c
        # Their points on the way differ, and so do the sums, a little.
        assert (lesson["path_gradients"](*given, 100) - path[k]).norm() < 0.1 * path[k].norm()
        torch.testing.assert_close(lesson["cover"](*given, 16), covered[k], atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            found = lesson["deletion"](*given, heat[k], shares)
        np.testing.assert_allclose(found, curves[k], atol=1e-5)
