"""`mlfinetune report`: prints the path of the page that it wrote."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run directory, or a folder that eval wrote.")],
) -> None:
    """Write report.html and suspects.csv again, from the results in a folder."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import report as workflow

    print(workflow.run(run, RunLog()))
