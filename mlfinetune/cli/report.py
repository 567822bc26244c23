"""`mlfinetune report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run directory, or a folder that eval wrote.")],
) -> None:
    """Write report.html and suspects.csv again, from scores.npz and metrics.json."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import report as workflow

    print(workflow.run(run, RunLog()))
