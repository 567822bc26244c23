"""The head on precomputed features, by full-batch L-BFGS at a path of ridge penalties.

    Solver(head, batches, loss).path(l2)   after 3, 10, 30, 100 iterations: head changed, StepRecord

There is no learning rate to tune.

The features do not change, so the loss of a linear head is convex (`sce`), and its curvature can
be bounded once. Let C be the covariance of the features, p the share of positives of a label, and
h = p(1-p) the variance of its targets. Where the head predicts p for every image, the curvature is
h C. The weights are written as w = inverse(R') u / sqrt(h), where R R' = C + l2 v I and v is the
mean variance of a feature. In u the curvature is 1 there in all directions, so that L-BFGS needs
tens of passes where it would need thousands. The objective of a label is

    loss over its known targets / known targets of an average label + l2/2 * h * v * ||w||^2

so that a penalty l2 means the same for every backbone, and for rare and frequent labels. Each solve
starts from zero weights, and from biases at the log-odds of the labels. After few iterations the
head is close to linear discriminant analysis, after many to the penalized optimum. With noisy tags
the first scores better (measured: `benchmarks/head_path.py`), so both are offered, and validation
chooses.

The gradient in w is a sum of features, so that w stays in the space that the examples span. Where
they are few beside F, all is computed in coordinates of that space, of as many dimensions as there
are examples. Mathematically the iterates are the same.

Means and counts are summed in float64. C is summed in float32, but factorized in float64: features
are correlated, and in float32 C may lose definiteness. On a device without float64 (MPS) the CPU
does the float64 work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.runtime.threads import ThreadChooser
from mlfinetune.training.records import StepRecord

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Ridge penalties l2, from strong to weak."""
ITERATIONS = (3, 10, 30, 100)
"""Numbers of iterations after which a solution is offered."""
_VECTOR_COST = 8
"""Multiplications of a product that take as long as adding one number of a long vector."""

Batches = Callable[[], Iterable[Batch]]
"""Function that returns the batches of one pass over all examples, the same at each call. Their
`images` are features, (B, F) float32."""


@dataclass(frozen=True)
class _FeatureStats:
    """Statistics of features and targets, from which the solver's coordinates follow.

    Attributes:
        mean, covariance: (F,) and (F, F) float32, of the features.
        variance: mean variance of a feature.
        log_odds: (L,) log-odds of a positive target, with one positive and one negative added.
        spread: (L,) standard deviation of a target, sqrt(h) in the module's docstring.
        known: () number of known targets of all labels, at least 1.
        images: number of images in a pass.
    """

    mean: Tensor
    covariance: Tensor
    variance: float
    log_odds: Tensor
    spread: Tensor
    known: Tensor
    images: int


