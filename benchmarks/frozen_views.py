"""A frozen run: views of a training picture, and the penalty that the search begins at.

python benchmarks/frozen_views.py --train train.csv --val val.csv --images images --weights FILE

Training sets are the whole of train, and random rows of it by seed. Features are computed once, and
kept. Each way searches as `mlfinetune train configs/frozen.yaml` does, on the picture alone or on
its mirror image too, from one penalty or another. mAP and F1 are on all of val, with 95 % intervals
of the gain over the way of before, 2 views and a search from 1. Held out is the mAP without the
luck of the choice: chosen on a random half of val and measured on the other, the mean of SPLITS
halvings. Prints a line a search; writes benchmarks/results/frozen_views.json.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from solver_history import parse_paths, prepare

from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runtime.log import RunLog
from mlfinetune.training import solve
from mlfinetune.training.loop import Candidate
from mlfinetune.training.setup import TrainingSetup

RESULT = Path(__file__).parent / "results" / "frozen_views.json"
SETS = (
    *((100, seed) for seed in range(6)),
    *((300, seed) for seed in range(8)),
    *((1000, seed) for seed in range(4)),
    (None, 0),
)
"""Rows of train (None: all of them), and the seed that draws them."""
BEFORE = "2 views, from 1"
WAYS = {BEFORE: (2, 1.0), "2 views, from 10": (2, 10.0), "1 view, from 1": (1, 1.0)}
WAYS |= {"1 view, from 10": (1, 10.0)}
"""Way -> views of a training picture, and the penalty that the search begins at."""
SPLITS = 10


def search(setup: TrainingSetup, strongest: float) -> list[Candidate]:
    """Return all solutions of a search that begins at this penalty."""
    with patch.object(solve, "STRONGEST_OF_FEW", strongest):
        return list(solve.solve_head(setup, RunLog(StringIO())))


def take_half(scores: ScoreTable, rows: NDArray[np.int64]) -> ScoreTable:
    """Return the scores of some of the images."""
    names = tuple(scores.names[row] for row in rows)
    return replace(
        scores, names=names, logits=scores.logits[rows], targets=scores.targets[rows], groups=None
    )


def draw_halves(images: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the rows of both halves of SPLITS random halvings."""
    generator = np.random.default_rng(0)
    for _ in range(SPLITS):
        order = generator.permutation(images)
        yield order[: images // 2], order[images // 2 :]


def measure_held_out(candidates: list[Candidate]) -> float:
    """Return the mAP on one half of val of the candidate that is best on the other half."""
    tables = [candidate.scores for candidate in candidates if candidate.scores is not None]
    found = []
    for here, there in draw_halves(len(tables[0].names)):
        best = max(tables, key=lambda scores: compute_map(take_half(scores, here)))
        found.append(compute_map(take_half(best, there)))
    return mean(found)


def compute_map(scores: ScoreTable) -> float:
    """Return the mAP."""
    value = measure(scores, quick=True).averages["mAP"]
    assert value is not None
    return value


def main() -> None:
    """Measure, print, write."""
    asked = parse_paths(__doc__)
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for rows, seed in SETS:
        key = f"{rows or 'all'} pictures, seed {seed}"
        with tempfile.TemporaryDirectory() as folder:
            setups = {
                views: prepare(asked, rows, seed, Path(folder), f"train.cache_views={views}")
                for views in (2, 1)
            }
            result[key] = run_ways(setups, key)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


def run_ways(setups: dict[int, TrainingSetup], key: str) -> dict[str, Any]:
    """Run all ways on one training set, given by the number of views."""
    found: dict[str, Any] = {}
    before: tuple[ScoreTable, list[float]] | None = None
    for way, (views, strongest) in WAYS.items():
        started = time.process_time()
        candidates = search(setups[views], strongest)
        took = time.process_time() - started
        best = max(candidates, key=lambda candidate: candidate.mAP or 0.0)
        assert best.scores is not None
        limits = fit_decision_rule(setups[views].config.eval, best.scores).thresholds
        before = before or (best.scores, list(limits))
        compared = compare_tables(before[0], best.scores, before[1], limits).averages
        gain, f1 = compared["mAP"], compared["macro_F1"]
        found[way] = {"mAP": best.mAP, "gain": gain.value, "interval": gain.interval}
        found[way] |= {"F1 gain": f1.value, "F1 interval": f1.interval}
        found[way] |= {"held out": measure_held_out(candidates), "chosen": best.name}
        found[way] |= {"solutions": len(candidates), "cpu_s": round(took, 1)}
        print(f"{key}  {way}  {json.dumps(found[way])}", flush=True)
    return found


if __name__ == "__main__":
    main()
