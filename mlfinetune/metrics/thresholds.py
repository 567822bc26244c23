"""The logits from which labels count as present, and F1s that were not fitted to.

    logits, targets -> fit() -> Thresholds -> predict() -> (N, L) bool
    logits, targets -> cross_fitted() -> (N, L) bool, each image decided by the others

fixed      one probability for all labels.
global     the one threshold with the highest macro F1. Macro, not micro: a label's own threshold
           is fitted to that label's F1, whose mean macro F1 is, and micro F1 hears of common
           labels alone (benchmarks/thresholds.py: micro's threshold has the lower macro F1).
per_label  g + w * (own - g), in logits. `own` is the mean of all the label's thresholds whose F1
           is near its best, for the best alone jumps with every image: within 1/2 * P^(-2/3)
           of it, P its number of positives, as a best threshold errs by P^(-1/3) (Kim &
           Pollard, 1990) and F1 falls by the square. w = P / (P + 3) draws it to the global
           threshold g, which a label without a positive gets. Both constants by simulation,
           as above; a wider band gains more with even scores and loses with skewed ones.
precision  the lowest threshold from which the label's precision is the wanted one or better with
           a chance of 80 %. The chance is that of a beta distribution: the label's own
           predictions, right and wrong, and 5 more with the precision that all labels have
           together at that logit. Where nothing reaches it, the label predicts nothing.

Unknown targets are masked. A fitted threshold (of per_label: g, and each it is the mean of) lies
midway between two neighbouring scores. Fit on calibrated logits and it is one for those.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, expit, logit

from mlfinetune.data.targets import POSITIVE
from mlfinetune.metrics import calibration
from mlfinetune.metrics.folds import known_pairs, split_folds

ThresholdHow = Literal["fixed", "global", "per_label", "precision"]

PULL, NEAR = 3.0, 0.5  # of per_label: positives that g is worth; share of the best F1 at P = 1
CONFIDENCE, BORROWED = 0.8, 5.0  # of precision
GRID = 2048  # most global thresholds that are tried
NEVER = float(np.finfo(np.float32).max)  # a logit that no image has


@dataclass(frozen=True)
class Thresholds:
    """What each label's logit must reach.

    Attributes:
        how: as given to fit().
        cuts: (L,) float64, finite logits; these decide, as probabilities round near 0 and 1.
        common: the logit that all labels share: of `fixed` and `global` the threshold, of
            `per_label` what it is shrunk toward; None for `precision`.
        own: (L,) float64 in [0, 1], the weight of the label's own threshold beside `common`.
        unreachable: columns that the wanted precision cannot be had of; they predict nothing.
    """

    how: ThresholdHow
    cuts: NDArray[np.float64]
    common: float | None
    own: NDArray[np.float64]
    unreachable: tuple[int, ...] = ()

    @property
    def values(self) -> NDArray[np.float64]:
        """(L,) the cuts as probabilities in (0, 1), for people."""
        return np.asarray(np.clip(expit(self.cuts), np.finfo(np.float64).tiny, 1 - 2.0**-53))

    def predict(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(N, L) whether a label is there: its logit is the cut or more."""
        return np.asarray(logits >= self.cuts)


def fit(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: ThresholdHow,
    *,
    fixed: float = 0.5,
    precision: float = 0.9,
) -> Thresholds:
    """The thresholds that (N, L) finite logits and targets in {1, 0, unknown} ask for.

    Args:
        logits, targets: of the data to fit; a number measured on them is optimistic.
        how: see the module.
        fixed: probability in (0, 1), of how `fixed`; also what no positive at all leads to: 0.5.
        precision: in (0, 1), of how `precision`.
    """
    labels = logits.shape[1]
    if how == "fixed":
        cut = float(logit(fixed))
        return Thresholds(how, np.full(labels, cut), cut, np.zeros(labels))
    grid = _grid(logits, targets)
    if how == "precision":
        return _precise(logits, targets, grid, precision)
    common = _common(logits, targets, grid)
    cuts, own = np.full(labels, common), np.zeros(labels)
    if how == "per_label":
        for at in range(labels):
            steps = _Steps.of(*known_pairs(logits, targets, at))
            if steps.positives:
                own[at] = steps.positives / (steps.positives + PULL)
                cuts[at] += own[at] * (_near_best(steps) - common)
    return Thresholds(how, cuts, common, own)


