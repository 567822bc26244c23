"""Predictions as rows of CSV, JSONL or text, or as tasks of Label Studio.

Prediction -> one row, written at once; written_rows.py reads them back
"""

import csv
import json
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from mlfinetune.data.readers.label_studio_interface import Interface
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.types import DecisionRule, Prediction
from mlfinetune.runs.label_studio_tasks import build_failed_task, build_task
from mlfinetune.text import make_printable, neutralize

TASKS = "label-studio"
"""Format of a JSON array of tasks."""
TASKS_START = b'[\n{"data": {'
"""First bytes of such a file."""


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


class TaskWriter:
    """Writes a JSON array of Label Studio's tasks, one a line; `finish` closes it.

    A file that was not finished has no `]`: Label Studio takes no part of it for all of it.
    """

    def __init__(
        self,
        file: TextIO,
        selector: LabelSelector,
        only_labels: bool,
        begun: bool = False,
        model_version: str = "mlfinetune",
        interface: Interface | None = None,
    ) -> None:
        """Start an array, or go on after its last task where it is `begun`."""
        self._file, self._selector, self._with_scores = file, selector, not only_labels
        self._begun, self._model_version, self._interface = begun, model_version, interface

    def write(self, prediction: Prediction) -> None:
        """Write one task."""
        name, p, names = prediction.name, prediction.probabilities, self._selector.labels.names
        if p is None:
            task = build_failed_task(name, prediction.error or "", self._interface)
        else:
            columns = self._selector(prediction)
            about = (self._model_version, self._interface, self._with_scores)
            task = build_task(name, names, p, columns, *about)
            if self._selector.reviews:
                review = self._selector.select_review(prediction)
                task["meta"] = {"review": [names[column] for column in review]}
        self._file.write((",\n" if self._begun else "[\n") + json.dumps(task, ensure_ascii=False))
        self._begun = True

    def finish(self) -> None:
        """Close the array."""
        self._file.write("\n]\n")


RowWriter = CsvWriter | JsonlWriter | TextWriter | TaskWriter

FORMATS: dict[str, type[CsvWriter] | type[JsonlWriter] | type[TextWriter]] = {
    "csv": CsvWriter,
    "jsonl": JsonlWriter,
    "text": TextWriter,
}
