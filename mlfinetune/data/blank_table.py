"""A table to fill in: a row for each picture of a folder, with an empty cell for its labels.

photos/a.jpg   photos/b/2.png   ->   image,labels
                                     photos/a.jpg,
                                     photos/b/2.png,
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.images.names import is_image_name, walk_files
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.storage.atomic import writing_text

DELIMITER = "|"
"""What the user is told to write between labels."""
HEADER = ("image", "labels")
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class BlankTable:
    """A table that was written.

    Attributes:
        file: the table.
        pictures: number of its rows.
        left_out: names that no cell can hold: not UTF-8, or with white space at an end.
        images: the folder that its names are relative to; None: the folder of the table.
    """

    file: Path
    pictures: int
    left_out: tuple[str, ...]
    images: Path | None


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
        pictures = [path.relative_to(folder) for path in walk_files(folder) if is_image_name(path)]
    except OSError as error:
        raise DataError(f"cannot read {error.filename or folder}: {error.strerror}") from error
    if not pictures:
        raise DataError(f"{folder}: no picture found (by the endings of names)")
    beside = Path(os.path.realpath(file.absolute().parent))
    real = Path(os.path.realpath(folder))
    prefix = real.relative_to(beside) if real.is_relative_to(beside) else None
    names = [str(picture if prefix is None else prefix / picture) for picture in pictures]
    kept = [name for name in names if _fits_cell(name)]
    with writing_text(file) as out:
        if not all(map(str.isascii, kept)):
            out.write(_BYTE_ORDER_MARK)  # without it Excel takes UTF-8 for another encoding
        writer = csv.writer(out)
        writer.writerow(HEADER)
        writer.writerows([name, ""] for name in kept)
    left_out = tuple(name for name in names if not _fits_cell(name))
    return BlankTable(file, len(kept), left_out, folder if prefix is None else None)


def _fits_cell(name: str) -> bool:
    """Return whether a table gives the name back as it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name == name.strip()
