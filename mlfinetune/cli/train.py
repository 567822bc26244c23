"""`mlfinetune train`."""

from pathlib import Path
from typing import Annotated

import typer

DEVICE_HELP = "auto, cpu, cuda, cuda:N or mps."


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/ for recipes.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.lr=1e-4."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run directory.", show_default="runs/NAME")
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped; a new one if none did.")
    ] = False,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Go on with other settings or data, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One batch of everything; leaves no files.")
    ] = False,
) -> None:
    """Train on a labelled folder or table, and write a run directory."""
    from mlfinetune.config import load_config
    from mlfinetune.text import display_path

    loaded = load_config(config, overrides or ())
    if output is not None:
        loaded = loaded.model_copy(update={"output": output.absolute()})

    from mlfinetune.cli.summary import format_summary
    from mlfinetune.errors import ConfigError
    from mlfinetune.runs import directory
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.runtime.torchrun import dist_info
    from mlfinetune.workflows import train as workflow

    log = RunLog(rank=dist_info().rank)
    if dry_run:
        workflow.dry_run(loaded, device, log)
        if dist_info().rank:
            return
        print("dry run: one batch trained, scored and saved; nothing was left behind")
        return
    if allow_changed and not resume:
        raise ConfigError("--allow-changed is for --resume")
    own = config.name == directory.CONFIG and (config.parent / directory.LABELS).is_file()
    if resume and own and output is None:
        loaded = loaded.model_copy(update={"output": config.parent.absolute()})
    going = workflow.ResumeOptions(own and output is None, allow_changed) if resume else None
    done = workflow.run(loaded, device, log, going)
    if done is not None:
        print(format_summary(done.verdict))
        log.say(f"results in {display_path(done.run)}")
