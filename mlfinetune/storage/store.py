"""A store on disk for results that are computed once for each picture: a key -> some bytes.

    keys (n,) uint64, values -> Store.add -> one new file, renamed when it is complete
    keys -> Store.find -> positions -> Store.get / Store.read_rows -> bytes, mapped from the files

A file is an index, followed by the values. Its name begins with the SHA-256 of the index, which
holds a CRC-32 of every value: the index is verified when the store is opened, a value when it is
read. A damaged file is deleted, and its values are computed again. Files are added and never
changed, so that any number of processes may read and write at the same time.

    file = n (8 bytes) | keys (n,) uint64 | ends (n,) int64 | CRC-32 (n,) uint64 | values
"""

import gc
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.storage.cache import report_unused

SUFFIX = ".store"
_STALE_S = 24 * 3600
"""Age in seconds of an unfinished file from which on it was left by a process that died."""

Bytes = NDArray[np.uint8]
Keys = NDArray[np.uint64]
Positions = NDArray[np.int64]


def hash_key(*parts: object) -> int:
    """Return a 64-bit hash of the parts' texts; ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = os.fsencode(str(part))
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise unless the folder's disk has room for `size` bytes, 5 % more, and 64 MiB to spare.

    Args:
        folder: an existing folder.
        size: in bytes.
        what: subject of the message, such as "keeping features".

    Raises:
        DataError: there is too little room.
    """
    free = shutil.disk_usage(folder).free
    if size * 1.05 + 2**26 > free:
        raise DataError(
            f"{what} needs {size / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free; "
            f"`mlfinetune cache --clear` makes room, MLFINETUNE_CACHE names another folder"
        )


