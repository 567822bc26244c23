"""Intervals of averages: their speed beside scikit-learn in a loop, and their coverage.

python benchmarks/bootstrap.py [--rounds 5] [--repetitions 200]

Speed: 1,000 resamples at 5,000 images x 80 labels give intervals of mAP, macro AUROC, F1, and each
label's AP, AUROC and F1. The peer is a loop that takes the drawn rows and calls scikit-learn's
`average_precision_score`, for mAP alone. Two of its resamples are timed in each round; rounds take
turns. Then 100,000 x 80, once, with the peak memory. All are seconds of CPU time on one thread.

Coverage: samples are drawn from populations of labels, whose scores are normal, those of positives
moved up. Coverage is the share of samples whose 95 % interval holds the population's value, over
the labels that the sample has a positive of. `plain` are plain percentiles of resamples, as F1 had
them before 2026-11-29. In the world of copies each image stands five times, as one
group; `single` ignores the groups. `difference` is that of two models that err alike.
"""

import argparse
import json
import platform
import statistics
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.bootstrap import AVERAGES
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import Interval, ScoreTable

RESULTS = Path(__file__).with_name("results") / "bootstrap.json"
THRESHOLD = 0.8
RESAMPLES = 1000
LOOPED = 2
Floats = NDArray[np.float64]


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=200)
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


@dataclass(frozen=True)
class World:
    """A population of labels: their shares of the images, and how far positives are moved up."""

    images: int
    shares: Floats
    moves: Floats
    cut: float = 1.5
    copies: int = 1


def build_worlds() -> dict[str, World]:
    """Return the populations by name."""
    usual, hard = np.geomspace(0.01, 0.2, 20), np.linspace(1, 2.5, 20)
    rare = np.geomspace(0.002, 0.02, 200)
    return {
        "60 images": World(60, usual, hard),
        "500 images": World(500, usual, hard),
        "2000 images": World(2000, usual, hard),
        "200 images, easy": World(200, usual, hard + 2, 2.0),
        "500 images, 200 rare labels": World(500, rare, np.full(200, 2.0)),
        "500 images, chance": World(500, rare, np.zeros(200)),
        "60 images in 5 copies": World(60, 1.5 * usual, hard, copies=5),
    }


def compute_population(world: World, chosen: NDArray[np.bool_]) -> dict[str, float]:
    """Return the averages over the chosen labels (micro F1: over all)."""
    recall = (np.arange(5000) + 0.5) / 5000
    shares, moves = world.shares[:, None], world.moves[:, None]
    passed = norm.sf(norm.isf(recall) + moves)
    ap = (shares * recall / (shares * recall + (1 - shares) * passed)).mean(axis=1)
    hits = world.shares * norm.sf(world.cut - world.moves)
    false = (1 - world.shares) * norm.sf(world.cut)
    f1 = 2 * hits / (hits + false + world.shares)
    means = (ap, 1 - passed.mean(axis=1), f1)
    pooled = 2 * hits.sum() / (hits + false + world.shares).sum()
    values = [float(mean[chosen].mean()) for mean in means] + [float(pooled)]
    return dict(zip(AVERAGES, values, strict=True))


def draw_sample(world: World, random: np.random.Generator) -> ScoreTable:
    """Draw images of a world."""
    targets = (random.random((world.images, len(world.shares))) < world.shares).astype(np.int8)
    logits = random.normal(size=targets.shape) + world.moves * targets
    rows = np.repeat(np.arange(world.images), world.copies)
    logits = logits[rows] + 0.05 * (world.copies > 1) * random.normal(size=(len(rows), 1))
    names, labels = (tuple(map(str, range(size))) for size in (len(rows), len(world.shares)))
    groups = rows if world.copies > 1 else None
    return ScoreTable(
        names, logits.astype(np.float32), targets[rows], LabelSpace(labels), groups=groups
    )


def coverage(repetitions: int, resamples: int = 300) -> dict[str, Any]:
    """Return, by world and number, the coverage and mean width of each kind of interval."""
    results: dict[str, Any] = {"repetitions": repetitions, "resamples": resamples}
    for name, world in build_worlds().items():
        counts: dict[str, list[list[float]]] = {}
        for seed in range(repetitions if len(world.shares) < 100 else repetitions // 5):
            for key, row in hold(world, seed, resamples).items():
                counts.setdefault(key, []).append(row)
        rows = {key: np.mean(held, axis=0).round(3).tolist() for key, held in counts.items()}
        results[name] = {
            key: {"held": row[0], "width": row[1], "own number inside": row[2]}
            for key, row in rows.items()
        }
        print(name, json.dumps(results[name], indent=1))
    return results


def hold(world: World, seed: int, resamples: int) -> dict[str, list[float]]:
    """Return, for one sample: truth held, width, own number inside; of each kind of interval."""
    random = np.random.default_rng(seed)
    scores = draw_sample(world, random)
    chosen = (scores.targets == 1).any(axis=0)
    truth, cuts = compute_population(world, chosen), [float(expit(world.cut))] * len(world.shares)
    own = measure(scores, cuts[0]).averages
    kinds = {"": compute_intervals(scores, cuts, resamples, seed).averages,
             "plain": bound_plainly(scores, cuts, resamples, seed)}  # fmt: skip
    if scores.groups is not None:
        single = replace(scores, groups=None)
        kinds["single"] = compute_intervals(single, cuts, resamples, seed).averages
    rows = {
        f"{name} {kind}".strip(): judge(intervals[name], truth[name], own[name])
        for kind, intervals in kinds.items()
        for name in AVERAGES
    }
    first, second = (other(scores, random) for _ in range(2))
    both = compare_tables(first, second, cuts, cuts, resamples, seed).averages["mAP"]
    rows["mAP difference"] = judge(both.interval, 0.0, both.value)
    return rows


def judge(interval: Interval | None, truth: float, value: float | None) -> list[float]:
    """Return whether the truth is held, the width, and whether the interval holds its number."""
    low, high = interval or (-1.0, 1.0)
    slack = 1e-9
    inside = low - slack <= (truth if value is None else value) <= high + slack
    return [float(low <= truth <= high), high - low, float(inside)]


def bound_plainly(
    scores: ScoreTable, cuts: list[float], resamples: int, seed: int
) -> dict[str, Interval]:
    """Return plain percentiles of resamples."""
    groups = bootstrap.find_groups(scores)
    table = bootstrap.rank_labels(scores, cuts)
    (drawn,) = bootstrap.resample([table], groups, resamples, seed, "sklearn")
    ends = {name: np.nanquantile(x, [0.025, 0.975]) for name, x in drawn.averages().items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


if __name__ == "__main__":
    main()
