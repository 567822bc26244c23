"""Evidence -> Report: everything that the page says, computed with NumPy alone.

The numbers come from the MetricTable; curves, lists and verdicts are added here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import UNKNOWN
from mlfinetune.metrics.doubt import Doubt, measure_doubt
from mlfinetune.metrics.logits import find_cuts
from mlfinetune.metrics.types import LabelMetrics, MetricTable, ScoreTable
from mlfinetune.report import curves, mistakes, pictures, suspects
from mlfinetune.report.view import (
    Calibration,
    Decisions,
    Detail,
    LabelReport,
    Number,
    Picture,
    Report,
    Series,
    TornGroup,
)

GOOD = 0.7
"""AP from which a label is called good, unless the evidence says otherwise."""

FEW = 10
"""Known positives below which a label without an interval is not judged."""

DETAILED = 200
"""Number of labels, the weakest, with curves and pictures; the others have only a table row."""

_LISTED = 8  # pictures in one list
_SLOTS = 80 * _LISTED  # pictures in all lists of one kind, over all labels

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
    """Everything that a report is computed from. N images, L labels.

    Attributes:
        title: of the page, such as the run's name.
        about: data and protocol as (name, value): the data and split, the AP protocol, the data
            that fitted the thresholds, the checkpoint.
        scores: (N, L) logits and targets in {1, 0, -1}.
        probabilities: (N, L) sigmoid of the logits.
        table: the numbers of `scores`, with thresholds for `probabilities`.
        intervals: name of an average -> ends of its 95 % interval.
        ap_intervals, f1_intervals, auroc_intervals: label -> ends of its 95 % interval.
        calibration: reliability curves of the probabilities, before calibration first.
        history: rows of metrics.jsonl.
        near_duplicates: (N,) numbers, the same for near duplicates; None: they are not known.
        good: AP from which a label is called good.
        out_of_fold: the pictures are all that the data has, training's too.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    scores: ScoreTable
    probabilities: NDArray[np.float64]
    table: MetricTable
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    ap_intervals: Mapping[str, Interval] = field(default_factory=dict)
    f1_intervals: Mapping[str, Interval] = field(default_factory=dict)
    auroc_intervals: Mapping[str, Interval] = field(default_factory=dict)
    calibration: tuple[Calibration, ...] = ()
    history: Sequence[Mapping[str, Any]] = ()
    near_duplicates: NDArray[np.int64] | None = None
    good: float = GOOD
    out_of_fold: bool = False


def build(evidence: Evidence) -> Report:
    """Compute everything that the page says; pictures are named, not yet read."""
    report = _compute_report(evidence)
    names = evidence.scores.names
    return replace(
        report, pictures={index: Picture(names[index]) for index in pictures.list_pictures(report)}
    )


def _compute_report(evidence: Evidence) -> Report:
    """Compute the report without its pictures."""
    scores, shape = evidence.scores, evidence.scores.logits.shape
    assert scores.targets.shape == evidence.probabilities.shape == shape
    thresholds = np.array([row.threshold for row in evidence.table.per_label])
    assert thresholds.shape == shape[1:]
    limits = find_cuts(thresholds)
    outcomes = [
        mistakes.split_outcomes(scores.logits[:, column], scores.targets[:, column], limits[column])
        for column in range(shape[1])
    ]
    pairs, matrix = mistakes.count_missed(scores, limits, outcomes)
    headline, averages = _split_averages(evidence)
    doubt = measure_doubt(scores.logits, scores.targets)
    return Report(
        title=evidence.title,
        about=evidence.about,
        images=shape[0],
        bar=evidence.good,
        headline=headline,
        averages=averages,
        decisions=Decisions(
            sum(len(label.hits) for label in outcomes),
            sum(len(label.false_positives) for label in outcomes),
            sum(len(label.false_negatives) for label in outcomes),
        ),
        labels=_report_labels(evidence, limits, outcomes),
        training=_collect_training(evidence.history),
        calibration=evidence.calibration,
        missed=pairs,
        matrix=matrix,
        suspects=suspects.find_suspects(scores, evidence.probabilities, limits, thresholds, doubt),
        torn=_find_torn(evidence, doubt),
        out_of_fold=evidence.out_of_fold,
    )


def _find_torn(evidence: Evidence, doubt: Doubt) -> tuple[TornGroup, ...]:
    """Return the near duplicates with different tags; none where near duplicates are not known."""
    if evidence.near_duplicates is None:
        return ()
    groups = evidence.near_duplicates
    return suspects.find_torn(evidence.scores, evidence.probabilities, doubt, groups)


