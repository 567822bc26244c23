"""Scores and targets of one label, or of all pairs, become the points of a curve.

Callers leave unknown targets out. Ties pass a threshold together. Shapes: K known targets.
"""

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE
from mlfinetune.report.view import Point, ThresholdPoint

POINTS = 60
"""At most so many on a curve: what a plot of 300 pixels can show."""

_GRID = np.arange(1, 50) / 50


def precision_recall(
    logits: NDArray[np.float32], targets: NDArray[np.int8], points: int = POINTS
) -> tuple[Point, ...]:
    """(recall, precision) at each score of a positive, by falling score; at most `points`.

    Between two of them precision only falls and recall stays, so that these are the whole curve,
    and the area under their steps is the average precision of scikit-learn. Where there are more,
    they are taken at even steps of rank; first and last stay.

    Args:
        logits, targets: (K,), with at least one positive.
    """
    order = np.argsort(-logits, kind="stable")
    ranked, positive = logits[order], targets[order] == POSITIVE
    tp = np.cumsum(positive)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of ties
    tp, passed = tp[last], last + 1
    grows = np.diff(tp, prepend=0) > 0
    tp, passed = tp[grows], passed[grows]
    if len(tp) > points:
        kept = np.unique(np.linspace(0, len(tp) - 1, points).round().astype(int))
        tp, passed = tp[kept], passed[kept]
    total = int(positive.sum())
    return tuple((int(t) / total, int(t) / int(n)) for t, n in zip(tp, passed, strict=True))


def by_threshold(
    logits: NDArray[np.float32], targets: NDArray[np.int8], chosen: float
) -> tuple[ThresholdPoint, ...]:
    """Precision, recall and F1 at 0.02, 0.04 ... 0.98 and at `chosen`, by rising threshold.

    Args:
        logits, targets: (K,), with at least one positive.
        chosen: a probability in [0, 1].
    """
    thresholds = np.unique(np.append(_GRID, chosen))
    positive = targets == POSITIVE
    total = int(positive.sum())
    limits = cuts(thresholds)
    passed = len(logits) - np.searchsorted(np.sort(logits), limits)
    hits = total - np.searchsorted(np.sort(logits[positive]), limits)
    return tuple(
        ThresholdPoint(float(t), int(h) / int(n) if n else None, int(h) / total, f1(h, n, total))
        for t, h, n in zip(thresholds, hits, passed, strict=True)
    )


def f1(hits: int, passed: int, positives: int) -> float:
    """F1 from counts; at least one positive."""
    return 2 * int(hits) / (int(passed) + int(positives))


def cuts(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The logits that probabilities stand for, rounded as `metrics.measure` rounds them."""
    with np.errstate(divide="ignore"):
        limits: NDArray[np.float32] = np.log(thresholds / (1 - thresholds)).astype(np.float32)
    return limits
