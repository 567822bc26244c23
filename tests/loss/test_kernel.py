"""Triton's kernel against the float64 reference; compiled on a GPU, interpreted without one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_true as assert_true_of
from oracle import tensors
from torch import Tensor

from mlfinetune.loss import asymmetric_loss, build_loss, sigmoid_cross_entropy

pytest.importorskip("triton")

from mlfinetune.loss import kernel

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, who computes where masked
    pytest.mark.filterwarnings("ignore:Conversion of an array"),  # numpy's, of Triton 3.6
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
REDUCTIONS = ["mean", "sum", "none"]
LARGEST = torch.finfo(torch.float32).max
TARGETS: dict[str, Callable[[Tensor], Tensor]] = {  # from {1, 0, -1}
    "int8": lambda t: t,
    "uint8": lambda t: t.clamp(min=0).byte(),
    "bool": lambda t: t > 0,
    "int64": lambda t: t.long(),
    "float with unknown": lambda t: t.float(),
    "soft": lambda t: (t.float() + 1.25) / 2.5,
    "soft with unknown": lambda t: torch.where(t < 0, -1.0, t.float() * 0.75 + 0.125),
}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("sce", {"label_smoothing": 0.1}),
    ("asl", {}),
    ("asl", {"clip": 0.0}),
    ("asl", {"gamma_neg": 0.5, "gamma_pos": 0.0, "clip": 0.3, "label_smoothing": 0.1}),
    ("asl", {"gamma_neg": 0.0, "gamma_pos": 2.0, "clip": 0.05}),
    ("focal", {}),
    ("focal", {"alpha": None, "gamma": 1.5}),
]
SHAPES = [(1, 1), (1, 7), (3, 1000), (64, 20), (64, 80)]
EDGES = [(1, kernel.SINGLE - 1), (1, kernel.SINGLE), (1, kernel.SINGLE + 1)]


def assert_true(
    logits: Tensor, targets: Tensor, name: str = "sce", reduction: str = "mean", **rest: Any
) -> None:
    """The kernel's value and gradient are those of the reference."""
    given: dict[str, Any] = {"backend": "triton", "reduction": reduction, **rest}
    if name != "sce":  # a power's relative error is that of its exponent; p - clip cancels
        given = {"looser": 5, **given}
    if name == "asl":
        given["slack"] = 1e-8 / (logits.numel() if reduction == "mean" else 1)
    if logits.dtype == torch.bfloat16 and DEVICE == "cpu":
        given["looser"] = 2  # the interpreter truncates to bfloat16, and rounds not
    assert_true_of(logits, targets, name, **given)


