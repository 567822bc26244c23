"""Value and gradient of the loss family with plain torch operations, block by block.

    logits (N, L), targets (N, L)  ->  loss, its gradient for the logits

A block and its temporaries stay in the processor's cache, so memory is read once and written once.
The gradient is computed together with the loss, in float32 (float64 for float64 logits).

Hard targets (each 0, 1 or unknown) without weights take a shorter way. With z = x for a negative
and z = -x for a positive,

    loss = softplus(z) = max(z, 0) + log1p(e)      d loss / dz = sigmoid(z)      e = exp(-|z|)

Only the sum of the log1p is needed, and log1p(a) + log1p(b) = log1p(a + b + a*b): all terms have
one sign, so no small a is lost. The two halves of the block are joined in this way five times, and
one log1p serves 32 logits. No product of 32 factors (1 + e) <= 2 overflows.
"""

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mlfinetune.loss.reference import Form

BLOCK = 2**19
"""Elements of a block. In smaller blocks the calls cost more than the arithmetic, in larger ones
the memory does (measured)."""
SMALL = 2**14
"""Elements below which the time of a call depends on its number of operations, not on its size."""
PLAIN = Form()
_KEPT = threading.local()
"""Each thread's buffers, see `_take_buffers`."""


def choose_gradient_dtype(logits: torch.dtype, reduction: str) -> torch.dtype:
    """Return the type in which the gradient is kept until backward multiplies it by grad_output.

    It is the logits' own type, so that nothing is converted, with two exceptions. float16 would
    round small gradients to 0 before a GradScaler's factor (65536) can make them larger. And with
    "none", each bfloat16 gradient is multiplied by its own factor, which rounds it a second time.

        logits     mean, sum   none
        float32    float32     float32
        bfloat16   bfloat16    float32
        float16    float32     float32
    """
    if logits == torch.float16 or (reduction == "none" and logits == torch.bfloat16):
        return torch.float32
    return logits


