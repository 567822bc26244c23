"""Relative error of the loss and its gradient against float64, from 0 to ±1e4, ours and others.

python benchmarks/loss_accuracy.py  ->  benchmarks/results/loss_accuracy_DEVICE.json

Logits are log-uniform in magnitude, half of them the right answer and half the wrong one. The error
of a value is relative to the true one; what is below the smallest normal number of the type counts
as right when it is 0. `inf` means that some value was infinite or not a number.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from mlfinetune.loss import sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference
from mlfinetune.runtime.device import name_dtype

COUNT = 20_000
BANDS = [(1e-6, 1.0), (1.0, 10.0), (10.0, 80.0), (80.0, 1e4)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Loss = Callable[[Tensor, Tensor], Tensor]


def naive(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the sigmoid first, then the logarithm."""
    p = torch.sigmoid(logits)
    return -(targets * p.log() + (1 - targets) * (1 - p).log())


def log_of_one_plus(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the stable formula, but with log(1 + y) in place of log1p(y)."""
    return logits.clamp(min=0) - targets * logits + torch.log(1 + torch.exp(-logits.abs()))


def losses() -> dict[str, Loss]:
    """Return name -> loss of every element."""
    return {
        "ours, torch": lambda x, t: sigmoid_cross_entropy(x, t, reduction="none", backend="torch"),
        f"ours, triton{'' if DEVICE == 'cuda' else ', interpreted'}": lambda x, t: (
            sigmoid_cross_entropy(x, t, reduction="none", backend="triton")
        ),
        "BCEWithLogits": lambda x, t: binary_cross_entropy_with_logits(x, t, reduction="none"),
        "log(1 + y)": log_of_one_plus,
        "sigmoid then BCE": lambda x, t: binary_cross_entropy(
            torch.sigmoid(x), t, reduction="none"
        ),
        "sigmoid then log": naive,
    }


def worst(loss: Loss, logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return the largest relative error of the value and of the gradient."""
    exact = logits.detach().double().requires_grad_()
    true = sigmoid_cross_entropy_reference(exact, targets, reduction="none")
    (true_slope,) = torch.autograd.grad(true.sum(), exact)
    x = logits.detach().clone().requires_grad_()
    value = loss(x, targets)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return _relative(value, true, logits.dtype), _relative(slope, true_slope, logits.dtype)


def _relative(got: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    got, want = got.detach().double(), want.detach()
    if not got.isfinite().all():
        return math.inf
    info = torch.finfo(dtype)
    slack = info.smallest_normal if dtype != torch.float16 else info.smallest_normal * info.eps
    error = ((got - want).abs() - slack).clamp(min=0) / want.abs().clamp(min=1e-300)
    return float(error.max())


def main() -> None:
    """Measure every type, loss and range of logits; write, and print the float32 table."""
    result: dict[str, dict[str, dict[str, list[float]]]] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rows = result.setdefault(name_dtype(dtype), {})
        for least, most in BANDS:
            torch.manual_seed(0)
            size = torch.empty(1, COUNT).uniform_(math.log(least), math.log(most)).exp()
            logits = (size * torch.tensor([1.0, -1.0]).repeat(COUNT // 2)).to(DEVICE, dtype)
            targets = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(COUNT // 4).to(DEVICE, dtype)[None]
            for name, loss in losses().items():
                errors = [float(f"{error:.1e}") for error in worst(loss, logits, targets)]
                rows.setdefault(name, {})[f"{least:g} to {most:g}"] = errors
    path = Path(__file__).parent / "results" / f"loss_accuracy_{DEVICE}.json"
    path.write_text(json.dumps(result, indent=2).replace("Infinity", '"inf"') + "\n")
    for dtype_name, rows in result.items():
        print(dtype_name, "(value, gradient)")
        for name, bands in rows.items():
            print(f"  {name:25}", *(f"{v:9.1e} {g:9.1e} |" for v, g in bands.values()))


if __name__ == "__main__":
    main()
