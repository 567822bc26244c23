"""File names of a run directory; making, finding and locking one.

runs/<name>/  config.yaml  labels.txt  best.safetensors  last.safetensors  metrics.jsonl
              metrics.json  per_label.csv  predictions.csv  scores.npz  skipped.csv  report.html
              suspects.csv  heat_maps.json  near_duplicates.npz  trained_on.npz  train.log
              resume.pt  .lock; while it trains resume-previous.pt
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from glob import escape as glob_escape
from pathlib import Path

from mlfinetune.errors import CheckpointError
from mlfinetune.runtime.locks import LockedError, locked_file
from mlfinetune.storage.atomic import build_write_error
from mlfinetune.text import display_path

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
TRAINED_ON = "trained_on.npz"
HEAT_MAPS = "heat_maps.json"
NEAR_DUPLICATES = "near_duplicates.npz"
REPORT = "report.html"
SUSPECTS = "suspects.csv"
LOG = "train.log"
EVAL = "eval"
_FIRST = (CONFIG, LOCK)
"""Files that mark a run directory. A run that was killed at its start has only the lock; a run that
was copied from another machine may have only the config."""


def make_run_dir(wanted: Path) -> Path:
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


def find_run(wanted: Path) -> Path | None:
    """Return the newest of the run directories `wanted`, `wanted-2` ..., or None."""
    return next(iter(find_runs(wanted)), None)


def find_runs(wanted: Path) -> list[Path]:
    """Return the run directories `wanted`, `wanted-2` ..., the newest first."""
    runs = [
        path
        for path in wanted.parent.glob(f"{glob_escape(wanted.name)}*")
        if re.fullmatch(r"(-[1-9]\d{0,8})?", path.name[len(wanted.name) :])
        and any((path / name).is_file() for name in _FIRST)
    ]
    return sorted(runs, key=_read_last_write_ns, reverse=True)


def list_states(run: Path) -> list[Path]:
    """Return the paths of the resume states that exist, the newest first."""
    return [run / name for name in (STATE, PREVIOUS_STATE) if (run / name).is_file()]


def is_unfinished(run: Path) -> bool:
    """Tell whether a run stopped early, has a resume state, and is not in use by a process."""
    if (run / METRICS).is_file() or not list_states(run):
        return False
    try:
        with locked_run(run):
            return True
    except CheckpointError:
        return False


def _read_last_write_ns(run: Path) -> int:
    newest = [(run / name) for name in (LOG, STATE, *_FIRST) if (run / name).is_file()]
    return max(path.stat().st_mtime_ns for path in newest)


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Hold the lock on a run directory inside the block; one process at a time has it.

    The system releases the lock when its process ends, in whatever way that happens.

    Raises:
        CheckpointError: another process has it, or the lock file cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_file(run / LOCK))
        except LockedError as error:
            raise CheckpointError(
                f"{display_path(run)} is being written by process {error.holder}; "
                f"wait for it or stop it, or choose another run directory with --output"
            ) from error
        except OSError as error:
            raise build_write_error(run / LOCK, error) from error
        yield


def is_in_use(run: Path) -> bool:
    """Tell whether a process holds the lock on a run directory; nothing is written."""
    if not (run / LOCK).is_file():
        return False
    try:
        with locked_file(run / LOCK):
            return False
    except LockedError:
        return True
    except OSError:
        return False


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file of `path`, which is a run directory or the file itself.

    Raises:
        CheckpointError: there is none.
    """
    if os.path.isfile(path):  # unlike pathlib, os.path treats an unreadable path as absent
        return path
    if os.path.isfile(path / BEST):
        return path / BEST
    if os.path.isdir(path):
        raise CheckpointError(
            f"{path} holds no {BEST}; name a run directory that `mlfinetune train` finished, "
            f"or a checkpoint file"
        )
    raise CheckpointError(
        f"no such checkpoint: {path}; name a run directory, such as runs/pets, or a .safetensors "
        f"file"
    )


def find_newest_checkpoint(runs: Path = RUNS) -> Path:
    """Return the checkpoint of the run under `runs` that finished last.

    Raises:
        CheckpointError: no run has finished.
    """
    finished = [p for p in runs.glob(f"*/{METRICS}") if (p.parent / BEST).is_file()]
    if not finished:
        raise CheckpointError(
            f"no finished run under {runs.absolute()}; train one, or name one with --checkpoint"
        )
    return max(finished, key=lambda p: p.stat().st_mtime_ns).parent / BEST
