"""(N, L) targets in {1, 0, -1}, two bits each: a million images of a thousand labels in 250 MB.

LabelLists.add(labels of a row) -> Targets       rows that list their labels (data/table.py)
Targets.pack(dense blocks)      -> Targets       rows that give a state for every label
Targets[rows]                   -> int8 (n, L)   what a batch needs
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, NEGATIVE, UNKNOWN = 1, 0, -1
"""States of a target. UNKNOWN is masked in the loss and in every metric."""


@dataclass(frozen=True)
class LabelSpace:
    """The labels in column order."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def column(self) -> dict[str, int]:
        """Label -> index of its column."""
        return {name: index for index, name in enumerate(self.names)}


BLOCK_BYTES = 2**23
"""Largest size in bytes of the dense blocks in which a whole table is processed."""

_STATES = np.array([0, 1, 0, -1], np.int8)
"""Two bits -> state. Code 2 is free: readers mark with it a cell that they could not read."""

_UNPACKED = _STATES[np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3]
"""(256, 4): byte -> its four states."""

_FOUR_AT_ONCE = np.ascontiguousarray(_UNPACKED).view("<u4").ravel()
"""(256,): byte -> its four states as one uint32; numpy looks these up several times faster."""


class Targets:
    """(N, L) states, two bits each; indexing unpacks the rows asked for."""

    def __init__(self, packed: NDArray[np.uint8], labels: int) -> None:
        """Wrap (N, ceil(L / 4)) bytes; the first label of a byte is in its lowest bits."""
        assert packed.shape[1] == -(-labels // 4)
        self.packed = packed
        self._labels = labels

    @classmethod
    def pack(cls, blocks: Iterable[NDArray[Any]], labels: int) -> "Targets":
        """Return the targets of (n, L) int8 blocks, whose rows follow one another."""
        width = -(-labels // 4)
        packed = [np.empty((0, width), np.uint8), *(pack_codes(block & 3) for block in blocks)]
        return cls(np.concatenate(packed), labels)

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of labels: (N, L)."""
        return len(self.packed), self._labels

    def __getitem__(self, rows: Any) -> NDArray[np.int8]:
        """Return int8 states: (L,) for a row number, (n, L) for a slice or an array of numbers."""
        states: NDArray[np.int8] = _FOUR_AT_ONCE[self.packed[rows]].view(np.int8)
        return states[..., : self._labels]

    def blocks(self, labels: int = 0) -> Iterator[tuple[int, NDArray[np.int8]]]:
        """Yield (first row, (n, L) states) for all rows, in blocks of at most `BLOCK_BYTES`.

        Args:
            labels: number of columns of the blocks that the caller makes of these, if it is larger
                than L: n is smaller then, so that those blocks fit too.
        """
        step = max(1, BLOCK_BYTES // max(1, labels, self._labels))
        for start in range(0, len(self), step):
            yield start, self[start : start + step]

    def take(self, rows: Any) -> "Targets":
        """Return the targets of these rows only, in this order."""
        return Targets(self.packed[rows], self._labels)

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of positives, negatives and unknowns, (L,) each."""
        bits = np.zeros((8, self.packed.shape[1]), np.int64)
        for start in range(0, len(self), 255):  # a byte counts to 255
            rows = self.packed[start : start + 255]
            for bit in range(8):
                bits[bit] += (rows >> bit & 1).sum(axis=0, dtype=np.uint8)
        # `bits`, (8, bytes), counts how often each bit of a byte is set: rows 0, 2, 4, 6 are the
        # low bits of its four labels, rows 1, 3, 5, 7 the high bits.
        low, high = (bits[first::2].T.ravel()[: self._labels] for first in (0, 1))
        # Codes of two bits: 0 is 00, 1 is 01, unknown is 11. So the high bit counts unknowns.
        return low - high, len(self) - low, high

    def any_positive(self) -> NDArray[np.bool_]:
        """Return (N,) bools: whether a row has a positive target."""
        positive = np.zeros(len(self), bool)
        for start in range(0, len(self), 4096):
            rows = self.packed[start : start + 4096]
            # 01 is positive: the low bit is set, the high bit is not.
            positive[start : start + 4096] = (rows & ~(rows >> 1) & 0b01010101).any(axis=1)
        return positive

    def positives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (P,) rows and (P,) columns of the positive targets, sorted by row."""
        parts = [np.empty((2, 0), np.int64)]
        for start, block in self.blocks():
            flat = np.flatnonzero(block == POSITIVE)  # much faster than two dimensions at once
            rows, columns = np.divmod(flat, self._labels)
            parts.append(np.stack([rows + start, columns]))
        rows, columns = np.concatenate(parts, axis=1)
        return rows, columns


def pack_codes(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack (n, L) numbers from 0 to 3 into (n, ceil(L / 4)) bytes."""
    rows, labels = codes.shape
    padded = np.zeros((rows, -(-labels // 4) * 4), np.uint8)
    padded[:, :labels] = codes
    # A uint32 holds four codes, one a byte. Multiplying by these shifts gathers all four, two bits
    # each, in the top byte.
    products = padded.view("<u4") * np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)
    return (products >> np.uint32(24)).astype(np.uint8)