def compute_value_and_gradient(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the loss and its gradient, with the division of "mean" in both.

    Args:
        logits, targets: (N, L).
        pos_weight: (L,), () or None.
        divisor: () that the mean divides by; None: the number of known targets.
        form: the member of the family.
        reduction: "mean", "sum" or "none".
        gradient: False: the gradient is not needed, and an empty tensor stands for it.

    Returns:
        The loss, () or (N, L), float32 (float64 for float64 logits); the gradient, (N, L) or
        (0,), in `choose_gradient_dtype`'s type.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    saved = choose_gradient_dtype(logits.dtype, reduction)
    if reduction == "none" or logits.device.type != "cpu":
        values, slopes = _compute_whole(
            logits.to(dtype), targets, pos_weight, divisor, form, reduction
        )
        return values, slopes.to(saved) if gradient else slopes.new_empty(0, dtype=saved)
    # NaN is unknown too, but compares as False: hence `not ... >= 0`.
    masked = targets.dtype.is_signed and targets.numel() > 0 and not float(targets.amin()) >= 0
    scale = 1.0
    if reduction == "mean":
        scale = (
            1 / _count_known(targets, masked) if divisor is None else float(divisor.reciprocal())
        )
    hard = pos_weight is None and form == PLAIN and _is_hard(targets)
    if hard and logits.numel() < SMALL:
        total, grad = _compute_small(logits, targets, masked, scale, dtype)
        if not masked or math.isfinite(total):
            loss = torch.scalar_tensor(total * scale, dtype=dtype, device=logits.device)
            return loss, grad.to(saved) if gradient else grad.new_empty(0, dtype=saved)
    settings: dict[str, Any] = {"masked": masked, "dtype": dtype, "scale": scale}
    every: Callable[..., float] = partial(_compute_block, **settings, weight=pos_weight, form=form)
    losses = partial(_compute_hard_block, **settings) if hard else every
    grad = torch.empty(logits.shape if gradient else 0, dtype=saved, device=logits.device)
    total = 0.0
    for block in _split_blocks(logits, targets, grad if gradient else None):
        part = losses(*block)
        # An infinite logit with an unknown target makes the shorter way fail: inf * 0 is NaN. The
        # general way sets the losses of unknown targets to 0 after computing them.
        if masked and not math.isfinite(part):
            part = every(*block)
        total += part
    return torch.scalar_tensor(total * scale, dtype=dtype, device=logits.device), grad


def _compute_whole(
    x: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Compute loss and gradient without blocks, for "none" and for devices other than the CPU.

    Nothing here depends on values that the host would have to read back from the device.
    """
    unknown = ~(targets >= 0)
    values, slopes = compute_elementwise(x.contiguous(), targets, unknown, pos_weight, form)
    if reduction == "mean":
        count = (~unknown).sum().clamp(min=1) if divisor is None else divisor
        values, slopes = values.div_(count), slopes.div_(count)
    return values if reduction == "none" else values.sum(), slopes


def _compute_small(
    x: Tensor, targets: Tensor, masked: bool, scale: float, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """Return the sum of the losses for targets of 0, 1 and -1, and its gradient times `scale`.

    It uses the fewest operations: their number decides the time of a small batch.
    """
    sign = _compute_sign(targets).to(dtype)
    known = targets >= 0 if masked else None
    if known is not None:
        sign.mul_(known)
    z = x * sign
    losses = softplus(z, 1, 40)
    total = _sum_finite(losses if known is None else losses.mul_(known))
    return total, z.sigmoid_().mul_(sign.mul_(scale))


def _count_known(targets: Tensor, masked: bool) -> int:
    """Return the number of known targets, at least 1."""
    if not masked:
        return max(1, targets.numel())
    return max(1, sum(int((t >= 0).sum()) for _, t, _ in _split_blocks(targets, targets, None)))


def _split_blocks(
    logits: Tensor, targets: Tensor, grad: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield the same rows of all three tensors, about BLOCK elements at a time.

    With T threads a block has T / 4 times as many elements if that is more: they share its work.
    """
    if logits.numel() <= BLOCK:
        yield logits, targets, grad
        return
    rows = max(1, max(BLOCK, BLOCK // 4 * torch.get_num_threads()) // logits.shape[1])
    for start in range(0, len(logits), rows):
        block = slice(start, start + rows)
        yield logits[block], targets[block], None if grad is None else grad[block]


# ---- one block: returns the sum of its losses, writes its gradient times the scale into `grad`


def _compute_block(
    x: Tensor,
    targets: Tensor,
    grad: Tensor | None,
    *,
    masked: bool,
    dtype: torch.dtype,
    scale: float,
    weight: Tensor | None,
    form: Form,
) -> float:
    """Compute one block for any member of the family, and any targets."""
    unknown = ~(targets >= 0) if masked else None
    buffers = iter(_take_buffers(x, dtype))
    values, slopes = compute_elementwise(x.to(dtype), targets, unknown, weight, form, buffers)
    if grad is not None:
        grad.copy_(slopes.mul_(scale))
    return _sum_finite(values)


def _compute_hard_block(
    x: Tensor,
    targets: Tensor,
    grad: Tensor | None,
    *,
    masked: bool,
    dtype: torch.dtype,
    scale: float,
) -> float:
    """Compute one block of the plain loss for targets of 0, 1 and -1, by the shorter way above.

    For an unknown target z is 0 and its e is set to 0, so that it adds nothing to the sum.
    """
    sign, a, b, z, *_ = _take_buffers(x, dtype)
    sign.copy_(_compute_sign(targets))
    known = (targets + 1).clamp_(0, 1) if masked else None
    if known is not None:
        sign.mul_(known)
    # If it fits, the memory of the gradient itself holds z and then sigmoid(z): one copy less.
    z = grad if grad is not None and grad.dtype == dtype else z
    torch.mul(x, sign, out=z)
    total = _sum_finite(torch.clamp(z, min=0, out=a))
    chance = z.sigmoid_()
    rest = torch.sub(1, chance, out=a)
    # exp(-|z|) = min(p, 1 - p) / max(p, 1 - p), for p = sigmoid(z): cheaper than another exp.
    e = torch.minimum(chance, rest, out=b).div_(torch.maximum(chance, rest, out=rest))
    total += _sum_finite(_join_pairs((e if known is None else e.mul_(known)).view(-1)).log1p_())
    if grad is not None:
        chance.mul_(sign).mul_(scale)
        if grad is not z:
            grad.copy_(chance)
    return total


def _compute_sign(targets: Tensor) -> Tensor:
    """Return the sign of z: 1 for a target of 0, -1 for a target of 1."""
    if targets.dtype in (torch.bool, torch.uint8):
        targets = targets.view(torch.int8)
    return torch.rsub(targets, 1, alpha=2)


def _take_buffers(like: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return seven buffers with the shape of a block; this thread keeps them for the next block."""
    kept: dict[torch.dtype, list[Tensor]] = _KEPT.__dict__.setdefault("buffers", {})
    if type(like) is not Tensor:  # a subclass may belong to a tracer, which must not see old memory
        return [torch.empty_like(like, dtype=dtype) for _ in range(7)]
    if dtype not in kept:
        with torch.inference_mode(False):
            kept[dtype] = [torch.empty(0, dtype=dtype, device="cpu") for _ in range(7)]
    return [buffer.resize_(like.shape) for buffer in kept[dtype]]


def compute_elementwise(
    x: Tensor,
    targets: Tensor,
    unknown: Tensor | None,
    pos_weight: Tensor | None,
    form: Form,
    buffers: Iterator[Tensor | None] = repeat(None),  # noqa: B008 (endless, holds nothing)
) -> tuple[Tensor, Tensor]:
    """Compute loss and derivative of every element; on any device, without synchronization.

    Args:
        x: (N, L) logits, float32 or float64.
        targets, pos_weight, form: see `compute_value_and_gradient`.
        unknown: (N, L) bool, the targets that are unknown: their loss and derivative are 0, even
            where the logit is not finite. None: all targets are known.
        buffers: temporaries and results are written into these; a None asks for fresh memory.

    Returns:
        values (N, L) and slopes (N, L), the derivatives with respect to x.
    """
    to_positive, to_negative = _weigh_sides(targets, x.dtype, pos_weight, form, buffers)
    p = torch.sigmoid(x, out=next(buffers))
    q = torch.neg(x, out=next(buffers)).sigmoid_()
    above = torch.maximum(p, q, out=next(buffers))
    tail = torch.minimum(p, q, out=next(buffers)).div_(above).log1p_()  # log1p(exp(-|x|))
    above = torch.clamp(x, min=0, out=above).add_(tail)  # softplus(x)
    below = tail.sub_(torch.clamp(x, max=0, out=next(buffers)))  # softplus(-x)
    if not form.focused:
        values = above.mul_(to_negative).addcmul_(below, to_positive)
        slopes = p.mul_(to_negative).addcmul_(q, to_positive, value=-1)
        return _zero_unknown_(unknown, values, slopes)
    fade = torch.exp(-form.gamma_pos * above)  # q^gamma, the focusing factor of positives
    positive = fade * below
    rise = fade * (form.gamma_pos * p * below + q)
    negative, slope = _compute_negative(p, q, above, below, form)
    values = negative.mul_(to_negative).addcmul_(positive, to_positive)
    slopes = slope.mul_(to_negative).addcmul_(rise, to_positive, value=-1)
    return _zero_unknown_(unknown, values, slopes)


def _weigh_sides(
    targets: Tensor,
    dtype: torch.dtype,
    pos_weight: Tensor | None,
    form: Form,
    buffers: Iterator[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Return (N, L) weights of the positive and of the negative term: w * t and v * (1 - t)."""
    s = form.label_smoothing
    into = next(buffers)
    to_positive = targets.to(dtype, copy=True) if into is None else into.copy_(targets)
    to_negative = torch.sub(1, to_positive, out=next(buffers))
    if s:  # each side by itself: 1 - (smoothed t) would cancel
        to_positive.mul_(1 - s).add_(s / 2)
        to_negative.mul_(1 - s).add_(s / 2)
    if form.negative_weight != 1:
        to_negative.mul_(form.negative_weight)
    if pos_weight is not None:
        to_positive.mul_(pos_weight.to(dtype))
    return to_positive, to_negative


def _zero_unknown_(unknown: Tensor | None, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    if unknown is not None:
        values.masked_fill_(unknown, 0)
        slopes.masked_fill_(unknown, 0)
    return values, slopes


def _compute_negative(
    p: Tensor, q: Tensor, above: Tensor, below: Tensor, form: Form
) -> tuple[Tensor, Tensor]:
    """Return p_m^gamma * -log(1 - p_m), and its derivative with respect to the logit."""
    gamma = form.gamma_neg
    if not form.clip:
        fade = torch.exp(-gamma * below)  # p^gamma
        return fade * above, fade * (gamma * q * above + p)
    p_m = (p - form.clip).clamp_(min=0)
    counts = p_m > 0
    p_m.masked_fill_(~counts, 0.5)  # any value that can be divided by; `fade` is 0 there
    fade = p_m.pow(gamma).mul_(counts)
    rest = torch.where(p_m > 0.5, q + form.clip, 1 - p_m)  # 1 - p_m would lose a small q
    surprise = -torch.where(p_m > 0.5, rest.log(), torch.log1p(-p_m))
    return fade * surprise, fade * p * q * (gamma * surprise / p_m + 1 / rest)


def _is_hard(targets: Tensor) -> bool:
    """Return True where every target is a whole number: 0, 1, or negative, which is unknown."""
    return not targets.is_floating_point() or not targets.frac().any()


def _join_pairs(e: Tensor) -> Tensor:
    """Return 32 times fewer numbers with the same sum of log1p: pairs become a + b + a*b.

    `e` is overwritten. Of an odd count the middle number has no partner, and stays as it is until
    the next round: 5 numbers -> 3 -> 2 -> 1.
    """
    for _ in range(5):
        half = len(e) // 2
        a, b = e[-half:], e[:half]
        b.addcmul_(a, b).add_(a)
        e = e[: len(e) - half]
    return e


def _sum_finite(values: Tensor) -> float:
    """Return the sum, in float64 where float32 overflows: the mean may still be finite."""
    total = float(values.sum())
    return total if math.isfinite(total) else float(values.double().sum())
