"""95 % intervals of a ScoreTable's numbers, which hold for few positives too.

    ScoreTable, thresholds -> Intervals

**A label.** Two positives that both stand first are no proof: every resample of them is perfect
too. So an interval also has to reckon with images that the sample lacks. Its lower end supposes
one more positive that the model ranks last, and one more negative that it ranks first; its upper
end supposes them in the best places. These have the weight of half an image, or of a tenth, at
random. It is what separates the interval of Clopper and Pearson (1934) for a share from
the plain bootstrap. AP there is the area under precision by recall, and not the sum of steps that
scikit-learn takes: the steps are too high where positives are few.

**An average.** Percentiles of resamples (Efron and Tibshirani 1993, chapter 13). In a resample
some positives occur twice, and labels of few positives often lose them all and drop out. So AP and
F1 are too high there, and so is AP itself where positives are few. A mean over labels keeps such a
bias, but averages away the noise that would hide it. So the percentiles are lowered by the bias
that the resamples show, and for AP by its own bias too, which is about as large as that and the
excess of its steps together. Where the number itself is then outside, the interval is extended up
to it: part of that number is the bias.
One more half positive is supposed for the whole table.

Few positives (or groups of them) make percentiles too narrow, as a normal distribution is beside
Student's t. So they are taken further out (Hesterberg 2015, "expanded percentiles").

Images of one group are drawn together. Thresholds are taken as given: fitting them on the same
images adds uncertainty that is not in the intervals. benchmarks/coverage.py has the share of
intervals that hold the population's value.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.bootstrap import (
    AVERAGES,
    Floats,
    Ranking,
    Sums,
    compute_ap,
    compute_auroc,
    compute_f1,
    divide,
)
from mlfinetune.metrics.types import Interval, Intervals, LabelIntervals, ScoreTable

LEVEL = 0.95
POSITIVE_WEIGHT, NEGATIVE_WEIGHT = 0.5, 0.1
"""Mean weights of the supposed positive and negative, in images; from benchmarks/coverage.py. For
AUROC, where positives and negatives are alike, both weigh POSITIVE_WEIGHT."""
AP_BIAS = (0.7, 1.3)
"""Least and greatest bias of AP, as a share of the bias of resampling and the excess of its steps;
from benchmarks/bootstrap.py."""
LABEL_RESAMPLES = 400
"""Greatest number of resamples for labels, whose intervals are wide beside the noise of fewer."""
_NUMBERS = ("AP", "AUROC", "F1")


def compute_intervals(
    scores: ScoreTable,
    thresholds: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    ap: str = "sklearn",
) -> Intervals:
    """Compute 95 % intervals of the averages, and of each label's AP, AUROC and F1.

    Args:
        scores: (N, L) logits and targets; N at least 1.
        thresholds: (L,) probabilities from which a label counts as present; 1: never.
        resamples: number of times that the images are drawn.
        seed: equal seeds give equal intervals.
        ap: protocol of AP.
    """
    table, groups = bootstrap.rank_labels(scores, thresholds), bootstrap.find_groups(scores)
    once = np.ones((1, len(groups)), np.int32)
    point = bootstrap.measure_resamples(table, once, ap)
    (drawn,) = bootstrap.resample([table], groups, resamples, seed, ap)
    given = np.asarray(thresholds) < 1
    units, freedom = count_units(scores, groups), _count_freedom(scores, groups)
    numbers = point.averages()
    excess = {"mAP": _average_excess(_measure_excess(table, len(groups)))}
    averages = {
        name: _bound_average(
            values,
            float(numbers[name][0]),
            units[name],
            freedom[name],
            excess.get(name),
            float(given.mean()) if name.endswith("F1") else 1.0,
            seed,
        )
        for name, values in drawn.averages().items()
    }
    points = np.stack([point.ap[0], point.auroc[0], point.f1[0]])
    per_label = _bound_labels(
        scores, table, groups, points, given, min(resamples, LABEL_RESAMPLES), seed, ap
    )
    drawn_groups = None if scores.groups is None else int(groups.max()) + 1
    return Intervals(averages, per_label, resamples, drawn_groups)


def count_units(scores: ScoreTable, groups: NDArray[np.int64]) -> dict[str, float]:
    """Return the number of independent positives that each average rests on, at least 1.

    A mean over L labels of P positives each rests on L * P of them; where P differs, on
    L^2 / sum(1 / P). Of a label with fewer negatives than positives the negatives count.
    """
    rarer = count_rarer(scores, groups)
    there = rarer[rarer > 0]
    spread = len(there) ** 2 / (1 / there).sum() if len(there) else 1.0
    pooled = np.unique(groups[(scores.targets == POSITIVE).any(axis=1)]).size
    units = dict.fromkeys(AVERAGES, float(min(spread, groups.max() + 1)))
    return units | {"micro_F1": float(max(1, pooled))}


def _count_freedom(scores: ScoreTable, groups: NDArray[np.int64]) -> dict[str, float]:
    """Return the degrees of freedom of each average's noise (Satterthwaite 1946), and 1.

    The noise of a label of P positives is about 1 / P, and rests on P - 1 of them. So the noise of
    a mean over labels may rest on the few positives of its rarest labels.
    """
    units, rarer = count_units(scores, groups), count_rarer(scores, groups)
    there = rarer[rarer > 0]
    noise = 1 / there
    freedom = noise.sum() ** 2 / (noise**2 / np.maximum(there - 1, 0.5)).sum() if len(there) else 0
    means = {name: min(count, freedom + 1) for name, count in units.items()}
    return means | {"micro_F1": units["micro_F1"]}


def count_rarer(scores: ScoreTable, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (L,) number of positives or of negatives, whichever a label has fewer of.

    Images of one group count once.
    """
    return np.asarray(_count_states(scores, groups).min(axis=1))


