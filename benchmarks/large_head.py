"""One training step of a head of 2,048 features and 100,000 labels: whole, and chunk by chunk.

python benchmarks/large_head.py  ->  benchmarks/results/large_head.json

whole: nn.Linear, BCEWithLogitsLoss, the optimizer's step after the backward pass. chunked: ours
(`models.tagger.ChunkedLinear`, `training.optim.build_optimizer`, `loss.sigmoid_cross_entropy`).
Every round runs each in a process of its own, in turn. Seconds are the median of the rounds. Memory
is what a step needs beyond the weights and the optimizer's state.
"""

import ctypes
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mlfinetune.loss import sigmoid_cross_entropy
from mlfinetune.models import tagger
from mlfinetune.models.tagger import CHUNK_LABELS, ChunkedLinear
from mlfinetune.runtime.device import prepare_device
from mlfinetune.training.optim import build_optimizer

FEATURES, LABELS, ROUNDS, STEPS = 2048, 100_000, 5, 3
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def worker(kind: str, chunk: int, batch: int, optimizer_name: str) -> None:
    """Print the seconds of a step, and its MiB beyond weights and optimizer state."""
    prepare_device(DEVICE)
    tagger.CHUNK_LABELS = chunk
    torch.manual_seed(0)
    with torch.device(DEVICE):
        head = (ChunkedLinear if kind == "chunked" else nn.Linear)(FEATURES, LABELS)
        features = torch.randn(batch, FEATURES).requires_grad_()
        targets = (torch.rand(batch, LABELS) < 1e-4).to(torch.int8)
    as_float = targets.float() if kind == "whole" else None
    weights = [p for p in head.parameters() if p.ndim == 2]
    common = {"initial_lr": 1e-3, "weight_decay": 0.0}
    optimizer = build_optimizer(
        [
            {"params": weights, "in_backward": kind == "chunked", **common},
            {"params": [head.bias], **common},
        ],
        optimizer_name,
        0.9,
    )

    def step() -> None:
        optimizer.zero_grad()
        if kind == "whole":
            loss = binary_cross_entropy_with_logits(head(features), as_float)
        else:
            loss = sigmoid_cross_entropy(head(features), targets)
        loss.backward()
        optimizer.step()
        if GPU:
            torch.cuda.synchronize()

    weights_bytes = 4 * sum(p.numel() for p in head.parameters())
    state_bytes = weights_bytes * {"sgd": 1, "adamw": 2}[optimizer_name]
    before = state_bytes + (weights_bytes if GPU else _memory("VmRSS"))
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    most = torch.cuda.max_memory_allocated() if GPU else _memory("VmHWM")
    print(statistics.median(seconds[1:]), (most - before) / 2**20)


def _memory(key: str) -> int:
    """Return the bytes that this process uses, without free memory that it holds."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure, write, print."""
    settings = [("whole", 0), *(("chunked", chunk) for chunk in (512, 1024, 4096))]
    result: dict[str, dict[str, dict[str, float]]] = {}
    for optimizer_name, batch in (("sgd", 64), ("adamw", 64)):
        found: dict[str, list[list[float]]] = {}
        for _ in range(ROUNDS):
            for kind, chunk in settings:
                if chunk not in (0, CHUNK_LABELS) and (optimizer_name, batch) != ("sgd", 64):
                    continue
                command = [sys.executable, __file__, kind, str(chunk), str(batch), optimizer_name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                name = kind if not chunk else f"{kind}, {chunk} labels"
                found.setdefault(name, []).append([float(x) for x in done.stdout.split()])
        rows = {
            name: {
                "seconds": round(statistics.median(s for s, _ in values), 3),
                "MiB": round(statistics.median(m for _, m in values)),
            }
            for name, values in found.items()
        }
        result[f"{optimizer_name}, batch {batch}"] = rows
        print(optimizer_name, batch, rows)
    path = Path(__file__).parent / "results" / f"large_head{'_gpu' if GPU else ''}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        worker(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
