"""Intervals of a ScoreTable against scikit-learn with sample weights, and by their meaning."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.bootstrap import (
    NO_DIFFERENCE,
    Comparison,
    compare_tables,
    compute_intervals,
)
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import Interval, ScoreTable

thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)


def table(targets: NDArray[np.int8], logits: NDArray[np.float32]) -> ScoreTable:
    """Return images and labels with numbers for names."""
    names = tuple(f"{i}.jpg" for i in range(len(targets)))
    labels = LabelSpace(tuple(f"label {i}" for i in range(targets.shape[1])))
    return ScoreTable(names, logits, targets, labels)


def drawn(images: int, labels: int, seed: int, share: float = 0.2) -> ScoreTable:
    """Return logits that tell a good part of the targets."""
    random = np.random.default_rng(seed)
    targets = (random.random((images, labels)) < share).astype(np.int8)
    logits = (2 * targets + random.normal(size=targets.shape)).astype(np.float32)
    return table(targets, logits)


def noisier(scores: ScoreTable, noise: float, seed: int) -> ScoreTable:
    """Add noise to the logits: equal images, a worse model."""
    random = np.random.default_rng(seed)
    logits = scores.logits + noise * random.normal(size=scores.logits.shape)
    return replace(scores, logits=logits.astype(np.float32))


@st.composite
def tables(draw: st.DrawFn, states: tuple[int, ...] = (0, 1, -1)) -> ScoreTable:
    """1 to 25 images, 1 to 4 labels, from all tied to all apart."""
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    steps = draw(st.sampled_from((0, 1, 20)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from(states)))
    return table(targets, levels.astype(np.float32) / 4)


SEEDS = range(12)


def counts(images: int, seed: int, resamples: int = 1) -> NDArray[np.int64]:
    """Return (resamples, images) counts of draws: images drawn again, with replacement."""
    random = np.random.default_rng(seed)
    draws = [random.integers(0, images, images) for _ in range(resamples)]
    return np.array([np.bincount(draw, minlength=images) for draw in draws])


def is_near(value: float | None, wanted: float | None) -> bool:
    """Equal to 12 digits, None where None."""
    if value is None or wanted is None:
        return value is wanted
    return abs(value - wanted) <= 1e-12


def is_point(interval: Interval | None, wanted: float) -> bool:
    """Both ends of the interval of one resample are its number, to 12 digits; None for NaN."""
    if interval is None or np.isnan(wanted):
        return interval is None and bool(np.isnan(wanted))
    return bool(np.allclose(interval, wanted, rtol=0, atol=1e-12))


# ---- one resample -----------------------------------------------------------------------


@thorough
@given(scores=tables())
def test_each_resample_has_the_average_precision_of_scikit_learn(scores: ScoreTable) -> None:
    """With the counts as sample weights; undefined without a positive or a negative of weight."""
    for seed in SEEDS:
        found = compute_intervals(scores, [0.5] * len(scores.labels), 1, seed).per_label
        for at, row in enumerate(found):
            known = scores.targets[:, at] != -1
            truth, logits = scores.targets[known, at], scores.logits[known, at]
            weights = counts(len(scores.names), seed)[0, known]
            both = (weights * truth).sum() and (weights * (1 - truth)).sum()
            how = {"sample_weight": weights}
            wanted = average_precision_score(truth, logits, **how) if both else np.nan
            assert is_point(row.AP, wanted)


@settings(thorough, max_examples=40)
@given(scores=tables(), threshold=st.sampled_from((0.0, 0.3, 0.5, 0.8, 1.0)))
def test_each_resample_has_the_f1_of_scikit_learn(scores: ScoreTable, threshold: float) -> None:
    """A label's and the pooled one, at the threshold's logit, over known pairs."""
    with np.errstate(divide="ignore"):
        said = scores.logits >= np.float32(np.log(np.float64(threshold) / (1 - threshold)))
    known, truth = scores.targets != -1, scores.targets == 1
    for seed in SEEDS:
        found = compute_intervals(scores, [threshold] * len(scores.labels), 1, seed)
        weights = counts(len(scores.names), seed)[0, :, None] * known
        pooled = f1(truth.ravel(), said.ravel(), weights.ravel())
        assert is_point(found.averages["micro_F1"], pooled)
        for at, row in enumerate(found.per_label):
            assert is_point(row.F1, f1(truth[:, at], said[:, at], weights[:, at]))


def f1(truth: NDArray[np.bool_], said: NDArray[np.bool_], weights: NDArray[np.int64]) -> float:
    """Scikit-learn's, NaN without a positive of weight."""
    if not (truth * weights).sum():
        return float("nan")
    return float(f1_score(truth, said, sample_weight=weights, zero_division=0))


