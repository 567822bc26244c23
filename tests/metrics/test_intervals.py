"""Intervals of a ScoreTable: what they hold, for few positives, for groups, for averages."""

from dataclasses import replace

import numpy as np
import pytest
from costs import compare_costs
from drawn_tables import copied, drawn, tables, thorough
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from score_cases import table
from sklearn.metrics import average_precision_score

from mlfinetune.metrics.average_precision import PROTOCOLS
from mlfinetune.metrics.bootstrap import AVERAGES
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import Interval, ScoreTable


def width(interval: Interval | None) -> float:
    """Return high less low."""
    assert interval is not None
    return interval[1] - interval[0]


def test_a_seed_gives_the_same_intervals_and_another_others() -> None:
    """Nothing but the seed decides which images are drawn."""
    scores = drawn(60, 3, seed=0)
    first, again = (compute_intervals(scores, [0.5] * 3, 50, seed=1) for _ in range(2))
    assert first == again
    other = compute_intervals(scores, [0.5] * 3, 50, seed=2)
    assert other.averages != first.averages
    assert other.per_label != first.per_label


@thorough
@given(scores=tables(), protocol=st.sampled_from(PROTOCOLS))
def test_intervals_hold_their_own_number(scores: ScoreTable, protocol: str) -> None:
    """0 <= low <= number <= high <= 1; None where the number is undefined, and only there."""
    found = compute_intervals(scores, [0.4] * len(scores.labels), 30, ap=protocol)
    numbers = measure(scores, 0.4, protocol)
    pairs = [(found.averages[name], numbers.averages[name]) for name in ("mAP", "macro_AUROC")]
    for row, number in zip(found.per_label, numbers.per_label, strict=True):
        pairs += [(row.AP, number.AP), (row.AUROC, number.AUROC), (row.F1, number.F1)]
    for interval, value in pairs:
        if interval is None or value is None:
            assert interval is None  # an average that half of the resamples lack has none either
            continue
        assert 0 <= interval[0] <= value + 1e-9
        assert value - 1e-9 <= interval[1] <= 1
    per_label = zip(found.per_label, numbers.per_label, strict=True)
    assert all((row.AP is None) == (number.AP is None) for row, number in per_label)


# ---- a label of few positives -----------------------------------------------------------


def draw_samples(
    positives: int, wanted: float, samples: int, seed: int
) -> tuple[ScoreTable, float, float]:
    """Return samples of 200 images as labels, the population's AUROC, and a cut of half recall.

    Scores are normal; those of positives are moved up so that the population has the wanted AP.
    """
    recall = (np.arange(4000) + 0.5) / 4000
    share = positives / 200
    moves = np.linspace(-1, 8, 4000)
    passed = norm.sf(norm.isf(recall) + moves[:, None])
    ap = (share * recall / (share * recall + (1 - share) * passed)).mean(axis=1)
    at = int(np.abs(ap - wanted).argmin())
    random = np.random.default_rng(seed)
    targets = np.zeros((200, samples), np.int8)
    targets[:positives] = 1
    targets = random.permuted(targets, axis=0)
    logits = random.normal(size=targets.shape) + moves[at] * targets
    scores = table(targets, logits.astype(np.float32))
    return scores, float(1 - passed[at].mean()), float(moves[at])


@pytest.mark.parametrize("positives", [2, 5, 20])
@pytest.mark.parametrize("wanted", [0.3, 0.9])
def test_few_positives_have_intervals_that_hold(positives: int, wanted: float) -> None:
    """AP, AUROC and F1 of the population lie in 90 % of the intervals, less three sigmas."""
    samples = 150
    scores, auroc, cut = draw_samples(positives, wanted, samples, seed=positives)
    share, passed = positives / 200, norm.sf(cut)
    f1 = 2 * share * 0.5 / (share * 0.5 + (1 - share) * passed + share)
    threshold = float(1 / (1 + np.exp(-cut)))
    found = compute_intervals(scores, [threshold] * samples, 200).per_label
    for name, truth in (("AP", wanted), ("AUROC", auroc), ("F1", f1)):
        ends = np.array([getattr(row, name) for row in found])
        held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        assert held.mean() >= 0.9 - 3 * np.sqrt(0.09 / samples), name


