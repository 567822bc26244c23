"""The numbers of a ScoreTable against torchmetrics and scikit-learn, and by hand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from conftest import FULL, Promise
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from score_cases import Case, cases, columns, near, scores, table, thorough
from sklearn import metrics as sk

from mlfinetune.metrics.measure import measure

WITHIN_IMAGES = {"exact_match", "hamming_loss", "LRAP", "ranking_loss", "coverage"}


# ---- torchmetrics -----------------------------------------------------------------------


@settings(thorough, max_examples=150)
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


@settings(thorough, max_examples=150)
@given(case=cases((0, 1)))
def test_decisions_score_as_in_torchmetrics(case: Case) -> None:
    """Macro and micro F1, precision and recall at several thresholds."""
    averages = case.measured().averages
    truth, p = (torch.from_numpy(part) for part in columns(case, need_negative=False))
    twice, cut = truth.shape[1], case.threshold
    if not twice:
        assert averages["macro_F1"] is averages["micro_F1"] is averages["macro_recall"] is None
        return
    macro: dict[str, Any] = {"num_labels": twice, "threshold": cut, "average": "macro"}
    assert averages["macro_F1"] == near(tm.multilabel_f1_score(p, truth.long(), **macro))
    given = (p >= cut).any(dim=0)
    among = {**macro, "num_labels": int(given.sum())}
    precision = None
    if given.any():
        precision = tm.multilabel_precision(p[:, given], truth[:, given].long(), **among)
    assert averages["macro_precision"] == near(precision)
    assert averages["macro_recall"] == near(tm.multilabel_recall(p, truth.long(), **macro))
    pooled = torch.from_numpy(case.probabilities()).flatten()
    truth = torch.from_numpy(case.targets).flatten().long()
    assert averages["micro_F1"] == near(tm.binary_f1_score(pooled, truth, cut))
    precision = tm.binary_precision(pooled, truth, cut) if (pooled >= cut).any() else None
    assert averages["micro_precision"] == near(precision)
    assert averages["micro_recall"] == near(tm.binary_recall(pooled, truth, cut))


@settings(thorough, max_examples=150)
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
        given = (p >= case.threshold).any(dim=0)
        assert [row.precision for row in defined] * 2 == [
            near(value) if some else None for value, some in zip(precision, given, strict=True)
        ]
        assert [row.recall for row in defined] * 2 == [near(value) for value in recall]


@settings(thorough, max_examples=150)
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


@settings(thorough, max_examples=150)
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


@pytest.mark.faults
def test_the_numbers_are_those_of_scikit_learn(promise: Promise) -> None:
    """Rankings and decisions within 1e-12, a label's AP to the last bit."""
    count = 0

    @settings(thorough, max_examples=2000 if FULL else 100)
    @given(case=cases((0, 1)))
    def check(case: Case) -> None:
        nonlocal count
        count += 1
        rankings_are_those_of_scikit_learn(case)
        decisions_are_those_of_scikit_learn(case)
        a_label_has_the_numbers_of_scikit_learn(case)

    check()
    promise("P15", count, [])


def rankings_are_those_of_scikit_learn(case: Case) -> None:
    """mAP, weighted mAP, macro AUROC and micro AP from its functions, called directly."""
    averages = case.measured().averages
    truth, p = columns(case, need_negative=True)
    names = ("mAP", "weighted_mAP", "macro_AUROC")
    if not truth.shape[1]:
        assert [averages[name] for name in names] == [None] * 3
        return
    wanted = [sk.average_precision_score(truth, p, average=how) for how in ("macro", "weighted")]
    wanted.append(sk.roc_auc_score(truth, p, average="macro"))
    assert [averages[name] for name in names] == [near(value, 1e-12) for value in wanted]
    pooled = sk.average_precision_score(case.targets.ravel(), case.logits.ravel())
    assert averages["micro_AP"] == near(pooled, 1e-12)


def decisions_are_those_of_scikit_learn(case: Case) -> None:
    """Precision, recall and F1 over labels and over pairs, where there is a positive."""
    averages = case.measured().averages
    there = (case.targets == 1).any(axis=0)
    if there.any():
        truth, said = np.tile(case.targets[:, there], 2), np.tile(case.said()[:, there], 2)
        assert said_by(averages, "macro") == rates(truth, said, "macro")
        truth, said = case.targets.reshape(-1, 1), case.said().reshape(-1, 1)
        assert said_by(averages, "micro") == rates(np.tile(truth, 2), np.tile(said, 2), "micro")


def said_by(averages: dict[str, float | None], kind: str) -> list[float | None]:
    """Precision, recall and F1 of this kind."""
    return [averages[f"{kind}_{name}"] for name in ("precision", "recall", "F1")]


