"""`mlfinetune predict`."""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.errors import DataError, listing

SOME_FAILED = 3


class Format(StrEnum):
    """How rows are written."""

    csv = "csv"
    jsonl = "jsonl"
    text = "text"


def predict(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, 'globs', or - for paths on stdin.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", "-c", help="Run directory or file; default: the newest run in runs/."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; its ending chooses the format.")
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Default: text on a terminal, else csv.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: the checkpoint's.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Name the K most probable labels instead.")
    ] = None,
    only_labels: Annotated[
        bool, typer.Option("--only-labels", help="Leave the probabilities out.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Tag pictures: per-label probabilities, one row a picture, in input order."""
    chosen = _format(format, output)

    from mlfinetune.runlog import RunLog
    from mlfinetune.workflows import predict as workflow

    log = RunLog()
    asked = workflow.Asked(
        tuple(inputs), checkpoint, chosen, threshold, top, only_labels, batch_size
    )
    try:
        failed = workflow.run(asked, sys.stdin, lambda: _open(output), device, log)
    except BrokenPipeError:  # `mlfinetune predict ... | head`: its reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    except OSError as error:
        where = error.filename or output or "standard output"
        raise DataError(f"{where}: {error.strerror}") from error
    if failed:
        log.say(f"{len(failed)} pictures could not be read\n{listing(failed)}")
        raise typer.Exit(SOME_FAILED)


def _open(output: Path | None) -> AbstractContextManager[TextIO]:
    if output is None:
        return nullcontext(sys.stdout)
    return output.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def _format(asked: Format | None, output: Path | None) -> str:
    if asked is not None:
        return asked
    if output is None:
        return Format.text if sys.stdout.isatty() else Format.csv
    endings = {".csv": Format.csv, ".jsonl": Format.jsonl, ".txt": Format.text}
    if output.suffix not in endings:
        raise DataError(f"{output}: wanted a name ending in {', '.join(endings)}, or --format")
    return endings[output.suffix]
