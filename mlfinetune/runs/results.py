"""Result files of a run directory, for people and for other programs.

Evaluation   -> metrics.json, per_label.csv, predictions.csv
ScoreTable   -> scores.npz -> the same ScoreTable
metrics.json -> Facts, thresholds
"""

import csv
import itertools
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.table import Skipped
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace
from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.types import (
    CalibrationError,
    CalibrationFacts,
    CalibrationHow,
    CrossFittedRates,
    Evaluation,
    Facts,
    FittedOn,
    Interval,
    Intervals,
    LabelIntervals,
    Prediction,
    ReliabilityBin,
    ReviewBand,
    ScoreTable,
    Selection,
    ThresholdHow,
    WantedPrecision,
)
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import FOREIGN, require_all_members
from mlfinetune.runs.predictions import CsvWriter, LabelSelector
from mlfinetune.storage.atomic import write_atomic, writing_binary, writing_text
from mlfinetune.text import neutralize, to_finite

# ---- writing ----------------------------------------------------------------------------


def write_results(
    folder: Path,
    evaluation: Evaluation,
    probabilities: NDArray[np.float64],
    about: dict[str, Any],
    seen: NDArray[np.bool_] | None = None,
) -> None:
    """Write scores.npz, predictions.csv, per_label.csv and, last, metrics.json.

    A folder with metrics.json is complete.

    Args:
        folder: exists.
        evaluation: the numbers.
        probabilities: (N, L) sigmoid of the evaluation's logits.
        about: further keys of metrics.json: the data, checkpoint and epoch that were evaluated.
        seen: (N,) whether the model was trained on a picture; None: not known.

    Raises:
        CheckpointError: a file cannot be written (a full disk, no permission).
    """
    scores = evaluation.scores
    write_scores(folder, scores, seen)
    selector = LabelSelector(scores.labels, evaluation.decision)
    with writing_text(folder / directory.PREDICTIONS) as file:
        writer = CsvWriter(file, selector, only_labels=False)
        for name, row in zip(scores.names, probabilities, strict=True):
            writer.write(Prediction(name, row))
    _write_per_label(folder, evaluation)
    content = {**evaluation.table.to_dict(), **evaluation.facts.to_dict(), **about}
    content["seen_in_training"] = None if seen is None else int(seen.sum())
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_atomic(folder / directory.METRICS, text.encode(errors="backslashreplace") + b"\n")


def _write_per_label(folder: Path, evaluation: Evaluation) -> None:
    """Write per_label.csv: a row a label, in label order; undefined cells are empty."""
    rates = ("AP", "F1", "precision", "recall", "AUROC")
    sure = ("AP", "F1", "AUROC")
    ends = [f"{name}_{end}" for name in sure for end in ("low", "high")]
    with writing_text(folder / directory.PER_LABEL) as file:
        writer = csv.writer(file)
        writer.writerow(["label", *rates, "threshold", "positives", "negatives", *ends])
        rows = zip(evaluation.table.per_label, evaluation.facts.intervals.per_label, strict=True)
        for row, intervals in rows:
            numbers = [getattr(row, name) for name in rates]
            bounds = [end for name in sure for end in getattr(intervals, name) or (None, None)]
            counts = (row.positives, row.negatives)
            cells = [*_format_cells(numbers), row.threshold, *counts, *_format_cells(bounds)]
            writer.writerow([neutralize(row.label), *cells])


def _format_cells(numbers: Sequence[float | None]) -> list[str]:
    return ["" if number is None else f"{number:.6f}" for number in numbers]


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """Write skipped.csv: every image that was left out, its place in the data, and the reason."""
    with writing_text(folder / directory.SKIPPED) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "place", "reason"])
        writer.writerows(
            [neutralize(text) for text in (image.name, image.place, image.reason)]
            for image in skipped
        )


# ---- metrics.json, read back ------------------------------------------------------------


def read_metrics(folder: Path, labels: LabelSpace) -> tuple[dict[str, Any], tuple[float, ...]]:
    """Read metrics.json: its content, and the (L,) thresholds in it.

    Raises:
        CheckpointError: it cannot be read, or has no threshold for one of `labels`.
    """
    path = folder / directory.METRICS
    try:
        content = json.loads(path.read_bytes())
        rows = content["per_label"]
        thresholds = tuple(float(rows[name]["threshold"]) for name in labels.names)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except FOREIGN as error:
        raise CheckpointError(
            f"{path} does not tell the thresholds of the labels in {directory.SCORES} beside it; "
            f"write both again with `mlfinetune eval`"
        ) from error
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise CheckpointError(f"{path}: a threshold is no probability")
    return content, thresholds


