"""Steps that L-BFGS remembers: mAP of the chosen head, passes, and seconds of the search.

python benchmarks/solver_history.py --train train.csv --val val.csv --images images --weights FILE

Training sets are the whole of train, and random rows of it by seed. Features are computed once, and
kept. Each history searches all penalties, as `mlfinetune train configs/frozen.yaml` does; seconds
are CPU time of one thread. Prints a line a search; writes benchmarks/results/solver_history.json.
"""

import argparse
import json
import tempfile
import time
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from levels_tuned import read_labels, write_subset

from mlfinetune.config import load_config
from mlfinetune.data.load import load_splits
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training import lbfgs
from mlfinetune.training.select import select_solution
from mlfinetune.training.setup import TrainingSetup, set_up, with_features

CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "solver_history.json"
HISTORIES = (100, 20, 10, 5)
SETS = ((300, 0), (300, 1), (300, 2), (1000, 0), (1000, 1), (1000, 2), (None, 0))
"""Rows of train (None: all of them), and the seed that draws them."""


def prepare(
    asked: argparse.Namespace, rows: int | None, seed: int, folder: Path, *settings: str
) -> TrainingSetup:
    """Return the run on the features of a training set; `settings` as on the command line."""
    table, labels = asked.train.absolute(), read_labels(asked.train)
    if rows is not None:
        table = folder / "train.csv"
        labels = write_subset(asked.train, rows, seed, table)
    unseen = sorted(read_labels(asked.val) - labels)
    data = [f"data.train={table}", f"data.val={asked.val.absolute()}"]
    data += [f"data.images={asked.images.absolute()}", f"data.ignore_labels={json.dumps(unseen)}"]
    weights = f"model.weights={asked.weights.absolute()}"
    config = load_config(CONFIG, [*data, weights, *settings])
    world, log = World(prepare_device("cpu"), DistInfo()), RunLog(StringIO())
    setup = with_features(set_up(config, load_splits(config, None), world, log), None, RunLog())
    assert setup is not None
    return setup


def search(setup: TrainingSetup, history: int) -> dict[str, Any]:
    """Search for the best head with a history of so many steps."""
    lbfgs.HISTORY = history
    started = time.process_time()
    best = select_solution(setup, RunLog(StringIO()))
    took = time.process_time() - started
    passes = int(best.speed.split()[0])
    return {"mAP": best.mAP, "chosen": best.name, "passes": passes, "cpu_s": round(took, 1)}


def parse_paths(description: str) -> argparse.Namespace:
    """Parse the paths of the command line: train, val, images, weights."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    asked = parse_paths(__doc__)
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for rows, seed in SETS:
        key = f"{rows or 'all'} pictures, seed {seed}"
        with tempfile.TemporaryDirectory() as folder:
            setup = prepare(asked, rows, seed, Path(folder))
            for history in HISTORIES:
                found = search(setup, history)
                result.setdefault(key, {})[str(history)] = found
                print(f"{key}  history {history}  {json.dumps(found)}", flush=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
