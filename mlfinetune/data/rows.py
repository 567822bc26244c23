"""Rows of a table: join those that name one image, refuse or leave out the bad ones."""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.images.decode import TOO_LARGE
from mlfinetune.data.labels import apply_label_options, join_states, natural_key, select_split
from mlfinetune.data.table import SPLIT_ORDER, Fault, Skipped, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, Targets
from mlfinetune.data.union import join_copies
from mlfinetune.errors import DataError
from mlfinetune.location import Location, is_url
from mlfinetune.text import format_list, pluralize

SKIPPED_NOTE = "skipped (data.bad_images)"
"""First line of the note that lists the skipped pictures."""


@dataclass(frozen=True)
class PictureScan:
    """Result of decoding a list of picture files.

    Attributes:
        bad: index of a bad picture in the list -> why it cannot be used.
        contents: path of a good picture -> a number; files with the same bytes have the same one.
    """

    bad: Mapping[int, str]
    contents: Mapping[str, int] = field(default_factory=dict)


Scan = Callable[[Sequence[str]], PictureScan]
"""A function that takes the paths of pictures, decodes them all, and returns the result."""


@dataclass(frozen=True)
class UsableRows:
    """The rows of a table that a run can use, and what happened to the others.

    Attributes:
        table: the usable rows, with the label options applied.
        notes: lines for the user; each begins with the name of the side, as `train: `.
        skipped: pictures that cannot be used.
        contents: path -> number of the file's bytes, as in `PictureScan`; empty without a scan.
    """

    table: Table
    notes: list[str]
    skipped: list[Skipped]
    contents: Mapping[str, int]


def select_usable(
    table: Table,
    side: str,
    kept_splits: Sequence[str],
    options: SourceOptions,
    skip_bad: bool,
    scan: Scan | None,
) -> UsableRows:
    """Return the usable rows of the splits in `kept_splits`.

    Args:
        table: the rows, with the faults that reading found.
        side: the first word of each note: train, val or data.
        kept_splits: values of the split column to keep; all rows where the table has none.
        options: how to read labels.
        skip_bad: leave bad pictures out, instead of refusing the table.
        scan: decodes the pictures; None: they are not scanned.

    Raises:
        DataError: bad rows; bad pictures without `skip_bad`; no usable picture at all.
    """
    total, split_notes = len(table), _note_split_counts(table)
    table = _drop_other_faults(table, kept_splits)
    # With a scan to come, missing pictures wait: one message then lists the undecodable ones too.
    if scan is None or not all(fault.picture for fault in table.faults):
        raise_faults(table, [f for f in table.faults if not (f.picture and skip_bad)])
    missing = table.faults
    table, skipped = drop_faulty(table)
    table, others = _take_splits(table, kept_splits)
    contents: Mapping[str, int] = {}
    if scan is not None:
        scanned = scan([table.path(row) for row in range(len(table))])
        contents = scanned.contents
        table, unreadable = _drop_unreadable(table, scanned.bad, missing, skip_bad)
        skipped = sorted([*skipped, *unreadable], key=lambda picture: natural_key(picture.place))
    if table.sources is not None and contents:
        several = len(table)
        table = join_copies(table, contents)
        total -= several - len(table)
    if skipped and not len(table):
        raise DataError(
            f"{table.origin}: none of {pluralize(total, 'image')} can be used, pictures under "
            f"{table.root} (data.images)\n{list_skipped(skipped)}{_format_hint(table)}"
        )
    table = apply_label_options(table, options)
    raise_faults(table, table.faults)
    reasons = Counter(_shorten_reason(picture.reason) for picture in skipped)
    ledger = _format_ledger(total, len(table), others, reasons, is_run=side != "data")
    notes = [*table.notes, *split_notes, ledger]
    if skipped:
        notes.append(f"{SKIPPED_NOTE}\n{list_skipped(skipped)}")
    return UsableRows(table, [f"{side}: {note}" for note in notes], skipped, contents)


def number_contents(paths: Sequence[str], contents: Mapping[str, int]) -> list[int]:
    """Return a number for each path, the same for files with the same bytes.

    A file that the scan does not know gets a negative number of its own. Without a scan
    (`contents` is empty) the list is empty.
    """
    if not contents:
        return []
    return [contents.get(path, -1 - row) for row, path in enumerate(paths)]


