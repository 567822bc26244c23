"""Average precision (AP) by three protocols, from the steps of a ranking.

sklearn           sum of (R_k - R_k-1) P_k, as in scikit-learn; not interpolated
voc_interpolated  VOC since 2010: the area under the greatest precision at this or a higher recall
voc_11point       VOC 2007: mean of the greatest precision at recall >= 0, 0.1, ... 1

R is recall, P is precision. A threshold passes all tied scores at once. Recall grows only at the
scores of positives, and between two of them precision falls. So the distinct scores of positives
are the whole curve. A long curve may come in pieces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PROTOCOLS = ("sklearn", "voc_interpolated", "voc_11point")
_PIECE = 1 << 16
"""Positives in one piece of a curve; its arrays fit a CPU's cache."""


@dataclass(frozen=True)
class Steps:
    """One piece of a curve: K distinct scores of positives, rising.

    Attributes:
        gained: (K,) number of positives with this score.
        tp, fp: (K,) number of positives and of negatives at or above it.
    """

    gained: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]


def trace_steps(
    positive: NDArray[np.float32], negative: NDArray[np.float32], above: tuple[int, int] = (0, 0)
) -> Iterator[Steps]:
    """Yield the curve of one ranking, lowest scores first, in pieces that fit a CPU's cache.

        positive [1, 3], negative [2]  ->  gained [1, 1], tp [2, 1], fp [1, 0]

    Args:
        positive, negative: scores of the known positives and negatives, each sorted, rising.
        above: number of other positives and negatives, all of which score higher than these.
    """
    starts = np.unique(np.searchsorted(positive, positive[::_PIECE]))  # never between tied ones
    for start, stop in pairwise([*starts.tolist(), len(positive)]):
        scores = positive[start:stop]
        first = np.flatnonzero(mark_new_values(scores))
        low, high = np.searchsorted(negative, scores[[0, -1]])
        below = low + np.searchsorted(negative[low:high], scores[first])
        tp, fp = above[0] + len(positive) - start - first, above[1] + len(negative) - below
        yield Steps(np.diff(first, append=len(scores)), tp, fp)


def mark_new_values(rising: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return a mask: True where a value of a sorted array differs from the one before it."""
    new = np.ones(len(rising), np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=new[1:])
    return new


def average_precision(pieces: Iterable[Steps], positives: int, protocol: str) -> float:
    """Return the AP, in [0, 1], of the curve that `pieces` make up.

    Args:
        pieces: disjoint ranges of scores, lowest first.
        positives: number of positives in all of them, at least one.
        protocol: one of PROTOCOLS.
    """
    assert protocol in PROTOCOLS
    area, best = 0.0, 0.0
    levels = np.zeros(11)
    for piece in pieces:
        precision = piece.tp / (piece.tp + piece.fp)
        if protocol != "sklearn":  # recall falls from entry to entry: earlier ones have a higher
            precision = np.maximum(np.maximum.accumulate(precision), best)
            best = float(precision[-1])
        area += float((piece.gained * precision).sum())
        # For each recall 0, 0.1, ... 1: number of entries that reach it, exactly, in integers. The
        # last of them has the greatest precision; a later piece overwrites an earlier one.
        reached = np.searchsorted(-10 * piece.tp, -positives * np.arange(11), "right")
        levels[reached > 0] = precision[reached[reached > 0] - 1]
    return float(levels.mean()) if protocol == "voc_11point" else area / positives
