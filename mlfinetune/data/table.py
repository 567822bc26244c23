"""Table: the content of one table or folder, before a run fixes the label columns.

file or folder + SourceOptions -> Table, with its Faults
LabelLists.add(labels of a row) -> Targets -> Table
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import BLOCK_BYTES, NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.location import Location, join_location

SPLIT_ORDER = ("train", "val", "test")
"""Splits of a table, in the order of messages."""


@dataclass(frozen=True)
class SourceOptions:
    """Options for reading a table or folder; the config's `data` section documents each key."""

    format: str = "auto"
    images: Location | None = None
    image_column: str | None = None
    label_column: tuple[str, ...] = ()
    label_columns: tuple[str, ...] | None = None
    label_delimiter: str | None = None
    split_column: str | None = None
    value_column: str | None = None
    group_by: str | None = None
    folder_labels: str = "leaf"
    difficult: str = "ignore"
    empty_labels: str = "negative"
    unknown: str = "ignore"
    rename_labels: tuple[tuple[str, str], ...] = ()
    ignore_labels: tuple[str, ...] = ()
    implies: Mapping[str, str | list[str]] = field(default_factory=dict)
    find_by_name: bool = False
    allow_outside_root: bool = False
    allow_torn_groups: bool = False
    partial: bool = False


