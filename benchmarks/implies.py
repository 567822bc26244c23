"""Labels that follow from labels, on kept features: AP with `data.implies` and without.

python benchmarks/implies.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/implies.json

The hierarchy is openclipart's, whose tags were folders: a dessert is food, a mammal is an animal.
Three tables of train: as it is, and with 30 % and 60 % of the tags of parents taken away from the
pictures that have a child too, as people forget them (three draws each). Four ways:

    without     no hierarchy
    targets     it fills in the targets of train, and nothing else
    raised      it raises parents at predict, and nothing else
    implies     both, as `data.implies` does

The heads are solved by L-BFGS; of three penalties and three numbers of iterations the best by
validation mAP is taken, as in a run. The truth is val.csv with the same hierarchy, in which unknown
children are masked. Numbers are mAP over parents, over children, and over all labels; `given` is
mAP over parents by val.csv as it is, which lacks tags too. Differences from `without` have 95 %
intervals over the validation pictures, the draws' labels side by side as columns. Then macro F1 of
the hierarchy's labels, cross-fitted, by the rule that keeps decisions consistent. Features are read
from the cache, or computed and added to it.
"""

import argparse
import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mlfinetune.config import load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.load import load_splits
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics import thresholds
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.evaluation import raise_scores
from mlfinetune.metrics.folds import split_folds
from mlfinetune.metrics.implies import Pairs, list_pairs
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.lbfgs import Solver
from mlfinetune.training.loop import validate
from mlfinetune.training.setup import set_up, with_features

IMPLIES = {
    "arrow": "shape", "beverage": "food", "bird": "animal", "boat": "transport",
    "bordered": "card", "dessert": "food", "flower": "plant", "france": "europe", "fruit": "food",
    "hardware": "computer", "house": "building", "insect": "animal", "mammal": "animal",
    "mapsym": "symbol", "north_america": "america", "ornamental": "card", "roadsign": "sign",
    "signalflag": "flag", "smiley": "people", "spain": "europe", "stickmen": "people",
}  # fmt: skip
FORGOTTEN, DRAWS = (0.0, 0.3, 0.6), 3
PENALTIES, STOPS = (0.3, 0.1, 0.03), (1, 3, 10)
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "implies.json"


@dataclass(frozen=True)
class Solved:
    """Validation scores of one training table: without the hierarchy in its targets, and with.

    Both have the completed truth; `given` is val.csv's own.
    """

    plain: ScoreTable
    filled: ScoreTable
    given: NDArray[np.int8]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    result: dict[str, Any] = {"with_parent": count_children(asked.train)}
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train.csv"
        for share in FORGOTTEN:
            solved = []
            for seed in range(DRAWS if share else 1):
                write_forgetful(asked.train, share, seed, train)
                plain, given = solve(asked, train, filled=False)
                solved.append(Solved(plain, solve(asked, train, filled=True)[0], given))
            result[f"{share:g}"] = {**compare_ways(solved), **compare_rules(solved)}
            print(share, json.dumps(result[f"{share:g}"]), flush=True)
            RESULT.write_text(json.dumps(result, indent=2) + "\n")


# ---- tables -----------------------------------------------------------------------------


def read_rows(table: Path) -> list[tuple[str, list[str]]]:
    """Return name and labels of each row."""
    with table.open(newline="") as file:
        return [(row["image"], row["labels"].split("|")) for row in csv.DictReader(file)]


def count_children(table: Path) -> dict[str, list[int]]:
    """Return child -> numbers of its pictures that have the parent's tag, and of all."""
    tags = [set(labels) for _, labels in read_rows(table)]
    return {
        child: [sum({child, parent} <= row for row in tags), sum(child in row for row in tags)]
        for child, parent in IMPLIES.items()
    }


