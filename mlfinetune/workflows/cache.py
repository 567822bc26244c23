"""`mlfinetune cache`: what is kept outside of runs, how much of it, when it was last used."""

import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.errors import DataError
from mlfinetune.storage.cache import KINDS, cache_root
from mlfinetune.text import suggest


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        path: file or folder.
        kind: what the cache keeps it under, such as `features`.
        bytes: on the disk.
        unused_s: seconds since it was last used or written.
    """

    path: Path
    kind: str
    bytes: int
    unused_s: float


def run(clear: bool, kinds: list[str]) -> tuple[Path, list[CacheEntry]]:
    """The cache's folder and what is in it, or what has just been deleted.

    Args:
        clear: delete it.
        kinds: some of `cache.KINDS`; empty: all.

    Raises:
        DataError: there is no such kind, or something cannot be deleted.
    """
    root = cache_root()
    for kind in kinds:
        if kind not in KINDS:
            raise DataError(
                f"the cache has no kind '{kind}'{suggest(kind, KINDS)}; known: {', '.join(KINDS)}"
            )
    kept = [
        _look(entry, kind)
        for kind in KINDS
        if (not kinds or kind in kinds) and (root / kind).is_dir()
        for entry in sorted((root / kind).iterdir())
    ]
    if clear:
        for one in kept:
            _delete(one.path)
    return root, kept


def _look(path: Path, kind: str) -> CacheEntry:
    size, used = 0, 0.0
    for entry in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # deleted meanwhile
            status = entry.lstat()
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            used = max(used, status.st_mtime)
    return CacheEntry(path, kind, size, time.time() - used)


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot delete {error.filename}: {error.strerror}") from error
