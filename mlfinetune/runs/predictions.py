"""Predictions as rows of CSV, JSONL or text; and the rows of an unfinished file, read back.

Prediction -> one row, written at once
a file     -> its complete rows, each with its picture's name, to resume after them
"""

import csv
import io
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
    """Selects the labels of a row: those at or above their thresholds, or the K most probable.

    Attributes:
        labels: names of the L columns.
        decision: thresholds and calibration.
        reviews: whether the decision has a review band.
        calibrated: whether the probabilities are calibrated.
    """

    def __init__(self, labels: LabelSpace, decision: DecisionRule, top: int | None = None) -> None:
        """Select by the thresholds of `decision`; with `top`, that many most probable labels."""
        self.labels, self.decision, self._top = labels, decision, top
        self._limits = decision.limits
        self.reviews, self.calibrated = decision.review is not None, decision.calibration != "none"

    def __call__(self, prediction: Prediction) -> list[int]:
        """Return the selected columns, rising; with `top` by falling probability."""
        p = prediction.probabilities
        assert p is not None
        if self._top is not None:
            return [int(column) for column in np.argsort(-p, kind="stable")[: self._top]]
        return [int(column) for column in np.flatnonzero(p >= self._limits)]

    def select_review(self, prediction: Prediction) -> list[int]:
        """Return the columns whose probability lies in the review band, for people to look at."""
        p, band = prediction.probabilities, self.decision.review
        assert p is not None
        assert band is not None
        low, high = band
        return [int(column) for column in np.flatnonzero((p >= low) & (p <= high))]


