"""The numbers of a ScoreTable against torchmetrics and scikit-learn, and by hand.

The logits of generated cases lie 1/4 apart or tie, and never near a threshold, where
torchmetrics asks for more than the threshold and we for at least as much.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics as sk

from mlfinetune.metrics.measure import measure
from mlfinetune.records import LabelSpace, MetricTable, ScoreTable

THRESHOLDS = (0.5, 0.05, 0.3, 0.7, 0.9)
thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Case:
    """(N, L) targets and logits, and a threshold."""

    targets: NDArray[np.int8]
    logits: NDArray[np.float32]
    threshold: float

    def measured(self) -> MetricTable:
        """What is under test."""
        return measure(table(self.targets, self.logits), self.threshold)

    def probabilities(self) -> NDArray[np.float64]:
        """(N, L), apart wherever the logits are."""
        return np.asarray(expit(self.logits.astype(np.float64)))


def table(targets: NDArray[np.int8], logits: NDArray[np.float32]) -> ScoreTable:
    """Images and labels with numbers for names."""
    names = tuple(f"{i}.jpg" for i in range(len(targets)))
    labels = LabelSpace(tuple(f"label {i}" for i in range(targets.shape[1])))
    return ScoreTable(names, logits, targets, labels)


def scores(targets: list[list[int]], logits: list[list[float]]) -> ScoreTable:
    """A table from rows."""
    return table(np.array(targets, np.int8), np.array(logits, np.float32))


@st.composite
def cases(draw: st.DrawFn, states: tuple[int, ...]) -> Case:
    """1 to 30 images, 1 to 6 labels, from all tied to all apart."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 6)))
    steps = draw(st.sampled_from((0, 1, 20)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from(states)))
    logits = (levels / 4 + 0.125).astype(np.float32)
    return Case(targets, logits, draw(st.sampled_from(THRESHOLDS)))


def columns(case: Case, need_negative: bool) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Targets and probabilities of the labels that have a positive (and a negative), twice over.

    Means are the same with every label counted twice, and an only label becomes a matrix that
    both libraries take for several labels.
    """
    chosen = (case.targets == 1).any(axis=0)
    if need_negative:
        chosen &= (case.targets == 0).any(axis=0)
    wanted = np.tile(np.flatnonzero(chosen), 2)
    return case.targets[:, wanted], case.probabilities()[:, wanted]


def near(value: float | torch.Tensor | None, tolerance: float = 1e-6) -> object:
    """This value, or undefined."""
    return None if value is None else pytest.approx(float(value), abs=tolerance)


# ---- torchmetrics -----------------------------------------------------------------------


@settings(thorough, max_examples=500)
@given(case=cases((0, 1)))
def test_average_precision_is_that_of_torchmetrics(case: Case) -> None:
    """mAP, micro AP and the AP of each label, over the labels where it is defined."""
    result = case.measured()
    truth, p = (torch.from_numpy(part) for part in columns(case, need_negative=True))
    twice = truth.shape[1]
    assert result.labels_scored == twice // 2
    if twice:
        each = tm.multilabel_average_precision(p, truth.long(), twice, average=None)
        mean = tm.multilabel_average_precision(p, truth.long(), twice, average="macro")
        assert result.averages["mAP"] == near(mean)
        defined = [row.AP for row in result.per_label if row.AP is not None]
        assert defined * 2 == [near(value) for value in each]
    pooled = torch.from_numpy(case.probabilities()).flatten()
    truth = torch.from_numpy(case.targets).flatten().long()
    wanted = tm.binary_average_precision(pooled, truth) if 0 < truth.sum() < len(truth) else None
    assert result.averages["micro_AP"] == near(wanted)


@settings(thorough, max_examples=500)
@given(case=cases((0, 1)))
def test_decisions_score_as_in_torchmetrics(case: Case) -> None:
    """Macro and micro F1, precision and recall at several thresholds."""
    averages = case.measured().averages
    truth, p = (torch.from_numpy(part) for part in columns(case, need_negative=False))
    twice, cut = truth.shape[1], case.threshold
    if not twice:
        assert averages["macro_F1"] is None
        assert averages["micro_F1"] is None
        return
    macro: dict[str, Any] = {"num_labels": twice, "threshold": cut, "average": "macro"}
    assert averages["macro_F1"] == near(tm.multilabel_f1_score(p, truth.long(), **macro))
    assert averages["CP"] == near(tm.multilabel_precision(p, truth.long(), **macro))
    assert averages["CR"] == near(tm.multilabel_recall(p, truth.long(), **macro))
    pooled = torch.from_numpy(case.probabilities()).flatten()
    truth = torch.from_numpy(case.targets).flatten().long()
    assert averages["micro_F1"] == near(tm.binary_f1_score(pooled, truth, cut))
    assert averages["OP"] == near(tm.binary_precision(pooled, truth, cut))
    assert averages["OR"] == near(tm.binary_recall(pooled, truth, cut))


@settings(thorough, max_examples=400)
@given(case=cases((0, 1)))
def test_each_label_scores_as_in_torchmetrics(case: Case) -> None:
    """F1, precision and recall of every label with a positive; None for the others."""
    rows = case.measured().per_label
    truth, p = (torch.from_numpy(part) for part in columns(case, need_negative=False))
    defined = [row for row in rows if row.positives]
    assert all(row.F1 is row.precision is row.recall is None for row in rows if not row.positives)
    if defined:
        how: dict[str, Any] = {
            "num_labels": truth.shape[1],
            "threshold": case.threshold,
            "average": "none",
        }
        f1 = tm.multilabel_f1_score(p, truth.long(), **how)
        precision = tm.multilabel_precision(p, truth.long(), **how)
        recall = tm.multilabel_recall(p, truth.long(), **how)
        assert [row.F1 for row in defined] * 2 == [near(value) for value in f1]
        assert [row.precision for row in defined] * 2 == [near(value) for value in precision]
        assert [row.recall for row in defined] * 2 == [near(value) for value in recall]


@settings(thorough, max_examples=400)
@given(case=cases((0, 1, -1)))
def test_unknown_targets_are_masked_a_label(case: Case) -> None:
    """A label's numbers are those that torchmetrics finds in its known rows."""
    for at, row in enumerate(case.measured().per_label):
        known = case.targets[:, at] != -1
        truth = torch.from_numpy(case.targets[known, at]).long()
        p = torch.from_numpy(case.probabilities()[known, at])
        assert row.positives == int(truth.sum())
        assert row.negatives == len(truth) - row.positives
        both = row.positives and row.negatives
        ap = tm.binary_average_precision(p, truth) if both else None
        f1 = tm.binary_f1_score(p, truth, case.threshold) if row.positives else None
        found = [row.AP, row.F1]
        assert found == [near(ap), near(f1)]


