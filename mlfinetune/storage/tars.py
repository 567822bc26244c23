"""Members of tars, read where they lie: an index of each tar is made once and kept.

    `shards/a.tar/1.jpg` -> find -> Member -> its bytes     members: all of a tar, in its order

The one place that knows tarfile. A tar may be hostile: it is held against its own length, nothing
of it is unpacked, and links lead nowhere.
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

from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.storage.cache import cache_folder
from mlfinetune.storage.store import hash_key

MAX_MEMBER = 2**28
"""Bytes of a member that is read into memory."""
_MAX_NAME = 2**20
"""Bytes of a member's name and attributes."""
_OPEN = 128
"""Indexes that are kept open, a file descriptor each."""
_BLOCK = 512
_ROW = np.dtype([("key", np.uint64), ("start", np.int64), ("size", np.int64)])
_Index = NDArray[Any]


@dataclass(frozen=True)
class Member:
    """A regular file in a tar.

    Attributes:
        tar: the tar's path.
        start, size: in bytes.
        changed: the tar's modification time in nanoseconds.
    """

    tar: str
    start: int
    size: int
    changed: int

    def read(self) -> bytes:
        """All of it.

        Raises:
            OSError: it is too large, or the tar cannot be read.
        """
        if self.size > MAX_MEMBER:
            raise OSError(errno.EFBIG, f"{self.size:,} bytes, more than {MAX_MEMBER:,}", self.tar)
        with open(self.tar, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def find_member(name: str) -> Member | None:
    """The member of a tar that a name means; None: it means a file, or nothing.

    Raises:
        FileNotFoundError: the tar has no such member.
        OSError: it is no tar that can be read.
    """
    for found in re.finditer(r"\.tar/", name, re.IGNORECASE):
        tar, inside = name[: found.end() - 1], posixpath.normpath(name[found.end() :])
        if os.path.isfile(tar):
            status = os.stat(tar)
            index = _index(tar, status.st_size, status.st_mtime_ns)
            key = np.uint64(hash_key(inside))
            at = int(np.searchsorted(index["key"], key))
            if at == len(index) or index["key"][at] != key:
                raise FileNotFoundError(errno.ENOENT, f"no member {inside!r} in {tar}", name)
            row = index[at]
            return Member(tar, int(row["start"]), int(row["size"]), status.st_mtime_ns)
    return None


def list_members(tar: str) -> Iterator[tuple[str, int, int]]:
    """Name, start and size of each regular file in a tar, in its order.

    Names are `a/1.jpg` where the tar has `./a/1.jpg`; those that would leave it are passed over.

    Raises:
        OSError: it is no tar, or damaged, or cut short, or compressed, so that nothing has a place.
    """
    whole = os.stat(tar).st_size
    try:
        with (
            open(tar, "rb") as content,
            tarfile.open(fileobj=cast(BinaryIO, _Bounded(content)), mode="r:") as file,
        ):
            before = -1
            while (member := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.size < 0 or file.offset <= before:
                    raise tarfile.ReadError("a size below zero")
                before = file.offset
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > whole:
                        raise tarfile.ReadError(f"cut short in {member.name!r}")
                    name = posixpath.normpath(member.name)
                    if not name.startswith(("/", "../")) and name != "..":
                        yield name, member.offset_data, member.size
            content.seek(file.offset)
            end = content.read(_BLOCK)  # tarfile takes damage for the end
            if len(end) < _BLOCK or any(end):
                raise tarfile.ReadError(f"damaged or cut short at byte {file.offset:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise OSError(errno.EINVAL, f"no plain tar that can be read ({error})", tar) from error


class _Bounded:
    """A file of which tarfile reads names and attributes, and no gigabytes for one of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """At most so much."""
        if not 0 <= size <= _MAX_NAME:
            raise tarfile.ReadError(f"{size:,} bytes of name")
        return self._file.read(size)


@lru_cache(maxsize=_OPEN)
def _index(tar: str, size: int, changed: int) -> _Index:
    """(N,) rows of its members, by key; where it cannot be kept it stays in memory."""
    key = f"{hash_key(os.path.abspath(tar), size, changed):016x}"
    try:
        path = cache_folder("tars") / f"{key}.npy"
    except DataError:
        return _made(tar)
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged: it is a cache
        kept: _Index = np.load(path, mmap_mode="r")
        if kept.dtype == _ROW and kept.ndim == 1:
            return kept
    index, buffer = _made(tar), io.BytesIO()
    np.save(buffer, index)
    with suppress(CheckpointError):  # a full disk, or one that is only read
        write_atomic(path, buffer.getvalue())
    return index


def _made(tar: str) -> _Index:
    last = {hash_key(name): (start, length) for name, start, length in list_members(tar)}
    return np.array([(key, *last[key]) for key in sorted(last)], _ROW)
