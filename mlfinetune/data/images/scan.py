"""Scan pictures: decode every pixel of each file once, and cache its facts or its fault.

    paths -> cached by (path, size, mtime)? -> else inspect_image, in processes -> ScanResult

The results are cached, so that check, train and init decode each file once. A cache that cannot be
used is left alone: then every file is decoded again.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread

from mlfinetune.data.images.decode import DECODE_VERSION, ImageInfo, inspect_image
from mlfinetune.errors import ImageError
from mlfinetune.location import is_url
from mlfinetune.runtime.machine import count_process_cores
from mlfinetune.runtime.signals import blocked_signals
from mlfinetune.storage import files
from mlfinetune.storage.cache import get_cache_folder, get_cache_root, report_unused

_CHUNK = 2048
"""Number of pictures between two writes to the cache."""
_FILES_PER_TASK = 4
_URLS_PER_TASK = 4 * files.PARALLEL_FETCHES
"""More pictures a task where they are behind URLs: mostly the process waits for the network."""
_WORTH_PROCESSES = 64
"""Number of pictures to decode from which on it pays to start processes."""

_MOST_PROCESSES = 61
"""Python starts no more in a pool on Windows."""

_CRASHED = "the decoder crashed on it, or ran out of memory"

ScanResult = ImageInfo | str
"""The facts of a picture, or the reason why it cannot be used."""

_Inspected = tuple[ScanResult, bool]
"""A result, and whether it may be cached: it holds as long as the file does not change."""


def scan_images(paths: Sequence[str], max_pixels: int) -> Iterator[ScanResult]:
    """Yield the result for each file, in order.

    Args:
        paths: of the files, absolute or relative to the current folder, or URLs.
        max_pixels: largest width times height; above it the result is a reason.
    """
    with _ScanCache(max_pixels) as cache, _InspectPool(max_pixels) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = [_make_absolute(path) for path in paths[start : start + _CHUNK]]
            stamps = [files.read_stamp(path) for path in chunk]
            known = cache.find(chunk, stamps)
            inspected = pool.inspect([path for row, path in enumerate(chunk) if row not in known])
            new = []
            for row, path in enumerate(chunk):
                if row not in known:
                    known[row], is_lasting = next(inspected)
                    if is_lasting:
                        new.append((path, stamps[row], known[row]))
                yield _add_stamp(known[row], stamps[row])
            cache.add(new)


def find_digests(paths: Sequence[str]) -> dict[int, str]:
    """Return index -> `ImageInfo.digest` of the files that a scan has read as they are now."""
    with _ScanCache(sys.maxsize) as cache:
        absolute = [_make_absolute(path) for path in paths]
        stamps = [None if is_url(path) else files.read_stamp(path) for path in absolute]
        known = cache.find(absolute, stamps)
    return {row: found.digest for row, found in known.items() if isinstance(found, ImageInfo)}


def _add_stamp(result: ScanResult, stamp: files.Stamp | None) -> ScanResult:
    """Return the result with the stamp that the file had just before it was looked at."""
    return result if isinstance(result, str) else replace(result, stamp=files.number_stamp(stamp))


def _list_lasting(info: ImageInfo) -> dict[str, object]:
    """Return the facts to cache: all but the stamp, a number of this run alone."""
    return {name: value for name, value in asdict(info).items() if name != "stamp"}


def _make_absolute(path: str) -> str:
    """Return an absolute path, the key in the cache; a URL stays as it is."""
    return path if is_url(path) else os.path.abspath(path)


def _inspect_chunk(paths: Sequence[str], max_pixels: int) -> list[_Inspected]:
    """Inspect some pictures; those behind URLs are fetched at the same time."""
    with files.prefetched(paths):
        return [_inspect_one(path, max_pixels) for path in paths]


def _inspect_one(path: str, max_pixels: int) -> _Inspected:
    """Inspect a picture.

    A fault is cached where a decoder gives it as a property of the content. It is not where it may
    pass: the cap on pixels (a setting), access rights, too little memory, any URL (a server may
    send an error page in place of a picture).
    """
    try:
        return inspect_image(path, max_pixels), True
    except ImageError as error:
        cause = error.__cause__
        may_pass = isinstance(cause, MemoryError | files.UnreadableError)
        may_pass = may_pass or getattr(cause, "errno", None) is not None
        return error.reason, cause is not None and not may_pass and not is_url(path)


# ---- processes --------------------------------------------------------------------------


class _InspectPool:
    """Processes that inspect pictures.

    They are started when there are enough pictures, and again where a hostile picture has killed
    one of them.
    """

    def __init__(self, max_pixels: int) -> None:
        self._inspect_chunk = partial(_inspect_chunk, max_pixels=max_pixels)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_InspectPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_pool()

    def inspect(self, paths: list[str]) -> Iterator[_Inspected]:
        """Yield the result for each file, in order."""
        if self._pool is None and len(paths) < _WORTH_PROCESSES:
            yield from self._inspect_chunk(paths)
            return
        done = 0
        try:
            processes = min(_MOST_PROCESSES, count_process_cores())
            for result in self._inspect_in_pool(processes, paths):
                done += 1
                yield result
        except BrokenProcessPool:
            self._stop_pool()
            yield from self._inspect_singly(paths[done:])

    def _inspect_singly(self, paths: list[str]) -> Iterator[_Inspected]:
        """Inspect in one process, file by file: if it dies, the file without a result killed it."""
        while paths:
            done = 0
            try:
                for result in self._inspect_in_pool(1, paths):
                    done += 1
                    yield result
            except BrokenProcessPool:
                done += 1
                yield _CRASHED, False
            self._stop_pool()
            paths = paths[done:]

    def _inspect_in_pool(self, processes: int, paths: list[str]) -> Iterator[_Inspected]:
        """Give the paths to the pool, in tasks of a few; start the pool where there is none.

        Raises:
            BrokenProcessPool: a process has died, also while the results are read.
        """
        if self._pool is None:
            # Spawned, not forked: training has torch's threads running by then.
            context = get_context("spawn")
            lifeline, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(processes, context, _end_with_parent, (lifeline,))
        size = _URLS_PER_TASK if any(map(is_url, paths)) else _FILES_PER_TASK
        if processes == 1:
            size = 1
        tasks = [paths[start : start + size] for start in range(0, len(paths), size)]
        # This process alone answers signals, and after all others have started: one that is
        # interrupted while it reads its first task would print a traceback.
        with blocked_signals(), _hidden_main():
            return chain.from_iterable(self._pool.map(self._inspect_chunk, tasks))

    def _stop_pool(self) -> None:
        """End the processes; the next call starts new ones."""
        if self._pool is not None:
            self._lifeline.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Context whose new processes do not run the script of this one.

    A script that calls `mlfinetune.train` may have no guard (`if __name__ == "__main__":`), and
    each new process would begin the training anew. What they compute is in this module.
    """
    main = sys.modules["__main__"]
    spec, names = main.__spec__, vars(main)
    file = names.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            names["__file__"] = file


