"""Atomic writes: a file gets its name only when it is whole.

temporary file -> fsync -> rename -> fsync of the folder
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from mlfinetune.errors import CheckpointError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove_leftovers(run: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for orphan in run.glob(".*.tmp"):
        orphan.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make `folder` where it is missing.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot make the folder {folder}: {error.strerror}; choose another with --output"
        ) from error


def write_error(path: Path, error: OSError) -> CheckpointError:
    """The error in writing `path`, in words, with what to do where the disk is full."""
    text = f"cannot write {path}: {error.strerror}"
    if error.errno in _NO_ROOM:
        text += "; make room there and start it again, `mlfinetune train` with --resume"
    return CheckpointError(text)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `path` whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    with writing_binary(path) as file:
        file.write(content)


@contextmanager
def writing_binary(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that takes its place at `path` only when it is whole, as in `write_atomic`.

    `keep`: what was at `path` before goes there.
    """
    with _replacing(path, keep) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file for CSV that takes its place at `path` only when it is whole."""
    with (
        _replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary name beside `path` that is renamed to it at the end, or removed on an error."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_read_umask())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(keep)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
