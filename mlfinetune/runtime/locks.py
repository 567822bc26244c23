"""A lock on a file, held by one process at a time; runs/directory.py locks a run with it.

This is the only module that imports filelock, which knows the locks of each operating system.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout


class LockedError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: its process number as text; `?` where it could not write it (a full disk).
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by process {holder}")
        self.holder = holder


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold the lock on `path` inside the block; the file is made where it is missing.

    The operating system releases the lock when the process ends, however it ends, so the file
    itself may stay: a lock file without a holder locks nothing. The file holds the number of the
    process that locked it last.

    A Python without locks of the system takes the existence of the file for the lock. It is then
    removed at the end, and one whose process has died is replaced.

    Raises:
        LockedError: another process holds the lock.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    os.stat(path.parent)  # filelock would make a missing folder
    lock = _build_lock(path)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(_read_holder(path)) from error
    try:
        yield
    finally:
        lock.release()


def _build_lock(path: Path) -> BaseFileLock:
    """Return a lock that is had at once or not at all.

    filelock closes it in processes that are forked, which so do not hold it beyond their parent.
    """
    if FileLock is SoftFileLock:
        return SoftFileLock(path, blocking=False)
    return FileLock(path, blocking=False, preserve_lock_file=True, on_acquired=_write_holder)


def _write_holder(descriptor: int) -> None:
    """Write this process's number behind a blank: Windows lets nobody read the first, locked byte.

    On a full disk the lock holds without a number in it.
    """
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f" {os.getpid()}\n".encode())


def _read_holder(path: Path) -> str:
    """Return the number of the process that holds the lock, or `?`."""
    start = 0 if FileLock is SoftFileLock else 1
    try:
        with path.open("rb") as file:
            file.seek(start)
            return (file.read(20).decode(errors="replace").split() or ["?"])[0]
    except OSError:
        return "?"
