"""Packed targets say what a dense array says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlfinetune.data import targets as module
from mlfinetune.data.table import LabelLists
from mlfinetune.data.targets import LabelSpace, Targets, pack_codes

Dense = NDArray[np.int8]
LABELS = "abcde"


@st.composite
def dense(draw: st.DrawFn, rows: int = 12) -> Dense:
    """Draw an array of up to `rows` rows and 0 to 9 labels."""
    n, labels = draw(st.integers(0, rows)), draw(st.integers(0, 9))
    states = draw(st.lists(st.sampled_from([1, 0, -1]), min_size=n * labels, max_size=n * labels))
    return np.array(states, np.int8).reshape(n, labels)


def packed(states: Dense) -> Targets:
    """Return the states as packed targets."""
    return Targets.pack([states], states.shape[1])


def same(left: Any, right: Any) -> None:
    """Assert that type, shape and numbers are equal."""
    assert left.dtype == right.dtype
    np.testing.assert_array_equal(left, right, strict=True)


@settings(deadline=None)
@given(dense(), st.data())
def test_rows_are_indexed_as_of_an_array(states: Dense, data: st.DataObject) -> None:
    """The index is a number, a slice, numbers or a mask."""
    targets, n = packed(states), len(states)
    same(targets[:], states)
    same(targets[::-2], states[::-2])
    same(targets[[]], states[:0])
    piece = data.draw(st.slices(n))
    same(targets[piece], states[piece])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    same(targets[mask], states[mask])
    if n:
        numbers = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=20))
        same(targets[numbers], states[numbers])
        same(targets[np.array(numbers)], states[numbers])
        same(targets[numbers[0]], states[numbers[0]])


@settings(deadline=None)
@given(dense())
def test_whole_table_facts_are_those_of_an_array(states: Dense) -> None:
    """Shape, counts, rows with a label, and where the positives are."""
    targets = packed(states)
    assert (len(targets), targets.shape) == (len(states), states.shape)
    for found, state in zip(targets.counts(), (1, 0, -1), strict=True):
        same(found, (states == state).sum(axis=0, dtype=np.int64))
    same(targets.any_positive(), (states == 1).any(axis=1))
    for found, wanted in zip(targets.positives(), np.nonzero(states == 1), strict=True):
        same(found, wanted)


@settings(deadline=None)
@given(dense(), st.data())
def test_taken_rows_are_a_table_of_their_own(states: Dense, data: st.DataObject) -> None:
    """Rows are in the given order; they may repeat, and there may be none."""
    rows = data.draw(st.lists(st.integers(0, len(states) - 1), max_size=9)) if len(states) else []
    taken = packed(states).take(np.array(rows, np.int64))
    same(taken[:], states[rows] if rows else states[:0])
    assert taken.shape == (len(rows), states.shape[1])


@pytest.mark.parametrize("labels", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("rows", [0, 1, 255, 256, 511, 9000])
def test_counts_of_many_rows_are_whole(rows: int, labels: int) -> None:
    """More than a byte can count, and more rows than one look takes."""
    states = np.random.default_rng(rows).choice(np.array([1, 0, -1], np.int8), (rows, labels))
    targets = packed(states)
    for found, state in zip(targets.counts(), (1, 0, -1), strict=True):
        same(found, (states == state).sum(axis=0, dtype=np.int64))
    same(targets.any_positive(), (states == 1).any(axis=1))
    full = Targets.pack([np.ones((rows, labels), np.int8)], labels)
    assert full.counts()[0].tolist() == [rows] * labels


@settings(deadline=None)
@given(dense(), st.integers(1, 30))
def test_blocks_are_the_table_in_pieces(states: Dense, size: int) -> None:
    """Blocks of any size work, down to one row each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", size)
        targets = packed(states)
        blocks = list(targets.blocks())
        rows, columns = targets.positives()
    ends = np.cumsum([len(block) for _, block in blocks], dtype=int).tolist()
    assert [start for start, _ in blocks] == [0, *ends][: len(blocks)]
    joined = np.concatenate([states[:0], *(block for _, block in blocks)])
    same(joined, states)
    same(np.stack([rows, columns]), np.stack(np.nonzero(states == 1)))
    same(Targets.pack([block for _, block in blocks], states.shape[1])[:], states)


def test_four_labels_take_a_byte() -> None:
    """A thousand labels of a row are 250 bytes."""
    assert Targets.pack([np.zeros((3, 1000), np.int8)], 1000).packed.shape == (3, 250)
    assert Targets.pack([np.zeros((3, 1001), np.int8)], 1001).packed.nbytes == 753


def test_any_layout_and_number_type_is_packed() -> None:
    """Columns in another order, every other row, other types of integers."""
    states = np.random.default_rng(0).integers(-1, 2, (20, 7)).astype(np.int8)
    for view in (states[:, ::-1], states[::2], states[:, [6, 0, 3]], np.asfortranarray(states)):
        same(packed(view)[:], np.ascontiguousarray(view))
    same(Targets.pack([states.astype(np.int64)], 7)[:], states)


def test_a_mark_of_what_could_not_be_read_is_kept() -> None:
    """Readers pack 2 and find it again in the bytes."""
    codes = np.array([[0, 1, 2, 3, 2]], np.uint8)
    assert [pack_codes(codes)[0, at // 4] >> at % 4 * 2 & 3 for at in range(5)] == [0, 1, 2, 3, 2]


# ---- rows that list labels --------------------------------------------------------------

LISTS = st.lists(
    st.tuples(st.lists(st.sampled_from(LABELS)), st.lists(st.sampled_from(LABELS))), max_size=12
)


@settings(deadline=None)
@given(LISTS, st.lists(st.sampled_from("xa")), st.integers(1, 30))
def test_lists_say_what_an_array_filled_by_hand_says(
    rows: list[tuple[list[str], list[str]]], given_labels: list[str], size: int
) -> None:
    """Repeated names count once, positive beats unknown, given labels stand first."""
    lists = LabelLists(given_labels)
    names = list(dict.fromkeys(given_labels))
    for positive, unknown in rows:
        lists.add(positive, unknown)
        names += [name for name in dict.fromkeys([*unknown, *positive]) if name not in names]
    states = np.zeros((len(rows), len(names)), np.int8)
    for row, (positive, unknown) in enumerate(rows):
        for at, name in enumerate(names):
            states[row, at] = 1 if name in positive else -1 if name in unknown else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", size)
        same(lists.build_targets()[:], states)
    assert (len(lists), lists.labels) == (len(rows), LabelSpace(tuple(names)))


def test_a_generator_of_names_is_read_once() -> None:
    """Rows may come from anything that yields names."""
    lists = LabelLists()
    lists.add((name for name in "ab"), (name for name in "bc"))
    assert lists.labels.names == ("b", "c", "a")
    assert lists.build_targets()[0].tolist() == [1, -1, 1]
