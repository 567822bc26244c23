"""A folder with one folder per label becomes a Table.

    root/cat/1.jpg   root/dog/2.jpg   root/dog/copy-of-1.jpg
    -> cat/1.jpg is a cat and a dog (two files, the same bytes), dog/2.jpg is a dog

A picture directly under the root has no label. Hidden files and folders are ignored.
"""

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path

from mlfinetune.data.images.names import is_image_name, walk_files
from mlfinetune.data.readers.columns import SPLITS
from mlfinetune.data.table import LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize


def read_folder(root: Path, options: SourceOptions) -> Table:
    """Read class folders.

    Raises:
        DataError: there is no picture.
        OSError: the folder cannot be read.
    """
    all_files = [path.relative_to(root) for path in walk_files(root)]
    files = [path for path in all_files if is_image_name(path)]
    if not files:
        raise DataError(
            f"{root}: no picture found; wanted {root.name}/<label>/<picture> with names "
            f"ending in .jpg, .png, .webp, .gif, .bmp or .tiff"
        )
    groups = _group_by_content(root, files)
    lists = LabelLists()
    for group in groups:
        lists.add(sorted({label for file in group for label in _read_labels(file, options)}))
    if lists.labels.names and {name.casefold() for name in lists.labels.names} <= SPLITS.keys():
        raise DataError(
            f"{root}: the folders that hold pictures are named {', '.join(lists.labels.names)}: "
            f"splits, not labels; wanted {root.name}/<label>/<picture>, or a table of labels"
        )
    count = pluralize(len(lists.labels), "label")
    notes = [f"{count} by folder names (folder_labels: {options.folder_labels})"]
    if duplicates := len(files) - len(groups):
        count = pluralize(duplicates, "file")
        notes.append(f"{count} with the bytes of another: one image with the labels of all")
    if ignored := len(all_files) - len(files):
        notes.append(f"{pluralize(ignored, 'file')} not named like a picture: ignored")
    names = [str(group[0]) for group in groups]
    return lists.build_table(root, "folder", root, names, notes=notes)


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
    return sorted(groups.values(), key=lambda group: group[0])


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
