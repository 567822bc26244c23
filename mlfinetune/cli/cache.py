"""`mlfinetune cache`."""

from typing import Annotated

import typer


def cache(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND]...", help="features, scan, ...; default: all."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete them.")] = False,
) -> None:
    """List what is kept to save work, outside of data and runs; it may all be deleted."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import format_age
    from mlfinetune.workflows import cache as workflow

    root, kept = workflow.run(clear, kinds or [])
    for one in kept:
        print(
            f"{one.bytes / 1e6:10.1f} MB  {format_age(one.unused_s):>8}  {one.kind}/{one.path.name}"
        )
    total = sum(one.bytes for one in kept) / 1e6
    RunLog().say(f"{root}: {total:.1f} MB {'deleted' if clear else 'in all'}")
