"""The head by itself, to convergence: full-batch L-BFGS along a path of ridge penalties.

    solve: for l2 of strengths, from strong to weak   minimise loss + l2/2 * ||W||^2 -> StepRecord

On features that do not change the loss is convex (for `sce`), so there is no learning rate to tune,
and each solution is the start of the next one. The one that scores best on validation is kept, as
the best epoch is elsewhere.

The penalty is on weights, not on biases, and in units of the features' variance: a strength
means the same for every backbone.

Pooled features go together, and L-BFGS would need hundreds of passes to tell them apart. So they
are centred (a bias takes up the difference), and weights are written as W = U inverse(R), where
R R' = C/4 + l2 I with C the features' covariance: an upper bound of the curvature (Boehning 1992).
In U the curvature is then hardly above 1 in any direction, and some twenty passes do.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.errors import TrainingError
from mlfinetune.records import Batch, StepRecord

STRENGTHS = tuple(10 ** (-half / 2) for half in range(0, 9))
"""From 1 to 1e-4 (measured: `benchmarks/head_solver.py`)."""
ITERATIONS = 100
"""L-BFGS iterations at one strength, at most."""


@dataclass(frozen=True)
class _Facts:
    """What a pass over all features finds out first.

    Attributes:
        mean, covariance: (F,) and (F, F) of the features.
        variance: mean variance of a feature.
        known: () targets that are not unknown, at least 1.
        images: rows of a pass.
    """

    mean: Tensor
    covariance: Tensor
    variance: float
    known: Tensor
    images: int


def solve(
    head: nn.Linear,
    batches: Callable[[], Iterable[Batch]],
    loss: Callable[..., Tensor],
    strengths: Iterable[float] = STRENGTHS,
) -> Iterator[StepRecord]:
    """Solve for the head's weights at each strength; `head` holds the solution as it is yielded.

    Args:
        head: is changed; starts from the weights it has.
        batches: one pass over all examples, the same every time; `images` are features (B, F)
            float32 on the head's device.
        loss: `mlfinetune.loss.build_loss()`.
        strengths: of the penalty; a label's objective is its mean loss plus
            l2/2 * ||w||^2 * (mean variance of a feature).

    Yields:
        One record a strength: `rates` says l2, `loss` is without the penalty, `step` counts
        passes over the examples.

    Raises:
        TrainingError: a loss that is not finite.
    """
    facts = _survey(batches, head.weight.device)
    weight = head.weight.detach().clone()
    bias = head.bias.detach() + weight @ facts.mean
    step = 0
    for number, l2 in enumerate(strengths):
        weight, value, norm, passes = _minimise(
            weight, bias, batches, loss, facts, l2 * facts.variance
        )
        step += passes
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias - weight @ facts.mean)
        yield StepRecord(number, step - 1, value, norm, {"l2": l2}, facts.images, True)


def _minimise(
    weight: Tensor,
    bias: Tensor,
    batches: Callable[[], Iterable[Batch]],
    loss: Callable[..., Tensor],
    facts: _Facts,
    penalty: float,
) -> tuple[Tensor, float, float, int]:
    """The weights, `bias` in place; the loss, the gradient's norm, and passes that it took."""
    labels, width = weight.shape
    curvature = 0.25 * facts.covariance + penalty * torch.eye(width, device=weight.device)
    factor = torch.linalg.cholesky(curvature)
    inner = (weight @ factor).requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [inner, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-6
    )
    losses: list[float] = []

    def outer() -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(factor, inner, upper=False, left=False)
        return solved

    def objective() -> Tensor:
        """Summed over labels, so that its curvature is near 1."""
        optimizer.zero_grad()
        weight = outer()
        sheet = weight.detach().requires_grad_()
        total = torch.zeros((), device=weight.device)
        for batch in batches():
            logits = linear(batch.images - facts.mean, sheet, bias)
            part = loss(logits, batch.targets.to(weight.device), divisor=facts.known) * labels
            torch.autograd.backward(part)
            total += part.detach()
        losses.append(float(total) / labels)
        ridge = 0.5 * penalty * weight.square().sum()
        torch.autograd.backward([ridge, weight], [None, sheet.grad])
        return total + ridge.detach()

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    norm = float(nn.utils.get_total_norm([p.grad for p in (inner, bias) if p.grad is not None]))
    if not (abs(losses[-1]) < float("inf") and abs(norm) < float("inf")):
        raise TrainingError(
            f"not finite while the head was solved for: loss {losses[-1]:g}, gradient norm "
            f"{norm:g}; set train.optimizer: adamw"
        )
    bias.requires_grad_(False)
    return outer().detach(), losses[-1], norm / labels, len(losses)


def _survey(batches: Callable[[], Iterable[Batch]], device: torch.device) -> _Facts:
    """Two passes: the mean, then the covariance about it."""
    sums, images = torch.zeros((), dtype=torch.float64, device=device), 0
    known = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches():
        sums = sums + batch.images.double().sum(0)
        known += (batch.targets >= 0).sum().to(device)
        images += len(batch.images)
    mean = (sums / images).float()
    covariance = torch.zeros(len(mean), len(mean), device=device)
    for batch in batches():
        centred = batch.images - mean
        covariance += centred.T @ centred
    covariance /= images
    variance = float(covariance.trace()) / len(mean)
    return _Facts(mean, covariance, variance or 1.0, known.clamp(min=1), images)
