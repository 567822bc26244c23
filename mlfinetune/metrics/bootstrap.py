"""Bootstrap intervals of a ScoreTable's numbers: images are drawn again, with replacement.

    ScoreTable -> one ranking per label -> blocks of resamples -> 95 % intervals

A resample of N images is a vector of N counts, equal for every label. AP and F1 of a resample are
those of scikit-learn with the counts as sample weights. Each label is ranked once. In a resample,
AP and F1 need only the sums of counts between the positions of positives in that ranking.

Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13), except for mAP. AP of
few positives is too high on average. In a resample some positives occur twice, and AP is too high
once more. A mean over labels keeps that bias, but averages away the noise that would hide it. So
the percentiles of mAP are lowered by twice the bias that the resamples show, and the interval need
not be centered on the number. In a difference of two tables the bias cancels, and in one label's
AP the noise outweighs it (benchmarks/bootstrap.py has the coverage of each).

A label whose positives, or negatives, are all left out of a resample has no AP there, and no part
in that resample's mAP, as in `measure`. Thresholds are taken as given: fitting them on the same
images adds uncertainty that is not in the intervals.

Memory beyond the tables: 4 bytes a known pair for the rankings, and 16 bytes a label and resample
for the results. A block of resamples takes about 30 MiB (30 bytes an image, if there are millions).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics.logits import find_cuts
from mlfinetune.metrics.types import Interval, Intervals, LabelIntervals, ScoreTable

LEVEL = 0.95
AVERAGES = ("mAP", "macro_F1", "micro_F1")
NO_DIFFERENCE = "no difference can be told"
_BLOCK = 1 << 20
"""Counts in a block of resamples, 4 MiB: large enough that the time of NumPy's calls vanishes."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Difference:
    """One number, compared between two tables.

    Attributes:
        a, b: the number of each table; None where undefined.
        interval: 95 % interval of b - a; None where undefined on the data or in half the
            resamples.
        share_above: share of the resamples where b is above a; None if `interval` is.
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
        averages: mAP, macro_F1 and micro_F1.
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
    def verdict(self) -> str:
        """Verdict by the interval of mAP: B is better, A is better, or NO_DIFFERENCE."""
        return {1: "B is better", -1: "A is better", 0: NO_DIFFERENCE}[self.averages["mAP"].sign]


def compute_intervals(
    scores: ScoreTable,
    thresholds: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Compute 95 % intervals of mAP, macro F1, micro F1, and each label's AP and F1.

    Args:
        scores: (N, L) logits and targets.
        thresholds: (L,) probabilities from which a label counts as present; 1: never.
        resamples: number of times that N images are drawn.
        seed: equal seeds give equal intervals.
    """
    ranked, images = _rank_labels(scores, thresholds), len(scores.names)
    (results,) = _resample([ranked], images, resamples, seed)
    resampled = results.averages()
    averages = {name: _take_percentiles(values) for name, values in resampled.items()}
    point = _measure_resamples(ranked, np.ones((1, images), np.int32)).averages()["mAP"]
    averages["mAP"] = _remove_bias(averages["mAP"], resampled["mAP"], float(point[0]))
    rows = zip(scores.labels.names, results.ap.T, results.f1.T, strict=True)
    per_label = tuple(
        LabelIntervals(name, _take_percentiles(ap), _take_percentiles(f1)) for name, ap, f1 in rows
    )
    return Intervals(averages, per_label, resamples)


def compare_tables(
    a: ScoreTable,
    b: ScoreTable,
    thresholds_a: Sequence[float],
    thresholds_b: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = lambda images: None,
) -> Comparison:
    """Compare b with a on the same resamples, so that errors on the same images cancel.

    Args:
        a, b: (N, L) logits of the same images and labels in the same order, and equal targets.
        thresholds_a, thresholds_b: (L,) probabilities, as for `compute_intervals`.
        resamples, seed: as for `compute_intervals`.
        progress: called with the number of images drawn since its last call.
    """
    assert a.names == b.names
    assert a.labels == b.labels
    assert np.array_equal(a.targets, b.targets)
    ranked = [_rank_labels(a, thresholds_a), _rank_labels(b, thresholds_b)]
    once = np.ones((1, len(a.names)), np.int32)
    points = [_measure_resamples(table, once) for table in ranked]
    drawn = _resample(ranked, len(a.names), resamples, seed, progress)
    point_a, point_b = (results.averages() for results in points)
    drawn_a, drawn_b = (results.averages() for results in drawn)
    averages = {
        name: _make_difference(point_a[name], point_b[name], drawn_a[name], drawn_b[name])
        for name in AVERAGES
    }
    columns = zip(*(results.ap.T for results in (*points, *drawn)), strict=True)
    rows = zip(a.labels.names, columns, strict=True)
    per_label = {name: _make_difference(*column) for name, column in rows}
    return Comparison(averages, per_label, resamples)


