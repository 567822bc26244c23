"""The loss as an operator of torch: which backend computes it, and its gradient.

    forward    logits, targets            ->  loss, gradient, correction
    backward   gradient *= grad_output * correction

The gradient is computed in the forward pass. The factor that it still lacks is known in backward;
where it is 1 nothing is touched, and the device decides that, without a synchronisation.

There is no second derivative, and asking for one is an error (compiled code, where another term has
one, does not notice).

torch.compile calls the operator mlfinetune::sigmoid_cross_entropy; eager code calls what is behind
it through an autograd.Function, because the dispatcher costs as much as a small batch's arithmetic.
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
    """`triton` or `torch`, and why; `auto` takes Triton's kernel on a GPU that has triton.

    Args:
        wanted: "auto", "triton" or "torch".
        device, dtype: of the logits.

    Raises:
        ValueError: what was asked for cannot be had.
    """
    if wanted == "torch":
        return wanted, "as configured"
    if wanted not in ("auto", "triton"):
        raise ValueError(f"backend must be 'auto', 'triton' or 'torch', got {wanted!r}")
    if wanted == "auto" and device.type == "cpu":
        return "torch", "on a CPU"
    lacks = _lacks(device, dtype)
    if lacks is None:
        return "triton", "as configured" if wanted == "triton" else "on a GPU"
    if wanted == "auto":
        return "torch", f"Triton's kernel {lacks}"
    raise ValueError(f"backend 'triton': Triton's kernel {lacks}; use 'auto' or 'torch'")


def _lacks(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton's kernel cannot run, or None."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU"
    if device.type not in ("cpu", "cuda"):
        return f"does not run on {device.type}"
    if dtype == torch.float64:
        return "does not compute in float64"
    return None if _HAS_TRITON else "needs the package triton, which is not installed"


def try_triton(device: torch.device) -> str | None:
    """Why Triton's kernel does not run on the device, or None; it is compiled and run once."""
    from mlfinetune.loss import kernel

    one = torch.zeros(1, 1, device=device)
    try:
        kernel.value_and_gradient(one, one, None, None, Form(), "mean", True)
    except Exception as error:  # no C compiler, no Python.h, a GPU too old: whatever it raises
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return None


_HAS_TRITON = importlib.util.find_spec("triton") is not None


# ---- what is computed -------------------------------------------------------------------


def _forward(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    backend: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, gradient (empty if not wanted), and the factor () that the gradient lacks, if any."""
    if backend == "triton":
        from mlfinetune.loss import kernel

        return kernel.value_and_gradient(
            logits, targets, pos_weight, divisor, form, reduction, gradient
        )
    loss, grad = blocks.value_and_gradient(
        logits, targets, pos_weight, divisor, form, reduction, gradient
    )
    return loss, grad, None


def _rescale_(grad: Tensor, grad_output: Tensor, correction: Tensor | None, backend: str) -> None:
    """grad *= grad_output * correction, untouched where that is 1."""
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
    @staticmethod
    def forward(ctx: Any, logits: Tensor, rest: tuple[Any, ...]) -> Tensor:
        loss, grad, correction = _forward(logits, *rest)
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
        if grad_output.dim() or grad.dtype == torch.float64:  # gradcheck takes it again and again
            return (grad * grad_output).to(ctx.dtype), None
        ctx.taken = True
        _rescale_(grad, grad_output, correction, ctx.backend)
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
    loss, grad, correction = _forward(
        logits, targets, pos_weight, divisor, Form(*form), reduction, backend, gradient
    )
    return loss, grad, loss.new_ones(()) if correction is None else correction


@_operator.register_fake
def _fake(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: list[float],
    reduction: str,
    backend: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = logits.shape if reduction == "none" else ()
    saved = blocks.gradient_dtype(logits.dtype, reduction)
    grad = logits.new_empty(logits.shape if gradient else (0,), dtype=saved)
    return logits.new_empty(shape, dtype=dtype), grad, logits.new_empty((), dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.backend, ctx.dtype = inputs[-2], inputs[0].dtype


def _gradient(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    _refuse_second_derivative()
    grad, correction = ctx.saved_tensors
    grad = (grad * (grad_output * correction)).to(ctx.dtype)  # a compiler may fuse it with more
    return grad, None, None, None, None, None, None, None


_operator.register_autograd(_gradient, setup_context=_save)


def fused(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    backend: str,
) -> Tensor:
    """The loss of one backend, differentiable once.

    Args:
        logits, targets: (N, L).
        pos_weight: (L,), () or None.
        divisor: () what the mean divides by; None: the count of known targets.
        form: which member of the family.
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
            return _forward(logits, targets, pos_weight, divisor, form, reduction, backend, False)[
                0
            ]
    loss = _Eager.apply(logits, (targets, pos_weight, divisor, form, reduction, backend, True))
    return loss
