"""`mlfinetune predict`."""

import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.errors import DataError
from mlfinetune.text import format_list, pluralize

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
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Every N-th picture from the I-th on.")
    ] = "1/1",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last complete row of the output.")
    ] = False,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Tag pictures: per-label probabilities, one row a picture, in input order."""
    chosen = _format(format, output)

    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info
    from mlfinetune.workflows import predict as workflow

    log = RunLog(rank=dist_info().rank)
    if resume and (output is None or chosen == Format.text):
        raise DataError("--resume goes on with a CSV or JSONL file: name it with -o")
    asked = workflow.PredictRequest(
        inputs=tuple(inputs),
        checkpoint=checkpoint,
        format=chosen,
        threshold=threshold,
        top=top,
        only_labels=only_labels,
        batch_size=batch_size,
        shard=_shard(shard),
        begun=output if resume else None,
    )
    try:
        failed = workflow.run(asked, sys.stdin, lambda: _open(output, resume), device, log)
    except BrokenPipeError:  # `mlfinetune predict ... | head`: its reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if dist_info().size > 1:
            from mlfinetune.runtime.distributed import report_failure

            report_failure(DataError("enough"))  # the others end without a word
        raise typer.Exit from None
    except OSError as error:
        where = error.filename or output or "standard output"
        raise DataError(f"{where}: {error.strerror}") from error
    if failed.count:
        faults = format_list(failed.first, failed.count)
        log.say(f"{pluralize(failed.count, 'picture')} could not be read\n{faults}")
        raise typer.Exit(SOME_FAILED)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise DataError(f"--shard {text}: wanted I/N, from 1/N to N/N")
    return int(found[1]), int(found[2])


def _open(output: Path | None, begun: bool) -> AbstractContextManager[TextIO]:
    if output is None:
        return nullcontext(sys.stdout)
    return output.open(
        "a" if begun else "w", encoding="utf-8", errors="backslashreplace", newline=""
    )


def _format(asked: Format | None, output: Path | None) -> str:
    if asked is not None:
        return asked
    if output is None:
        return Format.text if sys.stdout.isatty() else Format.csv
    endings = {".csv": Format.csv, ".jsonl": Format.jsonl, ".txt": Format.text}
    if output.suffix not in endings:
        raise DataError(f"{output}: wanted a name ending in {', '.join(endings)}, or --format")
    return endings[output.suffix]
