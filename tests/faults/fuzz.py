"""Ten minutes of strange images and tables: each is read, or refused in one sentence (`make fuzz`).

    python tests/faults/fuzz.py [--minutes 10]

Starts from good files of every kind and damages them: bits flipped, parts cut, doubled, swapped.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from crc_helpers import data_readers
from crc_helpers.data_readers import DataError

KINDS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}),
         ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
         ("TIFF", {"compression": "jpeg"})]  # fmt: skip
TABLE = (
    b"Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition\n"
    b'a.png,HP,0,train\n"b.png",SSA,7,test\n'
)
COUNT = {"read": 0, "refused": 0}


def seeds() -> list[bytes]:
    """Good images of each kind and mode."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    found = []
    for kind, options in KINDS:
        for mode in ("RGB", "L") + (("RGBA", "P", "1", "LA") if kind == "PNG" else ("CMYK",)):
            content = io.BytesIO()
            noise.convert(mode).save(content, kind, **options)
            found.append(content.getvalue())
    return found


@st.composite
def damaged(draw: st.DrawFn, goods: list[bytes]) -> bytes:
    """A good file with up to five injuries."""
    content = bytearray(draw(st.sampled_from(goods)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "double", "insert"]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            content[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, bytes(4)]))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            content[at:at] = content[at : at + draw(st.integers(1, 200))]
        else:
            content[at:at] = draw(st.binary(max_size=20))
    return bytes(content)


def judge(read) -> None:
    """Read; anything but a result or one printable sentence is an error of ours."""
    try:
        read()
        COUNT["read"] += 1
    except DataError as error:
        assert str(error).isprintable() and len(str(error)) < 1100
        COUNT["refused"] += 1


def main() -> int:
    """Fuzz for as long as is asked, and say how many inputs there were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    quick = settings(max_examples=500, deadline=None, database=None,
                     suppress_health_check=list(HealthCheck))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.csv"

        @quick
        @given(damaged(seeds()))
        def images(content: bytes) -> None:
            judge(lambda: data_readers.decode(Path("x.png"), 16, content))

        @quick
        @given(damaged([TABLE]) | st.binary(max_size=300))
        def tables(content: bytes) -> None:
            path.write_bytes(content)
            judge(lambda: data_readers.read_table(path, data_readers.MHIST_COLUMNS))

        while time.monotonic() < end:
            images()
            tables()
    print(f"{sum(COUNT.values()):,} inputs: {COUNT['read']:,} read, {COUNT['refused']:,} refused in"
          " a sentence, none otherwise")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
