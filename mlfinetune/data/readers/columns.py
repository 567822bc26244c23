"""Rows of named cells become a Table: which column holds the image, the labels, the split.

    header -> Columns: image column, label column(s), split column, group column
    rows   -> a list of labels a row                 image,labels     a.jpg,cat|dog
           -> or one column a label (1, 0, unknown)  image,cat,dog    a.jpg,1,

Cells are text, as CSV has it, or values, as JSON and Parquet have them. Rows are taken one at a
time and kept as names, label cells and two bits a state. Every bad row is collected.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets, pack_codes
from mlfinetune.errors import DataError
from mlfinetune.text import suggest

IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "path", "file", "fname")
LABEL_COLUMNS = ("labels", "label", "tags", "classes")
DELIMITERS = ("|", ";", ",")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    "test": "test",
}
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
_LIST_ITEM = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"][^,]*)""")
"""A quoted or bare item of a list in text."""

_BAD = 2
_CHUNK_ROWS = 4096
_KEPT_BAD_CELLS = 1000

Cell = Any
"""Text, a number, a bool, None, or a sequence of labels."""


class Columns:
    """Takes rows, gives their Table."""

    def __init__(self, path: Path, header: Sequence[str], options: SourceOptions) -> None:
        """Decide which column is what.

        Raises:
            DataError: no image column, a column that the config names is missing, or one
                stands twice.
        """
        self.path, self.header, self._options = path, tuple(header), options
        repeated = sorted(name for name, times in Counter(header).items() if times > 1 and name)
        if repeated:
            raise DataError(f"{path}: the header names {quote_names(repeated)} more than once")
        self._places = {name: at for at, name in enumerate(header)}
        image = self._find(options.image_column, IMAGE_COLUMNS, "image_column")
        if image is None:
            raise DataError(
                f"{path}: no image column among {quote_names(self.header)}; wanted one of "
                f"{', '.join(IMAGE_COLUMNS)}, or name it with data.image_column"
            )
        self.image = image
        self._split = self._find(None, ("split", "is_valid"), "")
        self._group = self._find(options.group_by, (), "group_by")
        self.names: list[str] = []
        self.faults: list[Fault] = []
        self._lines: list[int] = []
        self._splits: list[str] = []
        self._groups: list[str] = []
        used = {image, self._split, self._group}
        used |= {self._find(None, (name,), "") for name in ("split", "is_valid")}
        self._labels = self._choose_labels({name for name in used if name is not None})

    def _choose_labels(self, used: set[str]) -> "_Lists | _States":
        options = self._options
        if options.label_columns is not None:
            columns = [str(self._find(name, (), "label_columns")) for name in options.label_columns]
            return _States(self, columns, used, given=True)
        column = self._find(options.label_column, LABEL_COLUMNS, "label_column")
        if column is not None:
            return _Lists(self, column, used, options.label_delimiter)
        candidates = [name for name in self.header if name and name not in used]
        return _States(self, candidates, used, given=False)

    @property
    def listed(self) -> tuple[str, ...]:
        """Columns of lists of labels; none where each label has a column of its own."""
        return self._labels.listed

    @property
    def needed(self) -> set[str]:
        """Columns whose cells are looked at; of the others any cells will do."""
        return self._labels.needed

    def add(self, cells: Sequence[Cell], line: int) -> None:
        """One row, cells in the order of the header, and the line where it stands."""
        if len(cells) != len(self.header):
            text = f"{len(cells)} cells where the header has {len(self.header)}"
            self.faults.append(Fault(f"line {line}", text))
            return
        name = cell_text(cells[self._at(self.image)])
        self._lines.append(line)
        self.names.append(name)
        if not name:
            self.fault("no image named")
        if self._split is not None:
            self._splits.append(self._side(cell_text(cells[self._at(self._split)])))
        if self._group is not None:
            self._groups.append(cell_text(cells[self._at(self._group)]))
        self._labels.add(cells)

    def fault(self, text: str, row: int = -1) -> None:
        """Something is wrong with a row, the last one added where none is named."""
        row = len(self.names) - 1 if row < 0 else row
        self.faults.append(Fault(f"line {self._lines[row]}", text, row))

    def table(self, root: Path, format: str) -> Table:
        """What the rows say.

        Raises:
            DataError: no column holds labels.
        """
        labels, targets, notes = self._labels.result()
        listed = isinstance(self._labels, _Lists)
        return Table(
            origin=self.path,
            format=format,
            root=self._options.images or root,
            names=tuple(self.names),
            targets=targets,
            unnamed=np.full(len(self.names), NEGATIVE if listed else UNKNOWN, np.int8),
            labels=labels,
            lines=np.array(self._lines, np.int64),
            splits=tuple(self._splits) if self._split is not None else None,
            groups=tuple(self._groups) if self._group is not None else None,
            delimiter=self._labels.delimiter,
            notes=tuple(notes),
            faults=tuple(self.faults),
        )

    def _find(self, given: str | None, usual: Sequence[str], key: str) -> str | None:
        """The column that the config names, else the first one with a usual name."""
        if given is not None and given not in self.header:
            raise DataError(
                f"{self.path}: no column '{given}' (data.{key})"
                f"{suggest(given, self.header)}; columns: {quote_names(self.header)}"
            )
        by_name = {name.casefold(): name for name in reversed(self.header)}
        return given or next((by_name[name] for name in usual if name in by_name), None)

    def _at(self, name: str) -> int:
        return self._places[name]

    def _side(self, cell: str) -> str:
        assert self._split is not None
        meanings = SPLITS if self._split.casefold() == "split" else _IS_VALID
        side = meanings.get(cell.casefold())
        if side is None:
            self.fault(f"{self._split} is '{cell}'; wanted one of {', '.join(meanings)}")
        return side or "train"