def raise_faults(table: Table, faults: Sequence[Fault]) -> None:
    """Raise one error that lists all `faults`; do nothing where there are none.

    Raises:
        DataError: there are faults.
    """
    if not faults:
        return
    if all(fault.picture for fault in faults):
        noun, advice = "missing or unreadable picture", "; data.bad_images: skip leaves them out"
    else:
        noun, advice = "bad row", ""
    count = pluralize(len(faults), noun)
    lines = format_list([str(fault) for fault in faults])
    hint = _format_hint(table)
    raise DataError(f"{table.origin}: {count}, pictures under {table.root}{advice}\n{lines}{hint}")


def _format_hint(table: Table) -> str:
    """Return the last line of a message about paths: how they may be mended."""
    return f"\n{table.hint}" if table.hint else ""


def drop_faulty(table: Table) -> tuple[Table, list[Skipped]]:
    """Return the table without its faulty rows and without faults, and the rows left out.

    A row with several faults is listed once, with the reason of its first fault.
    """
    reasons: dict[int, str] = {}
    for fault in table.faults:
        if fault.row is not None:
            reasons.setdefault(fault.row, fault.text.removeprefix(f"{table.names[fault.row]!r}: "))
    if not reasons:
        return replace(table, faults=()), []
    skipped = [
        Skipped(table.names[row], table.find_place(row), text) for row, text in reasons.items()
    ]
    kept = [row for row in range(len(table)) if row not in reasons]
    return replace(table.take(kept), faults=()), skipped


def list_skipped(skipped: Sequence[Skipped]) -> str:
    """Return the pictures that are skipped, one a line, each with its reason."""
    return format_list(
        [f"{picture.place}: {picture.name!r}: {picture.reason}" for picture in skipped]
    )


def add_scan_faults(table: Table, bad: Mapping[int, str]) -> Table:
    """Return the table with one more fault per bad picture; `bad` maps its row to the reason."""
    faults = [
        table.build_fault(row, f"{table.names[row]!r}: {reason}", picture=True)
        for row, reason in sorted(bad.items())
    ]
    return replace(table, faults=(*table.faults, *faults))


def join_repeats(table: Table) -> Table:
    """Return the table with one row per image: rows that name the same image are joined.

    The joined row stands where the first one stood. Rows that contradict each other become faults.
    Two rows of one image, before -> after:

        labels as lists, `cat` and `fox`                    -> `cat|fox`
          per label: 1 beats unknown, unknown beats absent
        labels as columns, `1,,` and `,0,`                  -> `1,0,`
          per label: 1 or 0 beats blank (unknown)
        labels as columns, `1` and `0`                      -> a fault
        different splits, or different groups               -> a fault
    """
    rows_of_image: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        rows_of_image[normalize_name(name, table.root) if name else f"\0{row}"].append(row)
    if len(rows_of_image) == len(table):
        return table
    packed, unnamed = table.targets.packed.copy(), table.unnamed.copy()
    faults = _keep_first_faults(table, list(rows_of_image.values()))
    joined = 0
    for rows in rows_of_image.values():
        if len(rows) == 1:
            continue
        joined += 1
        faults += _find_contradictions(table, rows)
        states, unnamed_states = table.targets[rows], table.unnamed[rows]
        is_list = unnamed_states.max() == NEGATIVE
        # In columns the largest state is right: 1 > 0 > unknown. 1 against 0 is a fault anyway.
        joined_states = join_states(states, axis=0) if is_list else states.max(axis=0)
        packed[rows[0]] = Targets.pack([joined_states[None]], len(table.labels)).packed[0]
        unnamed[rows[0]] = unnamed_states.min()
    note = f"{pluralize(joined, 'image')} in several rows: their labels are joined"
    targets = Targets(packed, len(table.labels))
    table = replace(table, targets=targets, unnamed=unnamed, notes=(*table.notes, note))
    kept = [rows[0] for rows in rows_of_image.values()]
    new_row = {row: index for index, row in enumerate(kept)}
    moved = [replace(f, row=f.row if f.row is None else new_row[f.row]) for f in faults]
    return replace(table.take(kept), faults=tuple(dict.fromkeys(moved)))


def normalize_name(name: str, root: Location) -> str:
    """Return a text that is the same for all names of one picture."""
    if is_url(name):
        return name
    if is_url(root):
        return posixpath.normpath(name)
    return os.path.normcase(os.path.normpath(name))  # Windows: A.jpg is a.jpg


