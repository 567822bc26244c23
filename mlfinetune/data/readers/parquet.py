"""Parquet with one row per image becomes a Table; pyarrow, an optional extra, reads it.

    shards in sorted order -> one schema -> Columns       numbers of a ClassLabel -> its names
    image cells   paths -> unchanged
                  bytes -> <cache>/parquet/<key>/0000/<name>, unpacked once -> paths

Rows are read in batches, and only the columns that are needed.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from mlfinetune.data.images.names import guess_ending, is_image_name
from mlfinetune.data.readers.class_labels import (
    Classes,
    name_classes,
    read_class_names,
    report_numbers,
)
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.column_sample import SAMPLE_ROWS
from mlfinetune.data.readers.columns import Columns
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError, UnwritableError
from mlfinetune.location import is_portable_name
from mlfinetune.storage.cache import make_in_cache

Cells = dict[str, list[Any]]
"""Column -> its cells in one batch of rows."""
Types = dict[str, Any]
"""Column -> its Arrow type."""

_VERSION = 1
"""Version of the cache's layout; part of the key."""

_INDEX = "names.json"
"""File of the names, row by row; it is written last, so that it means a complete folder."""
_ROWS, _PICTURES = 1024, 16
"""Rows that are read at a time: without, and with, the bytes of pictures."""

_SHARD = re.compile(r"(.+?)(?:-\d{5}-of-\d{5}(?:-\w+)?)?")
_PLAIN = ("text", "integer", "floating", "boolean", "null")
"""Kinds of cells that can be labels, see `_find_kind`."""


def is_parquet(folder: Path) -> bool:
    """Return whether the folder, or data/ in it, has *.parquet, and at most one picture folder.

    With several picture folders they are class folders, and the Parquet is about something else.
    """
    below = [entry for entry in _list_visible(folder) if entry.is_dir()]
    with_pictures = [any(map(is_image_name, _list_visible(entry))) for entry in below]
    return bool(_find_shards(folder)) and sum(with_pictures) <= 1


def read_parquet(path: Path, options: SourceOptions) -> Table:
    """Read a Parquet file, or a folder of shards.

    Raises:
        DataError: pyarrow is missing; a file cannot be read; the shards differ in their columns;
            there are no columns of images and labels; the cache has no room for the pictures.
        OSError: a file is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        text = "reading Parquet needs pyarrow: pip install 'mlfinetune[parquet]'"
        raise DataError(text) from error
    shards = _find_shards(path) if path.is_dir() else [path]
    if not shards:
        raise DataError(f"{path}: wanted *.parquet in this folder, or in data/ below it")
    types, classes = _read_schema(shards)
    columns = Columns(path, list(types), options, _read_sample(shards[0], types, classes))
    columns_to_read = _choose_columns(columns, types, options)
    names, notes = None, list[str]()
    if _holds_bytes(shards, columns.image, types[columns.image]):
        unpacked, names = _unpack_once(shards, columns.image)
        columns_to_read.remove(columns.image)
        notes.append(f"pictures unpacked into {unpacked}")
    splits = _add_rows(columns, shards, columns_to_read, names, classes)
    table = columns.build_table(shards[0].parent, "parquet")
    if names is not None:
        table = replace(table, root=unpacked)
    if table.splits is None and len(set(splits)) > 1 and None not in splits:
        table = replace(table, splits=tuple(split for split in splits if split))
        notes.append("splits by the names of the shards")
    if len(shards) > 1:
        notes.append(f"{len(shards)} shards; line N is row N, counted from the first shard on")
    return replace(table, notes=(*notes, *table.notes))


def _add_rows(
    columns: Columns,
    shards: list[Path],
    to_read: list[str],
    names: list[str] | None,
    classes: Classes,
) -> list[str | None]:
    """Add all rows to `columns`; return the split of each row, from the name of its shard.

    Args:
        columns: gets the rows.
        shards: the files.
        to_read: names of the columns to read.
        names: names of the unpacked pictures, row by row; None: the image cells are paths.
        classes: see `Classes`.
    """
    splits: list[str | None] = []
    for shard in shards:
        match = _SHARD.fullmatch(shard.stem)
        split = match and find_split(match[1])
        for count, cells in _read_batches(shard, to_read, _ROWS):
            first = len(splits)
            if names is None:
                cells[columns.image] = [_split_image(cell)[1] for cell in cells[columns.image]]
            else:
                cells[columns.image] = names[first : first + count]
            for name in set(columns.listed) & set(classes):
                report_numbers(columns, name, classes[name], cells[name], first)
                cells[name] = name_classes(classes[name], cells[name])
            rows = zip(*(cells.get(name, repeat(None)) for name in columns.header), strict=False)
            for line, row in enumerate(rows, first + 1):
                columns.add(row, line)
            splits += [split] * count
    return splits


def _read_sample(shard: Path, types: Types, classes: Classes) -> list[tuple[Any, ...]]:
    """Return the first rows of a file; cells of columns that cannot be labels are empty bytes.

    The bytes of pictures are not read, but their paths are.
    """
    kinds = {name: _find_kind(type) for name, type in types.items()}
    cheap = [name for name in types if kinds[name] in _PLAIN or kinds[name] == "list"]
    cheap = [name for name in cheap if _find_label_kind(types[name]) in _PLAIN]
    paths = [
        name
        for name, type in types.items()
        if kinds[name] == "struct" and "path" in {field.name for field in type}
    ]
    to_read = [*cheap, *(f"{name}.path" for name in paths)]
    for count, cells in _read_batches(shard, to_read, SAMPLE_ROWS):
        for name in paths:
            cells[name] = [_split_image(cell)[1] for cell in cells[name]]
        for name in classes:
            cells[name] = name_classes(classes[name], cells[name])
        return list(zip(*(cells.get(name, [b""] * count) for name in types), strict=True))
    return []


# ---- files and columns ----------------------------------------------------------------------


def _list_visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _find_shards(folder: Path) -> list[Path]:
    """Return the sorted *.parquet of a folder; where it has none, those of data/ in it."""
    for place in (folder, folder / "data"):
        entries = _list_visible(place) if place.is_dir() else []
        shards = sorted(entry for entry in entries if entry.suffix.lower() == ".parquet")
        if shards:
            return shards
    return []


@contextmanager
def _opening_shard(shard: Path) -> Iterator[Any]:
    """Open a file with pyarrow; its errors become a DataError."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(shard, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot read {shard}: {error}") from error