def rates(truth: NDArray[Any], said: NDArray[Any], average: str) -> list[object]:
    """Precision, recall and F1 by scikit-learn; None for a precision of 0/0, left out of means."""
    found = sk.precision_recall_fscore_support(truth, said, average=average, zero_division=0)
    how = {"average": average, "zero_division": np.nan}
    precision = sk.precision_score(truth, said, **how)
    return [
        None if np.isnan(precision) else near(precision, 1e-12),
        *(near(value, 1e-12) for value in found[1:3]),
    ]


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_a_label_with_unknowns_has_the_numbers_of_scikit_learn(case: Case) -> None:
    """Over its known rows."""
    a_label_has_the_numbers_of_scikit_learn(case)


def a_label_has_the_numbers_of_scikit_learn(case: Case) -> None:
    """AP to the last bit, AUROC, precision, recall and F1, over its known rows."""
    for at, row in enumerate(case.measured().per_label):
        known = case.targets[:, at] != -1
        truth, x = case.targets[known, at], case.logits[known, at]
        if 0 < truth.sum() < len(truth):
            wanted = [sk.average_precision_score(truth, x), near(sk.roc_auc_score(truth, x), 1e-12)]
            assert wanted == [row.AP, row.AUROC]
        else:
            assert row.AP is row.AUROC is None
        if truth.sum():
            found = [row.precision, row.recall, row.F1]
            assert found == rates(truth, case.said()[known, at], "binary")


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_the_literature_decides_at_a_half(case: Case) -> None:
    """CP CR OP OR OF1 are macro and micro numbers at 0.5, whatever the threshold; CF1 is theirs."""
    averages = case.measured().averages
    table = Case(case.targets, case.logits, 0.5).measured()
    half = table.averages
    assert averages["CR"] == half["macro_recall"]
    precisions = [row.precision or 0 for row in table.per_label if row.positives]
    assert averages["CP"] == near(float(np.mean(precisions)) if precisions else None, 1e-12)
    assert [averages[name] for name in ("OP", "OR", "OF1")] == said_by(half, "micro")
    cp, cr = averages["CP"], averages["CR"]
    if cp is not None and cr is not None:
        assert averages["CF1"] == near(2 * cp * cr / (cp + cr) if cp + cr else 0, 1e-12)


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_top3_predicts_the_three_highest_known_labels(case: Case) -> None:
    """Equal to the numbers of logits that predict these labels; of tied labels the earlier."""
    top = np.full(case.logits.shape, -1, np.float32)
    for row, (x, t) in enumerate(zip(case.logits, case.targets, strict=True)):
        known = np.flatnonzero(t != -1)
        top[row, sorted(known, key=lambda label: (-x[label], label))[:3]] = 1
    averages, wanted = case.measured().averages, Case(case.targets, top, 0.5).measured().averages
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    assert [averages[f"{name}_top3"] for name in names] == [wanted[name] for name in names]


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)), data=st.data())
def test_each_label_has_its_threshold(case: Case, data: st.DataObject) -> None:
    """With (L,) thresholds a label's row is that of its threshold for all."""
    size = case.targets.shape[1]
    limits = data.draw(
        st.lists(st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)), min_size=size, max_size=size)
    )
    result = measure(table(case.targets, case.logits), np.array(limits))
    for at, limit in enumerate(limits):
        alone = measure(table(case.targets, case.logits), limit)
        assert result.per_label[at] == alone.per_label[at]
    shifted = np.where(case.probabilities() >= limits, 1, -1).astype(np.float32)
    wanted = measure(table(case.targets, shifted)).averages
    for name in ("macro_F1", "micro_F1", "samples_F1", "exact_match", "hamming_loss"):
        assert result.averages[name] == wanted[name]


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)), seed=st.integers(0, 999))
def test_the_order_of_images_does_not_matter(case: Case, seed: int) -> None:
    """Shuffled rows have the very same numbers."""
    order = np.random.default_rng(seed).permutation(len(case.targets))
    shuffled = Case(case.targets[order], case.logits[order], case.threshold)
    assert shuffled.measured() == case.measured()


