"""Logits -> logits whose probabilities can be believed, and how far they can be.

    logits, targets -> fit() -> Calibration -> apply() -> logits
    probabilities, targets -> reliability() -> ece();  brier()

A label's calibrated logit is slope * logit + intercept, fitted to the log loss over its known
targets (Platt, 1999; Guo et al., 2017). A slope is an exponential, hence above 0: the order of
a label's images, and with it its AP, stays.

Few positives cannot carry two numbers. So a label's line is drawn to the line that all labels
share, which in turn is drawn to the identity: as if log(slope) were normal around the shared
one with a standard deviation of SLOPE_SD, and the shift in logits, where the label's targets
tell most, with one of SHIFT_SD (benchmarks/calibration.py measures it). The penalty is 0 at the
line that a fit starts from, so that no fit has a worse log loss on its own data than that line.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics.folds import known_pairs, split_folds

CalibrationHow = Literal["none", "temperature", "platt"]
Column = tuple[NDArray[np.float64], NDArray[np.bool_]]

SLOPE_SD, SHIFT_SD = 0.3, 0.7
TOLERANCE, ITERATIONS, LONGEST_STEP = 1e-12, 100, 4.0


@dataclass(frozen=True)
class Line:
    """calibrated logit = slope * logit + intercept."""

    slope: float
    intercept: float


IDENTITY = Line(1.0, 0.0)


@dataclass(frozen=True)
class Calibration:
    """A line a label.

    Attributes:
        how: `none`, `temperature` (one slope for all labels) or `platt` (a line for each).
        slope: (L,) float64, above 0.
        intercept: (L,) float64, in logits.
    """

    how: CalibrationHow
    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrated (N, L) logits, a label's in the same order, though rounding may tie some."""
        out = np.empty_like(logits)
        for at in range(logits.shape[1]):
            out[:, at] = self.slope[at] * logits[:, at].astype(np.float64) + self.intercept[at]
        return out


def fit(logits: NDArray[np.float32], targets: NDArray[np.int8], how: CalibrationHow) -> Calibration:
    """The calibration that (N, L) logits and targets in {1, 0, unknown} ask for.

    A label without a known positive or without a known negative gets the shared line, and all
    get the identity where that holds for the labels together.
    """
    labels = logits.shape[1]
    lines = [IDENTITY] * labels
    if how != "none":
        columns = _Columns(logits, targets)
        shared = _line(columns, IDENTITY, shift=how == "platt")
        lines = [shared] * labels
        if how == "platt":
            lines = [_line([column], shared, shift=True) for column in columns]
    slope, intercept = [line.slope for line in lines], [line.intercept for line in lines]
    return Calibration(how, np.array(slope, np.float64), np.array(intercept, np.float64))


def cross_fitted(
    logits: NDArray[np.float32],
    targets: NDArray[np.int8],
    how: CalibrationHow,
    *,
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.float32]:
    """(N, L) logits, each image's calibrated by what the other folds fitted: for honest numbers."""
    out = np.empty_like(logits)
    for others, held in split_folds(len(logits), folds, seed):
        out[held] = fit(logits[others], targets[others], how).apply(logits[held])
    return out


# ---- the fit ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Every label's known pairs, made anew each time, so that one label's are held at a time."""

    logits: NDArray[np.float32]
    targets: NDArray[np.int8]

    def __iter__(self) -> Iterator[Column]:
        return (known_pairs(self.logits, self.targets, at) for at in range(self.logits.shape[1]))


