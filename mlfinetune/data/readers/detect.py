"""Detect the format of a file or folder, and read it into a Table.

path -> format, given or detected by names and layout -> the reader of the format -> Table
path/train, path/val, path/test -> each read by itself -> one Table with splits
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlfinetune.data.images.names import is_image_name
from mlfinetune.data.labels import align
from mlfinetune.data.readers import (
    coco,
    csv_table,
    folder,
    foreign,
    huggingface,
    json_table,
    parquet,
    sidecar,
    voc,
    webdataset,
)
from mlfinetune.data.readers.column_names import SPLITS
from mlfinetune.data.readers.text_file import find_ending
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.location import Location, is_url

READERS: dict[str, tuple[str, Callable[[Path, SourceOptions], Table]]] = {
    "csv": ("a CSV or TSV table", csv_table.read_csv),
    "folder": ("class folders", folder.read_folder),
    "sidecar": ("pictures with .txt files of tags", sidecar.read_sidecar),
    "huggingface": ("a Hugging Face image folder", huggingface.read_huggingface),
    "json": ("a JSON list", json_table.read_json),
    "coco": ("COCO instances", coco.read_coco),
    "voc": ("Pascal VOC", voc.read_voc),
    "parquet": ("Parquet", parquet.read_parquet),
    "webdataset": ("tar shards (WebDataset)", webdataset.read_webdataset),
}
"""Format -> its name in messages, and its reader."""

_TABLES = ("csv", "huggingface", "json")
"""Formats where a folder is read through a table in it."""

_URL_AS_PATH = re.compile(r"(^|/)(https?|s3|gs|file):/", re.IGNORECASE)
"""A path that was meant as a URL: Path turns // into /."""

_TABLES_IN_FOLDERS = ("metadata.csv", "metadata.jsonl", "_classes.csv")
"""Names of tables that describe the pictures of their folder; the last one is Roboflow's."""


def read_source(path: Path, options: SourceOptions) -> Table:
    """Read a file or folder in its format; the first note names the format.

    Raises:
        DataError: the path does not exist, or it cannot be read as a whole.
    """
    if not os.path.exists(path):
        hint = "; a URL goes into a config (data.train)" if _URL_AS_PATH.search(str(path)) else ""
        raise DataError(f"no such file or folder: {path} (data.train, data.val or --data){hint}")
    try:
        sides = _find_split_folders(path) if options.format in _IN_SPLIT_FOLDERS else {}
        if sides:
            return _join_tables(path, _read_split_folders(path, sides, options), sides)
        format = detect_format(path) if options.format == "auto" else options.format
        title, reader = READERS[format]
        if is_url(options.images) and format not in _TABLES:
            raise DataError(
                f"data.images: pictures of {title} cannot be read from {options.images}; list "
                f"them in a table"
            )
        source = _find_table(path) if format in _TABLES else path
        if format == "huggingface" and source.suffix.lower() in csv_table.SUFFIXES:
            reader = csv_table.read_csv  # metadata.csv
        table = reader(source, options)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error
    how = "" if options.format == "auto" else " (data.format)"
    return replace(table, notes=(f"read as {title}{how}", *table.notes))


def detect_format(path: Path) -> str:
    """Return the format of an existing file or folder, by names and layout.

    Raises:
        DataError: no format has the ending of this file.
    """
    if not path.is_dir():
        return _detect_file(path)
    table = _find_table(path)
    if table != path:
        return "csv" if table.suffix == ".csv" else "huggingface"
    for is_format, format in (
        (voc.is_voc, "voc"),
        (coco.is_coco, "coco"),
        (parquet.is_parquet, "parquet"),
        (webdataset.is_webdataset, "webdataset"),
        (sidecar.is_sidecar, "sidecar"),
    ):
        if is_format(path):
            return format
    return "folder"


def _detect_file(path: Path) -> str:
    """Return the format of a file by its ending; a .json has the lists of COCO, or others."""
    if path.parent.parts[-2:] == ("ImageSets", "Main"):
        return "voc"
    texts = {".json": "json", ".jsonl": "huggingface", **dict.fromkeys(csv_table.SUFFIXES, "csv")}
    by_ending = {**texts, ".parquet": "parquet", webdataset.SUFFIX: "webdataset"}
    known = texts if path.suffix.lower() == ".gz" else by_ending
    format = known.get(find_ending(path))
    if format is None:
        if foreign_format := foreign.describe(path):
            raise DataError(f"{path}: {foreign_format}")
        raise DataError(
            f"{path}: wanted a file ending in {', '.join(sorted(by_ending))}, or a folder"
        )
    return "coco" if format == "json" and coco.is_coco_json(path) else format


