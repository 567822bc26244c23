"""BatchNorm over ranks keeps the objects of the layers that it replaces, and their numbers."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mlfinetune.errors import ConfigError
from mlfinetune.models.sync_batch_norm import CpuSyncBatchNorm, sync_batch_norm


def alone(_: Tensor) -> None:
    """The sum over one rank."""


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_parameters_and_keys_stay(kind: str) -> None:
    """Same objects, same names, same order: optimizers and checkpoints do not notice."""
    net = torchvision.models.resnet18(weights=None).eval()
    objects = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    keys = list(net.state_dict())
    sync_batch_norm(net, torch.device(kind), alone)
    assert list(net.state_dict()) == keys
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert all(after[name] is value for name, value in objects.items())
    synced = CpuSyncBatchNorm if kind == "cpu" else nn.SyncBatchNorm
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20
    assert all(isinstance(norm, synced) and not norm.training for norm in norms)


def test_one_rank_computes_what_batch_norm_computes() -> None:
    """Output, gradients and running statistics of nn.BatchNorm2d."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    synced = copy.deepcopy(plain)
    sync_batch_norm(synced, torch.device("cpu"), alone)
    x = torch.randn(5, 3, 8, 8)
    for net in (plain, synced):
        net(x).square().sum().backward()
    torch.testing.assert_close(synced(x), plain(x))
    for one, other in zip(synced.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(synced.named_buffers()), dict(plain.named_buffers()))


def test_a_batch_norm_that_is_not_of_maps_is_refused() -> None:
    """Some networks have both kinds: a part that is not shared would be shared in the log alone."""
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4))
    with pytest.raises(ConfigError, match=r"a BatchNorm1d .* set train.sync_batch_norm: false"):
        sync_batch_norm(net, torch.device("cpu"), alone)
