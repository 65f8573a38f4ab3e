"""Each transform, given its parameters, does what torchvision, scikit-image or SciPy does."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from skimage.color import combine_stains, separate_stains
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from crc_helpers import augmentation
from crc_helpers.augmentation import (
    STAINS,
    VIEWS,
    Parameters,
    Views,
    apply,
    blur,
    compose_warp,
    draw_parameters,
    jitter_colour,
    jitter_stain,
    one_view,
    shrink,
    two_views,
    warp,
)

ZERO = {f.name: 0.0 for f in fields(Views) if isinstance(f.default, float)}
OFF = Views(crop=(1.0, 1.0), flip=False, turn=False, **ZERO)
STRONG = Views(translate=0.1, shear=10.0, hue=0.1, grayscale=0.3, blur=1.0)  # everything at once
PAIRS = [("width", "height"), ("centre_x", "centre_y"), ("flip_x", "flip_y")]
GEOMETRY = [*sum(PAIRS, ()), "angle", "shear", "shift_x", "shift_y"]
close = torch.testing.assert_close


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(n=2, size=64, low=0.0, high=1.0):
    """Smooth random images (n, 3, size, size) within [low, high]."""
    coarse = torch.rand(n, 3, 9, 9, generator=generator())
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return low + (high - low) * smooth


def make_tiles(n=2, size=96):
    return (make_images(n, size) * 255).to(torch.uint8)


def compose(p):
    """`compose_warp` of parameters by name."""
    sides, centre, flip = [(p[x], p[y]) for x, y in PAIRS]
    return compose_warp(sides, centre, flip, p["angle"], p["shear"], (p["shift_x"], p["shift_y"]))


def make_warp(n=2, **changes):
    """The warp matrices (n, 2, 3) of one set of parameters, the rest doing nothing."""
    values = dict.fromkeys(GEOMETRY, 0.0) | dict.fromkeys(("width", "height"), 1.0)
    values |= {"flip_x": 1.0, "flip_y": 1.0} | changes
    return compose({k: torch.full((n,), float(v)) for k, v in values.items()})


def colour(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    factors = (torch.full((len(images),), f) for f in (brightness, contrast, saturation, hue))
    return jitter_colour(images, *factors)


def disc(size, share):
    """Pixels that no rotation moves out of the tile."""
    axis = torch.linspace(-1, 1, size)
    return axis[:, None] ** 2 + axis[None] ** 2 < share**2


# --- Geometry ------------------------------------------------------------------------------------

LINEAR = {"interpolation": InterpolationMode.BILINEAR}
SEEN, RIM, ALL = disc(64, 0.8), disc(64, 0), disc(64, 2)
RIM[8:-8, 8:-8] = True  # at its rim torchvision repeats pixels; the warp sees the tile go on
CROP = {"width": 0.5, "height": 0.25, "centre_x": -0.25, "centre_y": 0.5}


def torchvision_affine(x, shift=(0, 0), shear=0.0):
    return tv.affine(x, 0.0, list(shift), 1.0, [shear, 0.0], **LINEAR)


@pytest.mark.parametrize(
    ("change", "theirs", "where"),
    [
        (CROP, lambda x: tv.resized_crop(x, 40, 8, 16, 32, [64, 64], antialias=False), RIM),
        ({"flip_x": -1}, tv.horizontal_flip, ALL),
        ({"flip_y": -1}, tv.vertical_flip, ALL),
        ({"angle": math.pi / 2}, lambda x: torch.rot90(x, 1, (2, 3)), ALL),
        ({"angle": math.radians(-17)}, lambda x: tv.rotate(x, -17, **LINEAR), SEEN),
        ({"shear": math.tan(math.radians(10))}, lambda x: torchvision_affine(x, shear=10.0), SEEN),
        # A view moves the other way.
        ({"shift_x": 6 / 32, "shift_y": -3 / 32}, lambda x: torchvision_affine(x, (-6, 3)), RIM),
    ],
    ids=["crop", "flip x", "flip y", "quarter turn", "rotation", "shear", "shift"],
)
def test_a_warp_is_torchvisions(change, theirs, where):
    images = make_images()
    ours, theirs = warp(images, make_warp(**change), 64), theirs(images)
    close(ours[..., where], theirs[..., where], atol=1e-4, rtol=0)


def test_the_composed_warp_takes_a_point_through_every_step():
    values = torch.rand(10, 20, generator=generator(), dtype=torch.float64) - 0.5
    p = dict(zip(GEOMETRY, values, strict=True))
    x, y = 0.3, -0.7  # the point (x, y) of the view
    a, b = x + p["shear"] * y, torch.full_like(p["shear"], y)
    sin, cos = p["angle"].sin(), p["angle"].cos()
    a, b = cos * a - sin * b + p["shift_x"], sin * a + cos * b + p["shift_y"]
    a, b = a * p["flip_x"], b * p["flip_y"]
    a, b = p["width"] * a + p["centre_x"], p["height"] * b + p["centre_y"]
    found = compose(p) @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    close(found, torch.stack([a, b], dim=1))


def test_what_lies_outside_the_tile_is_mirrored_in():
    images = make_images()
    shifted = warp(images, make_warp(shift_x=20 / 32), 64)  # 20 pixels to the left
    mirrored = np.pad(images.numpy(), [(0, 0), (0, 0), (0, 0), (0, 20)], mode="symmetric")
    np.testing.assert_allclose(shifted, mirrored[..., 20:], atol=1e-5)


@pytest.mark.parametrize("size", [96, 48, (80, 64)])
def test_shrinking_is_torchvisions_antialiased_resize(size):
    height, width = size if isinstance(size, tuple) else (size, size)
    tiles = make_tiles()[:, :, :height, :width]
    theirs = tv.resize(tiles, [48, 48], antialias=True).float() / 255
    close(shrink(tiles, 48), theirs, atol=0, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_are_made_on_the_gpu_without_waiting_for_it():
    tiles, generator = make_tiles().cuda(), torch.Generator().manual_seed(0)
    # A GPU rounds where the CPU's integer arithmetic does: one level of 255 apart at most.
    close(shrink(tiles, 48).cpu(), shrink(tiles.cpu(), 48), atol=1.01 / 255, rtol=0)
    two_views(tiles, VIEWS["tissue"], 16, generator)  # a first call may set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        two_views(tiles, VIEWS["tissue"], 16, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Colour and blur -----------------------------------------------------------------------------

# torchvision's grey has 0.2989 for red where BT.601 has 0.299, hence the tolerance. The images
# keep to the middle of the range, where neither clips on the way.
GREY_TOLERANCE = {"atol": 3e-4, "rtol": 0}


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_colour_change_is_torchvisions(name):
    images = make_images(low=0.3, high=0.7)
    theirs = getattr(tv, f"adjust_{name}")(images, 1.3)
    close(colour(images, **{name: 1.3}), theirs, **GREY_TOLERANCE)


def test_colour_changes_follow_each_other_as_in_torchvision_and_stay_in_range():
    images = make_images(low=0.35, high=0.65)
    theirs = tv.adjust_brightness(images, 1.2)
    theirs = tv.adjust_saturation(tv.adjust_contrast(theirs, 0.8), 1.3)
    close(colour(images, 1.2, 0.8, 1.3), theirs, **GREY_TOLERANCE)
    changed = colour(make_images(), brightness=1.4, contrast=1.4, saturation=1.4, hue=0.3)
    assert changed.min() == 0 and changed.max() == 1  # it clips at both ends, and not past them


def test_hue_turns_colours_around_the_grey_axis():
    images, turns = make_images(low=0.35, high=0.65), 0.05
    turn = Rotation.from_rotvec(2 * np.pi * turns * np.ones(3) / np.sqrt(3)).as_matrix()
    expected = torch.einsum("ij,njhw->nihw", torch.from_numpy(turn).float(), images)
    close(colour(images, hue=2 * math.pi * turns), expected)
    red, green = torch.zeros(2, 1, 3, 4, 4)
    red[:, 0], green[:, 1] = 1, 1
    close(colour(red, hue=2 * math.pi / 3), green, atol=1e-6, rtol=0)


def test_stain_jitter_is_scikit_images_separation_scaled_and_recombined():
    rng, stains = np.random.default_rng(0), STAINS.double().numpy()
    amounts = rng.uniform(0.02, 0.6, (1, 32, 32, 3))  # scikit-image drops negative ones
    image = np.exp(-amounts @ stains)  # Beer-Lambert
    factors = np.array([1.3, 0.7, 1.0])
    separated = separate_stains(image, np.linalg.inv(stains))
    expected = combine_stains(separated * factors, stains)
    given = torch.from_numpy(image).permute(0, 3, 1, 2).float()
    ours = jitter_stain(given, torch.tensor(factors[None]).float())
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_blur_is_torchvisions_with_the_same_taps():
    images = make_images(3)
    blurred = blur(images, torch.tensor([1.0, 0.0, 1.0]))
    close(blurred[[0, 2]], tv.gaussian_blur(images[[0, 2]], [7, 7], [1.0, 1.0]))
    assert torch.equal(blurred[1], images[1])  # no sigma leaves it as it is
    small = make_images(size=5)  # a kernel wider than the image
    assert blur(small, torch.full((2,), 4.0)).var() < small.var()


# --- Views ---------------------------------------------------------------------------------------


def test_a_recipe_with_everything_off_gives_the_tile_back():
    tiles = make_tiles(8, size=64)
    close(one_view(tiles, OFF, 64, generator()), tiles / 255, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(VIEWS))
def test_every_recipe_makes_two_different_views_in_range(name):
    tiles = make_tiles(4)
    before = tiles.clone()
    first, second = two_views(tiles, VIEWS[name], 64, generator())
    for view in (first, second):
        assert view.shape == (4, 3, 64, 64) and view.dtype == torch.float32
        assert view.min() >= 0 and view.max() <= 1 and view.std() > 0.01
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    assert torch.equal(tiles, before)


def test_views_depend_on_the_seed_and_each_tile_has_its_own():
    tiles = make_tiles(1).expand(4, -1, -1, -1)
    (view, _), (again, _), (other, _) = (
        two_views(tiles, STRONG, 64, generator(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(view, again) and not torch.equal(view, other)
    assert min((view[i] - view[j]).abs().max() for i in range(4) for j in range(i)) > 0.01


def test_views_made_a_few_at_a_time_are_those_of_the_whole_batch(monkeypatch):
    tiles = make_tiles(7)
    whole = two_views(tiles, STRONG, 64, generator())
    monkeypatch.setattr(augmentation, "CPU_BUFFER", 2 * 12 * 64**2)  # two tiles, and one is left
    for few, all_at_once in zip(two_views(tiles, STRONG, 64, generator()), whole, strict=True):
        close(few, all_at_once, atol=1e-5, rtol=0)
    monkeypatch.setattr(augmentation, "CPU_BUFFER", 1)
    assert one_view(tiles, STRONG, 64, generator()).shape == (7, 3, 64, 64)
    assert one_view(tiles[:0], STRONG, 64, generator()).shape == (0, 3, 64, 64)


def test_a_view_does_not_depend_on_the_rest_of_its_batch():
    images, p = make_images(6), draw_parameters(6, STRONG, generator())
    one_of = [Parameters(**{k: v[i : i + 1] for k, v in vars(p).items()}) for i in range(6)]
    alone = [apply(images[i : i + 1], one_of[i], 64) for i in range(6)]
    close(apply(images, p, 64), torch.cat(alone), atol=1e-5, rtol=0)


# --- What is drawn -------------------------------------------------------------------------------


def test_chances_are_those_asked_for_and_stain_jitter_leaves_the_residual_alone():
    views = replace(OFF, saturation=0.4, grayscale=0.2, blur=0.3, stain=0.35)
    p = draw_parameters(10_000, views, generator())
    # Five standard errors of a share of 10,000 draws are 0.02 and 0.023.
    assert (p.saturation == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert (p.sigma > 0).float().mean() == pytest.approx(0.3, abs=0.023)
    assert (p.stain[:, 2] == 1).all() and (p.stain[:, :2] != 1).all()
    assert ((p.stain - 1).abs() <= 0.35 + 1e-6).all()
    assert p.stain[:, 0].min() < 0.66 and p.stain[:, 0].max() > 1.34  # the range is filled


@pytest.mark.parametrize(("flip", "symmetries"), [(False, 4), (True, 8)])
def test_turns_and_flips_are_the_symmetries_of_a_square(flip, symmetries):
    matrices = draw_parameters(1000, replace(OFF, turn=True, flip=flip), generator()).warp
    linear = matrices[:, :, :2]
    linear = linear / torch.linalg.det(linear).abs().sqrt()[:, None, None]
    assert len({tuple(m.round().int().flatten().tolist()) for m in linear}) == symmetries


@pytest.mark.parametrize("crop", [(0.05, 0.1), (0.4, 1.0)])
def test_a_crop_has_the_area_asked_for_and_stays_inside_the_tile(crop):
    matrices = draw_parameters(1000, replace(OFF, crop=crop), generator()).warp
    share = torch.linalg.det(matrices[:, :, :2])
    assert crop[0] - 1e-5 <= share.min() and share.max() <= crop[1] + 1e-5
    corners = torch.tensor([[-1.0, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]]).T
    assert (matrices @ corners).abs().max() <= 1 + 1e-5