def cross_fitted(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: ThresholdHow,
    *,
    calibrate: calibration.CalibrationHow = "none",
    fixed: float = 0.5,
    precision: float = 0.9,
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """(N, L) predictions, each image's by thresholds fitted to the other folds: for honest F1s.

    With `calibrate`, the other folds fit the calibration too, and the thresholds to its logits.
    """
    out = np.zeros(logits.shape, np.bool_)
    for others, held in split_folds(len(logits), folds, seed):
        line = calibration.fit(logits[others], targets[others], calibrate)
        seen = line.apply(logits[others])
        found = fit(seen, targets[others], how, fixed=fixed, precision=precision)
        out[held] = found.predict(line.apply(logits[held]))
    return out


# ---- one label --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """What each threshold leads to, from the highest score down; K distinct known scores.

    Attributes:
        cuts: (K,) midway between a score and the next lower, or half a logit below the lowest.
        widths: (K,) distance of those two scores, in which every threshold decides alike.
        right, said: (K,) positives among the predicted, and predicted.
        positives: of the label.
    """

    cuts: NDArray[np.float64]
    widths: NDArray[np.float64]
    right: NDArray[np.int64]
    said: NDArray[np.int64]
    positives: int

    @classmethod
    def of(cls, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> "_Steps":
        """From the known scores and truth of a label, in any order."""
        order = np.argsort(-scores, kind="stable")
        scores, right = scores[order], np.cumsum(truth[order], dtype=np.int64)
        last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(scores)])
        upper = scores[last]
        lower = np.append(upper[1:], upper[-1:] - 1)
        return cls((upper + lower) / 2, upper - lower, right[last], last + 1, int(truth.sum()))

    def f1(self) -> NDArray[np.float64]:
        """(K,) of a label with a positive."""
        return 2 * self.right / (self.said + self.positives)


def _near_best(steps: _Steps) -> float:
    """The mean of the thresholds whose F1 is within NEAR * P^(-2/3) of the best, as a share."""
    f1 = steps.f1()
    near = f1 >= f1.max() * (1 - NEAR * steps.positives ** (-2 / 3))
    widths = steps.widths[near] + np.finfo(np.float64).tiny  # where logits are so large that 0
    return float(steps.cuts[near] @ (widths / widths.sum()))


# ---- all labels together ----------------------------------------------------------------


def _grid(logits: NDArray[np.float32], targets: NDArray[np.int8]) -> NDArray[np.float64]:
    """Scores of positives, rising: all distinct ones, or GRID of them, evenly by rank.

    Between two of them a higher threshold only takes negatives away: the best is at one.
    """
    scores = np.unique(logits[targets == POSITIVE])
    if len(scores) > GRID:
        scores = scores[np.linspace(0, len(scores) - 1, GRID).astype(np.int64)]
    return scores.astype(np.float64)


def _counts(
    logits: NDArray[np.float32], targets: NDArray[np.int8], grid: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Each label's right and said, (G,) at or above the grid's scores, and its positives."""
    for at in range(logits.shape[1]):
        scores, truth = known_pairs(logits, targets, at)
        right, scores = np.sort(scores[truth]), np.sort(scores)
        yield (
            len(right) - right.searchsorted(grid),
            len(scores) - scores.searchsorted(grid),
            len(right),
        )


def _common(
    logits: NDArray[np.float32], targets: NDArray[np.int8], grid: NDArray[np.float64]
) -> float:
    """The global threshold, in logits; 0, where there is no positive."""
    if not len(grid):
        return 0.0
    total = np.zeros(len(grid))
    for right, said, positives in _counts(logits, targets, grid):
        if positives:
            total += 2 * right / (said + positives)
    score = grid[len(grid) - 1 - np.argmax(total[::-1])]  # of equals the highest
    lower = -np.inf
    for at in range(logits.shape[1]):
        scores, _ = known_pairs(logits, targets, at)
        lower = max(lower, scores[scores < score].max(initial=-np.inf))
    return float((score + (lower if np.isfinite(lower) else score - 1)) / 2)


def _precise(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    grid: NDArray[np.float64],
    wanted: float,
) -> Thresholds:
    """Thresholds of how `precision`."""
    labels = logits.shape[1]
    cuts, unreachable = np.full(labels, NEVER), []
    right, said = np.zeros(len(grid)), np.zeros(len(grid))
    for more_right, more_said, _ in _counts(logits, targets, grid):
        right, said = right + more_right, said + more_said
    together = (right + 0.5) / (said + 1)
    for at in range(labels):
        steps = _Steps.of(*known_pairs(logits, targets, at))
        reached = np.zeros(0, np.int64)
        if steps.positives:
            nearest = np.minimum(grid.searchsorted(steps.cuts), len(grid) - 1)
            a = steps.right + BORROWED * together[nearest]
            b = steps.said - steps.right + BORROWED * (1 - together[nearest])
            reached = np.flatnonzero(1 - betainc(a, b, wanted) >= CONFIDENCE)
        if len(reached):
            cuts[at] = steps.cuts[reached[-1]]
        else:
            unreachable.append(at)
    return Thresholds("precision", cuts, None, np.ones(labels), tuple(unreachable))
