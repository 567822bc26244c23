"""What the files say: tables become the Manifests of train and val, with one label order.

    read_table   file or folder -> Table     its format's source, paths checked, rows joined
    read_splits  Table(s)       -> Splits    bad rows refused, pictures scanned, sides, columns
    read_one     Table          -> Manifest  the same for data to score

Every bad row of a table stands in one message. Nothing is guessed silently: `notes` says what
was seen and decided, and found = used + skipped.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mlfinetune.data.images.decode import TOO_LARGE
from mlfinetune.data.labels import (
    align,
    apply_label_options,
    choose_labels,
    drop_labels,
    find_rare_labels,
    natural_key,
    select_split,
)
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.columns import SPLITS
from mlfinetune.data.readers.detect import read_source
from mlfinetune.data.rows import Scan, add_scan_faults, drop_faulty, join_repeats, raise_faults
from mlfinetune.data.stratify import assign_sides
from mlfinetune.data.table import Skipped, SourceOptions, Table
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.location import Location, join_location, parent_url
from mlfinetune.storage import files
from mlfinetune.text import format_list, pluralize, suggest

DEFAULT_VAL_FRACTION = 0.2
_REMOTE = (".csv", ".tsv", ".jsonl")
"""Tables that are read from URLs."""


@dataclass(frozen=True)
class SplitOptions:
    """What a run takes; the keys of the config's `data` section say what each does.

    Attributes:
        val_fraction: share of train to hold out; None is 0.2 where nothing else says.
        labels: label order; None is the natural sort of what train holds.
        seed: decides which rows are held out.
        min_positives: labels with fewer positives in train are left out.
        skip_bad: leave bad pictures out, instead of refusing the table.
        scan: finds bad pictures; None finds those alone that are no files.
        contents: path -> a number that files of the same bytes share, as far as the scan has seen
            them: what is held out is held out with its copies.
    """

    val_fraction: float | None = None
    labels: Sequence[str] | None = None
    seed: int = 0
    min_positives: int = 0
    skip_bad: bool = False
    scan: Scan | None = None
    contents: Mapping[str, int] = field(default_factory=dict)


def read_splits(
    train: Location,
    val: Location | None,
    options: SourceOptions,
    policy: SplitOptions = SplitOptions(),
) -> Splits:
    """Read the training and the validation examples.

    Validation is the table `val`, else what splits `train` tells, else a share of `train`,
    stratified by label.

    Raises:
        DataError: all bad rows of a table; labels that train lacks; nothing to train on.
    """
    return split_tables(*read_tables(train, val, options), options, policy)


def read_tables(
    train: Location, val: Location | None, options: SourceOptions
) -> tuple[Table, Table | None]:
    """The tables of a run; labels in cells of both are separated alike."""
    table = read_table(train, options)
    if val is None:
        return table, None
    delimiter = table.delimiter or options.label_delimiter
    return table, read_table(val, replace(options, label_delimiter=delimiter, group_by=None))


def split_tables(
    table: Table, other: Table | None, options: SourceOptions, policy: SplitOptions
) -> Splits:
    """The sides of a run from its table, or from those of train and val.

    Raises:
        DataError: as `read_splits`.
    """
    told = table.splits is not None and "val" in table.splits
    if other is None and told and policy.val_fraction is not None:
        raise DataError(
            f"{table.origin} says which images are val; remove data.val_fraction, or the split"
        )
    if options.group_by is not None and table.groups is None:
        raise DataError(f"{table.origin}: data.group_by wants a table with such a column")
    _check_names(options, table, other)
    own = ("train", "val") if other is None and told else ("train",)
    delimiter = table.delimiter
    table, notes, skipped = _ready(table, "train", own, options, policy)
    if own == ("train",):
        table = replace(table, splits=None)
    if other is not None:
        other, more_notes, more = _ready(other, "val", ("val",), options, policy)
        notes, skipped = notes + more_notes, skipped + more
        notes += _overlap(table, other)
    left_out = (
        find_rare_labels(_to_train(table), policy.min_positives) if policy.labels is None else []
    )
    if left_out:
        if len(left_out) == len(table.labels):
            raise DataError(
                f"{table.origin}: every label has fewer than {policy.min_positives} positives "
                f"(data.min_positives): none is left"
            )
        notes.append(f"{_shown(left_out)}: fewer than {policy.min_positives} positives, left out")
        table, other = drop_labels(table, left_out), other and drop_labels(other, left_out)
    drawn = other is None and table.splits is None
    sides = _sides(table, other, policy, notes)
    notes += [*_groups_apart(table), *_label_notes(*sides)]
    return Splits(*sides, tuple(notes), tuple(skipped), tuple(left_out), delimiter, drawn)


def read_manifest(
    path: Location,
    split: str | None,
    options: SourceOptions,
    labels: LabelSpace,
    policy: SplitOptions = SplitOptions(),
) -> tuple[Manifest, tuple[str, ...]]:
    """The examples of one table, or of one split of it, in the columns of `labels`; and notes.

    Raises:
        DataError: bad rows, labels not in `labels`, or no rows in that split.
    """
    table = read_table(path, replace(options, group_by=None))
    notes: list[str] = []
    if split is not None:
        if table.splits is None:
            raise DataError(f"{path} has no split column, so it has no split '{split}'")
        split = SPLITS.get(split.casefold(), split)
    elif table.splits is not None:
        notes = ["all splits are scored; --split chooses one"]
    kept = (split,) if split else ("train", "val", "test")
    table, said, _ = _ready(table, "data", kept, options, policy)
    if not table.names:
        raise DataError(f"{path}: no images" + (f" in split '{split}'" if split else ""))
    if not table.labels.names:
        raise DataError(f"{path}: no image has a label: there is nothing to score against")
    return align(table, labels), (*said, *notes)


def read_validation(
    path: Location, options: SourceOptions, labels: LabelSpace, policy: SplitOptions
) -> tuple[Manifest, tuple[str, ...]]:
    """The examples of a run's table of validation, as `read_splits` takes them; and notes."""
    table = read_table(path, replace(options, group_by=None))
    table, notes, _ = _ready(table, "val", ("val",), options, policy)
    return align(table, labels), tuple(notes)