def parse_facts(content: Mapping[str, Any]) -> Facts:
    """Read Facts.to_dict back from the content of metrics.json; other keys are ignored.

    Raises:
        ValueError: a value that to_dict does not write.
        KeyError, TypeError, AttributeError, OverflowError: likewise, from Python itself.
    """
    rates, band = content.get("cross_fitted"), content.get("review")
    precision, selection = content.get("wanted_precision"), content.get("selection")
    return Facts(
        cast(ThresholdHow, _choose(content["threshold_source"], ThresholdHow)),
        cast(FittedOn, _choose(content["fitted_on"], FittedOn)),
        _parse_intervals(content["intervals"]),
        None if rates is None else _parse_rates(rates),
        _parse_calibration(content["calibration"]),
        None if band is None else _parse_review(band),
        None if precision is None else _parse_precision(precision),
        None if selection is None else _parse_selection(selection),
    )


def _parse_intervals(content: Mapping[str, Any]) -> Intervals:
    others = ("resamples", "groups", "per_label")
    averages = {name: _parse_pair(pair) for name, pair in content.items() if name not in others}
    per_label = tuple(
        # Older versions had no intervals of AUROC.
        LabelIntervals(label, *map(_parse_pair, (row["AP"], row.get("AUROC"), row["F1"])))
        for label, row in content["per_label"].items()
    )
    groups = content.get("groups")
    resamples = _parse_count(content["resamples"])
    return Intervals(
        averages, per_label, resamples, None if groups is None else _parse_count(groups)
    )


def _parse_pair(pair: Any) -> Interval | None:
    if pair is None:
        return None
    low, high = map(to_finite, pair)
    return low, high


def _parse_rates(content: Mapping[str, Any]) -> CrossFittedRates:
    names = CrossFittedRates.__dataclass_fields__
    return CrossFittedRates(**{name: _parse_number(content[name]) for name in names})


def _parse_calibration(content: Mapping[str, Any]) -> CalibrationFacts:
    how = cast(CalibrationHow, _choose(content["how"], CalibrationHow))
    calibrated = content.get("calibrated")
    return CalibrationFacts(
        how, _parse_error(content), None if calibrated is None else _parse_error(calibrated)
    )


def _parse_error(content: Mapping[str, Any]) -> CalibrationError:
    bins = tuple(
        ReliabilityBin(to_finite(probability), to_finite(observed), _parse_count(count))
        for probability, observed, count in content["reliability"]
    )
    by_chance = _parse_number(content.get("ECE_by_chance"))
    return CalibrationError(
        _parse_number(content["ECE"]), _parse_number(content["Brier"]), bins, by_chance
    )


def _parse_review(content: Mapping[str, Any]) -> ReviewBand:
    counts = (_parse_count(content[name]) for name in ("images", "pairs", "wrong", "wrong_inside"))
    return ReviewBand(to_finite(content["low"]), to_finite(content["high"]), *counts)


def _parse_precision(content: Mapping[str, Any]) -> WantedPrecision:
    never = tuple(str(label) for label in content["never_given"])
    needed = _parse_count(content["positives_needed"])
    return WantedPrecision(to_finite(content["wanted"]), needed, never)


def read_training_digest(folder: Path) -> str | None:
    """Read the digest of the training data from a run's metrics.json; None: not known."""
    try:
        digest = json.loads((folder / directory.METRICS).read_bytes())["training_data"]
    except (OSError, *FOREIGN):
        return None
    return digest if isinstance(digest, str) else None


def read_selection(folder: Path) -> Selection | None:
    """Read from a run's metrics.json how its best was chosen; None where that is not known."""
    try:
        content = json.loads((folder / directory.METRICS).read_bytes())["selection"]
        return _parse_selection(content)
    except (OSError, *FOREIGN):
        return None


def _parse_selection(content: Mapping[str, Any]) -> Selection:
    return Selection(_parse_count(content["candidates"]), _parse_number(content["optimism"]))


def _parse_number(value: object) -> float | None:
    return None if value is None else to_finite(value)


def _parse_count(value: object) -> int:
    return int(to_finite(value))


def _choose(value: object, choices: Any) -> object:
    """Return `value`, one of a Literal's; raises ValueError for any other."""
    if value not in get_args(choices):
        raise ValueError(f"{shorten(value)} is none of {get_args(choices)}")
    return value


# ---- scores -----------------------------------------------------------------------------


