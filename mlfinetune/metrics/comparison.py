"""Comparison of two ScoreTables on the same resamples: what is hard for both cancels.

    ScoreTable of A, ScoreTable of B -> Comparison, B minus A, with 95 % intervals

Percentiles of the differences, in which the bias of AP cancels. Nothing is decided by fewer than 6
positives, or negatives (or groups of them): by a sign test, 5 positives that all rank better in B
happen by chance in 1 of 16 cases. Such a label has no interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.bootstrap import AVERAGES, Floats, Progress
from mlfinetune.metrics.intervals import (
    count_rarer,
    count_units,
    take_percentiles,
)
from mlfinetune.metrics.types import Interval, ScoreTable

NO_DIFFERENCE = "no difference can be told"
FEWEST = 6
"""Number of positives, and of negatives, below which no difference is told: 2 / 2^6 is below 5 %,
and 2 / 2^5 is not."""


@dataclass(frozen=True)
class Difference:
    """One number, compared between two tables.

    Attributes:
        a, b: the number of each table; None where undefined.
        interval: 95 % interval of b - a; None where fewer than FEWEST cases tell, or where
            undefined on the data or in half the resamples.
        share_above: share of the resamples where b is above a, a tie counts half; None if
            `interval` is.
    """

    a: float | None
    b: float | None
    interval: Interval | None
    share_above: float | None

    @property
    def value(self) -> float | None:
        """Difference b - a; None where one is undefined."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def sign(self) -> int:
        """Sign of the interval: 1 above 0, -1 below 0, 0 if it holds 0 or is None."""
        if self.interval is None:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


@dataclass(frozen=True)
class Comparison:
    """Comparison of two tables of the same images.

    Attributes:
        averages: mAP, macro_AUROC, macro_F1 and micro_F1.
        per_label: label -> AP, in label order.
        resamples: number of resamples.
    """

    averages: dict[str, Difference]
    per_label: dict[str, Difference]
    resamples: int

    @property
    def wins(self) -> int:
        """Number of labels whose interval is above 0: b is better."""
        return sum(row.sign > 0 for row in self.per_label.values())

    @property
    def losses(self) -> int:
        """Number of labels whose interval is below 0: a is better."""
        return sum(row.sign < 0 for row in self.per_label.values())

    @property
    def ties(self) -> int:
        """Number of labels whose interval holds 0; labels without one are not counted."""
        return sum(row.interval is not None and not row.sign for row in self.per_label.values())

    @property
    def untold(self) -> int:
        """Number of labels that both have an AP of, and too few cases to compare it."""
        rows = self.per_label.values()
        return sum(row.interval is None and row.value is not None for row in rows)

    @property
    def verdict(self) -> str:
        """Verdict by the interval of mAP: B is better, A is better, or NO_DIFFERENCE."""
        return {1: "B is better", -1: "A is better", 0: NO_DIFFERENCE}[self.averages["mAP"].sign]


def compare_tables(
    a: ScoreTable,
    b: ScoreTable,
    thresholds_a: Sequence[float],
    thresholds_b: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = lambda images: None,
    ap: str = "sklearn",
) -> Comparison:
    """Compare b with a on the same resamples, so that errors on the same images cancel.

    Args:
        a, b: (N, L) logits of the same images and labels in the same order, and equal targets.
        thresholds_a, thresholds_b: (L,) probabilities, as for `compute_intervals`.
        resamples, seed: as for `compute_intervals`.
        progress: called with the number of images drawn since its last call.
        ap: protocol of AP.
    """
    assert a.names == b.names
    assert a.labels == b.labels
    assert np.array_equal(a.targets, b.targets)
    groups = bootstrap.find_groups(a)
    ranked = [bootstrap.rank_labels(a, thresholds_a), bootstrap.rank_labels(b, thresholds_b)]
    once = np.ones((1, len(groups)), np.int32)
    points = [bootstrap.measure_resamples(table, once, ap) for table in ranked]
    drawn = bootstrap.resample(ranked, groups, resamples, seed, ap, progress)
    averaged, units = [results.averages() for results in (*points, *drawn)], count_units(a, groups)
    averages = {
        name: _make_difference([one[name] for one in averaged], units[name]) for name in AVERAGES
    }
    rarer = count_rarer(a, groups).tolist()
    per_label = {
        name: _make_difference(
            [results.ap[:, column] for results in (*points, *drawn)], rarer[column]
        )
        for column, name in enumerate(a.labels.names)
    }
    return Comparison(averages, per_label, resamples)


def _make_difference(numbers: Sequence[Floats], units: float) -> Difference:
    """Make a Difference of the numbers of a and b.

    Args:
        numbers: (1,) of a and of b, then (B,) of resamples of a and of b.
        units: number of independent positives that they rest on.
    """
    a, b, resampled_a, resampled_b = numbers
    value_a, value_b = (None if np.isnan(x[0]) else float(x[0]) for x in (a, b))
    change = resampled_b - resampled_a
    ends = None if units < FEWEST else take_percentiles(change, change, units)
    if ends is None or value_a is None or value_b is None:
        return Difference(value_a, value_b, None, None)
    defined = change[~np.isnan(change)]
    above = float(((defined > 0) + 0.5 * (defined == 0)).mean())
    return Difference(value_a, value_b, ends, above)
