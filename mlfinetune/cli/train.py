"""`mlfinetune train`: prints the metrics of the run on its validation data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlfinetune.config import Config

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
    if output is not None:
        loaded = loaded.model_copy(update={"output": output.absolute()})

    from mlfinetune.cli.summary import format_summary
    from mlfinetune.errors import ConfigError
    from mlfinetune.runs import directory
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info

    with loading_modules():
        from mlfinetune.training.start import ResumeOptions
        from mlfinetune.workflows import train as workflow

    log = RunLog(rank=dist_info().rank, watch=watch)
    log.lap("start")
    if dry_run:
        workflow.dry_run(loaded, device, log)
        if dist_info().rank:
            return
        print("dry run: one batch trained, scored and saved; nothing was left behind")
        return
    if allow_changed and not resume:
        raise ConfigError("--allow-changed is for --resume")
    is_run_config = config.name == directory.CONFIG
    is_run_config &= (config.parent / directory.LABELS).is_file()
    resumes_own = is_run_config and output is None  # the config lies in the run to resume
    recorded = load_config(config) if resumes_own else None
    if resumes_own and (resume or _is_gone(recorded, loaded)):
        loaded = loaded.model_copy(update={"output": config.parent.absolute()})
    options = ResumeOptions(recorded, allow_changed) if resume else None
    result = workflow.run(loaded, device, log, options, _describe_command())
    if result is not None:
        print(format_summary(result.evaluation))
        log.say(f"results in {display_path(result.run)}")


def _describe_command() -> str:
    """Return the command as it was given, without secrets of URLs."""
    import shlex
    import sys

    from mlfinetune.text import mask_secrets

    return mask_secrets(shlex.join(["mlfinetune", *sys.argv[1:]]))


def _is_gone(recorded: Config | None, loaded: Config) -> bool:
    """Tell whether the run directory that its config.yaml names was moved.

    A new run then goes beside the config, not to where the former one was.
    """
    output = loaded.output
    assert output is not None
    return recorded is not None and output == recorded.output and not output.exists()
