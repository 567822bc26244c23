"""`mlfinetune crossval`: prints the metrics of out-of-fold scores, and their spread over folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlfinetune.cli.train import DEVICE_HELP, describe_command


def crossval(
    config: Annotated[Path, typer.Argument(help="YAML file, as `mlfinetune train` takes it.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config keys to change, such as train.lr=1e-4."
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=2, max=100, help="Parts; each is held out once.", metavar="K")
    ] = 5,
    repeats: Annotated[
        int, typer.Option(min=1, max=100, help="Divisions into folds, each another one.")
    ] = 1,
    then_train: Annotated[
        bool,
        typer.Option("--then-train", help="Train on all pictures in the end, and save the model."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write. Default: runs/<name of the config>-crossval."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Score every picture by a model that has not seen it: honest numbers for few pictures."""
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
        from mlfinetune.workflows import crossval as workflow

    log = RunLog(rank=dist_info().rank, watch=watch)
    log.lap("start")
    wanted = None if output is None else output.absolute()
    options = workflow.CrossvalOptions(wanted, folds, repeats, then_train)
    result = workflow.run(loaded, options, device, log, describe_command())
    if result is not None:
        print(format_summary(result.evaluation))
        print("\n".join(["", *_format_spread(result.facts)]))
        log.say(f"results in {display_path(result.folder)}")


def _format_spread(facts: dict[str, Any]) -> list[str]:
    """Return lines on the spread over folds, and over repeats where there are several."""
    lines = [f"  over {facts['folds'] * facts['repeats']} folds, each for itself"]
    lines += _format_rows(facts["over_folds"])
    if facts["repeats"] > 1:
        lines.append(f"  over {facts['repeats']} repeats, all pictures together")
        lines += _format_rows(facts["over_repeats"])
    return lines


def _format_rows(spread: dict[str, dict[str, float | None]]) -> list[str]:
    names = {"mAP": "mAP", "micro_AP": "micro AP", "macro_F1": "macro F1", "micro_F1": "micro F1"}
    return [
        f"    {names[key]:<9} {_format(row['mean'])} +- {_format(row['deviation'])}   "
        f"{_format(row['lowest'])} to {_format(row['highest'])}"
        for key, row in spread.items()
    ]


def _format(number: float | None) -> str:
    return "    --" if number is None else f"{number:.4f}"
