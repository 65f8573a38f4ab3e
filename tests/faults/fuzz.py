"""Ten minutes of strange images, masks and tables: each is read, or refused in one sentence.


    python tests/faults/fuzz.py [--minutes 10]    (make test-all)

Starts from good files of every kind and damages them: bits flipped, parts cut, doubled, swapped.
"""

import argparse
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from crc_helpers.sources import folder as folder_reader
from crc_helpers.sources import images as image_reader
from crc_helpers.sources import mhist
from crc_helpers.sources.base import DataError, Listing
from crc_helpers.sources.tables import read_table

KINDS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}),
         ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
         ("TIFF", {"compression": "jpeg"})]  # fmt: skip
TABLE = (
    b"Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition\n"
    b'a.png,HP,0,train\n"b.png",SSA,7,test\n'
)
GROUPS = b'file,group\nhp/a.png,s1\n"ssa/b.png",s2\n'
FILES = pd.Series(["hp/a.png", "ssa/b.png"])
COUNT: dict[str, Counter] = {}  # what was read and refused, of each kind of input


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
def annotations(draw: st.DrawFn) -> bytes:
    """Rows of the right files with words that a reader might take for labels, votes or parts."""
    odd = st.text(st.characters(codec="utf-8"), max_size=6)
    lines = [TABLE.splitlines()[0].decode()]
    for name in draw(st.permutations(["a.png", "b.png"])):
        label, votes = draw(
            st.sampled_from([("HP", "0"), ("hp ", "3"), ("SSA", "4"), ("ssa", "7")])
        )
        part = draw(st.sampled_from(["train", "test", " TEST"]))
        if draw(st.booleans()):
            label = draw(st.sampled_from(["HP", "SSA", "=HP"]) | odd)
            votes = draw(st.integers(-1, 8).map(str) | st.sampled_from(["7.0", "٤", "1e0"]) | odd)
            part = draw(st.sampled_from(["test", "val"]) | odd)
        lines.append(f"{name},{label},{votes},{part}")
    return "\n".join(lines).encode("utf-8", "replace")


@st.composite
def damaged(draw: st.DrawFn, goods: list[bytes], most: int = 5) -> bytes:
    """A good file with one injury or more."""
    content = bytearray(draw(st.sampled_from(goods)))
    for _ in range(draw(st.integers(1, most))):
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


def judge(kind: str, read: Callable[[], Any]) -> None:
    """Read; anything but a result or one printable sentence is an error of ours."""
    count = COUNT.setdefault(kind, Counter())
    try:
        read()
        count["read"] += 1
    except DataError as error:
        assert str(error).isprintable() and len(str(error)) < 1100
        count["refused"] += 1


def judge_labels(path: Path) -> None:
    """Annotations that are read have known labels, votes and parts, and a row for each file."""
    table, _ = mhist.tabulate(path.parent, Listing({"images": ["a.png", "b.png"]}, ""))
    assert set(table["class"]) <= {"HP", "SSA"} and set(table["partition"]) <= {"train", "test"}
    assert table["votes"].astype(int).between(0, 7).all() and set(table["id"]) == {"a.png", "b.png"}


def judge_mask(path: Path) -> None:
    """A mask that is read is of zeros and ones."""
    mask = image_reader.decode_mask(path, 16, (24, 24))
    assert mask.shape == (16, 16) and set(np.unique(mask)) <= {0, 1}


def main() -> int:
    """Fuzz for as long as is asked, and say how many inputs there were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    quick = settings(max_examples=500, deadline=None, database=None,
                     suppress_health_check=list(HealthCheck))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path, mask, groups = (Path(folder) / n for n in ("annotations.csv", "m.png", "groups.csv"))

        @quick
        @given(damaged(seeds()))
        def images(content: bytes) -> None:
            judge("images", lambda: image_reader.decode(Path("x.png"), 16, content))
            mask.write_bytes(content)
            judge("masks", lambda: judge_mask(mask))

        @quick
        @given(damaged([TABLE]) | st.binary(max_size=300))
        def tables(content: bytes) -> None:
            path.write_bytes(content)
            judge("tables", lambda: read_table(path, mhist.MHIST_COLUMNS))

        @quick
        @given(damaged([TABLE], most=2) | annotations())
        def labels(content: bytes) -> None:
            path.write_bytes(content)
            judge("annotations", lambda: judge_labels(path))

        @quick
        @given(damaged([GROUPS], most=2) | st.binary(max_size=100))
        def slides(content: bytes) -> None:
            groups.write_bytes(content)
            judge("groups", lambda: folder_reader._read_groups(groups, FILES))

        while time.monotonic() < end:
            for fuzz in (images, tables, labels, slides):
                fuzz()
    for kind, count in COUNT.items():
        assert count["read"] and count["refused"], f"{kind}: {count}, so half of it was not tried"
        print(f"{count.total():,} {kind}: {count['read']:,} read, {count['refused']:,} refused")
    total = sum(count.total() for count in COUNT.values())
    print(f"{total:,} inputs, each a result or a sentence")
    return 0


if __name__ == "__main__":
    sys.exit(main())
