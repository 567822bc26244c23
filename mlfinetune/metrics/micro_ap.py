"""AP of all known pairs pooled, one range of scores at a time, in memory independent of N.

scikit-learn's function would hold several float64 arrays of N * L. Here the pairs of one range of
scores are collected and sorted, and give one piece of the curve. A range holds about RANGE pairs;
its ends are quantiles of a sample. Many pairs may share one value, such as a saturated logit. A
value that alone would fill a range becomes a range of its own: its pairs are counted, not sorted.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.average_precision import Steps, average_precision, trace_steps

RANGE = 1 << 23
"""Pairs that are sorted at a time: 32 MiB of float32."""
_BLOCK = 1 << 20
"""Pairs that are read at a time."""
_SAMPLE = 1 << 17
"""Every (pairs / _SAMPLE)-th row is in the sample."""

Logits = NDArray[np.float32]
Targets = NDArray[np.int8]


def pooled_average_precision(
    logits: Logits, targets: Targets, positives: int, negatives: int, protocol: str
) -> float:
    """Return the AP, in [0, 1], of the known pairs of (N, L) logits and targets.

    Args:
        positives, negatives: numbers of known positives and negatives, at least one each.
        protocol: one of average_precision.PROTOCOLS.
    """
    pieces = _trace_pieces(logits, targets, positives, negatives)
    return average_precision(pieces, positives, protocol)


def _trace_pieces(
    logits: Logits, targets: Targets, positives: int, negatives: int
) -> Iterator[Steps]:
    """Yield the pieces of the curve, lowest scores first.

    `positives` and `negatives` count the pairs of the ranges that are still to come. Before a range
    they include its own pairs, so they are the counts at or above its lowest score.
    """
    for low, high in _split_ranges(logits):
        if high == np.nextafter(low, high):  # the range holds one value
            tied_positives, tied_negatives = _count_tied(logits, targets, low)
            if tied_positives:
                counts = (tied_positives, positives, negatives)
                yield Steps(*(np.array([count]) for count in counts))
            positives, negatives = positives - tied_positives, negatives - tied_negatives
        else:
            positive, negative = _collect_range(logits, targets, low, high)
            positives, negatives = positives - len(positive), negatives - len(negative)
            yield from trace_steps(positive, negative, (positives, negatives))


def _split_ranges(logits: Logits) -> list[tuple[np.float32, np.float32]]:
    """Return half-open ranges [low, high), rising, that together hold all finite numbers."""
    edges = np.array([-np.inf, np.inf], np.float32)
    parts = -(-logits.size // RANGE)
    if parts > 1:
        sample = np.sort(logits[:: max(1, logits.size // _SAMPLE)], axis=None)
        cuts, times = np.unique(
            sample[np.arange(1, parts) * len(sample) // parts], return_counts=True
        )
        # A quantile that occurs twice is a value of about RANGE pairs or more. It gets a range of
        # its own, up to the next float32.
        after = np.nextafter(cuts[times > 1], np.float32(np.inf))
        edges = np.unique(np.concatenate([edges, cuts, after]))
    return list(pairwise(edges))


def _count_tied(logits: Logits, targets: Targets, value: np.float32) -> tuple[int, int]:
    """Count the known positives and the known negatives with this logit."""
    counts = [0, 0]
    for x, t in _iterate_blocks(logits, targets):
        t = t[x == value]
        for index, state in enumerate((POSITIVE, NEGATIVE)):
            counts[index] += int(np.count_nonzero(t == state))
    return counts[0], counts[1]


def _collect_range(
    logits: Logits, targets: Targets, low: np.float32, high: np.float32
) -> tuple[Logits, Logits]:
    """Return the scores of the known positives and negatives in [low, high), each sorted."""
    positives: list[Logits] = []
    negatives: list[Logits] = []
    for x, t in _iterate_blocks(logits, targets):
        if np.isfinite(low) or np.isfinite(high):  # else the only range: all pairs are inside
            inside = (x >= low) & (x < high)
            x, t = x[inside], t[inside]
        positives.append(x[t == POSITIVE])
        negatives.append(x[t == NEGATIVE])
    positive, negative = np.concatenate(positives), np.concatenate(negatives)
    positive.sort()
    negative.sort()
    return positive, negative


def _iterate_blocks(logits: Logits, targets: Targets) -> Iterator[tuple[Logits, Targets]]:
    rows = max(1, _BLOCK // logits.shape[1])
    for start in range(0, len(logits), rows):
        yield logits[start : start + rows].ravel(), targets[start : start + rows].ravel()
