"""Numbers of each image, over its known labels; rows go in blocks.

For a known positive with score s, let R be the number of known labels that score at least s, and
P the number of known positives among them. Then an image has

LRAP          mean of P / R over its positives; 1 without a positive or a negative
ranking loss  share of (positive, negative) pairs where the negative is as high or higher; 0
              without a pair
coverage      the greatest R; 0 without a positive

The definitions are scikit-learn's. Its functions would need one call for every pattern of unknown
targets, and a Python loop over rows. Here two sorts give all ranks of a block: an int64 key has
the row number above 32 bits that order as the float32 score does, so that one sort orders the
scores of all rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.metrics.average_precision import mark_new_values
from mlfinetune.metrics.counts import Counts

TOP = 3
_BLOCK = 1 << 18

Logits = NDArray[np.float32]
Targets = NDArray[np.int8]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ImageNumbers:
    """Numbers of N images, (N,) each; meaningless for an image without a known label.

    Attributes:
        known: number of known labels.
        decided: counts at the thresholds.
    """

    known: Integers
    decided: Counts
    lrap: NDArray[np.float64]
    ranking_loss: NDArray[np.float64]
    coverage: Integers


def measure_images(logits: Logits, targets: Targets, cuts: Logits) -> tuple[ImageNumbers, Counts]:
    """Measure every image, and count the labels where each image's TOP highest are predicted.

    Returns:
        The numbers of N images, and (L,) counts for `*_top3`.

    Args:
        logits, targets: (N, L); logits are finite.
        cuts: (L,) logits from which a label is predicted.
    """
    n, labels = logits.shape
    known, tp, predicted, positives, coverage = (np.zeros(n, np.int64) for _ in range(5))
    lrap, loss = np.ones(n), np.zeros(n)
    top = Counts(*np.zeros((3, labels), np.int64))
    rows = max(1, _BLOCK // max(1, labels))
    for start in range(0, n, rows):
        b = slice(start, start + rows)
        x, t = logits[b], targets[b]
        mask = t != UNKNOWN
        decided = (x >= cuts) & mask
        present = t == POSITIVE
        known[b], predicted[b] = _count_flags(mask), _count_flags(decided)
        tp[b], positives[b] = _count_flags(decided & present), _count_flags(present)
        _fill_ranks(x, t, positives[b], known[b], (lrap[b], loss[b], coverage[b]))
        _add_top(x, t, mask, top)
        top.positives[:] += np.bincount(np.flatnonzero(present) % labels, minlength=labels)
    return ImageNumbers(known, Counts(tp, predicted, positives), lrap, loss, coverage), top


def _fill_ranks(
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
    scores = np.sort(_make_keys(x[t == POSITIVE], rows))
    first_tied = np.maximum.accumulate(np.where(mark_new_values(scores), np.arange(len(scores)), 0))
    as_high = end[rows] - first_tied
    others = np.sort(np.where(t == NEGATIVE, x, np.float32(-np.inf)), axis=1)
    others_keys = _make_keys(others, np.arange(len(x))[:, None]).ravel()
    above = (rows + 1) * labels - np.searchsorted(others_keys, scores)
    rank = as_high + above
    there = positives > 0
    count = positives[there]
    lrap[there] = np.bincount(rows, as_high / rank, len(x))[there] / count
    pairs = np.maximum(1, count * (known[there] - count))
    loss[there] = np.bincount(rows, above, len(x))[there] / pairs
    coverage[there] = rank[(end - positives)[there]]


def _make_keys(x: Logits, rows: Integers) -> Integers:
    """Return int64 keys that order as (row, float32 score) does; -0.0 and 0.0 give one key."""
    # The bits of a float32, read as int32, order as the floats do if positive, and reversed if
    # negative: flipping all bits but the sign of the negative ones mends that.
    bits = (x + np.float32(0)).view(np.int32)
    return (rows << 32) + (bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _add_top(x: Logits, t: Targets, known: NDArray[np.bool_], top: Counts) -> None:
    """Add each row's TOP highest known labels to the counts, the earlier of tied ones first."""
    left, rows, labels = np.where(known, x, np.float32(-np.inf)), np.arange(len(x)), x.shape[1]
    for _ in range(min(TOP, labels)):
        best = left.argmax(axis=1)
        there = left[rows, best] > -np.inf
        top.predicted[:] += np.bincount(best[there], minlength=labels)
        top.tp[:] += np.bincount(best[there & (t[rows, best] == POSITIVE)], minlength=labels)
        left[rows, best] = -np.inf


def _count_flags(flags: NDArray[np.bool_]) -> Integers:
    """Count the flags set in each row; several times faster than a sum of booleans."""
    counted: Integers = np.bitwise_count(np.packbits(flags, axis=1)).sum(axis=1, dtype=np.int64)
    return counted
