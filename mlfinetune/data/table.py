"""What one table or folder says, before a run fixes the label columns.

file or folder + SourceOptions -> Table, with its Faults
LabelLists.add(the labels of a row) -> Targets -> Table
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import BLOCK_BYTES, NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.location import Location


@dataclass(frozen=True)
class SourceOptions:
    """How to read a table or folder; the keys of the config's `data` section say what each does."""

    format: str = "auto"
    images: Location | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_columns: tuple[str, ...] | None = None
    label_delimiter: str | None = None
    group_by: str | None = None
    folder_labels: str = "leaf"
    difficult: str = "ignore"
    empty_labels: str = "negative"
    unknown: str = "ignore"
    rename_labels: tuple[tuple[str, str], ...] = ()
    ignore_labels: tuple[str, ...] = ()
    allow_outside_root: bool = False


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, or with the picture that it names.

    Attributes:
        place: where it stands, as `line 12`.
        text: what is wrong.
        row: its row in the table, where it became one.
        picture: True where the row is sound and its picture is not: `bad_images` decides.
    """

    place: str
    text: str
    row: int | None = None
    picture: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class Table:
    """What one table or folder says, before a run fixes the columns.

    Attributes:
        origin: the file, folder or URL.
        format: what it was read as.
        root: the folder, or the URL, that names are relative to.
        names: N paths as they stand there.
        targets: (N, L) in {1, 0, -1}.
        unnamed: (N,) int8: what a row says of a label that the table does not have: 0 where
            rows list the labels that hold, -1 where nothing is said.
        labels: what the L columns mean.
        lines: (N,) the line of each row, where there are lines; else names say where a row is.
        splits: N of `train`, `val`, `test`, or None where nothing tells them.
        groups: N cells of the column that `group_by` names.
        delimiter: what separates the labels in a cell, given or detected, where anything does.
        notes: what was seen and decided, for the user to read.
        faults: what is wrong with it.
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
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def place(self, row: int) -> str:
        """Where a row stands, as `line 12`."""
        return self.names[row] if self.lines is None else f"line {self.lines[row]}"

    def fault(self, row: int, text: str, picture: bool = False) -> Fault:
        """A fault of a row, or of its picture."""
        return Fault(self.place(row), text, row, picture)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Table":
        """Those rows, in that order."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            targets=self.targets.take(rows),
            unnamed=self.unnamed[rows],
            lines=None if self.lines is None else self.lines[rows],
            splits=self.splits and tuple(self.splits[row] for row in rows),
            groups=self.groups and tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True)
class Skipped:
    """A picture that is not used, where it stands in its table, and why."""

    name: str
    place: str
    reason: str


class LabelLists:
    """Rows that name the labels that hold, as they are read."""

    def __init__(self, labels: Iterable[str] = ()) -> None:
        """With `labels` those have columns even where no row names them."""
        names = dict.fromkeys(labels)
        self.column: dict[str, int] = {name: at for at, name in enumerate(names)}
        # A state each: the columns of all rows, one row after the other, and where each row ends.
        self._columns = {state: array("i") for state in (UNKNOWN, POSITIVE)}
        self._ends = {state: array("q") for state in (UNKNOWN, POSITIVE)}

    def __len__(self) -> int:
        return len(self._ends[POSITIVE])

    @property
    def labels(self) -> LabelSpace:
        """In order of first appearance."""
        return LabelSpace(tuple(self.column))

    def add(self, positive: Iterable[str], unknown: Iterable[str] = ()) -> None:
        """One more row; a label that stands in both is positive."""
        number = self.column
        for state, names in ((UNKNOWN, unknown), (POSITIVE, positive)):
            columns = self._columns[state]
            columns.extend([number.setdefault(name, len(number)) for name in names])
            self._ends[state].append(len(columns))

    def targets(self) -> Targets:
        """What the rows say; 0 of the labels that a row does not name."""
        return Targets.pack(self._blocks(), len(self.column))

    def table(
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
        """The rows as a Table, in which a label that no row has holds for none of them."""
        return Table(
            origin=origin,
            format=format,
            root=root,
            names=tuple(names),
            targets=self.targets(),
            unnamed=np.full(len(names), NEGATIVE, np.int8),
            labels=self.labels,
            splits=None if splits is None else tuple(splits),
            delimiter=delimiter,
            notes=tuple(notes),
            faults=tuple(faults),
        )

    def _blocks(self) -> Iterator[NDArray[np.int8]]:
        step = max(1, BLOCK_BYTES // max(1, len(self.column)))
        for first in range(0, len(self), step):
            last = min(first + step, len(self))
            block = np.zeros((last - first, len(self.column)), np.int8)
            for state, columns in self._columns.items():  # what holds is written last
                ends = np.array(self._ends[state][max(0, first - 1) : last], dtype=np.int64)
                starts = ends[:-1] if first else np.concatenate([[0], ends[:-1]])
                ends = ends[1:] if first else ends
                rows = np.repeat(np.arange(last - first), ends - starts)
                block[rows, np.asarray(columns[starts[0] : ends[-1]])] = state
            yield block
