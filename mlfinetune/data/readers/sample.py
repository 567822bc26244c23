"""The first rows of a table, which tell what its columns hold before all rows are read."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mlfinetune.data.images.decode import is_image_name
from mlfinetune.data.readers.cells import Cell
from mlfinetune.location import is_url

SAMPLE_ROWS = 1000
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


def names_picture(text: str) -> bool:
    """Return whether a text is the name of a picture, or its URL, with a query or without."""
    text = text.strip()
    return is_image_name(Path(text.partition("?")[0] if is_url(text) else text))
