"""Calibration against scikit-learn, by hand, and on labels whose line is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss

from mlfinetune.metrics import calibration as cal

HOWS: Any = ("none", "temperature", "platt")
thorough = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
Case = tuple[NDArray[np.float32], NDArray[np.int8]]


def log_loss(logits: NDArray[np.floating], targets: NDArray[np.int8]) -> float | None:
    """Return mean log loss over the known pairs, in nats, None without any."""
    known = targets != -1
    z = np.where(targets == 1, -logits.astype(np.float64), logits)[known]
    return float(np.logaddexp(0, z).mean()) if z.size else None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """0 to 25 images, 1 to 4 labels, from all tied to far apart, some targets unknown."""
    shape = draw(st.tuples(st.integers(0, 25), st.integers(1, 4)))
    steps = draw(st.sampled_from((0, 2, 30)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from((0, 1, -1))))
    return (levels / draw(st.sampled_from((0.25, 1, 8)))).astype(np.float32), targets


def drawn(images: int, slope: Any, intercept: Any, seed: int = 0) -> Case:
    """Return logits around -1, and targets as often positive as slope * logit + intercept says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (images, np.size(slope))).astype(np.float32)
    truth = rng.random(logits.shape) < expit(np.multiply(slope, logits) + intercept)
    return logits, truth.astype(np.int8)


def test_a_known_line_is_found() -> None:
    """From 40,000 images a label, each label's own slope and intercept."""
    slope, intercept = np.array([0.5, 1.0, 1.8]), np.array([0.7, -1.0, 0.0])
    found = cal.fit(*drawn(40_000, slope, intercept), "platt")
    assert found.slope == pytest.approx(slope, abs=0.05)
    assert found.intercept == pytest.approx(intercept, abs=0.05)


def test_a_known_temperature_is_found() -> None:
    """One slope, and no intercept."""
    found = cal.fit(*drawn(20_000, [0.6] * 3, 0.0), "temperature")
    assert found.slope == pytest.approx([0.6] * 3, abs=0.02)
    assert found.intercept.tolist() == [0.0] * 3


@pytest.mark.parametrize("seed", range(3))
def test_without_a_penalty_it_is_logistic_regression(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scikit-learn's line of one label, with next to no penalty in either."""
    monkeypatch.setattr(cal, "SLOPE_SD", 1e6)
    monkeypatch.setattr(cal, "SHIFT_SD", 1e6)
    logits, targets = drawn(300, [0.7], -0.5, seed)
    found = cal.fit(logits, targets, "platt")
    oracle = LogisticRegression(C=1e12, tol=1e-12, max_iter=1000)
    oracle.fit(logits.astype(np.float64), targets[:, 0])
    assert found.slope[0] == pytest.approx(oracle.coef_[0, 0], rel=1e-5)
    assert found.intercept[0] == pytest.approx(oracle.intercept_[0], rel=1e-4, abs=1e-5)


@thorough
@given(case=cases())
def test_no_fit_is_worse_on_its_own_data(case: Case) -> None:
    """Log loss of the labels together falls or stays, from none to temperature or platt."""
    before = log_loss(case[0], case[1])
    for how in ("temperature", "platt"):
        after = log_loss(cal.fit(*case, how).apply(case[0]), case[1])  # type: ignore[arg-type]
        assert before is None if after is None else after <= before + 1e-6


@thorough
@given(case=cases(), how=st.sampled_from(HOWS))
def test_the_order_of_a_label_stays(case: Case, how: Any) -> None:
    """Slopes are above 0 and finite, also of labels that are wrong throughout."""
    found = cal.fit(*case, how)
    assert (found.slope > 0).all()
    assert np.isfinite([found.slope, found.intercept]).all()
    order = np.argsort(case[0], axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(found.apply(case[0]), order, 0), axis=0) >= 0).all()


