"""Results for people and for other programs: CSV, JSONL, text of 80 columns.

MetricTable -> summary text, metrics.json, per_label.csv
Prediction  -> one row of CSV, JSONL or text, written as it comes
"""

import csv
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mlfinetune import rundir
from mlfinetune.records import LabelSpace, MetricTable, Prediction
from mlfinetune.survey import Skipped

WIDTH = 80
SHOWN_LABELS = 40
_FORMULA_STARTS = tuple("=+-@\t\r\n\0＝＋－＠")


# ---- metrics ----------------------------------------------------------------------------


def summary(table: MetricTable) -> str:
    """The numbers as a table of at most 80 columns, labels by falling AP."""
    a = table.averages
    lines = [
        f"{table.images} images, mAP over {table.labels_scored} of {len(table.per_label)} labels",
        "",
        f"  mAP       {_number(a['mAP'])}     macro F1  {_number(a['macro_F1'])}"
        f"     CF1  {_number(a['CF1'])}",
        f"  micro AP  {_number(a['micro_AP'])}     micro F1  {_number(a['micro_F1'])}"
        f"     OF1  {_number(a['OF1'])}",
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
    folder: Path,
    table: MetricTable,
    names: Sequence[str],
    scores: NDArray[np.float64],
    about: dict[str, Any],
) -> None:
    """predictions.csv, per_label.csv, and last metrics.json, which marks the folder complete.

    Args:
        folder: exists.
        table: the numbers.
        names, scores: N images with their (N, L) probabilities.
        about: what was measured, and how; goes into metrics.json.
    """
    labels = LabelSpace(tuple(row.label for row in table.per_label))
    choice = Choice(labels, table.per_label[0].threshold, None)
    with rundir.writing(folder / rundir.PREDICTIONS) as file:
        csv_writer = CsvWriter(file, choice, only_labels=False)
        for name, row in zip(names, scores, strict=True):
            csv_writer.write(Prediction(name, row))
    with rundir.writing(folder / rundir.PER_LABEL) as file:
        writer = csv.writer(file)
        rates = ("AP", "F1", "precision", "recall", "AUROC")
        writer.writerow(["label", *rates, "threshold", "positives", "negatives"])
        for r in table.per_label:
            numbers = [getattr(r, name) for name in rates]
            shown = ["" if x is None else f"{x:.6f}" for x in numbers]
            writer.writerow([inert(r.label), *shown, r.threshold, r.positives, r.negatives])
    protocol = {"threshold_source": "fixed"}
    content = json.dumps({**table.to_dict(), **protocol, **about}, indent=2, ensure_ascii=False)
    rundir.write_atomic(folder / rundir.METRICS, content.encode(errors="backslashreplace") + b"\n")


def write_skipped(folder: Path, skipped: Sequence[Skipped]) -> None:
    """skipped.csv: every picture that was left out, and why."""
    with rundir.writing(folder / rundir.SKIPPED) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "place", "reason"])
        writer.writerows([inert(one.name), inert(one.place), inert(one.reason)] for one in skipped)


def _number(value: float | None) -> str:
    return "    --" if value is None else f"{value:.4f}"


# ---- predictions ------------------------------------------------------------------------


class Choice:
    """Which labels a row names: those over the threshold, or the K most probable."""

    def __init__(self, labels: LabelSpace, threshold: float, top: int | None) -> None:
        self.labels, self._threshold, self._top = labels, threshold, top

    def __call__(self, prediction: Prediction) -> list[int]:
        """Columns; by falling probability where the K best were asked for."""
        p = prediction.probabilities
        assert p is not None
        if self._top is not None:
            return [int(at) for at in np.argsort(-p, kind="stable")[: self._top]]
        return [int(at) for at in np.flatnonzero(p >= self._threshold)]


class CsvWriter:
    """image,labels,<label 1>,...,error: probabilities with 6 digits, inert in spreadsheets."""

    def __init__(self, file: TextIO, choice: Choice, only_labels: bool) -> None:
        self._writer, self._choice, self._wide = (
            csv.writer(file),
            choice,
            not only_labels,
        )
        columns = [inert(name) for name in choice.labels.names] if self._wide else []
        self._blank = [""] * len(columns)
        self._writer.writerow(["image", "labels", *columns, "error"])

    def write(self, prediction: Prediction) -> None:
        """One row."""
        name, p = inert(prediction.name), prediction.probabilities
        if p is None:
            self._writer.writerow([name, "", *self._blank, inert(prediction.error or "")])
            return
        labels = "|".join(self._choice.labels.names[at] for at in self._choice(prediction))
        numbers = [f"{x:.6f}" for x in p] if self._wide else []
        self._writer.writerow([name, inert(labels), *numbers, ""])


class JsonlWriter:
    """{"image", "labels", "scores": {label: p}}, or {"image", "error"}; text is exact."""

    def __init__(self, file: TextIO, choice: Choice, only_labels: bool) -> None:
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
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")


class TextWriter:
    """For the screen: the name, then the labels with their probabilities."""

    def __init__(self, file: TextIO, choice: Choice, only_labels: bool) -> None:
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
        self._file.write(f"{printable(prediction.name)}: {printable(text)}\n")


FORMATS: dict[str, type[CsvWriter] | type[JsonlWriter] | type[TextWriter]] = {
    "csv": CsvWriter,
    "jsonl": JsonlWriter,
    "text": TextWriter,
}


# ---- text -------------------------------------------------------------------------------


def inert(cell: str) -> str:
    """The cell, with an apostrophe before what a spreadsheet would run as a formula."""
    return "'" + cell if cell.startswith(_FORMULA_STARTS) else cell


def printable(text: str) -> str:
    """The text without characters that would move the cursor or colour the screen."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def fitted(text: str, width: int) -> str:
    """The text cut or filled to `width` columns of a terminal, where some characters take two."""
    if _columns(text) > width:
        while _columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
