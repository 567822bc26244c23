"""ResNet-50 features at 224 px on a CPU: plain torch, and the fused backbone of predict.

python benchmarks/predict_cpu.py  ->  benchmarks/results/predict_cpu.json

eager float32: torchvision's network, NCHW, glibc's allocator by default. The others run with the
allocator as the package sets it (`runtime.device.keep_freed_memory`) and in channels_last:
autocast: the same network under bfloat16 autocast.
folded: BatchNorm folded into the convolutions, plain operators.
packed: the result of `models.inference.fuse_for_cpu`, fused operators and weights in the layout
of these operators, in both types.

The two allocators need a process each; the two processes take turns, batch by batch, and never run
at once. On one core the rates are of CPU time, on all cores of wall time. Each rate is the median
of the rounds after one warm-up. `ratio` is over eager float32 at its own best batch, on as many
cores. The largest difference of probabilities is from float32, with a random head whose logits have
a standard deviation of about 2. The peak of a large matrix product on one core, in either type, is
the limit of the hardware.
"""

import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from mlfinetune.models.inference import fuse_for_cpu
from mlfinetune.runtime.device import count_cores, keep_freed_memory, name_dtype, read_cpu_flags

BATCHES, BATCHES_ALL_CORES, ROUNDS, SIDE = (1, 8, 16, 32), (1, 8, 16), 5, 224
EAGER = "eager float32"
BF16 = torch.bfloat16
PROCESSES = ("as it comes", "kept")


def backbone() -> nn.Module:
    """Return a network with the same random weights in every process, and BatchNorm statistics."""
    torch.manual_seed(0)
    net = torchvision.models.get_model("resnet50", weights=None).eval().requires_grad_(False)
    net.fc = nn.Identity()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.2, 0.6)
    return net


def folded(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the backbone for a machine without fused operators."""
    torch.backends.mkldnn.enabled = False
    plain, _ = fuse_for_cpu(net, dtype, SIDE)
    torch.backends.mkldnn.enabled = True
    return plain


def variants() -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, Any]]:
    """Return the variants that run with freed memory kept, and facts of each, as its difference."""
    net = backbone()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return last(x)

    found: dict[str, Callable[[Tensor], Tensor]] = {"autocast bfloat16": autocast}
    about: dict[str, Any] = {}
    for dtype in (torch.float32, BF16):
        name = name_dtype(dtype)
        found[f"folded {name}"] = folded(net, dtype)
        start = time.perf_counter()
        found[f"packed {name}"], why = fuse_for_cpu(net, dtype, SIDE)
        about[f"packed {name}"] = {"build s": round(time.perf_counter() - start, 2), "why": why}
    with torch.inference_mode():
        for name, run in found.items():
            about.setdefault(name, {})["difference"] = difference(net, run)
    return found, about


def difference(net: nn.Module, run: Callable[[Tensor], Tensor]) -> float:
    """Return the largest difference of probabilities, over 8 pictures and 64 labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, SIDE, SIDE, generator=generator)
    expected = net(x)
    head = torch.randn(expected.shape[1], 64, generator=generator)
    head *= 2 / expected.norm(dim=1).mean()
    x = x.contiguous(memory_format=torch.channels_last)
    return round(
        ((run(x).float() @ head).sigmoid() - (expected @ head).sigmoid()).abs().max().item(), 5
    )


def worker(process: str) -> None:
    """Answer every line `batch cores` on stdin with the seconds of every variant, as JSON."""
    if process == "kept":
        keep_freed_memory()
        runs, about = variants()
    else:
        runs, about = {EAGER: backbone()}, {}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        batch, cores = map(int, line.split())
        torch.set_num_threads(cores)
        clock = time.process_time if cores == 1 else time.perf_counter
        x = torch.randn(batch, 3, SIDE, SIDE)
        if process == "kept":
            x = x.contiguous(memory_format=torch.channels_last)
        seconds = {}
        with torch.inference_mode():
            for name, run in runs.items():
                start = clock()
                run(x)
                seconds[name] = clock() - start
        print(json.dumps(seconds), flush=True)


def peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Return GFLOP/s of a matrix product on one core."""
    torch.set_num_threads(1)
    a, seconds = torch.randn(size, size).to(dtype), []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        a @ a
        seconds.append(time.process_time() - start)
    return round(2 * size**3 / statistics.median(seconds[1:]) / 1e9)


def measure(workers: list[subprocess.Popen[str]], cores: int) -> dict[str, dict[int, float]]:
    """Return images/s of every variant at every batch size."""
    rates: dict[str, dict[int, float]] = {}
    for batch in BATCHES if cores == 1 else BATCHES_ALL_CORES:
        seconds: dict[str, list[float]] = {}
        for turn in range(ROUNDS + 1):
            for process in workers:
                for name, value in ask(process, f"{batch} {cores}").items():
                    if turn:
                        seconds.setdefault(name, []).append(value)
        for name, values in seconds.items():
            rates.setdefault(name, {})[batch] = round(batch / statistics.median(values), 1)
    return rates


def ask(process: subprocess.Popen[str], question: str = "") -> Any:
    """Send a line to a worker, if any, and return its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


def table(rates: dict[str, dict[int, float]], cores: int) -> dict[str, Any]:
    """Print the rates and their ratios."""
    best = max(rates[EAGER].values())
    print(f"\n{cores} core{'s' * (cores > 1)}, images/s (ratio), batch {[*rates[EAGER]]}")
    for name, by_batch in rates.items():
        cells = (f"{rate:7.1f} ({rate / best:4.2f})" for rate in by_batch.values())
        print(f"{name:18}", *cells)
    return {
        name: {
            "images/s": by_batch,
            "ratio": {batch: round(rate / best, 2) for batch, rate in by_batch.items()},
        }
        for name, by_batch in rates.items()
    }


def main() -> None:
    """Measure, write, print."""
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, process],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in PROCESSES
    ]
    about = {name: value for process in workers for name, value in ask(process).items()}
    cores = count_cores()
    fast = sorted(read_cpu_flags() & {"amx_bf16", "avx512_bf16"})
    result = {
        "unit": "images/s",
        "rounds": ROUNDS,
        "machine": f"{platform.machine()}, {cores} cores, {', '.join(fast) or 'no bfloat16'}",
        "torch": torch.__version__,
        "matrix product, GFLOP/s a core": {"float32": peak(torch.float32), "bfloat16": peak(BF16)},
        "about": about,
        "cores": {str(n): table(measure(workers, n), n) for n in sorted({1, cores})},
    }
    for process in workers:
        process.communicate()
    print(json.dumps({key: result[key] for key in result if key != "cores"}, indent=2))
    path = Path(__file__).parent / "results" / "predict_cpu.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        worker(sys.argv[1])
    else:
        main()
