"""The choice of pictures to label, against a naive oracle."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from mlfinetune.metrics import next_choice
from mlfinetune.metrics.next_choice import Choice, choose_pictures, find_least

Floats = NDArray[np.float64]


@dataclass
class Drawn:
    """Arguments of `choose_pictures`, drawn at random."""

    probabilities: Floats
    thresholds: Floats
    positives: NDArray[np.int64]
    features: Floats
    known: Floats

    def choose(self, count: int, least: float = 0.95) -> Choice:
        about = (self.probabilities, self.thresholds, self.positives)
        return choose_pictures(*about, self.features, self.known, count, least)


def draw(pictures: int, labels: int = 5, width: int = 6, seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    return Drawn(
        rng.random((pictures, labels)),
        rng.uniform(0.1, 0.9, labels),
        rng.integers(0, 50, labels),
        rng.normal(size=(pictures, width)),
        np.empty((0, width)),
    )


def pick_naively(given: Drawn, count: int) -> list[int]:
    """Pick the matrix that is farthest from 0 and from all picks, one after the other."""
    odds, cuts = (p / (1 - p) for p in (given.probabilities, given.thresholds))
    nearness = np.minimum(odds / cuts, cuts / odds) / np.sqrt(given.positives + 1)
    units = given.features / np.linalg.norm(given.features, axis=1, keepdims=True)
    matrices = np.einsum("nl,nf->nlf", nearness, units).reshape(len(units), -1)
    picks: list[int] = []
    while len(picks) < count:
        places = np.concatenate([np.zeros((1, matrices.shape[1])), matrices[picks]])
        apart = np.linalg.norm(matrices[:, None] - places, axis=2).min(axis=1)
        near = (units @ units[picks].T >= 0.95).any(axis=1)
        picks.append(int(np.where(near, -1, apart).argmax()))
    return picks


@pytest.mark.parametrize("seed", range(20))
def test_each_pick_is_the_farthest_from_those_before(seed: int) -> None:
    """The products of the command are the distances of whole matrices."""
    given = draw(40, seed=seed)
    assert [pick.row for pick in given.choose(8).picks] == pick_naively(given, 8)


def test_the_label_nearest_to_its_threshold_decides() -> None:
    """Of pictures that look unlike each other, the undecided one is first, and its label named."""
    given = draw(3, labels=2, width=3)
    given.features, given.positives = np.eye(3), np.array([10, 10])
    given.thresholds = np.array([0.2, 0.7])
    given.probabilities = np.array([[0.95, 0.1], [0.01, 0.69], [0.21, 0.05]])
    picks = given.choose(3).picks
    assert [(pick.row, pick.labels) for pick in picks] == [(1, (1,)), (2, (0,)), (0, (1,))]
    assert picks[0].score > picks[1].score > picks[2].score


def test_a_rare_label_comes_first() -> None:
    """Equally near to their thresholds, the label with fewer labelled pictures decides."""
    given = draw(2, labels=2, width=2)
    given.features, given.thresholds = np.eye(2), np.array([0.5, 1.0])  # 1: never given
    given.probabilities = np.array([[0.5, 0.001], [0.001, 0.5]])
    for rare in (0, 1):
        given.positives = np.where(np.arange(2) == rare, 3, 300)
        assert given.choose(1).picks[0].row == rare


def test_near_duplicates_are_left_out() -> None:
    """Neither a copy of a labelled picture nor of a pick is chosen; each is named once."""
    given = draw(30)
    given.known = 3 * given.features[[4, 9]]
    given.features = np.concatenate([given.features, given.features])
    given.probabilities = np.concatenate([given.probabilities, given.probabilities])
    choice = given.choose(100)
    picked, known = {pick.row for pick in choice.picks}, set(choice.near_known)
    assert {4, 9, 34, 39} <= known
    assert picked | known | set(choice.near_picked) == set(range(60))
    assert len(choice.picks) + len(known) + len(choice.near_picked) == 60
    assert len({row % 30 for row in picked}) == len(picked)


def test_a_folder_of_copies_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first thousands are copies of one picture, the rest is looked at too."""
    monkeypatch.setattr(next_choice, "MOST_COMPARED", 16)
    given = draw(60)
    given.features[:50], given.probabilities[:50] = given.features[0], given.thresholds
    choice = given.choose(5)
    assert len(choice.picks) == 5
    assert sum(pick.row < 50 for pick in choice.picks) == 1


def test_fewer_pictures_than_asked_for_and_none() -> None:
    """All of them are chosen; features that point nowhere are near to nothing."""
    given = draw(3)
    given.features = np.zeros((3, 6), np.float16)
    assert sorted(pick.row for pick in given.choose(9).picks) == [0, 1, 2]
    assert draw(0).choose(9) == Choice((), (), ())


def test_what_a_network_finds_alike_is_no_near_duplicate() -> None:
    """The bound rises where different pictures are alike; of equal labels only to a tuned one."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(4), 30, axis=0)
    targets = groups.astype(np.int8)
    apart = groups + rng.normal(0, 0.01, groups.shape)  # one place for each label
    assert find_least(apart, targets) == 0.95
    assert find_least(apart, None) > 0.99
    assert find_least(apart + 9, targets) > 0.98  # all are near to each other
    assert find_least(rng.normal(size=(120, 64)), None) == 0.95
    assert find_least(np.empty((0, 4)), np.empty((0, 4), np.int8)) == 0.95


def test_what_is_unknown_tells_no_pictures_apart() -> None:
    """Tables that know different labels: their pictures may be the same ones."""
    unit = np.random.default_rng(0).normal(size=(40, 64))
    twice = np.concatenate([unit, unit])
    targets = np.full((80, 2), -1, np.int8)
    targets[:40, 0] = targets[40:, 1] = 1
    assert find_least(twice, targets) == 0.95
    targets[:40, 1] = 0
    assert find_least(twice, targets) > 0.99