def _count_states(scores: ScoreTable, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (L, 2) numbers of groups with a positive, and with a negative."""
    states = (POSITIVE, NEGATIVE)
    if scores.groups is None:
        counts = [np.count_nonzero(scores.targets == state, axis=0) for state in states]
        return np.stack(counts, axis=1)
    return np.array(
        [
            [np.unique(groups[column == state]).size for state in states]
            for column in scores.targets.T
        ]
    )


def take_percentiles(lower: Floats, upper: Floats, units: float) -> tuple[float, float] | None:
    """Return the low end of (B,) `lower`, the high end of `upper`: 95 % lie between.

    None if half of the values or more are NaN: the rest would be a chosen few.

    Args:
        lower, upper: numbers of B resamples; the same, unless something was supposed.
        units: number of independent cases that the number rests on.
    """
    defined = ~np.isnan(lower)
    if 2 * np.count_nonzero(defined) <= len(lower):
        return None
    units = max(units, 2.0)
    factor = np.sqrt(units / (units - 1))
    tail = float(norm.cdf(factor * t.ppf((1 - LEVEL) / 2, units - 1)))
    low, high = np.quantile(lower[defined], tail), np.quantile(upper[defined], 1 - tail)
    return float(low), float(high)


def _remove_bias(
    ends: Interval, resampled: Floats, value: float, excess: float | None = None
) -> Interval:
    """Lower both ends by the bias that resampling shows, and for AP by its own bias too.

    Args:
        ends: of the interval.
        resampled: (B,) numbers of resamples. Their mean is above `value` by the bias of resampling.
        value: the number.
        excess: of AP, by how much its steps are above the area; None for other numbers, which have
            no bias of their own.
    """
    bias = float(np.nanmean(resampled)) - value
    own = 0.0 if excess is None else bias + excess
    least, most = sorted(factor * own for factor in AP_BIAS)
    return ends[0] - bias - most, ends[1] - bias - least


def _average_excess(excess: Floats) -> float:
    """Return the mean of the labels' excess; 0 where no label has an AP."""
    return float(np.nanmean(excess)) if not np.isnan(excess).all() else 0.0


def _measure_excess(table: Sequence[Ranking], images: int) -> Floats:
    """Return (L,) scikit-learn's AP less the area under precision by recall; NaN without an AP."""
    once = np.ones((1, images), np.int32)
    sums = [bootstrap.sum_weights(ranking, once) for ranking in table]
    return np.array([(compute_ap(one, "sklearn") - _integrate_precision(one))[0] for one in sums])


def _bound_average(
    values: Floats,
    value: float,
    units: float,
    freedom: float,
    excess: float | None,
    possible: float,
    seed: int,
) -> Interval | None:
    """Return the interval of an average.

    Args:
        values: (B,) its values on resamples.
        value: itself.
        units, freedom: as `count_units` and `_count_freedom` say.
        excess: as for `_remove_bias`.
        possible: share of the labels for which a supposed positive changes anything.
        seed: of the supposed positives.
    """
    supposed = np.random.default_rng(seed).standard_gamma(POSITIVE_WEIGHT, len(values))
    share = supposed / (units + supposed) * possible
    ends = take_percentiles(values * (1 - share), values * (1 - share) + share, freedom)
    if ends is None or np.isnan(value):
        return None
    low, high = _remove_bias(ends, values, value, excess)
    return max(0.0, min(low, value)), min(1.0, max(high, value))


# ---- one label --------------------------------------------------------------------------


def _bound_labels(
    scores: ScoreTable,
    table: Sequence[Ranking],
    groups: NDArray[np.int64],
    points: Floats,
    given: NDArray[np.bool_],
    resamples: int,
    seed: int,
    protocol: str,
) -> tuple[LabelIntervals, ...]:
    """Return the intervals of each label's numbers.

    Args:
        scores, table, groups, resamples, seed, protocol: as everywhere in this file.
        points: (3, L) the numbers themselves.
        given: (L,) False where the threshold gives a label to no image, whatever it scores.
    """
    names, labels = scores.labels.names, range(len(table))
    masses = _weigh_supposed(scores, groups)
    supposed = np.random.default_rng([seed, 1])
    ends = np.empty((2, len(_NUMBERS), len(names), resamples))
    start = 0
    for weights in bootstrap.draw_weights(groups, resamples, seed):
        rows = slice(start, start + len(weights))
        for column in labels:
            shapes = (POSITIVE_WEIGHT, NEGATIVE_WEIGHT, POSITIVE_WEIGHT)
            more = supposed.standard_gamma(shapes, (len(weights), 3)) * masses[column, [0, 1, 1]]
            positive, light, negative = more.T
            sums = bootstrap.sum_weights(table[column], weights)
            worse = _suppose_worse(sums, positive, light)
            better = _suppose_better(sums, positive, negative, bool(given[column]))
            ends[0, :, column, rows] = _measure_label(worse, protocol)
            ends[1, :, column, rows] = _measure_label(better, protocol)
            ends[0, 1, column, rows] = compute_auroc(_suppose_worse(sums, positive, negative))
        start = rows.stop
    bounds = [
        [_bound_number(ends[:, number, column], points[number, column]) for number in range(3)]
        for column in labels
    ]
    return tuple(LabelIntervals(name, *row) for name, row in zip(names, bounds, strict=True))


def _weigh_supposed(scores: ScoreTable, groups: NDArray[np.int64]) -> Floats:
    """Return (L, 2) sizes of a supposed positive and negative: the mean size of their groups."""
    images = [np.count_nonzero(scores.targets == state, axis=0) for state in (POSITIVE, NEGATIVE)]
    counts = np.maximum(_count_states(scores, groups), 1)
    return np.asarray(np.maximum(np.stack(images, axis=1) / counts, 1.0))


def _bound_number(ends: Floats, value: float) -> Interval | None:
    """Return the interval from (2, B) worse and better numbers; None where `value` is NaN."""
    if np.isnan(value):
        return None
    low = float(np.quantile(ends[0], (1 - LEVEL) / 2))
    high = float(np.quantile(ends[1], (1 + LEVEL) / 2))
    return max(0.0, min(low, value)), min(1.0, max(high, value))


def _suppose_worse(sums: Sums, positive: Floats, negative: Floats) -> Sums:
    """Add a positive that is ranked last and a negative that is ranked first, (b,) weights."""
    shift = negative[:, None]
    return Sums(
        np.column_stack([sums.right, sums.positives + positive]),
        np.column_stack([sums.wrong + shift, sums.negatives + negative]),
        np.column_stack([sums.right_above, sums.positives]),
        np.column_stack([sums.wrong_above + shift, sums.negatives + negative]),
        sums.positives + positive,
        sums.negatives + negative,
        sums.tp,
        sums.fp + negative,
    )


def _suppose_better(sums: Sums, positive: Floats, negative: Floats, is_given: bool) -> Sums:
    """Add a positive that is ranked first and a negative that is ranked last, (b,) weights.

    `is_given` is False where the threshold passes no image, not the supposed one either.
    """
    shift, none = positive[:, None], np.zeros(len(positive))
    return Sums(
        np.column_stack([positive, sums.right + shift]),
        np.column_stack([none, sums.wrong]),
        np.column_stack([none, sums.right_above + shift]),
        np.column_stack([none, sums.wrong_above]),
        sums.positives + positive,
        sums.negatives + negative,
        sums.tp + positive * is_given,
        sums.fp,
    )


def _measure_label(sums: Sums, protocol: str) -> Floats:
    """Return (3, b) AP, AUROC and F1 of a label."""
    area = _integrate_precision(sums) if protocol == "sklearn" else compute_ap(sums, protocol)
    return np.stack([area, compute_auroc(sums), compute_f1(sums.tp, sums.fp, sums.positives)])


def _integrate_precision(sums: Sums) -> Floats:
    """Return (b,) area under precision by recall, where AP is the sum of its steps.

    Within a group of equal logits, positives and negatives mix evenly: the weight of negatives is
    a line of that of positives, w = slope * p + offset. The integral of p / (p + w) is a logarithm.
    """
    gained, passed = sums.right - sums.right_above, sums.wrong - sums.wrong_above
    slope = np.nan_to_num(divide(passed, gained))
    offset = sums.wrong_above - slope * sums.right_above
    above = sums.right_above + sums.wrong_above
    growth = np.log(np.where(above > 0, divide(sums.right + sums.wrong, above), 1.0))
    areas = (gained - offset / (1 + slope) * growth) / (1 + slope)
    return divide(np.where(gained > 0, areas, 0.0).sum(axis=1), sums.positives)
