"""Each transform, given its parameters, does what torchvision, scikit-image or SciPy does."""

import math
from dataclasses import replace

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

OFF = Views(crop=(1.0, 1.0), flip=False, turn=False, rotate=0.0, brightness=0.0, contrast=0.0,
            saturation=0.0, stain=0.0, grayscale=0.0, blur=0.0)  # fmt: skip
STRONG = Views(translate=0.1, shear=10.0, hue=0.1, grayscale=0.3, blur=1.0)  # everything at once


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_images(n=2, size=64, low=0.0, high=1.0, seed=0):
    """Smooth random images (n, 3, size, size) within [low, high]."""
    coarse = torch.rand(n, 3, 9, 9, generator=generator(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return low + (high - low) * smooth


def make_tiles(n=2, size=224, seed=0):
    return (make_images(n, size, seed=seed) * 255).to(torch.uint8)


def make_warp(n=2, **changes):
    """The warp matrices (n, 2, 3) of one set of parameters, the rest doing nothing."""
    values = {"width": 1, "height": 1, "centre_x": 0, "centre_y": 0, "flip_x": 1, "flip_y": 1,
              "angle": 0, "shear": 0, "shift_x": 0, "shift_y": 0} | changes  # fmt: skip
    return compose({k: torch.full((n,), float(v)) for k, v in values.items()})


def compose(p):
    """`compose_warp` of parameters by name."""
    pairs = [("width", "height"), ("centre_x", "centre_y"), ("flip_x", "flip_y")]
    sides, centre, flip = [(p[x], p[y]) for x, y in pairs]
    return compose_warp(sides, centre, flip, p["angle"], p["shear"], (p["shift_x"], p["shift_y"]))


def colour(images, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
    factors = (torch.full((len(images),), f) for f in (brightness, contrast, saturation, hue))
    return jitter_colour(images, *factors)


def disc(size, share=0.9):
    """Pixels that no rotation moves out of the tile."""
    axis = torch.linspace(-1, 1, size)
    return axis[:, None] ** 2 + axis[None] ** 2 < share**2


# --- Geometry ------------------------------------------------------------------------------------


def test_a_crop_on_whole_pixels_is_a_slice():
    images = make_images()
    # Columns 8 to 40 and rows 16 to 48 of 64, in half-sides from the centre.
    matrix = make_warp(width=0.5, height=0.5, centre_x=(24 - 32) / 32, centre_y=0)
    torch.testing.assert_close(warp(images, matrix, 32), images[..., 16:48, 8:40])


def test_a_crop_is_resized_as_torchvision_does():
    images = make_images()
    matrix = make_warp(width=0.5, height=0.25, centre_x=-0.25, centre_y=0.5)
    ours = warp(images, matrix, 64)
    theirs = tv.resized_crop(images, top=40, left=8, height=16, width=32, size=[64, 64],
                             antialias=False)  # fmt: skip
    # At its rim torchvision repeats the crop's last pixels; the warp sees the tile go on.
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "flip"), [("flip_x", tv.horizontal_flip), ("flip_y", tv.vertical_flip)]
)
def test_flips_are_torchvisions(change, flip):
    images = make_images()
    ours = warp(images, make_warp(**{change: -1}), 64)
    torch.testing.assert_close(ours, flip(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_of_a_square_move_pixels_and_mix_none(quarters):
    noise = torch.rand(2, 3, 64, 64, generator=generator())  # where mixing would show most
    ours = warp(noise, make_warp(angle=quarters * math.pi / 2), 64)
    torch.testing.assert_close(ours, torch.rot90(noise, quarters, (2, 3)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("degrees", [-17.0, 3.0, 40.0])
def test_a_rotation_is_torchvisions_anticlockwise(degrees):
    images = make_images()
    ours = warp(images, make_warp(angle=math.radians(degrees)), 64)
    theirs = tv.rotate(images, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours[..., disc(64)], theirs[..., disc(64)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [-10.0, 5.0])
def test_a_shear_is_torchvisions(degrees):
    images = make_images()
    ours = warp(images, make_warp(shear=math.tan(math.radians(degrees))), 64)
    theirs = tv.affine(images, 0.0, [0, 0], 1.0, [degrees, 0.0], InterpolationMode.BILINEAR)
    inside = disc(64, 0.8)  # a slope of 0.18 moves no pixel of this disc out of the tile
    torch.testing.assert_close(ours[..., inside], theirs[..., inside], atol=1e-4, rtol=0)


def test_a_shift_is_torchvisions_the_other_way():
    images = make_images()
    ours = warp(images, make_warp(shift_x=6 / 32, shift_y=-3 / 32), 64)  # 6 and -3 pixels of 64
    theirs = tv.affine(images, 0.0, [-6, 3], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours[..., 8:-8, 8:-8], theirs[..., 8:-8, 8:-8], atol=1e-4, rtol=0)


def test_the_composed_warp_takes_a_point_through_every_step():
    names = ("width", "height", "centre_x", "centre_y", "flip_x", "flip_y", "angle", "shear",
             "shift_x", "shift_y")  # fmt: skip
    values = torch.rand(10, 20, generator=generator(), dtype=torch.float64) - 0.5
    p = dict(zip(names, values, strict=True))
    x, y = 0.3, -0.7  # the point (x, y) of the view
    a, b = x + p["shear"] * y, torch.full_like(p["shear"], y)
    a, b = (
        p["angle"].cos() * a - p["angle"].sin() * b + p["shift_x"],
        p["angle"].sin() * a + p["angle"].cos() * b + p["shift_y"],
    )
    a, b = a * p["flip_x"], b * p["flip_y"]
    a, b = p["width"] * a + p["centre_x"], p["height"] * b + p["centre_y"]
    found = compose(p) @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found, torch.stack([a, b], dim=1))


def test_what_lies_outside_the_tile_is_mirrored_in():
    images = make_images()
    shifted = warp(images, make_warp(shift_x=20 / 32), 64)  # 20 pixels to the left
    mirrored = np.pad(images.numpy(), [(0, 0), (0, 0), (0, 0), (0, 20)], mode="symmetric")
    np.testing.assert_allclose(shifted, mirrored[..., 20:], atol=1e-5)


def test_no_warp_leaves_dark_corners():
    white = torch.ones(64, 3, 64, 64)
    matrix = draw_parameters(64, replace(STRONG, rotate=45.0, translate=0.3), generator()).warp
    torch.testing.assert_close(warp(white, matrix, 64), white)


@pytest.mark.parametrize("size", [96, 64, (80, 48)])
def test_shrinking_is_torchvisions_antialiased_resize(size):
    height, width = size if isinstance(size, tuple) else (size, size)
    tiles = make_tiles()[:, :, :height, :width]
    theirs = tv.resize(tiles, [48, 48], antialias=True).float() / 255
    torch.testing.assert_close(shrink(tiles, 48), theirs, atol=0, rtol=0)


def test_shrinking_to_its_own_size_only_scales():
    tiles = make_tiles(size=32)
    torch.testing.assert_close(shrink(tiles, 32), tiles / 255, atol=0, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_shrinking_works_on_the_training_device():
    tiles = make_tiles()
    # A GPU rounds where the CPU's integer arithmetic does: one level of 255 apart at most.
    torch.testing.assert_close(shrink(tiles.cuda(), 96).cpu(), shrink(tiles, 96),
                               atol=1.01 / 255, rtol=0)  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_are_made_without_waiting_for_the_gpu():
    tiles, generator = make_tiles().cuda(), torch.Generator().manual_seed(0)
    two_views(tiles, VIEWS["tissue"], 16, generator)  # a first call may set things up
    torch.cuda.set_sync_debug_mode("error")
    try:
        two_views(tiles, VIEWS["tissue"], 16, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Colour --------------------------------------------------------------------------------------

# torchvision's grey has 0.2989 for red where BT.601 has 0.299, hence the tolerance. The images
# keep to the middle of the range, where neither clips on the way.
GREY_TOLERANCE = {"atol": 3e-4, "rtol": 0}


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_colour_change_is_torchvisions(name, factor):
    images = make_images(low=0.3, high=0.7)
    theirs = getattr(tv, f"adjust_{name}")(images, factor)
    torch.testing.assert_close(colour(images, **{name: factor}), theirs, **GREY_TOLERANCE)


def test_colour_changes_follow_each_other_as_in_torchvision():
    images = make_images(low=0.35, high=0.65)
    theirs = tv.adjust_brightness(images, 1.2)
    theirs = tv.adjust_saturation(tv.adjust_contrast(theirs, 0.8), 1.3)
    torch.testing.assert_close(colour(images, 1.2, 0.8, 1.3), theirs, **GREY_TOLERANCE)


def test_no_saturation_is_torchvisions_grey():
    images = make_images()
    theirs = tv.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(colour(images, saturation=0.0), theirs, **GREY_TOLERANCE)


@pytest.mark.parametrize("turns", [-0.1, 0.05, 0.3])
def test_hue_turns_colours_around_the_grey_axis(turns):
    images = make_images(low=0.35, high=0.65)
    turn = Rotation.from_rotvec(2 * np.pi * turns * np.ones(3) / np.sqrt(3)).as_matrix()
    expected = torch.einsum("ij,njhw->nihw", torch.from_numpy(turn).float(), images)
    torch.testing.assert_close(colour(images, hue=2 * math.pi * turns), expected)


def test_a_third_of_a_hue_turn_makes_red_green():
    red, green = torch.zeros(2, 1, 3, 4, 4)
    red[:, 0], green[:, 1] = 1, 1
    torch.testing.assert_close(colour(red, hue=2 * math.pi / 3), green, atol=1e-6, rtol=0)


def test_hue_leaves_grey_alone():
    grey = make_images()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(colour(grey, hue=1.0), grey)


def test_colour_stays_in_range():
    changed = colour(make_images(), brightness=1.4, contrast=1.4, saturation=1.4, hue=0.3)
    assert changed.min() == 0 and changed.max() == 1  # it clips at both ends, and not past them


def test_stain_jitter_is_scikit_images_separation_scaled_and_recombined():
    rng = np.random.default_rng(0)
    stains = STAINS.double().numpy()
    amounts = rng.uniform(0.02, 0.6, (1, 32, 32, 3))  # scikit-image drops negative ones
    image = np.exp(-amounts @ stains)  # Beer-Lambert
    factors = np.array([1.3, 0.7, 1.0])
    separated = separate_stains(image, np.linalg.inv(stains))
    expected = combine_stains(separated * factors, stains)
    ours = jitter_stain(
        torch.from_numpy(image).permute(0, 3, 1, 2).float(), torch.tensor(factors[None]).float()
    )
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), expected, atol=1e-5)


@pytest.mark.parametrize("dye", [0, 1])
def test_stain_jitter_scales_one_dye_and_leaves_the_other(dye):
    pure = (-0.8 * STAINS[dye]).exp().view(1, 3, 1, 1).expand(1, 3, 4, 4)
    own, other = torch.ones(2, 1, 3)
    own[0, dye], other[0, 1 - dye] = 1.5, 1.5
    deeper = (-1.2 * STAINS[dye]).exp().view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(jitter_stain(pure, own), deeper)
    torch.testing.assert_close(jitter_stain(pure, other), pure)


def test_the_stain_matrix_has_unit_rows_and_a_residual_at_a_right_angle():
    gram = STAINS @ STAINS.T
    torch.testing.assert_close(gram.diagonal(), torch.ones(3))
    torch.testing.assert_close(gram[2, :2], torch.zeros(2), atol=1e-6, rtol=0)


# --- Blur ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5])
def test_blur_is_torchvisions_with_the_same_taps(sigma):
    images = make_images()
    taps = 2 * math.ceil(3 * sigma) + 1
    theirs = tv.gaussian_blur(images, [taps, taps], [sigma, sigma])
    torch.testing.assert_close(blur(images, torch.full((2,), sigma)), theirs)


def test_no_sigma_leaves_an_image_of_a_blurred_batch_as_it_is():
    images = make_images(3)
    blurred = blur(images, torch.tensor([1.0, 0.0, 1.0]))
    assert torch.equal(blurred[1], images[1])
    assert not torch.equal(blurred[0], images[0]) and not torch.equal(blurred[2], images[2])


def test_a_kernel_wider_than_the_image_still_blurs():
    images = make_images(size=5)
    blurred = blur(images, torch.full((2,), 4.0))
    assert blurred.shape == images.shape
    assert blurred.var() < images.var()


# --- Views ---------------------------------------------------------------------------------------


def no_change(n):
    one = torch.ones(n)
    return Parameters(make_warp(n), torch.ones(n, 3), one, one, one, torch.zeros(n), torch.zeros(n))


def test_parameters_that_change_nothing_give_the_image_back():
    images = make_images(3)
    torch.testing.assert_close(apply(images, no_change(3), 64), images, atol=1e-5, rtol=0)


def test_a_recipe_with_everything_off_gives_the_tile_back():
    tiles = make_tiles(8, size=64)
    torch.testing.assert_close(
        one_view(tiles, OFF, 64, generator()), tiles / 255, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", list(VIEWS))
def test_every_recipe_makes_views_of_the_asked_size_in_range(name, size):
    for view in two_views(make_tiles(), VIEWS[name], size, generator()):
        assert view.shape == (2, 3, size, size) and view.dtype == torch.float32
        assert view.min() >= 0 and view.max() <= 1
        assert view.std() > 0.01


def test_the_same_seed_makes_the_same_views():
    tiles = make_tiles(4)
    first, again = (two_views(tiles, STRONG, 64, generator(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_another_seed_makes_other_views():
    tiles = make_tiles(4)
    first, other = (two_views(tiles, STRONG, 64, generator(seed)) for seed in (7, 8))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", list(VIEWS))
def test_the_two_views_of_a_tile_differ(name):
    first, second = two_views(make_tiles(8), VIEWS[name], 64, generator())
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_equal_tiles_of_a_batch_get_views_of_their_own():
    tiles = make_tiles(1).expand(4, -1, -1, -1)
    view = one_view(tiles, VIEWS["tissue"], 64, generator())
    gaps = [(view[i] - view[j]).abs().max() for i in range(4) for j in range(i)]
    assert min(gaps) > 0.01


def test_views_made_a_few_at_a_time_are_those_of_the_whole_batch(monkeypatch):
    tiles = make_tiles(7)
    whole = two_views(tiles, STRONG, 64, generator())
    monkeypatch.setattr(augmentation, "CPU_BUFFER", 2 * 12 * 64**2)  # two tiles, and one is left
    for few, all_at_once in zip(two_views(tiles, STRONG, 64, generator()), whole, strict=True):
        torch.testing.assert_close(few, all_at_once, atol=1e-5, rtol=0)
    monkeypatch.setattr(augmentation, "CPU_BUFFER", 1)
    assert one_view(tiles, STRONG, 64, generator()).shape == (7, 3, 64, 64)
    assert one_view(tiles[:0], STRONG, 64, generator()).shape == (0, 3, 64, 64)


def test_a_view_does_not_depend_on_the_rest_of_its_batch():
    images, p = make_images(6), draw_parameters(6, STRONG, generator())
    together = apply(images, p, 64)
    alone = [
        apply(images[i : i + 1], Parameters(**{k: v[i : i + 1] for k, v in vars(p).items()}), 64)
        for i in range(6)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_making_views_leaves_the_tiles_as_they_were():
    tiles = make_tiles()
    before = tiles.clone()
    two_views(tiles, STRONG, 64, generator())
    assert torch.equal(tiles, before)


# --- What is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_factors_fill_the_range_that_was_asked_for(name):
    drawn = getattr(draw_parameters(5000, replace(OFF, **{name: 0.4}), generator()), name)
    assert 0.6 <= drawn.min() < 0.61 and 1.39 < drawn.max() <= 1.4


def test_chances_are_those_asked_for():
    views = replace(OFF, saturation=0.4, grayscale=0.2, blur=0.3)
    p = draw_parameters(10_000, views, generator())
    # Five standard errors of a share of 10,000 draws are 0.02 and 0.023.
    assert (p.saturation == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert (p.sigma > 0).float().mean() == pytest.approx(0.3, abs=0.023)


def test_stain_jitter_leaves_the_residual_alone():
    stain = draw_parameters(1000, replace(OFF, stain=0.35), generator()).stain
    assert (stain[:, 2] == 1).all() and (stain[:, :2] != 1).all()
    assert ((stain - 1).abs() <= 0.35 + 1e-6).all()


def test_turns_and_flips_are_the_eight_symmetries_of_a_square():
    matrices = draw_parameters(1000, replace(OFF, turn=True, flip=True), generator()).warp
    linear = matrices[:, :, :2]
    linear = linear / torch.linalg.det(linear).abs().sqrt()[:, None, None]
    assert len({tuple(m.round().int().flatten().tolist()) for m in linear}) == 8


@pytest.mark.parametrize("crop", [(0.05, 0.1), (0.4, 1.0), (0.9, 1.0), (1.0, 1.0)])
def test_a_crop_keeps_the_share_of_the_area_asked_for(crop):
    matrices = draw_parameters(1000, replace(OFF, crop=crop), generator()).warp
    share = torch.linalg.det(matrices[:, :, :2])
    assert crop[0] - 1e-5 <= share.min() and share.max() <= crop[1] + 1e-5


def test_a_crop_stays_inside_the_tile():
    matrices = draw_parameters(1000, replace(OFF, crop=(0.05, 1.0)), generator()).warp
    corners = torch.tensor([[-1.0, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]]).T
    assert (matrices @ corners).abs().max() <= 1 + 1e-5
