"""`mlfinetune ...` as a process forked from one that has imported everything: there at once.

    start("train", "pets.yaml", cwd=folder) -> Child: stop it, wait for it, read what it said

A child leads a process group of its own, as a shell's job does. What it does to the files of a run
is written down, and it can be told where to die there (`traced.py`).
"""

import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from faults import tiny
from faults.traced import Death, Trace
from mlfinetune.cli import main
from mlfinetune.report import page

PATIENCE_S = 90.0
"""After so long a test gives up waiting: nothing that is promised takes a quarter of it."""

CONTEXT = multiprocessing.get_context("forkserver")
page.make_environment().get_template("page.html.j2")  # compiled, children need not
WORKFLOWS = ("train", "evaluate", "predict", "check", "split", "init", "compare", "report")


def prepare_server() -> None:
    """Start the process that children are forked from; it has one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        CONTEXT.set_forkserver_preload(
            [
                tiny.__name__,  # before the tagger: it registers its network
                "faults.children",
                *(f"mlfinetune.workflows.{name}" for name in WORKFLOWS),
            ]
        )
        forkserver.ensure_running()


class Child:
    """A command that runs as a process."""

    def __init__(self, process: Any, folder: Path) -> None:
        self._process, self._folder = process, folder
        self.pid: int = process.pid

    @property
    def said(self) -> str:
        """Text that the process has written to standard error."""
        return (self._folder / "err").read_text(errors="replace")

    @property
    def out(self) -> str:
        """Text that the process has written to standard output."""
        return (self._folder / "out").read_text(errors="replace")

    @property
    def traced(self) -> list[list[str]]:
        """Calls of the process on files of its run, word by word."""
        lines = (self._folder / "calls").read_text().splitlines()
        return [line.split("\t") for line in lines]

    @property
    def exitcode(self) -> int | None:
        """Exit code; None while the process runs; -N where signal N ended it."""
        code: int | None = self._process.exitcode
        return code

    def send(self, number: int) -> None:
        """Send a signal to the process alone, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def send_group(self, number: int) -> None:
        """Send a signal to the process and its children, as a terminal sends Ctrl-C."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        self._process.join(PATIENCE_S)
        if self.exitcode is None:
            self.send_group(signal.SIGKILL)
            raise AssertionError(f"process {self.pid} runs on after {PATIENCE_S} s: {self.said}")
        return self.exitcode

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Return True as soon as the condition holds, False if the process ends before."""
        for _ in _moments():
            if condition():
                return True
            if self.exitcode is not None:
                return condition()
        raise AssertionError(f"nothing happens: {self.said}")

    def left_behind(self) -> list[int]:
        """Return processes of its group that still run after its end, and do not end."""
        living: list[int] = []
        started = time.monotonic()
        for _ in _moments():
            living = members(self.pid)
            if not living or time.monotonic() - started > 20:
                break
        return living


def start(
    *arguments: str,
    cwd: Path,
    death: Death | None = None,
    streams: Mapping[str, str | None] | None = None,
    **environment: str,
) -> Child:
    """Start `mlfinetune ...`.

    Args:
        arguments: of the command.
        cwd: folder that it runs in.
        death: where it dies.
        streams: stdin, stdout or stderr -> another file or named pipe for it; None: it is closed.
        environment: variables to add.
    """
    folder = cwd / "said" / str(time.monotonic_ns())
    folder.mkdir(parents=True)
    for name in ("out", "err", "calls"):
        (folder / name).touch()
    environment = {**os.environ, **environment}
    usual = environment.get("MLFINETUNE_TEST_START") or multiprocessing.get_start_method()
    given = (arguments, str(cwd), str(folder), environment, usual, death, streams)
    process = CONTEXT.Process(target=run_command, args=given)
    process.start()
    return Child(process, folder)


def members(group: int) -> list[int]:
    """Return the living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(") ")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _moments() -> Any:
    """Yield now, and again and again until the time limit."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        yield
        time.sleep(0.005)


# ---- in the child -----------------------------------------------------------------------


def run_command(
    arguments: tuple[str, ...],
    cwd: str,
    folder: str,
    environment: dict[str, str],
    start_method: str,
    death: Death | None = None,
    streams: Mapping[str, str | None] | None = None,
) -> None:
    """Run the console script; see `start`."""
    os.setsid()
    os.chdir(cwd)
    usual = {"stdin": "/dev/null", "stdout": f"{folder}/out", "stderr": f"{folder}/err"}
    streams = {**usual, **(streams or {})}
    for number, (name, file) in enumerate(streams.items()):
        if file is None:  # as Python finds it at its start
            os.close(number)
            setattr(sys, name, None)
        else:
            reads = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_APPEND
            os.dup2(os.open(file, reads), number)
    if streams["stdin"] is not None:  # multiprocessing has put another file in its place
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    os.environ.clear()
    os.environ.update(environment, NO_COLOR="1", COLUMNS="100")
    multiprocessing.set_start_method(start_method, force=True)  # else its workers' would be ours
    multiprocessing.process._parent_process = None  # a command is nobody's worker
    torch.set_num_threads(1)
    sys.argv = ["mlfinetune", *arguments]
    Trace(os.open(f"{folder}/calls", os.O_WRONLY | os.O_APPEND), death).begin()
    main()
