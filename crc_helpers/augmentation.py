"""Augmented views of tiles, a batch at a time on the training device (lesson 02).

All geometry (crop, flips, turns, affine) is one warp and all linear colour one 3x4 matrix, so a
batch is read and written few times. Each sample has parameters of its own, drawn on the CPU so
that a seed gives the same views on every device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Ruifrok & Johnston (2001): optical density of pure haematoxylin and eosin in R, G, B; the third
# row is what neither explains, at a right angle to both (not DAB, which is not in the slide).
_H, _E = torch.tensor([0.65, 0.70, 0.29]), torch.tensor([0.07, 0.99, 0.11])
STAINS = F.normalize(torch.stack([_H, _E, torch.linalg.cross(_H, _E)]), dim=1)  # (3, 3), rows
UNSTAIN = torch.linalg.inv(STAINS)  # here and not on a GPU, which would have to be waited for
LUMA = torch.tensor([0.299, 0.587, 0.114])  # weights of R, G, B in grey (ITU-R BT.601)
# Bytes of float views made at a time on a CPU. Buffers of many megabytes leave the cache and are
# given back to the system after each step, which then zeroes every page anew: half of the time.
CPU_BUFFER = 8_000_000


@dataclass(frozen=True)
class Views:
    """How strongly a view may differ from its tile; zero switches a transform off, crop (1, 1)."""

    crop: tuple[float, float] = (0.4, 1.0)  # share of the tile's area kept, lowest and highest
    flip: bool = True  # horizontal and vertical, each with probability 1/2
    turn: bool = True  # by 0, 90, 180 or 270 degrees
    rotate: float = 10.0  # largest further rotation, degrees
    translate: float = 0.0  # largest shift, share of the side
    shear: float = 0.0  # largest shear, degrees
    brightness: float = 0.2  # largest relative change
    contrast: float = 0.2  # largest relative change
    saturation: float = 0.2  # largest relative change
    hue: float = 0.0  # largest rotation of the colour circle, in full turns
    stain: float = 0.35  # largest relative change of the haematoxylin and of the eosin
    grayscale: float = 0.2  # probability
    blur: float = 0.3  # probability
    blur_sigma: tuple[float, float] = (0.3, 1.5)  # lowest and highest, pixels of the view


# The paper names its transforms but no strengths; these are common ones for each. It has neither
# 90-degree turns nor stain jitter.
PAPER = Views(
    crop=(0.3, 1.0),
    turn=False,
    rotate=17.0,
    translate=0.05,
    shear=5.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.05,
    stain=0.0,
    grayscale=0.0,
    blur=0.5,
)
TISSUE = Views()  # what works on H&E: turns, stain jitter, rare grey, gentle crops
# For fine-tuning: all that surely keeps the diagnosis, nothing that costs detail.
GENTLE = replace(TISSUE, crop=(0.6, 1.0), stain=0.2, grayscale=0.0, blur=0.0)
VIEWS: Mapping[str, Views] = {"paper": PAPER, "tissue": TISSUE, "gentle": GENTLE}


def require_views(parameter: str, *names: str) -> None:
    """Raise ValueError for a name that is none of VIEWS, said to be a parameter's."""
    for name in names:
        if name not in VIEWS:
            raise ValueError(f"{parameter} has {name!r}: choose some of {', '.join(VIEWS)}")


@dataclass(frozen=True)
class Parameters:
    """What was drawn for N views; every field has N rows."""

    warp: Tensor  # (N, 2, 3) output to input coordinates in [-1, 1]
    stain: Tensor  # (N, 3) factors on haematoxylin, eosin, residual
    brightness: Tensor  # (N,) factor
    contrast: Tensor  # (N,) factor
    saturation: Tensor  # (N,) factor; 0 is grey
    hue: Tensor  # (N,) radians
    sigma: Tensor  # (N,) pixels; 0 is no blur

    def rows(self, which: slice) -> "Parameters":
        """The parameters of some of the views."""
        return Parameters(**{k: v[which] for k, v in vars(self).items()})