def _end_with_parent(lifeline: Connection) -> None:
    """In a new process: start a thread that ends it as soon as its parent has ended."""
    Thread(target=_wait_for_parent, args=(lifeline,), daemon=True).start()


def _wait_for_parent(lifeline: Connection) -> None:
    """End this process when the parent has ended, or has closed the connection."""
    wait([lifeline])
    os._exit(0)


# ---- cache ------------------------------------------------------------------------------

_OptionalStamp = files.Stamp | None
"""None: there is no such file."""


class _ScanCache:
    """(path, size, mtime) -> ScanResult, in one SQLite file for each version of the decoder.

    At the first fault it is closed and reported; from then on it finds and keeps nothing.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "_ScanCache":
        folder = get_cache_folder("scan")
        if folder is None:
            return self
        file = folder / f"{DECODE_VERSION}.sqlite"
        with self._reporting():
            try:
                self._open(file)
            except sqlite3.OperationalError:  # in use by another process, or not accessible
                raise
            except sqlite3.DatabaseError:  # damaged: a cache may begin again
                self._close()
                file.unlink(missing_ok=True)
                self._open(file)
        return self

    def _open(self, file: Path) -> None:
        """Open the file, and make its table where it is missing."""
        self._connection = sqlite3.connect(file, timeout=60, isolation_level=None)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS found "
            "(path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, found TEXT) WITHOUT ROWID"
        )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __exit__(self, *_: object) -> None:
        self._close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Close the cache, and tell the user, where the block cannot use it.

        A damaged file is deleted: the next run begins another one.
        """
        file = get_cache_root() / "scan" / f"{DECODE_VERSION}.sqlite"
        try:
            yield
        # ValueError: a row that is no JSON; TypeError: one of another version's fields
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            report_unused(f"{file}: {error}")
            self._close()
            if type(error) is sqlite3.DatabaseError:
                with suppress(OSError):
                    file.unlink()

    def find(self, paths: Sequence[str], stamps: Sequence[_OptionalStamp]) -> dict[int, ScanResult]:
        """Return index in `paths` -> result, of the files that are known with these stamps.

        A picture above `max_pixels` is left out: it was cached under a larger cap.
        """
        known: dict[int, ScanResult] = {}
        if self._connection is None:
            return known
        query = "SELECT found FROM found WHERE path = ? AND size = ? AND mtime = ?"
        with self._reporting():
            for index, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
                if stamp is None:
                    continue
                row = self._connection.execute(query, (os.fsencode(path), *stamp)).fetchone()
                if row is None:
                    continue
                content = json.loads(row[0])
                result = content if isinstance(content, str) else ImageInfo(**content)
                if isinstance(result, str) or result.width * result.height <= self._max_pixels:
                    known[index] = result
        return known

    def add(self, rows: list[tuple[str, _OptionalStamp, ScanResult]]) -> None:
        """Write (path, stamp, result) rows; files that do not exist are left out."""
        records = [
            (
                os.fsencode(path),
                *stamp,
                json.dumps(result if isinstance(result, str) else _list_lasting(result)),
            )
            for path, stamp, result in rows
            if stamp is not None
        ]
        if self._connection is None or not records:
            return
        with self._reporting(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", records
            )
