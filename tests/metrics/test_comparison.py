"""Comparison of two ScoreTables by paired resamples."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_tables import copied, drawn, noisier
from score_cases import table

from mlfinetune.metrics.bootstrap import AVERAGES
from mlfinetune.metrics.comparison import NO_DIFFERENCE, Comparison, compare_tables
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable


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
        (0.0, (0.0, 0.0), 0.5)
    }


def test_the_better_one_is_told_from_either_side() -> None:
    """Swapped tables swap wins and losses, and turn every interval round."""
    good = drawn(600, 6, seed=0)
    bad = noisier(good, 2.0, seed=1)
    up, down = compared(bad, good), compared(good, bad)
    assert (up.verdict, down.verdict) == ("B is better", "A is better")
    assert (up.wins, up.losses) == (down.losses, down.wins) == (6, 0)
    for name in AVERAGES:
        low, high = up.averages[name].interval or (0, 0)
        assert down.averages[name].interval == pytest.approx((-high, -low))
        assert up.averages[name].share_above == 1.0


def test_differences_are_those_of_measure() -> None:
    """The points are the numbers of metrics.json, b - a."""
    a = drawn(100, 3, seed=0)
    b = noisier(a, 1.0, seed=1)
    found, one, two = compared(a, b), measure(a), measure(b)
    for name in AVERAGES:
        wanted = (one.averages[name], two.averages[name])
        assert (found.averages[name].a, found.averages[name].b) == pytest.approx(wanted, abs=1e-12)
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


def test_five_positives_decide_nothing_and_thirty_do() -> None:
    """All positives first in B and last in A: with 5 of them there is no interval."""
    for positives in (1, 5, 30):
        targets = np.zeros((200, 1), np.int8)
        targets[:positives] = 1
        best = table(targets, targets.astype(np.float32))
        worst = table(targets, -best.logits)
        found = compared(worst, best)
        row = found.per_label["label 0"]
        assert row.value is not None
        assert row.value > 0.5
        assert (row.interval is None, found.untold) == (positives < 6, int(positives < 6))
        assert (found.wins, found.verdict == "B is better") == (int(positives > 5), positives > 5)


def test_few_negatives_decide_as_little() -> None:
    """A label that nearly every picture has is compared by its negatives."""
    for negatives in (5, 30):
        targets = np.ones((200, 1), np.int8)
        targets[:negatives] = 0
        best = table(targets, targets.astype(np.float32))
        found = compared(table(targets, -best.logits), best)
        assert (found.wins, found.untold) == (int(negatives > 5), int(negatives < 6))


def test_copies_of_a_picture_decide_no_more_than_one() -> None:
    """Five copies of each picture, as groups, give the intervals of the pictures alone."""
    a = drawn(60, 4, seed=0)
    b = noisier(a, 1.0, seed=1)
    alone, groups = compared(a, b), compared(copied(a, 5), copied(b, 5))
    for name in AVERAGES:
        assert groups.averages[name].interval == pytest.approx(alone.averages[name].interval)
    loose = [replace(copied(one, 5), groups=None) for one in (a, b)]
    low, high = compared(*loose).averages["mAP"].interval or (0, 9)
    whole = alone.averages["mAP"].interval or (0, 0)
    assert high - low < 0.6 * (whole[1] - whole[0])


@pytest.mark.parametrize("move", [1.0, 4.0])
def test_equal_models_are_rarely_told_apart(move: float) -> None:
    """Of 200 labels with 8 positives, at most 5 % and three sigmas are claimed for a side."""
    random = np.random.default_rng(0)
    targets = np.zeros((150, 200), np.int8)
    targets[:8] = 1
    targets = random.permuted(targets, axis=0)
    base = random.normal(size=targets.shape) + move * targets
    a, b = (
        table(targets, (base + 0.5 * random.normal(size=base.shape)).astype(np.float32))
        for _ in range(2)
    )
    found = compared(a, b)
    assert found.wins + found.losses <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)
