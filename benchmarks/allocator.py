"""ResNet-50 training steps at 224 px on a CPU: glibc's allocator by default, and as train sets it.

python benchmarks/allocator.py  ->  benchmarks/results/allocator.json

Each round runs both settings in turn, each in a process of its own. The set one is that of
`runtime.device.keep_freed_memory`.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS, STEPS, BATCH = 5, 2, 16


def worker(tuned: bool, frozen: bool) -> None:
    """Print the images/s of a few training steps, after a warm-up."""
    import torch

    from mlfinetune.data.batches.batch import Batch
    from mlfinetune.loss import build_loss
    from mlfinetune.models.tagger import Tagger
    from mlfinetune.runtime.device import choose_precision, keep_freed_memory
    from mlfinetune.training.optim import build_optimizer
    from mlfinetune.training.step import StepOptions, train_step

    if tuned:
        keep_freed_memory()
    device = torch.device("cpu")
    dtype, _ = choose_precision("auto", device)
    tagger = Tagger("resnet50", 64, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=frozen)
    tagger.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(tagger.parameter_groups(1e-4, 1e-3, 0.01), "adamw", 0.9)
    images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(BATCH, 64, dtype=torch.int8), torch.arange(BATCH))
    settings = StepOptions(device, dtype, 1, 1.0)
    train_step(tagger, batch, build_loss(), optimizer, settings)
    start = time.perf_counter()
    for _ in range(STEPS):
        train_step(tagger, batch, build_loss(), optimizer, settings)
    print(BATCH * STEPS / (time.perf_counter() - start))


def measure(frozen: bool) -> dict[str, float]:
    """Return the median images/s of both settings, and their ratio."""
    rates: dict[str, list[float]] = {"as it comes": [], "tuned": []}
    for _ in range(ROUNDS):
        for name, values in rates.items():
            command = [sys.executable, __file__, str(int(name == "tuned")), str(int(frozen))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            values.append(float(done.stdout))
    medians = {name: round(statistics.median(values), 2) for name, values in rates.items()}
    return {**medians, "ratio": round(medians["tuned"] / medians["as it comes"], 2)}


def main() -> None:
    """Measure training of the head alone and of the whole network, and write the result."""
    result = {
        "unit": "images/s",
        "rounds": ROUNDS,
        "batch": BATCH,
        "machine": platform.machine(),
        "frozen": measure(frozen=True),
        "full": measure(frozen=False),
    }
    path = Path(__file__).parent / "results" / "allocator.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(tuned=sys.argv[1] == "1", frozen=sys.argv[2] == "1")
    else:
        main()