def test_ap_stays() -> None:
    """Of a label whose logits are the wrong way round, too."""
    logits, targets = drawn(500, [1.5, -1.0], 0.5)
    after = cal.fit(logits, targets, "platt").apply(logits)
    for at in range(2):
        wanted = average_precision_score(targets[:, at], logits[:, at])
        assert average_precision_score(targets[:, at], after[:, at]) == pytest.approx(wanted)


def test_few_positives_stay_near_the_shared_line() -> None:
    """A label parted by its only positive does not explode; one without a positive shares."""
    logits, targets = drawn(2000, [0.6] * 6, 0.0)
    targets[:, 4] = logits[:, 4] >= logits[:, 4].max()
    targets[:, 5] = 0
    found = cal.fit(logits, targets, "platt")
    _, _, _, _, one, none = zip(found.slope, found.intercept, strict=True)
    assert 0.2 < one[0] < 2
    alone = cal.fit(logits[:, :5], targets[:, :5], "platt")
    assert alone.slope[:5] == pytest.approx(found.slope[:5], abs=0.2)
    assert none[0] == pytest.approx(0.6, abs=0.3)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("state", [0, 1, -1])
def test_without_both_kinds_nothing_changes(how: Any, state: int) -> None:
    """All positive, all negative or all unknown: the identity."""
    logits = np.array([[1.5], [-2]], np.float32)
    found = cal.fit(logits, np.full((2, 1), state, np.int8), how)
    assert (found.slope.tolist(), found.intercept.tolist()) == ([1.0], [0.0])
    assert found.apply(logits).tolist() == logits.tolist()


@thorough
@given(case=cases(), how=st.sampled_from(HOWS))
def test_unknown_targets_have_no_say(case: Case, how: Any) -> None:
    """Other logits in their places lead to the very same lines and scores."""
    other = np.where(case[1] == -1, 77, case[0]).astype(np.float32)
    found, again = cal.fit(*case, how), cal.fit(other, case[1], how)
    assert found.slope.tolist() == again.slope.tolist()
    assert found.intercept.tolist() == again.intercept.tolist()
    for score in (cal.ece, cal.brier, log_loss):
        assert score(expit(case[0]), case[1]) == score(expit(other), case[1])


def test_platt_is_better_calibrated_where_labels_differ() -> None:
    """On fresh images and cross-fitted: ECE and log loss below temperature's, that below none."""
    slope, intercept = np.linspace(0.4, 0.8, 8), np.linspace(-1.5, 0.5, 8)
    logits, targets = drawn(600, slope, intercept)
    fresh, truth = drawn(20_000, slope, intercept, seed=1)
    losses, errors, crossed = [], [], []
    for how in HOWS:
        after = cal.fit(logits, targets, how).apply(fresh)
        losses.append(log_loss(after, truth))
        columns = zip(expit(after).T, truth.T, strict=True)
        errors.append(np.mean([cal.ece(p, target) for p, target in columns]))
        crossed.append(log_loss(cal.cross_fit(logits, targets, how), targets))
    assert losses == sorted(losses, reverse=True)
    assert errors == sorted(errors, reverse=True)
    assert crossed == pytest.approx(losses, abs=0.02)


def test_a_target_has_no_say_in_its_own_calibration() -> None:
    """Flipping an image's targets leaves its cross-fitted logits as they were."""
    logits, targets = drawn(50, [0.5, 2.0], 0.3)
    flipped = targets.copy()
    flipped[7] = 1 - flipped[7]
    before, after = (cal.cross_fit(logits, each, "platt") for each in (targets, flipped))
    assert before[7].tolist() == after[7].tolist()
    assert (before != after).any()


