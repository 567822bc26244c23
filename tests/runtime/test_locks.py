"""A file is locked by one process at a time, and the lock ends with its holder."""

import os
import signal
import subprocess
import sys
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
