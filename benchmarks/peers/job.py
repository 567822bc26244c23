"""The job that run.py gives to each peer's script: read from a file, with scores written to one."""

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Job:
    """One run: data to learn from, settings, and the folder for the results."""

    task: str
    train: str
    val: str
    images: str
    labels: list[str]
    weights: str
    epochs: int
    batch_size: int
    workers: int
    bf16: bool
    folder: str
    best: float = -1.0

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.task == "frozen"

    def record(self, scores: np.ndarray, aside_s: float = 0.0) -> float:
        """Keep the scores of one epoch if its macro mAP on val is the best so far; return the mAP.

        This is each script's metric, so that all choose their best epoch alike.

        Args:
            scores: (N, L), higher is likelier; rows as in the table.
            aside_s: seconds that were spent for the driver alone, which it subtracts.
        """
        value = macro_map(targets(Path(self.val), self.labels), np.asarray(scores))
        if value > self.best:
            self.best = value
            np.savez(Path(self.folder, "scores.npz"), scores=scores, aside_s=aside_s)
        return value


def load() -> Job:
    """Return the job that the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def targets(table: Path, labels: list[str]) -> np.ndarray:
    """Return (N, L) of 0 and 1, from a table with the columns image and labels."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [set(row["labels"].split("|")) for row in csv.DictReader(file)]
    return np.array([[label in row for label in labels] for row in rows], dtype=np.int8)


def macro_map(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean AP of the labels that have a positive and a negative."""
    known = [i for i, column in enumerate(truth.T) if 0 < column.sum() < len(column)]
    return float(np.mean([average_precision_score(truth[:, i], scores[:, i]) for i in known]))
