"""Every image's own numbers, over its known labels; rows in blocks.

Of a known positive with score s let R be the known labels, P the known positives that score at
least s. Then an image's

LRAP          mean of P / R over its positives; 1 without a positive or a negative
ranking loss  (positive, negative) pairs with the negative as high, of all; 0 without one
coverage      the greatest R; 0 without a positive

are scikit-learn's, which needs a call for every pattern of unknowns and a Python loop over rows.
Ranks come from two sorts: a row number above an integer in the order of the float sorts the
scores of all rows in one array.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.metrics.average_precision import new_values
from mlfinetune.metrics.counts import Counts

TOP = 3
_BLOCK = 1 << 18

Logits = NDArray[np.float32]
Targets = NDArray[np.int8]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """(N,) each; meaningless where nothing is known."""

    known: Integers
    decided: Counts
    lrap: NDArray[np.float64]
    ranking_loss: NDArray[np.float64]
    coverage: Integers


def per_image(logits: Logits, targets: Targets, cuts: Logits) -> tuple[Images, Counts]:
    """The images' numbers, and (L,) counts of the decision for each image's TOP highest labels.

    Args:
        logits, targets: (N, L); logits are finite.
        cuts: (L,) logits from which a label is predicted.
    """
    n, labels = logits.shape
    known, tp, said, positives, coverage = (np.zeros(n, np.int64) for _ in range(5))
    lrap, loss = np.ones(n), np.zeros(n)
    top = Counts(*np.zeros((3, labels), np.int64))
    rows = max(1, _BLOCK // max(1, labels))
    for start in range(0, n, rows):
        b = slice(start, start + rows)
        x, t = logits[b], targets[b]
        mask = t != UNKNOWN
        decided = (x >= cuts) & mask
        present = t == POSITIVE
        known[b], said[b] = _count(mask), _count(decided)
        tp[b], positives[b] = _count(decided & present), _count(present)
        _rank(x, t, positives[b], known[b], (lrap[b], loss[b], coverage[b]))
        _add_top(x, t, mask, top)
        top.positives[:] += np.bincount(np.flatnonzero(present) % labels, minlength=labels)
    return Images(known, Counts(tp, said, positives), lrap, loss, coverage), top


def _rank(
    x: Logits,
    t: Targets,
    positives: Integers,
    known: Integers,
    out: tuple[NDArray[np.float64], NDArray[np.float64], Integers],
) -> None:
    """Fill in LRAP, ranking loss and coverage of the rows that have a positive."""
    labels, lrap, loss, coverage = x.shape[1], *out
    rows = np.repeat(np.arange(len(x)), positives)
    end = np.cumsum(positives)
    scores = np.sort(_keys(x[t == POSITIVE], rows))
    first_tied = np.maximum.accumulate(np.where(new_values(scores), np.arange(len(scores)), 0))
    as_high = end[rows] - first_tied
    others = np.sort(np.where(t == NEGATIVE, x, np.float32(-np.inf)), axis=1)
    others_keys = _keys(others, np.arange(len(x))[:, None]).ravel()
    above = (rows + 1) * labels - np.searchsorted(others_keys, scores)
    rank = as_high + above
    there = positives > 0
    count = positives[there]
    lrap[there] = np.bincount(rows, as_high / rank, len(x))[there] / count
    pairs = np.maximum(1, count * (known[there] - count))
    loss[there] = np.bincount(rows, above, len(x))[there] / pairs
    coverage[there] = rank[(end - positives)[there]]


def _keys(x: Logits, rows: Integers) -> Integers:
    """Integers in the order of (row, float32); both zeros are one."""
    bits = (x + np.float32(0)).view(np.int32)
    return (rows << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _add_top(x: Logits, t: Targets, known: NDArray[np.bool_], top: Counts) -> None:
    """Count each row's TOP highest known labels, the earlier of tied ones first."""
    left, rows, labels = np.where(known, x, np.float32(-np.inf)), np.arange(len(x)), x.shape[1]
    for _ in range(min(TOP, labels)):
        best = left.argmax(axis=1)
        there = left[rows, best] > -np.inf
        top.said[:] += np.bincount(best[there], minlength=labels)
        top.tp[:] += np.bincount(best[there & (t[rows, best] == POSITIVE)], minlength=labels)
        left[rows, best] = -np.inf


def _count(flags: NDArray[np.bool_]) -> Integers:
    """How many are set in each row; several times quicker than a sum of booleans."""
    counted: Integers = np.bitwise_count(np.packbits(flags, axis=1)).sum(axis=1, dtype=np.int64)
    return counted
