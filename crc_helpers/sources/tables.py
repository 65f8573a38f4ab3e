"""Tables of other people: CSV files, read as text and checked row by row."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from crc_helpers.sources.base import DataError, and_more, plain


def read_table(
    path: Path, columns: dict[str, str], optional: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV file as text, whatever spreadsheets do to it: BOM, CRLF, upper case, spaces.

    columns: our names and the published ones. Returns the rows, indexed by line number, and notes
    about columns that are not used.
    """
    try:
        with path.open(encoding="utf-8-sig") as opened:
            first = opened.readline().strip()
        has_separator = first.lower().startswith("sep=")  # Excel's own line above the header
        table = pd.read_csv(
            path,
            sep=(first[4:] or ",") if has_separator else ",",
            skiprows=int(has_separator),
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:  # ValueError: of pandas and UTF-8
        raise DataError(
            f"{path}: cannot be read as a table ({error}); save it as comma-separated UTF-8 text"
        ) from error
    table = table.fillna("").apply(lambda column: column.str.strip())
    table.index += 1 + has_separator  # now the line number
    titles, table = list(table.iloc[0]), table[(table != "").any(axis=1)].iloc[1:]
    ours = {_title(title): name for name, title in columns.items()}
    ours |= {_title(title): title for title in optional}
    table.columns = [ours.get(_title(title)) for title in titles]
    for name, title in columns.items():
        if (count := list(table).count(name)) != 1:
            raise DataError(
                f"{path}: column {title!r} is {'there twice' if count else 'missing'}, expected "
                f"once in the header line, with commas between the columns; the header is {titles}"
            )
    unused = [title for title in titles if _title(title) not in ours]
    notes = [f"{path.name}: columns not used: {', '.join(unused)}"] if unused else []
    return table.loc[:, [name in ours.values() for name in table]].copy(), notes


def _title(title: str) -> str:
    return " ".join(title.split()).casefold()


def refuse(bad: pd.Series, path: Path, values: pd.Series, why: str) -> None:
    """Raise DataError for the first row that is `bad`, if any, with its line and value."""
    if bad.any():
        line = bad.idxmax()
        raise DataError(f"{path}, line {line}: {values[line]!r} {why}{and_more(int(bad.sum()))}")


def match(path: Path, rows: pd.Series, files: Sequence[str], folder: Path) -> pd.Series:
    """The file that each row of a table names; DataError unless each has the other, once.

    Where no file has a name as the table writes it, Unicode form and upper case are ignored, as
    long as that leaves one file only.
    """
    keys = Counter(map(_key, files))
    by_name = {_key(file): file for file in files if keys[_key(file)] == 1}
    by_name |= {file: file for file in files}
    matched = rows.map(lambda row: by_name.get(row) or by_name.get(_key(row)))
    why = f"has no file in {folder}; restore it or drop the row"
    refuse(matched.isna(), path, rows, why)
    refuse(matched.duplicated(), path, rows, "is listed twice; keep one row a tile")
    if left := sorted(set(files) - set(matched)):
        raise DataError(
            f"{folder / left[0]}: has no row in {path}{and_more(len(left))}; "
            "add the row or move the file away"
        )
    return matched


def _key(file: str) -> str:
    return plain(file).casefold()
