"""Forward and backward pass of the loss: ours beside usual code, and beside a copy of memory.

python benchmarks/loss_speed.py  ->  benchmarks/results/loss_speed_DEVICE.json

Runs on the GPU where there is one. On a CPU each setting (threads, allocator) has a process of its
own; `tuned` is glibc as `mlfinetune train` sets it (`runtime.device.keep_freed_memory`). In a round
each contender runs in turn; the median of the rounds counts. The copy moves as many bytes as the
loss has to: logits and targets are read, the gradient is written.
"""

import ctypes
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    multilabel_soft_margin_loss,
)

from mlfinetune.loss import asymmetric_loss, sigmoid_cross_entropy
from mlfinetune.loss.reference import sigmoid_cross_entropy_reference
from mlfinetune.runtime.device import keep_freed_memory

ROUNDS, SECONDS = 5, 0.05
SHAPES = [(64, 20), (64, 80), (256, 1000), (1024, 10000), (4096, 20000)]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def masked(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of plain torch code that masks unknown targets."""
    known = targets >= 0
    each = binary_cross_entropy_with_logits(
        logits, targets.clamp(min=0).to(logits.dtype), reduction="none"
    )
    return (each * known).sum() / known.sum()


def contenders(
    shape: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Callable[[], Any]]]:
    """Return logits, and name -> one forward and backward pass.

    Logits have a standard deviation of 4; 3 % of the targets are positive, 5 % unknown.
    """
    torch.manual_seed(0)
    logits = (torch.randn(shape, device=DEVICE) * 4).to(dtype).requires_grad_()
    hard = (torch.rand(shape, device=DEVICE) < 0.03).to(torch.int8)
    unknown = torch.where(torch.rand(shape, device=DEVICE) < 0.05, -1, hard).to(torch.int8)
    targets = hard.to(dtype)
    weights = torch.rand(shape[1], device=DEVICE) + 0.5
    moved = logits.numel() * (2 * logits.element_size() + 1)
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=DEVICE)
    goal = torch.zeros_like(source)
    formula = torch.compile(sigmoid_cross_entropy_reference, dynamic=False)

    def both(loss: Callable[..., Tensor], *arguments: Any, **settings: Any) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss(logits, *arguments, **settings).backward()

        return run

    return logits, {
        "copy": lambda: goal.copy_(source),
        "ours": both(sigmoid_cross_entropy, hard),
        "BCEWithLogits": both(binary_cross_entropy_with_logits, targets),
        "MultiLabelSoftMargin": both(multilabel_soft_margin_loss, targets),
        "sigmoid then BCE": both(lambda x, t: binary_cross_entropy(torch.sigmoid(x), t), targets),
        "formula, torch.compile": both(formula, hard),
        "ours, float targets": both(sigmoid_cross_entropy, targets),
        "ours, unknown targets": both(sigmoid_cross_entropy, unknown),
        "BCEWithLogits, masked by hand": both(masked, unknown),
        "ours, pos_weight": both(sigmoid_cross_entropy, hard, pos_weight=weights),
        "BCEWithLogits, pos_weight": both(
            binary_cross_entropy_with_logits, targets, pos_weight=weights.to(dtype)
        ),
        "ours, asymmetric": both(asymmetric_loss, hard),
        "asymmetric, term by term": both(
            sigmoid_cross_entropy_reference, hard, gamma_neg=4.0, gamma_pos=1.0, clip=0.05
        ),
    }


def finish() -> None:
    """Wait for the device."""
    if GPU:
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], times: int) -> float:
    """Return the seconds of one call, the mean over `times` calls."""
    finish()
    start = time.perf_counter()
    for _ in range(times):
        run()
    finish()
    return (time.perf_counter() - start) / times


def peak_mib(run: Callable[[], Any], logits: Tensor) -> float:
    """Return the peak memory of a call in MiB beyond logits and targets; the gradient counts."""
    logits.grad = None
    if GPU:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed is given back
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, _ = resident()
    run()
    return (resident()[1] - before) / 2**10


def resident() -> tuple[int, int]:
    """Return KiB in memory now, and at most."""
    status = Path("/proc/self/status").read_text()
    now, most = (re.search(rf"{key}:\s+(\d+)", status) for key in ("VmRSS", "VmHWM"))
    assert now is not None
    assert most is not None
    return int(now[1]), int(most[1])


def measure(shape: tuple[int, int], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Return microseconds of a call and peak MiB of every contender."""
    logits, runs = contenders(shape, dtype)
    once = {}
    for name, run in runs.items():
        run()
        once[name] = seconds(run, 1)
    times = {name: max(1, int(SECONDS / value)) for name, value in once.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            found[name].append(seconds(run, times[name]))
    return {
        name: {
            "us": round(1e6 * statistics.median(found[name]), 1),
            "peak_MiB": round(peak_mib(run, logits), 1),
        }
        for name, run in runs.items()
    }


def worker(threads: int, tuned: bool) -> None:
    """Print the numbers of every shape as JSON."""
    if not GPU:
        torch.set_num_threads(threads)
        if tuned:
            keep_freed_memory()
    result = {}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            if GPU or dtype == torch.float32 or shape == (1024, 10000):
                key = f"{shape[0]} x {shape[1]}, {str(dtype).removeprefix('torch.')}"
                result[key] = measure(shape, dtype)
    print(json.dumps(result))


def main() -> None:
    """Measure in processes of their own, write, and print the ratios."""
    settings = [(1, False), (1, True), (torch.get_num_threads(), True)]
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else platform.processor() or "cpu",
        "torch": torch.__version__,
        "rounds": ROUNDS,
    }
    for threads, tuned in [(0, False)] if GPU else settings:
        name = "gpu" if GPU else f"{threads} threads, {'tuned' if tuned else 'as it comes'}"
        command = [sys.executable, __file__, str(threads), str(int(tuned))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result[name] = json.loads(done.stdout.splitlines()[-1])
        for key, rows in result[name].items():
            base = rows["BCEWithLogits"]["us"]
            print(name, key)
            for row, values in rows.items():
                faster = base / values["us"]
                print(
                    f"  {row:30} {values['us']:12.1f} us  {faster:5.2f}x  {values['peak_MiB']} MiB"
                )
    label = re.sub(r"\W+", "-", result["device"]).strip("-") if GPU else "cpu"
    path = Path(__file__).parent / "results" / f"loss_speed_{label}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(int(sys.argv[1]), sys.argv[2] == "1")
    else:
        main()
