"""Stratified splits of this package, of iterative-stratification, and a random one.

python benchmarks/split_balance.py  ->  benchmarks/results/split_balance.json

Gives seconds and shares of labels. 100,000 images x 100 labels, three draws an image from a Zipf
law, a fifth held out; the timed rounds take turns. Then 1,000,000 x 1,000 once, this package alone,
in a process of its own for its peak memory.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.stratify import split_stratified

ROUNDS, DRAWS, FRACTION, SEED = 5, 3, 0.2, 0
SMALL, LARGE = (100_000, 100), (1_000_000, 1_000)

Positives = tuple[NDArray[np.int64], NDArray[np.int64]]


def zipf(size: int, labels: int) -> Positives:
    """Draw rows and columns of the positives; the k-th label has a weight of 1 / k."""
    weights = 1 / np.arange(1, labels + 1)
    drawn = np.random.default_rng(SEED).choice(labels, size * DRAWS, p=weights / weights.sum())
    cells = np.unique(np.repeat(np.arange(size), DRAWS) * labels + drawn)
    return cells // labels, cells % labels


def ours(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the images of the small set that this package holds out."""
    return split_stratified(rows, columns, *SMALL, (FRACTION,), SEED) == 1


def iterstrat(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the images of the small set that the package holds out, from a dense table."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    table = np.zeros(SMALL, np.int8)
    table[rows, columns] = 1
    splitter = MultilabelStratifiedShuffleSplit(1, test_size=FRACTION, random_state=SEED)
    _, val = next(splitter.split(np.zeros(SMALL[0]), table))
    return np.isin(np.arange(SMALL[0]), val)


def random(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return as many images, drawn at random."""
    order = np.random.default_rng(SEED).permutation(SMALL[0])
    return order < round(SMALL[0] * FRACTION)


def timed(
    function: Callable[..., NDArray[np.bool_]], positives: Positives
) -> tuple[float, NDArray[np.bool_]]:
    """Return the seconds of a split, and the images that are held out."""
    start = time.perf_counter()
    held_out = function(*positives)
    return time.perf_counter() - start, held_out


def errors(positives: Positives, held_out: NDArray[np.bool_], labels: int) -> dict[str, float]:
    """Return the distances of the labels' shares from the wanted share."""
    rows, columns = positives
    counts = np.bincount(columns, minlength=labels)
    shares = np.bincount(columns[held_out[rows]], minlength=labels)[counts > 0] / counts[counts > 0]
    misses = np.abs(shares - FRACTION)
    return {
        "held_out": int(held_out.sum()),
        "worst_error": round(float(misses.max()), 6),
        "mean_error": round(float(misses.mean()), 6),
    }


def worker() -> None:
    """Split the large set once; print the seconds and the memory."""
    positives = zipf(*LARGE)
    start = time.perf_counter()
    sides = split_stratified(*positives, *LARGE, (FRACTION,), SEED)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    took = {"seconds": round(seconds, 2), "peak_rss_gib": round(peak, 2)}
    print(json.dumps({**took, **errors(positives, sides == 1, LARGE[1])}))


def main() -> None:
    """Measure both sizes, and write the result."""
    positives = zipf(*SMALL)
    functions = {"ours": ours, "iterstrat": iterstrat, "random": random}
    functions["iterstrat"](*positives)  # its imports
    runs = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            runs[name].append(timed(function, positives))
    small = {
        name: {
            "seconds": round(statistics.median(seconds for seconds, _ in done), 3),
            **errors(positives, done[0][1], SMALL[1]),
        }
        for name, done in runs.items()
    }
    command = [sys.executable, __file__, "large"]
    large = subprocess.run(command, check=True, capture_output=True, text=True)
    result = {
        "rounds": ROUNDS,
        "fraction": FRACTION,
        "100,000 x 100": small,
        "1,000,000 x 1,000": {"ours": json.loads(large.stdout)},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / "split_balance.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:] == ["large"]:
        worker()
    else:
        main()
