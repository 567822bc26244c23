"""Labels of a table: apply the config's label options, choose the columns, align the targets.

Table -> empty_labels -> rename_labels -> implies -> ignore_labels -> unknown -> Table
Table -> LabelSpace -> Manifest
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.implies import apply_implies
from mlfinetune.data.manifest import Manifest, number_groups
from mlfinetune.data.spellings import fold_label, format_renames
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import MAX_LISTED, format_list, list_labels, pluralize, suggest

MANY_BLANK = 0.2
"""Share of rows without a label from which on they are perhaps pictures that nobody looked at."""
BLANK_ADVICE = "if nobody looked at them: data.empty_labels: unknown"


def apply_label_options(
    table: Table, options: SourceOptions, is_one_of_several: bool = False
) -> Table:
    """Return the table after the label options, in the order at the top of this file.

    The order matters: a row is empty only if the file lists no label in it, so a row whose labels
    are all ignored is not. Labels are implied and ignored under their new names, and one that is
    ignored still implies others. `empty_labels: unknown` is about single rows, and beats
    `unknown`, which is about all. `is_one_of_several`: see `apply_implies`.
    """
    if table.settled:
        return table
    table = _apply_empty_labels(table, options.empty_labels)
    masked = find_blank(table) if options.empty_labels == "unknown" else np.zeros(0, np.int64)
    table = _rename_labels(table, dict(options.rename_labels))
    table = apply_implies(table, options.implies, is_one_of_several)
    table = drop_labels(table, options.ignore_labels)
    if options.unknown != "ignore":
        state = POSITIVE if options.unknown == "positive" else NEGATIVE
        table = _replace_unknown(table, state, masked)
    return table


def find_blank(table: Table) -> NDArray[np.int64]:
    """Return the rows whose targets are all unknown."""
    blocks = ((block == UNKNOWN).all(axis=1) for _, block in table.targets.blocks())
    return np.flatnonzero(np.concatenate([np.zeros(0, bool), *blocks]))


def choose_labels(table: Table, given: Sequence[str] | None) -> LabelSpace:
    """Return the labels in column order: as given, else those of the table in natural order.

    Raises:
        DataError: no labels are given, and the table has none.
    """
    if given is not None:
        return LabelSpace(tuple(given))
    if not table.labels.names:
        advice = (
            "; put the pictures into one folder for each label, or 1.txt beside 1.jpg, or give a "
            "table (docs/data.md)"
        )
        hint = advice if table.format == "folder" else ""
        raise DataError(f"{table.origin}: no image has a label{hint}")
    return LabelSpace(tuple(sorted(table.labels.names, key=natural_key)))


def align(table: Table, space: LabelSpace) -> Manifest:
    """Return the examples of the table, with one target column per label of `space`.

        a row of the table                       in the columns cat, dog, fox
        labels as lists:    `dog`                0   1   0    not listed is absent
        labels as columns:  cat is 1, dog is 0   1   0  -1    no column is unknown
        an empty row, empty_labels: unknown     -1  -1  -1
        a row with a label `cow`                 DataError: `space` lacks it

    Raises:
        DataError: the table has labels that `space` lacks.
    """
    table = _drop_foreign_labels(table, space)
    targets = _align_targets(table, space)
    groups = None if table.groups is None else number_groups(table.groups)
    return Manifest(table.root, table.names, targets, space, groups)


def _align_targets(table: Table, space: LabelSpace) -> Targets:
    """Return the targets of a table in the columns of `space`, which has all labels of it."""
    if space.names == table.labels.names:
        return table.targets
    if len(space) == len(table.labels):  # the same labels in another order
        order = [table.labels.column[name] for name in space.names]
        return Targets.pack((block[:, order] for _, block in table.targets.blocks()), len(space))
    columns = [space.column[name] for name in table.labels.names]

    def widen(start: int, block: NDArray[np.int8]) -> NDArray[np.int8]:
        wide = np.repeat(table.unnamed[start : start + len(block), None], len(space), axis=1)
        wide[:, columns] = block
        return wide

    blocks = (widen(start, block) for start, block in table.targets.blocks(len(space)))
    return Targets.pack(blocks, len(space))


def _drop_foreign_labels(table: Table, space: LabelSpace) -> Table:
    """Return the table without the labels that `space` lacks, if no image has one of them.

    Such labels are usual: COCO, for example, declares all its categories in every file.

    Raises:
        DataError: images have labels that `space` lacks, or such labels have a column each.
    """
    foreign = [name for name in table.labels.names if name not in space.column]
    if not foreign:
        return table
    positives, _, unknown = table.targets.counts()
    is_list = table.settled or bool((table.unnamed == NEGATIVE).any())
    uses = positives if table.settled else positives + unknown
    refused = [name for name in foreign if uses[table.labels.column[name]] or not is_list]
    if not refused:
        return drop_labels(table, foreign)
    faults = []
    for name in refused[:MAX_LISTED]:
        rows = _find_rows_with(table, table.labels.column[name])
        first = f", first at {table.find_place(int(rows[0]))}" if rows.size else ""
        meant = suggest(name, space.names)
        faults.append(f"{name!r}: {pluralize(rows.size, 'image')}{first}{meant}")
    known = {fold_label(label): label for label in space.names}
    renames = {name: known[form] for name in refused if (form := fold_label(name)) in known}
    line = f"\nspellings of labels of train: {format_renames(renames, {})}" if renames else ""
    line += "".join(f"\n{note}" for note in table.notes if "(data.label_delimiter)" in note)
    raise DataError(
        f"{table.origin}: labels that training does not know; data.ignore_labels leaves labels "
        f"out, data.rename_labels joins spellings\n"
        f"{format_list([*faults, *refused[MAX_LISTED:]])}{line}"
    )


def note_unnamed_labels(table: Table, space: LabelSpace) -> list[str]:
    """Return a note for labels of `space` that no row of a table of lists names."""
    lacking = [name for name in space.names if name not in table.labels.column]
    if not lacking or not (table.unnamed == NEGATIVE).any():
        return []
    return [
        f"{list_labels(lacking)} that no row names: absent from all pictures, for micro F1 too; "
        f"where nobody looked for them, a column `unknown` of the table says so"
    ]


def select_split(table: Table, split: str) -> Table:
    """Return the rows of one split.

    Where rows list their labels, labels that no row of this split names are dropped. Where each
    label has a column, all columns stay.
    """
    assert table.splits is not None
    rows = table.take([row for row, name in enumerate(table.splits) if name == split])
    if (rows.unnamed == UNKNOWN).all():
        return rows
    positives, _, _ = rows.targets.counts()
    # Rows made unknown by `empty_labels` name no label, so their unknowns do not count.
    _, _, unknown = rows.targets.take(rows.unnamed == NEGATIVE).counts()
    return _take_columns(rows, np.flatnonzero(positives + unknown).tolist())


def find_rare_labels(table: Table, min_positives: int) -> list[str]:
    """Return the labels with fewer than `min_positives` positive images; with 0 no label."""
    if not min_positives:
        return []
    positives, _, _ = table.targets.counts()
    return [table.labels.names[column] for column in np.flatnonzero(positives < min_positives)]


def drop_labels(table: Table, names: Collection[str]) -> Table:
    """Return the table without these labels; names that it does not have change nothing."""
    dropped = set(names)
    kept = [column for column, name in enumerate(table.labels.names) if name not in dropped]
    return _take_columns(table, kept)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key that puts 2 before 10, and a before B."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    stripped = [(part.lstrip("0"), part.isdecimal()) for part in parts]
    # Numbers compare by length, then by digits: no limit on their size.
    key = [(0, len(text), text) if is_number else (1, 0, text) for text, is_number in stripped]
    return key, name


def _apply_empty_labels(table: Table, policy: str) -> Table:
    """Return the table with rows that list no label made negative, unknown, or faults.

    Args:
        table: rows with label columns are left as they are.
        policy: negative, unknown or error.
    """
    rows = np.flatnonzero((table.unnamed == NEGATIVE) & ~table.targets.any_positive())
    if not rows.size:
        return table
    effect = {"negative": "all labels absent", "unknown": "all labels unknown", "error": "refused"}
    note = f"{pluralize(rows.size, 'image')} with no label: {effect[policy]}"
    if policy == "negative" and rows.size > 1 and rows.size >= MANY_BLANK * len(table):
        note += f"; {BLANK_ADVICE}"
    table = replace(table, notes=(*table.notes, note))
    if policy == "error":
        faults = [
            table.build_fault(int(row), "no label (data.empty_labels is error)") for row in rows
        ]
        return replace(table, faults=(*table.faults, *faults))
    if policy == "negative":
        return table
    unnamed = table.unnamed.copy()
    unnamed[rows] = UNKNOWN
    return replace(table, targets=_mask(table.targets, rows), unnamed=unnamed)


def _mask(targets: Targets, rows: NDArray[np.int64]) -> Targets:
    """Return the targets with every one of these rows unknown."""
    packed = targets.packed.copy()
    packed[rows] = 0xFF  # four targets with the code of unknown, 11
    return Targets(packed, targets.shape[1])


def _rename_labels(table: Table, new_names: dict[str, str]) -> Table:
    """Return the table with new label names; labels that get the same name become one.

    Their states are joined as in `join_states`.
    """
    if not any(name in new_names for name in table.labels.names):
        return table
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for column, name in enumerate(table.labels.names):
        groups[new_names.get(name, name)].append(column)

    def join(block: NDArray[np.int8]) -> NDArray[np.int8]:
        joined = [join_states(block[:, columns], axis=1) for columns in groups.values()]
        return np.stack(joined, axis=1)

    blocks = (join(block) for _, block in table.targets.blocks())
    targets = Targets.pack(blocks, len(groups))
    return replace(table, targets=targets, labels=LabelSpace(tuple(groups)))


def join_states(states: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Join several states of a target along `axis`: 1 beats unknown, unknown beats 0."""
    absent = np.where((states == UNKNOWN).any(axis), UNKNOWN, NEGATIVE)
    return np.where((states == POSITIVE).any(axis), POSITIVE, absent).astype(np.int8)


