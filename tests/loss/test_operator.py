"""The loss as an operator of torch: its contract, torch.compile, second derivatives, backends."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import assert_true, in_a_thread, tensors
from torch import Tensor, nn

from mlfinetune.loss import (
    asymmetric_loss,
    build_loss,
    choose_backend,
    focal_loss,
    operator,
    sigmoid_cross_entropy,
)
from mlfinetune.loss.reference import Form

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Triton's interpreter

REDUCTIONS = ["mean", "sum", "none"]
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
interpreted = pytest.param(
    "triton",
    marks=pytest.mark.skipif(
        not operator._HAS_TRITON or torch.cuda.is_available(),
        reason="Triton's kernel takes tensors of a CPU where it is interpreted",
    ),
)
BACKENDS = ["torch", interpreted]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Return torch.compile as after a start, with a cache of its own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def value_and_slope(function: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, for an upstream gradient that is not 1."""
    x = logits.detach().requires_grad_()
    loss = function(x, targets)
    return loss.detach(), torch.autograd.grad(loss, x, torch.full_like(loss, 0.5))[0]


# ---- the operator -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's check asks for it
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_contract(
    backend: str, reduction: str, dtype: torch.dtype
) -> None:
    """Schema, fake tensors, autograd and tracing with dynamic shapes, by torch's own check."""
    x, t, w = tensors((4, 5), 1)
    form, x = list(Form(0.1, 2.0, 1.0, 0.05)), x.to(dtype)
    rest = (reduction, backend)
    torch.library.opcheck(operator._operator, (x, t, w, torch.tensor(7), form, *rest, False))
    torch.library.opcheck(
        operator._operator, (x.requires_grad_(), t, None, None, form, *rest, True)
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
def test_compiled_equals_eager(name: str, reduction: str, backend: str) -> None:
    """One graph without a break gives the value and the gradient of eager code."""
    x, t, w = tensors((6, 5), 2)
    loss = build_loss(name, pos_weight=w, backend=backend)

    def whole(logits: Tensor, targets: Tensor) -> Tensor:
        return loss(2 * logits, targets, reduction=reduction)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_slope(compiled, x, t), value_and_slope(whole, x, t))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_equals_eager_under_autocast(backend: str) -> None:
    """A layer in bfloat16, the loss in float32."""
    layer, (x, t, _) = nn.Linear(5, 5), tensors((6, 5), 3)

    def whole(features: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return sigmoid_cross_entropy(layer(features), targets, backend=backend)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    got, want = value_and_slope(compiled, x, t), value_and_slope(whole, x, t)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4)


@pytest.mark.usefixtures("compiler")
def test_compiled_takes_every_size_of_batch() -> None:
    """The last batch of an epoch is smaller; a divisor makes it a part of a larger one."""
    loss = build_loss("asl")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (6, 4, 3):
        x, t, _ = tensors((rows, 5), rows)
        torch.testing.assert_close(value_and_slope(compiled, x, t), value_and_slope(loss, x, t))
        by = torch.tensor(30.0)
        torch.testing.assert_close(compiled(x, t, divisor=by), loss(x, t, divisor=by))


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch's compiler needs one of C++")
def test_compiled_by_inductor_equals_eager() -> None:
    """With the compiler that people use."""
    x, t, w = tensors((6, 5), 4)
    loss = build_loss(pos_weight=w)
    quick = {"cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": False}  # seconds of C++ less
    compiled = torch.compile(loss, fullgraph=True, options=quick)
    torch.testing.assert_close(value_and_slope(compiled, x, t), value_and_slope(loss, x, t))


@pytest.mark.usefixtures("compiler")
def test_compiled_without_a_gradient_equals_eager() -> None:
    """For evaluation."""
    x, t, _ = tensors((6, 5), 5)
    compiled = torch.compile(focal_loss, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(x, t), focal_loss(x, t))


# ---- once, and once only ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_refused(reduction: str, backend: str) -> None:
    """With a message that names what to use instead."""
    x, t, _ = tensors((4, 5), 6)
    x = x.requires_grad_()
    loss = sigmoid_cross_entropy(x, t, reduction=reduction, backend=backend).sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.*mlfinetune\.loss\.reference"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.usefixtures("compiler")
