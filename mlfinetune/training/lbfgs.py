"""The head by itself, without a learning rate: full-batch L-BFGS at a path of ridge penalties.

    Solver(head, batches, loss).path(l2)   after 3, 10, 30, 100 iterations: StepRecord, head changed

On features that do not change the loss of a linear head is convex (`sce`), so its curvature can be
bounded once. With C the covariance of the features and h = p(1-p) the variance of a label whose
share of positives is p, the curvature where the head says no more than p is h C. Weights are
written as w = inverse(R') u / sqrt(h), where R R' = C + l2 v I and v is the mean variance of a
feature: in u the curvature is 1 there in all directions, and L-BFGS needs tens of passes where it
would need thousands. The objective of a label is

    loss over its known targets / known targets of an average label + l2/2 * h * v * ||w||^2

so that a strength l2 means the same for every backbone and for rare and frequent labels. All
start from zero weights, and biases at the labels' log-odds. Few iterations are close to linear
discriminant analysis, many to the penalised optimum: with noisy tags the former score better
(measured: `benchmarks/head_path.py`), so both are offered, and validation chooses.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.training.records import StepRecord

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
ITERATIONS = (3, 10, 30, 100)

Batches = Callable[[], Iterable[Batch]]
"""One pass over all examples, the same each time; `images` are features (B, F) float32."""


@dataclass(frozen=True)
class _Facts:
    """What a pass over all features finds out first.

    Attributes:
        mean, covariance: (F,) and (F, F) of the features.
        variance: mean variance of a feature.
        log_odds: (L,) of a positive target, one of each added.
        spread: (L,) the standard deviation of a target.
        known: () targets that are not unknown, at least 1.
        images: rows of a pass.
    """

    mean: Tensor
    covariance: Tensor
    variance: float
    log_odds: Tensor
    spread: Tensor
    known: Tensor
    images: int


class Solver:
    """Solves for a head's weights."""

    def __init__(self, head: nn.Linear, batches: Batches, loss: Callable[..., Tensor]) -> None:
        """Two passes over the examples.

        Args:
            head: is changed, on whose device the features are.
            batches: gives the examples, pass by pass.
            loss: `mlfinetune.loss.build_loss()`.
        """
        self._head, self._batches, self._loss = head, batches, loss
        self._facts = _survey(batches, head.weight.device)
        self.passes = 2

    def path(self, l2: float, stops: Sequence[int] = ITERATIONS) -> Iterator[StepRecord]:
        """The head after some and after more iterations at one strength, from the start.

        Args:
            l2: the strength.
            stops: numbers of iterations, rising.

        Yields:
            A record at each of `stops`, while the head holds that solution: `rates` says l2 and
            iterations, `loss` is without the penalty, `step` counts passes over the examples.

        Raises:
            TrainingError: a loss that is not finite.
        """
        problem = _Problem(self._head, self._batches, self._loss, self._facts, l2)
        optimizer = torch.optim.LBFGS(
            problem.parameters, line_search_fn="strong_wolfe", tolerance_change=1e-7
        )
        done = 0
        for number, iterations in enumerate(stops):
            group = optimizer.param_groups[0]
            group["max_iter"], group["max_eval"] = iterations - done, 4 * iterations
            optimizer.step(lambda: problem.evaluate(optimizer))  # type: ignore[no-untyped-call]
            done = iterations
            problem.write()
            self.passes += problem.passes
            rates = {"l2": l2, "iterations": iterations}
            yield StepRecord(
                number,
                self.passes - 1,
                problem.loss,
                problem.norm(),
                rates,
                self._facts.images,
                True,
            )
            problem.passes = 0


class _Problem:
    """Loss and gradient at one strength, in the coordinates that the solver works in.

    Attributes:
        parameters: inner weights (L, F), biases (L,).
        loss: without the penalty, of the last evaluation.
        passes: evaluations.
    """

    def __init__(
        self,
        head: nn.Linear,
        batches: Batches,
        loss: Callable[..., Tensor],
        facts: _Facts,
        l2: float,
    ) -> None:
        self._head, self._batches, self._loss, self._facts = head, batches, loss, facts
        self._penalty = l2 * facts.variance
        exact = facts.covariance.double()  # features go together: float32 may lose definiteness
        exact.diagonal().add_(self._penalty)
        self._factor = torch.linalg.cholesky(exact).to(facts.covariance.dtype)
        self._inner = torch.zeros_like(head.weight, requires_grad=True)
        self._bias = facts.log_odds.clone().requires_grad_()
        self.parameters = [self._inner, self._bias]
        self.loss, self.passes = float("nan"), 0

    def _weight(self) -> Tensor:
        """(L, F)."""
        solved: Tensor = torch.linalg.solve_triangular(
            self._factor, self._inner, upper=False, left=False
        )
        return solved / self._facts.spread[:, None]

    def evaluate(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The objective, summed over labels so that its curvature is 1, and its gradient."""
        optimizer.zero_grad()
        facts, labels = self._facts, len(self._bias)
        weight = self._weight()
        sheet = weight.detach().requires_grad_()
        total = torch.zeros((), device=weight.device)
        for batch in self._batches():
            logits = linear(batch.images - facts.mean, sheet, self._bias)
            part = self._loss(logits, batch.targets.to(weight.device), divisor=facts.known)
            torch.autograd.backward(part * labels)
            total += part.detach()
        ridge = 0.5 * self._penalty * (facts.spread[:, None] * weight).square().sum()
        torch.autograd.backward([ridge, weight], [None, sheet.grad])
        self.passes += 1
        self.loss = float(total)
        if not abs(self.loss) < float("inf"):
            raise TrainingError(
                f"not finite while the head was solved for: loss {self.loss:g}; "
                f"set train.optimizer: adamw"
            )
        return total * labels + ridge.detach()

    def norm(self) -> float:
        """Of the last gradient, an average label's."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return float(nn.utils.get_total_norm(grads)) / len(self._bias)

    @torch.no_grad()
    def write(self) -> None:
        """Into the head."""
        weight = self._weight()
        self._head.weight.copy_(weight)
        self._head.bias.copy_(self._bias - weight @ self._facts.mean)


def _survey(batches: Batches, device: torch.device) -> _Facts:
    """Two passes: means and counts, then the covariance about the mean."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    sums, positives, negatives, images = zero, zero, zero, 0
    for batch in batches():
        targets = batch.targets.to(device)
        sums = sums + batch.images.double().sum(0)
        positives = positives + (targets.clamp(min=0) * (targets >= 0)).double().sum(0)
        negatives = negatives + (targets == 0).sum(0)
        images += len(batch.images)
    mean = (sums / images).float()
    covariance = torch.zeros(len(mean), len(mean), device=device)
    for batch in batches():
        centred = batch.images - mean
        covariance += centred.T @ centred
    covariance /= images
    if not covariance.isfinite().all():
        raise TrainingError("features or their squares are not finite: look at model.weights")
    share = (positives + 1) / (positives + negatives + 2)
    return _Facts(
        mean,
        covariance,
        float(covariance.trace()) / len(mean) or 1.0,
        share.logit().float(),
        (share * (1 - share)).sqrt().float(),
        (positives + negatives).sum().clamp(min=1),
        images,
    )
