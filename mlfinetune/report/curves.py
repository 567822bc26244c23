"""Curves: points from the scores and targets of one label, or of all pairs.

Callers leave unknown targets out. Equal scores pass a threshold together. Shapes: K known targets.
"""

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE
from mlfinetune.metrics.logits import find_cuts
from mlfinetune.report.view import Point, ThresholdPoint

POINTS = 60
"""Greatest number of points on a curve: a plot of 300 pixels shows no more."""

_GRID = np.arange(1, 50) / 50


def compute_precision_recall(
    logits: NDArray[np.float32], targets: NDArray[np.int8], points: int = POINTS
) -> tuple[Point, ...]:
    """Return (recall, precision) at each score of a positive, by falling score.

    Between two of these points precision only falls and recall stays, so that they are the whole
    curve, and the area under their steps is the average precision of scikit-learn. If there are
    more than `points`, that many are taken at even steps of rank, the first and last among them.

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


def compute_by_threshold(
    logits: NDArray[np.float32], targets: NDArray[np.int8], chosen: float
) -> tuple[ThresholdPoint, ...]:
    """Return precision, recall and F1 at 0.02, 0.04 ... 0.98 and at `chosen`, rising.

    Args:
        logits, targets: (K,), with at least one positive.
        chosen: the label's threshold, a probability in [0, 1].
    """
    thresholds = np.unique(np.append(_GRID, chosen))
    positive = targets == POSITIVE
    total = int(positive.sum())
    limits = find_cuts(thresholds)
    passed = len(logits) - np.searchsorted(np.sort(logits), limits)
    hits = total - np.searchsorted(np.sort(logits[positive]), limits)
    return tuple(
        ThresholdPoint(
            float(t), int(h) / int(n) if n else None, int(h) / total, compute_f1(h, n, total)
        )
        for t, h, n in zip(thresholds, hits, passed, strict=True)
    )


def compute_f1(hits: int, passed: int, positives: int) -> float:
    """Return F1 from counts; `positives` is at least one."""
    return 2 * int(hits) / (int(passed) + int(positives))
