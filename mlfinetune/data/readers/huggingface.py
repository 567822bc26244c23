"""JSON lines become a Table: metadata.jsonl of a Hugging Face image folder, or any other.

    {"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     one object per line, keys are columns

The file is read several times, for the encoding, the keys and the rows, so that only one line at a
time is in memory.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.objects import (
    HALF_CHARACTER,
    HALF_ESCAPE,
    Entries,
    Object,
    is_encodable,
    parse_constant,
    read_columns,
)
from mlfinetune.data.readers.text_file import MAX_ROW, detect_encoding, opening_text, read_lines
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


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
    encoding, _ = detect_encoding(path)
    wanted = "one JSON object per line, each with an image"
    columns = read_columns(path, lambda: _read_lines(path, encoding), options, wanted)
    return columns.build_table(path.parent, "huggingface")


def _read_lines(path: Path, encoding: str) -> Entries:
    """Yield line number, and object or error text, for every line that is not blank."""
    with opening_text(path, encoding) as file:
        for number, line in enumerate(read_lines(file), 1):
            if line is None:
                yield number, f"more than {MAX_ROW:,} characters; the lines below are not read"
            elif line.strip():
                yield number, _parse_object(line)


def _parse_object(line: str) -> Object | str:
    """Return the JSON object of a line, or the text of an error."""
    try:
        result = _DECODER.decode(line.strip())
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # a repeated key, or a number of thousands of digits
        return str(error)
    if HALF_ESCAPE.search(line) and not is_encodable(result):
        return HALF_CHARACTER
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


_DECODER = json.JSONDecoder(object_pairs_hook=_require_unique_keys, parse_constant=parse_constant)
