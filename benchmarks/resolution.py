"""Sizes of the pictures, frozen and fine-tuned: mAP, and the time that they cost.

python benchmarks/resolution.py --train train.csv --val val.csv --images images --weights FILE

Runs are processes of the command line, one for each size, on random rows of train. Differences to
the smallest size have 95 % intervals; for labels too, so that a sign of small objects would show.
Prints a line a run; adds to benchmarks/results/resolution.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from levels_tuned import read_labels, write_subset
from recipe import FROZEN, train

from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.runs.results import read_scores

RESULT = Path(__file__).parent / "results" / "resolution.json"
SIDES = (224, 288, 320, 448)


def compare(smallest: Path, other: Path) -> dict[str, Any]:
    """Return the gain over the smallest size, and the labels that gain or lose for certain."""
    tables = [read_scores(smallest), read_scores(other)]
    even = [0.5] * len(tables[0].labels)
    found = compare_tables(*tables, even, even)
    signs = {name: row.sign for name, row in found.per_label.items() if row.sign}
    return {
        "gain": found.averages["mAP"].value,
        "interval": found.averages["mAP"].interval,
        "labels_better": [name for name, sign in signs.items() if sign > 0],
        "labels_worse": [name for name, sign in signs.items() if sign < 0],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, help="fine-tune for as many; without it, frozen")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="the smallest first")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    config = FROZEN if asked.epochs is None else "finetune.yaml"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = write_subset(asked.train, asked.rows, asked.seed, folder / "train.csv")
        unseen = sorted(read_labels(asked.val) - labels)
        data = [f"data.train={folder / 'train.csv'}", f"data.val={asked.val.absolute()}"]
        data += [f"data.images={asked.images.absolute()}", f"train.seed={asked.seed}"]
        data += [f"data.ignore_labels={json.dumps(unseen)}"]
        data += [f"model.weights={asked.weights.absolute()}"]
        if asked.epochs is not None:
            data += [f"train.epochs={asked.epochs}", "train.early_stopping=null"]
        how = "frozen" if asked.epochs is None else f"fine-tuned {asked.epochs} epochs"
        key = f"{how}, {asked.rows} pictures, seed {asked.seed}"
        for side in asked.sides:
            run = folder / str(side)
            found = train(config, [*data, f"model.image_size={side}"], run)
            if side != asked.sides[0]:
                found |= compare(folder / str(asked.sides[0]), run)
            print(f"{key}  {side} px  {json.dumps(found)}", flush=True)
            result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            result.setdefault(key, {})[str(side)] = found
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
