"""Read a name: a file, a member of a tar (`shards/a.tar/1.jpg`), or an object behind a URL.

    name -> open_binary -> a binary file that can seek
    name -> read_stamp  -> (size, mtime), which changes with the content
    with prefetched(names): the objects behind URLs are fetched at the same time

This is the only module that imports fsspec.
"""

import io
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync

from mlfinetune.errors import CheckpointError, DataError, UnwritableError
from mlfinetune.location import is_url
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.storage.cache import make_in_cache
from mlfinetune.storage.store import hash_key
from mlfinetune.storage.tars import find_member

T = TypeVar("T")
File = io.BufferedReader | io.BytesIO
Stamp = tuple[int, int]
"""Size in bytes, and modification time in nanoseconds."""

TRIES = 4
"""Number of requests for an object before its error is raised."""
PAUSE_S = 0.5
"""Seconds before the second request; doubled before each further one."""
STALLED_S = 30.0
"""Seconds without a byte after which a request has failed."""
MAX_FETCH_S = 300.0
"""Seconds after which a request has failed, even if bytes still arrive."""
PARALLEL_FETCHES = 16
"""Number of objects that are fetched at the same time: threads that wait for the network."""
MAX_BYTES = 2**32
"""Size limit in bytes of a local file.

89 megapixels, the default of `data.max_pixels`, take a quarter of it as three floats a pixel.
"""
MAX_REMOTE = 2**27
"""Size limit in bytes of an object behind a URL, which is read into memory."""
MAX_PREFETCHED = 2**28
"""Bytes in memory above which `prefetched` fetches no more."""
_MAX_FILE = 2**33
"""Size limit in bytes of a table or a checkpoint behind a URL."""
_CHUNK = 2**20
"""Bytes that an http download reads at a time."""
_EXTRAS = {
    "http": "http",
    "https": "http",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "hf": "hub",
}
"""Protocol -> the extra of mlfinetune that installs its package."""
_prefetched: dict[str, bytes | OSError] = {}
"""URL -> content or error, inside of `prefetched`; empty outside.

A global of each process: `open_binary` is called from inside the decoders with a name alone, and a
worker decodes one batch at a time.
"""


class UnreadableError(OSError):
    """A file or an object that cannot be read; its text gives the reason, without the name."""


