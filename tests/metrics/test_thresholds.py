"""Thresholds against every candidate tried by hand, and on simulated fresh images."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import f1_score, precision_score

from mlfinetune.metrics import calibration, thresholds
from mlfinetune.metrics.folds import split_folds

HOWS: Any = ("fixed", "global", "per_label", "precision")
thorough = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
Case = tuple[NDArray[np.float32], NDArray[np.int8]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """0 to 25 images, 1 to 4 labels, from all tied to all apart, some targets unknown."""
    shape = draw(st.tuples(st.integers(0, 25), st.integers(1, 4)))
    steps = draw(st.sampled_from((0, 2, 30)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from((0, 1, -1))))
    return (levels / 4).astype(np.float32), targets


def draw(seed: int, images: int, labels: int = 20) -> tuple[Case, Case]:
    """Draw images to fit on and new ones; labels of 1 % to 30 %, shifted by about 0.5 logit."""
    rng = np.random.default_rng(seed)
    share, shift = np.geomspace(0.01, 0.3, labels), rng.normal(0, 0.5, labels)
    parts = []
    for size in (images, 8000):
        truth = rng.random((size, labels)) < share
        logits = 2.5 * (rng.normal(size=truth.shape) + 2.5 * truth) - 3.125 + logit(share) + shift
        parts.append((logits.astype(np.float32), truth.astype(np.int8)))
    return parts[0], parts[1]


def macro_f1(said: NDArray[np.bool_], targets: NDArray[np.int8]) -> float:
    """Return mean F1 over the labels with a positive, of the known images."""
    each = [
        f1_score(targets[rows, at], said[rows, at], zero_division=0)
        for at, rows in enumerate((targets != -1).T)
        if (targets[:, at] == 1).any()
    ]
    return float(np.mean(each)) if each else 0.0


def candidates(logits: NDArray[np.float32], targets: NDArray[np.int8]) -> list[float]:
    """Midways of the known scores, and one below them all."""
    scores = np.unique(logits[targets != -1]).astype(np.float64)
    return [*((scores[1:] + scores[:-1]) / 2), *(scores[:1] - 0.5)]


@thorough
@given(case=cases())
def test_the_global_threshold_is_the_best_of_all(case: Case) -> None:
    """No midway between two scores has a higher macro F1, and it is one of them."""
    found = thresholds.fit(*case, "global")
    if not (case[1] == 1).any():
        assert found.common == 0.0
        return
    best = max(macro_f1(case[0] >= cut, case[1]) for cut in candidates(*case))
    assert macro_f1(found.predict(case[0]), case[1]) == pytest.approx(best)
    assert found.common in candidates(*case)


@thorough
@given(case=cases())
def test_a_label_has_a_mean_of_near_best_thresholds(case: Case) -> None:
    """The label's part lies among the thresholds whose F1 is within P^(-2/3) / 2 of the best."""
    found = thresholds.fit(*case, "per_label")
    for at in range(case[0].shape[1]):
        logits, targets = case[0][:, [at]], case[1][:, [at]]
        positives = int((targets == 1).sum())
        assert found.own[at] == positives / (positives + 3)
        if positives:
            f1 = {cut: macro_f1(logits >= cut, targets) for cut in candidates(logits, targets)}
            least = max(f1.values()) * (1 - 0.5 * positives ** (-2 / 3)) - 1e-12
            near = [cut for cut, value in f1.items() if value >= least]
            own = found.common + (found.cuts[at] - found.common) / found.own[at]
            assert min(near) - 1e-9 <= own <= max(near) + 1e-9


