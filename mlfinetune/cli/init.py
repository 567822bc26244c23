"""`mlfinetune init`."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def init(
    data: Annotated[Path, typer.Argument(help="Table or folder of labelled pictures.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Config to write.", show_default="NAME.yaml"),
    ] = None,
) -> None:
    """Look at a data set, say what it holds, and write a config that trains on it as it is."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import display_path
    from mlfinetune.workflows import init as workflow

    log = RunLog()
    done = workflow.run(data.absolute(), output, log)
    print("\n".join(done.lines))
    written = display_path(done.file)
    log.say(f"written: {written}; next: mlfinetune train {quote(written)}")
