"""Calibration of logits, and the calibration error of probabilities.

    logits, targets        -> fit()               -> Calibration -> apply() -> logits
    probabilities, targets -> reliability_curve() -> ece();  brier()

A label's calibrated logit is slope * logit + intercept, fitted to the log loss over its known
targets (Platt, 1999; Guo et al., 2017). A slope is an exponential, hence above 0: the order of a
label's images, and with it its AP, stays.

A label with few positives cannot determine two numbers. So each label's line is pulled toward the
line that all labels share, and that one toward the identity. The prior of log(slope) is normal
around that of the shared line, with a standard deviation of SLOPE_SD. The prior of the shift is
normal around 0 logits, with a standard deviation of SHIFT_SD; the shift is measured at the logit
where the label's targets tell most (benchmarks/calibration.py measures the effect). The penalty is
0 at the line that a fit starts from, so that no fit has a worse log loss on its own data than that
line.

The sigmoid here is SciPy's: it may differ from metrics/logits.py in the last digit, and the fitted
numbers in checkpoints depend on every digit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics.folds import select_known, split_folds
from mlfinetune.metrics.types import CalibrationHow, ScoreTable

Column = tuple[NDArray[np.float64], NDArray[np.bool_]]

SLOPE_SD, SHIFT_SD = 0.3, 0.7
TOLERANCE, ITERATIONS, LONGEST_STEP = 1e-12, 100, 4.0
"""Of Fisher scoring: gain, as a share of the value, below which it stops; greatest number of steps;
and the longest step in a coordinate of theta."""


MOST_PAIRS = 500_000
"""Pairs of picture and label that are enough for one slope."""


@dataclass(frozen=True)
class Line:
    """A line of one label: calibrated logit = slope * logit + intercept."""

    slope: float
    intercept: float


IDENTITY = Line(1.0, 0.0)


@dataclass(frozen=True)
class Calibration:
    """Lines of L labels.

    Attributes:
        how: `none`, `temperature` (one slope for all labels) or `platt` (a line for each).
        slope: (L,) float64, above 0.
        intercept: (L,) float64, in logits.
    """

    how: CalibrationHow
    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return calibrated (N, L) logits. A label's order stays, but rounding may tie some."""
        out = np.empty_like(logits)
        for column in range(logits.shape[1]):
            values = logits[:, column].astype(np.float64)
            out[:, column] = self.slope[column] * values + self.intercept[column]
        return out


def fit(logits: NDArray[np.float32], targets: NDArray[np.int8], how: CalibrationHow) -> Calibration:
    """Fit a calibration to (N, L) logits and targets in {1, 0, unknown}.

    A label without a known positive, or without a known negative, gets the shared line. If all
    labels together lack one of the two, each gets the identity.
    """
    labels = logits.shape[1]
    lines = [IDENTITY] * labels
    if how != "none":
        columns = _Columns(logits, targets)
        shared = _fit_line(columns, IDENTITY, shift=how == "platt")
        lines = [shared] * labels
        if how == "platt":
            lines = [_fit_line([column], shared, shift=True) for column in columns]
    slope, intercept = [line.slope for line in lines], [line.intercept for line in lines]
    return Calibration(how, np.array(slope, np.float64), np.array(intercept, np.float64))


