"""Given tags that are probably wrong or missing, and near duplicates whose tags differ.

    scores           -> find_suspects -> missing tags, then wrong ones, by rank
    scores, groups   -> find_torn     -> groups of near duplicates with different tags
    Report           -> list_suspect_rows -> suspects.csv

Unknown targets are never suspects. Shapes: N images, L labels; `limits` (L,) are the logits from
which labels count as present.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.doubt import Doubt
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.report.mistakes import list_tags
from mlfinetune.report.view import Report, Suspect, TornGroup
from mlfinetune.text import neutralize, pluralize

HEADER = ("image", "label", "given", "probability", "why", "rank", "near_duplicates")


def find_suspects(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    limits: NDArray[np.float32],
    thresholds: NDArray[np.float64],
    doubt: Doubt,
) -> tuple[Suspect, ...]:
    """Find the given tags that disagree with the scores: missing tags first, then wrong ones.

    A known negative may be a missing tag, and a known positive a wrong one, if the decision at the
    label's threshold disagrees with it and its doubt is at least 0: a missing label is there more
    likely than not, a wrong one less likely than in a picture drawn at random. Tags with the
    greatest doubt come first; ranks are counted apart.

    Args:
        scores, probabilities: (N, L); the probabilities are shown, with the labels' averages.
        limits, thresholds: (L,) as logits and as probabilities.
        doubt: (N, L) of `measure_doubt`.
    """
    ranked: dict[int, list[tuple[float, Suspect]]] = {NEGATIVE: [], POSITIVE: []}
    for column, label in enumerate(scores.labels.names):
        p, targets = probabilities[:, column], scores.targets[:, column]
        over = scores.logits[:, column] >= limits[column]
        for given in (NEGATIVE, POSITIVE):
            why = _describe_label(p, targets, given, float(thresholds[column]))
            disagrees = (targets == given) & (over == (given == NEGATIVE))
            for row in np.flatnonzero(disagrees & (doubt[:, column] >= 0)).tolist():
                others = tuple(tag for tag in list_tags(scores, row) if tag != label)
                suspect = Suspect(row, scores.names[row], label, given, float(p[row]), why, others)
                ranked[given].append((-float(doubt[row, column]), suspect))
    return tuple(
        replace(suspect, rank=rank)
        for suspects in ranked.values()
        for rank, (_, suspect) in enumerate(sorted(suspects, key=lambda item: item[0]), 1)
    )


def _describe_label(
    p: NDArray[np.float64], targets: NDArray[np.int8], given: int, threshold: float
) -> str:
    """Return the threshold, and the mean probability of the pictures with the opposite tag."""
    opposite = p[targets == (POSITIVE if given == NEGATIVE else NEGATIVE)]
    words = f"threshold {threshold:.2f}"
    if not len(opposite):
        return words
    kind = "tagged" if given == NEGATIVE else "untagged"
    count = pluralize(len(opposite), f"{kind} picture")
    return f"{words}, {count}, on average {float(opposite.mean()):.2f}"


# ---- near duplicates ------------------------------------------------------------------------


def find_torn(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    doubt: Doubt,
    groups: NDArray[np.int64],
) -> tuple[TornGroup, ...]:
    """Find the groups of near duplicates in which some pictures have a label and others lack it.

    Groups come by the greatest doubt of their differing tags. Their rows in suspects.csv are
    numbered in that order, from 1 on.

    Args:
        scores, probabilities, doubt: (N, L), of the same pictures.
        groups: (N,) numbers; near duplicates have the same one.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    found = []
    for rows in np.split(order, starts[1:]):
        targets = scores.targets[rows]
        torn = np.flatnonzero((targets == POSITIVE).any(0) & (targets == NEGATIVE).any(0))
        if len(torn):
            found.append((-float(doubt[np.ix_(rows, torn)].max()), rows.tolist(), torn.tolist()))
    found.sort()
    groups_with_tags = []
    for number, (_, pictures, columns) in enumerate(found, 1):
        tags: list[Suspect] = []
        for column in columns:
            tags += _list_torn_tags(scores, probabilities, doubt, np.array(pictures), column)
        shown = dict.fromkeys([*(tag.index for tag in tags), *pictures])  # those that differ first
        groups_with_tags.append(TornGroup(number, tuple(shown), tuple(tags)))
    return tuple(groups_with_tags)


def _list_torn_tags(
    scores: ScoreTable,
    probabilities: NDArray[np.float64],
    doubt: Doubt,
    rows: NDArray[np.int64],
    column: int,
) -> list[Suspect]:
    """Return the known tags of a label in which near duplicates differ, in the order of `rows`.

    Of a large group in which one picture lacks the tag, all others would be listed: so at most as
    many have the usual state as the rarer one, the most doubted of them.
    """
    label, targets = scores.labels.names[column], scores.targets[rows, column]
    have, lack = (rows[targets == state] for state in (POSITIVE, NEGATIVE))
    why = f"tags of near duplicates differ: {len(have)} of {len(have) + len(lack)} have it"
    most = min(len(have), len(lack))
    doubted = (side[np.argsort(-doubt[side, column], kind="stable")] for side in (have, lack))
    listed = {row for side in doubted for row in side[:most].tolist()}
    suspects = []
    for row in sorted(listed):
        others = tuple(tag for tag in list_tags(scores, row) if tag != label)
        p, given = float(probabilities[row, column]), int(scores.targets[row, column])
        suspects.append(Suspect(row, scores.names[row], label, given, p, why, others))
    return suspects


# ---- suspects.csv ---------------------------------------------------------------------------


def list_suspect_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield header and rows of suspects.csv; no cell is run as a formula.

    Each picture and label has one row. Where near duplicates differ in a suspect's label, their
    rows follow it at once. Groups without a suspect come last; their rows have no rank.
    """
    yield HEADER
    ranked = {(suspect.index, suspect.label): suspect for suspect in report.suspects}
    together: dict[tuple[int, str], list[tuple[int, Suspect]]] = {}
    for group in report.torn:
        blocks: dict[str, list[tuple[int, Suspect]]] = {}
        for tag in group.tags:
            blocks.setdefault(tag.label, []).append((group.number, tag))
            together[tag.index, tag.label] = blocks[tag.label]
    written = set()
    for first in (*report.suspects, *(tag for group in report.torn for tag in group.tags)):
        block = together.get((first.index, first.label), [(0, first)])
        for number, tag in sorted(block, key=lambda item: item[1].index != first.index):
            pair = (tag.index, tag.label)
            if pair not in written:
                written.add(pair)
                yield _format_row(ranked.get(pair), tag, number)


def _format_row(ranked: Suspect | None, tag: Suspect, number: int) -> tuple[str, ...]:
    """Return the cells of one tag; `number` is that of its group of near duplicates, or 0."""
    reasons = dict.fromkeys(one.why for one in (ranked, tag) if one is not None)
    return (
        neutralize(tag.image),
        neutralize(tag.label),
        str(tag.given),
        f"{tag.probability:.6f}",
        "; ".join(reasons),
        str(ranked.rank) if ranked is not None else "",
        str(number) if number else "",
    )
