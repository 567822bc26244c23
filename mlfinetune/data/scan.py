"""Look at every picture once: all of its pixels are decoded, and what was found is kept.

    paths -> known by (path, size, mtime)? -> else inspect, in several processes -> Picture | reason

Results are kept in the cache folder, so that check, train and init pay for each file once.
"""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from mlfinetune.data import cache
from mlfinetune.data.images import VERSION, inspect
from mlfinetune.errors import DataError, ImageError
from mlfinetune.records import Picture

_CHUNK = 2048
_WORTH_PROCESSES = 64
"""Pictures to decode from which starting processes pays."""

_OVERSIZED = "pixels, more than"

Found = Picture | str
"""A picture, or why it cannot be used."""


def scan(paths: Sequence[str], max_pixels: int) -> Iterator[Found]:
    """What each file is, in order.

    Args:
        paths: absolute.
        max_pixels: as `images.decode` takes it.

    Raises:
        DataError: the cache cannot be written.
    """
    with ExitStack() as stack:
        store = stack.enter_context(_Store(max_pixels))
        pool: ProcessPoolExecutor | None = None
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            stamps = [_stamp(path) for path in chunk]
            known = store.find(chunk, stamps)
            wanted = [at for at in range(len(chunk)) if at not in known]
            if pool is None and len(wanted) >= _WORTH_PROCESSES:
                pool = stack.enter_context(_pool(_cores()))
            fresh = _looked_at([chunk[at] for at in wanted], max_pixels, pool)
            for at in range(len(chunk)):
                if at not in known:
                    known[at] = next(fresh)
                yield known[at]
            store.keep([(chunk[at], stamps[at], known[at]) for at in wanted])


def _looked_at(
    paths: list[str], max_pixels: int, pool: ProcessPoolExecutor | None
) -> Iterator[Found]:
    look = partial(_look, max_pixels=max_pixels)
    done = 0
    try:
        for found in map(look, paths) if pool is None else pool.map(look, paths, chunksize=8):
            done += 1
            yield found
    except BrokenProcessPool:  # a decoder has crashed: each by itself, to tell which
        for path in paths[done:]:
            yield _look_alone(path, max_pixels)


def _look(path: str, max_pixels: int) -> Found:
    try:
        return inspect(Path(path), max_pixels)
    except ImageError as error:
        return error.reason


def _look_alone(path: str, max_pixels: int) -> Found:
    with _pool(1) as pool:
        try:
            return pool.submit(_look, path, max_pixels).result()
        except BrokenProcessPool:
            return "the decoder crashed on it, or ran out of memory"


def _pool(processes: int) -> ProcessPoolExecutor:
    # Spawned, not forked: training has torch's threads running by then.
    context = get_context("spawn")
    return ProcessPoolExecutor(processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# ---- what is known --------------------------------------------------------------------------

_Stamp = tuple[int, int] | None
"""Size in bytes and modification time in nanoseconds; None where there is no file."""


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    except (OSError, ValueError):
        return None


class _Store:
    """(path, size, mtime) -> Found, in one SQLite file for each version of the decoder."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._file = cache.folder("scan") / f"{VERSION}.sqlite"

    def __enter__(self) -> "_Store":
        try:
            self._open()
        except sqlite3.DatabaseError:  # not a database: it is a cache, and starts anew
            self._file.unlink(missing_ok=True)
            self._open()
        return self

    def _open(self) -> None:
        self._connection = sqlite3.connect(self._file, timeout=60, isolation_level=None)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS found "
            "(path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, found TEXT) WITHOUT ROWID"
        )

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self._connection.close()
        if kind is not None and issubclass(kind, sqlite3.Error):
            raise DataError(f"{error}: the cache {self._file} cannot be used; delete it")

    def find(self, paths: Sequence[str], stamps: Sequence[_Stamp]) -> dict[int, Found]:
        """Number in `paths` -> what is known of the file as it is now."""
        known: dict[int, Found] = {}
        query = "SELECT found FROM found WHERE path = ? AND size = ? AND mtime = ?"
        for at, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
            if stamp is not None:
                row = self._connection.execute(query, (os.fsencode(path), *stamp)).fetchone()
                if row is not None:
                    content = json.loads(row[0])
                    found = content if isinstance(content, str) else Picture(**content)
                    if isinstance(found, str) or found.width * found.height <= self._max_pixels:
                        known[at] = found
        return known

    def keep(self, rows: list[tuple[str, _Stamp, Found]]) -> None:
        """Remember them; not those whose verdict another `max_pixels` may change."""
        kept = [
            (
                os.fsencode(path),
                *stamp,
                json.dumps(found if isinstance(found, str) else asdict(found)),
            )
            for path, stamp, found in rows
            if stamp is not None and not (isinstance(found, str) and _OVERSIZED in found)
        ]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", kept)
