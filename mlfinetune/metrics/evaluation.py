"""Scores become decisions and numbers, as the config's `eval` section says.

    validation's scores -> decide -> Decision, stored in the checkpoint
    scores, Decision    -> judge  -> Verdict: what a folder of results says

Numbers at thresholds that were fitted on the same images are optimistic, so those of thresholds
fitted on other images stand beside them: `cross_fitted`, five parts, each decided by the rest.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import EvalConfig
from mlfinetune.data.targets import POSITIVE, UNKNOWN
from mlfinetune.metrics import bootstrap, calibration, thresholds
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import DecisionRule, Evaluation, ScoreTable

RESAMPLES = 1000
DRAWN_BINS = 10
DRAWN = 2 * 10**9
"""(image, label) pairs that resampling may draw; a larger table gets fewer resamples, but 100."""


def fit_decision_rule(settings: EvalConfig, scores: ScoreTable) -> DecisionRule:
    """The calibration and the thresholds that these scores ask for."""
    line = calibration.fit(scores.logits, scores.targets, settings.calibration)
    found = thresholds.fit(
        line.apply(scores.logits),
        scores.targets,
        settings.thresholds,
        fixed=settings.threshold,
        precision=settings.precision,
    )
    values = found.values
    values[list(found.unreachable)] = 1.0
    return DecisionRule(
        found.how,
        tuple(values.tolist()),
        line.how,
        tuple(line.slope.tolist()),
        tuple(line.intercept.tolist()),
        settings.review,
    )


def evaluate(
    settings: EvalConfig, scores: ScoreTable, decision: DecisionRule, fitted_here: bool
) -> Evaluation:
    """Every number of scores, by a decision.

    Args:
        settings: `ap`, and how the decision was fitted, where it was.
        scores: (N, L) the model's own logits, and targets.
        decision: of the checkpoint.
        fitted_here: on these very images.
    """
    calibrated = replace(scores, logits=decision.calibrated(scores.logits))
    table = measure(calibrated, np.array(decision.thresholds), settings.ap)
    facts: dict[str, Any] = {
        "threshold_source": decision.how,
        "fitted_on": "the same images" if fitted_here else "other images",
        "intervals": _intervals(calibrated, decision),
    }
    honest, said = calibrated, _said(calibrated, decision)
    if decision.how == "fixed" and decision.calibration == "none":
        facts["fitted_on"] = "nothing"
    elif fitted_here:
        honest, said = _cross_fitted(settings, scores)
        facts["cross_fitted"] = _rates(scores, said)
    facts["calibration"] = {"how": decision.calibration, **_off(scores)}
    if decision.calibration != "none":
        facts["calibration"]["calibrated"] = _off(honest)
    if decision.review is not None:
        facts["review"] = _review(honest, said, *decision.review)
    return Evaluation(calibrated, table, decision, facts)


def _said(calibrated: ScoreTable, decision: DecisionRule) -> NDArray[np.bool_]:
    """(N, L) yes or no at the decision's thresholds; one of 1 is never reached."""
    limits = np.array(decision.thresholds)
    limits[limits >= 1] = np.inf
    said: NDArray[np.bool_] = sigmoid(calibrated.logits) >= limits
    return said


def _cross_fitted(settings: EvalConfig, scores: ScoreTable) -> tuple[ScoreTable, NDArray[np.bool_]]:
    """Calibrated scores, and yes or no, each image's by what the others fitted."""
    said = thresholds.cross_fitted(
        scores.logits,
        scores.targets,
        settings.thresholds,
        calibrate=settings.calibration,
        fixed=settings.threshold,
        precision=settings.precision,
    )
    fitted = calibration.cross_fitted(scores.logits, scores.targets, settings.calibration)
    return replace(scores, logits=fitted), said


def _rates(scores: ScoreTable, said: NDArray[np.bool_]) -> dict[str, float | None]:
    decided = replace(scores, logits=np.where(said, np.float32(1), np.float32(-1)))
    averages = measure(decided).averages
    names = ("precision", "recall", "F1")
    return {
        f"{kind}_{name}": averages[f"{kind}_{name}"]
        for kind in ("macro", "micro")
        for name in names
    }


def _intervals(scores: ScoreTable, decision: DecisionRule) -> dict[str, Any]:
    """95 % of resampled images give numbers between these."""
    pairs = max(1, scores.logits.size)
    found = bootstrap.intervals(
        scores, decision.thresholds, max(100, min(RESAMPLES, DRAWN // pairs))
    )
    return {
        **found.averages,
        "resamples": found.resamples,
        "per_label": {row.label: {"AP": row.AP, "F1": row.F1} for row in found.per_label},
    }


def _off(scores: ScoreTable) -> dict[str, Any]:
    """How far probabilities are off, over all known pairs, and the curve to draw of them."""
    p = sigmoid(scores.logits)
    curve = calibration.reliability(p, scores.targets, DRAWN_BINS, equal="width")
    columns = (curve.probability.tolist(), curve.observed.tolist(), curve.count.tolist())
    return {
        "ECE": calibration.ece(p, scores.targets),
        "Brier": calibration.brier(p, scores.targets),
        "reliability": [list(row) for row in zip(*columns, strict=True)],
    }


def _review(scores: ScoreTable, said: NDArray[np.bool_], low: float, high: float) -> dict[str, Any]:
    """How much people would look at, and which share of the wrong decisions they would find."""
    p, known = sigmoid(scores.logits), scores.targets != UNKNOWN
    inside = (p >= low) & (p <= high)
    wrong = known & (said != (scores.targets == POSITIVE))
    return {
        "low": low,
        "high": high,
        "images": int(inside.any(axis=1).sum()),
        "pairs": int(inside.sum()),
        "wrong": int(wrong.sum()),
        "wrong_inside": int((wrong & inside).sum()),
    }
