"""The sides keep the labels' shares, their sizes and the groups, and depend on arguments alone."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
from numpy.typing import NDArray

from mlfinetune.data.stratify import split_stratified

Table = NDArray[np.bool_]
Sides = NDArray[np.int8]

TABLES = st.integers(0, 4).flatmap(
    lambda labels: st.lists(
        st.lists(st.booleans(), min_size=labels, max_size=labels), min_size=4, max_size=40
    )
)
FRACTIONS = st.lists(st.floats(0.01, 0.32), min_size=1, max_size=3) | st.lists(
    st.floats(0.01, 0.99), min_size=1, max_size=1
)
SEEDS = st.integers(0, 2**63 - 1)


def split(
    table: Table, *fractions: float, seed: int = 0, groups: NDArray[np.int64] | None = None
) -> Sides:
    """Return the sides of the rows of a dense table."""
    return split_stratified(*np.nonzero(table), *table.shape, fractions, seed, groups)


def skewed(n: int, labels: int, seed: int = 0) -> Table:
    """Draw labels of one image in three down to a handful of images."""
    shares = np.geomspace(1 / 3, 10 / n, labels)
    table: Table = np.random.default_rng(seed).random((n, labels)) < shares
    return table


def errors(table: Table, side: Table, fraction: float) -> NDArray[np.float64]:
    """Return how far the share of each label on a side is from the wanted share."""
    counts = table.sum(0)
    misses: NDArray[np.float64] = np.abs(table[side].sum(0) / np.maximum(counts, 1) - fraction)
    return misses[counts > 0]


def wanted(n: int, fractions: list[float]) -> list[int]:
    """Return rounded shares; at least one image stays for train and each later side."""
    sizes: list[int] = []
    for after, fraction in zip(range(len(fractions))[::-1], fractions, strict=True):
        sizes.append(min(max(round(n * fraction), 1), n - sum(sizes) - after - 1))
    return [n - sum(sizes), *sizes]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_labels_keep_their_shares_better_than_at_random(fraction: float) -> None:
    """On skewed data the worst label is three times nearer to its share, on average."""
    reached, random = [], []
    for seed in range(4):
        table = skewed(2000, 20, seed)
        drawn = np.random.default_rng(seed).permutation(2000) < round(2000 * fraction)
        reached.append(errors(table, split(table, fraction, seed=seed) == 1, fraction).max())
        random.append(errors(table, drawn, fraction).max())
    assert np.mean(reached) < np.mean(random) / 3


@pytest.mark.parametrize(("n", "labels"), [(300, 10), (2000, 20), (5000, 80)])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_shares_are_as_near_as_those_of_the_reference(n: int, labels: int, fraction: float) -> None:
    """The iterative-stratification package, free to miss the size, is nearer by 0.001 at most."""
    ours, theirs = [], []
    for seed in range(3):
        table = skewed(n, labels, seed)
        splitter = MultilabelStratifiedShuffleSplit(
            n_splits=1, test_size=round(n * fraction), random_state=seed
        )
        _, val = next(splitter.split(np.zeros(n), table.astype(np.int8)))
        ours.append(errors(table, split(table, fraction, seed=seed) == 1, fraction).mean())
        theirs.append(errors(table, np.isin(np.arange(n), val), fraction).mean())
    assert np.mean(ours) <= np.mean(theirs) + 0.001


def test_each_of_three_sides_keeps_the_shares() -> None:
    """Common labels to a hundredth, on validation and on test."""
    table = skewed(2000, 20)
    sides = split(table, 0.2, 0.1)
    common = table[:, table.sum(0) >= 100]
    assert errors(common, sides == 1, 0.2).max() < 0.01
    assert errors(common, sides == 2, 0.1).max() < 0.01


@settings(max_examples=200, deadline=None)
@given(TABLES, FRACTIONS, SEEDS)
@example([[True, False], [False, True], [False, False], [True, True]], [0.2], 0)
@example([[True] * 4] * 4, [0.3, 0.3, 0.3], 0)
@example([[True] * 4] * 5, [0.3, 0.3, 0.3], 0)
@example([[True] * 4] * 4, [0.99], 0)
@example([[]] * 4, [0.99], 0)
def test_sizes_are_those_asked_for(
    rows: list[list[bool]], fractions: list[float], seed: int
) -> None:
    """To the image, on each side, none of them empty."""
    sides = split(np.array(rows, bool), *fractions, seed=seed)
    expected = wanted(len(rows), fractions)
    assert min(expected) >= 1
    assert np.bincount(sides).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(TABLES, FRACTIONS, SEEDS)
def test_no_label_is_held_out_whole(
    rows: list[list[bool]], fractions: list[float], seed: int
) -> None:
    """Not one, if train has as many images as there are labels."""
    table = np.array(rows, bool)
    train = table[split(table, *fractions, seed=seed) == 0]
    if len(train) >= table.shape[1]:
        assert (train.any(0) == table.any(0)).all()


@pytest.mark.parametrize(
    ("n", "labels", "draws"), [(60, 30, 150), (20, 10, 20), (40, 20, 60), (60, 20, 90)]
)
def test_no_label_is_held_out_whole_where_labels_overlap(n: int, labels: int, draws: int) -> None:
    """Not even where an image holds several rare labels, which want it on different sides."""
    for seed in range(250):
        rng = np.random.default_rng(seed)
        table = np.zeros((n, labels), bool)
        table[rng.integers(n, size=draws), rng.zipf(1.5, draws) % labels] = True
        train = table[split(table, 0.2 if n == 60 else 0.5, seed=seed) == 0]
        assert (train.any(0) == table.any(0)).all()


@settings(max_examples=200, deadline=None)
@given(TABLES, FRACTIONS, SEEDS, st.data())
def test_groups_are_kept_whole(
    rows: list[list[bool]], fractions: list[float], seed: int, data: st.DataObject
) -> None:
    """If no group is larger than a side, two sides are off by at most half a group."""
    table, n = np.array(rows, bool), len(rows)
    groups = np.array(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    sides = split(table, *fractions, seed=seed, groups=groups)
    for group in set(groups.tolist()):
        assert len(set(sides[groups == group].tolist())) == 1
    expected, largest = wanted(n, fractions), np.bincount(groups).max()
    if len(expected) == 2 and largest <= min(expected):
        assert abs((sides == 1).sum() - expected[1]) <= largest / 2


def test_the_names_of_groups_do_not_matter() -> None:
    """Groups of one image each are as no groups, and numbers may be left out."""
    table = skewed(200, 5)
    assert (split(table, 0.2) == split(table, 0.2, groups=np.arange(200) * 7)).all()


def test_labels_keep_their_shares_across_groups() -> None:
    """Groups of ten images: the mean error is half that of groups drawn at random, or less."""
    reached, random = [], []
    for seed in range(4):
        table = np.repeat(skewed(200, 10, seed), 10, axis=0) & skewed(2000, 10, seed)[:, :1]
        groups = np.arange(2000) // 10
        drawn = np.random.default_rng(seed).permutation(200)[groups] < 40
        sides = split(table, 0.2, seed=seed, groups=groups)
        assert (sides == 1).sum() == 400
        reached.append(errors(table, sides == 1, 0.2).mean())
        random.append(errors(table, drawn, 0.2).mean())
    assert np.mean(reached) < np.mean(random) / 2


@pytest.mark.parametrize("rare", [0, 30])
def test_a_group_larger_than_validation_is_trained_on(rare: int) -> None:
    """Whether it or the images without a group hold what is rare; these still fill validation."""
    table = np.ones((100, 31), bool)
    table[:, :30] = np.roll(np.eye(100, 30, dtype=bool), rare, axis=0)
    groups = np.maximum(np.arange(100) - 29, 0)  # the first 30 images are one group
    table[40, :30] = True
    for seed in range(5):
        sides = split(table, 0.2, seed=seed, groups=groups)
        assert (sides[:30] == 0).all()
        assert (sides == 1).sum() == 20


def test_a_group_of_half_the_images_leaves_the_others_to_validation() -> None:
    """Its label is the commonest, and still it counts before the rest is dealt, 30 to 20."""
    table = np.zeros((100, 6), bool)
    table[:50, 5] = True
    table[50:, :5] = np.repeat(np.eye(5, dtype=bool), 10, axis=0)
    table[98:] = table[0]
    sides = split(table, 0.2, groups=np.maximum(np.arange(100) - 49, 0))
    assert (sides[:50] == 0).all()
    assert np.bincount(sides).tolist() == [80, 20]


def test_sizes_are_the_nearest_that_groups_of_one_size_allow() -> None:
    """With groups of seven, 21 images are nearer to 20 than 14 images are."""
    for seed in range(5):
        sides = split(skewed(98, 3, seed), 0.2, seed=seed, groups=np.arange(98) // 7)
        assert np.bincount(sides).tolist() == [77, 21]


def test_small_groups_fill_what_large_ones_leave() -> None:
    """Ten groups of nine images and ten single ones can be split 80 to 20, and are."""
    groups = np.minimum(np.arange(100) // 9, 10) + np.maximum(np.arange(100) - 90, 0)
    for seed in range(5):
        sides = split(np.ones((100, 1), bool), 0.2, seed=seed, groups=groups)
        assert np.bincount(sides).tolist() == [80, 20]


def test_validation_is_empty_where_every_group_is_larger() -> None:
    """Two groups of five cannot leave two images of ten; the caller has to say so."""
    assert (split(skewed(10, 2), 0.2, groups=np.arange(10) // 5) == 0).all()


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40, 200])
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_labels_of_one_image_each_leave_both_sides_a_row(n: int, fraction: float) -> None:
    """Each label wants its one image in train; the other side still gets its size."""
    for seed in range(5):
        sides = split(np.eye(n, dtype=bool), fraction, seed=seed)
        assert np.bincount(sides).tolist() == wanted(n, [fraction])


def test_many_rare_labels_do_not_leave_validation_empty() -> None:
    """Of 200 labels with two images each, 80 are in validation, and each can be learned."""
    table = np.repeat(np.eye(200, dtype=bool), 2, axis=0)
    for seed in range(3):
        sides = split(table, 0.2, seed=seed)
        assert table[sides == 1].any(0).sum() == 80
        assert table[sides == 0].any(0).all()


@pytest.mark.parametrize("seed", range(10))
def test_a_label_with_one_positive_can_be_learnt(seed: int) -> None:
    """Its one image is trained on, not held out."""
    table = skewed(50, 4, seed)
    table[:, 0] = np.arange(50) == seed
    assert split(table, 0.2, seed=seed)[seed] == 0


@pytest.mark.parametrize(
    ("positives", "expected"),
    [(1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (5, [3, 1, 1]), (10, [7, 2, 1])],
)
def test_few_positives_stand_on_as_many_sides_as_they_can(
    positives: int, expected: list[int]
) -> None:
    """Train first, for the label has to be learnt, then validation, then test."""
    table = np.zeros((200, 2), bool)
    table[: positives * 20 : 20, 0] = True
    table[:, 1] = np.arange(200) % 3 == 0
    sides = split(table, 0.2, 0.1)
    assert np.bincount(sides[table[:, 0]], minlength=3).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_labels_with_two_positives_can_be_scored(seed: int) -> None:
    """Each stands in validation, which has room for all of them."""
    rng = np.random.default_rng(seed)
    table = np.zeros((500, 50), bool)
    table[rng.integers(500, size=1500), rng.zipf(1.5, 1500) % 50] = True
    held_out = split(table, 0.2, seed=seed) == 1
    assert (table[held_out].any(0) == (table.sum(0) >= 2)).all()


def test_few_labels_go_unscored_in_a_small_validation_set() -> None:
    """40 images for 80 labels, most of them rare: at most one label in twenty is missed."""
    missed = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, 81)
        table = np.zeros((400, 80), bool)
        drawn = rng.choice(80, 1200, p=weights / weights.sum())
        table[np.repeat(np.arange(400), 3), drawn] = True
        held_out = split(table, 0.1, seed=seed) == 1
        missed.append((~table[held_out].any(0) & (table.sum(0) >= 2)).sum())
    assert np.mean(missed) <= 4


def test_images_without_a_label_are_spread_too() -> None:
    """Background images are a fifth of both sides if they are a fifth of all."""
    table = skewed(500, 3)
    table[::5] = False
    held_out, background = split(table, 0.2) == 1, ~table.any(1)
    assert background[held_out].mean() == pytest.approx(background.mean(), abs=0.02)


@pytest.mark.parametrize(
    "table",
    [
        np.arange(40)[:, None] % 2 == 1,
        np.zeros((40, 0), bool),
        np.zeros((40, 1), bool),
        np.zeros((40, 3), bool),
        np.ones((40, 1), bool),
        np.ones((40, 3), bool),
    ],
    ids=["one label", "no label", "one absent", "absent", "one present", "present"],
)
def test_tables_without_variety_are_split(table: Table) -> None:
    """One label, no label, and labels that are equal in all images need no special case."""
    assert np.bincount(split(table, 0.25)).tolist() == [30, 10]


def test_the_same_arguments_give_the_same_split() -> None:
    """The seed decides, and numpy's global state neither decides nor moves."""
    table = skewed(300, 5)
    first = split(table, 0.2, 0.1, seed=1)
    before = repr(np.random.get_state())
    assert (first == split(table.copy(), 0.2, 0.1, seed=1)).all()
    assert repr(np.random.get_state()) == before
    assert (first != split(table, 0.2, 0.1, seed=2)).any()


