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
