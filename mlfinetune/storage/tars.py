"""Members of tars, read without unpacking: an index of each tar is made once, and cached.

    `shards/a.tar/1.jpg` -> find_member -> Member -> its bytes
    `shards/a.tar`       -> list_members -> (name, start, size) of each, in the tar's order

This is the only module that imports tarfile. A tar may be hostile: sizes in it are checked against
its length, nothing is written, and links are not followed.
"""

import errno
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import CheckpointError
from mlfinetune.location import to_slashes
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.storage.cache import get_cache_folder, report_unused
from mlfinetune.storage.store import hash_key

MAX_MEMBER = 2**28
"""Size limit in bytes of a member, which is read into memory."""
_MAX_NAME = 2**20
"""Size limit in bytes of a member's name and attributes."""
_MAX_OPEN = 128
"""Number of indexes that are kept open; each takes a file descriptor."""
_BLOCK = 512
"""Bytes of a tar's blocks; a block of zeros ends the tar."""
_ROW = np.dtype([("key", np.uint64), ("start", np.int64), ("size", np.int64)])
"""A row of an index: hash of the member's name, position and size in bytes."""
_Index = NDArray[Any]


@dataclass(frozen=True)
class Member:
    """A regular file in a tar.

    Attributes:
        tar: path of the tar.
        start: position of its first byte in the tar.
        size: in bytes.
        changed: modification time of the tar in nanoseconds.
    """

    tar: str
    start: int
    size: int
    changed: int

    def read(self) -> bytes:
        """Return the member's bytes.

        Raises:
            OSError: it has more than MAX_MEMBER bytes, or the tar cannot be read.
        """
        if self.size > MAX_MEMBER:
            raise OSError(errno.EFBIG, f"{self.size:,} bytes, more than {MAX_MEMBER:,}", self.tar)
        with open(self.tar, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def find_member(name: str) -> Member | None:
    """Return the member that `name` names; None: no part of the name is a tar.

    Example: `shards/a.tar/dogs/1.jpg` is the member `dogs/1.jpg` of `shards/a.tar`.

    Raises:
        FileNotFoundError: the tar has no such member.
        OSError: the tar cannot be read.
    """
    name = to_slashes(name)
    for suffix in re.finditer(r"\.tar/", name, re.IGNORECASE):
        tar = name[: suffix.end() - 1]
        inside = posixpath.normpath(name[suffix.end() :])
        if os.path.isfile(tar):
            status = os.stat(tar)
            index = _load_index(tar, status.st_size, status.st_mtime_ns)
            key = np.uint64(hash_key(inside))
            place = int(np.searchsorted(index["key"], key))
            if place == len(index) or index["key"][place] != key:
                raise FileNotFoundError(errno.ENOENT, f"no member {inside!r} in {tar}", name)
            row = index[place]
            return Member(tar, int(row["start"]), int(row["size"]), status.st_mtime_ns)
    return None


def list_members(tar: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, start and size of each regular file in a tar, in the tar's order.

    A name `./a/1.jpg` in the tar becomes `a/1.jpg`; names that lead out of the tar (`../1.jpg`,
    `/1.jpg`) are left out.

    Raises:
        OSError: it is no tar, damaged, cut short, or compressed (then members have no position).
    """
    tar_size = os.stat(tar).st_size
    try:
        with (
            open(tar, "rb") as content,
            tarfile.open(fileobj=cast(BinaryIO, _BoundedFile(content)), mode="r:") as file,
        ):
            before = -1  # headers must go forward, or a hostile tar would loop
            while (member := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # else it keeps all in memory
                if member.size < 0 or file.offset <= before:
                    raise tarfile.ReadError("a size below zero")
                before = file.offset
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > tar_size:
                        raise tarfile.ReadError(f"cut short in {member.name!r}")
                    name = posixpath.normpath(member.name)
                    if not name.startswith(("/", "../")) and name != "..":
                        yield name, member.offset_data, member.size
            content.seek(file.offset)
            end = content.read(_BLOCK)  # tarfile takes a damaged header for the end
            if len(end) < _BLOCK or any(end):
                raise tarfile.ReadError(f"damaged or cut short at byte {file.offset:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise OSError(errno.EINVAL, f"no plain tar that can be read ({error})", tar) from error


class _BoundedFile:
    """A file that refuses reads above _MAX_NAME: tarfile would read gigabytes for one long name."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Read `size` bytes.

        Raises:
            ReadError: they are more than any name or attribute needs.
        """
        if not 0 <= size <= _MAX_NAME:
            raise tarfile.ReadError(f"{size:,} bytes of name")
        return self._file.read(size)


@lru_cache(maxsize=_MAX_OPEN)
def _load_index(tar: str, size: int, changed: int) -> _Index:
    """Return the index of a tar, (N,) of _ROW sorted by key, from the cache or made now.

    Size and modification time are a part of the cache key: a tar that changes has another index.
    Without a cache folder the index stays in memory.
    """
    key = f"{hash_key(os.path.abspath(tar), size, changed):016x}"
    folder = get_cache_folder("tars")
    if folder is None:
        return _build_index(tar)
    path = folder / f"{key}.npy"
    with suppress(OSError, ValueError, EOFError):  # missing or damaged: it is made again
        cached: _Index = np.load(path, mmap_mode="r")
        if cached.dtype == _ROW and cached.ndim == 1:
            return cached
    index = _build_index(tar)
    buffer = io.BytesIO()
    np.save(buffer, index)
    try:
        write_atomic(path, buffer.getvalue())
    except CheckpointError as error:  # a full or read-only disk
        report_unused(error)
    return index


def _build_index(tar: str) -> _Index:
    """Read the tar's headers; of members with the same name the last one counts, as in `tar -x`."""
    last = {hash_key(name): (start, length) for name, start, length in list_members(tar)}
    return np.array([(key, *last[key]) for key in sorted(last)], _ROW)
