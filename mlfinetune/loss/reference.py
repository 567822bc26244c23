"""The definition of the loss family, in plain differentiable torch: test oracle and baseline.

For a logit x and a target t in [0, 1] the sigmoid cross entropy is

    loss(x, t) = max(x, 0) - t*x + log1p(exp(-|x|))

which is -t*log(sigmoid(x)) - (1-t)*log(1 - sigmoid(x)) without its overflow. It is computed as

    loss(x, t) = v*(1-t) * softplus(x) + w*t * softplus(-x)      softplus(x) = max(x, 0) + log1p(e)

with e = exp(-|x|), v the weight of negatives and w of positives. For v = w = 1 it equals the line
above. All of its terms have one sign, so nothing cancels, not even in the derivative. It uses
`log1p`, because `log(1 + e)` loses a small e, and the gradient with it.

Focal and asymmetric loss multiply each side by a focusing factor: easy targets weigh less. With
p = sigmoid(x), q = 1 - p and p_m = max(p - clip, 0):

    loss(x, t) = v*(1-t) * p_m^gamma_neg * -log(1 - p_m)  +  w*t * q^gamma_pos * softplus(-x)

Gammas and clip of 0 give the plain loss; equal gammas with w = alpha, v = 1 - alpha the focal loss.
The derivative is that of the whole expression: the focusing factor is differentiated too.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """Settings that select one member of the loss family; the defaults are the plain loss.

    Attributes:
        label_smoothing: s; targets become t*(1-s) + s/2.
        gamma_neg, gamma_pos: focusing exponents of negatives and positives.
        clip: subtracted from the probability of negatives; where p <= clip they cost nothing.
        negative_weight: v, the weight of negatives.
    """

    label_smoothing: float = 0.0
    gamma_neg: float = 0.0
    gamma_pos: float = 0.0
    clip: float = 0.0
    negative_weight: float = 1.0

    @property
    def focused(self) -> bool:
        """True where there is a focusing factor or a clip."""
        return bool(self.gamma_neg or self.gamma_pos or self.clip)


def sigmoid_cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    gamma_neg: float = 0.0,
    gamma_pos: float = 0.0,
    clip: float = 0.0,
    negative_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Compute any member of the loss family, term by term, as this module's docstring defines it.

    Arguments are those of `mlfinetune.loss.sigmoid_cross_entropy` and of `Form`. The computation is
    in the type of `logits`: give float64 for an oracle.

    Source: the log-sum-exp form of binary cross entropy; Lin et al. 2017, Focal Loss for Dense
    Object Detection; Ben-Baruch et al. 2021, Asymmetric Loss for Multi-Label Classification.
    """
    known = targets >= 0
    t = torch.where(known, targets.to(logits.dtype), 0)
    s, w = label_smoothing, 1 if pos_weight is None else pos_weight.to(logits.dtype)
    to_positive, to_negative = t * (1 - s) + s / 2, (1 - t) * (1 - s) + s / 2
    loss = negative_weight * to_negative * _negative_term(logits, gamma_neg, clip)
    loss = loss + w * to_positive * _positive_term(logits, gamma_pos)
    loss = torch.where(known, loss, 0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / known.sum().clamp(min=1)


def _positive_term(x: Tensor, gamma: float) -> Tensor:
    """Return q^gamma * softplus(-x), where log(q) = -softplus(x)."""
    return torch.exp(-gamma * _softplus(x)) * _softplus(-x)


def _negative_term(x: Tensor, gamma: float, clip: float) -> Tensor:
    """Return p_m^gamma * -log(1 - p_m)."""
    if not clip:
        return torch.exp(-gamma * _softplus(-x)) * _softplus(x)
    p = torch.sigmoid(x)
    above = p > clip
    # Where p <= clip the result is 0. But autograd multiplies that branch's derivative by 0, and
    # 0 * inf is NaN. So p_m has any value there whose derivative is finite.
    p_m = torch.where(above, p - clip, 0.5)
    return torch.where(above, -(p_m**gamma) * torch.log1p(-p_m), 0)


def _softplus(x: Tensor) -> Tensor:
    """Return max(x, 0) + log1p(exp(-|x|)); `maximum`, unlike `clamp`, has the slope 1/2 at 0."""
    return torch.maximum(x, torch.zeros_like(x)) + torch.log1p(torch.exp(-x.abs()))
