"""What is held out keeps the labels' shares, and is a function of its arguments."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlfinetune.data.split import stratified_split

Targets = NDArray[np.int8]


def skewed(n: int, labels: int, seed: int = 0) -> Targets:
    """Labels from one image in three to a handful of images in all."""
    shares = np.geomspace(1 / 3, 10 / n, labels)
    return (np.random.default_rng(seed).random((n, labels)) < shares).astype(np.int8)


def deviation(targets: Targets, held_out: NDArray[np.int64], fraction: float) -> float:
    """The largest difference, over labels, of the share held out from the share asked for."""
    positive = targets == 1
    counts = positive.sum(0)
    share = positive[held_out].sum(0)[counts > 0] / counts[counts > 0]
    return float(np.abs(share - fraction).max())


def assert_two_sides(n: int, train: NDArray[np.int64], val: NDArray[np.int64]) -> None:
    """Sorted, disjoint, complete, and neither of them empty."""
    assert sorted([*train, *val]) == list(range(n))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    assert min(len(train), len(val)) >= 1


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_labels_keep_their_shares_better_than_at_random(fraction: float) -> None:
    """On skewed data the worst label is three times nearer to its share, on average."""
    reached, random = [], []
    for seed in range(4):
        targets = skewed(2000, 20, seed)
        drawn = np.random.default_rng(seed).permutation(2000)[: round(2000 * fraction)]
        reached.append(deviation(targets, stratified_split(targets, fraction, seed)[1], fraction))
        random.append(deviation(targets, drawn, fraction))
    assert np.mean(reached) < np.mean(random) / 3


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_size_is_near_the_one_asked_for(fraction: float) -> None:
    """Stratification goes before the exact count, by one row in a hundred at most."""
    _, val = stratified_split(skewed(2000, 20), fraction, 0)
    assert abs(len(val) - 2000 * fraction) <= 20


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([1, 0, -1]), min_size=3, max_size=3), min_size=2, max_size=30
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
@example([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 0.2, 0)
@example([[1, 1, 1]] * 2, 0.99, 0)
def test_both_sides_are_disjoint_complete_and_not_empty(
    rows: list[list[int]], fraction: float, seed: int
) -> None:
    """Whatever the targets, the share and the seed."""
    targets = np.array(rows, np.int8)
    assert_two_sides(len(rows), *stratified_split(targets, fraction, seed))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40, 200])
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_labels_of_one_image_each_leave_both_sides_a_row(n: int, fraction: float) -> None:
    """Where each label wants its one image on the same side, the other still gets a row."""
    for seed in range(5):
        assert_two_sides(n, *stratified_split(np.eye(n, dtype=np.int8), fraction, seed))


def test_many_rare_labels_do_not_leave_validation_empty() -> None:
    """Where no label has enough images to share out, the size asked for still counts."""
    targets = np.repeat(np.eye(200, dtype=np.int8), 2, axis=0)
    for seed in range(3):
        train, val = stratified_split(targets, 0.2, seed)
        assert 40 <= len(val) <= 120
        assert targets[train].any(0).all()


@pytest.mark.parametrize("seed", range(10))
def test_a_label_with_one_positive_can_be_learnt(seed: int) -> None:
    """Its one image is trained on, not held out."""
    targets = skewed(50, 4, seed)
    targets[:, 0] = 0
    targets[seed, 0] = 1
    train, _ = stratified_split(targets, 0.2, seed)
    assert seed in train


def test_a_label_with_a_few_positives_stands_on_both_sides() -> None:
    """Five images at a fifth: four to train on and one to score."""
    targets = np.zeros((200, 2), np.int8)
    targets[::40, 0] = 1
    targets[:, 1] = np.arange(200) % 3 == 0
    _, val = stratified_split(targets, 0.2, 0)
    assert targets[val, 0].sum() == 1


def test_images_without_a_label_are_spread_too() -> None:
    """Background images are a fifth of both sides if they are a fifth of all."""
    targets = skewed(500, 3)
    targets[::5] = 0
    _, val = stratified_split(targets, 0.2, 0)
    background: NDArray[np.bool_] = targets.sum(1) == 0
    assert background[val].mean() == pytest.approx(background.mean(), abs=0.02)


@pytest.mark.parametrize(
    "targets",
    [
        np.arange(40, dtype=np.int8)[:, None] % 2,
        np.zeros((40, 0), np.int8),
        np.zeros((40, 1), np.int8),
        np.zeros((40, 3), np.int8),
        np.ones((40, 1), np.int8),
        np.ones((40, 3), np.int8),
        np.full((40, 3), -1, np.int8),
    ],
    ids=["one label", "no label", "one absent", "absent", "one present", "present", "unknown"],
)
def test_tables_without_variety_are_split(targets: Targets) -> None:
    """One label, none, and labels that are the same in all images are no special case."""
    train, val = stratified_split(targets, 0.25, 0)
    assert_two_sides(40, train, val)
    assert len(val) == 10


def test_unknown_counts_as_no_positive() -> None:
    """What is unknown is split as if it were absent, so that known positives are shared out."""
    targets = skewed(300, 5)
    masked = np.where(targets == 0, -1, targets).astype(np.int8)
    for side, other in zip(
        stratified_split(targets, 0.2, 3), stratified_split(masked, 0.2, 3), strict=True
    ):
        assert (side == other).all()


def test_the_same_arguments_give_the_same_split() -> None:
    """The seed decides, and numpy's global state neither decides nor moves."""
    targets = skewed(300, 5)
    first = stratified_split(targets, 0.2, 1)
    before = repr(np.random.get_state())
    again = stratified_split(targets.copy(), 0.2, 1)
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert repr(np.random.get_state()) == before
    assert not np.array_equal(first[1], stratified_split(targets, 0.2, 2)[1])


def test_the_targets_are_left_as_they_are() -> None:
    """They are read, not written."""
    targets = skewed(100, 3)
    targets.flags.writeable = False
    assert_two_sides(100, *stratified_split(targets, 0.2, 0))
