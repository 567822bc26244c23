"""JSON lines become a Table: metadata.jsonl of a Hugging Face image folder, or any other.

    {"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     one object a line, keys are columns

Read twice, so that no more than a line is in memory: once for the keys, once for the rows.
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

_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_huggingface(path: Path, options: SourceOptions) -> Table:
    """Read a file of JSON lines.

    Raises:
        DataError: it is a folder, it cannot be read, it holds no object, or its columns cannot
            be told.
    """
    if path.is_dir():
        raise DataError(
            f"{path}: wanted metadata.jsonl or metadata.csv in this folder, or the path of a "
            f".jsonl file (data.format is huggingface)"
        )
    try:
        columns = Columns(path, _keys(path), options)
        for line, found in _objects(path):
            _add(columns, line, found)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    return columns.table(path.parent, "huggingface")


def _keys(path: Path) -> list[str]:
    """The keys of all the lines, in order of first appearance."""
    keys: dict[str, None] = {}
    first = None
    for line, found in _objects(path):
        if isinstance(found, dict):
            keys.update(dict.fromkeys(found))
        elif first is None:
            first = f"line {line}: {found}"
    if not keys:
        why = first or "the file is empty"
        raise DataError(f"{path}: wanted one JSON object a line, each with an image; {why}")
    return list(keys)


def _add(columns: Columns, line: int, found: Object | str) -> None:
    if isinstance(found, dict) and isinstance(found.get(columns.image), list | dict):
        found = f"{columns.image} is a list or an object; wanted the name of a file"
    if isinstance(found, str):
        columns.faults.append(Fault(f"line {line}", found))
    else:
        columns.add([_cell(found.get(key)) for key in columns.header], line)


def _cell(value: Any) -> Any:
    """The value; an empty object for what is nested, so that no depth of it can do harm."""
    nested = isinstance(value, list) and any(isinstance(part, list | dict) for part in value)
    return {} if nested or isinstance(value, dict) else value


def _objects(path: Path) -> Iterator[tuple[int, Object | str]]:
    """(line, its object or what is wrong with it) of all lines that are not blank."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(line)


def _object(line: str) -> Object | str:
    try:
        found = _DECODER.decode(line.strip())
        if _HALF_ESCAPE.search(line):
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno})"
    except UnicodeEncodeError:
        return "half a character: a \\ud... escape without its other half"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        return str(error)
    if not isinstance(found, dict):
        return "not a JSON object; wanted {...} with one key a column"
    return found


def _once(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"the key '{times.most_common(1)[0][0]}' stands more than once")
    return found


def _constant(word: str) -> float | None:
    """NaN says that nothing is known; the infinities are numbers."""
    return None if word == "NaN" else float(word)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_constant)
