"""One label's known pairs, and the images held out of a fit."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE, UNKNOWN


def known_pairs(
    logits: NDArray[np.float32], targets: NDArray[np.int8], at: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logits and truth of the images where label `at` is known: two arrays of one length."""
    rows = targets[:, at] != UNKNOWN
    return logits[rows, at].astype(np.float64), targets[rows, at] == POSITIVE


def split_folds(
    images: int, folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to judge, in order: every image is judged exactly once.

    Folds are drawn from `seed` and differ by at most one image. With fewer images than `folds`,
    each is a fold of its own; an only image is judged by what was fitted on nothing.
    """
    parts = max(1, min(folds, images))
    fold = np.random.default_rng(seed).permutation(images) % parts
    for part in range(parts):
        yield np.flatnonzero(fold != part), np.flatnonzero(fold == part)
