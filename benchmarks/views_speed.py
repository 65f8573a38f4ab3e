"""Two augmented views of 128 tiles of 224 px: ours, kornia batched, torchvision tile by tile.

    python benchmarks/views_speed.py

All make the paper's kind of views: random crop, flips, affine, colour jitter, blur.
"""

import kornia.augmentation as ka
import torch
from harness import keep, race
from torchvision.transforms import v2

from crc_helpers.augmentation import PAPER, two_views

BATCH = 128


def torchvision_views(size: int):
    """The views of `PAPER` with torchvision, one tile at a time."""
    degrees, shift, shear = PAPER.rotate, PAPER.translate, PAPER.shear
    blur = v2.GaussianBlur(_taps(), PAPER.blur_sigma)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, PAPER.crop),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(degrees, (shift, shift), shear=shear, interpolation=_bilinear()),
            v2.ColorJitter(PAPER.brightness, PAPER.contrast, PAPER.saturation, PAPER.hue),
            v2.RandomApply([blur], PAPER.blur),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda tiles: [torch.stack([transform(t) for t in tiles]) for _ in range(2)]


def kornia_views(size: int):
    """The views of `PAPER` with kornia, a batch at a time."""
    transform = ka.AugmentationSequential(
        ka.RandomResizedCrop((size, size), PAPER.crop),
        ka.RandomHorizontalFlip(),
        ka.RandomVerticalFlip(),
        ka.RandomAffine(PAPER.rotate, (PAPER.translate, PAPER.translate), shear=PAPER.shear, p=1.0),
        ka.ColorJitter(PAPER.brightness, PAPER.contrast, PAPER.saturation, PAPER.hue, p=1.0),
        ka.RandomGaussianBlur((_taps(), _taps()), PAPER.blur_sigma, p=PAPER.blur),
        data_keys=["input"],
    )

    def make(tiles: torch.Tensor) -> list[torch.Tensor]:
        images = tiles.float() / 255
        return [transform(images) for _ in range(2)]

    return make


def _taps() -> int:
    return 2 * round(3 * PAPER.blur_sigma[1]) + 1


def _bilinear():
    return v2.InterpolationMode.BILINEAR


def main() -> None:
    """Race at the class preset's size and at the paper's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    noise = torch.randint(0, 256, (BATCH, 3, 28, 28), dtype=torch.uint8)
    tiles = noise.repeat_interleave(8, 2).repeat_interleave(8, 3).to(device)  # 224 px
    generator = torch.Generator().manual_seed(0)
    for size in (96, 224):
        theirs, batched = torchvision_views(size), kornia_views(size)
        contenders = {
            "ours": lambda size=size: two_views(tiles, PAPER, size, generator),
            "kornia": lambda batched=batched: batched(tiles),
            "torchvision": lambda theirs=theirs: theirs(tiles),
        }
        bars = {"ours / kornia": 3.0, "ours / torchvision": 1.5}
        keep(f"two views of {BATCH} tiles, {size} px", race(contenders), 2 * BATCH, "views", bars)


if __name__ == "__main__":
    main()
