"""Where what was computed once is kept: outside of user data, safe to delete at any time.

$MLFINETUNE_CACHE, else $XDG_CACHE_HOME/mlfinetune, else ~/.cache/mlfinetune
"""

import os
from pathlib import Path

from mlfinetune.errors import DataError

KINDS = ("features", "images", "parquet", "scan", "tables", "tars")
"""What is kept, a folder each; anything else beside them is not ours."""


def cache_folder(kind: str) -> Path:
    """The folder of one of KINDS; made where it is missing.

    Raises:
        DataError: it cannot be made.
    """
    assert kind in KINDS
    try:
        path = cache_root() / kind
    except RuntimeError as error:
        raise _no_folder(str(error)) from error
    return make_cache_folder(path)


def make_cache_folder(path: Path) -> Path:
    """A folder of the cache, made where it is missing.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(f"{error.filename}: {error.strerror}") from error
    return path


def _no_folder(why: str) -> DataError:
    return DataError(
        f"cannot make the cache folder ({why.rstrip('.')}); "
        f"set MLFINETUNE_CACHE to a folder that can be written"
    )


def cache_root() -> Path:
    """The folder of all kinds; it may not exist yet."""
    if own := os.environ.get("MLFINETUNE_CACHE"):
        return Path(own)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general, "mlfinetune")
    return Path.home() / ".cache" / "mlfinetune"  # RuntimeError: the user has no home
