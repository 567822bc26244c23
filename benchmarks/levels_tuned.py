"""Features of one stage and of two, fine-tuned from the solved head: mAP epoch by epoch.

python benchmarks/levels_tuned.py --train train.csv --val val.csv --images images --weights FILE

Runs are processes of the command line, on random rows of train, one for each seed and number of
levels; settings are those of configs/finetune.yaml before its recipe was measured. Labels that the
rows lack are left out. Prints a table; writes benchmarks/results/levels_tuned.json.
"""

import argparse
import csv
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.runs.results import read_scores

CONFIG = Path(__file__).parents[1] / "configs" / "finetune.yaml"
RESULT = Path(__file__).parent / "results" / "levels_tuned.json"
LEVELS = (1, 2)
BEFORE = (
    "train.lr=1e-4",
    "train.head_lr=1e-3",
    "train.layer_decay=null",
    "train.ema=null",
    "train.solve_head_each=false",
    "augment.crop_scale=[0.35, 1.0]",
    "augment.color_jitter=0.2",
)
"""Settings of configs/finetune.yaml before its recipe was measured."""


def write_subset(table: Path, rows: int, seed: int, target: Path) -> set[str]:
    """Write random rows of a table; return their labels."""
    with table.open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    chosen = sorted(random.Random(seed).sample(lines, rows))
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *chosen])
    column = header.index("labels")
    return {label for line in chosen for label in line[column].split("|")}


def read_labels(table: Path) -> set[str]:
    """Return the labels of a table."""
    with table.open(newline="", encoding="utf-8") as file:
        return {label for row in csv.DictReader(file) for label in row["labels"].split("|")}


def train(data: list[str], output: Path, settings: list[str]) -> dict[str, Any]:
    """Run once; return the mAP of the solved head, of every epoch, and of the best of them."""
    arguments = ["train", str(CONFIG), *data, *settings, "-o", str(output)]
    command = [sys.executable, "-m", "mlfinetune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    (solved,) = re.findall(r"training starts from the head of .*, mAP ([\d.]+)", done.stderr)
    epochs = [json.loads(line)["mAP"] for line in (output / "metrics.jsonl").open()]
    best = json.loads((output / "metrics.json").read_text())["mAP"]
    return {"solved head": float(solved), "epochs": epochs, "best": best}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, default=160, help="model.image_size")
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    settings = [f"train.epochs={asked.epochs}", f"model.image_size={asked.side}"]
    settings += [f"model.weights={asked.weights.absolute()}", "train.early_stopping=null", *BEFORE]
    result: dict[str, Any] = {"rows": asked.rows, "epochs": asked.epochs, "side": asked.side}
    result["seeds"] = []
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            labels = write_subset(asked.train, asked.rows, seed, folder / "train.csv")
            unseen = sorted(read_labels(asked.val) - labels)
            data = [f"data.train={folder / 'train.csv'}", f"data.val={asked.val.absolute()}"]
            data += [f"data.images={asked.images.absolute()}", f"train.seed={seed}"]
            data += [f"data.ignore_labels={json.dumps(unseen)}"]
            runs = {}
            for levels in LEVELS:
                run = folder / str(levels)
                runs[str(levels)] = train(data, run, [*settings, f"model.levels={levels}"])
                print(f"seed {seed}  levels {levels}  {runs[str(levels)]}", flush=True)
            tables = [read_scores(folder / str(levels)) for levels in LEVELS]
            even = [0.5] * len(tables[0].labels)
            difference = compare_tables(*tables, even, even).averages["mAP"]
            found = {"difference": difference.value, "interval": difference.interval}
            result["seeds"].append({**runs, **found})
            print(f"seed {seed}  {found}", flush=True)
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
