"""Taggers that predict: restored from a checkpoint, and made fast on a CPU.

    backbone -> fold BatchNorm into convolutions (float32) -> round to a dtype
             -> lay the weights out for the convolution that will read them
             -> convolution + addition + relu in one operator

The last two steps use operators that torch's compiler emits and that are not documented. They are
tried on one picture when a backbone is fused. If they are missing, or give other numbers than the
plain operators, the plain ones are used. A backbone that cannot be folded is used as trained. The
log says which of the three it is, and why.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.models.backbones import STAGES, PooledResNet, unfilled
from mlfinetune.models.pretrained import find_misfits
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.threads import one_thread
from mlfinetune.text import format_list, pluralize

BATCH = 16
"""Batch size that weights are laid out for; others are as fast (`benchmarks/predict_cpu.py`)."""
FUSED = "fused operators"
FOLDED = "BatchNorm folded, no fused operators"
AS_TRAINED = "as trained"


@dataclass(frozen=True)
class _Conv:
    """A convolution with its BatchNorm folded in.

    Attributes:
        weight: (out, in / groups, k, k), or the same as an opaque tensor in oneDNN's layout.
        bias: (out,).
        geometry: padding, stride, dilation, groups.
        relu: whether a relu follows.
    """

    weight: Tensor
    bias: Tensor
    geometry: tuple[list[int], list[int], list[int], int]
    relu: bool


@dataclass(frozen=True)
class _Block:
    """A residual block: its convolutions in order, and the one of its shortcut, if it has one.

    The output of the shortcut is added to that of the last convolution, before the last relu.
    """

    convs: tuple[_Conv, ...]
    shortcut: _Conv | None


@dataclass(frozen=True)
class _Stage:
    """A stage of residual blocks; the mean of its last map is a part of the features, or not."""

    blocks: tuple[_Block, ...]
    is_pooled: bool


_Convolve = Callable[[_Conv, Tensor, Tensor | None], Tensor]
"""convolve(conv, x, other) -> conv(x) + other, relu after it; it may overwrite `other`."""


class FusedBackbone(nn.Module):
    """Backbone for inference on a CPU: (B, 3, S, S) float, normalized -> (B, F) in its dtype.

    It holds tensors and no parameters: nothing of it is trained, saved or moved. Several threads
    may call it at once.
    """

    def __init__(
        self,
        stem: _Conv,
        stages: tuple[_Stage, ...],
        dtype: torch.dtype,
        convolve: _Convolve,
    ) -> None:
        """Hold the folded layers; use `fuse_for_cpu` to build one.

        Args:
            stem: the first convolution; a 3x3 max pooling with stride 2 follows it.
            stages: of residual blocks, in order.
            dtype: of weights and activations.
            convolve: computes one convolution, with plain or with fused operators.
        """
        super().__init__()
        self._stem, self._stages = stem, stages
        self._dtype = dtype
        self._convolve = convolve

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F); the means are taken in float32."""
        # Autocast would change the types of the plain operators: this module has its own dtype.
        with torch.autocast("cpu", enabled=False):
            return self.forward_with(x, self._convolve)

    def compute_maps(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the maps whose means are the features, (B, C, H, W) each."""
        with torch.autocast("cpu", enabled=False):
            # Copies: the next stage may overwrite the map of the one before.
            return [each.clone() for each in self._iter_maps(x, self._convolve)]

    def forward_with(self, x: Tensor, convolve: _Convolve) -> Tensor:
        """Compute the features of `x` with another way to convolve."""
        maps = self._iter_maps(x, convolve)
        return torch.cat(
            [each.mean((2, 3), dtype=torch.float32).to(self._dtype) for each in maps], 1
        )

    def _iter_maps(self, x: Tensor, convolve: _Convolve) -> Iterator[Tensor]:
        """Yield the maps of the pooled stages; asking for the next may overwrite one."""
        x = x.to(self._dtype, memory_format=torch.channels_last)
        x = max_pool2d(convolve(self._stem, x, None), 3, 2, 1)
        for stage in self._stages:
            for block in stage.blocks:
                shortcut = x if block.shortcut is None else convolve(block.shortcut, x, None)
                # The sum overwrites its shortcut: a map that is pooled must be pooled before.
                y = x
                for conv in block.convs[:-1]:
                    y = convolve(conv, y, None)
                x = convolve(block.convs[-1], y, shortcut)
            if stage.is_pooled:
                yield x

    def with_fused_operators(self, shapes: dict[int, torch.Size]) -> "FusedBackbone":
        """Return a copy that computes with fused operators, its weights laid out for them.

        Args:
            shapes: `id` of a convolution -> (_, in, H, W), the shape of its input.
        """

        def lay_out(conv: _Conv) -> _Conv:
            size = [BATCH, *shapes[id(conv)][1:]]
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            return replace(conv, weight=reorder(conv.weight, *conv.geometry, size))

        def lay_out_block(block: _Block) -> _Block:
            convs = tuple(lay_out(conv) for conv in block.convs)
            return _Block(convs, None if block.shortcut is None else lay_out(block.shortcut))

        stages = tuple(
            replace(stage, blocks=tuple(map(lay_out_block, stage.blocks))) for stage in self._stages
        )
        return FusedBackbone(lay_out(self._stem), stages, self._dtype, _convolve_fused)


@torch.no_grad()
@one_thread()
def fuse_for_cpu(features: nn.Module, dtype: torch.dtype, side: int) -> tuple[nn.Module, str]:
    """Build a fast copy of a backbone, if it can be folded.

    A copy costs memory for the weights in `dtype`, and the time of about three forward passes of
    one image.

        PooledResNet           -> FusedBackbone, "fused operators"
        fused operators fail   -> FusedBackbone, "BatchNorm folded, no fused operators: <reason>"
        any other network      -> `features` itself, "as trained: <reason>"

    Args:
        features: the backbone, on the CPU; it is not changed.
        dtype: of weights and activations; sums are float32 inside an operator.
        side: S that the weights are laid out for; other sizes come out right, but may be slow.

    Returns:
        The module to compute features with, and how it computes, for the log.
    """
    if reason := _find_obstacle(features):
        return features, f"{AS_TRAINED}: {reason}"
    plain = _fold_backbone(features, dtype)
    if not torch.backends.mkldnn.enabled:
        return plain, f"{FOLDED}: torch.backends.mkldnn.enabled is False"
    generator = torch.Generator().manual_seed(0)  # the global one belongs to training
    picture = torch.randn(1, 3, side, side, generator=generator)
    shapes: dict[int, torch.Size] = {}

    def convolve_and_note(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
        shapes[id(conv)] = x.shape
        return _convolve_plain(conv, x, other)

    expected = plain.forward_with(picture, convolve_and_note)
    try:
        fused = plain.with_fused_operators(shapes)
        computed = fused(picture)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return plain, f"{FOLDED}: {reason}"
    error_share = ((computed - expected).norm() / expected.norm()).item()
    if not error_share <= torch.finfo(dtype).eps ** 0.5:  # written so that NaN fails too
        return plain, f"{FOLDED}: they are off by {error_share:.2g} of the features"
    return fused, FUSED


def _find_obstacle(features: nn.Module) -> str | None:
    """Say why a backbone cannot be folded; None: it can.

    `FusedBackbone` repeats the forward pass of `PooledResNet`, so only that with torchvision's
    own blocks is taken: another network may have the same layers and compute something else.
    """
    if type(features) is not PooledResNet:
        return f"a {type(features).__name__} is not a ResNet of torchvision"
    for name, module in features.named_modules():
        kind = type(module).__name__
        is_block = name.startswith("layer") and name.count(".") == 1  # "layer1.0"
        if is_block and type(module) not in (BasicBlock, Bottleneck):
            return f"{name} is a {kind}, not a residual block of torchvision"
        is_norm = name.rpartition(".")[2].startswith("bn") or name.endswith("downsample.1")
        if is_norm and not (isinstance(module, nn.BatchNorm2d) and module.track_running_stats):
            return f"{name} is a {kind}, not a BatchNorm2d with running statistics"
    return None


def _fold_backbone(features: nn.Module, dtype: torch.dtype) -> FusedBackbone:
    """Fold the BatchNorms of torchvision's ResNet into its convolutions; plain operators."""
    net = cast(Any, features)
    stages = tuple(
        _Stage(tuple(_fold_block(block, dtype) for block in getattr(net, name)), name in net.stages)
        for name in STAGES
    )
    stem = _fold_layer(net.conv1, net.bn1, True, dtype)
    return FusedBackbone(stem, stages, dtype, _convolve_plain)


def _fold_block(block: Any, dtype: torch.dtype) -> _Block:
    """Fold one residual block."""
    last = 3 if hasattr(block, "conv3") else 2
    convs = tuple(
        _fold_layer(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), True, dtype)
        for i in range(1, last + 1)
    )
    down = block.downsample
    shortcut = None if down is None else _fold_layer(down[0], down[1], False, dtype)
    return _Block(convs, shortcut)


