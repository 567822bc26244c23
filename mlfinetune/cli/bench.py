"""`mlfinetune bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.cli.train import DEVICE_HELP

if TYPE_CHECKING:
    from mlfinetune.workflows.bench import BenchResult


def bench(
    config: Annotated[Path, typer.Argument(help="YAML file, as for train.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.workers=4."),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Time a run's stages for half a minute: what holds it back, and one thing to change."""
    from mlfinetune.config import load_config

    loaded = load_config(config, overrides or ())

    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import bench as workflow

    print(_table(workflow.run(loaded, device, RunLog())))


def _table(found: "BenchResult") -> str:
    """At most 80 columns."""
    from mlfinetune.text import format_duration

    work, batch = found.work, found.work.batch_size
    lines = [f"{'stage':<26} {'images/s':>12} {f'ms per {batch}':>12}   paid"]
    for stage in found.stages:
        rate = f"{stage.rate:,.1f}"
        lines.append(
            f"{stage.name:<26} {rate:>12} {1000 * batch / stage.rate:>12,.2f}   {stage.paid}"
        )
    once, epoch = found.times.once, found.times.epoch
    if work.views:
        took = (
            f"about {_short(once)} once, for features of {work.train} + {work.val} images; "
            f"then {_short(epoch)} a pass over them"
        )
    else:
        took = (
            f"about {_short(epoch)} an epoch of {work.train} + {work.val} images, "
            f"{format_duration(work.epochs * epoch)} for {work.epochs}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"the run is held back by: {found.bound}",
            took,
            f"suggestion: {found.suggestion}",
        ]
    )


def _short(seconds: float) -> str:
    """Seconds under a minute, else a clock."""
    from mlfinetune.text import format_duration

    return format_duration(seconds) if seconds >= 60 else f"{seconds:.2g} s"
