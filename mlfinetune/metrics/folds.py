"""Known pairs of one label, and folds of images for cross-fitting."""

from collections.abc import Iterator
from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE, UNKNOWN


def select_known(
    logits: NDArray[np.float32], targets: NDArray[np.int8], column: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (K,) logits and (K,) truth of the K images where label `column` is known."""
    rows = targets[:, column] != UNKNOWN
    return logits[rows, column].astype(np.float64), targets[rows, column] == POSITIVE


def split_folds(
    images: int, folds: int, seed: int, groups: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (rows to fit on, rows to decide) of each fold, rows in order.

    Every image is decided in exactly one fold. Folds are drawn from `seed`, and their sizes differ
    by at most one image. With fewer images than `folds`, each image is a fold of its own. A single
    image has no other images to fit on: its rows to fit on are empty.

    Args:
        images: number of rows.
        folds: greatest number of folds.
        seed: of the draw.
        groups: (N,) ids; images of one id are held out together, as one patient's pictures must
            be. Folds are then as even as whole groups allow.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        parts = max(1, min(folds, images))
        fold = rng.permutation(images) % parts
    else:
        _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        parts = max(1, min(folds, len(sizes)))
        fold = _deal_groups(sizes, parts, rng)[member]
    for part in range(parts):
        yield np.flatnonzero(fold != part), np.flatnonzero(fold == part)


def _deal_groups(
    sizes: NDArray[np.int64], parts: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the (G,) fold of each of G groups: the largest first, each to the smallest fold."""
    fold = np.zeros(len(sizes), np.int64)
    drawn = rng.permutation(len(sizes))
    heap = [(0, part) for part in range(parts)]
    for group in drawn[np.argsort(-sizes[drawn], kind="stable")].tolist():
        total, part = heap[0]
        fold[group] = part
        heapreplace(heap, (total + int(sizes[group]), part))
    return fold