def test_a_second_derivative_is_refused_when_compiled() -> None:
    """As in eager code."""
    x, t, _ = tensors((4, 5), 7)
    x = x.requires_grad_()
    compiled = torch.compile(sigmoid_cross_entropy, fullgraph=True, backend="aot_eager")
    loss = compiled(x, t)

    def slope_of_slope() -> None:
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        torch.autograd.grad(slope.sum(), x)

    with pytest.raises(RuntimeError):
        slope_of_slope()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_is_taken_once(dtype: torch.dtype, factor: float, backend: str) -> None:
    """It is multiplied in place and given away; every backend refuses a second time alike."""
    x, t, _ = tensors((4, 5), 9)
    x = x.to(dtype).requires_grad_()
    loss = sigmoid_cross_entropy(x, t, backend=backend)
    torch.autograd.grad(loss, x, torch.tensor(factor), retain_graph=True)
    with pytest.raises(RuntimeError, match=r"taken before, and given away; compute the loss again"):
        torch.autograd.grad(loss, x, retain_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_float64_and_elementwise_gradients_are_taken_again(reduction: str) -> None:
    """As gradcheck does."""
    x, t, _ = tensors((4, 5), 8)
    x = (x.double() if reduction == "mean" else x).requires_grad_()
    loss = sigmoid_cross_entropy(x, t, reduction=reduction)
    factor = torch.full_like(loss, 3.0)
    first, second = (torch.autograd.grad(loss, x, factor, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [False, True])
def test_a_second_backward_is_right_or_refused(backend: str, kept: bool) -> None:
    """Never a wrong gradient, also where the first one was changed by whoever had it."""
    x, t, _ = tensors((4, 5), 10)
    x = x.requires_grad_()
    loss = sigmoid_cross_entropy(x, t, backend=backend)
    (first,) = torch.autograd.grad(loss, x, retain_graph=kept)
    first.mul_(3)
    with pytest.raises(RuntimeError, match=r"taken before, and given away; compute the loss again"):
        torch.autograd.grad(loss, x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_two_losses_add_up(backend: str) -> None:
    """Accumulated into a leaf, twice, with different factors: nothing is shared."""
    x, t, _ = tensors((4, 5), 11)
    x = x.requires_grad_()
    loss = build_loss(backend=backend)
    for factor in (1.0, 2.0, 1.0):
        (factor * loss(x, t)).backward()
    (want,) = torch.autograd.grad(loss(x, t, reduction="sum"), x)
    torch.testing.assert_close(x.grad, 4 * want / int((t >= 0).sum()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", ["targets", "weights"])
def test_targets_and_weights_get_no_gradient(part: str, backend: str) -> None:
    """Who wants one is told; without gradients they are as good as any, and leave no trace."""
    x, t, w = tensors((4, 5), 12)
    targets = t.float()
    wanting = (targets if part == "targets" else w).clone().requires_grad_()
    given = (wanting, w) if part == "targets" else (targets, wanting)

    def work() -> None:
        with pytest.raises(ValueError, match=r"needs a gradient.*detach it"):
            sigmoid_cross_entropy(x, given[0], pos_weight=given[1], backend=backend)
        with torch.no_grad():
            sigmoid_cross_entropy(x, given[0], pos_weight=given[1], backend=backend)
        assert_true(x, targets, backend=backend, pos_weight=w)
        assert_true(x[:2], targets[:2] * 0.5 + 0.5, backend=backend)

    in_a_thread(work)


def test_other_devices_and_shapes_are_refused() -> None:
    """By name, before anything is computed."""
    x, t, w = tensors((4, 5), 12)
    with pytest.raises(ValueError, match="targets is on meta, and logits are on cpu"):
        sigmoid_cross_entropy(x, t.to("meta"))
    with pytest.raises(ValueError, match=r"divisor has shape \(2,\), wanted \(\)"):
        sigmoid_cross_entropy(x, t, divisor=torch.ones(2))
    with pytest.raises(ValueError, match="pos_weight must be finite and not negative"):
        build_loss(pos_weight=-w)


# ---- backends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "device", "interpret", "dtype", "want"),
    [
        ("auto", CPU, None, torch.float32, "torch"),
        ("auto", CPU, "1", torch.float32, "torch"),
        ("auto", CUDA, None, torch.float32, "triton"),
        ("auto", CUDA, None, torch.bfloat16, "triton"),
        ("auto", CUDA, None, torch.float64, "torch"),
        ("auto", MPS, None, torch.float32, "torch"),
        ("torch", CPU, None, torch.float32, "torch"),
        ("torch", CUDA, None, torch.float32, "torch"),
        ("triton", CUDA, None, torch.float16, "triton"),
        ("triton", CPU, "1", torch.float32, "triton"),
    ],
)
def test_the_backend_follows_device_and_type(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    device: torch.device,
    interpret: str | None,
    dtype: torch.dtype,
    want: str,
) -> None:
    """`auto` takes the kernel where it runs; every choice says why."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if interpret:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    backend, why = choose_backend(wanted, device, dtype)
    assert backend == want
    assert why


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "message"),
    [
        ("triton", CPU, torch.float32, "needs a GPU; use 'auto' or 'torch'"),
        ("triton", MPS, torch.float32, "does not run on mps"),
        ("triton", CUDA, torch.float64, "does not compute in float64"),
        ("cuda", CPU, torch.float32, "must be 'auto', 'triton' or 'torch', got 'cuda'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    message: str,
) -> None:
    """What was asked for explicitly is never replaced silently."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=message):
        choose_backend(wanted, device, dtype)


def test_the_loss_itself_refuses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend bound to a loss is checked with the logits it gets."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, t, _ = tensors((4, 5), 13)
    with pytest.raises(ValueError, match="needs a GPU"):
        build_loss(backend="triton")(x, t)
    with pytest.raises(ValueError, match="'fast'"):
        build_loss(backend="fast")(x, t)


@pytest.mark.parametrize("backend", [interpreted])
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
def test_backends_agree(name: str, backend: str) -> None:
    """Value and gradient, for every reduction."""
    x, t, w = tensors((16, 20), 14)
    for reduction in REDUCTIONS:
        ours, other = (
            value_and_slope(
                lambda x, t, b=b, r=reduction: build_loss(name, pos_weight=w, backend=b)(
                    x, t, reduction=r
                ),
                x,
                t,
            )
            for b in ("torch", backend)
        )
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-8)


# ---- the door -----------------------------------------------------------------------------


def test_build_loss_knows_each_name() -> None:
    """Each with its own defaults and settings."""
    x, t, w = tensors((4, 5), 15)
    weights = {"pos_weight": w, "label_smoothing": 0.1}
    assert torch.equal(build_loss(**weights)(x, t), sigmoid_cross_entropy(x, t, **weights))
    assert torch.equal(build_loss("asl", **weights)(x, t), asymmetric_loss(x, t, **weights))
    built = build_loss("asl", gamma_neg=2.0, gamma_pos=0.0, clip=0.1)(x, t)
    assert torch.equal(built, asymmetric_loss(x, t, gamma_neg=2.0, gamma_pos=0.0, clip=0.1))
    built = build_loss("focal", gamma=1.0, alpha=0.5, **weights)(x, t)
    assert torch.equal(built, focal_loss(x, t, gamma=1.0, alpha=0.5, **weights))
    with pytest.raises(KeyError, match="bce"):
        build_loss("bce")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("asl", {"gamma_neg": -1.0}, "gamma_neg -1.0"),
        ("asl", {"gamma_pos": float("nan")}, "gamma_pos nan"),
        ("asl", {"clip": 1.0}, r"clip must be in \[0, 1\), got 1.0"),
        ("asl", {"clip": -0.1}, r"clip must be in \[0, 1\), got -0.1"),
        ("focal", {"gamma": -2.0}, "-2.0"),
        ("focal", {"gamma": float("inf")}, "inf"),
        ("focal", {"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ("focal", {"alpha": 1.0}, r"alpha must be in \(0, 1\), got 1.0"),
        ("sce", {"reduction": "avg"}, "'avg'"),
    ],
)
def test_settings_out_of_range_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    """A ValueError that names what was given."""
    x, t, _ = tensors((4, 5), 16)
    with pytest.raises(ValueError, match=message):
        build_loss(name, **settings)(x, t)
