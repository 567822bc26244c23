"""(N, L) targets in {1, 0, -1}, two bits each: a million images of a thousand labels in 250 MB.

LabelLists.add(row's labels) -> Targets       rows that name the labels that hold
Targets.pack(dense blocks)   -> Targets       rows that say something of every label
Targets[rows]                -> int8 (n, L)   what a batch needs
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
"""The three states of a target. UNKNOWN is masked in the loss and in every metric."""


@dataclass(frozen=True)
class LabelSpace:
    """The labels, in column order."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def column(self) -> dict[str, int]:
        """Label -> its column."""
        return {name: i for i, name in enumerate(self.names)}


BLOCK_BYTES = 2**23
"""Bytes of the dense blocks that whole-table work goes through."""

_STATES = np.array([0, 1, 0, -1], np.int8)
"""Two bits -> state. 2 is free: readers mark with it what they could not read."""

_UNPACKED = _STATES[np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3]
"""(256, 4): a byte -> its four states."""

_FOUR_AT_ONCE = np.ascontiguousarray(_UNPACKED).view("<u4").ravel()
"""(256,): the same as one number of four bytes, which numpy looks up several times faster."""


class Targets:
    """(N, L) states, unpacked where they are indexed."""

    def __init__(self, packed: NDArray[np.uint8], labels: int) -> None:
        """Take (N, ceil(L / 4)) bytes, the first label in the lowest bits."""
        assert packed.shape[1] == -(-labels // 4)
        self.packed, self._labels = packed, labels

    @classmethod
    def pack(cls, blocks: Iterable[NDArray[Any]], labels: int) -> "Targets":
        """The rows of (n, L) int8 blocks, one after the other."""
        width = -(-labels // 4)
        packed = [np.empty((0, width), np.uint8), *(pack_codes(block & 3) for block in blocks)]
        return cls(np.concatenate(packed), labels)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, L)."""
        return len(self.packed), self._labels

    def __getitem__(self, rows: Any) -> NDArray[np.int8]:
        """(L,) for a number, (n, L) for a slice or an array of row numbers."""
        states: NDArray[np.int8] = _FOUR_AT_ONCE[self.packed[rows]].view(np.int8)
        return states[..., : self._labels]

    def blocks(self, labels: int = 0) -> Iterator[tuple[int, NDArray[np.int8]]]:
        """(first row, (n, L) states) of all rows, a few megabytes of them, or of (n, labels)."""
        step = max(1, BLOCK_BYTES // max(1, labels, self._labels))
        for start in range(0, len(self), step):
            yield start, self[start : start + step]

    def take(self, rows: Any) -> "Targets":
        """The rows of those numbers, in that order."""
        return Targets(self.packed[rows], self._labels)

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(L,) positives, negatives and unknowns."""
        bits = np.zeros((8, self.packed.shape[1]), np.int64)
        for start in range(0, len(self), 255):  # a byte can count so many
            rows = self.packed[start : start + 255]
            for bit in range(8):
                bits[bit] += (rows >> bit & 1).sum(axis=0, dtype=np.uint8)
        low, high = (bits[at::2].T.ravel()[: self._labels] for at in (0, 1))
        return low - high, len(self) - low, high

    def any_positive(self) -> NDArray[np.bool_]:
        """(N,) does a row have a label that holds?"""
        found = np.zeros(len(self), bool)
        for start in range(0, len(self), 4096):
            rows = self.packed[start : start + 4096]
            found[start : start + 4096] = (rows & ~(rows >> 1) & 0b01010101).any(axis=1)
        return found

    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of every positive target, by rows."""
        found = [np.empty((2, 0), np.int64)]
        for start, block in self.blocks():
            flat = np.flatnonzero(block == POSITIVE)  # much faster than two dimensions at once
            rows, columns = np.divmod(flat, self._labels)
            found.append(np.stack([rows + start, columns]))
        rows, columns = np.concatenate(found, axis=1)
        return rows, columns


def pack_codes(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """(n, L) numbers from 0 to 3 -> (n, ceil(L / 4)) bytes."""
    rows, labels = codes.shape
    padded = np.zeros((rows, -(-labels // 4) * 4), np.uint8)
    padded[:, :labels] = codes
    # Four bytes as a number: the product has them side by side, two bits each, in its top byte.
    products = padded.view("<u4") * np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)
    return (products >> np.uint32(24)).astype(np.uint8)
