"""The first rows of a table, which tell what its columns hold before all rows are read."""

from collections.abc import Iterable
from itertools import islice
from typing import TypeVar

from mlfinetune.data.readers.cells import Cell
from mlfinetune.data.readers.columns import SAMPLE_ROWS

_MAX_SIZE = 2**24
"""Characters and items in the cells of a sample; it bounds the memory."""

_Cells = TypeVar("_Cells", bound="list[Cell] | list[str]")


def take_sample(rows: Iterable[tuple[int, _Cells]]) -> list[tuple[int, _Cells]]:
    """Return the first rows, each with its line number.

    These are `SAMPLE_ROWS`, or fewer where their cells are very long. No row beyond them is
    read, so that an iterator can go on from there.
    """
    sample = []
    size = 0
    for line, cells in islice(rows, SAMPLE_ROWS):
        sample.append((line, cells))
        size += sum(len(cell) for cell in cells if isinstance(cell, str | list))
        if size > _MAX_SIZE:
            break
    return sample
