"""A look at a table as it was read: its first labels, and one row, so that a wrong guess is seen.

Table -> first labels: 'blue', 'solid', 'yellow'
         row read: line 2: 'images/0000.jpg' -> 'blue', 'solid' (not: 'yellow')
"""

from collections.abc import Sequence

import numpy as np

from mlfinetune.data.table import Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN

_SAMPLE_ROWS = 1000
_SHOWN = 5
_SHOWN_IN_ROW = 3


def describe_rows(table: Table) -> list[str]:
    """Return two lines: the first five labels of a table, and one of its rows as it was read.

    It is the row with the most labels among the first thousand. Labels are in quotes, so that
    'cat, dog' is seen to be one label. A table without rows or labels has nothing to show.
    """
    if not len(table) or not len(table.labels):
        return []
    sample = table.targets[:_SAMPLE_ROWS]
    row = int((sample == POSITIVE).sum(axis=1).argmax())
    states = sample[row]
    positive = _list_labels(table, np.flatnonzero(states == POSITIVE).tolist(), _SHOWN)
    others = [
        f"{word}: {_list_labels(table, columns, _SHOWN_IN_ROW)}"
        for word, state in (("not", NEGATIVE), ("unknown", UNKNOWN))
        if (columns := np.flatnonzero(states == state).tolist())
    ]
    line = f"line {table.lines[row]}: " if table.lines is not None else ""
    details = f" ({'; '.join(others)})" if others else ""
    return [
        f"first labels: {_list_labels(table, range(len(table.labels)), _SHOWN)}",
        f"row read: {line}{table.names[row]!r} -> {positive or 'no label'}{details}",
    ]


def _list_labels(table: Table, columns: Sequence[int], shown: int) -> str:
    """Return the first labels of these columns in quotes, and `...` where there are more."""
    listed = [repr(table.labels.names[column]) for column in columns[:shown]]
    return ", ".join([*listed, "..."] if len(columns) > shown else listed)
