"""Reviewed suspects become edits of a table's rows.

    decisions, table -> plan_fixes -> Fixes: edits by line, the targets to come, a tally

A row gets its edit by where the table has its labels:

    labels in lists            the label is written behind the others, or taken out
    one row for each label     a row is added behind the picture's rows, or taken out
    a column for each label    its cell becomes present or absent, in the words of the column
    one row for each label, with a value column     its value changes, or a row is added
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlfinetune.config.hierarchy import list_ancestors
from mlfinetune.data.named_pictures import Pictures, list_names, make_key
from mlfinetune.data.readers.columns import LabelLayout
from mlfinetune.data.readers.decisions import Decision
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.errors import DataError
from mlfinetune.text import format_list, suggest


@dataclass(frozen=True)
class RowEdit:
    """Changes of one row; the lists grow while decisions are planned.

    Attributes:
        add, remove: labels of its lists.
        known: labels to take out of its column of unknown ones.
        states: column of a label, or the value column -> state.
        drop: [True]: the row is taken out.
        follow: (label, state) of rows to add behind it; None: a row without a value.
        siblings: lines of all rows of the picture, for rows that follow.
    """

    add: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    drop: list[bool] = field(default_factory=list)
    follow: list[tuple[str, int | None]] = field(default_factory=list)
    siblings: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Tally:
    """Numbers of decisions; they add up to `rows`.

    Attributes:
        rows: of the list.
        added, removed: tags.
        already: accepted, and the table was so already.
        repeated: accepted before, in another row of the list.
        rejected, undecided: left as they are.
        lost: accepted, but the table lacks the picture or the label; a line for each.
    """

    rows: int = 0
    added: int = 0
    removed: int = 0
    already: int = 0
    repeated: int = 0
    rejected: int = 0
    undecided: int = 0
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fixes:
    """Everything that accepted decisions change.

    Attributes:
        edits: line of the table -> changes of its row.
        targets: picture, as `normalize_name` has it -> label of the table -> new state.
        tally: counts of the decisions.
    """

    edits: Mapping[int, RowEdit]
    targets: Mapping[str, Mapping[str, int]]
    tally: Tally


def plan_fixes(
    table: Table,
    layout: LabelLayout,
    pictures: Pictures,
    decisions: Sequence[Decision],
    options: SourceOptions,
) -> Fixes:
    """Plan the edits of the accepted decisions.

    Args:
        table: as `read_csv` has it; rows of one picture are not joined yet.
        layout: where it has its labels.
        pictures: of the table.
        decisions: the reviewed list.
        options: how the table was read; labels of decisions are names after `rename_labels`.

    Raises:
        DataError: decisions contradict each other.
    """
    planner = _Planner(table, layout, pictures, options)
    planner.list_leaving(decisions)
    _refuse_contradictions(planner, decisions)
    counts = Counter[str]()
    lost = []
    for decision in decisions:
        if not decision.accepted:
            counts["undecided" if decision.accepted is None else "rejected"] += 1
        elif problem := planner.find_problem(decision):
            lost.append(f"line {decision.line}: {problem}")
        else:
            counts[planner.apply(decision)] += 1
    tally = Tally(
        len(decisions),
        counts["added"],
        counts["removed"],
        counts["already"],
        counts["repeated"],
        counts["rejected"],
        counts["undecided"],
        tuple(lost),
    )
    return Fixes(planner.edits, planner.targets, tally)


def _refuse_contradictions(planner: "_Planner", decisions: Sequence[Decision]) -> None:
    """Raise DataError where rows of one picture and label say different things."""
    said: defaultdict[tuple[str, str], dict[tuple[int, bool], int]] = defaultdict(dict)
    for decision in decisions:
        if decision.accepted is not None:
            found = planner.pictures.find(decision.image)
            picture = found[0] if len(found) == 1 else f"\0{make_key(decision.image)}"
            pair = picture, planner.find_label(decision.label)
            said[pair].setdefault((decision.given, decision.accepted), decision.line)
    faults = [
        f"lines {' and '.join(map(str, sorted(lines.values())))}: {label!r} of {picture!r}"
        for (picture, label), lines in said.items()
        if len({accepted for _, accepted in lines}) > 1 or len({given for given, _ in lines}) > 1
    ]
    if faults:
        raise DataError(
            f"rows that contradict each other; leave one of each\n{format_list(faults)}"
        )


class _Planner:
    """Turns one decision after the other into edits.

    Attributes:
        edits, targets: as in `Fixes`.
        pictures: of the table.
    """

    def __init__(
        self, table: Table, layout: LabelLayout, pictures: Pictures, options: SourceOptions
    ) -> None:
        """Index the labels of the table by their names in the run."""
        self.edits: defaultdict[int, RowEdit] = defaultdict(RowEdit)
        self.targets: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.pictures = pictures
        self._table, self._layout = table, layout
        renamed = dict(options.rename_labels)
        self._spellings: defaultdict[str, list[str]] = defaultdict(list)
        for name in table.labels.names:
            self._spellings[renamed.get(name, name)].append(name)
        self._positives = table.targets.counts()[0]
        self._done: set[tuple[str, str]] = set()
        self._leaving: set[tuple[str, str]] = set()
        self._implying: defaultdict[str, list[str]] = defaultdict(list)
        for child, ancestors in list_ancestors(options.implies).items():
            for ancestor in ancestors:
                self._implying[ancestor].append(child)
        # A picture with a row for each label, and no sign that could stand between two labels.
        self._is_long = (
            len(layout.lists) == 1
            and not (layout.delimiter or layout.whole or layout.value)
            and len(pictures.rows) < len(table)
        )

    def find_label(self, cell: str) -> str:
        """Return the label that a cell names, as the run calls it."""
        names = list_names(cell)
        return next((name for name in names if name in self._spellings), names[-1])

    def list_leaving(self, decisions: Sequence[Decision]) -> None:
        """Remember which tags will go, so that what they imply may go too."""
        for one in decisions:
            if one.accepted and one.given != NEGATIVE:
                pairs = ((picture, self.find_label(one.label)) for picture in self.find(one))
                self._leaving.update(pairs)

    def find(self, decision: Decision) -> list[str]:
        """Return the pictures that a decision may be about."""
        return self.pictures.find(decision.image)

    def _list_implying(self, picture: str, label: str) -> list[str]:
        """Return the labels of a picture that stay, and that imply this one."""
        rows = self.pictures.rows[picture]
        return [
            child
            for child in self._implying.get(label, ())
            if (picture, child) not in self._leaving
            and self._find_state(rows, self._spellings.get(child, [])) == POSITIVE
        ]

    def find_problem(self, decision: Decision) -> str:
        """Return why a decision cannot be applied, or an empty text."""
        found, label = self.pictures.find(decision.image), self.find_label(decision.label)
        if len(found) != 1:
            why = "may be one of several pictures of the table" if found else "is not in the table"
            return f"picture {decision.image!r} {why}"
        if decision.given != NEGATIVE and (children := self._list_implying(found[0], label)):
            names = ", ".join(map(repr, children))
            return f"label {label!r} follows from {names} (data.implies): correct that first"
        may_be_new = decision.given == NEGATIVE and bool(self._layout.lists)
        if label not in self._spellings and not (may_be_new or label in self._implying):
            meant = suggest(label, list(self._spellings))
            return f"label {label!r} is not in the table{meant}"
        return ""

    def apply(self, decision: Decision) -> str:
        """Plan an accepted decision; return the count of the tally that it belongs to."""
        picture, label = self.pictures.find(decision.image)[0], self.find_label(decision.label)
        state = POSITIVE if decision.given == NEGATIVE else NEGATIVE
        if (picture, label) in self._done:
            return "repeated"
        self._done.add((picture, label))
        rows, names = self.pictures.rows[picture], self._spellings.get(label, [label])
        if self._find_state(rows, names) == state:
            return "already"
        if state == POSITIVE:
            names = [self._choose_spelling(label, names)]
        for name in names:
            before = self._find_state(rows, [name])
            if before == state:
                continue
            self.targets[picture][name] = state
            if not self._layout.lists:
                self._set_columns(rows, name, state)
            elif self._layout.value is not None:
                self._set_values(rows, name, state)
            elif state == POSITIVE:
                self._add(rows, name)
            else:
                self._remove(rows, name)
        return "added" if state == POSITIVE else "removed"

    def _choose_spelling(self, label: str, names: Sequence[str]) -> str:
        """Return the name that the table has for a label: the label itself, or the usual one."""
        if label in names:
            return label
        return max(names, key=lambda name: self._positives[self._table.labels.column[name]])

    def _get_states(self, rows: Sequence[int], name: str) -> list[int]:
        """Return the state of a label in these rows."""
        column = self._table.labels.column.get(name)
        if column is None:
            return [NEGATIVE for _ in rows]
        states: list[int] = self._table.targets[np.array(rows)][:, column].tolist()
        return states

    def _find_state(self, rows: Sequence[int], names: Sequence[str]) -> int:
        """Return the state of a picture, as its rows and the spellings of the label are joined."""
        states = {state for name in names for state in self._get_states(rows, name)}
        if POSITIVE in states:
            return POSITIVE
        is_list = bool(self._layout.lists) and self._layout.value is None
        first, last = (UNKNOWN, NEGATIVE) if is_list else (NEGATIVE, UNKNOWN)
        return first if first in states else last

    def _edit(self, row: int) -> RowEdit:
        assert self._table.lines is not None
        return self.edits[int(self._table.lines[row])]

    def _rows_with(self, rows: Sequence[int], name: str, *states: int) -> Iterator[int]:
        """Yield the rows in which a label has one of the states."""
        for row, state in zip(rows, self._get_states(rows, name), strict=True):
            if state in states:
                yield row

    def _set_columns(self, rows: Sequence[int], name: str, state: int) -> None:
        """Set the cell of a label in each row that knows it, else in the first row."""
        known = list(self._rows_with(rows, name, POSITIVE, NEGATIVE))
        for row in known or rows[:1]:
            self._edit(row).states[name] = state

    def _set_values(self, rows: Sequence[int], name: str, state: int) -> None:
        """Set the value of each row of the label; without such a row, one is added."""
        known = list(self._rows_with(rows, name, POSITIVE, NEGATIVE))
        assert self._layout.value is not None
        for row in known:
            self._edit(row).states[self._layout.value] = state
        if not known:
            self._follow(rows, name, state)

    def _follow(self, rows: Sequence[int], name: str, state: int | None) -> None:
        """Add a row behind the last row of the picture."""
        edit = self._edit(rows[-1])
        edit.follow.append((name, state))
        assert self._table.lines is not None
        edit.siblings[:] = self._table.lines[np.array(rows)].tolist()

    def _add(self, rows: Sequence[int], name: str) -> None:
        """Add a label to the lists of a picture."""
        for row in self._rows_with(rows, name, UNKNOWN):
            self._edit(row).known.append(name)
        blank = [row for row in rows if self._is_blank(row)] if self._is_long else rows[:1]
        if blank:
            self._edit(blank[0]).add.append(name)
        else:
            self._follow(rows, name, None)

    def _is_blank(self, row: int) -> bool:
        """Return whether a row has no label, and gets none."""
        return not (self._table.targets[row] == POSITIVE).any() and not self._edit(row).add

    def _remove(self, rows: Sequence[int], name: str) -> None:
        """Take a label out of the lists of a picture."""
        for row in self._rows_with(rows, name, UNKNOWN):
            self._edit(row).known.append(name)
        for row in self._rows_with(rows, name, POSITIVE):
            left = [other for other in rows if other != row and not self._edit(other).drop]
            if self._is_long and left:
                self._edit(row).drop.append(True)
            else:
                self._edit(row).remove.append(name)
