"""The decision rule of `mlfinetune eval`: the checkpoint's own, or one that is fitted here."""

from dataclasses import replace

from mlfinetune.config import EvalConfig
from mlfinetune.errors import ConfigError
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.types import DecisionRule, ScoreTable
from mlfinetune.runs.checkpoint import Checkpoint


def choose_decision(
    wanted: EvalConfig,
    trained_with: EvalConfig,
    loaded: Checkpoint,
    scores: ScoreTable,
) -> DecisionRule:
    """Return the decision rule (thresholds and calibration) for these scores.

    `require_rule` has refused the last row of its table.

    Args:
        wanted: `eval` of the config with the overrides.
        trained_with: `eval` of the config without them.
        loaded: the checkpoint, with its own rule.
        scores: to fit on.
    """
    if _keeps_rule(wanted, trained_with):
        return replace(loaded.decision, review=wanted.review)
    return fit_decision_rule(wanted, scores)


def _keeps_rule(wanted: EvalConfig, trained_with: EvalConfig) -> bool:
    """Tell whether the checkpoint's rule holds: `ap` and `review` never need a new fit."""
    no_fit = {"ap": trained_with.ap, "review": trained_with.review}
    return wanted.model_copy(update=no_fit) == trained_with


def require_rule(wanted: EvalConfig, trained_with: EvalConfig, fitted_here: bool) -> None:
    """Refuse a rule that would be fitted on other data, before that is scored.

        other eval.* overrides           data               decision rule
        none                             any                the checkpoint's, with `wanted.review`
        any                              the run's val      fitted on these scores
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
    if fits and not fitted_here and not _keeps_rule(wanted, trained_with):
        raise ConfigError(
            "eval.thresholds and eval.calibration are fitted on the run's validation data, never "
            "on other data; leave them out, or set eval.thresholds=fixed and eval.calibration=none"
        )
