"""A CSV or TSV file with one row per image becomes a Table.

    bytes -> text (text_file) -> lines -> separator -> rows of cells -> header -> Columns

Python's `csv` reads it, so that a label named NA stays a label.
"""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mlfinetune.data.readers.column_sample import take_sample
from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.readers.header import complete_header, lacks_header, make_header, note_header
from mlfinetune.data.readers.label_studio import is_export_header, read_table_rows
from mlfinetune.data.readers.separator import SEPARATORS, detect_separator, find_excel_line
from mlfinetune.data.readers.text_file import MAX_ROW, detect_encoding, opening_text
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import find_ending

if TYPE_CHECKING:
    import _csv

_FIRST_LINES = 2**16
"""Characters that the separator is told by."""


class UncopiableError(Exception):
    """A table whose rows do not stand for its pictures one by one."""


@dataclass(frozen=True)
class Rows:
    """Rows of an open table.

    Attributes:
        columns: has the header and the first rows, which it was built from, but no rows yet.
        header: the names of the columns, with the white space around them.
        rows: line number and cells of every row.
        notes: what was found out about the file.
        encoding: of its text.
        separator: the sign between columns.
        skipped: number of lines before the header: 1 where the first is like `sep=;`.
        tasks: line number and cells of every row for `columns`, where these are not `rows`.
    """

    columns: Columns
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    notes: list[str]
    encoding: str
    separator: str
    skipped: int
    tasks: list[tuple[int, list[Any]]] | None = None


def read_csv(path: Path, options: SourceOptions) -> Table:
    """Read a CSV or TSV file.

    Raises:
        DataError: the file cannot be read, or it has no columns of images and labels.
    """
    return read_with_rows(path, options)[0]


def read_with_rows(path: Path, options: SourceOptions) -> tuple[Table, Rows]:
    """Read a CSV or TSV file; return also how its text is read. All rows have been taken.

    Raises:
        DataError: as `read_csv`.
    """
    with reading_rows(path, options) as rows:
        for line, cells in rows.rows if rows.tasks is None else rows.tasks:
            rows.columns.add(cells, line)
    built = rows.columns.build_table(path.parent, "csv")
    return replace(built, notes=(*rows.notes, *built.notes)), rows


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

    Raises:
        UncopiableError: rows are annotations of Label Studio, of which the newest counts.
    """
    writer = csv.writer(out)
    with reading_rows(path, options) as table:
        if table.tasks is not None:
            raise UncopiableError
        image = [cell.strip() for cell in table.header].index(table.columns.image)
        # Quotes hide ; and tabs of the header from detect_separator, which reads the copy.
        odd = any(mark in cell for cell in table.header for mark in SEPARATORS)
        header_writer = csv.writer(out, quoting=csv.QUOTE_ALL) if odd else writer
        header_writer.writerow([*table.header, name])
        writer.writerows([*cells, value(cells[image].strip())] for _, cells in table.rows)


@contextmanager
def reading_rows(path: Path, options: SourceOptions) -> Iterator[Rows]:
    """Open a table and find its columns. Errors of the whole file become a DataError."""
    encoding, notes = detect_encoding(path, guess=True)
    with opening_text(path, encoding) as file:
        separator, skipped = _find_separator(file, find_ending(path))
        if separator != "," and (separator, find_ending(path)) != ("\t", ".tsv"):
            shown = "a tab" if separator == "\t" else f"'{separator}'"
            notes.append(f"columns separated by {shown}")
        lines = Lines(file)
        reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
        try:
            rows = _number_rows(reader, lines, skipped)
            sample = take_sample(rows)
            if not sample:
                raise DataError(f"{path} is empty; wanted a header line and one row per image")
            cells = [cells for _, cells in sample]
            header = cells[0]
            if lacks_header(cells, options):
                header = make_header(path, cells)
                notes.append(note_header(header))
            else:
                del sample[0], cells[0]
                header = complete_header(path, header, cells, notes)
            names = [cell.strip() for cell in header]
            how = (encoding, separator, skipped)
            if is_export_header(names):
                yield _read_tasks(path, header, [*sample, *rows], options, notes, how)
                return
            columns = Columns(path, names, options, cells)
            yield Rows(columns, header, chain(sample, rows), notes, *how)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num + skipped}: {error}") from error


def _read_tasks(
    path: Path,
    header: list[str],
    rows: list[tuple[int, list[str]]],
    options: SourceOptions,
    notes: list[str],
    how: tuple[str, str, int],
) -> Rows:
    """Return the rows of an export of Label Studio, with plain lists of labels.

    Args:
        how: encoding, separator and skipped lines of the file.

    Raises:
        DataError: it is not sure which columns hold labels; no columns of images and labels.
    """
    try:
        tasks = read_table_rows([cell.strip() for cell in header], rows, options)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not tasks.rows:
        counts = "; ".join(tasks.notes)
        raise DataError(f"{path}: an export of Label Studio without an answered task {counts}")
    names = list(dict.fromkeys(key for _, row in tasks.rows for key in row))
    cells = [(line, [row.get(name, "") for name in names]) for line, row in tasks.rows]
    columns = Columns(path, names, tasks.options, [row for _, row in take_sample(cells)])
    notes = [*notes, "tasks of Label Studio", *tasks.notes]
    return Rows(columns, header, iter(rows), notes, *how, cells)


def _find_separator(file: TextIO, ending: str) -> tuple[str, int]:
    """Return the separator, and the number of lines before the header; the file is left there."""
    text = file.read(_FIRST_LINES)
    file.seek(0)
    if excel := find_excel_line(text):
        file.readline()
        return excel, 1
    whole = text[: max(text.rfind("\n"), text.rfind("\r")) + 1]
    return detect_separator(whole if len(text) == _FIRST_LINES and whole else text, ending), 0


class Lines(Iterator[str]):
    """Lines of a file; raises csv.Error where the lines of one row exceed `MAX_ROW`.

    A row has several lines where a quoted cell holds a line break. A quote that is never closed
    would read the rest of the file as one row.

    Attributes:
        left: characters that the current row may still have; the reader of rows resets it.
        read: the lines of the current row; the reader of rows resets them.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.reset()

    def reset(self) -> None:
        """Begin a new row."""
        self.left = MAX_ROW
        self.read: list[str] = []

    def __next__(self) -> str:
        line = self._file.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise csv.Error(f"a row of more than {MAX_ROW:,} characters; is a quote left open?")
        if not line:
            raise StopIteration
        self.read.append(line)
        return line


def _number_rows(
    reader: "_csv.Reader", lines: Lines, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of the rows that have a cell that is not blank.

    `skipped` is the number of lines that were read before.
    """
    for cells in reader:
        lines.reset()
        if any(map(str.strip, cells)):
            yield reader.line_num + skipped, cells
