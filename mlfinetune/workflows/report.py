"""`mlfinetune report`: a folder of results -> its page again, without a model."""

from pathlib import Path

from mlfinetune import rundir
from mlfinetune.errors import CheckpointError
from mlfinetune.publish import publish
from mlfinetune.runlog import RunLog


def run(folder: Path, log: RunLog) -> Path:
    """Write report.html and suspects.csv of a run directory, or of a folder that eval wrote.

    Raises:
        CheckpointError: it holds no results.
    """
    if not (folder / rundir.SCORES).is_file():
        raise CheckpointError(
            f"{folder} holds no {rundir.SCORES}; name a run directory that `mlfinetune train` "
            f"finished, or a folder that `mlfinetune eval` wrote"
        )
    return publish(folder, log)