@thorough
@given(scores=tables())
def test_every_image_once_is_what_measure_says(scores: ScoreTable) -> None:
    """The points that intervals belong to are those of metrics.json."""
    cuts = [0.5] * len(scores.labels)
    found, wanted = compare_tables(scores, scores, cuts, cuts, 1), measure(scores)
    for name, point in found.averages.items():
        assert is_near(point.a, wanted.averages[name])
    for row in wanted.per_label:
        assert is_near(found.per_label[row.label].a, row.AP)


# ---- intervals --------------------------------------------------------------------------


def test_a_seed_gives_the_same_intervals_and_another_others() -> None:
    """Nothing but the seed decides which images are drawn."""
    scores = drawn(60, 3, seed=0)
    first, again = (compute_intervals(scores, [0.5] * 3, 50, seed=1) for _ in range(2))
    assert first == again
    assert compute_intervals(scores, [0.5] * 3, 50, seed=2).averages != first.averages


@pytest.mark.parametrize("block", [1, 130, 10**6])
def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Resamples are drawn one by one, whatever the number that is in memory."""
    scores = drawn(40, 3, seed=0)
    wanted = compute_intervals(scores, [0.5] * 3, 30)
    monkeypatch.setattr(bootstrap, "_BLOCK", block)
    assert compute_intervals(scores, [0.5] * 3, 30) == wanted


def test_intervals_hold_the_population_value() -> None:
    """Of 40 samples of 300 images at least 33 intervals, 95 % less three sigmas, hold it."""
    wanted = measure(drawn(100_000, 5, seed=0)).averages
    hits = dict.fromkeys(bootstrap.AVERAGES, 0)
    for seed in range(1, 41):
        found = compute_intervals(drawn(300, 5, seed), [0.5] * 5, 200).averages
        for name, (low, high) in found.items():  # type: ignore[misc]
            hits[name] += low <= wanted[name] <= high
    assert min(hits.values()) >= 33


def test_the_interval_of_map_has_no_bias_of_rare_labels() -> None:
    """With 6 positives a label plain percentiles are too high for half of the samples."""
    wanted = measure(drawn(100_000, 20, seed=0, share=0.02)).averages["mAP"]
    plain = lowered = 0
    for seed in range(1, 41):
        scores = drawn(300, 20, seed, share=0.02)
        perfect, cuts = replace(scores, logits=scores.targets.astype(np.float32)), [0.5] * 20
        above = compare_tables(perfect, scores, cuts, cuts, 200).averages["mAP"]
        low, high = above.interval or (0, 0)  # plain percentiles, less the 1 of a perfect table
        plain += low + 1 <= wanted <= high + 1
        low, high = compute_intervals(scores, cuts, 200).averages["mAP"] or (0, 0)
        lowered += low <= wanted <= high
    assert plain < 30 <= lowered


def test_more_images_make_narrower_intervals() -> None:
    """Sixteen times the images, a quarter of the width."""
    widths = []
    for images in (250, 4000):
        low, high = compute_intervals(drawn(images, 4, 0), [0.5] * 4, 200).averages["mAP"] or (0, 0)
        widths.append(high - low)
    assert 3 < widths[0] / widths[1] < 5.5


def test_the_undefined_has_no_interval() -> None:
    """No positive, no negative, nothing known, and one positive that 37 % of resamples lack."""
    targets = np.zeros((50, 4), np.int8)
    targets[:, 1], targets[:, 2], targets[0, 3] = 1, -1, 1
    logits = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
    found = compute_intervals(table(targets, logits), [0.5] * 4, 200).per_label
    assert [row.AP is None for row in found] == [True, True, True, False]
    assert [row.F1 is None for row in found] == [True, False, True, False]
    none = compute_intervals(table(targets[:, :1], logits[:, :1]), [0.5], 20)
    assert set(none.averages.values()) == {None}


def test_a_label_that_most_resamples_lose_has_no_interval() -> None:
    """A positive and a negative, both in half of the resamples; more than half have to be defined.

    The rest of the resamples would be a chosen few.
    """
    scores = table(np.array([[1], [0]], np.int8), np.array([[1], [0]], np.float32))
    halves = set()
    for seed in range(40):
        defined = int((counts(2, seed, 10) == 1).all(axis=1).sum())
        halves.add(defined)
        wanted = (1.0, 1.0) if defined > 5 else None
        assert wanted == compute_intervals(scores, [0.5], 10, seed).per_label[0].AP
    assert {5, 6} <= halves


@thorough
@given(scores=tables())
def test_intervals_are_ordered_and_within_bounds(scores: ScoreTable) -> None:
    """0 <= low <= high <= 1."""
    found = compute_intervals(scores, [0.4] * len(scores.labels), 30)
    pairs = [*found.averages.values()]
    pairs += [pair for row in found.per_label for pair in (row.AP, row.F1)]
    assert all(0 <= pair[0] <= pair[1] <= 1 for pair in pairs if pair is not None)


# ---- pairs ------------------------------------------------------------------------------


def compared(a: ScoreTable, b: ScoreTable) -> Comparison:
    """200 resamples at thresholds of 0.5."""
    cuts = [0.5] * len(a.labels)
    return compare_tables(a, b, cuts, cuts, 200)


def test_nothing_can_be_told_between_a_table_and_itself() -> None:
    """All differences are 0, all labels ties."""
    scores = drawn(80, 4, seed=0)
    found = compared(scores, scores)
    assert found.verdict == NO_DIFFERENCE
    assert (found.wins, found.losses, found.ties) == (0, 0, 4)
    assert {(one.value, one.interval, one.share_above) for one in found.averages.values()} == {
        (0.0, (0.0, 0.0), 0.0)
    }


def test_the_better_one_is_told_from_either_side() -> None:
    """Swapped tables swap wins and losses, and turn every interval round."""
    good = drawn(600, 6, seed=0)
    bad = noisier(good, 2.0, seed=1)
    up, down = compared(bad, good), compared(good, bad)
    assert (up.verdict, down.verdict) == ("B is better", "A is better")
    assert (up.wins, up.losses) == (down.losses, down.wins) == (6, 0)
    for name in bootstrap.AVERAGES:
        low, high = up.averages[name].interval or (0, 0)
        assert down.averages[name].interval == pytest.approx((-high, -low))
        assert up.averages[name].share_above == 1.0


def test_differences_are_those_of_measure() -> None:
    """The points are the numbers of metrics.json, b - a."""
    a = drawn(100, 3, seed=0)
    b = noisier(a, 1.0, seed=1)
    found, one, two = compared(a, b), measure(a), measure(b)
    for name in bootstrap.AVERAGES:
        wanted = two.averages[name] - one.averages[name]  # type: ignore[operator]
        assert found.averages[name].value == pytest.approx(wanted, abs=1e-12)
    for left, right in zip(one.per_label, two.per_label, strict=True):
        difference = found.per_label[left.label]
        assert (difference.a, difference.b) == pytest.approx((left.AP, right.AP))


def test_pairing_is_worth_it() -> None:
    """Two tables that err on the same images differ by less than their own intervals' width."""
    a = drawn(500, 5, seed=0)
    b = noisier(a, 0.2, seed=1)
    low, high = compared(a, b).averages["mAP"].interval or (0, 9)
    alone = compute_intervals(a, [0.5] * 5, 200).averages["mAP"] or (0, 0)
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_each_table_has_its_own_thresholds() -> None:
    """Equal logits have a better F1 at better thresholds, and an equal AP."""
    scores = drawn(400, 3, seed=0)
    found = compare_tables(scores, scores, [0.999] * 3, [0.7] * 3, 100)
    assert found.averages["macro_F1"].sign == found.averages["micro_F1"].sign == 1
    assert found.averages["mAP"].value == 0


def test_a_thousand_resamples_take_seconds() -> None:
    """A tenth of 5,000 x 80, under a tenth of a minute, on one core."""
    scores = drawn(5000, 8, seed=0, share=0.05)
    started = time.monotonic()
    compute_intervals(scores, [0.5] * 8)
    assert time.monotonic() - started < 6
