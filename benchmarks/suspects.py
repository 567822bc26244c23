"""Suspected tags: how many of the first are wrong indeed, by ours, the order of before, cleanlab's.

python benchmarks/suspects.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/suspects.json

The tags of all pictures are spoiled: 10 % of them are taken out at random, and 2 % are added. Wrong
tags are of a label drawn by its frequency (`by frequency`) or of any label (`any label`), on a
picture that lacks it. Five stratified folds: each picture is scored by a head that was solved on
the features of the other four, at the iterations of the best mAP of all out-of-fold scores. `found`
is the share of the spoiled tags of that kind among the first 200. The tags of before spoiling are
taken for true, and have mistakes of their own: the precision is too low, for all rankings alike.

    ours                        metrics/doubt.py, listed as on the page
    calibrated by label         its first lever alone
    one calibration             without the second: pictures with and without another tag
    without the share           without the third: wrong tags by probability alone
    as before                   by probability, between the mean of tagged and untagged pictures
    cleanlab                    its multi-label filter, best first by self confidence
    cleanlab, calibrated        the same on Platt's probabilities

`pictures` compares whole pictures, in cleanlab's order and by our most doubted tag.
Without cleanlab (`pip install --group benchmarks`) its rows are left out, and nothing is written.
"""

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from head_path import read_features
from numpy.typing import NDArray
from torch import nn

from mlfinetune.config.sections import EvalConfig
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.stratify import split_stratified
from mlfinetune.data.targets import LabelSpace
from mlfinetune.loss import build_loss
from mlfinetune.metrics import calibration
from mlfinetune.metrics.doubt import measure_doubt
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.training.lbfgs import Solver

SEEDS, FOLDS, FIRST = 5, 5, (20, 50, 200)
TAKEN, ADDED = 0.1, 0.02
PENALTIES, STOPS = (1.0,), (3, 10)
PLACES = ("by frequency", "any label")
HAS_CLEANLAB = find_spec("cleanlab") is not None
RESULT = Path(__file__).parent / "results" / "suspects.json"

