"""A look at a table as it was read: its first labels, and one row, so that a wrong guess is seen.

Table -> first labels: 'blue', 'solid', 'yellow'
         row read: line 2: 'images/0000.jpg' -> 'blue', 'solid' (not: 'yellow')
"""

from collections.abc import Sequence

import numpy as np

from mlfinetune.data.labels import MANY_BLANK
from mlfinetune.data.manifest import Splits
from mlfinetune.data.table import Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.text import list_some, pluralize

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


def summarize(
    tables: Sequence[Table], splits: Splits, val_fraction: float | None
) -> tuple[str, str]:
    """Return a line for the number of pictures and labels, and one for the split.

    Args:
        tables: that of train, and of val where there is one.
        splits: made from these.
        val_fraction: the share of val that the config names; None: a fifth.
    """
    total = sum(map(len, tables))
    positives = sum(int(table.targets.counts()[0].sum()) for table in tables)
    unknown = sum(int(side.targets.counts()[2].sum()) for side in (splits.train, splits.val))
    masked = f", {unknown} unknown targets" if unknown else ""
    tests = (tables[0].splits or ()).count("test")
    to_test = f", {tests} to test" if tests else ""
    origin = "as the data says"
    if splits.drawn:
        share = "a fifth" if val_fraction is None else f"{val_fraction:.0%}"
        origin = f"{share} held out, stratified by label"
    return (
        f"{pluralize(total, 'picture')}, {pluralize(len(splits.train.labels), 'label')}, "
        f"{positives / max(1, total):.1f} per picture{masked}",
        f"split: {len(splits.train)} to train, {len(splits.val)} to validate{to_test} ({origin})",
    )


def list_frequent_labels(splits: Splits) -> str:
    """Return the ten most frequent labels with their counts; a mistaken label often shows here."""
    positives = splits.train.targets.counts()[0] + splits.val.targets.counts()[0]
    columns = np.argsort(-positives, kind="stable")
    names = splits.train.labels.names
    return f"labels: {list_some([f'{names[at]!r} ({positives[at]})' for at in columns])}"


def count_empty(table: Table) -> tuple[int, int]:
    """Return the number of rows that list no label, and of those with blank cells alone."""
    listed = int((~table.targets.any_positive() & (table.unnamed == NEGATIVE)).sum())
    blank = 0
    for start, block in table.targets.blocks():
        in_columns = table.unnamed[start : start + len(block)] == UNKNOWN
        blank += int(((block == UNKNOWN).all(axis=1) & in_columns).sum())
    return listed, blank


def describe_empty(table: Table, empty_labels: str, unknown: str) -> list[str]:
    """Return lines that count the pictures without any label, and say what they mean.

    Args:
        table: as it was read, before label options.
        empty_labels, unknown: the config's keys.
    """
    listed, blank = count_empty(table)
    lines, of_all = [], f"of {pluralize(len(table), 'picture')}"
    if listed:
        meaning = "unknown" if empty_labels == "unknown" else "negatives"
        line = f"{listed} {of_all} have no label: taken as {meaning}"
        if meaning == "negatives" and listed >= MANY_BLANK * len(table):
            line += "; where nobody has looked at them, set data.empty_labels: unknown"
        lines.append(line)
    if blank:
        meaning = f"taken as {unknown}s (data.unknown)"
        if unknown == "ignore":
            meaning = "nothing is learned of them (data.unknown)"
        elif empty_labels == "unknown":
            meaning = "nothing is learned of them (data.empty_labels)"
        elif blank >= MANY_BLANK * len(table):
            meaning += "; where nobody has looked at them, set data.empty_labels: unknown"
        lines.append(f"{blank} {of_all} have blank cells alone: {meaning}")
    return lines
