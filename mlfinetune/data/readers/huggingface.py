"""JSON lines become a Table: metadata.jsonl of a Hugging Face image folder, or any other.

    {"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     one object per line, keys are columns

The file is read twice, once for the keys and once for the rows, so that only one line at a time is
in memory.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.errors import DataError

Object = dict[str, Any]
"""A JSON object: key -> value."""

_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escaped UTF-16 surrogate: only two of them together are a character."""


def read_huggingface(path: Path, options: SourceOptions) -> Table:
    """Read a file of JSON lines.

    Raises:
        DataError: the path is a folder, the file cannot be read, it has no object, or it has no
            columns of images and labels.
    """
    if path.is_dir():
        raise DataError(
            f"{path}: wanted metadata.jsonl or metadata.csv in this folder, or the path of a "
            f".jsonl file (data.format is huggingface)"
        )
    try:
        columns = Columns(path, _read_keys(path), options)
        for line, result in _read_objects(path):
            _add_object(columns, line, result)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    return columns.build_table(path.parent, "huggingface")


def _read_keys(path: Path) -> list[str]:
    """Return the keys of all lines, in order of first appearance."""
    keys: dict[str, None] = {}
    first_error = None
    for line, result in _read_objects(path):
        if isinstance(result, dict):
            keys.update(dict.fromkeys(result))
        elif first_error is None:
            first_error = f"line {line}: {result}"
    if not keys:
        why = first_error or "the file is empty"
        raise DataError(f"{path}: wanted one JSON object per line, each with an image; {why}")
    return list(keys)


def _add_object(columns: Columns, line: int, result: Object | str) -> None:
    """Add the object of a line as a row, or the error of the line as a fault."""
    if isinstance(result, dict) and isinstance(result.get(columns.image), list | dict):
        result = f"{columns.image} is a list or an object; wanted the name of a file"
    if isinstance(result, str):
        columns.faults.append(Fault(f"line {line}", result))
    else:
        columns.add([_flatten_value(result.get(key)) for key in columns.header], line)


def _flatten_value(value: Any) -> Any:
    """Return the value; a nested one becomes {}: `Columns` reports it, and no depth does harm."""
    nested = isinstance(value, list) and any(isinstance(part, list | dict) for part in value)
    return {} if nested or isinstance(value, dict) else value


def _read_objects(path: Path) -> Iterator[tuple[int, Object | str]]:
    """Yield (line number, object or error text) for every line that is not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _parse_object(line)


def _parse_object(line: str) -> Object | str:
    """Return the JSON object of a line, or the text of an error."""
    try:
        result = _DECODER.decode(line.strip())
        if _HALF_ESCAPE.search(line):  # a lone surrogate cannot be encoded
            json.dumps(result, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno})"
    except UnicodeEncodeError:
        return "half a character: a \\ud... escape without its other half"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        return str(error)
    if not isinstance(result, dict):
        return "not a JSON object; wanted {...} with one key per column"
    return result


def _require_unique_keys(pairs: list[tuple[str, Any]]) -> Object:
    """Return the object; `json` alone would keep the last of repeated keys without a word."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"the key '{times.most_common(1)[0][0]}' is repeated")
    return entries


def _parse_constant(word: str) -> float | None:
    """Return None (unknown) for NaN, and a number for Infinity and -Infinity."""
    return None if word == "NaN" else float(word)


_DECODER = json.JSONDecoder(object_pairs_hook=_require_unique_keys, parse_constant=_parse_constant)
