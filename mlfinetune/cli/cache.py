"""`mlfinetune cache`: lists or deletes what is kept between runs."""

from typing import Annotated

import typer

from mlfinetune.runtime.streams import require_output


def cache(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...", help="Kinds to list, such as features or scan. Default: all."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what is listed.")] = False,
) -> None:
    """List cached files that save work in later runs, with their size; all may be deleted."""
    if not clear:
        require_output()
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import format_age
    from mlfinetune.workflows import cache as workflow

    root, entries = workflow.run(clear, kinds or [])
    for entry in entries:
        size, age = f"{entry.bytes / 1e6:10.1f} MB", f"{format_age(entry.unused_s):>8}"
        print(f"{size}  {age}  {entry.kind}/{entry.path.name}")
    total = sum(entry.bytes for entry in entries) / 1e6
    RunLog().say(f"{root}: {total:.1f} MB {'deleted' if clear else 'in all'}")
