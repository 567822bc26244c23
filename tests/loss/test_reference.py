"""The reference loss against 60-digit arithmetic, against torch, and against its derivative."""

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mlfinetune.loss.reference import sigmoid_cross_entropy_reference as reference

MAGNITUDES = (1e-30, 1e-8, 0.5, 3.0, 17.0, 23.0, 40.0, 88.0, 104.0, 700.0, 1e4)
POINTS = (0.0, -0.0, *MAGNITUDES, *(-x for x in MAGNITUDES))
TARGETS = (0.0, 0.25, 0.9, 1.0)


def exact(x: float, t: float, w: float) -> tuple[float, float]:
    """Return loss and derivative from the textbook definition, with 60 digits."""
    with mpmath.workdps(60):
        e, one, t_exact = mpmath.exp(mpmath.mpf(x)), mpmath.mpf(1), mpmath.mpf(t)
        loss = (one - t_exact) * mpmath.log1p(e) + w * t_exact * mpmath.log1p(one / e)
        slope = (one - t_exact) * e / (one + e) - w * t_exact / (one + e)
        return float(loss), float(slope)


def batch(seed: int, *, unknown: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return float64 logits that need a gradient, soft targets, and weights.

    On demand a third of the targets is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 4
    targets = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    if unknown:
        targets[torch.rand(6, 5, generator=generator) < 1 / 3] = -1
    weights = torch.rand(5, generator=generator, dtype=torch.float64) * 5 + 0.1
    return logits.requires_grad_(), targets, weights


@pytest.mark.parametrize("weight", [None, 3.5])
@pytest.mark.parametrize("target", TARGETS)
def test_value_equals_sixty_digit_arithmetic(target: float, weight: float | None) -> None:
    """In float64 every loss is within 1e-14 relative of the 60-digit one, up to 1e4."""
    x = torch.tensor(POINTS, dtype=torch.float64)
    w = None if weight is None else torch.tensor(weight)
    got = reference(x, torch.full_like(x, target), pos_weight=w, reduction="none")
    want = [exact(point, target, weight or 1.0)[0] for point in POINTS]
    assert got.tolist() == pytest.approx(want, rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("weight", [None, 3.5])
@pytest.mark.parametrize("target", TARGETS)
def test_gradient_equals_sixty_digit_arithmetic(target: float, weight: float | None) -> None:
    """Autograd gives the true derivative, at exactly 0 and where sigmoid(x) rounds to 1 too."""
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    w = None if weight is None else torch.tensor(weight)
    loss = reference(x, torch.full_like(x, target), pos_weight=w, reduction="sum")
    (got,) = torch.autograd.grad(loss, x)
    want = [exact(point, target, weight or 1.0)[1] for point in POINTS]
    assert got.tolist() == pytest.approx(want, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_torch_where_all_targets_are_known(reduction: str, weighted: bool) -> None:
    """Value and gradient are those of binary_cross_entropy_with_logits for soft targets."""
    logits, targets, weights = batch(1)
    w = weights if weighted else None
    got = reference(logits, targets, pos_weight=w, reduction=reduction)
    want = binary_cross_entropy_with_logits(logits, targets, pos_weight=w, reduction=reduction)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-15)
    slopes = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (got, want)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-15)


def test_unknown_targets_are_as_if_absent() -> None:
    """Unknown entries give 0 and leave sum and mean to the known entries."""
    logits, targets, _ = batch(2, unknown=True)
    known = targets >= 0
    each = reference(logits, targets, reduction="none")
    assert 0 < known.sum() < known.numel()
    assert torch.equal(each == 0, ~known)
    for reduction in ("mean", "sum"):
        want = binary_cross_entropy_with_logits(logits[known], targets[known], reduction=reduction)
        torch.testing.assert_close(reference(logits, targets, reduction=reduction), want)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_all_unknown_gives_zero(reduction: str) -> None:
    """No known target: loss 0 and gradient 0, not NaN."""
    logits, targets, weights = batch(3)
    loss = reference(logits, -torch.ones_like(targets), pos_weight=weights, reduction=reduction)
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not slope.any()


@pytest.mark.parametrize("smoothing", [0.001, 0.1, 0.9])
def test_smoothing_equals_smoothed_targets(smoothing: float) -> None:
    """Smoothing s is the same as giving the targets t*(1-s) + s/2."""
    logits, targets, weights = batch(4)
    hard = targets.round()
    got = reference(logits, hard, pos_weight=weights, label_smoothing=smoothing)
    smoothed = hard * (1 - smoothing) + smoothing / 2
    want = binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


def test_smoothing_leaves_unknown_targets_unknown() -> None:
    """A smoothed -1 does not become a target."""
    logits, targets, _ = batch(5, unknown=True)
    each = reference(logits, targets, label_smoothing=0.5, reduction="none")
    assert torch.equal(each == 0, targets < 0)


def test_reductions_agree() -> None:
    """Sum is the sum of "none"; mean is that over the number of known targets."""
    logits, targets, weights = batch(6, unknown=True)
    each = reference(logits, targets, pos_weight=weights, reduction="none")
    total = reference(logits, targets, pos_weight=weights, reduction="sum")
    mean = reference(logits, targets, pos_weight=weights)
    assert each.shape == logits.shape
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(mean, each.sum() / (targets >= 0).sum())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(reduction: str, weighted: bool) -> None:
    """Autograd agrees with finite differences, unknown targets and smoothing included."""
    logits, targets, weights = batch(7, unknown=True)

    def loss(x: Tensor) -> Tensor:
        w = weights if weighted else None
        return reference(x, targets, pos_weight=w, label_smoothing=0.1, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (logits,))
