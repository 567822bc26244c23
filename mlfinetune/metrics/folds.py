"""Known pairs of one label, and folds of images for cross-fitting."""

from collections.abc import Iterator

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
    images: int, folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (rows to fit on, rows to decide) of each fold, rows in order.

    Every image is decided in exactly one fold. Folds are drawn from `seed`, and their sizes differ
    by at most one image. With fewer images than `folds`, each image is a fold of its own. A single
    image has no other images to fit on: its rows to fit on are empty.
    """
    parts = max(1, min(folds, images))
    fold = np.random.default_rng(seed).permutation(images) % parts
    for part in range(parts):
        yield np.flatnonzero(fold != part), np.flatnonzero(fold == part)
