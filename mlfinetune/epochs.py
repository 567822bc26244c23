"""What a run tries, one outcome after another: epochs of training, or solutions for the head.

    Parts -> epochs     fit -> validate -> Outcome, an epoch at a time
    Parts -> solutions  solve -> validate -> Outcome, at ever weaker penalties

The caller says, saves and chooses. Each outcome is a line of metrics.jsonl.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mlfinetune import assemble
from mlfinetune.config import Config
from mlfinetune.data.features import FeatureLoader
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.fit import fit
from mlfinetune.loss import Loss
from mlfinetune.metrics.measure import measure
from mlfinetune.model import Tagger
from mlfinetune.records import MetricTable, ScoreTable, StepRecord, TransformSpec
from mlfinetune.runlog import Bar, RunLog, clock
from mlfinetune.score import score
from mlfinetune.solve import STRENGTHS, Solver

PATIENCE = 2
"""Weaker penalties in a row without a better mAP, after which no weaker one is tried."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of; `net` is what trains on the batches: the tagger, or its head."""

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


@dataclass(frozen=True)
class Outcome:
    """One epoch's outcome, or one solution's; `number` counts from 1, `name` is for people."""

    number: int
    name: str
    table: MetricTable
    scores: ScoreTable
    loss: float
    speed: str

    def beats(self, other: "Outcome") -> bool:
        """A higher mAP; where mAP is undefined the later epoch."""
        ours, theirs = self.table.averages["mAP"], other.table.averages["mAP"]
        return theirs is None or (ours is not None and ours > theirs)


def epochs(parts: Parts, heard: Callable[[], None], log: RunLog) -> Iterator[Outcome]:
    """Train; an outcome an epoch.

    Args:
        heard: is called at every step, and raises where the run should stop.
    """
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    records = fit(
        parts.net,
        (parts.train.epoch(number) for number in range(epochs)),
        parts.loss,
        assemble.optimizer(config, parts.tagger),
        assemble.schedule(config, parts.train.steps),
        assemble.settings(config, parts.device, parts.dtype),
        lambda index: str(splits.train.path(index)),
    )
    started = time.monotonic()
    for number in range(1, epochs + 1):
        name = f"epoch {number}/{epochs}"
        with log.bar(name, len(splits.train)) as bar:
            mean_loss, last = _consume(records, heard, bar)
        table, scores = _validate(parts, log)
        left = (time.monotonic() - started) / number * (epochs - number)
        speed = f"{bar.rate:.1f} images/s  {clock(left)} left"
        _history(log, number, last, mean_loss, bar.rate, table)
        yield Outcome(number, name, table, scores, mean_loss, speed)


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
                table, scores = _validate(parts, log)
                if not parts.config.train.solve_head_first:  # then epochs are the history
                    _history(log, number, record, record.loss, bar.rate, table)
                name = f"l2 {l2:g}, {record.rates['iterations']:g} iterations"
                speed = f"{record.step + 1} passes"
                now = Outcome(number, name, table, scores, record.loss, speed)
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


def _validate(parts: Parts, log: RunLog) -> tuple[MetricTable, ScoreTable]:
    net, device, dtype = parts.net, parts.device, parts.dtype
    if isinstance(net, Tagger):
        net, _ = assemble.serving(net, parts.spec.image_size, device, dtype)
    with log.bar("validation", len(parts.splits.val)) as bar:
        batches = bar.over(parts.val.epoch())
        scores = score(net, batches, parts.splits.val, device, dtype)
    return measure(scores), scores


def _history(
    log: RunLog, number: int, last: StepRecord, loss: float, rate: float, table: MetricTable
) -> None:
    """A line of metrics.jsonl."""
    log.history(
        {
            "epoch": number,
            "step": last.step + 1,
            "loss": loss,
            "grad_norm": last.grad_norm,
            **last.rates,
            "images_per_s": rate,
            **table.averages,
        }
    )


def _consume(
    records: Iterator[StepRecord], heard: Callable[[], None], bar: Bar
) -> tuple[float, StepRecord]:
    """The steps of one epoch: their mean loss an image, and the last record."""
    total = 0.0
    for record in records:
        heard()
        total += record.loss * record.images
        bar.update(record.images, f"loss {record.loss:.4f}")
        if record.last_in_epoch:
            return total / bar.done, record
    raise AssertionError("an epoch without steps")
