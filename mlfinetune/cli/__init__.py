"""The command line, one file for each command: parse, load, call one workflow, print.

arguments -> Config or request -> workflows.X.run -> table on stdout, messages on stderr, exit code
Start at evaluate.py, a typical command; `main` below handles every error.

Importing this package loads no torch: a command imports its workflow when it is called. `main`
catches every MlfinetuneError: its message goes to standard error, and the exit code is 2. `main`
handles signals too: it removes half-written files and ends child processes before the command ends.
"""

import io
import os
import signal
import sys
import traceback
from multiprocessing import current_process
from typing import Annotated, NoReturn

import typer

from mlfinetune import __version__
from mlfinetune.cli.bench import bench
from mlfinetune.cli.cache import cache
from mlfinetune.cli.check import check
from mlfinetune.cli.compare import compare
from mlfinetune.cli.evaluate import evaluate
from mlfinetune.cli.init import init
from mlfinetune.cli.predict import predict
from mlfinetune.cli.report import report
from mlfinetune.cli.split import split
from mlfinetune.cli.train import train
from mlfinetune.errors import ConfigError, DeviceError, MlfinetuneError
from mlfinetune.runtime.signals import catch_signals, kill_children
from mlfinetune.runtime.torchrun import DistInfo, dist_info

BUG_REPORT = (
    "this is a bug in mlfinetune: please open an issue in its repository, with the lines above, "
    "the command and the config"
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(report)
app.command()(predict)
app.command()(init)
app.command()(check)
app.command()(split)
app.command()(bench)
app.command()(cache)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mlfinetune {__version__}")
        raise typer.Exit


DISTRIBUTED = ("train", "eval", "predict")
"""Commands that torchrun may start as several processes."""


@app.callback()
def about(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Turn a pretrained ResNet into a multi-label image tagger."""
    if dist_info().size > 1 and context.invoked_subcommand not in DISTRIBUTED:
        raise ConfigError(
            f"{context.invoked_subcommand} runs in one process: start it without torchrun, which "
            f"is for {', '.join(DISTRIBUTED)}"
        )


def main() -> None:
    """Run the console script `mlfinetune`.

    A worker process that is not forked imports the script that started the run. Where that script
    calls `main` without the guard `if __name__ == "__main__":`, the call returns at once there.

    | exit code | meaning                                                          |
    |-----------|------------------------------------------------------------------|
    | 0         | done                                                             |
    | 1         | a bug: the traceback is shown                                    |
    | 2         | arguments, config, data or machine: the message says what to fix |
    | 3         | predict: some pictures could not be read                         |
    | 130, 143  | Ctrl-C, SIGTERM                                                  |
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself asks
        return
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # file names that are not UTF-8 pass through
            stream.reconfigure(errors=errors)
    try:
        with catch_signals():
            app()
    except KeyboardInterrupt:  # outside of typer's own code, which turns it into an exit
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        _exit_with(error)


def _exit_with(error: Exception) -> NoReturn:
    """Print the error, and exit. With several ranks, only one prints the failure of the run."""
    shown: Exception | None = error
    try:
        info = dist_info()
    except DeviceError:  # torchrun's variables are wrong: that is the error that is shown
        info = DistInfo()
    if info.size > 1:
        from mlfinetune.runtime.distributed import report_failure

        shown = report_failure(error)
    if isinstance(shown, MlfinetuneError):
        from mlfinetune.text import make_lines_printable

        rank = f" (process {info.rank})" if info.size > 1 else ""
        print(f"error{rank}: {make_lines_printable(str(shown))}", file=sys.stderr)
    elif shown is not None:
        traceback.print_exception(shown)
        print(BUG_REPORT, file=sys.stderr)
    code = 2 if shown is None or isinstance(shown, MlfinetuneError) else 1
    if info.size > 1:
        # A normal exit would wait for threads and processes that still wait for other ranks.
        sys.stderr.flush()
        kill_children()
        os._exit(code)
    sys.exit(code)
