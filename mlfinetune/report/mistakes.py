"""What the scores get wrong, and where they say that the tags are wrong.

Unknown targets are never an error. Shapes: N images, L labels; `limits` (L,) are the logits from
which labels count as present.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.report.view import Gallery, Matrix, Missed, Report, Shown, Suspect
from mlfinetune.text import neutralize

OTHERS = 4
PAIRS = 12
"""Of missed and found labels that are listed; rows and columns of the matrix."""


@dataclass(frozen=True)
class Sides:
    """A label's pictures on either side of its threshold, as sorted rows of the ScoreTable."""

    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    hits: NDArray[np.int64]


def sides(logits: NDArray[np.float32], targets: NDArray[np.int8], limit: np.float32) -> Sides:
    """Sort one label's (N,) scores: highest first, but for false negatives, lowest first."""
    over = logits >= limit

    def by(rows: NDArray[np.bool_], sign: int) -> NDArray[np.int64]:
        found = np.flatnonzero(rows)
        return found[np.argsort(sign * logits[found], kind="stable")]

    return Sides(
        by((targets == NEGATIVE) & over, -1),
        by((targets == POSITIVE) & ~over, 1),
        by((targets == POSITIVE) & over, -1),
    )


def galleries(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    limits: NDArray[np.float32],
    column: int,
    found: Sides,
    most: int,
) -> tuple[Gallery, Gallery, Gallery]:
    """The first `most` false positives, false negatives and hits of label `column`.

    False positives come with the picture's tags, false negatives with what was found instead.
    """

    def gallery(rows: NDArray[np.int64], beside: str) -> Gallery:
        shown = []
        for row in rows[:most].tolist():
            others: tuple[str, ...] = ()
            if beside == "tags":
                others = tags(scores, row)[:OTHERS]
            elif beside == "found":
                over = np.flatnonzero(scores.logits[row] >= limits)
                best = over[np.argsort(-scores.logits[row, over], kind="stable")]
                others = tuple(scores.labels.names[at] for at in best[:OTHERS])
            shown.append(Shown(row, float(probabilities[row, column]), others))
        return Gallery(len(rows), tuple(shown))

    return (
        gallery(found.false_positives, "tags"),
        gallery(found.false_negatives, "found"),
        gallery(found.hits, ""),
    )


def tags(scores: ScoreTable, row: int) -> tuple[str, ...]:
    """The known labels of one picture."""
    return tuple(scores.labels.names[at] for at in np.flatnonzero(scores.targets[row] == POSITIVE))


# ---- one label missed while another is found ----------------------------------------------


def missed(
    scores: ScoreTable, limits: NDArray[np.float32], found: Sequence[Sides]
) -> tuple[tuple[Missed, ...], Matrix]:
    """The most frequent pairs, and the counts among the labels that lead them.

    A known positive below its threshold is missed; a known negative at or above its own is found.

    Args:
        found: L of them.
    """
    best: list[tuple[int, int, int]] = []
    counts: dict[int, NDArray[np.int64]] = {}
    for column, one in enumerate(found):
        rows = one.false_negatives
        wrong = (scores.targets[rows] == NEGATIVE) & (scores.logits[rows] >= limits)
        instead = wrong.sum(axis=0)
        top = np.argsort(-instead, kind="stable")[:PAIRS]
        best += [(-int(instead[at]), column, int(at)) for at in top if instead[at]]
        if instead.any():
            counts[column] = instead
    best.sort()
    rows_, columns = (
        sorted(list(dict.fromkeys(pair[side] for pair in best))[:PAIRS]) for side in (1, 2)
    )
    names = scores.labels.names
    matrix = Matrix(
        tuple(names[a] for a in rows_),
        tuple(names[b] for b in columns),
        tuple(tuple(int(counts[a][b]) for b in columns) for a in rows_),
    )
    return tuple(Missed(names[a], names[b], -n) for n, a, b in best[:PAIRS]), matrix


# ---- tags that may be wrong -----------------------------------------------------------------


def suspects(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    limits: NDArray[np.float32],
    thresholds: NDArray[np.float64],
    calibrated: bool,
) -> tuple[Suspect, ...]:
    """Tags that the scores speak against: missing ones first, the least likely to be right first.

    A known negative is suspect from the greatest of its label's threshold, the mean probability of
    the label's known positives, and an even chance on; a known positive up to the lesser of the
    threshold and the mean of the known negatives. They are ranked by probability where that is
    calibrated, else by the logit's distance from the threshold's.

    Source: the per-label thresholds of confident learning, Northcutt et al. 2021.
    """
    ranked: list[tuple[int, float, Suspect]] = []
    for column, label in enumerate(scores.labels.names):
        p, targets = probabilities[:, column], scores.targets[:, column]
        distance = scores.logits[:, column] - np.clip(limits[column], -50, 50)
        surprise = p if calibrated else distance
        for given, sign in ((NEGATIVE, 1), (POSITIVE, -1)):
            edge, why = _edge(p, targets, given, float(thresholds[column]))
            decided = (distance >= 0) & (p >= 0.5) if given == NEGATIVE else distance < 0
            beyond = (targets == given) & decided & (sign * p >= sign * edge)
            for row in np.flatnonzero(beyond).tolist():
                others = tuple(tag for tag in tags(scores, row) if tag != label)
                one = Suspect(row, scores.names[row], label, given, float(p[row]), why, others)
                ranked.append((given, -sign * float(surprise[row]), one))
    ranked.sort(key=lambda item: item[:2])
    return tuple(item[2] for item in ranked)


def _edge(
    p: NDArray[np.float64], targets: NDArray[np.int8], given: int, threshold: float
) -> tuple[float, str]:
    """From which probability a tag given as `given` is suspect, and the words for it."""
    opposite = p[targets == (POSITIVE if given == NEGATIVE else NEGATIVE)]
    words = f"threshold {threshold:.2f}"
    if not len(opposite):
        return threshold, words
    mean = float(opposite.mean())
    if given == NEGATIVE:
        return max(threshold, mean), f"{words}, tagged pictures average {mean:.2f}"
    return min(threshold, mean), f"{words}, untagged pictures average {mean:.2f}"


def suspect_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Header and rows of suspects.csv, inert in spreadsheets, in the page's order."""
    yield ("image", "label", "given", "probability", "why")
    for one in report.suspects:
        yield (
            neutralize(one.image),
            neutralize(one.label),
            str(one.given),
            f"{one.probability:.6f}",
            one.why,
        )
