"""Lines of standard input as they come, for paths that another program sends one by one.

    sys.stdin -> read_lines -> "a.jpg", "b.jpg", None, None, "c.jpg"

None means that no line is there right now: whoever collects a batch then goes on with what it has,
rather than keep the sender waiting for the answer.
"""

import io
import os
import select
import stat
import time
from collections.abc import Iterable, Iterator
from queue import Empty, Queue
from threading import Thread
from typing import TextIO

from mlfinetune.errors import DataError
from mlfinetune.runtime.signals import blocked_signals

PAUSE_S = 0.02
"""Seconds after which a next line counts as not there: a program that lists files is faster."""
_CHUNK = 2**16
_AHEAD = 10_000
"""Number of lines that are read ahead."""


def read_lines(stdin: TextIO) -> Iterable[str | None]:
    """Return the lines of stdin; None where it has none right now.

    A file, and a stream that is no file of the system, always have their next line: no None there.

    Raises:
        DataError: it cannot be read.
    """
    buffer = stdin.buffer if isinstance(stdin, io.TextIOWrapper) else None
    if buffer is None or type(getattr(buffer, "raw", None)) is not io.FileIO:
        return stdin
    lines = _split_lines(stdin.fileno(), stdin.encoding)
    return lines if stat.S_ISREG(os.fstat(stdin.fileno()).st_mode) else _read_ahead(lines)


def wait_for_lines(lines: Iterable[str | None]) -> Iterator[str]:
    """Yield the lines alone: wait where there is none right now."""
    for line in lines:
        if line is None:
            time.sleep(PAUSE_S)
        else:
            yield line


def _read_ahead(lines: Iterator[str]) -> Iterator[str | None]:
    """Read lines in a thread, from the first `next` on; yield None after PAUSE_S without one.

    Where the value before was None, the next one comes at once: waiting is the caller's business.
    """
    queue: Queue[str | Exception | None] = Queue(_AHEAD)

    def fill() -> None:
        try:
            for line in lines:
                queue.put(line)
            queue.put(None)
        except Exception as error:  # else the reader would wait for ever
            queue.put(error)

    with blocked_signals():  # the main thread is to hear them
        Thread(target=fill, name="stdin", daemon=True).start()
    pause = PAUSE_S
    while True:
        try:
            item = queue.get(timeout=pause) if pause else queue.get_nowait()
        except Empty:
            pause = 0
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        pause = PAUSE_S
        yield item


def _split_lines(number: int, encoding: str) -> Iterator[str]:
    """Yield the lines of an open file, each as soon as it is there.

    It reads the file by its number: Python dies at exit of a thread that waits in `sys.stdin`.
    """
    rest = b""
    try:
        while chunk := _wait_and_read(number):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(encoding, "surrogateescape") for line in lines)
        if rest:
            yield rest.decode(encoding, "surrogateescape")
    except OSError as error:
        raise DataError(f"standard input cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise DataError(
            f"standard input is no text in {encoding} ({error}); PYTHONIOENCODING=utf-8 names "
            f"another encoding"
        ) from error


def _wait_and_read(number: int) -> bytes:
    """Return the next bytes of an open file, also of one that does not block; none at its end."""
    while True:
        try:
            return os.read(number, _CHUNK)
        except BlockingIOError:
            select.select([number], [], [])