def slopes(loss: Tensor, logits: Tensor, times: float = 1.0) -> Tensor:
    """Return the gradient of the logits when the loss has the gradient `times`."""
    return torch.autograd.grad(loss, logits, torch.full_like(loss, times))[0]


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set tiles and grids so small that each of a few programs loops several times."""
    monkeypatch.setattr(kernel, "SINGLE", 256)
    monkeypatch.setattr(kernel, "TILE", 256)
    monkeypatch.setattr(kernel, "PROGRAMS", 4)


@pytest.mark.parametrize("targets", list(TARGETS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_gives_the_reference(dtype: torch.dtype, targets: str) -> None:
    """Value and gradient for each type of logits and targets."""
    x, t, _ = tensors((16, 20), 1, DEVICE)
    for reduction in REDUCTIONS:
        assert_true(x.to(dtype), TARGETS[targets](t), reduction=reduction)


@pytest.mark.parametrize("shape", SHAPES + EDGES)
def test_every_shape_gives_the_reference(shape: tuple[int, ...]) -> None:
    """One program or several, full tiles or not."""
    x, t, w = tensors(shape, 2, DEVICE)
    assert_true(x, t)
    assert_true(x, t, reduction="none", pos_weight=w)


@pytest.mark.usefixtures("small_grid")
@pytest.mark.parametrize("elements", [257, 1300, 2500])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_many_rounds_of_the_grid_give_the_reference(elements: int, reduction: str) -> None:
    """As many tiles as programs, and more; the last one odd."""
    x, t, w = tensors((5, elements // 5 + elements % 2), 3, DEVICE)
    assert_true(x, t, reduction=reduction, pos_weight=w, grad_output=0.5)
    assert_true(x.T, t.T, reduction=reduction)


@pytest.mark.parametrize("shape", [(16, 20), (100, 120)])
@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("weighted", ["none", "scalar", "labels"])
def test_every_form_gives_the_reference(
    weighted: str, name: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    """Weights, smoothing and focus in one program and in several."""
    x, t, w = tensors(shape, 4, DEVICE)
    weight = {"none": None, "scalar": w[0], "labels": w}[weighted]
    for reduction in REDUCTIONS if shape == (16, 20) else ["mean"]:
        assert_true(x, t, name, reduction, pos_weight=weight, **settings)


@pytest.mark.parametrize("soft", [False, True])
def test_no_focus_is_the_plain_loss_in_every_bit(soft: bool) -> None:
    """Gammas and clip of 0 take the plain path."""
    x, t, w = tensors((16, 20), 5, DEVICE)
    x, t = x.requires_grad_(), TARGETS["soft with unknown" if soft else "int8"](t)
    plain = sigmoid_cross_entropy(x, t, pos_weight=w, backend="triton")
    none = {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0}
    focused = asymmetric_loss(x, t, pos_weight=w, backend="triton", **none)
    assert torch.equal(plain, focused)
    assert torch.equal(slopes(plain, x), slopes(focused, x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divisor", [7, 7.5])
def test_a_divisor_takes_the_place_of_the_count(divisor: float, dtype: torch.dtype) -> None:
    """Of integers and of floats, for one program and for several."""
    for shape in ((16, 20), (100, 120)):
        x, t, _ = tensors(shape, 6, DEVICE)
        by = torch.tensor(divisor, device=DEVICE)
        assert_true(x.to(dtype), t, divisor=by)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
def test_the_value_does_not_depend_on_the_gradient_being_wanted(name: str, reduction: str) -> None:
    """The same bits with and without a gradient."""
    x, t, w = tensors((16, 20), 7, DEVICE)
    loss = build_loss(name, pos_weight=w, backend="triton")
    without = loss(x, t, reduction=reduction)
    assert not without.requires_grad
    with_gradient = loss(x.requires_grad_(), t, reduction=reduction)
    with torch.no_grad():
        held = loss(x, t, reduction=reduction)
    assert torch.equal(without, with_gradient)
    assert torch.equal(held, without)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [(0, 5), (2, 0, 5)])
def test_nothing_gives_zero(rows: tuple[int, ...], reduction: str) -> None:
    """No rows: a loss of 0 or of no elements, and no gradient."""
    x, t, w = tensors(rows, 8, DEVICE)
    x = x.requires_grad_()
    loss = sigmoid_cross_entropy(x, t, pos_weight=w, reduction=reduction, backend="triton")
    assert loss.shape == (rows if reduction == "none" else ())
    assert not loss.any()
    assert slopes(loss, x).shape == rows


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.T, id="transposed"),
        pytest.param(lambda x: x[::2, 1::3], id="strided"),
        pytest.param(lambda x: x[:, 3:9], id="rows apart"),
        pytest.param(lambda x: x[:1].expand(9, -1), id="one row"),
        pytest.param(lambda x: x[:, :1].expand(-1, 9), id="one column"),
    ],
)
def test_layouts_give_the_reference(view: Callable[[Tensor], Tensor]) -> None:
    """Logits and targets, each in its own layout."""
    x, t, w = (view(part) for part in (*tensors((12, 30), 9, DEVICE)[:2], torch.rand(12, 30)))
    weight = w[0].to(DEVICE)
    for logits, targets in ((x, t), (x.contiguous(), t), (x, t.contiguous())):
        assert_true(logits, targets, pos_weight=weight)
        assert_true(logits, targets > 0, "asl", reduction="none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6, 5), (100, 120)])
def test_all_unknown_gives_zero(shape: tuple[int, int], reduction: str) -> None:
    """Loss 0 and gradient 0, not NaN, for any grad_output."""
    x, t, w = tensors(shape, 10, DEVICE)
    x = x.requires_grad_()
    loss = build_loss(pos_weight=w, label_smoothing=0.1, backend="triton")
    value = loss(x, torch.full_like(t, -1), reduction=reduction)
    assert not value.any()
    assert not slopes(value, x, 3.0).any()


@pytest.mark.parametrize("unknown", [-0.5, -1.0, -2.0, -100.0])
def test_any_negative_float_is_unknown(unknown: float) -> None:
    """-100, with which others mark what to ignore, as well as -1."""
    x, t, _ = tensors((16, 20), 11, DEVICE)
    assert_true(x, torch.where(t < 0, unknown, t.float()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_output", [1.0, 0.5, -3.0, 65536.0])
def test_backward_multiplies_by_what_it_is_given(grad_output: float, dtype: torch.dtype) -> None:
    """With the count of known targets put right too, before float16 is rounded."""
    for shape, known in (((16, 20), False), ((16, 20), True), ((100, 120), False)):
        x, t, _ = tensors(shape, 12, DEVICE)
        x, t = (x * 0.5).to(dtype), t.clamp(min=0) if known else t
        assert_true(x, t, grad_output=grad_output)


def test_loss_scaling_rescues_small_float16_gradients() -> None:
    """A GradScaler's factor comes before rounding to float16."""
    x = torch.full((64, 64), -10.0, dtype=torch.float16, device=DEVICE)
    t = torch.zeros(64, 64, dtype=torch.int8, device=DEVICE)
    assert_true(x, t, grad_output=65536.0)
    assert slopes(sigmoid_cross_entropy(x.requires_grad_(), t, backend="triton"), x, 65536).all()


