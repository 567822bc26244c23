"""`mlfinetune eval`: prints the metrics of a checkpoint on labelled pictures."""

from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from mlfinetune.cli.train import DEVICE_HELP


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", "-c", help="Run directory, checkpoint file, or its URL."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Table (a file or URL) or folder to score. Default: the run's validation data.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Score only rows with this value in the split column.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Folder or URL that the table's paths start from. Default: the table's folder.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the results. Default: eval/ in the run; of other data eval-TABLE/.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Config keys to change, such as data.bad_images=skip.",
        ),
    ] = None,
) -> None:
    """Score labelled pictures with a checkpoint: mAP, F1, and a table of labels."""
    from mlfinetune.cli.summary import format_summary
    from mlfinetune.runs.trained_on import describe_seen
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info
    from mlfinetune.text import display_path

    with loading_modules():
        from mlfinetune.data.inputs import parse_data
        from mlfinetune.predicting.remote import locate_checkpoint
        from mlfinetune.workflows import evaluate as workflow

    log = RunLog(rank=dist_info().rank)
    request = workflow.EvalRequest(
        checkpoint=locate_checkpoint(checkpoint, data, output),
        data=parse_data(data),
        split=split,
        images=parse_data(images),
        output=output,
        overrides=tuple(overrides or ()),
    )
    result = workflow.run(request, device, log)
    if result is not None:
        print(format_summary(result.evaluation))
        if note := describe_seen(result.seen or 0, result.evaluation.table.images):
            print("\n" + fill(f"warning: {note}", 80))
        log.say(f"results in {display_path(result.folder)}")
