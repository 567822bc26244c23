"""Parquet becomes a Table, one row an image; read through pyarrow, an optional extra.

    shards in sorted order -> one schema -> Columns       numbers of a ClassLabel -> its names
    image cells   paths -> as they stand
                  bytes -> <cache>/parquet/<key>/0000/<name>, unpacked once -> paths

Rows come in batches, and of the columns only those that are needed.
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

from mlfinetune.data.images.decode import is_image_name
from mlfinetune.data.readers.columns import SPLITS, Columns
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.storage.cache import cache_folder

Cells = dict[str, list[Any]]
Classes = dict[str, list[str]]
Types = dict[str, Any]

_VERSION = 1
"""Of the layout of the cache; part of the key."""

_INDEX = "names.json"
_ROWS, _PICTURES = 1024, 16
"""Rows read at a time, without and with the bytes of pictures."""

_SHARD = re.compile(r"(.+?)(?:-\d{5}-of-\d{5}(?:-\w+)?)?")
_PLAIN = ("text", "integer", "floating", "boolean", "null")
_MAGIC = re.compile(rb"(\xff\xd8\xff)|(\x89PNG)|(RIFF....WEBP)|(GIF8)|(BM)|(II\*\0|MM\0\*)", re.S)
_ENDINGS = ("jpg", "png", "webp", "gif", "bmp", "tif")


def is_parquet(folder: Path) -> bool:
    """Does the folder, or data/ in it, hold *.parquet, and at most one folder of pictures?

    With several of them it holds class folders, and a table of something else.
    """
    below = [entry for entry in _visible(folder) if entry.is_dir()]
    with_pictures = [any(map(is_image_name, _visible(entry))) for entry in below]
    return bool(_shards(folder)) and sum(with_pictures) <= 1


def read_parquet(path: Path, options: SourceOptions) -> Table:
    """Read a Parquet file, or a folder of shards.

    Raises:
        DataError: pyarrow is missing, a file cannot be read, the shards differ in their
            columns, the columns cannot be told, or the cache has no room for the pictures.
        OSError: a file is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        text = "reading Parquet needs pyarrow: pip install 'mlfinetune[parquet]'"
        raise DataError(text) from error
    shards = _shards(path) if path.is_dir() else [path]
    if not shards:
        raise DataError(f"{path}: wanted *.parquet in this folder, or in data/ below it")
    types, classes = _schema(shards)
    columns = Columns(path, list(types), options)
    read, notes = _needed(columns, types, options), []
    names = None
    if _holds_bytes(shards, columns.image, types[columns.image]):
        unpacked, names = _unpacked(shards, columns.image)
        read.remove(columns.image)
        notes = [f"pictures unpacked into {unpacked}"]
    sides = _fill(columns, shards, read, names, classes)
    table = columns.table(shards[0].parent, "parquet")
    if names is not None:
        table = replace(table, root=unpacked)
    if table.splits is None and len(set(sides)) > 1 and None not in sides:
        table = replace(table, splits=tuple(side for side in sides if side))
        notes.append("splits by the names of the shards")
    if len(shards) > 1:
        notes.append(f"{len(shards)} shards; a line is a row, counted from the first shard on")
    return replace(table, notes=(*notes, *table.notes))


def _fill(
    columns: Columns, shards: list[Path], read: list[str], names: list[str] | None, classes: Classes
) -> list[str | None]:
    """Hand all rows to `columns`; the split of each, as its shard's name tells it."""
    sides: list[str | None] = []
    for shard in shards:
        match = _SHARD.fullmatch(shard.stem)
        side = match and SPLITS.get(match[1].casefold())
        for count, cells in _batches(shard, read, _ROWS):
            first = len(sides)
            if names is None:
                cells[columns.image] = [_parts(cell)[1] for cell in cells[columns.image]]
            else:
                cells[columns.image] = names[first : first + count]
            for name in set(columns.listed) & set(classes):
                cells[name] = _named(columns, name, classes[name], cells[name], first)
            rows = zip(*(cells.get(name, repeat(None)) for name in columns.header), strict=False)
            for line, row in enumerate(rows, first + 1):
                columns.add(row, line)
            sides += [side] * count
    return sides


