"""The page's verdicts on labels, good or weak, checked on fresh pictures.

python benchmarks/verdicts.py RUN [--rounds 200]

RUN is a run directory, or a folder that eval wrote: its scores.npz is of pictures that the model
has not seen. In each round 60, 200 or 400 of them are drawn, and their labels judged; the other
pictures are the fresh ones. A label called good is right where its AP on the fresh pictures is at
least the bar of 0.7, a weak one where it is below. `before` are the verdicts of plain percentiles,
as versions before 2026-11-29 gave them.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.intervals import compute_intervals
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.report.content import GOOD
from mlfinetune.runs.results import read_scores

RESULTS = Path(__file__).with_name("results") / "verdicts.json"
DRAWN = (60, 200, 400)
RESAMPLES = 400
Floats = NDArray[np.float64]


def main() -> None:
    """Draw, judge, check, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    scores = read_scores(asked.run)
    results = {
        "pictures": len(scores.names),
        "labels": len(scores.labels),
        "rounds": asked.rounds,
        "bar": GOOD,
        "drawn": {str(size): study(scores, size, asked.rounds) for size in DRAWN},
    }
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def study(scores: ScoreTable, size: int, rounds: int) -> dict[str, Any]:
    """Return, before and after, the mean number of each verdict, and the share that is right."""
    counts = {when: np.zeros(5) for when in ("before", "after")}
    for seed in range(rounds):
        order = np.random.default_rng(seed).permutation(len(scores.names))
        drawn, fresh = take(scores, order[:size]), take(scores, order[size:])
        truth = measure(fresh).per_label
        ap = np.array([np.nan if row.AP is None else row.AP for row in truth], float)
        rare = (drawn.targets == 1).sum(axis=0) == 1
        for when, (low, high) in (("before", bound_plainly(drawn)), ("after", bound(drawn))):
            good, weak = (low >= GOOD) & ~np.isnan(ap), (high < GOOD) & ~np.isnan(ap)
            counts[when] += [
                good.sum(), (ap[good] >= GOOD).sum(), (good & rare).sum(),
                weak.sum(), (ap[weak] < GOOD).sum(),
            ]  # fmt: skip
    return {
        when: {
            "good a round": round(good / rounds, 2),
            "good with one positive": round(rare / rounds, 2),
            "good and right": round(right_good / good, 3) if good else None,
            "weak a round": round(weak / rounds, 2),
            "weak and right": round(right_weak / weak, 3) if weak else None,
        }
        for when, (good, right_good, rare, weak, right_weak) in counts.items()
    }


def take(scores: ScoreTable, rows: NDArray[np.int64]) -> ScoreTable:
    """Return these pictures only."""
    names = tuple(scores.names[row] for row in rows)
    groups = None if scores.groups is None else scores.groups[rows]
    logits, targets = scores.logits[rows], scores.targets[rows]
    return replace(scores, names=names, logits=logits, targets=targets, groups=groups)


def bound(scores: ScoreTable) -> tuple[Floats, Floats]:
    """Return (L,) ends of the intervals of AP; NaN where there is none."""
    rows = compute_intervals(scores, [0.5] * len(scores.labels), RESAMPLES).per_label
    low, high = np.array([row.AP or (np.nan, np.nan) for row in rows]).T
    return low, high


def bound_plainly(scores: ScoreTable) -> tuple[Floats, Floats]:
    """Return (L,) percentiles of resamples; NaN where half of them or more have no AP."""
    table = bootstrap.rank_labels(scores, [0.5] * len(scores.labels))
    (drawn,) = bootstrap.resample([table], bootstrap.find_groups(scores), RESAMPLES, 0, "sklearn")
    often = (~np.isnan(drawn.ap)).mean(axis=0) > 0.5
    columns = np.where(often, drawn.ap, 0.0)
    low, high = np.nanquantile(columns, [0.025, 0.975], axis=0)
    return np.where(often, low, np.nan), np.where(often, high, np.nan)


if __name__ == "__main__":
    main()