def test_the_arguments_are_left_as_they_are() -> None:
    """Arrays of the caller are only read."""
    rows, columns = np.nonzero(skewed(100, 3))
    groups = np.arange(100) // 2
    for array in (rows, columns, groups):
        array.flags.writeable = False
    assert len(split_stratified(rows, columns, 100, 3, (0.2,), 0, groups)) == 100


def test_memory_goes_with_the_positives() -> None:
    """20,000 images of 20,000 labels: a table of bytes would be 400 MB."""
    rows, columns = np.arange(20_000), np.arange(20_000) % 10_000
    tracemalloc.start()
    sides = split_stratified(rows, columns, 20_000, 20_000, (0.2,), 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.bincount(sides).tolist() == [16_000, 4_000]
    assert peak < 40e6


@pytest.mark.parametrize(
    ("size", "fractions"), [(1, (0.5,)), (2, (0.3, 0.3)), (4, ()), (4, (0.5, 0.5)), (4, (0.0,))]
)
def test_what_cannot_be_split_is_refused(size: int, fractions: tuple[float, ...]) -> None:
    """Fewer images than sides, no second side, and nothing left for a side."""
    none = np.zeros(0, np.int64)
    with pytest.raises(AssertionError):
        split_stratified(none, none, size, 3, fractions, 0)
