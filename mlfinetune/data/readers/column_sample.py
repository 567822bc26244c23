"""First rows of a table, column by column: shares of picture names, split words and states."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mlfinetune.data.images.names import is_image_name
from mlfinetune.data.readers.cells import Cell, format_cell, quote_names
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.state_words import CellState, read_state, read_verdict
from mlfinetune.data.targets import NEGATIVE
from mlfinetune.text import MAX_LISTED

_UNNAMED = re.compile(r"|Unnamed: \d+")
SAMPLE_ROWS = 1000
"""Number of first rows in a sample, at most."""

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


class Sample:
    """The first rows of a table, column by column."""

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        width = len(header)
        self.header = tuple(header)
        self._rows = [row for row in rows if len(row) == width]
        self._columns: dict[str, Column] = {}

    def __getitem__(self, name: str) -> "Column":
        """Return the cells of a column."""
        if name not in self._columns:
            index = self.header.index(name)
            self._columns[name] = Column([row[index] for row in self._rows])
        return self._columns[name]

    def list_unnamed(self) -> "list[Column]":
        """Return the columns without a name that are not blank; pandas calls one `Unnamed: 2`."""
        named = map(_UNNAMED.fullmatch, self.header)
        indices = [index for index, match in enumerate(named) if match]
        columns = [Column([row[index] for row in self._rows]) for index in indices]
        return [column for column in columns if column.texts]

    def replace_texts(self, name: str, texts: Sequence[str]) -> None:
        """Take other cells for a column: those that stand beyond the first rows."""
        self._columns[name] = Column(texts)

    def describe(self, names: Sequence[str]) -> str:
        """Return the names in quotes, each with some of its values; after ten they are counted."""
        if not any(self[name].texts or self[name].has_lists for name in self.header):
            return quote_names([name for name in names if name])
        shown = [
            (f"'{name}'" if name else "a column without a name") + self[name].list_values()
            for name in names[:MAX_LISTED]
        ]
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        return ", ".join(shown) + more


class Column:
    """Cells of one column in the sample."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = len(cells)
        self.has_lists = any(isinstance(cell, list | tuple | dict) for cell in cells)
        self.has_bytes = any(isinstance(cell, bytes) for cell in cells)
        self.texts = [
            text
            for cell in cells
            if not isinstance(cell, list | tuple | dict | bytes) and (text := format_cell(cell))
        ]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of cells of each text; a column of states has few texts, and a thousand cells."""
        return Counter(self.texts)

    def _find_share(self, is_one: Callable[[str], object]) -> float:
        """Return the share of the cells for which a function returns something true."""
        count = sum(times for text, times in self.counts.items() if is_one(text))
        return count / len(self.texts) if self.texts else 0.0

    @cached_property
    def picture_share(self) -> float:
        """Share of the cells that are names of pictures, by their endings."""
        return self._find_share(is_picture_name)

    @cached_property
    def split_share(self) -> float:
        """Share of the cells that are words for train, val or test."""
        return self._find_share(find_split)

    @cached_property
    def states(self) -> Counter[CellState | None]:
        """Number of cells of each state; None counts the cells that are no states."""
        states: Counter[CellState | None] = Counter()
        for text, times in self.counts.items():
            states[read_state(text)] += times
        return states

    @property
    def is_constant(self) -> bool:
        """Whether all cells are blank, or one text; lists and bytes are no texts."""
        return len(self.counts) < 2 and not self.has_lists and not self.has_bytes

    @property
    def holds_states(self) -> bool:
        """Whether at least half of the cells that are not blank are 1, 0, or words for them."""
        bad = self.states[None]
        blank = sum(n for state, n in self.states.items() if state and state.kind == "blank")
        known = len(self.texts) - blank - bad
        return not self.has_lists and known > 0 and known >= bad

    @property
    def holds_values(self) -> bool:
        """Whether all cells are states, or fractions from 0 to 1."""
        return bool(self.texts) and not self.states[None] and self.holds_states

    @property
    def holds_verdicts(self) -> bool:
        """Whether all cells are states or verdicts, and one is absent: `accepted`, `rejected`."""
        verdicts = [read_verdict(text) for text in self.counts]
        return all(verdicts) and any(one and one.state == NEGATIVE for one in verdicts)

    @property
    def holds_digits(self) -> bool:
        """Whether all cells are 1, 0 or blank, in numbers."""
        kinds = {state and state.kind for state in self.states}
        return "digit" in kinds and kinds <= {"digit", "blank"}

    @property
    def holds_marks(self) -> bool:
        """Whether all cells are 1, 0, or words for them."""
        kinds = {state and state.kind for state in self.states}
        return bool(kinds) and kinds <= {"digit", "word", "letter"}

    @property
    def varies(self) -> bool:
        """Whether a column of states has two of them; a blank cell is one."""
        states = {state and state.state for state in self.states}
        return len(states) > 1 or self.cells > len(self.texts)

    @property
    def is_numeric(self) -> bool:
        """Whether all cells are numbers."""
        return bool(self.texts) and all(re.fullmatch(r"[+-]?[\d.,]+", text) for text in self.counts)

    def list_values(self) -> str:
        """Return up to three different values in brackets: ` ('sunny', 'rainy', ...)`."""
        values = list(self.counts)
        shown = [value if len(value) <= 24 else f"{value[:24]}..." for value in values[:3]]
        more = ", ..." if len(values) > 3 else ""
        kind = "lists" if self.has_lists else "other values" if self.has_bytes else "blank"
        return f" ({quote_names(shown)}{more})" if shown else f" ({kind})"


def is_picture_name(text: str) -> bool:
    """Return whether a cell names a picture, by its ending: a path, or a URL with a query."""
    path = re.split(r"[?#]", text)[0] if "://" in text else text
    return is_image_name(Path(path.replace("\\", "/").rsplit("/", 1)[-1]))
