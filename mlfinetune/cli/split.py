"""`mlfinetune split`."""

from pathlib import Path
from typing import Annotated

import typer


def split(
    data: Annotated[Path, typer.Argument(help="Table or folder, as data.train takes it.")],
    val: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the images held out for validation.")
    ] = 0.2,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share held out for a test.")] = 0.0,
    group_by: Annotated[
        str | None, typer.Option(help="Column whose rows of one value stay together.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Root of the table's paths; default: the table's folder.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV file to write.", show_default="NAME.split.csv"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Split a data set so that every label keeps its share on every side."""
    from mlfinetune.findings import balance_text
    from mlfinetune.rundir import shown
    from mlfinetune.runlog import RunLog
    from mlfinetune.workflows import split as workflow

    log = RunLog()
    asked = workflow.Asked(data.absolute(), val, test, group_by, images, output, seed)
    done = workflow.run(asked, log)
    print(balance_text(done.balance))
    log.say(f"written: {shown(done.file)}; train on it with data.train: {shown(done.file)}")
