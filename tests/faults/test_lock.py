"""Two runs cannot write one directory."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FULL, Promise

from faults.children import Death
from faults.conftest import Ground, last_weights, same
from mlfinetune.errors import CheckpointError
from mlfinetune.runs import directory

pytestmark = pytest.mark.faults

HOLD = """
import sys, time
from pathlib import Path
from mlfinetune.runs.directory import locked_run
with locked_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_of_two_starts_is_refused(ground: Ground, promise: Promise) -> None:
    """Both go on with a run: one does, the other says who is there, and disturbs nothing."""
    failures, trials = [], 10 if FULL else 2
    for trial in range(trials):
        name = f"twice-{trial}"
        assert ground.start(name, death=Death("open", directory.STATE, 3)).wait() == -signal.SIGKILL
        first = ground.start(name, "--resume")
        assert first.wait_until(lambda here=first: ["step"] in here.traced)
        first.send(signal.SIGSTOP)  # or it would have ended before a slow second one begins
        second = ground.start(name, "--resume")
        code = second.wait()
        first.send(signal.SIGCONT)
        wanted = f"error: runs/{name} is being written by process {first.pid}; "
        if code != 2 or wanted not in second.said or "--output" not in second.said:
            failures.append((trial, code, second.said))
        if first.wait() != 0 or not same(last_weights(ground.run(name)), ground.weights):
            failures.append((trial, first.wait(), first.said))
    promise("P20", trials, failures)


def test_the_lock_goes_with_a_killed_process(tmp_path: Path, promise: Promise) -> None:
    """kill -9 frees it at once; what is written in it is of no account."""
    failures, trials = [], 20 if FULL else 2
    for trial in range(trials):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            try:
                with directory.locked_run(tmp_path):
                    failures.append(f"{trial}: two have it")
            except CheckpointError as error:
                if f"is being written by process {holder.pid}; " not in str(error):
                    failures.append(str(error))
            holder.kill()
        try:
            with directory.locked_run(tmp_path):
                pass
        except CheckpointError as error:
            failures.append(str(error))
    promise("P20", trials, failures)


def test_two_new_runs_get_a_directory_each(ground: Ground, promise: Promise) -> None:
    """Started at the same time without --resume, neither knows of the other."""
    two = [ground.start("new") for _ in range(2)]
    failures = [one.said for one in two if one.wait() != 0]
    runs = [ground.run("new"), ground.run("new-2")]
    failures += [str(run) for run in runs if not same(last_weights(run), ground.weights)]
    promise("P20", 1, failures)