def read_table(path: Location, options: SourceOptions) -> Table:
    """Read a file or folder in its format, look for its pictures, join rows of one image.

    Bad rows stand in the table's `faults`, by line; what else is wrong is raised.

    Raises:
        DataError: the file cannot be read as a whole.
    """
    table = check_paths(_read(path, options), options.allow_outside_root)
    table = join_repeats(table)
    return replace(table, faults=tuple(sorted(table.faults, key=lambda f: natural_key(str(f)))))


def _read(path: Location, options: SourceOptions) -> Table:
    """What a file, a folder or a table behind a URL says."""
    if isinstance(path, Path):
        return read_source(path, options)
    if not path.lower().endswith(_REMOTE):
        raise DataError(
            f"{path}: of what is behind URLs tables are read that end in {', '.join(_REMOTE)}; "
            f"download it, or list its pictures in such a table"
        )
    options = replace(options, images=options.images or parent_url(path))
    kept = files.fetch_table(path)
    try:
        return replace(read_source(kept, options), origin=path)
    except DataError as error:
        raise DataError(str(error).replace(str(kept), path)) from error


# ---- usable rows ----


def _ready(
    table: Table, name: str, kept: Sequence[str], options: SourceOptions, policy: SplitOptions
) -> tuple[Table, list[str], list[Skipped]]:
    """The usable rows of the splits that are `kept`, notes, and what was skipped."""
    found, splits = len(table), _split_counts(table)
    table = _forgiven(table, kept)
    if policy.scan is None or not all(fault.picture for fault in table.faults):
        raise_faults(table, [f for f in table.faults if not (f.picture and policy.skip_bad)])
    faults = table.faults
    table, skipped = drop_faulty(table)
    table, reasons = _of_splits(table, kept)
    if policy.scan is not None:
        table = add_scan_faults(table, policy.scan)
        if not policy.skip_bad:
            both = [*faults, *table.faults]
            raise_faults(table, sorted(both, key=lambda fault: natural_key(str(fault))))
        table, bad = drop_faulty(table)
        skipped = sorted([*skipped, *bad], key=lambda one: natural_key(one.place))
    lines = format_list([f"{one.place}: {one.name!r}: {one.reason}" for one in skipped])
    if skipped and not len(table):
        raise DataError(
            f"{table.origin}: none of {pluralize(found, 'image')} can be used, pictures under "
            f"{table.root} (data.images)\n{lines}"
        )
    table = apply_label_options(table, options)
    raise_faults(table, table.faults)
    reasons.update(_kind(one.reason) for one in skipped)
    said = [*table.notes, *splits, _ledger(found, len(table), reasons)]
    notes = [f"{name}: {note}" for note in said]
    if skipped:
        notes.append(f"{name}: skipped (data.bad_images)\n{lines}")
    return table, notes, skipped


def _to_train(table: Table) -> Table:
    """The rows to train on, or those that both sides are made of; with all labels."""
    if table.splits is None:
        return table
    return table.take([row for row, name in enumerate(table.splits) if name == "train"])


def _forgiven(table: Table, kept: Sequence[str]) -> Table:
    """The table without the faults of pictures that are on no wanted side."""
    sides = table.splits
    if sides is None:
        return table
    own = (f for f in table.faults if not f.picture or f.row is None or sides[f.row] in kept)
    return replace(table, faults=tuple(own))


def _split_counts(table: Table) -> list[str]:
    counts = Counter(table.splits or ())
    listed = ", ".join(f"{counts[name]} {name}" for name in ("train", "val", "test"))
    return [f"splits: {listed}"] * bool(counts)


def _of_splits(table: Table, kept: Sequence[str]) -> tuple[Table, Counter[str]]:
    """The rows of those splits, and how many there are of the others."""
    counts = Counter(table.splits or ())
    others = Counter({f"in split {name}": n for name, n in counts.items() if name not in kept})
    if table.splits is None or not others:
        return table, others
    if len(kept) == 1:
        return select_split(table, kept[0]), others
    rows = [row for row, name in enumerate(table.splits) if name in kept]
    return table.take(rows), others