@thorough
@given(case=cases(), wanted=st.sampled_from((0.3, 0.6, 0.9)))
def test_a_wanted_precision_is_had_on_the_fitting_data(case: Case, wanted: float) -> None:
    """Labels that predict anything have it, and more predictions than need be; others are named."""
    logits, targets = np.tile(case[0], (6, 1)), np.tile(case[1], (6, 1))
    found = thresholds.fit(logits, targets, "precision", precision=wanted)
    said = found.predict(logits)
    for at in range(case[0].shape[1]):
        rows = targets[:, at] != -1
        assert (at in found.unreachable) == (not said[rows, at].any())
        if said[rows, at].any():
            assert precision_score(targets[rows, at], said[rows, at]) >= wanted
            assert said[rows, at].sum() >= thresholds.count_needed(wanted)


@pytest.mark.parametrize("wanted", [0.3, 0.9])
@pytest.mark.parametrize("separation", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("positives", [1, 3, 10, 50])
def test_a_wanted_precision_holds_on_other_images(
    wanted: float, separation: float, positives: int
) -> None:
    """A label is given with a lower precision in 20 % of 300 samples at most (and chance: 25 %)."""
    rng = np.random.default_rng(positives)
    truth = rng.random((200, 300)) < positives / 200
    logits = (rng.normal(size=truth.shape) + separation * truth).astype(np.float32)
    # Easy labels beside it must not vouch for it.
    easy = np.where(rng.random((200, 300)) < 0.1, 9, -9).astype(np.float32)
    both = np.hstack([logits, easy]), np.hstack([truth, easy > 0]).astype(np.int8)
    cuts = thresholds.fit(*both, "precision", precision=wanted).cuts[:300]
    right = positives / 200 * norm.sf(cuts - separation)
    wrong = (1 - positives / 200) * norm.sf(cuts)
    given = cuts < thresholds.NEVER
    assert np.mean(given & (right < wanted * (right + wrong))) <= 0.25


def test_no_other_label_vouches_for_a_precision() -> None:
    """Twelve right of 42 do not show 0.3, whatever the scores between them and other labels are."""
    logits = np.concatenate([np.linspace(5, 4, 12), np.linspace(3.9, 0, 30)])
    targets = (logits >= 4).astype(np.int8)
    found = thresholds.fit(
        logits.astype(np.float32)[:, None], targets[:, None], "precision", precision=0.3
    )
    assert (logits >= found.cuts[0]).sum() < 12 / 0.3


def test_copies_of_a_picture_show_no_precision() -> None:
    """Four patients with five pictures each, all right: 20 pictures would do, 4 groups do not."""
    logits, targets = np.float32([[3]] * 20 + [[-3]] * 20), np.int8([[1]] * 20 + [[0]] * 20)
    groups = np.arange(40) // 5
    assert thresholds.fit(logits, targets, "precision").unreachable == ()
    assert thresholds.fit(logits, targets, "precision", groups=groups).unreachable == (0,)
    assert thresholds.fit(logits, targets, "precision", groups=np.arange(40)).unreachable == ()
    assert thresholds.count_needed(0.9) == 16


@thorough
@given(case=cases(), how=st.sampled_from(HOWS), seed=st.integers(0, 99))
def test_unknown_targets_and_order_do_not_matter(case: Case, how: Any, seed: int) -> None:
    """Other logits in unknown places and shuffled images lead to the very same thresholds."""
    other = np.where(case[1] == -1, 77, case[0]).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(other))
    found = thresholds.fit(*case, how)
    again = thresholds.fit(other[order], case[1][order], how)
    assert found.cuts.tolist() == again.cuts.tolist()
    assert found.unreachable == again.unreachable


@thorough
@given(case=cases(), how=st.sampled_from(HOWS), scale=st.sampled_from((1, 100, 1e30)))
def test_thresholds_are_finite_and_probabilities(case: Case, how: Any, scale: float) -> None:
    """Of any scores, of no image and of no positive."""
    found = thresholds.fit((case[0] * scale).astype(np.float32), case[1], how)
    assert np.isfinite(found.cuts).all()
    assert ((found.values > 0) & (found.values < 1)).all()
    assert found.cuts.dtype == found.values.dtype == np.float64
    assert ((found.own >= 0) & (found.own <= 1)).all()


