"""`mlfinetune eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.errors import DataError
from mlfinetune.location import Location, parse_location


def evaluate(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="Run directory or checkpoint file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Table, its URL, or folder to score; default: the run's validation data.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Rows of this split column value.")] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Root of the table's paths, or its URL; default: its folder."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for results; default: eval/.")
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Such as data.ignore_labels=[other]."),
    ] = None,
) -> None:
    """Score labelled pictures with a checkpoint: mAP, F1, a table of labels."""
    from mlfinetune.cli.summary import format_summary
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info
    from mlfinetune.text import display_path
    from mlfinetune.workflows import evaluate as workflow

    log = RunLog(rank=dist_info().rank)
    asked = workflow.EvalRequest(
        checkpoint.absolute(),
        _location(data),
        split,
        _location(images),
        output,
        tuple(overrides or ()),
    )
    folder, verdict = workflow.run(asked, device, log)
    if verdict is not None:
        print(format_summary(verdict))
        log.say(f"results in {display_path(folder)}")


def _location(text: str | None) -> Location | None:
    try:
        return None if text is None else parse_location(text)
    except ValueError as error:
        raise DataError(str(error)) from error
