"""The sides of a run: train and val from one table or from two, in the same columns.

table without val    -> hold_out    -> val drawn at random, stratified by label
                                       (images that runs before had stay on their sides)
table with its split -> align_sides -> the rows of train, the rows of val
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.groups import TOO_HIGH
from mlfinetune.data.known_sides import FREE, TRAIN, VAL, KnownSides
from mlfinetune.data.labels import align, choose_labels, select_split
from mlfinetune.data.manifest import Manifest, number_groups
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


def number_groups_together(
    train: Manifest, val: Manifest, table: Table, val_table: Table
) -> tuple[Manifest, Manifest]:
    """Return both sides with one numbering of their groups: one name is one group in both."""
    if table.groups is None and val_table.groups is None:
        return train, val
    names = [side.groups or ("",) * len(side) for side in (table, val_table)]
    numbers = number_groups([*names[0], *names[1]])
    return (
        replace(train, groups=numbers[: len(train)]),
        replace(val, groups=numbers[len(train) :]),
    )


def hold_out(
    table: Table,
    contents: Mapping[str, int],
    labels: Sequence[str] | None,
    fraction: float,
    seed: int,
    known: KnownSides | None = None,
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
        known: sides that pictures had in runs before, and keep; the others are dealt.

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
    numbers = number_contents([whole.path(row) for row in range(len(whole))], contents)
    duplicates = len(numbers) - len(set(numbers))
    pins, edited = _find_pins(whole, contents, known)
    notes = list[str]()
    if known is not None and _are_off(pins, known, fraction):
        notes.append(f"the sides of {known.origin} are far from val_fraction: dealt anew")
        pins, edited = np.full(len(whole), FREE, np.int8), []
    deal = partial(assign_sides, whole.targets, table.groups, (fraction,), seed)
    sides = deal(numbers if duplicates else None, pins)
    if known is not None and _is_one_side(sides) and (pins != FREE).any():
        notes.append(f"warning: with sides as in {known.origin} one would be empty: dealt anew")
        pins = np.full(len(whole), FREE, np.int8)
        sides = deal(numbers if duplicates else None)
    if duplicates and _is_one_side(sides):  # one unit holds all images: divide it
        notes.append(f"warning: copies of the same bytes in both train and val: {TOO_HIGH}")
        sides, duplicates = deal(), 0
    if _is_one_side(sides):
        raise DataError(f"{table.origin}: one group (data.group_by) holds all images")
    train, val = (whole.take(np.flatnonzero(sides == side).tolist()) for side in (TRAIN, VAL))
    details = f"val_fraction {fraction:g}{_of_new(pins, known)}, stratified by label"
    if table.groups is not None:
        details += ", groups kept whole"
    if duplicates:
        details += f", {pluralize(duplicates, 'picture')} beside a copy of the same bytes"
    notes.append(
        f"{len(val)} of {len(whole)} images held out for validation ({details}, seed {seed})"
    )
    if known is not None:
        notes += [*_describe_pins(pins, sides, known), *edited]
        notes += _warn_of_seen(val, contents, known)
    return train, val, notes


def _are_off(pins: NDArray[np.int8], known: KnownSides, fraction: float) -> bool:
    """Tell whether known sides hold out less than half, or more than twice of what is wanted.

    So it is where a table has lost many rows. Pictures that the weights have seen stay in train all
    the same, and a run that is read again keeps what it had.
    """
    known_images = int((pins != FREE).sum())
    if known.complete or len(known.seen) or not known_images:
        return False
    share = int((pins == VAL).sum()) / known_images
    return not fraction / 2 <= share <= 2 * fraction


def _is_one_side(sides: NDArray[np.int8]) -> bool:
    return int(sides.min()) == int(sides.max())


def _find_pins(
    whole: Manifest, contents: Mapping[str, int], known: KnownSides | None
) -> tuple[NDArray[np.int8], list[str]]:
    """Return (N,) the side that each image had before, or FREE; a warning of edited ones."""
    if known is None:
        return np.full(len(whole), FREE, np.int8), []
    numbers, paths = _list_numbers(whole, contents)
    pins = known.find(numbers, paths)
    edited = list(known.warn_of_edited(pins, numbers))
    return np.where(pins == FREE, TRAIN, pins) if known.complete else pins, edited


def _describe_pins(
    pins: NDArray[np.int8], sides: NDArray[np.int8], known: KnownSides
) -> Iterator[str]:
    """Yield notes on images that have kept their sides, and on those that could not."""
    free, moved = int((pins == FREE).sum()), (pins != FREE) & (sides != pins)
    kept = (pins != FREE) & ~moved
    held = int((kept & (pins == VAL)).sum())
    if kept.any() and not known.complete:
        yield (
            f"{pluralize(int(kept.sum()), 'image')} on their sides of before, in {known.origin}, "
            f"{held} of them held out; {free} new"
        )
        if not (pins == VAL).any():
            yield (
                f"warning: no image held out by {known.origin} is found in the data: val is drawn "
                f"from the new images alone"
            )
    if lost := int((moved & (pins == VAL)).sum()):
        yield (
            f"warning: {pluralize(lost, 'image')} held out by {known.origin} and in train now, "
            f"with others of their groups or bytes"
        )


def _of_new(pins: NDArray[np.int8], known: KnownSides | None) -> str:
    """Return what the share of val is of, where it is not of all images."""
    if known is None or known.complete or not (pins != FREE).any():
        return ""
    return " of the new images"


def warn_of_known_sides(
    train: Manifest, val: Manifest, contents: Mapping[str, int], known: KnownSides | None
) -> Iterator[str]:
    """Yield warnings where the data itself says sides that the runs before did not have."""
    if known is None or not len(known.seen):
        return
    yield from _warn_of_seen(val, contents, known)
    both = [_list_numbers(side, contents) for side in (train, val)]
    sides = [known.find(*numbers) for numbers in both]
    yield from known.warn_of_edited(
        np.concatenate(sides), np.concatenate([numbers for numbers, _ in both])
    )
    if count := int((sides[0] == VAL).sum()):
        yield (
            f"warning: {pluralize(count, 'image')} held out by {known.origin} and in train now, "
            f"as the data says"
        )


def _warn_of_seen(val: Manifest, contents: Mapping[str, int], known: KnownSides) -> Iterator[str]:
    """Yield a warning where the weights have learned from pictures of val."""
    if count := int(known.find_seen(*_list_numbers(val, contents)).sum()):
        yield (
            f"warning: {pluralize(count, 'image')} of val trained on by {known.origin}: {TOO_HIGH}"
        )


def _list_numbers(
    side: Manifest, contents: Mapping[str, int]
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the (N,) numbers of the files' bytes, -1 where not known, and the N paths."""
    paths = [side.path(row) for row in range(len(side))]
    return np.array([contents.get(path, -1) for path in paths], np.int64), paths


def warn_of_overlap(train: Table, val: Table) -> list[str]:
    """Return a warning where images of one path are in both tables."""
    train_paths = {os.path.normpath(train.path(row)) for row in range(len(train))}
    both = sum(os.path.normpath(val.path(row)) in train_paths for row in range(len(val)))
    if not both:
        return []
    return [f"warning: {pluralize(both, 'image')} in both train and val: {TOO_HIGH}"]