@contextmanager
def open_binary(name: str) -> Iterator[File]:
    """Open the file, tar member or object `name` to read and to seek.

    Raises:
        OSError: it does not exist, or it cannot be read.
    """
    if is_url(name):
        yield io.BytesIO(_read_object(name))
        return
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):  # below a file; Windows has the first for it
        member = find_member(name)
        if member is None:
            raise
        yield io.BytesIO(member.read())
        return
    if not stat.S_ISREG(status.st_mode):  # reading a device may never end
        raise UnreadableError("not a regular file")
    if status.st_size > MAX_BYTES:
        raise UnreadableError(f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
    with Path(name).open("rb") as file:
        yield file


def read_stamp(name: str) -> Stamp | None:
    """Return a value that changes when the content does; None: there is no such file.

    The stamp of a URL is always (0, 0): an object is assumed to stay the same, since a request for
    its date costs as much as a request for the object.
    """
    if is_url(name):
        return 0, 0
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        with suppress(OSError):
            member = find_member(name)
            return None if member is None else (member.size, member.changed)
        return None
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def number_stamp(stamp: Stamp | None) -> int:
    """Return 64 bits of a stamp, the same within a run; 0: no file, or an object behind a URL."""
    return hash(stamp) if stamp and stamp != (0, 0) else 0


def hash_file_key(name: str, *parts: object) -> int:
    """Return a cache key of a file's name, size and time, and of `parts`.

    A file that does not exist has a key too. URLs are hashed as they are, paths as absolute ones.
    """
    absolute = name if is_url(name) else os.path.abspath(name)
    stamp = read_stamp(name)
    return hash_key(absolute, *parts) if stamp is None else hash_key(absolute, *stamp, *parts)


@contextmanager
def prefetched(names: Iterable[str]) -> Iterator[None]:
    """Fetch the URLs among `names` at the same time; inside the block `open_binary` finds them.

    It stops at MAX_PREFETCHED bytes; the rest are fetched one by one, when they are opened. Files
    and tar members are left as they are. An error is raised when its URL is opened.
    """
    urls = list(dict.fromkeys(name for name in names if is_url(name)))
    size = 0
    try:
        if urls:
            for start in range(0, len(urls), PARALLEL_FETCHES):
                contents = fetch_objects(urls[start : start + PARALLEL_FETCHES])
                _prefetched.update(contents)
                size += sum(len(each) for each in contents.values() if isinstance(each, bytes))
                if size > MAX_PREFETCHED:
                    break
        yield
    finally:
        _prefetched.clear()


def fetch_objects(urls: Iterable[str]) -> dict[str, bytes | OSError]:
    """Fetch objects at the same time; return the content of each, or the reason there is none.

    Ctrl-C ends it at once: nobody waits for threads that wait for a server.
    """
    wanted = list(dict.fromkeys(urls))
    if not wanted:
        return {}
    with ThreadPool(min(PARALLEL_FETCHES, len(wanted))) as pool:
        return dict(zip(wanted, pool.map(_fetch_or_error, wanted), strict=True))


def fetch_table(url: str) -> Path:
    """Download the table at `url` into the cache, and return the file's path.

    It is downloaded at every call: a table may have changed.

    Raises:
        DataError: as `fetch_file`.
    """
    return fetch_file(url, "tables")


def fetch_file(url: str, kind: str, name: str | None = None) -> Path:
    """Download the object at `url` into the cache, and return the file's path.

    Args:
        url: the object.
        kind: of the cache's folder, as `storage.cache.KINDS`.
        name: of the file; None: one of the URL's own, with its ending.

    Raises:
        DataError: it cannot be downloaded, or written neither to the cache nor elsewhere.
    """
    if name is None:
        endings = Path(urlsplit(url).path.lower()).suffixes  # a signature is no ending
        ending = "".join(endings[-2:] if endings[-1:] == [".gz"] else endings[-1:])
        name = f"{hash_key(url):016x}{ending}"
    try:
        content = _call_with_retries(lambda: _fetch_once(url, _MAX_FILE))
    except UnreadableError as error:
        raise DataError(f"{url}: {error}") from error

    def write(folder: Path) -> Path:
        try:
            write_atomic(folder / name, content)
        except CheckpointError as error:
            raise UnwritableError(
                f"{url} cannot be kept ({error}); set MLFINETUNE_CACHE to a folder that can be "
                f"written"
            ) from error
        return folder / name

    return make_in_cache(kind, write)


def fetch_start(url: str, size: int) -> bytes:
    """Return the first `size` bytes of the object at `url`; it may have fewer.

    Raises:
        DataError: they cannot be fetched.
    """
    try:
        return _call_with_retries(lambda: _fetch_bytes(url, size, {"Range": f"bytes=0-{size - 1}"}))
    except UnreadableError as error:
        raise DataError(f"{url}: {error}") from error


def list_urls(url: str) -> list[str]:
    """Return the URLs below `url`, or those that match it where it has a `*`; sorted.

    Raises:
        DataError: they cannot be listed; http has no listings.
    """
    if url.lower().startswith("http"):
        raise DataError(f"{url}: http has no listings; name the pictures, or a table of them")

    def list_once() -> list[str]:
        system, path = _open_filesystem(url)
        paths = system.glob(path) if "*" in path else system.find(path)
        return sorted(system.unstrip_protocol(path) for path in paths)

    try:
        return _call_with_retries(list_once)
    except UnreadableError as error:
        raise DataError(f"{url}: {error}") from error


# ---- behind URLs ------------------------------------------------------------------------


def _read_object(url: str) -> bytes:
    """Return the content of an object, prefetched or fetched now.

    Raises:
        OSError: it cannot be fetched.
    """
    content = _prefetched.get(url)
    if content is None:
        content = _fetch_or_error(url)
    if isinstance(content, OSError):
        raise content
    return content


def _fetch_or_error(url: str) -> bytes | OSError:
    """Fetch an object; return its error in place of raising it, for use in a thread."""
    try:
        return _call_with_retries(lambda: _fetch_once(url, MAX_REMOTE))
    except OSError as error:
        return error


def _call_with_retries(get: Callable[[], T]) -> T:
    """Call `get` up to TRIES times, with growing pauses between.

    There is no second call where it cannot help: the object is missing, forbidden or too large.

    Raises:
        UnreadableError: the last call failed.
        MemoryError: as `get`.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return get()
        except FileNotFoundError as error:
            raise UnreadableError("no such object") from error
        except PermissionError as error:
            raise UnreadableError(f"no permission ({_describe_error(error)})") from error
        except (UnreadableError, MemoryError):
            raise
        except Exception as error:  # errors of aiohttp, botocore and others
            if attempt == TRIES:
                raise UnreadableError(f"{_describe_error(error)}; tried {TRIES} times") from error
            time.sleep(PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError


def _fetch_once(url: str, max_bytes: int) -> bytes:
    """Fetch an object in one request.

    Raises:
        UnreadableError: it has more than `max_bytes`.
        Exception: any error of the protocol's package.
    """
    content = _fetch_bytes(url, max_bytes + 1, {})
    if len(content) > max_bytes:
        raise UnreadableError(f"more than {max_bytes:,} bytes")
    return content


def _fetch_bytes(url: str, size: int, headers: dict[str, str]) -> bytes:
    """Fetch the first `size` bytes of an object in one request; an http server gets the headers."""
    system, path = _open_filesystem(url)
    if url.lower().startswith("http"):
        return cast(bytes, sync(system.loop, _download_http, system, path, size, headers))
    return cast(bytes, system.cat_file(path, start=0, end=size))


async def _download_http(system: Any, url: str, size: int, headers: dict[str, str]) -> bytes:
    """Download in one request, in chunks; fsspec's own function would first ask for the size."""
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers) as answer:
        if answer.status in (404, 410):
            raise FileNotFoundError(url)
        if answer.status in (401, 403):
            raise PermissionError(f"{answer.status} {answer.reason}")
        answer.raise_for_status()
        content = bytearray()
        async for chunk in answer.content.iter_chunked(_CHUNK):
            content += chunk
            if len(content) >= size:
                break
    return bytes(content[:size])


