"""The cache folder: results that are computed once; safe to delete at any time.

$MLFINETUNE_CACHE, else $XDG_CACHE_HOME/mlfinetune, else ~/.cache/mlfinetune

A cache only saves work: where it cannot be used, a run goes on without it, and says so once
(`report_unused`). Files that must lie somewhere are then put into `make_temporary_folder`.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from tempfile import TemporaryDirectory

from mlfinetune.errors import DataError, UnwritableError

KINDS = ("checkpoints", "features", "images", "parquet", "scan", "tables", "tars")
"""Kinds of cached results, a folder each; `mlfinetune cache --clear` deletes no other folder."""

_reported: set[str] = set()
"""Variables that `report_unused` has named; a cache that fails is reported once."""


def get_cache_folder(kind: str) -> Path | None:
    """Return the cache folder of one of KINDS; make it where it is missing.

    Returns:
        None: there is none, and it cannot be made; the user has been told.
    """
    assert kind in KINDS
    try:
        path = get_cache_root() / kind
        path.mkdir(parents=True, exist_ok=True)
    except DataError:
        report_unused("there is no home folder")
        return None
    except OSError as error:
        report_unused(error)
        return None
    return path


def report_unused(why: object, variable: str = "MLFINETUNE_CACHE") -> None:
    """Say on standard error that this run goes without a cache; once a run.

    Worker processes and other ranks say nothing: the main process meets the same fault.

    Args:
        why: the fault; of an OSError its file and its text.
        variable: names the folder in the environment; torch.hub's cache has one of its own.
    """
    if variable in _reported or parent_process() is not None or os.environ.get("RANK", "0") != "0":
        return
    if isinstance(why, OSError) and why.strerror:
        why = f"{why.filename}: {why.strerror}" if why.filename else why.strerror
    text = " ".join(str(why).split()).rstrip(".")
    if variable in text:  # the fault says already what to set
        text = text.split("; ")[0]
    _reported.add(variable)
    line = (
        f"warning: cache not used: {text}; this run takes longer; set {variable} to a folder that "
        f"can be written and has room"
    )
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(line, file=sys.stderr, flush=True)


def make_in_cache(kind: str, make: Callable[[Path], Path]) -> Path:
    """Return `make(folder)` for the cache's folder of a kind, or for a temporary one.

    Args:
        kind: one of KINDS.
        make: makes a file or folder in a folder; raises an UnwritableError where it cannot be
            written there. Any other error is no fault of the cache, and is raised at once.

    Raises:
        DataError: it cannot be made in the temporary folder either.
    """
    folder = get_cache_folder(kind)
    if folder is not None:
        try:
            return make(folder)
        except UnwritableError as error:
            report_unused(error)
    return make(make_temporary_folder(kind))


def make_temporary_folder(kind: str) -> Path:
    """Return a folder for this run's files of one kind, in place of the cache; deleted at its end.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path = Path(_make_temporary_root().name, kind)
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"neither the cache nor a temporary folder can be written ({error.strerror}); set "
            f"MLFINETUNE_CACHE to a folder that can be written and has room"
        ) from error
    return path


@cache
def _make_temporary_root() -> "TemporaryDirectory[str]":
    """Make the folder of `make_temporary_folder`, once a process."""
    return TemporaryDirectory(prefix="mlfinetune-", ignore_cleanup_errors=True)


def remove_temporary_folders() -> None:
    """Remove them now, for a process that leaves by `os._exit`: it runs nothing at its end."""
    if _make_temporary_root.cache_info().currsize:
        _make_temporary_root().cleanup()


def get_cache_root() -> Path:
    """Return the folder that holds all kinds; it may not exist yet.

    Raises:
        DataError: none is named, and the user has no home folder.
    """
    if root := os.environ.get("MLFINETUNE_CACHE"):
        return Path(root)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general, "mlfinetune")
    try:
        return Path.home() / ".cache" / "mlfinetune"
    except RuntimeError as error:
        raise DataError(
            "there is no home folder to keep a cache in; set MLFINETUNE_CACHE to a folder"
        ) from error
