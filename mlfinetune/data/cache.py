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
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("MLFINETUNE_CACHE") or Path(general) / "mlfinetune") / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the cache folder {path}: {error.strerror}; "
            f"set MLFINETUNE_CACHE to a folder that can be written"
        ) from error
    return path
