"""Pictures to label next, as files: a table, and tasks of Label Studio.

    ChosenPicture -> write_table -> image,labels,probabilities,rank,score,reason
                  -> write_tasks -> tasks with predictions, the reason among their data

Once the labels are corrected, the table is one that trains.
"""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.readers.label_studio_interface import Interface
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.location import is_url, to_slashes
from mlfinetune.runs.label_studio_tasks import build_task
from mlfinetune.text import neutralize

HEADER = ("image", "labels", "probabilities", "rank", "score", "reason")
TABLE, PAGE, TASKS = ".csv", ".html", ".json"
"""Endings of the files; the last two lie beside the table."""


@dataclass(frozen=True)
class ChosenPicture:
    """A picture to label next.

    Attributes:
        image: its path or URL, as it was given.
        rank: from 1; the most useful one is first.
        score: as `Pick.score`.
        reason: in words.
        probabilities: (L,) of the labels.
        proposed: columns of the labels over their thresholds, the most probable first.
    """

    image: str
    rank: int
    score: float
    reason: str
    probabilities: NDArray[np.floating]
    proposed: tuple[int, ...]


def describe_reason(
    columns: Sequence[int],
    labels: LabelSpace,
    probabilities: NDArray[np.floating],
    thresholds: Sequence[float],
    positives: NDArray[np.int64],
) -> str:
    """Return why a picture is chosen: `cat 0.31 (threshold 0.28, 12 labelled)`.

    Args:
        columns: the labels that it is chosen for.
        probabilities, thresholds, positives: (L,) of all labels.
    """
    return "undecided: " + ", ".join(
        f"{labels.names[column]} {probabilities[column]:.2f} ("
        + (f"threshold {thresholds[column]:.2f}" if thresholds[column] < 1 else "no threshold")
        + f", {positives[column]} labelled)"
        for column in columns
    )


def name_from(folder: Path, image: str) -> str:
    """Return the name of a picture from a folder; a URL stays, another drive makes it absolute."""
    if is_url(image):
        return image
    path = os.path.abspath(image)
    try:  # the real folder, since `..` leads up from there
        return to_slashes(os.path.relpath(path, os.path.realpath(folder)))
    except ValueError:
        return to_slashes(path)


def is_outside(folder: Path, image: str) -> bool:
    """Return whether a table in this folder may name a picture only if the config allows it."""
    name = name_from(folder, image)
    return is_url(name) or os.path.isabs(name) or name.startswith("../")


def write_table(
    file: TextIO, chosen: Sequence[ChosenPicture], labels: LabelSpace, folder: Path | None = None
) -> None:
    """Write a header, and a row for each picture; cells are safe in a spreadsheet.

    Args:
        folder: of the table, from which it names the pictures; None: as they were given.
    """
    writer = csv.writer(file)
    writer.writerow(HEADER)
    for one in chosen:
        names = "|".join(labels.names[column] for column in one.proposed)
        shares = "|".join(f"{one.probabilities[column]:.6f}" for column in one.proposed)
        image = one.image if folder is None else name_from(folder, one.image)
        cells = [image, names, shares, str(one.rank), f"{one.score:.6g}", one.reason]
        writer.writerow(map(neutralize, cells))


def write_tasks(
    file: TextIO,
    chosen: Sequence[ChosenPicture],
    labels: LabelSpace,
    model: str,
    interface: Interface,
) -> None:
    """Write a JSON list of tasks, one a line.

    Args:
        model: name of the checkpoint, for `model_version`.
        interface: names of the labeling interface.
    """
    file.write("[")
    for number, one in enumerate(chosen):
        about: dict[str, str | float] = {
            "rank": one.rank,
            "score": round(one.score, 6),
            "reason": one.reason,
        }
        task = build_task(
            one.image,
            labels.names,
            one.probabilities,
            one.proposed,
            model,
            interface,
            data=about,
        )
        file.write((",\n" if number else "\n") + json.dumps(task, ensure_ascii=False))
    file.write("\n]\n")


def name_files(table: Path) -> tuple[Path, Path, Path]:
    """Return the paths of the table, of its page, and of its tasks, which lie beside it.

    Raises:
        DataError: the table has another ending than `.csv`, or one of the files is there: people
            may have corrected the labels in it.
    """
    if table.suffix.lower() != TABLE:
        raise DataError(
            f"{table}: wanted a name ending in {TABLE}; the page and the tasks of Label Studio are "
            f"written beside it, ending in {PAGE} and {TASKS}"
        )
    files = table, table.with_suffix(PAGE), table.with_suffix(TASKS)
    for path in files:
        if os.path.lexists(path):
            raise DataError(
                f"{path} is there already, and labels may have been corrected in it; name another "
                f"file"
            )
    return files