def _read_batches(shard: Path, columns: list[str], rows: int) -> Iterator[tuple[int, Cells]]:
    """Yield (number of rows, column -> cells) for these columns of a file; NaN becomes None."""
    with _opening_shard(shard) as file:
        for batch in file.iter_batches(rows, columns=columns):
            cells = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            for name in cells:
                if _find_kind(batch.schema.field(name).type) == "floating":
                    cells[name] = [cell if cell == cell else None for cell in cells[name]]  # NaN
            yield batch.num_rows, cells


def _read_schema(shards: list[Path]) -> tuple[Types, Classes]:
    """Return the Arrow types and the class names of all columns.

    Raises:
        DataError: two shards differ, or two columns have one name.
    """
    schemas: list[tuple[Types, Classes]] = []
    for shard in shards:
        with _opening_shard(shard) as file:
            schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{shard}: two columns have one name: {', '.join(schema.names)}")
        types = dict(zip(schema.names, schema.types, strict=True))
        classes = {
            column: names
            for column, names in read_class_names(schema.metadata or {}).items()
            if _find_label_kind(types.get(column)) == "integer"
        }
        schemas.append((types, classes))
        if schemas[-1] != schemas[0]:
            raise DataError(
                f"{shard} and {shards[0]} differ in columns, types or label names: not one table"
            )
    return schemas[0]


def _find_kind(type: Any) -> str:
    """Return the kind of the cells of an Arrow type: text, bytes, list, integer, ... or other."""
    from pyarrow import types

    if types.is_dictionary(type):
        return _find_kind(type.value_type)
    if types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "text"
    if types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type):
        return "bytes"
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return "list"
    kinds = ("integer", "floating", "boolean", "struct", "null")
    return next((kind for kind in kinds if getattr(types, f"is_{kind}")(type)), "other")


def _find_label_kind(type: Any) -> str:
    """Return the kind of the labels in a cell, which has one label or a list of them."""
    return _find_kind(type.value_type if _find_kind(type) == "list" else type)


def _choose_columns(columns: Columns, types: Types, options: SourceOptions) -> list[str]:
    """Return the columns to read; columns that cannot hold states (0 and 1) are no labels.

    Raises:
        DataError: the column of label lists has a type that cannot be labels.
    """
    for name in columns.listed:
        if _find_label_kind(types[name]) not in _PLAIN:
            raise DataError(
                f"{columns.path}: column '{name}' is of type {types[name]}; wanted labels: text, "
                f"numbers, or lists of them (data.label_column names another column)"
            )
    named = {columns.image, *columns.listed, *(options.label_columns or ()), options.group_by}
    plain = {name for name in types if _find_kind(types[name]) in _PLAIN}
    return [name for name in types if name in columns.needed & (named | plain)]


# ---- pictures -------------------------------------------------------------------------------


