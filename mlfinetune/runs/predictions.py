"""Predictions as rows of CSV, JSONL or text, written as they come; and read back, to go on.

Prediction -> one row
a file     -> its complete rows, each with the picture it is of
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.metrics.types import DecisionRule, Prediction
from mlfinetune.text import make_printable, neutralize


class LabelSelector:
    """Which labels a row names: those over their thresholds, or the K most probable."""

    def __init__(self, labels: LabelSpace, decision: DecisionRule, top: int | None = None) -> None:
        """The `decision` on L labels; a threshold of 1: never."""
        self.labels, self.decision, self._top = labels, decision, top
        self._thresholds = np.array(decision.thresholds)
        self._thresholds[self._thresholds >= 1] = np.inf
        self.reviews, self.calibrated = decision.review is not None, decision.calibration != "none"

    def __call__(self, prediction: Prediction) -> list[int]:
        """Columns; by falling probability where the K best were asked for."""
        p = prediction.probabilities
        assert p is not None
        if self._top is not None:
            return [int(at) for at in np.argsort(-p, kind="stable")[: self._top]]
        return [int(at) for at in np.flatnonzero(p >= self._thresholds)]

    def for_review(self, prediction: Prediction) -> list[int]:
        """Columns whose probability is for people to look at."""
        p, between = prediction.probabilities, self.decision.review
        assert p is not None
        assert between is not None
        return [int(at) for at in np.flatnonzero((p >= between[0]) & (p <= between[1]))]


class CsvWriter:
    """image,labels,<label 1>,...,error: probabilities with 6 digits, inert in spreadsheets.

    Before `error` stand `calibration`, where probabilities are calibrated, and `review`, where the
    checkpoint says which are for people to look at.
    """

    def __init__(
        self, file: TextIO, choice: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        """A `begun` file has its header."""
        self._writer, self._choice, self._wide = csv.writer(file), choice, not only_labels
        self._says_how = self._wide and choice.calibrated
        header = build_csv_header(choice, only_labels)
        self._blank = [""] * (len(header) - 3)
        if not begun:
            self._writer.writerow(header)

    def write(self, prediction: Prediction) -> None:
        """One row."""
        name, p = neutralize(prediction.name), prediction.probabilities
        if p is None:
            self._writer.writerow([name, "", *self._blank, neutralize(prediction.error or "")])
            return
        cells = [self._joined(self._choice(prediction))]
        cells += [f"{x:.6f}" for x in p] if self._wide else []
        cells += [self._choice.decision.calibration] * self._says_how
        if self._choice.reviews:
            cells.append(self._joined(self._choice.for_review(prediction)))
        self._writer.writerow([name, *cells, ""])

    def _joined(self, columns: Sequence[int]) -> str:
        return neutralize("|".join(self._choice.labels.names[at] for at in columns))


def build_csv_header(choice: LabelSelector, only_labels: bool) -> list[str]:
    """The first row."""
    columns = [] if only_labels else [neutralize(name) for name in choice.labels.names]
    columns += ["calibration"] * (choice.calibrated and not only_labels)
    return ["image", "labels", *columns, *["review"] * choice.reviews, "error"]


class JsonlWriter:
    """{"image", "labels", "scores": {label: p}}, or {"image", "error"}; text is exact.

    With `calibration` and `review` where CsvWriter has them.
    """

    def __init__(
        self, file: TextIO, choice: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        self._file, self._choice, self._wide = file, choice, not only_labels

    def write(self, prediction: Prediction) -> None:
        """One line."""
        row: dict[str, Any] = {"image": prediction.name}
        p, names = prediction.probabilities, self._choice.labels.names
        if p is None:
            row["error"] = prediction.error
        else:
            row["labels"] = [names[at] for at in self._choice(prediction)]
            if self._wide:
                row["scores"] = {name: round(float(x), 6) for name, x in zip(names, p, strict=True)}
            if self._wide and self._choice.calibrated:
                row["calibration"] = self._choice.decision.calibration
            if self._choice.reviews:
                row["review"] = [names[at] for at in self._choice.for_review(prediction)]
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


class TextWriter:
    """For the screen: the name, then the labels with their probabilities."""

    def __init__(
        self, file: TextIO, choice: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        self._file, self._choice, self._wide = file, choice, not only_labels

    def write(self, prediction: Prediction) -> None:
        """One line."""
        p, names = prediction.probabilities, self._choice.labels.names
        if p is None:
            text = f"error: {prediction.error}"
        else:
            chosen = sorted(self._choice(prediction), key=lambda at: -p[at])
            shown = [f"{names[at]} {p[at]:.2f}" if self._wide else names[at] for at in chosen]
            best = int(np.argmax(p))
            text = ", ".join(shown) or f"(none; nearest: {names[best]} {p[best]:.2f})"
            if self._choice.reviews and (unsure := self._choice.for_review(prediction)):
                text += f"; needs review: {', '.join(f'{names[at]} {p[at]:.2f}' for at in unsure)}"
        self._file.write(f"{make_printable(prediction.name)}: {make_printable(text)}\n")


FORMATS: dict[str, type[CsvWriter] | type[JsonlWriter] | type[TextWriter]] = {
    "csv": CsvWriter,
    "jsonl": JsonlWriter,
    "text": TextWriter,
}


# ---- going on ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A complete row of a file that was written before.

    Attributes:
        number: from 1.
        name: of the picture, as the file has it.
        failed: it could not be read.
        end: bytes of the file up to here.
    """

    number: int
    name: str
    failed: bool
    end: int


def read_complete_rows(
    path: Path, format: str, choice: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    """The rows of a file that was not finished, up to the first that is not complete.

    Args:
        path: what CsvWriter or JsonlWriter wrote, or a part of it.
        format: csv or jsonl.
        choice, only_labels: of the command that would go on.

    Raises:
        DataError: it is not of these labels and columns.
    """
    with path.open("rb") as file:
        if format == "jsonl":
            yield from _jsonl_rows(path, file, choice, only_labels)
        else:
            yield from _csv_rows(path, file, choice, only_labels)


def format_row_name(name: str, format: str) -> str:
    """The name of a picture as a file of this format has it."""
    if format == "jsonl":
        return name
    return neutralize(name).encode("utf-8", "backslashreplace").decode()


def _csv_rows(
    path: Path, file: BinaryIO, choice: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    end = 0

    def whole_lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line.decode("utf-8", "replace")

    header = [format_row_name(cell, "csv") for cell in build_csv_header(choice, only_labels)]
    reader = csv.reader(whole_lines(), strict=True)
    try:
        for number, cells in enumerate(reader):
            if number == 0 and cells != header:
                raise _other(path)
            if len(cells) != len(header):
                return
            yield Row(number, cells[0] if number else "", bool(number and cells[-1]), end)
    except csv.Error:  # the file ends within quotes
        return


def _jsonl_rows(
    path: Path, file: BinaryIO, choice: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    end, labels = 0, list(choice.labels.names)
    for number, line in enumerate(file, 1):
        end += len(line)
        try:
            row = json.loads(line)
            name, failed = row["image"], "error" in row
            other = not failed and list(row.get("scores", ())) != ([] if only_labels else labels)
        except (ValueError, TypeError, KeyError):
            return
        if not line.endswith(b"\n"):
            return
        if other:
            raise _other(path)
        yield Row(number, name, failed, end)


def _other(path: Path) -> DataError:
    return DataError(
        f"{path} was written with other labels or options: go on with those, or begin anew "
        f"without --resume"
    )
