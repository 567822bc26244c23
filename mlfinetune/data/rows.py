"""Rows of a table: joined where they name one image, refused or left out where they are bad."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.labels import join_states
from mlfinetune.data.table import Fault, Skipped, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, Targets
from mlfinetune.errors import DataError
from mlfinetune.location import join_location
from mlfinetune.text import format_list

Scan = Callable[[Sequence[str]], dict[int, str]]
"""Paths -> number in them -> why that picture cannot be used."""


def raise_faults(table: Table, faults: Sequence[Fault]) -> None:
    """Raise what is wrong, all of it in one message.

    Raises:
        DataError: there are faults.
    """
    if not faults:
        return
    if all(fault.picture for fault in faults):
        what, hint = "missing or unreadable picture", "; data.bad_images: skip leaves them out"
    else:
        what, hint = "bad row", ""
    count = f"1 {what}" if len(faults) == 1 else f"{len(faults)} {what}s"
    lines = format_list([str(fault) for fault in faults])
    raise DataError(f"{table.origin}: {count}, pictures under {table.root}{hint}\n{lines}")


def drop_faulty(table: Table) -> tuple[Table, list[Skipped]]:
    """The table without its faulty rows, and those, once each."""
    reasons: dict[int, str] = {}
    for fault in table.faults:
        if fault.row is not None:
            reasons.setdefault(fault.row, fault.text.removeprefix(f"{table.names[fault.row]!r}: "))
    if not reasons:
        return replace(table, faults=()), []
    skipped = [Skipped(table.names[r], table.place(r), text) for r, text in reasons.items()]
    kept = [row for row in range(len(table)) if row not in reasons]
    return replace(table.take(kept), faults=()), skipped


def add_scan_faults(table: Table, scan: Scan) -> Table:
    """The table with a fault for each picture that the scan finds bad."""
    bad = scan([join_location(table.root, name) for name in table.names])
    faults = [table.fault(r, f"{table.names[r]!r}: {why}", True) for r, why in sorted(bad.items())]
    return replace(table, faults=(*table.faults, *faults))


def join_repeats(table: Table) -> Table:
    """Rows that name the same image become one; faults where they contradict each other.

    In label lists 1 beats unknown beats absent. In label columns a state beats a blank, and
    1 against 0 is a contradiction.
    """
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        rows_of[os.path.normpath(name) if name else f"\0{row}"].append(row)
    if len(rows_of) == len(table):
        return table
    firsts = {row: rows[0] for rows in rows_of.values() for row in rows}
    told = {f.row for f in table.faults if f.picture}
    faults = [
        replace(f, row=f.row if f.row is None else firsts[f.row])
        for f in table.faults
        if not (f.picture and f.row is not None and firsts[f.row] in told - {f.row})
    ]
    packed, unnamed, joined = table.targets.packed.copy(), table.unnamed.copy(), 0
    for rows in rows_of.values():
        if len(rows) == 1:
            continue
        joined += 1
        faults += _contradictions(table, rows)
        states, said = table.targets[rows], table.unnamed[rows]
        listed = said.max() == NEGATIVE
        one = join_states(states, axis=0) if listed else states.max(axis=0)
        packed[rows[0]] = Targets.pack([one[None]], len(table.labels)).packed[0]
        unnamed[rows[0]] = said.min()
    note = f"{joined} images stand in several rows: their labels are joined"
    targets = Targets(packed, len(table.labels))
    table = replace(table, targets=targets, unnamed=unnamed, notes=(*table.notes, note))
    kept = [rows[0] for rows in rows_of.values()]
    number = {row: at for at, row in enumerate(kept)}
    moved = [replace(f, row=f.row if f.row is None else number[f.row]) for f in faults]
    return replace(table.take(kept), faults=tuple(dict.fromkeys(moved)))


def _contradictions(table: Table, rows: list[int]) -> list[Fault]:
    """What the rows of one image say that cannot be true together."""
    place = " and ".join(table.place(row) for row in rows[:3])
    name, faults = table.names[rows[0]], []
    if table.splits and len({table.splits[row] for row in rows}) > 1:
        faults.append(Fault(place, f"{name!r} is in different splits", rows[0]))
    if table.groups and len({table.groups[row] for row in rows}) > 1:
        faults.append(Fault(place, f"{name!r} is in different groups", rows[0]))
    states: NDArray[np.int8] = table.targets[rows]
    listed = table.unnamed[rows].max() == NEGATIVE
    if not listed and ((states == POSITIVE).any(0) & (states == NEGATIVE).any(0)).any():
        faults.append(Fault(place, f"{name!r} has the same label 1 and 0", rows[0]))
    return faults
