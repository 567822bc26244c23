"""Statistics of features, from which the solver of lbfgs.py takes its coordinates.

    batches -> compute_feature_stats -> FeatureStats: means, deviations, counts
            -> correlate: their correlations
            -> Span: coordinates in the space of the examples, where they are few

The mathematics is that of lbfgs.py's docstring.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.runtime.threads import one_thread

ROUNDING = 1e-6
"""Standard deviation of a feature, as a share of its size, up to which it only rounds a constant:
float32 has steps of 1e-7."""
Batches = Callable[[], Iterable[Batch]]
"""Function that returns the batches of one pass over all examples, the same at each call. Their
`images` are features, (B, F) float32."""


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of features and targets, from which the solver's coordinates follow.

    Attributes:
        mean: (F,) float32, of the features.
        inverse_deviation: (F,) float32, 1 / s; 0 of a feature that does not vary.
        constant: (L,) the logit with the lowest loss among those that all images share; of `sce`
            the log-odds, with one positive and one negative added.
        spread: (L,) root of the loss's curvature there, sqrt(h) in the docstring of lbfgs.py.
        known: () number of known targets of all labels, at least 1.
        images: number of images in a pass.
    """

    mean: Tensor
    inverse_deviation: Tensor
    constant: Tensor
    spread: Tensor
    known: Tensor
    images: int


def compute_feature_stats(
    batches: Batches, device: torch.device, loss: Callable[..., Tensor]
) -> FeatureStats:
    """Compute the statistics, in one pass.

    Args:
        batches: gives the examples.
        device: where the statistics go.
        loss: from `mlfinetune.loss.build_loss()`.

    Raises:
        TrainingError: features that are not finite.
    """
    zero = to_float64(torch.zeros((), device=device))
    moments, positives, negatives = _Moments(0, 0.0, zero, zero), zero, zero
    for batch in batches():
        targets = batch.targets.to(device)
        weights = _get_weights(batch)
        moments = moments.with_batch(to_float64(batch.images), weights)
        positives = positives + (weights * to_float64(targets == 1)).sum(0)
        negatives = negatives + (weights * to_float64(targets == 0)).sum(0)
    if not moments.squares.isfinite().all():
        raise TrainingError(
            "features or their squares are not finite: look at model.weights, or lower train.lr "
            "where the backbone trains"
        )
    share = ((positives + 1) / (positives + negatives + 2)).float().to(device)
    constant, spread = _fit_constant(loss, share)
    known = (positives + negatives).sum().clamp(min=1)
    return FeatureStats(
        mean=moments.mean.float().to(device),
        inverse_deviation=moments.invert_deviation().float().to(device),
        constant=constant,
        spread=spread,
        known=known.float().to(device) if device.type == "mps" else known,
        images=moments.images,
    )


