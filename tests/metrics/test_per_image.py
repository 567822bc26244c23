"""Each image's own numbers against scikit-learn and torchmetrics, whole and masked rows."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from numpy.typing import NDArray
from score_cases import Case, cases, near, scores, table, thorough
from sklearn import metrics as sk

from mlfinetune.metrics import per_image
from mlfinetune.metrics.measure import measure

RANKING = {
    "LRAP": sk.label_ranking_average_precision_score,
    "ranking_loss": sk.label_ranking_loss,
    "coverage": sk.coverage_error,
}


def rows_mean(name: str, truth: NDArray[np.int8], logits: NDArray[np.float32]) -> float:
    """scikit-learn's mean over rows of one length; it refuses some tables of one label."""
    if truth.shape[1] == 1:
        return {"LRAP": 1.0, "ranking_loss": 0.0, "coverage": float(truth.mean())}[name]
    return float(RANKING[name](truth, logits))


def row_by_row(name: str, targets: NDArray[np.int8], logits: NDArray[np.float32]) -> float | None:
    """Return the mean over rows, of their known labels; rows with as many of them at once."""
    known = targets != -1
    lengths = known.sum(axis=1)
    means, counts = [], []
    for length in np.unique(lengths[lengths > 0]):
        taken = lengths == length
        shape = (-1, length)
        truth = targets[taken][known[taken]].reshape(shape)
        means.append(rows_mean(name, truth, logits[taken][known[taken]].reshape(shape)))
        counts.append(len(truth))
    return float(np.average(means, weights=counts)) if counts else None


# ---- rankings ---------------------------------------------------------------------------


@settings(thorough, max_examples=100)
@given(case=cases((0, 1)))
def test_whole_rows_rank_as_in_scikit_learn(case: Case) -> None:
    """LRAP, ranking loss and coverage, ties and rows without a positive or a negative too."""
    averages = case.measured().averages
    if case.targets.shape[1] > 1:
        for name, function in RANKING.items():
            assert averages[name] == near(function(case.targets, case.logits), 1e-12)


@settings(thorough, max_examples=150)
@given(case=cases((0, 1, -1)))
def test_masked_rows_rank_by_their_known_labels(case: Case) -> None:
    """Equal to one call of scikit-learn for each row; rows with nothing known are left out."""
    averages = case.measured().averages
    for name in RANKING:
        assert averages[name] == near(row_by_row(name, case.targets, case.logits), 1e-12)


@settings(thorough, max_examples=100)
@given(case=cases((0, 1)))
def test_whole_rows_rank_as_in_torchmetrics(case: Case) -> None:
    """Rows without ties, with a positive and a negative: there both libraries mean the same."""
    size = case.targets.shape[1]
    there = (case.targets == 1).any(axis=1) & (case.targets == 0).any(axis=1)
    if there.any():
        apart = case.logits[there] + np.arange(size, dtype=np.float32) / 32
        averages = measure(table(case.targets[there], apart)).averages
        truth, x = torch.from_numpy(case.targets[there]).long(), torch.from_numpy(apart)
        assert averages["LRAP"] == near(tm.multilabel_ranking_average_precision(x, truth, size))
        assert averages["ranking_loss"] == near(tm.multilabel_ranking_loss(x, truth, size))
        assert averages["coverage"] == near(tm.multilabel_coverage_error(x, truth, size))


@pytest.mark.parametrize("positive", [0.04, 0.9])
@pytest.mark.parametrize("unknown", [0, 0.4])
@pytest.mark.parametrize("spread", [1, 16])
def test_wide_tables_in_several_blocks(positive: float, unknown: float, spread: int) -> None:
    """900 x 300, two blocks, few and many positives, apart and tied."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((900, 300)).astype(np.float32)
    if spread > 1:
        logits = np.round(logits * spread) / spread
    targets = (rng.random(logits.shape) < positive).astype(np.int8)
    targets[rng.random(logits.shape) < unknown] = -1
    averages = measure(table(targets, logits)).averages
    for name in RANKING:
        assert averages[name] == near(row_by_row(name, targets, logits), 1e-12)


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_blocks_do_not_matter(case: Case) -> None:
    """One row at a time gives the very same numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(per_image, "_BLOCK", 1)
        rows = case.measured()
    assert rows == case.measured()


