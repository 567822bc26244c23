"""Cells of a table of named columns: their text, the labels' delimiter, lists in text."""

import re
from collections.abc import Sequence
from typing import Any

from mlfinetune.text import MAX_LISTED

Cell = Any
"""Text, a number, a bool, None, or a sequence of labels."""

DELIMITERS = ("|", ";", ",")
_LIST_ITEM = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"][^,]*)""")
"""A quoted or bare item of a list in text."""


def format_cell(cell: Cell) -> str:
    """Return a cell as CSV text, without white space around it; None is empty."""
    return "" if cell is None else str(cell).strip()


def quote_names(names: Sequence[str]) -> str:
    """Return the names in quotes; after ten names the others are counted."""
    quoted = [f"'{name}'" for name in names[:MAX_LISTED]]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(quoted) + more


def detect_delimiter(cells: Sequence[str]) -> str | None:
    """Return the first of | ; , that any cell holds; else a space where cells are lists of words.

        cells                                    distinct cells  distinct words  delimiter
        `haze primary`, `clear primary`, `haze`        3               3         None
        the same and `haze clear`                      4               3         a space
        `hot dog`, `ice cream`                         2               4         None

    Fewer words than cells: the cells combine a few words, so they are lists. Otherwise a label may
    have two words. The result is reported in the notes.
    """
    for delimiter in DELIMITERS:
        if any(delimiter in cell for cell in cells):
            return delimiter
    whole = {text for cell in cells if (text := cell.strip())}
    words = {word for cell in whole for word in cell.split()}
    return " " if any(" " in cell for cell in whole) and len(words) < len(whole) else None


def parse_lists(cells: list[Cell]) -> list[Cell]:
    """Return the cells as lists where all texts are lists as Python or JSON writes them.

    The text `['cat', 'dog']` becomes [cat, dog].
    """
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    if not texts or not all(text[0] == "[" and text[-1] == "]" for text in texts):
        return cells
    return [
        ["".join(item) for item in _LIST_ITEM.findall(cell.strip()[1:-1])]
        if isinstance(cell, str)
        else cell
        for cell in cells
    ]


def find_bit_width(cells: Sequence[Cell]) -> int:
    """Return the length of the lists if all are zeros and ones of one length above 2, else 0."""
    if len(cells) < 2 or not all(isinstance(cell, list) for cell in cells):
        return 0
    width = len(cells[0])
    same = width > 2 and all(len(cell) == width for cell in cells)
    return width if same and all(item in (0, 1) for cell in cells for item in cell) else 0


def name_delimiter(delimiter: str) -> str:
    """Return the delimiter as a message names it: `a space`, or in quotes."""
    return "a space" if delimiter == " " else f"'{delimiter}'"
