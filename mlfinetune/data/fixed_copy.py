"""A corrected copy of a table: planned edits are written, and the copy is read again.

table, Fixes -> write_fixed -> a file; every byte that no edit concerns is as it was
table, copy  -> exactly the planned targets have changed, else there is no copy
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlfinetune.data.fixes import Fixes, RowEdit
from mlfinetune.data.labels import align
from mlfinetune.data.readers.columns import LabelLayout
from mlfinetune.data.readers.csv_edit import RawRow, copy_rows
from mlfinetune.data.readers.csv_table import Rows, read_csv
from mlfinetune.data.readers.label_cells import add_label, is_container, remove_labels
from mlfinetune.data.rows import join_repeats, normalize_name
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import POSITIVE, LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.text import format_list


def write_fixed(path: Path, rows: Rows, layout: LabelLayout, fixes: Fixes, out: BinaryIO) -> None:
    """Write the copy of a table with the planned edits.

    Args:
        path: the table.
        rows: how it is read, with its columns.
        layout: where it has its labels; `delimiter` is used where a cell gets a second label.
        fixes: the edits.
        out: gets the bytes.

    Raises:
        DataError: labels that the cells cannot hold.
    """
    editor = _Editor(rows, layout, fixes.edits)
    copy_rows(path, rows, out, editor.edit)
    if editor.faults:
        raise DataError(
            f"{path}: some labels cannot be written; reject these rows, or correct the table "
            f"there by hand\n{format_list(editor.faults)}"
        )


_LINE_END = re.compile(r"(?:\r\n|\r|\n)\Z")


class _Editor:
    """Edits rows one by one.

    Attributes:
        faults: rows that cannot be edited.
    """

    def __init__(self, rows: Rows, layout: LabelLayout, edits: Mapping[int, RowEdit]) -> None:
        """Find the columns."""
        self.faults: list[str] = []
        header = rows.columns.header
        self._layout, self._edits = layout, edits
        self._column = {name: header.index(name) for name in header}
        self._lists = [self._column[name] for name in layout.lists]
        self._kept: defaultdict[int, list[list[str]]] = defaultdict(list)
        self._line_end = "\n"
        self._last = {line: last for last, one in edits.items() for line in one.siblings}

    def edit(self, row: RawRow) -> Iterable[str] | None:
        """Return the rows in place of a row; None: it stays as it is."""
        if row.line in self._last:
            self._kept[self._last[row.line]].append(row.cells)
        if end := _LINE_END.search(row.text):
            self._line_end = end[0]
        if row.line not in self._edits:
            return None
        edit = self._edits[row.line]
        try:
            return list(self._edit_row(row, edit))
        except DataError as error:
            self.faults.append(f"line {row.line}: {error}")
            return None

    def _edit_row(self, row: RawRow, edit: RowEdit) -> Iterator[str]:
        """Yield the texts in place of a row.

        Raises:
            DataError: a cell that cannot be changed.
        """
        cells = {
            self._column[name]: self._choose_word(row, name, state)
            for name, state in edit.states.items()
        }
        if edit.add or edit.remove or edit.known:
            cells |= self._edit_lists(row.cells, edit)
        texts = [] if edit.drop else [row.replace(cells)]
        texts += [self._build_row(row, label, state) for label, state in edit.follow]
        for text in texts[:-1]:  # the last row of a file may lack its line end
            yield text if _LINE_END.search(text) else text + self._line_end
        yield from texts[-1:]

    def _edit_lists(self, cells: list[str], edit: RowEdit) -> dict[int, str]:
        """Return the changed cells of lists: index of the column -> cell."""
        changed = {}
        for index in self._lists:
            changed[index] = remove_labels(cells[index], edit.remove, self._layout.delimiter)
        for label in edit.add:
            index, layout = self._choose_list(changed, label), self._layout
            printed = cells[index] if is_container(cells[index]) else layout.printed
            changed[index] = add_label(changed[index], label, layout.delimiter, printed)
        if self._layout.unknown is not None and edit.known:
            index = self._column[self._layout.unknown]
            changed[index] = remove_labels(cells[index], edit.known, self._layout.delimiter)
        return {index: cell for index, cell in changed.items() if cell != cells[index]}

    def _choose_list(self, cells: Mapping[int, str], label: str) -> int:
        """Return the column that gets a label: the one that has it in other rows, else the first.

        Of columns of one label each it is a blank one.

        Raises:
            DataError: all of them have a label.
        """
        home = self._layout.homes.get(label, self._layout.lists[0])
        order = sorted(self._layout.lists, key=lambda name: name != home)
        for index in (self._column[name] for name in order):
            if not self._layout.whole or not cells[index].strip():
                return index
        count = len(order)
        raise DataError(f"each of its {count} columns of labels has one: no cell is free")

    def _choose_word(self, row: RawRow, column: str, state: int) -> str:
        """Return the cell for a state, with the white space of the cell that was there."""
        before = row.cells[self._column[column]]
        word = self._layout.words.get((column, state), "1" if state == POSITIVE else "0")
        return before.replace(before.strip(), word, 1) if before.strip() else word

    def _build_row(self, row: RawRow, label: str, state: int | None) -> str:
        """Return a new row of the picture of `row`.

        Cells that are the same in all rows of the picture stay; of the others nothing is known.
        """
        kept = self._kept[row.line]
        cells = {
            index: ""
            for index in range(min(map(len, kept)))
            if len({other[index] for other in kept}) > 1
        }
        cells[self._lists[0]] = label
        if self._layout.value is not None and state is not None:
            cells[self._column[self._layout.value]] = "1" if state == POSITIVE else "0"
        return row.replace(cells)


# ---- the copy is read again -----------------------------------------------------------------


def verify_fixed(before: Table, copy: Path, options: SourceOptions, fixes: Fixes) -> int:
    """Read a copy, and require that exactly the planned targets have changed.

    Args:
        before: the table, rows of one picture not joined.
        copy: the corrected file.
        options: how both are read.
        fixes: the plan.

    Returns:
        Number of pictures that have no label any more, and had one before.

    Raises:
        DataError: the copy is read in another way.
    """
    after = read_csv(copy, options)
    old, new = join_repeats(before), join_repeats(after)
    faults = [fault for fault in new.faults if fault not in old.faults]
    pictures = [normalize_name(name, old.root) for name in old.names]
    place = {normalize_name(name, new.root): row for row, name in enumerate(new.names)}
    if faults or set(place) != set(pictures) or len(new) != len(old):
        raise _build_mismatch(f"it has other rows: {faults[0]}" if faults else "it has other rows")
    order = np.array([place[picture] for picture in pictures], np.int64)
    new = new.take(order)
    if old.splits != new.splits or old.groups != new.groups:
        raise _build_mismatch("its split or groups change")
    planned = {label for states in fixes.targets.values() for label in states}
    union = dict.fromkeys((*old.labels.names, *new.labels.names, *planned))
    space = LabelSpace(tuple(union))
    wanted, found = align(old, space).targets, align(new, space).targets
    for start, block in wanted.blocks():
        for row in range(start, start + len(block)):
            for label, state in fixes.targets.get(pictures[row], {}).items():
                block[row - start, space.column[label]] = state
        if (differ := np.argwhere(found[start : start + len(block)] != block)).size:
            row, column = differ[0].tolist()
            raise _build_mismatch(f"{space.names[column]!r} of {old.names[start + row]!r} differs")
    return int((old.targets.any_positive() & ~new.targets.any_positive()).sum())


def _build_mismatch(why: str) -> DataError:
    return DataError(
        f"the corrected table would be read in another way than the table: {why}; nothing is "
        f"written. Say in a config beside the decisions how to read it (data.label_delimiter, "
        f"data.label_columns)"
    )


def list_delimiters(layout: LabelLayout) -> list[str | None]:
    """Return the signs between labels to try: the table's, or some where it needs none so far."""
    if layout.delimiter or not layout.lists or layout.whole or layout.value:
        return [layout.delimiter]
    return [None, "|", ";", ","]
