"""Images and masks of other people, decoded to tiles."""

import io
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from joblib import cpu_count
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from crc_helpers.sources.base import DataError, and_more
from crc_helpers.sources.store import SHARD

FORMATS = ("PNG", "JPEG", "TIFF")
CONVERTED = ("1", "L", "P", "CMYK", "YCbCr", "LA", "PA", "RGBA")  # 8-bit modes read as RGB
BITS_PER_SAMPLE = 258  # a tag of TIFF
CONVERT = "expected 8-bit RGB; convert it, choosing the range of intensity yourself"


def decode(
    path: Path, size: int, content: bytes | None = None
) -> tuple[np.ndarray, str, tuple[int, int]]:
    """Decode one image: uint8 (3, size, size), its mode and its (width, height) on disk.

    An image that is not square is cropped to its central square; it is then resized (bicubic).
    content: of an uploaded file, which `path` only names. Raises DataError.
    """
    image = _load(path, content)
    tile = ImageOps.fit(_to_rgb(image), (size, size))
    return np.asarray(tile).transpose(2, 0, 1), image.mode, image.size


def decode_mask(path: Path, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Decode one grey mask, uint8 0/1 (size, size); foreground is above 127 (edges are smooth).

    shape: (width, height) of its image. Raises DataError for another shape, and for values of 0
    and 1, as many label files have.
    """
    image = _load(path)
    grey = image.convert("L")
    brightest = grey.getextrema()[1]
    if image.size != shape or 0 < brightest <= 127:
        raise DataError(
            f"{path}: a mask of {image.width}×{image.height} px whose brightest value is"
            f" {brightest}, expected the size of its image, {shape[0]}×{shape[1]}, and 0 outside,"
            " 255 inside; restore or convert it"
        )
    return (np.asarray(ImageOps.fit(grey, (size, size))) > 127).astype(np.uint8)


def _load(path: Path, content: bytes | None = None) -> Image.Image:
    """Open an image whole, turned as its EXIF says; DataError for what is no 8-bit picture."""
    try:
        content = path.read_bytes() if content is None else content
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if not (why := _unusual(image)):
                image.verify()  # checksums; the file has to be opened again afterwards
                image = Image.open(io.BytesIO(content), formats=FORMATS)
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        why = _unidentified(content)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        why = f"{error}; cut it into tiles first"
    except Exception as error:  # on damaged bytes a decoder may raise anything
        why = f"unreadable, truncated or damaged ({error}); copy or download it again"
    raise DataError(f"{path}: {why}")


def _unidentified(content: bytes) -> str:
    """Why Pillow does not open a file: of a TIFF, its kind."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as opened:
            page = opened.pages[0]
            return (
                f"a TIFF of {page.samplesperpixel} × {page.dtype} a pixel, {page.photometric.name},"
                f" compression {page.compression.name}; {CONVERT}"
            )
    except Exception:  # of damaged bytes, it may be any
        return "not a PNG, JPEG or TIFF image; copy or download it again"


def _unusual(image: Image.Image) -> str:
    """Why an image cannot be a tile, or nothing."""
    # Pillow would read more bits as 8 in silence, and those of a planar TIFF as noise.
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,)) if image.format == "TIFF" else (8,)
    if image.mode[0] in "IF" or any(";16" in str(t[3]) for t in image.tile) or max(bits) > 8:
        return f"more than 8 bits a channel; {CONVERT}"
    if image.mode not in ("RGB", *CONVERTED):
        return f"colour mode {image.mode}; {CONVERT}"
    # A JPEG may hold a preview beside its picture (MPO); pages and animations are several pictures.
    if image.format in ("TIFF", "PNG") and getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} pages, expected one; export one page as a tile"
    return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def decode_all(root: Path, table: pd.DataFrame, size: int, keep: Callable[..., None]) -> list[str]:
    """Decode all files of a table, calling `keep(number, images=…)` for each shard.

    images: uint8 (n, 3, size, size), and masks, uint8 (n, size, size), where the table names any.
    Returns notes on modes and sizes. Raises DataError, naming the first file that cannot be used
    and how many more there are.
    """
    modes, shapes, errors = Counter(), Counter(), []
    masked = "mask" in table

    def work(file: str, mask: str) -> tuple[np.ndarray, np.ndarray] | DataError:
        try:
            image, mode, shape = decode(root / file, size)
            region = decode_mask(root / mask, size, shape) if mask else np.zeros_like(image[0])
        except DataError as error:
            return error
        modes[mode] += 1
        shapes[shape] += 1
        return image, region

    files = table["file"].to_list(), table["mask"].to_list() if masked else [""] * len(table)
    with (
        ThreadPoolExecutor(cpu_count()) as pool,
        warnings.catch_warnings(),
        tqdm(total=len(table), desc="decoding", unit="tile", disable=None) as bar,
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for number, start in enumerate(range(0, len(table), SHARD)):
            shard = [names[start : start + SHARD] for names in files]
            tiles = list(pool.map(work, *shard))
            errors += [tile for tile in tiles if isinstance(tile, DataError)]
            if not errors:
                images, masks = map(np.stack, zip(*tiles, strict=True))
                keep(number, images=images, **({"masks": masks} if masked else {}))
            bar.update(len(tiles))
    if errors:
        raise DataError(f"{errors[0]}{and_more(len(errors))}")
    return _describe(modes, shapes, size)


def _describe(modes: Counter, shapes: Counter, size: int) -> list[str]:
    counts = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
    converted = "" if set(modes) == {"RGB"} else ": converted to RGB, transparency over white"
    (width, height), count = shapes.most_common(1)[0]
    sizes = f"{count:,} of {width}×{height} px"
    sizes += f", {shapes.total() - count:,} of {len(shapes) - 1:,} other sizes" * (len(shapes) > 1)
    fitted = f": cropped to their central square and resized to {size} px"
    return [
        f"colour modes: {counts}{converted}",
        f"image sizes: {sizes}{'' if set(shapes) == {(size, size)} else fitted}",
    ]
