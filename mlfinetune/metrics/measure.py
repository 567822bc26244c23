"""The numbers of one ScoreTable, computed by scikit-learn, unknown targets masked.

mAP       mean AP over the labels with a known positive and a known negative
micro_AP  AP of all known (image, label) pairs pooled
macro_F1  mean F1 over the labels with a known positive
micro_F1  F1 of all known pairs pooled; the literature's OF1
CP CR     mean precision, recall over the labels with a known positive; CF1 = 2*CP*CR/(CP+CR)
OP OR     precision, recall of all known pairs pooled

AP is scikit-learn's: not interpolated. What the known targets leave undefined is None, and
takes no part in a mean. Logits are ranked, not probabilities, which tie where they saturate.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from mlfinetune.records import NEGATIVE, POSITIVE, UNKNOWN, LabelMetrics, MetricTable, ScoreTable


def measure(scores: ScoreTable, threshold: float = 0.5) -> MetricTable:
    """Every number of `scores`.

    Args:
        scores: (N, L) logits and targets.
        threshold: probability in (0, 1) from which a label counts as present.
    """
    cut = float(np.log(threshold / (1 - threshold)))
    rows = tuple(
        _label(name, scores.targets[:, at], scores.logits[:, at], cut, threshold)
        for at, name in enumerate(scores.labels.names)
    )
    known = scores.targets != UNKNOWN
    pooled = _label("", scores.targets[known], scores.logits[known], cut, threshold)
    positive = [row for row in rows if row.positives]
    cp, cr = _mean([row.precision for row in positive]), _mean([row.recall for row in positive])
    averages = {
        "mAP": _mean([row.AP for row in rows]),
        "micro_AP": pooled.AP,
        "macro_F1": _mean([row.F1 for row in positive]),
        "micro_F1": pooled.F1,
        "CP": cp,
        "CR": cr,
        "CF1": _harmonic(cp, cr),
        "OP": pooled.precision,
        "OR": pooled.recall,
        "OF1": pooled.F1,
    }
    scored = sum(row.AP is not None for row in rows)
    return MetricTable(averages, rows, len(scores.names), scored)


def _label(
    name: str,
    targets: NDArray[np.int8],
    logits: NDArray[np.float32],
    cut: float,
    threshold: float,
) -> LabelMetrics:
    known = targets != UNKNOWN
    truth, ranked = targets[known], logits[known]
    positives, negatives = int((truth == POSITIVE).sum()), int((truth == NEGATIVE).sum())
    ap = precision = recall = f1 = None
    if positives and negatives:
        ap = float(average_precision_score(truth, ranked))
    if positives:
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, ranked >= cut, labels=[POSITIVE], average=None, zero_division=0
        )
        precision, recall, f1 = float(precision[0]), float(recall[0]), float(f1[0])
    return LabelMetrics(name, positives, negatives, ap, precision, recall, f1, threshold)


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _harmonic(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0