@dataclass(frozen=True)
class Fault:
    """An error in a row, or in the picture that the row names.

    Attributes:
        place: where it is in the source, as `line 12`, `annotation 3` or a file name.
        text: what is wrong.
        row: index of the row in the table; None where the bad entry gave no row.
        picture: True where the row is good and its picture is bad; then `data.bad_images` says
            whether the picture is skipped. A bad row is never skipped.
    """

    place: str
    text: str
    row: int | None = None
    picture: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class Table:
    """Content of one table or folder: N image names, their targets for L labels, and faults.

    Attributes:
        origin: the file, folder or URL that was read.
        format: name of its format, as `csv`.
        root: the folder, or the URL, that names are relative to.
        names: N image paths, as the source writes them.
        targets: (N, L) in {1, 0, -1}: positive, negative, unknown.
        unnamed: (N,) int8: the state of each row for any label that the table does not have: 0
            where rows list their labels (not listed means absent), -1 where each label has a
            column (no column means unknown).
        labels: the names of the L columns.
        lines: (N,) line number of each row, where the source has lines; else None.
        place: what a row is called in messages, before its number in `lines`: `line` or `entry`.
        splits: N of `train`, `val`, `test`; None where the source has no splits.
        groups: N cells of the column that `group_by` names; else None.
        delimiter: what separates the labels in a cell, given or detected; else None.
        other_columns: columns of the source that are no labels.
        choices: what the reader guessed, as keys of the config's `data` section and their values,
            such as ("image_column", "Datei"); a config with them reads the same table.
        notes: what the reader saw and decided, as lines for the user.
        hint: how faults of paths may be mended, in one line; a note says it too.
        faults: all errors in rows and pictures.
        settled: the label options are applied already, as to one of several tables.
        former_labels: labels before that, by the names that the files have.
        places: (N,) where each row is, if they come from several tables; else None.
        sources: (N,) number of each row's table; None: there is one.
    """

    origin: Location
    format: str
    root: Location
    names: tuple[str, ...]
    targets: Targets
    unnamed: NDArray[np.int8]
    labels: LabelSpace
    lines: NDArray[np.int64] | None = None
    splits: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    delimiter: str | None = None
    other_columns: tuple[str, ...] = ()
    choices: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    hint: str = ""
    faults: tuple[Fault, ...] = ()
    place: str = "line"
    settled: bool = False
    former_labels: tuple[str, ...] = ()
    places: tuple[str, ...] | None = None
    sources: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> str:
        """Return the path or URL of the picture of a row."""
        return join_location(self.root, self.names[row])

    def find_place(self, row: int) -> str:
        """Return where a row is in the source: `line 12`, or its image name without lines."""
        if self.places is not None:
            return self.places[row]
        return self.names[row] if self.lines is None else f"{self.place} {self.lines[row]}"

    def build_fault(self, row: int, text: str, picture: bool = False) -> Fault:
        """Return a fault of a row, or of its picture."""
        return Fault(self.find_place(row), text, row, picture)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Table":
        """Return the table of these rows only, in this order."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            targets=self.targets.take(rows),
            unnamed=self.unnamed[rows],
            lines=None if self.lines is None else self.lines[rows],
            splits=self.splits and tuple(self.splits[row] for row in rows),
            groups=self.groups and tuple(self.groups[row] for row in rows),
            places=self.places and tuple(self.places[row] for row in rows),
            sources=None if self.sources is None else self.sources[rows],
        )


@dataclass(frozen=True)
class Skipped:
    """A picture that is not used.

    Attributes:
        name: the image name in the table.
        place: place of its row in the table, as `line 12`.
        reason: why it cannot be used.
    """

    name: str
    place: str
    reason: str


class LabelLists:
    """Collects rows that list their labels, one row at a time, and packs them into a Table.

    lists.add(["cat"]); lists.add(["dog", "cat"], unknown=["fox"])
    lists.labels           cat dog fox
    lists.build_targets()  [[1, 0, 0], [1, 1, -1]]
    """

    def __init__(self, labels: Iterable[str] = ()) -> None:
        """Start without rows; `labels` get the first columns, even if no row names them."""
        names = dict.fromkeys(labels)
        self.column: dict[str, int] = {name: index for index, name in enumerate(names)}
        # Per state: the label columns of all rows, one row after the other, and each row's end.
        self._columns = {state: array("i") for state in (UNKNOWN, POSITIVE)}
        self._ends = {state: array("q") for state in (UNKNOWN, POSITIVE)}

    def __len__(self) -> int:
        return len(self._ends[POSITIVE])

    @property
    def labels(self) -> LabelSpace:
        """The labels in order of first appearance."""
        return LabelSpace(tuple(self.column))

    def add(self, positive: Iterable[str], unknown: Iterable[str] = ()) -> None:
        """Add a row; a label in both lists is positive."""
        column = self.column
        for state, names in ((UNKNOWN, unknown), (POSITIVE, positive)):
            columns = self._columns[state]
            columns.extend([column.setdefault(name, len(column)) for name in names])
            self._ends[state].append(len(columns))

    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (P,) indices of the positive labels of all rows, and (N,) the end of each row."""
        columns, ends = self._columns[POSITIVE], self._ends[POSITIVE]
        return np.array(columns, np.int64), np.array(ends, np.int64)

    def build_targets(self) -> Targets:
        """Return the (N, L) targets; a label that a row does not name is 0."""
        return Targets.pack(self._build_blocks(), len(self.column))

    def build_table(
        self,
        origin: Location,
        format: str,
        root: Location,
        names: Sequence[str],
        *,
        splits: Sequence[str] | None = None,
        delimiter: str | None = None,
        notes: Iterable[str] = (),
        faults: Iterable[Fault] = (),
    ) -> Table:
        """Return the rows as a Table; labels that it does not have are absent from every row."""
        return Table(
            origin=origin,
            format=format,
            root=root,
            names=tuple(names),
            targets=self.build_targets(),
            unnamed=np.full(len(names), NEGATIVE, np.int8),
            labels=self.labels,
            splits=None if splits is None else tuple(splits),
            delimiter=delimiter,
            notes=tuple(notes),
            faults=tuple(faults),
        )

    def _build_blocks(self) -> Iterator[NDArray[np.int8]]:
        """Yield the rows as dense (n, L) blocks of at most `BLOCK_BYTES`."""
        step = max(1, BLOCK_BYTES // max(1, len(self.column)))
        for first in range(0, len(self), step):
            last = min(first + step, len(self))
            block = np.zeros((last - first, len(self.column)), np.int8)
            for state, columns in self._columns.items():  # positive last: it wins
                ends = np.array(self._ends[state][max(0, first - 1) : last], dtype=np.int64)
                starts = ends[:-1] if first else np.concatenate([[0], ends[:-1]])
                ends = ends[1:] if first else ends
                rows = np.repeat(np.arange(last - first), ends - starts)
                block[rows, np.asarray(columns[starts[0] : ends[-1]])] = state
            yield block
