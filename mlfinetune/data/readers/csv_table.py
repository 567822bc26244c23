"""A CSV or TSV file, one row an image.

Read with `csv`, so that a label named NA stays a label. UTF-8, with or without a byte order mark.
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
"""Characters: a million columns, and no more than memory takes."""


def read_csv(path: Path, options: SourceOptions) -> Table:
    """Read a CSV or TSV file.

    Raises:
        DataError: the file cannot be read, or its columns cannot be told.
    """
    with _reader(path) as (reader, rows):
        columns: Columns | None = None
        for cells in rows:
            if columns is None:
                columns = Columns(path, [cell.strip() for cell in cells], options)
            else:
                columns.add(cells, reader.line_num)
    if columns is None:
        raise DataError(f"{path} is empty; wanted a header line and one row an image")
    return columns.table(path.parent, "csv")


def copy_with_column(
    path: Path, options: SourceOptions, name: str, value: Callable[[str], str], out: TextIO
) -> None:
    """Write the rows of a table that `read_csv` reads, with one more column.

    Args:
        path: the table.
        options: how to read it.
        name: the new column.
        value: image, as its cell names it -> cell of the new column.
        out: takes CSV with commas.
    """
    writer = csv.writer(out)
    with _reader(path) as (_, rows):
        header = next(rows)
        image = Columns(path, [cell.strip() for cell in header], options).image
        at = [cell.strip() for cell in header].index(image)
        # Another delimiter must not be taken for the comma; see _cell_delimiter.
        odd = any(mark in cell for cell in header for mark in ";\t")
        first = csv.writer(out, quoting=csv.QUOTE_ALL) if odd else writer
        first.writerow([*header, name])
        writer.writerows([*cells, value(cells[at].strip())] for cells in rows)


@contextmanager
def _reader(path: Path) -> Iterator[tuple["_csv.Reader", Iterator[list[str]]]]:
    """A file's reader, and its rows; what is wrong with it as a whole becomes a DataError."""
    reader: _csv.Reader | None = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(MAX_ROW)
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else _cell_delimiter(first)
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield reader, _rows(reader, lines)
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
    """The lines of a file, as long as those of one row together are no longer than a row may be.

    Attributes:
        left: characters that the row may still have.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self.left = file, MAX_ROW

    def __next__(self) -> str:
        line = self._file.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise csv.Error(f"a row of more than {MAX_ROW:,} characters; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def _rows(reader: "_csv.Reader", lines: _Lines) -> Iterator[list[str]]:
    """Those that are not blank."""
    for cells in reader:
        lines.left = MAX_ROW
        if any(map(str.strip, cells)):
            yield cells


def _cell_delimiter(header: str) -> str:
    """The one that stands most often in the header, outside of quotes."""
    bare = re.sub('"[^"]*"', "", header)
    return max(",;\t", key=bare.count)
