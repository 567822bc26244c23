"""A training step of ResNet-50 at 224 px: usual code, and this package.

python benchmarks/train_step.py [--device cuda]  ->  benchmarks/results/train_step_{cpu,cuda}.json

usual: float32, NCHW, AdamW with its defaults, BCEWithLogitsLoss, glibc's allocator by default.
ours: `training.step.train_step` as `train` sets it up: the precision that `auto` chooses,
channels_last, the fused loss and optimizer, the allocator set to keep freed memory. ours compiled:
the same with the backbone under torch.compile. Each is a process of its own; they run in turn,
ROUNDS times. Images/s are medians, without the first steps. The first step of a compiled backbone
is shown by itself.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from mlfinetune.data.batches.batch import Batch
from mlfinetune.loss import build_loss
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import (
    choose_precision,
    count_cores,
    prepare_device,
    read_cpu_flags,
    synchronize_device,
)
from mlfinetune.training.optim import build_optimizer
from mlfinetune.training.step import StepOptions, train_step

ROUNDS, LABELS = 5, 64
WAYS = ("usual", "ours", "ours compiled")
RESULTS = Path(__file__).parent / "results"


def worker(way: str, name: str, size: int, steps: int) -> None:
    """Print the images/s of some steps, and the seconds of the first."""
    device = torch.device(name) if way == "usual" else prepare_device(name)
    tagger = Tagger("resnet50", LABELS, mean=(0.5,) * 3, std=(0.2,) * 3).to(device).train()
    images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8, device=device)
    targets = torch.zeros(size, LABELS, dtype=torch.int8, device=device)
    batch = Batch(images, targets, torch.arange(size))
    if way == "usual":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(tagger.parameters(), 1e-4)
        loss, known = torch.nn.BCEWithLogitsLoss(), targets.float()
        mean, std = tagger.mean, tagger.std

        def step() -> None:
            optimizer.zero_grad()
            features = tagger.features((images.float() - mean) / std)
            loss(tagger.head(features), known).backward()
            optimizer.step()
    else:
        tagger.to(memory_format=torch.channels_last)
        if way == "ours compiled":
            tagger.features.compile()
        optimizer = build_optimizer(tagger.parameter_groups(1e-4, 1e-3, 0.01), "adamw", 0.9)
        dtype, _ = choose_precision("auto", device)
        settings = StepOptions(device, dtype, 1, None)

        def step() -> None:
            train_step(tagger, batch, build_loss(), optimizer, settings)

    def timed(count: int) -> float:
        synchronize_device(device)
        start = time.perf_counter()
        for _ in range(count):
            step()
        synchronize_device(device)
        return time.perf_counter() - start

    first = timed(1)
    timed(1)
    print(json.dumps([size * steps / timed(steps), first]))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--worker", choices=WAYS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker, asked.device, asked.batch, asked.steps)
        return
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, runs in found.items():
            command = [sys.executable, __file__, "--worker", way, "--device", asked.device]
            command += ["--batch", str(asked.batch), "--steps", str(asked.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{way}: {done.stderr.strip().splitlines()[-1]}")
            else:
                runs.append(json.loads(done.stdout))
    usual = statistics.median(rate for rate, _ in found["usual"])
    rows = []
    for way, runs in found.items():
        if runs:
            rate, first = (statistics.median(column) for column in zip(*runs, strict=True))
            rows.append(
                {"way": way, "images/s": rate, "ratio": rate / usual, "first step s": first}
            )
            print(f"{way:<14} {rate:8.2f} images/s  {rate / usual:5.2f}x  first step {first:.1f} s")
    kind = torch.device(asked.device).type
    fast = sorted(read_cpu_flags() & {"amx_bf16", "avx512_bf16"})
    cores = f"{platform.machine()}, {count_cores()} cores, {', '.join(fast)}"
    named = torch.cuda.get_device_name() if kind == "cuda" else cores
    result = {"machine": named, "torch": torch.__version__, "batch": asked.batch, "rows": rows}
    (RESULTS / f"train_step_{kind}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
