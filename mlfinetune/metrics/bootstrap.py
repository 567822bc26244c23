"""How far the numbers of a ScoreTable may be off: images drawn again, with replacement.

    ScoreTable -> a ranking a label -> weights of images, a block of resamples -> intervals

A resample of N images is a vector of N counts, the same for every label, and AP and F1 are
those of scikit-learn with the counts as sample weights. Each label is ranked once; in a
resample, sums of the counts between the positives' places in the ranking are all that AP and
F1 need.

Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13), but that of mAP is
moved. AP of few positives is too high on average, and in a resample, where positives stand
twice, once more; a mean over labels keeps that bias and loses the noise that would hide it. So
the percentiles of mAP are lowered by twice the bias that resampling shows, and the interval
need not be centred on the number. In differences of two tables the bias cancels, and in one
label's AP noise outweighs it (`benchmarks/bootstrap.py` has the coverage of each).

A label whose positives, or negatives, are all left out of a resample has no AP there, and no
part in that resample's mAP, as in `measure`. Thresholds are taken as given: what fitting them
on the same images adds to the uncertainty is not in the intervals.

Memory beyond the tables: 4 bytes a known pair for the rankings, 16 bytes a label and resample
for the results, and some 30 MiB for a block of resamples, or 30 bytes an image of millions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics.types import ScoreTable

LEVEL = 0.95
AVERAGES = ("mAP", "macro_F1", "micro_F1")
NO_DIFFERENCE = "no difference can be told"
_BLOCK = 1 << 20
"""Counts in a block of resamples, 4 MiB: a label's few calls are then no part of the time."""

Interval = tuple[float, float]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class LabelIntervals:
    """One label's 95 % intervals; None where undefined on the data or in half the resamples."""

    label: str
    AP: Interval | None
    F1: Interval | None


@dataclass(frozen=True)
class Intervals:
    """The 95 % intervals of one ScoreTable.

    Attributes:
        averages: mAP, macro_F1 and micro_F1; None where undefined.
        per_label: in label order.
        resamples: how many.
    """

    averages: dict[str, Interval | None]
    per_label: tuple[LabelIntervals, ...]
    resamples: int


