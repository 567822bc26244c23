"""The losses: sigmoid cross entropy, asymmetric and focal loss; `build_loss` binds their settings.

logits (..., L), targets (..., L) in [0, 1] or -1  ->  scalar, or (..., L) with reduction="none"
Start at reference.py, the definition; operator.py chooses who computes: blocks.py, or kernel.py.

docs/loss.md lists the steps of adding a loss. The tests compare blocks.py and kernel.py with
reference.py.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mlfinetune.loss.operator import choose_backend, compute_fused, try_triton
from mlfinetune.loss.reference import Form

__all__ = [
    "Loss",
    "asymmetric_loss",
    "build_loss",
    "choose_backend",
    "focal_loss",
    "sigmoid_cross_entropy",
    "try_triton",
]

Loss = Callable[..., Tensor]
"""Function loss(logits, targets, divisor=...) -> Tensor."""


def sigmoid_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    divisor: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Numerically stable sigmoid cross entropy; unknown targets are masked.

    Computes `max(x,0) - t*x + log1p(exp(-|x|))` and its gradient in one pass, in float32
    whatever the input type (float64 for float64 logits). Finite for every finite logit.

    Args:
        logits: (..., L) floating point; a sigmoid must not have been applied.
        targets: the shape of `logits`; values in [0, 1], also soft ones such as 0.3. A negative
            value or NaN means unknown. No gradient is computed for targets, nor for pos_weight.
        pos_weight: (L,) or a scalar tensor: weight of the positive part of each label's loss.
        label_smoothing: s in [0, 1): targets become t*(1-s) + s/2.
        reduction: "mean" over the known targets (0 where none is known), "sum", or "none".
        divisor: positive scalar tensor that "mean" divides by, instead of the number of its own
            known targets. Give it where the batch is a part of a larger one.
        backend: "auto" (Triton's kernel on a GPU, plain torch elsewhere), "triton" or "torch".

    Returns:
        A float32 (float64 for float64 logits) scalar, or the shape of `logits` for "none",
        where unknown targets give 0. Its gradient can be taken once; with "none" or float64, any
        number of times.

    Raises:
        ValueError: shapes or devices that differ, integer logits, targets or weights that need a
            gradient, settings out of range, or a backend that is not available.

    Source: the log-sum-exp form of binary cross entropy; see `mlfinetune.loss.reference`.
    """
    form = Form(label_smoothing=label_smoothing)
    return _check_and_compute(logits, targets, pos_weight, form, reduction, divisor, backend)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    divisor: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Asymmetric loss: easy negatives weigh less, negatives with p below `clip` weigh nothing.

    With p = sigmoid(x), a positive costs (1-p)^gamma_pos * -log(p) and a negative
    p_m^gamma_neg * -log(1-p_m), where p_m = max(p - clip, 0). Gammas and clip of 0 give
    `sigmoid_cross_entropy`. The gradient is that of the whole expression.

    Args:
        gamma_neg, gamma_pos: focusing exponents, at least 0.
        clip: in [0, 1).
        Other arguments, returns and errors: see `sigmoid_cross_entropy`.

    Source: Ben-Baruch et al. 2021, Asymmetric Loss for Multi-Label Classification.
    """
    form = Form(label_smoothing, gamma_neg, gamma_pos, clip)
    return _check_and_compute(logits, targets, pos_weight, form, reduction, divisor, backend)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    divisor: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Focal loss: well classified targets weigh less, and the less the larger `gamma` is.

    With p = sigmoid(x), a positive costs alpha * (1-p)^gamma * -log(p) and a negative
    (1-alpha) * p^gamma * -log(1-p).

    Args:
        gamma: focusing exponent, at least 0.
        alpha: in (0, 1), the weight of positives; negatives weigh 1 - alpha. None: both weigh 1.
        Other arguments, returns and errors: see `sigmoid_cross_entropy`.

    Source: Lin et al. 2017, Focal Loss for Dense Object Detection.
    """
    form = Form(label_smoothing, gamma, gamma)
    if alpha is not None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha}")
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        share = logits.new_full((), alpha, dtype=exact)
        pos_weight = share if pos_weight is None else share * pos_weight
        form = form._replace(negative_weight=1 - alpha)
    return _check_and_compute(logits, targets, pos_weight, form, reduction, divisor, backend)


def build_loss(
    name: str = "sce",
    *,
    pos_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    backend: str = "auto",
    **settings: float,
) -> Loss:
    """Return the loss with its settings bound: call it with (logits, targets, divisor=...).

    Args:
        name: "sce", "asl" or "focal".
        pos_weight: (L,) on the device of the logits, or None.
        label_smoothing: in [0, 1).
        backend: "auto", "triton" or "torch".
        settings: of `asymmetric_loss` or `focal_loss`, such as `gamma=2.0`.

    Raises:
        ValueError: pos_weight is negative or not finite.
        KeyError: there is no loss of this name.
    """
    if pos_weight is not None and not (torch.isfinite(pos_weight) & (pos_weight >= 0)).all():
        raise ValueError("pos_weight must be finite and not negative")
    losses: dict[str, Loss] = {
        "sce": sigmoid_cross_entropy,
        "asl": asymmetric_loss,
        "focal": focal_loss,
    }
    return partial(
        losses[name],
        pos_weight=pos_weight,
        label_smoothing=label_smoothing,
        backend=backend,
        **settings,
    )


def _check_and_compute(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    form: Form,
    reduction: str,
    divisor: Tensor | None,
    backend: str,
) -> Tensor:
    """Check the arguments, choose the backend, and compute on (N, L) views."""
    if logits.shape != targets.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} differ")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    _check_given("targets", targets, logits, logits.shape)
    _check_given("pos_weight", pos_weight, logits, logits.shape[-1:])
    _check_given("divisor", divisor, logits, ())
    _check_form(form)
    backend, _ = choose_backend(backend, logits.device, logits.dtype)
    if logits.dim() == 2:
        return compute_fused(logits, targets, pos_weight, divisor, form, reduction, backend)
    labels = logits.shape[-1] if logits.dim() else 1
    shape = math.prod(logits.shape[:-1]), labels
    flat = logits.reshape(shape), targets.reshape(shape)
    loss = compute_fused(*flat, pos_weight, divisor, form, reduction, backend)
    return loss.reshape(logits.shape) if reduction == "none" else loss


def _check_given(name: str, given: Tensor | None, logits: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless `given` is a constant, of `shape` or (), on the logits' device."""
    if given is None:
        return
    if given.dim() and given.shape != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, wanted () or {tuple(shape)}")
    if given.device != logits.device:
        raise ValueError(f"{name} is on {given.device}, and logits are on {logits.device}")
    if given.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} needs a gradient, and none is computed for it: detach it")


def _check_form(form: Form) -> None:
    """Raise a ValueError where a setting is out of its range."""
    if not 0 <= form.label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {form.label_smoothing}")
    if not (0 <= form.gamma_neg < math.inf and 0 <= form.gamma_pos < math.inf):
        raise ValueError(
            f"gammas must be at least 0, got gamma_neg {form.gamma_neg}, gamma_pos {form.gamma_pos}"
        )
    if not 0 <= form.clip < 1:
        raise ValueError(f"clip must be in [0, 1), got {form.clip}")
