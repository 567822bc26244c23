"""The sides of a run: train and val from one table or from two, in the same columns.

table without val    -> hold_out    -> val drawn at random, stratified by label
table with its split -> align_sides -> the rows of train, the rows of val
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from mlfinetune.data.groups import TOO_HIGH
from mlfinetune.data.labels import align, choose_labels, select_split
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.rows import number_contents
from mlfinetune.data.stratify import assign_sides
from mlfinetune.data.table import Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize


def align_sides(
    table: Table, val_table: Table | None, labels: Sequence[str] | None
) -> tuple[Manifest, Manifest]:
    """Return train and val in the same columns, from two tables or from a table with splits.

    `labels` are given in column order; None: those of train.

    Raises:
        DataError: a side has no image; val has labels that train lacks.
    """
    if val_table is None:
        table, val_table = select_split(table, "train"), select_split(table, "val")
    for side, name in ((table, "train"), (val_table, "val")):
        if not side.names:
            raise DataError(f"{side.origin} has no image for {name}")
    space = choose_labels(table, labels)
    return align(table, space), align(val_table, space)


def hold_out(
    table: Table,
    contents: Mapping[str, int],
    labels: Sequence[str] | None,
    fraction: float,
    seed: int,
) -> tuple[Manifest, Manifest, list[str]]:
    """Draw val from the table at random, stratified by label; return train, val and notes.

    Rows that must be on one side (example with 10 images, `val_fraction` 0.2):

        data.group_by   scan            units that are dealt to the sides
        not set         not run         10 images
        set             not run         groups; an image with a blank cell is its own group
        not set         two files same  8 images, and the 2 copies as one unit
        set             two files same  groups; two groups that share a copy are one unit
        any             all files same  as if not scanned, with a warning

    Args:
        table: the rows to divide.
        contents: path -> number of the file's bytes, as in `PictureScan`; empty without a scan.
        labels: in column order; None: those of the table.
        fraction: share of val.
        seed: decides ties.

    Raises:
        DataError: too few rows, no label, or one group that holds all images.
    """
    if not len(table):
        raise DataError(f"{table.origin}: the table has no rows to train on")
    if len(table) < 2:
        raise DataError(
            f"{table.origin}: {pluralize(len(table), 'image')}: too few to hold out some for "
            f"validation; give data.val, or more images"
        )
    whole = align(table, choose_labels(table, labels))
    notes = []
    numbers = number_contents([whole.path(row) for row in range(len(whole))], contents)
    duplicates = len(numbers) - len(set(numbers))
    groups = table.groups
    sides = assign_sides(whole.targets, groups, (fraction,), seed, numbers if duplicates else None)
    if duplicates and len(set(sides.tolist())) == 1:  # one unit holds all images: divide it
        notes.append(f"warning: copies of the same bytes in both train and val: {TOO_HIGH}")
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


def warn_of_overlap(train: Table, val: Table) -> list[str]:
    """Return a warning where images of one path are in both tables."""
    train_paths = {os.path.normpath(train.path(row)) for row in range(len(train))}
    both = sum(os.path.normpath(val.path(row)) in train_paths for row in range(len(val)))
    if not both:
        return []
    return [f"warning: {pluralize(both, 'image')} in both train and val: {TOO_HIGH}"]
