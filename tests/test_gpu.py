"""What only a CUDA device can show; `make gpu-check` runs these."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

from mlfinetune.config import load_config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.loss import build_loss, sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference
from mlfinetune.models.tagger import Tagger
from mlfinetune.training.lbfgs import Solver
from mlfinetune.training.optim import build_optimizer
from mlfinetune.training.step import StepOptions, train_step

pytestmark = pytest.mark.gpu


def small_tagger() -> Tagger:
    tagger = Tagger("resnet18", 5, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    return tagger.cuda().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_on_the_gpu_is_the_reference(dtype: torch.dtype) -> None:
    """Value and gradient against float64 on the CPU."""
    logits = (torch.randn(64, 80, device="cuda") * 20).to(dtype).requires_grad_()
    targets = torch.randint(-1, 2, (64, 80), device="cuda", dtype=torch.int8)
    loss = sigmoid_cross_entropy(logits, targets)
    (grad,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().cpu().requires_grad_()
    wanted = sigmoid_cross_entropy_reference(exact, targets.cpu())
    (wanted_grad,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(loss.cpu().double(), wanted, rtol=1e-5, atol=0)
    bound = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(grad.cpu().double(), wanted_grad, rtol=bound, atol=1e-7)


def test_more_elements_than_32_bits_count() -> None:
    """2^31 logits and some: the last row has its loss and its gradient."""
    rows, columns = 2**17 + 1, 2**14
    logits = torch.zeros(rows, columns, device="cuda", dtype=torch.bfloat16)
    targets = torch.full((rows, columns), -1, device="cuda", dtype=torch.int8)
    logits[-1], targets[-1] = 3.0, 0
    loss = sigmoid_cross_entropy(logits.requires_grad_(), targets, reduction="sum")
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(columns * np.log1p(np.exp(3)), rel=1e-4)
    assert grad[-1].float().mean().item() == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-2)
    assert not grad[:-1].any()


def test_a_small_batch_takes_one_launch() -> None:
    """Forward is one kernel; backward one that sees that nothing is left to do."""
    logits = torch.randn(64, 80, device="cuda", requires_grad=True)
    targets = torch.randint(0, 2, (64, 80), device="cuda", dtype=torch.int8)
    sigmoid_cross_entropy(logits, targets).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loss = sigmoid_cross_entropy(logits, targets)
        torch.cuda.synchronize()
    launches = [event.name for event in profile.events() if "Memcpy" not in event.name]
    assert len([name for name in launches if name == "_forward"]) == 1, launches
    assert len(launches) == 1, launches
    assert loss.isfinite()


def test_compiled_code_calls_the_kernel() -> None:
    """torch.compile has no graph break around it, and gives the same gradient."""
    layer = torch.nn.Linear(16, 80, device="cuda")
    features = torch.randn(64, 16, device="cuda")
    targets = torch.randint(-1, 2, (64, 80), device="cuda", dtype=torch.int8)

    def loss() -> torch.Tensor:
        return sigmoid_cross_entropy(layer(features), targets, backend="triton")

    wanted = torch.autograd.grad(loss(), layer.weight)[0]
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(), layer.weight)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_step_never_waits_for_the_device(accumulate: int) -> None:
    """CUDA's own check: no synchronising call in forward, backward, clipping and step."""
    tagger = small_tagger().train()
    optimizer = build_optimizer(tagger.parameter_groups(1e-3, 1e-2, 0.01), "adamw", 0.9)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8).pin_memory()
    targets = torch.randint(-1, 2, (8, 5), dtype=torch.int8).pin_memory()
    batch = Batch(images, targets, torch.arange(8))
    settings = StepOptions(torch.device("cuda"), torch.bfloat16, accumulate, 1.0)
    train_step(tagger, batch, build_loss(), optimizer, settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = train_step(tagger, batch, build_loss(), optimizer, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert numbers.isfinite().all()


def test_batches_arrive_in_pinned_memory(pictures: Path) -> None:
    """Else the copy to the device would wait for the host."""
    names = tuple(f"images/{n:04}.{'png' if n % 2 else 'jpg'}" for n in range(8))
    targets = Targets.pack([np.zeros((8, 2), np.int8)], 2)
    manifest = Manifest(pictures, names, targets, LabelSpace(("a", "b")))
    loader = Loader(
        manifest,
        TransformSpec(32, "squash", 10**6),
        batch_size=4,
        workers=1,
        train_seed=0,
        pin_memory=True,
    )
    assert all(b.images.is_pinned() and b.targets.is_pinned() for b in loader.epoch())


def test_train_eval_and_predict_on_the_gpu(pictures: Path, cli: Run) -> None:
    """The three commands choose the GPU by themselves, in bfloat16, with worker processes."""
    settings = ["train.precision=auto", "train.workers=2"]
    done = cli("train", "pets.yaml", *settings, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "device cuda, precision bfloat16" in done.stderr
    assert cli("eval", "-c", "runs/pets", cwd=pictures).returncode == 0
    on_gpu, on_cpu = (
        cli("predict", "images", "-c", "runs/pets", "--device", name, cwd=pictures).stdout
        for name in ("cuda", "cpu")
    )
    assert len(on_gpu.splitlines()) == len(on_cpu.splitlines()) == 25


def test_a_frozen_run_on_the_gpu_keeps_its_features(pictures: Path, cli: Run) -> None:
    """The head is solved for there, a second run computes nothing, and eval agrees."""
    settings = ("model.freeze_backbone=true", "train.precision=float32", "train.seed=1")
    for output in ("one", "two"):
        done = cli("train", "pets.yaml", *settings, "--device", "cuda", "-o", output, cwd=pictures)
        assert done.returncode == 0, done.stderr
    first, again = (json.loads((pictures / o / "metrics.json").read_text()) for o in ("one", "two"))
    done = cli("eval", "--checkpoint", "one", "--device", "cuda", cwd=pictures)
    assert done.returncode == 0, done.stderr
    scored = json.loads((pictures / "one/eval/metrics.json").read_text())
    assert again["mAP"] == pytest.approx(first["mAP"], abs=1e-3)
    assert scored["mAP"] == pytest.approx(first["mAP"], abs=1e-3)


def test_the_solver_on_the_gpu_is_the_solver_on_the_cpu() -> None:
    """The same head, whichever device the features are on."""
    features, targets = torch.randn(200, 32), torch.randint(-1, 2, (200, 5), dtype=torch.int8)
    heads = []
    for device in ("cpu", "cuda"):
        head = torch.nn.Linear(32, 5, device=device)
        batch = Batch(features.to(device), targets.to(device), torch.arange(200))
        solver = Solver(head, lambda batch=batch: [batch], build_loss())
        list(solver.path(0.1))
        heads.append(head.weight.detach().cpu())
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-2, atol=1e-3)


def test_the_largest_batch_that_fits_is_found(pictures: Path, cli: Run) -> None:
    """`batch_size: auto` ends in a number in the run's config, and bench runs on the GPU."""
    arguments = ("pets.yaml", "train.batch_size=auto", "--device", "cuda")
    done = cli("train", *arguments, "-o", "auto", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert load_config(pictures / "auto/config.yaml").train.batch_size in (8, 16, 32)
    done = cli("bench", *arguments, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "copy to the GPU" in done.stdout