def _named(
    columns: Columns, column: str, names: list[str], cells: list[Any], first: int
) -> list[list[str]]:
    """Numbers of a ClassLabel as names; -1 says that there is no label."""
    rows = []
    for row, cell in enumerate(cells, first):
        numbers = [n for n in (cell if isinstance(cell, list) else [cell]) if n not in (None, -1)]
        strange = [n for n in numbers if not 0 <= n < len(names)]
        if strange:
            text = f"{column} is {strange[0]}; its labels have the numbers 0 to {len(names) - 1}"
            columns.faults.append(Fault(f"line {row + 1}", text, row))
        rows.append([names[n] for n in numbers if n not in strange])
    return rows


# ---- files and columns ----------------------------------------------------------------------


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _shards(folder: Path) -> list[Path]:
    places = [_visible(place) for place in (folder, folder / "data") if place.is_dir()]
    found = [sorted(f for f in files if f.suffix.lower() == ".parquet") for files in places]
    return next((shards for shards in found if shards), [])


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(shard, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"cannot read {shard}: {error}") from error


def _batches(shard: Path, columns: list[str], rows: int) -> Iterator[tuple[int, Cells]]:
    """(rows, column -> cells) of some columns of a file; NaN is None."""
    with _opened(shard) as file:
        for batch in file.iter_batches(rows, columns=columns):
            cells = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            for name in cells:
                if _kind(batch.schema.field(name).type) == "floating":
                    cells[name] = [cell if cell == cell else None for cell in cells[name]]
            yield batch.num_rows, cells


def _schema(shards: list[Path]) -> tuple[Types, Classes]:
    """Column -> Arrow type, and column -> names of its numbers where it is a ClassLabel."""
    found: list[tuple[Types, Classes]] = []
    for shard in shards:
        with _opened(shard) as file:
            schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{shard}: two columns have one name: {', '.join(schema.names)}")
        types = dict(zip(schema.names, schema.types, strict=True))
        classes = _class_names(schema.metadata or {}).items()
        found.append((types, {n: x for n, x in classes if _part_kind(types.get(n)) == "integer"}))
        if found[-1] != found[0]:
            raise DataError(
                f"{shard} and {shards[0]} differ in columns, types or label names: not one table"
            )
    return found[0]


def _class_names(metadata: dict[bytes, bytes]) -> Classes:
    """Names of ClassLabel features, bare or in a list, as Hugging Face datasets stores them."""
    try:
        features = dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}
    found = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            found[column] = list(map(str, inner["names"]))
    return found


def _kind(type: Any) -> str:
    """What the cells of an Arrow type are."""
    from pyarrow import types

    if types.is_dictionary(type):
        return _kind(type.value_type)
    if types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "text"
    if types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type):
        return "bytes"
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return "list"
    kinds = ("integer", "floating", "boolean", "struct", "null")
    return next((kind for kind in kinds if getattr(types, f"is_{kind}")(type)), "other")


def _part_kind(type: Any) -> str:
    """The kind of the labels in a cell, be it one or a list of them."""
    return _kind(type.value_type if _kind(type) == "list" else type)


def _needed(columns: Columns, types: Types, options: SourceOptions) -> list[str]:
    """The columns to read; of those that may be labels, the ones whose cells may be 0 and 1."""
    for name in columns.listed:
        if _part_kind(types[name]) not in _PLAIN:
            raise DataError(
                f"{columns.path}: column '{name}' is of type {types[name]}; wanted labels: text, "
                f"numbers, or lists of them (data.label_column names another column)"
            )
    named = {columns.image, *columns.listed, *(options.label_columns or ()), options.group_by}
    plain = {name for name in types if _kind(types[name]) in _PLAIN}
    return [name for name in types if name in columns.needed & (named | plain)]


# ---- pictures -------------------------------------------------------------------------------


