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
from dataclasses import asdict
from functools import partial
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Thread

from mlfinetune.data.images.decode import DECODE_VERSION, ImageInfo, inspect_image
from mlfinetune.errors import DataError, ImageError
from mlfinetune.location import is_url
from mlfinetune.storage import files
from mlfinetune.storage.cache import cache_folder

_CHUNK = 2048
_AT_ONCE = 4 * files.AT_ONCE
"""Pictures behind URLs that a process is given at once: mostly it waits for the network."""
_WORTH_PROCESSES = 64
"""Pictures to decode from which starting processes pays."""

_CRASHED = "the decoder crashed on it, or ran out of memory"

Found = ImageInfo | str
"""A picture, or why it cannot be used."""

_Look = tuple[Found, bool]
"""What was found, and whether that holds as long as the file does not change."""


def scan_images(paths: Sequence[str], max_pixels: int) -> Iterator[Found]:
    """What each file is, in order.

    Args:
        paths: of the files, absolute or from the current folder.
        max_pixels: as `images.decode` takes it.

    Raises:
        DataError: the cache cannot be written.
    """
    with _Store(max_pixels) as store, _Decoders(max_pixels) as decoders:
        for start in range(0, len(paths), _CHUNK):
            chunk = [_whole(path) for path in paths[start : start + _CHUNK]]
            stamps = [files.read_stamp(path) for path in chunk]
            known = store.find(chunk, stamps)
            wanted = [at for at in range(len(chunk)) if at not in known]
            fresh = decoders.look([chunk[at] for at in wanted])
            lasting = []
            for at in range(len(chunk)):
                if at not in known:
                    known[at], lasts = next(fresh)
                    if lasts:
                        lasting.append((chunk[at], stamps[at], known[at]))
                yield known[at]
            store.keep(lasting)


def _whole(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def _looks(paths: Sequence[str], max_pixels: int) -> list[_Look]:
    """Several, those behind URLs asked for together."""
    with files.prefetched(paths):
        return [_look(path, max_pixels) for path in paths]


def _look(path: str, max_pixels: int) -> _Look:
    try:
        return inspect_image(path, max_pixels), True
    except ImageError as error:
        # Only what a decoder says of the content lasts: not the cap, rights, or a lack of memory.
        cause = error.__cause__
        passing = isinstance(cause, MemoryError | files.UnreadableError)
        passing = passing or getattr(cause, "errno", None) is not None
        lasting = cause is not None and not passing and not is_url(path)
        return error.reason, lasting  # a page that stands in for a picture may go again


# ---- processes --------------------------------------------------------------------------


class _Decoders:
    """Processes that look at pictures: started once that pays, anew after one has died."""

    def __init__(self, max_pixels: int) -> None:
        self._looks = partial(_looks, max_pixels=max_pixels)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def look(self, paths: list[str]) -> Iterator[_Look]:
        """Each file, in order."""
        if self._pool is None and len(paths) < _WORTH_PROCESSES:
            yield from self._looks(paths)
            return
        done = 0
        try:
            for found in self._results(_cores(), paths):
                done += 1
                yield found
        except BrokenProcessPool:
            self._stop()
            yield from self._look_in_turn(paths[done:])

    def _look_in_turn(self, paths: list[str]) -> Iterator[_Look]:
        """One process: where it dies, the first file without a result is the cause."""
        while paths:
            done = 0
            try:
                for found in self._results(1, paths):
                    done += 1
                    yield found
            except BrokenProcessPool:
                done += 1
                yield _CRASHED, False
            self._stop()
            paths = paths[done:]

    def _results(self, processes: int, paths: list[str]) -> Iterator[_Look]:
        if self._pool is None:
            # Spawned, not forked: training has torch's threads running by then.
            context = get_context("spawn")
            lifeline, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(processes, context, _begin, (lifeline,))
        # Signals are for this process, and after all have started: a process that is about to read
        # what it is for would say that it could not. They inherit that signals are blocked.
        both = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
        try:
            few = 1 if processes == 1 else _AT_ONCE if any(map(is_url, paths)) else 4
            chunks = [paths[at : at + few] for at in range(0, len(paths), few)]
            return chain.from_iterable(self._pool.map(self._looks, chunks))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _stop(self) -> None:
        if self._pool is not None:
            self._lifeline.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin(lifeline: Connection) -> None:
    """In a new process: end when the one that started it does."""
    Thread(target=_end, args=(lifeline,), daemon=True).start()


def _end(lifeline: Connection) -> None:
    wait([lifeline])  # its other end is closed, by hand or with the process that held it
    os._exit(0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# ---- what is known --------------------------------------------------------------------------

_Stamp = files.Stamp | None
"""None where there is no file."""


class _Store:
    """(path, size, mtime) -> Found, in one SQLite file for each version of the decoder."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._file = cache_folder("scan") / f"{DECODE_VERSION}.sqlite"

    def __enter__(self) -> "_Store":
        try:
            try:
                self._open()
            except sqlite3.OperationalError:  # in use, or out of reach
                raise
            except sqlite3.DatabaseError:  # not a database: it is a cache, and starts anew
                self._connection.close()
                self._file.unlink(missing_ok=True)
                self._open()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
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
            raise self._unusable(error)

    def _unusable(self, error: object) -> DataError:
        return DataError(
            f"{error}: the cache {self._file} cannot be used; "
            f"delete it, or set MLFINETUNE_CACHE to a folder that can be written"
        )

    def find(self, paths: Sequence[str], stamps: Sequence[_Stamp]) -> dict[int, Found]:
        """Number in `paths` -> what is known of the file as it is now."""
        known: dict[int, Found] = {}
        query = "SELECT found FROM found WHERE path = ? AND size = ? AND mtime = ?"
        for at, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
            if stamp is not None:
                row = self._connection.execute(query, (os.fsencode(path), *stamp)).fetchone()
                if row is not None:
                    content = json.loads(row[0])
                    found = content if isinstance(content, str) else ImageInfo(**content)
                    if isinstance(found, str) or found.width * found.height <= self._max_pixels:
                        known[at] = found
        return known

    def keep(self, rows: list[tuple[str, _Stamp, Found]]) -> None:
        """Remember them."""
        kept = [
            (
                os.fsencode(path),
                *stamp,
                json.dumps(found if isinstance(found, str) else asdict(found)),
            )
            for path, stamp, found in rows
            if stamp is not None
        ]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", kept)
