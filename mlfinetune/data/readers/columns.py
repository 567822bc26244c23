"""Rows of named cells become a Table: columns of the image, the labels, the split, the group.

    header, sample -> Roles                              roles.py
    rows   -> a list of labels per row                   list_columns.py    image,labels
           -> or one column per label (1, 0, unknown)    state_columns.py   image,cat,dog

Cells are text, as in CSV, or values, as in JSON and Parquet. Rows are taken one at a time; names,
label cells and two bits per state are kept. Every bad row is collected as a fault.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlfinetune.data.readers.cells import Cell, format_cell, quote_names
from mlfinetune.data.readers.column_names import (
    LABEL_COLUMNS,
    METADATA,
    SPLIT_NAMES,
    SURE_VALUE_NAMES,
    find_split,
    is_bookkeeping,
    simplify_name,
    split_words,
)
from mlfinetune.data.readers.column_sample import Sample
from mlfinetune.data.readers.delimiters import detect_delimiter
from mlfinetune.data.readers.list_columns import ListColumns, ValuedLabels
from mlfinetune.data.readers.roles import choose_roles
from mlfinetune.data.readers.split_columns import SplitColumns
from mlfinetune.data.readers.state_columns import StateColumns
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import format_list, pluralize, quote_yaml

_WATCHED_VALUES = 8


@dataclass(frozen=True)
class LabelLayout:
    """Columns in which a table has its labels.

    Attributes:
        lists: columns of lists of labels; empty where each label has a column.
        unknown: column of labels that nobody looked for, beside `lists`.
        delimiter: the sign between the labels of a cell; None: a cell is one label.
        whole: cells of several columns are one label each.
        printed: the first cell that prints a list, such as `["cat"]`; empty: there is none.
        homes: label -> the one of several columns of `lists` that has it most often.
        value: column that says whether the one label of a row is there.
        words: (label, state) -> the word that its column has for the state, where each label has a
            column.
    """

    lists: tuple[str, ...] = ()
    unknown: str | None = None
    delimiter: str | None = None
    whole: bool = False
    value: str | None = None
    printed: str = ""
    homes: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[tuple[str, int], str] = field(default_factory=dict)


class Columns:
    """Collects the rows of a source with named columns, and returns their Table.

    Use: `Columns(path, header, options, sample)`, then `add` for each row, then `build_table`.
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
            DataError: there is no image column, a column that the config names is missing, two
                columns have one name, or it is unclear which one is the split.
        """
        self.path = path
        self.place = place
        self.header = tuple(header)
        self._options = options
        repeated = sorted(name for name, times in Counter(header).items() if times > 1 and name)
        if repeated:
            raise DataError(f"{path}: the header names {quote_names(repeated)} more than once")
        self._index = {name: index for index, name in enumerate(header)}
        self._sample = Sample(header, sample)
        self._roles = roles = choose_roles(path, header, options, self._sample)
        self.image = roles.image
        self.names: list[str] = []
        self.faults: list[Fault] = []
        self._lines: list[int] = []
        self._split = SplitColumns(header, roles.split, given=options.split_column is not None)
        self._groups: list[str] = []
        self._labels: ListColumns | StateColumns | ValuedLabels
        self._valued: ValuedLabels | None = None
        if roles.lists:
            delimiter = options.label_delimiter
            self._labels = ListColumns(header, roles.lists, roles.unknown, delimiter, roles.whole)
        else:
            self._labels = StateColumns(header, roles.states, roles.given, options.ignore_labels)
        if roles.value is not None:
            self._valued = ValuedLabels(header, roles.lists[0], roles.value)
        # Columns of one value in the sample may say more below: a split, more labels.
        self._watched: dict[str, dict[str, int]] = {
            name: {}
            for name in header
            if name and name not in self._taken and self._sample[name].is_constant
        }

    @property
    def listed(self) -> tuple[str, ...]:
        """The columns of lists of labels; empty where each label has a column."""
        return (*self._roles.lists, *filter(None, [self._roles.unknown]))

    @property
    def needed(self) -> set[str]:
        """The columns whose cells are read; the cells of the others do not matter."""
        return self._taken | set(self._watched)

    @property
    def layout(self) -> LabelLayout:
        """The columns in which the labels stand, after `build_table`."""
        labels = self._labels
        if isinstance(labels, ValuedLabels):
            return LabelLayout(lists=(labels.label,), value=labels.value)
        if isinstance(labels, ListColumns):
            whole = self._roles.whole and not labels.delimiter
            return LabelLayout(
                labels.labels,
                labels.unknown,
                labels.delimiter,
                whole,
                printed=labels.printed,
                homes=labels.find_homes(),
            )
        return LabelLayout(words=labels.choose_words())

    @property
    def _taken(self) -> set[str]:
        """The columns that have a role."""
        roles = self._roles
        named = (roles.image, *roles.split, roles.group, *self.listed, roles.value, *roles.states)
        return {name for name in named if name is not None}

    def add(self, cells: Sequence[Cell], line: int) -> None:
        """Add a row: its cells in the order of the header, and its line number."""
        width = len(self.header)
        if len(cells) > width and not any(map(format_cell, cells[width:])):
            cells = cells[:width]  # a line that ends in separators
        if len(cells) != width:
            text = f"{len(cells)} cells where the header has {width}"
            if len(cells) > width and self.header[-1] in self._roles.lists:
                text += "; several labels need quotes around the cell, or | between them"
            self.faults.append(Fault(f"{self.place} {line}", text))
            return
        name = format_cell(cells[self._index[self.image]])
        self._lines.append(line)
        self.names.append(name)
        if not name:
            self.add_fault("no image named")
        if fault := self._split.add(cells):
            self.add_fault(fault)
        if self._roles.group is not None:
            self._groups.append(format_cell(cells[self._index[self._roles.group]]))
        self._labels.add(cells)
        if self._valued is not None:
            self._valued.add(cells)
        for column, seen in self._watched.items():
            if len(seen) < _WATCHED_VALUES and (text := format_cell(cells[self._index[column]])):
                seen.setdefault(text, len(self.names) - 1)

    def add_fault(self, text: str, row: int = -1) -> None:
        """Add a fault of a row; without `row`, of the last one added."""
        row = len(self.names) - 1 if row < 0 else row
        self.faults.append(Fault(self.find_place(row), text, row))

    def find_place(self, row: int) -> str:
        """Return where a row is in the source, as `line 12`."""
        return f"{self.place} {self._lines[row]}"

    def build_table(self, root: Path, format: str) -> Table:
        """Return the Table of the rows; `root` is the folder of the pictures if none is given.

        Raises:
            DataError: no column holds labels, or it is unclear whether a column is a label.
        """
        self._look_at_watched()
        splits = self._split.finish(self.path)
        if self._valued is not None and self._is_valued(self._valued):
            self._labels = self._valued
        labels, targets, notes = self._finish_labels()
        is_list = isinstance(self._labels, ListColumns)
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
            splits=splits,
            groups=tuple(self._groups) if self._roles.group is not None else None,
            delimiter=self._labels.delimiter if isinstance(self._labels, ListColumns) else None,
            other_columns=tuple(set(self._roles.states) - set(labels.names)),
            choices=(*self._roles.choices, *(self._split.list_choices() if splits else ())),
            notes=(
                *self._list_roles(),
                *(self._split.list_notes() if splits else ()),
                *notes,
                *self._list_unused(labels, splits is not None),
            ),
            faults=tuple(self.faults),
        )

    def _look_at_watched(self) -> None:
        """Take what columns hold beyond the sample.

        Raises:
            DataError: one of them holds words for splits.
        """
        for name, seen in self._watched.items():
            if seen:
                self._sample.replace_texts(name, list(seen))
            splits = {find_split(text) for text in seen} - {None}
            is_split = simplify_name(name) in SPLIT_NAMES or len(splits) == len(seen)
            if is_split and splits - {"train", "val"} and self._options.split_column is None:
                row = next(row for text, row in seen.items() if find_split(text) == "test")
                raise DataError(
                    f"{self.path}: {self._sample.describe([name])} is a split from "
                    f"{self.find_place(row)} on, and not above; data.split_column: "
                    f"{quote_yaml(name)} takes it, none says that it is no split"
                )

    def _check_values(self, labels: ListColumns) -> None:
        """Raise DataError where a column not used may say whether the label of its row is there.

        Pictures then stand in several rows, one for each label.
        """
        is_long = len(labels.labels) == 1 and len(set(self.names)) < len(self.names)
        if not is_long or labels.delimiter or self._options.value_column is not None:
            return
        for name in self.header:
            column = self._sample[name]
            is_free = name and name not in self._taken and name not in self._roles.left_out
            is_measure = any(state and state.kind == "fraction" for state in column.states)
            is_named = simplify_name(name) in SURE_VALUE_NAMES and column.is_numeric
            is_verdict = column.holds_verdicts and (
                not is_measure or name in self._roles.more_lists
            )
            if is_free and (is_named or is_verdict):
                raise DataError(
                    f"{self.path}: pictures stand in several rows, and "
                    f"{self._sample.describe([name])} may say whether the label of its row is "
                    f"there; data.value_column: {quote_yaml(name)} reads it "
                    f"(1, 0, a fraction, a word), data.value_column: none says that it does not"
                )

    def _check_unnamed(self, labels: LabelSpace) -> None:
        """Raise DataError where columns without a name hold the labels of the label column too.

        `image,labels,,` above `a.jpg,cat,dog,`: a spreadsheet has split the cells.
        """
        known = frozenset(labels.names)
        columns = [column for column in self._sample.list_unnamed() if not column.is_numeric]
        texts = list(dict.fromkeys(text for column in columns for text in column.counts))
        if len(texts) < 2 or 2 * sum(text in known for text in texts) < len(texts):
            return
        count = pluralize(len(columns), "column")
        raise DataError(
            f"{self.path}: labels stand in {count} without a name too, as in "
            f"{quote_names(self._roles.lists)} ({quote_names(texts[:3])}); name each column in the "
            f"first line: tag1, tag2, ... where it holds labels, else by what it holds"
        )

    def _is_valued(self, labels: ValuedLabels) -> bool:
        """Return whether a column says of the one label of each row whether it is there."""
        if self._options.value_column is not None:
            return True
        return labels.is_valued(self.names, simplify_name(labels.value) in SURE_VALUE_NAMES)

    def _finish_labels(self) -> tuple[LabelSpace, Targets, list[str]]:
        """Return labels, targets and notes.

        Raises:
            DataError: as `build_table`.
        """
        if not isinstance(self._labels, StateColumns):
            finished = self._labels.finish(self)
            if isinstance(self._labels, ListColumns):
                self._check_values(self._labels)
                self._check_unnamed(finished[0])
            return finished
        labels, targets, notes, doubts = self._labels.finish(self)
        if doubts:
            raise DataError(
                f"{self.path}: it is unclear whether these columns are labels\n"
                f"{format_list(doubts)}\n"
                f"name the labels: data.label_columns: [...] (a fraction of 0.5 and above is then "
                f"present), or leave a column out: data.ignore_labels: [...]"
            )
        if not labels.names:
            raise DataError(
                f"{self.path}: no labels found; wanted a column named {', '.join(LABEL_COLUMNS)} "
                f"(or data.label_column), or one 0/1 column per label (or data.label_columns); "
                f"columns: {self._sample.describe(self.header)}{self._suggest_labels()}"
            )
        return labels, targets, notes

    def _suggest_labels(self) -> str:
        """Return a line to paste, where columns were left out, or a column of text is free."""
        if names := self._roles.left_out:
            listed = ", ".join(map(quote_yaml, names))
            return (
                f"\ncolumns of 1 and 0 are left out for their names; if they are labels: "
                f"data.label_columns: [{listed}]"
            )
        free = [name for name in self._roles.states if self._sample[name].texts]
        texts = [name for name in free if not self._sample[name].is_numeric]
        if not texts:
            return ""
        again = [
            name for name in texts if len(self._sample[name].counts) < len(self._sample[name].texts)
        ]
        texts = [name for name in again if not METADATA & {*split_words(name)}] or texts[:1]
        marks = {text for name in texts for text in self._sample[name].counts}
        if len(texts) > 1 and len(marks) <= 2 and marks.isdisjoint(texts):
            return f"\nif {quote_names(sorted(marks))} mark labels: write 1 and 0 in their place"
        named = ", ".join(map(quote_yaml, texts))
        holds, named = ("holds", named) if len(texts) == 1 else ("hold", f"[{named}]")
        return f"\nif {quote_names(texts)} {holds} labels: data.label_column: {named}"

    # ---- notes ------------------------------------------------------------------------------

    def _list_roles(self) -> Iterator[str]:
        """Yield notes on roles that a column has by its cells, or by an unusual name."""
        roles, guessed = self._roles, dict(self._roles.choices)
        if "image_column" in guessed:
            yield f"pictures in column '{roles.image}'"

    def _list_unused(self, labels: LabelSpace, has_splits: bool) -> Iterator[str]:
        """Yield notes on columns that are no labels: by their names, by their cells."""
        roles = self._roles
        if roles.left_out:
            yield (
                f"columns left out, since such names are no labels: "
                f"{self._sample.describe(roles.left_out)}; data.label_columns names the labels"
            )
        more = [name for name in roles.more_lists if self._sample[name].texts]
        if more:
            both = ", ".join(map(quote_yaml, (*roles.lists, *more)))
            yield (
                f"more labels in {self._sample.describe(more)}, not used; "
                f"data.label_column: [{both}] takes all"
            )
        used = {roles.image, roles.group, *self.listed, *roles.left_out, *more}
        used |= set(roles.split) if has_splits else set()
        used |= {roles.value} if self._labels is self._valued else set()
        used |= set(labels.names) if roles.states else set()
        unused = [name for name in self.header if name not in used]
        alike = [name for name in unused if self._holds_labels(name, labels)]
        if alike:
            both = ", ".join(map(quote_yaml, (*roles.lists, *alike)))
            yield (
                f"labels of {quote_names(roles.lists)} stand in {quote_names(alike)} too; "
                f"data.label_column: [{both}] takes all"
            )
        if any(unused) or any(self._sample[""].texts for name in unused if not name):
            yield f"columns not used: {self._sample.describe(unused)}"

    def _holds_labels(self, name: str, labels: LabelSpace) -> bool:
        """Return whether most cells of a column are labels that the label column holds."""
        column = self._sample[name] if name and not is_bookkeeping(name) else None
        if column is None or column.is_numeric or not isinstance(self._labels, ListColumns):
            return False
        delimiter = detect_delimiter(column.texts) or "\0"
        parts = {part.strip() for text in column.counts for part in text.split(delimiter)}
        known = parts.intersection(labels.names)
        return len(known) > 1 and 2 * len(known) > len(parts)
