"""Groups of rows, as all pictures of one patient: those that the data's own splits tear apart.

table(s) with a split and a group -> TornGroups -> an error, a warning, or a finding of check
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from mlfinetune.data.findings import Finding
from mlfinetune.data.labels import natural_key
from mlfinetune.data.spellings import fold_number
from mlfinetune.data.table import SPLIT_ORDER, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import Location
from mlfinetune.text import format_list, pluralize

ALLOWED_NOTE = "(data.allow_torn_groups)"
"""End of the note on torn groups that the config allows."""
TOO_HIGH = "scores will be too high"
_NOBODY = frozenset(("nan", "na", "n/a", "none", "null", "unknown", "?", "-", "nat", "<na>"))
"""Cells that probably mean that the group is not known."""


@dataclass(frozen=True)
class TornGroups:
    """Groups with rows in several splits.

    Attributes:
        origin: the table.
        column: the column that `data.group_by` names.
        splits_of: group -> its splits, two or three, in the order train, val, test.
    """

    origin: Location
    column: str
    splits_of: dict[str, tuple[str, ...]]

    @property
    def message(self) -> str:
        """Count of the groups, in all and for each pair of splits; one line."""
        pairs = Counter(
            pair for splits in self.splits_of.values() for pair in combinations(splits, 2)
        )
        counts = ", ".join(
            f"{first} and {second}: {pairs[first, second]}"
            for first, second in combinations(SPLIT_ORDER, 2)
            if pairs[first, second]
        )
        groups = pluralize(len(self.splits_of), "group")
        return (
            f"{self.origin}: {groups} of '{self.column}' in several splits ({counts}): {TOO_HIGH}"
        )

    @property
    def items(self) -> tuple[str, ...]:
        """A line for each group, with its splits."""
        return tuple(f"{group!r}: {', '.join(splits)}" for group, splits in self.splits_of.items())

    @property
    def advice(self) -> str:
        """Sentence that says what to do."""
        nobody = [repr(group) for group in self.splits_of if group.casefold() in _NOBODY]
        blank = (
            f"; leave the cell blank where nobody is known ({', '.join(nobody)})" if nobody else ""
        )
        return (
            f"wanted splits that keep a group whole: `mlfinetune split TABLE --group-by "
            f"{shlex.quote(self.column)}` makes them, for a table without a split{blank}; or set "
            f"data.allow_torn_groups: true"
        )


def check_groups(table: Table, val_table: Table | None, options: SourceOptions) -> list[str]:
    """Return notes on the groups of a run's tables.

    Raises:
        DataError: a group is in several splits, and `allow_torn_groups` is not set.
    """
    tables = [table] if val_table is None else [table, val_table]
    if any(not fault.picture for each in tables for fault in each.faults):
        return []  # bad rows come first: their splits may be wrong
    torn = find_torn_groups(table, val_table, options)
    if torn is None:
        if table.groups is not None and val_table is not None and val_table.groups is None:
            return [
                f"val has no column '{options.group_by}' (data.group_by): its intervals take "
                f"each picture for itself, and nobody knows whether its "
                f"groups are in train too"
            ]
        return []
    if not options.allow_torn_groups:
        raise DataError(f"{torn.message}\n{format_list(torn.items)}\n{torn.advice}")
    return [f"warning: {torn.message} {ALLOWED_NOTE}"]


def report_torn_groups(
    table: Table, val_table: Table | None, options: SourceOptions
) -> Iterator[Finding]:
    """Yield one finding that lists the groups in several splits, if there are any."""
    if torn := find_torn_groups(table, val_table, options):
        if options.allow_torn_groups:
            yield Finding("warning", "torn_groups", torn.message, torn.items)
        else:
            message = f"{torn.message}; {torn.advice}"
            yield Finding("error", "torn_groups", message, torn.items)


def find_torn_groups(
    table: Table, val_table: Table | None, options: SourceOptions
) -> TornGroups | None:
    """Return the groups of which several splits have rows; None where there are none.

    All rows count, those of the test too. A blank cell is no group. A row that is wrong itself may
    have a wrong split, so it does not count.

        rows of            without a split column    with one
        `table`            train                     train, val, test
        `table`, data.val  train                     train, test: its rows of val are not used
        `val_table`        val                       val, test: its rows of train are not used
    """
    if options.group_by is None:
        return None
    pairs = _pair_groups(table, "train", unused="" if val_table is None else "val")
    if val_table is not None:
        pairs |= _pair_groups(val_table, "val", unused="train")
    names: dict[str, str] = {}
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for group, split in pairs:
        # One program writes patient 1, another 1.0. In one table these are two groups to `split`.
        form = (fold_number(group) if val_table is not None else "") or group
        names[form] = min(group, names.get(form, group))
        splits[form].add(split)
    torn = {
        names[form]: tuple(split for split in SPLIT_ORDER if split in splits[form])
        for form in sorted((f for f in splits if len(splits[f]) > 1), key=natural_key)
    }
    return TornGroups(table.origin, options.group_by, torn) if torn else None


def _pair_groups(table: Table, usual_split: str, unused: str) -> set[tuple[str, str]]:
    """Return the distinct pairs of group and split of the rows that are right."""
    if table.groups is None:
        return set()
    groups, splits = table.groups, table.splits or (usual_split,) * len(table)
    wrong = {fault.row for fault in table.faults if not fault.picture}
    if wrong:
        kept = [row for row in range(len(table)) if row not in wrong]
        groups, splits = tuple(groups[row] for row in kept), tuple(splits[row] for row in kept)
    pairs = set(zip(groups, splits, strict=True))
    return {(group, split) for group, split in pairs if group and split != unused}


def warn_of_known_groups(
    table: Table, kept_splits: Sequence[str], options: SourceOptions
) -> list[str]:
    """Return a warning where groups to score have other rows in the same table's train."""
    pairs = _pair_groups(table, "", unused="")
    trained = {group for group, split in pairs if split == "train"}
    held_out = [split for split in SPLIT_ORDER[1:] if split in kept_splits]
    scored = {group for group, split in pairs if split in held_out}
    if not scored & trained:
        return []
    groups = (
        f"{pluralize(len(scored), 'group')} of '{options.group_by}' in {' and '.join(held_out)}"
    )
    return [f"warning: {len(scored & trained)} of {groups} stand in train too: {TOO_HIGH}"]