Logits = NDArray[np.float32]
Tags = NDArray[np.int8]
Ranking = NDArray[np.float64]
"""(N, L): the greater, the more doubted; -inf: not listed."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    train, val, _, _ = read_features(parser.parse_args())
    features = torch.cat([next(iter(side.sweep())).images for side in (train, val)])
    true = np.concatenate([side.manifest.targets[:] for side in (train, val)])
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(SEEDS):
        for place in PLACES:
            tags = spoil(true, np.random.default_rng(seed), place)
            logits = score_out_of_fold(features, tags)
            for name, found in judge_all(logits, tags, true).items():
                for kind, numbers in found.items():
                    rows.setdefault(f"{place}, {kind}", {}).setdefault(name, []).append(numbers)
            print(seed, place, flush=True)
        result = {kind: average(ways) for kind, ways in rows.items()}
        about = {"seeds": seed + 1, "pictures": len(true), "tags": int((true == 1).sum())}
        if HAS_CLEANLAB:
            RESULT.write_text(json.dumps({**about, **result}, indent=2) + "\n")
        print(json.dumps(result, indent=1), flush=True)


def spoil(true: Tags, rng: np.random.Generator, place: str) -> Tags:
    """Return the tags with some taken out, and wrong ones added."""
    tags = true.copy()
    rows, columns = np.nonzero(true == 1)
    taken = rng.choice(len(rows), round(TAKEN * len(rows)), replace=False)
    tags[rows[taken], columns[taken]] = 0
    left = round(ADDED * len(rows))
    while left:
        column = rng.choice(columns) if place == "by frequency" else rng.integers(true.shape[1])
        row = rng.integers(len(true))
        if true[row, column] == 0 == tags[row, column]:
            tags[row, column] = 1
            left -= 1
    return tags


def score_out_of_fold(features: torch.Tensor, tags: Tags) -> Logits:
    """Return the logits of heads that have not seen the pictures, of the best solution."""
    rows, columns = np.nonzero(tags == 1)
    fold = split_stratified(rows, columns, *tags.shape, (1 / FOLDS,) * (FOLDS - 1), 0)
    scored: dict[tuple[float, float], Logits] = {}
    for held in range(FOLDS):
        fit, rest = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        batch = Batch(features[fit], torch.from_numpy(tags[fit]), torch.from_numpy(fit))
        head = nn.Linear(features.shape[1], tags.shape[1])
        solver = Solver(head, lambda batch=batch: iter([batch]), build_loss("sce"))
        for l2 in PENALTIES:
            for record in solver.path(l2, STOPS):
                key = (l2, record.rates["iterations"])
                with torch.no_grad():
                    logits = head(features[rest]).numpy()
                scored.setdefault(key, np.zeros(tags.shape, np.float32))[rest] = logits
    return max(
        scored.values(), key=lambda logits: measure(make_table(logits, tags)).averages["mAP"]
    )


def make_table(logits: Logits, tags: Tags) -> ScoreTable:
    """Return scores with made-up names."""
    names, labels = (tuple(map(str, range(size))) for size in tags.shape)
    return ScoreTable(names, logits, tags, LabelSpace(labels))


def judge_all(logits: Logits, tags: Tags, true: Tags) -> dict[str, dict[str, dict[str, float]]]:
    """Return ranking -> missing, wrong, pictures -> its numbers."""
    missing, wrong = (tags == 0) & (true == 1), (tags == 1) & (true == 0)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, ranking in rank_all(logits, tags):
        found[name] = {
            "missing": judge(np.where(tags == 0, ranking, -np.inf), missing),
            "wrong": judge(np.where(tags == 1, ranking, -np.inf), wrong),
        }
    for name, order in rank_pictures(logits, tags).items():
        found.setdefault(name, {})["pictures"] = judge(order, (missing | wrong).any(axis=1))
    return found


def rank_all(logits: Logits, tags: Tags) -> Iterator[tuple[str, Ranking]]:
    """Yield name and (N, L) ranking; tags that are not listed have -inf."""
    sign = np.where(tags == 0, 1.0, -1.0)
    rule = fit_decision_rule(EvalConfig(), make_table(logits, tags))
    over = sigmoid(logits) >= np.array(rule.thresholds)
    disagrees = over == (tags == 0)
    doubt = measure_doubt(logits, tags).astype(np.float64)
    yield "ours", np.where(disagrees & (doubt >= 0), doubt, -np.inf)
    platt = calibration.fit(logits, tags, "platt").apply(logits).astype(np.float64)
    yield "calibrated by label", sign * platt
    share = np.log(((tags == 1).sum(0) + 0.5) / ((tags == 0).sum(0) + 0.5))
    yield "one calibration", np.where(tags == 0, platt, share - platt)
    yield "without the share", np.where(tags == 0, doubt, doubt - share)
    yield "as before", rank_as_before(logits, tags, np.array(rule.thresholds))
    theirs = (("cleanlab", sigmoid(logits)), ("cleanlab, calibrated", sigmoid(platt)))
    for name, p in theirs if HAS_CLEANLAB else ():
        yield name, np.where(filter_by_cleanlab(p, tags), sign * p, -np.inf)


def rank_as_before(logits: Logits, tags: Tags, thresholds: NDArray[np.float64]) -> Ranking:
    """Rank uncalibrated scores as it was done before."""
    p = sigmoid(logits)
    distance = logits - np.log(thresholds / (1 - thresholds))
    tagged = np.array([p[tags[:, c] == 1, c].mean() for c in range(tags.shape[1])])
    untagged = np.array([p[tags[:, c] == 0, c].mean() for c in range(tags.shape[1])])
    missing = (distance >= 0) & (p >= 0.5) & (p >= tagged)
    wrong = (distance < 0) & (p <= untagged)
    listed = np.where(tags == 0, missing, wrong)
    return np.where(listed, np.where(tags == 0, distance, -distance), -np.inf)


def filter_by_cleanlab(p: NDArray[np.float64], tags: Tags) -> NDArray[np.bool_]:
    """Return which tags cleanlab's filter takes for wrong, class by class."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    given = [np.flatnonzero(row == 1).tolist() for row in tags]
    masks = np.asarray(find_multilabel_issues_per_class(given, p, n_jobs=1))
    return masks if masks.shape == tags.shape else masks.T


def rank_pictures(logits: Logits, tags: Tags) -> dict[str, Ranking]:
    """Return (N,) rankings of whole pictures."""
    ours = {"ours": measure_doubt(logits, tags).astype(np.float64).max(axis=1)}
    if not HAS_CLEANLAB:
        return ours
    from cleanlab.multilabel_classification.filter import find_label_issues

    given = [np.flatnonzero(row == 1).tolist() for row in tags]
    issues = find_label_issues(
        given, sigmoid(logits), return_indices_ranked_by="self_confidence", n_jobs=1
    )
    order = np.full(len(tags), -np.inf)
    order[issues] = -np.arange(len(issues))
    return {**ours, "cleanlab": order}


def judge(ranking: Ranking, spoiled: NDArray[np.bool_]) -> dict[str, float]:
    """Return the precision among the first, the share found, and the numbers of all listed."""
    values, truth = ranking.ravel(), spoiled.ravel()
    order = np.argsort(-values, kind="stable")
    order = order[np.isfinite(values[order])]
    hits = truth[order]
    numbers = {f"first {first}": float(hits[:first].mean()) for first in FIRST}
    numbers["found"] = float(hits[: FIRST[-1]].sum() / truth.sum())
    return {**numbers, "listed": len(order), "found in all": float(hits.sum() / truth.sum())}


def average(ways: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the mean over seeds, and of the first 200 the standard deviation."""
    return {
        name: {
            **{key: round(float(np.mean([one[key] for one in ran])), 3) for key in ran[0]},
            "sd of first 200": round(float(np.std([one["first 200"] for one in ran])), 3),
        }
        for name, ran in ways.items()
    }


if __name__ == "__main__":
    main()