# ---- scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_the_curve_is_that_of_scikit_learn(bins: int) -> None:
    """Quantile bins of distinct probabilities, and the ECE by its definition."""
    logits, targets = drawn(600, [0.7], 0.2)
    p = expit(logits.astype(np.float64))
    curve = cal.reliability_curve(p, targets, bins)
    observed, mean = calibration_curve(targets[:, 0], p[:, 0], n_bins=bins, strategy="quantile")
    assert curve.count.tolist() == [600 // bins] * bins
    assert curve.observed == pytest.approx(observed)
    assert curve.probability == pytest.approx(mean)
    assert cal.ece(p, targets, bins) == pytest.approx(np.abs(observed - mean).mean())


def test_reliability_of_equal_widths_is_that_of_scikit_learn() -> None:
    """Bins are ranges of probability, empty ones are left out, 1 belongs to the last."""
    logits, targets = drawn(600, [0.7], 0.2)
    p = expit(logits.astype(np.float64))
    curve = cal.reliability_curve(p, targets, 10, equal="width")
    observed, mean = calibration_curve(targets[:, 0], p[:, 0], n_bins=10)
    assert curve.observed == pytest.approx(observed)
    assert curve.probability == pytest.approx(mean)
    ends = cal.reliability_curve(
        np.array([0.05, 0.15, 1.0]), np.array([0, 1, 1], np.int8), 10, "width"
    )
    assert ends.count.tolist() == [1, 1, 1]


def test_brier_is_that_of_scikit_learn() -> None:
    """Over the known pairs; None without any."""
    logits, targets = drawn(200, [0.7, 1.2], 0.2)
    p = expit(logits.astype(np.float64))
    assert cal.brier(p, targets) == pytest.approx(brier_score_loss(targets.ravel(), p.ravel()))
    targets[:, 1] = -1
    assert cal.brier(p, targets) == pytest.approx(brier_score_loss(targets[:, 0], p[:, 0]))
    assert cal.brier(p[:, 1], targets[:, 1]) is None


def test_ece_by_hand() -> None:
    """Bins {.1 .3} with half positive and {.8 .8} with all: (|.5 - .2| + |1 - .8|) / 2."""
    p = np.array([0.1, 0.8, 0.3, 0.8, 0.5])
    targets = np.array([0, 1, 1, 1, -1], np.int8)
    assert cal.ece(p, targets, bins=2) == pytest.approx(0.25)
    assert cal.reliability_curve(p, targets, bins=2).count.tolist() == [2, 2]
    assert cal.ece(p[4:], targets[4:]) is None


@thorough
@given(case=cases(), bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_equal_probabilities_share_a_bin(case: Case, bins: int, seed: int) -> None:
    """So that the order of images does not matter, and every known pair is counted once."""
    p, order = expit(case[0].astype(np.float64)), np.random.default_rng(seed)
    rows = order.permutation(len(p))
    curve, again = (
        cal.reliability_curve(p[at], case[1][at], bins) for at in (np.arange(len(p)), rows)
    )
    assert curve.count.sum() == (case[1] != -1).sum()
    assert curve.count.tolist() == again.count.tolist()
    assert curve.observed.tolist() == again.observed.tolist()
    assert len(curve.count) <= bins
    assert (np.diff(curve.probability) > 0).all()


@pytest.mark.parametrize(("images", "share"), [(30, 0.05), (200, 0.02), (2000, 0.3)])
def test_an_ece_by_chance_is_that_of_perfect_probabilities(images: int, share: float) -> None:
    """The mean ECE of 300 samples whose targets are drawn from the probabilities themselves."""
    rng = np.random.default_rng(images)
    p = expit(rng.normal(np.log(share), 1, (images, 1)))
    found = [cal.ece(p, (rng.random(p.shape) < p).astype(np.int8)) or 0 for _ in range(300)]
    assert cal.ece_by_chance(p, np.zeros(p.shape, np.int8)) == pytest.approx(
        np.mean(found), rel=0.25
    )
    assert cal.ece_by_chance(p, np.full(p.shape, -1, np.int8)) is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3, 400])
def test_an_interval_of_a_share_is_that_of_scipy(share: float, count: int) -> None:
    """Wilson's, which has a width even where all cases, or none, are positive."""
    right = round(share * count)
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    ours = cal.wilson_interval(right / count, count)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    assert ours[1] - ours[0] > 0
