"""The loss family as one Triton kernel: it reads logits and targets once, writes the gradient once.

With e = exp(-|x|), which is at most 1,

    p = sigmoid(x) = (1 if x >= 0 else e) / (1 + e)        softplus(x)  = max(x, 0)  + log1p(e)
    q = 1 - p      = (e if x >= 0 else 1) / (1 + e)        softplus(-x) = max(-x, 0) + log1p(e)
    log1p(e) = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...),  s = e / (2 + e) <= 1/3

and one division serves both 1/(1+e) and 1/(2+e). The arithmetic is float32.

    flat elements  ->  tiles of BLOCK  ->  program k computes the tiles k, k + PROGRAMS, ...
    each program   ->  its sum of losses and count of known targets
    at the end     ->  these are added up in a fixed order: by the program itself if it is the only
                       one, else by a second launch of a single program

There are no atomics, so that equal inputs give equal bits.

A mean divides the gradient by the number of known targets, which is known only when all targets
have been read. So the gradient is divided by the number of all targets (unless a divisor is given),
and `rescale_` multiplies it by the correction all/known in the backward pass. `rescale_` writes
nothing if grad_output * correction is 1. In this way one read of the targets is enough.

Arithmetic per element: about 30 floating-point operations, 2 of them on the special-function unit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlfinetune.loss.blocks import choose_gradient_dtype
from mlfinetune.loss.reference import Form

SINGLE = 8192
"""Greatest number of elements that one program computes alone, in one launch."""
TILE, PROGRAMS = 2048, 4096
"""Elements of a tile, and greatest number of programs, where there are several."""
LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_REST = tl.constexpr(1.92596299e-8)
"""log2(e) minus LOG2_E rounded to float32."""
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _exp_minus(magnitude):
    """Return exp(-magnitude), for a magnitude >= 0.

    It is 2^(-magnitude * log2(e)). The rounding error of that exponent grows with the magnitude;
    `lost` is the error, and the last factor corrects for it.
    """
    magnitude = tl.where(magnitude > 200.0, 200.0, magnitude)  # exp(-200) is 0; NaN stays NaN
    power = magnitude * -LOG2_E
    lost = tl.fma(magnitude, -LOG2_E, -power) - magnitude * LOG2_E_REST
    return tl.exp2(power) * (1.0 + lost * LN_2)


@triton.jit
def _sigmoid_and_softplus(x):
    """Return p, q, softplus(x), softplus(-x)."""
    e = _exp_minus(tl.abs(x))
    inverse = 1.0 / ((1.0 + e) * (2.0 + e))
    large = inverse * (2.0 + e)  # 1 / (1 + e)
    small = e * large
    s = e * inverse * (1.0 + e)  # e / (2 + e)
    s2 = s * s
    series = 1.0 / 11 + s2 * (1.0 / 13)  # the next term, s^14 / 15, is below a quarter of eps
    series = 1.0 / 9 + s2 * series
    series = 1.0 / 7 + s2 * series
    series = 1.0 / 5 + s2 * series
    series = 1.0 / 3 + s2 * series
    tail = 2.0 * (s + s * s2 * series)
    positive = x >= 0
    p = tl.where(positive, large, small)
    q = tl.where(positive, small, large)
    return p, q, tl.maximum(x, 0.0) + tail, tl.maximum(-x, 0.0) + tail


@triton.jit
def _clipped_negative(p, q, gamma, clip):
    """Return p_m^gamma * -log(1 - p_m) and its derivative in x, for p_m = max(p - clip, 0)."""
    counts = p > clip
    p_m = tl.where(counts, p - clip, 0.5)
    likely = p_m > 0.5
    rest = tl.where(likely, q + clip, 1.0 - p_m)  # 1 - p_m would lose a small q
    # log1p(-p_m) for a small p_m: the error of rounding 1 - p_m is divided out again
    lost = tl.where(likely | (rest == 1.0), 1.0, p_m / tl.where(rest == 1.0, 1.0, 1.0 - rest))
    surprise = tl.where(rest == 1.0, p_m, -tl.log(rest) * lost)
    fade = tl.exp(gamma * tl.log(p_m))
    slope = fade * p * q * (gamma * surprise / p_m + 1.0 / rest)
    return tl.where(counts, fade * surprise, 0.0), tl.where(counts, slope, 0.0)


@triton.jit
def _loss_and_slope(
    x, t, weight, smoothing, gamma_neg, gamma_pos, clip, negative_weight,
    SMOOTHED: tl.constexpr, FOCUSED: tl.constexpr, CLIPPED: tl.constexpr,
):  # fmt: skip
    """Return loss and derivative in x of elements whose targets are known."""
    to_positive, to_negative = t, 1.0 - t
    if SMOOTHED:
        to_positive = t * (1.0 - smoothing) + 0.5 * smoothing
        to_negative = to_negative * (1.0 - smoothing) + 0.5 * smoothing
    to_positive, to_negative = to_positive * weight, to_negative * negative_weight
    p, q, above, below = _sigmoid_and_softplus(x)
    if FOCUSED:
        fade = tl.exp(-gamma_pos * above)
        positive, rise = fade * below, fade * (gamma_pos * p * below + q)
        if CLIPPED:
            negative, slope = _clipped_negative(p, q, gamma_neg, clip)
        else:
            fade = tl.exp(-gamma_neg * below)
            negative, slope = fade * above, fade * (gamma_neg * q * above + p)
    else:
        positive, rise, negative, slope = below, q, above, p
    return to_negative * negative + to_positive * positive, to_negative * slope - to_positive * rise


@triton.jit
def _forward(
    logits, targets, weights, divisor, grad, values, partial_loss, partial_known, loss, correction,
    n, columns, x_row, x_column, t_row, t_column, w_step,
    scale, smoothing, gamma_neg, gamma_pos, clip, negative_weight,
    STRIDED: tl.constexpr, WEIGHTED: tl.constexpr, DIVIDED: tl.constexpr, MEAN: tl.constexpr,
    ELEMENTWISE: tl.constexpr, GRADIENT: tl.constexpr, SMOOTHED: tl.constexpr,
    FOCUSED: tl.constexpr, CLIPPED: tl.constexpr, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Compute the tiles of one program: losses or their sum, gradient, count of known targets."""
    program = tl.program_id(0)
    if DIVIDED:
        scale = 1.0 / tl.load(divisor).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    known_count = tl.zeros([BLOCK], tl.int32)
    for tile in range(program, tl.cdiv(tl.cast(n, tl.int64), BLOCK), PROGRAMS):
        i = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n
        row = i // columns  # the compiler drops it where neither strides nor weights need it
        column = i - row * columns
        x_at, t_at = i, i
        if STRIDED:
            x_at, t_at = row * x_row + column * x_column, row * t_row + column * t_column
        x = tl.load(logits + x_at, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(targets + t_at, mask=inside, other=0).to(tl.float32)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weights + column * w_step, mask=inside, other=0.0).to(tl.float32)
        known = inside & (t >= 0)
        value, slope = _loss_and_slope(
            x, t, weight, smoothing, gamma_neg, gamma_pos, clip, negative_weight,
            SMOOTHED, FOCUSED, CLIPPED,
        )  # fmt: skip
        value = tl.where(known, value * scale, 0.0)
        if ELEMENTWISE:
            tl.store(values + i, value, mask=inside)
        else:
            total += value
            known_count += known.to(tl.int32)
        if GRADIENT:
            slope = tl.where(known, slope * scale, 0.0)
            tl.store(grad + i, slope.to(grad.dtype.element_ty), mask=inside)
    if ELEMENTWISE:
        if program == 0:
            tl.store(correction, 1.0)
    elif PROGRAMS == 1:
        _store_loss(tl.sum(total), tl.sum(known_count).to(tl.float32), n, loss, correction, MEAN)
    else:
        tl.store(partial_loss + program, tl.sum(total))
        tl.store(partial_known + program, tl.sum(known_count))


