"""A JSON file of pictures with their labels becomes a Table.

    [{"image": "a.jpg", "labels": ["cat"]}, ...]          objects are rows, as in JSON lines
    {"data": [{"image": "a.jpg", "labels": "cat"}]}       so are those of a list with a name
    {"a.jpg": ["cat", "dog"], "b.jpg": "cat"}             picture -> its labels
    {"a.jpg": {"labels": ["cat"], "split": "val"}}        picture -> the other columns of its row
    [{"data": {...}, "annotations": [...]}, ...]          tasks of Label Studio (label_studio.py)

Anything else is refused; files with COCO's lists are read by coco.py.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlfinetune.data.readers import label_studio
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_names import IMAGE_COLUMNS
from mlfinetune.data.readers.column_sample import is_picture_name
from mlfinetune.data.readers.foreign import describe_json
from mlfinetune.data.readers.huggingface import read_huggingface
from mlfinetune.data.readers.objects import (
    Entries,
    Object,
    Parser,
    Repeated,
    check_entry,
    read_columns,
)
from mlfinetune.data.readers.text_file import detect_encoding, opening_text
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

MAX_JSON = 2**30
"""Most characters of a file: it is parsed in memory, as a whole."""

_WANTED = '[{"image": "a.jpg", "labels": ["cat"]}, ...], or {"a.jpg": ["cat"], ...}'
_LIST_NAMES = ("images", "data", "annotations", "items", "samples", "rows")
"""Names of a list that is taken where an object has several lists of objects."""

_MANY_VALUES = "Extra data"
"""Message of the parser where a value ends and another begins: JSON lines."""


def read_json(path: Path, options: SourceOptions) -> Table:
    """Read a JSON file: a list of objects, or an object of pictures.

    Raises:
        DataError: the path is a folder; the file cannot be read or parsed; it holds something
            else, or it has no columns of images and labels.
    """
    if path.is_dir():
        raise DataError(f"{path}: wanted the path of a .json file (data.format is json)")
    text = _read_text(path)
    try:
        content, is_odd = Parser().parse(text)
    except json.JSONDecodeError as error:
        if error.msg == _MANY_VALUES and text.lstrip().startswith("{"):
            table = read_huggingface(path, options)
            return replace(table, notes=("JSON lines: one object per line", *table.notes))
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise DataError(f"{place}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 4300 digits
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    del text
    notes: tuple[str, ...] = ()
    if label_studio.is_export(content):
        try:
            tasks = label_studio.read_tasks(content, options)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        numbered, options, notes = tasks.rows, tasks.options, tasks.notes
        if not numbered:
            raise DataError(f"{path}: no task of Label Studio has labels; {'; '.join(notes)}")
        notes = ("tasks of Label Studio", *notes)
    else:
        rows, options = _find_rows(path, content, options)
        numbered = list(enumerate(rows, 1))

    def read_entries() -> Entries:
        return ((n, check_entry(row, is_odd)) for n, row in numbered)

    columns = read_columns(path, read_entries, options, _WANTED, "entry")
    table = columns.build_table(path.parent, "json")
    return replace(table, notes=(*notes, *table.notes))


def _read_text(path: Path) -> str:
    encoding, _ = detect_encoding(path)
    with opening_text(path, encoding) as file:
        text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise DataError(
            f"{path}: more than {MAX_JSON:,} characters of JSON, which is read as a whole; write "
            f"one object per line (.jsonl): lines are read one by one"
        )
    return text


def _find_rows(
    path: Path, content: Any, options: SourceOptions
) -> tuple[Iterable[Any], SourceOptions]:
    """Return the rows of the file, and the options with the column of the pictures.

    Raises:
        DataError: the file holds neither a list of objects nor an object of pictures.
    """
    if hint := describe_json(content):
        raise DataError(f"{path}: {hint}")
    if isinstance(content, Repeated):
        raise DataError(f"{path}: the key {content.keys_twice} is repeated")
    if isinstance(content, list):
        return content, options
    if not isinstance(content, dict):
        raise DataError(f"{path}: wanted {_WANTED}")
    if 2 * sum(map(is_picture_name, content)) >= len(content) > 0:
        return _list_pictures(path, content, options)
    lists = {key: value for key, value in content.items() if _is_list_of_objects(value)}
    names = list(lists) if len(lists) == 1 else [name for name in _LIST_NAMES if name in lists]
    if len(names) == 1:
        return lists[names[0]], options
    found = f"found {quote_names(list(content)) or 'nothing'}"
    if names or lists:
        found += f"; it is unclear which of the lists to read: {quote_names(list(lists))}"
    elif any(map(is_picture_name, _list_texts(content))):
        found += "; its pictures are the values: make them the keys"
    raise DataError(f"{path}: wanted {_WANTED}, {found}")


def _list_pictures(
    path: Path, content: Object, options: SourceOptions
) -> tuple[Iterable[Any], SourceOptions]:
    """Return a row for each picture of an object, and the options with their column.

        {"a.jpg": ["cat"]}               image, labels
        {"a.jpg": {"cat": 1, "dog": 0}}  image, cat, dog

    Raises:
        DataError: all values are 0 or 1, of which label is not said.
    """
    values = list(content.values())
    if all(isinstance(value, int | float) and value in (0, 1) for value in values):
        raise DataError(
            f"{path}: each picture has 0 or 1, but of which label? "
            f'wanted {{"a.jpg": {{"cat": 1}}, ...}}'
        )
    keys = {key.casefold() for value in values if isinstance(value, dict) for key in value}
    column = next((name for name in IMAGE_COLUMNS if name not in keys), "picture")
    rows = [
        _build_row(column, name, value) if keys else {column: name, "labels": value}
        for name, value in content.items()
    ]
    return rows, replace(options, image_column=options.image_column or column)


def _build_row(column: str, name: str, value: Any) -> Any:
    """Return the row of a picture whose other columns are an object; any other value as it is."""
    is_row = isinstance(value, dict) and not isinstance(value, Repeated)
    return {column: name, **value} if is_row else value


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], dict)


def _list_texts(content: Object) -> list[str]:
    """Return the texts in the values of an object, of lists the first."""
    firsts = (
        value[0] if isinstance(value, list) and value else value for value in content.values()
    )
    return [text for text in firsts if isinstance(text, str)]
