"""The decision rule of `mlfinetune eval`: the checkpoint's own, or one that is fitted here."""

from dataclasses import replace

from mlfinetune.config import EvalConfig
from mlfinetune.errors import ConfigError
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.types import DecisionRule, EvalViews, ScoreTable
from mlfinetune.runs.checkpoint import Checkpoint


def choose_decision(
    wanted: EvalConfig,
    trained_with: EvalConfig,
    loaded: Checkpoint,
    scores: ScoreTable,
    fitted_here: bool,
) -> DecisionRule:
    """Return the decision rule (thresholds and calibration) for these scores.

    `require_rule` has refused the last row of its table.

    Args:
        wanted: `eval` of the config with the overrides.
        trained_with: `eval` of the config without them.
        loaded: the checkpoint, with its own rule.
        scores: to fit on.
        fitted_here: as in `require_rule`.
    """
    if _keeps_rule(wanted, trained_with, fitted_here):
        return replace(loaded.decision, review=wanted.review)
    return fit_decision_rule(wanted, scores, loaded.decision.implies)


def _keeps_rule(wanted: EvalConfig, trained_with: EvalConfig, fitted_here: bool) -> bool:
    """Tell whether the checkpoint's rule holds: `ap` and `review` never need a new fit.

    Scores of other `views` need one, which only the run's own validation data allows.
    """
    no_fit = ["ap", "review"] if fitted_here else ["ap", "review", "views"]
    kept = {name: getattr(trained_with, name) for name in no_fit}
    return wanted.model_copy(update=kept) == trained_with


def describe_other_views(
    views: EvalViews, fitted_under: EvalViews, decision: DecisionRule
) -> str | None:
    """Return a warning where a rule was fitted to scores of other views; None: it was not.

    Args:
        views: those that are scored.
        fitted_under: the checkpoint's.
        decision: the rule that is applied.
    """
    fitted = []
    if decision.how != "fixed":
        fitted.append("thresholds")
    if decision.calibration != "none":
        fitted.append("calibration")
    if views == fitted_under or not fitted:
        return None
    return (
        f"warning: {views} views are scored, but the checkpoint's {' and '.join(fitted)} were "
        f"fitted under {fitted_under} ones, and fit them less well; train with eval.views: {views} "
        f"to fit them anew"
    )


def require_rule(wanted: EvalConfig, trained_with: EvalConfig, fitted_here: bool) -> None:
    """Refuse a rule that would be fitted on other data, before that is scored.

        other eval.* overrides           data               decision rule
        none                             any                the checkpoint's, with `wanted.review`
        any                              the run's val      fitted on these scores
        views                            other              the checkpoint's, with a warning
        thresholds=fixed,
          calibration=none               other              fixed: nothing is fitted
        others                           other              ConfigError

    Args:
        wanted, trained_with: `eval` of the config with the overrides, and without them.
        fitted_here: the data is the validation data that the checkpoint's rule was fitted on.

    Raises:
        ConfigError: the rule would be fitted on images that are not the run's validation data.
    """
    fits = wanted.thresholds != "fixed" or wanted.calibration != "none"
    if fits and not fitted_here and not _keeps_rule(wanted, trained_with, fitted_here):
        raise ConfigError(
            "eval.thresholds and eval.calibration are fitted on the run's validation data, never "
            "on other data; leave them out, or set eval.thresholds=fixed and eval.calibration=none"
        )


def describe_decision(decision: DecisionRule) -> str:
    """Return thresholds and calibration in words, as `thresholds 0.21 to 0.84 (per_label)`."""
    low, high = min(decision.thresholds), max(decision.thresholds)
    source = "" if decision.how == "fixed" else f" ({decision.how})"
    text = f"threshold {low:g}" if low == high else f"thresholds {low:.2f} to {high:.2f}"
    calibrated = "" if decision.calibration == "none" else f", calibrated ({decision.calibration})"
    review = "" if not decision.review else ", review {:g} to {:g}".format(*decision.review)
    implied = "" if not decision.implies else ", parents at least as probable as their children"
    return text + source + calibrated + review + implied
