"""Where what was computed once is kept: outside of user data, safe to delete at any time.

$MLFINETUNE_CACHE, else $XDG_CACHE_HOME/mlfinetune, else ~/.cache/mlfinetune
"""

import os
from pathlib import Path

from mlfinetune.errors import DataError


def folder(name: str) -> Path:
    """The folder of one kind of cached things; made where it is missing.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path = root() / name
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise DataError(
            f"cannot make the cache folder ({why.rstrip('.')}); "
            f"set MLFINETUNE_CACHE to a folder that can be written"
        ) from error
    return path


def root() -> Path:
    """The folder of all kinds; it may not exist yet."""
    if own := os.environ.get("MLFINETUNE_CACHE"):
        return Path(own)
    if general := os.environ.get("XDG_CACHE_HOME"):
        return Path(general, "mlfinetune")
    return Path.home() / ".cache" / "mlfinetune"  # RuntimeError: the user has no home
