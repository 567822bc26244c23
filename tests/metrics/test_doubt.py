"""Doubts about given tags, by scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.metrics.doubt import measure_doubt


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and targets of 300 pictures and 3 labels, some unknown."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((300, 3)) < [0.4, 0.2, 0.05]).astype(np.int8)
    logits = rng.normal(0, 1.5, targets.shape) + 4 * targets - 2
    targets[rng.random(targets.shape) < 0.05] = -1
    return logits.astype(np.float32), targets


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_unknown_targets_have_no_say(seed: int) -> None:
    """They are never doubted, and their scores change nothing."""
    logits, targets = draw(seed)
    doubt = measure_doubt(logits, targets)
    assert (np.isneginf(doubt) == (targets == -1)).all()
    other = np.where(targets == -1, np.float32(99), logits)
    assert np.array_equal(measure_doubt(other, targets), doubt)


def test_the_scale_of_a_label_does_not_matter_much() -> None:
    """A label whose logits are half as far and 3 lower keeps its doubts, nearly."""
    logits, targets = draw(0)
    doubt = measure_doubt(logits, targets)
    logits[:, 1] = logits[:, 1] / 2 - 3
    known = targets[:, 1] != -1
    assert np.corrcoef(measure_doubt(logits, targets)[known, 1], doubt[known, 1])[0, 1] > 0.9


def test_a_wrong_tag_of_a_rare_label_needs_more() -> None:
    """At equal scores the tag of the more frequent label is doubted more."""
    targets = np.zeros((200, 2), np.int8)
    targets[:80, 0] = targets[:10, 1] = 1
    doubt = measure_doubt(np.full((200, 2), -3, np.float32), targets)
    assert doubt[0, 0] > doubt[0, 1]


def test_labels_without_tags_and_no_pictures() -> None:
    """Numbers stay finite where there is nothing to fit."""
    assert measure_doubt(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int8)).shape == (0, 2)
    assert np.isfinite(
        measure_doubt(np.ones((3, 2), np.float32), np.eye(3, 2, dtype=np.int8))
    ).all()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.6])
def test_pictures_with_one_tag_or_several(share: float) -> None:
    """Of tags that were swapped for wrong ones most are found, however many pictures have two."""
    rng = np.random.default_rng(0)
    rows, first = np.arange(2000), rng.integers(0, 5, 2000)
    true = np.zeros((2000, 5), np.int8)
    true[rows, first] = 1
    two = rng.random(2000) < share
    true[rows[two], (first[two] + 1) % 5] = 1
    logits = (rng.normal(-3, 1.2, true.shape) + 6 * true).astype(np.float32)
    swapped = rows[rng.random(2000) < 0.08]
    tags = true.copy()
    tags[swapped, first[swapped]] = 0
    tags[swapped, (first[swapped] + 3) % 5] = 1
    doubted = measure_doubt(logits, tags) >= 0
    for given_tag in (0, 1):
        wrong = (tags == given_tag) & (true != tags)
        listed = doubted & (tags == given_tag)
        assert (listed & wrong).sum() > 0.85 * wrong.sum()
        assert (listed & wrong).sum() > 0.65 * listed.sum()
