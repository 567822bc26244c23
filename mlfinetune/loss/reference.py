"""The definition of the loss, in plain differentiable torch: oracle, baseline, slow path.

For a logit x and a target t in [0, 1]:

    loss(x, t) = max(x, 0) - t*x + log1p(exp(-|x|))

which is -t*log(sigmoid(x)) - (1-t)*log(1 - sigmoid(x)) without its overflow. With a weight w
on positives, using softplus(x) = max(x, 0) + log1p(exp(-|x|)):

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
    t = t * (1 - label_smoothing) + label_smoothing / 2
    if pos_weight is None:
        loss = logits.clamp(min=0) - t * logits + torch.log1p(torch.exp(-logits.abs()))
    else:
        tail = torch.log1p(torch.exp(-logits.abs()))
        w = pos_weight.to(logits.dtype)
        loss = (1 - t) * (logits.clamp(min=0) + tail) + w * t * ((-logits).clamp(min=0) + tail)
    loss = torch.where(known, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / known.sum().clamp(min=1)