def _keep_first_faults(table: Table, groups: list[list[int]]) -> list[Fault]:
    """Return the faults, each with the first row of its image.

    A bad picture that several rows name is reported once, at the first of these rows.
    """
    first_row = {row: rows[0] for rows in groups for row in rows}
    reported = {fault.row for fault in table.faults if fault.picture}
    faults = []
    for fault in table.faults:
        if fault.row is None:
            faults.append(fault)
            continue
        first = first_row[fault.row]
        if not (fault.picture and first != fault.row and first in reported):
            faults.append(replace(fault, row=first))
    return faults


def _find_contradictions(table: Table, rows: list[int]) -> list[Fault]:
    """Return the faults where rows of one image differ: in split, in group, or 1 against 0."""
    place = " and ".join(table.find_place(row) for row in rows[:3])
    name, faults = table.names[rows[0]], []
    if table.splits and len({table.splits[row] for row in rows}) > 1:
        faults.append(Fault(place, f"{name!r} is in different splits", rows[0]))
    if table.groups and len({table.groups[row] for row in rows}) > 1:
        faults.append(Fault(place, f"{name!r} is in different groups", rows[0]))
    states: NDArray[np.int8] = table.targets[rows]
    is_list = table.unnamed[rows].max() == NEGATIVE
    if not is_list and ((states == POSITIVE).any(0) & (states == NEGATIVE).any(0)).any():
        faults.append(Fault(place, f"{name!r} has the same label 1 and 0", rows[0]))
    return faults


def _drop_unreadable(
    table: Table, bad: Mapping[int, str], missing: Sequence[Fault], skip_bad: bool
) -> tuple[Table, list[Skipped]]:
    """Return the table without the pictures that the scan found bad, and these pictures.

    Raises:
        DataError: bad or missing pictures, all in one message, unless `skip_bad`.
    """
    table = add_scan_faults(table, bad)
    if not skip_bad:
        faults = [*missing, *table.faults]
        raise_faults(table, sorted(faults, key=lambda fault: natural_key(str(fault))))
    return drop_faulty(table)


def _drop_other_faults(table: Table, kept_splits: Sequence[str]) -> Table:
    """Return the table without the faults of pictures in splits that are not used."""
    splits = table.splits
    if splits is None:
        return table
    kept = tuple(
        fault
        for fault in table.faults
        if not fault.picture or fault.row is None or splits[fault.row] in kept_splits
    )
    return replace(table, faults=kept)


def _note_split_counts(table: Table) -> list[str]:
    """Return the note `splits: 3 train, 2 val, 1 test`.

    Nothing for a table without splits, or where the reader names the column and counts them.
    """
    # Of joined tables a note begins with the name of its table.
    if not table.splits or any(": splits in " in f": {note}" for note in table.notes):
        return []
    counts = Counter(table.splits)
    return ["splits: " + ", ".join(f"{counts[name]} {name}" for name in SPLIT_ORDER)]


def _take_splits(table: Table, kept_splits: Sequence[str]) -> tuple[Table, Counter[str]]:
    """Return the rows of the splits in `kept_splits`, and the number of rows in each other one."""
    others = Counter(name for name in table.splits or () if name not in kept_splits)
    if table.splits is None or not others:
        return table, others
    if len(kept_splits) == 1:
        return select_split(table, kept_splits[0]), others
    rows = [row for row, name in enumerate(table.splits) if name in kept_splits]
    return table.take(rows), others


def _format_ledger(
    found: int, used: int, others: Counter[str], skipped: Counter[str], is_run: bool
) -> str:
    """Return where the images of a table went; assert that it adds up.

    all of 6 are used                        6 images found, all used
    `skipped` has 1 `no such file`           6 images found = 5 used + 1 skipped (1 no such file)
    a run; `others` has 2 of test            6 images found = 4 used + 2 kept for test
    a run; `others` has 2 of val             6 images found = 4 used + 2 in other splits
    scoring a split; `others` has 1 of test  6 images found = 5 used + 1 in other splits
    """
    tests = others["test"] if is_run else 0
    assert found == used + others.total() + skipped.total()
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    parts = [
        f"{used} used",
        *([f"{tests} kept for test"] if tests else []),
        *([f"{others.total() - tests} in other splits"] if others.total() > tests else []),
        *([f"{skipped.total()} skipped ({reasons})"] if reasons else []),
    ]
    count = pluralize(found, "image")
    return f"{count} found = {' + '.join(parts)}" if len(parts) > 1 else f"{count} found, all used"


def _shorten_reason(reason: str) -> str:
    """Return the reason without details of one picture, so that equal reasons can be counted."""
    return "too large" if TOO_LARGE in reason else reason.split(" (")[0].split(";")[0]
