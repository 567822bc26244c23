"""The training loop: candidates for the run's result, one after the other.

    TrainingSetup, Position -> train_epochs   fit    -> validate -> Candidate, one an epoch
                                              fit    -> solve    -> Candidate, `solve_head_each`

A candidate is one state of the weights with its validation mAP. The function is a generator: while
it is suspended, the caller logs, saves and compares the candidate that it has yielded. solve.py has
those of L-BFGS. Each candidate becomes a line of metrics.jsonl (where the backbone trains, only the
epochs do).
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

import torch
from torch import nn

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.loader import Loader
from mlfinetune.errors import TrainingError
from mlfinetune.metrics.calibration import fit_slope
from mlfinetune.metrics.evaluation import raise_scores
from mlfinetune.metrics.implies import Pairs
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.selection import Trial, try_candidate
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.models.backbones import build_backbone, is_resnet
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.scoring import average_views, score_batches, tabulate
from mlfinetune.models.sizes import find_unused
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import format_duration, pluralize
from mlfinetune.training.build import build_schedule, build_step_options
from mlfinetune.training.records import Penalty, Position, StepRecord
from mlfinetune.training.setup import TrainingSetup
from mlfinetune.training.step import StepOptions, fit

Averages = dict[str, float | None]
"""Metric -> its average over labels or images."""
MAX_SKIPPED = 10
"""Number of skipped steps in a row at which training stops, even with `not_finite: skip`."""


@dataclass(frozen=True)
class Candidate:
    """One state of the weights that may become the run's result: after an epoch, or a solution.

    Attributes:
        number: epoch or solution, from 1; 0 is the solved head before training.
        name: for people, as `epoch 3/10`.
        mAP: on the validation data; None where it is undefined.
        scores: of the validation data, on rank 0; None on other ranks, and for an epoch from
            before the run was resumed.
        loss: mean training loss.
        speed: for people, as `120.3 images/s  2:10 left`; of a solution `7 passes`.
        trials: of all candidates that it was chosen among, itself too, on rank 0; None: of an epoch
            whose scores are not known any more.
        penalty: of a solution; None: an epoch.
    """

    number: int
    name: str
    mAP: float | None
    scores: ScoreTable | None
    loss: float
    speed: str
    trials: tuple[Trial | None, ...] = ()
    penalty: Penalty | None = None

    def try_out(self, implies: Pairs) -> Trial | None:
        """Measure this candidate on resamples of the validation data; None on other ranks."""
        if self.scores is None:
            return None
        trial = try_candidate(raise_scores(self.scores, implies), self.mAP)
        trial = replace(trial, slope=fit_slope(self.scores))
        if self.penalty is None:
            return replace(trial, epoch=self.number)
        return replace(trial, l2=self.penalty.l2, iterations=self.penalty.iterations)

    def try_epoch(self, implies: Pairs) -> list[Trial | None]:
        """Return the trials of an epoch: of the solutions for its head, else its own."""
        if not self.trials:
            return [self.try_out(implies)]
        return [trial and replace(trial, epoch=self.number) for trial in self.trials]

    def beats(self, other: "Candidate") -> bool:
        """Tell whether the mAP is higher than that of `other`, an earlier candidate.

        Where the earlier mAP is undefined the later candidate wins, but for solutions: more of them
        would only fit the training data more closely.

            self 0.5   other 0.4    True         self 0.4   other None   True
            self 0.4   other 0.4    False        self None  other 0.4    False
            self None  other None   True for an epoch, False for a solution
        """
        ours, theirs = self.mAP, other.mAP
        if ours is None and self.penalty is not None:
            return False
        return theirs is None or (ours is not None and ours > theirs)


@dataclass(frozen=True)
class SavePoint:
    """Asks at every step whether to save the resume state, and saves it.

    Attributes:
        should_save: is called at every step and every validation batch; costs next to nothing.
        save: is given the position if any rank wants to save; may raise, to stop the run.
    """

    should_save: Callable[[], bool]
    save: Callable[[Position], None]


def train_epochs(
    setup: TrainingSetup,
    optimizer: torch.optim.Optimizer,
    position: Position,
    save_point: SavePoint,
    log: RunLog,
    solve: Callable[[], Candidate] | None = None,
) -> Generator[Candidate]:
    """Train from `position` to the last epoch; yield a candidate after each epoch.

    Args:
        solve: replaces the head after each epoch by the best one for the backbone of then, which
            it returns; the state is saved before. None: the head stays, and is validated.

    Raises:
        DataError: a picture that cannot be decoded, by name.
        TrainingError: numbers that are not finite.
    """
    epochs, steps = setup.config.train.epochs, setup.train.steps
    records = _fit_from(setup, optimizer, position, save_point)
    started, first = time.monotonic(), position.epoch(steps)
    for number in range(first + 1, epochs + 1):
        name = f"epoch {number}/{epochs}"
        with log.bar(name, len(setup.splits.train)) as bar:
            bar.start_at(position.images)
            while position.step < number * steps:
                record = next(records)
                position = position.after(record)
                if record.skipped:
                    _report_skipped(record, position, steps, log)
                bar.update(record.images, f"loss {record.loss:.4f}")
                if record.settled and record.save_requested:
                    save_point.save(position)
            rate = bar.rate
        if solve is None:
            poll = partial(_save_if_asked, setup.world, save_point, position)
            averages, scores = validate(setup, log, poll)
            candidate = Candidate(number, name, averages["mAP"], scores, 0.0, "")
        else:
            save_point.save(position)
            candidate = solve()
            averages = setup.world.broadcast(partial(_measure_candidate, candidate, setup.implies))
        _report_changes(setup, log)
        left = (time.monotonic() - started) / (number - first) * (epochs - number)
        speed = f"{rate:.1f} images/s  {format_duration(left)} left"
        mean_loss = position.loss_sum / position.images
        if candidate.penalty is not None:
            speed = f"{candidate.penalty.describe()}  {speed}"
        log_candidate(log, number, position, mean_loss, rate, averages)
        position = Position(position.step)  # the epoch is validated: its sums start from 0 again
        # An epoch is one candidate, however many solutions for its head were tried.
        candidate = replace(candidate, number=number, name=name, penalty=None)
        yield replace(candidate, loss=mean_loss, speed=speed)


def _report_changes(setup: TrainingSetup, log: RunLog) -> None:
    """Warn of pictures that are no longer those of the scan, as soon as an epoch has read them."""
    for loader in (setup.train, setup.val):
        if isinstance(loader, Loader) and (changes := loader.describe_changes()):
            log.say(changes)


def _fit_from(
    setup: TrainingSetup,
    optimizer: torch.optim.Optimizer,
    position: Position,
    save_point: SavePoint,
) -> Iterator[StepRecord]:
    """Return the records of all steps from `position` on; a step is taken when it is asked for."""
    config, train = setup.config, setup.splits.train
    steps = setup.train.steps
    net, options = _share_over_ranks(setup)
    return fit(
        net,
        _remaining_batches(setup, position, config.train.epochs),
        steps,
        setup.loss,
        optimizer,
        build_schedule(config, steps),
        options,
        train.path,
        ema=setup.ema,
        start=position.step,
        should_save=save_point.should_save,
    )


def _share_over_ranks(setup: TrainingSetup) -> tuple[nn.Module, StepOptions]:
    """Return the net to train, in DDP where there are several ranks, and the step options."""
    world, options = setup.world, build_step_options(setup.config, setup.device, setup.dtype)
    if world.is_distributed:
        _idle_unused(setup.tagger, setup.spec.image_size)
    net, no_sync = world.ddp(setup.net)
    all_reduce = world.all_reduce_sum_ if world.is_distributed else None
    return net, replace(options, all_reduce=all_reduce, no_sync=no_sync)


def _idle_unused(tagger: Tagger, side: int) -> None:
    """Ask no gradient of parameters that take no part: DDP would wait for it."""
    if tagger.frozen or is_resnet(tagger.backbone):
        return
    for name in find_unused(lambda size: build_backbone(tagger.backbone, 1, size)[0], side):
        tagger.features.get_parameter(name).requires_grad_(False)


def _save_if_asked(world: World, save_point: SavePoint, position: Position) -> None:
    if world.all_reduce_max(save_point.should_save()):
        save_point.save(position)


def _remaining_batches(setup: TrainingSetup, position: Position, epochs: int) -> Iterator[Batch]:
    """Yield the batches of all epochs from `position` on.

    An epoch's loader starts when its first batch is asked for.
    """
    first, done = divmod(position.step, setup.train.steps)
    for number in range(first, epochs):
        yield from setup.train.epoch(number, done if number == first else 0)


def validate(
    setup: TrainingSetup, log: RunLog, poll: Callable[[], None] = lambda: None
) -> tuple[Averages, ScoreTable | None]:
    """Score the validation data with the current weights, or their moving average.

    Logits are the mean over `eval.views`.

    Args:
        poll: is called once a batch, equally often on all ranks.

    Returns:
        The averages of the metrics; and the scores on rank 0, None elsewhere. Without validation
        data mAP and scores are None.

    Raises:
        DataError: a picture that cannot be decoded, by name.
        TrainingError: scores or averages that are not finite.
    """
    log.lap("learning")
    net, device, dtype = setup.eval_net, setup.device, setup.dtype
    if isinstance(net, Tagger):  # a head's batches are mean features of the views already
        tagger, _ = prepare_for_inference(net, setup.spec.image_size, device, dtype)
        net = average_views(tagger, setup.config.eval.views)

    def poll_each(batches: Iterable[Batch]) -> Iterator[Batch]:
        left = setup.val.steps
        for batch in batches:
            poll()
            left -= 1
            yield batch
        for _ in range(left):  # another rank has one batch more, and all must poll equally often
            poll()

    val = setup.splits.val
    if not len(val):
        return {"mAP": None}, None
    with log.bar("validation", len(val)) as bar:
        batches = poll_each(bar.track(setup.val.epoch(), count_images))
        scored = score_batches(net, batches, val.path, device, dtype)
        rows = list(setup.world.gather_stream(scored))
    scores = tabulate(rows, val) if setup.world.is_main else None
    averages = setup.world.broadcast(lambda: _average_metrics(scores, setup.implies))
    log.lap("validation")
    return averages, scores


def count_images(batch: Batch) -> int:
    """Return the number of images of a batch, on all ranks together."""
    return len(batch.step_indices)


def _measure_candidate(candidate: Candidate, implies: Pairs) -> Averages:
    """Return the averages of a candidate's metrics; without validation data of mAP alone."""
    if candidate.scores is None:
        return {"mAP": None}
    return _average_metrics(candidate.scores, implies)


def _average_metrics(scores: ScoreTable | None, implies: Pairs) -> Averages:
    assert scores is not None
    averages = measure(raise_scores(scores, implies), quick=True).averages
    if odd := [name for name, x in averages.items() if x is not None and not isfinite(x)]:
        raise TrainingError(f"{odd[0]} of the validation data is {averages[odd[0]]}")
    return averages


def _report_skipped(record: StepRecord, position: Position, steps: int, log: RunLog) -> None:
    """Log a skipped step.

    Raises:
        TrainingError: MAX_SKIPPED steps in a row were skipped, or all steps of an epoch.
    """
    if position.skipped >= min(MAX_SKIPPED, steps):
        raise TrainingError(f"{pluralize(position.skipped, 'step')} in a row {record.skipped}")
    log.say(f"warning: skipped, {record.skipped}")


def log_candidate(
    log: RunLog, number: int, position: Position, loss: float, rate: float, averages: Averages
) -> None:
    """Append a line to metrics.jsonl, with the averages of the validation data."""
    log.log_epoch(
        {
            "epoch": number,
            "step": position.step,
            "loss": loss,
            **position.last,
            "images_per_s": rate,
            **averages,
        }
    )