@dataclass(frozen=True)
class Difference:
    """One number of two tables.

    Attributes:
        a, b: the number of each; None where undefined.
        interval: of b - a, 95 %; None where undefined on the data or in half the resamples.
        share_above: of the resamples, those where b is above a; None with the interval.
    """

    a: float | None
    b: float | None
    interval: Interval | None
    share_above: float | None

    @property
    def value(self) -> float | None:
        """Of b - a."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def sign(self) -> int:
        """1 where the interval is above 0, -1 where it is below, 0 where it holds 0 or is None."""
        if self.interval is None:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


@dataclass(frozen=True)
class Comparison:
    """Two tables of the same images.

    Attributes:
        averages: mAP, macro_F1 and micro_F1.
        per_label: AP, in label order.
        resamples: how many.
    """

    averages: dict[str, Difference]
    per_label: dict[str, Difference]
    resamples: int

    @property
    def wins(self) -> int:
        """Labels whose interval is above 0: b is better."""
        return sum(one.sign > 0 for one in self.per_label.values())

    @property
    def losses(self) -> int:
        """Labels whose interval is below 0: a is better."""
        return sum(one.sign < 0 for one in self.per_label.values())

    @property
    def ties(self) -> int:
        """Labels whose interval holds 0; those without one are not counted."""
        return sum(one.interval is not None and not one.sign for one in self.per_label.values())

    @property
    def verdict(self) -> str:
        """By the interval of mAP: B is better, A is better, or that nothing can be told."""
        return {1: "B is better", -1: "A is better", 0: NO_DIFFERENCE}[self.averages["mAP"].sign]


def intervals(
    scores: ScoreTable,
    thresholds: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """95 % intervals of mAP, F1 and each label's AP and F1.

    Args:
        scores: (N, L) logits and targets.
        thresholds: (L,) probabilities from which a label counts as present.
        resamples: how many times N images are drawn.
        seed: same seed, same intervals.
    """
    ranked, images = _ranked(scores, thresholds), len(scores.names)
    (found,) = _resampled([ranked], images, resamples, seed)
    averages = {name: _interval(values) for name, values in found.averages().items()}
    here = _results(ranked, np.ones((1, images), np.int32)).averages()["mAP"]
    averages["mAP"] = _lowered(averages["mAP"], found.averages()["mAP"], float(here[0]))
    rows = zip(scores.labels.names, found.ap.T, found.f1.T, strict=True)
    per_label = tuple(LabelIntervals(name, _interval(ap), _interval(f1)) for name, ap, f1 in rows)
    return Intervals(averages, per_label, resamples)


def paired(
    a: ScoreTable,
    b: ScoreTable,
    thresholds_a: Sequence[float],
    thresholds_b: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = lambda images: None,
) -> Comparison:
    """How much b is above a: both on the same resamples, so that what is common cancels.

    Args:
        a, b: (N, L) logits of the same images and labels in the same order, and equal targets.
        thresholds_a, thresholds_b: (L,) probabilities, as for `intervals`.
        resamples, seed: as for `intervals`.
        progress: told how many images were drawn since it was told last.
    """
    assert a.names == b.names
    assert a.labels == b.labels
    assert np.array_equal(a.targets, b.targets)
    ranked = [_ranked(a, thresholds_a), _ranked(b, thresholds_b)]
    once = np.ones((1, len(a.names)), np.int32)
    here = [_results(table, once) for table in ranked]
    drawn = _resampled(ranked, len(a.names), resamples, seed, progress)
    points_a, points_b = (one.averages() for one in here)
    many_a, many_b = (one.averages() for one in drawn)
    averages = {
        name: _difference(points_a[name], points_b[name], many_a[name], many_b[name])
        for name in AVERAGES
    }
    columns = zip(*(one.ap.T for one in (*here, *drawn)), strict=True)
    rows = zip(a.labels.names, columns, strict=True)
    per_label = {name: _difference(*column) for name, column in rows}
    return Comparison(averages, per_label, resamples)


def _difference(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    resampled_a: NDArray[np.float64],
    resampled_b: NDArray[np.float64],
) -> Difference:
    """From (1,) numbers and (B,) resampled ones."""
    change = resampled_b - resampled_a
    interval = _interval(change)
    above = None if interval is None else float((change[~np.isnan(change)] > 0).mean())
    value_a, value_b = (None if np.isnan(one[0]) else float(one[0]) for one in (a, b))
    return Difference(value_a, value_b, interval, above)


def _interval(values: NDArray[np.float64]) -> Interval | None:
    """The middle 95 % of (B,) values; None where half of them or more are undefined."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) <= len(values):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _lowered(
    interval: Interval | None, resampled: NDArray[np.float64], value: float
) -> Interval | None:
    """The interval without the bias of `value`, and that of the resamples against it."""
    if interval is None:
        return None
    bias = float(np.nanmean(resampled)) - value
    low, high = (min(max(end - 2 * bias, 0.0), 1.0) for end in interval)
    return low, high


