"""A folder with one folder a label becomes a Table.

    root/cat/1.jpg   root/dog/2.jpg   root/dog/copy-of-1.jpg
    -> 1.jpg is a cat and a dog (the same bytes), 2.jpg is a dog

A picture straight under the root has no label. Hidden files and folders are passed over.
"""

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path

from mlfinetune.data.images.decode import is_image_name, walk_files
from mlfinetune.data.readers.columns import SPLITS
from mlfinetune.data.table import LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError


def read_folder(root: Path, options: SourceOptions) -> Table:
    """Read class folders.

    Raises:
        DataError: there is no picture.
        OSError: the folder cannot be read.
    """
    every = [path.relative_to(root) for path in walk_files(root)]
    files = [path for path in every if is_image_name(path)]
    if not files:
        raise DataError(
            f"{root}: no picture found; wanted {root.name}/<label>/<picture> with names "
            f"ending in .jpg, .png, .webp, .gif, .bmp or .tiff"
        )
    groups = _same_content(root, files)
    lists = LabelLists()
    for group in groups:
        lists.add(sorted({label for file in group for label in _labels(file, options)}))
    if lists.labels.names and {name.casefold() for name in lists.labels.names} <= SPLITS.keys():
        raise DataError(
            f"{root}: the folders that hold pictures are named {', '.join(lists.labels.names)}: "
            f"splits, not labels; wanted {root.name}/<label>/<picture>, or a table of labels"
        )
    notes = [f"{len(lists.labels)} labels by folder names (folder_labels: {options.folder_labels})"]
    if merged := len(files) - len(groups):
        notes.append(f"{merged} files repeat another's content: one image with the labels of all")
    if passed_over := len(every) - len(files):
        notes.append(f"{passed_over} files that are no pictures by name: passed over")
    names = [str(group[0]) for group in groups]
    return lists.table(root, "folder", root, names, notes=notes)


def _labels(file: Path, options: SourceOptions) -> tuple[str, ...]:
    folders = tuple(part.strip() for part in file.parts[:-1])
    return folders[-1:] if options.folder_labels == "leaf" else folders


def _same_content(root: Path, files: list[Path]) -> list[list[Path]]:
    """Files grouped by their bytes, in order of first appearance; only equal sizes are read."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[_size(root / file)].append(file)
    groups: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
    for size, same_size in by_size.items():
        for file in same_size:
            key = str(file) if len(same_size) == 1 or size < 0 else _digest(root / file)
            groups[size, key].append(file)
    return sorted(groups.values(), key=lambda group: group[0])


def _size(path: Path) -> int:
    """Bytes; -1 for what cannot be read: the check of paths says why."""
    try:
        status = path.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else -1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
