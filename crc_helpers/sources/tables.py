"""Tables of other people: CSV files, read as text and refused in words."""

import contextlib
import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import DataError, and_more, require_small

TABLE_LIMIT = 60_000_000  # bytes of a table: a million rows
COLUMN_LIMIT = 1000


def read_table(
    path: Path, columns: dict[str, str], optional: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV file as text, forgiving what spreadsheets do to it: BOM, CRLF, case, spaces.

    `columns` maps our names to the published ones. Returns the rows, indexed by line number, and
    the notes to be said (columns that are not used).
    """
    try:
        require_small(path, TABLE_LIMIT)
        content = path.read_bytes()
        if b"\0" in content:
            raise DataError(f"{path}: holds null bytes; save it as comma-separated UTF-8 text")
        head = io.StringIO(content[: 1 << 20].decode("utf-8-sig", "replace"), newline="")
        with contextlib.suppress(csv.Error):  # pandas will say what is wrong
            if max(map(len, itertools.islice(csv.reader(head), 9)), default=0) > COLUMN_LIMIT:
                raise DataError(
                    f"{path}: more than {COLUMN_LIMIT:,} columns; it is no table of tiles"
                )
        table = pd.read_csv(
            io.BytesIO(content),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except DataError:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: what pandas and UTF-8 raise
        raise DataError(
            f"{path}: cannot be read as a table ({error}); save it as comma-separated UTF-8 text"
        ) from error
    table = table.fillna("").apply(lambda column: column.str.strip())
    table.index += 1  # now the line number
    titles, table = list(table.iloc[0]), table[(table != "").any(axis=1)].iloc[1:]
    wanted = {_plain(title): short for short, title in columns.items()}
    wanted |= {_plain(title): title for title in optional}
    short = [wanted.get(_plain(title), f"extra: {title}") for title in titles]
    for name, title in columns.items():
        if short.count(name) != 1:
            problem = "is there twice" if short.count(name) else "is missing"
            raise DataError(
                f"{path}: column {title!r} {problem}, expected once and found "
                f"{titles}; correct the header line"
                + ", with commas between the columns"
                * any(";" in str(t) for t in titles)
            )
    if table.empty:
        raise DataError(f"{path}: holds a header but no rows; expected one row a tile")
    extra = [name.removeprefix("extra: ") for name in short if name.startswith("extra: ")]
    table.columns = short
    notes = [f"{path.name}: columns not used: {', '.join(extra)}"] if extra else []
    return table[[name for name in short if not name.startswith("extra: ")]].copy(), notes


def _plain(title: str) -> str:
    return " ".join(title.split()).casefold()


def refuse(bad: pd.Series, path: Path, values: pd.Series, why: str) -> None:
    if bad.any():
        line = bad.idxmax()
        raise DataError(f"{path}, line {line}: {values[line]!r} {why}{and_more(int(bad.sum()))}")


def require_match(path: Path, rows: pd.Series, files: Sequence[str], folder: str) -> None:
    """Each row needs its file, and each file its row, once."""
    refuse(rows.duplicated(), path, rows, "is listed twice; keep one row a tile")
    refuse(~rows.isin(files), path, rows, f"has no file in {folder}; restore it or drop the row")
    left = sorted(set(files) - set(rows))
    if left:
        raise DataError(
            f"{folder}/{left[0]}: has no row in {path}{and_more(len(left))}; "
            "add the row or move the file away"
        )
