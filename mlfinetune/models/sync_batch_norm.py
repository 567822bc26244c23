"""BatchNorm across ranks: mean and variance are those of the images of all ranks.

BatchNorm of each rank -> sync_batch_norm -> CpuSyncBatchNorm, or torch's SyncBatchNorm on a GPU
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlfinetune.errors import ConfigError

AllReduce = Callable[[Tensor], None]
"""Sums a tensor over all ranks, in place."""


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for the CPU, where torch has none.

    Attributes:
        all_reduce: sums a tensor over all ranks, in place.
    """

    all_reduce: AllReduce

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), normalized; B may be 0 on some ranks."""
        if not self.training:
            return _run_children(self, super().forward(x))
        wide = x.float()
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        sums = _SumOverRanks.apply(torch.cat([wide.sum((0, 2, 3)), count]), self.all_reduce)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # Two sums, of x and then of (x - mean)²: the mean of x² minus mean² would cancel.
        centered = wide - mean[:, None, None]
        squares = _SumOverRanks.apply(centered.square().sum((0, 2, 3)), self.all_reduce)
        variance = squares / count
        self._update_statistics(mean, variance, count)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = centered * scale[:, None, None] + self.bias[:, None, None]
        return _run_children(self, out.to(x.dtype))

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move running mean and (unbiased) variance by `momentum`, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _SumOverRanks(torch.autograd.Function):
    """Sum over all ranks. The loss is the sum of all ranks' losses, so the gradient is summed too.

    x_r on rank r -> y = x_0 + x_1 + ...        d loss / d x_r = sum over ranks of d loss_rank / d y
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, all_reduce: AllReduce) -> Tensor:
        total = x.clone()
        all_reduce(total)
        ctx.all_reduce = all_reduce
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        ctx.all_reduce(grad)
        return grad, None


class _GpuSyncBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm that also takes a batch of 0 images under autocast.

    For an empty batch nn.SyncBatchNorm sends its sums in the type of the input, bfloat16, while
    the other ranks send float32. The tensors of one exchange would then differ in size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), normalized; B may be 0 on some ranks."""
        if len(x):
            return _run_children(self, super().forward(x))
        empty: Tensor = super().forward(x.float())
        return _run_children(self, empty.to(x.dtype))


def _run_children(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply the layers inside a BatchNorm: timm's has a dropout and an activation."""
    for layer in norm.children():
        x = layer(x)
    return x


def sync_batch_norm(net: nn.Module, device: torch.device, all_reduce: AllReduce) -> None:
    """Replace every BatchNorm2d inside `net` by one that normalizes over all ranks.

    Parameters and buffers stay the same objects under the same names: an optimizer that holds them
    and a state dict are not affected.

    Args:
        net: is changed; it must not be a BatchNorm2d itself.
        device: where the net is.
        all_reduce: sums a tensor over all ranks, in place. On a GPU torch's own is used.

    Raises:
        ConfigError: a BatchNorm is not of maps (B, C, H, W), or computes something else besides.
    """
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _build_synced(child, device, all_reduce))


def is_synced(norm: nn.Module) -> bool:
    """Tell whether a BatchNorm learns from the images of all ranks."""
    return isinstance(norm, nn.SyncBatchNorm | CpuSyncBatchNorm)


def _build_synced(
    norm: nn.modules.batchnorm._BatchNorm, device: torch.device, all_reduce: AllReduce
) -> nn.Module:
    """Return the layer that stands in for `norm`, with its parameters, buffers and layers."""
    layers = dict(norm.named_children())
    if type(norm) is not nn.BatchNorm2d and list(layers) != ["drop", "act"]:
        raise ConfigError(
            f"train.sync_batch_norm: a {type(norm).__name__} of this backbone cannot learn from "
            f"the pictures of all processes; set train.sync_batch_norm: false"
        )
    synced: _GpuSyncBatchNorm | CpuSyncBatchNorm
    if device.type == "cuda":
        synced = _GpuSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    else:
        synced = CpuSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
        synced.all_reduce = all_reduce
    # Each of these replaces an entry that the new layer has already, so its order is kept.
    synced.weight, synced.bias = norm.weight, norm.bias
    synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
    synced.num_batches_tracked = norm.num_batches_tracked
    for name, layer in layers.items():
        synced.add_module(name, layer)
    return synced.train(norm.training)
