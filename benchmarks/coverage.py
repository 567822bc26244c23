"""Coverage of the intervals of few positives: a label's AP, AUROC and F1, with their widths.

python benchmarks/coverage.py [--samples 400]

Populations: scores of negatives are normal. Scores of positives are normal too and moved up
(`shifted`), spread twice as far as well (`spread`), or some stand above all negatives and the
others have scores like them (`mixed`). The move, or the share, is such that the population has the
wanted AP at the prevalence P / N. Samples have P positives among N images. Coverage is the share
of samples whose nominal 95 % interval holds the population's number. `before` is the interval of
plain percentiles, as versions before 2026-11-29 gave it.

F1 is at the threshold where half of the positives are found, and at one where nine in ten are.

`few negatives`: the least coverage of AUROC for labels that all but 1 to 10 of 200 images have.

`weights`: coverage and width of AP with other weights of the supposed positive and negative, over
the populations of 200 images and shifted scores.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics import bootstrap, intervals
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.types import Interval, ScoreTable

RESULTS = Path(__file__).with_name("results") / "coverage.json"
POSITIVES = (1, 2, 3, 5, 10, 20, 50)
WANTED = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
SIZES = (200, 1000)
WEIGHTS = ((1.0, 1.0), (0.5, 0.5), (0.5, 0.0), (0.5, 0.1))
TOP = 12.0
GRID = (np.arange(20_000) + 0.5) / 20_000
Floats = NDArray[np.float64]
Kind = tuple[tuple[float, float], Callable[[Floats, float], Floats]]


def main() -> None:
    """Simulate, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    samples = parser.parse_args().samples
    cells = [
        cell
        for images in SIZES
        for kind in KINDS
        for positives in POSITIVES
        for wanted in WANTED
        if (cell := measure_cell(kind, images, positives, wanted, samples))
    ]
    results = {
        "samples": samples,
        "smallest": {
            name: min(cell[name]["after"][0] for cell in cells if cell["positives"] > 1)
            for name in ("AP", "AUROC", "F1 half", "F1 most")
        },
        "by positives": {str(p): summarize(cells, "positives", p) for p in POSITIVES},
        "by AP": {str(ap): summarize(cells, "population AP", ap) for ap in WANTED},
        "few negatives": try_few_negatives(min(samples, 100)),
        "weights": {str(weights): try_weights(*weights, min(samples, 100)) for weights in WEIGHTS},
        "cells": cells,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for key in ("smallest", "by positives", "by AP", "few negatives", "weights"):
        print(json.dumps(results[key], indent=1))
    RESULTS.write_text(json.dumps(results) + "\n")


def try_few_negatives(samples: int) -> dict[str, float]:
    """Return number of negatives -> least coverage of AUROC, of labels from hopeless to easy."""
    least = {}
    for negatives in (1, 2, 3, 5, 10):
        held = []
        for move in (0.0, 1.5, 3.0):
            scores = draw_samples("shifted", move, 200, 200 - negatives, samples)
            _, after = bound(scores, 0.0)
            truth = compute_population("shifted", move, 0.5)[1]
            held.append(judge(after[1], truth)[0])
        least[str(negatives)] = min(held)
    return least


def try_weights(positive: float, negative: float, samples: int) -> dict[str, float]:
    """Return least and mean coverage, and mean width, of AP with these mean weights."""
    usual = intervals.POSITIVE_WEIGHT, intervals.NEGATIVE_WEIGHT
    intervals.POSITIVE_WEIGHT, intervals.NEGATIVE_WEIGHT = positive, negative
    cells = [
        measure_cell("shifted", 200, positives, wanted, samples)
        for positives in POSITIVES[1:-1]
        for wanted in WANTED
    ]
    intervals.POSITIVE_WEIGHT, intervals.NEGATIVE_WEIGHT = usual
    found = np.array([cell["AP"]["after"] for cell in cells if cell])
    return {
        "least": float(found[:, 0].min()),
        "mean": round(float(found[:, 0].mean()), 3),
        "width": round(float(found[:, 1].mean()), 3),
    }


# ---- populations ------------------------------------------------------------------------


def rank_shifted(recall: Floats, move: float) -> Floats:
    """Return the false positive rate at each recall."""
    return norm.sf(norm.isf(recall) + move)


def rank_spread(recall: Floats, move: float) -> Floats:
    """Return the false positive rate at each recall."""
    return norm.sf(2 * norm.isf(recall) + move)


def rank_mixed(recall: Floats, share: float) -> Floats:
    """Return the false positive rate at each recall."""
    return np.clip((recall - share) / max(1 - share, 1e-9), 0, 1)


KINDS: dict[str, Kind] = {
    "shifted": ((-1, 9), rank_shifted),
    "spread": ((-6, 16), rank_spread),
    "mixed": ((0, 1), rank_mixed),
}


def draw_positives(kind: str, value: float, shape: tuple[int, int],
                   random: np.random.Generator) -> Floats:  # fmt: skip
    """Draw scores of positives."""
    scores = random.normal(size=shape)
    if kind == "mixed":
        return np.where(random.random(shape) < value, scores + TOP, scores)
    return scores * (2 if kind == "spread" else 1) + value


def compute_population(kind: str, value: float, share: float) -> tuple[float, float]:
    """Return AP and AUROC of the population."""
    passed = KINDS[kind][1](GRID, value)
    return (
        float((share * GRID / (share * GRID + (1 - share) * passed)).mean()),
        float(1 - passed.mean()),
    )


# ---- one cell ---------------------------------------------------------------------------


def measure_cell(
    kind: str, images: int, positives: int, wanted: float, samples: int
) -> dict[str, Any] | None:
    """Return coverage and mean width, before and after; None where no population has this AP."""
    share = positives / images
    ends = KINDS[kind][0]
    if not compute_population(kind, ends[0], share)[0] < wanted:
        return None
    value = brentq(lambda x: compute_population(kind, x, share)[0] - wanted, *ends)
    scores = draw_samples(kind, value, images, positives, samples)
    auroc = compute_population(kind, value, share)[1]
    cell: dict[str, Any] = {"kind": kind, "images": images, "positives": positives,
                            "population AP": wanted}  # fmt: skip
    for name, recall in (("F1 half", 0.5), ("F1 most", 0.9)):
        passed = float(KINDS[kind][1](np.array([recall]), value)[0])
        cut = find_cut(kind, value, recall, passed)
        f1 = 2 * share * recall / (share * recall + (1 - share) * passed + share)
        before, after = bound(scores, cut)
        if name == "F1 half":
            for column, (key, truth) in enumerate((("AP", wanted), ("AUROC", auroc))):
                cell[key] = {"before": judge(before[column], truth),
                             "after": judge(after[column], truth)}  # fmt: skip
        cell[name] = {"before": judge(before[2], f1), "after": judge(after[2], f1)}
    return cell


def find_cut(kind: str, value: float, recall: float, passed: float) -> float:
    """Return the score at which recall is as wanted; in `mixed` perhaps between both kinds."""
    if kind == "mixed":
        return TOP + float(norm.isf(recall / value)) if recall < value else float(norm.isf(passed))
    return float(norm.isf(recall)) * (2 if kind == "spread" else 1) + value


def draw_samples(kind: str, value: float, images: int, positives: int, samples: int) -> ScoreTable:
    """Draw samples: each is a label of a table, its positives at places of their own."""
    random = np.random.default_rng([images, positives, round(value * 1000) % 10**6])
    targets = np.zeros((images, samples), np.int8)
    targets[:positives] = 1
    targets = random.permuted(targets, axis=0)
    logits = random.normal(size=targets.shape)
    drawn = draw_positives(kind, value, (positives, samples), random)
    for column in range(samples):
        logits[targets[:, column] == 1, column] = drawn[:, column]
    names = tuple(map(str, range(images)))
    labels = LabelSpace(tuple(map(str, range(samples))))
    return ScoreTable(names, logits.astype(np.float32), targets, labels)


def bound(scores: ScoreTable, cut: float) -> tuple[list[list[Interval]], list[list[Interval]]]:
    """Return the intervals of AP, AUROC and F1 of each label, before and after."""
    thresholds = [float(expit(cut))] * len(scores.labels)
    table, groups = bootstrap.rank_labels(scores, thresholds), bootstrap.find_groups(scores)
    (drawn,) = bootstrap.resample([table], groups, 400, 0, "sklearn")
    with np.errstate(all="ignore"):
        before = [
            list(zip(*np.nanquantile(values, [0.025, 0.975], axis=0).tolist(), strict=True))
            for values in (drawn.ap, drawn.auroc, drawn.f1)
        ]
    rows = compute_intervals(scores, thresholds, 400).per_label
    after = [[row.AP or (0, 1) for row in rows], [row.AUROC or (0, 1) for row in rows],
             [row.F1 or (0, 1) for row in rows]]  # fmt: skip
    return before, after


def judge(ends: list[Interval], truth: float) -> list[float]:
    """Return the share of intervals that hold the truth, and their mean width."""
    low, high = np.array(ends).T
    slack = 1e-9  # F1 of 1, in floats
    held = (low <= truth + slack) & (truth - slack <= high)
    return [round(float(held.mean()), 3), round(float((high - low).mean()), 3)]


def summarize(cells: list[dict[str, Any]], key: str, value: float) -> dict[str, Any]:
    """Return least and mean coverage, and mean width, over the cells of this value."""
    chosen = [cell for cell in cells if cell[key] == value]
    return {
        f"{name}, {when}": {
            "least": min(cell[name][when][0] for cell in chosen),
            "mean": round(float(np.mean([cell[name][when][0] for cell in chosen])), 3),
            "width": round(float(np.mean([cell[name][when][1] for cell in chosen])), 3),
        }
        for name in ("AP", "AUROC", "F1 half", "F1 most")
        for when in ("before", "after")
    }


if __name__ == "__main__":
    main()
