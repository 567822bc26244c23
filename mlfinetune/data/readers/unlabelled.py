"""Class folders with a table that holds no labels: sizes and dates of the pictures, or splits.

cat/1.jpg dog/2.jpg info.csv (filename,width,height)   the names of the folders are the labels
cat/1.jpg dog/2.jpg info.csv (filename,split)          refused: its splits would be lost
cat/1.jpg dog/2.jpg info.csv (filename,mood)           refused: a mood may be a label
"""

import json
from pathlib import Path
from typing import Any

from mlfinetune.data.readers.beside import PictureIndex, find_table_split, read_start, split_line
from mlfinetune.data.readers.column_names import (
    SPLIT_MARKS,
    SPLIT_NAMES,
    find_split,
    is_bookkeeping,
    simplify_name,
    split_words,
)
from mlfinetune.data.readers.pictures import are_classes
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.location import find_ending

_NO_LABELS = ": no labels found; wanted "
"""Part of the message that refuses a table without a column of labels; its path goes before."""
_UNCLEAR = ": it is unclear whether these columns are labels"
_PICTURE_WORDS = {"image", "img", "file", "filename", "name", "path", "photo", "picture", "pic"}
"""Words of a column that names pictures."""
_KEYS_OF_TABLES = (
    *("format", "images", "image_column", "label_column", "label_columns", "split_column"),
    *("value_column", "group_by"),
)
"""Options that a table is meant by."""
_ADVICE = "to take the names of the folders as labels: data.format: folder"


def find_class_folders(path: Path, options: SourceOptions, error: DataError) -> str | None:
    """Return the note on a table without labels in a folder, where its folders have them.

    None: the folder is no such one, and the error stands.

    Raises:
        DataError: class folders, and a table that may say more than sizes and dates.
    """
    text = str(error)
    named, mark, _ = text.partition(_NO_LABELS if _NO_LABELS in text else _UNCLEAR)
    table = Path(named)
    plain = SourceOptions()
    is_plain = all(getattr(options, key) == getattr(plain, key) for key in _KEYS_OF_TABLES)
    if not mark or not path.is_dir() or not is_plain or path not in table.parents:
        return None
    index = PictureIndex(path)
    if not are_classes(index.folders):
        return None
    columns, cells = _read_sample(table)
    simple = {simplify_name(column) for column in columns}
    are_splits = not simple.isdisjoint(SPLIT_NAMES | SPLIT_MARKS.keys())
    if are_splits or find_table_split(table) or any(map(find_split, cells)):
        raise DataError(
            f"{table}: it holds splits and no labels, and the folders beside it have the names of "
            f"labels; add a column of labels, or leave its splits unread: data.format: folder"
        ) from error
    if mark == _UNCLEAR or not all(map(_is_no_label, columns)):
        raise DataError(f"{text}\n{_ADVICE}") from error
    return f"{table.relative_to(path)} holds no labels: not read"


def _is_no_label(column: str) -> bool:
    """Return whether a column is about the file, by its name; numbers may be those of classes."""
    return is_bookkeeping(column) or not _PICTURE_WORDS.isdisjoint(split_words(column))


def _read_sample(table: Path) -> tuple[set[str], set[str]]:
    """Return the names of the columns of a table, and the cells of its first rows."""
    lines = [line for line in read_start(table)[0].splitlines() if line.strip()]
    columns, cells = set[str](), set[str]()
    if find_ending(table) not in (".json", ".jsonl"):
        return {*split_line(lines[0])}, {cell for line in lines[1:] for cell in split_line(line)}
    for line in lines:
        try:
            _add_object(json.loads(line), columns, cells)
        except ValueError:
            columns.add(line)  # no line for each picture: nothing is sure
    return columns, cells


def _add_object(value: Any, columns: set[str], cells: set[str]) -> None:
    """Add the keys and values in an object of JSON, as text."""
    if isinstance(value, dict | list):
        columns |= value.keys() if isinstance(value, dict) else set()
        for item in value.values() if isinstance(value, dict) else value:
            _add_object(item, columns, cells)
    else:
        cells.add(str(value))
