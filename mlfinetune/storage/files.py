"""What a name leads to: a file, a member of a tar, an object behind a URL.

    name -> opened: a binary file that can be sought     name -> stamp: does it still hold the same?
    at_hand(names): those behind URLs are fetched together

The one place that knows fsspec.
"""

import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
from fsspec.asyn import sync

from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.location import is_url
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.storage.cache import cache_folder
from mlfinetune.storage.store import hash_key
from mlfinetune.storage.tars import find_member

T = TypeVar("T")
File = io.BufferedReader | io.BytesIO
Stamp = tuple[int, int]
"""Size in bytes, and modification time in nanoseconds."""

TRIES = 4
"""How often an object is asked for, at longer and longer intervals, before its error is told."""
PAUSE_S = 0.5
STALLED_S = 30.0
"""A server that sends nothing for so long has failed."""
AT_ONCE = 16
"""Objects that are fetched at the same time; the wait is for the network, not for a core."""
MAX_BYTES = 2**32
"""Of a file: a picture as large as the cap on pixels allows has a quarter of it."""
MAX_REMOTE = 2**27
"""Bytes of an object that is read into memory."""
HELD = 2**28
"""Bytes from which on no more objects are fetched ahead."""
LONGEST_S = 300.0
"""An object that takes longer has failed, however it drips."""
_MAX_TABLE = 2**33
_CHUNK = 2**20
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_fetched: dict[str, bytes | OSError] = {}
"""What `at_hand` holds."""


class UnreadableError(OSError):
    """A content that cannot be had; its text says why, without the name."""


