"""`mlfinetune bench`: prints the speed of each stage, and the bottleneck."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.cli.train import DEVICE_HELP
from mlfinetune.runtime.streams import require_output

if TYPE_CHECKING:
    from mlfinetune.workflows.bench import BenchResult


def bench(
    config: Annotated[Path, typer.Argument(help="YAML file, the same as for train.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config keys to change, such as train.workers=4."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Time the stages of a training run, name the slowest, and suggest one change."""
    require_output()
    from mlfinetune.config import load_config

    loaded = load_config(config, overrides or ())

    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog

    with loading_modules():
        from mlfinetune.workflows import bench as workflow

    print(_format_table(workflow.run(loaded, device, RunLog())))


def _format_table(result: "BenchResult") -> str:
    """Return the table of stages and the conclusion, in at most 80 columns."""
    from mlfinetune.text import format_duration, pluralize

    work, batch = result.work, result.work.batch_size
    lines = [f"{'stage':<26} {'images/s':>12} {f'ms per {batch}':>12}   paid"]
    for stage in result.stages:
        rate = f"{stage.rate:,.1f}"
        lines.append(
            f"{stage.name:<26} {rate:>12} {1000 * batch / stage.rate:>12,.2f}   {stage.paid}"
        )
    once, epoch = result.times.once, result.times.epoch
    if work.views:
        duration = (
            f"about {_format_seconds(once)} once, for features of {work.train} + {work.val} "
            f"images; then {_format_seconds(epoch)} per pass over them"
        )
    else:
        duration = (
            f"about {_format_seconds(epoch)} per epoch of {work.train} + {work.val} images, "
            f"{format_duration(work.epochs * epoch + once)} for {work.epochs}"
        )
        if work.solutions:
            duration += f" and {pluralize(work.solutions, 'solved head')}"
    return "\n".join(
        [
            *lines,
            "",
            f"the run is held back by: {result.bound}",
            duration,
            f"suggestion: {result.suggestion}",
        ]
    )


def _format_seconds(seconds: float) -> str:
    """Return `4.2 s` for less than a minute, else `1:15`."""
    from mlfinetune.text import format_duration

    return format_duration(seconds) if seconds >= 60 else f"{seconds:.2g} s"
