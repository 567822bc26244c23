"""The command line: one file a command; each parses, loads, calls one workflow, prints.

Importing this loads no torch: commands import their workflow when they are called. Every
MlfinetuneError ends here: its message on standard error, exit code 2. So does a signal, which ends
a command in order: what it has begun to write aside goes, and its processes end.
"""

import io
import os
import signal
import sys
import traceback
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

REPORT_TO = (
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


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mlfinetune {__version__}")
        raise typer.Exit


SHARED = ("train", "eval", "predict")
"""Commands that several processes share."""


@app.callback()
def about(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn a pretrained ResNet into a multi-label image tagger."""
    if dist_info().size > 1 and context.invoked_subcommand not in SHARED:
        raise ConfigError(
            f"{context.invoked_subcommand} runs in one process: leave torchrun out; it is for "
            f"{', '.join(SHARED)}"
        )


def main() -> None:
    """The console script.

    Exit codes: 0 done, 1 a bug, 2 yours to mend, 3 some inputs failed, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # file names that are no UTF-8 go through
            stream.reconfigure(errors=errors)
    try:
        with catch_signals():
            app()
    except KeyboardInterrupt:  # before or after typer, which makes an exit of it
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        _end(error)


def _end(error: Exception) -> NoReturn:
    """Say what went wrong, unless another process of the run has."""
    shown: Exception | None = error
    try:
        here = dist_info()
    except DeviceError:  # which is this error
        here = DistInfo()
    if here.size > 1:
        from mlfinetune.runtime.distributed import report_failure

        shown = report_failure(error)
    if isinstance(shown, MlfinetuneError):
        from mlfinetune.text import make_lines_printable

        rank = f" (process {here.rank})" if here.size > 1 else ""
        print(f"error{rank}: {make_lines_printable(str(shown))}", file=sys.stderr)
    elif shown is not None:
        traceback.print_exception(shown)
        print(REPORT_TO, file=sys.stderr)
    code = 2 if shown is None or isinstance(shown, MlfinetuneError) else 1
    if here.size > 1:  # what waits for the others would wait on
        sys.stderr.flush()
        kill_children()
        os._exit(code)
    sys.exit(code)
