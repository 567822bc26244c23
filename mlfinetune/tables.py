"""Results for people and for other programs: CSV, JSON, text of 80 columns.

Verdict     -> summary text, metrics.json, per_label.csv
ScoreTable  -> scores.npz and back, exactly
"""

import csv
import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune import rundir
from mlfinetune.errors import CheckpointError
from mlfinetune.predictions import Choice, CsvWriter
from mlfinetune.records import (
    NEGATIVE,
    POSITIVE,
    UNKNOWN,
    LabelSpace,
    Prediction,
    ScoreTable,
    Verdict,
)
from mlfinetune.survey import Skipped
from mlfinetune.text import fitted, inert, printable

WIDTH = 80
SHOWN_LABELS = 40


# ---- metrics ----------------------------------------------------------------------------


def summary(verdict: Verdict) -> str:
    """The numbers as a table of at most 80 columns, labels by falling AP."""
    table = verdict.table
    a = table.averages
    lines = [
        f"{table.images} images, mAP over {table.labels_scored} of {len(table.per_label)} labels",
        "",
        f"  mAP       {_number(a['mAP'])}     macro F1  {_number(a['macro_F1'])}"
        f"     CF1  {_number(a['CF1'])}",
        f"  micro AP  {_number(a['micro_AP'])}     micro F1  {_number(a['micro_F1'])}"
        f"     OF1  {_number(a['OF1'])}",
        *_how_sure(verdict.facts),
        "",
        f"  {'label':<44} {'AP':>7} {'F1':>7} {'positives':>10}",
    ]
    rows = sorted(table.per_label, key=lambda row: (row.AP is None, -(row.AP or 0.0)))
    half = SHOWN_LABELS // 2
    left_out = len(rows) - SHOWN_LABELS
    for at, row in enumerate(rows):
        if left_out > 0 and half <= at < len(rows) - half:
            if at == half:
                lines.append(f"  ... {left_out} labels in between: see {rundir.PER_LABEL} ...")
            continue
        name = fitted(printable(row.label), 44)
        lines.append(f"  {name} {_number(row.AP):>7} {_number(row.F1):>7} {row.positives:>10}")
    return "\n".join(lines)


def write_results(
    folder: Path, verdict: Verdict, probabilities: NDArray[np.float64], about: dict[str, Any]
) -> None:
    """scores.npz, predictions.csv, per_label.csv, and last metrics.json: the folder is complete.

    Args:
        folder: exists.
        verdict: the numbers.
        probabilities: (N, L) of the verdict's scores.
        about: what was measured; goes into metrics.json.
    """
    table, scores = verdict.table, verdict.scores
    write_scores(folder, scores)
    choice = Choice(scores.labels, verdict.decision)
    with rundir.writing(folder / rundir.PREDICTIONS) as file:
        csv_writer = CsvWriter(file, choice, only_labels=False)
        for name, row in zip(scores.names, probabilities, strict=True):
            csv_writer.write(Prediction(name, row))
    with rundir.writing(folder / rundir.PER_LABEL) as file:
        writer = csv.writer(file)
        rates = ("AP", "F1", "precision", "recall", "AUROC")
        ends = [f"{name}_{end}" for name in ("AP", "F1") for end in ("low", "high")]
        writer.writerow(["label", *rates, "threshold", "positives", "negatives", *ends])
        for r in table.per_label:
            intervals = verdict.facts["intervals"]["per_label"][r.label]
            bounds = [x for name in ("AP", "F1") for x in intervals[name] or (None, None)]
            numbers, shown_bounds = (
                ["" if x is None else f"{x:.6f}" for x in values]
                for values in ([getattr(r, name) for name in rates], bounds)
            )
            counts = (r.positives, r.negatives)
            writer.writerow([inert(r.label), *numbers, r.threshold, *counts, *shown_bounds])
    content = {**table.to_dict(), **verdict.facts, **about}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    rundir.write_atomic(folder / rundir.METRICS, text.encode(errors="backslashreplace") + b"\n")


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """skipped.csv: every picture that was left out, and why."""
    with rundir.writing(folder / rundir.SKIPPED) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "place", "reason"])
        writer.writerows([inert(one.name), inert(one.place), inert(one.reason)] for one in skipped)