def write_scores(folder: Path, scores: ScoreTable, seen: NDArray[np.bool_] | None = None) -> None:
    """Write scores.npz: logits, their calibration, targets, names, labels, groups, for `compare`.

    Texts are UTF-8 in one array (lone surrogates are kept), and their N + 1 offsets in another. So
    the file has no pickle, and a short name takes no more room than it needs. Logits are the
    calibrated ones wherever `calibration` is not `none`. `seen` says which pictures the model was
    trained on.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
    """
    names, names_at = _join_texts(scores.names)
    labels, labels_at = _join_texts(scores.labels.names)
    arrays: dict[str, NDArray[Any]] = {
        "logits": scores.logits,
        "targets": scores.targets,
        "names": names,
        "names_at": names_at,
        "labels": labels,
        "labels_at": labels_at,
    }
    if scores.calibration is not None:
        arrays["calibration"] = np.frombuffer(scores.calibration.encode(), np.uint8)
    if scores.groups is not None:
        arrays["groups"] = scores.groups
    if seen is not None:
        arrays["seen"] = seen.astype(np.uint8)
    with writing_binary(folder / directory.SCORES) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_scores(folder: Path) -> ScoreTable:
    """Read scores.npz, as `write_scores` wrote it.

    A file of an older version has no member `calibration`: the table's calibration is then None.

    Raises:
        CheckpointError: there is no such file, it is damaged, or mlfinetune did not write it.
    """
    path = folder / directory.SCORES
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            _refuse(
                unpacked > path.stat().st_size,
                f"its arrays claim {unpacked:,} bytes, more than the file has",
            )
            require_all_members(archive)
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        with np.load(path, allow_pickle=False) as file:
            names, labels = _split_texts(file, "names"), _split_texts(file, "labels")
            shape = (len(names), len(labels))
            logits = _read_array(file, "logits", np.float32, shape)
            targets = _read_array(file, "targets", np.int8, shape)
            calibration, groups = _read_calibration(file), None
            if "groups" in file.files:
                groups = _read_array(file, "groups", np.int64, (len(names),))
            _refuse(len(set(labels)) < len(labels), "a label stands twice")
            _refuse(not np.isfinite(logits).all(), "logits are not finite")
            _refuse(not np.isin(targets, (POSITIVE, NEGATIVE, UNKNOWN)).all(), "odd targets")
    except FileNotFoundError as error:
        raise CheckpointError(f"no such file: {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise whatever their parsers raise
        raise CheckpointError(f"{path} is damaged, or not from mlfinetune: {error}") from error
    return ScoreTable(names, logits, targets, LabelSpace(labels), calibration, groups)


def read_seen(folder: Path, images: int) -> NDArray[np.bool_] | None:
    """Read which pictures of scores.npz the model was trained on; None: not known.

    `read_scores` has checked the file.

    Raises:
        CheckpointError: the member is damaged.
    """
    path = folder / directory.SCORES
    try:
        with np.load(path, allow_pickle=False) as file:
            if "seen" not in file.files:
                return None
            return _read_array(file, "seen", np.uint8, (images,)).astype(bool)
    except Exception as error:  # numpy and zipfile raise whatever their parsers raise
        raise CheckpointError(f"{path} is damaged, or not from mlfinetune: {error}") from error


def _read_calibration(file: Any) -> CalibrationHow | None:
    """Read how the logits were calibrated; None in a file of an older version."""
    if "calibration" not in file.files:
        return None
    name = _read_array(file, "calibration", np.uint8, (None,)).tobytes().decode("ascii")
    return cast(CalibrationHow, _choose(name, CalibrationHow))


def _read_array(file: Any, name: str, dtype: type, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Read a member of this type and shape, where None is any length."""
    array: NDArray[Any] = file[name]
    # NumPy returns a member without its header as bytes.
    _refuse(not isinstance(array, np.ndarray), f"{name} is no array")
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    _refuse(array.dtype != dtype or not fits, f"{name} is {array.dtype} {array.shape}")
    return array


def _join_texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join texts to bytes: (bytes, offsets), text i lies between offsets i and i + 1."""
    parts = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), offsets


def _split_texts(file: Any, name: str) -> tuple[str, ...]:
    """Split the bytes of member `name` at the offsets of member `name`_at."""
    content = _read_array(file, name, np.uint8, (None,)).tobytes()
    offsets = _read_array(file, f"{name}_at", np.int64, (None,)).tolist()
    pairs = list(itertools.pairwise(offsets))
    _refuse(offsets[:1] != [0] or offsets[-1] != len(content), f"odd offsets of {name}")
    _refuse(any(start > end for start, end in pairs), f"odd offsets of {name}")
    return tuple(content[start:end].decode("utf-8", "surrogatepass") for start, end in pairs)


def _refuse(wrong: bool, reason: str) -> None:
    if wrong:
        raise ValueError(reason)