@settings(thorough, max_examples=150)
@given(case=cases((0, 1, -1)))
def test_candidates_are_compared_by_the_numbers_that_are_reported(case: Case) -> None:
    """The quick AP is scikit-learn's, but for rounding; all other numbers are the very same."""
    reported = case.measured()
    quick = measure(table(case.targets, case.logits), case.threshold, quick=True)
    for name, value in reported.averages.items():
        assert quick.averages[name] == near(value)
    assert [row.AP for row in quick.per_label] == [near(row.AP) for row in reported.per_label]
    rest = [[replace(row, AP=None) for row in one.per_label] for one in (quick, reported)]
    assert rest[0] == rest[1]


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
    assert result.averages["mAP"] == result.per_label[0].AP
    assert result.averages["micro_AP"] == pytest.approx(result.averages["mAP"], abs=1e-15)


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
    """Nothing but negatives or unknowns defines nothing but the numbers within images."""
    result = measure(scores([[state, state]] * 3, [[0, 1]] * 3))
    defined = {name for name, value in result.averages.items() if value is not None}
    assert defined == (WITHIN_IMAGES if state == 0 else set())
    assert result.labels_scored == 0


def test_no_image_has_no_number() -> None:
    """An empty table is undefined, not a fault."""
    result = measure(table(np.zeros((0, 2), np.int8), np.zeros((0, 2), np.float32)))
    assert set(result.averages.values()) == {None}
    assert [row.AUROC for row in result.per_label] == [None, None]


@pytest.mark.parametrize(("threshold", "recall", "hamming"), [(0.0, 1.0, 0.5), (1.0, 0.0, 0.5)])
def test_thresholds_of_0_and_1(threshold: float, recall: float, hamming: float) -> None:
    """0 predicts everything, 1 nothing, even of saturated logits."""
    result = measure(scores([[1], [0]], [[1e30], [-1e30]]), threshold)
    assert result.averages["micro_recall"] == recall
    assert result.averages["hamming_loss"] == hamming
    assert result.averages["CF1"] == 1.0


def test_weighted_map_counts_positives() -> None:
    """APs of 1 and 2/3 with one and two positives: (1 + 4/3) / 3; the AUROCs are 1 and 0."""
    result = measure(scores([[1, 0], [0, 1], [0, 1]], [[1, 9], [0, 2], [0, 2]]))
    assert [row.AP for row in result.per_label] == [1.0, pytest.approx(2 / 3)]
    assert [row.AUROC for row in result.per_label] == [1.0, 0.0]
    assert result.averages["weighted_mAP"] == pytest.approx((1 + 2 * 2 / 3) / 3)
    assert result.averages["macro_AUROC"] == 0.5


def test_the_protocol_is_written_beside_the_numbers() -> None:
    """`ap` reaches every AP, labels' and pooled, and the content of metrics.json."""
    told = scores([[1], [0], [1], [1], [0]], [[5], [4], [3], [2], [1]])
    for ap, wanted in {"voc_interpolated": (1 + 3 / 4 + 3 / 4) / 3, "voc_11point": 37 / 44}.items():
        result = measure(told, ap=ap)
        assert result.averages["mAP"] == result.averages["micro_AP"] == pytest.approx(wanted)
        assert result.to_dict()["ap"] == result.ap == ap


def test_never_right_is_zero_not_undefined() -> None:
    """A label that is there and never found has precision, recall and F1 of 0."""
    result = measure(scores([[1], [0]], [[-1], [1]]))
    row = result.per_label[0]
    assert (row.precision, row.recall, row.F1, row.AP) == (0.0, 0.0, 0.0, 0.5)
    assert result.averages["CF1"] == result.averages["macro_F1"] == 0.0


@pytest.mark.parametrize(
    ("threshold", "recall", "precision"),
    [(0.05, 1.0, 0.5), (0.3, 1.0, 2 / 3), (0.5, 0.5, 0.5), (0.7, 0.5, 1.0), (0.95, 0.0, None)],
)
def test_the_threshold_is_a_probability(
    threshold: float, recall: float, precision: float | None
) -> None:
    """Probabilities .9 and .4 of positives, .6 and .1 of negatives are cut where it says."""
    p = np.array([[0.9], [0.4], [0.6], [0.1]])
    logits = np.log(p / (1 - p)).astype(np.float32)
    targets = np.array([[1], [1], [0], [0]], np.int8)
    row = measure(table(targets, logits), threshold).per_label[0]
    assert row.threshold == threshold
    assert (row.recall, row.precision) == (recall, near(precision, 1e-12))


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
    coverage = result.averages.pop("coverage")
    assert coverage is None or 0 <= coverage <= case.targets.shape[1]
    assert all(value is None or 0 <= value <= 1 for value in result.averages.values())
    assert list(content["per_label"]) == [row.label for row in result.per_label]
    for row in result.per_label:
        one = content["per_label"][row.label]
        assert (one["AP"], one["AUROC"], one["F1"]) == (row.AP, row.AUROC, row.F1)
        assert one["threshold"] == case.threshold
        assert (one["positives"], one["negatives"]) == (row.positives, row.negatives)
