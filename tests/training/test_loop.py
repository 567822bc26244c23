"""The search for the head's penalty: which are tried, in which order, and which one wins."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import cast

import pytest
from torch import nn

from mlfinetune.metrics.selection import Trial
from mlfinetune.runtime.log import RunLog
from mlfinetune.training import select
from mlfinetune.training.folds import choose_by_folds
from mlfinetune.training.lbfgs import PENALTIES, STRONGER_PENALTIES, WEAKER_PENALTIES
from mlfinetune.training.loop import (
    Candidate,
)
from mlfinetune.training.records import Penalty
from mlfinetune.training.setup import TrainingSetup
from mlfinetune.training.solve import search_penalties


def search(
    measure: Callable[[float], float | None], strongest: float = PENALTIES[0]
) -> tuple[list[float], list[str]]:
    """Return the penalties that are tried where `measure` gives their mAP, and what is said."""
    found: dict[float, Candidate] = {}
    said: list[str] = []
    for number, l2 in enumerate(search_penalties(found, said.append, strongest)):
        found[l2] = Candidate(number, "", measure(l2), None, 0.0, "")
    return list(found), said


def test_a_best_penalty_within_the_grid_ends_the_search() -> None:
    """Two weaker ones are tried after it, and nothing is said."""
    assert search(lambda l2: 0.5 - abs(l2 - 0.1)) == (list(PENALTIES[:5]), [])


@pytest.mark.parametrize(("best", "last"), [(1.0, 3.0), (10.0, 30.0), (1e6, 1000.0)])
def test_beyond_the_strongest(best: float, last: float) -> None:
    """As far as it gets better, to the last one at most; each step is said."""
    tried, said = search(lambda l2: 0.5 - 1e-9 * abs(l2 - best))
    stronger = STRONGER_PENALTIES[: STRONGER_PENALTIES.index(last) + 1]
    assert tried == [*PENALTIES[:3], *stronger]
    assert len(said) == len(stronger)
    assert said[0] == "l2 1 is the best penalty so far and the strongest: 3 is tried too"


def test_a_search_from_a_strong_penalty_passes_a_lower_peak() -> None:
    """From 1 on it would stay at 0.3, whose mAP is above both neighbours'."""
    peaks = {10: 0.5, 3: 0.6, 1: 0.3, 0.3: 0.4}
    tried, said = search(lambda l2: peaks.get(l2, 0.1), strongest=10.0)
    assert (tried, said) == ([10.0, 3.0, 1.0, 0.3], [])
    assert search(lambda l2: peaks.get(l2, 0.1))[0] == list(PENALTIES[:4])
    tried, said = search(lambda l2: l2 / 1e4, strongest=10.0)
    assert tried == [10.0, 3.0, 1.0, *STRONGER_PENALTIES[2:]]
    assert said[0] == "l2 10 is the best penalty so far and the strongest: 30 is tried too"


@pytest.mark.parametrize(("best", "count"), [(0.001, 1), (0.0003, 2), (0.0, 2)])
def test_beyond_the_weakest(best: float, count: int) -> None:
    tried, said = search(lambda l2: 0.5 - abs(l2 - best))
    assert tried == [*PENALTIES, *WEAKER_PENALTIES[:count]]
    assert "l2 0.001 is the best penalty so far and the weakest: 0.0003 is tried too" in said


@pytest.mark.parametrize("value", [None, 0.5, 1.0])
def test_equal_penalties_have_no_edge(value: float | None) -> None:
    """Nor has an undefined mAP, or one that nothing can beat."""
    tried, said = search(lambda l2: value)
    assert set(tried) <= set(PENALTIES)
    assert not said
    assert search(lambda l2: 1.0 if l2 == 1 else 0.5) == (list(PENALTIES[:3]), [])


def test_undefined_scores_choose_no_solution() -> None:
    """Of epochs the last one wins, of solutions the first: more of them only fit train better."""
    epochs = [Candidate(number, "", None, None, 0.0, "") for number in (1, 2)]
    assert epochs[1].beats(epochs[0])
    solutions = [replace(epoch, penalty=Penalty(1.0, 3)) for epoch in epochs]
    assert not solutions[1].beats(solutions[0])
    assert replace(solutions[1], mAP=0.1).beats(solutions[0])
    found: dict[float, Candidate] = {}
    for l2 in search_penalties(found, str, strongest=10.0):
        found[l2] = replace(solutions[0], penalty=Penalty(l2, 3))
    assert list(found) == [10.0, 3.0, 1.0]


def test_of_equal_solutions_the_milder_penalty_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to 1, the fewest iterations; a better mAP wins over all."""
    penalties = [Penalty(l2, n) for l2 in (10.0, 3.0, 1.0, 0.3) for n in (3, 10)]

    def choose(best: float) -> Penalty | None:
        mAPs = [best, *(1.0 for _ in penalties[1:])]
        found = [
            Candidate(number, "", mAP, None, 0.0, "", penalty=penalty)
            for number, (mAP, penalty) in enumerate(zip(mAPs, penalties, strict=True))
        ]
        monkeypatch.setattr(select, "solve_head", lambda *_: iter(found))
        tagger = SimpleNamespace(head=nn.Linear(2, 2))
        setup = cast(TrainingSetup, SimpleNamespace(tagger=tagger, implies=()))
        return select.select_solution(setup, RunLog(StringIO())).penalty

    assert choose(1.0) == Penalty(1.0, 3)
    assert choose(1.5) == Penalty(10.0, 3)
    trials = [Trial(1.0, l2=each.l2, iterations=each.iterations) for each in penalties]
    assert choose_by_folds([trials, trials]).start == Penalty(1.0, 3)
