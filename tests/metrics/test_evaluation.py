"""Scores become a decision on validation, and numbers by it, honest ones beside optimistic ones."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from mlfinetune.config import EvalConfig
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.evaluation import DRAWN, evaluate, fit_decision_rule
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import (
    CalibrationError,
    CalibrationFacts,
    CrossFittedRates,
    DecisionRule,
    Facts,
    Intervals,
    LabelIntervals,
    ReliabilityBin,
    ReviewBand,
    ScoreTable,
)

LABELS = LabelSpace(("common", "rare", "none"))


def drawn(seed: int, images: int = 400) -> ScoreTable:
    """Return logits that are too sure of themselves, and too low; a label without a positive."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(images, 3)) + np.array([0.5, -2.0, -9.0])
    targets = (random.random((images, 3)) < expit(2 * truth)).astype(np.int8)
    targets[::10, 0] = -1
    names = tuple(f"{at}.jpg" for at in range(images))
    return ScoreTable(names, (6 * truth - 3).astype(np.float32), targets, LABELS)


def test_a_plain_decision_changes_nothing() -> None:
    """Logits as they are, one threshold."""
    scores, plain = drawn(0), DecisionRule.plain(3)
    verdict = evaluate(EvalConfig(thresholds="fixed"), scores, plain, fitted_here=True)
    assert verdict.scores.logits is scores.logits
    assert verdict.table == measure(scores, 0.5)
    assert (verdict.facts.threshold_source, verdict.facts.fitted_on) == ("fixed", "nothing")
    assert verdict.facts.cross_fitted is None


@pytest.mark.parametrize("how", ["global", "per_label", "precision"])
def test_fitted_thresholds_come_with_cross_fitted_numbers(how: str) -> None:
    """On the images that fitted them; on others the numbers are honest by themselves."""
    settings, scores = EvalConfig.model_validate({"thresholds": how}), drawn(1)
    decision = fit_decision_rule(settings, scores)
    here = evaluate(settings, scores, decision, fitted_here=True)
    assert here.facts.fitted_on == "the same images"
    assert here.facts.cross_fitted is not None
    fresh = evaluate(settings, drawn(2), decision, fitted_here=False)
    assert fresh.facts.fitted_on == "other images"
    assert fresh.facts.cross_fitted is None
    assert [row.threshold for row in fresh.table.per_label] == list(decision.thresholds)


def test_cross_fitted_numbers_are_nearer_to_those_of_fresh_images() -> None:
    """Over forty draws: what the optimism is, and what is left of it."""
    settings, optimism, left = EvalConfig(), [], []
    for seed in range(40):
        scores = drawn(seed, 120)
        decision = fit_decision_rule(settings, scores)
        here = evaluate(settings, scores, decision, fitted_here=True)
        fresh = measure(drawn(1000 + seed, 4000), np.array(decision.thresholds))
        wanted = fresh.averages["micro_F1"]
        optimism.append(here.table.averages["micro_F1"] - wanted)  # type: ignore[operator]
        left.append(here.facts.cross_fitted.micro_F1 - wanted)
    assert abs(np.mean(left)) < 0.5 * np.mean(optimism)


@pytest.mark.parametrize(("how", "share"), [("temperature", 0.75), ("platt", 0.3)])
def test_calibration_makes_probabilities_believable(how: str, share: float) -> None:
    """ECE and Brier fall on fresh images, the more where the shift is mended too; AP stays."""
    settings = EvalConfig.model_validate({"calibration": how, "thresholds": "global"})
    decision, fresh = fit_decision_rule(settings, drawn(3, 2000)), drawn(4, 2000)
    verdict = evaluate(settings, fresh, decision, fitted_here=False)
    before, after = verdict.facts.calibration.own, verdict.facts.calibration.calibrated
    assert share * before.ECE > after.ECE
    assert after.Brier < before.Brier
    plain = measure(fresh)
    assert verdict.table.averages["mAP"] == pytest.approx(plain.averages["mAP"], abs=1e-3)
    wanted = decision.slope[0] * fresh.logits[:, 0].astype(float) + decision.intercept[0]
    np.testing.assert_allclose(verdict.scores.logits[:, 0], wanted, rtol=1e-6)


def test_the_review_band_holds_most_of_the_mistakes() -> None:
    """Counted by hand on fresh images; on those that fitted it by cross-fitted probabilities."""
    settings = EvalConfig(calibration="platt", review=(0.2, 0.8))
    decision, fresh = fit_decision_rule(settings, drawn(6, 2000)), drawn(7, 2000)
    band = evaluate(settings, fresh, decision, fitted_here=False).facts.review
    assert band is not None
    p = expit(decision.calibrate(fresh.logits).astype(float))
    inside, known = (p >= 0.2) & (p <= 0.8), fresh.targets >= 0
    wrong = known & ((p >= np.array(decision.thresholds)) != (fresh.targets == 1))
    assert (band.images, band.pairs) == (inside.any(1).sum(), inside.sum())
    assert (band.wrong, band.wrong_inside) == (wrong.sum(), (wrong & inside).sum())
    assert band.wrong_inside > 0.6 * band.wrong
    assert band.pairs < 0.25 * p.size
    here, there = (evaluate(settings, drawn(6, 2000), decision, same).facts.review
                   for same in (True, False))  # fmt: skip
    assert here is not None
    assert there is not None
    assert here.wrong != there.wrong


@pytest.mark.parametrize("review", [(0.2, 0.8), (0.5, 0.5), (-0.1, 0.5)])
def test_a_review_band_needs_calibration_and_an_order(review: tuple[float, float]) -> None:
    """Of uncalibrated probabilities a range says nothing."""
    how = "none" if review == (0.2, 0.8) else "platt"
    with pytest.raises(ValueError, match="review"):
        EvalConfig.model_validate({"calibration": how, "review": review})


