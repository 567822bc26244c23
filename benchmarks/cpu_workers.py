"""Fine-tuning the whole network on a CPU with 0, 1 and 2 worker processes that decode.

PYTHONPATH=configs python benchmarks/cpu_workers.py  ->  benchmarks/results/cpu_workers.json

Real training steps read from the real loader. The settings take turns; each turn starts new
workers, and is timed after a warm-up. Images/s are of wall time, since the workers' CPU time is
not this process's: run it on a machine that does nothing else.
"""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

import demo_data
import torch

from mlfinetune.config import Config, load_config
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest
from mlfinetune.runtime.device import choose_precision, count_cores, keep_freed_memory
from mlfinetune.training.autotune import TrialRun, build_trial, repeat_epochs
from mlfinetune.training.build import build_loader
from mlfinetune.training.network import build_transform_spec

WARM = 3
CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "cpu_workers.json"


def one_turn(settings: Config, train: Manifest, parts: TrialRun, workers: int, steps: int) -> float:
    """Return the images/s of `steps` training steps, after WARM other steps."""
    spec = build_transform_spec(settings)
    loader = build_loader(settings, train, spec, CPU, workers, train=True)
    batches = repeat_epochs(loader)
    for batch in islice(batches, WARM):
        parts.step(batch)
    started = time.perf_counter()
    images = sum(parts.step(batch) for batch in islice(batches, steps))
    return images / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    keep_freed_memory()
    dtype, _ = choose_precision("auto", CPU)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        demo_data.write(Path(folder), count=200, size=480)
        Path(folder, "c.yaml").write_text("data: {train: tags.csv}\n")
        for backbone, side in (("resnet18", 112), ("resnet18", 224), ("resnet50", 224)):
            own = [f"model={{backbone: {backbone}, weights: null, image_size: {side}}}"]
            settings = load_config(Path(folder, "c.yaml"), [*own, "train.batch_size=8"])
            train = load_splits(settings, None).train
            parts = build_trial(settings, train, CPU, dtype)
            found: dict[int, list[float]] = {0: [], 1: [], 2: []}
            for _ in range(options.rounds):
                for workers, rates in found.items():
                    rates.append(one_turn(settings, train, parts, workers, options.steps))
            rows.append(
                {"backbone": backbone, "image_size": side}
                | {
                    f"workers_{workers}": round(median(rates), 2)
                    for workers, rates in found.items()
                }
            )
            print(rows[-1], flush=True)
    cores = count_cores()
    RESULTS.write_text(json.dumps({"cores": cores, "images_per_s": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
