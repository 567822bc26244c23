"""The training step, and a generator of steps.

    fit: for every batch of every epoch   train_step -> StepRecord

A record is yielded one step late, when its loss and gradient norm are known to be finite. The check
then waits for work that is already done, and the device is never idle for it. At the end of an
epoch, and where the resume state is to be saved, the record is yielded at once, and no step is
under way.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.models.sync_batch_norm import is_synced
from mlfinetune.text import format_list
from mlfinetune.training.records import StepRecord


@dataclass(frozen=True)
class StepOptions:
    """Options of every training step.

    Attributes:
        device: where model and batches are.
        dtype: autocast's type; float32 means no autocast.
        accumulate: number of pieces that a batch is computed in (gradient accumulation).
        clip_grad_norm: largest gradient norm; None: no clipping.
        skip_not_finite: do not take a step whose loss or gradient is not finite, and go on. The
            host then waits for the device at every step.
        all_reduce: sums a tensor over all ranks, in place; None: there is one rank.
        no_sync: context in which gradients are not summed over ranks, as DDP's `no_sync`.
    """

    device: torch.device
    dtype: torch.dtype
    accumulate: int
    clip_grad_norm: float | None
    skip_not_finite: bool = False
    all_reduce: Callable[[Tensor], None] | None = None
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class _PendingStep:
    """A step whose loss and gradient norm are still on the device.

    Attributes:
        epoch, step: see `StepRecord`.
        numbers: (3,) from `train_step`.
        lrs: learning rate of each parameter group.
        batch: the batch of the step, for its names.
    """

    epoch: int
    step: int
    numbers: Tensor
    lrs: tuple[float, ...]
    batch: Batch

    def to_record(
        self, settled: bool, skip: bool, name_of: Callable[[int], str], save: bool = False
    ) -> StepRecord:
        """Wait for the numbers, and check them.

        Args:
            settled, save: for the record, see `StepRecord`; a rank's wish to save also counts.
            skip: report numbers that are not finite in the record, and do not raise.
            name_of: maps an index to a file name.

        Raises:
            TrainingError: loss or gradient norm is not finite, and `skip` is false.
        """
        loss, grad_norm, ranks_to_save = self.numbers.tolist()
        fault = ""
        indices = self.batch.step_indices
        if not (abs(loss) < float("inf") and abs(grad_norm) < float("inf")):
            names = [name_of(index) for index in indices]
            fault = (
                f"not finite at step {self.step} of epoch {self.epoch + 1}: loss {loss:g}, "
                f"gradient norm {grad_norm:g}; lower train.lr or train.head_lr, or look at the "
                f"pictures of that batch:\n{format_list(names)}"
            )
            if not skip:
                raise TrainingError(fault)
        # If only the head trains, there is one group, which is both the first and the last.
        rates = {"lr": self.lrs[0], "head_lr": self.lrs[-1]}
        return StepRecord(
            epoch=self.epoch,
            step=self.step,
            loss=loss,
            grad_norm=grad_norm,
            rates=rates,
            images=len(indices),
            settled=settled,
            save_requested=save or ranks_to_save > 0,
            skipped=fault,
        )


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    steps: int,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    options: StepOptions,
    name_of: Callable[[int], str],
    *,
    ema: AveragedModel | None = None,
    start: int = 0,
    should_save: Callable[[], bool] = lambda: False,
) -> Iterator[StepRecord]:
    """Train, and yield a record a step. The model is in training mode as every epoch begins.

    Args:
        model: maps the batches' images to (B, L) logits; is changed.
        batches: the batches of all epochs, from step `start` on.
        steps: batches in an epoch.
        loss: from `mlfinetune.loss.build_loss()`.
        optimizer: its groups carry `initial_lr`.
        schedule: maps a step to the factor of the initial learning rates.
        options: of every step.
        name_of: maps an index to a file name, for messages.
        ema: exponential moving average of the model; is updated after every step.
        start: number of steps that were taken before.
        should_save: is called at every step. If it returns true, the record of that step is
            yielded settled: model and optimizer then hold the state after exactly that step. With
            several ranks, all settle one step after the step at which any rank returned true.

    Raises:
        DataError: a picture that cannot be decoded, by name.
        TrainingError: a loss or gradient that is not finite, with step and file names, unless
            such steps are skipped.
    """
    step = start
    pending: _PendingStep | None = None
    one_rank = options.all_reduce is None
    model.train()
    for batch in batches:
        if step % steps == 0:
            model.train()
        batch.require_all(name_of)
        lrs = _set_lrs(optimizer, schedule(step))
        wants_save = not one_rank and should_save()
        numbers = train_step(model, batch, loss, optimizer, options, wants_save)
        if ema is not None:
            ema.update_parameters(model)
        save = False
        if pending is not None:
            record = pending.to_record(False, options.skip_not_finite, name_of)
            # All ranks add up their requests to save in the all-reduce of the step's loss. So the
            # answer is known one step late, but is the same on all ranks.
            save = record.save_requested
            yield record
        pending = _PendingStep(step // steps, step, numbers, lrs, batch)
        step += 1
        if one_rank:
            save = should_save()
        if step % steps == 0 or save:
            yield pending.to_record(True, options.skip_not_finite, name_of, save)
            pending = None


def train_step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    options: StepOptions,
    wants_save: bool = False,
) -> Tensor:
    """Take one training step: forward, backward, clipping, optimizer.

    The loss is the mean over the known targets of the whole batch. It does not depend on the number
    of pieces (`accumulate`) or of ranks. The host does not wait for the device, except with
    `skip_not_finite`.

    Args:
        batch: this rank's share: (B, 3, S, S) uint8 images or (B, F) features, (B, L) targets.
        wants_save: this rank asks for the resume state to be saved.

    Returns:
        (3,) float32 on the device: the batch's loss, the gradient norm before clipping, and the
        number of ranks that want the resume state saved.
    """
    images = batch.images.to(options.device, non_blocking=True)
    targets = batch.targets.to(options.device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    buffers = [buffer.clone() for buffer in model.buffers()] if options.skip_not_finite else []
    # Counted over all ranks: each rank takes the same number of pieces, as DDP requires.
    pieces = min(options.accumulate, len(batch.step_indices))
    total = _accumulate_gradients(model, images, targets, loss, options, pieces)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    numbers = torch.stack([total, norm.float(), total.new_full((), wants_save)])
    if options.all_reduce is not None:
        _reduce_numbers(model, numbers, len(images) / len(batch.step_indices), options.all_reduce)
    if options.skip_not_finite and not numbers.isfinite().all():
        for buffer, value in zip(model.buffers(), buffers, strict=True):  # BatchNorm's statistics
            buffer.copy_(value)
        return numbers
    if options.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, options.clip_grad_norm, norm)
    optimizer.step()
    return numbers


def _accumulate_gradients(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    loss: Callable[..., Tensor],
    options: StepOptions,
    count: int,
) -> Tensor:
    """Run forward and backward on each of `count` pieces; return (), this rank's part of the loss.

    The loss of every piece is divided by the number of known targets in the whole batch, on all
    ranks. So the losses and gradients of pieces and ranks only have to be summed.
    """
    known = (targets >= 0).sum()
    if options.all_reduce is not None:
        options.all_reduce(known)
    known.clamp_(min=1)
    total = torch.zeros((), device=options.device)
    pieces = zip(images.tensor_split(count), targets.tensor_split(count), strict=True)
    for number, (piece_images, piece_targets) in enumerate(pieces, 1):
        with options.no_sync() if number < count else nullcontext():
            with torch.autocast(
                options.device.type, options.dtype, enabled=options.dtype != torch.float32
            ):
                logits = _compute_logits(model, piece_images)
            # A rank without a picture of this piece still takes part in DDP's backward pass.
            part = loss(logits, piece_targets, divisor=known) if len(logits) else logits.sum()
            torch.autograd.backward(part)
        total += part.detach()
    return total


def _compute_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Compute (B, L) logits.

    A batch of 0 images does not change BatchNorm's statistics: it goes through the model in
    evaluation mode where BatchNorm would learn from this rank alone.
    """
    if len(images) or not _list_local_statistics(model):
        logits: Tensor = model(images)
        return logits
    model.eval()
    logits = model(images)
    model.train()
    return logits


