"""Bootstrap: numbers of a ScoreTable on resamples of its images.

    ScoreTable -> one ranking per label -> weights of images -> sums along the ranking -> numbers

A resample gives each image a weight, equal for every label. Each label is ranked once. In a
resample its AP, AUROC and F1 need only the sums of weights between the positions of positives in
that ranking. Two kinds of resamples:

counts   N images are drawn with replacement; a weight says how often (Efron 1979). The numbers are
         those of scikit-learn with the counts as sample weights.
weights  each image has an exponential weight (the Bayesian bootstrap, Rubin 1981). No image is
         ever left out, so that a label of two positives keeps both.

Images of one group (`ScoreTable.groups`) are drawn together: they have one weight.

A block of resamples takes about 60 MiB (60 bytes an image, if there are millions).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics.logits import find_cuts
from mlfinetune.metrics.types import ScoreTable

Floats = NDArray[np.float64]
Weights = NDArray[Any]
"""Counts (int32) or exponential weights (float32) of images; sums of them are 64 bits wide."""
Progress = Callable[[int], object]
AVERAGES = ("mAP", "macro_AUROC", "macro_F1", "micro_F1")
_BLOCK = 1 << 20
"""Weights in a block of resamples, 4 MiB: large enough that the time of NumPy's calls vanishes."""


# ---- one ranking, many weights ----------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Ranking of one label: its K known images by falling logit; P of them are positive.

    Attributes:
        order: (K,) int32 images.
        positives: (P,) int32 images, in the same order.
        bounds: (Q,) positions in `order` that sums of weights end at: 0, start and end of each
            group of E equal logits with a positive, the position of the threshold, K.
        before: (Q,) number of positives before each bound.
        starts, ends: (E,) indices into `bounds` of the starts and ends of these groups.
        cut: index into `bounds` of the threshold's position.
    """

    order: NDArray[np.int32]
    positives: NDArray[np.int32]
    bounds: NDArray[np.intp]
    before: NDArray[np.intp]
    starts: NDArray[np.intp]
    ends: NDArray[np.intp]
    cut: int


def rank_labels(scores: ScoreTable, thresholds: Sequence[float]) -> list[Ranking]:
    """Rank all L labels.

    Args:
        scores: (N, L) logits and targets.
        thresholds: (L,) probabilities from which a label counts as present; 1: never.
    """
    assert len(thresholds) == len(scores.labels)
    return [
        _rank_label(scores.logits[:, column], scores.targets[:, column], cut)
        for column, cut in enumerate(find_cuts(np.array(thresholds, np.float64)))
    ]


def _rank_label(
    logits: NDArray[np.float32], targets: NDArray[np.int8], limit: np.float32
) -> Ranking:
    """Rank the known images of one label; `limit` is the logit from which it is predicted."""
    known = np.flatnonzero(targets != UNKNOWN)
    order = known[np.argsort(-logits[known], kind="stable")]
    falling, places = logits[order], np.flatnonzero(targets[order] == POSITIVE)
    groups = np.concatenate([[0], np.flatnonzero(falling[1:] != falling[:-1]) + 1, [len(order)]])
    last = np.unique(np.searchsorted(groups, places, side="right"))
    starts, ends = groups[last - 1], groups[last]
    cut = np.count_nonzero(falling >= limit)
    bounds = np.unique(np.concatenate([starts, ends, [0, cut, len(order)]]))
    return Ranking(
        order.astype(np.int32),
        order[places].astype(np.int32),
        bounds,
        np.searchsorted(places, bounds),
        np.searchsorted(bounds, starts),
        np.searchsorted(bounds, ends),
        int(np.searchsorted(bounds, cut)),
    )


@dataclass(frozen=True)
class Sums:
    """Weights of one label's images in b resamples, summed along its ranking.

    Attributes:
        right, wrong: (b, E) weight of the positives, and of the negatives, down to the end of each
            group of equal logits.
        right_above, wrong_above: (b, E) the same down to its start.
        positives, negatives: (b,) weight of all.
        tp, fp: (b,) weight of those that the threshold passes.
    """

    right: Weights
    wrong: Weights
    right_above: Weights
    wrong_above: Weights
    positives: Weights
    negatives: Weights
    tp: Weights
    fp: Weights


def sum_weights(ranking: Ranking, weights: Weights) -> Sums:
    """Sum (b, N) weights of the images along the ranking of one label."""
    wide = np.int64 if weights.dtype.kind == "i" else np.float64
    seen = np.zeros((len(weights), len(ranking.bounds)), wide)
    if len(ranking.order):
        drawn = weights.take(ranking.order, axis=1)
        np.cumsum(np.add.reduceat(drawn, ranking.bounds[:-1], axis=1), axis=1, out=seen[:, 1:])
    hits = np.zeros((len(weights), len(ranking.positives) + 1), wide)
    np.cumsum(weights.take(ranking.positives, axis=1), axis=1, out=hits[:, 1:])
    hits = hits[:, ranking.before]
    wrong = np.maximum(seen - hits, 0)  # sums in another order may differ in the last digit
    starts, ends = ranking.starts, ranking.ends
    return Sums(
        hits[:, ends],
        wrong[:, ends],
        hits[:, starts],
        wrong[:, starts],
        hits[:, -1],
        wrong[:, -1],
        hits[:, ranking.cut],
        wrong[:, ranking.cut],
    )


# ---- numbers of resamples ---------------------------------------------------------------


def compute_ap(sums: Sums, protocol: str) -> Floats:
    """Return (b,) AP by one of the protocols of `average_precision`; NaN where undefined.

    A resample without a positive or without a negative has none, as in `measure`.
    """
    precision = divide(sums.right, sums.right + sums.wrong)
    if protocol != "sklearn":
        precision = np.fmax.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if protocol == "voc_11point":
        padded = np.column_stack([precision, np.zeros(len(precision))])
        levels = [
            (10 * sums.right < level * sums.positives[:, None]).sum(axis=1) for level in range(11)
        ]
        reached = np.take_along_axis(padded, np.stack(levels, axis=1), axis=1)
        ap: Floats = reached.mean(axis=1)
    else:
        gained = sums.right - sums.right_above
        ap = divide(np.where(gained > 0, gained * precision, 0.0).sum(axis=1), sums.positives)
    ap[(sums.positives == 0) | (sums.negatives == 0)] = np.nan
    return ap


def compute_auroc(sums: Sums) -> Floats:
    """Return (b,) area under the ROC curve; NaN where AP is."""
    gained = sums.right - sums.right_above
    lost = (gained * (sums.wrong_above + sums.wrong)).sum(axis=1) / 2
    return np.asarray(1 - divide(lost, sums.positives * sums.negatives))


def compute_f1(tp: Weights, fp: Weights, positives: Weights) -> Floats:
    """Return (b,) F1; NaN without a positive."""
    result = divide(2 * tp, tp + fp + positives)
    result[positives == 0] = np.nan
    return result


@dataclass(frozen=True)
class Resampled:
    """Numbers of B resamples: (B, L) AP, AUROC and F1, (B,) micro F1; NaN where undefined."""

    ap: Floats
    auroc: Floats
    f1: Floats
    micro_f1: Floats

    def averages(self) -> dict[str, Floats]:
        """Return name of an average -> (B,) values; NaN where undefined."""
        means = [_average_rows(values) for values in (self.ap, self.auroc, self.f1)]
        return dict(zip(AVERAGES, (*means, self.micro_f1), strict=True))


def measure_resamples(table: Sequence[Ranking], weights: Weights, protocol: str) -> Resampled:
    """Measure all labels with (b, N) weights of the images."""
    ap, auroc, f1 = (np.empty((len(weights), len(table))) for _ in range(3))
    tp, fp, positives = np.zeros((3, len(weights)), np.int64)
    for column, ranking in enumerate(table):
        sums = sum_weights(ranking, weights)
        ap[:, column] = compute_ap(sums, protocol)
        auroc[:, column] = compute_auroc(sums)
        f1[:, column] = compute_f1(sums.tp, sums.fp, sums.positives)
        tp, fp, positives = tp + sums.tp, fp + sums.fp, positives + sums.positives
    return Resampled(ap, auroc, f1, compute_f1(tp, fp, positives))


def resample(
    tables: Sequence[Sequence[Ranking]],
    groups: NDArray[np.int64],
    resamples: int,
    seed: int,
    protocol: str,
    progress: Progress = lambda images: None,
) -> list[Resampled]:
    """Measure every table on the same resamples, drawn as counts.

    Args:
        tables: rankings of the same images and labels.
        groups: (N,) number of each image's group, from 0 on.
        resamples: B, the number of resamples.
        seed: equal seeds give equal resamples.
        protocol: of AP.
        progress: called with the number of images drawn since its last call.
    """
    blocks: list[list[Resampled]] = [[] for _ in tables]
    for weights in draw_counts(groups, resamples, seed):
        for table, block in zip(tables, blocks, strict=True):
            block.append(measure_resamples(table, weights, protocol))
        progress(weights.size)
    names = Resampled.__dataclass_fields__
    return [
        Resampled(*(np.concatenate([getattr(part, name) for part in block]) for name in names))
        for block in blocks
    ]


def _average_rows(values: Floats) -> Floats:
    """Return (B,) means of the defined values of each row; NaN for a row without one."""
    defined = ~np.isnan(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def divide(numerator: NDArray[np.generic], divisor: NDArray[np.generic]) -> Floats:
    """Return the quotient in float64; NaN where the divisor is 0."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, divisor, out=result, where=divisor != 0)
    return result


