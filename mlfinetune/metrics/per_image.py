"""Numbers of each image, over its known labels, computed in blocks of rows.

For a known positive with score s, let R be the number of known labels that score at least s, and
P the number of known positives among them. Then an image has

LRAP          mean of P / R over its positives; 1 without a positive or a negative
ranking loss  share of (positive, negative) pairs where the negative is as high or higher; 0
              without a pair
coverage      the greatest R; 0 without a positive

The definitions are scikit-learn's. Its functions would need one call for every pattern of unknown
targets, and a Python loop over rows. Here two sorts give all ranks of a block. They sort int64
keys: the upper 32 bits are the row number, and the lower 32 bits have the order of the float32
score. So one sort orders the scores within every row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.metrics.average_precision import mark_new_values
from mlfinetune.metrics.counts import Counts

TOP = 3
"""Number of labels that `*_top3` predicts for each image."""
_BLOCK = 1 << 18
"""(image, label) pairs in a block of rows."""

Logits = NDArray[np.float32]
Targets = NDArray[np.int8]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ImageNumbers:
    """Numbers of N images, (N,) each; meaningless for an image without a known label.

    Attributes:
        known: number of known labels.
        decided: counts at the thresholds.
        lrap, ranking_loss, coverage: see the top of this file.
    """

    known: Integers
    decided: Counts
    lrap: NDArray[np.float64]
    ranking_loss: NDArray[np.float64]
    coverage: Integers


def measure_images(logits: Logits, targets: Targets, cuts: Logits) -> tuple[ImageNumbers, Counts]:
    """Measure every image, and count the labels where each image's TOP highest are predicted.

    Args:
        logits, targets: (N, L); logits are finite.
        cuts: (L,) logits from which a label is predicted.

    Returns:
        The numbers of N images, and (L,) counts for `*_top3`.
    """
    images, labels = logits.shape
    known, tp, predicted, positives, coverage = (np.zeros(images, np.int64) for _ in range(5))
    lrap, loss = np.ones(images), np.zeros(images)
    top = Counts(*np.zeros((3, labels), np.int64))
    rows = max(1, _BLOCK // max(1, labels))
    for start in range(0, images, rows):
        block = slice(start, start + rows)
        x, t = logits[block], targets[block]
        mask = t != UNKNOWN
        decided = (x >= cuts) & mask
        present = t == POSITIVE
        known[block], predicted[block] = _count_flags(mask), _count_flags(decided)
        tp[block], positives[block] = _count_flags(decided & present), _count_flags(present)
        out = (lrap[block], loss[block], coverage[block])
        _fill_ranks(x, t, positives[block], known[block], out)
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
    """Fill in LRAP, ranking loss and coverage of the rows that have a positive.

    Args:
        x, t: (B, L) logits and targets of a block of rows.
        positives, known: (B,) numbers of known positives and of known labels.
        out: (B,) LRAP, ranking loss, coverage: views that are written to.
    """
    labels, lrap, loss, coverage = x.shape[1], *out
    # One entry for each known positive of the block: by row, within a row by rising score.
    rows = np.repeat(np.arange(len(x)), positives)
    end = np.cumsum(positives)
    scores = np.sort(_make_keys(x[t == POSITIVE], rows))
    first_tied = np.maximum.accumulate(np.where(mark_new_values(scores), np.arange(len(scores)), 0))
    as_high = end[rows] - first_tied  # P: positives of the same row that score at least as high
    # Known negatives of each row, sorted. The other labels become -inf, below every finite score.
    others = np.sort(np.where(t == NEGATIVE, x, np.float32(-np.inf)), axis=1)
    others_keys = _make_keys(others, np.arange(len(x))[:, None]).ravel()
    above = (rows + 1) * labels - np.searchsorted(others_keys, scores)  # negatives as high
    rank = as_high + above  # R
    there = positives > 0
    count = positives[there]
    lrap[there] = np.bincount(rows, as_high / rank, len(x))[there] / count
    pairs = np.maximum(1, count * (known[there] - count))
    loss[there] = np.bincount(rows, above, len(x))[there] / pairs
    coverage[there] = rank[(end - positives)[there]]  # the lowest positive has the greatest R


def _make_keys(x: Logits, rows: Integers) -> Integers:
    """Return int64 keys that order as (row, float32 score) does; -0.0 and 0.0 give one key."""
    # Read as int32, the bits of positive floats have the order of the floats, and those of negative
    # floats the reverse order. So all bits of a negative one are flipped, except the sign.
    # Adding 0 makes 0.0 of -0.0.
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
