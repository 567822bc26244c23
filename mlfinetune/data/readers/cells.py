"""Cells of a table of named columns: their text, lists of zeros and ones; who takes faults."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mlfinetune.text import MAX_LISTED

_BIT = re.compile(r"[01]")
_BITS = re.compile(r"[\[(]\s*[01]\.?(?:0?[,\s]+[01]\.?)*0?\s*[\])]")

Cell = Any
"""Text, a number, a bool, None, or a sequence of labels."""


class RowFaults(Protocol):
    """Takes the faults of rows, and names rows."""

    path: Path

    def add_fault(self, text: str, row: int = -1) -> None:
        """Add a fault of a row; without `row`, of the last one added."""

    def find_place(self, row: int) -> str:
        """Return where a row is in the source, as `line 12`."""


def format_cell(cell: Cell) -> str:
    """Return a cell as CSV text, without white space around it; None is empty."""
    return "" if cell is None else str(cell).strip()


def quote_names(names: Sequence[str]) -> str:
    """Return the names in quotes; after ten names the others are counted."""
    quoted = [f"'{name}'" for name in names[:MAX_LISTED]]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(quoted) + more


def find_bit_width(cells: Sequence[Cell]) -> int:
    """Return the length of the lists if all are zeros and ones of one length above 2, else 0.

    `[0, 1, 0]` and `[1, 0, 0]`, as lists or as text, have the length 3.
    """
    widths = {_count_bits(cell) for cell in cells}
    width = next(iter(widths)) if len(widths) == 1 and len(cells) > 1 else 0
    return width if width > 2 else 0


def _count_bits(cell: Cell) -> int:
    """Return the length of a list of zeros and ones, or of its text; 0 for anything else."""
    if isinstance(cell, str):
        return len(_BIT.findall(cell.replace(".0", ""))) if _BITS.fullmatch(cell.strip()) else 0
    is_list = isinstance(cell, list | tuple)
    return len(cell) if is_list and all(item in (0, 1) for item in cell) else 0