@contextmanager
def open_binary(name: str) -> Iterator[File]:
    """The content, to read and to seek.

    Raises:
        OSError: there is nothing, or it cannot be read.
    """
    if is_url(name):
        yield io.BytesIO(_object(name))
        return
    try:
        status = os.stat(name)
    except NotADirectoryError:
        member = find_member(name)
        if member is None:
            raise
        yield io.BytesIO(member.read())
        return
    if not stat.S_ISREG(status.st_mode):  # a device would be read for ever
        raise UnreadableError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnreadableError(f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
    with Path(name).open("rb") as file:
        yield file


def read_stamp(name: str) -> Stamp | None:
    """Changes when the content does; None: there is no such file.

    What is behind a URL is taken to stay what it is: asking for each picture would cost as much as
    reading it.
    """
    if is_url(name):
        return 0, 0
    try:
        status = os.stat(name)
    except NotADirectoryError:
        with suppress(OSError):
            member = find_member(name)
            return None if member is None else (member.size, member.changed)
        return None
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def hash_file_key(name: str, *parts: object) -> int:
    """The key of a file as it is now, and of `parts`; one that is not there has one too."""
    found, whole = read_stamp(name), name if is_url(name) else os.path.abspath(name)
    return hash_key(whole, *parts) if found is None else hash_key(whole, *found, *parts)


@contextmanager
def prefetched(names: Iterable[str]) -> Iterator[None]:
    """In it, what is behind URLs is there already, asked for together; as much as memory may hold.

    What is not is asked for when it is opened.
    """
    urls, size = list(dict.fromkeys(name for name in names if is_url(name))), 0
    try:
        if urls:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for start in range(0, len(urls), AT_ONCE):
                    some = urls[start : start + AT_ONCE]
                    _fetched.update(zip(some, pool.map(_tried, some), strict=True))
                    size += sum(len(x) for x in map(_fetched.get, some) if isinstance(x, bytes))
                    if size > HELD:
                        break
        yield
    finally:
        _fetched.clear()


def fetch_table(url: str) -> Path:
    """A table behind a URL, as a file in the cache, fetched anew.

    Raises:
        DataError: it cannot be had.
    """
    path = cache_folder("tables") / f"{hash_key(url):016x}{Path(url).suffix.lower()}"
    try:
        content = _retried(lambda: _read(url, _MAX_TABLE))
    except UnreadableError as error:
        raise DataError(f"{url}: {error}") from error
    try:
        write_atomic(path, content)
    except CheckpointError as error:
        raise DataError(
            f"{url} cannot be kept in the cache; set MLFINETUNE_CACHE to a folder that can be "
            f"written ({error})"
        ) from error
    return path


def list_urls(url: str) -> list[str]:
    """The URLs below one that ends in `/`, or that a pattern with `*` matches; in sorted order.

    Raises:
        DataError: they cannot be listed; over http nothing can, whatever a server's pages say.
    """
    if url.lower().startswith("http"):
        raise DataError(f"{url}: http has no listings; name the pictures, or a table of them")

    def found() -> list[str]:
        system, path = _system(url)
        paths = system.glob(path) if "*" in path else system.find(path)
        return sorted(system.unstrip_protocol(path) for path in paths)

    try:
        return _retried(found)
    except UnreadableError as error:
        raise DataError(f"{url}: {error}") from error


# ---- behind URLs ------------------------------------------------------------------------


def _object(url: str) -> bytes:
    content = _fetched.get(url)
    if content is None:
        content = _tried(url)
    if isinstance(content, OSError):
        raise content
    return content


def _tried(url: str) -> bytes | OSError:
    try:
        return _retried(lambda: _read(url, MAX_REMOTE))
    except OSError as error:
        return error


def _retried(get: Callable[[], T]) -> T:
    """Again and again, where that may help.

    Raises:
        Unreadable: it did not.
    """
    for tried in range(1, TRIES + 1):
        try:
            return get()
        except FileNotFoundError as error:
            raise UnreadableError("no such object") from error
        except PermissionError as error:
            raise UnreadableError(f"no permission ({_words(error)})") from error
        except (UnreadableError, MemoryError):
            raise
        except Exception as error:  # of aiohttp, botocore, whatever a protocol is made of
            if tried == TRIES:
                raise UnreadableError(f"{_words(error)}; tried {TRIES} times") from error
            time.sleep(PAUSE_S * 2 ** (tried - 1))
    raise AssertionError


def _read(url: str, most: int) -> bytes:
    system, path = _system(url)
    if url.lower().startswith("http"):
        content = cast(bytes, sync(system.loop, _downloaded, system, path, most))
    else:
        content = cast(bytes, system.cat_file(path, start=0, end=most + 1))
    if len(content) > most:
        raise UnreadableError(f"more than {most:,} bytes")
    return content


async def _downloaded(system: Any, url: str, most: int) -> bytes:
    """One request, read as it comes: fsspec's own would ask for the size first."""
    session = await system.set_session()
    async with session.get(system.encode_url(url)) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(url)
        if answer.status in (401, 403):
            raise PermissionError(f"{answer.status} {answer.reason}")
        answer.raise_for_status()
        content = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK):
            content += chunk
            if len(content) > most:
                break
    return bytes(content)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there.

    Raises:
        Unreadable: a protocol that is not known, or whose package is missing.
    """
    protocol, _, rest = url.partition("://")
    protocol = protocol.lower()
    url = f"{protocol}://{rest}"
    if "::" in url:
        raise UnreadableError("chained URLs are not read")
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            patience = ClientTimeout(LONGEST_S, sock_connect=STALLED_S, sock_read=STALLED_S)
            options = {"client_kwargs": {"timeout": patience}}
        elif protocol in ("s3", "s3a"):
            config = {"connect_timeout": STALLED_S, "read_timeout": STALLED_S}
            options = {"config_kwargs": {**config, "retries": {"max_attempts": 1}}}
        system, path = fsspec.url_to_fs(url, **options)
        if protocol in ("s3", "s3a"):
            system.retries = 1  # `_retried` has its own
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        wanted = f"pip install 'mlfinetune[{extra}]'" if extra else str(error)
        raise UnreadableError(f"{protocol}:// wants a package: {wanted}") from error
    except ValueError as error:
        raise UnreadableError(_words(error)) from error
    return system, path


def _words(error: Exception) -> str:
    status = getattr(error, "status", None)  # aiohttp's own text repeats the URL
    words = f"{status} {getattr(error, 'message', '')}" if status else " ".join(str(error).split())
    return f"{type(error).__name__}: {words.strip()}" if words else type(error).__name__
