"""JSON objects become the rows of Columns: their keys are the columns.

{"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     columns file_name, labels
{"file_name": "2.jpg", "split": "val"}                   column split; labels are blank here
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.column_sample import take_sample
from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import Fault, SourceOptions
from mlfinetune.errors import DataError

Object = dict[str, Any]
"""A JSON object: key -> value."""
Entries = Iterable[tuple[int, Object | str]]
"""Number of each entry, and its object, or the text of its error."""

HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate: only two of them together are a character."""
HALF_CHARACTER = "half a character: a \\ud... escape without its other half"


def read_columns(
    path: Path,
    read: Callable[[], Entries],
    options: SourceOptions,
    wanted: str,
    place: str = "line",
) -> Columns:
    """Return the objects as rows of Columns; bad ones are faults.

    Args:
        path: the file, for messages.
        read: yields the entries; it is called twice, for the keys and for the rows.
        options: how to read the columns.
        wanted: what the file should hold, for the message where it has no object.
        place: what an entry is called: `line`, or `entry`.

    Raises:
        DataError: there is no object, or no column of images.
    """
    header = _read_keys(path, read(), wanted, place)
    rows = ((n, entry) for n, entry in read() if isinstance(entry, dict))
    sample = take_sample((number, _list_cells(header, entry)) for number, entry in rows)
    columns = Columns(path, header, options, [cells for _, cells in sample], place)
    for number, entry in read():
        _add_entry(columns, number, entry)
    return columns


def is_encodable(entry: object) -> bool:
    """Return whether a JSON value has no half of a character, which no file name can hold."""
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_constant(word: str) -> float | None:
    """Return None (unknown) for NaN, and a number for Infinity and -Infinity."""
    return None if word == "NaN" else float(word)


def _read_keys(path: Path, entries: Entries, wanted: str, place: str) -> list[str]:
    """Return the keys of all objects, in order of first appearance."""
    keys: dict[str, None] = {}
    first_error = None
    for number, entry in entries:
        if isinstance(entry, dict):
            keys.update(dict.fromkeys(entry))
        elif first_error is None:
            first_error = f"{place} {number}: {entry}"
    if not keys:
        raise DataError(f"{path}: wanted {wanted}; {first_error or 'the file is empty'}")
    return list(keys)


def _add_entry(columns: Columns, number: int, entry: Object | str) -> None:
    """Add an object as a row, or an error as a fault."""
    if isinstance(entry, dict) and isinstance(entry.get(columns.image), list | dict):
        entry = f"{columns.image} is a list or an object; wanted the name of a file"
    if isinstance(entry, str):
        columns.faults.append(Fault(f"{columns.place} {number}", entry))
    else:
        columns.add(_list_cells(columns.header, entry), number)


def _list_cells(header: Iterable[str], entry: Object) -> list[Any]:
    """Return the cells of an object in order of the header; None where it lacks a key."""
    return [_flatten_value(entry.get(key)) for key in header]


def _flatten_value(value: Any) -> Any:
    """Return the value; of a deeply nested one only {}.

    "cat"    ["cat", "dog"]    {"choices": ["cat"]}    unchanged
    [["cat"]]    {"a": {"b": 1}}                       {}: Columns reports it, if it is used
    """
    if isinstance(value, list | dict):
        parts: Iterator[Any] = iter(value.values() if isinstance(value, dict) else value)
        if isinstance(value, dict):
            parts = chain.from_iterable(p if isinstance(p, list) else [p] for p in parts)
        if any(isinstance(part, list | dict) for part in parts):
            return {}
    return value
