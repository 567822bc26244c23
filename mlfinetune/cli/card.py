"""`mlfinetune card`: prints the path of the model card that it wrote."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="Run directory that train finished.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: README.md in the run."),
    ] = None,
) -> None:
    """Write a model card, as Hugging Face shows it: numbers, data, weak labels, how to use it."""
    from mlfinetune.workflows import card as workflow

    print(workflow.run(run, output))
