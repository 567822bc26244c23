"""Rows of predictions in an unfinished file, read back, to resume after them.

a file -> its complete rows, each with its picture's name, up to the first incomplete one
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlfinetune.errors import DataError
from mlfinetune.runs.predictions import TASKS, TASKS_START, LabelSelector, build_csv_header
from mlfinetune.text import neutralize


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
        second = file.readline(2**20)
    if not line:
        return True
    if format == TASKS:
        start = TASKS_START.splitlines()
        return line.encode() == start[0] and second[: len(start[1])] in (start[1], b"")
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
        path: a file that CsvWriter, JsonlWriter or TaskWriter wrote, or the start of one.
        format: csv, jsonl or label-studio.
        selector, only_labels: of the command that resumes.

    Raises:
        DataError: the file has other labels or columns, or holds no predictions at all.
    """
    read = {"jsonl": _read_jsonl_rows, TASKS: _read_task_rows}.get(format, _read_csv_rows)
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
    if format in (TASKS, "jsonl"):
        return TASKS_START if format == TASKS else b'{"image": '
    text = io.StringIO()
    csv.writer(text).writerow(build_csv_header(selector, only_labels))
    return text.getvalue().encode("utf-8", "backslashreplace")


def format_row_name(name: str, format: str) -> str:
    """Return the name of a picture as a file of this format has it."""
    if format in (TASKS, "jsonl"):
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


def _read_task_rows(
    path: Path, file: BinaryIO, selector: LabelSelector, only_labels: bool
) -> Iterator[Row]:
    """Yield the tasks of an array; a task that parses is whole, with or without its comma."""
    end = len(file.readline())
    for number, line in enumerate(file, 1):
        text = line.rstrip(b"\r\n").removesuffix(b",")
        try:
            task = json.loads(text)
            name = next(iter(task["data"].values()))
            scores = [result.get("meta", {}).get("scores") for result in _iter_results(task)]
            found = {label for labels in scores for label in labels or ()}
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
            return
        if any((labels is None) != only_labels for labels in scores) or not found <= set(
            selector.labels.names
        ):
            raise _build_mismatch_error(path)
        yield Row(number, name, not task["predictions"], end + len(text))
        end += len(line)


def _iter_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (result for prediction in task["predictions"] for result in prediction["result"])


def _build_mismatch_error(path: Path) -> DataError:
    return DataError(
        f"{path} was written with other labels or options: resume with the same ones, "
        f"or write a new file without --resume"
    )
