"""The definition of the loss, in plain differentiable torch: oracle, baseline, slow path.

For a logit x and a target t in [0, 1]:

    loss(x, t) = max(x, 0) - t*x + log1p(exp(-|x|))

which is -t*log(sigmoid(x)) - (1-t)*log(1 - sigmoid(x)) without its overflow. With
softplus(x) = max(x, 0) + log1p(exp(-|x|)) it is the same as the form below for w = 1, in which
nothing cancels, not even in the derivative, and to which a weight w on positives belongs:

    loss(x, t) = (1-t)*softplus(x) + w*t*softplus(-x)

`log1p`, because `log(1 + y)` loses small y and the gradient with it.
"""

import torch
from torch import Tensor


def sigmoid_cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The same contract as `mlfinetune.loss.sigmoid_cross_entropy`, computed term by term.

    Works in the type of `logits`: give float64 for an oracle.
    """
    known = targets >= 0
    t = torch.where(known, targets.to(logits.dtype), 0)
    s, w = label_smoothing, 1 if pos_weight is None else pos_weight.to(logits.dtype)
    to_positive, to_negative = t * (1 - s) + s / 2, (1 - t) * (1 - s) + s / 2
    loss = to_negative * _softplus(logits) + w * to_positive * _softplus(-logits)
    loss = torch.where(known, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / known.sum().clamp(min=1)


def _softplus(x: Tensor) -> Tensor:
    """max(x, 0) + log1p(exp(-|x|)); `maximum`, unlike `clamp`, has the slope 1/2 at 0."""
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p(torch.exp(-x.abs()))
