"""`mlfinetune init`: prints what a data set holds, and writes a config for it."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    data: Annotated[Path, typer.Argument(help="Table, or folder, of labelled pictures.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config keys to write, such as train.epochs=3."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that the table's paths start from. Default: found, or its own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Config file to write.", show_default="NAME.yaml"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", help="CSV file to write, and no config: pictures of a folder, to label."
        ),
    ] = None,
) -> None:
    """Describe a data set, and write a config that trains on it as it is."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import display_path, make_lines_printable
    from mlfinetune.workflows import init as workflow

    log = RunLog()
    request = workflow.InitRequest(data.absolute(), tuple(overrides or ()), images, output, table)
    result = workflow.run(request, log)
    print(make_lines_printable("\n".join(result.lines)))
    log.say(f"written: {display_path(result.file)}; next: {result.next_step}")