def test_fixed_is_what_was_asked_for() -> None:
    """One probability for all labels, at which a label counts as present."""
    found = thresholds.fit(np.zeros((1, 2), np.float32), np.ones((1, 2), np.int8), "fixed")
    assert found.values.tolist() == [0.5, 0.5]
    assert found.predict(np.array([[0.0, -0.01]], np.float32)).tolist() == [[True, False]]


def test_by_hand() -> None:
    """Positives at 4 and 3, negatives at 1 and 0: parted at 2; 2 and 1/2 are near best."""
    logits = np.array([[4, 4], [3, 3], [1, 1], [0, 0]], np.float32)
    targets = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], np.int8)
    assert thresholds.fit(logits, targets, "global").cuts.tolist() == [2.0, 2.0]
    found = thresholds.fit(logits, targets, "per_label")
    assert found.own.tolist() == [0.4, 0.0]
    assert found.cuts[1] == 2.0
    assert found.cuts[0] == pytest.approx(2 + 0.4 * ((2 * 2 + 1 * 0.5) / 3 - 2))


def test_an_unreachable_precision_predicts_nothing() -> None:
    """Two positives among two hundred at chance: the label is named, and silent."""
    logits = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    targets = np.zeros((200, 1), np.int8)
    targets[[50, 120]] = 1
    found = thresholds.fit(logits, targets, "precision", precision=0.9)
    assert found.unreachable == (0,)
    assert not found.predict(np.array([[50.0]], np.float32)).any()


@pytest.mark.parametrize("images", [200, 1000])
def test_shrinking_beats_both_extremes_on_fresh_images(images: int) -> None:
    """Mean macro F1 over 25 simulations: above the global threshold's and each label's best's."""
    table = []
    for seed in range(25):
        (logits, targets), (fresh, truth) = draw(seed, images)
        found = thresholds.fit(logits, targets, "per_label")
        raw = np.full(20, found.common)
        for at in np.flatnonzero(targets.any(axis=0)):
            raw[at] = thresholds.fit(logits[:, [at]], targets[:, [at]], "global").cuts[0]
        rows = (found.cuts, np.full(20, found.common), raw, np.zeros(20))
        table.append([counted(fresh >= cuts, truth) for cuts in rows])
    ours, common, own, half = np.mean(table, axis=0)
    assert ours > max(common, own, half) + 0.002


def counted(said: NDArray[np.bool_], targets: NDArray[np.int8]) -> float:
    """macro_f1 of fully known images, fast."""
    some = targets.any(axis=0)
    right = (said & (targets == 1)).sum(axis=0)[some]
    return float(np.mean(2 * right / (said.sum(axis=0) + targets.sum(axis=0))[some]))


def test_precision_keeps_its_promise_on_fresh_images() -> None:
    """The mean precision of the labels that say anything is the wanted one or better."""
    each = []
    for seed in range(10):
        (logits, targets), (fresh, truth) = draw(seed, 500)
        said = thresholds.fit(logits, targets, "precision", precision=0.8).predict(fresh)
        some = said.any(axis=0)
        each.append(np.mean((said & (truth == 1)).sum(0)[some] / said.sum(0)[some]))
        assert some.mean() > 0.3
    assert np.mean(each) >= 0.8


def test_cross_fitting_is_not_optimistic() -> None:
    """Over 10 simulations its F1 is nearer the fresh one than that of the fitting data."""
    rows = []
    for seed in range(10):
        (logits, targets), (fresh, truth) = draw(seed, 400)
        found = thresholds.fit(logits, targets, "per_label")
        crossed = thresholds.cross_fit(logits, targets, "per_label")
        pairs = (found.predict(logits), targets), (crossed, targets), (found.predict(fresh), truth)
        rows.append([counted(*pair) for pair in pairs])
    fitted, honest, wanted = np.mean(rows, axis=0)
    assert abs(honest - wanted) < abs(fitted - wanted)
    assert fitted > wanted


