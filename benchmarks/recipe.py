"""Frozen runs, the recipe of fine-tuning, and that of before: mAP on the same validation pictures.

python benchmarks/recipe.py --train train.csv --val val.csv --images images --weights FILE

Runs are processes of the command line on random rows of train, or on all: configs/frozen.yaml
and configs/finetune.yaml with all pictures of one size and as many epochs as asked for. One frozen
run has features of one level, the network of the design card. Differences to both frozen runs have
95 % intervals. Prints a line a run; adds to benchmarks/results/recipe.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from levels_tuned import BEFORE, read_labels, write_subset

from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.runs.results import read_scores

CONFIGS = Path(__file__).parents[1] / "configs"
RESULT = Path(__file__).parent / "results" / "recipe.json"


def train(config: str, data: list[str], output: Path) -> dict[str, Any]:
    """Run once; return its mAP, that of every epoch, and seconds of wall time."""
    command = [sys.executable, "-m", "mlfinetune", "train", str(CONFIGS / config), *data]
    started = time.monotonic()
    done = subprocess.run([*command, "-o", str(output)], capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(done.stderr)
    history = output / "metrics.jsonl"
    epochs = [json.loads(line)["mAP"] for line in history.open()] if config != FROZEN else []
    best = json.loads((output / "metrics.json").read_text())
    return {"mAP": best["mAP"], "epochs": epochs, "seconds": round(seconds)}


FROZEN = "frozen.yaml"
ONE_LEVEL = "frozen, one level"


def compare(frozen: Path, other: Path) -> dict[str, Any]:
    """Return the gain over a frozen run, with its interval."""
    tables = [read_scores(frozen), read_scores(other)]
    even = [0.5] * len(tables[0].labels)
    difference = compare_tables(*tables, even, even).averages["mAP"]
    return {"gain": difference.value, "interval": difference.interval}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="pictures to train on; without it all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--side", type=int, default=224, help="model.image_size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-before", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, labels = asked.train.absolute(), read_labels(asked.train)
        if asked.rows is not None:
            table = folder / "train.csv"
            labels = write_subset(asked.train, asked.rows, asked.seed, table)
        unseen = sorted(read_labels(asked.val) - labels)
        data = [f"data.train={table}", f"data.val={asked.val.absolute()}"]
        data += [f"data.images={asked.images.absolute()}", f"train.seed={asked.seed}"]
        data += [f"data.ignore_labels={json.dumps(unseen)}", f"model.image_size={asked.side}"]
        data += [f"model.weights={asked.weights.absolute()}"]
        tuning = [f"train.epochs={asked.epochs}", "train.early_stopping=null"]
        ways = {
            ONE_LEVEL: (FROZEN, [*data, "model.levels=1"]),
            "frozen": (FROZEN, data),
            "recipe": ("finetune.yaml", [*data, *tuning]),
        }
        if not asked.without_before:
            ways["before"] = ("finetune.yaml", [*data, *tuning, *BEFORE])
        key = f"{asked.rows or 'all'} pictures, {asked.side} px, seed {asked.seed}"
        for way, (config, settings) in ways.items():
            found = train(config, settings, folder / way)
            if config != FROZEN:
                found |= compare(folder / "frozen", folder / way)
                found["over one level"] = compare(folder / ONE_LEVEL, folder / way)
            print(f"{key}  {way}  {json.dumps(found)}", flush=True)
            result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            result.setdefault(key, {})[way] = found
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
