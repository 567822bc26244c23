"""Balanced sampling against weights and losses for rare labels, on kept features.

python benchmarks/sampling.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/sampling.json

All of train, and subsets of 1,000 and 300 pictures (three draws of each). Solved by L-BFGS:

    uniform, balanced    train.sampling
    pos_weight           loss.pos_weight: auto
    asl                  loss.name: asl
    median, most         balanced, with the frequency of the median label, or of the most frequent
                         one, in place of the mean; with 1,000 pictures

and trained by AdamW in ten epochs of drawn pictures, uniform and balanced. The best candidate by
validation mAP is compared, as a run does. Numbers are means over labels with a training picture,
and over the rarest third of these by training pictures; F1 at the thresholds of a run. Differences
from uniform have 95 % intervals over the validation pictures: the draws' labels stand side by side
as columns, so that the mean over them is compared at once. Features are read from the cache, or
computed and added to it.
"""

import argparse
import copy
import io
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlfinetune.config import Config, load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.batches.sampling import MAX_FACTOR, Factors, choose_factors
from mlfinetune.data.load import load_splits
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.metrics.comparison import Difference, compare_tables
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.build import build_training_loss, build_training_optimizer
from mlfinetune.training.loop import (
    Candidate,
    SavePoint,
    train_epochs,
)
from mlfinetune.training.records import Position
from mlfinetune.training.setup import TrainingSetup, set_up, with_features
from mlfinetune.training.solve import (
    solve_head,
)

SIZES, DRAWS = ("300", "1,000", "2,586"), 3
WAYS = {
    "uniform": (),
    "balanced": ("train.sampling=balanced",),
    "pos_weight": ("loss.pos_weight=auto",),
    "asl": ("loss.name=asl",),
    "median": (),
    "most": (),
    "AdamW, uniform": (),
    "AdamW, balanced": ("train.sampling=balanced",),
}
OTHERS = ("median", "most")
ADAMW = ("train.optimizer=adamw", "train.head_lr=1e-2", "train.weight_decay=0.1")
REFERENCE = {"AdamW, balanced": "AdamW, uniform"}
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "sampling.json"


@dataclass(frozen=True)
class Scored:
    """Validation scores of one way on one draw, its thresholds, and positives of its train."""

    scores: ScoreTable
    thresholds: tuple[float, ...]
    positives: NDArray[np.int64]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    data.append(f"model.weights={asked.weights}")
    config, world = load_config(CONFIG, data), World(prepare_device("cpu"), DistInfo())
    whole = set_up(config, load_splits(config, RunLog()), world, RunLog())
    result: dict[str, Any] = {}
    for size in SIZES:
        found: dict[str, list[Scored]] = {way: [] for way in WAYS}
        for setup in draw_setups(whole, int(size.replace(",", ""))):
            for way, overrides in WAYS.items():
                if way in OTHERS and size != "1,000":
                    continue
                wanted = (*data, *overrides, *(ADAMW if "AdamW" in way else ()))
                found[way].append(score_way(setup, load_config(CONFIG, wanted), way))
        result[size] = {}
        for way in filter(found.get, WAYS):
            result[size][way] = compare_ways(found[REFERENCE.get(way, "uniform")], found[way])
            print(size, way, json.dumps(result[size][way]), flush=True)
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


def draw_setups(whole: TrainingSetup, size: int) -> Iterable[TrainingSetup]:
    """Yield the run on kept features with all of train, or DRAWS subsets of `size` pictures."""
    train = whole.splits.train
    for seed in range(DRAWS if size < len(train) else 1):
        rows = sorted(np.random.default_rng(seed).permutation(len(train))[:size].tolist())
        splits = replace(whole.splits, train=train.take(rows), contents=())
        setup = with_features(replace(whole, splits=splits), None, RunLog(io.StringIO()))
        assert setup is not None
        yield setup


def score_way(setup: TrainingSetup, config: Config, way: str) -> Scored:
    """Train in one way; return the validation scores of the best candidate."""
    train, log = setup.splits.train, RunLog(io.StringIO())
    loss, _ = build_training_loss(config, train, setup.device)
    loader = copy.copy(setup.train)
    assert isinstance(loader, FeatureLoader)
    loader._factors = choose_factors(config.train.sampling, train.targets)
    if way in OTHERS:
        loader._factors = compute_other_factors(train.targets, way)
    setup = replace(setup, config=config, train=loader, loss=loss)
    candidates = train_by_adamw(setup, log) if "AdamW" in way else solve_head(setup, log)
    best: Candidate | None = None
    for candidate in candidates:
        best = candidate if best is None or candidate.beats(best) else best
    assert best is not None
    assert best.scores is not None
    print(f"{way}: {best.name}, mAP {best.mAP}, {time.process_time():.0f} s so far", flush=True)
    rule = fit_decision_rule(config.eval, best.scores)
    return Scored(best.scores, rule.thresholds, train.targets.counts()[0])


def train_by_adamw(setup: TrainingSetup, log: RunLog) -> Iterable[Candidate]:
    """Train a new head on drawn pictures, epoch by epoch."""
    torch.manual_seed(0)
    assert isinstance(setup.tagger.head, nn.Linear)
    setup.tagger.head.reset_parameters()
    optimizer = build_training_optimizer(setup.config, setup.tagger)
    never = SavePoint(lambda: False, lambda position: None)
    return train_epochs(setup, optimizer, Position(), never, log)


def compute_other_factors(targets: Targets, way: str) -> Factors:
    """Compute repeat factors where another frequency than the mean asks for 1."""
    positives = targets.counts()[0]
    seen = positives[positives > 0]
    frequent = np.median(seen) if way == "median" else seen.max()
    by_label = np.clip(np.sqrt(frequent / np.maximum(positives, 1)), 1, MAX_FACTOR)
    factors: Factors = np.where(targets[:] == 1, by_label, 1.0).max(axis=1)
    return factors


def compare_ways(before: Sequence[Scored], after: Sequence[Scored]) -> dict[str, Any]:
    """Compare all labels of all draws, and their rarest thirds."""
    result = {}
    for name, share in (("all", 1.0), ("rarest", 1 / 3)):
        tables = [join_draws(side, share) for side in (before, after)]
        (a, low), (b, high) = tables
        compared = compare_tables(a, b, low, high).averages
        result[name] = {
            "AP": describe_difference(compared["mAP"]),
            "F1": describe_difference(compared["macro_F1"]),
        }
    return result


def join_draws(draws: Sequence[Scored], share: float) -> tuple[ScoreTable, list[float]]:
    """Put the draws' labels side by side: those with a training picture, the rarest `share`."""
    kept, thresholds, names = [], [], []
    for draw in draws:
        columns = [c for c in np.argsort(draw.positives, kind="stable") if draw.positives[c]]
        columns = columns[: round(share * len(columns))]
        kept.append(columns)
        thresholds += [draw.thresholds[column] for column in columns]
        names += [f"{len(kept)} {draw.scores.labels.names[column]}" for column in columns]
    sides = [
        np.concatenate(
            [getattr(d.scores, part)[:, c] for d, c in zip(draws, kept, strict=True)], axis=1
        )
        for part in ("logits", "targets")
    ]
    table = ScoreTable(draws[0].scores.names, sides[0], sides[1], LabelSpace(tuple(names)))
    return table, thresholds


def describe_difference(difference: Difference) -> dict[str, Any]:
    """Return the value of `after`, and its difference from `before` with the interval's ends."""
    ends = difference.interval or (float("nan"), float("nan"))
    return {"value": difference.b, "gain": difference.value, "low": ends[0], "high": ends[1]}


if __name__ == "__main__":
    main()
