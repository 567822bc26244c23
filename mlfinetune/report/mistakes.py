"""Mistakes of the scores: false positives and negatives, and labels that are taken for others.

Unknown targets are never a mistake. Shapes: N images, L labels; `limits` (L,) are the logits from
which labels count as present.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.report.view import Gallery, Matrix, Missed, Shown

OTHERS = 4
"""Greatest number of other labels beside a picture."""
PAIRS = 12
"""Greatest number of listed (missed, found) pairs, and of the matrix's rows and columns."""


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one label at its threshold: sorted rows of the ScoreTable."""

    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    hits: NDArray[np.int64]


def split_outcomes(
    logits: NDArray[np.float32], targets: NDArray[np.int8], limit: np.float32
) -> Outcomes:
    """Split the rows of one label's (N,) scores at `limit`.

    False positives and hits are sorted by falling score, false negatives by rising score.
    """
    over = logits >= limit

    def sort_rows(chosen: NDArray[np.bool_], sign: int) -> NDArray[np.int64]:
        rows = np.flatnonzero(chosen)
        return rows[np.argsort(sign * logits[rows], kind="stable")]

    return Outcomes(
        false_positives=sort_rows((targets == NEGATIVE) & over, -1),
        false_negatives=sort_rows((targets == POSITIVE) & ~over, 1),
        hits=sort_rows((targets == POSITIVE) & over, -1),
    )


def build_galleries(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    limits: NDArray[np.float32],
    column: int,
    outcomes: Outcomes,
    most: int,
) -> tuple[Gallery, Gallery, Gallery]:
    """Return the first `most` false positives, false negatives and hits of label `column`.

    False positives come with the picture's tags, false negatives with the labels that were found.
    """

    def gallery(rows: NDArray[np.int64], beside: str) -> Gallery:
        shown = []
        for row in rows[:most].tolist():
            others: tuple[str, ...] = ()
            if beside == "tags":
                others = list_tags(scores, row)[:OTHERS]
            elif beside == "found":
                over = np.flatnonzero(scores.logits[row] >= limits)
                best = over[np.argsort(-scores.logits[row, over], kind="stable")]
                others = tuple(scores.labels.names[other] for other in best[:OTHERS])
            shown.append(Shown(row, float(probabilities[row, column]), others))
        return Gallery(len(rows), tuple(shown))

    return (
        gallery(outcomes.false_positives, "tags"),
        gallery(outcomes.false_negatives, "found"),
        gallery(outcomes.hits, ""),
    )


def list_tags(scores: ScoreTable, row: int) -> tuple[str, ...]:
    """Return the known labels of one picture."""
    columns = np.flatnonzero(scores.targets[row] == POSITIVE)
    return tuple(scores.labels.names[column] for column in columns)


# ---- one label missed while another is found ----------------------------------------------


def count_missed(
    scores: ScoreTable, limits: NDArray[np.float32], outcomes: Sequence[Outcomes]
) -> tuple[tuple[Missed, ...], Matrix]:
    """Count the pictures where one label is missed while another is found.

    A known positive below its threshold is missed; a known negative at or above its own is found.

    Args:
        outcomes: of L labels.

    Returns:
        The most frequent pairs, and a matrix of the counts among their labels.
    """
    best: list[tuple[int, int, int]] = []
    counts: dict[int, NDArray[np.int64]] = {}
    for column, label in enumerate(outcomes):
        rows = label.false_negatives
        wrong = (scores.targets[rows] == NEGATIVE) & (scores.logits[rows] >= limits)
        instead = wrong.sum(axis=0)
        top = np.argsort(-instead, kind="stable")[:PAIRS]
        best += [(-int(instead[other]), column, int(other)) for other in top if instead[other]]
        if instead.any():
            counts[column] = instead
    best.sort()
    rows_of_matrix, columns_of_matrix = (
        sorted(list(dict.fromkeys(pair[side] for pair in best))[:PAIRS]) for side in (1, 2)
    )
    names = scores.labels.names
    matrix = Matrix(
        tuple(names[row] for row in rows_of_matrix),
        tuple(names[column] for column in columns_of_matrix),
        tuple(
            tuple(int(counts[row][column]) for column in columns_of_matrix)
            for row in rows_of_matrix
        ),
    )
    return tuple(Missed(names[a], names[b], -n) for n, a, b in best[:PAIRS]), matrix
