"""A folder with one folder a label becomes a Table.

    root/cat/1.jpg   root/dog/2.jpg   root/dog/copy-of-1.jpg
    -> 1.jpg is a cat and a dog (the same bytes), 2.jpg is a dog

A picture straight under the root has no label. Hidden files and folders are passed over.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlfinetune.data.images import is_image_name
from mlfinetune.errors import DataError
from mlfinetune.records import POSITIVE, UNKNOWN, LabelSpace, SourceOptions, Table


def read_folder(root: Path, options: SourceOptions) -> Table:
    """Read class folders.

    Raises:
        DataError: there is no picture, or the folder cannot be read.
    """
    try:
        every = [path.relative_to(root) for path in walk(root)]
        files = [path for path in every if is_image_name(path)]
        groups = _same_content(root, files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or root}: {error.strerror}") from error
    if not files:
        raise DataError(
            f"{root}: no picture found; wanted {root.name}/<label>/<picture> with names "
            f"ending in .jpg, .png, .webp, .gif, .bmp or .tiff"
        )
    seen: dict[str, int] = {}
    labels = [sorted({x for f in g for x in _labels(f, options.folder_labels)}) for g in groups]
    columns = [[seen.setdefault(label, len(seen)) for label in row] for row in labels]
    targets = np.zeros((len(groups), len(seen)), np.int8)
    unnamed = np.zeros(len(groups), np.int8)
    faults, notes = (
        [],
        [f"class folders, {len(seen)} labels ({options.folder_labels} folder names)"],
    )
    for row, at in enumerate(columns):
        targets[row, at] = POSITIVE
        if not at and options.empty_labels == "unknown":
            targets[row], unnamed[row] = UNKNOWN, UNKNOWN
        elif not at and options.empty_labels == "error":
            faults.append(f"{groups[row][0]}: in no label's folder (data.empty_labels is error)")
    if merged := len(files) - len(groups):
        notes.append(f"{merged} files repeat another's content: one image with the labels of all")
    if empty := sum(not at for at in columns):
        notes.append(f"{empty} pictures lie in no label's folder: {options.empty_labels}")
    if passed_over := len(every) - len(files):
        notes.append(f"{passed_over} files that are no pictures by name: passed over")
    names = tuple(str(group[0]) for group in groups)
    return Table(
        origin=root,
        root=root,
        names=names,
        places=names,
        targets=targets,
        unnamed=unnamed,
        labels=LabelSpace(tuple(seen)),
        notes=tuple(notes),
        faults=tuple(faults),
    )


def walk(root: Path) -> Iterator[Path]:
    """Every file below `root`, in sorted order, hidden ones left out; one folder in memory.

    Links to folders are not followed: a loop of them would never end.
    """
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from walk(entry)
        elif not entry.is_dir():
            yield entry


def _labels(file: Path, which: str) -> tuple[str, ...]:
    folders = tuple(part.strip() for part in file.parts[:-1])
    return folders[-1:] if which == "leaf" else folders


def _same_content(root: Path, files: list[Path]) -> list[list[Path]]:
    """Files grouped by their bytes, in order of first appearance; only equal sizes are read."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for file in files:
        by_size[(root / file).stat().st_size].append(file)
    groups: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
    for size, same_size in by_size.items():
        for file in same_size:
            key = str(file) if len(same_size) == 1 else _digest(root / file)
            groups[size, key].append(file)
    return sorted(groups.values(), key=lambda group: group[0])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
