"""Standard streams in a process of their own."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from mlfinetune.runtime.streams import open_streams
open_streams()
for stream in (sys.stderr, sys.stdout):
    print("first", file=stream)
    if stream is sys.stdout:
        stream.flush()
    os.write(stream.fileno(), b"second\\n")
print("http://me:hidden@host", file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_messages_come_at_once_and_without_secrets(unbuffered: str) -> None:
    """With Python's buffers and without them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "first\nsecond\n"
    assert done.stderr == "first\nsecond\nhttp://***@host\n"


PIPE_OF_WINDOWS = """
import os, sys
sys.platform = "win32"
os.dup2(os.eventfd(0), 1)  # fewer than 8 bytes are an invalid argument
from mlfinetune.runtime.streams import ReaderGoneError, flush_output, open_streams
open_streams()
try:
    print("a")
    flush_output()
except ReaderGoneError:
    sys.exit(7)
"""


def test_a_reader_that_has_gone_on_windows() -> None:
    """There the error of the pipe has another number."""
    done = subprocess.run([sys.executable, "-c", PIPE_OF_WINDOWS], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")
