"""Training: one step, and a generator of steps.

    fit: for every batch of every epoch   train_step -> StepRecord

A record is yielded one step late, when its loss and gradient norm are known to be finite:
the check then waits for work that is already done, and the device never idles for it. At the end
of an epoch, and where the caller pauses, it is yielded at once, and no step is under way.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.text import format_list
from mlfinetune.training.records import StepRecord


@dataclass(frozen=True)
class StepOptions:
    """How every step is taken.

    Attributes:
        device, dtype: where, and autocast's type (float32: no autocast).
        accumulate: pieces a batch is computed in.
        clip_grad_norm: largest gradient norm, or None.
        skip: a step whose loss or gradient is not finite is not taken, and training goes on; the
            device is waited for at every step.
        add: sums a tensor over all processes, in place; None: there is one.
        apart: in it, gradients are not summed over processes yet.
    """

    device: torch.device
    dtype: torch.dtype
    accumulate: int
    clip_grad_norm: float | None
    skip: bool = False
    add: Callable[[Tensor], None] | None = None
    apart: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are still on the device."""

    epoch: int
    step: int
    numbers: Tensor
    lrs: tuple[float, ...]
    batch: Batch

    def record(
        self, settled: bool, skip: bool, name_of: Callable[[int], str], paused: bool = False
    ) -> StepRecord:
        loss, grad_norm, asked = self.numbers.tolist()
        fault, everyone = "", self.batch.everyone
        if not (abs(loss) < float("inf") and abs(grad_norm) < float("inf")):
            names = [name_of(index) for index in everyone]
            fault = (
                f"not finite at step {self.step} of epoch {self.epoch + 1}: loss {loss:g}, "
                f"gradient norm {grad_norm:g}; lower train.lr or train.head_lr, or look at the "
                f"pictures of that batch:\n{format_list(names)}"
            )
            if not skip:
                raise TrainingError(fault)
        rates = {"lr": self.lrs[0], "head_lr": self.lrs[-1]}  # one where the head alone trains
        return StepRecord(
            self.epoch,
            self.step,
            loss,
            grad_norm,
            rates,
            len(everyone),
            settled,
            paused or asked > 0,
            fault,
        )


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    steps: int,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    settings: StepOptions,
    name_of: Callable[[int], str],
    *,
    average: AveragedModel | None = None,
    start: int = 0,
    pause: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Train, step by step; the model is in training mode at the start of every epoch.

    Args:
        model: the batches' images -> (B, L) logits; is changed.
        batches: of all epochs, from step `start` on.
        steps: batches in an epoch.
        loss: `mlfinetune.loss.build_loss()`.
        optimizer: its groups carry `initial_lr`.
        schedule: step -> share of the initial learning rates.
        settings: how to take a step.
        name_of: index -> file name, for messages.
        average: a running mean of the model, which follows every step.
        start: steps that were taken before.
        pause: asked at every step: shall a record be settled, so that what model and optimizer
            hold when it is yielded is the state after that very step? Of several processes all
            pause, at the step after the one at which any was asked to.

    Raises:
        DataError: a picture that cannot be decoded, by name.
        TrainingError: a loss or gradient that is not finite, with step and file names, unless
            such steps are skipped.
    """
    step, pending = start, None
    model.train()
    for batch in batches:
        if step % steps == 0:
            model.train()
        batch.require_all(name_of)
        lrs = _set_lrs(optimizer, schedule(step))
        asked = settings.add is not None and pause()
        numbers = train_step(model, batch, loss, optimizer, settings, asked)
        if average is not None:
            average.update_parameters(model)
        paused = False
        if pending is not None:
            record = pending.record(False, settings.skip, name_of)
            paused = record.paused
            yield record
        pending = _Pending(step // steps, step, numbers, lrs, batch)
        step += 1
        paused = pause() if settings.add is None else paused
        if step % steps == 0 or paused:
            yield pending.record(True, settings.skip, name_of, paused)
            pending = None


def train_step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    settings: StepOptions,
    asked: bool = False,
) -> Tensor:
    """Forward, backward, clip, step; no synchronisation with the device, unless settings.skip.

    The batch's mean is over its known targets, however many pieces it is computed in, and
    processes it is shared by.

    Args:
        asked: this process wants a pause.

    Returns:
        (3,) float32 on the device: the batch's loss, its gradient norm before clipping, and how
        many of the processes that share it want a pause.
    """
    images = batch.images.to(settings.device, non_blocking=True)
    targets = batch.targets.to(settings.device, non_blocking=True)
    known = (targets >= 0).sum()
    if settings.add is not None:
        settings.add(known)
    known.clamp_(min=1)
    total = torch.zeros((), device=settings.device)
    optimizer.zero_grad(set_to_none=True)
    before = [buffer.clone() for buffer in model.buffers()] if settings.skip else []
    count = min(settings.accumulate, len(batch.everyone))
    pieces = zip(images.tensor_split(count), targets.tensor_split(count), strict=True)
    for number, (some_images, some_targets) in enumerate(pieces, 1):
        with settings.apart() if number < count else nullcontext():
            with torch.autocast(
                settings.device.type, settings.dtype, enabled=settings.dtype != torch.float32
            ):
                logits = _look(model, some_images)
            part = loss(logits, some_targets, divisor=known) if len(logits) else logits.sum()
            torch.autograd.backward(part)
        total += part.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    numbers = torch.stack([total, norm.float(), total.new_full((), asked)])
    if settings.add is not None:
        _join(model, numbers, len(images) / len(batch.everyone), settings.add)
    if settings.skip and not numbers.isfinite().all():
        for buffer, value in zip(model.buffers(), before, strict=True):  # BatchNorm's statistics
            buffer.copy_(value)
        return numbers
    if settings.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad_norm, norm)
    optimizer.step()
    return numbers


def _look(model: nn.Module, images: Tensor) -> Tensor:
    """The logits; of no pictures BatchNorm learns nothing."""
    if len(images) or not _own_statistics(model):
        logits: Tensor = model(images)
        return logits
    model.eval()
    logits = model(images)
    model.train()
    return logits


def _own_statistics(model: nn.Module) -> list[Tensor]:
    """Of each BatchNorm that learns from this process's pictures alone: mean and variance."""
    return [
        statistic
        for module in model.modules()
        if type(module) is nn.BatchNorm2d and module.training  # those of all processes are no such
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]


def _join(model: nn.Module, numbers: Tensor, share: float, add: Callable[[Tensor], None]) -> None:
    """Sum loss and wishes over processes, and average BatchNorm's statistics, in place.

    Each process has seen `share` of the batch; the gradient's norm is everyone's already.
    """
    found = _own_statistics(model)
    norm = numbers[1].clone()
    everything = torch.cat([numbers, *(share * statistic for statistic in found)])
    add(everything)
    numbers.copy_(everything[: len(numbers)])
    numbers[1] = norm
    start = len(numbers)
    for statistic in found:
        statistic.copy_(everything[start : start + len(statistic)])
        start += len(statistic)


def _set_lrs(optimizer: torch.optim.Optimizer, share: float) -> tuple[float, ...]:
    for group in optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]
    return tuple(group["lr"] for group in optimizer.param_groups)