def draw_parameters(n: int, views: Views, generator: torch.Generator) -> Parameters:
    """Draw independent parameters for n views, on the CPU."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def factor(strength: float) -> Tensor:
        return uniform(1 - strength, 1 + strength)

    def chance(p: float) -> Tensor:
        return torch.rand(n, generator=generator) < p

    area = uniform(*views.crop)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3)).exp().clamp(area, 1 / area)  # fits the tile
    sides = (area * ratio).sqrt(), (area / ratio).sqrt()
    centre = tuple(uniform(-1, 1) * (1 - side) for side in sides)
    flip = tuple(1 - 2 * chance(views.flip / 2).float() for _ in range(2))
    quarter = (uniform(0, 4).floor() if views.turn else torch.zeros(n)) * (math.pi / 2)
    angle = quarter + torch.deg2rad(uniform(-views.rotate, views.rotate))
    shear = torch.deg2rad(uniform(-views.shear, views.shear)).tan()
    shift = uniform(-1, 1) * 2 * views.translate, uniform(-1, 1) * 2 * views.translate
    stain = torch.stack([factor(views.stain), factor(views.stain), torch.ones(n)], dim=1)
    saturation = factor(views.saturation).masked_fill(chance(views.grayscale), 0)
    sigma = uniform(*views.blur_sigma).masked_fill(~chance(views.blur), 0)
    return Parameters(
        warp=compose_warp(sides, centre, flip, angle, shear, shift),
        stain=stain,
        brightness=factor(views.brightness),
        contrast=factor(views.contrast),
        saturation=saturation,
        hue=2 * math.pi * uniform(-views.hue, views.hue),
        sigma=sigma,
    )


def compose_warp(sides, centre, flip, angle, shear, shift) -> Tensor:
    """Multiply crop, flips, rotation, shear and shift into one matrix (N, 2, 3).

    sides and centre of the crop, flip (1 or -1) and shift are pairs, in x and y, of (N,); lengths
    are in half-sides (the tile spans [-1, 1]), `angle` (N,) in radians, `shear` (N,) a slope. The
    matrix takes a point of the view to its point in the tile.
    """
    cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
    crop = _matrix(sides[0], zero, centre[0], zero, sides[1], centre[1])
    mirror = _matrix(flip[0], zero, zero, zero, flip[1], zero)
    turn = _matrix(cos, -sin, shift[0], sin, cos, shift[1])
    slant = _matrix(one, shear, zero, zero, one, zero)
    return (crop @ mirror @ (turn @ slant))[:, :2]


def _matrix(*entries: Tensor) -> Tensor:
    top = torch.stack(entries, dim=1).view(-1, 2, 3)
    return torch.cat([top, top.new_tensor([[[0.0, 0.0, 1.0]]]).expand(len(top), 1, 3)], dim=1)


def _beside(images: Tensor, small: Tensor) -> Tensor:
    """Return a small tensor on the images' device, without waiting for what it is busy with."""
    return small.to(images, non_blocking=True)


