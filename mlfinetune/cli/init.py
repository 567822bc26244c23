"""`mlfinetune init`: prints what a data set holds, and writes a config for it."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def init(
    data: Annotated[Path, typer.Argument(help="Table, or folder, of labelled pictures.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Config file to write.", show_default="NAME.yaml"),
    ] = None,
) -> None:
    """Describe a data set, and write a config that trains on it as it is."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import display_path
    from mlfinetune.workflows import init as workflow

    log = RunLog()
    result = workflow.run(data.absolute(), output, log)
    print("\n".join(result.lines))
    written = display_path(result.file)
    log.say(f"written: {written}; next: mlfinetune train {quote(written)}")