def _how_sure(facts: dict[str, Any]) -> list[str]:
    """Intervals, and what the thresholds of the F1s were fitted on."""
    names = {"mAP": "mAP", "macro_F1": "macro F1", "micro_F1": "micro F1"}
    intervals = {name: facts["intervals"][key] for key, name in names.items()}
    ranges = [f"{name} {x[0]:.3f} to {x[1]:.3f}" for name, x in intervals.items() if x]
    lines = [f"  95 %      {', '.join(ranges)}"] if ranges else []
    honest = facts.get("cross_fitted")
    if honest:
        lines.append(
            f"  F1 are at thresholds fitted on these images ({facts['threshold_source']}); "
            f"on others\n            macro F1 {_number(honest['macro_F1'])}, "
            f"micro F1 {_number(honest['micro_F1'])} (cross-fitted)"
        )
    elif facts["fitted_on"] == "other images":
        lines.append(f"  F1 are at the checkpoint's thresholds ({facts['threshold_source']})")
    if band := facts.get("review"):
        lines.append(
            f"  review    {band['images']} images have a probability between {band['low']:g} and "
            f"{band['high']:g};\n            {band['wrong_inside']} of {band['wrong']} wrong "
            f"decisions are among those {band['pairs']}"
        )
    return lines


def _number(value: float | None) -> str:
    return "    --" if value is None else f"{value:.4f}"


# ---- scores -----------------------------------------------------------------------------


def write_scores(folder: Path, scores: ScoreTable) -> None:
    """scores.npz: logits, targets, names and labels as they are, for `compare`.

    Texts are UTF-8 in one array, surrogates as they are, and their N + 1 offsets in another: no
    pickle, and no name takes the room of the longest.
    """
    names, names_at = _packed(scores.names)
    labels, labels_at = _packed(scores.labels.names)
    with rundir.writing_bytes(folder / rundir.SCORES) as file:
        np.savez(
            file,
            logits=scores.logits,
            targets=scores.targets,
            names=names,
            names_at=names_at,
            labels=labels,
            labels_at=labels_at,
        )


def read_scores(folder: Path) -> ScoreTable:
    """What `write_scores` wrote.

    Raises:
        CheckpointError: there is no such file, or it is damaged or foreign.
    """
    path = folder / rundir.SCORES
    try:
        with zipfile.ZipFile(path) as archive:
            told = sum(member.file_size for member in archive.infolist())
            _refuse(told > path.stat().st_size, f"{told:,} bytes told of in a smaller file")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as file:
            names, labels = _texts(file, "names"), _texts(file, "labels")
            shape = (len(names), len(labels))
            logits = _array(file, "logits", np.float32, shape)
            targets = _array(file, "targets", np.int8, shape)
            _refuse(len(set(labels)) < len(labels), "a label stands twice")
            _refuse(not np.isfinite(logits).all(), "logits are not finite")
            _refuse(not np.isin(targets, (POSITIVE, NEGATIVE, UNKNOWN)).all(), "odd targets")
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise whatever their parsers raise
        raise CheckpointError(f"{path} is damaged, or not from mlfinetune: {error}") from error
    return ScoreTable(names, logits, targets, LabelSpace(labels))


def read_metrics(folder: Path, labels: LabelSpace) -> tuple[dict[str, Any], tuple[float, ...]]:
    """The content of metrics.json, and each label's threshold in it.

    Raises:
        CheckpointError: it cannot be read, or does not tell these labels' thresholds.
    """
    path = folder / rundir.METRICS
    try:
        content = json.loads(path.read_bytes())
        rows = content["per_label"]
        thresholds = tuple(float(rows[name]["threshold"]) for name in labels.names)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not tell the thresholds of the labels in {rundir.SCORES} beside it; "
            f"write both anew with `mlfinetune eval`"
        ) from error
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise CheckpointError(f"{path}: a threshold is no probability")
    return content, thresholds


def _array(file: Any, name: str, dtype: type, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A member of this type and shape, where None is any length."""
    array: NDArray[Any] = file[name]
    _refuse(not isinstance(array, np.ndarray), f"{name} is no array")  # numpy gives it as it is
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    _refuse(array.dtype != dtype or not fits, f"{name} is {array.dtype} {array.shape}")
    return array


def _packed(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, and where each begins and the last ends."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    at = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), at


def _texts(file: Any, name: str) -> tuple[str, ...]:
    """Texts from their bytes and offsets."""
    content = _array(file, name, np.uint8, (None,)).tobytes()
    at = _array(file, f"{name}_at", np.int64, (None,)).tolist()
    pairs = list(itertools.pairwise(at))
    _refuse(at[:1] != [0] or at[-1] != len(content), f"odd offsets of {name}")
    _refuse(any(start > end for start, end in pairs), f"odd offsets of {name}")
    return tuple(content[start:end].decode("utf-8", "surrogatepass") for start, end in pairs)


def _refuse(wrong: bool, reason: str) -> None:
    if wrong:
        raise ValueError(reason)
