"""The sign that separates the columns of a text table, told by its header and its first rows."""

import re
from pathlib import Path
from typing import NamedTuple

from mlfinetune.data.images.names import is_image_name

SEPARATORS = (",", ";", "\t")
_RARE = "|"
"""Separates labels far more often than columns, so that it is taken where nothing else fits."""

_QUOTED = re.compile(r'"[^"\r\n]*"')
_QUOTED_LINES = re.compile(r'"[^"]*"')
_EXCEL_LINE = re.compile(
    r'\ufeff*[ \t]{0,9}"?[ \t]{0,9}sep[ \t]{0,9}=[ \t]{0,9}"?(\\t|\t|[^\w"\r\n])"?[ \t,;]*'
    r"(?:\r\n?|\n|\Z)",
    re.IGNORECASE,
)
"""First line that Excel writes and reads: `sep=;`; bounded, so that blanks take no time."""


class _Fit(NamedTuple):
    """Fit of a separator to a table; the larger, the better.

    Attributes:
        rows: share of the rows with as many cells as the header.
        pictures: share of the rows with a cell that names a picture.
        columns: number of columns.
    """

    rows: float
    pictures: float
    columns: int


def find_excel_line(text: str) -> str | None:
    """Return the separator that the first line names, if it is like `sep=;`; else None."""
    match = _EXCEL_LINE.match(text)
    return match and ("\t" if match[1] == "\\t" else match[1])


def detect_separator(text: str, ending: str) -> str:
    """Return the separator of the columns.

        first lines                                      separator
        image,labels    a.jpg,cat;dog    b.jpg,dog       ,  two cells in every row
        image;labels, all    a.jpg;cat   b.jpg;dog       ;  no row has a comma
        image;labels, all    a.jpg;cat, dog              ;  a.jpg is a picture, `a.jpg;cat` is not
        image|labels    a.jpg|cat,dog    b.jpg|dog       |  nothing else is in the header

    Args:
        text: the first lines, whole.
        ending: that of the file: `.tsv` has tabs wherever its header has one.
    """
    # A quoted cell may hold line ends; with a quote that is never closed all would be quoted.
    quoted = _QUOTED if text.count('"') % 2 else _QUOTED_LINES
    text = quoted.sub(lambda match: re.sub(r'[",;\t|\r\n]', "", match[0]), text)
    lines = [line for line in re.split(r"\r\n?|\n", text) if line.strip()]
    fits = {sign: fit for sign in (*SEPARATORS, _RARE) if (fit := _measure_fit(lines, sign))}
    if ending == ".tsv" and "\t" in fits:
        return "\t"
    usual = [sign for sign in SEPARATORS if sign in fits]
    best = max(usual, key=fits.__getitem__, default=None)
    if _RARE in fits and (best is None or fits[best].rows < 0.5 <= fits[_RARE].rows):
        return _RARE
    return best or ","


def _measure_fit(lines: list[str], separator: str) -> _Fit | None:
    """Return how well a separator fits; None where the header would be one cell."""
    header, *rows = lines or [""]
    columns = header.count(separator) + 1
    if columns < 2:
        return None
    if not rows:
        return _Fit(0, 0, columns)
    equal = sum(row.count(separator) + 1 == columns for row in rows)
    pictures = sum(
        any(is_image_name(Path(cell.strip())) for cell in row.split(separator)) for row in rows
    )
    return _Fit(equal / len(rows), pictures / len(rows), columns)