# ---- averages -------------------------------------------------------------------------------


def _split_averages(evidence: Evidence) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """Return the numbers to read first, and all others."""
    nothing = "undefined: no label has both a known positive and a known negative"
    numbers = {}
    for name, value in evidence.table.averages.items():
        why = "undefined: no label is given" if "recision" in name or name[1:] == "P" else nothing
        note = _HEADLINE.get(name, "") if value is not None else why
        low, high = evidence.intervals.get(name, (None, None))
        numbers[name] = Number(name, value, low, high, note)
    headline = tuple(numbers.pop(name) for name in _HEADLINE if name in numbers)
    return headline, tuple(numbers.values())


def _collect_training(history: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    """Collect the finite values of each quantity by epoch; the last row of an epoch counts."""
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
    return tuple(line for line in series if line.points)


# ---- labels ---------------------------------------------------------------------------------


def _report_labels(
    evidence: Evidence, limits: NDArray[np.float32], outcomes: Sequence[mistakes.Outcomes]
) -> tuple[LabelReport, ...]:
    """Report labels by rising AP, undefined AP last; the first DETAILED get curves and lists.

    A list shows at most _LISTED pictures, and fewer if there are so many labels that all lists of
    one kind would hold more than _SLOTS.
    """
    rows = evidence.table.per_label
    order = sorted(range(len(rows)), key=lambda c: (rows[c].AP is None, rows[c].AP or 0.0))
    most = max(2, min(_LISTED, _SLOTS // max(1, min(len(rows), DETAILED))))
    reports = []
    for rank, column in enumerate(order):
        detail = None
        if rank < DETAILED:
            detail = _detail_label(evidence, limits, column, outcomes[column], most)
        reports.append(_report_label(evidence, column, detail))
    return tuple(reports)


def _report_label(evidence: Evidence, column: int, detail: Detail | None) -> LabelReport:
    row = evidence.table.per_label[column]
    ap_low, ap_high = evidence.ap_intervals.get(row.label, (None, None))
    f1_low, f1_high = evidence.f1_intervals.get(row.label, (None, None))
    auroc_low, auroc_high = evidence.auroc_intervals.get(row.label, (None, None))
    lacks_positive = "" if row.positives else "no known positive"
    reason = lacks_positive or ("" if row.negatives else "no known negative")
    never = "" if row.precision is not None else "given to no picture"
    return LabelReport(
        column=column,
        label=row.label,
        positives=row.positives,
        negatives=row.negatives,
        unknown=len(evidence.scores.names) - row.positives - row.negatives,
        threshold=row.threshold,
        AP=Number("AP", row.AP, ap_low, ap_high, reason),
        F1=Number("F1", row.F1, f1_low, f1_high, lacks_positive),
        AUROC=Number("AUROC", row.AUROC, auroc_low, auroc_high, reason),
        precision=Number("precision", row.precision, note=lacks_positive or never),
        recall=Number("recall", row.recall, note=lacks_positive),
        verdict=_judge_label(row, ap_low, ap_high, evidence.good),
        detail=detail,
    )


def _judge_label(row: LabelMetrics, low: float | None, high: float | None, bar: float) -> str:
    """Return one of VERDICTS, by the interval of AP.

    Without an interval, AP itself decides if the label has at least FEW positives.
    """
    if row.AP is None:
        return "unmeasured"
    if low is None or high is None:
        if row.positives < FEW:
            return "unsure"
        low = high = row.AP
    return "good" if low >= bar else "weak" if high < bar else "unsure"


def _detail_label(
    evidence: Evidence,
    limits: NDArray[np.float32],
    column: int,
    outcomes: mistakes.Outcomes,
    most: int,
) -> Detail:
    """Compute one label's curves, and the lists of its first `most` pictures of each kind."""
    scores, row = evidence.scores, evidence.table.per_label[column]
    shown = mistakes.build_galleries(scores, evidence.probabilities, limits, column, outcomes, most)
    if not (row.positives and row.negatives):
        return Detail((), (), None, *shown)
    known = scores.targets[:, column] != UNKNOWN
    logits, targets = scores.logits[known, column], scores.targets[known, column]
    hits, passed = len(outcomes.hits), len(outcomes.hits) + len(outcomes.false_positives)
    return Detail(
        curves.compute_precision_recall(logits, targets),
        curves.compute_by_threshold(logits, targets, row.threshold),
        (hits / row.positives, hits / passed) if passed else None,
        *shown,
    )