# ---- draws ------------------------------------------------------------------------------


def find_groups(scores: ScoreTable) -> NDArray[np.int64]:
    """Return (N,) numbers of the images' groups, from 0 on; an image of no group is its own."""
    if scores.groups is None:
        return np.arange(len(scores.names))
    return np.unique(scores.groups, return_inverse=True)[1]


def draw_counts(
    groups: NDArray[np.int64], resamples: int, seed: int
) -> Iterator[NDArray[np.int32]]:
    """Yield blocks of (b, N) counts: a row says how often its resample holds each image.

    As many groups are drawn as there are. The rows do not depend on the size of a block.
    """
    generator = np.random.default_rng(seed)
    total = int(groups.max()) + 1
    for rows in _split_rows(len(groups), resamples):
        counts = np.empty((rows, total), np.int32)
        for row in counts:
            row[:] = np.bincount(generator.integers(0, total, total), minlength=total)
        yield counts.take(groups, axis=1)


def draw_weights(
    groups: NDArray[np.int64], resamples: int, seed: int
) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of (b, N) exponential weights, one for each group in each resample."""
    generator = np.random.default_rng(seed)
    total = int(groups.max()) + 1
    for rows in _split_rows(len(groups), resamples):
        yield generator.standard_exponential((rows, total), np.float32).take(groups, axis=1)


def _split_rows(images: int, resamples: int) -> Iterator[int]:
    """Yield the number of resamples of each block."""
    size = max(1, _BLOCK // images)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
