"""A folder with one folder per label becomes a Table.

    root/cat/1.jpg   root/dog/2.jpg   root/dog/copy-of-1.jpg
    -> cat/1.jpg is a cat and a dog (two files, the same bytes), dog/2.jpg is a dog

A picture directly under the root has no label. Hidden files and folders are ignored. A class folder
may be a link.
"""

import hashlib
import os
import shlex
import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mlfinetune.data.images.names import ENDINGS
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.pictures import list_files
from mlfinetune.data.table import LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import display_path, pluralize

_SHOWN_LABELS = 3


def read_folder(root: Path, options: SourceOptions) -> Table:
    """Read class folders.

    Raises:
        DataError: there is no picture, or a linked folder lies outside.
        OSError: the folder cannot be read.
    """
    found = list_files(root, options)
    files = found.pictures
    if not files:
        raise DataError(
            f"{root}: no picture found; wanted {root.name}/<label>/<picture> with names "
            f"ending in {ENDINGS}"
        )
    groups = _group_by_content(root, files)
    lists = LabelLists()
    for group in groups:
        lists.add(sorted({label for file in group for label in _read_labels(file, options)}))
    if lists.labels.names and all(map(find_split, lists.labels.names)):
        raise DataError(
            f"{root}: the folders that hold pictures are named {', '.join(lists.labels.names)}: "
            f"splits, not labels; wanted {root.name}/<label>/<picture>, or a table of labels: "
            f"mlfinetune init FOLDER --table NAME.csv writes one to fill in"
        )
    notes = [_describe_labels(root, lists.labels.names, options), *found.notes]
    if duplicates := len(files) - len(groups):
        count = pluralize(duplicates, "file")
        notes.append(f"{count} with the bytes of another: one image with the labels of all")
    if ignored := len(found.others):
        notes.append(f"{pluralize(ignored, 'file')} not named like a picture: ignored")
    names = [str(group[0]) for group in groups]
    return lists.build_table(root, "folder", root, names, notes=notes, faults=found.faults)


def _describe_labels(root: Path, labels: Sequence[str], options: SourceOptions) -> str:
    """Return the note on labels; folders may also be albums, and only their owner knows."""
    shown = ", ".join(f"'{label}'" for label in labels[:_SHOWN_LABELS])
    more = ", ..." if len(labels) > _SHOWN_LABELS else ""
    note = f"{pluralize(len(labels), 'label')} by folder names"
    note += f": {shown}{more}" if labels else ""
    note += f" (folder_labels: {options.folder_labels})"
    if not labels or find_split(root.name):
        return note
    folder, table = shlex.quote(display_path(root)), shlex.quote(f"{root.name or 'tags'}.csv")
    return f"{note}; albums, no labels? mlfinetune init {folder} --table {table}"


def _read_labels(file: Path, options: SourceOptions) -> tuple[str, ...]:
    """Return the name of the file's folder, or of all folders above it below the root."""
    folders = tuple(part.strip() for part in file.parts[:-1])
    return folders[-1:] if options.folder_labels == "leaf" else folders


def _group_by_content(root: Path, files: list[Path]) -> list[list[Path]]:
    """Group files with the same bytes, in path order; only files of equal size are read."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[_find_size(root / file)].append(file)
    groups: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
    for size, same_size in by_size.items():
        for file in same_size:
            key = str(file) if len(same_size) == 1 or size < 0 else _hash_file(root / file)
            groups[size, key].append(file)
    return sorted(groups.values(), key=lambda group: group[0].parts)  # Windows folds paths


def _find_size(path: Path) -> int:
    """Return the size in bytes; -1 for a file that cannot be read: check_paths reports it."""
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else -1


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
