"""Thresholds: logits from which labels count as present, fitted or fixed.

    logits, targets -> fit()       -> Thresholds -> predict() -> (N, L) bool
    logits, targets -> cross_fit() -> (N, L) bool, each image decided by the other folds

fixed      one probability for all labels.
global     the one threshold with the highest macro F1. Macro, not micro: a label's own threshold
           is fitted to that label's F1, and macro F1 is the mean of these; micro F1 depends on
           common labels almost alone (benchmarks/thresholds.py: its threshold has the lower macro
           F1).
per_label  g + w * (own - g), in logits, where g is the global threshold. The best threshold of a
           label alone changes much with every image. So `own` is the mean of all thresholds whose
           F1 is near the best: within a share of 1/2 * P^(-2/3), P the label's number of
           positives. The reason: a best threshold errs by about P^(-1/3) (Kim & Pollard, 1990),
           and F1 falls with the square of that. w = P / (P + 3) pulls `own` toward g; a label
           without a positive gets g. Both constants come from simulation, as above; a wider band
           gains more with even scores and loses with skewed ones.
precision  the lowest threshold at which the label's precision on other images is shown to be the
           wanted one, with a confidence of 80 %: were it lower, so many right of its predictions
           would have a probability of 20 % or less (exact binomial test; Clopper & Pearson, 1934).
           No label borrows from others: hard labels would be given on the merits of easy ones.
           Testing every threshold would find one that passes by chance. So thresholds are tested
           in a fixed order, until the first fails: where as many images are predicted as can
           pass at all (`count_needed`), or half the label's positives if that is more; then a
           quarter more each time. In this way 80 % hold for the whole search (Bauer, 1991;
           measured by benchmarks/thresholds.py). If the first fails, the label predicts nothing.
           The test needs independent images: with `groups`, a group counts as one.

Unknown targets are left out. A fitted threshold lies midway between two neighboring scores (for
per_label, that holds for g and for each threshold that `own` is the mean of). Thresholds fitted to
calibrated logits are for calibrated logits.

Sigmoid and logit here are SciPy's: they may differ from metrics/logits.py in the last digit, and
the fitted numbers in checkpoints depend on every digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, log

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, expit, logit

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics import calibration
from mlfinetune.metrics.folds import select_known, split_folds
from mlfinetune.metrics.implies import Pairs, align_thresholds, raise_parents
from mlfinetune.metrics.types import CalibrationHow, ThresholdHow

PULL, NEAR = 3.0, 0.5  # per_label: the 3 of P / (P + 3); the 1/2 of 1/2 * P^(-2/3)
CONFIDENCE, FIRST, MORE = 0.8, 0.5, 1.25  # precision: the 80 %; half the positives; a quarter more
GRID = 2048  # greatest number of global thresholds that are tried
NEVER = float(np.finfo(np.float32).max)  # a logit that no image has


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of L labels.

    Attributes:
        how: as given to fit().
        cuts: (L,) float64, finite logits from which labels count as present. Logits decide, not
            probabilities, because these round near 0 and 1.
        common: logit that all labels share: the threshold of `fixed` and `global`, the one that
            `per_label` pulls toward; None for `precision`.
        own: (L,) float64 in [0, 1], weight of the label's own threshold against `common`.
        unreachable: columns that cannot reach the wanted precision; they predict nothing.
    """

    how: ThresholdHow
    cuts: NDArray[np.float64]
    common: float | None
    own: NDArray[np.float64]
    unreachable: tuple[int, ...] = ()

    @property
    def values(self) -> NDArray[np.float64]:
        """(L,) float64 cuts as probabilities in (0, 1), for people."""
        return np.asarray(np.clip(expit(self.cuts), np.finfo(np.float64).tiny, 1 - 2.0**-53))

    def predict(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return (N, L) bool: True where a logit is its label's cut or more."""
        return np.asarray(logits >= self.cuts)


def fit(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: ThresholdHow,
    *,
    fixed: float = 0.5,
    precision: float = 0.9,
    groups: NDArray[np.int64] | None = None,
) -> Thresholds:
    """Fit thresholds to (N, L) finite logits and targets in {1, 0, unknown}.

    Without a known positive in any label, `global` and `per_label` give a probability of 0.5.

    Args:
        logits, targets: of the data to fit; numbers measured on the same data are optimistic.
        how: kind of thresholds, see the top of this file.
        fixed: probability in (0, 1), for `fixed`.
        precision: wanted precision in (0, 1), for `precision`.
        groups: (N,) ids of images that belong together, for `precision`.
    """
    labels = logits.shape[1]
    if how == "fixed":
        cut = float(logit(fixed))
        return Thresholds(how, np.full(labels, cut), cut, np.zeros(labels))
    if how == "precision":
        return _fit_precision(logits, targets, precision, groups)
    common = _fit_global(logits, targets, _make_grid(logits, targets))
    cuts, own = np.full(labels, common), np.zeros(labels)
    if how == "per_label":
        for column in range(labels):
            steps = _Steps.of(*select_known(logits, targets, column))
            if steps.positives:
                own[column] = steps.positives / (steps.positives + PULL)
                cuts[column] += own[column] * (_average_near_best(steps) - common)
    return Thresholds(how, cuts, common, own)


def cross_fit(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: ThresholdHow,
    *,
    calibrate: CalibrationHow = "none",
    fixed: float = 0.5,
    precision: float = 0.9,
    folds: int = 5,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    implies: Pairs = (),
) -> NDArray[np.bool_]:
    """Return (N, L) bool predictions, each image's by thresholds fitted on the other folds.

    F1s of these predictions are not optimistic. With `calibrate`, the other folds also fit the
    calibration, and the thresholds are fitted to calibrated logits. `groups`: see split_folds;
    `implies`: see metrics/implies.py.
    """
    out = np.zeros(logits.shape, np.bool_)
    for others, held in split_folds(len(logits), folds, seed, groups):
        line = calibration.fit(logits[others], targets[others], calibrate)
        calibrated = raise_parents(line.apply(logits[others]), implies)
        some = None if groups is None else groups[others]
        fitted = fit(
            calibrated, targets[others], how, fixed=fixed, precision=precision, groups=some
        )
        fitted = replace(fitted, cuts=align_thresholds(fitted.cuts, implies))
        out[held] = fitted.predict(raise_parents(line.apply(logits[held]), implies))
    return out


# ---- one label --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """Counts at every threshold of one label, highest first; K distinct known scores.

        scores 3 (positive), 1 (negative)  ->  cuts [2, 0.5], right [1, 1], predicted [1, 2]

    Attributes:
        cuts: (K,) midway between a score and the next lower one; half a logit below the lowest.
        widths: (K,) distance of those two scores: every threshold between them decides alike.
        right: (K,) number of positives among the predicted.
        predicted: (K,) number of predicted.
        positives: number of known positives of the label.
    """

    cuts: NDArray[np.float64]
    widths: NDArray[np.float64]
    right: NDArray[np.int64]
    predicted: NDArray[np.int64]
    positives: int

    @classmethod
    def of(cls, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> "_Steps":
        """Count at every threshold of (K,) known scores and truth, in any order."""
        order = np.argsort(-scores, kind="stable")
        scores, right = scores[order], np.cumsum(truth[order], dtype=np.int64)
        last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(scores)])
        upper = scores[last]
        lower = np.append(upper[1:], upper[-1:] - 1)
        return cls((upper + lower) / 2, upper - lower, right[last], last + 1, int(truth.sum()))

    def f1(self) -> NDArray[np.float64]:
        """Return (K,) F1 of a label with a positive."""
        return 2 * self.right / (self.predicted + self.positives)


def _average_near_best(steps: _Steps) -> float:
    """Return the mean of the thresholds whose F1 is near the best, weighted by their widths.

    Near: F1 is at least the best one times 1 - NEAR * P^(-2/3), P the number of positives.
    """
    f1 = steps.f1()
    near = f1 >= f1.max() * (1 - NEAR * steps.positives ** (-2 / 3))
    # A single score of 2^53 or more has a width of 0, as score - 1 rounds to the score. The tiny
    # number keeps the sum of the widths above 0.
    widths = steps.widths[near] + np.finfo(np.float64).tiny
    return float(steps.cuts[near] @ (widths / widths.sum()))


# ---- a wanted precision -------------------------------------------------------------------


def count_needed(wanted: float) -> int:
    """Return the fewest predictions, all of them right, that show a precision of `wanted`.

    16 for 0.9: with a precision below 0.9, 16 of 16 are right in less than 20 % of the cases.
    """
    return max(1, ceil(log(1 - CONFIDENCE) / log(wanted)))


def _fit_precision(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    wanted: float,
    groups: NDArray[np.int64] | None,
) -> Thresholds:
    """Fit the thresholds of `precision`: see the top of this file."""
    labels = logits.shape[1]
    cuts = np.full(labels, NEVER)
    for column in range(labels):
        scores, truth = select_known(logits, targets, column)
        steps = _Steps.of(scores, truth)
        distinct = steps.predicted
        if groups is not None:
            distinct = _count_groups(scores, groups[targets[:, column] != UNKNOWN], steps)
        if (last := _find_last_shown(steps, distinct, wanted)) is not None:
            cuts[column] = steps.cuts[last]
    never = np.flatnonzero(cuts == NEVER)
    return Thresholds("precision", cuts, None, np.ones(labels), tuple(never.tolist()))


def _find_last_shown(steps: _Steps, distinct: NDArray[np.int64], wanted: float) -> int | None:
    """Return the last place of `steps`, in the order of the tests, before one that fails.

    Args:
        steps: counts at every threshold of one label.
        distinct: (K,) independent images among the predicted.
        wanted: the precision to show.
    """
    ranks = [max(count_needed(wanted), ceil(FIRST * steps.positives))]
    while steps.positives and ranks[-1] < distinct[-1]:
        ranks.append(ceil(MORE * ranks[-1]))
    tested = np.unique(distinct.searchsorted(ranks))
    tested = tested[tested < len(distinct)]
    right, share = steps.right[tested], distinct[tested] / steps.predicted[tested]
    wrong = steps.predicted[tested] - right
    chance = betainc(np.maximum(right, 1) * share, wrong * share + 1, wanted)
    failed = np.flatnonzero((right == 0) | (chance > 1 - CONFIDENCE))
    passed = int(failed[0]) if len(failed) else len(tested)
    return int(tested[passed - 1]) if passed else None


def _count_groups(
    scores: NDArray[np.float64], groups: NDArray[np.int64], steps: _Steps
) -> NDArray[np.int64]:
    """Return the (K,) numbers of distinct groups among the predicted at each of `steps`."""
    ids = groups[np.argsort(-scores, kind="stable")]
    is_new = np.zeros(len(ids), np.int64)
    is_new[np.unique(ids, return_index=True)[1]] = 1
    return np.asarray(np.cumsum(is_new)[steps.predicted - 1])


# ---- all labels together ----------------------------------------------------------------


def _make_grid(logits: NDArray[np.float32], targets: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return distinct scores of positives, rising: all, or GRID of them, evenly by rank.

    They are the candidates of a global threshold: between two of them, a higher threshold only
    removes negatives, so that the best one is at a positive's score.
    """
    scores = np.unique(logits[targets == POSITIVE])
    if len(scores) > GRID:
        scores = scores[np.linspace(0, len(scores) - 1, GRID).astype(np.int64)]
    return scores.astype(np.float64)


def _count_labels(
    logits: NDArray[np.float32], targets: NDArray[np.int8], grid: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Yield each label's (G,) right and predicted at the grid's G scores, and its positives."""
    for column in range(logits.shape[1]):
        scores, truth = select_known(logits, targets, column)
        right, scores = np.sort(scores[truth]), np.sort(scores)
        yield (
            len(right) - right.searchsorted(grid),
            len(scores) - scores.searchsorted(grid),
            len(right),
        )


def _fit_global(
    logits: NDArray[np.float32], targets: NDArray[np.int8], grid: NDArray[np.float64]
) -> float:
    """Find the global threshold, in logits; 0 if there is no positive."""
    if not len(grid):
        return 0.0
    total = np.zeros(len(grid))
    for right, predicted, positives in _count_labels(logits, targets, grid):
        if positives:
            total += 2 * right / (predicted + positives)
    score = grid[len(grid) - 1 - np.argmax(total[::-1])]  # the highest of equally good ones
    lower = -np.inf
    for column in range(logits.shape[1]):
        scores, _ = select_known(logits, targets, column)
        lower = max(lower, scores[scores < score].max(initial=-np.inf))
    return float((score + (lower if np.isfinite(lower) else score - 1)) / 2)