def _take_columns(table: Table, kept: list[int]) -> Table:
    """Return the table with these label columns only."""
    if len(kept) == len(table.labels):
        return table
    blocks = (block[:, kept] for _, block in table.targets.blocks())
    names = tuple(table.labels.names[column] for column in kept)
    return replace(table, targets=Targets.pack(blocks, len(kept)), labels=LabelSpace(names))


def _replace_unknown(table: Table, state: int, masked: NDArray[np.int64]) -> Table:
    """Return the table with `state` for unknown targets, and a note with their number.

    Args:
        table: the table.
        state: positive or negative.
        masked: rows that stay unknown.
    """
    unknown = int(table.targets.counts()[2].sum()) - len(masked) * len(table.labels)
    blocks = (np.where(block == UNKNOWN, state, block) for _, block in table.targets.blocks())
    targets = Targets.pack(blocks, len(table.labels))
    word = "present" if state == POSITIVE else "absent"
    notes = [f"{pluralize(unknown, 'unknown target')} counted as {word} (data.unknown)"]
    if masked.size:
        targets = _mask(targets, masked)
        empty = pluralize(len(masked), "image")
        notes.append(f"{empty} with unknown targets alone stay so (data.empty_labels)")
    return replace(table, targets=targets, notes=(*table.notes, *notes))


def _find_rows_with(table: Table, column: int) -> NDArray[np.int64]:
    """Return the rows where a label is positive; where there is none, those where it is unknown."""
    states = np.concatenate([block[:, column] for _, block in table.targets.blocks()])
    return np.flatnonzero(states == (POSITIVE if POSITIVE in states else UNKNOWN))
