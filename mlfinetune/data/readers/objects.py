"""JSON objects become the rows of Columns: their keys are the columns.

{"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     columns file_name, labels
{"file_name": "2.jpg", "split": "val"}                   column split; labels are blank here
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_sample import take_sample
from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import Fault, SourceOptions
from mlfinetune.errors import DataError

Object = dict[str, Any]
"""A JSON object: key -> value."""
Entries = Iterable[tuple[int, Object | str]]
"""Number of each entry, and its object, or the text of its error."""

_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate: only two of them together are a character."""
_HALF_CHARACTER = "half a character: a \\ud... escape without its other half"


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


def _is_encodable(entry: object) -> bool:
    """Return whether a JSON value has no half of a character, which no file name can hold."""
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class Repeated(dict[str, Any]):
    """An object with keys that stand twice in the file: `json` would keep the last of them.

    Attributes:
        keys_twice: these keys, in quotes.
    """

    keys_twice: str


class Parser:
    """Parses JSON; objects with a repeated key are `Repeated`."""

    def __init__(self) -> None:
        self._repeats = False
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._build_object, parse_constant=_parse_constant
        )

    def parse(self, text: str) -> tuple[Any, bool]:
        """Return the value, and whether `check_entry` has to look inside of it.

        Raises:
            ValueError: no JSON (`JSONDecodeError`), or a number of thousands of digits.
            RecursionError: nested too deeply.
        """
        self._repeats = False
        value = self._decoder.decode(text.strip())
        return value, self._repeats or _HALF_ESCAPE.search(text) is not None

    def _build_object(self, pairs: list[tuple[str, Any]]) -> Object:
        """Return the object of these pairs; a `Repeated` where a key is repeated."""
        entries = dict(pairs)
        if len(entries) == len(pairs):
            return entries
        self._repeats = True
        repeated = Repeated(entries)
        times = Counter(key for key, _ in pairs)
        repeated.keys_twice = quote_names([key for key in entries if times[key] > 1])
        return repeated


def _parse_constant(word: str) -> float | None:
    """Return None (unknown) for NaN, and a number for Infinity and -Infinity."""
    return None if word == "NaN" else float(word)


def check_entry(entry: Any, is_odd: bool) -> Object | str:
    """Return the entry, or the text of its error; `is_odd` is what `Parser.parse` says."""
    if is_odd and (keys := _find_repeated(entry)):
        return f"the key {keys} is repeated"
    if is_odd and not _is_encodable(entry):
        return _HALF_CHARACTER
    if not isinstance(entry, dict):
        return "not a JSON object; wanted {...} with one key per column"
    return entry


def _find_repeated(value: Any) -> str:
    """Return the repeated keys of a JSON value, or of one inside of it; empty: there are none."""
    if isinstance(value, Repeated):
        return value.keys_twice
    if not isinstance(value, list | dict):
        return ""
    parts = value.values() if isinstance(value, dict) else value
    nested = (part for part in parts if isinstance(part, list | dict))
    return next(filter(None, map(_find_repeated, nested)), "")


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

    "cat"    ["cat", "dog"]    {"choices": ["cat"]}    [{"name": "cat"}]    unchanged
    [["cat"]]    {"a": {"b": 1}}    {}: Columns reports it, if it is used
    """
    if isinstance(value, list):
        return {} if any(map(_is_deep, value)) else value
    return {} if isinstance(value, dict) and _is_deep(value) else value


def _is_deep(part: Any) -> bool:
    """Return whether a value is a list, or an object of more than values and lists of values."""
    if not isinstance(part, dict):
        return isinstance(part, list)
    values = (value if isinstance(value, list) else [value] for value in part.values())
    return any(isinstance(value, list | dict) for value in chain.from_iterable(values))
