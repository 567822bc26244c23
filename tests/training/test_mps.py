"""Runs and the solver on a device without float64 and bfloat16: a stand-in for an Apple GPU."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from conftest import Run
from mps import stand_in, to_mps
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mlfinetune.data.batches.batch import Batch
from mlfinetune.training.lbfgs import Solver


def masked_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    divisor: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sigmoid cross entropy over the known targets, in operations that the stand-in has."""
    known = (targets >= 0).float()
    each = binary_cross_entropy_with_logits(logits, targets.float().clamp(min=0), reduction="none")
    return known * each if divisor is None else (known * each).sum() / divisor


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


@pytest.fixture
def mac(pictures: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the stand-in, in the folder of `pictures`."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)

    def run(*arguments: str) -> CompletedProcess[str]:
        with stand_in():
            done = cli(*arguments, "--device", "mps", cwd=pictures)
        assert done.returncode == 0, done.stderr
        return done

    return run


CPU = ("--device", "cpu")


def test_a_run_from_its_start_to_predictions(mac: Run, pictures: Path, cli: Run) -> None:
    """The whole network, resumed for one epoch more; the CPU predicts the same."""
    mac("train", "pets.yaml", "train.ema=0.9", "train.accumulate=2", "loss.pos_weight=auto")
    mac("train", "runs/pets/config.yaml", "--resume", "train.epochs=2", "--allow-changed")
    mac("eval", "--checkpoint", "runs/pets")
    mac("predict", "images", "-o", "mps.csv")
    assert cli("predict", "images", "-o", "cpu.csv", *CPU, cwd=pictures).returncode == 0
    rows = [(pictures / name).read_text().splitlines() for name in ("mps.csv", "cpu.csv")]
    first, second = (
        [float(x or 0) for row in lines[1:] for x in row.split(",")[2:]] for lines in rows
    )
    assert first == pytest.approx(second, abs=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.freeze_backbone=true", "loss.name=focal"),
        ("train.solve_head_first=true", "loss.name=asl", "train.not_finite=skip"),
    ],
)
def test_a_head_on_kept_features(mac: Run, settings: tuple[str, ...]) -> None:
    """Computed on the device, and solved for by L-BFGS; without bfloat16, as the log says."""
    said = mac("train", "pets.yaml", *settings, "train.precision=bfloat16").stderr
    assert "device mps, precision float32 (this device has no bfloat16" in said


def test_the_speeds_are_measured(mac: Run) -> None:
    """`bench` waits for the device where it has to."""
    assert "training step" in mac("bench", "pets.yaml", "train.batch_size=2").stdout


def test_the_stand_in_refuses_float64() -> None:
    """As MPS does, wherever a tensor would get it."""
    with stand_in() as device:
        on_mps = to_mps(torch.ones(3))
        for held in (torch.zeros(3).double(), torch.zeros(3).bfloat16()):
            with pytest.raises(TypeError, match="MPS has no such numbers"):
                held.to("mps")
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
