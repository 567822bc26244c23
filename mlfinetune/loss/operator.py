"""The loss as an operator of torch: chooses the backend, and connects it to autograd.

    forward    logits, targets            ->  loss, gradient, correction
    backward   gradient *= grad_output * correction

The gradient is computed in the forward pass. Backward multiplies it by the factor that is missing.
If that factor is 1, nothing is written; on a GPU the device checks this itself, without
synchronization.

There is no second derivative, and asking for one is an error. (Exception: in compiled code where
another term of the loss has a second derivative, no error is raised.)

torch.compile calls the operator mlfinetune::sigmoid_cross_entropy. Eager code calls the same
functions through an autograd.Function, because torch's dispatcher takes as long as the arithmetic
of a small batch.
"""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from mlfinetune.loss import blocks
from mlfinetune.loss.reference import Form


def choose_backend(
    wanted: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[str, str]:
    """Return the backend, "triton" or "torch", and the reason for it, for the log.

    "auto" takes Triton's kernel on a GPU where the package triton is installed.

    Args:
        wanted: "auto", "triton" or "torch".
        device, dtype: of the logits.

    Raises:
        ValueError: `wanted` is "triton" and it cannot run, or it is none of the three.
    """
    if wanted == "torch":
        return wanted, "as configured"
    if wanted not in ("auto", "triton"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'torch', got {wanted!r}")
    if wanted == "auto" and device.type == "cpu":
        return "torch", "on a CPU"
    lacks = _find_obstacle(device, dtype)
    if lacks is None:
        return "triton", "as configured" if wanted == "triton" else "on a GPU"
    if wanted == "auto":
        return "torch", f"Triton's kernel {lacks}"
    raise ValueError(f"backend 'triton': Triton's kernel {lacks}; use 'auto' or 'torch'")


def _find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Say why Triton's kernel cannot run; None: it can."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU"
    if device.type not in ("cpu", "cuda"):
        return f"does not run on {device.type}"
    if dtype == torch.float64:
        return "does not compute in float64"
    return None if _HAS_TRITON else "needs the package triton, which is not installed"


def try_triton(device: torch.device) -> str | None:
    """Compile and run Triton's kernel once; return why that fails, or None."""
    from mlfinetune.loss import kernel

    one = torch.zeros(1, 1, device=device)
    try:
        kernel.compute_value_and_gradient(one, one, None, None, Form(), "mean", True)
    except Exception as error:  # no C compiler, no Python.h, a GPU too old: whatever it raises
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return None


_HAS_TRITON = importlib.util.find_spec("triton") is not None


# ---- forward and backward, with either backend ------------------------------------------


def _compute_forward(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    backend: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the loss, its gradient (empty if not wanted) and the correction.

    The correction is a factor () by which the gradient still has to be multiplied; None: 1.
    """
    if backend == "triton":
        from mlfinetune.loss import kernel

        return kernel.compute_value_and_gradient(
            logits, targets, pos_weight, divisor, form, reduction, gradient
        )
    loss, grad = blocks.compute_value_and_gradient(
        logits, targets, pos_weight, divisor, form, reduction, gradient
    )
    return loss, grad, None


def _rescale_gradient_(
    grad: Tensor, grad_output: Tensor, correction: Tensor | None, backend: str
) -> None:
    """Multiply grad by grad_output * correction in place; write nothing where that is 1."""
    if backend == "triton":
        from mlfinetune.loss import kernel

        assert correction is not None
        kernel.rescale_(grad, grad_output, correction)
    elif grad.device.type != "cpu" or float(grad_output) != 1:
        grad.mul_(grad_output)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "sigmoid_cross_entropy has no second derivative: its gradient is computed in the "
            "forward pass; use mlfinetune.loss.reference where you need create_graph=True"
        )


# ---- eager ------------------------------------------------------------------------------


class _Eager(torch.autograd.Function):
    """The loss for eager code.

    Backward returns the memory that forward saved, scaled in place. So it can run only once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: tuple[Any, ...]) -> Tensor:
        loss, grad, correction = _compute_forward(logits, *rest)
        ctx.save_for_backward(grad, correction)
        ctx.backend, ctx.dtype, ctx.taken = rest[-2], logits.dtype, False
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivative()
        if ctx.taken:
            raise RuntimeError(
                "the gradient of this loss was taken before, and given away; compute the loss again"
            )
        grad, correction = ctx.saved_tensors
        # With "none", grad_output has a factor for each loss. With float64, torch's gradcheck calls
        # backward repeatedly. Both keep the saved gradient; their correction is 1.
        if grad_output.dim() or grad.dtype == torch.float64:
            return (grad * grad_output).to(ctx.dtype), None
        ctx.taken = True
        _rescale_gradient_(grad, grad_output, correction, ctx.backend)
        return grad.to(ctx.dtype), None


# ---- torch.compile ----------------------------------------------------------------------


@torch.library.custom_op("mlfinetune::sigmoid_cross_entropy", mutates_args=())
def _operator(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: list[float],
    reduction: str,
    backend: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute loss, gradient and correction, as one node of torch.compile's graph."""
    loss, grad, correction = _compute_forward(
        logits, targets, pos_weight, divisor, Form(*form), reduction, backend, gradient
    )
    return loss, grad, loss.new_ones(()) if correction is None else correction


@_operator.register_fake
def _fake_forward(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: list[float],
    reduction: str,
    backend: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty tensors with the shapes and types of the results; torch.compile traces these."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = logits.shape if reduction == "none" else ()
    saved = blocks.choose_gradient_dtype(logits.dtype, reduction)
    grad = logits.new_empty(logits.shape if gradient else (0,), dtype=saved)
    return logits.new_empty(shape, dtype=dtype), grad, logits.new_empty((), dtype=dtype)


def _save_for_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.backend, ctx.dtype = inputs[-2], inputs[0].dtype


def _operator_backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    _refuse_second_derivative()
    grad, correction = ctx.saved_tensors
    # A plain product, not in place: the compiler can fuse it with the operations that follow.
    grad = (grad * (grad_output * correction)).to(ctx.dtype)
    return grad, None, None, None, None, None, None, None


_operator.register_autograd(_operator_backward, setup_context=_save_for_backward)


def compute_fused(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    backend: str,
) -> Tensor:
    """Compute the loss with one backend; it can be differentiated once.

    Args:
        logits, targets: (N, L).
        pos_weight: (L,), () or None.
        divisor: () that the mean divides by; None: the number of known targets.
        form: the member of the family.
        reduction: "mean", "sum" or "none".
        backend: "triton" or "torch".
    """
    gradient = logits.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        loss: Tensor = _operator(
            logits, targets, pos_weight, divisor, list(form), reduction, backend, gradient
        )[0]
        return loss
    if not gradient:
        with torch.no_grad():
            return _compute_forward(
                logits, targets, pos_weight, divisor, form, reduction, backend, False
            )[0]
    loss = _Eager.apply(logits, (targets, pos_weight, divisor, form, reduction, backend, True))
    return loss
