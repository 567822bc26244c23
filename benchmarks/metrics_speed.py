"""All metrics of a table, beside scikit-learn's AP alone, label by label.

python benchmarks/metrics_speed.py [--million]  ->  benchmarks/results/metrics_speed.json

100,000 images x 80 labels: 3.6% of the pairs positive as in COCO, a half, and 3.6% with three in
ten unknown; the timed rounds take turns. --million: 1,000,000 x 80, once each in a process of its
own, with the memory that was taken beyond the table.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score

from mlfinetune.data.targets import POSITIVE, UNKNOWN, LabelSpace
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable

IMAGES, LABELS, ROUNDS, SEED = 100_000, 80, 5, 0
RESULT = Path(__file__).parent / "results" / "metrics_speed.json"
TABLES = {"3.6% positive": (0.036, 0.0), "50% positive": (0.5, 0.0), "30% unknown": (0.036, 0.3)}


def scores(images: int, positive: float, unknown: float) -> ScoreTable:
    """Return normal logits, those of positives 1.5 higher, with their targets."""
    rng = np.random.default_rng(SEED)
    logits = np.empty((images, LABELS), np.float32)
    targets = np.empty(logits.shape, np.int8)
    for t, x in zip(targets, logits, strict=True):  # a row at a time: the peak is the table
        t[:] = rng.random(LABELS, np.float32) < positive
        x[:] = rng.standard_normal(LABELS, np.float32) - 2 + 1.5 * t
        if unknown:
            t[rng.random(LABELS, np.float32) < unknown] = UNKNOWN
    names = tuple(str(label) for label in range(LABELS))
    return ScoreTable(("",) * images, logits, targets, LabelSpace(names))


def sklearn_ap(table: ScoreTable) -> float:
    """Return mAP from scikit-learn's function, called for every label."""
    values = []
    for t, x in zip(table.targets.T, table.logits.T, strict=True):
        known = t != UNKNOWN
        if known.all():
            values.append(average_precision_score(t, x))
        else:
            values.append(average_precision_score(t[known] == POSITIVE, x[known]))
    return float(np.mean(values))


def all_metrics(table: ScoreTable, ap: str = "sklearn") -> float:
    """Return the mAP of `measure`, which computes all other metrics too."""
    return measure(table, ap=ap).averages["mAP"] or 0.0


FUNCTIONS: dict[str, Callable[[ScoreTable], float]] = {
    "sklearn AP alone": sklearn_ap,
    "measure": all_metrics,
    "measure, voc_11point": lambda table: all_metrics(table, "voc_11point"),
}


def compared(table: ScoreTable) -> dict[str, Any]:
    """Return median seconds of rounds that take turns, and the difference of the two mAP."""
    times: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    values = {}
    for _ in range(ROUNDS):
        for name, function in FUNCTIONS.items():
            start = time.perf_counter()
            values[name] = function(table)
            times[name].append(time.perf_counter() - start)
    alone, ours, _ = times.values()
    ratios = [b / a for a, b in zip(alone, ours, strict=True)]
    return {
        "seconds": {name: round(statistics.median(taken), 3) for name, taken in times.items()},
        "measure / sklearn AP alone": round(statistics.median(ratios), 3),
        "mAP difference": abs(values["measure"] - values["sklearn AP alone"]),
    }


def worker(name: str) -> None:
    """Score a million images; print the seconds and the memory."""
    FUNCTIONS[name](scores(1000, 0.036, 0.0))  # what imports and first calls keep
    table = scores(1_000_000, 0.036, 0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    FUNCTIONS[name](table)
    seconds = time.perf_counter() - start
    beyond = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # Linux counts in KiB
    size = table.logits.nbytes + table.targets.nbytes
    took = {"seconds": round(seconds, 2), "peak_beyond_table_mib": round(beyond / 1024)}
    print(json.dumps({**took, "table_mib": round(size / 2**20)}))


def main() -> None:
    """Measure, and write the result; without --million keep its numbers in the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker)
        return
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["100,000 x 80"] = {name: compared(scores(IMAGES, *how)) for name, how in TABLES.items()}
    if asked.million:
        result["1,000,000 x 80"] = {}
        for name in FUNCTIONS:
            command = [sys.executable, __file__, "--worker", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result["1,000,000 x 80"][name] = json.loads(done.stdout)
    result["rounds"] = ROUNDS
    result["versions"] = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
    result["machine"] = platform.machine()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