def _open_filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        UnreadableError: the protocol is unknown, or its package is not installed.
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

            timeout = ClientTimeout(MAX_FETCH_S, sock_connect=STALLED_S, sock_read=STALLED_S)
            options = {"client_kwargs": {"timeout": timeout}}
        elif protocol in ("s3", "s3a"):
            config = {"connect_timeout": STALLED_S, "read_timeout": STALLED_S}
            options = {"config_kwargs": {**config, "retries": {"max_attempts": 1}}}
        system, path = fsspec.url_to_fs(url, **options)
        if protocol in ("s3", "s3a"):
            system.retries = 1  # `_call_with_retries` counts them
        if protocol == "hf":
            system.invalidate_cache()  # it would take the size of a file that has changed since
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        wanted = f"pip install 'mlfinetune[{extra}]'" if extra else str(error)
        raise UnreadableError(f"{protocol}:// needs a package: {wanted}") from error
    except ValueError as error:
        raise UnreadableError(_describe_error(error)) from error
    return system, path


def _describe_error(error: Exception) -> str:
    """Return `ClientResponseError: 503 Service Unavailable`: the type, and the text in one line."""
    status = getattr(error, "status", None)  # aiohttp's own text would repeat the URL
    words = f"{status} {getattr(error, 'message', '')}" if status else " ".join(str(error).split())
    return f"{type(error).__name__}: {words.strip()}" if words else type(error).__name__
