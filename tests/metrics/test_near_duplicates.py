"""Near duplicates against a naive oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlfinetune.metrics import near_duplicates
from mlfinetune.metrics.near_duplicates import find_near_duplicates, group_near_duplicates

FEATURES = arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.just(3)),
    elements=st.integers(-2, 2).map(float) | st.sampled_from([np.nan, np.inf]),
)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the similarity of two rows; -1 where one points nowhere."""
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if np.isfinite([*a, *b]).all() and length else -1.0


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows take several blocks."""
    monkeypatch.setattr(near_duplicates, "_BLOCK", 4)


@settings(max_examples=40)
@given(FEATURES)
def test_groups_are_those_of_pairs_and_chains(features: np.ndarray) -> None:
    """Groups grow until no pair of near rows is left apart."""
    groups = list(range(len(features)))
    for _ in features:
        for row, a in enumerate(features):
            for other, b in enumerate(features):
                if cosine(a, b) >= 0.93:
                    groups[row] = groups[other] = min(groups[row], groups[other])
    assert group_near_duplicates(features, 0.93).tolist() == groups


@settings(max_examples=40)
@given(FEATURES, FEATURES)
def test_the_most_similar_known_row_is_found(new: np.ndarray, known: np.ndarray) -> None:
    """Ties aside, it is the row of the greatest similarity, if that is near."""
    for row, found in zip(new, find_near_duplicates(new, known, 0.93), strict=True):
        best = max((cosine(row, other) for other in known), default=-1.0)
        assert (found >= 0) == (best >= 0.93)
        assert found < 0 or cosine(row, known[found]) == pytest.approx(best)


def test_copies_of_float16_are_one_group() -> None:
    """Thousands of equal rows are one group, in whatever blocks."""
    features = np.ones((50, 8), np.float16)
    assert not group_near_duplicates(features).any()