@pytest.mark.parametrize(
    ("positives", "least", "most"), [(1, 0, 0.2), (5, 0.35, 0.75), (50, 0.9, 0.99)]
)
def test_a_perfect_ranking_is_no_proof(positives: int, least: float, most: float) -> None:
    """The lower end rises with the number of positives, though every resample is perfect."""
    targets = np.zeros((500, 1), np.int8)
    targets[:positives] = 1
    (row,) = compute_intervals(table(targets, targets.astype(np.float32)), [0.6]).per_label
    for low, high in (row.AP or (9, 9), row.AUROC or (9, 9)):
        assert high == 1
        assert least <= low <= most
    assert row.F1 is not None
    assert row.F1[0] < 0.99


@pytest.mark.parametrize("negatives", [1, 2, 5])
def test_few_negatives_are_no_proof_either(negatives: int) -> None:
    """AUROC of the population lies in 90 % of the intervals, less three sigmas."""
    samples, move, random = 100, 1.0, np.random.default_rng(negatives)
    targets = np.ones((100, samples), np.int8)
    targets[:negatives] = 0
    logits = random.normal(size=targets.shape) + move * targets
    scores = table(targets, logits.astype(np.float32))
    found = compute_intervals(scores, [0.5] * samples, 200).per_label
    ends, truth = np.array([row.AUROC for row in found]), norm.cdf(move / np.sqrt(2))
    held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    assert held.mean() >= 0.9 - 3 * np.sqrt(0.09 / samples)


def test_one_positive_that_was_missed_may_be_found_next_time() -> None:
    """F1 of 0 from one positive: nearly anything is possible."""
    targets = np.zeros((100, 1), np.int8)
    targets[0] = 1
    (row,) = compute_intervals(table(targets, -targets.astype(np.float32)), [0.6]).per_label
    assert row.F1 is not None
    assert row.F1[0] == 0
    assert row.F1[1] > 0.5


def test_groups_widen_a_label_s_interval() -> None:
    """Five copies of each picture tell no more than one; without groups they seem to."""
    scores = drawn(80, 3, seed=0)
    alone = compute_intervals(scores, [0.5] * 3)
    groups = compute_intervals(copied(scores, 5), [0.5] * 3)
    loose = compute_intervals(replace(copied(scores, 5), groups=None), [0.5] * 3)
    assert (alone.groups, groups.groups, loose.groups) == (None, 80, None)
    for name in AVERAGES:
        assert groups.averages[name] == pytest.approx(alone.averages[name], abs=0.01)
        assert width(loose.averages[name]) < 0.6 * width(alone.averages[name])
    for name in ("AP", "AUROC", "F1"):
        one, five, all_alone = (getattr(x.per_label[0], name) for x in (alone, groups, loose))
        assert width(five) == pytest.approx(width(one), rel=0.15)
        assert width(all_alone) < 0.7 * width(one)


# ---- averages ---------------------------------------------------------------------------


def test_averages_hold_the_population_value() -> None:
    """Of 40 samples of 300 images at least 33 intervals, 95 % less three sigmas, hold it."""
    wanted = measure(drawn(100_000, 5, seed=0)).averages
    hits = dict.fromkeys(AVERAGES, 0)
    for seed in range(1, 41):
        found = compute_intervals(drawn(300, 5, seed), [0.5] * 5, 200).averages
        for name in AVERAGES:
            low, high = found[name] or (9, 9)
            hits[name] += low <= (wanted[name] or 0) <= high
    assert min(hits.values()) >= 33


