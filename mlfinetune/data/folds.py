"""Folds for cross-validation: each picture is held out once, and labels keep their shares.

    Splits    -> pool_sides    -> Pool     train and val of a data set as one
    Pool      -> draw_folds    -> Folds    the pictures that each fold holds out
    Pool, row -> draw_inner    -> the others as train and val, to choose an epoch or a penalty

Pictures of one group, and copies of the same bytes, are in one fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.stratify import join_partitions, split_stratified
from mlfinetune.data.targets import Targets
from mlfinetune.errors import DataError

Ints = NDArray[np.int64]
MAX_FOLDS = 100


@dataclass(frozen=True)
class Pool:
    """All pictures of a data set.

    Attributes:
        examples: N pictures; of two tables in different folders, with whole paths as names.
        contents: (N,) number of each file's bytes; -1: not known.
        units: (N,) pictures that share a number are held out together.
    """

    examples: Manifest
    contents: Ints
    units: Ints


@dataclass(frozen=True)
class Fold:
    """One fold: the pictures that it holds out, sorted.

    Attributes:
        repeat: of the division that it belongs to, from 1.
        number: within its division, from 1.
        held_out: rows of the pool.
        rest: all others.
    """

    repeat: int
    number: int
    held_out: Ints
    rest: Ints

    @property
    def name(self) -> str:
        """Name of the fold's folder: `fold-2`, or `repeat-3-fold-2`."""
        first = "" if self.repeat == 1 else f"repeat-{self.repeat}-"
        return f"{first}fold-{self.number}"


def pool_sides(splits: Splits) -> Pool:
    """Return train and val as one, train first."""
    sides = [side for side in (splits.train, splits.val) if len(side)]
    contents = np.full(sum(map(len, sides)), -1, np.int64)
    if splits.contents:
        contents = np.concatenate(splits.contents)
    examples = sides[0] if len(sides) == 1 else _join(*sides)
    return Pool(examples, contents, _number_units(examples, contents))


def _join(train: Manifest, val: Manifest) -> Manifest:
    """Return the rows of both, whose groups have one numbering."""
    names = (*train.names, *val.names)
    if train.root != val.root:
        names = tuple(side.path(row) for side in (train, val) for row in range(len(side)))
    packed = np.concatenate([train.targets.packed, val.targets.packed])
    targets = Targets(packed, len(train.labels))
    joined = replace(train, names=names, targets=targets, groups=None, stamps=None)
    if train.stamps is not None and val.stamps is not None:
        joined = replace(joined, stamps=np.concatenate([train.stamps, val.stamps]))
    if train.groups is None or val.groups is None:
        return joined
    return replace(joined, groups=np.concatenate([train.groups, val.groups]))


def _number_units(examples: Manifest, contents: Ints) -> Ints:
    """Return (N,) numbers of pictures that belong together: by group, and by the same bytes."""
    rows = np.arange(len(examples))
    same_bytes = np.where(contents >= 0, contents, -1 - rows)
    units = np.unique(same_bytes, return_inverse=True)[1]
    return units if examples.groups is None else join_partitions(examples.groups, units)


def draw_folds(pool: Pool, folds: int, repeats: int, seed: int) -> tuple[Fold, ...]:
    """Divide the pool into folds, once for each repeat; equal arguments give equal folds.

    Raises:
        DataError: fewer units than folds, or groups so large that a fold stays empty.
    """
    units = len(np.unique(pool.units))
    if not 2 <= folds <= min(units, MAX_FOLDS):
        raise DataError(
            f"--folds {folds}: between 2 and {min(units, MAX_FOLDS)} are possible, since "
            + (f"{units} pictures or groups can be held out" if units < MAX_FOLDS else "each costs")
        )
    return tuple(
        fold
        for repeat in range(1, repeats + 1)
        for fold in _draw_division(pool, folds, repeat, seed + repeat - 1)
    )


def _draw_division(pool: Pool, folds: int, repeat: int, seed: int) -> list[Fold]:
    targets = pool.examples.targets
    fractions = (1 / folds,) * (folds - 1)
    sides = split_stratified(*targets.positives(), *targets.shape, fractions, seed, pool.units)
    rows = np.arange(len(sides))
    division = [
        Fold(repeat, side + 1, rows[sides == side], rows[sides != side]) for side in range(folds)
    ]
    if any(not len(fold.held_out) for fold in division):
        raise DataError(
            f"--folds {folds}: a fold would be empty, because a group (data.group_by) or copies "
            f"of one picture are larger than a fold; take fewer folds"
        )
    return division


def count_torn(groups: Ints, folds: Sequence[Fold]) -> int:
    """Return the number of pictures that have one of their group in another fold.

    Args:
        groups: (N,) numbers.
        folds: of any division; the first one counts.
    """
    sides = np.zeros(len(groups), np.int64)
    for fold in folds:
        if fold.repeat == 1:
            sides[fold.held_out] = fold.number
    first = np.unique(groups, return_index=True, return_inverse=True)
    differs = sides != sides[first[1]][first[2]]
    return int(np.isin(groups, groups[differs]).sum())


def draw_inner(pool: Pool, rows: Ints, fraction: float, seed: int) -> tuple[Ints, Ints]:
    """Divide the pictures that a fold trains on into train and val, stratified by label.

    Args:
        rows: of the pool.
        fraction: share of val.
        seed: decides ties.

    Raises:
        DataError: all of them are one group.
    """
    targets = pool.examples.targets.take(rows)
    units = pool.units[rows]
    sides = split_stratified(*targets.positives(), *targets.shape, (fraction,), seed, units)
    train, val = rows[sides == 0], rows[sides == 1]
    if not len(train) or not len(val):
        raise DataError(
            "the pictures that a fold trains on are one group (data.group_by): nothing is left to "
            "choose an epoch or a penalty on; take more folds, or smaller groups"
        )
    return train, val
