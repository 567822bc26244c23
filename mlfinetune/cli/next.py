"""`mlfinetune next`: writes a row for each picture to label next."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from mlfinetune.cli.predict import SOME_FAILED
from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.errors import DataError
from mlfinetune.runtime.streams import require_input, require_output
from mlfinetune.text import format_list, pluralize


def choose_next(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run directory, checkpoint file, or its URL.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...",
            help="Pictures without labels: folders, files, 'globs', URLs, or - for paths on stdin.",
        ),
    ],
    count: Annotated[int, typer.Option("-n", min=1, help="Pictures to choose.")] = 200,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Table to write, as next.csv; next.html, a page, and next.json, tasks of Label "
            "Studio, go beside it. Default: the table alone, on the screen.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Choose the pictures to label next: near a threshold, of rare labels, unlike each other."""
    if output is None:
        require_output()
    if "-" in inputs:
        require_input()

    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog

    with loading_modules():
        from mlfinetune.workflows import next as workflow

    log = RunLog()
    request = workflow.NextRequest(run, tuple(inputs), count, output)
    try:
        failed = workflow.run(request, sys.stdin, lambda: nullcontext(sys.stdout), device, log)
    except OSError as error:
        raise DataError(f"{error.filename or output or 'a file'}: {error.strerror}") from error
    if failed:
        log.say(f"{pluralize(len(failed), 'picture')} could not be read\n{format_list(failed)}")
        raise typer.Exit(SOME_FAILED)
