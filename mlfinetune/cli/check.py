"""`mlfinetune check`."""

from pathlib import Path
from typing import Annotated

import typer

UNSOUND = 2


def check(
    config: Annotated[Path, typer.Argument(help="YAML file, as for train.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data.train=tags.csv."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything that was found, for programs.")
    ] = False,
) -> None:
    """Examine a data set: every picture and every row. Exit code 0 clean, 2 with a list."""
    from mlfinetune.config import load
    from mlfinetune.findings import as_json as to_json
    from mlfinetune.findings import as_text
    from mlfinetune.runlog import RunLog
    from mlfinetune.workflows import check as workflow

    checked = workflow.run(load(config, overrides or ()), RunLog())
    print((to_json if as_json else as_text)(checked.findings, checked.facts))
    if not checked.clean:
        raise typer.Exit(UNSOUND)
