"""Honesty of a score: cross-validation and one held-out part, against the truth on other pictures.

python benchmarks/crossval.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/crossval.json

A user has n pictures, drawn from all. Two ways to a model with a number beside it:

    plain           a fifth is held out; it chooses, fits the thresholds, and gives the number
    crossval        5 folds give the number and the thresholds; all n train, with their choice
    without slopes  the same, but the logits of the folds are joined as they are

The truth is the score of that model on all pictures that were not drawn. Labels without a positive
among the n pictures are left out everywhere. `error` is the number minus the truth.
"""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.folds import Ints, Pool, draw_folds, draw_inner, pool_sides
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Splits
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import DecisionRule, ScoreTable
from mlfinetune.runs.folds import FoldScores, join_logits, tabulate_rows
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.folds import choose_by_folds, find_slope, solve_fold
from mlfinetune.training.loop import (
    Candidate,
)
from mlfinetune.training.records import Penalty
from mlfinetune.training.setup import TrainingSetup, set_up, with_features
from mlfinetune.training.solve import (
    solve_head,
)

DRAWS, FOLDS = {300: 6, 1000: 2}, 5
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "crossval.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    config = load_config(CONFIG, [*data, f"model.weights={asked.weights}"])
    splits = load_splits(config, RunLog())
    pool, world = pool_sides(splits), World(prepare_device("cpu"), DistInfo())
    setup = set_up(config, Splits(pool.examples, pool.examples, ()), world, RunLog())
    features = with_features(setup, None, RunLog())
    assert features is not None
    result: dict[str, Any] = {}
    for size, draws in DRAWS.items():
        rows: list[dict[str, float]] = []
        for seed in range(draws):
            order = np.random.default_rng(seed).permutation(len(pool.examples))
            rows.append(measure_draw(features, pool, np.sort(order[:size]), np.sort(order[size:])))
            print(size, seed, json.dumps(rows[-1]), flush=True)
            result[f"{size:,}"] = summarize(rows)
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


def measure_draw(setup: TrainingSetup, whole: Pool, drawn: Ints, rest: Ints) -> dict[str, float]:
    """Return the numbers of both ways on one draw, and their truths."""
    pool = Pool(whole.examples.take(drawn.tolist()), whole.contents[drawn], whole.units[drawn])
    known = np.flatnonzero(pool.examples.targets.counts()[0])
    settings, fraction, seed = setup.config.eval, 0.2, setup.config.train.seed

    # One held-out part.
    train, val = draw_inner(pool, np.arange(len(drawn)), fraction, seed)
    best: Candidate | None = None
    for candidate in solve_head(narrow(setup, whole, drawn[train], drawn[val]), quiet()):
        best = candidate if best is None or candidate.beats(best) else best
    assert best is not None
    assert best.scores is not None
    rule = fit_decision_rule(settings, best.scores)
    penalty = best.penalty
    truth = score(setup, whole, drawn[train], rest, penalty)
    found = describe("plain", best.scores, rule, truth, known)

    # Cross-validation.
    own = replace(
        setup,
        train=take(setup.train, drawn),
        val=take(setup.val, drawn),
    )
    folds = draw_folds(pool, FOLDS, 1, seed)
    scores: list[FoldScores] = []
    for fold in folds:
        others = [other for other in folds if other != fold]
        scores.append(solve_fold(own, pool, fold, others, quiet()))
    choice = choose_by_folds([fold.trials for fold in scores])
    model = score(setup, whole, drawn, rest, choice.start)
    as_they_are = [replace(fold, logits=fold.logits / np.float32(fold.slope)) for fold in scores]
    for way, parts, slope in (
        ("crossval", scores, find_slope(scores, choice)),
        ("without slopes", as_they_are, 1.0),
    ):
        logits = join_logits(pool, folds, parts, 1)
        table = tabulate_rows(pool, logits, np.arange(len(drawn)))
        rule = fit_decision_rule(settings, table)
        truth = replace(model, logits=model.logits * np.float32(slope))
        found |= describe(way, table, rule, truth, known)
    each = [
        measure(tabulate_rows(pool, s.logits, f.held_out)).averages["mAP"] or 0.0
        for f, s in zip(folds, scores, strict=True)
    ]
    return found | {"crossval mean of folds": float(np.mean(each))}


def quiet() -> RunLog:
    """Return a log that nobody reads."""
    return RunLog(io.StringIO())


def take(loader: object, rows: Ints) -> FeatureLoader:
    """Return the loader of these rows."""
    assert isinstance(loader, FeatureLoader)
    return loader.take(rows.tolist())


def narrow(setup: TrainingSetup, whole: Pool, train: Ints, val: Ints) -> TrainingSetup:
    """Return the setup that trains on some rows, and validates on others."""
    sides = [whole.examples.take(rows.tolist()) for rows in (train, val)]
    loaders = {"train": take(setup.train, train), "val": take(setup.val, val)}
    return replace(setup, splits=Splits(sides[0], sides[1], ()), **loaders)


def score(
    setup: TrainingSetup, whole: Pool, train: Ints, rest: Ints, penalty: Penalty | None
) -> ScoreTable:
    """Return the scores of all other pictures, by the head of this penalty."""
    (solved,) = solve_head(narrow(setup, whole, train, rest), quiet(), penalty)
    assert solved.scores is not None
    return solved.scores


def describe(
    way: str, said: ScoreTable, rule: DecisionRule, truth: ScoreTable, known: NDArray[np.int64]
) -> dict[str, float]:
    """Return mAP and macro F1 as a way says them, and in truth."""
    result = {}
    for kind, table in (("said", said), ("truth", truth)):
        for name in ("mAP", "macro_F1"):
            result[f"{way} {name} {kind}"] = average(table, rule, known, name)
    return result


def average(table: ScoreTable, rule: DecisionRule, known: NDArray[np.int64], name: str) -> float:
    """Return an average over the labels that the drawn pictures have."""
    thresholds = np.array(rule.thresholds)
    rows = measure(replace(table, logits=rule.calibrate(table.logits)), thresholds).per_label
    numbers = [getattr(rows[column], "AP" if name == "mAP" else "F1") for column in known]
    return float(np.mean([number for number in numbers if number is not None]))


def summarize(draws: list[dict[str, float]]) -> dict[str, Any]:
    """Return means over the draws, and mean and deviation of each error."""
    result: dict[str, Any] = {name: round(mean(draws, name), 4) for name in draws[0]}
    for way in ("plain", "crossval", "without slopes"):
        for name in ("mAP", "macro_F1"):
            said, truth = f"{way} {name} said", f"{way} {name} truth"
            result[f"{way} {name} error"] = describe_errors(draws, said, truth)
    folds = "crossval mean of folds"
    result[f"{folds} error"] = describe_errors(draws, folds, "crossval mAP truth")
    return result


def describe_errors(draws: list[dict[str, float]], said: str, truth: str) -> list[float]:
    """Return mean and deviation of what was said minus the truth."""
    errors = np.array([draw[said] - draw[truth] for draw in draws])
    spread = float(errors.std(ddof=1)) if len(errors) > 1 else 0.0
    return [round(float(errors.mean()), 4), round(spread, 4)]


def mean(draws: list[dict[str, float]], name: str) -> float:
    """Return the mean of a number over the draws."""
    return float(np.mean([draw[name] for draw in draws]))


if __name__ == "__main__":
    main()