def fit_slope(scores: ScoreTable) -> float:
    """Fit the factor that calibrates the logits of all labels together, as `temperature` does.

    It brings the logits of models that differ in their penalty, or their epoch, to one scale. Of a
    large table rows at even distances are enough.
    """
    step = -(-scores.logits.size // MOST_PAIRS) or 1
    logits, targets = scores.logits[::step], scores.targets[::step]
    known = targets != UNKNOWN
    pairs = logits[known].astype(np.float64), targets[known] == POSITIVE
    return _fit_line([pairs], IDENTITY, shift=False).slope


def cross_fit(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: CalibrationHow,
    *,
    folds: int = 5,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return (N, L) logits, each image's calibrated by a fit on the other folds.

    Numbers of these logits are not optimistic. `groups`: see split_folds.
    """
    out = np.empty_like(logits)
    for others, held in split_folds(len(logits), folds, seed, groups):
        out[held] = fit(logits[others], targets[others], how).apply(logits[held])
    return out


# ---- the fit ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Known pairs of every label, made anew in each loop: memory holds one label's at a time."""

    logits: NDArray[np.float32]
    targets: NDArray[np.int8]

    def __iter__(self) -> Iterator[Column]:
        columns = range(self.logits.shape[1])
        return (select_known(self.logits, self.targets, column) for column in columns)


@dataclass(frozen=True)
class _Fit:
    """The function that a fit minimizes: summed log loss in nats, plus the penalty of theta.

    theta[0] is log(slope / around.slope), and theta[1] is the shift in logits at `center`.
    Without `shift` only the slope is free.
    """

    columns: Iterable[Column]
    around: Line
    center: float
    shift: bool

    def line(self, theta: NDArray[np.float64]) -> Line:
        """Return `around`, turned at `center` by theta[0], and higher by theta[1]."""
        slope = self.around.slope * float(np.exp(theta[0]))
        turned = self.around.intercept + (self.around.slope - slope) * self.center
        return Line(slope, turned + float(theta[1]))

    def evaluate(
        self, theta: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Return value, (2,) gradient and (2, 2) Fisher information at theta."""
        line, rigid = self.line(theta), np.array([SLOPE_SD, SHIFT_SD]) ** -2.0
        value, gradient, information = rigid @ theta**2 / 2, rigid * theta, np.diag(rigid)
        for logits, truth in self.columns:
            z = line.slope * logits + line.intercept
            p = expit(z)
            turn = line.slope * (logits - self.center)
            weight, miss = p * (1 - p), p - truth
            value += np.logaddexp(0, np.where(truth, -z, z)).sum()
            gradient += (miss @ turn, miss.sum())
            cross = weight @ turn
            information += ((weight @ turn**2, cross), (cross, weight.sum()))
        if not self.shift:
            gradient[1] = information[0, 1] = information[1, 0] = 0
        return float(value), gradient, information


def _fit_line(columns: Iterable[Column], around: Line, *, shift: bool) -> Line:
    """Find the line of least penalized log loss, by Fisher scoring.

    Return `around` if there is no known positive, or no known negative.
    """
    counts = np.sum([(truth.sum(), (~truth).sum()) for _, truth in columns] or [(0, 0)], axis=0)
    if not counts.all():
        return around
    problem = _Fit(columns, around, _find_center(columns, around) if shift else 0.0, shift)
    theta = np.zeros(2)
    value, gradient, information = problem.evaluate(theta)
    for _ in range(ITERATIONS):
        step = -np.linalg.solve(information, gradient)
        step *= min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-300))
        if -gradient @ step <= TOLERANCE * (1 + value):
            break
        ahead = problem.evaluate(theta + step)
        # Far from the minimum a full step may overshoot: halve it until the value does not rise.
        while ahead[0] > value and np.abs(step).max() > TOLERANCE:
            step /= 2
            ahead = problem.evaluate(theta + step)
        if ahead[0] > value:
            break
        theta, (value, gradient, information) = theta + step, ahead
    return problem.line(theta)


def _find_center(columns: Iterable[Column], around: Line) -> float:
    """Return the logit where targets tell most about a line near `around`.

    It is the mean logit, weighted by p (1 - p). There, an error in the slope and one in the shift
    have no correlation, so that each has its own penalty.
    """
    moment = total = 0.0
    for logits, _ in columns:
        p = expit(around.slope * logits + around.intercept)
        moment += float((p * (1 - p)) @ logits)
        total += float((p * (1 - p)).sum())
    return moment / total if total else 0.0


# ---- the calibration error of probabilities -----------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: one entry for each bin that is not empty, by rising probability.

    Attributes:
        probability: mean predicted probability.
        observed: share of positives.
        count: number of known pairs.
    """

    probability: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability_curve(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.int8],
    bins: int = 15,
    equal: Literal["count", "width"] = "count",
) -> Reliability:
    """Return the reliability curve over the known pairs, in bins of equal count or equal width.

    Bins of equal count are for measuring. Most probabilities of rare labels lie near 0, and bins of
    equal width would put them all in one. Also, the ECE of equal counts is less biased (Roelofs et
    al., 2022). Equal probabilities stay in one bin, so that the order of images does not matter.
    Bins of equal width are for drawing: each is a range of probability.

    Args:
        probabilities, targets: arrays of one shape, any.
        bins: greatest number of bins.
        equal: count or width.
    """
    p, truth = _select_known(probabilities, targets)
    if equal == "width":
        bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    else:
        order = np.argsort(p, kind="stable")
        p, truth = p[order], truth[order]
        first, last = np.searchsorted(p, p, "left"), np.searchsorted(p, p, "right")
        # Equal probabilities get the bin of the middle of their ranks.
        bin_of = (first + last - 1) * bins // (2 * max(len(p), 1))
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0
    count = count[filled]
    mean = np.bincount(bin_of, p, bins)[filled] / count
    observed = np.bincount(bin_of, truth, bins)[filled] / count
    return Reliability(mean, observed, count)


def ece(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], bins: int = 15
) -> float | None:
    """Return the expected calibration error over the known pairs, in [0, 1]; None without any.

    It is the mean of |observed - probability| over the bins of `reliability_curve`, weighted by
    count. Chance alone makes it positive, see `ece_by_chance`: about 0.01 for 2,000 images of a
    perfectly calibrated label of which 5 % are positive.
    """
    curve = reliability_curve(probabilities, targets, bins)
    if not curve.count.size:
        return None
    return float(np.average(np.abs(curve.observed - curve.probability), weights=curve.count))


def ece_by_chance(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], bins: int = 15
) -> float | None:
    """Return the ECE to expect of these probabilities if each were perfectly calibrated.

    In a bin of n pairs the observed share scatters about the mean probability; its distance is on
    average sqrt(2 / pi * variance / n), and never more than that of one pair, 2 * variance. An ECE
    near this number shows no miscalibration.
    """
    p, _ = _select_known(probabilities, targets)
    curve = reliability_curve(probabilities, targets, bins)
    if not p.size:
        return None
    variance = curve.probability * (1 - curve.probability)
    distance = np.minimum(np.sqrt(2 / np.pi * variance / curve.count), 2 * variance)
    return float(np.average(distance, weights=curve.count))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was observed in `count` cases (Wilson, 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) * z / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def brier(probabilities: NDArray[np.floating], targets: NDArray[np.int8]) -> float | None:
    """Return the mean of (probability - truth)^2 over the known pairs; None without any."""
    p, truth = _select_known(probabilities, targets)
    return float(np.mean((p - truth) ** 2)) if p.size else None


def _select_known(
    values: NDArray[np.floating], targets: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (K,) values and (K,) truth of all K known pairs."""
    rows = targets != UNKNOWN
    return values[rows].astype(np.float64), targets[rows] == POSITIVE
