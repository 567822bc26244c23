"""Atomic writes: a file gets its name only when it is complete.

    temporary file -> fsync -> rename -> fsync of the folder

A reader, or a run after a crash, finds the old file or the new one, never a part of one.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from mlfinetune.errors import CheckpointError
from mlfinetune.text import mask_secrets

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
"""Seconds between two attempts to rename a file."""


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of processes that were killed."""
    for orphan in folder.glob(".*.tmp"):
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def make_new_folder(folder: Path) -> bool:
    """Make `folder` and its parents; return False where something of that name exists.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise CheckpointError(
            f"cannot make the folder {folder}: {error.strerror}; choose another with --output"
        ) from error


_TRIAL_BYTES = 2**16


def try_writing(folder: Path, option: str = "--output") -> None:
    """Write and drop a file where `folder` is or would be made, so that long work begins after.

    Args:
        folder: may be there or not.
        option: names the folder on the command line, for the message.

    Raises:
        CheckpointError: it could not be written there (no permission, a full disk, a file), or it
            was a URL.
    """
    _refuse_url(folder, option)
    wanted = folder.absolute()
    # On Windows a drive may be missing too: there is then no folder above.
    place = next(filter(os.path.lexists, (wanted, *wanted.parents)), wanted)
    try:
        with tempfile.TemporaryFile(prefix=".mlfinetune.", suffix=".tmp", dir=place) as file:
            file.write(bytes(_TRIAL_BYTES))
    except OSError as error:
        if is_full(error):
            raise build_write_error(wanted, error) from error
        raise CheckpointError(
            f"cannot write into {folder}: {place}: {error.strerror}; choose another with {option}"
        ) from error


def try_writing_file(path: Path, option: str = "--output") -> None:
    """Try as `try_writing`, for a file that will be made or overwritten; it stays as it is.

    Args:
        path: the file.
        option: names it on the command line, for the message.

    Raises:
        CheckpointError: it could not be written; its folder is not made.
    """
    _refuse_url(path, option)
    if path.is_dir():
        raise CheckpointError(f"cannot write {path}: it is a folder; choose another with {option}")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: No such file or directory; make its folder")
    if not path.exists():
        try_writing(path.parent, option)
    elif not os.access(path, os.W_OK):
        raise CheckpointError(f"cannot write {path}: Permission denied")


def _refuse_url(path: Path, option: str) -> None:
    """Raise a CheckpointError for a URL: of `s3://a/b` a path makes the folders `s3:` and `a`."""
    for number, part in enumerate(path.parts):
        folder = Path(*path.parts[: number + 1])
        if _PROTOCOL.fullmatch(part) and not os.path.lexists(folder):
            url = f"{part}//{'/'.join(path.parts[number + 1 :])}"
            raise CheckpointError(
                f"cannot write {mask_secrets(url)}: results are written to this machine; give a "
                f"path as {option}, and copy them from there"
            )


_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""Two letters or more: `c:` is a drive of Windows."""


def is_full(error: BaseException | None) -> bool:
    """Return whether an error says that the disk, or a user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def build_write_error(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a failed write of `path`, with what to do where the disk is full."""
    text = f"cannot write {path}: {error.strerror}"
    if is_full(error):
        text += "; make room there and start it again, `mlfinetune train` with --resume"
    return CheckpointError(text)


def write_atomic(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write `content` to `path`, whole or not at all.

    Args:
        path: the file.
        content: its bytes.
        mode: its permissions; None: those of a new file.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    with writing_binary(path, mode=mode) as file:
        file.write(content)


@contextmanager
def writing_binary(
    path: Path, keep: Path | None = None, mode: int | None = None
) -> Iterator[BinaryIO]:
    """Open a binary file that gets the name `path` when the block ends without an error.

    Args:
        path: the file's name in the end; a file of that name is replaced.
        keep: name for the file that was at `path` before; None: it is deleted.
        mode: its permissions; None: those of a new file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with replacing_file(path, keep, mode) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file, for CSV, that gets the name `path` when the block ends without error.

    Raises:
        CheckpointError: it cannot be written.
    """
    with (
        replacing_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing_file(path: Path, keep: Path | None = None, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end, remove it on an error.

    Beside it, since a rename is atomic only within one file system.

    Args:
        path: the file's name in the end; a file of that name is replaced.
        keep: name for the file that was at `path` before; None: it is deleted.

    Raises:
        CheckpointError: an OSError of the block, or of the rename.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise build_write_error(path, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp gives rights to this user alone.
        temporary.chmod(0o666 & ~_read_umask() if mode is None else mode)
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                replace_file(path, keep)
        replace_file(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise build_write_error(path, error) from error
        raise


def replace_file(source: Path, target: Path) -> None:
    """Rename a file; one that is called `target` is replaced.

    Windows refuses that as long as a program has one of the two open: a virus scanner, a
    spreadsheet. So it is tried again for a second.

    Raises:
        OSError: it cannot be renamed.
    """
    for pause in _PAUSES_S:
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(pause)
    source.replace(target)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can.

    Windows opens no folder; there a name may be lost when the power fails, never a file's content.
    Some file systems of a network sync no folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def _read_umask() -> int:
    """Return this process's umask, which the system gives only in exchange for another."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
