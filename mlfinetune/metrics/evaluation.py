"""Decisions and numbers from scores, as the config's `eval` section says.

    validation's scores  -> fit_decision_rule -> DecisionRule, stored in the checkpoint
    scores, DecisionRule -> evaluate          -> Evaluation, written as a folder of results

Numbers at thresholds that were fitted on the same images are optimistic. So the result also has
rates from cross-fitting (`cross_fitted`): thresholds that were fitted on four folds of the images
decide those of the fifth.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import EvalConfig
from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics import calibration, thresholds
from mlfinetune.metrics.implies import Pairs, align_thresholds, raise_parents
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import (
    CalibrationError,
    CalibrationFacts,
    CrossFittedRates,
    DecisionRule,
    Evaluation,
    Facts,
    FittedOn,
    Intervals,
    ReliabilityBin,
    ReviewBand,
    ScoreTable,
    WantedPrecision,
)

RESAMPLES = 1000
DRAWN_BINS = 10
"""Bins of the reliability curve that the page draws."""
DRAWN = 2 * 10**9
"""(image, label) pairs that resampling may draw. Beyond 2 million pairs, a table gets fewer
resamples, but at least 100."""


def raise_scores(scores: ScoreTable, implies: Pairs) -> ScoreTable:
    """Return the scores with no parent below its child."""
    return replace(scores, logits=raise_parents(scores.logits, implies)) if implies else scores


def fit_decision_rule(
    settings: EvalConfig, scores: ScoreTable, implies: Pairs = ()
) -> DecisionRule:
    """Fit the calibration, then the thresholds to calibrated logits, to these scores.

    Args:
        settings: kinds of calibration and thresholds, and the review band.
        scores: (N, L) the model's own logits, and targets.
        implies: columns of children and their parents: parents are raised before thresholds are
            fitted, and no child is given without them.
    """
    line = calibration.fit(scores.logits, scores.targets, settings.calibration)
    fitted = thresholds.fit(
        raise_parents(line.apply(scores.logits), implies),
        scores.targets,
        settings.thresholds,
        fixed=settings.threshold,
        precision=settings.precision,
        groups=scores.groups,
    )
    values = fitted.values
    values[list(fitted.unreachable)] = 1.0
    values = align_thresholds(values, implies)
    return DecisionRule(
        fitted.how,
        tuple(values.tolist()),
        line.how,
        tuple(line.slope.tolist()),
        tuple(line.intercept.tolist()),
        settings.review,
        implies,
    )


def evaluate(
    settings: EvalConfig, scores: ScoreTable, decision: DecisionRule, fitted_here: bool
) -> Evaluation:
    """Compute every number of `scores`, at the thresholds of `decision`.

    Args:
        settings: `ap`, and how the decision was fitted, if it was.
        scores: (N, L) the model's own logits, and targets.
        decision: from the checkpoint.
        fitted_here: whether `decision` was fitted on these very images.
    """
    assert scores.calibration == "none"
    logits = decision.calibrate(scores.logits)
    calibrated = replace(scores, logits=logits, calibration=decision.calibration)
    table = measure(calibrated, np.array(decision.thresholds), settings.ap)
    unbiased, present = calibrated, sigmoid(calibrated.logits) >= decision.limits
    fitted_on: FittedOn = "other images"
    cross_fitted = None
    if decision.how == "fixed" and decision.calibration == "none":
        fitted_on = "nothing"
    elif fitted_here:
        fitted_on = "the same images"
        unbiased, present = _cross_fit(settings, scores, decision.implies)
        cross_fitted = _measure_rates(scores, present)
    review = None
    if decision.review is not None:
        review = _count_review(unbiased, present, *decision.review)
    facts = Facts(
        threshold_source=decision.how,
        fitted_on=fitted_on,
        intervals=_compute_intervals(calibrated, decision, settings.ap),
        cross_fitted=cross_fitted,
        calibration=CalibrationFacts(
            decision.calibration,
            _measure_calibration(raise_scores(scores, decision.implies)),
            None if decision.calibration == "none" else _measure_calibration(unbiased),
        ),
        review=review,
        precision=_list_never_given(settings, scores, decision),
    )
    return Evaluation(calibrated, table, decision, facts)


def _cross_fit(
    settings: EvalConfig, scores: ScoreTable, implies: Pairs
) -> tuple[ScoreTable, NDArray[np.bool_]]:
    """Calibrate and decide each image by a fit on the other folds.

    Returns:
        Scores with calibrated logits, and (N, L) bool: True where a label is predicted.
    """
    present = thresholds.cross_fit(
        scores.logits,
        scores.targets,
        settings.thresholds,
        calibrate=settings.calibration,
        fixed=settings.threshold,
        precision=settings.precision,
        groups=scores.groups,
        implies=implies,
    )
    logits = calibration.cross_fit(
        scores.logits, scores.targets, settings.calibration, groups=scores.groups
    )
    logits = raise_parents(logits, implies)
    return replace(scores, logits=logits, calibration=settings.calibration), present


def _list_never_given(
    settings: EvalConfig, scores: ScoreTable, decision: DecisionRule
) -> WantedPrecision | None:
    if decision.how != "precision":
        return None
    rows = zip(scores.labels.names, decision.thresholds, strict=True)
    never = tuple(name for name, threshold in rows if threshold >= 1)
    return WantedPrecision(settings.precision, thresholds.count_needed(settings.precision), never)


def _measure_rates(scores: ScoreTable, present: NDArray[np.bool_]) -> CrossFittedRates:
    """Measure the rates of (N, L) decisions: logits of 1 and -1 pass the threshold 0.5, or fail."""
    decided = replace(scores, logits=np.where(present, np.float32(1), np.float32(-1)))
    averages = measure(decided).averages
    return CrossFittedRates(
        **{
            f"{kind}_{name}": averages[f"{kind}_{name}"]
            for kind in ("macro", "micro")
            for name in ("precision", "recall", "F1")
        }
    )


def _compute_intervals(scores: ScoreTable, decision: DecisionRule, ap: str) -> Intervals:
    """Compute the 95 % intervals, of fewer resamples where the table is large."""
    pairs = max(1, scores.logits.size)
    resamples = max(100, min(RESAMPLES, DRAWN // pairs))
    return compute_intervals(scores, decision.thresholds, resamples, ap=ap)


def _measure_calibration(scores: ScoreTable) -> CalibrationError:
    """Measure the calibration error over all known pairs, with the curve that the page draws."""
    p = sigmoid(scores.logits)
    curve = calibration.reliability_curve(p, scores.targets, DRAWN_BINS, equal="width")
    columns = (curve.probability.tolist(), curve.observed.tolist(), curve.count.tolist())
    return CalibrationError(
        calibration.ece(p, scores.targets),
        calibration.brier(p, scores.targets),
        tuple(ReliabilityBin(*row) for row in zip(*columns, strict=True)),
        calibration.ece_by_chance(p, scores.targets),
    )


def _count_review(
    scores: ScoreTable, present: NDArray[np.bool_], low: float, high: float
) -> ReviewBand:
    """Count images and pairs in the review band, and the wrong decisions in all and in the band.

    Args:
        scores: (N, L) calibrated logits, and targets.
        present: (N, L), True where a label is predicted.
        low, high: ends of the band, probabilities.
    """
    p, known = sigmoid(scores.logits), scores.targets != UNKNOWN
    inside = (p >= low) & (p <= high)
    wrong = known & (present != (scores.targets == POSITIVE))
    return ReviewBand(
        low=low,
        high=high,
        images=int(inside.any(axis=1).sum()),
        pairs=int(inside.sum()),
        wrong=int(wrong.sum()),
        wrong_inside=int((wrong & inside).sum()),
    )
