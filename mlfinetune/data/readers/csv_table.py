"""A CSV or TSV file with one row per image becomes a Table.

Python's `csv` reads it, so that a label named NA stays a label. The file is UTF-8, with or without
a byte order mark.
"""

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

if TYPE_CHECKING:
    import _csv

SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
MAX_ROW = 2**24
"""Longest row in characters: enough for a million columns, and it fits into memory."""


def read_csv(path: Path, options: SourceOptions) -> Table:
    """Read a CSV or TSV file.

    Raises:
        DataError: the file cannot be read, or it has no columns of images and labels.
    """
    with _reading_rows(path) as (reader, rows):
        columns: Columns | None = None
        header = next(rows, None)
        if header is not None:
            from itertools import chain, islice

            sample = [(cells, reader.line_num) for cells in islice(rows, 1000)]
            columns = Columns(
                path, [cell.strip() for cell in header], options, [c for c, _ in sample]
            )
            for cells, line in chain(sample, ((cells, reader.line_num) for cells in rows)):
                columns.add(cells, line)
    if columns is None:
        raise DataError(f"{path} is empty; wanted a header line and one row per image")
    return columns.build_table(path.parent, "csv")


def copy_with_column(
    path: Path, options: SourceOptions, name: str, value: Callable[[str], str], out: TextIO
) -> None:
    """Write the rows of a table that `read_csv` reads, with one more column.

    Args:
        path: the table.
        options: how to read it.
        name: the new column.
        value: image name, as its cell has it -> cell of the new column.
        out: gets CSV with commas.
    """
    writer = csv.writer(out)
    with _reading_rows(path) as (_, rows):
        header = next(rows)
        names = [cell.strip() for cell in header]
        image = names.index(Columns(path, names, options).image)
        # Quotes hide ; and tabs of the header from _detect_separator, which reads the copy.
        odd = any(mark in cell for cell in header for mark in ";\t")
        header_writer = csv.writer(out, quoting=csv.QUOTE_ALL) if odd else writer
        header_writer.writerow([*header, name])
        writer.writerows([*cells, value(cells[image].strip())] for cells in rows)


@contextmanager
def _reading_rows(path: Path) -> Iterator[tuple["_csv.Reader", Iterator[list[str]]]]:
    """Open a file; yield its reader and its rows. Errors of the whole file become a DataError."""
    reader: _csv.Reader | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(MAX_ROW)
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else _detect_separator(first)
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield reader, _skip_blank_rows(reader, lines)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        assert reader is not None
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


class _Lines(Iterator[str]):
    """Lines of a file; raises csv.Error where the lines of one row exceed `MAX_ROW`.

    A row has several lines where a quoted cell holds a line break. A quote that is never closed
    would read the rest of the file as one row.

    Attributes:
        left: characters that the current row may still have; the reader of rows resets it.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.left = MAX_ROW

    def __next__(self) -> str:
        line = self._file.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise csv.Error(f"a row of more than {MAX_ROW:,} characters; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def _skip_blank_rows(reader: "_csv.Reader", lines: _Lines) -> Iterator[list[str]]:
    """Yield the rows that have at least one cell that is not blank."""
    for cells in reader:
        lines.left = MAX_ROW
        if any(map(str.strip, cells)):
            yield cells


def _detect_separator(header: str) -> str:
    """Return the most frequent of comma, semicolon and tab in the header, outside of quotes."""
    bare = re.sub('"[^"]*"', "", header)
    return max(",;\t", key=bare.count)
