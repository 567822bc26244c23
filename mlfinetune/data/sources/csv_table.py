"""A CSV or TSV file, one row an image, becomes a Table.

    header -> image column, label column(s), split column
    rows   -> a delimited list of labels            image,labels     a.jpg,cat|dog
           -> or one column a label (1, 0, unknown) image,cat,dog    a.jpg,1,

Read with `csv`, so that a label named NA stays a label. Every bad row is collected.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import DataError, nearest
from mlfinetune.records import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, SourceOptions, Table

if TYPE_CHECKING:
    import _csv

SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "path", "file", "fname")
LABEL_COLUMNS = ("labels", "label", "tags", "classes")
DELIMITERS = ("|", ";", ",")
_UNKNOWN_COLUMN = "unknown"
_STATES = {
    **dict.fromkeys(("1", "1.0", "true"), POSITIVE),
    **dict.fromkeys(("0", "0.0", "false"), NEGATIVE),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na"), UNKNOWN),
}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}
_IS_VALID = {**dict.fromkeys(("1", "true"), "val"), **dict.fromkeys(("0", "false"), "train")}


@dataclass(frozen=True)
class _Rows:
    """The cells, the line that each row ends on, and what is wrong so far."""

    path: Path
    header: list[str]
    cells: list[list[str]]
    lines: list[int]
    faults: list[tuple[int, str]]

    def column(self, name: str) -> list[str]:
        at = self.header.index(name)
        return [row[at].strip() for row in self.cells]

    def fault(self, row: int, text: str) -> None:
        self.faults.append((self.lines[row], text))

    def find(self, given: str | None, usual: Sequence[str], key: str) -> str | None:
        """The column that the config names, else the first one with a usual name."""
        if given is not None and given not in self.header:
            raise DataError(
                f"{self.path}: no column '{given}' (data.{key})"
                f"{nearest(given, self.header)}; columns: {_quoted(self.header)}"
            )
        by_name = {name.casefold(): name for name in reversed(self.header)}
        return given or next((by_name[name] for name in usual if name in by_name), None)


@dataclass(frozen=True)
class _Labels:
    labels: LabelSpace
    targets: NDArray[np.int8]
    unnamed: NDArray[np.int8]
    notes: tuple[str, ...]
    delimiter: str | None = None


def read_csv(path: Path, options: SourceOptions) -> Table:
    """Read a CSV or TSV file.

    Raises:
        DataError: the file cannot be read, or its columns cannot be told.
    """
    rows = _read_rows(path)
    image_column = rows.find(options.image_column, IMAGE_COLUMNS, "image_column")
    if image_column is None:
        raise DataError(
            f"{path}: no image column among {_quoted(rows.header)}; wanted one of "
            f"{', '.join(IMAGE_COLUMNS)}, or name it with data.image_column"
        )
    names = rows.column(image_column)
    for row, name in enumerate(names):
        if not name:
            rows.fault(row, "no image named")
    splits, taken = _splits(rows)
    taken = {*taken, image_column}
    label_column = None
    if options.label_columns is None:
        label_column = rows.find(options.label_column, LABEL_COLUMNS, "label_column")
    if label_column is not None:
        parsed = _read_lists(rows, label_column, options, taken)
    else:
        parsed = _read_columns(rows, options.label_columns, taken)
    return Table(
        origin=path,
        root=options.images or path.parent,
        names=tuple(names),
        places=tuple(f"line {line}" for line in rows.lines),
        targets=parsed.targets,
        unnamed=parsed.unnamed,
        labels=parsed.labels,
        splits=splits,
        delimiter=parsed.delimiter,
        notes=parsed.notes,
        faults=tuple(f"line {line}: {text}" for line, text in sorted(rows.faults)),
    )


# ---- cells ------------------------------------------------------------------------------


def _read_rows(path: Path) -> _Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = "\t" if path.suffix.lower() == ".tsv" else _cell_delimiter(first)
            return _collect(path, csv.reader(file, delimiter=delimiter, strict=True))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error


def _collect(path: Path, reader: "_csv.Reader") -> _Rows:
    rows: _Rows | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if rows is None:
                rows = _Rows(path, _header(path, cells), [], [], [])
                continue
            if len(cells) != len(rows.header):
                text = f"{len(cells)} cells where the header has {len(rows.header)}"
                rows.faults.append((reader.line_num, text))
                continue
            rows.cells.append(cells)
            rows.lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    if rows is None:
        raise DataError(f"{path} is empty; wanted a header line and one row an image")
    return rows


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: the header names {_quoted(repeated)} more than once")
    return header


def _cell_delimiter(header: str) -> str:
    """The one that stands most often in the header, outside of quotes."""
    bare = re.sub('"[^"]*"', "", header)
    return max(",;\t", key=bare.count)


def _splits(rows: _Rows) -> tuple[tuple[str, ...] | None, set[str]]:
    """What `split`, else `is_valid`, says of each row; and the columns of these names."""
    columns = {name for key in ("split", "is_valid") if (name := rows.find(None, (key,), ""))}
    for key, meanings in (("split", _SPLITS), ("is_valid", _IS_VALID)):
        name = rows.find(None, (key,), "")
        if name is None:
            continue
        splits = []
        for row, cell in enumerate(rows.column(name)):
            if cell.casefold() not in meanings:
                rows.fault(row, f"{name} is '{cell}'; wanted one of {', '.join(meanings)}")
            splits.append(meanings.get(cell.casefold(), "train"))
        return tuple(splits), columns
    return None, columns


# ---- labels as a list -------------------------------------------------------------------


def _read_lists(rows: _Rows, column: str, options: SourceOptions, taken: set[str]) -> _Labels:
    cells = rows.column(column)
    unknown_column = rows.find(None, (_UNKNOWN_COLUMN,), "")
    unknown_cells: list[str] = []
    if unknown_column is not None and unknown_column not in {column, *taken}:
        taken = {*taken, unknown_column}
        unknown_cells = rows.column(unknown_column)
    delimiter = options.label_delimiter or _label_delimiter([*cells, *unknown_cells])
    seen: dict[str, int] = {}
    positive = [_columns_of(cell, delimiter, seen) for cell in cells]
    unknown = [_columns_of(cell, delimiter, seen) for cell in unknown_cells]

    targets = np.zeros((len(cells), len(seen)), np.int8)
    unnamed = np.zeros(len(cells), np.int8)
    for row, columns in enumerate(unknown):
        targets[row, columns] = UNKNOWN
        for label in sorted(set(columns) & set(positive[row])):
            rows.fault(row, f"'{list(seen)[label]}' stands in {column} and in {unknown_column}")
    empty = [row for row, columns in enumerate(positive) if not columns]
    for row, columns in enumerate(positive):
        targets[row, columns] = POSITIVE
    for row in empty:
        if options.empty_labels == "error":
            rows.fault(row, f"no label in column {column} (data.empty_labels is error)")
        elif options.empty_labels == "unknown":
            targets[row], unnamed[row] = UNKNOWN, UNKNOWN
    how = f"separated by {_named(delimiter)}" if delimiter else "one a row"
    notes = [f"labels in column '{column}', {how}", *_unused(rows, {column, *taken})]
    if empty:
        state = {"negative": "all labels absent", "unknown": "all labels unknown"}
        count = f"{len(empty)} {'row has' if len(empty) == 1 else 'rows have'} no label"
        notes.append(f"{count}: {state.get(options.empty_labels, 'refused')}")
    return _Labels(LabelSpace(tuple(seen)), targets, unnamed, tuple(notes), delimiter)


def _columns_of(cell: str, delimiter: str | None, seen: dict[str, int]) -> list[int]:
    parts = cell.split(delimiter) if delimiter else [cell]
    labels = (part.strip() for part in parts)
    return [seen.setdefault(label, len(seen)) for label in labels if label]


def _label_delimiter(cells: Sequence[str]) -> str | None:
    """The first of | ; , that stands in a cell; a space where words recur in many cells.

    Few words that make many cells are lists (`haze primary`, `clear primary`, `clear`); `hot dog`
    and `ice cream` share none, so they are labels of two words. What was taken is printed.
    """
    for delimiter in DELIMITERS:
        if any(delimiter in cell for cell in cells):
            return delimiter
    whole = {cell for cell in cells if cell}
    words = {word for cell in whole for word in cell.split()}
    return " " if any(" " in cell for cell in whole) and len(words) < len(whole) else None


# ---- one column a label -----------------------------------------------------------------


def _read_columns(rows: _Rows, given: Sequence[str] | None, taken: set[str]) -> _Labels:
    if given is None:
        columns = [name for name in rows.header if name not in taken and _is_state(rows, name)]
    else:
        columns = [str(rows.find(name, (), "label_columns")) for name in given]
    if not columns:
        raise DataError(
            f"{rows.path}: no labels found; wanted a column named {', '.join(LABEL_COLUMNS)} "
            f"(or data.label_column), or one 0/1 column a label (or data.label_columns); "
            f"columns: {_quoted(rows.header)}"
        )
    hint = "" if given else "; if it is no label, name the labels in data.label_columns"
    targets = np.full((len(rows.cells), len(columns)), UNKNOWN, np.int8)
    for at, name in enumerate(columns):
        for row, cell in enumerate(rows.column(name)):
            state = _STATES.get(cell.casefold())
            if state is None:
                rows.fault(
                    row, f"{name} is '{cell}'; wanted 1, 0, or blank or -1 for unknown{hint}"
                )
            else:
                targets[row, at] = state
    unnamed = np.full(len(rows.cells), UNKNOWN, np.int8)
    notes = [f"one column a label, {len(columns)} labels", *_unused(rows, {*columns, *taken})]
    if unknown := int((targets == UNKNOWN).sum()):
        notes.append(f"{unknown} of {targets.size} targets are blank or -1: unknown, masked")
    return _Labels(LabelSpace(tuple(columns)), targets, unnamed, tuple(notes))


def _is_state(rows: _Rows, name: str) -> bool:
    """Does the column hold states? One good cell that is not blank makes it so."""
    return any(cell and cell.casefold() in _STATES for cell in rows.column(name))


# ---- words ------------------------------------------------------------------------------


def _unused(rows: _Rows, used: set[str]) -> list[str]:
    unused = [name for name in rows.header if name not in used]
    return [f"columns not used: {_quoted(unused)}"] if unused else []


def _named(delimiter: str) -> str:
    return "a space" if delimiter == " " else f"'{delimiter}'"


def _quoted(names: Sequence[str]) -> str:
    shown = [f"'{name}'" for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
