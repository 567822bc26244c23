"""A ResNet's backbone for inference on the CPU: fewer passes over memory, the same numbers.

    features -> fold BatchNorm into convolutions (float32) -> round to a dtype
             -> lay the weights out for the convolution that will read them
             -> convolution + addition + relu in one operator

The last two steps take operators that torch's compiler emits and does not document. They are tried
on one picture when a backbone is packed; where they cannot be had, or say something else than the
plain operators do, the plain ones serve, and the reason is told.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.models.pretrained import find_misfits
from mlfinetune.models.tagger import Tagger
from mlfinetune.text import format_list

BATCH = 16
"""Pictures that weights are laid out for; others are as fast (`benchmarks/predict_cpu.py`)."""
FUSED = "fused operators"
FOLDED = "BatchNorm folded, no fused operators"


@dataclass(frozen=True)
class _Conv:
    """A convolution, BatchNorm folded in.

    Attributes:
        weight: (out, in / groups, k, k), or the same opaque and laid out for its input.
        bias: (out,).
        geometry: padding, stride, dilation, groups.
        relu: what follows.
    """

    weight: Tensor
    bias: Tensor
    geometry: tuple[list[int], list[int], list[int], int]
    relu: bool


@dataclass(frozen=True)
class _Block:
    """Convolutions in a row; the last one's output is added to the shortcut's, before its relu."""

    convs: tuple[_Conv, ...]
    shortcut: _Conv | None


_Run = Callable[[_Conv, Tensor, Tensor | None], Tensor]
"""A convolution, its input, and what is added to its output, which may be overwritten."""


class FusedBackbone(nn.Module):
    """The backbone in evaluation mode: (B, 3, S, S) float, normalised -> (B, F) in its dtype.

    It has no parameters: nothing of it is trained, saved or moved. Any number of threads may call
    it at once.
    """

    def __init__(
        self, stem: _Conv, blocks: tuple[_Block, ...], dtype: torch.dtype, run: _Run
    ) -> None:
        """What to compute, in which type, and how; `pack` knows."""
        super().__init__()
        self._stem, self._blocks, self._dtype, self._run = stem, blocks, dtype, run

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F); the last mean is taken in float32."""
        with torch.autocast("cpu", enabled=False):  # it would choose the plain operators' types
            return self.through(x, self._run)

    def through(self, x: Tensor, run: _Run) -> Tensor:
        """The same, with another way to convolve."""
        x = x.to(self._dtype, memory_format=torch.channels_last)
        x = max_pool2d(run(self._stem, x, None), 3, 2, 1)
        for block in self._blocks:
            shortcut = x if block.shortcut is None else run(block.shortcut, x, None)
            for conv in block.convs[:-1]:
                x = run(conv, x, None)
            x = run(block.convs[-1], x, shortcut)
        return x.mean((2, 3), dtype=torch.float32).to(self._dtype)

    def fused(self, shapes: dict[int, torch.Size]) -> "FusedBackbone":
        """The same in fused operators, weights laid out for inputs of these shapes.

        Args:
            shapes: (_, in, H, W) of the input of the convolution with this `id`.
        """

        def laid_out(conv: _Conv) -> _Conv:
            size = [BATCH, *shapes[id(conv)][1:]]
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            return replace(conv, weight=reorder(conv.weight, *conv.geometry, size))

        blocks = tuple(
            _Block(
                tuple(laid_out(conv) for conv in block.convs),
                None if block.shortcut is None else laid_out(block.shortcut),
            )
            for block in self._blocks
        )
        return FusedBackbone(laid_out(self._stem), blocks, self._dtype, _fused)


