"""`mlfinetune report`: a folder of results -> report.html again. Needs no model and no torch."""

from pathlib import Path

from mlfinetune.errors import CheckpointError
from mlfinetune.report.write import write_report
from mlfinetune.runs import directory
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import try_writing


def run(folder: Path, log: RunLog) -> Path:
    """Write report.html and suspects.csv of a run directory, or of a folder that eval wrote.

    Returns:
        The path of report.html.

    Raises:
        CheckpointError: the folder holds no results, or cannot be written to.
    """
    if not (folder / directory.SCORES).is_file():
        raise CheckpointError(
            f"{folder} holds no {directory.SCORES}; name a run directory that `mlfinetune train` "
            f"finished, or a folder that `mlfinetune eval` wrote"
        )
    try_writing(folder)
    return write_report(folder, log)
