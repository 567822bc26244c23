"""Balanced sampling: how often each picture comes, in which order, and in which version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.batches.sampling import (
    MAX_FACTOR,
    compute_repeat_factors,
    describe_sampling,
    draw_order,
    shuffle_order,
    split_draw,
)
from mlfinetune.data.targets import Targets


def targets(rows: list[list[int]]) -> Targets:
    """Return these states."""
    return Targets.pack([np.array(rows, np.int8)], len(rows[0]))


def rows_of(draws: list[int]) -> list[int]:
    """Return the rows of draws."""
    return [draw % len(draws) for draw in draws]


# ---- factors ----------------------------------------------------------------------------

LONG_TAIL = targets([[1, 0, 0, -1]] * 9 + [[1, 1, 0, -1]] * 2 + [[0, 0, 1, 0]] + [[0, 0, -1, -1]])
"""Labels of 11, 2, 1 and no positives, 14/3 on average. The last picture has none: whether it has
the rarest is unknown."""


def test_the_rarest_positive_label_decides() -> None:
    """sqrt(mean / positives) of a rare label, 1 of a frequent one and of no label."""
    mean = 14 / 3
    expected = [1.0] * 9 + [np.sqrt(mean / 2)] * 2 + [np.sqrt(mean)] + [1.0]
    assert compute_repeat_factors(LONG_TAIL) == pytest.approx(expected)


def test_a_factor_is_capped() -> None:
    """One picture among a thousand would be asked for 22 times."""
    factors = compute_repeat_factors(targets([[1, 0]] * 999 + [[0, 1]]))
    assert factors.tolist() == [1.0] * 999 + [MAX_FACTOR]


@pytest.mark.parametrize("state", [0, -1, 1])
def test_without_rare_labels_all_factors_are_one(state: int) -> None:
    """All absent, all unknown, all present: the order is the uniform one, to the last row."""
    same = targets([[state, state]] * 7)
    factors = compute_repeat_factors(same)
    assert factors.tolist() == [1.0] * 7
    assert draw_order(7, 3, 1, factors) == shuffle_order(7, 3, 1)
    assert "no label is rarer" in describe_sampling("balanced", same)


def test_the_line_of_the_log_counts_rare_labels() -> None:
    """Those that ask for more than 1; uniform sampling needs no line."""
    assert describe_sampling("balanced", LONG_TAIL) == (
        "balanced sampling: pictures of 2 rare labels are drawn up to 2.2 times as often as those "
        "of frequent labels alone"
    )
    assert describe_sampling("uniform", LONG_TAIL) == ""


# ---- draws ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1, MAX_FACTOR), min_size=1, max_size=40), st.integers(0, 2**63 - 1))
def test_an_epoch_has_as_many_draws_as_pictures(factors: list[float], seed: int) -> None:
    """Each picture as often as it is due, rounded up or down; a function of (seed, epoch)."""
    array = np.array(factors)
    draws = draw_order(len(factors), seed, 2, array)
    counts = np.bincount(rows_of(draws), minlength=len(factors))
    due = array * len(factors) / array.sum()
    assert len(draws) == len(factors)
    assert (np.abs(counts - due) < 1 + 1e-9).all()
    assert draws == draw_order(len(factors), seed, 2, array)


def test_over_epochs_pictures_come_in_proportion_to_their_factors() -> None:
    """2,000 epochs, to two hundredths of a draw an epoch."""
    factors = np.array([1.0, 1.0, 1.0, 1.3, 2.0, 4.0])
    draws = [row for epoch in range(2000) for row in rows_of(draw_order(6, 0, epoch, factors))]
    counts = np.bincount(draws) / 2000
    np.testing.assert_allclose(counts, factors * 6 / factors.sum(), atol=0.02)


def test_pictures_are_left_out_independently() -> None:
    """Neighbors in the table are drawn together no more often than others."""
    factors = np.array([1.0] * 30 + [4.0] * 10)
    counts = np.array([np.bincount(rows_of(draw_order(40, 0, e, factors))) for e in range(800)])
    correlations = np.corrcoef(counts[:, :30].T)
    assert abs(np.diag(correlations, 1)).max() < 0.2


def test_each_draw_of_a_picture_is_another_version_of_it() -> None:
    """The first one is the epoch's, as of uniform sampling; no two are the same."""
    factors = np.array([1.0] * 8 + [4.0] * 2)
    keys = [
        split_draw(draw, 10, epoch)
        for epoch in range(5)
        for draw in draw_order(10, 0, epoch, factors)
    ]
    assert len(set(keys)) == len(keys) == 50
    first = dict(sorted(keys[:10], reverse=True))
    assert set(first.values()) == {0}


def test_the_draws_neither_read_nor_move_the_global_generator() -> None:
    factors, state = np.array([1.0, 2.0, 3.0]), torch.get_rng_state()
    first = draw_order(3, 0, 0, factors)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert draw_order(3, 0, 0, factors) == first


def test_draws_are_the_same_on_every_machine() -> None:
    """Values of today: a change of them would change runs that are resumed."""
    factors = np.array([1.0, 1.0, 1.5, 2.0, 4.0])
    assert [draw_order(5, 7, epoch, factors) for epoch in range(2)] == [
        [9, 4, 3, 2, 0],
        [4, 9, 0, 2, 3],
    ]