class _Lists:
    """A column of lists of labels, and perhaps one of labels that nobody looked for."""

    def __init__(
        self, columns: Columns, column: str, used: set[str], delimiter: str | None
    ) -> None:
        self._columns, self._column, self.delimiter = columns, column, delimiter
        self._unknown = next(
            (n for n in columns.header if n.casefold() == _UNKNOWN_COLUMN and n != column), None
        )
        self.listed = (column,) if self._unknown is None else (column, self._unknown)
        self.needed = {*used, *self.listed}
        self._at = [columns.header.index(name) for name in self.listed]
        self._cells: list[list[Cell]] = [[] for _ in self.listed]

    def add(self, cells: Sequence[Cell]) -> None:
        for kept, at in zip(self._cells, self._at, strict=True):
            cell = cells[at]
            if isinstance(cell, dict):
                self._columns.fault(
                    f"{self._columns.header[at]} holds a nested value; wanted labels"
                )
                cell = None
            kept.append(cell)

    def result(self) -> tuple[LabelSpace, Targets, list[str]]:
        if width := _bits(self._cells[0]):
            raise DataError(
                f"{self._columns.path}: all cells of '{self._column}' are lists of {width} zeros "
                f"and ones; wanted lists of labels, or one 0/1 column a label"
            )
        self._cells = [_written_lists(cells) for cells in self._cells]
        text = [cell for cells in self._cells for cell in cells if isinstance(cell, str)]
        if self.delimiter is None:
            self.delimiter = _label_delimiter(text)
        lists = LabelLists()
        for row, cells in enumerate(zip(*self._cells, strict=True)):
            said = [self._labels(cell) for cell in cells]
            if len(said) > 1:
                for label in sorted(set(said[0]).intersection(said[1])):
                    self._columns.fault(
                        f"'{label}' stands in {self._column} and in {self._unknown}", row
                    )
            lists.add(*said)
        if self._unknown is not None:
            named = {x.casefold() for cell in self._cells[1] for x in self._labels(cell)}
            if named and named <= _STATES.keys():
                raise DataError(
                    f"{self._columns.path}: column '{self._unknown}' holds "
                    f"{quote_names(sorted(named))}; wanted the labels that nobody looked for"
                )
        how = f"separated by {_named(self.delimiter)}" if self.delimiter else "one a row"
        if len(text) < sum(map(len, self._cells)):
            how = "as lists"
        notes = [f"labels in column '{self._column}', {how}", *_unused(self._columns, self.needed)]
        return lists.labels, lists.targets(), notes

    def _labels(self, cell: Cell) -> list[str]:
        if isinstance(cell, str):
            parts: Iterable[str] = cell.split(self.delimiter) if self.delimiter else [cell]
        else:
            parts = map(cell_text, cell if isinstance(cell, list | tuple) else [cell])
        return list(filter(None, map(str.strip, parts)))


