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

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.features import FeatureLoader
from mlfinetune.errors import TrainingError
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.models.inference import for_inference
from mlfinetune.models.scoring import score_batches, tabulate
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import format_duration, pluralize
from mlfinetune.training.build import build_schedule, build_step_options
from mlfinetune.training.lbfgs import PENALTIES, Solver
from mlfinetune.training.records import Position, StepRecord
from mlfinetune.training.setup import TrainingSetup
from mlfinetune.training.step import StepOptions, fit

Averages = dict[str, float | None]
"""Metric -> its average over labels or images."""
MAX_SKIPPED = 10
"""Steps in a row that are not finite, after which training stops whatever is configured."""
PATIENCE = 2
"""Weaker penalties in a row without a better mAP, after which no weaker one is tried."""


@dataclass(frozen=True)
class Candidate:
    """One epoch's outcome, or one solution's; `number` counts from 1, `name` is for people.

    `scores`: what process 0 has validated; None elsewhere, and of an epoch before a run went on.
    """

    number: int
    name: str
    mAP: float | None
    scores: ScoreTable | None
    loss: float
    speed: str

    def beats(self, other: "Candidate") -> bool:
        """A higher mAP; where mAP is undefined the later epoch."""
        ours, theirs = self.mAP, other.mAP
        return theirs is None or (ours is not None and ours > theirs)


@dataclass(frozen=True)
class SavePoint:
    """When the state between two steps is wanted, and who takes it.

    Attributes:
        due: asked at every step and every batch of validation; costs next to nothing.
        keep: given the position whenever it is due in any process; may raise, to stop.
    """

    due: Callable[[], bool]
    keep: Callable[[Position], None]


def train_epochs(
    parts: TrainingSetup,
    optimizer: torch.optim.Optimizer,
    at: Position,
    pause: SavePoint,
    log: RunLog,
) -> Generator[Candidate]:
    """Train from a position on; an outcome an epoch."""
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    steps = parts.train.steps
    net, settings = _net_and_options(parts)
    records = fit(
        net,
        _batches(parts, at, epochs),
        steps,
        parts.loss,
        optimizer,
        build_schedule(config, steps),
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
            bar.start_at(at.images)
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
        speed = f"{bar.rate:.1f} images/s  {format_duration(left)} left"
        mean_loss = at.loss_sum / at.images
        _history(log, number, at, mean_loss, bar.rate, averages)
        at = Position(at.step)
        yield Candidate(number, name, averages["mAP"], scores, mean_loss, speed)


def _net_and_options(parts: TrainingSetup) -> tuple[nn.Module, StepOptions]:
    """What trains, and how, in step with the other processes where there are some."""
    world, settings = parts.world, build_step_options(parts.config, parts.device, parts.dtype)
    replica, apart = world.ddp(parts.net)
    add = world.all_reduce_sum_ if world.is_distributed else None
    return replica, replace(settings, add=add, apart=apart)


def _poll(world: World, pause: SavePoint, at: Position) -> None:
    if world.all_reduce_max(pause.due()):
        pause.keep(at)


def _batches(parts: TrainingSetup, at: Position, epochs: int) -> Iterator[Batch]:
    """Those of all epochs that are left; an epoch begins when its first batch is asked for."""
    first, done = divmod(at.step, parts.train.steps)
    for number in range(first, epochs):
        yield from parts.train.epoch(number, done if number == first else 0)


def solve_head(parts: TrainingSetup, log: RunLog) -> Iterator[Candidate]:
    """The head solved for: an ever weaker penalty, and more iterations while they help."""
    assert isinstance(parts.train, FeatureLoader)
    assert isinstance(parts.tagger.head, nn.Linear)
    sweep, number, bests = parts.train.sweep, 0, list[Candidate]()
    with log.bar("solving for the head", None) as bar:
        solver = Solver(parts.tagger.head, lambda: bar.track(sweep(), _count_images), parts.loss)
        for l2 in PENALTIES:
            here: Candidate | None = None
            for record in solver.path(l2):
                number += 1
                averages, scores = validate(parts, log)
                if not parts.config.train.solve_head_first:  # then epochs are the history
                    at = Position().after(record)
                    _history(log, number, at, record.loss, bar.rate, averages)
                name = f"l2 {l2:g}, {record.rates['iterations']:g} iterations"
                speed = f"{record.step + 1} passes"
                now = Candidate(number, name, averages["mAP"], scores, record.loss, speed)
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
    parts: TrainingSetup, log: RunLog, poll: Callable[[], None] = lambda: None
) -> tuple[Averages, ScoreTable | None]:
    """Score the validation data with what the parts hold now; `poll` is called at every batch.

    Returns:
        The metrics' averages, and on process 0 the scores.
    """
    net, device, dtype = parts.scored, parts.device, parts.dtype
    if isinstance(net, Tagger):
        net, _ = for_inference(net, parts.spec.image_size, device, dtype)

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
        batches = polled(bar.track(parts.val.epoch(), _count_images))
        rows = list(parts.world.gather_stream(score_batches(net, batches, val.path, device, dtype)))
    scores = tabulate(rows, val) if parts.world.is_main else None
    averages = parts.world.broadcast(lambda: _averages(scores))
    return averages, scores


def _count_images(batch: Batch) -> int:
    """Images of a batch, on all ranks."""
    return len(batch.everyone)


def _averages(scores: ScoreTable | None) -> Averages:
    assert scores is not None
    averages = measure(scores).averages
    if odd := [name for name, x in averages.items() if x is not None and not isfinite(x)]:
        raise TrainingError(f"{odd[0]} of the validation data is {averages[odd[0]]}")
    return averages


def _skipped(record: StepRecord, at: Position, steps: int, log: RunLog) -> None:
    """Say so; too many in a row, or all of an epoch, are no accident."""
    if at.skipped >= min(MAX_SKIPPED, steps):
        raise TrainingError(f"{pluralize(at.skipped, 'step')} in a row {record.skipped}")
    log.say(f"warning: skipped, {record.skipped}")


def _history(
    log: RunLog, number: int, at: Position, loss: float, rate: float, averages: Averages
) -> None:
    """A line of metrics.jsonl."""
    log.log_epoch(
        {
            "epoch": number,
            "step": at.step,
            "loss": loss,
            **at.last,
            "images_per_s": rate,
            **averages,
        }
    )
