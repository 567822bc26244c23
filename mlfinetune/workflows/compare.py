"""`mlfinetune compare`: two folders -> ScoreTables -> what both scored -> Comparison."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlfinetune.data.targets import UNKNOWN, LabelSpace
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.metrics.bootstrap import Comparison, paired
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runs import directory
from mlfinetune.runs.results import read_metrics, read_scores
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import MAX_LISTED, display_path, format_list, pluralize

SCORE_BOTH = (
    "score both on the same data: `mlfinetune eval --checkpoint RUN --data TABLE -o FOLDER` for "
    "each, then compare the two folders"
)


@dataclass(frozen=True)
class CompareRequest:
    """Two folders that train or eval wrote, and how many resamples to draw."""

    a: Path
    b: Path
    resamples: int


@dataclass(frozen=True)
class Side:
    """What one folder holds: scores, and each label's threshold."""

    scores: ScoreTable
    thresholds: tuple[float, ...]

    def take(self, rows: Sequence[int], columns: Sequence[int]) -> "Side":
        """These images and labels, in this order."""
        s = self.scores
        names = tuple(s.names[row] for row in rows)
        labels = LabelSpace(tuple(s.labels.names[at] for at in columns))
        block = np.ix_(rows, columns)
        scores = ScoreTable(names, s.logits[block], s.targets[block], labels)
        return Side(scores, tuple(self.thresholds[at] for at in columns))


@dataclass(frozen=True)
class CompareResult:
    """The outcome.

    Attributes:
        comparison: B against A.
        images: that both scored.
        only: images, and labels, that one side alone scored: ((A, B), (A, B)).
    """

    comparison: Comparison
    images: int
    only: tuple[tuple[int, int], tuple[int, int]]


def run(asked: CompareRequest, log: RunLog) -> CompareResult:
    """Compare two runs, or two results of eval, on the images and labels that both scored.

    Raises:
        MlfinetuneError: folders that cannot be used, nothing in common, other targets.
    """
    a, b = _read(asked.a), _read(asked.b)
    rows = _common(_occurrences(a.scores.names), _occurrences(b.scores.names))
    columns = _common(a.scores.labels.names, b.scores.labels.names)
    for what, pairs in (("image", rows), ("label", columns)):
        if not pairs:
            raise DataError(f"{asked.a} and {asked.b} have no {what} in common; {SCORE_BOTH}")
    images = (len(a.scores.names) - len(rows), len(b.scores.names) - len(rows))
    labels = (len(a.scores.labels) - len(columns), len(b.scores.labels) - len(columns))
    for folder, side, one in ((asked.a, a, 0), (asked.b, b, 1)):
        _say_left_out(folder, side, images[one], {pair[one] for pair in columns}, log)
    a, b = (
        side.take([pair[one] for pair in rows], [pair[one] for pair in columns])
        for one, side in enumerate((a, b))
    )
    _require_same_targets(a.scores, b.scores)
    with log.bar("resampling", len(rows) * asked.resamples) as bar:
        comparison = paired(
            a.scores, b.scores, a.thresholds, b.thresholds, asked.resamples, progress=bar.update
        )
    return CompareResult(comparison, len(rows), (images, labels))


def _read(folder: Path) -> Side:
    """The scores of a run directory or a folder of eval, with the thresholds beside them."""
    if not (folder / directory.SCORES).is_file():
        if not folder.is_dir():
            raise CheckpointError(f"no such folder: {folder}")
        raise CheckpointError(
            f"{folder} holds no {directory.SCORES}; name a run directory, or a folder that "
            f"`mlfinetune eval --checkpoint RUN -o FOLDER` wrote"
        )
    scores = read_scores(folder)
    _, thresholds = read_metrics(folder, scores.labels)
    return Side(scores, thresholds)


def _occurrences(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name with how often it stood before: a table may list a picture twice."""
    seen: dict[str, itertools.count[int]] = {}
    return [(name, next(seen.setdefault(name, itertools.count()))) for name in names]


def _common(a: Sequence[object], b: Sequence[object]) -> list[tuple[int, int]]:
    """The places in a and in b of what both hold, in a's order."""
    place = {one: at for at, one in enumerate(b)}
    return [(at, place[one]) for at, one in enumerate(a) if one in place]


def _say_left_out(folder: Path, side: Side, images: int, kept: set[int], log: RunLog) -> None:
    """What this side alone scored; labels by name."""
    shown = display_path(folder)
    if images:
        log.say(f"left out: {pluralize(images, 'image')} that only {shown} scored")
    names = [repr(name) for at, name in enumerate(side.scores.labels.names) if at not in kept]
    if names:
        count = pluralize(len(names), "label")
        log.say(f"left out: {count} that only {shown} knows\n{format_list(names)}")


def _require_same_targets(a: ScoreTable, b: ScoreTable) -> None:
    """Raise a DataError that names the pairs whose targets differ, if any."""
    differing = np.argwhere(a.targets != b.targets)
    if len(differing):
        faults = [
            f"{a.names[row]}, {a.labels.names[at]!r}: {_state(a, row, at)} in A, "
            f"{_state(b, row, at)} in B"
            for row, at in differing[:MAX_LISTED]
        ]
        if len(differing) > MAX_LISTED:
            faults.append(f"... and {len(differing) - MAX_LISTED} more")
        raise DataError(
            f"the truth differs: {pluralize(len(differing), 'target')} of {a.targets.size}, in "
            f"{pluralize(len(np.unique(differing[:, 0])), 'image')}; {SCORE_BOTH}\n"
            + "\n".join(f"  {fault}" for fault in faults)
        )


def _state(scores: ScoreTable, row: int, at: int) -> str:
    value = int(scores.targets[row, at])
    return "unknown" if value == UNKNOWN else str(value)