def test_the_ends_of_float32_and_both_zeros() -> None:
    """Largest, smallest and denormal logits rank; 0 and -0 tie."""
    top, tiny = float(np.finfo(np.float32).max), 1e-45
    right = measure(scores([[1, 1, 0, 0], [0, 1, 0, 1]], [[top, tiny, 0, -top], [-top, 0, -1, 5]]))
    assert (right.averages["LRAP"], right.averages["ranking_loss"]) == (1.0, 0.0)
    zeros = measure(scores([[1, 0], [1, 0]], [[0.0, -0.0], [-0.0, 0.0]])).averages
    assert (zeros["LRAP"], zeros["ranking_loss"], zeros["coverage"]) == (0.5, 1.0, 2.0)


# ---- decisions --------------------------------------------------------------------------


@settings(thorough, max_examples=100)
@given(case=cases((0, 1)))
def test_whole_rows_decide_as_in_scikit_learn(case: Case) -> None:
    """Exact match, Hamming loss and, over rows with a positive, precision, recall and F1."""
    averages = case.measured().averages
    truth, said = np.tile(case.targets, 2), np.tile(case.said(), 2).astype(np.int8)
    assert averages["exact_match"] == near(sk.accuracy_score(truth, said), 1e-12)
    assert averages["hamming_loss"] == near(sk.hamming_loss(truth, said), 1e-12)
    there = (case.targets == 1).any(axis=1)
    found = [averages[f"samples_{name}"] for name in ("precision", "recall", "F1")]
    wanted: list[object] = [None] * 3
    if there.any():
        how = {"average": "samples", "zero_division": 0}
        numbers = sk.precision_recall_fscore_support(truth[there], said[there], **how)
        wanted = [near(value, 1e-12) for value in numbers[:3]]
        given = there & said.any(axis=1)
        wanted[0] = None
        if given.any():
            wanted[0] = near(
                sk.precision_score(truth[given], said[given], average="samples"), 1e-12
            )
    assert found == wanted


@settings(thorough, max_examples=100)
@given(case=cases((0, 1, -1)))
def test_masked_rows_decide_on_their_known_labels(case: Case) -> None:
    """F1 and exact match a row, and the Hamming loss of all known pairs."""
    averages = case.measured().averages
    rows = [(t[t != -1], s[t != -1]) for t, s in zip(case.targets, case.said(), strict=True)]
    rows = [(t, s) for t, s in rows if len(t)]
    if rows:
        assert averages["exact_match"] == near(np.mean([(t == s).all() for t, s in rows]), 1e-12)
        wrong = np.concatenate([t != s for t, s in rows])
        assert averages["hamming_loss"] == near(wrong.mean(), 1e-12)
    f1 = [sk.f1_score(t, s, zero_division=0) for t, s in rows if (t == 1).any()]
    assert averages["samples_F1"] == near(np.mean(f1) if f1 else None, 1e-12)


def test_an_image_without_a_known_label_takes_no_part() -> None:
    """By hand: the first image is right in all it is known for, the second in half."""
    averages = measure(scores([[1, -1, 0], [0, 1, -1], [-1] * 3], [[1, 9, -1], [2, 1, 0], [5] * 3]))
    wanted = {"exact_match": 0.5, "hamming_loss": 1 / 4, "samples_precision": 3 / 4}
    wanted |= {"samples_F1": 5 / 6, "LRAP": 3 / 4, "ranking_loss": 1 / 2, "coverage": 1.5}
    assert {name: averages.averages[name] for name in wanted} == pytest.approx(wanted)
