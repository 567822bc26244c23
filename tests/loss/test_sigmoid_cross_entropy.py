"""The fused loss: value and gradient against the float64 reference, and its promises.

Bounds are relative to the sum of the magnitudes of the terms, which for hard targets is the
true value itself. What underflows in the dtype at hand may be 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mlfinetune.loss import build_loss, sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference as reference

LARGEST = torch.finfo(torch.float32).max
CORNERS = (0.0, -0.0, *(s * x for x in (1e-30, 17.0, 88.0, 104.0, 1e4) for s in (1, -1)))
LOGITS = st.one_of(
    st.floats(-1e4, 1e4),
    st.builds(lambda sign, power: sign * 10**power, st.sampled_from((-1, 1)), st.floats(-30, 4)),
    st.sampled_from(CORNERS),
)
TARGETS: dict[torch.dtype, st.SearchStrategy[float]] = {
    torch.int8: st.sampled_from((1, 0, -1)),
    torch.uint8: st.sampled_from((1, 0)),
    torch.bool: st.sampled_from((1, 0)),
    torch.float32: st.one_of(st.just(-1), st.integers(0, 1024).map(lambda k: k / 1024)),
}
VALUE_RTOL = {  # of the loss, which is float32 for the narrow types too
    torch.float32: 1e-6,
    torch.float16: 1e-6,
    torch.bfloat16: 1e-6,
    torch.float64: 1e-12,
}
GRADIENT_RTOL = {  # of the gradient, in the type of the logits
    torch.float32: 1e-6,
    torch.float16: 6e-4,
    torch.bfloat16: 8e-3,  # rounded before the last factor, and after
    torch.float64: 1e-14,
}
thorough = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Case:
    """One call of the loss; the logits still in float64."""

    logits: Tensor
    targets: Tensor
    pos_weight: Tensor | None
    label_smoothing: float
    reduction: str

    def loss(self, function: Callable[..., Tensor], logits: Tensor) -> Tensor:
        """Return `function` (the loss or the reference) with these settings."""
        return function(
            logits,
            self.targets,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def true_slope(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return d loss / d logits in float64 from the closed form, and the size of its terms."""
        x, s, known = logits.double(), self.label_smoothing, self.targets >= 0
        t, w = self.targets.double(), 1.0 if self.pos_weight is None else self.pos_weight.double()
        up = known * ((1 - t) * (1 - s) + s / 2) * torch.sigmoid(x)
        down = known * w * (t * (1 - s) + s / 2) * torch.sigmoid(-x)
        count = known.sum().clamp(min=1) if self.reduction == "mean" else 1
        return (up - down) / count, (up + down) / count


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw cases: shapes from (0, L), logits up to 1e4, all targets, weights and reductions."""
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 6)))
    kind = draw(st.sampled_from(list(TARGETS)))
    weights = st.floats(0, 1000, width=32)
    w_shape = draw(st.sampled_from([None, (), shape[1:]]))
    w = None if w_shape is None else draw(arrays(np.float32, w_shape, elements=weights))
    return Case(
        logits=torch.tensor(draw(arrays(np.float64, shape, elements=LOGITS))),
        targets=torch.tensor(draw(arrays(np.float32, shape, elements=TARGETS[kind]))).to(kind),
        pos_weight=None if w is None else torch.tensor(w),
        label_smoothing=draw(st.one_of(st.just(0.0), st.floats(1e-3, 0.99))),
        reduction=draw(st.sampled_from(["mean", "sum", "none"])),
    )


def assert_within(got: Tensor, want: Tensor, bound: Tensor) -> None:
    """Assert that every entry of `got` is within `bound` of `want`, and finite."""
    error = (got.detach().double() - want).abs()
    assert got.shape == want.shape
    assert bool((error <= bound).all()), f"error {error}, bound {bound}"


def batch(seed: int, shape: tuple[int, ...] = (6, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 logits that need a gradient, targets from {1, 0, -1}, label weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 6
    targets = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
    weights = torch.rand(shape[-1], generator=generator) * 5 + 0.1
    return logits.requires_grad_(), targets, weights


def value_and_slope(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its derivative, that of its sum where it is not a scalar."""
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def naive(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss by the sigmoid first, then the logarithm: the error to avoid."""
    p = torch.sigmoid(logits)
    return -(targets * p.log() + (1 - targets) * (1 - p).log())


@pytest.mark.parametrize("dtype", list(VALUE_RTOL))
@thorough
@given(case=cases())
def test_value_and_gradient_equal_the_true_ones(dtype: torch.dtype, case: Case) -> None:
    """The loss has the relative error of its own type, for any targets, weights, reduction.

    The gradient has that of the logits' type, times any grad_output.
    """
    logits = case.logits.to(dtype).requires_grad_()
    loss, want = (
        case.loss(sigmoid_cross_entropy, logits),
        case.loss(reference, logits.detach().double()),
    )
    info, tiny = torch.finfo(dtype), torch.finfo(loss.dtype).tiny
    largest = 1.0 if case.pos_weight is None else 1.0 + float(case.pos_weight.max())
    slack = tiny * largest * max(logits.numel(), 1)
    for got in (loss, case.loss(sigmoid_cross_entropy, logits.detach())):
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_within(got, want, VALUE_RTOL[dtype] * want.abs() + slack)
    upstream = torch.linspace(-2, 3, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (got,) = torch.autograd.grad(loss, logits, upstream)
    slope, size = case.true_slope(logits.detach())
    slack = 3 * (info.smallest_normal * info.eps + tiny * largest)
    assert got.dtype == dtype
    assert_within(got, slope * upstream, GRADIENT_RTOL[dtype] * size * upstream.abs() + slack)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_torch_where_all_targets_are_known(reduction: str, weighted: bool) -> None:
    """Value and gradient are those of binary_cross_entropy_with_logits."""
    logits, targets, weights = batch(1)
    t, w = targets.clamp(min=0).float(), weights if weighted else None
    got = sigmoid_cross_entropy(logits, t, pos_weight=w, reduction=reduction)
    want = binary_cross_entropy_with_logits(logits, t, pos_weight=w, reduction=reduction)
    torch.testing.assert_close(value_and_slope(got, logits), value_and_slope(want, logits))


@pytest.mark.parametrize("target", [0, 1])
@thorough
@given(x=st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), LOGITS))
def test_finite_for_every_finite_logit(target: int, x: float) -> None:
    """No finite float32 logit gives inf or NaN, in value or gradient."""
    logits = torch.tensor([x, -x, LARGEST, -LARGEST], dtype=torch.float32, requires_grad=True)
    targets = torch.full((4,), target)
    loss = sigmoid_cross_entropy(logits, targets, reduction="none")
    value, slope = value_and_slope(loss, logits)
    assert value.isfinite().all()
    assert (slope.abs() <= 1).all()


def test_mean_of_the_largest_logits_is_finite() -> None:
    """The mean is representable, so it does not overflow on its way through the sum."""
    logits = torch.full((4, 4), LARGEST)
    assert sigmoid_cross_entropy(logits, torch.zeros(4, 4)).isfinite()


@pytest.mark.parametrize(
    ("x", "target", "want_loss", "want_slope"),
    [(100.0, 0.0, 100.0, 1.0), (100.0, 1.0, 0.0, 0.0), (-110.0, 1.0, 110.0, -1.0)],
)
def test_right_where_naive_overflows(
    x: float, target: float, want_loss: float, want_slope: float
) -> None:
    """Sigmoid-then-log gives inf or NaN, and a NaN gradient; ours is right."""
    logits, t = torch.tensor([x], requires_grad=True), torch.tensor([target])
    naive_loss, naive_slope = value_and_slope(naive(logits, t), logits)
    assert not naive_loss.isfinite()
    assert naive_slope.isnan()
    loss, slope = value_and_slope(sigmoid_cross_entropy(logits, t), logits)
    assert loss.item() == pytest.approx(want_loss, rel=1e-6, abs=1e-38)
    assert slope.item() == pytest.approx(want_slope, rel=1e-6, abs=1e-38)


@pytest.mark.parametrize("x", [18.0, 20.0, 30.0, 40.0])
def test_confident_right_answers_keep_a_gradient(x: float) -> None:
    """-log(sigmoid(x)) and sigmoid(x) - 1 are 0 in float32; the true gradient is -exp(-x)."""
    logits = torch.tensor([x], requires_grad=True)
    naive_loss, naive_slope = value_and_slope(-torch.sigmoid(logits).log(), logits)
    assert naive_loss == naive_slope == torch.sigmoid(logits) - 1 == 0
    for sign, target in ((1, 1), (-1, 0)):
        loss = sigmoid_cross_entropy(sign * logits, torch.tensor([target]))
        value, slope = value_and_slope(loss, logits)
        true_value, true_slope = np.log1p(np.exp(-x)), -1 / (1 + np.exp(x))
        assert value.item() == pytest.approx(true_value, rel=1e-6, abs=0)
        assert slope.item() == pytest.approx(true_slope, rel=1e-6, abs=0)


def test_log1p_keeps_what_log_of_one_plus_loses() -> None:
    """At 20 log(1 + exp(-x)) is exactly 0 in float32; the loss is 2e-9."""
    x = torch.tensor([20.0])
    assert torch.log(1 + torch.exp(-x)).item() == 0
    got = sigmoid_cross_entropy(x, torch.tensor([1]))
    assert got.item() == pytest.approx(2.0611536e-9, rel=1e-6, abs=0)


def test_small_smoothing_keeps_its_precision() -> None:
    """1 - (1 - s/2) would lose s: the loss of a confident right answer is s/2 * x."""
    logits = torch.tensor([40.0], requires_grad=True)
    loss = sigmoid_cross_entropy(logits, torch.tensor([1]), label_smoothing=1e-4)
    value, slope = value_and_slope(loss, logits)
    assert value.item() == pytest.approx(5e-5 * 40, rel=1e-6, abs=0)
    assert slope.item() == pytest.approx(5e-5, rel=1e-6, abs=0)


def test_chained_operations_equal_autograd_of_the_reference() -> None:
    """Backward through a linear layer, with the loss scaled and squared afterwards."""
    _, targets, weights = batch(2)
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    layer = nn.Linear(3, 5)
    slopes = []
    for function, dtype in ((sigmoid_cross_entropy, torch.float32), (reference, torch.float64)):
        layer, inputs = layer.to(dtype), features.to(dtype).requires_grad_()
        loss = (3 * function(layer(inputs), targets, pos_weight=weights) + 1) ** 2
        slopes.append(torch.autograd.grad(loss, [inputs, *layer.parameters()]))
    for got, want in zip(*slopes, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


def test_loss_scaling_rescues_small_float16_gradients() -> None:
    """grad_output is applied before rounding to float16, else GradScaler comes too late."""
    logits = torch.full((64, 64), -10.0, dtype=torch.float16, requires_grad=True)
    loss = sigmoid_cross_entropy(logits, torch.zeros(64, 64)) * 65536
    (slope,) = torch.autograd.grad(loss, logits)
    want = torch.full_like(slope, 65536 / 64**2 / (1 + np.exp(10)))
    torch.testing.assert_close(slope, want, rtol=1e-3, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_unknown_gives_zero(reduction: str) -> None:
    """No known target: loss 0 and gradient 0, not NaN, with weights and smoothing too."""
    logits, targets, weights = batch(3)
    loss = sigmoid_cross_entropy(
        logits,
        torch.full_like(targets, -1),
        pos_weight=weights,
        label_smoothing=0.1,
        reduction=reduction,
    )
    value, slope = value_and_slope(loss, logits)
    assert not value.any()
    assert not slope.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_unknown_entries_do_not_matter(reduction: str, smoothing: float) -> None:
    """Their gradient is exactly 0, and any other finite logit there gives the same bits."""
    logits, targets, weights = batch(4)
    other = torch.where(targets < 0, LARGEST, logits).detach().requires_grad_()
    loss = build_loss(pos_weight=weights, label_smoothing=smoothing)
    value, slope = value_and_slope(loss(logits, targets, reduction=reduction), logits)
    other_value, other_slope = value_and_slope(loss(other, targets, reduction=reduction), other)
    assert not slope[targets < 0].any()
    assert torch.equal(value, other_value)
    assert torch.equal(slope, other_slope)


def test_mean_divides_by_the_known() -> None:
    """Mean is the sum over the number of known targets, in value and gradient."""
    logits, targets, weights = batch(5)
    known = int((targets >= 0).sum())
    assert 0 < known < targets.numel()
    loss = build_loss(pos_weight=weights)
    mean = value_and_slope(loss(logits, targets), logits)
    total = value_and_slope(loss(logits, targets, reduction="sum"), logits)
    each = loss(logits, targets, reduction="none")
    torch.testing.assert_close(mean, tuple(part / known for part in total))
    torch.testing.assert_close(total[0], each.sum().detach())


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, 1), id="transposed"),
        pytest.param(lambda x: x[:, ::2, 1::3], id="strided"),
        pytest.param(lambda x: x.movedim(1, -1), id="channels"),
        pytest.param(lambda x: x[:1].expand(4, -1, -1), id="expanded"),
    ],
)
def test_layout_does_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    """Non-contiguous logits and targets give what their contiguous copies give."""
    base, targets, _ = batch(6, (4, 6, 7))
    x, t = view(base), view(targets)
    assert not x.is_contiguous()
    for reduction in ("mean", "none"):
        got = sigmoid_cross_entropy(x, t, reduction=reduction)
        want = sigmoid_cross_entropy(x.contiguous(), t.contiguous(), reduction=reduction)
        torch.testing.assert_close(value_and_slope(got, base), value_and_slope(want, base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_inputs_are_not_modified(dtype: torch.dtype) -> None:
    """Logits, targets and weights keep their bits, whatever needs no conversion."""
    inputs = [part.detach().to(dtype) for part in batch(7)]
    before = [part.clone() for part in inputs]
    logits = inputs[0].requires_grad_()
    for reduction in ("mean", "sum", "none"):
        loss = sigmoid_cross_entropy(logits, inputs[1], pos_weight=inputs[2], reduction=reduction)
        torch.autograd.grad(2 * loss.sum(), logits)
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(reduction: str, weighted: bool) -> None:
    """The gradient written by hand agrees with finite differences in float64."""
    logits, targets, weights = batch(8)
    loss = build_loss(pos_weight=weights if weighted else None, label_smoothing=0.1)
    x = logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, reduction=reduction), (x,))


@pytest.mark.parametrize("beside", [False, True])
def test_double_backward_raises(beside: bool) -> None:
    """A gradient of the gradient is refused, not silently taken for 0 beside other terms."""
    logits, targets, _ = batch(9)

    def slope_of_slope() -> None:
        loss = sigmoid_cross_entropy(logits, targets)
        loss = loss + (logits**2).sum() if beside else loss
        (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
        torch.autograd.grad(slope.sum(), logits)

    with pytest.raises(RuntimeError):
        slope_of_slope()


@pytest.mark.parametrize(
    ("logits", "targets", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), {}, r"\(2, 3\).*\(3, 2\)"),
        (torch.zeros(2, 3), torch.zeros(3), {}, r"\(2, 3\).*\(3,\)"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), {}, "floating point.*int32"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"reduction": "avg"}, "'avg'"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"label_smoothing": -0.1}, "-0.1"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"label_smoothing": 1.0}, "1.0"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"label_smoothing": float("nan")}, "nan"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"pos_weight": torch.ones(2)}, "pos_weight"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"pos_weight": torch.ones(2, 1)}, "pos_weight"),
    ],
)
def test_wrong_arguments_raise(
    logits: Tensor, targets: Tensor, options: dict[str, Any], message: str
) -> None:
    """A ValueError names what was given."""
    with pytest.raises(ValueError, match=message):
        sigmoid_cross_entropy(logits, targets, **options)


def test_runs_under_autocast() -> None:
    """Autocast logits are bfloat16; the loss stays float32 and equals the one outside."""
    _, targets, weights = batch(10)
    layer = nn.Linear(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(torch.ones(6, 3))
        inside = sigmoid_cross_entropy(logits, targets, pos_weight=weights)
    outside = sigmoid_cross_entropy(logits, targets, pos_weight=weights)
    assert (logits.dtype, inside.dtype) == (torch.bfloat16, torch.float32)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (inside, outside)]
    assert torch.equal(inside, outside)
    assert torch.equal(*slopes)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_runs_without_values(reduction: str) -> None:
    """Elsewhere than on the CPU no value is read on the host: a device without values will do."""
    logits = torch.empty(4, 3, device="meta", requires_grad=True)
    targets = torch.empty(4, 3, device="meta", dtype=torch.int8)
    weights = torch.empty(3, device="meta")
    loss = sigmoid_cross_entropy(
        logits, targets, pos_weight=weights, label_smoothing=0.1, reduction=reduction
    )
    assert loss.shape == ((4, 3) if reduction == "none" else ())
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (4, 3)


def test_build_loss_binds_its_settings() -> None:
    """The built loss is the function with weights and smoothing filled in."""
    logits, targets, weights = batch(12)
    built = build_loss(pos_weight=weights, label_smoothing=0.1)
    for reduction in ("mean", "sum", "none"):
        want = sigmoid_cross_entropy(
            logits, targets, pos_weight=weights, label_smoothing=0.1, reduction=reduction
        )
        assert torch.equal(built(logits, targets, reduction=reduction), want)
    assert not torch.equal(built(logits, targets), build_loss()(logits, targets))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_build_loss_refuses_weights_that_are_not_finite(bad: float) -> None:
    """One infinite or undefined weight is refused before any step."""
    with pytest.raises(ValueError, match="pos_weight"):
        build_loss(pos_weight=torch.tensor([1.0, bad, 2.0]))


def test_same_bits_on_every_run() -> None:
    """Repeated runs on the same input agree in every bit of value and gradient."""
    logits, targets, weights = batch(13, (256, 300))
    loss = build_loss(pos_weight=weights, label_smoothing=0.1)
    first, *others = (value_and_slope(loss(logits, targets), logits) for _ in range(5))
    for other in others:
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