def _make_difference(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    resampled_a: NDArray[np.float64],
    resampled_b: NDArray[np.float64],
) -> Difference:
    """Make a Difference of (1,) numbers and (B,) resampled numbers of a and b."""
    change = resampled_b - resampled_a
    interval = _take_percentiles(change)
    above = None if interval is None else float((change[~np.isnan(change)] > 0).mean())
    value_a, value_b = (None if np.isnan(x[0]) else float(x[0]) for x in (a, b))
    return Difference(value_a, value_b, interval, above)


def _take_percentiles(values: NDArray[np.float64]) -> Interval | None:
    """Return the ends of the middle 95 % of (B,) values; None if half of them or more are NaN."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) <= len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _remove_bias(
    interval: Interval | None, resampled: NDArray[np.float64], value: float
) -> Interval | None:
    """Lower the interval of mAP by twice the bias that resampling shows, within [0, 1].

    `value` is above the true number by about as much as the mean of the resamples is above
    `value`. A resample has both biases, hence twice.
    """
    if interval is None:
        return None
    bias = float(np.nanmean(resampled)) - value
    low, high = (min(max(end - 2 * bias, 0.0), 1.0) for end in interval)
    return low, high


def resample_mean_ap(scores: ScoreTable, counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return (B,) mAP of resamples that hold each image as often as (B, N) counts say."""
    ranked = _rank_labels(scores, [0.5] * len(scores.labels))
    size = max(1, _BLOCK // max(1, len(scores.names)))
    parts = [counts[start : start + size] for start in range(0, len(counts), size)]
    return np.concatenate([_measure_resamples(ranked, part).averages()["mAP"] for part in parts])


# ---- one ranking, many weights ----------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """Ranking of one label: its K known images by falling logit; P of them are positive.

    Attributes:
        order: (K,) int32 images.
        positives: (P,) int32 images, in the same order.
        bounds: (Q,) positions in `order` that sums of counts end at: 0, the end of each group of
            equal logits with a positive, the position of the threshold, K.
        before: (Q,) number of positives before each bound.
        ends: indices into `bounds` of the ends of groups.
        cut: index into `bounds` of the threshold's position.
    """

    order: NDArray[np.int32]
    positives: NDArray[np.int32]
    bounds: NDArray[np.intp]
    before: NDArray[np.intp]
    ends: NDArray[np.intp]
    cut: int


def _rank_labels(scores: ScoreTable, thresholds: Sequence[float]) -> list[_Ranking]:
    """Rank all L labels."""
    assert len(thresholds) == len(scores.labels)
    return [
        _rank_label(scores.logits[:, column], scores.targets[:, column], cut)
        for column, cut in enumerate(find_cuts(np.array(thresholds, np.float64)))
    ]


def _rank_label(
    logits: NDArray[np.float32], targets: NDArray[np.int8], limit: np.float32
) -> _Ranking:
    """Rank the known images of one label.

    Precision changes only from image to image, but AP uses it only at the ends of groups with a
    positive, and F1 only at the threshold. So sums up to these positions (`bounds`) are enough.

    Args:
        logits, targets: (N,) of the label.
        limit: logit from which the label is predicted.
    """
    known = np.flatnonzero(targets != UNKNOWN)
    order = known[np.argsort(-logits[known], kind="stable")]
    falling, places = logits[order], np.flatnonzero(targets[order] == POSITIVE)
    groups = np.append(np.flatnonzero(falling[1:] != falling[:-1]) + 1, len(order))
    ends = np.unique(groups[np.searchsorted(groups, places, side="right")])
    cut = np.count_nonzero(falling >= limit)
    bounds = np.unique(np.concatenate([ends, [0, cut, len(order)]]))
    return _Ranking(
        order.astype(np.int32),
        order[places].astype(np.int32),
        bounds,
        np.searchsorted(places, bounds),
        np.searchsorted(bounds, ends),
        int(np.searchsorted(bounds, cut)),
    )


@dataclass(frozen=True)
class _Results:
    """Numbers of B resamples: (B, L) AP and F1, (B,) micro F1; NaN where undefined."""

    ap: NDArray[np.float64]
    f1: NDArray[np.float64]
    micro_f1: NDArray[np.float64]

    def averages(self) -> dict[str, NDArray[np.float64]]:
        """Return name of an average -> (B,) values; NaN where undefined."""
        values = (_average_rows(self.ap), _average_rows(self.f1), self.micro_f1)
        return dict(zip(AVERAGES, values, strict=True))


def _average_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (B,) means of the defined values of each row; NaN for a row without one."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def _divide(numerator: NDArray[np.generic], divisor: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the quotient in float64; NaN where the divisor is 0."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, divisor, out=result, where=divisor != 0)
    return result


def _resample(
    tables: Sequence[list[_Ranking]],
    images: int,
    resamples: int,
    seed: int,
    progress: Progress = lambda images: None,
) -> list[_Results]:
    """Measure every table on the same resamples."""
    blocks: list[list[_Results]] = [[] for _ in tables]
    for weights in _draw_weights(images, resamples, seed):
        for table, results in zip(tables, blocks, strict=True):
            results.append(_measure_resamples(table, weights))
        progress(weights.size)
    return [
        _Results(
            np.concatenate([block.ap for block in results]),
            np.concatenate([block.f1 for block in results]),
            np.concatenate([block.micro_f1 for block in results]),
        )
        for results in blocks
    ]


def _draw_weights(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield blocks of (b, N) counts: a row says how often its resample holds each image.

    A row sums to N. The rows do not depend on the size of a block, so neither do the results.
    """
    generator = np.random.default_rng(seed)
    size = max(1, _BLOCK // images)
    for start in range(0, resamples, size):
        weights = np.empty((min(size, resamples - start), images), np.int32)
        for row in weights:
            row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
        yield weights


def _measure_resamples(table: list[_Ranking], weights: NDArray[np.int32]) -> _Results:
    """Measure all labels with (b, N) counts as weights of the images."""
    ap, f1 = (np.empty((len(weights), len(table))) for _ in range(2))
    pooled = np.zeros((3, len(weights)), np.int64)
    for column, ranking in enumerate(table):
        ap[:, column], counts = _measure_label(ranking, weights)
        f1[:, column] = _compute_f1(counts)
        pooled += counts
    return _Results(ap, f1, _compute_f1(pooled))


def _compute_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (b,) F1 from (3, b) true positives, predicted, positives; NaN without a positive."""
    hits, predicted, positives = counts
    result = _divide(2 * hits, predicted + positives)
    result[positives == 0] = np.nan
    return result


def _measure_label(
    ranking: _Ranking, weights: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return (b,) AP, NaN where undefined, and (3, b): true positives, predicted, positives.

    At the end of each group of equal logits with a positive, precision is the weight of positives
    so far over the weight of all images so far; AP sums it, weighted by the positives gained.
    `seen` and `hits` are these two sums at each of the ranking's bounds.
    """
    seen = np.zeros((len(weights), len(ranking.bounds)), np.int64)
    if len(ranking.order):
        drawn = weights.take(ranking.order, axis=1)
        np.cumsum(np.add.reduceat(drawn, ranking.bounds[:-1], axis=1), axis=1, out=seen[:, 1:])
    hits = np.zeros((len(weights), len(ranking.positives) + 1), np.int64)
    np.cumsum(weights.take(ranking.positives, axis=1), axis=1, out=hits[:, 1:])
    hits = hits[:, ranking.before]
    positives, known = hits[:, -1], seen[:, -1]
    right, ranked = hits[:, ranking.ends], seen[:, ranking.ends]
    gained = np.diff(right, axis=1, prepend=0)
    ap = _divide((gained * right / np.maximum(ranked, 1)).sum(axis=1), positives)
    ap[known == positives] = np.nan  # this resample has no negative
    return ap, np.stack([hits[:, ranking.cut], seen[:, ranking.cut], positives])
