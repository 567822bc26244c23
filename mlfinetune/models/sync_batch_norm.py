"""BatchNorm of several processes: mean and variance are those of all their pictures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Add = Callable[[Tensor], None]


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """What nn.SyncBatchNorm is on a GPU, for the CPU, where torch has none.

    Attributes:
        add: sums a tensor over all processes, in place.
    """

    add: Add

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; B may be 0."""
        if not self.training:
            normalised: Tensor = super().forward(x)
            return normalised
        wide = x.float()
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        sums = _SumOverRanks.apply(torch.cat([wide.sum((0, 2, 3)), count]), self.add)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3)), self.add) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes, of whose loss everyone's is the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Add) -> Tensor:
        ctx.add, x = add, x.clone()
        add(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        ctx.add(grad)
        return grad, None


class _GpuSyncBatchNorm(nn.SyncBatchNorm):
    """torch's own; of no pictures it would exchange bfloat16 where the others exchange float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; B may be 0."""
        if len(x):
            whole: Tensor = super().forward(x)
            return whole
        none: Tensor = super().forward(x.float())
        return none.to(x.dtype)


def sync_batch_norm(net: nn.Module, device: torch.device, add: Add) -> None:
    """Every BatchNorm in it learns from all processes' pictures; parameters stay those they are.

    Args:
        device: where the net is.
        add: sums a tensor over all processes, in place; torch's own has its own way.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        for module in net.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = _GpuSyncBatchNorm
        return
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                synced = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
                synced.add = add
                synced._parameters, synced._buffers = child._parameters, child._buffers
                setattr(module, name, synced.train(child.training))
