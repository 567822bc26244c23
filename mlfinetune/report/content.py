"""Evidence -> Report: everything that the page says, computed with numpy alone.

The numbers themselves come from the MetricTable; here are curves, lists and judgements.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import UNKNOWN
from mlfinetune.metrics.types import LabelMetrics, MetricTable, ScoreTable
from mlfinetune.report import curves, mistakes, pictures
from mlfinetune.report.view import (
    Calibration,
    Decisions,
    Detail,
    LabelReport,
    Number,
    Picture,
    Report,
    Series,
)

GOOD = 0.7
"""AP from which a label is called good, unless the evidence says otherwise."""

FEW = 10
"""Known positives below which a label without an interval is not judged."""

DETAILED = 200
"""Labels with curves and pictures on the page, the weakest ones; the others have a row alone."""

_LISTED = 8
_SLOTS = 80 * _LISTED  # pictures of one kind over all labels

_HEADLINE = {
    "mAP": "mean average precision of the labels: how well each ranks its pictures, whatever "
    "the threshold",
    "micro_AP": "average precision of all (picture, label) pairs pooled",
    "macro_F1": "mean F1 of the labels at their thresholds: rare labels count as much as others",
    "micro_F1": "F1 of all pairs at the thresholds: frequent labels count more",
}
_TRAINING = ("loss", "mAP", "macro_F1", "lr", "head_lr", "l2")

Interval = tuple[float, float]


@dataclass(frozen=True)
class Evidence:
    """What a report is made of. N images, L labels.

    Attributes:
        title: such as the run's name.
        about: data and protocol as (name, value): which data and split, which AP protocol, which
            data fitted the thresholds, which checkpoint.
        scores: (N, L) logits and targets in {1, 0, -1}.
        probabilities: (N, L) sigmoid of the logits.
        table: the numbers of `scores`; its thresholds are probabilities of the same scale.
        intervals: name of an average -> ends of its 95 % interval.
        ap_intervals, f1_intervals: label -> ends of its 95 % interval.
        calibrated: the probabilities are, so that 0.5 is an even chance.
        calibration: reliability curves of the probabilities, before calibration first.
        history: rows of metrics.jsonl.
        good: AP from which a label is called good.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    scores: ScoreTable
    probabilities: NDArray[np.float64]
    table: MetricTable
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    ap_intervals: Mapping[str, Interval] = field(default_factory=dict)
    f1_intervals: Mapping[str, Interval] = field(default_factory=dict)
    calibrated: bool = False
    calibration: tuple[Calibration, ...] = ()
    history: Sequence[Mapping[str, Any]] = ()
    good: float = GOOD


def build(evidence: Evidence) -> Report:
    """Everything that the page says; pictures are named, not yet read."""
    report = _judge(evidence)
    names = evidence.scores.names
    return replace(
        report, pictures={index: Picture(names[index]) for index in pictures.wanted(report)}
    )


def _judge(evidence: Evidence) -> Report:
    """The report without its pictures."""
    scores, shape = evidence.scores, evidence.scores.logits.shape
    assert scores.targets.shape == evidence.probabilities.shape == shape
    thresholds = np.array([row.threshold for row in evidence.table.per_label])
    assert thresholds.shape == shape[1:]
    limits = curves.cuts(thresholds)
    found = [
        mistakes.sides(scores.logits[:, at], scores.targets[:, at], limits[at])
        for at in range(shape[1])
    ]
    pairs, matrix = mistakes.missed(scores, limits, found)
    headline, averages = _averages(evidence)
    return Report(
        title=evidence.title,
        about=evidence.about,
        images=shape[0],
        bar=evidence.good,
        headline=headline,
        averages=averages,
        decisions=Decisions(
            sum(len(one.hits) for one in found),
            sum(len(one.false_positives) for one in found),
            sum(len(one.false_negatives) for one in found),
        ),
        labels=_labels(evidence, limits, found),
        training=_training(evidence.history),
        calibration=evidence.calibration,
        missed=pairs,
        matrix=matrix,
        suspects=mistakes.suspects(
            scores, evidence.probabilities, limits, thresholds, evidence.calibrated
        ),
    )


