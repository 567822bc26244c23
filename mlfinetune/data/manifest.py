"""What the files say: tables become the Manifests of train and val, with one label order.

    read_table   file or folder -> Table         format by what it is
    read_splits  Table(s)       -> Splits        checked paths, joined rows, label columns

Every bad row of a table stands in one message. Nothing is guessed silently: `notes` says what
was seen and decided.
"""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.sources import csv_table
from mlfinetune.data.sources.csv_table import read_csv
from mlfinetune.data.sources.folder import read_folder
from mlfinetune.data.split import stratified_split
from mlfinetune.errors import DataError, listing, nearest
from mlfinetune.records import (
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    LabelSpace,
    Manifest,
    SourceOptions,
    Table,
)

DEFAULT_VAL_FRACTION = 0.2


@dataclass(frozen=True)
class Splits:
    """Both sides of a run, in one label order, and what to tell the user about them."""

    train: Manifest
    val: Manifest
    notes: tuple[str, ...]


def read_splits(
    train: Path,
    val: Path | None,
    options: SourceOptions,
    *,
    val_fraction: float | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Splits:
    """Read the training and the validation examples.

    Validation is the table `val`, else what the split column of `train` says, else
    `val_fraction` (0.2 where it is None) of `train`, stratified by label.

    Args:
        train, val: CSV or TSV files, or folders.
        options: how to read them.
        val_fraction: share of `train` to hold out.
        labels: label order; None is the natural sort of what train holds.
        seed: decides which rows are held out.

    Raises:
        DataError: all bad rows of a table; labels that train lacks; nothing to train on.
    """
    table = read_table(train, options)
    notes = [f"train: {note}" for note in table.notes]
    if val is not None:
        other = read_table(val, replace(options, label_delimiter=table.delimiter))
        notes += [f"val: {note}" for note in other.notes]
        own = _only(table, "train") if table.splits else table
        held_out = _only(other, "val") if other.splits else other
        notes += [f"train: {_counts(table)}, train is used"] * bool(table.splits)
        notes += [f"val: {_counts(other)}, val is used"] * bool(other.splits)
        notes += _overlap(own, held_out)
    elif table.splits is not None:
        if val_fraction is not None:
            raise DataError(f"{train} has a split column; remove data.val_fraction, or the column")
        notes.append(_counts(table))
        own, held_out = _only(table, "train"), _only(table, "val")
    else:
        fraction = val_fraction or DEFAULT_VAL_FRACTION
        sides = _hold_out(_align(table, _label_space(table, labels)), train, fraction, seed)
        notes.append(
            f"{len(sides[1])} of {len(table.names)} images held out for validation "
            f"(val_fraction {fraction:g}, stratified by label, seed {seed})"
        )
        return Splits(*sides, notes=tuple(notes + _label_notes(*sides)))
    for side, name, origin in ((own, "train", train), (held_out, "val", val or train)):
        if not side.names:
            raise DataError(f"{origin} has no image for {name}")
    space = _label_space(own, labels)
    sides = _align(own, space), _align(held_out, space)
    return Splits(*sides, notes=tuple(notes + _label_notes(*sides)))


def read_one(
    path: Path, split: str | None, options: SourceOptions, labels: LabelSpace
) -> tuple[Manifest, tuple[str, ...]]:
    """The examples of one table, or of one split of it, in the columns of `labels`; and notes.

    Raises:
        DataError: bad rows, labels not in `labels`, or no rows in that split.
    """
    table = read_table(path, options)
    notes = table.notes
    if split is not None:
        if table.splits is None:
            raise DataError(f"{path} has no split column, so it has no split '{split}'")
        table = _only(table, split)
    elif table.splits is not None:
        notes = (*notes, f"{_counts(table)}: all are scored; --split chooses one")
    if not table.names:
        raise DataError(f"{path}: no images" + (f" in split '{split}'" if split else ""))
    return _align(table, labels), notes


def read_table(path: Path, options: SourceOptions) -> Table:
    """Read a CSV or TSV file or a folder, check its paths, join rows of one image.

    Raises:
        DataError: all bad rows in one message.
    """
    if os.path.isdir(path):
        table = read_folder(path, options)
    elif not os.path.exists(path):
        raise DataError(f"no such file or folder: {path} (data.train, data.val or --data)")
    elif path.suffix.lower() in csv_table.SUFFIXES:
        table = read_csv(path, options)
    else:
        known = ", ".join(sorted(csv_table.SUFFIXES))
        raise DataError(f"{path}: not a table ({known}) nor a folder of label folders")
    faults = [*table.faults, *_path_faults(table, options.allow_outside_root)]
    table, conflicts = _join_repeats(table)
    faults += conflicts
    if faults:
        count = "1 bad row" if len(faults) == 1 else f"{len(faults)} bad rows"
        faults = sorted(faults, key=_natural)  # by line
        raise DataError(f"{path}: {count}, pictures under {table.root}\n{listing(faults)}")
    return table


# ---- paths ------------------------------------------------------------------------------


def _path_faults(table: Table, allow_outside_root: bool) -> list[str]:
    """Names that are missing or leave the root: absolute, `..`, or through a link."""
    root = os.path.realpath(table.root)
    folders: dict[str, str] = {}
    faults = []
    for row, name in enumerate(table.names):
        problem = name and _path_problem(root, name, folders, allow_outside_root)
        if problem:
            faults.append(f"{table.places[row]}: {name!r}: {problem}")
    return faults


def _path_problem(root: str, name: str, folders: dict[str, str], allow_outside: bool) -> str | None:
    path = os.path.join(root, name)
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return "a folder, not a picture"
        folder = os.path.dirname(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = os.path.realpath(path) if os.path.islink(path) else folders[folder] + os.sep
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return "not a file name (it holds a NUL character)"
    if allow_outside or real.startswith(root.rstrip(os.sep) + os.sep):
        return None
    return "outside the image root; data.allow_outside_root: true permits it"


# ---- rows -------------------------------------------------------------------------------


def _join_repeats(table: Table) -> tuple[Table, list[str]]:
    """Rows that name the same image become one; the faults where they contradict each other.

    In label lists 1 beats unknown beats absent. In label columns a state beats a blank, and
    1 against 0 is a contradiction.
    """
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        if name:
            rows_of[os.path.normpath(name)].append(row)
    repeats = {name: rows for name, rows in rows_of.items() if len(rows) > 1}
    if not repeats:
        return table, []
    targets, unnamed, faults = table.targets.copy(), table.unnamed.copy(), []
    for name, rows in repeats.items():
        places = " and ".join(table.places[row] for row in rows[:3])
        states, said = table.targets[rows], table.unnamed[rows]
        listed = said.max() == NEGATIVE
        if table.splits and len({table.splits[row] for row in rows}) > 1:
            faults.append(f"{places}: {name!r} is in different splits")
        if not listed and ((states == POSITIVE).any(0) & (states == NEGATIVE).any(0)).any():
            faults.append(f"{places}: {name!r} has the same label 1 and 0")
        targets[rows[0]], unnamed[rows[0]] = _joined(states, listed), said.min()
    note = f"{len(repeats)} images stand in several rows: their labels are joined"
    table = replace(table, targets=targets, unnamed=unnamed, notes=(*table.notes, note))
    return _take(table, [rows[0] for rows in rows_of.values()]), faults


def _joined(states: NDArray[np.int8], listed: bool) -> NDArray[np.int8]:
    """(rows, L) states of one image -> (L,)."""
    if not listed:
        joined: NDArray[np.int8] = states.max(0)
        return joined
    absent = np.where((states == UNKNOWN).any(0), UNKNOWN, NEGATIVE)
    return np.where((states == POSITIVE).any(0), POSITIVE, absent).astype(np.int8)


def _take(table: Table, rows: Sequence[int]) -> Table:
    return replace(
        table,
        names=tuple(table.names[row] for row in rows),
        places=tuple(table.places[row] for row in rows),
        targets=table.targets[list(rows)],
        unnamed=table.unnamed[list(rows)],
        splits=table.splits and tuple(table.splits[row] for row in rows),
    )


def _only(table: Table, split: str) -> Table:
    """The rows of one split; of listed labels, those that these rows name."""
    assert table.splits is not None
    own = _take(table, [row for row, name in enumerate(table.splits) if name == split])
    if (own.unnamed == UNKNOWN).all():  # one column a label: the columns are the labels
        return own
    masked = (own.targets == UNKNOWN) & (own.unnamed == NEGATIVE)[:, None]
    named = np.flatnonzero(((own.targets == POSITIVE) | masked).any(0))
    names = tuple(table.labels.names[at] for at in named)
    return replace(own, targets=own.targets[:, named], labels=LabelSpace(names))


def _counts(table: Table) -> str:
    counts = Counter(table.splits)
    return "split column: " + ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


def _overlap(train: Table, val: Table) -> list[str]:
    own = {os.path.normpath(train.root / name) for name in train.names}
    both = sum(os.path.normpath(val.root / name) in own for name in val.names)
    return [f"warning: {both} images stand in train and in val: scores flatter"] * bool(both)


# ---- label columns ----------------------------------------------------------------------


def _label_space(table: Table, given: Sequence[str] | None) -> LabelSpace:
    if given is not None:
        return LabelSpace(tuple(given))
    if not table.labels.names:
        raise DataError(f"{table.origin}: no image has a label")
    return LabelSpace(tuple(sorted(table.labels.names, key=_natural)))


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts 2 before 10, and a before B."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    digits = [(p.lstrip("0"), p.isdecimal()) for p in parts]
    return [(0, len(d), d) if number else (1, 0, d) for d, number in digits], name


def _align(table: Table, space: LabelSpace) -> Manifest:
    """The table's targets in the columns of `space`.

    Raises:
        DataError: the table has labels that `space` lacks.
    """
    strangers = [name for name in table.labels.names if name not in space.column]
    if strangers:
        faults = []
        for name in strangers:
            states = table.targets[:, table.labels.column[name]]
            rows = np.flatnonzero(states == (POSITIVE if POSITIVE in states else UNKNOWN))
            first = f", first at {table.places[rows[0]]}" if rows.size else ""
            faults.append(f"'{name}': {rows.size} images{first}{nearest(name, space.names)}")
        raise DataError(
            f"{table.origin}: labels that training does not know (its labels come from "
            f"data.labels, else from the training rows)\n{listing(faults)}"
        )
    targets = np.repeat(table.unnamed[:, None], len(space), axis=1)
    targets[:, [space.column[name] for name in table.labels.names]] = table.targets
    return Manifest(table.root, table.names, targets, space)


def _hold_out(
    whole: Manifest, origin: Path, fraction: float, seed: int
) -> tuple[Manifest, Manifest]:
    if len(whole) < 2:
        raise DataError(
            f"{origin}: {len(whole)} image is too few to hold out some for validation; "
            f"give data.val, or more images"
        )
    train, val = stratified_split(whole.targets, fraction, seed)
    return whole.take(train.tolist()), whole.take(val.tolist())


def _label_notes(train: Manifest, val: Manifest) -> list[str]:
    notes = []
    for side, name, what in ((train, "train", "cannot be learnt"), (val, "val", "have no AP")):
        lacking = np.flatnonzero(~(side.targets == POSITIVE).any(0))
        if lacking.size:
            shown = ", ".join(side.labels.names[at] for at in lacking[:10])
            more = f" and {lacking.size - 10} more" if lacking.size > 10 else ""
            notes.append(
                f"{lacking.size} labels without a positive in {name} {what}: {shown}{more}"
            )
    return notes
