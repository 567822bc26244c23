"""The three protocols of AP by their definitions, by hand, in pieces, and pooled in ranges."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from score_cases import Case, cases, near, thorough
from sklearn.metrics import average_precision_score

from mlfinetune.metrics import average_precision as curve
from mlfinetune.metrics import micro_ap
from mlfinetune.metrics.average_precision import PROTOCOLS, average_precision, trace_steps
from mlfinetune.metrics.micro_ap import pooled_average_precision

interpolated, eleven = "voc_interpolated", "voc_11point"


def ap(truth: list[int], scores: list[float], protocol: str) -> float:
    """AP of one ranking."""
    t, x = np.array(truth), np.array(scores, np.float32)
    return average_precision(
        trace_steps(np.sort(x[t == 1]), np.sort(x[t == 0])), sum(truth), protocol
    )


def defined(truth: list[int], scores: list[float], protocol: str) -> float:
    """Return the definition, in fractions: a walk down every distinct score, the negatives' too."""
    total, points = sum(truth), []
    for limit in sorted(set(scores), reverse=True):
        tp = sum(t for t, x in zip(truth, scores, strict=True) if x >= limit)
        points.append((Fraction(tp, total), Fraction(tp, sum(x >= limit for x in scores))))

    def best(recall: Fraction) -> Fraction:
        return max(p for r, p in points if r >= recall)

    if protocol == eleven:
        return float(sum(best(Fraction(k, 10)) for k in range(11)) / 11)
    area, before = Fraction(0), Fraction(0)
    for recall, precision in points:
        area += (recall - before) * (best(recall) if protocol == interpolated else precision)
        before = recall
    return float(area)


# ---- by hand ----------------------------------------------------------------------------


def test_the_envelope_lifts_a_dip() -> None:
    """Precision 1, 2/3, 3/4 at the positives of + - + + -: the dip at 2/3 counts as 3/4."""
    ranking = ([1, 0, 1, 1, 0], [5.0, 4, 3, 2, 1])
    assert ap(*ranking, "sklearn") == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert ap(*ranking, interpolated) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


def test_eleven_points_read_the_envelope() -> None:
    """Recall 0 to .3 is reached at precision 1 (4 points), .4 to 1 at 3/4 (7), by hand."""
    assert ap([1, 0, 1, 1, 0], [5, 4, 3, 2, 1], eleven) == pytest.approx((4 + 7 * 3 / 4) / 11)


def test_tied_scores_are_passed_at_once() -> None:
    """+ and - tied above +: precision 1/2, then 2/3, which the envelope takes for both."""
    ranking = ([1, 0, 1], [2.0, 2, 1])
    assert ap(*ranking, "sklearn") == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [ap(*ranking, p) for p in (interpolated, eleven)] == pytest.approx([2 / 3] * 2)


def test_a_recall_of_three_tenths_reaches_three_tenths() -> None:
    """3 of 10 found is recall .3 exactly, though 0.1 * 3 is more in floating point."""
    truth = [1] * 3 + [0] * 10 + [1] * 7
    found = ap(truth, [float(-rank) for rank in range(20)], eleven)
    assert found == pytest.approx((4 * 1 + 7 * 10 / 20) / 11)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfect_is_one_and_last_is_its_share(protocol: str) -> None:
    """A positive above all has AP 1; one below nine negatives, or tied with them, 1/10."""
    assert ap([1] + [0] * 9, [1] + [0] * 9, protocol) == 1.0
    assert ap([1] + [0] * 9, [0] + [1] * 9, protocol) == pytest.approx(1 / 10)
    assert ap([1] + [0] * 9, [0] * 10, protocol) == pytest.approx(1 / 10)


# ---- by definition ----------------------------------------------------------------------


@settings(thorough, max_examples=300)
@given(case=cases((0, 1)), protocol=st.sampled_from(PROTOCOLS), piece=st.integers(1, 9))
def test_a_curve_has_the_ap_of_its_definition(case: Case, protocol: str, piece: int) -> None:
    """In one piece or several, from all tied to all apart."""
    truth, scores = case.targets[:, 0].tolist(), case.logits[:, 0].tolist()
    if any(truth):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(curve, "_PIECE", piece)
            assert ap(truth, scores, protocol) == near(defined(truth, scores, protocol), 1e-12)


@settings(thorough, max_examples=300)
@given(case=cases((0, 1, -1)), protocol=st.sampled_from(PROTOCOLS), size=st.integers(1, 40))
def test_ranges_make_up_the_pool(case: Case, protocol: str, size: int) -> None:
    """However few pairs a range holds, and where one value fills several."""
    known = case.targets != -1
    truth, scores = case.targets[known], case.logits[known]
    positives, negatives = int((truth == 1).sum()), int((truth == 0).sum())
    if positives and negatives:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(micro_ap, "RANGE", size)
            patch.setattr(micro_ap, "_BLOCK", size)
            found = pooled_average_precision(
                case.logits, case.targets, positives, negatives, protocol
            )
        assert found == near(defined(truth.tolist(), scores.tolist(), protocol), 1e-12)


def drawn(spread: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """300,000 pairs of targets and logits, in steps of `spread`."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((5000, 60)) / spread).round() * spread
    return rng.integers(-1, 2, logits.shape).astype(np.int8), logits.astype(np.float32)


@pytest.mark.parametrize("spread", [1e-6, 1 / 16, 8])
def test_the_pool_is_scikit_learns(spread: float) -> None:
    """All apart, many tied or all tied, in about thirty ranges: AP to 1e-12."""
    targets, logits = drawn(spread)
    known = targets != -1
    counts = int((targets == 1).sum()), int((targets == 0).sum())
    found = partial(pooled_average_precision, logits, targets, *counts, "sklearn")
    wanted = average_precision_score(targets[known], logits[known])
    assert found() == near(wanted, 1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_ap, "RANGE", 10_000)
        assert found() == near(wanted, 1e-12)


def test_ranges_are_even() -> None:
    """No range holds more than twice its share, whatever the distribution."""
    _, logits = drawn(1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(micro_ap, "RANGE", 10_000)
        for x in (logits, np.exp(3 * logits), np.sort(logits, axis=0)):
            sizes = [
                int(((x >= low) & (x < high)).sum()) for low, high in micro_ap._split_ranges(x)
            ]
            assert sum(sizes) == x.size
            assert max(sizes) < 20_000