# ---- averages -------------------------------------------------------------------------------


def _averages(evidence: Evidence) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """The numbers to read first, and all others."""
    nothing = "undefined: no label has both a known positive and a known negative"
    numbers = {}
    for name, value in evidence.table.averages.items():
        note = _HEADLINE.get(name, "") if value is not None else nothing
        low, high = evidence.intervals.get(name, (None, None))
        numbers[name] = Number(name, value, low, high, note)
    headline = tuple(numbers.pop(name) for name in _HEADLINE if name in numbers)
    return headline, tuple(numbers.values())


def _training(history: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    """The finite values of each quantity by epoch; a repeated epoch counts once, the last time."""
    rows = sorted({int(row["epoch"]): row for row in history}.items())
    series = (
        Series(
            name,
            tuple(
                (epoch, float(row[name]))
                for epoch, row in rows
                if row.get(name) is not None and math.isfinite(row[name])
            ),
        )
        for name in _TRAINING
    )
    return tuple(one for one in series if one.points)


# ---- labels ---------------------------------------------------------------------------------


def _labels(
    evidence: Evidence, limits: NDArray[np.float32], found: Sequence[mistakes.Sides]
) -> tuple[LabelReport, ...]:
    """By rising AP, those without one last; the first DETAILED with their detail."""
    rows = evidence.table.per_label
    order = sorted(range(len(rows)), key=lambda at: (rows[at].AP is None, rows[at].AP or 0.0))
    most = max(2, min(_LISTED, _SLOTS // max(1, min(len(rows), DETAILED))))
    return tuple(
        _label(
            evidence, at, _detail(evidence, limits, at, found[at], most) if n < DETAILED else None
        )
        for n, at in enumerate(order)
    )


def _label(evidence: Evidence, column: int, detail: Detail | None) -> LabelReport:
    row = evidence.table.per_label[column]
    ap_low, ap_high = evidence.ap_intervals.get(row.label, (None, None))
    f1_low, f1_high = evidence.f1_intervals.get(row.label, (None, None))
    lacks_positive = "" if row.positives else "no known positive"
    reason = lacks_positive or ("" if row.negatives else "no known negative")
    return LabelReport(
        column=column,
        label=row.label,
        positives=row.positives,
        negatives=row.negatives,
        unknown=len(evidence.scores.names) - row.positives - row.negatives,
        threshold=row.threshold,
        AP=Number("AP", row.AP, ap_low, ap_high, reason),
        F1=Number("F1", row.F1, f1_low, f1_high, lacks_positive),
        precision=Number("precision", row.precision, note=lacks_positive),
        recall=Number("recall", row.recall, note=lacks_positive),
        standing=_standing(row, ap_low, ap_high, evidence.good),
        detail=detail,
    )


def _standing(row: LabelMetrics, low: float | None, high: float | None, bar: float) -> str:
    """A key of STANDINGS; without an interval, AP itself, of at least FEW positives, decides."""
    if row.AP is None:
        return "unmeasured"
    if low is None or high is None:
        if row.positives < FEW:
            return "unsure"
        low = high = row.AP
    return "good" if low >= bar else "weak" if high < bar else "unsure"


def _detail(
    evidence: Evidence,
    limits: NDArray[np.float32],
    column: int,
    found: mistakes.Sides,
    most: int,
) -> Detail:
    scores, row = evidence.scores, evidence.table.per_label[column]
    shown = mistakes.galleries(scores, evidence.probabilities, limits, column, found, most)
    if not (row.positives and row.negatives):
        return Detail((), (), None, *shown)
    known = scores.targets[:, column] != UNKNOWN
    logits, targets = scores.logits[known, column], scores.targets[known, column]
    hits, passed = len(found.hits), len(found.hits) + len(found.false_positives)
    return Detail(
        curves.precision_recall(logits, targets),
        curves.by_threshold(logits, targets, row.threshold),
        (hits / row.positives, hits / passed) if passed else None,
        *shown,
    )
