"""Cells of a CSV file replaced in place: every other byte of the file stays as it is.

path, out, edit -> copy_rows: each row as it stands, or what `edit` makes of it
row             -> RawRow.replace(column, cell) -> the row with another cell
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from mlfinetune.data.readers.csv_table import Lines, Rows
from mlfinetune.data.readers.text_file import opening_bytes, opening_text
from mlfinetune.errors import DataError

_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe\0\0": "utf-32-le",  # before UTF-16, whose mark it begins with
    b"\0\0\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}


@dataclass(frozen=True)
class RawRow:
    """One row of a file.

    Attributes:
        line: number of its last line.
        text: as it stands in the file, with its line end.
        cells: as `csv` reads them.
        separator: the sign between columns.
    """

    line: int
    text: str
    cells: list[str]
    separator: str

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """Start and end of each cell in the text, with its quotes, without spaces before it."""
        # As `csv` has it: a quote opens a quoted cell at its start alone.
        cell = re.compile(rf' *("(?:[^"]+|"")*"|[^{re.escape(self.separator)}\r\n]*)')
        spans: list[tuple[int, int]] = []
        place = 0
        while len(spans) < len(self.cells):
            match = cell.match(self.text, place)
            assert match is not None
            spans.append(match.span(1))
            place = match.end() + 1
        return spans

    def replace(self, cells: Mapping[int, str]) -> str:
        """Return the text with other cells: index of the column -> cell. Quotes stay."""
        parts: list[str] = []
        end = 0
        for column, (start, stop) in enumerate(self._spans):
            if column in cells:
                parts += [self.text[end:start], self._quote(cells[column], self.text[start:stop])]
                end = stop
        return "".join([*parts, self.text[end:]])

    def _quote(self, cell: str, before: str) -> str:
        """Return the cell as text, in quotes where it stood in quotes or needs them."""
        odd = any(sign in cell for sign in (self.separator, '"', "\r", "\n")) or cell[:1] == " "
        if odd or before.startswith('"'):
            return '"' + cell.replace('"', '""') + '"'
        return cell


def copy_rows(
    path: Path, rows: Rows, out: BinaryIO, edit: Callable[[RawRow], Iterable[str] | None]
) -> None:
    """Copy a table that `read_csv` reads, with other text for some rows.

    Args:
        path: the table.
        rows: how its text is read, from `reading_rows`.
        out: gets the bytes.
        edit: row -> the rows in its place; None: it stays as it is. The header is a row too.

    Raises:
        DataError: the table cannot be read, or its encoding lacks a sign that is written.
    """
    mark, encoding = _find_mark(path, rows.encoding)
    out.write(mark)

    def write(text: str) -> None:
        try:
            out.write(text.encode(encoding))
        except UnicodeEncodeError as error:
            odd = text[error.start : error.end]
            raise DataError(
                f"{path} is read as {encoding}, which has no {odd!r}: save it as UTF-8 first"
            ) from error

    with opening_text(path, rows.encoding) as file:
        for _ in range(rows.skipped):
            write(file.readline())
        lines = Lines(file)
        reader = csv.reader(lines, delimiter=rows.separator, strict=True, skipinitialspace=True)
        for cells in reader:
            row = RawRow(reader.line_num + rows.skipped, "".join(lines.read), cells, rows.separator)
            lines.reset()
            edited = edit(row)
            for text in (row.text,) if edited is None else edited:
                write(text)


def _find_mark(path: Path, encoding: str) -> tuple[bytes, str]:
    """Return the byte order mark of a file, and the encoding of the bytes behind it."""
    with opening_bytes(path) as file:
        start = file.read(4)
    for mark, name in _BYTE_ORDER_MARKS.items():
        if encoding != "utf-8" and start.startswith(mark):
            return mark, name
    return b"", encoding