@one_thread()
def _fit_constant(loss: Callable[..., Tensor], share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best logit that all images can share, and the root of the loss's curvature there.

    Of `sce` these are the log-odds, and the standard deviation of a target. With `pos_weight`, and
    of other losses, they lie elsewhere, and the solver starts there. Label smoothing is left out:
    of a rare label it raises the curvature many times, and not what the features can tell.

    Args:
        loss: of logits and targets, (B, L) both.
        share: (L,) share of positives, between 0 and 1.
    """
    targets = torch.tensor([[1], [0]], device=share.device).expand(2, len(share)).to(torch.int8)
    weights = torch.stack([share, 1 - share])

    def differentiate(logits: Tensor) -> Tensor:
        """Return the (L,) derivatives of the mean loss by the logit of all images."""
        rows = logits.repeat(2, 1).requires_grad_()
        each = loss(rows, targets, reduction="none", label_smoothing=0.0)
        total = (each * weights).sum()
        (gradient,) = torch.autograd.grad(total, rows)
        return gradient.sum(0)

    low, high = torch.full_like(share, -_LARGEST), torch.full_like(share, _LARGEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_above = differentiate(middle) > 0
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    middle = (low + high) / 2
    slope = (differentiate(middle + _STEP) - differentiate(middle - _STEP)) / (2 * _STEP)
    # A loss without a minimum, as with `pos_weight: 0`, has the start and the scale of `sce`; one
    # that is flat there would divide by 0.
    has_minimum, variance = middle.abs() < _LARGEST - 1, share * (1 - share)
    curvature = torch.where(has_minimum, slope.clamp(min=_FLATTEST * variance), variance)
    return torch.where(has_minimum, middle, share.logit()), curvature.sqrt()


_LARGEST, _HALVINGS, _STEP = 20.0, 40, 0.01
_FLATTEST = 1e-3


def correlate(batches: Batches, stats: FeatureStats) -> Tensor:
    """Return the correlations of the features, (F, F) float32, in one pass.

    This is K in the docstring of lbfgs.py.
    """
    mean = stats.mean
    correlation = torch.zeros(len(mean), len(mean), device=mean.device)
    for batch in batches():
        standardized = (batch.images - mean) * stats.inverse_deviation
        weighted = standardized if batch.weights is None else batch.weights[:, None] * standardized
        correlation += weighted.T @ standardized
    return correlation / stats.images


@dataclass(frozen=True)
class _Moments:
    """Moments of the features seen so far, in float64.

    Attributes:
        images: number of images.
        weight: sum of their weights.
        mean: (F,), or () before the first batch.
        squares: (F,) weighted sum of squared differences from the mean, or ().
    """

    images: int
    weight: float
    mean: Tensor
    squares: Tensor

    def with_batch(self, features: Tensor, weights: Tensor) -> "_Moments":
        """Return the moments with those of a batch (Chan, Golub and LeVeque, 1983).

        Args:
            features: (B, F).
            weights: (B, 1) of the images.
        """
        added = float(weights.sum())
        weight = self.weight + added
        mean = (weights * features).sum(0) / added
        step = mean - self.mean
        squares = self.squares + (weights * (features - mean).square()).sum(0)
        squares = squares + step.square() * self.weight * added / weight
        return _Moments(
            self.images + len(features), weight, self.mean + step * added / weight, squares
        )

    def invert_deviation(self) -> Tensor:
        """Return 1 / s of each feature, 0 where s is 0 or only the rounding of a constant."""
        deviation = (self.squares / self.weight).sqrt()
        smallest = torch.finfo(torch.float32).tiny  # 1 / s is finite in float32 too
        is_constant = deviation <= (ROUNDING * self.mean.abs()).clamp(min=smallest)
        return torch.where(is_constant, 0.0, 1 / deviation)


def _get_weights(batch: Batch) -> Tensor:
    """Return the weights of a batch's images, (B, 1) float64; 1 where it brings none."""
    weights = torch.ones(len(batch.images), device=batch.images.device)
    return to_float64(weights if batch.weights is None else batch.weights)[:, None]


def to_float64(x: Tensor) -> Tensor:
    """Return `x` in float64, on its own device, or on the CPU if that device has no float64."""
    return x.to("cpu" if x.device.type == "mps" else x.device).double()


SMALL_SPAN = 0.75
"""Examples a feature up to which their space is worth a change of coordinates."""


def is_span_small(stats: FeatureStats) -> bool:
    """Tell whether coordinates in the space of the examples save time. A GPU needs no saving."""
    return stats.mean.device.type == "cpu" and stats.images <= SMALL_SPAN * len(stats.mean)


class Span:
    """Coordinates in the space that the N standardized examples span: z = basis t, (F,) and (N,).

    The axes of t are the principal components: its correlations are a diagonal matrix, so that its
    curvature is inverted by a division, where another basis would need a triangular system.

    Attributes:
        stats: statistics of t, as those of the features; t is used as it is.
        correlation: (N,) float32, the diagonal of what `correlate` computes of t.
    """

    def __init__(self, batches: Batches, stats: FeatureStats) -> None:
        """Find the coordinates, in one pass over the batches.

        Args:
            batches: gives the examples, on the CPU.
            stats: their statistics.
        """
        kept = list(batches())
        rows = [(batch.images - stats.mean) * stats.inverse_deviation for batch in kept]
        weights = torch.cat([_get_weights(batch).float() for batch in kept])
        self._basis, triangle = torch.linalg.qr(torch.cat(rows).T)
        correlation = (triangle * weights.T) @ triangle.T / stats.images
        eigenvalues, self._axes = torch.linalg.eigh(correlation)
        self.correlation = eigenvalues.clamp(min=0)  # rounding takes zeros below 0
        parts = (triangle.T @ self._axes).split([len(part) for part in rows])
        self._batches = [
            replace(batch, images=part) for batch, part in zip(kept, parts, strict=True)
        ]
        self.stats = replace(
            stats,
            mean=torch.zeros(stats.images),
            inverse_deviation=torch.ones(stats.images),
        )

    def batches(self) -> list[Batch]:
        """Return the batches, with coordinates in place of features."""
        return self._batches

    def to_features(self, weight: Tensor) -> Tensor:
        """(L, N) weights of coordinates -> (L, F) weights of standardized features."""
        features: Tensor = weight @ self._axes.T @ self._basis.T
        return features