@settings(thorough, max_examples=400)
@given(case=cases((0, 1, -1)))
def test_unknown_targets_are_masked_in_the_pool(case: Case) -> None:
    """Micro numbers are those of the known pairs, and nobody else's logits matter."""
    averages = case.measured().averages
    known = case.targets != -1
    truth = torch.from_numpy(case.targets[known]).long()
    p = torch.from_numpy(case.probabilities()[known])
    both = 0 < truth.sum() < len(truth)
    assert averages["micro_AP"] == near(tm.binary_average_precision(p, truth) if both else None)
    f1 = tm.binary_f1_score(p, truth, case.threshold) if truth.sum() else None
    assert averages["micro_F1"] == near(f1)
    other = Case(case.targets, np.where(known, case.logits, 99).astype(np.float32), case.threshold)
    assert other.measured() == case.measured()


# ---- scikit-learn -----------------------------------------------------------------------


@settings(thorough, max_examples=300)
@given(case=cases((0, 1)))
def test_averages_are_those_of_scikit_learn(case: Case) -> None:
    """On fully known data its functions give the same numbers, called directly."""
    averages = case.measured().averages
    truth, p = columns(case, need_negative=True)
    if truth.shape[1]:
        wanted = sk.average_precision_score(truth, p, average="macro")
        assert averages["mAP"] == near(wanted, 1e-9)
    truth, p = columns(case, need_negative=False)
    if truth.shape[1]:
        said = (p >= case.threshold).astype(int)
        how: dict[str, Any] = {"average": "macro", "zero_division": 0}
        assert averages["macro_F1"] == near(sk.f1_score(truth, said, **how), 1e-9)
        assert averages["CP"] == near(sk.precision_score(truth, said, **how), 1e-9)
        assert averages["CR"] == near(sk.recall_score(truth, said, **how), 1e-9)
        truth, said = case.targets.ravel(), case.probabilities().ravel() >= case.threshold
        wanted = sk.f1_score(truth, said, zero_division=0)
        assert averages["micro_F1"] == averages["OF1"] == near(wanted, 1e-9)


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)), seed=st.integers(0, 999))
def test_the_order_of_images_does_not_matter(case: Case, seed: int) -> None:
    """Shuffled rows have the very same numbers."""
    order = np.random.default_rng(seed).permutation(len(case.targets))
    shuffled = Case(case.targets[order], case.logits[order], case.threshold)
    assert shuffled.measured() == case.measured()


# ---- by hand ----------------------------------------------------------------------------


def test_cf1_is_not_macro_f1() -> None:
    """CP = (1/2 + 1)/2, CR = (1 + 1/2)/2, so CF1 = 3/4; both labels' F1 is 2/3."""
    averages = measure(scores([[1, 1], [0, 1], [0, 0]], [[1, 1], [1, -1], [-1, -1]])).averages
    assert averages["CP"] == averages["CR"] == averages["CF1"] == pytest.approx(3 / 4)
    assert averages["macro_F1"] == pytest.approx(2 / 3)
    assert averages["OP"] == averages["OR"] == averages["OF1"] == pytest.approx(2 / 3)


