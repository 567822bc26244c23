"""Lines of standard input, from real pipes."""

import os
import subprocess
import sys

import pytest

from mlfinetune.data.lines import read_lines, wait_for_lines
from mlfinetune.errors import DataError

WRITE_LATER = "import os, time; time.sleep(0.2); os.write(1, b'b.jpg\\nc.jpg')"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """As another program of the shell's job may have left it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"a.jpg\n")
    with subprocess.Popen([sys.executable, "-c", WRITE_LATER], stdout=writer):
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as stdin:
            assert list(wait_for_lines(read_lines(stdin))) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("content", [b"a\n", b"a.jpg"])
def test_bytes_that_are_no_text_are_told(content: bytes) -> None:
    """With PYTHONIOENCODING=utf-16, in a line and at the end; nobody waits for more."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with (
        os.fdopen(reader, encoding="utf-16") as stdin,
        pytest.raises(DataError, match=r"no text in utf-16 .*PYTHONIOENCODING=utf-8"),
    ):
        list(wait_for_lines(read_lines(stdin)))
