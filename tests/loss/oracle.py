"""What the losses are compared with: the reference in float64, and how near is near enough.

Bounds are relative to the sum of the magnitudes of the terms, in which nothing cancels.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlfinetune.loss import build_loss
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference as reference

VALUE_RTOL = 1e-6
"""Of the loss, which is float32 for the narrow types too."""
GRADIENT_RTOL = {
    torch.float32: 1e-6,
    torch.float16: 6e-4,
    torch.bfloat16: 8e-3,  # rounded before the last factor, and after
    torch.float64: 1e-13,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sce": {},
    "asl": {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
    "focal": {"gamma": 2.0, "alpha": 0.25},
}


def tensors(
    shape: tuple[int, ...], seed: int = 0, device: str = "cpu", spread: float = 6.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 logits, int8 targets from {1, 0, -1}, and a weight for each label."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * spread
    targets = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    weights = torch.rand(shape[-1], generator=generator) * 5 + 0.1
    return logits.to(device), targets.to(device), weights.to(device)


def as_reference(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a loss by the names of the reference's arguments."""
    given = {**DEFAULTS[name], **settings}
    if name != "focal":
        return given
    alpha, gamma = given.pop("alpha"), given.pop("gamma")
    given |= {"gamma_neg": gamma, "gamma_pos": gamma}
    if alpha is not None:
        weight = given.get("pos_weight")
        share = torch.tensor(alpha, dtype=torch.float64)
        given["pos_weight"] = share if weight is None else weight.double() * share
        given["negative_weight"] = 1 - alpha
    return given


def truth(
    name: str,
    logits: Tensor,
    targets: Tensor,
    reduction: str = "mean",
    divisor: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value and slope in float64, by autograd of the reference, and its terms' size."""
    given = as_reference(name, settings)
    x = logits.detach().double().requires_grad_()
    divided = reduction == "mean" and divisor is not None
    share = divisor.double() if divided and divisor is not None else 1.0

    def both(**over: Any) -> tuple[Tensor, Tensor]:
        kind = "sum" if divided else reduction
        loss = reference(x, targets, **{**given, **over}, reduction=kind) / share
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    value, slope = both()
    _, positive = both(negative_weight=0.0)
    return value, slope, positive.abs() + (slope - positive).abs()


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    """Assert that every entry of `got` is within `bound` of `want`, and finite."""
    error = (got.detach().double() - want).abs()
    assert got.shape == want.shape
    bad = (~(error <= bound)).nonzero().tolist()
    assert not bad, f"{len(bad)} of {error.numel()}; " + ", ".join(
        f"at {at}: {got[*at].item()}, not {want[*at].item()}" for at in bad[:3]
    )


def assert_true(
    logits: Tensor,
    targets: Tensor,
    name: str = "sce",
    backend: str = "torch",
    *,
    reduction: str = "mean",
    divisor: Tensor | None = None,
    grad_output: float = 1.0,
    slack: float = 0.0,
    looser: float = 1.0,
    **settings: Any,
) -> None:
    """Value and gradient of a loss are those of the reference, whatever the layout.

    Args:
        slack: absolute, beside what underflows.
        looser: a factor for the relative bounds.
    """
    x = logits.detach().requires_grad_()
    loss = build_loss(name, backend=backend, **settings)(
        x, targets, reduction=reduction, divisor=divisor
    )
    (got,) = torch.autograd.grad(loss, x, torch.full_like(loss, grad_output))
    value, slope, size = truth(name, x, targets, reduction, divisor, **settings)
    exact = x.dtype == torch.float64
    assert loss.dtype == (torch.float64 if exact else torch.float32)
    assert got.dtype == x.dtype
    tiny, info = torch.finfo(loss.dtype).tiny * 1000, torch.finfo(x.dtype)
    rtol = looser * (1e-12 if exact else VALUE_RTOL)
    assert_within(loss, value, rtol * value.abs() + tiny * max(x.numel(), 1) + slack)
    bound = looser * GRADIENT_RTOL[x.dtype] * size * abs(grad_output)
    underflow = 3 * info.smallest_normal * info.eps
    assert_within(got, slope * grad_output, bound + underflow + tiny + slack)


def in_a_thread(*work: Callable[[], None]) -> None:
    """Run the calls at once, each in a new thread with its own buffers; raise their errors."""
    errors: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # a thread's own would be lost
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
