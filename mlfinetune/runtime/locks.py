"""A lock on a file, held by one process at a time; runs/directory.py locks a run with it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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

    Raises:
        LockedError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            # lockf's lock belongs to this process alone; children would inherit that of flock.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            raise LockedError(holder or "?") from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a number in it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
