"""The loss on a CPU: blocks, kept buffers, the joined log1p, asymmetric and focal loss."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle import assert_true, assert_within, in_a_thread, tensors, truth
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from mlfinetune.loss import asymmetric_loss, blocks, build_loss, focal_loss, sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference as reference

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter

LARGEST = torch.finfo(torch.float32).max
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HARD: dict[str, Callable[[Tensor], Tensor]] = {  # from {1, 0, -1}
    "int8 with unknown": lambda t: t,
    "int64 with unknown": lambda t: t.long(),
    "float with unknown": lambda t: t.float(),
    "double with unknown": lambda t: t.double(),
    "int8": lambda t: t.clamp(min=0),
    "uint8": lambda t: t.clamp(min=0).byte(),
    "bool": lambda t: t > 0,
    "float": lambda t: t.clamp(min=0).float(),
    "half": lambda t: t.clamp(min=0).half(),
}
SIZES = {"few operations": (2**30, 2**30), "one block": (0, 2**30), "many blocks": (0, 64)}
GAMMAS = [0.0, 0.5, 1.0, 2.0, 4.0]


def value_and_slope(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its derivative, that of its sum where it is not a scalar."""
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def shrink(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """Set small block sizes from SIZES, and one thread, so that the blocks are that small."""
    small, block = SIZES[size]
    monkeypatch.setattr(blocks, "SMALL", small)
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


# ---- blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(HARD))
def test_hard_targets_give_the_reference(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, size: str
) -> None:
    """Every type of targets and logits, on each of the ways through."""
    shrink(monkeypatch, size)
    for shape in ((1, 1), (31, 7), (64, 3), (2, 100)):
        x, t, _ = tensors(shape, 1)
        for reduction in ("mean", "sum"):
            assert_true(x.to(dtype), HARD[kind](t), reduction=reduction, grad_output=-0.5)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
def test_every_other_target_gives_the_reference(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, size: str
) -> None:
    """Soft, weighted, smoothed, focused: the same blocks."""
    shrink(monkeypatch, size)
    looser = 1 if name == "sce" else 5
    x, t, w = tensors((31, 7), 2)
    soft = torch.where(t < 0, -1.0, t.float() * 0.75 + 0.125)
    for targets, rest in ((t, {}), (soft, {}), (t, {"pos_weight": w}), (t, {"pos_weight": w[0]})):
        assert_true(x.to(dtype), targets, name, looser=looser, slack=1e-10, **rest)
    assert_true(x.to(dtype), t, name, looser=looser, slack=1e-10, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_block_and_a_half_give_the_reference(dtype: torch.dtype) -> None:
    """More than 2^19 elements, the last block odd."""
    x, t, w = tensors((11003, 71), 3)
    assert x.numel() > max(blocks.BLOCK, blocks.BLOCK // 4 * torch.get_num_threads())
    assert_true(x.to(dtype), t)
    assert_true(x.to(dtype), t > 0, pos_weight=w)


@pytest.mark.parametrize("shape", [(127, 129), (128, 128), (129, 127)])
def test_both_sides_of_the_real_limit(shape: tuple[int, int]) -> None:
    """Around SMALL, where another way is taken."""
    assert 127 * 129 < blocks.SMALL == 128 * 128
    x, t, _ = tensors(shape, 4)
    assert_true(x, t)
    assert_true(x.T, t.T)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("divisor", [7, 7.5])
def test_a_divisor_takes_the_place_of_the_count(
    monkeypatch: pytest.MonkeyPatch, divisor: float, size: str
) -> None:
    """In value and gradient."""
    shrink(monkeypatch, size)
    x, t, w = tensors((31, 7), 5)
    assert_true(x, t, divisor=torch.tensor(divisor))
    assert_true(x, t, divisor=torch.tensor(divisor), pos_weight=w)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("unknown", [-0.5, -1.0, -2.0, -100.0])
def test_any_negative_float_is_unknown(
    monkeypatch: pytest.MonkeyPatch, unknown: float, size: str
) -> None:
    """-100, with which others mark what to ignore, as well as -1."""
    shrink(monkeypatch, size)
    x, t, w = tensors((31, 7), 6)
    targets = torch.where(t < 0, unknown, t.float())
    assert_true(x, targets)
    assert_true(x, targets, pos_weight=w)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("rows", [slice(0, 10), slice(9, 22), slice(None)])
def test_blocks_without_a_known_target_give_zero(
    monkeypatch: pytest.MonkeyPatch, rows: slice, size: str
) -> None:
    """One block of many, or all of them."""
    shrink(monkeypatch, size)
    x, t, w = tensors((31, 7), 7)
    t[rows] = -1
    x[rows] = LARGEST
    for rest in ({}, {"pos_weight": w}):
        assert_true(x, t, **rest)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
@pytest.mark.parametrize("target", [0, 1])
def test_finite_for_the_largest_logits(
    monkeypatch: pytest.MonkeyPatch, target: int, name: str, size: str
) -> None:
    """The mean and the gradient, right and wrong."""
    shrink(monkeypatch, size)
    x = torch.tensor([LARGEST, -LARGEST, 0.0, 1e30]).repeat(50, 1).requires_grad_()
    loss, slope = value_and_slope(build_loss(name)(x, torch.full((50, 4), target)), x)
    assert loss.isfinite()
    assert (slope.abs() <= 1).all()


# ---- the joined log1p ---------------------------------------------------------------------


def joined(numbers: list[float], dtype: torch.dtype) -> tuple[float, float]:
    """Return the sum of log1p of the numbers, by `blocks` and the true one."""
    e = torch.tensor(numbers, dtype=dtype)
    want = math.fsum(map(math.log1p, e.tolist()))
    return float(blocks._join_pairs(e).log1p_().double().sum()), want


NUMBERS = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from((0.0, 1.0, 1e-45, 1e-40, 2.0**-126, 2.0**-24, 1 - 2.0**-24)),
    st.floats(-45, 0).map(lambda power: 10**power),
)


@settings(max_examples=300, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=200))
@example([1.0] * 31)
@example([1.0] * 32)
@example([1.0] * 200)
@example([1e-45] * 33)
def test_joining_keeps_the_sum_of_log1p(numbers: list[float]) -> None:
    """Of any numbers in [0, 1], however many and however small, to the last that underflows."""
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        ours, want = joined(numbers, dtype)
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ours == pytest.approx(want, rel=rtol, abs=smallest * len(numbers))


@pytest.mark.parametrize("length", range(1, 201))
def test_joining_keeps_every_number(length: int) -> None:
    """Every place counts, at every length."""
    numbers = [(i + 1) / length for i in range(length)]
    ours, want = joined(numbers, torch.float64)
    assert ours == pytest.approx(want, rel=1e-14)


# ---- kept buffers -------------------------------------------------------------------------


def large(seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Call the loss so that it leaves large buffers behind, full of numbers."""
    x, t, w = tensors((220, 80), seed)
    assert_true(x.to(dtype), t)
    assert_true(x.to(dtype), t, pos_weight=w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_earlier_calls(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Large, then small, then large again, types in turn: the same bits as in a new thread."""
    monkeypatch.setattr(blocks, "SMALL", 0)
    x, t, w = tensors((31, 7), 8)
    logits = x.to(dtype).requires_grad_()
    results: list[list[tuple[Tensor, Tensor]]] = []

    def run() -> None:
        losses = [build_loss()(logits, t), build_loss("asl", pos_weight=w)(logits, t)]
        results.append([value_and_slope(loss, logits) for loss in losses])

    for before in (torch.float32, torch.float64, torch.float16):
        large(9, before)
        run()
    in_a_thread(run)
    assert len(results) == 4
    for result in results[:-1]:
        torch.testing.assert_close(result, results[-1], rtol=0, atol=0)


def test_results_outlive_later_calls() -> None:
    """What a call gives back is its own memory."""
    x, t, _ = tensors((210, 80), 10)
    x = x.requires_grad_()
    for name in ("sce", "focal"):
        for reduction in ("mean", "none"):
            value, slope = value_and_slope(build_loss(name)(x, t, reduction=reduction), x)
            kept = value.clone(), slope.clone()
            large(11)
            assert torch.equal(value, kept[0])
            assert torch.equal(slope, kept[1])


def test_threads_do_not_share_buffers() -> None:
    """Two at once, each with its own shapes, both right every time."""

    def work(seed: int) -> None:
        for turn in range(8):
            x, t, w = tensors((300 + 50 * seed, 80), 100 * seed + turn)
            assert_true(x, t)
            assert_true(x, t, pos_weight=w)

    in_a_thread(*(partial(work, seed) for seed in (1, 2)))


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("name", ["sce", "asl"])
def test_training_after_an_evaluation(name: str, first: Callable[[], Any]) -> None:
    """The first call of a thread may be one without gradients."""

    def work() -> None:
        x, t, _ = tensors((300, 80), 12)
        for rows in (x.shape[0], 250):
            with first():
                assert build_loss(name)(x[:rows], t[:rows]).isfinite()
            assert_true(x, t, name, looser=5, slack=1e-10)

    in_a_thread(work)


# ---- asymmetric and focal loss ------------------------------------------------------------


@pytest.mark.parametrize("gamma_neg", GAMMAS)
@pytest.mark.parametrize("gamma_pos", GAMMAS)
@pytest.mark.parametrize("clip", [0.0, 0.05, 0.5])
def test_asymmetric_loss_is_the_reference(clip: float, gamma_pos: float, gamma_neg: float) -> None:
    """Value and gradient for every exponent, hard and soft targets."""
    given_settings = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    x, t, w = tensors((31, 7), 13)
    soft = torch.where(t < 0, -1.0, t.float() * 0.75 + 0.125)
    for targets in (t, soft):
        for dtype in (torch.float64, torch.float32):
            slack = 1e-9 if dtype == torch.float32 else 1e-15  # p - clip cancels
            assert_true(
                x.to(dtype), targets, "asl", looser=5, slack=slack, pos_weight=w, **given_settings
            )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_probability_at_the_clip_counts_nothing(backend: str, gamma: float) -> None:
    """At p = clip a negative costs nothing and pulls nowhere, as everywhere below."""
    if backend == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("test_kernel.py has the GPU's")
    x = torch.tensor([[0.0, -1.0, -1e30]], requires_grad=True)
    t = torch.zeros(1, 3, dtype=torch.int8)
    loss = asymmetric_loss(x, t, gamma_neg=gamma, clip=0.5, reduction="none", backend=backend)
    value, slope = value_and_slope(loss, x)
    assert not value.any()
    assert not slope.any()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_just_above_the_clip_the_gradient_is_the_true_one(gamma: float) -> None:
    """In float64, to as many digits as p - clip has."""
    x = torch.tensor([[1e-6, 1e-3, 0.1]], dtype=torch.float64)
    t = torch.zeros(1, 3, dtype=torch.int8)
    rest = {"gamma_neg": gamma, "clip": 0.5, "reduction": "none"}
    assert_true(x, t, "asl", looser=1e4, **rest)


@pytest.mark.parametrize("clip", [1e-3, 1e-6, 1e-8])
def test_a_small_clip_keeps_its_precision(clip: float) -> None:
    """A confident wrong answer costs -log(q + clip), not the logarithm of a rounded 1 - p_m."""
    x = torch.tensor([[10.0, 15.0, 20.0, 50.0]])
    t = torch.zeros(1, 4, dtype=torch.int8)
    assert_true(x, t, "asl", reduction="none", clip=clip, looser=3, slack=1e-12)


@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["asl", "focal"])
def test_no_focus_is_the_plain_loss_in_every_bit(
    monkeypatch: pytest.MonkeyPatch, name: str, size: str
) -> None:
    """Gammas and clip of 0 take the plain path."""
    shrink(monkeypatch, size)
    x, t, _ = tensors((31, 7), 14)
    x = x.requires_grad_()
    none = {
        "asl": {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0},
        "focal": {"gamma": 0.0, "alpha": None},
    }
    for reduction in ("mean", "sum", "none"):
        focused = build_loss(name, **none[name])(x, t, reduction=reduction)
        plain = sigmoid_cross_entropy(x, t, reduction=reduction)
        got, want = value_and_slope(focused, x), value_and_slope(plain, x)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_loss_is_torchvisions(gamma: float, alpha: float | None, reduction: str) -> None:
    """Value and gradient in float64, where theirs does not lose its digits."""
    x, t, _ = tensors((31, 7), 15, spread=3.0)
    x, t = x.double().requires_grad_(), t.clamp(min=0)
    ours = focal_loss(x, t, gamma=gamma, alpha=alpha, reduction=reduction)
    theirs = sigmoid_focal_loss(
        x, t.double(), gamma=gamma, alpha=-1 if alpha is None else alpha, reduction=reduction
    )
    got, want = value_and_slope(ours, x), value_and_slope(theirs, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(
    ("gamma_neg", "gamma_pos"), [(4.0, 1.0), (2.0, 0.0), (0.0, 0.0), (1.5, 3.0)]
)
def test_asymmetric_loss_is_the_published_formula(
    gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    """Equations 4 to 7 of Ben-Baruch et al. 2021, written down plainly."""
    x, t, _ = tensors((31, 7), 16, spread=3.0)
    x, y = x.double(), t.clamp(min=0).double()
    p = 1 / (1 + torch.exp(-x))
    shifted = torch.clamp(p - clip, min=0)
    positive = (1 - p) ** gamma_pos * torch.log(p)
    negative = shifted**gamma_neg * torch.log(1 - shifted)
    want = -y * positive - (1 - y) * negative
    got = asymmetric_loss(
        x, y, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction="none"
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["asl", "focal"])
def test_gradcheck_of_the_focused(name: str) -> None:
    """The gradients written by hand agree with finite differences."""
    x, t, w = tensors((6, 5), 17, spread=3.0)
    loss = build_loss(name, pos_weight=w.double(), label_smoothing=0.1)
    x = x.double().requires_grad_()
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: loss(x, t, reduction=r), (x,))


def test_the_oracle_is_the_reference() -> None:
    """What these tests compare with is not something of their own."""
    x, t, w = tensors((6, 5), 18)
    value, slope, size = truth("focal", x, t, pos_weight=w)
    logits = x.double().requires_grad_()
    loss = reference(
        logits,
        t,
        pos_weight=0.25 * w.double(),
        gamma_neg=2.0,
        gamma_pos=2.0,
        negative_weight=0.75,
    )
    want = value_and_slope(loss, logits)
    assert_within(value, want[0], torch.tensor(0.0))
    assert_within(slope, want[1], 1e-15 * size)
    assert (size >= slope.abs() * (1 - 1e-12)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(4, 5), (200, 100)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts_whose_target_is_unknown(
    reduction: str, shape: tuple[int, int], bad: float
) -> None:
    """Not even a logit that is no number; one whose target is known does count."""
    x, t, _ = tensors(shape, 30)
    broken = torch.where(t < 0, bad, x).requires_grad_()
    got = sigmoid_cross_entropy(broken, t, reduction=reduction)
    torch.testing.assert_close(got, sigmoid_cross_entropy(x, t, reduction=reduction))
    assert torch.autograd.grad(got.sum(), broken)[0].isfinite().all()
    assert not sigmoid_cross_entropy(torch.full_like(x, float("nan")), t).isfinite()


@pytest.mark.parametrize("shape", [(4, 5), (200, 100)])
def test_a_default_device_elsewhere_changes_nothing(shape: tuple[int, int]) -> None:
    """Buffers and results are where the logits are."""
    x, t, _ = tensors(shape, 31)

    def work() -> None:
        want = sigmoid_cross_entropy(x, t, label_smoothing=0.1)
        with torch.device("meta"):
            assert torch.equal(sigmoid_cross_entropy(x, t, label_smoothing=0.1), want)
        assert torch.equal(sigmoid_cross_entropy(x, t, label_smoothing=0.1), want)

    in_a_thread(work)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3, 0), (0, 4)])
def test_nothing_gives_0(shape: tuple[int, ...]) -> None:
    """An empty batch, or no labels."""
    x = torch.zeros(shape, requires_grad=True)
    loss = sigmoid_cross_entropy(x, torch.zeros(shape))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, x)[0].shape == shape
