"""Bootstrap intervals: their speed beside scikit-learn in a loop, and their coverage.

python benchmarks/bootstrap.py [--rounds 5] [--repetitions 400]

Speed: 1,000 resamples at 5,000 images x 80 labels give intervals of mAP, F1, and each label's AP
and F1. The peer is a loop that takes the drawn rows and calls scikit-learn's
`average_precision_score`, for mAP alone. Two of its resamples are timed in each round; rounds take
turns. Then 100,000 x 80, once, with the peak memory. All are seconds of CPU time on one thread.

Coverage: the population has 20 correlated labels, present in 1 to 20 % of its images. Samples are
drawn from it. Coverage is the share of samples whose 95 % interval holds the population's value,
which is computed from 1.5 million images. The same is done for mAP by plain percentiles, and for
the difference of two models.
"""

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.bootstrap import AVERAGES
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable

RESULTS = Path(__file__).with_name("results") / "bootstrap.json"
THRESHOLD = 0.8
RESAMPLES = 1000
LOOPED = 2
POPULATION = [300_000] * 5


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=400)
    asked = parser.parse_args()
    results = {
        "speed": speed(asked.rounds),
        "large": large(),
        "coverage": coverage(asked.repetitions),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def drawn(images: int, labels: int, random: np.random.Generator) -> ScoreTable:
    """Draw images of the population: a part common to an image moves its labels and its logits."""
    shares = np.geomspace(0.01, 0.2, labels)
    bounds = np.array([NormalDist().inv_cdf(1 - share) for share in shares])
    common = random.normal(size=(images, 1))
    own = random.normal(size=(images, labels))
    targets = (0.5 * common + 0.75**0.5 * own > bounds).astype(np.int8)
    logits = np.linspace(1, 2.5, labels) * targets + 0.3 * common
    logits += random.normal(size=targets.shape)
    names = tuple(map(str, range(images)))
    space = LabelSpace(tuple(map(str, range(labels))))
    return ScoreTable(names, logits.astype(np.float32), targets, space)


def other(scores: ScoreTable, random: np.random.Generator) -> ScoreTable:
    """Return the logits of a second model, which is about as good and has errors of its own."""
    noise = random.normal(size=scores.logits.shape)
    logits = 0.9 * scores.logits + 0.6 * noise + 0.35 * scores.targets
    return replace(scores, logits=logits.astype(np.float32))


# ---- speed ------------------------------------------------------------------------------


def speed(rounds: int) -> dict[str, Any]:
    """Return median seconds at 5,000 x 80."""
    random = np.random.default_rng(0)
    a = drawn(5000, 80, random)
    b, cuts = other(a, random), [THRESHOLD] * 80
    seconds: dict[str, list[float]] = {"intervals": [], "paired": [], "scikit-learn, mAP alone": []}
    for _ in range(rounds):
        started = time.process_time()
        compute_intervals(a, cuts, RESAMPLES)
        seconds["intervals"].append(time.process_time() - started)
        started = time.process_time()
        compare_tables(a, b, cuts, cuts, RESAMPLES)
        seconds["paired"].append(time.process_time() - started)
        started = time.process_time()
        for _ in range(LOOPED):
            rows = random.integers(0, 5000, 5000)
            average_precision_score(a.targets[rows], a.logits[rows], average="macro")
        each = (time.process_time() - started) / LOOPED
        seconds["scikit-learn, mAP alone"].append(each * RESAMPLES)
    medians = {name: round(statistics.median(times), 2) for name, times in seconds.items()}
    return {"images x labels": "5,000 x 80", "resamples": RESAMPLES, "rounds": rounds, **medians}


def large() -> dict[str, Any]:
    """Return seconds at 100,000 x 80, and the peak memory beyond the table."""
    scores = drawn(100_000, 80, np.random.default_rng(0))
    started = time.process_time()
    compute_intervals(scores, [THRESHOLD] * 80, RESAMPLES)
    seconds = time.process_time() - started
    tracemalloc.start()
    compute_intervals(scores, [THRESHOLD] * 80, 20)  # two blocks, all that is in memory at a time
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "images x labels": "100,000 x 80",
        "resamples": RESAMPLES,
        "seconds": round(seconds, 1),
        "table_mib": round((scores.logits.nbytes + scores.targets.nbytes) / 2**20),
        "peak_beyond_mib": round(peak / 2**20),
    }


# ---- coverage ---------------------------------------------------------------------------


def values(scores: ScoreTable) -> NDArray[np.float64]:
    """Return mAP, macro F1 and micro F1 of a table."""
    averages = measure(scores, THRESHOLD).averages
    return np.array([averages[name] for name in AVERAGES], np.float64)


def coverage(repetitions: int, labels: int = 20, resamples: int = 400) -> dict[str, Any]:
    """Return the shares of intervals that hold the population's values."""
    truth, truth_other = np.zeros(3), np.zeros(3)
    for seed, images in enumerate(POPULATION):
        random = np.random.default_rng(10**6 + seed)
        a = drawn(images, labels, random)
        truth += values(a) / len(POPULATION)
        truth_other += values(other(a, random)) / len(POPULATION)
    result: dict[str, Any] = {
        "labels": labels,
        "resamples": resamples,
        "repetitions": repetitions,
        "population": dict(zip(AVERAGES, truth.round(4).tolist(), strict=True)),
        "difference": dict(zip(AVERAGES, (truth_other - truth).round(4).tolist(), strict=True)),
    }
    for images in (500, 2000):
        held = [held_by(images, labels, resamples, seed, truth, truth_other)
                for seed in range(repetitions)]  # fmt: skip
        result[f"{images} images"] = {
            name: round(statistics.mean(one[name] for one in held), 3) for name in held[0]
        }
    return result


def held_by(
    images: int,
    labels: int,
    resamples: int,
    seed: int,
    truth: NDArray[np.float64],
    truth_other: NDArray[np.float64],
) -> dict[str, bool]:
    """Return, for one sample, whether each interval holds the population's value."""
    random = np.random.default_rng(seed)
    a = drawn(images, labels, random)
    b, cuts = other(a, random), [THRESHOLD] * labels
    alone = compute_intervals(a, cuts, resamples, seed).averages
    both = compare_tables(a, b, cuts, cuts, resamples, seed).averages
    perfect = replace(a, logits=a.targets.astype(np.float32))  # its mAP is 1 in every resample
    above = compare_tables(perfect, a, cuts, cuts, resamples, seed).averages["mAP"].interval
    held = {"mAP, plain percentiles": holds(above, truth[0] - 1)}
    for at, name in enumerate(AVERAGES):
        held[name] = holds(alone[name], truth[at])
        held[f"{name}, difference"] = holds(both[name].interval, truth_other[at] - truth[at])
    return held


def holds(interval: tuple[float, float] | None, value: float) -> bool:
    """Return whether the value lies in the interval."""
    return interval is not None and bool(interval[0] <= value <= interval[1])


if __name__ == "__main__":
    main()
