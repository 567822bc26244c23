"""The command line, one file for each command: parse, load, call one workflow, print.

arguments -> Config or request -> workflows.X.run -> table on stdout, messages on stderr, exit code
Start at evaluate.py, a typical command; `main` below handles every error.

Importing this package loads no torch: a command imports its workflow when it is called. `main`
catches every MlfinetuneError: its message goes to standard error, and the exit code is 2. `main`
handles signals too: it removes half-written files and ends child processes before the command ends.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mlfinetune.cli.apply_fixes import apply_fixes
from mlfinetune.cli.bench import bench
from mlfinetune.cli.cache import cache
from mlfinetune.cli.card import card
from mlfinetune.cli.check import check
from mlfinetune.cli.compare import compare
from mlfinetune.cli.crossval import crossval
from mlfinetune.cli.evaluate import evaluate
from mlfinetune.cli.export import export
from mlfinetune.cli.init import init
from mlfinetune.cli.models import models
from mlfinetune.cli.next import choose_next
from mlfinetune.cli.predict import predict
from mlfinetune.cli.report import report
from mlfinetune.cli.runs import runs
from mlfinetune.cli.split import split
from mlfinetune.cli.train import train
from mlfinetune.errors import ConfigError, DataError, DeviceError, MlfinetuneError, OutputError
from mlfinetune.runtime.signals import STOP_SIGNALS, catch_signals, kill_children
from mlfinetune.runtime.streams import ReaderGoneError, flush_output, open_streams
from mlfinetune.runtime.torchrun import DistInfo, dist_info
from mlfinetune.storage.cache import remove_temporary_folders
from mlfinetune.text import make_lines_printable, mask_secrets
from mlfinetune.version import __version__

BUG_REPORT = (
    "this is a bug in mlfinetune: please open an issue in its repository, with the lines above, "
    "the command and the config"
)


class _Commands(TyperGroup):
    """The commands. Errors of usage show no secrets: their box breaks a long URL into lines."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the arguments before the command's name."""
        with _masked_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse the command's own arguments, and run it."""
        with _masked_errors():
            return super().invoke(ctx)


@contextmanager
def _masked_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str):
            vars(error)["message"] = mask_secrets(message)
        raise


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(crossval)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(report)
app.command()(card)
app.command()(runs)
app.command()(predict)
app.command("next")(choose_next)
app.command()(export)
app.command()(init)
app.command()(check)
app.command()(split)
app.command("apply-fixes")(apply_fixes)
app.command()(bench)
app.command()(cache)
app.command()(models)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mlfinetune {__version__}")
        raise typer.Exit


DISTRIBUTED = ("train", "crossval", "eval", "predict")
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
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used ({error.strerror}): go to one that is there"
        ) from error
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        print(
            f"note: this locale reads file names as {encoding}, and tables are UTF-8; where names "
            f"are not found, set PYTHONUTF8=1",
            file=sys.stderr,
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
    | 3         | predict, next: some pictures could not be read                   |
    | 130, 143  | Ctrl-C, SIGTERM                                                  |
    """
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself asks
        return
    try:
        open_streams()
        with catch_signals() as heard:
            try:
                _run_app()
            except ImportError:  # an extension in C makes one of a signal while it is loaded
                heard.check()
                raise
    except KeyboardInterrupt:  # outside of typer's own code, which turns it into an exit
        sys.exit(128 + signal.SIGINT)
    except ReaderGoneError:
        _end_quietly()
    except Exception as error:
        _exit_with(error)


def _run_app() -> None:
    """Run the command, then write what it has printed; a signal's exit code comes first."""
    try:
        app()
    except SystemExit as end:
        if end.code not in {128 + number for number in STOP_SIGNALS}:
            flush_output()
        raise


def _end_quietly() -> NoReturn:
    """Exit with 0: `mlfinetune ... | head -1` has read enough."""
    if _find_ranks().size > 1:
        from mlfinetune.runtime.distributed import report_failure

        report_failure(DataError("enough"))  # the other ranks then end without a message
        _leave(0)
    sys.exit(0)


def _find_ranks() -> DistInfo:
    """Return rank and size; of one process where torchrun's variables are wrong."""
    try:
        return dist_info()
    except DeviceError:
        return DistInfo()


def _exit_with(error: Exception) -> NoReturn:
    """Print the error, and exit. With several ranks, only one prints the failure of the run."""
    shown: Exception | None = error
    info = _find_ranks()
    with suppress(OutputError, ReaderGoneError):
        flush_output()
    if info.size > 1:
        from mlfinetune.runtime.distributed import report_failure

        shown = report_failure(error)
    if isinstance(shown, MlfinetuneError):
        rank = f" (process {info.rank})" if info.size > 1 else ""
        print(f"error{rank}: {make_lines_printable(str(shown))}", file=sys.stderr)
    elif shown is not None:
        lines = "".join(traceback.format_exception(shown))
        print(mask_secrets(lines) + BUG_REPORT, file=sys.stderr)
    code = 2 if shown is None or isinstance(shown, MlfinetuneError) else 1
    if info.size > 1:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Exit at once: a normal exit would wait for threads and processes that wait for other ranks.

    What a normal exit would remove is removed here.
    """
    sys.stderr.flush()
    kill_children()
    remove_temporary_folders()
    os._exit(code)
