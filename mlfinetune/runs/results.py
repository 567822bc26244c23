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

from mlfinetune.data.table import Skipped
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace
from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.types import Evaluation, Prediction, ScoreTable
from mlfinetune.runs import directory
from mlfinetune.runs.predictions import CsvWriter, LabelSelector
from mlfinetune.storage.atomic import write_atomic, writing_binary, writing_text
from mlfinetune.text import neutralize

# ---- metrics ----------------------------------------------------------------------------


def write_results(
    folder: Path, verdict: Evaluation, probabilities: NDArray[np.float64], about: dict[str, Any]
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
    choice = LabelSelector(scores.labels, verdict.decision)
    with writing_text(folder / directory.PREDICTIONS) as file:
        csv_writer = CsvWriter(file, choice, only_labels=False)
        for name, row in zip(scores.names, probabilities, strict=True):
            csv_writer.write(Prediction(name, row))
    with writing_text(folder / directory.PER_LABEL) as file:
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
            writer.writerow([neutralize(r.label), *numbers, r.threshold, *counts, *shown_bounds])
    content = {**table.to_dict(), **verdict.facts, **about}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_atomic(folder / directory.METRICS, text.encode(errors="backslashreplace") + b"\n")


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """skipped.csv: every picture that was left out, and why."""
    with writing_text(folder / directory.SKIPPED) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "place", "reason"])
        writer.writerows(
            [neutralize(one.name), neutralize(one.place), neutralize(one.reason)] for one in skipped
        )


# ---- scores -----------------------------------------------------------------------------


def write_scores(folder: Path, scores: ScoreTable) -> None:
    """scores.npz: logits, targets, names and labels as they are, for `compare`.

    Texts are UTF-8 in one array, surrogates as they are, and their N + 1 offsets in another: no
    pickle, and no name takes the room of the longest.
    """
    names, names_at = _join_texts(scores.names)
    labels, labels_at = _join_texts(scores.labels.names)
    with writing_binary(folder / directory.SCORES) as file:
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
    path = folder / directory.SCORES
    try:
        with zipfile.ZipFile(path) as archive:
            told = sum(member.file_size for member in archive.infolist())
            _refuse(told > path.stat().st_size, f"{told:,} bytes told of in a smaller file")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as file:
            names, labels = _split_texts(file, "names"), _split_texts(file, "labels")
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
    path = folder / directory.METRICS
    try:
        content = json.loads(path.read_bytes())
        rows = content["per_label"]
        thresholds = tuple(float(rows[name]["threshold"]) for name in labels.names)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not tell the thresholds of the labels in {directory.SCORES} beside it; "
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


def _join_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, and where each begins and the last ends."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    at = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), at


def _split_texts(file: Any, name: str) -> tuple[str, ...]:
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
