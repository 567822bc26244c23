"""The head on precomputed features, by full-batch L-BFGS at a path of ridge penalties.

    Solver(head, batches, loss).path(l2)   after 3, 10, 30, 100 iterations: head changed, StepRecord

There is no learning rate to tune.

Features are standardized: z_f = (x_f - mean_f) / s_f, where s_f is the standard deviation of
feature f. So features of stages with other scales count alike, and no factor on a feature changes a
logit. The head gets the features as they are, so a weight c_f of z_f is w_f = c_f / s_f in the
head. A feature that does not vary has z_f = 0 and no weight.

The features do not change, so the loss of a linear head is convex (`sce`), and its curvature can
be bounded once. Let K be the covariance of z (the correlations of the features), and h the
curvature of a label's loss at the best logit that all images can share. Of `sce` that logit is the
log-odds of the share p of positives, and h = p(1-p), the variance of the targets. There the
curvature in c is h K. The weights are written as c = inverse(R') u / sqrt(h), where
R R' = K + l2 I. In u the curvature is 1 there in all directions, so that L-BFGS needs tens of
passes where it would need thousands. The objective of a label is

    loss over its known targets / known targets of an average label + l2/2 * h * ||c||^2
    where ||c||^2 = sum over f of s_f^2 w_f^2

so that a penalty l2 means the same for every backbone and loss, and for rare and frequent labels.
Where batches bring weights of pictures (1 on average), all sums over pictures are weighted by them.

Each solve starts from zero weights, and from biases at the logits above. After few iterations the
head is close to linear discriminant analysis, after many to the penalized optimum. With noisy tags
the first scores better (measured: `benchmarks/head_path.py`), so both are offered, and validation
chooses.

The gradient in c is a sum of examples z, so that c stays in the space that they span. Where they
are few beside F, all is computed in coordinates of that space, of as many dimensions as there are
examples. Their axes are the eigenvectors of K, so that R is diagonal. Mathematically the iterates
are the same.

Means, deviations and counts are summed in float64. K is summed in float32, but factorized in
float64: features are correlated, and in float32 K may lose definiteness. On a device without
float64 (MPS) the CPU does the float64 work.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.runtime.threads import ThreadChooser
from mlfinetune.training.feature_stats import (
    Batches,
    FeatureStats,
    Span,
    compute_feature_stats,
    correlate,
    is_span_small,
    to_float64,
)
from mlfinetune.training.records import StepRecord

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Ridge penalties l2, from strong to weak."""
STRONGER_PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
STRONGEST_OF_FEW = 10.0
"""Penalty at which the search begins where examples are fewer than features. The best one is often
between 1 and 30 there, and the mAP may have a lower peak at a weak one, where a search from 1 on
would stay: `benchmarks/frozen_views.py`."""
WEAKER_PENALTIES = (0.0003, 0.0001)
"""Penalties beyond the edges, from the edge on. With few pictures the correlations of thousands of
features have few, large eigenvalues, up to a thousand, and a penalty is small beside them."""
ITERATIONS = (3, 10, 30, 100)
"""Numbers of iterations after which a solution is offered."""
HISTORY = 20
"""Number of last steps whose changes of weights and gradient tell L-BFGS the curvature: two copies
of the head a step. A hundred are no better."""
_VECTOR_COST = 8
"""Multiplications of a product that take as long as adding one number of a long vector."""


class Solver:
    """Solver for the weights of a linear head.

    Attributes:
        passes: passes over the examples so far.
    """

    def __init__(
        self,
        head: nn.Linear,
        batches: Batches,
        loss: Callable[..., Tensor],
        track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    ) -> None:
        """Compute the statistics of the features, in two passes.

        Args:
            head: is changed; the features are on its device.
            batches: gives the examples, pass by pass; where they are few beside the features, only
                in these two, since coordinates stand for them afterwards.
            loss: from `mlfinetune.loss.build_loss()`.
            track: is given the batches of each later pass, and yields them again; for a progress
                bar.

        Raises:
            TrainingError: features that are not finite.
        """
        self._head, self._batches, self._loss, self._track = head, batches, loss, track
        self._threads = ThreadChooser()
        self._stats = compute_feature_stats(batches, head.weight.device, loss)
        self._span = None
        if is_span_small(self._stats):
            with self._threads.threads_for(0):  # by several threads, QR has other bits in each run
                self._span = Span(batches, self._stats)
            self._correlation = self._span.correlation
        else:
            self._correlation = correlate(batches, self._stats)
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

        def tracked() -> Iterable[Batch]:
            return self._track(batches())

        problem = _Problem(tracked, self._loss, stats, self._correlation, l2, self._threads)
        optimizer = _LBFGS(
            problem.parameters,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_change=1e-7,
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
                optimizer.step(problem.evaluate)  # type: ignore[no-untyped-call]
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

        The problem is posed on standardized features; the head gets features as they are.
        """
        standardized, bias = problem.solution()
        if self._span is not None:
            standardized = self._span.to_features(standardized)
        weight = standardized * self._stats.inverse_deviation
        self._head.weight.copy_(weight)
        self._head.bias.copy_(bias - weight @ self._stats.mean)


class _LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS without a mark for torch.compile, which loads the compiler to be set: 1 s."""

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)