@pytest.mark.parametrize(("images", "share"), [(300, 0.02), (60, 0.05)])
def test_map_of_rare_labels_is_held(images: int, share: float) -> None:
    """With 3 to 6 positives a label plain percentiles are too high for most of the samples."""
    wanted = measure(drawn(100_000, 20, seed=0, share=share)).averages["mAP"] or 0
    held = 0
    for seed in range(1, 41):
        scores = drawn(images, 20, seed, share=share)
        low, high = compute_intervals(scores, [0.5] * 20, 200).averages["mAP"] or (9, 9)
        held += low <= wanted <= high
    assert held >= 33


def test_many_rare_labels_of_chance_scores_hold_their_own_numbers() -> None:
    """Where resamples lose labels, averages stay inside their intervals, and so does the truth."""
    random = np.random.default_rng(0)
    shares = np.geomspace(0.001, 0.01, 300)
    targets = (random.random((400, 300)) < shares).astype(np.int8)
    scores = table(targets, random.normal(size=targets.shape).astype(np.float32))
    found = compute_intervals(scores, [0.9] * 300, 200).averages
    numbers = measure(scores, 0.9).averages
    for name in AVERAGES:
        low, high = found[name] or (9, 9)
        assert low <= (numbers[name] or 0) <= high
    scored = targets.any(axis=0)
    low, high = found["mAP"] or (9, 9)
    assert low <= shares[scored].mean() <= high  # AP of chance is the share of positives


def test_few_perfect_labels_are_no_perfect_map() -> None:
    """Two labels of two positives: an mAP of 1 with an interval of some width."""
    targets = np.zeros((100, 2), np.int8)
    targets[:2, 0] = targets[2:4, 1] = 1
    found = compute_intervals(table(targets, targets.astype(np.float32)), [0.6] * 2).averages
    for name in AVERAGES:
        low, high = found[name] or (9, 9)
        assert high == 1
        assert 0.1 < low < 0.8


def test_more_images_make_narrower_intervals() -> None:
    """Sixteen times the images, a quarter of the width."""
    widths = []
    for images in (250, 4000):
        found = compute_intervals(drawn(images, 4, 0), [0.5] * 4, 200)
        widths.append((width(found.averages["mAP"]), width(found.per_label[0].AP)))
    ratios = np.divide(*widths)
    assert ((ratios > 2.5) & (ratios < 5.5)).all()


def test_the_undefined_has_no_interval() -> None:
    """No positive, no negative, nothing known; one positive has intervals, and wide ones."""
    targets = np.zeros((50, 4), np.int8)
    targets[:, 1], targets[:, 2], targets[0, 3] = 1, -1, 1
    logits = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
    found = compute_intervals(table(targets, logits), [0.5] * 4, 200).per_label
    assert [row.AP is None for row in found] == [True, True, True, False]
    assert [row.AUROC is None for row in found] == [True, True, True, False]
    assert [row.F1 is None for row in found] == [True, False, True, False]
    assert width(found[3].AP) > 0.5
    none = compute_intervals(table(targets[:, :1], logits[:, :1]), [0.5], 20)
    assert set(none.averages.values()) == {None}


def test_resamples_cost_a_fraction_of_a_metric_each() -> None:
    """A thousand of 5,000 x 8, with all of their numbers, cost less than 500 mAPs."""
    scores = drawn(5000, 8, seed=0, share=0.05)

    def measure_ten() -> None:
        for _ in range(10):
            average_precision_score(scores.targets == 1, scores.logits, average="macro")

    assert compare_costs(lambda: compute_intervals(scores, [0.5] * 8), measure_ten) < 50


def test_a_label_that_is_never_given_has_an_f1_of_0_for_sure() -> None:
    """A threshold of 1 gives it to no image, whatever images come."""
    scores = drawn(60, 2, seed=0)
    found = compute_intervals(scores, [1.0, 0.7], 200)
    assert found.per_label[0].F1 == (0, 0)
    assert width(found.per_label[1].F1) > 0
    none = compute_intervals(scores, [1.0, 1.0], 200).averages
    assert (none["macro_F1"], none["micro_F1"]) == ((0, 0), (0, 0))
    assert width(none["mAP"]) > 0
