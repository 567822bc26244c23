"""Average precision by three protocols, from the steps of a ranking.

sklearn           sum of (R_k - R_k-1) P_k, scikit-learn's; not interpolated
voc_interpolated  VOC since 2010: the area under the greatest precision at this or a higher recall
voc_11point       VOC 2007: mean of the greatest precision at recall >= 0, 0.1, ... 1

A threshold passes all tied scores at once. Only where a positive stands does recall grow, and
precision falls from there to the next, so that the distinct scores of positives are the whole
curve. A long curve may come in pieces.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PROTOCOLS = ("sklearn", "voc_interpolated", "voc_11point")
_PIECE = 1 << 16


@dataclass(frozen=True)
class Steps:
    """A piece of a curve: the K distinct scores of its positives, rising.

    Attributes:
        gained: (K,) positives at the score.
        tp, fp: (K,) positives and negatives at or above it.
    """

    gained: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]


def steps(
    positive: NDArray[np.float32], negative: NDArray[np.float32], above: tuple[int, int] = (0, 0)
) -> Iterator[Steps]:
    """The curve of positives' and negatives' scores, both rising; in pieces that caches hold.

    Args:
        positive, negative: sorted.
        above: how many positives and negatives outside of these score higher.
    """
    starts = np.unique(np.searchsorted(positive, positive[::_PIECE]))  # never between tied ones
    for start, stop in pairwise([*starts.tolist(), len(positive)]):
        scores = positive[start:stop]
        first = np.flatnonzero(new_values(scores))
        low, high = np.searchsorted(negative, scores[[0, -1]])
        below = low + np.searchsorted(negative[low:high], scores[first])
        tp, fp = above[0] + len(positive) - start - first, above[1] + len(negative) - below
        yield Steps(np.diff(first, append=len(scores)), tp, fp)


def new_values(rising: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where a value of a sorted array is not the one before it."""
    new = np.ones(len(rising), np.bool_)
    np.not_equal(rising[1:], rising[:-1], out=new[1:])
    return new


def average_precision(pieces: Iterable[Steps], positives: int, protocol: str) -> float:
    """AP of the curve that `pieces` make up, lowest scores first.

    Args:
        pieces: disjoint ranges of scores.
        positives: in all of them, at least one.
        protocol: one of PROTOCOLS.
    """
    assert protocol in PROTOCOLS
    area, best = 0.0, 0.0
    levels = np.zeros(11)
    for piece in pieces:
        precision = piece.tp / (piece.tp + piece.fp)
        if protocol != "sklearn":  # recall falls along the piece: what came before had more
            precision = np.maximum(np.maximum.accumulate(precision), best)
            best = float(precision[-1])
        area += float((piece.gained * precision).sum())
        reached = np.searchsorted(-10 * piece.tp, -positives * np.arange(11), "right")
        levels[reached > 0] = precision[reached[reached > 0] - 1]
    return float(levels.mean()) if protocol == "voc_11point" else area / positives