def _ledger(found: int, used: int, reasons: Counter[str]) -> str:
    reasons = +reasons  # without zeros
    assert found == used + reasons.total()
    if not reasons:
        return f"{pluralize(found, 'image')} found, all used"
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{pluralize(found, 'image')} found = {used} used + {reasons.total()} skipped ({parts})"


def _kind(reason: str) -> str:
    """The reason without what is this picture's own."""
    return "too large" if TOO_LARGE in reason else reason.split(" (")[0].split(";")[0]


def _check_names(options: SourceOptions, *tables: Table | None) -> None:
    """Labels to ignore or to rename that no table has are typing errors."""
    old = {name for table in tables if table is not None for name in table.labels.names}
    renames = dict(options.rename_labels)
    new = {renames.get(name, name) for name in old}
    asked = [("rename_labels", name, old) for name in renames]
    asked += [("ignore_labels", name, new) for name in options.ignore_labels]
    faults = [
        f"data.{key}: no label '{name}' in the data{suggest(name, sorted(known))}"
        for key, name, known in asked
        if name not in known
    ]
    if faults:
        raise DataError("labels that no table has\n" + format_list(faults))


# ---- sides ------------------------------------------------------------------------------


def _sides(
    table: Table, other: Table | None, policy: SplitOptions, notes: list[str]
) -> tuple[Manifest, Manifest]:
    """Train and val in the same columns; says how they came to be."""
    if other is None and table.splits is None:
        if len(table) < 2:
            raise DataError(
                f"{table.origin}: {pluralize(len(table), 'image')}: too few to hold out some for "
                f"validation; give data.val, or more images"
            )
        space = choose_labels(table, policy.labels)
        return _hold_out(align(table, space), table, policy, notes)
    if other is None:
        table, other = select_split(table, "train"), select_split(table, "val")
    for side, name in ((table, "train"), (other, "val")):
        if not side.names:
            raise DataError(f"{side.origin} has no image for {name}")
    space = choose_labels(table, policy.labels)
    return align(table, space), align(other, space)


def _hold_out(
    whole: Manifest, table: Table, policy: SplitOptions, notes: list[str]
) -> tuple[Manifest, Manifest]:
    fraction = policy.val_fraction or DEFAULT_VAL_FRACTION
    seen = policy.contents
    contents = [seen.get(whole.path(row), -1 - row) for row in range(len(whole))] if seen else []
    copies = len(contents) - len(set(contents))
    together = contents if copies else None
    side = assign_sides(whole.targets, table.groups, (fraction,), policy.seed, together)
    if together and len(set(side.tolist())) == 1:  # nothing but copies: they cannot stay together
        notes.append("warning: copies of the same bytes in train and in val: scores flatter")
        side, copies = assign_sides(whole.targets, table.groups, (fraction,), policy.seed), 0
    train, val = (np.flatnonzero(side == at).tolist() for at in (0, 1))
    if not train or not val:
        raise DataError(f"{table.origin}: one group (data.group_by) holds all images")
    grouped = "" if table.groups is None else ", groups kept whole"
    grouped += f", {pluralize(copies, 'picture')} beside a copy of the same bytes" * bool(copies)
    notes.append(
        f"{len(val)} of {len(whole)} images held out for validation (val_fraction {fraction:g}, "
        f"stratified by label{grouped}, seed {policy.seed})"
    )
    return whole.take(train), whole.take(val)


def _groups_apart(table: Table) -> list[str]:
    """A warning where the data itself puts rows of one group on both sides."""
    if table.groups is None or table.splits is None:
        return []
    of: dict[str, set[str]] = {name: set() for name in ("train", "val")}
    for group, side in zip(table.groups, table.splits, strict=True):
        of[side].add(group)
    both = len(of["train"] & of["val"] - {""})
    return [f"warning: {pluralize(both, 'group')} in train and in val: scores flatter"] * bool(both)


def _overlap(train: Table, val: Table) -> list[str]:
    own = {os.path.normpath(join_location(train.root, name)) for name in train.names}
    both = sum(os.path.normpath(join_location(val.root, name)) in own for name in val.names)
    return [f"warning: {both} images stand in train and in val: scores flatter"] * bool(both)


def _label_notes(train: Manifest, val: Manifest) -> list[str]:
    notes = []
    for side, name, what in ((train, "train", "cannot be learnt"), (val, "val", "have no AP")):
        lacking = [side.labels.names[at] for at in np.flatnonzero(side.targets.counts()[0] == 0)]
        if lacking:
            notes.append(f"{_shown(lacking)} without a positive in {name}: {what}")
    positives, negatives, unknown = train.targets.counts()
    lacking = [train.labels.names[at] for at in np.flatnonzero((negatives == 0) & (positives > 0))]
    if lacking:
        hint = "; if unknown means no, set data.unknown: negative" if unknown.any() else ""
        notes.append(f"{_shown(lacking)} without a negative in train: cannot be learnt{hint}")
    return notes


def _shown(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    return f"{pluralize(len(labels), 'label')} ({', '.join(labels[:10])}{more})"