def test_cf1_is_the_harmonic_mean() -> None:
    """CP = 3/4 and CR = 1 make CF1 = 6/7, where macro F1 is 5/6."""
    averages = measure(scores([[1, 1], [0, 0]], [[1, 1], [1, -1]])).averages
    assert averages["CP"] == 0.75
    assert averages["CR"] == 1.0
    assert averages["CF1"] == pytest.approx(6 / 7)
    assert averages["macro_F1"] == pytest.approx(5 / 6)


def test_ap_is_not_interpolated() -> None:
    """Positives at ranks 1, 3 and 4 of 5: (1 + 2/3 + 3/4) / 3."""
    result = measure(scores([[1], [0], [1], [1], [0]], [[5], [4], [3], [2], [1]]))
    assert result.averages["mAP"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result.per_label[0].AP == result.averages["micro_AP"] == result.averages["mAP"]


def test_the_undefined_is_none_and_counts_nowhere() -> None:
    """No positive, no negative, nothing known: None, and no part of any mean."""
    result = measure(scores([[1, 0, 1, -1], [0, 0, 1, -1]], [[2, 1, 1, 3], [1, -1, 1, 3]]))
    assert [row.AP for row in result.per_label] == [1.0, None, None, None]
    assert [row.F1 for row in result.per_label] == [pytest.approx(2 / 3), None, 1.0, None]
    counts = [(row.positives, row.negatives) for row in result.per_label]
    assert counts == [(1, 1), (0, 2), (2, 0), (0, 0)]
    assert (result.labels_scored, result.images, result.averages["mAP"]) == (1, 2, 1.0)
    assert result.averages["macro_F1"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize("state", [0, -1])
def test_without_a_positive_every_average_is_none(state: int) -> None:
    """Nothing but negatives or unknowns defines nothing."""
    result = measure(scores([[state, state]] * 3, [[0, 1]] * 3))
    assert set(result.averages.values()) == {None}
    assert result.labels_scored == 0


def test_never_right_is_zero_not_undefined() -> None:
    """A label that is there and never found has precision, recall and F1 of 0."""
    result = measure(scores([[1], [0]], [[-1], [1]]))
    row = result.per_label[0]
    assert (row.precision, row.recall, row.F1, row.AP) == (0.0, 0.0, 0.0, 0.5)
    assert result.averages["CF1"] == result.averages["macro_F1"] == 0.0


@pytest.mark.parametrize(
    ("threshold", "recall", "precision"),
    [(0.05, 1.0, 0.5), (0.3, 1.0, 2 / 3), (0.5, 0.5, 0.5), (0.7, 0.5, 1.0), (0.95, 0.0, 0.0)],
)
def test_the_threshold_is_a_probability(threshold: float, recall: float, precision: float) -> None:
    """Probabilities .9 and .4 of positives, .6 and .1 of negatives are cut where it says."""
    p = np.array([[0.9], [0.4], [0.6], [0.1]])
    logits = np.log(p / (1 - p)).astype(np.float32)
    targets = np.array([[1], [1], [0], [0]], np.int8)
    row = measure(table(targets, logits), threshold).per_label[0]
    assert row.threshold == threshold
    assert (row.recall, row.precision) == (recall, pytest.approx(precision))


def test_a_label_at_the_threshold_counts_as_present() -> None:
    """A logit of 0 is a probability of 0.5, from which a label is there."""
    assert measure(scores([[1], [0]], [[0], [-1]])).per_label[0].recall == 1.0


@pytest.mark.parametrize("base", [40.0, 1e4, 1e30, -1e4])
def test_saturated_logits_still_rank(base: float) -> None:
    """Logits whose probabilities are all 1 or 0 have their order."""
    step = abs(base) / 100
    right = measure(scores([[0], [1], [1]], [[base], [base + step], [base + 2 * step]]))
    wrong = measure(scores([[1], [0], [0]], [[base], [base + step], [base + 2 * step]]))
    assert right.averages["mAP"] == right.averages["micro_AP"] == 1.0
    assert wrong.averages["mAP"] == pytest.approx(1 / 3)


def test_ties_are_one_step() -> None:
    """Equal logits have the AP of their share of positives, whatever their order."""
    assert measure(scores([[1], [0], [0], [0]], [[2]] * 4)).averages["mAP"] == 0.25
    assert measure(scores([[0], [0], [0], [1]], [[2]] * 4)).averages["mAP"] == 0.25


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_the_numbers_are_json(case: Case) -> None:
    """metrics.json holds numbers in [0, 1], null and counts, and never NaN."""
    result = case.measured()
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (content["images"], content["labels"]) == case.targets.shape
    assert content["labels_scored"] == result.labels_scored
    assert {name: content[name] for name in result.averages} == result.averages
    assert all(value is None or 0 <= value <= 1 for value in result.averages.values())
    assert list(content["per_label"]) == [row.label for row in result.per_label]
    for row in result.per_label:
        one = content["per_label"][row.label]
        assert (one["AP"], one["F1"], one["threshold"]) == (row.AP, row.F1, case.threshold)
        assert (one["positives"], one["negatives"]) == (row.positives, row.negatives)
