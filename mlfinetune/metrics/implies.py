"""Hierarchies in scores: a parent is at least as probable as each of its children.

    data.implies, labels -> list_pairs       -> ((column of a child, column of its parent), ...)
    logits               -> raise_parents    -> logits
    thresholds           -> align_thresholds -> thresholds

The logits are calibrated ones: calibration gives each label a line of its own, which may put a
child above its parent again. Pairs go through any number of steps, so that one pass is enough.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config.hierarchy import Implies, list_ancestors
from mlfinetune.data.targets import LabelSpace

Pairs = tuple[tuple[int, int], ...]
"""Columns of a child and of a label that it implies, through any number of steps."""


def list_pairs(implies: Implies, labels: LabelSpace) -> Pairs:
    """Return the pairs of columns; labels that were left out are passed over.

        {siamese: cat, cat: animal}, labels animal, siamese  ->  ((1, 0),)

    Args:
        implies: `data.implies`.
        labels: the columns.
    """
    column = labels.column
    return tuple(
        (column[child], column[parent])
        for child, parents in list_ancestors(implies).items()
        for parent in parents
        if child in column and parent in column
    )


def raise_parents(logits: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Return (N, L) logits in which no parent is below a child; without pairs the same array."""
    if not pairs:
        return logits
    out = logits.copy()
    for child, parent in pairs:
        np.maximum(out[:, parent], logits[:, child], out=out[:, parent])
    return out


def align_thresholds(thresholds: NDArray[np.float64], pairs: Pairs) -> NDArray[np.float64]:
    """Return (L,) thresholds in which no child is below a parent: what gives it gives the parent.

    The child's is raised. So a precision that was shown for either still is.

    Args:
        thresholds: probabilities or logits.
        pairs: of `list_pairs`.
    """
    out = thresholds.copy()
    for child, parent in pairs:
        out[child] = max(out[child], thresholds[parent])
    return out


def is_pairs(value: object, labels: int) -> bool:
    """Tell whether a value of a file is a list of pairs of two different columns of `labels`."""
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(type(column) is int and 0 <= column < labels for column in pair)
        and pair[0] != pair[1]
        for pair in value
    )


def to_pairs(value: Sequence[Sequence[int]]) -> Pairs:
    """Return the pairs of a list for which `is_pairs` holds."""
    return tuple((child, parent) for child, parent in value)


def group_children(pairs: Pairs) -> dict[int, list[int]]:
    """Return parent -> the columns that imply it."""
    children: dict[int, list[int]] = {}
    for child, parent in pairs:
        children.setdefault(parent, []).append(child)
    return children
