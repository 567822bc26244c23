"""The optimism of the best of several candidates, against simulations whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.selection import (
    Trial,
    describe_selection,
    estimate_selection,
    try_candidate,
)
from mlfinetune.metrics.types import ScoreTable, Selection


def make_table(logits: NDArray[np.floating], truth: NDArray[np.bool_]) -> ScoreTable:
    """Make a table of these scores."""
    labels = LabelSpace(tuple(str(label) for label in range(truth.shape[1])))
    names = tuple(map(str, range(len(truth))))
    return ScoreTable(names, logits.astype(np.float32), truth.astype(np.int8), labels)


def draw_trials(seed: int, candidates: int, apart: float) -> list[Trial | None]:
    """Try candidates on 100 images of 8 labels; their separations are `apart` of each other."""
    rng = np.random.default_rng(seed)
    truth = rng.random((100, 8)) < 0.15
    tables = [
        make_table(rng.normal(size=truth.shape) + (2 + apart * number) * truth, truth)
        for number in range(candidates)
    ]
    return [try_candidate(table, measure(table).averages["mAP"]) for table in tables]


def test_the_luck_of_the_best_of_equal_candidates_is_found() -> None:
    """Equally good ones: all that the best is above their mean, is luck."""
    luck, guesses = [], []
    for seed in range(10):
        trials = draw_trials(seed, 8, 0.0)
        own = [trial.mAP for trial in trials if trial]
        luck.append(max(own) - np.mean(own))
        guesses.append(estimate_selection(trials).optimism)
    assert np.mean(guesses) == pytest.approx(np.mean(luck), rel=0.25)
    assert np.mean(luck) > 0.03


def test_a_best_one_far_ahead_has_no_luck() -> None:
    """It would be chosen on any images, so that its mAP is as right as any other."""
    assert estimate_selection(draw_trials(0, 3, 3.0)).optimism == pytest.approx(0, abs=0.005)


def test_what_is_not_known_is_not_said() -> None:
    """One candidate has no luck; of an unknown trial nothing can be told; equal ones have none."""
    trial, other = draw_trials(0, 2, 0.0)
    assert estimate_selection([trial]) == Selection(1, 0.0)
    assert estimate_selection([trial, None]) == Selection(2, None)
    assert estimate_selection([]) == Selection(0, None)
    assert estimate_selection([other, other]).optimism == pytest.approx(0)
    table = make_table(np.zeros((3, 1)), np.zeros((3, 1), bool))
    undefined = try_candidate(table, measure(table).averages["mAP"])
    assert estimate_selection([trial, undefined]) == Selection(2, None)


def test_copies_of_a_picture_are_drawn_together() -> None:
    """Ten copies of each picture, known as groups, scatter as the pictures do."""
    rng = np.random.default_rng(0)
    truth = rng.random((60, 8)) < 0.2
    table = make_table(rng.normal(size=truth.shape) + truth, truth)
    copies = make_table(table.logits.repeat(10, axis=0), truth.repeat(10, axis=0))
    groups = np.arange(60).repeat(10)
    wide, narrow = (try_candidate(replace(copies, groups=ids), 0.5) for ids in (groups, None))
    alone = try_candidate(table, 0.5)
    assert wide
    assert narrow
    assert alone
    assert wide.resampled == pytest.approx(alone.resampled)
    assert np.std(narrow.resampled) < np.std(wide.resampled) / 2


@pytest.mark.parametrize(
    ("optimism", "words"),
    [(0.0041, "about 0.004 too high"), (0.0001, "less than 0.001"), (None, "somewhat too high")],
)
def test_the_luck_is_said(optimism: float | None, words: str) -> None:
    """In words; nothing where nothing was chosen."""
    assert words in describe_selection(Selection(28, optimism))
    assert describe_selection(Selection(1, 0.0)) == describe_selection(None) == ""