def _parts(cell: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of an image cell."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return (cell, None) if isinstance(cell, bytes) else (None, cell)


def _holds_bytes(shards: list[Path], column: str, type: Any) -> bool:
    """Are the pictures in the cells? The first cell that is not null tells it of structs."""
    kind, parts = _kind(type), {f.name for f in type} if _kind(type) == "struct" else set()
    if kind not in ("text", "bytes") and not parts & {"bytes", "path"}:
        raise DataError(
            f"{shards[0]}: image column '{column}' is of type {type}; wanted paths, bytes, or "
            f"bytes and path (data.image_column names another column)"
        )
    if kind != "struct":
        return kind == "bytes"
    batches = (cells for shard in shards for _, cells in _batches(shard, [column], 1))
    return next((bool(c[column][0].get("bytes")) for c in batches if c[column][0]), False)


def _unpacked(shards: list[Path], column: str) -> tuple[Path, list[str]]:
    """The folder of the pictures, and their names row by row; unpacked where it is missing."""
    sizes = [(os.path.abspath(s), s.stat().st_size, s.stat().st_mtime_ns) for s in shards]
    key = hashlib.sha256(json.dumps([_VERSION, column, sizes]).encode()).hexdigest()[:32]
    folder = Path(os.path.abspath(cache_folder("parquet")))
    index = folder / key / _INDEX
    if not index.is_file():
        wanted, free = sum(size for _, size, _ in sizes), shutil.disk_usage(folder).free
        move = "set MLFINETUNE_CACHE to a folder with more room"
        if wanted > free:
            raise DataError(
                f"the pictures in {shards[0].parent} want {wanted / 1e9:,.1f} GB, and {folder} "
                f"has {free / 1e9:,.1f} GB; {move}"
            )
        try:
            with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=folder) as temporary:
                _unpack(shards, column, Path(temporary) / key)
                os.rename(Path(temporary) / key, folder / key)
        except OSError as error:
            if not index.is_file():  # else another process was first
                raise DataError(f"cannot unpack into {folder}: {error.strerror}; {move}") from error
    return folder / key, json.loads(index.read_text())


def _unpack(shards: list[Path], column: str, root: Path) -> None:
    usable = _usable_paths(shards, column)
    names: list[str] = []
    for shard in shards:
        for _, cells in _batches(shard, [column], _PICTURES):
            for data, path in map(_parts, cells[column]):
                row = len(names)
                own = path if path in usable else f"{shard.stem}-{row + 1}.{_ending(data or b'')}"
                names.append(f"{row // 1000:04d}/{own}" if data else "")
                if data:
                    (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
                    (root / names[-1]).write_bytes(data)
    root.mkdir(exist_ok=True)
    (root / _INDEX).write_text(json.dumps(names))


def _usable_paths(shards: list[Path], column: str) -> set[str]:
    """Paths in the cells that can be names of files here: safe, and of one picture alone.

    Compared as file systems may compare them, without case and Unicode normalisation.
    """

    def folded(path: str) -> str:
        return unicodedata.normalize("NFC", path).casefold()

    paths: list[str] = []
    for shard in shards:
        for _, cells in _batches(shard, [f"{column}.path"], _ROWS):
            found = (_parts(cell)[1] for cell in cells.get(column, ()))
            paths += [path for path in found if path and _is_safe(path)]
    times = Counter(map(folded, paths))
    folders = {str(p) for path in times if "/" in path for p in PurePosixPath(path).parents}
    ours = tuple(f"{folded(shard.stem)}-" for shard in shards)
    unique = {path for path, n in times.items() if n == 1 and not path.startswith(ours)} - folders
    return {path for path in paths if folded(path) in unique}


def _is_safe(path: str) -> bool:
    fits = path == path.strip() and len(path.encode()) <= 200 and not set(path) & {"\0", "\\"}
    return fits and all(part not in ("", ".", "..") for part in path.split("/"))


def _ending(data: bytes) -> str:
    match = _MAGIC.match(data)
    return _ENDINGS[match.lastindex - 1] if match and match.lastindex else "bin"
