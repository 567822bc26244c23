"""Every file name inside a run directory, and how a file gets there whole.

runs/<name>/  config.yaml  labels.txt  best.safetensors  last.safetensors  metrics.jsonl
              metrics.json  per_label.csv  predictions.csv  scores.npz  skipped.csv  report.html
              suspects.csv  train.log; while it trains resume.pt, resume-previous.pt and .lock
"""

import contextlib
import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape as glob_escape
from pathlib import Path
from typing import BinaryIO, TextIO

from mlfinetune.errors import CheckpointError

RUNS = Path("runs")
CONFIG = "config.yaml"
LABELS = "labels.txt"
BEST = "best.safetensors"
LAST = "last.safetensors"
STATE = "resume.pt"
PREVIOUS_STATE = "resume-previous.pt"
LOCK = ".lock"
HISTORY = "metrics.jsonl"
METRICS = "metrics.json"
PER_LABEL = "per_label.csv"
PREDICTIONS = "predictions.csv"
SCORES = "scores.npz"
SKIPPED = "skipped.csv"
REPORT = "report.html"
SUSPECTS = "suspects.csv"
LOG = "train.log"
EVAL = "eval"
_FIRST = (CONFIG, LOCK)
"""What there is of a run that was killed as it began, or that another machine has made."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def claim(wanted: Path) -> Path:
    """Make the run directory `wanted`, or `wanted-2`, `wanted-3` ... where it is taken.

    Raises:
        CheckpointError: the directory cannot be made.
    """
    number, candidate = 1, wanted
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise CheckpointError(
                f"cannot make the run directory {candidate}: {error.strerror}; "
                f"choose another with --output"
            ) from error


def begun(wanted: Path) -> Path | None:
    """The newest of the run directories `wanted`, `wanted-2` ...; None: there is none."""
    found = [
        path
        for path in wanted.parent.glob(f"{glob_escape(wanted.name)}*")
        if re.fullmatch(r"(-[1-9]\d{0,8})?", path.name[len(wanted.name) :])
        and any((path / name).is_file() for name in _FIRST)
    ]
    return max(found, key=_last_written, default=None)


def states(run: Path) -> list[Path]:
    """The states that there are to go on from, the newest first."""
    return [run / name for name in (STATE, PREVIOUS_STATE) if (run / name).is_file()]


def unfinished(run: Path) -> bool:
    """Has it stopped before its end, with a state to go on from, and does nobody write to it?"""
    if (run / METRICS).is_file() or not states(run):
        return False
    try:
        with locked(run):
            return True
    except CheckpointError:
        return False


def _last_written(run: Path) -> int:
    newest = [(run / name) for name in (LOG, STATE, *_FIRST) if (run / name).is_file()]
    return max(path.stat().st_mtime_ns for path in newest)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Only one process at a time; the lock goes with the process that holds it, however it ends.

    Raises:
        CheckpointError: another process has it.
    """
    try:
        file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unwritten(run / LOCK, error) from error
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's not a child's too
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(file, 20).decode(errors="replace").strip() or "?"
            raise CheckpointError(
                f"{shown(run)} is being written by process {holder}; "
                f"wait for it or stop it, or choose another run directory with --output"
            ) from error
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(file)


def sweep(run: Path) -> None:
    """Remove what writers that were killed have left behind."""
    for orphan in run.glob(".*.tmp"):
        orphan.unlink(missing_ok=True)


def make(folder: Path) -> None:
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


def shown(path: Path) -> str:
    """The path as the user would type it: from the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def unwritten(path: Path, error: OSError) -> CheckpointError:
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
    with writing_bytes(path) as file:
        file.write(content)


@contextmanager
def writing_bytes(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that takes its place at `path` only when it is whole, as in `write_atomic`.

    `keep`: what was at `path` before goes there.
    """
    with _replacing(path, keep) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
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
        raise unwritten(path, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(keep)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritten(path, error) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that `path`, a run directory or a file, stands for.

    Raises:
        CheckpointError: there is none.
    """
    if os.path.isfile(path):  # unlike pathlib's, these take what cannot be read for absent
        return path
    if os.path.isfile(path / BEST):
        return path / BEST
    if os.path.isdir(path):
        raise CheckpointError(
            f"{path} holds no {BEST}; name a run directory that `mlfinetune train` finished, "
            f"or a checkpoint file"
        )
    raise CheckpointError(f"no such checkpoint: {path}")


def newest_finished(runs: Path = RUNS) -> Path:
    """The checkpoint of the run under `runs` that finished last.

    Raises:
        CheckpointError: no run has finished.
    """
    finished = [p for p in runs.glob(f"*/{METRICS}") if (p.parent / BEST).is_file()]
    if not finished:
        raise CheckpointError(
            f"no finished run under {runs.absolute()}; train one, or name one with --checkpoint"
        )
    return max(finished, key=lambda p: p.stat().st_mtime_ns).parent / BEST


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
