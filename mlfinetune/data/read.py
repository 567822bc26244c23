"""Tables become the Manifests of train and val, with one label order.

    read_table     file or folder -> Table     read in its format, paths checked, rows joined
    read_splits    Table(s)       -> Splits    bad rows refused, pictures scanned, sides, columns
    read_manifest  Table          -> Manifest  the examples to score, in given columns

All bad rows of a table are in one error message. Every guess is reported: `notes` says what was
seen and decided, and for each table the number of images found = used + skipped.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlfinetune.data.labels import (
    align,
    choose_labels,
    drop_labels,
    find_rare_labels,
    natural_key,
    select_split,
)
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.column_names import SPLITS
from mlfinetune.data.readers.detect import read_source
from mlfinetune.data.rows import Scan, join_repeats, number_contents, select_usable
from mlfinetune.data.stratify import assign_sides
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.location import Location, parent_url
from mlfinetune.storage import files
from mlfinetune.text import MAX_LISTED, format_list, pluralize, suggest

DEFAULT_VAL_FRACTION = 0.2
_REMOTE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")
"""Endings of the tables that can be read from URLs."""
_TOO_HIGH = "scores will be too high"


@dataclass(frozen=True)
class SplitOptions:
    """Options for making train and val from tables; the config's `data` section documents each.

    Attributes:
        val_fraction: share of train to hold out; None: 0.2 where the data names no val.
        labels: labels in column order; None: the labels of train in natural order.
        seed: decides which rows are held out.
        min_positives: labels with fewer positives in train are left out.
        skip_bad: leave bad pictures out, instead of refusing the table.
    """

    val_fraction: float | None = None
    labels: Sequence[str] | None = None
    seed: int = 0
    min_positives: int = 0
    skip_bad: bool = False


def read_splits(
    train: Location,
    val: Location | None,
    options: SourceOptions,
    split_options: SplitOptions = SplitOptions(),
    scan: Scan | None = None,
) -> Splits:
    """Read the training and the validation examples.

    Validation is the table `val`; without one, the rows that `train` marks as val; without these,
    a share of `train`, stratified by label.

    Raises:
        DataError: bad rows, all of a table in one message; labels that train lacks; no images.
    """
    table, val_table = read_tables(train, val, options)
    return split_tables(table, val_table, options, split_options, scan)


def read_tables(
    train: Location, val: Location | None, options: SourceOptions
) -> tuple[Table, Table | None]:
    """Read the table of train and, if there is one, of val, with the same label delimiter."""
    table = read_table(train, options)
    if val is None:
        return table, None
    delimiter = table.delimiter or options.label_delimiter
    return table, read_table(val, replace(options, label_delimiter=delimiter, group_by=None))


def split_tables(
    table: Table,
    val_table: Table | None,
    options: SourceOptions,
    split_options: SplitOptions,
    scan: Scan | None = None,
) -> Splits:
    """Make train and val from one table, or from one table each.

    Args:
        table: the table of train, and of val where `val_table` is None.
        val_table: the table of val.
        options: how the tables were read.
        split_options: how to make the sides.
        scan: decodes the pictures. Without it a picture is bad only where its file is missing, and
            files with the same bytes may be on both sides.

    Raises:
        DataError: as `read_splits`.
    """
    has_val_rows = val_table is None and table.splits is not None and "val" in table.splits
    _check_options(table, val_table, options, split_options, has_val_rows)
    delimiter, skip_bad = table.delimiter, split_options.skip_bad
    kept_splits = ("train", "val") if has_val_rows else ("train",)
    usable = select_usable(table, "train", kept_splits, options, skip_bad, scan)
    table, notes, skipped = usable.table, usable.notes, usable.skipped
    if not has_val_rows:
        table = replace(table, splits=None)
    if val_table is not None:
        usable_val = select_usable(val_table, "val", ("val",), options, skip_bad, scan)
        val_table = usable_val.table
        notes += [*usable_val.notes, *_warn_of_overlap(table, val_table)]
        skipped += usable_val.skipped
    rare = _find_rare_in_train(table, split_options)
    if rare:
        least = split_options.min_positives
        notes.append(f"{_list_labels(rare)}: fewer than {least} positives, left out")
        table = drop_labels(table, rare)
        val_table = None if val_table is None else drop_labels(val_table, rare)
    is_drawn = val_table is None and not has_val_rows
    if is_drawn:
        train, val, hold_out_notes = _hold_out(table, usable.contents, split_options)
        notes += hold_out_notes
    else:
        train, val = _align_sides(table, val_table, split_options)
    notes += [*_warn_of_divided_groups(table), *_note_unlearnable_labels(train, val)]
    return Splits(train, val, tuple(notes), tuple(skipped), tuple(rare), delimiter, is_drawn)


def read_manifest(
    path: Location,
    split: str | None,
    options: SourceOptions,
    labels: LabelSpace,
    skip_bad: bool = False,
    scan: Scan | None = None,
) -> tuple[Manifest, tuple[str, ...]]:
    """Read the examples of a table, or of one of its splits, in the columns of `labels`.

    Args:
        path: the table.
        split: value of the split column; None: all rows.
        options: how to read the table.
        labels: the columns of the targets, as a checkpoint has them.
        skip_bad: leave bad pictures out, instead of refusing the table.
        scan: decodes the pictures; None: they are not scanned.

    Returns:
        The examples, and notes for the user.

    Raises:
        DataError: bad rows, labels not in `labels`, or no rows in that split.
    """
    table = read_table(path, replace(options, group_by=None))
    split_notes: list[str] = []
    if split is not None:
        if table.splits is None:
            raise DataError(f"{path} has no split column, so it has no split '{split}'")
        split = SPLITS.get(split.casefold(), split)
    elif table.splits is not None:
        split_notes = ["all splits are scored; --split chooses one"]
    kept_splits = (split,) if split else ("train", "val", "test")
    usable = select_usable(table, "data", kept_splits, options, skip_bad, scan)
    table = usable.table
    if not table.names:
        raise DataError(f"{path}: no images" + (f" in split '{split}'" if split else ""))
    if not table.labels.names:
        raise DataError(f"{path}: no image has a label: there is nothing to score against")
    return align(table, labels), (*usable.notes, *split_notes)


def read_validation(
    path: Location,
    options: SourceOptions,
    labels: LabelSpace,
    skip_bad: bool = False,
    scan: Scan | None = None,
) -> tuple[Manifest, tuple[str, ...]]:
    """Read the examples of a run's table of val, exactly as `read_splits` does.

    Arguments and results are those of `read_manifest`, without `split`: of a table with a split
    column the rows of val are read.

    Raises:
        DataError: bad rows, or labels not in `labels`.
    """
    table = read_table(path, replace(options, group_by=None))
    usable = select_usable(table, "val", ("val",), options, skip_bad, scan)
    return align(usable.table, labels), tuple(usable.notes)


def read_table(path: Location, options: SourceOptions) -> Table:
    """Read a file or folder in its format, check the paths of its pictures, join repeated rows.

    Bad rows are in the table's `faults`, sorted by line.

    Raises:
        DataError: the file cannot be read as a whole.
    """
    table = check_paths(_read_location(path, options), options)
    table = join_repeats(table)
    return replace(table, faults=tuple(sorted(table.faults, key=lambda f: natural_key(str(f)))))


def _read_location(path: Location, options: SourceOptions) -> Table:
    """Read a file, a folder, or a table behind a URL."""
    if isinstance(path, Path):
        return read_source(path, options)
    if not path.lower().endswith(_REMOTE_SUFFIXES):
        raise DataError(
            f"{path}: only tables that end in {', '.join(_REMOTE_SUFFIXES)} are read from URLs; "
            f"download it, or list its pictures in such a table"
        )
    options = replace(options, images=options.images or parent_url(path))
    local_copy = files.fetch_table(path)
    try:
        return replace(read_source(local_copy, options), origin=path)
    except DataError as error:
        raise DataError(str(error).replace(str(local_copy), path)) from error


# ---- checks before the rows are used ----------------------------------------------------


def _check_options(
    table: Table,
    val_table: Table | None,
    options: SourceOptions,
    split_options: SplitOptions,
    has_val_rows: bool,
) -> None:
    """Raise DataError where an option contradicts the tables, or names what they do not have."""
    if has_val_rows and split_options.val_fraction is not None:
        raise DataError(
            f"{table.origin} says which images are val; remove data.val_fraction, or the split"
        )
    if options.group_by is not None and table.groups is None:
        raise DataError(f"{table.origin}: data.group_by needs a table with this column")
    _check_label_names(options, table, val_table)


def _check_label_names(options: SourceOptions, *tables: Table | None) -> None:
    """Raise DataError for a label to ignore or to rename that no table has: a typing error."""
    in_tables = {name for table in tables if table is not None for name in table.labels.names}
    renames = dict(options.rename_labels)
    renamed = {renames.get(name, name) for name in in_tables}
    requests = [("rename_labels", name, in_tables) for name in renames]
    requests += [("ignore_labels", name, renamed) for name in options.ignore_labels]
    faults = [
        f"data.{key}: no label '{name}' in the data{suggest(name, sorted(known))}"
        for key, name, known in requests
        if name not in known
    ]
    if faults:
        raise DataError("labels that no table has\n" + format_list(faults))


def _find_rare_in_train(table: Table, split_options: SplitOptions) -> list[str]:
    """Return the labels to leave out for `min_positives`; none where the labels are given.

    Raises:
        DataError: no label would be left.
    """
    if split_options.labels is not None:
        return []
    train = table
    if table.splits is not None:  # not select_split: it would drop labels
        train = table.take([row for row, name in enumerate(table.splits) if name == "train"])
    rare = find_rare_labels(train, split_options.min_positives)
    if rare and len(rare) == len(table.labels):
        raise DataError(
            f"{table.origin}: every label has fewer than {split_options.min_positives} positives "
            f"(data.min_positives): no label is left"
        )
    return rare


# ---- sides ------------------------------------------------------------------------------


def _align_sides(
    table: Table, val_table: Table | None, split_options: SplitOptions
) -> tuple[Manifest, Manifest]:
    """Return train and val in the same columns, from two tables or from a table with splits."""
    if val_table is None:
        table, val_table = select_split(table, "train"), select_split(table, "val")
    for side, name in ((table, "train"), (val_table, "val")):
        if not side.names:
            raise DataError(f"{side.origin} has no image for {name}")
    space = choose_labels(table, split_options.labels)
    return align(table, space), align(val_table, space)


def _hold_out(
    table: Table, contents: Mapping[str, int], split_options: SplitOptions
) -> tuple[Manifest, Manifest, list[str]]:
    """Draw val from the table at random, stratified by label; return train, val and notes.

    Rows that must be on one side (example with 10 images, `val_fraction` 0.2):

        data.group_by   scan            units that are dealt to the sides
        not set         not run         10 images
        set             not run         groups; an image with a blank cell is its own group
        not set         two files same  8 images, and the 2 copies as one unit
        set             two files same  groups; two groups that share a copy are one unit
        any             all files same  as if not scanned, with a warning
    """
    if not len(table):
        raise DataError(f"{table.origin}: the table has no rows to train on")
    if len(table) < 2:
        raise DataError(
            f"{table.origin}: {pluralize(len(table), 'image')}: too few to hold out some for "
            f"validation; give data.val, or more images"
        )
    whole = align(table, choose_labels(table, split_options.labels))
    fraction = split_options.val_fraction or DEFAULT_VAL_FRACTION
    notes = []
    numbers = number_contents([whole.path(row) for row in range(len(whole))], contents)
    duplicates = len(numbers) - len(set(numbers))
    seed, groups = split_options.seed, table.groups
    sides = assign_sides(whole.targets, groups, (fraction,), seed, numbers if duplicates else None)
    if duplicates and len(set(sides.tolist())) == 1:  # one unit holds all images: divide it
        notes.append(f"warning: copies of the same bytes in both train and val: {_TOO_HIGH}")
        sides = assign_sides(whole.targets, groups, (fraction,), seed)
        duplicates = 0
    train, val = (np.flatnonzero(sides == side).tolist() for side in (0, 1))
    if not train or not val:
        raise DataError(f"{table.origin}: one group (data.group_by) holds all images")
    details = f"val_fraction {fraction:g}, stratified by label"
    if groups is not None:
        details += ", groups kept whole"
    if duplicates:
        details += f", {pluralize(duplicates, 'picture')} beside a copy of the same bytes"
    notes.append(
        f"{len(val)} of {len(whole)} images held out for validation ({details}, seed {seed})"
    )
    return whole.take(train), whole.take(val), notes


# ---- notes ------------------------------------------------------------------------------


def _warn_of_divided_groups(table: Table) -> list[str]:
    """Return a warning where the data itself puts rows of one group on both sides."""
    if table.groups is None or table.splits is None:
        return []
    groups_of: dict[str, set[str]] = {name: set() for name in ("train", "val")}
    for group, side in zip(table.groups, table.splits, strict=True):
        groups_of[side].add(group)
    both = len(groups_of["train"] & groups_of["val"] - {""})
    if not both:
        return []
    return [f"warning: {pluralize(both, 'group')} in both train and val: {_TOO_HIGH}"]


def _warn_of_overlap(train: Table, val: Table) -> list[str]:
    """Return a warning where images of one path are in both tables."""
    train_paths = {os.path.normpath(train.path(row)) for row in range(len(train))}
    both = sum(os.path.normpath(val.path(row)) in train_paths for row in range(len(val)))
    if not both:
        return []
    return [f"warning: {pluralize(both, 'image')} in both train and val: {_TOO_HIGH}"]


def _note_unlearnable_labels(train: Manifest, val: Manifest) -> list[str]:
    """Return a note for labels without a positive in a side, or without a negative in train."""
    notes = []
    for side, name, effect in ((train, "train", "cannot be learned"), (val, "val", "no AP")):
        positives, _, _ = side.targets.counts()
        lacking = [side.labels.names[column] for column in np.flatnonzero(positives == 0)]
        if lacking:
            notes.append(f"{_list_labels(lacking)} without a positive in {name}: {effect}")
    positives, negatives, unknown = train.targets.counts()
    columns = np.flatnonzero((negatives == 0) & (positives > 0))
    lacking = [train.labels.names[column] for column in columns]
    if lacking:
        hint = "; if unknown means no, set data.unknown: negative" if unknown.any() else ""
        notes.append(
            f"{_list_labels(lacking)} without a negative in train: cannot be learned{hint}"
        )
    return notes


def _list_labels(labels: Sequence[str]) -> str:
    """Return `2 labels (cat, dog)`; after ten names the others are counted."""
    more = f" and {len(labels) - MAX_LISTED} more" if len(labels) > MAX_LISTED else ""
    return f"{pluralize(len(labels), 'label')} ({', '.join(labels[:MAX_LISTED])}{more})"