def _fold_layer(conv: nn.Conv2d, norm: nn.BatchNorm2d, relu: bool, dtype: torch.dtype) -> _Conv:
    """Fold one BatchNorm into the convolution before it, in float32, then round to `dtype`."""
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


def _convolve_plain(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
    padding, stride, dilation, groups = conv.geometry
    y = conv2d(x, conv.weight, conv.bias, stride, padding, dilation, groups)
    if other is not None:
        y += other
    return y.relu_() if conv.relu else y


def _convolve_fused(conv: _Conv, x: Tensor, other: Tensor | None) -> Tensor:
    """Compute as `_convolve_plain`, in one pass over memory."""
    relu = "relu" if conv.relu else "none"
    arguments = (x, conv.weight, conv.bias, *conv.geometry)
    if other is None:
        return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(*arguments, relu, [], ""))
    add = torch.ops.mkldnn._convolution_pointwise_.binary
    return cast(Tensor, add(other, *arguments, "add", 1.0, relu, [], ""))


# ---- taggers that predict ---------------------------------------------------------------


@one_thread()
def restore_tagger(
    backbone: str,
    levels: int,
    labels: int,
    weights: dict[str, Tensor],
    spec: TransformSpec,
    device: torch.device,
    origin: Path,
) -> Tagger:
    """Build the tagger that a checkpoint holds, in evaluation mode, on the device.

    Args:
        backbone, levels: as `build_backbone` takes them.
        labels: L, the number of labels.
        weights: state dict of the whole tagger, on the CPU.
        spec: has the mean and standard deviation of the channels, and the image size.
        device: where the tagger goes.
        origin: the checkpoint's file, for messages.

    Raises:
        CheckpointError: there is no such backbone, or `weights` do not fit it and L labels.
    """

    def build() -> Tagger:
        size = spec.image_size
        return Tagger(
            backbone, labels, levels=levels, image_size=size, mean=spec.mean, std=spec.std
        )

    try:
        # Names and shapes alone: a file that claims a huge model allocates no memory.
        with torch.device("meta"), unfilled(backbone):
            wanted = build().state_dict()
    except ConfigError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    if faults := find_misfits(weights, wanted):
        raise CheckpointError(
            f"{origin}: its weights are not those of a {backbone} with "
            f"{pluralize(labels, 'label')}\n{format_list(faults)}"
        )
    # To load a tagger changes no later random number.
    with torch.random.fork_rng(devices=[]), unfilled(backbone):
        tagger = build()
    tagger.load_state_dict(weights)
    return place_on_device(tagger, device).eval()


def prepare_for_inference(
    tagger: Tagger, side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tagger, str]:
    """Prepare a tagger for scoring: on a CPU with a fused backbone, on a GPU as trained.

    Args:
        tagger: its weights are not changed.
        side: of the images, in pixels.
        device: where the tagger is.
        dtype: of activations, bfloat16 or float32.

    Returns:
        The tagger to score with, and how it computes, for the log. A fused backbone is a copy:
        weights that change later do not reach it.
    """
    if device.type != "cpu":
        return tagger.eval(), AS_TRAINED
    backbone, how = fuse_for_cpu(tagger.features, dtype, side)
    return tagger.with_features(backbone), how


def place_on_device(tagger: Tagger, device: torch.device) -> Tagger:
    """Move the tagger to the device, in channels_last: convolutions are fast in that layout."""
    tagger.to(device)
    tagger.to(memory_format=torch.channels_last)
    return tagger
