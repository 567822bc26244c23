"""The cache folder: results that are computed once; safe to delete at any time.

$MLFINETUNE_CACHE, else $XDG_CACHE_HOME/mlfinetune, else ~/.cache/mlfinetune
"""

import os
from pathlib import Path

from mlfinetune.errors import DataError

KINDS = ("features", "images", "parquet", "scan", "tables", "tars")
"""Kinds of cached results, a folder each; `mlfinetune cache --clear` deletes no other folder."""


def get_cache_folder(kind: str) -> Path:
    """Return the cache folder of one of KINDS; make it where it is missing.

    Raises:
        DataError: it cannot be made.
    """
    assert kind in KINDS
    try:
        path = get_cache_root() / kind
    except RuntimeError as error:
        raise _build_folder_error(str(error)) from error
    return make_cache_folder(path)


def make_cache_folder(path: Path) -> Path:
    """Make a folder of the cache where it is missing, and return it.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _build_folder_error(f"{error.filename}: {error.strerror}") from error
    return path


def _build_folder_error(why: str) -> DataError:
    """Return the error for a cache folder that cannot be made."""
    return DataError(
        f"cannot make the cache folder ({why.rstrip('.')}); "
        f"set MLFINETUNE_CACHE to a folder that can be written"
    )


def get_cache_root() -> Path:
    """Return the folder that holds all kinds; it may not exist yet.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if root := os.environ.get("MLFINETUNE_CACHE"):
        return Path(root)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general, "mlfinetune")
    return Path.home() / ".cache" / "mlfinetune"