def warp(images: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Sample images (N, 3, H, W) at `matrix` (N, 2, 3) into (N, 3, size, size), bilinear.

    Points outside the tile are mirrored in: black corners would be a shortcut to the augmentation.
    """
    grid = F.affine_grid(matrix, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def jitter_stain(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply haematoxylin, eosin and residual of images in [0, 1] by `factors` (N, 3).

    Optical density is linear in the amount of dye (Beer-Lambert), so the change is one 3x3 matrix
    there. Source: Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.
    """
    stains, unstain = _beside(images, STAINS), _beside(images, UNSTAIN)
    matrix = unstain @ (factors[:, :, None] * stains)  # (N, 3, 3), density rows
    log = images.clamp(min=1 / 255).log_()  # minus the density; the sign stays through the matrix
    return torch.einsum("nihw,nij->njhw", log, matrix).exp_().clamp_(0, 1)


def jitter_colour(images: Tensor, brightness, contrast, saturation, hue) -> Tensor:
    """Apply brightness, contrast, saturation and hue, in this order, as one matrix an image.

    images (N, 3, H, W) in [0, 1]; factors (N,); hue (N,) radians around the grey axis. Equals
    torchvision's first three where nothing clips in between; theirs turn hue in HSV.
    """
    luma, eye = _beside(images, LUMA), torch.eye(3, device=images.device, dtype=images.dtype)
    grey = luma.expand(3, 3)
    mean = (images.mean(dim=(2, 3)) @ luma) * brightness  # grey level that contrast pivots on
    axis = torch.full_like(luma, 3**-0.5)
    cross = torch.linalg.cross(eye, axis.expand(3, 3))  # as rows: axis x v
    turn = torch.cos(hue).view(-1, 1, 1) * eye + torch.sin(hue).view(-1, 1, 1) * cross
    turn = turn + (1 - torch.cos(hue)).view(-1, 1, 1) * torch.outer(axis, axis)
    scale = saturation.view(-1, 1, 1)
    linear = turn @ (scale * eye + (1 - scale) * grey)
    matrix = linear * (contrast * brightness).view(-1, 1, 1)
    offset = torch.einsum("nij,n->ni", linear, (1 - contrast) * mean)
    changed = torch.einsum("nij,njhw->nihw", matrix, images)
    return changed.add_(offset[:, :, None, None]).clamp_(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve each image with its own Gaussian of `sigma` (N,) pixels; 0 leaves it as it is.

    sigma lies on the CPU: which images and how wide is known without asking the device.
    """
    chosen = sigma.nonzero()[:, 0]
    if not len(chosen):
        return images
    width = sigma[chosen, None]
    reach = (3 * width).ceil()  # (n, 1): where each kernel ends, whatever the others in the batch
    radius = min(int(reach.max()), images.shape[-1] - 1)  # reflection cannot exceed the image
    steps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (steps / width) ** 2) * (steps.abs() <= reach)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # (3n, taps)
    chosen, kernel = chosen.to(images.device, non_blocking=True), _beside(images, kernel)
    some = images[chosen]
    flat = F.pad(some.reshape(1, -1, *some.shape[2:]), [radius] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    result = images.clone()
    result[chosen] = flat.view_as(some)
    return result


def apply(images: Tensor, parameters: Parameters, size: int) -> Tensor:
    """Make one view of each image: (N, 3, H, W) in [0, 1] to (N, 3, size, size) in [0, 1]."""
    p = Parameters(**{k: _beside(images, v) for k, v in vars(parameters).items()})
    views = warp(images, p.warp, size)
    if (parameters.stain != 1).any():  # asked of the CPU's copy: a GPU would have to catch up
        views = jitter_stain(views, p.stain)
    views = jitter_colour(views, p.brightness, p.contrast, p.saturation, p.hue)
    return blur(views, parameters.sigma)


def shrink(images: Tensor, size: int) -> Tensor:
    """Turn uint8 tiles (N, 3, H, W) into float (N, 3, size, size) in [0, 1], antialiased.

    Raises ValueError for other numbers: of floats in [0, 1] only darkness would be left.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"tiles are {images.dtype}: give uint8, from 0 to 255")
    if images.shape[-1] != size or images.shape[-2] != size:
        if images.device.type != "cpu":
            images = images.float()  # only the CPU, where it is faster, resizes bytes
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.float() / 255


def one_view(images: Tensor, views: Views, size: int, generator: torch.Generator) -> Tensor:
    """Augment uint8 tiles (N, 3, H, W) once, to float (N, 3, size, size) in [0, 1]."""
    return _views(images, views, size, generator, copies=1)[0]


def two_views(
    images: Tensor,
    views: Views,
    size: int,
    generator: torch.Generator,
    share: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """Augment uint8 tiles (N, 3, H, W) twice, independently: two (N, 3, size, size) in [0, 1].

    share: (r, w) where `images` are the rows r, r + w, r + 2w … of a batch that w processes share;
    together they then make the views that one process would make of the whole batch.
    """
    return _views(images, views, size, generator, copies=2, share=share)


def _views(images, views, size, generator, copies, share=(0, 1)) -> tuple[Tensor, ...]:
    # The warp samples single pixels: shrinking first to little more than the view's own
    # resolution, once for both views, is what keeps nuclei from turning into aliasing noise.
    working = min(images.shape[-1], round(size * 4 / 3))
    rank, world = share
    drawn = [
        draw_parameters(len(images) * world, views, generator).rows(slice(rank, None, world))
        for _ in range(copies)
    ]
    made = tuple(images.new_empty(len(images), 3, size, size, dtype=torch.float32) for _ in drawn)
    on_cpu = images.device.type == "cpu"
    few = max(1, CPU_BUFFER // (12 * size**2) if on_cpu else len(images))
    for start in range(0, len(images), few):
        some = slice(start, start + few)
        base = shrink(images[some], working)
        for view, p in zip(made, drawn, strict=True):
            view[some] = apply(base, p.rows(some), size)
    return made
