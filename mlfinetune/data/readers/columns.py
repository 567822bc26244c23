"""Rows of named cells become a Table: find the columns of the image, the labels, the split.

    header -> Columns: image column, label column(s), split column, group column
    rows   -> a list of labels per row                 image,labels     a.jpg,cat|dog
           -> or one column per label (1, 0, unknown)  image,cat,dog    a.jpg,1,

Cells are text, as in CSV, or values, as in JSON and Parquet. Rows are taken one at a time; names,
label cells and two bits per state are kept. Every bad row is collected as a fault.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np

from mlfinetune.data.readers.cells import (
    Cell,
    detect_delimiter,
    find_bit_width,
    format_cell,
    name_delimiter,
    parse_lists,
    quote_names,
)
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets, pack_codes
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize, suggest

IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "path", "file", "fname")
LABEL_COLUMNS = ("labels", "label", "tags", "classes")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}
"""Word of a split column, a folder or a shard -> the split."""

_IS_VALID = {
    **dict.fromkeys(("1", "1.0", "true"), "val"),
    **dict.fromkeys(("0", "0.0", "false"), "train"),
}
_UNKNOWN_COLUMN = "unknown"
_STATES = {
    **dict.fromkeys(("1", "1.0", "true"), POSITIVE),
    **dict.fromkeys(("0", "0.0", "false"), NEGATIVE),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na", "none", "null"), UNKNOWN),
}
_BAD = 2
"""Two-bit code of a cell that is no state; the other codes are those of `Targets`."""

_CHUNK_ROWS = 4096
_KEPT_BAD_CELLS = 1000
"""Bad cells that are kept per column: more than any message shows."""


class Columns:
    """Collects the rows of a source with named columns, and returns their Table.

    Use: `Columns(path, header, options)`, then `add` for each row, then `table`.
    """

    def __init__(
        self,
        path: Path,
        header: Sequence[str],
        options: SourceOptions,
        sample: Sequence[Sequence[Cell]] = (),
        place: str = "line",
    ) -> None:
        """Find the columns of the image, the labels, the split and the group.

        Args:
            path: the file, for messages.
            header: the names of the columns.
            options: what the config says about the columns.
            sample: the first rows, which tell what a column holds; `add` gets them again.
            place: what a row is called in messages: `line`, or `entry` of a JSON list.

        Raises:
            DataError: there is no image column, a column that the config names is missing, or
                two columns have one name.
        """
        self.path = path
        self.place = place
        self.header = tuple(header)
        self._options = options
        repeated = sorted(name for name, times in Counter(header).items() if times > 1 and name)
        if repeated:
            raise DataError(f"{path}: the header names {quote_names(repeated)} more than once")
        self._index = {name: index for index, name in enumerate(header)}
        image = self._find_column(options.image_column, IMAGE_COLUMNS, "image_column")
        if image is None:
            raise DataError(
                f"{path}: no image column among {quote_names(self.header)}; wanted one of "
                f"{', '.join(IMAGE_COLUMNS)}, or name it with data.image_column"
            )
        self.image = image
        self._split = self._find_column(None, ("split", "is_valid"), "")
        self._group = self._find_column(options.group_by, (), "group_by")
        self.names: list[str] = []
        self.faults: list[Fault] = []
        self._lines: list[int] = []
        self._splits: list[str] = []
        self._groups: list[str] = []
        used = {image, self._split, self._group}
        used |= {self._find_column(None, (name,), "") for name in ("split", "is_valid")}
        self._labels = self._choose_labels({name for name in used if name is not None})

    def _choose_labels(self, used: set[str]) -> "_Lists | _States":
        """Return the collector of labels, from one column of lists or from one column per label.

        `label_columns` of the config decides; then a label column, given or by a usual name; else
        every column that is not used otherwise may be a label.
        """
        options = self._options
        if options.label_columns is not None:
            columns = [
                str(self._find_column(name, (), "label_columns")) for name in options.label_columns
            ]
            return _States(self, columns, used, given=True)
        given = next(iter(options.label_column), None)
        column = self._find_column(given, LABEL_COLUMNS, "label_column")
        if column is not None:
            return _Lists(self, column, used, options.label_delimiter)
        candidates = [name for name in self.header if name and name not in used]
        return _States(self, candidates, used, given=False)

    @property
    def listed(self) -> tuple[str, ...]:
        """The columns of lists of labels; empty where each label has a column."""
        return self._labels.listed

    @property
    def needed(self) -> set[str]:
        """The columns whose cells are read; the cells of the others do not matter."""
        return self._labels.needed

    def add(self, cells: Sequence[Cell], line: int) -> None:
        """Add a row: its cells in the order of the header, and its line number."""
        if len(cells) != len(self.header):
            text = f"{len(cells)} cells where the header has {len(self.header)}"
            self.faults.append(Fault(f"{self.place} {line}", text))
            return
        name = format_cell(cells[self._index[self.image]])
        self._lines.append(line)
        self.names.append(name)
        if not name:
            self.add_fault("no image named")
        if self._split is not None:
            self._splits.append(self._read_split(format_cell(cells[self._index[self._split]])))
        if self._group is not None:
            self._groups.append(format_cell(cells[self._index[self._group]]))
        self._labels.add(cells)

    def add_fault(self, text: str, row: int = -1) -> None:
        """Add a fault of a row; without `row`, of the last one added."""
        row = len(self.names) - 1 if row < 0 else row
        self.faults.append(Fault(f"{self.place} {self._lines[row]}", text, row))

    def build_table(self, root: Path, format: str) -> Table:
        """Return the Table of the rows; `root` is the folder of the pictures if none is given.

        Raises:
            DataError: no column holds labels.
        """
        labels, targets, notes = self._labels.finish()
        is_list = isinstance(self._labels, _Lists)
        return Table(
            origin=self.path,
            format=format,
            root=self._options.images or root,
            names=tuple(self.names),
            targets=targets,
            unnamed=np.full(len(self.names), NEGATIVE if is_list else UNKNOWN, np.int8),
            labels=labels,
            lines=np.array(self._lines, np.int64),
            place=self.place,
            splits=tuple(self._splits) if self._split is not None else None,
            groups=tuple(self._groups) if self._group is not None else None,
            delimiter=self._labels.delimiter,
            notes=tuple(notes),
            faults=tuple(self.faults),
        )

    def _find_column(self, given: str | None, usual: Sequence[str], key: str) -> str | None:
        """Return the column that the config names, else the first one with a usual name, else None.

        `key` is the config key, for the message.
        """
        if given is not None and given not in self.header:
            raise DataError(
                f"{self.path}: no column '{given}' (data.{key})"
                f"{suggest(given, self.header)}; columns: {quote_names(self.header)}"
            )
        by_name = {name.casefold(): name for name in reversed(self.header)}
        return given or next((by_name[name] for name in usual if name in by_name), None)

    def _read_split(self, cell: str) -> str:
        """Return the split that a cell names; a fault, and train, where it names none."""
        assert self._split is not None
        meanings = SPLITS if self._split.casefold() == "split" else _IS_VALID
        split = meanings.get(cell.casefold())
        if split is None:
            self.add_fault(f"{self._split} is '{cell}'; wanted one of {', '.join(meanings)}")
        return split or "train"


class _Lists:
    """Collects labels from a column of lists, and unknown labels from a column `unknown`.

    image,labels,unknown
    a.jpg,cat|dog,fox       cat 1, dog 1, fox unknown, all others 0
    """

    def __init__(
        self, columns: Columns, column: str, used: set[str], delimiter: str | None
    ) -> None:
        self._columns = columns
        self._column = column
        self.delimiter = delimiter
        others = (name for name in columns.header if name != column)
        self._unknown = next((name for name in others if name.casefold() == _UNKNOWN_COLUMN), None)
        self.listed = (column,) if self._unknown is None else (column, self._unknown)
        self.needed = {*used, *self.listed}
        self._indices = [columns.header.index(name) for name in self.listed]
        self._cells: list[list[Cell]] = [[] for _ in self.listed]

    def add(self, cells: Sequence[Cell]) -> None:
        """Keep the label cells of a row; they are split when all rows are there."""
        for kept, index in zip(self._cells, self._indices, strict=True):
            cell = cells[index]
            if isinstance(cell, dict):
                self._columns.add_fault(
                    f"{self._columns.header[index]} holds a nested value; wanted labels"
                )
                cell = None
            kept.append(cell)

    def finish(self) -> tuple[LabelSpace, Targets, list[str]]:
        """Return labels, targets and notes; detect the delimiter if none is given."""
        if width := find_bit_width(self._cells[0]):
            raise DataError(
                f"{self._columns.path}: all cells of '{self._column}' are lists of {width} zeros "
                f"and ones; wanted lists of labels, or one 0/1 column per label"
            )
        self._cells = [parse_lists(cells) for cells in self._cells]
        text = [cell for cells in self._cells for cell in cells if isinstance(cell, str)]
        if self.delimiter is None:
            self.delimiter = detect_delimiter(text)
        lists = LabelLists()
        for row, cells in enumerate(zip(*self._cells, strict=True)):
            labels = [self._split_cell(cell) for cell in cells]  # positive, perhaps unknown
            if len(labels) > 1:
                for label in sorted(set(labels[0]).intersection(labels[1])):
                    self._columns.add_fault(
                        f"'{label}' is in both {self._column} and {self._unknown}", row
                    )
            lists.add(*labels)
        if self._unknown is not None:
            self._check_unknown_column(self._cells[1])
        how = f"separated by {name_delimiter(self.delimiter)}" if self.delimiter else "one per row"
        if len(text) < sum(map(len, self._cells)):
            how = "as lists"
        note = f"labels in column '{self._column}', {how}"
        return (
            lists.labels,
            lists.build_targets(),
            [note, *_note_unused(self._columns, self.needed)],
        )

    def _check_unknown_column(self, cells: Sequence[Cell]) -> None:
        """Raise DataError where the column `unknown` holds states (0, 1) and no labels."""
        labels = {label.casefold() for cell in cells for label in self._split_cell(cell)}
        if labels and labels <= _STATES.keys():
            raise DataError(
                f"{self._columns.path}: column '{self._unknown}' holds "
                f"{quote_names(sorted(labels))}; wanted the labels that are unknown for the image"
            )

    def _split_cell(self, cell: Cell) -> list[str]:
        """Return the labels of a cell: of text, what the delimiter separates; else the items."""
        if isinstance(cell, str):
            parts: Iterable[str] = cell.split(self.delimiter) if self.delimiter else [cell]
        else:
            parts = map(format_cell, cell if isinstance(cell, list | tuple) else [cell])
        return list(filter(None, map(str.strip, parts)))


class _States:
    """Collects states from one column per label; keeps two bits per cell.

    image,cat,dog
    a.jpg,1,        cat 1, dog unknown
    """

    delimiter = None
    listed: tuple[str, ...] = ()

    def __init__(
        self, columns: Columns, candidates: Sequence[str], used: set[str], given: bool
    ) -> None:
        """Start without rows.

        Args:
            columns: gets the faults.
            candidates: columns that may be labels.
            used: columns that are not labels.
            given: the config names the labels; else a column with no states is no label.
        """
        self._columns = columns
        self._candidates = list(candidates)
        self._given = given
        self._rows = 0
        self._used = used
        self.needed = {*used, *candidates}
        indices = [columns.header.index(name) for name in candidates]
        self._pick: Callable[[Sequence[Cell]], Sequence[Cell]] = lambda cells: [
            cells[index] for index in indices
        ]
        if len(indices) > 1:  # faster; with one index it would return the cell and no sequence
            self._pick = itemgetter(*indices)
        self._codes = _Codes()
        self._pending: list[bytes] = []
        self._packed = [np.empty((0, -(-len(candidates) // 4)), np.uint8)]
        self._counts = np.zeros((4, len(candidates)), np.int64)  # of codes: 0, 1, bad, unknown
        self._bad: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)

    def add(self, cells: Sequence[Cell]) -> None:
        """Add a row as codes of two bits; keep what is needed to report its bad cells."""
        # A table of labels has a thousand cells a row: `itemgetter`, `map` and `bytes` loop in C.
        states = self._pick(cells)
        try:
            codes = bytes(map(self._codes.__getitem__, states))
        except TypeError:  # a list or a mapping cannot be looked up
            states = [format_cell(cell) for cell in states]
            codes = bytes(map(self._codes.__getitem__, states))
        if _BAD in codes:
            for column, code in enumerate(codes):
                if code == _BAD and len(self._bad[column]) < _KEPT_BAD_CELLS:
                    self._bad[column].append((self._rows, format_cell(states[column])))
        self._rows += 1
        self._pending.append(codes)
        if len(self._pending) == _CHUNK_ROWS:
            self._pack_pending()

    def _pack_pending(self) -> None:
        """Pack the pending rows and count their codes."""
        block = np.frombuffer(b"".join(self._pending), np.uint8)
        block = block.reshape(len(self._pending), len(self._candidates))
        for code in range(4):
            self._counts[code] += np.count_nonzero(block == code, axis=0)
        self._packed.append(pack_codes(block))
        self._pending = []

    def finish(self) -> tuple[LabelSpace, Targets, list[str]]:
        """Return labels, targets and notes; bad cells of the label columns become faults.

        A column is a label if the config names it, or if at least half of its cells that are not
        unknown are 1 or 0: a few typing errors are reported, and do not make it another column.
        """
        self._pack_pending()
        known, bad = self._counts[:2].sum(axis=0), self._counts[_BAD]
        chosen = np.flatnonzero(self._given | ((known > 0) & (known >= bad))).tolist()
        names = tuple(self._candidates[column] for column in chosen)
        if not names:
            raise DataError(
                f"{self._columns.path}: no labels found; wanted a column named "
                f"{', '.join(LABEL_COLUMNS)} (or data.label_column), or one 0/1 column per label "
                f"(or data.label_columns); columns: {quote_names(self._columns.header)}"
            )
        self._report_bad_cells(chosen)
        targets = Targets(np.concatenate(self._packed), len(self._candidates))
        if len(chosen) < len(self._candidates):
            blocks = (block[:, chosen] for _, block in targets.blocks())
            targets = Targets.pack(blocks, len(chosen))
        notes = [f"one column per label, {pluralize(len(names), 'label')}"]
        notes += _note_unused(self._columns, {*names, *self._used})
        if unknown := int(self._counts[3][chosen].sum()):
            size = self._rows * len(chosen)
            notes.append(f"{unknown} of {size} targets are blank or -1: unknown")
        return LabelSpace(names), targets, notes

    def _report_bad_cells(self, chosen: Sequence[int]) -> None:
        """Add a fault for each kept bad cell of the chosen columns."""
        hint = "; if it is no label, name the labels in data.label_columns"
        if self._given:
            hint = ""
        for column in chosen:
            for row, cell in self._bad[column]:
                self._columns.add_fault(
                    f"{self._candidates[column]} is '{cell}'; wanted 1, 0, or blank or -1 for "
                    f"unknown{hint}",
                    row,
                )


class _Codes(dict[Cell, int]):
    """Cell -> code of two bits: 0, 1, 2 for a bad cell, 3 (-1 & 3) for unknown.

    Spellings of states are kept, for the next lookup. Bad cells would fill the memory.
    """

    def __missing__(self, cell: Cell) -> int:
        state = _STATES.get(format_cell(cell).casefold())
        if state is None:
            return _BAD
        self[cell] = state & 3
        return self[cell]


def _note_unused(columns: Columns, used: set[str]) -> list[str]:
    """Return a note with the columns that are not in `used`, or nothing."""
    unused = [name for name in columns.header if name and name not in used]
    return [f"columns not used: {quote_names(unused)}"] if unused else []
