"""Images and masks of other people, decoded to tiles."""

import contextlib
import io
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import Image, ImageOps, UnidentifiedImageError

from crc_helpers.sources.base import DataError, and_more, progress, require_small
from crc_helpers.sources.store import TileStore

FORMATS = ("PNG", "JPEG", "TIFF")
CHUNK = 512  # files decoded before the progress bar moves
CONVERTED = ("1", "L", "P", "CMYK", "YCbCr", "LA", "PA", "RGBA")  # 8-bit modes read as RGB
PIXEL_LIMIT = 50_000_000  # of one image
LARGE = (
    4_000_000  # pixels from which images are decoded one at a time, however many cores there are
)
LARGE_FILE = 20_000_000  # bytes from which files are read one at a time
AGAIN = "copy or download it again"


def decode(
    path: Path, size: int, content: bytes | None = None
) -> tuple[np.ndarray, str, tuple[int, int]]:
    """Decode one image: uint8 (3, size, size), its mode and its (width, height) on disk.

    An image that is not square is cropped to its central square; it is then resized (bicubic).
    `content`, where it was not read from `path` but uploaded: then `path` only names it.
    """
    with _in_turn(path, content) as content:
        image = _load(path, content)
        mode, shape = image.mode, image.size
        image = _to_rgb(path, image)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1), mode, shape


def decode_mask(path: Path, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Decode one grey mask, uint8 0/1 (size, size); foreground is above 127 (edges are smooth)."""
    with _in_turn(path, None) as content:
        image = _load(path, content)
        if image.size != shape:
            raise DataError(
                f"{path}: a mask of {image.size[0]}×{image.size[1]} px, expected the size "
                f"of its image, {shape[0]}×{shape[1]}; restore it"
            )
        image = image.convert("L")
        if 0 < (brightest := image.getextrema()[1]) <= 127:
            raise DataError(
                f"{path}: a mask whose brightest value is {brightest}, expected 0 outside and 255"
                " inside; convert it"
            )
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return (np.asarray(image) > 127).astype(np.uint8)


def _content(path: Path) -> bytes:
    try:
        require_small(path)
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: unreadable ({reason}); {AGAIN}") from error


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _in_turn(path: Path, content: bytes | None) -> Iterator[bytes]:
    """What is in the file, if it was not given; a large file is read, and a large image decoded,
    one at a time.
    """
    with contextlib.ExitStack() as held:
        if content is None:
            with contextlib.suppress(OSError):  # `_content` says it
                if path.stat().st_size > LARGE_FILE:
                    held.enter_context(_one_at_a_time)
            content = _content(path)
        with contextlib.suppress(Exception):  # `_load` says it
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                large = image.width * image.height > LARGE
            if large:
                held.enter_context(_one_at_a_time)
        yield content


def _load(path: Path, content: bytes) -> Image.Image:
    """Open an image that was read from `path`, or is called so."""
    try:
        if not content:
            raise DataError(f"{path}: an empty file (0 bytes); {AGAIN}")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_unusual(path, image)
            image.verify()  # checksums; the file has to be opened again afterwards
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        image = ImageOps.exif_transpose(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a PNG, JPEG or TIFF image; {AGAIN}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut it into tiles first") from error
    except Exception as error:  # on damaged bytes a decoder may raise anything
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: unreadable, truncated or damaged ({reason}); {AGAIN}") from error
    return image


def _refuse_unusual(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise DataError(
            f"{path}: {width}×{height} px is more than the {PIXEL_LIMIT:,} "
            "a tile may have (decompression bomb?); cut it into tiles first"
        )
    if min(width, height) < 1:
        raise DataError(f"{path}: an image of {width}×{height} px; remove or replace it")
    # Pillow would read 16-bit colour as 8-bit in silence: only its raw mode tells them apart
    if image.mode[0] in "IF" or any(";16" in str(tile[3]) for tile in image.tile):
        raise DataError(
            f"{path}: 16 bits or more a channel, expected 8; convert it to 8-bit RGB, "
            "choosing the intensity range yourself"
        )
    # A JPEG may hold a preview beside its picture (MPO); pages and animations are several pictures.
    if image.format in ("TIFF", "PNG") and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path}: {image.n_frames} pages, expected one; export one page as a tile")


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode != "RGB" and image.mode not in CONVERTED:
        raise DataError(f"{path}: colour mode {image.mode}, expected RGB; convert it to 8-bit RGB")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)  # by its transparency, without a copy
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_all(
    root: Path, table: pd.DataFrame, images: TileStore, masks: TileStore | None
) -> list[str]:
    """Decode every file of `table` into `images` and `masks`; memory stays flat.

    `images`: uint8 (N, 3, S, S), `masks`: uint8 (N, S, S), filled in place. Returns what must be
    said. Raises DataError, naming the first file that cannot be used and how many more there are.
    """
    files, size = table["file"].to_list(), images.shape[-1]
    mask_files = table["mask"].to_list() if masks is not None else [""] * len(files)
    seen, errors = [], []

    def work(row: int) -> None:
        try:
            images[row], mode, shape = decode(root / files[row], size)
            if mask_files[row]:
                masks[row] = decode_mask(root / mask_files[row], size, shape)
            seen.append((mode, shape))
        except DataError as error:
            errors.append((row, error))

    with (
        ThreadPoolExecutor(cpu_count()) as pool,
        warnings.catch_warnings(),
        progress(len(files), "decoding") as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_load` refuses these
        for start in range(0, len(files), CHUNK):  # a future for each of 100,000 files is memory
            rows = range(start, min(start + CHUNK, len(files)))
            list(pool.map(work, rows))
            bar.update(len(rows))
    if errors:
        first = min(errors, key=lambda error: error[0])[1]
        raise DataError(f"{first}{and_more(len(errors))}")
    modes, shapes = zip(*seen, strict=True)
    return _describe(Counter(modes), Counter(shapes), size)


def _describe(modes: Counter, shapes: Counter, size: int) -> list[str]:
    listed = ", ".join(f"{count:,} {mode}" for mode, count in modes.most_common())
    converted = "" if set(modes) == {"RGB"} else ": converted to RGB, transparency over white"
    (width, height), count = shapes.most_common(1)[0]
    sizes = f"{count:,} of {width}×{height} px"
    sizes += f", {shapes.total() - count:,} of {len(shapes) - 1:,} other sizes" * (len(shapes) > 1)
    fitted = (
        ""
        if set(shapes) == {(size, size)}
        else (f": cropped to their central square and resized to {size} px")
    )
    return [f"colour modes: {listed}{converted}", f"image sizes: {sizes}{fitted}"]
