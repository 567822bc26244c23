"""`mlfinetune runs`: run directories -> one table: what each is, how good, how they differ."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlfinetune.errors import CheckpointError
from mlfinetune.runs import directory
from mlfinetune.runs.overview import RunOverview, read_overview
from mlfinetune.runs.settings import NOT_SET

SHOWN = ("model.backbone", "model.freeze_backbone")
"""Settings that have columns of their own."""
_SORTS: dict[str, Callable[[RunOverview], tuple[bool, Any]]] = {
    "name": lambda run: (False, str(run.folder)),
    "when": lambda run: (run.when is None, run.when),
    "mAP": lambda run: (run.mAP is None, -(run.mAP or 0.0)),
    "F1": lambda run: (run.macro_F1 is None, -(run.macro_F1 or 0.0)),
    "minutes": lambda run: (run.seconds is None, run.seconds),
}
SORTS = tuple(_SORTS)
"""Orders of the table; the best mAP and F1 come first, the newest run last."""


@dataclass(frozen=True)
class RunTable:
    """Runs of a folder.

    Attributes:
        runs: in the order that was asked for.
        differing: dotted keys of the settings in which they differ.
    """

    runs: tuple[RunOverview, ...]
    differing: tuple[str, ...]


def run(folder: Path, sort: str) -> RunTable:
    """List the runs below a folder.

    Args:
        folder: is searched, folders in it too; runs in a run directory are not looked for.
        sort: one of SORTS.

    Raises:
        CheckpointError: there is no run.
    """
    overviews = [read_overview(path) for path in _find_runs(folder)]
    if not overviews:
        raise CheckpointError(
            f"no run under {folder.absolute()}; `mlfinetune train` writes into runs/, or name "
            f"another folder"
        )
    overviews.sort(key=_SORTS[sort])
    return RunTable(tuple(overviews), _list_differing(overviews))


def _find_runs(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        if {directory.CONFIG, directory.LABELS} <= set(files):
            found.append(Path(place))
            folders.clear()
        folders.sort()
    return found


def _list_differing(overviews: list[RunOverview]) -> tuple[str, ...]:
    """Return the keys whose values differ, of the runs whose settings are known."""
    known = [overview.settings for overview in overviews if overview.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    return tuple(
        key
        for key in keys
        if key not in SHOWN
        and any(settings.get(key, NOT_SET) != known[0].get(key, NOT_SET) for settings in known)
    )