@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
@pytest.mark.parametrize("target", [0, 1])
def test_finite_for_every_finite_logit(target: int, name: str) -> None:
    """Up to the largest floats, value and gradient are finite."""
    sizes = [0.0, 88.0, 104.0, 1e4, 1e30, 2e38, 2.4e38, LARGEST]
    x = torch.tensor([sizes, [-size for size in sizes]], device=DEVICE, requires_grad=True)
    t = torch.full(x.shape, target, device=DEVICE)
    loss = build_loss(name, backend="triton")(x, t, reduction="none")
    assert loss.isfinite().all()
    assert (slopes(loss, x).abs() <= 4).all()


@pytest.mark.parametrize("clip", [1e-3, 1e-6, 1e-8])
def test_a_small_clip_keeps_its_precision(clip: float) -> None:
    """A confident wrong answer costs -log(q + clip), not the logarithm of a rounded 1 - p_m."""
    x = torch.tensor([[10.0, 15.0, 20.0, 50.0]], device=DEVICE)
    t = torch.zeros(1, 4, dtype=torch.int8, device=DEVICE)
    assert_true(x, t, "asl", reduction="none", clip=clip, looser=3)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["sce", "asl", "focal"])
def test_nan_is_told_where_the_target_is_known(name: str, reduction: str) -> None:
    """A NaN logit makes the loss NaN, and does not where nothing is known of its label."""
    x, t, _ = tensors((16, 20), 13, DEVICE)
    x[3, 4] = float("nan")
    loss = build_loss(name, backend="triton")
    for target in (0, 1):
        t[3, 4] = target
        assert loss(x, t, reduction=reduction).isnan()
    t[3, 4] = -1
    logits = x.requires_grad_()
    value = loss(logits, t, reduction=reduction)
    assert value.isfinite()
    assert slopes(value, logits).isfinite().all()


@pytest.mark.parametrize("shape", [(16, 20), (100, 120)])
def test_same_bits_on_every_run(shape: tuple[int, int]) -> None:
    """Sums are taken in one order."""
    x, t, w = tensors(shape, 14, DEVICE)
    x = x.requires_grad_()
    loss = build_loss(pos_weight=w, backend="triton")
    (value, slope), *others = ((v, slopes(v, x, 0.3)) for v in (loss(x, t) for _ in range(4)))
    for other_value, other_slope in others:
        assert torch.equal(value, other_value)
        assert torch.equal(slope, other_slope)


@pytest.mark.parametrize("part", ["logits", "targets"])
def test_offsets_beyond_two_to_the_31(part: str) -> None:
    """A row may begin more than 2^31 elements after the one before; only touched pages exist."""
    x, t, _ = tensors((2, 3), 15, DEVICE)
    x = x.bfloat16()
    step = 2**31 + 8
    near = x if part == "logits" else t
    far = torch.empty(step + 3, dtype=near.dtype, device=DEVICE).as_strided((2, 3), (step, 1))
    far.copy_(near)
    assert_true(*((far, t) if part == "logits" else (x, far)))


# ---- compiled for a GPU, without one ------------------------------------------------------

