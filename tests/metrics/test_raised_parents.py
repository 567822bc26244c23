"""Hierarchies in scores: raised parents, and thresholds that agree with them."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_tables import drawn

from mlfinetune.config import EvalConfig
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.implies import list_pairs, raise_parents
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import DecisionRule

PAIRS = ((1, 0), (2, 1), (2, 0))  # 2 -> 1 -> 0


def test_pairs_go_through_any_number_of_steps() -> None:
    """Also through a label that was left out."""
    implies = {"siamese": "cat", "cat": ["animal", "pet"]}
    space = LabelSpace(("animal", "pet", "siamese"))
    assert set(list_pairs(implies, space)) == {(2, 0), (2, 1)}
    assert list_pairs(implies, LabelSpace(("sofa",))) == ()


def test_parents_are_raised_after_calibration() -> None:
    """To the highest of themselves and their children, never lowered; without pairs nothing is."""
    logits = np.array([[0, 1, 2], [3, -1, 1], [0, -1, -2]], np.float32)
    assert raise_parents(logits, PAIRS).tolist() == [[2, 2, 2], [3, 1, 1], [0, -1, -2]]
    assert raise_parents(logits, ()) is logits
    lines = {"slope": (1.0, 1.0, 1.0), "intercept": (0.0, -5.0, 0.0), "calibration": "platt"}
    rule = replace(DecisionRule.plain(3), implies=((1, 0),), **lines)
    assert rule.calibrate(logits).tolist() == [[0, -4, 2], [3, -6, 1], [0, -6, -2]]


@pytest.mark.parametrize("how", ["fixed", "global", "per_label", "precision"])
@pytest.mark.parametrize("kind", ["none", "platt"])
def test_no_child_is_given_without_its_parents(how: str, kind: str) -> None:
    """On the pictures that fitted the rule and on others; numbers, decisions and facts agree."""
    settings = EvalConfig.model_validate({"thresholds": how, "calibration": kind, "precision": 0.6})
    scores = drawn(300, 3, 0)
    rule = fit_decision_rule(settings, scores, PAIRS)
    for seed in (0, 1):
        fresh = evaluate(settings, drawn(300, 3, seed), rule, fitted_here=not seed)
        p = sigmoid(fresh.scores.logits)
        present = p >= rule.limits
        for child, parent in PAIRS:
            assert (p[:, parent] >= p[:, child]).all()
            assert (present[:, parent] >= present[:, child]).all()
        assert not seed or fresh.facts.cross_fitted is None
    single = rule.with_threshold(0.3)
    assert (single.implies, set(single.thresholds)) == (PAIRS, {0.3})


def test_a_rule_without_a_hierarchy_is_as_before() -> None:
    """To the last bit, so that checkpoints of earlier versions mean what they meant."""
    settings, scores = EvalConfig(calibration="platt"), drawn(200, 3, 2)
    rule = fit_decision_rule(settings, scores)
    assert rule.implies == ()
    raised = replace(rule, implies=PAIRS)
    assert not np.array_equal(rule.calibrate(scores.logits), raised.calibrate(scores.logits))