@torch.no_grad()
def fuse_for_cpu(features: nn.Module, dtype: torch.dtype, side: int) -> tuple[FusedBackbone, str]:
    """A fast copy of a backbone, and how it computes.

    What it costs: the weights once more, in `dtype`, and about three pictures' forward passes.

    Args:
        features: torchvision's ResNet, `fc` an identity, on the CPU; is left as it is.
        dtype: of weights and activations; sums are float32 inside an operator.
        side: S that the weights are laid out for; other sizes come out right, but may be slow.
    """
    plain = _fold(features, dtype)
    if not torch.backends.mkldnn.enabled:
        return plain, f"{FOLDED}: torch.backends.mkldnn.enabled is False"
    generator = torch.Generator().manual_seed(0)  # the global one belongs to training
    probe = torch.randn(1, 3, side, side, generator=generator)
    shapes: dict[int, torch.Size] = {}

    def noted(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
        shapes[id(conv)] = x.shape
        return _plain(conv, x, other)

    expected = plain.through(probe, noted)
    try:
        fused = plain.fused(shapes)
        found = fused(probe)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return plain, f"{FOLDED}: {reason}"
    off = ((found - expected).norm() / expected.norm()).item()
    if not off <= torch.finfo(dtype).eps ** 0.5:  # not finite: not the same
        return plain, f"{FOLDED}: they are off by {off:.2g} of the features"
    return fused, FUSED


def _fold(features: nn.Module, dtype: torch.dtype) -> FusedBackbone:
    """The backbone in plain operators."""
    net = cast(Any, features)
    blocks = []
    for block in (block for layer in (1, 2, 3, 4) for block in getattr(net, f"layer{layer}")):
        last = 3 if hasattr(block, "conv3") else 2
        convs = tuple(
            _folded(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), True, dtype)
            for i in range(1, last + 1)
        )
        down = block.downsample
        shortcut = None if down is None else _folded(down[0], down[1], False, dtype)
        blocks.append(_Block(convs, shortcut))
    stem = _folded(net.conv1, net.bn1, True, dtype)
    return FusedBackbone(stem, tuple(blocks), dtype, _plain)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, relu: bool, dtype: torch.dtype) -> _Conv:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert not isinstance(conv.padding, str)
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return _Conv(
        weight.detach().to(dtype, memory_format=torch.channels_last),
        bias.detach().to(dtype),
        (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups),
        relu,
    )


def _plain(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
    padding, stride, dilation, groups = conv.geometry
    y = conv2d(x, conv.weight, conv.bias, stride, padding, dilation, groups)
    if other is not None:
        y += other
    return y.relu_() if conv.relu else y


def _fused(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
    relu = "relu" if conv.relu else "none"
    how = (x, conv.weight, conv.bias, *conv.geometry)
    if other is None:
        return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(*how, relu, [], ""))
    add = torch.ops.mkldnn._convolution_pointwise_.binary
    return cast(Tensor, add(other, *how, "add", 1.0, relu, [], ""))


# ---- taggers that predict ---------------------------------------------------------------


def tagger_of(
    backbone: str,
    labels: int,
    weights: dict[str, Tensor],
    spec: TransformSpec,
    device: torch.device,
    origin: Path,
) -> Tagger:
    """The tagger that a checkpoint holds, in evaluation mode, on the device.

    Args:
        backbone: torchvision's name of the network.
        labels: L, the number of labels.
        weights: state dict of the whole tagger, on the CPU.
        spec: mean and standard deviation of the channels are taken from it.
        device: where the tagger goes.
        origin: the checkpoint's file, for messages.

    Raises:
        CheckpointError: `weights` are not those of this backbone with so many labels.
    """

    def build() -> Tagger:
        return Tagger(backbone, labels, mean=spec.mean, std=spec.std)

    try:
        with torch.device("meta"):  # names and shapes alone: nothing is allocated for a false claim
            wanted = build().state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    if faults := find_misfits(weights, wanted):
        raise CheckpointError(
            f"{origin}: its weights are not those of a {backbone} with {labels} labels\n"
            f"{format_list(faults)}"
        )
    tagger = build()
    tagger.load_state_dict(weights)
    return place_on_device(tagger, device).eval()


def for_inference(
    tagger: Tagger, side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tagger, str]:
    """The tagger as it infers fastest: on the CPU with a packed backbone, as it is elsewhere.

    Args:
        side: of the pictures, in pixels.

    Returns:
        What to score with (weights that change later do not reach it), and a word for the log.
    """
    if device.type != "cpu":
        return tagger.eval(), "as trained"
    packed, how = fuse_for_cpu(tagger.features, dtype, side)
    return tagger.serving(packed), how


def place_on_device(tagger: Tagger, device: torch.device) -> Tagger:
    """On the device, convolutions in the layout that they are fast in."""
    tagger.to(device)
    tagger.to(memory_format=torch.channels_last)
    return tagger
