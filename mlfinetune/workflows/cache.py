"""`mlfinetune cache`: list or delete what is kept between runs, with its size and last use."""

import shutil
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.errors import DataError
from mlfinetune.storage.cache import KINDS, get_cache_root
from mlfinetune.text import suggest


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        path: file or folder.
        kind: its folder in the cache, such as `features`.
        bytes: size on disk.
        unused_s: seconds since it was last used or written.
    """

    path: Path
    kind: str
    bytes: int
    unused_s: float


def run(clear: bool, kinds: list[str]) -> tuple[Path, list[CacheEntry]]:
    """List the entries of the cache, and delete them with `clear`.

    Args:
        clear: delete the entries that are listed.
        kinds: some of `storage.cache.KINDS`; empty: all.

    Returns:
        The cache's folder, and its entries, or those that have just been deleted.

    Raises:
        DataError: there is no home folder, no such kind, or an entry cannot be read or deleted.
    """
    root = get_cache_root()
    for kind in kinds:
        if kind not in KINDS:
            hint = suggest(kind, KINDS) or "."
            raise DataError(f"the cache has no kind '{kind}'{hint} Known kinds: {', '.join(KINDS)}")
    try:
        entries = [
            _measure_entry(path, kind)
            for kind in KINDS
            if (not kinds or kind in kinds) and (root / kind).is_dir()
            for path in sorted((root / kind).iterdir())
        ]
    except OSError as error:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from error
    if clear:
        for entry in entries:
            _delete_entry(entry.path)
    return root, entries


def _measure_entry(path: Path, kind: str) -> CacheEntry:
    """Sum the sizes of the files in an entry; the newest modification time is its last use."""
    size = 0
    last_used = 0.0
    for file in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # deleted meanwhile
            status = file.lstat()
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
            last_used = max(last_used, status.st_mtime)
    return CacheEntry(path, kind, size, time.time() - last_used)


def _delete_entry(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot delete {error.filename}: {error.strerror}") from error