COMPILE = """
import contextlib, io, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mlfinetune.loss import kernel

pointers = dict(logits="*fp32", targets="*i8", weights="constexpr", divisor="constexpr",
    grad="*fp32", values="*fp32", partial_loss="*fp32", partial_known="*i32", loss="*fp32",
    correction="*fp32", grad_output="*fp32")
numbers = dict(n="i32", columns="i32", x_row="i32", x_column="constexpr", t_row="i32",
    t_column="constexpr", w_step="i32", scale="fp32", smoothing="fp32", gamma_neg="fp32",
    gamma_pos="fp32", clip="fp32", negative_weight="fp32")
flags = dict(STRIDED=False, WEIGHTED=False, DIVIDED=False, MEAN=True, ELEMENTWISE=False,
    GRADIENT=True, SMOOTHED=False, FOCUSED=False, CLIPPED=False, BLOCK=2048, PROGRAMS=4096)


def assemble(function, over, warps):
    function = getattr(kernel, function)
    names = function.arg_names
    assert set(over) <= set(names)
    types = {**pointers, **numbers, **{flag: "constexpr" for flag in flags}}
    types |= {name: over[name] for name in over if name not in flags}
    given = {name: 1 if name.endswith("column") else None for name in types}
    given |= {flag: over.get(flag, flags[flag]) for flag in flags}
    source = ASTSource(
        fn=function,
        signature={name: types[name] for name in names},
        constexprs={(names.index(k),): given[k] for k in names if types[k] == "constexpr"},
        attrs={(names.index(k),): [["tt.divisibility", 16]]
               for k in names if types[k].startswith("*") or k == "n"},
    )
    options = dict(num_warps=warps, enable_fp_fusion=True)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        target = GPUTarget("cuda", 90, 32)
        ptx = triton.compile(source, target=target, options=options).asm["ptx"]
    return ptx, told.getvalue()


settings = json.load(sys.stdin)
print(json.dumps({name: assemble(*setting) for name, setting in settings.items()}))
"""
NARROW = {"logits": "*bf16", "grad": "*bf16"}
SINGLE = {"BLOCK": 8192, "PROGRAMS": 1}
STRIDED = {"STRIDED": True, "x_column": "i32"}
COMPILED: dict[str, tuple[str, dict[str, Any], int]] = {
    "float32": ("_forward", {}, 4),
    "bfloat16": ("_forward", NARROW, 4),
    "one program of bfloat16": ("_forward", {**NARROW, **SINGLE}, 16),
    "none": ("_forward", {"ELEMENTWISE": True, "MEAN": False}, 4),
    "divisor": ("_forward", {"DIVIDED": True, "MEAN": False, "divisor": "*i64"}, 4),
    "weights": ("_forward", {"WEIGHTED": True, "weights": "*fp32", "SMOOTHED": True}, 4),
    "asl": ("_forward", {"FOCUSED": True, "CLIPPED": True}, 4),
    "focal": ("_forward", {"FOCUSED": True, "WEIGHTED": True, "weights": "*fp64"}, 4),
    "2^31 elements": ("_forward", {"n": "i64"}, 4),
    "strided": ("_forward", STRIDED, 4),
    "sum of programs": ("_sum_programs", {}, 4),
    "rescale": ("_rescale", {"PROGRAMS": 1024}, 4),
    "rescale bfloat16": ("_rescale", {"PROGRAMS": 1024, "grad": "*bf16"}, 4),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Return PTX for compute capability 9.0 of each setting, and the assembler's report."""
    folder = str(tmp_path_factory.mktemp("triton"))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        env={**environment, "TRITON_CACHE_DIR": folder, "TRITON_DUMP_PTXAS_LOG": "1"},
        input=json.dumps(COMPILED),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("setting", list(COMPILED))
def test_every_kernel_compiles_without_spills_and_atomics(
    compiled: dict[str, tuple[str, str]], setting: str
) -> None:
    """For an H100, whether there is one or not; the order of sums is nobody's luck."""
    ptx, told = compiled[setting]
    assert ".local" not in ptx
    assert "0 bytes spill stores, 0 bytes spill loads" in told
    assert not [line for line in ptx.splitlines() if " atom." in line or " red." in line]


@pytest.mark.parametrize(
    "setting", [name for name in COMPILED if name not in ("strided", "sum of programs")]
)
def test_contiguous_memory_moves_16_bytes_at_once(
    compiled: dict[str, tuple[str, str]], setting: str
) -> None:
    """Logits, targets and gradient, of whatever types."""
    ptx, _ = compiled[setting]
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    assert "ld.global.b8" not in ptx
    assert "ld.global.b16" not in ptx
    assert "st.global.b16" not in ptx
