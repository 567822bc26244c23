"""What a run tries, one outcome after another: epochs of training, or solutions for the head.

    Parts, Position -> epochs     fit -> validate -> Outcome, an epoch at a time
    Parts           -> solutions  solve -> validate -> Outcome, at ever weaker penalties

The caller says, saves and chooses, between steps too. Each outcome is a line of metrics.jsonl.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune import assemble
from mlfinetune.config import Config
from mlfinetune.data.features import FeatureLoader
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.errors import TrainingError, counted
from mlfinetune.fit import fit
from mlfinetune.loss import Loss
from mlfinetune.metrics.measure import measure
from mlfinetune.model import Tagger
from mlfinetune.records import (
    Batch,
    MetricTable,
    Position,
    ScoreTable,
    StepRecord,
    TransformSpec,
)
from mlfinetune.runlog import RunLog, clock
from mlfinetune.score import score
from mlfinetune.solve import STRENGTHS, Solver

SKIPPED = 10
"""Steps in a row that are not finite, after which training stops whatever is configured."""
PATIENCE = 2
"""Weaker penalties in a row without a better mAP, after which no weaker one is tried."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of; `net` is what trains on the batches: the tagger, or its head.

    `average`: its running mean, which is then what is validated and saved.
    """

    config: Config
    splits: Splits
    spec: TransformSpec
    tagger: Tagger
    net: nn.Module
    loss: Loss
    train: Loader | FeatureLoader
    val: Loader | FeatureLoader
    device: torch.device
    dtype: torch.dtype
    average: AveragedModel | None = None

    @property
    def scored(self) -> nn.Module:
        """What is validated on the batches."""
        return self.net if self.average is None else self.average.module

    @property
    def saved(self) -> Tagger:
        """The whole tagger of what is validated."""
        scored = self.scored
        if scored is self.net:
            return self.tagger
        return scored if isinstance(scored, Tagger) else self.tagger.with_head(scored)


@dataclass(frozen=True)
class Outcome:
    """One epoch's outcome, or one solution's; `number` counts from 1, `name` is for people."""

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
        due: asked after every step and every batch of validation; costs next to nothing.
        keep: given the position whenever it is due; may raise, to stop.
    """

    due: Callable[[], bool]
    keep: Callable[[Position], None]

    def poll(self, at: Position) -> None:
        """Between two steps."""
        if self.due():
            self.keep(at)


def epochs(
    parts: Parts, optimizer: torch.optim.Optimizer, at: Position, pause: Pause, log: RunLog
) -> Generator[Outcome]:
    """Train from a position on; an outcome an epoch."""
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    steps = parts.train.steps
    records = fit(
        parts.net,
        _batches(parts, at, epochs),
        steps,
        parts.loss,
        optimizer,
        assemble.schedule(config, steps),
        assemble.settings(config, parts.device, parts.dtype),
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
                if record.settled:
                    pause.poll(at)
        table, scores = validate(parts, log, partial(pause.poll, at))
        left = (time.monotonic() - started) / (number - first) * (epochs - number)
        speed = f"{bar.rate:.1f} images/s  {clock(left)} left"
        mean_loss = at.loss_sum / at.images
        _history(log, number, at, mean_loss, bar.rate, table)
        at = Position(at.step)
        yield Outcome(number, name, table.averages["mAP"], scores, mean_loss, speed)


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
                table, scores = validate(parts, log)
                if not parts.config.train.solve_head_first:  # then epochs are the history
                    at = Position().after(record)
                    _history(log, number, at, record.loss, bar.rate, table)
                name = f"l2 {l2:g}, {record.rates['iterations']:g} iterations"
                speed = f"{record.step + 1} passes"
                now = Outcome(number, name, table.averages["mAP"], scores, record.loss, speed)
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
) -> tuple[MetricTable, ScoreTable]:
    """Score the validation data with what the parts hold now; `poll` is called at every batch."""
    net, device, dtype = parts.scored, parts.device, parts.dtype
    if isinstance(net, Tagger):
        net, _ = assemble.serving(net, parts.spec.image_size, device, dtype)

    def polled(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            poll()
            yield batch

    with log.bar("validation", len(parts.splits.val)) as bar:
        batches = polled(bar.over(parts.val.epoch()))
        scores = score(net, batches, parts.splits.val, device, dtype)
    table = measure(scores)
    if odd := [name for name, x in table.averages.items() if x is not None and not isfinite(x)]:
        raise TrainingError(f"{odd[0]} of the validation data is {table.averages[odd[0]]}")
    return table, scores


def _skipped(record: StepRecord, at: Position, steps: int, log: RunLog) -> None:
    """Say so; too many in a row, or all of an epoch, are no accident."""
    if at.skipped >= min(SKIPPED, steps):
        raise TrainingError(f"{counted(at.skipped, 'step')} in a row {record.skipped}")
    log.say(f"warning: skipped, {record.skipped}")


def _history(
    log: RunLog, number: int, at: Position, loss: float, rate: float, table: MetricTable
) -> None:
    """A line of metrics.jsonl."""
    log.history(
        {
            "epoch": number,
            "step": at.step,
            "loss": loss,
            **at.last,
            "images_per_s": rate,
            **table.averages,
        }
    )
