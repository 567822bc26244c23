"""Labels of a table: renamed, ignored, given their columns.

Table -> rename, ignore -> what an empty row and an unknown say -> LabelSpace -> Manifest
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.manifest import Manifest
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import MAX_LISTED, format_list, pluralize, suggest


def apply_label_options(table: Table, options: SourceOptions) -> Table:
    """The table after `rename_labels`, `ignore_labels`, `empty_labels` and `unknown`."""
    table = _empty_rows(table, options.empty_labels)
    table = _renamed(table, dict(options.rename_labels))
    table = drop_labels(table, options.ignore_labels)
    if options.unknown != "ignore":
        table = _decided(table, POSITIVE if options.unknown == "positive" else NEGATIVE)
    return table


def choose_labels(table: Table, given: Sequence[str] | None) -> LabelSpace:
    """The labels in column order: as given, else the table's in natural order.

    Raises:
        DataError: there is none.
    """
    if given is not None:
        return LabelSpace(tuple(given))
    if not table.labels.names:
        raise DataError(f"{table.origin}: no image has a label")
    return LabelSpace(tuple(sorted(table.labels.names, key=natural_key)))


def align(table: Table, space: LabelSpace) -> Manifest:
    """The table's targets in the columns of `space`.

    Raises:
        DataError: the table has labels that `space` lacks.
    """
    table = _without_strangers(table, space)
    if space.names == table.labels.names:
        return Manifest(table.root, table.names, table.targets, space)
    if len(space) == len(table.labels):  # the same labels in another order
        order = [table.labels.column[name] for name in space.names]
        blocks = (block[:, order] for _, block in table.targets.blocks())
        return Manifest(table.root, table.names, Targets.pack(blocks, len(space)), space)
    places = [space.column[name] for name in table.labels.names]

    def place(start: int, block: NDArray[np.int8]) -> NDArray[np.int8]:
        wide = np.repeat(table.unnamed[start : start + len(block), None], len(space), axis=1)
        wide[:, places] = block
        return wide

    blocks = (place(start, block) for start, block in table.targets.blocks(len(space)))
    return Manifest(table.root, table.names, Targets.pack(blocks, len(space)), space)


def _without_strangers(table: Table, space: LabelSpace) -> Table:
    """The table without labels that it declares, that no image has, and that `space` lacks.

    Raises:
        DataError: images have labels that `space` lacks, or those have columns of their own.
    """
    strangers = [name for name in table.labels.names if name not in space.column]
    if not strangers:
        return table
    positives, _, unknown = table.targets.counts()
    listed = bool((table.unnamed == NEGATIVE).any())
    known = positives + unknown
    named = [x for x in strangers if known[table.labels.column[x]] or not listed]
    if not named:
        return drop_labels(table, strangers)
    faults = []
    for name in named[:MAX_LISTED]:
        rows = _rows_of(table, table.labels.column[name])
        first = f", first at {table.place(int(rows[0]))}" if rows.size else ""
        faults.append(
            f"'{name}': {pluralize(rows.size, 'image')}{first}{suggest(name, space.names)}"
        )
    raise DataError(
        f"{table.origin}: labels that training does not know; data.ignore_labels leaves labels "
        f"out, data.rename_labels joins spellings\n{format_list([*faults, *named[MAX_LISTED:]])}"
    )


def select_split(table: Table, split: str) -> Table:
    """The rows of one split; of listed labels, those that these rows name."""
    assert table.splits is not None
    own = table.take([row for row, name in enumerate(table.splits) if name == split])
    if (own.unnamed == UNKNOWN).all():  # one column a label: the columns are the labels
        return own
    positives, _, _ = own.targets.counts()
    _, _, unknown = own.targets.take(own.unnamed == NEGATIVE).counts()  # not of empty rows
    return _columns(own, np.flatnonzero(positives + unknown).tolist())


def find_rare_labels(table: Table, min_positives: int) -> list[str]:
    """Labels with fewer positive images than that."""
    if not min_positives:
        return []
    positives, _, _ = table.targets.counts()
    return [table.labels.names[at] for at in np.flatnonzero(positives < min_positives)]


def drop_labels(table: Table, names: Collection[str]) -> Table:
    """The table without those labels; names that it does not have change nothing."""
    kept = [at for at, name in enumerate(table.labels.names) if name not in set(names)]
    return _columns(table, kept)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts 2 before 10, and a before B."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    digits = [(p.lstrip("0"), p.isdecimal()) for p in parts]
    return [(0, len(d), d) if number else (1, 0, d) for d, number in digits], name


def _empty_rows(table: Table, policy: str) -> Table:
    """What rows say that list the labels that hold, and list none."""
    rows = np.flatnonzero((table.unnamed == NEGATIVE) & ~table.targets.any_positive())
    if not rows.size:
        return table
    state = {"negative": "all labels absent", "unknown": "all labels unknown", "error": "refused"}
    count = f"{rows.size} {'image has' if rows.size == 1 else 'images have'} no label"
    table = replace(table, notes=(*table.notes, f"{count}: {state[policy]}"))
    if policy == "error":
        faults = [table.fault(int(row), "no label (data.empty_labels is error)") for row in rows]
        return replace(table, faults=(*table.faults, *faults))
    if policy == "negative":
        return table
    packed, unnamed = table.targets.packed.copy(), table.unnamed.copy()
    packed[rows], unnamed[rows] = 0xFF, UNKNOWN
    return replace(table, targets=Targets(packed, len(table.labels)), unnamed=unnamed)


def _renamed(table: Table, new_names: dict[str, str]) -> Table:
    """Labels under their new names; those that get one name are joined: 1 beats unknown beats 0."""
    if not any(name in new_names for name in table.labels.names):
        return table
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(table.labels.names):
        groups[new_names.get(name, name)].append(at)

    def join(block: NDArray[np.int8]) -> NDArray[np.int8]:
        joined = [join_states(block[:, columns], axis=1) for columns in groups.values()]
        return np.stack(joined, axis=1)

    blocks = (join(block) for _, block in table.targets.blocks())
    targets = Targets.pack(blocks, len(groups))
    return replace(table, targets=targets, labels=LabelSpace(tuple(groups)))


def join_states(states: NDArray[np.int8], axis: int) -> NDArray[np.int8]:
    """Several states of one target as one: 1 beats unknown beats 0."""
    absent = np.where((states == UNKNOWN).any(axis), UNKNOWN, NEGATIVE)
    return np.where((states == POSITIVE).any(axis), POSITIVE, absent).astype(np.int8)


def _columns(table: Table, kept: list[int]) -> Table:
    if len(kept) == len(table.labels):
        return table
    blocks = (block[:, kept] for _, block in table.targets.blocks())
    names = tuple(table.labels.names[at] for at in kept)
    return replace(table, targets=Targets.pack(blocks, len(kept)), labels=LabelSpace(names))


def _decided(table: Table, state: int) -> Table:
    """Unknown targets as the config decides them, with their count."""
    unknown = int(table.targets.counts()[2].sum())
    blocks = (np.where(block == UNKNOWN, state, block) for _, block in table.targets.blocks())
    targets = Targets.pack(blocks, len(table.labels))
    word = "present" if state == POSITIVE else "absent"
    note = f"{unknown} unknown targets are taken for {word} (data.unknown)"
    return replace(table, targets=targets, notes=(*table.notes, note))


def _rows_of(table: Table, column: int) -> NDArray[np.int64]:
    """Rows where a label holds, else where it is unknown."""
    states = np.concatenate([block[:, column] for _, block in table.targets.blocks()])
    return np.flatnonzero(states == (POSITIVE if POSITIVE in states else UNKNOWN))