@pytest.mark.parametrize("how", HOWS)
def test_a_target_has_no_say_in_its_own_prediction(how: Any) -> None:
    """Flipping one image's targets changes no prediction of that image."""
    (logits, targets), _ = draw(0, 60)
    said = thresholds.cross_fit(logits, targets, how, calibrate="platt")
    for row in (0, 17, 59):
        flipped = targets.copy()
        flipped[row] = 1 - flipped[row]
        again = thresholds.cross_fit(logits, flipped, how, calibrate="platt")
        assert (again[row] == said[row]).all()
    assert (thresholds.cross_fit(logits, targets, how, calibrate="platt") == said).all()


@pytest.mark.parametrize("images", [0, 1, 2, 3, 12])
def test_every_image_is_held_out_once(images: int) -> None:
    """With fewer images than folds too, and never among those fitted on."""
    parts = list(split_folds(images, 5, 0))
    held = np.concatenate([part for _, part in parts])
    assert sorted(held.tolist()) == list(range(images))
    assert all(not set(others) & set(part) for others, part in parts)
    assert all(len(others) + len(part) == images for others, part in parts)
    logits, targets = np.ones((images, 2), np.float32), np.ones((images, 2), np.int8)
    assert thresholds.cross_fit(logits, targets, "per_label").shape == (images, 2)


@thorough
@given(groups=st.lists(st.integers(-3, 12), max_size=60), seed=st.integers(0, 9))
def test_a_group_is_held_out_whole(groups: list[int], seed: int) -> None:
    """Images of one id share a fold, and folds are as even as the largest group allows."""
    ids = np.array(groups, np.int64)
    parts = list(split_folds(len(ids), 5, seed, ids))
    held = [part for _, part in parts]
    assert sorted(np.concatenate(held).tolist()) == list(range(len(ids)))
    assert all(not set(ids[others]) & set(ids[part]) for others, part in parts)
    assert len(parts) == max(1, min(5, len(set(groups))))
    sizes = [len(part) for part in held]
    largest = max(np.unique(ids, return_counts=True)[1].tolist(), default=0)
    assert max(sizes) - min(sizes) <= largest


def test_copies_of_a_picture_do_not_decide_one_another() -> None:
    """Flipping all copies of one picture changes no prediction of a copy; alone it would."""
    (logits, targets), _ = draw(0, 40, labels=8)
    groups = np.arange(40).repeat(3)
    logits, targets = logits.repeat(3, axis=0), targets.repeat(3, axis=0)
    flipped = np.where((groups == 7)[:, None], 1 - targets, targets)
    rows = groups == 7
    said, again = (
        thresholds.cross_fit(logits, truth, "per_label", calibrate="platt", groups=groups)[rows]
        for truth in (targets, flipped)
    )
    assert (said == again).all()
    one, other = (
        calibration.cross_fit(logits, truth, "platt", groups=groups)[rows]
        for truth in (targets, flipped)
    )
    assert (one == other).all()


@pytest.mark.parametrize("how", HOWS)
def test_thresholds_compose_with_calibration(how: Any) -> None:
    """Fitted to calibrated logits, they are thresholds of the calibrated probability."""
    (logits, targets), (fresh, _) = draw(1, 500)
    line = calibration.fit(logits, targets, "platt")
    found = thresholds.fit(line.apply(logits), targets, how)
    calibrated = line.apply(fresh)
    sure = np.abs(calibrated - found.cuts) > 1e-4
    by_probability = expit(calibrated.astype(np.float64)) >= found.values
    assert (by_probability == found.predict(calibrated))[sure].all()


@pytest.mark.parametrize("how", ["global", "precision"])
def test_one_slope_for_all_changes_no_decision(how: Any) -> None:
    """Calibrated logits find exactly the images that raw ones find."""
    (logits, targets), _ = draw(2, 500)
    calibrated = calibration.fit(logits, targets, "temperature").apply(logits)
    wanted = thresholds.fit(logits, targets, how).predict(logits)
    assert (thresholds.fit(calibrated, targets, how).predict(calibrated) == wanted).all()
