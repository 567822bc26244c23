"""Columns of lists of labels: their cells are kept, and split when all rows are there.

image,labels,unknown
a.jpg,cat|dog,fox          cat 1, dog 1, fox unknown, all others 0

ImageID,LabelName,Confidence
a.jpg,cat,1                cat 1, dog 0, all others unknown
a.jpg,dog,0
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np

from mlfinetune.data.readers.cells import Cell, RowFaults, find_bit_width, format_cell, quote_names
from mlfinetune.data.readers.containers import (
    is_cut_short,
    is_round,
    looks_bare,
    looks_quoted,
    may_be_list,
    parse_container,
    read_labels,
)
from mlfinetune.data.readers.delimiters import (
    detect_delimiter,
    find_inseparable,
    list_dissent,
    name_delimiter,
    suggest_delimiter,
)
from mlfinetune.data.readers.state_words import THRESHOLD, read_state, read_verdict
from mlfinetune.data.readers.tags import find_odd_cells, find_valued
from mlfinetune.data.table import LabelLists
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize, quote_yaml


class ListColumns:
    """Collects labels from columns of lists, and unknown labels from a column `unknown`.

    Attributes:
        labels, unknown: the columns.
        delimiter: the sign between labels; None: none, or not detected yet.
        printed: the first cell that prints a list, such as `["cat"]`; empty: there is none.
    """

    def __init__(
        self,
        header: Sequence[str],
        labels: Sequence[str],
        unknown: str | None,
        delimiter: str | None,
        whole: bool,
    ) -> None:
        """Start without rows.

        Args:
            header: the columns of a row.
            labels: the columns of lists; their labels are joined.
            unknown: the column of labels that nobody looked for.
            delimiter: the sign between labels; None: detected.
            whole: without a given delimiter each cell is one label.
        """
        self.labels = tuple(labels)
        self.unknown = unknown
        self.delimiter = delimiter
        self._given = delimiter is not None
        self._whole = whole
        self.listed = self.labels if unknown is None else (*self.labels, unknown)
        self._indices = [header.index(name) for name in self.listed]
        self._cells: list[list[Cell]] = [[] for _ in self.listed]
        self.printed = ""

    def add(self, cells: Sequence[Cell]) -> None:
        """Keep the label cells of a row; they are split when all rows are there."""
        for kept, index in zip(self._cells, self._indices, strict=True):
            kept.append(cells[index])

    def finish(self, faults: RowFaults) -> tuple[LabelSpace, Targets, list[str]]:
        """Return labels, targets and notes; detect the delimiter if none is given.

        Raises:
            DataError: cells are lists of zeros and ones; the column `unknown` holds states.
        """
        if width := find_bit_width(self._cells[0]):
            raise DataError(
                f"{faults.path}: all cells of '{self.labels[0]}' are lists of {width} zeros "
                f"and ones; wanted lists of labels, or one 0/1 column per label"
            )
        parsed = self._parse_containers(faults)
        if self.delimiter is None and not self._whole:
            texts = [text for _, text in self._iter_texts()]
            self.delimiter = detect_delimiter(texts)
            if odd := find_odd_cells(texts, self.delimiter):
                raise DataError(f"{faults.path}: the cells of {quote_names(self.labels)} {odd}")
        lists = LabelLists()
        for row, cells in enumerate(zip(*self._cells, strict=True)):
            positive = self._split_cell(cells[0])
            for cell in cells[1 : len(self.labels)]:
                positive += self._split_cell(cell)
            if self.unknown is None:
                lists.add(positive)
                continue
            unknown = self._split_cell(cells[-1])
            for label in sorted(set(positive).intersection(unknown)):
                columns = " and ".join((*self.labels, self.unknown))
                faults.add_fault(f"'{label}' is in both {columns}", row)
            lists.add(positive, unknown)
        self._check_labels(faults.path, lists)
        if self.unknown is not None:
            self._check_unknown_column(faults.path)
        notes = [self._describe_columns(parsed), *self._list_doubts(faults, lists)]
        return lists.labels, lists.build_targets(), notes

    def find_homes(self) -> dict[str, str]:
        """Return label -> the column that has it most often, after `finish`."""
        if len(self.labels) == 1:
            return {}
        homes: dict[str, tuple[int, str]] = {}
        for name, cells in zip(self.labels, self._cells, strict=False):
            counts = Counter(label for cell in cells for label in self._split_cell(cell))
            for label, count in counts.items():
                homes[label] = max(homes.get(label, (0, name)), (count, name), key=itemgetter(0))
        return {label: name for label, (_, name) in homes.items()}

    def _parse_containers(self, faults: RowFaults) -> int:
        """Replace cells that print lists by tuples of labels; return their number.

        A cell such as `["cat"]` is always a list. One such as `[cat]` or `{cat}` is one only if
        most cells are lists, `(cat)` if all are in round brackets. A list that cannot be parsed is
        a fault.
        """
        likely = [
            (cells, row, column)
            for cells, column in zip(self._cells, self.listed, strict=True)
            for row, cell in enumerate(cells)
            if not isinstance(cell, str) or ((text := cell.strip()) and may_be_list(text))
        ]
        texts = [text for cells, row, _ in likely if (text := _strip_text(cells[row]))]
        bare = sum(looks_bare(text) or looks_quoted(text) for text in texts)
        total = sum(1 for cells in self._cells for cell in cells if cell) if bare else 0
        take_round = bare > 0 and len(texts) == total and all(map(is_round, texts))
        take_bare = 2 * bare > total or take_round
        parsed = 0
        for cells, row, column in likely:
            cell, text = cells[row], _strip_text(cells[row])
            is_bare = looks_bare(text) or is_cut_short(text) or (take_round and is_round(text))
            is_text_list = looks_quoted(text) or (take_bare and is_bare)
            if not is_text_list and not isinstance(cell, dict | list | tuple | set):
                continue
            try:
                self.printed = self.printed or text * is_text_list
                cells[row] = parse_container(text) if is_text_list else read_labels(cell)
                parsed += 1
            except ValueError as error:
                what = f"is {text[:60]!r}, a list that cannot be read: {error}"
                if not is_text_list:
                    what = f"holds a nested value; wanted labels ({error})"
                faults.add_fault(f"{column} {what}", row)
                cells[row] = None
        return parsed

    def _iter_texts(self) -> Iterator[tuple[int, str]]:
        """Yield row and text of the cells that are plain text."""
        for cells in self._cells:
            yield from ((row, cell) for row, cell in enumerate(cells) if isinstance(cell, str))

    def _split_cell(self, cell: Cell) -> list[str]:
        """Return the labels of a cell: of text, what the delimiter separates; else the items."""
        if isinstance(cell, tuple):
            return list(cell)
        text = cell if isinstance(cell, str) else format_cell(cell)
        parts = text.split(self.delimiter) if self.delimiter else [text]
        return list(filter(None, map(str.strip, parts)))

    def _check_labels(self, path: Path, lists: LabelLists) -> None:
        """Raise DataError where the lists hold numbers in place of labels.

        `0,1,1`, `[True, False]`, `010`: a state for each label; `cat:0.9`: a label with its value.
        """
        names = lists.labels.names
        columns, ends = lists.positives()
        several = len(columns) > len(ends) > 0
        codes = len(ends) > 1 and all(_CODE.fullmatch(name) for name in names)
        same_width = len(set(map(len, names))) == 1
        if names and ((several and all(map(_is_value, names))) or (codes and same_width)):
            raise DataError(
                f"{path}: the cells of {quote_names(self.labels)} hold {quote_names(names)}: "
                f"numbers, or true and false, in place of labels; wanted lists of labels, or one "
                f"0/1 column per label"
            )
        if valued := find_valued(names):
            raise DataError(
                f"{path}: each label of {quote_names(self.labels)} has a value, such as "
                f"'{valued}'; wanted labels alone, or one row for each label and a column `value`"
            )

    def _check_unknown_column(self, path: Path) -> None:
        """Raise DataError where the column `unknown` holds states (0, 1) and no labels."""
        labels = {label for cell in self._cells[-1] for label in self._split_cell(cell)}
        if labels and all(read_state(label) for label in labels):
            raise DataError(
                f"{path}: column '{self.unknown}' holds {quote_names(sorted(labels))}; wanted the "
                f"labels that are unknown for the image"
            )

    def _describe_columns(self, parsed: int) -> str:
        """Return `labels in column 'labels', separated by '|'`."""
        total = sum(map(len, self._cells))
        how = f"separated by {name_delimiter(self.delimiter)}" if self.delimiter else "one per row"
        if self._whole and len(self.labels) > 1 and not self.delimiter:
            how = "one per cell"
        if parsed:
            how = "as lists" if not self.delimiter else f"{how}; {parsed} of {total} cells as lists"
        columns = "column" if len(self.labels) == 1 else "columns"
        return f"labels in {columns} {quote_names(self.labels)}, {how}"

    def _note_absent_delimiter(self) -> Iterator[str]:
        """Yield a note where no cell holds the delimiter that the config names."""
        texts = [text for _, text in self._iter_texts()]
        if any(str(self.delimiter) in text for text in texts):
            return
        if (found := detect_delimiter(texts)) is not None:
            yield (
                f"no cell holds {name_delimiter(str(self.delimiter))} (data.label_delimiter); "
                f"{name_delimiter(found)} seems to separate the labels: "
                f"data.label_delimiter: {quote_yaml(found)}"
            )

    def _note_merged_cells(self) -> Iterator[str]:
        """Yield a note where each label stands above blank cells, as merged cells are exported."""
        cells = self._cells[0]
        filled = [row for row, cell in enumerate(cells) if format_cell(cell)]
        gaps = [below - row for row, below in pairwise([*filled, len(cells)])]
        if len(gaps) > 1 and not filled[0] and min(gaps) > 1 and 3 * len(gaps) <= len(cells):
            yield (
                f"each of {len(gaps)} labels stands above blank cells, as merged cells of a "
                f"spreadsheet do; if it holds for the rows below: write it into each row"
            )

    def _list_doubts(self, faults: RowFaults, lists: LabelLists) -> Iterator[str]:
        """Yield notes on cells that another delimiter would split, and on parts never apart."""
        if self._given:
            yield from self._note_absent_delimiter()
            return
        if self.delimiter is None and len(self._cells) == 1:
            yield from self._note_merged_cells()
        if self.delimiter is None and not self._whole:
            note = suggest_delimiter(text for _, text in self._iter_texts())
            yield from [note] if note else []
        yield from list_dissent(self._iter_texts(), self.delimiter, faults.find_place)
        if self.delimiter in _PART_OF_LABELS:
            names = lists.labels.names
            yield from find_inseparable(*lists.positives(), names, str(self.delimiter))


_CODE = re.compile("[01]{3,}")
_VALUES = re.compile(r"[01](?:\.0+)?|true|false|0?\.\d+", re.IGNORECASE)


def _is_value(name: str) -> bool:
    """Return whether a label is 0, 1, true, false or a fraction."""
    return _VALUES.fullmatch(name) is not None


_PART_OF_LABELS = (",", ";", " ", "，", "；", "、", "،", "؛")
"""Delimiters that labels often hold themselves."""


def _strip_text(cell: Cell) -> str:
    """Return the text of a cell without space around it; nothing for other values."""
    return cell.strip() if isinstance(cell, str) else ""


class ValuedLabels:
    """Collects rows of one label with its value: 1 is present, 0 is absent, others are unknown.

    A picture has a row for each label that somebody looked for. `join_repeats` joins them.
    """

    delimiter = None

    def __init__(self, header: Sequence[str], label: str, value: str) -> None:
        """Start without rows; `label` and `value` are columns of the header."""
        self.label = label
        self.value = value
        self.listed = (label,)
        self._indices = header.index(label), header.index(value)
        self._labels: dict[str, int] = {}
        self._columns: list[int] = []
        self._states: list[int] = []
        self._fractions = 0
        self._says_absent = False

    def is_valued(self, names: Sequence[str], is_sure: bool) -> bool:
        """Return whether the rows are one label each with its value, and no lists of one label.

        Then a picture has several rows. With one row each, a cell must say absent, and the name of
        the column must be sure: a 0 of `verified` says nothing of the label, and a low fraction
        may be how sure somebody is.
        """
        return len(set(names)) < len(names) or (is_sure and self._says_absent)

    def add(self, cells: Sequence[Cell]) -> None:
        """Keep the label and the state of a row."""
        label, value = (format_cell(cells[index]) for index in self._indices)
        self._columns.append(self._labels.setdefault(label, len(self._labels)) if label else -1)
        state = read_verdict(value)
        if state is not None:
            self._fractions += state.kind == "fraction"
            self._says_absent |= state.state == NEGATIVE and state.kind != "fraction"
        self._states.append(_NO_STATE if state is None else state.state)

    def finish(self, faults: RowFaults) -> tuple[LabelSpace, Targets, list[str]]:
        """Return labels, targets and notes; a value that is no state is a fault."""
        for row, (column, state) in enumerate(zip(self._columns, self._states, strict=True)):
            if column < 0:
                faults.add_fault(f"no label in {self.label}", row)
            if state == _NO_STATE:
                faults.add_fault(f"{self.value} is no number from 0 to 1, and no other state", row)
        columns, states = np.array(self._columns, int), np.array(self._states, np.int8)
        width = len(self._labels)

        def build_block(start: int, stop: int) -> np.ndarray:
            block = np.full((stop - start, width), UNKNOWN, np.int8)
            rows = np.flatnonzero((columns[start:stop] >= 0) & (states[start:stop] != _NO_STATE))
            block[rows, columns[start:stop][rows]] = states[start:stop][rows]
            return block

        step = max(1, 2**23 // max(1, width))
        blocks = (
            build_block(start, min(start + step, len(columns)))
            for start in range(0, len(columns), step)
        )
        counts = [int((states == state).sum()) for state in (POSITIVE, NEGATIVE)]
        note = (
            f"labels in column '{self.label}', one per row; their value in '{self.value}': 1 is "
            f"present ({counts[0]}), 0 is absent ({counts[1]}), labels without a row are unknown"
        )
        notes = [note]
        if self._fractions:
            notes.append(
                f"{pluralize(self._fractions, 'fraction')} in '{self.value}': "
                f"{THRESHOLD:g} and above is present, below is absent"
            )
        return LabelSpace(tuple(self._labels)), Targets.pack(blocks, width), notes


_NO_STATE = -2
