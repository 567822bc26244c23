"""Folders of eval's results, each with the question that it answers.

    checkpoint, data, split, overrides -> Question -> make_eval_folder -> folder

    mlfinetune eval -c runs/pets ...                  results in runs/pets/
    (nothing more)                                    eval
    --split test                                      eval-test
    --data new.csv --split test                       eval-new-test
    -c runs/pets/last.safetensors                     eval-last
    eval.thresholds=fixed, after eval without it      eval-2

The question stands in metrics.json. The same question replaces its own results; nothing else is
ever overwritten.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape as glob_escape
from pathlib import Path
from typing import Any

from mlfinetune.errors import CheckpointError
from mlfinetune.location import Location, is_url
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import FOREIGN
from mlfinetune.storage.atomic import make_new_folder, try_writing

RESULTS = (
    directory.METRICS,
    directory.PER_LABEL,
    directory.PREDICTIONS,
    directory.SCORES,
    directory.REPORT,
    directory.SUSPECTS,
    directory.HEAT_MAPS,
)
"""Files that eval writes."""
_OF_A_RUN = (directory.CONFIG, directory.BEST, directory.LAST, directory.STATE, directory.LABELS)
_MAX_NAME = 60


@dataclass(frozen=True)
class Question:
    """Everything that decides the results of eval, but for the content of the files.

    Attributes:
        checkpoint: the file.
        data: table or folder; None: the run's own.
        split: value of the split column; None: all, or the run's validation.
        images: root of the table's paths, where it was given.
        overrides: dotted key -> value, of the keys that differ from the run's config.
    """

    checkpoint: Path
    data: Location | None
    split: str | None
    images: Location | None
    overrides: Mapping[str, Any]

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """Return it for metrics.json; paths are relative to `folder`, so that both may move."""
        return {
            "checkpoint": _relate(self.checkpoint, folder),
            "data": None if self.data is None else _relate(self.data, folder),
            "split": self.split,
            "images": None if self.images is None else _relate(self.images, folder),
            "overrides": dict(sorted(self.overrides.items())),
        }


def try_eval_folder(question: Question, output: Path | None) -> None:
    """Try to write where the results will be, before the pictures are scored; nothing is made yet.

    Args:
        question: the question that they will answer.
        output: `--output`; None: a folder beside the checkpoint.

    Raises:
        CheckpointError: the output holds other things, or nothing can be written there.
    """
    if output is not None:
        _require_own_folder(question, output)
    wanted = _name_folder(question)
    try_writing(output or _find_answered(question, wanted) or wanted)


def make_eval_folder(question: Question, output: Path | None) -> Path:
    """Make the folder of the results, and return it.

    It is chosen now, since another command may have written since `try_eval_folder`. It holds
    results of this question, or none. A new folder is this command's alone: two that begin at once
    get one each.

    Args:
        question, output: as given to `try_eval_folder`.

    Raises:
        CheckpointError: it cannot be made.
    """
    is_free = output is not None and not _list_others(question, output)
    if output is not None and is_free and (output.is_dir() or make_new_folder(output)):
        return output
    wanted = _name_folder(question) if output is None else output.absolute()
    if answered := _find_answered(question, wanted):
        return answered
    number, folder = 1, wanted
    while not make_new_folder(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def is_replaced(folder: Path) -> bool:
    """Tell whether a folder holds results that the next ones replace."""
    return (folder / directory.METRICS).is_file()


def _find_answered(question: Question, wanted: Path) -> Path | None:
    """Return the folder that holds results of this question: `wanted`, `wanted-2` ...; or None."""
    taken = (
        path
        for path in sorted(wanted.parent.glob(f"{glob_escape(wanted.name)}*"))
        if re.fullmatch(r"(-[1-9]\d{0,8})?", path.name[len(wanted.name) :])
    )
    return next((path for path in taken if _is_answered(question, path)), None)


def _require_own_folder(question: Question, folder: Path) -> None:
    """Check that results of this question overwrite no others in `folder`.

    Raises:
        CheckpointError: it is a run directory, or holds other results.
    """
    if any(os.path.lexists(folder / name) for name in _OF_A_RUN):
        raise CheckpointError(
            f"{folder} is a run directory; results of eval would overwrite its own: name another "
            f"folder with --output"
        )
    if there := _list_others(question, folder):
        raise CheckpointError(
            f"{folder} holds {', '.join(there[:3])} of {_describe_other(question, folder)}: name "
            f"another folder with --output, or remove these"
        )


def _list_others(question: Question, folder: Path) -> list[str]:
    """Return the names of results in `folder` that answer something else."""
    there = [name for name in RESULTS if os.path.lexists(folder / name)]
    return [] if _is_answered(question, folder) else there


def _name_folder(question: Question) -> Path:
    """Return `eval` beside the checkpoint.

    Its name goes on with what differs from the run's validation and best epoch.
    """
    parts = [directory.EVAL]
    if question.checkpoint.name != directory.BEST:
        parts.append(question.checkpoint.stem)
    if question.data is not None:
        name = str(question.data).rstrip("/").rpartition("/")[2]
        name = Path(name).name.removesuffix(".gz")
        parts.append(Path(name).stem or "data")
    if question.split is not None:
        parts.append(question.split)
    name = re.sub(r"[^\w.-]+", "_", "-".join(parts))[:_MAX_NAME]
    return question.checkpoint.parent / name


def _is_answered(question: Question, folder: Path) -> bool:
    """Tell whether a folder holds results of this question."""
    kept = _read_question(folder)
    return kept is not None and kept == json.loads(json.dumps(question.to_dict(folder)))


def _read_question(folder: Path) -> Mapping[str, Any] | None:
    """Read the question of a folder's results; None: older results, others, or none."""
    try:
        content = json.loads((folder / directory.METRICS).read_bytes())
        kept = content.get("question")
    except (OSError, *FOREIGN):
        return None
    return kept if isinstance(kept, dict) else None


def _describe_other(question: Question, folder: Path) -> str:
    """Return what differs: `another question (split: None there, 'test' now)`."""
    kept = _read_question(folder)
    if kept is None:
        return "an older version, or of something else"
    now = question.to_dict(folder)
    differing = [
        f"{key}: {kept.get(key)!r} there, {now[key]!r} now"
        for key in now
        if kept.get(key) != json.loads(json.dumps(now[key]))
    ]
    return f"another question ({'; '.join(differing)[:300]})"


def _relate(location: Location, folder: Path) -> str:
    """Return a path relative to `folder`; a URL, or a path on another drive, as it is."""
    if is_url(location):
        return str(location)
    path = os.path.abspath(location)
    try:
        return Path(os.path.relpath(path, os.path.abspath(folder))).as_posix()
    except ValueError:
        return path