def test_a_precision_out_of_reach_is_never_said() -> None:
    """The threshold is 1, and not even a probability of 1 reaches it."""
    scores = drawn(5)
    decision = fit_decision_rule(EvalConfig(thresholds="precision", precision=0.99), scores)
    assert decision.thresholds[2] == 1
    sure = replace(scores, logits=np.full_like(scores.logits, 90))
    assert evaluate(EvalConfig(), sure, decision, False).table.per_label[2].F1 is None
    both = replace(sure, targets=np.ones_like(sure.targets))
    assert evaluate(EvalConfig(), both, decision, False).table.per_label[2].recall == 0


def test_a_large_table_gets_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stays bounded; the file says how many."""
    plain = DecisionRule.plain(3)
    whole = evaluate(EvalConfig(), drawn(0), plain, False)
    assert whole.facts.intervals.resamples == 1000
    monkeypatch.setattr("mlfinetune.metrics.evaluation.DRAWN", DRAWN // 10**6)
    part = evaluate(EvalConfig(), drawn(0), plain, False)
    assert part.facts.intervals.resamples == 100


@pytest.mark.parametrize("how", ["none", "temperature", "platt"])
def test_scores_say_how_they_were_calibrated(how: str) -> None:
    """The model's own logits go in; those that come out are called calibrated, if they are."""
    settings, scores = EvalConfig.model_validate({"calibration": how}), drawn(1, 60)
    assert scores.calibration == "none"
    decision = fit_decision_rule(settings, scores)
    assert evaluate(settings, scores, decision, True).scores.calibration == how


# ---- facts ------------------------------------------------------------------------------

INTERVALS = Intervals(
    averages={"mAP": (0.25, 0.75), "macro_F1": (0.5, 1.0), "micro_F1": None},
    per_label=(
        LabelIntervals("cat", (0.125, 0.5), (0.5, 1.0), None),
        LabelIntervals("dog", None, None, (0.0, 1.0)),
    ),
    resamples=1000,
    groups=40,
)
OWN = CalibrationError(0.0625, 0.125, (ReliabilityBin(0.1, 0.0, 3), ReliabilityBin(0.75, 1.0, 2)))
RATES = CrossFittedRates(0.1, 0.2, 0.3, 0.4, 0.5, None)
WHOLE = Facts(
    threshold_source="per_label",
    fitted_on="the same images",
    intervals=INTERVALS,
    cross_fitted=RATES,
    calibration=CalibrationFacts("platt", OWN, CalibrationError(None, None, ())),
    review=ReviewBand(0.2, 0.8, images=7, pairs=9, wrong=5, wrong_inside=4),
)
PLAIN = Facts("fixed", "nothing", INTERVALS, None, CalibrationFacts("none", OWN, None), None)
WRITTEN = """{
  "threshold_source": "per_label",
  "fitted_on": "the same images",
  "intervals": {
    "mAP": [0.25, 0.75],
    "macro_F1": [0.5, 1.0],
    "micro_F1": null,
    "resamples": 1000,
    "groups": 40,
    "per_label": {
      "cat": {"AP": [0.125, 0.5], "AUROC": [0.5, 1.0], "F1": null},
      "dog": {"AP": null, "AUROC": null, "F1": [0.0, 1.0]}
    }
  },
  "cross_fitted": {
    "macro_precision": 0.1,
    "macro_recall": 0.2,
    "macro_F1": 0.3,
    "micro_precision": 0.4,
    "micro_recall": 0.5,
    "micro_F1": null
  },
  "calibration": {
    "how": "platt",
    "ECE": 0.0625,
    "ECE_by_chance": null,
    "Brier": 0.125,
    "reliability": [[0.1, 0.0, 3], [0.75, 1.0, 2]],
    "calibrated": {"ECE": null, "ECE_by_chance": null, "Brier": null, "reliability": []}
  },
  "review": {"low": 0.2, "high": 0.8, "images": 7, "pairs": 9, "wrong": 5, "wrong_inside": 4}
}"""


def test_facts_are_the_keys_of_metrics_json_in_their_order() -> None:
    """Key for key; the text of a file, not a dictionary, holds the order."""
    assert json.dumps(WHOLE.to_dict()) == json.dumps(json.loads(WRITTEN))


def test_facts_that_do_not_apply_leave_no_key() -> None:
    """Nothing was fitted, nothing calibrated, no review asked for."""
    content = PLAIN.to_dict()
    assert list(content) == ["threshold_source", "fitted_on", "intervals", "calibration"]
    assert list(content["calibration"]) == ["how", "ECE", "ECE_by_chance", "Brier", "reliability"]


def test_numbers_of_copies_are_cross_fitted_by_group() -> None:
    """Five copies of each picture: known as groups, they do not decide one another."""
    rng = np.random.default_rng(0)
    targets = (rng.random((30, 4)) < 0.3).astype(np.int8)
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32)
    copies = ScoreTable(
        tuple(map(str, range(150))),
        logits.repeat(5, axis=0),
        targets.repeat(5, axis=0),
        LabelSpace(("a", "b", "c", "d")),
    )
    grouped = replace(copies, groups=np.arange(30).repeat(5))
    settings = EvalConfig(thresholds="per_label", calibration="platt")
    torn, whole = (
        evaluate(settings, table, fit_decision_rule(settings, table), True).facts.cross_fitted
        for table in (copies, grouped)
    )
    assert torn
    assert whole
    assert torn.macro_F1
    assert torn.macro_F1 > (whole.macro_F1 or 0) + 0.02
