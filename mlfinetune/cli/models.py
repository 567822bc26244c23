"""`mlfinetune models`: lists the backbones that `model.backbone` takes."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.runtime.streams import require_output

if TYPE_CHECKING:
    from mlfinetune.workflows.models import BackboneEntry


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="A part of a name, or a pattern such as 'timm/vit_*'. Default: torchvision's.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all weights named.")] = False,
) -> None:
    """List backbones: millions of parameters, size of the pictures, weights on this machine."""
    require_output()
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog

    with loading_modules():
        from mlfinetune.workflows import models as workflow

    found = workflow.run(pattern)
    if as_json:
        print(json.dumps([asdict(entry) for entry in found.entries], indent=1))
    else:
        _print_table(found.entries)
    for note in found.notes:
        RunLog().say(note)


def _print_table(entries: "tuple[BackboneEntry, ...]") -> None:
    width = max(len(entry.name) for entry in entries)
    print(f"{'model.backbone':<{width}}  {'million':>8}  {'px':>4}  weights on this machine")
    for entry in entries:
        number = "-" if entry.parameters is None else f"{entry.parameters / 1e6:.1f}"
        cached = ", ".join(entry.cached) or "-"
        print(f"{entry.name:<{width}}  {number:>8}  {entry.image_size:>4}  {cached}")