class CsvWriter:
    """Writes CSV rows: image,labels,<label 1>,...,error; probabilities have 6 digits.

    Before `error` there is `calibration` if probabilities are calibrated, and `review` if the
    checkpoint has a review band. Cells are written so that a spreadsheet runs none as a formula.
    """

    def __init__(
        self, file: TextIO, selector: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        """Write the header, unless `begun`: the file has one already."""
        self._writer, self._selector, self._wide = csv.writer(file), selector, not only_labels
        header = build_csv_header(selector, only_labels)
        self._blank = [""] * (len(header) - 3)
        if not begun:
            self._writer.writerow(header)

    def write(self, prediction: Prediction) -> None:
        """Write one row."""
        name, p = neutralize(prediction.name), prediction.probabilities
        if p is None:
            self._writer.writerow([name, "", *self._blank, neutralize(prediction.error or "")])
            return
        cells = [self._join_labels(self._selector(prediction))]
        if self._wide:
            cells += [f"{x:.6f}" for x in p]
        if self._wide and self._selector.calibrated:
            cells.append(self._selector.decision.calibration)
        if self._selector.reviews:
            cells.append(self._join_labels(self._selector.select_review(prediction)))
        self._writer.writerow([name, *cells, ""])

    def _join_labels(self, columns: Sequence[int]) -> str:
        names = self._selector.labels.names
        return neutralize("|".join(names[column] for column in columns))


def build_csv_header(selector: LabelSelector, only_labels: bool) -> list[str]:
    """Return the cells of the first row."""
    header = ["image", "labels"]
    if not only_labels:
        header += [neutralize(name) for name in selector.labels.names]
    if not only_labels and selector.calibrated:
        header.append("calibration")
    if selector.reviews:
        header.append("review")
    return [*header, "error"]


class JsonlWriter:
    """Writes JSON lines: {"image", "labels", "scores": {label: p}}, or {"image", "error"}.

    Texts are exact. A line has `calibration` and `review` under the same conditions as a CSV row.
    """

    def __init__(
        self, file: TextIO, selector: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        self._file, self._selector, self._wide = file, selector, not only_labels

    def write(self, prediction: Prediction) -> None:
        """Write one line."""
        row: dict[str, Any] = {"image": prediction.name}
        p, names = prediction.probabilities, self._selector.labels.names
        if p is None:
            row["error"] = prediction.error
        else:
            row["labels"] = [names[column] for column in self._selector(prediction)]
            if self._wide:
                row["scores"] = {name: round(float(x), 6) for name, x in zip(names, p, strict=True)}
            if self._wide and self._selector.calibrated:
                row["calibration"] = self._selector.decision.calibration
            if self._selector.reviews:
                review = self._selector.select_review(prediction)
                row["review"] = [names[column] for column in review]
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


class TextWriter:
    """Writes lines for the screen: the name, then the labels with their probabilities."""

    def __init__(
        self, file: TextIO, selector: LabelSelector, only_labels: bool, begun: bool = False
    ) -> None:
        self._file, self._selector, self._wide = file, selector, not only_labels

    def write(self, prediction: Prediction) -> None:
        """Write one line."""
        p, names = prediction.probabilities, self._selector.labels.names
        if p is None:
            text = f"error: {prediction.error}"
        else:
            chosen = sorted(self._selector(prediction), key=lambda column: -p[column])
            shown = [f"{names[c]} {p[c]:.2f}" if self._wide else names[c] for c in chosen]
            best = int(np.argmax(p))
            text = ", ".join(shown) or f"(none; nearest: {names[best]} {p[best]:.2f})"
            if self._selector.reviews and (unsure := self._selector.select_review(prediction)):
                text += f"; needs review: {', '.join(f'{names[c]} {p[c]:.2f}' for c in unsure)}"
        self._file.write(f"{make_printable(prediction.name)}: {make_printable(text)}\n")


RowWriter = CsvWriter | JsonlWriter | TextWriter

FORMATS: dict[str, type[CsvWriter] | type[JsonlWriter] | type[TextWriter]] = {
    "csv": CsvWriter,
    "jsonl": JsonlWriter,
    "text": TextWriter,
}


# ---- resuming ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A complete row of an unfinished file.

    Attributes:
        number: 1 for the first picture; 0 is the header of a CSV.
        name: of the picture, as the file has it.
        failed: whether the picture could not be read.
        end: bytes of the file up to the end of this row.
    """

    number: int
    name: str
    failed: bool
    end: int


def is_prediction_file(path: Path, format: str) -> bool:
    """Return whether a file begins as CsvWriter or JsonlWriter would begin it, or is empty.

    Another file, such as a table of labels, is not to be overwritten.
    """
    with path.open("rb") as file:
        line = file.readline(2**20).decode("utf-8", "replace").strip()
    if not line:
        return True
    if format == "jsonl":
        try:
            row = json.loads(line)
        except ValueError:
            return line.startswith('{"image": ')  # a killed writer left half a line
        return isinstance(row, dict) and "image" in row and bool({"labels", "error"} & row.keys())
    cells = next(csv.reader([line]))
    return cells[:2] == ["image", "labels"] and cells[-1] == "error"


def read_complete_rows(
    path: Path, format: str, selector: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    """Yield the rows of an unfinished file, up to the first incomplete one.

    Args:
        path: a file that CsvWriter or JsonlWriter wrote, or the start of one.
        format: csv or jsonl.
        selector, only_labels: of the command that resumes.

    Raises:
        DataError: the file has other labels or columns, or holds no predictions at all.
    """
    read = _read_jsonl_rows if format == "jsonl" else _read_csv_rows
    with path.open("rb") as file:
        rows = read(path, file, selector, only_labels)
        first = next(rows, None)
        if first is not None:
            yield first
            yield from rows
            return
        file.seek(0)
        start = _build_start(format, selector, only_labels)
        begun = file.read(len(start))
    if not start.startswith(begun):
        raise DataError(
            f"{path} holds no predictions; --resume would empty it: name another file with --output"
        )


def _build_start(format: str, selector: LabelSelector, only_labels: bool) -> bytes:
    """Return the bytes that a writer begins with, of which a killed one leaves a part."""
    if format == "jsonl":
        return b'{"image": '
    text = io.StringIO()
    csv.writer(text).writerow(build_csv_header(selector, only_labels))
    return text.getvalue().encode("utf-8", "backslashreplace")


def format_row_name(name: str, format: str) -> str:
    """Return the name of a picture as a file of this format has it."""
    if format == "jsonl":
        return name
    return neutralize(name).encode("utf-8", "backslashreplace").decode()


def _read_csv_rows(
    path: Path, file: BinaryIO, selector: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    end = 0

    def whole_lines() -> Iterator[str]:
        nonlocal end
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line.decode("utf-8", "replace")

    header = [format_row_name(cell, "csv") for cell in build_csv_header(selector, only_labels)]
    reader = csv.reader(whole_lines(), strict=True)
    try:
        for number, cells in enumerate(reader):
            if number == 0 and cells != header:
                raise _build_mismatch_error(path)
            if len(cells) != len(header):
                return
            yield Row(number, cells[0] if number else "", bool(number and cells[-1]), end)
    except csv.Error:  # the file ends within quotes
        return


def _read_jsonl_rows(
    path: Path, file: BinaryIO, selector: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    end, labels = 0, list(selector.labels.names)
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
            raise _build_mismatch_error(path)
        yield Row(number, name, failed, end)


def _build_mismatch_error(path: Path) -> DataError:
    return DataError(
        f"{path} was written with other labels or options: resume with the same ones, "
        f"or write a new file without --resume"
    )
