"""A frozen backbone: time saved by computing features once, and the best method for the head.

python benchmarks/frozen_head.py --train train.csv --val val.csv --images images --weights FILE

Each row is `mlfinetune train configs/frozen.yaml` as a process, start-up included. Features are
computed in every epoch (`train.cache_features: off`), computed once, or read from an earlier run.
The head is found by L-BFGS and by AdamW. Rows on cached features run ROUNDS times in turn, and
medians are shown. Prints a table; writes benchmarks/results/frozen_head.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 5
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "frozen_head.json"
ADAMW = ["train.optimizer=adamw", "train.head_lr=1e-2", "train.weight_decay=0.1"]
KEPT = {
    "L-BFGS": [],
    "L-BFGS, mirror images too": ["train.cache_views=2"],
    "AdamW, 10 epochs": ADAMW,
    "AdamW, 10 epochs, mirror images too": [*ADAMW, "train.cache_views=2"],
    "AdamW, 60 epochs": [*ADAMW, "train.epochs=60"],
}


def run(name: str, settings: list[str], cache: Path, folder: Path) -> dict[str, Any]:
    """Run once; return the seconds of the process, the best mAP, and macro F1 at 0.5."""
    command = [sys.executable, "-m", "mlfinetune", "train", str(CONFIG), *settings]
    environment = {**os.environ, "MLFINETUNE_CACHE": str(cache)}
    output = folder / "run"
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "-o", str(output)], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    metrics = json.loads((output / "metrics.json").read_text())
    output.rename(folder / f"{time.monotonic_ns()}")
    return {"name": name, "s": seconds, "mAP": metrics["mAP"], "macro F1": metrics["macro_F1"]}


def shown(row: dict[str, Any]) -> None:
    """Return a line of the table."""
    print(f"{row['name']:<44} {row['s']:8.1f} s  mAP {row['mAP']:.4f}  F1 {row['macro F1']:.4f}")
    sys.stdout.flush()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--uncached", type=int, default=10, help="epochs without kept features")
    asked = parser.parse_args()
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    data.append(f"model.weights={asked.weights}")
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        once = ["features computed in the run", "L-BFGS"]
        rows = [run(", ".join(once), data, cache, folder)]
        shown(rows[0])
        kept: dict[str, list[dict[str, Any]]] = {head: [] for head in KEPT}
        for _ in range(ROUNDS):
            for head, settings in KEPT.items():
                kept[head].append(run(f"kept, {head}", data + settings, cache, folder))
        for found in kept.values():
            rows.append({**found[0], "s": statistics.median(row["s"] for row in found)})
            shown(rows[-1])
        if asked.uncached:
            off = [*ADAMW, "train.cache_features=off", f"train.epochs={asked.uncached}"]
            rows.append(
                run(f"every epoch, AdamW, {asked.uncached} epochs", data + off, cache, folder)
            )
            shown(rows[-1])
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