def _split_image(cell: Any) -> tuple[bytes | None, str | None]:
    """Return the bytes and the path of an image cell; None for what it does not have."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return (cell, None) if isinstance(cell, bytes) else (None, cell)


def _holds_bytes(shards: list[Path], column: str, type: Any) -> bool:
    """Return whether the image cells hold the pictures' bytes, and not only paths.

    A struct has both fields: there the first cell that is not null decides.

    Raises:
        DataError: the column has neither paths nor bytes.
    """
    kind = _find_kind(type)
    fields = {field.name for field in type} if kind == "struct" else set()
    if kind not in ("text", "bytes") and not fields & {"bytes", "path"}:
        raise DataError(
            f"{shards[0]}: image column '{column}' is of type {type}; wanted paths, bytes, or "
            f"bytes and path (data.image_column names another column)"
        )
    if kind != "struct":
        return kind == "bytes"
    for shard in shards:
        for _, cells in _read_batches(shard, [column], 1):
            if cell := cells[column][0]:
                return bool(cell.get("bytes"))
    return False


def _unpack_once(shards: list[Path], column: str) -> tuple[Path, list[str]]:
    """Return the folder of the unpacked pictures, and their names row by row.

    The folder is in the cache, or in a temporary one where the cache cannot be used. Its key has
    the paths, sizes and times of the shards, so that changed shards are unpacked again.

    Raises:
        DataError: neither folder has room, or can be written.
    """
    sizes = [(os.path.abspath(s), s.stat().st_size, s.stat().st_mtime_ns) for s in shards]
    key = hashlib.sha256(json.dumps([_VERSION, column, sizes]).encode()).hexdigest()[:32]
    needed = sum(size for _, size, _ in sizes)

    def unpack(parent: Path) -> Path:
        folder = Path(os.path.abspath(parent)) / key
        if not (folder / _INDEX).is_file():
            _unpack_into(folder, needed, shards, column)
        return folder

    folder = make_in_cache("parquet", unpack)
    return folder, json.loads((folder / _INDEX).read_bytes())


def _unpack_into(folder: Path, needed: int, shards: list[Path], column: str) -> None:
    """Unpack pictures of `needed` bytes into a new folder.

    Raises:
        UnwritableError: there is no room, or it cannot be written.
        DataError: a shard cannot be read.
    """
    free, hint = shutil.disk_usage(folder.parent).free, "MLFINETUNE_CACHE names another folder"
    if needed > free:
        raise UnwritableError(
            f"the pictures in {shards[0].parent} need {needed / 1e9:,.1f} GB, and {folder.parent} "
            f"has {free / 1e9:,.1f} GB free; {hint}"
        )
    try:
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
            _unpack_pictures(shards, column, Path(temporary) / folder.name)
            os.rename(Path(temporary) / folder.name, folder)
    except OSError as error:
        if not (folder / _INDEX).is_file():  # else another process was first
            why = f"cannot unpack into {folder.parent}: {error.strerror}"
            raise UnwritableError(f"{why}; {hint}") from error


def _unpack_pictures(shards: list[Path], column: str, root: Path) -> None:
    """Write the pictures of all rows below `root`, a thousand per folder, and then their names."""
    usable = _find_usable_paths(shards, column)
    names: list[str] = []
    for shard in shards:
        for _, cells in _read_batches(shard, [column], _PICTURES):
            for data, path in map(_split_image, cells[column]):
                row = len(names)
                if not data:
                    names.append("")
                    continue
                name = path if path in usable else f"{shard.stem}-{row + 1}.{guess_ending(data)}"
                names.append(f"{row // 1000:04d}/{name}")
                file = root / names[-1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
    root.mkdir(exist_ok=True)
    (root / _INDEX).write_bytes(json.dumps(names).encode())


def _find_usable_paths(shards: list[Path], column: str) -> set[str]:
    """Return the paths in the cells that can be file names here: safe, and of one picture only.

    Paths are compared as some file systems do: without case, and in one Unicode form.
    """

    def fold(path: str) -> str:
        return unicodedata.normalize("NFC", path).casefold()

    paths: list[str] = []
    for shard in shards:
        for _, cells in _read_batches(shard, [f"{column}.path"], _ROWS):
            cell_paths = (_split_image(cell)[1] for cell in cells.get(column, ()))
            paths += [path for path in cell_paths if path and _is_safe(path)]
    times = Counter(map(fold, paths))
    folders = {str(p) for path in times if "/" in path for p in PurePosixPath(path).parents}
    made_up = tuple(f"{fold(shard.stem)}-" for shard in shards)  # names for rows without a path
    unique = {
        path for path, count in times.items() if count == 1 and not path.startswith(made_up)
    } - folders
    return {path for path in paths if fold(path) in unique}


def _is_safe(path: str) -> bool:
    """Return whether a path stays in its folder, and every file system can have it."""
    fits = path == path.strip() and len(path.encode()) <= 200
    return fits and all(map(is_portable_name, path.split("/")))