def _list_local_statistics(model: nn.Module) -> list[Tensor]:
    """Return running mean and variance of each BatchNorm that learns from this rank alone."""
    return [
        statistic
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not is_synced(module) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]


def _reduce_numbers(
    model: nn.Module, numbers: Tensor, share: float, all_reduce: Callable[[Tensor], None]
) -> None:
    """Sum losses and requests to save over ranks, and average BatchNorm's statistics.

    Each rank's BatchNorm has learned from its own images. The average is weighted by the number of
    images, so that all ranks validate and save the same model. The gradient norm is not summed: it
    is that of the gradients that DDP has summed already. Everything travels in one all-reduce,
    because a small message costs mostly its latency.

    Args:
        model: its BatchNorm statistics are changed.
        numbers: (3,) as `train_step` returns them; are changed.
        share: the part of the batch that this rank has seen, 0 to 1.
        all_reduce: sums a tensor over all ranks, in place.
    """
    statistics = _list_local_statistics(model)
    norm = numbers[1].clone()
    joined = torch.cat([numbers, *(share * statistic for statistic in statistics)])
    all_reduce(joined)
    numbers.copy_(joined[: len(numbers)])
    numbers[1] = norm
    start = len(numbers)
    for statistic in statistics:
        statistic.copy_(joined[start : start + len(statistic)])
        start += len(statistic)


def _set_lrs(optimizer: torch.optim.Optimizer, factor: float) -> tuple[float, ...]:
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
    return tuple(group["lr"] for group in optimizer.param_groups)