# ---- one ranking, many weights ----------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """One label's K known images by falling logit, of which P are positive.

    Attributes:
        order: (K,) int32 images.
        positives: (P,) int32 images.
        bounds: places in `order` where sums are wanted: 0, the ends of the groups of equal
            logits that hold a positive, the place of the threshold, K.
        before: positives before each of the bounds.
        ends: which of the bounds are ends of groups.
        cut: which of the bounds is that of the threshold.
    """

    order: NDArray[np.int32]
    positives: NDArray[np.int32]
    bounds: NDArray[np.intp]
    before: NDArray[np.intp]
    ends: NDArray[np.intp]
    cut: int


def _ranked(scores: ScoreTable, thresholds: Sequence[float]) -> list[_Ranking]:
    assert len(thresholds) == len(scores.labels)
    return [
        _ranking(scores.logits[:, at], scores.targets[:, at], threshold)
        for at, threshold in enumerate(thresholds)
    ]


def _ranking(logits: NDArray[np.float32], targets: NDArray[np.int8], threshold: float) -> _Ranking:
    known = np.flatnonzero(targets != UNKNOWN)
    order = known[np.argsort(-logits[known], kind="stable")]
    falling, places = logits[order], np.flatnonzero(targets[order] == POSITIVE)
    with np.errstate(divide="ignore"):  # thresholds of 0 and 1: all, and none
        present = falling >= np.float32(np.log(np.float64(threshold) / (1 - threshold)))
    groups = np.append(np.flatnonzero(falling[1:] != falling[:-1]) + 1, len(order))
    ends = np.unique(groups[np.searchsorted(groups, places, side="right")])
    cut = np.count_nonzero(present)
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
    """B resamples: (B, L) AP and F1, NaN where undefined; (B,) micro F1."""

    ap: NDArray[np.float64]
    f1: NDArray[np.float64]
    micro_f1: NDArray[np.float64]

    def averages(self) -> dict[str, NDArray[np.float64]]:
        """(B,) a name; NaN where undefined."""
        values = (_row_means(self.ap), _row_means(self.f1), self.micro_f1)
        return dict(zip(AVERAGES, values, strict=True))


def _row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) means of what is defined in each row."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def _ratio(numerator: NDArray[np.generic], divisor: NDArray[np.generic]) -> NDArray[np.float64]:
    """Their quotient in float64; NaN where the divisor is 0."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, divisor, out=result, where=divisor != 0)
    return result


def _resampled(
    tables: Sequence[list[_Ranking]],
    images: int,
    resamples: int,
    seed: int,
    progress: Progress = lambda images: None,
) -> list[_Results]:
    """Every table on the same resamples."""
    blocks: list[list[_Results]] = [[] for _ in tables]
    for weights in _drawn(images, resamples, seed):
        for table, results in zip(tables, blocks, strict=True):
            results.append(_results(table, weights))
        progress(weights.size)
    return [
        _Results(
            np.concatenate([one.ap for one in results]),
            np.concatenate([one.f1 for one in results]),
            np.concatenate([one.micro_f1 for one in results]),
        )
        for results in blocks
    ]


def _drawn(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Blocks of (b, N) counts whose rows sum to N."""
    generator = np.random.default_rng(seed)
    size = max(1, _BLOCK // images)
    for start in range(0, resamples, size):
        weights = np.empty((min(size, resamples - start), images), np.int32)
        for row in weights:
            row[:] = np.bincount(generator.integers(0, images, images), minlength=images)
        yield weights


def _results(table: list[_Ranking], weights: NDArray[np.int32]) -> _Results:
    """All labels under (b, N) counts."""
    ap, f1 = (np.empty((len(weights), len(table))) for _ in range(2))
    pooled = np.zeros((3, len(weights)), np.int64)
    for at, ranking in enumerate(table):
        ap[:, at], counts = _label(ranking, weights)
        f1[:, at] = _f1(counts)
        pooled += counts
    return _Results(ap, f1, _f1(pooled))


def _f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(b,) F1 from (3, b): true positives, predicted, positives; NaN where there are none."""
    hits, predicted, positives = counts
    result = _ratio(2 * hits, predicted + positives)
    result[positives == 0] = np.nan
    return result


def _label(
    ranking: _Ranking, weights: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(b,) AP, NaN where undefined, and (3, b): true positives, predicted, positives."""
    seen = np.zeros((len(weights), len(ranking.bounds)), np.int64)
    if len(ranking.order):
        drawn = weights.take(ranking.order, axis=1)
        np.cumsum(np.add.reduceat(drawn, ranking.bounds[:-1], axis=1), axis=1, out=seen[:, 1:])
    found = np.zeros((len(weights), len(ranking.positives) + 1), np.int64)
    np.cumsum(weights.take(ranking.positives, axis=1), axis=1, out=found[:, 1:])
    found = found[:, ranking.before]
    positives, known = found[:, -1], seen[:, -1]
    right, ranked = found[:, ranking.ends], seen[:, ranking.ends]
    gained = np.diff(right, axis=1, prepend=0)
    ap = _ratio((gained * right / np.maximum(ranked, 1)).sum(axis=1), positives)
    ap[known == positives] = np.nan
    return ap, np.stack([found[:, ranking.cut], seen[:, ranking.cut], positives])
