"""Standard input, output and error of this process: open, and with one way to fail.

    open_streams()    first of all; it replaces sys.stdin, sys.stdout and sys.stderr where needed
    require_output()  before work whose only result is printed; require_input() before stdin is read
    flush_output()    last of all

| stream | closed, `>&-`            | full, `> /dev/full` | reader gone, `| head -1` |
|--------|--------------------------|---------------------|--------------------------|
| stdin  | `require_input` raises   |                     |                          |
| stdout | `require_output` raises  | OutputError         | ReaderGoneError          |
| stderr | lines are lost           | lines are lost      | lines are lost           |

A closed stream would otherwise be worse than no stream: the system gives its number to the next
file that is opened, and prints would go into that file. No torch here.
"""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlfinetune.errors import DataError, OutputError
from mlfinetune.text import mask_secrets

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_READER_GONE = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)
"""Errors of a pipe that nobody reads any more; Windows has one for several faults."""
_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}
_closed: set[str] = set()
"""Names of the streams that were closed when the process began, for its whole life."""


class ReaderGoneError(Exception):
    """The program that reads the results has ended: `mlfinetune ... | head -1` has its line."""


def open_streams() -> None:
    """Open what is closed, and make the streams fail as the table above says.

    A stream that another program has put in place (pytest, a notebook) stays.
    """
    codecs.register_error("json_escape", _escape)
    for number, (name, mode) in enumerate(_MODES.items()):
        if getattr(sys, name) is None:
            _closed.add(name)
            _occupy(number)
            null = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 (stays)
            setattr(sys, name, null)
    sys.stdout = _replace(sys.stdout, sys.__stdout__, _Output)
    sys.stderr = _replace(sys.stderr, sys.__stderr__, _Errors)
    # File names that are not UTF-8 pass through; what a locale cannot write is still valid JSON.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "json_escape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def require_output() -> None:
    """Raise OutputError where standard output is closed, before hours of work for nothing."""
    if "stdout" in _closed:
        raise OutputError(
            "standard output is closed, and the results would go there: redirect it to a file"
        )


def require_input() -> None:
    """Raise DataError where standard input is closed."""
    if "stdin" in _closed:
        raise DataError("standard input is closed: there are no paths to read for -")


def flush_output() -> None:
    """Write what is still in the buffer of standard output.

    Raises:
        OutputError, ReaderGoneError: it cannot be written.
    """
    sys.stdout.flush()


def _occupy(number: int) -> None:
    """Open the null device under the number of a closed stream, for child processes too."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)
        if null != number:
            os.close(null)
        os.set_inheritable(number, True)


def _replace(stream: TextIO, original: TextIO | None, kind: "type[_Output | _Errors]") -> TextIO:
    """Return the stream of the process with `kind` below its text; any other stays as it is."""
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(raw) is not io.FileIO:  # the console of Windows
        return stream
    stream.flush()
    file = kind(raw.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        file if raw is stream.buffer else io.BufferedWriter(file),  # PYTHONUNBUFFERED: no buffer
        encoding=stream.encoding,
        errors=stream.errors,
        newline="",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    """Standard output: its errors are not those of any other file."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of it, and wait where the end of a pipe that does not block is slow."""
        left = memoryview(data)
        try:
            while left:
                if (written := super().write(left)) is None:
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            _divert(self.fileno())
            if error.errno in _READER_GONE:
                raise ReaderGoneError from error
            raise OutputError(
                f"standard output cannot be written: {error.strerror}; redirect it to a file "
                f"where there is room"
            ) from error
        return memoryview(data).nbytes


class _Errors(io.FileIO):
    """Standard error: where nobody can read it, that is no reason to stop.

    Secrets are masked here too, since libraries write their own warnings and errors.
    """

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write, or drop what cannot be written."""
        text = bytes(data).decode("latin-1")  # any bytes, and back to the same ones
        left = mask_secrets(text).encode("latin-1")
        with suppress(OSError):
            while left:
                left = left[super().write(left) or len(left) :]
        return len(text)


def _divert(number: int) -> None:
    """Point a broken stream at the null device: Python writes its buffer again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return `\u00e9` for characters that an encoding lacks: JSON's way, and readable in CSV."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (lost[at : at + 2].hex() for at in range(0, len(lost), 2))
    return "".join(f"\\u{unit}" for unit in units), error.end
