"""JSON lines become a Table: metadata.jsonl of a Hugging Face image folder, or any other.

    {"file_name": "1.jpg", "labels": ["cat", "hot dog"]}     one object per line, keys are columns

The file is read several times, for the encoding, the keys and the rows, so that only one line at a
time is in memory.
"""

import json
from pathlib import Path

from mlfinetune.data.readers.objects import (
    Entries,
    Object,
    Parser,
    check_entry,
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
    parser = Parser()
    with opening_text(path, encoding) as file:
        for number, line in enumerate(read_lines(file), 1):
            if line is None:
                yield number, f"more than {MAX_ROW:,} characters; the lines below are not read"
            elif line.strip():
                yield number, _parse_object(parser, line)


def _parse_object(parser: Parser, line: str) -> Object | str:
    """Return the JSON object of a line, or the text of an error."""
    try:
        entry, is_odd = parser.parse(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        return str(error)
    return check_entry(entry, is_odd)
