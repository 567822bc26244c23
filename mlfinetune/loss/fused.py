"""Value and gradient of the sigmoid cross entropy in one pass, with plain torch operations.

With e = exp(-|x|), which is at most 1, every quantity is a sum of terms of one sign:

    softplus( x) = max( x, 0) + log1p(e)        sigmoid( x) = (1 if x >= 0 else e) / (1 + e)
    softplus(-x) = max(-x, 0) + log1p(e)        sigmoid(-x) = (e if x >= 0 else 1) / (1 + e)

    loss = (1-t)*softplus(x) + w*t*softplus(-x)
    d loss / dx = (1-t)*sigmoid(x) - w*t*sigmoid(-x)

so that nothing cancels: the gradient of a confident, right answer is e, not 0. The gradient
is computed in the forward pass, from the same e; backward multiplies it by grad_output on
the device, without a synchronisation. float32 inside (float64 for float64 logits).
"""

from typing import Any

import torch
from torch import Tensor


class FusedSigmoidCrossEntropy(torch.autograd.Function):
    """apply(logits, targets, pos_weight, label_smoothing, reduction)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        pos_weight: Tensor | None,
        label_smoothing: float,
        reduction: str,
    ) -> Tensor:
        """The loss; its gradient is saved."""
        x = logits if logits.dtype == torch.float64 else logits.float()
        known = targets >= 0
        t, s = targets.to(x.dtype), label_smoothing
        to_positive, to_negative = t, 1 - t
        if s:  # each side by itself: 1 - (t smoothed) would cancel
            to_positive, to_negative = t * (1 - s) + s / 2, to_negative * (1 - s) + s / 2
        if pos_weight is not None:
            to_positive = to_positive * pos_weight.to(x.dtype)
        to_positive = torch.where(known, to_positive, 0)
        to_negative = torch.where(known, to_negative, 0)

        loss = _loss(x, to_positive, to_negative)
        scale = known.sum().clamp(min=1) if reduction == "mean" else None
        if ctx.needs_input_grad[0]:
            grad = _grad(x, to_positive, to_negative)
            ctx.save_for_backward(grad if scale is None else grad.div_(scale))
            ctx.dtype = logits.dtype
        if reduction == "none":
            return loss
        return loss.sum() if scale is None else loss.div_(scale).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The saved gradient, scaled, and rounded to the type of the logits last."""
        if torch.is_grad_enabled():
            raise RuntimeError("sigmoid_cross_entropy has no second derivative")
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.dtype), None, None, None, None


def _loss(x: Tensor, to_positive: Tensor, to_negative: Tensor) -> Tensor:
    tail = torch.log1p(torch.exp(-x.abs()))
    loss = (x.clamp(min=0) + tail).mul_(to_negative)
    return loss.addcmul_(tail.sub_(x.clamp(max=0)), to_positive)


def _grad(x: Tensor, to_positive: Tensor, to_negative: Tensor) -> Tensor:
    e = torch.exp(-x.abs())
    above, below = torch.where(x >= 0, 1, e), torch.where(x >= 0, e, 1)
    return (to_negative * above).sub_(to_positive * below).div_(1 + e)
