"""What was computed once for a picture is kept on disk: a key -> some bytes, all of them verified.

    keys (n,) uint64, values -> Store.add -> one file, written aside and renamed when whole
    keys -> Store.find -> positions -> Store.get / Store.rows -> bytes, mapped from the files

A file is an index and the values behind it. Its name is the SHA-256 of the index, which holds a
CRC-32 of every value: the index is verified when the store is opened, values when they are asked
for. A damaged file is deleted, and what it held is computed anew. Files are only ever added, so
that any number of processes may read, and write, at the same time.

    file = n (8 bytes) | keys (n,) uint64 | ends (n,) int64 | CRC-32 (n,) uint64 | values
"""

import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import DataError

SUFFIX = ".store"
_STALE_S = 24 * 3600
"""A file that is still being written after so long was left by a process that died."""

Bytes = NDArray[np.uint8]
Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]


def hash_key(*parts: object) -> int:
    """64 bits that are a function of the texts of the parts, one by one."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = os.fsencode(str(part))
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def require_space(folder: Path, size: int, what: str) -> None:
    """Is there room for `size` more bytes in a folder, and some to spare?

    Raises:
        DataError: there is not.
    """
    free = shutil.disk_usage(folder).free
    if size * 1.05 + 2**26 > free:
        raise DataError(
            f"{what} needs {size / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free; "
            f"`mlfinetune cache --clear` makes room, MLFINETUNE_CACHE names another folder"
        )


class _File:
    """One file of a store, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError where the index is not what the name says."""
        self.path, self.live = path, True
        content: Any = np.memmap(path, np.uint8, "r")
        n = int.from_bytes(content[:8].tobytes(), "little")
        start = 8 + 24 * n
        if start > len(content) or hashlib.sha256(content[:start]).hexdigest() != path.stem:
            raise ValueError(path)
        keys, ends, checks = content[8:start].reshape(3, 8 * n)
        self.keys, self.ends, self.checks = (
            keys.view(np.uint64),
            ends.view(np.int64),
            checks.view(np.uint64),
        )
        self.values = content[start:]
        if not n or self.ends[-1] != len(self.values):
            raise ValueError(path)

    def get(self, at: int) -> Bytes:
        """The value number `at`."""
        value: Bytes = self.values[self.ends[at - 1] if at else 0 : self.ends[at]]
        return value

    def sound(self, at: int) -> bool:
        """Is the value number `at` what was written?"""
        return zlib.crc32(self.get(at).data) == int(self.checks[at])


class Store:
    """Values of one kind, in one folder.

    A position stays good as long as the store is open: what is deleted stays mapped.

    Attributes:
        damaged: files that were found damaged, and deleted.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder that exists.

        Raises:
            DataError: a file in it cannot be read.
        """
        self.folder, self.damaged = folder, 0
        self._files: list[_File] = []
        for path in sorted(folder.iterdir()):
            with suppress(FileNotFoundError):  # another process has renamed or deleted it
                if path.suffix == SUFFIX:
                    self._open(path)
                elif time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
        with suppress(OSError):  # somebody else's folder is read all the same
            os.utime(folder)  # when it was last used, for `mlfinetune cache`
        self._index()

    def _open(self, path: Path) -> None:
        try:
            self._files.append(_File(path))
        except ValueError:
            self._delete(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"cannot read {path} in the cache: {error.strerror}") from error

    def _delete(self, path: Path) -> None:
        self.damaged += 1
        with suppress(OSError):
            path.unlink()

    def _index(self) -> None:
        """Every key in order, and where its value is."""
        self._starts = np.cumsum([0, *(len(file.keys) for file in self._files)])
        live = [(i, file) for i, file in enumerate(self._files) if file.live]
        keys = np.concatenate([np.zeros(0, np.uint64), *(file.keys for _, file in live)])
        places = [np.zeros(0, np.int64)]
        places += [np.arange(self._starts[i], self._starts[i + 1]) for i, _ in live]
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.concatenate(places)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> Positions:
        """(n,) -> (n,) positions of their values; -1: not here."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[at] == keys, self._places[at], -1)

    def verify(self, positions: Positions) -> None:
        """Read these values; a file with one that is not what was written is deleted.

        Its keys are not found from then on, or found in another file: verify those.
        """
        before = self.damaged
        for file, _, inside in self._parts(positions):
            if not all(file.sound(at) for at in inside.tolist()):
                file.live = False
                self._delete(file.path)
        if self.damaged > before:
            self._index()

    def get(self, position: int) -> Bytes | None:
        """One value, mapped; None where it is damaged (and its file is deleted for the next)."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        file, at = self._files[number], position - int(self._starts[number])
        if file.sound(at):
            return file.get(at)
        self._delete(file.path)
        return None

    def rows(self, positions: Positions, width: int) -> Bytes:
        """(n,) -> (n, width): values that all have `width` bytes, copied; not verified again."""
        out = np.empty((len(positions), width), np.uint8)
        for file, places, inside in self._parts(positions):
            out[places] = file.values.reshape(-1, width)[inside]
        return out

    def _parts(self, positions: Positions) -> Iterator[tuple[_File, Positions, Positions]]:
        """File by file: which of the positions lie in it, and where there."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            yield self._files[number], places, positions[places] - self._starts[number]

    def add(self, keys: Keys, values: Sequence[bytes]) -> None:
        """Keep a value for each key, in one new file.

        Args:
            keys: (n,), n at least 1.
            values: n of any lengths.

        Raises:
            DataError: the file cannot be written.
        """
        checks = np.array([zlib.crc32(value) for value in values], np.uint64)
        ends = np.cumsum([len(value) for value in values], dtype=np.int64)
        columns = (keys.tobytes(), ends.tobytes(), checks.tobytes())
        index = b"".join((len(keys).to_bytes(8, "little"), *columns))
        path = self.folder / (hashlib.sha256(index).hexdigest() + SUFFIX)
        aside = None
        try:
            with NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                aside = Path(file.name)
                file.write(index)
                file.writelines(values)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException as error:
            if aside is not None:
                aside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise DataError(
                    f"cannot write to the cache {self.folder}: {error.strerror}"
                ) from error
            raise
        self._files.append(_File(path))
        self._index()