class _States:
    """One column a label."""

    delimiter = None
    listed: tuple[str, ...] = ()

    def __init__(
        self, columns: Columns, candidates: Sequence[str], used: set[str], given: bool
    ) -> None:
        self._columns, self._candidates = columns, list(candidates)
        self._given, self._seen = given, 0
        self._used, self.needed = used, {*used, *candidates}
        places = [columns.header.index(name) for name in candidates]
        self._pick: Callable[[Sequence[Cell]], Sequence[Cell]] = (
            itemgetter(*places) if len(places) > 1 else lambda cells: [cells[at] for at in places]
        )
        self._codes = _Codes()
        self._pending: list[bytes] = []
        self._packed = [np.empty((0, -(-len(candidates) // 4)), np.uint8)]
        self._counts = np.zeros((4, len(candidates)), np.int64)  # of 0, 1, bad, unknown
        self._bad: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)

    def add(self, cells: Sequence[Cell]) -> None:
        own = self._pick(cells)
        try:
            codes = bytes(map(self._codes.__getitem__, own))
        except TypeError:  # a list or a mapping cannot be looked up
            own = [cell_text(cell) for cell in own]
            codes = bytes(map(self._codes.__getitem__, own))
        if _BAD in codes:
            for at, code in enumerate(codes):
                if code == _BAD and len(self._bad[at]) < _KEPT_BAD_CELLS:
                    self._bad[at].append((self._seen, cell_text(own[at])))
        self._seen += 1
        self._pending.append(codes)
        if len(self._pending) == _CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        block = np.frombuffer(b"".join(self._pending), np.uint8)
        block = block.reshape(len(self._pending), len(self._candidates))
        for code in range(4):
            self._counts[code] += np.count_nonzero(block == code, axis=0)
        self._packed.append(pack_codes(block))
        self._pending = []

    def result(self) -> tuple[LabelSpace, Targets, list[str]]:
        self._flush()
        known, bad = self._counts[:2].sum(axis=0), self._counts[_BAD]
        chosen = [
            at for at in range(len(known)) if self._given or (known[at] and known[at] >= bad[at])
        ]
        names = tuple(self._candidates[at] for at in chosen)
        if not names:
            raise DataError(
                f"{self._columns.path}: no labels found; wanted a column named "
                f"{', '.join(LABEL_COLUMNS)} (or data.label_column), or one 0/1 column a label "
                f"(or data.label_columns); columns: {quote_names(self._columns.header)}"
            )
        hint = "" if self._given else "; if it is no label, name the labels in data.label_columns"
        for at in chosen:
            for row, cell in self._bad[at]:
                self._columns.fault(
                    f"{self._candidates[at]} is '{cell}'; wanted 1, 0, or blank or -1 for "
                    f"unknown{hint}",
                    row,
                )
        every = Targets(np.concatenate(self._packed), len(self._candidates))
        targets = every
        if len(chosen) < len(self._candidates):
            targets = Targets.pack((block[:, chosen] for _, block in every.blocks()), len(chosen))
        notes = [f"one column a label, {len(names)} labels"]
        notes += _unused(self._columns, {*names, *self._used})
        if unknown := int(self._counts[3][chosen].sum()):
            size = self._seen * len(chosen)
            notes.append(f"{unknown} of {size} targets are blank or -1: unknown")
        return LabelSpace(names), targets, notes


class _Codes(dict[Cell, int]):
    """Cell -> two bits; spellings of states are remembered, so that a lookup is all it takes."""

    def __missing__(self, cell: Cell) -> int:
        state = _STATES.get(cell_text(cell).casefold())
        if state is None:
            return _BAD
        self[cell] = state & 3
        return self[cell]


def cell_text(cell: Cell) -> str:
    """A cell as CSV would hold it, without white space around it."""
    return "" if cell is None else str(cell).strip()


def quote_names(names: Sequence[str]) -> str:
    """The first ten names in quotes, the rest counted."""
    shown = [f"'{name}'" for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _label_delimiter(cells: Sequence[str]) -> str | None:
    """The first of | ; , that stands in a cell; a space where words recur in many cells.

    Few words that make many cells are lists (`haze primary`, `clear primary`, `clear`); `hot dog`
    and `ice cream` share none, so they are labels of two words. What was taken is printed.
    """
    for delimiter in DELIMITERS:
        if any(delimiter in cell for cell in cells):
            return delimiter
    whole = {text for cell in cells if (text := cell.strip())}
    words = {word for cell in whole for word in cell.split()}
    return " " if any(" " in cell for cell in whole) and len(words) < len(whole) else None


def _written_lists(cells: list[Cell]) -> list[Cell]:
    """Cells that are lists as Python or JSON writes them, ['cat', 'dog'], as lists."""
    written = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    if not written or not all(cell[0] == "[" and cell[-1] == "]" for cell in written):
        return cells
    return [
        ["".join(found) for found in _LIST_ITEM.findall(cell.strip()[1:-1])]
        if isinstance(cell, str)
        else cell
        for cell in cells
    ]


def _bits(cells: Sequence[Cell]) -> int:
    """The length of the lists where all are states in label order, else 0."""
    if len(cells) < 2 or not all(isinstance(cell, list) for cell in cells):
        return 0
    width = len(cells[0])
    same = width > 2 and all(len(cell) == width for cell in cells)
    return width if same and all(part in (0, 1) for cell in cells for part in cell) else 0


def _unused(columns: Columns, used: set[str]) -> list[str]:
    unused = [name for name in columns.header if name and name not in used]
    return [f"columns not used: {quote_names(unused)}"] if unused else []


def _named(delimiter: str) -> str:
    return "a space" if delimiter == " " else f"'{delimiter}'"
