"""Folds: the pictures that a fold holds out decide nothing about its model."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults.tiny import resnet6_tiny

from mlfinetune.config import Config, load_config
from mlfinetune.data.folds import Fold, Pool, draw_folds, pool_sides
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Splits
from mlfinetune.data.targets import Targets
from mlfinetune.metrics.selection import Trial
from mlfinetune.runs.folds import FoldScores
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import catch_signals
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.folds import average_trials, choose_by_folds, solve_fold, train_fold
from mlfinetune.training.records import Choice, Penalty
from mlfinetune.training.setup import set_up, with_features
from mlfinetune.training.start import TrainRequest

assert resnet6_tiny


def quiet() -> RunLog:
    """Return a log that nobody reads."""
    return RunLog(io.StringIO())


def turn_around(pool: Pool, fold: Fold) -> Pool:
    """Return the pool with the opposite tags for the pictures that a fold holds out."""
    states = pool.examples.targets[:].copy()
    states[fold.held_out] = 1 - states[fold.held_out]
    examples = replace(pool.examples, targets=Targets.pack([states], states.shape[1]))
    return replace(pool, examples=examples)


@pytest.fixture
def config(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(pictures)
    return load_config(pictures / "pets.yaml", ["train.epochs=2", "model.image_size=32"])


def test_a_solved_head(config: Config) -> None:
    """Penalty and weights are the same where the tags that are held out are turned around."""
    config = config.update_section("model", freeze_backbone=True)
    pool = pool_sides(load_splits(config, quiet(), hold_out=False))
    folds = draw_folds(pool, 3, 1, seed=0)
    found = []
    for examples in (pool.examples, turn_around(pool, folds[0]).examples):
        world = World(prepare_device("cpu"), DistInfo())
        setup = set_up(config, Splits(examples, examples, ()), world, quiet())
        features = with_features(setup, None, quiet())
        assert features is not None
        own = replace(pool, examples=examples)
        found.append(solve_fold(features, own, folds[0], folds[1:], quiet()))
    assert (found[0].logits == found[1].logits).all()
    assert found[0].trials == found[1].trials
    assert found[0].chosen.startswith("l2 ")


def test_a_trained_network(config: Config, pictures: Path) -> None:
    """Epoch and weights are the same where the tags that are held out are turned around."""
    pool = pool_sides(load_splits(config, quiet(), hold_out=False))
    fold = draw_folds(pool, 2, 1, seed=0)[1]
    found: list[FoldScores] = []
    for number, one in enumerate((pool, turn_around(pool, fold))):
        own = config.model_copy(update={"output": pictures / f"fold-{number}"})
        with catch_signals() as signals:
            world = World(prepare_device("cpu"), DistInfo())
            train_fold(TrainRequest(own, world, signals), one, fold, found.append, quiet())
    assert (found[0].logits == found[1].logits).all()
    assert found[0].trials == found[1].trials
    assert not list(pictures.glob("fold-*/*.safetensors"))


def solved(epoch: int, l2: float, mean_ap: float | None) -> Trial:
    return Trial(mean_ap, (), epoch, l2, 3)


CHOICES = {
    "the best on average, of those that all have tried": (
        [[solved(0, 1, 0.5), solved(0, 0.1, 0.7)], [solved(0, 1, 0.6), solved(0, 0.3, 0.9)]],
        Choice(Penalty(1, 3)),
    ),
    "an epoch": (
        [[Trial(0.5, (), 1), Trial(0.6, (), 2)], [Trial(0.7, (), 1), Trial(0.5, (), 2)]],
        Choice(epoch=1),
    ),
    "an epoch from a solved head": (
        [[solved(0, 1, 0.5), Trial(0.6, (), 1)], [solved(0, 1, 0.5), Trial(0.7, (), 1)]],
        Choice(Penalty(1, 3), epoch=1),
    ),
    "solved again after the median of the last epochs": (
        [
            [Trial(0.6, (), 1), solved(1, 3, 0.8)],
            [Trial(0.7, (), 1), solved(2, 3, 0.8)],
            [Trial(0.7, (), 1), solved(4, 3, 0.8)],
        ],
        Choice(epoch=2, end=Penalty(3, 3)),
    ),
    "solved for after each epoch, of which no other head is validated": (
        [
            [solved(0, 1, 0.4), solved(1, 3, 0.6), solved(2, 3, 0.8), solved(2, 1, 0.5)],
            [solved(0, 1, 0.4), solved(1, 3, 0.7), solved(2, 3, 0.4), solved(2, 1, 0.9)],
        ],
        Choice(Penalty(1, 3), epoch=2, end=Penalty(1, 3)),
    ),
    "the first one, where no mAP is defined": (
        [[solved(0, 1, None), solved(0, 0.1, None)]] * 2,
        Choice(Penalty(1, 3)),
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_choice_of_all_folds(case: str) -> None:
    trials, choice = CHOICES[case]
    assert choose_by_folds(trials) == choice


def test_means_over_folds() -> None:
    """Each candidate's mean mAP is that of NumPy, and those that a fold lacks are gone."""
    rng = np.random.default_rng(0)
    values = rng.random((4, 3))
    folds = [[solved(0, 10.0**-column, row[column]) for column in range(3)] for row in values]
    means = [trial.mAP for trial in average_trials(folds)]
    assert means == pytest.approx(values.mean(axis=0))
    assert len(average_trials([folds[0], folds[1][:2]])) == 2
