"""A file is locked by one process at a time, and the lock ends with its holder."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlfinetune.runtime.locks import LockedError, locked_file

HOLD = """\
import sys, time
from pathlib import Path
from mlfinetune.runtime.locks import locked_file
with locked_file(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_error_names_the_holder_and_the_lock_ends_with_it(tmp_path: Path) -> None:
    """Even where it is killed; the file stays, and locks nothing."""
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(LockedError) as caught, locked_file(path):
            raise AssertionError
        assert caught.value.holder == str(holder.pid)
        holder.send_signal(signal.SIGKILL)
    with locked_file(path):
        assert path.read_text() == f" {os.getpid()}\n"


def test_it_can_be_taken_again(tmp_path: Path) -> None:
    """After an error in the block too."""
    with pytest.raises(ZeroDivisionError), locked_file(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked_file(tmp_path / "lock"):
        pass


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked_file(tmp_path / "gone" / "lock"):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_does_not_hold_it(tmp_path: Path) -> None:
    """A worker may live a moment longer than the process that holds the lock."""
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=time.sleep, args=(60,))
    with locked_file(tmp_path / "lock"):
        worker.start()
    try:
        with locked_file(tmp_path / "lock"):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


WITHOUT_FCNTL = f"""\
import sys, warnings
warnings.simplefilter("ignore")  # filelock tells that the system has no locks
sys.modules["fcntl"] = None
{HOLD}
"""


def test_without_locks_of_the_system_the_file_is_the_lock(tmp_path: Path) -> None:
    """The error names the holder too, and one that was killed holds nothing."""
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "lock")]
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            second = subprocess.run(command, capture_output=True, text=True)
            assert f"LockedError: locked by process {holder.pid}\n" in second.stderr
            holder.kill()
