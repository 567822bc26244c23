"""Near duplicates: pictures whose features of a pretrained backbone point the same way.

    features (N, F)        -> group_near_duplicates -> (N,) group numbers
    new (M, F), known      -> find_near_duplicates  -> (M,) rows of known, or -1

A copy that was saved again, made smaller, brighter or cut a little keeps a cosine similarity near 1
to its original. Every pair is compared, block by block, so the result does not depend on chance;
memory holds a few blocks beside the features. 100,000 pictures of 2,048 features need 10^13
multiplications, a few minutes on a laptop; a million need a hundred times as many.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEAR = 0.95
"""Least cosine similarity of near duplicates: benchmarks/near_duplicates.py measures it."""
_BLOCK = 1024
"""Rows that are compared at a time with as many others: 4 MiB of similarities."""

Features = NDArray[np.float32]
Rows = NDArray[np.int64]


def group_near_duplicates(features: Features, least: float = NEAR) -> Rows:
    """Return the group of each picture, (N,): the row of the group's first picture.

    Two pictures are in one group if their similarity is at least `least`, or if a chain of such
    pairs joins them. A picture without near duplicates is a group of its own. A row of zeros, or
    with a value that is not finite, is near to none.

    Args:
        features: (N, F), of float16 or float32; a memory map is read in blocks.
        least: cosine similarity, in (0, 1].

    Example: features [[1, 0], [0, 1], [2, 0]] -> groups [0, 1, 0].
    """
    groups = np.arange(len(features))
    for start in range(0, len(features), _BLOCK):
        block = _read_block(features, start)
        for other in range(start, len(features), _BLOCK):
            rows, columns = np.nonzero(_are_near(block, _read_block(features, other), least))
            groups = _merge_groups(groups, groups[start + rows], groups[other + columns])
    return groups


def find_near_duplicates(new: Features, known: Features, least: float = NEAR) -> Rows:
    """Return for each of `new` the row of `known` that is most similar, (M,); -1: none is near.

    Args:
        new: (M, F) features.
        known: (K, F) features, which new ones may repeat.
        least: cosine similarity, in (0, 1], from which pictures are near.

    Example: new [[2, 0], [1, 1]] and known [[0, 1], [1, 0]] -> [1, -1].
    """
    found = np.full(len(new), -1)
    for start in range(0, len(new), _BLOCK):
        block = _read_block(new, start)
        best = np.full(len(block), np.float32(-2))
        for other in range(0, len(known), _BLOCK):
            similarity = _compare(block, _read_block(known, other))
            column = similarity.argmax(axis=1)
            top = similarity[np.arange(len(block)), column]
            better = (top > best) & (top >= least)
            best[better] = top[better]
            found[start : start + len(block)][better] = other + column[better]
    return found


def _read_block(features: Features, start: int) -> Features:
    """Return up to `_BLOCK` rows of length 1; zeros for a row that points nowhere."""
    block = np.asarray(features[start : start + _BLOCK], np.float32)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        lengths = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        unit = (block / lengths).astype(np.float32)
    return np.where(np.isfinite(unit).all(axis=1, keepdims=True), unit, np.float32(0))


def _compare(block: Features, other: Features) -> Features:
    """Return the cosine similarities of unit rows, (rows of block, rows of other)."""
    similarity: Features = block @ other.T
    return similarity


def _are_near(block: Features, other: Features, least: float) -> NDArray[np.bool_]:
    return _compare(block, other) >= np.float32(least)


def _merge_groups(groups: Rows, some: Rows, others: Rows) -> Rows:
    """Return the groups after joining `some[i]` with `others[i]`; a group is its lowest row."""
    differ = some != others
    if not differ.any():
        return groups
    pairs = np.unique(np.stack([some[differ], others[differ]]), axis=1)
    n = len(groups)
    graph = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(n, n))
    _, joined = connected_components(graph, directed=False)
    first = np.full(int(joined.max()) + 1, n)
    np.minimum.at(first, joined, np.arange(n))
    merged: Rows = first[joined][groups]
    return merged
