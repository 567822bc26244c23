"""The solver on a device without float64: a stand-in for an Apple GPU."""

import pytest
import torch
from mps import stand_in, to_mps
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mlfinetune.data.batches.batch import Batch
from mlfinetune.training.lbfgs import Solver


def masked_loss(logits: Tensor, targets: Tensor, *, divisor: Tensor) -> Tensor:
    """Sigmoid cross entropy over the known targets, in operations that the stand-in has."""
    known = (targets >= 0).float()
    each = binary_cross_entropy_with_logits(logits, targets.float().clamp(min=0), reduction="none")
    return (known * each).sum() / divisor


def problem() -> tuple[Tensor, Tensor]:
    """Correlated features (60, 5), and targets (60, 3) of which some are unknown."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    targets = (features[:, :3] > 0).to(torch.int8)
    targets[torch.rand(targets.shape, generator=generator) < 0.1] = -1
    return features, targets


def solve(features: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    batch = Batch(features, targets, torch.arange(len(features)))
    solver = Solver(head, lambda: [batch], masked_loss)
    for _ in solver.path(0.01, stops=(10,)):
        pass
    return head.weight.detach()


def test_the_stand_in_refuses_float64() -> None:
    """As MPS does, wherever a tensor would get it."""
    with stand_in() as device:
        on_mps = to_mps(torch.ones(3))
        assert on_mps.device.type == "mps"
        with pytest.raises(TypeError, match="float64"):
            on_mps.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(3, dtype=torch.float64, device=device)
        with pytest.raises(AssertionError, match="mixes"):
            on_mps + torch.ones(3)
        assert (on_mps + 1).cpu().tolist() == [2, 2, 2]


def test_the_head_is_solved_for_without_float64() -> None:
    """The solution is that of the CPU."""
    features, targets = problem()
    torch.manual_seed(0)
    wanted = solve(features, targets, nn.Linear(5, 3))
    with stand_in():
        head = nn.Linear(5, 3)
        head.weight = nn.Parameter(to_mps(head.weight.detach()))
        head.bias = nn.Parameter(to_mps(head.bias.detach()))
        found = solve(to_mps(features), targets, head)
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-5)
