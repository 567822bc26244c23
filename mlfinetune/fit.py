"""Training: one step, and a generator of steps.

    fit: for every batch of every epoch   train_step -> StepRecord

A record is yielded one step late, when its loss and gradient norm are known to be finite:
the check then waits for work that is already done, and the device never idles for it. At the end
of an epoch, and where the caller pauses, it is yielded at once, and no step is under way.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune.errors import TrainingError, listing
from mlfinetune.records import Batch, StepRecord


@dataclass(frozen=True)
class Settings:
    """How every step is taken.

    Attributes:
        device, dtype: where, and autocast's type (float32: no autocast).
        accumulate: pieces a batch is computed in.
        clip_grad_norm: largest gradient norm, or None.
        skip: a step whose loss or gradient is not finite is not taken, and training goes on; the
            device is waited for at every step.
    """

    device: torch.device
    dtype: torch.dtype
    accumulate: int
    clip_grad_norm: float | None
    skip: bool = False


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are still on the device."""

    epoch: int
    step: int
    numbers: Tensor
    lrs: tuple[float, ...]
    batch: Batch

    def record(self, settled: bool, skip: bool, name_of: Callable[[int], str]) -> StepRecord:
        loss, grad_norm = self.numbers.tolist()
        fault = ""
        if not (abs(loss) < float("inf") and abs(grad_norm) < float("inf")):
            names = [name_of(index) for index in self.batch.indices.tolist()]
            fault = (
                f"not finite at step {self.step} of epoch {self.epoch + 1}: loss {loss:g}, "
                f"gradient norm {grad_norm:g}; lower train.lr or train.head_lr, or look at the "
                f"pictures of that batch:\n{listing(names)}"
            )
            if not skip:
                raise TrainingError(fault)
        images = len(self.batch.indices)
        rates = {"lr": self.lrs[0], "head_lr": self.lrs[-1]}  # one where the head alone trains
        return StepRecord(self.epoch, self.step, loss, grad_norm, rates, images, settled, fault)


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    steps: int,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    settings: Settings,
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
        pause: asked after every step: shall its record be settled, so that what model and
            optimizer hold when it is yielded is the state after that very step?

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
        numbers = train_step(model, batch, loss, optimizer, settings)
        if average is not None:
            average.update_parameters(model)
        if pending is not None:
            yield pending.record(False, settings.skip, name_of)
        pending = _Pending(step // steps, step, numbers, lrs, batch)
        step += 1
        if step % steps == 0 or pause():
            yield pending.record(True, settings.skip, name_of)
            pending = None


def train_step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
) -> Tensor:
    """Forward, backward, clip, step; no synchronisation with the device, unless settings.skip.

    The batch's mean is over its known targets, however many pieces it is computed in.

    Returns:
        (2,) float32 on the device: the batch's loss, and its gradient norm before clipping.
    """
    images = batch.images.to(settings.device, non_blocking=True)
    targets = batch.targets.to(settings.device, non_blocking=True)
    known = (targets >= 0).sum().clamp(min=1)
    total = torch.zeros((), device=settings.device)
    optimizer.zero_grad(set_to_none=True)
    before = [buffer.clone() for buffer in model.buffers()] if settings.skip else []
    pieces = min(settings.accumulate, len(images))
    for some_images, some_targets in zip(
        images.tensor_split(pieces), targets.tensor_split(pieces), strict=True
    ):
        with torch.autocast(
            settings.device.type, settings.dtype, enabled=settings.dtype != torch.float32
        ):
            logits = model(some_images)
        part = loss(logits, some_targets, divisor=known)
        torch.autograd.backward(part)
        total += part.detach()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    numbers = torch.stack([total, norm.float()])
    if settings.skip and not numbers.isfinite().all():
        for buffer, value in zip(model.buffers(), before, strict=True):  # BatchNorm's statistics
            buffer.copy_(value)
        return numbers
    if settings.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad_norm, norm)
    optimizer.step()
    return numbers


def _set_lrs(optimizer: torch.optim.Optimizer, share: float) -> tuple[float, ...]:
    for group in optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]
    return tuple(group["lr"] for group in optimizer.param_groups)
