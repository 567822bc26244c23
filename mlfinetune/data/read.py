"""Tables become the Manifests of train and val, with one label order.

    read_table     file or folder -> Table     read in its format, paths checked, rows joined
    read_splits    Table(s)       -> Splits    bad rows refused, pictures scanned, sides, columns
    read_manifest  Table          -> Manifest  the examples to score, in given columns

All bad rows of a table are in one error message. Every guess is reported: `notes` says what was
seen and decided, and for each table the number of images found = used + skipped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config.hierarchy import list_ancestors
from mlfinetune.data.doubts import note_labels
from mlfinetune.data.groups import check_groups, warn_of_known_groups
from mlfinetune.data.implies import check_implied_names
from mlfinetune.data.known_sides import KnownSides
from mlfinetune.data.labels import (
    align,
    choose_labels,
    drop_labels,
    find_rare_labels,
    natural_key,
    note_unnamed_labels,
)
from mlfinetune.data.manifest import DEFAULT_VAL_FRACTION, Manifest, Splits
from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.detect import read_source
from mlfinetune.data.rows import Scan, join_repeats, select_usable
from mlfinetune.data.sides import (
    align_sides,
    hold_out,
    number_groups_together,
    warn_of_known_sides,
    warn_of_overlap,
)
from mlfinetune.data.table import SPLIT_ORDER, SourceOptions, Table
from mlfinetune.data.targets import LabelSpace
from mlfinetune.data.union import settle_labels, unite_tables
from mlfinetune.errors import DataError
from mlfinetune.location import (
    TABLE_ENDINGS,
    Location,
    Locations,
    find_ending,
    name_locations,
    parent_url,
)
from mlfinetune.storage import files
from mlfinetune.text import format_list, list_labels, suggest


@dataclass(frozen=True)
class SplitOptions:
    """Options for making train and val from tables; the config's `data` section documents each.

    Attributes:
        val_fraction: share of train to hold out; None: 0.2 where the data names no val.
        labels: labels in column order; None: the labels of train in natural order.
        seed: decides which rows are held out.
        min_positives: labels with fewer positives in train are left out.
        skip_bad: leave bad pictures out, instead of refusing the table.
        hold_out: hold out a share of train where the data names no val; else val is empty then.
        former: labels that the weights know already: they may be renamed, also where no table has
            them any more.
    """

    val_fraction: float | None = None
    labels: Sequence[str] | None = None
    seed: int = 0
    min_positives: int = 0
    skip_bad: bool = False
    hold_out: bool = True
    former: Sequence[str] = ()


def read_splits(
    train: Locations,
    val: Locations | None,
    options: SourceOptions,
    split_options: SplitOptions = SplitOptions(),
    scan: Scan | None = None,
    known: KnownSides | None = None,
) -> Splits:
    """Read the training and the validation examples.

    Validation is the table `val`; without one, the rows that `train` marks as val; without these,
    a share of `train`, stratified by label.

    Raises:
        DataError: bad rows, all of a table in one message; labels that train lacks; no images.
    """
    table, val_table = read_tables(train, val, options)
    return split_tables(table, val_table, options, split_options, scan, known)


def read_tables(
    train: Locations, val: Locations | None, options: SourceOptions
) -> tuple[Table, Table | None]:
    """Read the table of train and, if there is one, of val, with the same label delimiter."""
    table = read_table(train, options)
    if val is None:
        return table, None
    delimiter = table.delimiter or options.label_delimiter
    return table, _read_with_groups(val, replace(options, label_delimiter=delimiter))


def _read_with_groups(path: Locations, options: SourceOptions) -> Table:
    """Read a table, with its groups if it has the column that `group_by` names."""
    try:
        return read_table(path, options)
    except DataError:
        if options.group_by is None:
            raise
        # Only train must have this column. If the error is another one, it comes again.
        return read_table(path, replace(options, group_by=None))


def split_tables(
    table: Table,
    val_table: Table | None,
    options: SourceOptions,
    split_options: SplitOptions,
    scan: Scan | None = None,
    known: KnownSides | None = None,
) -> Splits:
    """Make train and val from one table, or from one table each.

    Args:
        table: the table of train, and of val where `val_table` is None.
        val_table: the table of val.
        options: how the tables were read.
        split_options: how to make the sides.
        scan: decodes the pictures. Without it a picture is bad only where its file is missing, and
            files with the same bytes may be on both sides.
        known: sides that pictures had in runs before.

    Raises:
        DataError: as `read_splits`.
    """
    has_val_rows = val_table is None and table.splits is not None and "val" in table.splits
    implied = _check_options(table, val_table, options, split_options, has_val_rows)
    group_notes = check_groups(table, val_table, options)
    delimiter, skip_bad, labels = table.delimiter, split_options.skip_bad, split_options.labels
    kept_splits = ("train", "val") if has_val_rows else ("train",)
    usable = select_usable(table, "train", kept_splits, options, skip_bad, scan)
    table, notes, skipped = (
        usable.table,
        [*usable.notes, *group_notes, *(f"train: {note}" for note in implied)],
        usable.skipped,
    )
    contents = usable.contents
    if not has_val_rows:
        table = replace(table, splits=None)
    if val_table is not None:
        usable_val = select_usable(val_table, "val", ("val",), options, skip_bad, scan)
        val_table = usable_val.table
        notes += [*usable_val.notes, *warn_of_overlap(table, val_table)]
        skipped += usable_val.skipped
        contents = {**contents, **usable_val.contents}
    rare = _find_rare_in_train(table, split_options)
    if rare:
        least = split_options.min_positives
        notes.append(f"{list_labels(rare)}: fewer than {least} positives, left out")
        table = drop_labels(table, rare)
        val_table = None if val_table is None else drop_labels(val_table, rare)
    is_drawn = val_table is None and not has_val_rows
    if val_table is None and not split_options.hold_out:
        train = align(replace(table, splits=None), choose_labels(table, labels))
        val = train.take([])
    elif is_drawn:
        fraction = split_options.val_fraction or DEFAULT_VAL_FRACTION
        train, val, more = hold_out(table, contents, labels, fraction, split_options.seed, known)
        notes += more
    else:
        train, val = align_sides(table, val_table, labels)
        if val_table is not None and not split_options.hold_out:
            train, val = number_groups_together(train, val, table, val_table)
        notes += warn_of_known_sides(train, val, contents, known)
    notes += note_labels(train, val if len(val) else train, options, given=labels is not None)
    numbers = () if scan is None else tuple(_number(side, contents) for side in (train, val))
    return Splits(
        train, val, tuple(notes), tuple(skipped), tuple(rare), delimiter, is_drawn, numbers
    )


def _number(side: Manifest, contents: Mapping[str, int]) -> NDArray[np.int64]:
    """Return a number of the bytes of each picture, as the scan found it; -1: not known."""
    paths = map(side.path, range(len(side)))
    return np.fromiter((contents.get(path, -1) for path in paths), np.int64, len(side))


def read_manifest(
    path: Locations,
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
    table = _read_with_groups(path, options)
    notes: list[str] = []
    if split is not None:
        split = _find_split(table, split)
    elif table.splits is not None:
        notes = ["all splits are scored; --split chooses one"]
    kept_splits = (split,) if split else ("train", "val", "test")
    notes += warn_of_known_groups(table, kept_splits, options)
    usable = select_usable(table, "data", kept_splits, options, skip_bad, scan)
    table = usable.table
    if not table.names:
        raise DataError(f"{name_locations(path)}: no images")
    if not table.labels.names:
        raise DataError(
            f"{name_locations(path)}: no image has a label: there is nothing to score against"
        )
    unnamed = note_unnamed_labels(table, labels)
    return align(table, labels), (*usable.notes, *unnamed, *notes)


def _find_split(table: Table, word: str) -> str:
    """Return the split that a word names, as `val` for `dev`.

    Raises:
        DataError: the table has no split column, or no row of this split.
    """
    if table.splits is None:
        raise DataError(
            f"{table.origin} has no split column, so it has no split '{word}'; name the column of "
            f"train, val and test: data.split_column=NAME"
        )
    split = find_split(word) or word
    # Where rows are wrong, so may be their splits: all of them are then in another message.
    if split not in table.splits and all(fault.picture for fault in table.faults):
        counts = Counter(table.splits)
        there = ", ".join(f"{counts[name]} {name}" for name in SPLIT_ORDER if counts[name])
        raise DataError(
            f"{table.origin}: no images in split '{word}'; its splits: {there or 'none'}"
        )
    return split


def read_validation(
    path: Locations,
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
    table = _read_with_groups(path, options)
    usable = select_usable(table, "val", ("val",), options, skip_bad, scan)
    return align(usable.table, labels), tuple(usable.notes)


def read_table(path: Locations, options: SourceOptions) -> Table:
    """Read a file or folder in its format, check the paths of its pictures, join repeated rows.

    Bad rows are in the table's `faults`, sorted by line. Several are read one by one, and joined.

    Raises:
        DataError: a file cannot be read as a whole.
    """
    if isinstance(path, tuple):
        tables = [_read_with_groups(each, options) for each in path]
        if options.group_by and all(each.groups is None for each in tables):
            # The column may be named wrongly: each reader says what it has instead.
            tables = [read_table(each, options) for each in path]
        table = unite_tables(tables)
    else:
        table = join_repeats(check_paths(_read_location(path, options), options))
        table = settle_labels(table, options) if options.partial else table
    return replace(table, faults=tuple(sorted(table.faults, key=lambda f: natural_key(str(f)))))


def _read_location(path: Location, options: SourceOptions) -> Table:
    """Read a file, a folder, or a table behind a URL."""
    if isinstance(path, Path):
        return read_source(path, options)
    if find_ending(path) not in TABLE_ENDINGS:
        raise DataError(
            f"{path}: only tables that end in {', '.join(TABLE_ENDINGS)}, or one of these with "
            f".gz, are read from URLs; download it, or list its pictures in such a table"
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
) -> list[str]:
    """Return notes on labels that are implied; refuse options that do not fit the tables.

    Raises:
        DataError: an option contradicts the tables, or names what they do not have.
    """
    if has_val_rows and split_options.val_fraction is not None:
        raise DataError(
            f"{table.origin} says which images are val; remove data.val_fraction, or the split"
        )
    if options.group_by is not None and table.groups is None:
        raise DataError(f"{table.origin}: data.group_by needs a table with this column")
    return _check_label_names(options, split_options, table, val_table)


def _check_label_names(
    options: SourceOptions, split_options: SplitOptions, *tables: Table | None
) -> list[str]:
    """Raise DataError for a label to ignore, rename or imply that no table has: a typing error.

    With `rename_labels: {None: none}` both names may be ignored: it is clear what is meant.
    """
    given = [table for table in tables if table is not None]
    in_tables = {name for table in given for name in table.former_labels or table.labels.names}
    renames = dict(options.rename_labels)
    renamed = {renames.get(name, name) for name in in_tables}
    ignored = options.ignore_labels
    labels, known = split_options.labels, in_tables.union(renames.values(), split_options.former)
    implied = check_implied_names(options.implies, sorted(renamed), renames, labels, ignored)
    renamed |= {name for above in list_ancestors(options.implies).values() for name in above}
    renamed |= {name for name in renames if renames[name] in options.ignore_labels}
    # A column that is no label may be named too: that is how a doubtful one is left out.
    renamed |= {name for table in given for name in table.other_columns}
    requests = [("rename_labels", name, known) for name in renames]
    requests += [("ignore_labels", name, renamed) for name in options.ignore_labels]
    faults = [
        f"data.{key}: no label '{name}' in the data{suggest(name, sorted(there))}"
        for key, name, there in requests
        if name not in there
    ]
    if faults:
        raise DataError("labels that no table has\n" + format_list(faults))
    return implied


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
