"""`mlfinetune compare`: two folders -> ScoreTables -> common images and labels -> Comparison."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlfinetune.data.targets import UNKNOWN, LabelSpace
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.location import join_location
from mlfinetune.metrics.average_precision import PROTOCOLS
from mlfinetune.metrics.comparison import Comparison, compare_tables
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.runs import directory
from mlfinetune.runs.results import read_metrics, read_scores
from mlfinetune.runs.settings import list_differences, read_settings
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import MAX_LISTED, display_path, format_list, pluralize

SCORE_BOTH = (
    "score both on the same data: `mlfinetune eval --checkpoint RUN --data TABLE -o FOLDER` for "
    "each, then compare the two folders"
)


@dataclass(frozen=True)
class CompareRequest:
    """Two folders that train or eval wrote, and the number of bootstrap resamples."""

    a: Path
    b: Path
    resamples: int


@dataclass(frozen=True)
class Side:
    """Scores of one folder, and how they were made.

    Attributes:
        scores: of all its images and labels.
        thresholds: of each label.
        ap: protocol of AP.
        settings: of its run; None: not known.
        seen: number of its pictures that its model was trained on; None: not known.
        root: folder or URL that the names of its images start from; empty: not known.
    """

    scores: ScoreTable
    thresholds: tuple[float, ...]
    ap: str
    settings: dict[str, Any] | None
    seen: int | None = None
    root: str = ""

    def take(self, rows: Sequence[int], columns: Sequence[int]) -> "Side":
        """Return these images and labels, in this order."""
        scores = self.scores
        block = np.ix_(rows, columns)
        taken = replace(
            scores,
            names=tuple(scores.names[row] for row in rows),
            logits=scores.logits[block],
            targets=scores.targets[block],
            labels=LabelSpace(tuple(scores.labels.names[column] for column in columns)),
            groups=None if scores.groups is None else scores.groups[list(rows)],
        )
        thresholds = tuple(self.thresholds[column] for column in columns)
        return replace(self, scores=taken, thresholds=thresholds)


@dataclass(frozen=True)
class CompareResult:
    """Comparison of two folders, and how much of each was left out.

    Attributes:
        comparison: B minus A, on the images and labels that both scored.
        images: number of images that both scored.
        only: numbers of images, then of labels, that one side alone scored: ((A, B), (A, B)).
        settings: dotted key -> values of A and B, of the settings that differ; None: those of one
            side are not known.
        groups: number of groups of images that were drawn; None: single images were.
        seen: number of pictures that the models of A and of B were trained on; None: not known.
        only_labels: labels that A alone scored, and that B alone scored.
    """

    comparison: Comparison
    images: int
    only: tuple[tuple[int, int], tuple[int, int]]
    settings: dict[str, tuple[object, object]] | None
    groups: int | None
    seen: tuple[int | None, int | None]
    only_labels: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def run(request: CompareRequest, log: RunLog) -> CompareResult:
    """Compare two runs, or two results of eval, on the images and labels that both scored.

    Raises:
        CheckpointError: a folder holds no scores.
        DataError: the two have no image or no label in common, or their targets differ.
    """
    a, b = _read_side(request.a), _read_side(request.b)
    rows = _match_images(a, b)
    columns = _match_positions(a.scores.labels.names, b.scores.labels.names)
    for noun, pairs in (("image", rows), ("label", columns)):
        if not pairs:
            raise DataError(f"{request.a} and {request.b} have no {noun} in common; {SCORE_BOTH}")
    (rows_a, rows_b), (columns_a, columns_b) = zip(*rows, strict=True), zip(*columns, strict=True)
    images = (len(a.scores.names) - len(rows), len(b.scores.names) - len(rows))
    labels = (len(a.scores.labels) - len(columns), len(b.scores.labels) - len(columns))
    only = (
        _say_left_out(request.a, a, images[0], set(columns_a), log),
        _say_left_out(request.b, b, images[1], set(columns_b), log),
    )
    a, b = _mask_unknown(a.take(rows_a, columns_a), b.take(rows_b, columns_b), log)
    b = replace(b, scores=replace(b.scores, names=a.scores.names))  # perhaps of another root
    _require_same_targets(a.scores, b.scores)
    groups = b.scores.groups if a.scores.groups is None else a.scores.groups
    ap = a.ap
    if a.ap != b.ap:
        ap = "sklearn"
        log.say(f"A has AP by {a.ap}, B by {b.ap} (eval.ap): both are compared by sklearn")
    with log.bar("resampling", len(rows) * request.resamples) as bar:
        comparison = compare_tables(
            replace(a.scores, groups=groups),
            replace(b.scores, groups=groups),
            a.thresholds,
            b.thresholds,
            request.resamples,
            progress=bar.update,
            ap=ap,
        )
    settings = None
    if a.settings is not None and b.settings is not None:
        settings = list_differences(a.settings, b.settings)
    drawn = None if groups is None else len(np.unique(groups))
    for name, side in (("A", a), ("B", b)):
        if side.seen:
            count = pluralize(side.seen, "picture")
            log.say(f"warning: {name} was trained on {count} of those that it scored: too good")
    seen = (a.seen, b.seen)
    return CompareResult(comparison, len(rows), (images, labels), settings, drawn, seen, only)


def _read_side(folder: Path) -> Side:
    """Read scores and thresholds of a run directory, or of a folder that eval wrote."""
    if not (folder / directory.SCORES).is_file():
        if not folder.is_dir():
            raise CheckpointError(f"no such folder: {folder}")
        raise CheckpointError(
            f"{folder} holds no {directory.SCORES}; name a run directory, or a folder that "
            f"`mlfinetune eval --checkpoint RUN -o FOLDER` wrote"
        )
    scores = read_scores(folder)
    content, thresholds = read_metrics(folder, scores.labels)
    ap = content.get("ap")
    protocol = ap if ap in PROTOCOLS else PROTOCOLS[0]
    seen = content.get("seen_in_training")
    seen = seen if isinstance(seen, int) else None
    root, settings = content.get("images_root"), read_settings(folder, content)
    root = root if isinstance(root, str) else ""
    return Side(scores, thresholds, protocol, settings, seen, root)


def _match_images(a: Side, b: Side) -> list[tuple[int, int]]:
    """Return (row in a, row in b) of each image of both: by their names, or by their paths.

    A table in another folder, or several tables, may name the same pictures from another root.
    """
    names = (a.scores.names, b.scores.names)
    by_name = _match_positions(*map(_number_repeats, names))
    if not a.root or not b.root or a.root == b.root:
        return by_name
    paths = [
        [os.path.normpath(join_location(side.root, name)) for name in side.scores.names]
        for side in (a, b)
    ]
    by_path = _match_positions(*map(_number_repeats, paths))
    return max(by_name, by_path, key=len)


def _mask_unknown(a: Side, b: Side, log: RunLog) -> tuple[Side, Side]:
    """Return both with the targets unknown that one of them does not know."""
    lacking = (a.scores.targets == UNKNOWN) != (b.scores.targets == UNKNOWN)
    if not lacking.any():
        return a, b
    count = pluralize(int(lacking.sum()), "target")
    log.say(f"left out: {count} of {lacking.size} that one of the two alone knows")
    masked = (
        replace(side, scores=replace(side.scores, targets=np.where(lacking, UNKNOWN, targets)))
        for side, targets in ((a, a.scores.targets), (b, b.scores.targets))
    )
    return next(masked), next(masked)


def _number_repeats(names: Sequence[str]) -> list[tuple[str, int]]:
    """Number the repeats of each name: a b a -> (a, 0) (b, 0) (a, 1).

    A table may list a picture twice; its first row is compared with the first, and so on.
    """
    counters: dict[str, itertools.count[int]] = {}
    return [(name, next(counters.setdefault(name, itertools.count()))) for name in names]


def _match_positions(a: Sequence[object], b: Sequence[object]) -> list[tuple[int, int]]:
    """Return (position in a, position in b) of each common item: x y z, z x -> (0, 1) (2, 0)."""
    position_in_b = {item: index for index, item in enumerate(b)}
    return [(index, position_in_b[item]) for index, item in enumerate(a) if item in position_in_b]


def _say_left_out(
    folder: Path, side: Side, images: int, kept_columns: set[int], log: RunLog
) -> tuple[str, ...]:
    """Log how many images, and which labels, only this side scored; return these labels."""
    shown = display_path(folder)
    if images:
        log.say(f"left out: {pluralize(images, 'image')} that only {shown} scored")
    labels = side.scores.labels.names
    names = tuple(name for column, name in enumerate(labels) if column not in kept_columns)
    if names:
        count, lines = pluralize(len(names), "label"), format_list(list(map(repr, names)))
        log.say(f"left out: {count} that only {shown} knows\n{lines}")
    return names


def _require_same_targets(a: ScoreTable, b: ScoreTable) -> None:
    """Raise a DataError where targets of the two differ, with the first ten that do."""
    differing = np.argwhere(a.targets != b.targets)
    if len(differing):
        faults = [
            f"{a.names[row]}, {a.labels.names[column]!r}: {a.targets[row, column]} in A, "
            f"{b.targets[row, column]} in B"
            for row, column in differing[:MAX_LISTED]
        ]
        if len(differing) > MAX_LISTED:
            faults.append(f"... and {len(differing) - MAX_LISTED} more")
        raise DataError(
            f"the truth differs: {pluralize(len(differing), 'target')} of {a.targets.size}, in "
            f"{pluralize(len(np.unique(differing[:, 0])), 'image')}; {SCORE_BOTH}\n"
            + "\n".join(f"  {fault}" for fault in faults)
        )