def write_forgetful(table: Path, share: float, seed: int, path: Path) -> None:
    """Write a table without a share of the parents' tags of pictures that have a child's tag."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for name, labels in read_rows(table):
            parents = {IMPLIES[label] for label in labels if label in IMPLIES}
            lost = {label for label in sorted(parents) if rng.random() < share}
            writer.writerow([name, "|".join(label for label in labels if label not in lost)])


# ---- heads ------------------------------------------------------------------------------


def solve(
    asked: argparse.Namespace, train: Path, filled: bool
) -> tuple[ScoreTable, NDArray[np.int8]]:
    """Return the validation scores of the best head, with the completed truth; and its own one."""
    data = [f"data.train={train}", f"data.val={asked.val}", f"data.images={asked.images}"]
    data.append(f"model.weights={asked.weights}")
    implies = [f"data.implies={json.dumps(IMPLIES)}"]
    truth = load_splits(load_config(CONFIG, [*data, *implies]), RunLog(io.StringIO())).val
    config = load_config(CONFIG, [*data, *(implies if filled else [])])
    splits = load_splits(config, RunLog(io.StringIO()))
    assert splits.val.labels == truth.labels
    world = World(prepare_device("cpu"), DistInfo())
    whole = set_up(config, splits, world, RunLog())
    setup = with_features(whole, None, RunLog(io.StringIO()))
    assert setup is not None
    assert isinstance(setup.train, FeatureLoader)
    assert isinstance(setup.tagger.head, nn.Linear)
    best, found = None, -1.0
    solver = Solver(setup.tagger.head, setup.train.sweep, setup.loss)
    for l2 in PENALTIES:
        for _ in solver.path(l2, STOPS):
            averages, scores = validate(setup, RunLog(io.StringIO()))
            if (averages["mAP"] or 0.0) > found:
                best, found = scores, averages["mAP"] or 0.0
    assert best is not None
    print(f"filled {filled}: mAP {found:.4f} of its own targets", flush=True)
    return replace(best, targets=truth.targets[:]), best.targets


# ---- numbers ----------------------------------------------------------------------------


def compare_ways(draws: Sequence[Solved]) -> dict[str, Any]:
    """Compare the mAP of the ways over parents, children and all labels."""
    labels = draws[0].plain.labels
    pairs = list_pairs(IMPLIES, labels)
    parents = sorted({parent for _, parent in pairs})
    kinds = {
        "parents": parents,
        "children": sorted({child for child, _ in pairs}.difference(parents)),
        "all": list(range(len(labels))),
    }
    ways = {
        "without": [draw.plain for draw in draws],
        "targets": [draw.filled for draw in draws],
        "raised": [raise_scores(draw.plain, pairs) for draw in draws],
        "implies": [raise_scores(draw.filled, pairs) for draw in draws],
    }
    result: dict[str, Any] = {}
    for kind, columns in kinds.items():
        before = join_draws(ways["without"], columns)
        result[kind] = {"without": measure(before).averages["mAP"]}
        for way in ("targets", "raised", "implies"):
            after = join_draws(ways[way], columns)
            cuts = [0.5] * len(before.labels)
            found = compare_tables(before, after, cuts, cuts).averages["mAP"]
            ends = found.interval or (float("nan"), float("nan"))
            row = {"mAP": found.b, "gain": found.value, "low": ends[0], "high": ends[1]}
            result[kind][way] = row
    result["given"] = {}
    for way in ("without", "implies"):
        tables = [replace(t, targets=d.given) for t, d in zip(ways[way], draws, strict=True)]
        result["given"][way] = measure(join_draws(tables, parents)).averages["mAP"]
    return result


def join_draws(tables: Sequence[ScoreTable], columns: Sequence[int]) -> ScoreTable:
    """Put these labels of all draws side by side."""
    kept = list(columns)
    names = [f"{n} {t.labels.names[c]}" for n, t in enumerate(tables) for c in kept]
    logits = np.concatenate([table.logits[:, kept] for table in tables], axis=1)
    targets = np.concatenate([table.targets[:, kept] for table in tables], axis=1)
    return ScoreTable(tables[0].names, logits, targets, LabelSpace(tuple(names)))


def compare_rules(draws: Sequence[Solved]) -> dict[str, Any]:
    """Return the cross-fitted macro F1 over children and parents, by the rule of consistency.

    Also the share of a child's decisions that lack a parent, where nothing makes them consistent.
    """
    pairs = list_pairs(IMPLIES, draws[0].filled.labels)
    columns = sorted({column for pair in pairs for column in pair})
    found: dict[str, list[float]] = {}
    for draw in draws:
        scores = raise_scores(draw.filled, pairs)
        for rule in ("free", "raise children", "lower parents", "add parents"):
            present = decide(scores, pairs, rule)
            decided = replace(scores, logits=np.where(present, np.float32(1), np.float32(-1)))
            rows = [measure(decided).per_label[column] for column in columns]
            f1 = [row.F1 for row in rows if row.F1 is not None]
            found.setdefault(rule, []).append(float(np.mean(f1)))
            if rule == "free":
                torn = sum(int((present[:, c] & ~present[:, p]).sum()) for c, p in pairs)
                given = sum(int(present[:, child].sum()) for child, _ in pairs)
                found.setdefault("torn", []).append(torn / given)
    return {"F1": {rule: float(np.mean(values)) for rule, values in found.items()}}


def decide(scores: ScoreTable, pairs: Pairs, rule: str) -> NDArray[np.bool_]:
    """Return (N, L) decisions, each picture's by thresholds of the other folds."""
    out = np.zeros(scores.logits.shape, np.bool_)
    for others, held in split_folds(len(scores.logits), 5, 0, None):
        cuts = thresholds.fit(scores.logits[others], scores.targets[others], "per_label").cuts
        own = cuts.copy()
        for child, parent in pairs:
            if rule == "raise children":
                cuts[child] = max(cuts[child], own[parent])
            if rule == "lower parents":
                cuts[parent] = min(cuts[parent], own[child])
        out[held] = scores.logits[held] >= cuts
    for child, parent in pairs:
        if rule == "add parents":
            out[:, parent] |= out[:, child]
    return out


if __name__ == "__main__":
    main()