@dataclass(frozen=True)
class _Fit:
    """What is minimised over theta = (log slope beyond that of `around`, shift at `centre`).

    The summed log loss in nats, and theta's penalty. Without `shift` only the slope is free.
    """

    columns: Iterable[Column]
    around: Line
    centre: float
    shift: bool

    def line(self, theta: NDArray[np.float64]) -> Line:
        """The line that turns as far as theta[0] around `centre` and is theta[1] higher there."""
        slope = self.around.slope * float(np.exp(theta[0]))
        turned = self.around.intercept + (self.around.slope - slope) * self.centre
        return Line(slope, turned + float(theta[1]))

    def at(
        self, theta: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Value, (2,) gradient and (2, 2) Fisher information."""
        line, rigid = self.line(theta), np.array([SLOPE_SD, SHIFT_SD]) ** -2.0
        value, gradient, information = rigid @ theta**2 / 2, rigid * theta, np.diag(rigid)
        for logits, truth in self.columns:
            z = line.slope * logits + line.intercept
            p = expit(z)
            turn = line.slope * (logits - self.centre)
            weight, miss = p * (1 - p), p - truth
            value += np.logaddexp(0, np.where(truth, -z, z)).sum()
            gradient += (miss @ turn, miss.sum())
            cross = weight @ turn
            information += ((weight @ turn**2, cross), (cross, weight.sum()))
        if not self.shift:
            gradient[1] = information[0, 1] = information[1, 0] = 0
        return float(value), gradient, information


def _line(columns: Iterable[Column], around: Line, *, shift: bool) -> Line:
    """The line of least penalised log loss by Fisher scoring, or `around` where it says nothing."""
    counts = np.sum([(truth.sum(), (~truth).sum()) for _, truth in columns] or [(0, 0)], axis=0)
    if not counts.all():
        return around
    problem = _Fit(columns, around, _centre(columns, around) if shift else 0.0, shift)
    theta = np.zeros(2)
    value, gradient, information = problem.at(theta)
    for _ in range(ITERATIONS):
        step = -np.linalg.solve(information, gradient)
        step *= min(1.0, LONGEST_STEP / max(np.abs(step).max(), 1e-300))
        if -gradient @ step <= TOLERANCE * (1 + value):
            break
        ahead = problem.at(theta + step)
        while ahead[0] > value and np.abs(step).max() > TOLERANCE:
            step /= 2
            ahead = problem.at(theta + step)
        if ahead[0] > value:
            break
        theta, (value, gradient, information) = theta + step, ahead
    return problem.line(theta)


def _centre(columns: Iterable[Column], around: Line) -> float:
    """The logit where targets tell most about a line near `around`: there its two parts part."""
    moment = total = 0.0
    for logits, _ in columns:
        p = expit(around.slope * logits + around.intercept)
        moment += float((p * (1 - p)) @ logits)
        total += float((p * (1 - p)).sum())
    return moment / total if total else 0.0


# ---- how far probabilities can be believed ------------------------------------------------


@dataclass(frozen=True)
class Reliability:
    """The reliability curve; one entry a bin that holds anything, by rising probability.

    Attributes:
        probability: mean predicted probability.
        observed: share of positives.
        count: known pairs.
    """

    probability: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.int8],
    bins: int = 15,
    equal: Literal["count", "width"] = "count",
) -> Reliability:
    """The curve over the known pairs, arrays of any one shape, in bins of equal count or width.

    Equal counts to measure: most probabilities of rare labels lie near 0, where equal widths put
    them all in one bin, and the ECE of equal counts is the less biased (Roelofs et al., 2022).
    Equal probabilities stay in one bin, so that the order of images does not matter. Equal widths
    to draw: the bins are ranges of probability.
    """
    p, truth = _known_pairs(probabilities, targets)
    if equal == "width":
        bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    else:
        order = np.argsort(p, kind="stable")
        p, truth = p[order], truth[order]
        first, last = np.searchsorted(p, p, "left"), np.searchsorted(p, p, "right")
        bin_of = (first + last - 1) * bins // (2 * max(len(p), 1))  # by the middle of its equals
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0
    count = count[filled]
    mean = np.bincount(bin_of, p, bins)[filled] / count
    observed = np.bincount(bin_of, truth, bins)[filled] / count
    return Reliability(mean, observed, count)


def ece(
    probabilities: NDArray[np.floating], targets: NDArray[np.int8], bins: int = 15
) -> float | None:
    """Expected calibration error over the known pairs, in [0, 1]; None without any.

    The mean distance between `observed` and `probability` of reliability(), by count. Chance
    alone makes it positive: 0.01 for 2,000 images of a perfectly calibrated label of 5 %.
    """
    curve = reliability(probabilities, targets, bins)
    if not curve.count.size:
        return None
    return float(np.average(np.abs(curve.observed - curve.probability), weights=curve.count))


def brier(probabilities: NDArray[np.floating], targets: NDArray[np.int8]) -> float | None:
    """Mean squared distance of probability and truth over the known pairs; None without any."""
    p, truth = _known_pairs(probabilities, targets)
    return float(np.mean((p - truth) ** 2)) if p.size else None


def log_loss(logits: NDArray[np.floating], targets: NDArray[np.int8]) -> float | None:
    """Mean log loss of logits over the known pairs, in nats; None without any."""
    z, truth = _known_pairs(logits, targets)
    return float(np.logaddexp(0, np.where(truth, -z, z)).mean()) if z.size else None


def per_label(
    score: Callable[[NDArray[np.floating], NDArray[np.int8]], float | None],
    values: NDArray[np.floating],
    targets: NDArray[np.int8],
) -> tuple[float | None, ...]:
    """ece, brier or log_loss of each of L columns; None where a label has no known target."""
    return tuple(score(values[:, at], targets[:, at]) for at in range(targets.shape[1]))


def _known_pairs(
    values: NDArray[np.floating], targets: NDArray[np.int8]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The values and truth of all known pairs, flat."""
    rows = targets != UNKNOWN
    return values[rows].astype(np.float64), targets[rows] == POSITIVE
