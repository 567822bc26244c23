"""The loss: `sigmoid_cross_entropy`, and `build_loss` that binds its settings.

logits (B, L), targets (B, L) in [0, 1] or -1  ->  scalar, or (B, L) with reduction="none"
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mlfinetune.loss.fused import FusedSigmoidCrossEntropy

__all__ = ["Loss", "build_loss", "sigmoid_cross_entropy"]

Loss = Callable[..., Tensor]
"""loss(logits, targets, reduction=...) -> Tensor."""


def sigmoid_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Numerically stable sigmoid cross entropy; unknown targets are masked.

    Computes `max(x,0) - t*x + log1p(exp(-|x|))` and its gradient in one pass, in float32
    whatever the input type (float64 for float64 logits). Finite for every finite logit.

    Args:
        logits: (..., L) floating point; a sigmoid must not have been applied.
        targets: the shape of `logits`; values in [0, 1] (soft ones too), negative is unknown.
        pos_weight: (L,) or a scalar tensor: weight of the positive part of each label's loss.
        label_smoothing: s in [0, 1): targets become t*(1-s) + s/2.
        reduction: "mean" over the known targets (0 where none is known), "sum", or "none".

    Returns:
        A float32 (float64 for float64 logits) scalar, or the shape of `logits` for "none",
        where unknown targets give 0.

    Raises:
        ValueError: shapes that differ, a pos_weight of another shape, integer logits, or an
            unknown reduction.

    Source: the log-sum-exp form of binary cross entropy; see `mlfinetune.loss.reference`.
    """
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if pos_weight is not None and pos_weight.shape not in ((), logits.shape[-1:]):
        raise ValueError(
            f"pos_weight has shape {tuple(pos_weight.shape)}, wanted () or {logits.shape[-1:]}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    loss: Tensor = FusedSigmoidCrossEntropy.apply(
        logits, targets, pos_weight, label_smoothing, reduction
    )
    return loss


def build_loss(pos_weight: Tensor | None = None, label_smoothing: float = 0.0) -> Loss:
    """The loss with its settings bound: call it with (logits, targets, reduction=...).

    Args:
        pos_weight: (L,) on the device of the logits, or None.
        label_smoothing: in [0, 1).
    """
    if pos_weight is not None and not torch.isfinite(pos_weight).all():
        raise ValueError("pos_weight must be finite")
    return partial(sigmoid_cross_entropy, pos_weight=pos_weight, label_smoothing=label_smoothing)