class Solver:
    """Solver for the weights of a linear head.

    Attributes:
        passes: passes over the examples so far.
    """

    def __init__(self, head: nn.Linear, batches: Batches, loss: Callable[..., Tensor]) -> None:
        """Compute the statistics of the features, in two passes.

        Args:
            head: is changed; the features are on its device.
            batches: gives the examples, pass by pass.
            loss: from `mlfinetune.loss.build_loss()`.

        Raises:
            TrainingError: features that are not finite.
        """
        self._head, self._batches, self._loss = head, batches, loss
        self._threads = ThreadChooser()
        self._stats = _compute_feature_stats(batches, head.weight.device)
        self._span = _Span(batches, self._stats) if _is_span_small(self._stats) else None
        self.passes = 2

    def path(self, l2: float, stops: Sequence[int] = ITERATIONS) -> Iterator[StepRecord]:
        """Solve at one penalty; yield the solution at each of `stops` on the way.

        Args:
            l2: the ridge penalty.
            stops: numbers of iterations, rising.

        Yields:
            A record at each of `stops`, while the head holds that solution: `rates` has l2 and
            iterations, `loss` is without the penalty, `step + 1` is the number of passes over the
            examples so far.

        Raises:
            TrainingError: a loss that is not finite.
        """
        batches, stats = self._batches, self._stats
        if self._span is not None:
            batches, stats = self._span.batches, self._span.stats
        problem = _Problem(batches, self._loss, stats, l2, self._threads)
        optimizer = torch.optim.LBFGS(
            problem.parameters, line_search_fn="strong_wolfe", tolerance_change=1e-7
        )
        vector_cost = _VECTOR_COST * problem.parameters[0].numel()
        done = 0
        if self._span is not None:
            with self._threads.threads_for(vector_cost):
                _take_first_step(optimizer, problem)
            done = 1
        # One optimizer for all stops: it keeps its history of gradients, and goes on from the last.
        for number, iterations in enumerate(stops):
            group = optimizer.param_groups[0]
            group["max_iter"], group["max_eval"] = iterations - done, 4 * iterations
            with self._threads.threads_for(vector_cost):
                optimizer.step(lambda: problem.evaluate(optimizer))  # type: ignore[no-untyped-call]
            done = iterations
            self._write_to_head(problem)
            self.passes += problem.passes
            rates = {"l2": l2, "iterations": iterations}
            yield StepRecord(
                epoch=number,
                step=self.passes - 1,
                loss=problem.loss,
                grad_norm=problem.gradient_norm(),
                rates=rates,
                images=self._stats.images,
                settled=True,
            )
            problem.passes = 0

    @torch.no_grad()
    def _write_to_head(self, problem: "_Problem") -> None:
        """Write the solved weights and bias into the head.

        The problem is posed on centered features; the head gets features as they are.
        """
        weight, bias = problem.solution()
        if self._span is not None:
            weight = weight @ self._span.basis.T
        self._head.weight.copy_(weight)
        self._head.bias.copy_(bias - weight @ self._stats.mean)


def _take_first_step(optimizer: torch.optim.LBFGS, problem: "_Problem") -> None:
    """Take the first iteration with the step of Newton's method, as the curvature in u is 1.

    torch divides the rate of the first iteration by the sum of the gradient's absolute values,
    which depends on the axes, and so is arbitrary in rotated coordinates.
    """
    problem.evaluate(optimizer)
    size = sum(float(p.grad.abs().sum()) for p in problem.parameters if p.grad is not None)
    group = optimizer.param_groups[0]
    group["max_iter"], group["max_eval"], group["lr"] = 1, _MOST_TRIALS, max(1.0, size)
    optimizer.step(lambda: problem.evaluate(optimizer))  # type: ignore[no-untyped-call]
    group["lr"] = 1.0


_MOST_TRIALS = 10
"""Evaluations that the first step may take, where another loss than sce has another curvature."""
_SMALL_SPAN = 0.75
"""Examples a feature up to which their space is worth a change of coordinates."""


def _is_span_small(stats: _FeatureStats) -> bool:
    """Tell whether coordinates in the space of the examples save time. A GPU needs no saving."""
    return stats.mean.device.type == "cpu" and stats.images <= _SMALL_SPAN * len(stats.mean)


class _Span:
    """Coordinates in the space that the N centered examples span: z = basis t, (F,) and (N,).

    Attributes:
        basis: (F, N), its columns orthonormal.
        stats: statistics of t, as those of the features; the mean is 0.
    """

    def __init__(self, batches: Batches, stats: _FeatureStats) -> None:
        self._batches = batches
        centered = [batch.images - stats.mean for batch in batches()]
        self.basis, coordinates = torch.linalg.qr(torch.cat(centered).T)
        self._parts = coordinates.T.contiguous().split([len(part) for part in centered])
        self.stats = replace(
            stats,
            mean=torch.zeros(stats.images),
            covariance=coordinates @ coordinates.T / stats.images,
        )

    def batches(self) -> Iterator[Batch]:
        """Yield the batches, with coordinates in place of features."""
        for batch, part in zip(self._batches(), self._parts, strict=True):
            yield replace(batch, images=part)


