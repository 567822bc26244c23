"""`mlfinetune predict`: writes a row of probabilities for each picture."""

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.errors import DataError
from mlfinetune.runtime.streams import ReaderGoneError, require_input, require_output
from mlfinetune.text import format_list, pluralize

if TYPE_CHECKING:  # they load torch
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows.predict import FailedImages, PredictRequest

SOME_FAILED = 3
"""Exit code where some pictures could not be read."""


class Format(StrEnum):
    """Format of the rows."""

    csv = "csv"
    jsonl = "jsonl"
    text = "text"
    label_studio = "label-studio"


class Sidecars(StrEnum):
    """Files of labels beside the pictures."""

    xmp = "xmp"
    lightroom = "lightroom"
    txt = "txt"


class Views(StrEnum):
    """Versions of a picture that are scored."""

    plain = "plain"
    mirror = "mirror"


def predict(
    inputs: Annotated[
        list[str], typer.Argument(help="Files, folders, 'globs', URLs, or - for paths on stdin.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run directory, file, or the URL of one. Default: the newest run in runs/.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; its ending chooses the format."),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="Format of the rows; label-studio: its tasks, with predictions. Default: text on "
            "a terminal, else csv."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Probability from which a label is named. Default: the checkpoint's.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Name the K most probable labels, without a threshold."),
    ] = None,
    only_labels: Annotated[
        bool, typer.Option("--only-labels", help="Write no probabilities.")
    ] = False,
    views: Annotated[
        Views | None,
        typer.Option(
            help="Score each picture alone, or its mirror image too, for the mean of both. "
            "Default: as the checkpoint's thresholds were fitted."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures that the model takes at once.")
    ] = 16,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Predict only every N-th picture, from the I-th on.")
    ] = "1/1",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue a file that was not finished, after its last complete row."
        ),
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write pictures that show where the model looked, for the labels it names.",
        ),
    ] = None,
    sidecars: Annotated[
        Sidecars | None,
        typer.Option(
            help="Write the labels beside each picture: photo.jpg.xmp, photo.xmp (lightroom) or "
            "photo.txt."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what --sidecars would change, and write nothing."),
    ] = False,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Tag pictures: one row for each, in input order, with a probability for each label."""
    if dry_run:
        _require_nothing_written(sidecars, output, format, explain, resume)
    if output is None:
        require_output()
    if "-" in inputs:
        require_input()
    chosen = _choose_format(format, output)

    from mlfinetune.data.inputs import find_input_in
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info
    from mlfinetune.storage.atomic import try_writing, try_writing_file

    with loading_modules():
        from mlfinetune.workflows import predict as workflow

    log = RunLog(rank=dist_info().rank)
    if resume and (output is None or chosen == Format.text):
        raise DataError("--resume continues a file of rows, not text: name it with -o")
    if not resume:
        _require_prediction_file(output, chosen)
    if output is not None:
        try_writing_file(output)
    if explain is not None:
        if among := find_input_in(explain, inputs):
            raise DataError(
                f"--explain {explain} lies among the pictures of {among}: the next run would "
                f"predict the overlays too; choose a folder that is apart"
            )
        try_writing(explain, "--explain")
    request = workflow.PredictRequest(
        inputs=tuple(inputs),
        checkpoint=checkpoint,
        format=chosen,
        threshold=threshold,
        top=top,
        only_labels=only_labels,
        batch_size=batch_size,
        shard=_parse_shard(shard),
        resume_from=output if resume else None,
        views=None if views is None else views.value,
        explain=explain,
        sidecars=None if sidecars is None else sidecars.value,
        dry_run=dry_run,
    )
    failed = _run_workflow(request, output, resume, device, log)
    _report_failures(failed, log)


def _report_failures(failed: "FailedImages", log: "RunLog") -> None:
    """Name what failed; then the exit code says so."""
    pairs = (failed, "picture", "read"), (failed.sidecars, "sidecar", "written")
    for faults, noun, verb in pairs:
        if faults.count:
            lines = format_list(faults.first, faults.count)
            log.say(f"{pluralize(faults.count, noun)} could not be {verb}\n{lines}")
    if failed.count or failed.sidecars.count:
        raise typer.Exit(SOME_FAILED)


def _run_workflow(
    request: "PredictRequest", output: Path | None, resume: bool, device: str, log: "RunLog"
) -> "FailedImages":
    """Predict; errors of files and pipes are named."""
    from mlfinetune.workflows import predict as workflow

    try:
        return workflow.run(request, sys.stdin, lambda: _open_output(output, resume), device, log)
    except BrokenPipeError as error:  # -o names a pipe, as `>(head -1)`, and head has read enough
        raise ReaderGoneError from error
    except OSError as error:
        where = error.filename or output or "standard input"
        raise DataError(f"{where}: {error.strerror}") from error


def _require_nothing_written(
    sidecars: Sidecars | None,
    output: Path | None,
    format: Format | None,
    explain: Path | None,
    resume: bool,
) -> None:
    """Raise DataError where `--dry-run` has nothing to show, or beside options that write."""
    if sidecars is None:
        raise DataError(
            "--dry-run shows what --sidecars would change: name xmp, lightroom or txt with it"
        )
    options = {"--output": output, "--format": format, "--explain": explain, "--resume": resume}
    if given := [name for name, value in options.items() if value]:
        raise DataError(f"--dry-run writes nothing but what would change: leave out {given[0]}")


def _parse_shard(text: str) -> tuple[int, int]:
    """Return (2, 8) for `2/8`."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise DataError(f"--shard {text}: wanted I/N, from 1/N to N/N")
    return int(match[1]), int(match[2])


def _require_prediction_file(output: Path | None, format: str) -> None:
    """Raise DataError where the output would overwrite a file that holds no predictions."""
    from mlfinetune.runs.written_rows import is_prediction_file

    if output is None or format == Format.text or not output.is_file():
        return
    if not is_prediction_file(output, format):
        raise DataError(f"{output} is there already, and holds no predictions; name another file")


def _open_output(output: Path | None, append: bool) -> AbstractContextManager[TextIO]:
    if output is None:
        return nullcontext(sys.stdout)
    return output.open(
        "a" if append else "w", encoding="utf-8", errors="backslashreplace", newline=""
    )


def _choose_format(wanted: Format | None, output: Path | None) -> str:
    if wanted is not None:
        return wanted
    if output is None:
        return Format.text if sys.stdout.isatty() else Format.csv
    endings = {".csv": Format.csv, ".jsonl": Format.jsonl, ".txt": Format.text}
    if output.suffix not in endings:
        hint = " label-studio" if output.suffix == ".json" else ""
        raise DataError(
            f"{output}: wanted a name ending in {', '.join(endings)}, or --format{hint}"
        )
    return endings[output.suffix]
