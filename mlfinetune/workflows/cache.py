"""`mlfinetune cache`: what is kept outside of runs, how much of it, when it was last used."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data import cache
from mlfinetune.errors import DataError, nearest


@dataclass(frozen=True)
class Kept:
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


def run(clear: bool, kinds: list[str]) -> tuple[Path, list[Kept]]:
    """The cache's folder and what is in it, or what has just been deleted.

    Args:
        clear: delete it.
        kinds: of these kinds alone; empty: of all.

    Raises:
        DataError: there is no such kind, or something cannot be deleted.
    """
    root = cache.root()
    there = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    names = [path.name for path in there]
    for kind in kinds:
        if kind not in names:
            raise DataError(f"nothing of the kind '{kind}' in {root}{nearest(kind, names)}")
    chosen = [path for path in there if not kinds or path.name in kinds]
    kept = [_look(entry, path.name) for path in chosen for entry in sorted(path.iterdir())]
    if clear:
        for one in kept:
            _delete(one.path)
    return root, kept


def _look(path: Path, kind: str) -> Kept:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    used = max([path.stat().st_mtime, *(stat.st_mtime for stat in stats)])
    return Kept(path, kind, sum(stat.st_size for stat in stats), time.time() - used)


def _delete(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot delete {error.filename}: {error.strerror}") from error