def _take_first_step(optimizer: torch.optim.LBFGS, problem: "_Problem") -> None:
    """Take the first iteration with the step of Newton's method, as the curvature in u is 1.

    torch divides the rate of the first iteration by the sum of the gradient's absolute values,
    which depends on the axes, and so is arbitrary in rotated coordinates.
    """
    problem.evaluate()
    size = sum(float(p.grad.abs().sum()) for p in problem.parameters if p.grad is not None)
    group = optimizer.param_groups[0]
    group["max_iter"], group["max_eval"], group["lr"] = 1, _MOST_TRIALS, max(1.0, size)
    optimizer.step(problem.evaluate)  # type: ignore[no-untyped-call]
    group["lr"] = 1.0


_MOST_TRIALS = 10
"""Evaluations that the first step may take, where another loss than sce has another curvature."""


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
        stats: FeatureStats,
        correlation: Tensor,
        l2: float,
        threads: ThreadChooser,
    ) -> None:
        self._batches, self._loss, self._stats = batches, loss, stats
        self._threads = threads
        self._l2, self._is_shifted = l2, bool(stats.mean.any())
        self._factor = _factorize(correlation, l2)
        shape = len(stats.constant), len(stats.mean)
        self._u = torch.zeros(shape, device=stats.mean.device).requires_grad_()
        self._bias = stats.constant.clone().requires_grad_()
        self.parameters = [self._u, self._bias]
        self.loss, self.passes = float("nan"), 0

    def _standardized_weight(self) -> Tensor:
        """Return c (L, F) of u."""
        if self._factor.dim() == 1:
            solved = self._u / self._factor
        else:
            solved = torch.linalg.solve_triangular(self._factor, self._u, upper=False, left=False)
        return solved / self._stats.spread[:, None]

    def evaluate(self) -> Tensor:
        """Compute the objective, and its gradient in `parameters`.

        The objective is summed over labels: as a mean, its curvature would be 1 / L and not 1.

        Raises:
            TrainingError: a loss that is not finite.
        """
        for parameter in self.parameters:
            parameter.grad = None
        stats, labels = self._stats, len(self._bias)
        solving = self._u.numel() * self._factor[0].numel()  # multiplications of the system of R
        with self._threads.threads_for(solving):
            standardized = self._standardized_weight()
        weight = standardized * stats.inverse_deviation
        # Each batch adds to the gradient of w at this leaf. It is carried back from w to u only
        # once, after the last batch, because that step solves a triangular system.
        leaf = weight.detach().requires_grad_()
        total = torch.zeros((), device=weight.device)
        for batch in self._batches():
            with self._threads.threads_for(len(batch.images) * leaf.numel()):
                images = batch.images - stats.mean if self._is_shifted else batch.images
                logits = linear(images, leaf, self._bias)
                part = _compute_loss(self._loss, logits, batch, stats.known)
                torch.autograd.backward(part * labels)
                total += part.detach()
        ridge = 0.5 * self._l2 * (stats.spread[:, None] * standardized).square().sum()
        assert leaf.grad is not None
        with self._threads.threads_for(solving):
            torch.autograd.backward(ridge + (weight * leaf.grad).sum())
        self.passes += 1
        self.loss = float(total)
        if not abs(self.loss) < float("inf"):
            raise TrainingError(
                f"not finite while the head was solved for: loss {self.loss:g}; set "
                "train.optimizer: adamw, or where the backbone trains train.solve_head_first: false"
            )
        return total * labels + ridge.detach()

    def gradient_norm(self) -> float:
        """Return the norm of the last gradient, divided by the number of labels."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return float(nn.utils.get_total_norm(grads)) / len(self._bias)

    def solution(self) -> tuple[Tensor, Tensor]:
        """Return c (L, F) and the biases (L,), of standardized features."""
        return self._standardized_weight(), self._bias


def _factorize(correlation: Tensor, l2: float) -> Tensor:
    """Return R, with R R' = K + l2 I: (F, F), or the diagonal (F,) where K is given as one."""
    if correlation.dim() == 1:
        return (correlation + l2).sqrt()
    exact = to_float64(correlation)
    exact.diagonal().add_(l2)
    factor: Tensor = torch.linalg.cholesky(exact)
    return factor.float().to(correlation.device)


def _compute_loss(
    loss: Callable[..., Tensor], logits: Tensor, batch: Batch, known: Tensor
) -> Tensor:
    """Return the loss of a batch divided by `known`, each picture's by its weight."""
    targets = batch.targets.to(logits.device)
    if batch.weights is None:
        return loss(logits, targets, divisor=known)
    each = loss(logits, targets, reduction="none")
    return (batch.weights @ each).sum() / known
