"""What a run tries, one outcome after another: epochs of training, or solutions for the head.

    Parts, Position -> epochs     fit -> validate -> Outcome, an epoch at a time
    Parts           -> solutions  solve -> validate -> Outcome, at ever weaker penalties

The caller says, saves and chooses, between steps too. Each outcome is a line of metrics.jsonl.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

import torch
from torch import nn

from mlfinetune import assemble
from mlfinetune.data.features import FeatureLoader
from mlfinetune.errors import TrainingError, counted
from mlfinetune.fit import Settings, fit
from mlfinetune.metrics.measure import measure
from mlfinetune.model import Tagger
from mlfinetune.parts import Parts
from mlfinetune.records import (
    Batch,
    Position,
    ScoreTable,
    StepRecord,
)
from mlfinetune.runlog import RunLog, clock
from mlfinetune.runtime import World
from mlfinetune.score import scored, tabulate
from mlfinetune.solve import STRENGTHS, Solver

Averages = dict[str, float | None]
"""Metric -> its average over labels or images."""
SKIPPED = 10
"""Steps in a row that are not finite, after which training stops whatever is configured."""
PATIENCE = 2
"""Weaker penalties in a row without a better mAP, after which no weaker one is tried."""


@dataclass(frozen=True)
class Outcome:
    """One epoch's outcome, or one solution's; `number` counts from 1, `name` is for people.

    `scores`: what process 0 has validated; None elsewhere, and of an epoch before a run went on.
    """

    number: int
    name: str
    mAP: float | None
    scores: ScoreTable | None
    loss: float
    speed: str

    def beats(self, other: "Outcome") -> bool:
        """A higher mAP; where mAP is undefined the later epoch."""
        ours, theirs = self.mAP, other.mAP
        return theirs is None or (ours is not None and ours > theirs)


@dataclass(frozen=True)
class Pause:
    """When the state between two steps is wanted, and who takes it.

    Attributes:
        due: asked at every step and every batch of validation; costs next to nothing.
        keep: given the position whenever it is due in any process; may raise, to stop.
    """

    due: Callable[[], bool]
    keep: Callable[[Position], None]


def epochs(
    parts: Parts, optimizer: torch.optim.Optimizer, at: Position, pause: Pause, log: RunLog
) -> Generator[Outcome]:
    """Train from a position on; an outcome an epoch."""
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    steps = parts.train.steps
    net, settings = _shared(parts)
    records = fit(
        net,
        _batches(parts, at, epochs),
        steps,
        parts.loss,
        optimizer,
        assemble.schedule(config, steps),
        settings,
        lambda index: str(splits.train.path(index)),
        average=parts.average,
        start=at.step,
        pause=pause.due,
    )
    started, first = time.monotonic(), at.epoch(steps)
    for number in range(first + 1, epochs + 1):
        name = f"epoch {number}/{epochs}"
        with log.bar(name, len(splits.train)) as bar:
            bar.skip(at.images)
            while at.step < number * steps:
                record = next(records)
                at = at.after(record)
                if record.skipped:
                    _skipped(record, at, steps, log)
                bar.update(record.images, f"loss {record.loss:.4f}")
                if record.settled and record.paused:
                    pause.keep(at)
        averages, scores = validate(parts, log, partial(_poll, parts.world, pause, at))
        left = (time.monotonic() - started) / (number - first) * (epochs - number)
        speed = f"{bar.rate:.1f} images/s  {clock(left)} left"
        mean_loss = at.loss_sum / at.images
        _history(log, number, at, mean_loss, bar.rate, averages)
        at = Position(at.step)
        yield Outcome(number, name, averages["mAP"], scores, mean_loss, speed)


def _shared(parts: Parts) -> tuple[nn.Module, Settings]:
    """What trains, and how, in step with the other processes where there are some."""
    world, settings = parts.world, assemble.settings(parts.config, parts.device, parts.dtype)
    replica, apart = world.replica(parts.net)
    add = world.add if world.several else None
    return replica, replace(settings, add=add, apart=apart)


def _poll(world: World, pause: Pause, at: Position) -> None:
    if world.most(pause.due()):
        pause.keep(at)


def _batches(parts: Parts, at: Position, epochs: int) -> Iterator[Batch]:
    """Those of all epochs that are left; an epoch begins when its first batch is asked for."""
    first, done = divmod(at.step, parts.train.steps)
    for number in range(first, epochs):
        yield from parts.train.epoch(number, done if number == first else 0)


def solutions(parts: Parts, log: RunLog) -> Iterator[Outcome]:
    """The head solved for: an ever weaker penalty, and more iterations while they help."""
    assert isinstance(parts.train, FeatureLoader)
    assert isinstance(parts.tagger.head, nn.Linear)
    sweep, number, bests = parts.train.sweep, 0, list[Outcome]()
    with log.bar("solving for the head", None) as bar:
        solver = Solver(parts.tagger.head, lambda: bar.over(sweep()), parts.loss)
        for l2 in STRENGTHS:
            here: Outcome | None = None
            for record in solver.path(l2):
                number += 1
                averages, scores = validate(parts, log)
                if not parts.config.train.solve_head_first:  # then epochs are the history
                    at = Position().after(record)
                    _history(log, number, at, record.loss, bar.rate, averages)
                name = f"l2 {l2:g}, {record.rates['iterations']:g} iterations"
                speed = f"{record.step + 1} passes"
                now = Outcome(number, name, averages["mAP"], scores, record.loss, speed)
                yield now
                if here is not None and not now.beats(here):
                    break
                here = now
            assert here is not None
            bests.append(here)
            if len(bests) > PATIENCE and not any(
                one.beats(bests[-PATIENCE - 1]) for one in bests[-PATIENCE:]
            ):
                break


def validate(
    parts: Parts, log: RunLog, poll: Callable[[], None] = lambda: None
) -> tuple[Averages, ScoreTable | None]:
    """Score the validation data with what the parts hold now; `poll` is called at every batch.

    Returns:
        The metrics' averages, and on process 0 the scores.
    """
    net, device, dtype = parts.scored, parts.device, parts.dtype
    if isinstance(net, Tagger):
        net, _ = assemble.serving(net, parts.spec.image_size, device, dtype)

    def polled(batches: Iterable[Batch]) -> Iterator[Batch]:
        left = parts.val.steps
        for batch in batches:
            poll()
            left -= 1
            yield batch
        for _ in range(left):  # the others have a batch more
            poll()

    val = parts.splits.val
    with log.bar("validation", len(val)) as bar:
        batches = polled(bar.over(parts.val.epoch()))
        rows = list(parts.world.merged(scored(net, batches, val.path, device, dtype)))
    scores = tabulate(rows, val) if parts.world.main else None
    averages = parts.world.decide(lambda: _averages(scores))
    return averages, scores


def _averages(scores: ScoreTable | None) -> Averages:
    assert scores is not None
    averages = measure(scores).averages
    if odd := [name for name, x in averages.items() if x is not None and not isfinite(x)]:
        raise TrainingError(f"{odd[0]} of the validation data is {averages[odd[0]]}")
    return averages


def _skipped(record: StepRecord, at: Position, steps: int, log: RunLog) -> None:
    """Say so; too many in a row, or all of an epoch, are no accident."""
    if at.skipped >= min(SKIPPED, steps):
        raise TrainingError(f"{counted(at.skipped, 'step')} in a row {record.skipped}")
    log.say(f"warning: skipped, {record.skipped}")


def _history(
    log: RunLog, number: int, at: Position, loss: float, rate: float, averages: Averages
) -> None:
    """A line of metrics.jsonl."""
    log.history(
        {
            "epoch": number,
            "step": at.step,
            "loss": loss,
            **at.last,
            "images_per_s": rate,
            **averages,
        }
    )