class _Problem:
    """Objective and gradient at one penalty, in the coordinates u of the module's docstring.

    Attributes:
        parameters: u (L, F) and biases (L,).
        loss: of the last evaluation, without the penalty.
        passes: number of evaluations.
    """

    def __init__(
        self,
        batches: Batches,
        loss: Callable[..., Tensor],
        stats: _FeatureStats,
        l2: float,
        threads: ThreadChooser,
    ) -> None:
        self._batches, self._loss, self._stats = batches, loss, stats
        self._threads = threads
        self._penalty = l2 * stats.variance
        exact = _to_float64(stats.covariance)
        exact.diagonal().add_(self._penalty)
        self._factor = torch.linalg.cholesky(exact).float().to(stats.mean.device)  # R
        shape = len(stats.log_odds), len(stats.mean)
        self._u = torch.zeros(shape, device=stats.mean.device, requires_grad=True)
        self._bias = stats.log_odds.clone().requires_grad_()
        self.parameters = [self._u, self._bias]
        self.loss, self.passes = float("nan"), 0

    def _weight(self) -> Tensor:
        """Return w (L, F) of u."""
        solved: Tensor = torch.linalg.solve_triangular(
            self._factor, self._u, upper=False, left=False
        )
        return solved / self._stats.spread[:, None]

    def evaluate(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Compute the objective, and its gradient in `parameters`.

        The objective is summed over labels: as a mean, its curvature would be 1 / L and not 1.

        Raises:
            TrainingError: a loss that is not finite.
        """
        optimizer.zero_grad()
        stats, labels = self._stats, len(self._bias)
        weight = self._weight()
        # Each batch adds to the gradient of w at this leaf. It is carried back from w to u only
        # once, after the last batch, because that step solves a triangular system.
        leaf = weight.detach().requires_grad_()
        total = torch.zeros((), device=weight.device)
        for batch in self._batches():
            with self._threads.threads_for(len(batch.images) * leaf.numel()):
                logits = linear(batch.images - stats.mean, leaf, self._bias)
                part = self._loss(logits, batch.targets.to(weight.device), divisor=stats.known)
                torch.autograd.backward(part * labels)
                total += part.detach()
        ridge = 0.5 * self._penalty * (stats.spread[:, None] * weight).square().sum()
        torch.autograd.backward([ridge, weight], [None, leaf.grad])
        self.passes += 1
        self.loss = float(total)
        if not abs(self.loss) < float("inf"):
            raise TrainingError(
                f"not finite while the head was solved for: loss {self.loss:g}; "
                f"set train.optimizer: adamw"
            )
        return total * labels + ridge.detach()

    def gradient_norm(self) -> float:
        """Return the norm of the last gradient, divided by the number of labels."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return float(nn.utils.get_total_norm(grads)) / len(self._bias)

    def solution(self) -> tuple[Tensor, Tensor]:
        """Return w (L, F) and the biases (L,), of centered features."""
        return self._weight(), self._bias


def _compute_feature_stats(batches: Batches, device: torch.device) -> _FeatureStats:
    """Compute the statistics in two passes: means and counts, then the covariance about the mean.

    Raises:
        TrainingError: features that are not finite.
    """
    zero = _to_float64(torch.zeros((), device=device))
    sums, positives, negatives = zero, zero, zero
    images = 0
    for batch in batches():
        targets = batch.targets.to(device)
        sums = sums + _to_float64(batch.images).sum(0)
        positives = positives + _to_float64(targets.clamp(min=0) * (targets >= 0)).sum(0)
        negatives = negatives + _to_float64(targets == 0).sum(0)
        images += len(batch.images)
    mean = (sums / images).float().to(device)
    covariance = torch.zeros(len(mean), len(mean), device=device)
    for batch in batches():
        centered = batch.images - mean
        covariance += centered.T @ centered
    covariance /= images
    if not covariance.isfinite().all():
        raise TrainingError("features or their squares are not finite: look at model.weights")
    share = (positives + 1) / (positives + negatives + 2)
    known = (positives + negatives).sum().clamp(min=1)
    return _FeatureStats(
        mean=mean,
        covariance=covariance,
        variance=float(covariance.trace()) / len(mean) or 1.0,
        log_odds=share.logit().float().to(device),
        spread=(share * (1 - share)).sqrt().float().to(device),
        known=known.float().to(device) if device.type == "mps" else known,
        images=images,
    )


def _to_float64(x: Tensor) -> Tensor:
    """Return `x` in float64, on its own device, or on the CPU if that device has no float64."""
    return x.to("cpu" if x.device.type == "mps" else x.device).double()