@triton.jit
def _sum_programs(
    partial_loss, partial_known, loss, correction, n, MEAN: tl.constexpr, PROGRAMS: tl.constexpr
):
    """Add up what all programs have stored, in a fixed order."""
    i = tl.arange(0, PROGRAMS)
    known = tl.sum(tl.load(partial_known + i).to(tl.int64)).to(tl.float32)
    _store_loss(tl.sum(tl.load(partial_loss + i)), known, n, loss, correction, MEAN)


@triton.jit
def _store_loss(total, known, n, loss, correction, MEAN: tl.constexpr):
    """Store the loss, and the factor that the gradient still lacks."""
    factor = 1.0
    if MEAN:
        factor = tl.cast(n, tl.float32) / tl.maximum(known, 1.0)
    tl.store(loss, total * factor)
    tl.store(correction, factor)


@triton.jit
def _rescale(grad, grad_output, correction, n, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    factor = tl.load(grad_output).to(tl.float32) * tl.load(correction)
    if factor != 1.0:
        for tile in range(tl.program_id(0), tl.cdiv(tl.cast(n, tl.int64), BLOCK), PROGRAMS):
            i = tl.cast(tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = i < n
            scaled = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32) * factor
            tl.store(grad + i, scaled.to(grad.dtype.element_ty), mask=inside)


def compute_value_and_gradient(
    logits: Tensor,
    targets: Tensor,
    pos_weight: Tensor | None,
    divisor: Tensor | None,
    form: Form,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss, its gradient, and the factor that the gradient still lacks.

    Args:
        logits: (N, L) float32, bfloat16 or float16.
        Other arguments: see `blocks.compute_value_and_gradient`.

    Returns:
        The loss, () or (N, L) float32; the gradient, (N, L) or (0,); the factor, () float32.
    """
    n, columns = logits.numel(), logits.shape[1]
    each = reduction == "none"
    saved = choose_gradient_dtype(logits.dtype, reduction)
    grad = torch.empty(logits.shape if gradient else 0, dtype=saved, device=logits.device)
    loss = logits.new_empty(logits.shape if each else (), dtype=torch.float32)
    correction = logits.new_empty((), dtype=torch.float32)
    if targets.dtype == torch.bool:
        targets = targets.view(torch.uint8)
    mean = reduction == "mean"
    scale = 1 / max(n, 1) if mean else 1.0
    programs = 1 if n <= SINGLE else min(PROGRAMS, triton.next_power_of_2(triton.cdiv(n, TILE)))
    block = max(1024, triton.next_power_of_2(n)) if programs == 1 else TILE
    partial_loss = logits.new_empty(programs, dtype=torch.float32)
    partial_known = logits.new_empty(programs, dtype=torch.int32)
    with _enter_device(logits):
        _forward[(programs,)](
            logits, targets, pos_weight, divisor, grad, loss, partial_loss, partial_known, loss,
            correction, n, columns, *logits.stride(), *targets.stride(),
            pos_weight.stride(0) if pos_weight is not None and pos_weight.dim() else 0,
            scale, form.label_smoothing, form.gamma_neg, form.gamma_pos, form.clip,
            form.negative_weight,
            STRIDED=not (logits.is_contiguous() and targets.is_contiguous()),
            WEIGHTED=pos_weight is not None,
            DIVIDED=mean and divisor is not None,
            MEAN=mean and divisor is None,
            ELEMENTWISE=each,
            GRADIENT=gradient,
            SMOOTHED=form.label_smoothing > 0,
            FOCUSED=form.focused,
            CLIPPED=bool(form.clip),
            BLOCK=block,
            PROGRAMS=programs,
            num_warps=max(4, block // 512) if programs == 1 else 4,
            enable_fp_fusion=True,
        )  # fmt: skip
        if not each and programs > 1:
            _sum_programs[(1,)](
                partial_loss, partial_known, loss, correction, n,
                MEAN=mean and divisor is None, PROGRAMS=programs, enable_fp_fusion=True,
            )  # fmt: skip
    return loss, grad, correction


def rescale_(grad: Tensor, grad_output: Tensor, correction: Tensor) -> None:
    """Multiply grad by grad_output * correction in place; the device checks whether that is 1."""
    n = grad.numel()
    programs = min(1024, max(1, triton.cdiv(n, TILE)))
    with _enter_device(grad):
        _rescale[(programs,)](
            grad, grad_output, correction, n, BLOCK=TILE, PROGRAMS=programs, enable_fp_fusion=True
        )


def _enter_device(tensor: Tensor) -> torch.cuda.device:
    """Return a context that launches kernels on the tensor's own GPU.

    On a CPU, where kernels are interpreted (TRITON_INTERPRET=1), it does nothing.
    """
    return torch.cuda.device(tensor.device if tensor.device.type == "cuda" else -1)
