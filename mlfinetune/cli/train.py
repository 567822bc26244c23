"""`mlfinetune train`: prints the metrics of the run on its validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEVICE_HELP = "Device to compute on: auto, cpu, cuda, cuda:N or mps."


def train(
    config: Annotated[Path, typer.Argument(help="YAML file. The folder configs/ has recipes.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config keys to change, such as train.lr=1e-4."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Run directory to write. Default: runs/<name of the config>."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run that was stopped, or begin a new one."),
    ] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume even where config or data have changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try one batch of each step; leave no files.")
    ] = False,
) -> None:
    """Train on a labelled folder or table, and write a run directory."""
    from mlfinetune.config import load_config
    from mlfinetune.runtime.stopwatch import Stopwatch
    from mlfinetune.text import display_path

    watch = Stopwatch()
    loaded = load_config(config, overrides or ())

    from mlfinetune.cli.summary import format_summary
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info

    with loading_modules():
        from mlfinetune.training.start import plan_start
        from mlfinetune.workflows import train as workflow

    log = RunLog(rank=dist_info().rank, watch=watch)
    log.lap("start")
    if dry_run:
        workflow.dry_run(loaded, device, log)
        if dist_info().rank:
            return
        print("dry run: one batch trained, scored and saved; nothing was left behind")
        return
    loaded, options = plan_start(config, loaded, output, resume, allow_changed)
    result = workflow.run(loaded, device, log, options, describe_command())
    if result is not None:
        print(format_summary(result.evaluation))
        log.say(f"results in {display_path(result.run)}")


def describe_command() -> str:
    """Return the command as it was given, without secrets of URLs."""
    import shlex
    import sys

    from mlfinetune.text import mask_secrets

    return mask_secrets(shlex.join(["mlfinetune", *sys.argv[1:]]))