def _find_table(path: Path) -> Path:
    """Return the table in a folder that describes its pictures; without one, the path itself."""
    tables = (path / name for name in _TABLES_IN_FOLDERS)
    return next((table for table in tables if table.is_file()), path)


# ---- folders named train, val and test ------------------------------------------------------

_IN_SPLIT_FOLDERS = {"auto", *READERS} - {"voc"}


def _find_split_folders(path: Path) -> dict[str, str]:
    """Return folder name -> split, if `path` has a folder for train and one for another split.

    Example of the entries of `path`, and what is returned:

        train/ valid/                            {train: train, valid: val}
        train/ valid/ others/, no pictures in    the same; others/ is not read
          train/ or valid/ themselves
        train/ test/ bus/, pictures in train/    {}: class folders, `train` is a label
        train/ training/ val/                    {}: two folders for one split
        train/ val/ metadata.csv                 {}: the table has the splits
    """
    if not path.is_dir() or _find_table(path) != path:
        return {}
    if voc.is_voc(path) or coco.is_coco(path):  # their folders have such names too
        return {}
    names = sorted(_list_folders(path))
    sides = {name: SPLITS[name.casefold()] for name in names if name.casefold() in SPLITS}
    each_once = len(set(sides.values())) == len(sides)
    if not each_once or "train" not in sides.values() or len(sides) < 2:
        return {}
    # Beside other folders, train/ and test/ with pictures in them may be labels.
    are_labels = len(sides) < len(names) and any(
        is_image_name(Path(base)) for name in sides for base in os.listdir(path / name)
    )
    return {} if are_labels else sides


def _list_folders(path: Path) -> list[str]:
    entries = os.scandir(path)
    return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _read_split_folders(
    path: Path, sides: dict[str, str], options: SourceOptions
) -> dict[str, Table]:
    """Read one table per folder; train comes first, and its label delimiter holds for all."""
    tables = {}
    for name in sorted(sides, key=lambda name: sides[name] != "train"):
        tables[name] = read_source(path / name, options)
        if tables[name].delimiter is not None:
            options = replace(options, label_delimiter=tables[name].delimiter)
    return {name: tables[name] for name in sides}


def _join_tables(path: Path, tables: dict[str, Table], sides: dict[str, str]) -> Table:
    """Return the tables of split folders as one, with names relative to a common root.

    Args:
        path: the folder that holds the split folders.
        tables: folder name -> its table.
        sides: folder name -> its split.
    """
    parts = list(tables.values())
    root = _find_common_root(path, parts)
    space = LabelSpace(tuple(dict.fromkeys(label for part in parts for label in part.labels.names)))
    blocks = (block for part in parts for _, block in align(part, space).targets.blocks())
    counts = ", ".join(f"{len(tables[name])} in {name}/" for name in sides)
    others = sorted(f"{name}/" for name in set(_list_folders(path)) - set(sides))
    notes = [f"split folders: {counts}"]
    if others:
        notes.append(f"other folders, not read: {', '.join(others)}")
    notes += [f"{name}/: {note}" for name, part in tables.items() for note in part.notes]
    return Table(
        origin=path,
        format=parts[0].format,
        root=root,
        names=tuple(_prefix_names(root, parts)),
        targets=Targets.pack(blocks, len(space)),
        unnamed=np.concatenate([part.unnamed for part in parts]),
        labels=space,
        splits=tuple(sides[name] for name, part in tables.items() for _ in part.names),
        delimiter=parts[0].delimiter,
        notes=tuple(notes),
        groups=tuple(group for part in parts for group in part.groups or ()) or None,
        faults=tuple(_shift_faults(tables)),
    )


def _shift_faults(tables: dict[str, Table]) -> Iterator[Fault]:
    """Yield the faults of all tables, with rows counted from the first table on."""
    start = 0
    for name, part in tables.items():
        for fault in part.faults:
            row = None if fault.row is None else start + fault.row
            yield replace(fault, place=os.path.join(name, fault.place), row=row)
        start += len(part)


def _find_common_root(path: Path, parts: Iterable[Table]) -> Location:
    """Return `path`; if a root is outside of it (data.images, the cache), the folder above all."""
    roots = [part.root for part in parts]
    if all(isinstance(root, Path) and root.is_relative_to(path) for root in roots):
        return path
    if len(set(roots)) == 1:  # data.images
        return roots[0]
    return Path(os.path.commonpath([os.path.abspath(root) for root in roots]))


def _prefix_names(root: Location, parts: Iterable[Table]) -> Iterator[str]:
    """Yield the names of all tables, relative to `root`; URLs and empty names stay as they are."""
    for part in parts:
        prefix = os.path.relpath(part.root, root)
        for name in part.names:
            if not name or is_url(name):
                yield name
            else:
                yield os.path.normpath(os.path.join(prefix, name))