@contextmanager
def temporary_folder(inside: Path | None = None) -> Iterator[Path]:
    """Make a folder for stores, and delete it after the block.

    Windows deletes no file that is mapped, so stores that nobody uses any more are freed before.

    Args:
        inside: the folder to make it in; None: the system's for temporary files.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        made = TemporaryDirectory(
            prefix=".mlfinetune-", suffix=".tmp", dir=inside, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise CheckpointError(f"cannot make a folder in {inside}: {error.strerror}") from error
    with made as name:
        try:
            yield Path(name)
        finally:
            gc.collect()


class _StoreFile:
    """One file of a store, mapped into memory.

    Attributes:
        path: the file.
        is_live: False once a damaged value was found: its keys are not found any more.
        keys, ends, checks: (n,) the index: key, end in bytes and CRC-32 of each value.
        values: all values, one after the other.
    """

    def __init__(self, path: Path, held: bytes | None = None) -> None:
        """Map the file, and verify its index and its length.

        Args:
            held: content of a file that could not be written, and stays in memory.

        Raises:
            ValueError: the file is damaged: the index does not match the file's name, or the values
                do not have the length that the index gives.
        """
        self.path = path
        self.is_live = True
        content: Any = np.memmap(path, np.uint8, "r") if held is None else np.frombuffer(held, "B")
        n = int.from_bytes(content[:8].tobytes(), "little")
        start = 8 + 24 * n
        if start > len(content) or hashlib.sha256(content[:start]).hexdigest() != path.name[:64]:
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

    def get(self, row: int) -> Bytes:
        """Return the value of row `row` of the index."""
        value: Bytes = self.values[self.ends[row - 1] if row else 0 : self.ends[row]]
        return value

    def is_intact(self, row: int) -> bool:
        """Return whether the value of row `row` has the CRC-32 that it was written with."""
        return zlib.crc32(self.get(row).data) == int(self.checks[row])


def _publish_file(temporary: Path, path: Path) -> Path:
    """Give a complete file its name, and return that.

    Windows replaces no file that a process has mapped: beside a damaged one, or beside that of a
    process that was first, the file gets a name that comes before theirs.
    """
    try:
        os.replace(temporary, path)
        return path
    except PermissionError:
        if not path.exists():
            raise
    spare = path.with_name(f"{path.stem}-{time.time_ns()}{SUFFIX}")
    os.replace(temporary, spare)
    return spare


class Store:
    """Values of one kind, in one folder.

    A position stays valid as long as the store is open: a deleted file stays mapped.

    Attributes:
        folder: folder of its files; None: `keep` keeps values in memory.
        damaged: number of files that were found damaged, and deleted.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open an existing folder, verify the index of each file, and delete damaged files.

        Raises:
            DataError: a file in it cannot be read.
        """
        self.folder = folder
        self.damaged = 0
        self._files: list[_StoreFile] = []
        for path in [] if folder is None else sorted(folder.iterdir()):
            with suppress(FileNotFoundError):  # another process has renamed or deleted it
                if path.suffix == SUFFIX:
                    self._open_file(path)
                elif time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
        if folder is not None:
            with suppress(OSError):  # a folder of another user can be read, not touched
                os.utime(folder)  # `mlfinetune cache` shows when it was last used
        self._build_index()

    def _open_file(self, path: Path) -> None:
        """Add a file to the store; delete it where its index is damaged."""
        try:
            self._files.append(_StoreFile(path))
        except ValueError:
            self._delete_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"cannot read {path} in the cache: {error.strerror}") from error

    def _delete_file(self, path: Path) -> None:
        """Delete a damaged file, and count it."""
        self.damaged += 1
        with suppress(OSError):
            path.unlink()

    def _build_index(self) -> None:
        """Sort the keys of all live files, with their positions, for `find`.

        A position numbers the values of all files, one file after the other: file i has those from
        `_starts[i]` on. Damaged files keep their numbers, and new files come last, so that a
        position never changes its meaning. Of equal keys in two files `find` gives the first.
        """
        self._starts = np.cumsum([0, *(len(file.keys) for file in self._files)])
        live = [(i, file) for i, file in enumerate(self._files) if file.is_live]
        keys = np.concatenate([np.zeros(0, np.uint64), *(file.keys for _, file in live)])
        positions = [np.zeros(0, np.int64)]
        positions += [np.arange(self._starts[i], self._starts[i + 1]) for i, _ in live]
        order = np.argsort(keys, kind="stable")
        self._keys, self._positions = keys[order], np.concatenate(positions)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> Positions:
        """Return the positions of the values of `keys`, (n,) -> (n,); -1: not in the store."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[rows] == keys, self._positions[rows], -1)

    def verify(self, positions: Positions) -> None:
        """Read the values at `positions`; delete each file that holds a damaged one.

        Afterwards the keys of a deleted file are not found, or are found in another file, at
        positions that have to be verified in turn.
        """
        before = self.damaged
        for file, _, rows in self._split_by_file(positions):
            if not all(file.is_intact(row) for row in rows.tolist()):
                file.is_live = False
                self._delete_file(file.path)
        if self.damaged > before:
            self._build_index()

    def get(self, position: int) -> Bytes | None:
        """Return the value at `position`, mapped; None: it is damaged.

        The file of a damaged value is deleted, so that the next Store computes its values again.
        This one still finds its keys, and returns the values that are intact.
        """
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        file = self._files[number]
        row = position - int(self._starts[number])
        if file.is_intact(row):
            return file.get(row)
        self._delete_file(file.path)
        return None

    def read_rows(self, positions: Positions, width: int) -> Bytes:
        """Copy values of `width` bytes each, (n,) -> (n, width); call `verify` before."""
        out = np.empty((len(positions), width), np.uint8)
        for file, indices, rows in self._split_by_file(positions):
            out[indices] = file.values.reshape(-1, width)[rows]
        return out

    def _split_by_file(
        self, positions: Positions
    ) -> Iterator[tuple[_StoreFile, Positions, Positions]]:
        """Yield each file, the indices of the positions that lie in it, and their rows there."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            indices = np.flatnonzero(numbers == number)
            yield self._files[number], indices, positions[indices] - self._starts[number]

    def add(self, keys: Keys, values: Sequence[bytes]) -> None:
        """Write a value for each key into one new file.

        Args:
            keys: (n,), n at least 1.
            values: n values, of any lengths.

        Raises:
            DataError: the file cannot be written.
        """
        assert self.folder is not None
        index = _build_file_index(keys, values)
        path = self.folder / (hashlib.sha256(index).hexdigest() + SUFFIX)
        temporary = None
        try:
            with NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as file:
                temporary = Path(file.name)
                file.write(index)
                file.writelines(values)
                file.flush()
                os.fsync(file.fileno())
            path = _publish_file(temporary, path)
        except BaseException as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise DataError(
                    f"cannot write to the cache {self.folder}: {error.strerror}"
                ) from error
            raise
        self._files.append(_StoreFile(path))
        self._build_index()

    def keep(self, keys: Keys, values: Sequence[bytes]) -> None:
        """Add values as `add` does; where they cannot be written, keep them in memory, and say so.

        Those of later calls are then kept in memory too.
        """
        if self.folder is not None:
            try:
                self.add(keys, values)
                return
            except DataError as error:
                report_unused(error)
                self.folder = None
        index = _build_file_index(keys, values)
        content = b"".join((index, *values))
        self._files.append(_StoreFile(Path(hashlib.sha256(index).hexdigest()), content))
        self._build_index()


def _build_file_index(keys: Keys, values: Sequence[bytes]) -> bytes:
    """Return the head of a file: number, keys, ends and CRC-32 of its values."""
    checks = np.array([zlib.crc32(value) for value in values], np.uint64)
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    columns = (keys.tobytes(), ends.tobytes(), checks.tobytes())
    return b"".join((len(keys).to_bytes(8, "little"), *columns))
