"""A table to fill in: a row for each picture of a folder, with an empty cell for its labels.

photos/a.jpg   photos/b/2.png   ->   image,labels
                                     photos/a.jpg,
                                     photos/b/2.png,

photos/train/a.jpg   photos/val/b.jpg  ->  image,labels,split: the folders say who is held out
"""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.pictures import FolderFiles, list_files
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.storage.atomic import writing_text

DELIMITER = "|"
"""Sign that the user is told to write between labels."""
HEADER = ("image", "labels")
_MERE_PICTURES = ("images", "image", "imgs", "img", "photos", "photo", "pictures", "pics", "bilder")
"""Names of folders that say only that they hold pictures."""
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class BlankTable:
    """A table that was written.

    Attributes:
        file: the table.
        pictures: number of its rows.
        found: the files of the folder.
        left_out: names that no cell can hold: not UTF-8, or with white space at an end.
        splits: split -> number of its rows; empty: the table has no column of splits.
        torn: folders with names of splits, where others hold pictures beside them.
        images: the folder that its names are relative to; None: the folder of the table.
    """

    file: Path
    pictures: int
    found: FolderFiles
    left_out: tuple[str, ...]
    splits: dict[str, int]
    torn: tuple[str, ...]
    images: Path | None


def has_lone_folder(table: Table) -> bool:
    """Return whether there is one class folder, which holds all pictures or is a mere `images`."""
    if table.format != "folder" or len(table.labels) != 1:
        return False
    is_mere = table.labels.names[0].casefold() in _MERE_PICTURES
    return is_mere or bool(table.targets.any_positive().all())


def write_blank_table(folder: Path, file: Path) -> BlankTable:
    """Write a table of the pictures of a folder, relative to the table's own folder if it can be.

    Where the pictures do not lie below the table's folder, names are relative to theirs: a name
    that leads out of the folder would be refused.

    Raises:
        ConfigError: the file exists, or is not named .csv.
        DataError: there is no picture, or the folder cannot be read.
        CheckpointError: the table cannot be written.
    """
    if file.suffix.lower() != ".csv":
        raise ConfigError(f"{file}: wanted a name that ends in .csv")
    if file.exists():
        raise ConfigError(f"{file} is there already; choose another with --table")
    try:
        # Links outside are met when the table is read: there the user can permit them.
        found = list_files(folder, SourceOptions(allow_outside_root=True))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    pictures = found.pictures
    if not pictures:
        raise DataError(f"{folder}: no picture found (by the endings of names)")
    beside = Path(os.path.realpath(file.absolute().parent))
    real = Path(os.path.realpath(folder))
    prefix = real.relative_to(beside) if real.is_relative_to(beside) else None
    names = [(picture if prefix is None else prefix / picture).as_posix() for picture in pictures]
    kept = [name for name in names if _fits_cell(name)]
    splits, torn = _find_splits(pictures)
    split_of = dict(zip(names, splits, strict=True)) if splits else {}
    with writing_text(file) as out:
        if not all(map(str.isascii, kept)):
            out.write(_BYTE_ORDER_MARK)  # without it Excel takes UTF-8 for another encoding
        writer = csv.writer(out)
        writer.writerow([*HEADER, "split"] if splits else HEADER)
        writer.writerows([name, "", split_of[name]] if splits else [name, ""] for name in kept)
    left_out = tuple(name for name in names if not _fits_cell(name))
    counts = Counter(split_of[name] for name in kept if splits)
    images = folder if prefix is None else None
    return BlankTable(file, len(kept), found, left_out, dict(counts), torn, images)


def _find_splits(pictures: Sequence[Path]) -> tuple[list[str], tuple[str, ...]]:
    """Return the split of each picture by its folders, and folders that name one all the same.

    pictures                              result
    train/1.jpg    val/2.jpg              train, val
    a/train/1.jpg  b/val/2.jpg            train, val: all at one level
    train/1.jpg    3.jpg                  none; train names a split
    train/1.jpg                           none: a lone one splits nothing
    """
    named = set[str]()
    for level in range(min(len(picture.parts) for picture in pictures) - 1):
        found = [find_split(picture.parts[level]) for picture in pictures]
        splits = [split for split in found if split]
        if len(splits) == len(found) and len(set(splits)) > 1 and "train" in splits:
            return splits, ()
    for picture in pictures:
        named.update(part for part in picture.parts[:-1] if find_split(part))
    return [], tuple(sorted(named)) if len({*map(find_split, named)}) > 1 else ()


def _fits_cell(name: str) -> bool:
    """Return whether a table gives the name back as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name == name.strip()
