"""What only a CUDA device can show; `make gpu-check` runs these."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run

from mlfinetune.data.loader import Loader
from mlfinetune.data.targets import Targets
from mlfinetune.fit import Settings, train_step
from mlfinetune.loss import build_loss, sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference
from mlfinetune.model import Tagger
from mlfinetune.optim import build_optimizer
from mlfinetune.records import Batch, LabelSpace, Manifest, TransformSpec

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


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_step_never_waits_for_the_device(accumulate: int) -> None:
    """CUDA's own check: no synchronising call in forward, backward, clipping and step."""
    tagger = small_tagger().train()
    optimizer = build_optimizer(tagger.parameter_groups(1e-3, 1e-2, 0.01), "adamw", 0.9)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8).pin_memory()
    targets = torch.randint(-1, 2, (8, 5), dtype=torch.int8).pin_memory()
    batch = Batch(images, targets, torch.arange(8))
    settings = Settings(torch.device("cuda"), torch.bfloat16, accumulate, 1.0)
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
