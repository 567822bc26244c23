"""Files of cross-validation: one folder a fold, and the facts of all folds for metrics.json.

FoldScores       -> write_fold    -> folds/fold-1/scores.npz, fold.json -> read_fold -> FoldScores
scores, folds    -> describe_folds -> the key `crossval` of metrics.json
plan of a command, kept plan      -> is_same_plan: whether finished folds can be used again
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.folds import Fold, Pool
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.selection import Trial
from mlfinetune.metrics.types import DecisionRule, ScoreTable
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import FOREIGN
from mlfinetune.runs.results import read_scores, write_scores
from mlfinetune.storage.atomic import write_atomic, writing_text
from mlfinetune.text import neutralize, to_finite

CROSSVAL = "crossval"
"""Key of metrics.json with the facts of `describe_folds`."""
FOLDS = "folds"
PLAN = "folds.json"
TABLE = "folds.csv"
_FOLD = "fold.json"
_NAMES = ("mAP", "micro_AP", "macro_F1", "micro_F1")


@dataclass(frozen=True)
class FoldScores:
    """Scores of the pictures that a fold holds out, and how its model was chosen.

    Attributes:
        logits: (n, L), in the order of `Fold.held_out`, multiplied by the slope.
        chosen: name of the candidate.
        trials: of all candidates, on the part of the training pictures that chose.
        slope: factor that calibrates the model's logits, fitted to that part.
    """

    logits: NDArray[np.float32]
    chosen: str
    trials: tuple[Trial, ...]
    slope: float


def tabulate_rows(pool: Pool, logits: NDArray[np.float32], rows: NDArray[np.int64]) -> ScoreTable:
    """Return the ScoreTable of these rows of the pool, with their (n, L) logits."""
    examples = pool.examples.take(rows.tolist())
    targets = examples.targets[np.arange(len(rows))]
    return ScoreTable(examples.names, logits, targets, examples.labels, groups=examples.groups)


def write_fold(folder: Path, pool: Pool, fold: Fold, scores: FoldScores) -> None:
    """Write what a fold has found; fold.json comes last, so a folder with it is complete.

    Raises:
        CheckpointError: a file cannot be written (a full disk, no permission).
    """
    write_scores(folder, tabulate_rows(pool, scores.logits, fold.held_out))
    content = {"chosen": scores.chosen, "slope": scores.slope}
    content["trials"] = [asdict(trial) for trial in scores.trials]
    write_atomic(folder / _FOLD, json.dumps(content).encode())


def read_fold(folder: Path, pool: Pool, fold: Fold) -> FoldScores | None:
    """Read what `write_fold` wrote; None: the fold is not finished, or a file is not whole.

    Raises:
        CheckpointError: scores.npz is damaged.
    """
    try:
        content = json.loads((folder / _FOLD).read_bytes())
        trials = (Trial(**{**trial, "resampled": ()}) for trial in content["trials"])
        found = str(content["chosen"]), tuple(trials), to_finite(content["slope"])
    except (OSError, *FOREIGN):
        return None
    scores = read_scores(folder)
    names = tuple(pool.examples.names[row] for row in fold.held_out)
    return FoldScores(scores.logits, *found) if scores.names == names else None


def write_plan(folder: Path, plan: Mapping[str, object]) -> None:
    """Write folds.json: everything that decides the scores of the folds."""
    write_atomic(folder / PLAN, json.dumps(plan, indent=2).encode() + b"\n")


def is_same_plan(folder: Path, plan: Mapping[str, object], *but: str) -> bool:
    """Tell whether the folds of a folder are those of this plan, but for some of its keys."""
    try:
        kept, wanted = json.loads((folder / PLAN).read_bytes()), json.loads(json.dumps(plan))
        return all(kept[key] == wanted[key] for key in wanted if key not in but)
    except (OSError, *FOREIGN):
        return False


def holds_folds(folder: Path) -> bool:
    """Tell whether a folder is that of a cross-validation, or of one of its folds: no run."""
    return any((folder / name).is_file() for name in (PLAN, _FOLD))


def copy_folds(folder: Path, target: Path) -> None:
    """Copy what the folds of another folder have found, and its near duplicates.

    Raises:
        CheckpointError: a file cannot be written (a full disk, no permission).
    """
    for done in sorted((folder / FOLDS).glob(f"*/{_FOLD}")):
        place = target / FOLDS / done.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for name in (directory.SCORES, _FOLD):
            write_atomic(place / name, (done.parent / name).read_bytes())
    if (kept := folder / directory.NEAR_DUPLICATES).is_file():
        write_atomic(target / directory.NEAR_DUPLICATES, kept.read_bytes())


def write_fold_table(folder: Path, pool: Pool, folds: Sequence[Fold]) -> None:
    """Write folds.csv: the fold that each picture was held out in, a column a repeat."""
    repeats = max(fold.repeat for fold in folds)
    numbers = np.zeros((len(pool.examples), repeats), np.int64)
    for fold in folds:
        numbers[fold.held_out, fold.repeat - 1] = fold.number
    heads = ["fold", *(f"fold_{repeat}" for repeat in range(2, repeats + 1))]
    with writing_text(folder / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["image", *heads])
        for name, row in zip(pool.examples.names, numbers.tolist(), strict=True):
            writer.writerow([neutralize(name), *row])


def describe_folds(
    pool: Pool,
    folds: Sequence[Fold],
    scores: Sequence[FoldScores],
    decision: DecisionRule,
    ap: str,
) -> dict[str, Any]:
    """Return the facts of all folds, for metrics.json.

    The deviation is that of the folds (n - 1 in the divisor). It shows how much a number depends on
    the pictures of a fold; it is no error of the mean, because folds share training pictures.

    Args:
        scores: of each fold.
        decision: fitted on the scores of all folds of the first repeat.
        ap: as `eval.ap`.
    """
    thresholds = np.array(decision.thresholds)

    def describe(rows: NDArray[np.int64], logits: NDArray[np.float32]) -> dict[str, float | None]:
        table = tabulate_rows(pool, decision.calibrate(logits), rows)
        averages = measure(table, thresholds, ap).averages
        return {name: averages[name] for name in _NAMES}

    by_fold = [
        {
            "repeat": fold.repeat,
            "fold": fold.number,
            "images": len(fold.held_out),
            "chosen": found.chosen,
            **describe(fold.held_out, found.logits),
        }
        for fold, found in zip(folds, scores, strict=True)
    ]
    repeats = range(1, max(fold.repeat for fold in folds) + 1)
    rows = np.arange(len(pool.examples))
    by_repeat = [describe(rows, join_logits(pool, folds, scores, repeat)) for repeat in repeats]
    return {
        "folds": max(fold.number for fold in folds),
        "repeats": len(repeats),
        "over_folds": {name: _spread([row[name] for row in by_fold]) for name in _NAMES},
        "over_repeats": {name: _spread([row[name] for row in by_repeat]) for name in _NAMES},
        "by_fold": by_fold,
    }


def explain_folds(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, text) lines on the folds of a metrics.json; none where there are no folds.

    Raises:
        KeyError, TypeError, ValueError: what `describe_folds` does not write.
    """
    if CROSSVAL not in content:
        return []
    facts = content[CROSSVAL]
    text = f"{int(facts['folds'])} folds: each picture was scored by a model that has not seen it"
    spread = facts["over_folds"]["mAP"]
    if spread["mean"] is not None:
        lowest, highest = (f"{to_finite(spread[end]):.3f}" for end in ("lowest", "highest"))
        text += f"; mAP of one fold {lowest} to {highest}"
    return [("numbers", text)]


def join_logits(
    pool: Pool, folds: Sequence[Fold], scores: Sequence[FoldScores], repeat: int
) -> NDArray[np.float32]:
    """Return the (N, L) out-of-fold logits of one repeat, in the order of the pool."""
    logits = np.full((len(pool.examples), len(pool.examples.labels)), np.nan, np.float32)
    for fold, found in zip(folds, scores, strict=True):
        if fold.repeat == repeat:
            logits[fold.held_out] = found.logits
    assert np.isfinite(logits).all()  # each picture is held out once
    return logits


def _spread(values: Sequence[Any]) -> dict[str, float | None]:
    """Return mean, deviation, lowest and highest; None where there are too few numbers."""
    known = [float(value) for value in values if value is not None]
    return {
        "mean": fmean(known) if known else None,
        "deviation": stdev(known) if len(known) > 1 else None,
        "lowest": min(known, default=None),
        "highest": max(known, default=None),
    }
