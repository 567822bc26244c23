"""The folder that holds the pictures of a table, where most are not where the table says.

train.csv: 1.jpg, 2.jpg    images/1.jpg  images/2.jpg    -> images
train.csv: 1, 2            train/1.jpg  train/2.jpg      -> train, by name
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.paths import search_lost_pictures
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.location import is_url


@dataclass(frozen=True)
class PictureFolder:
    """The place of a table's pictures.

    Attributes:
        folders: the folder that paths begin at; several where they hold the pictures alike.
        by_name: whether the pictures are found by their names alone (`find_by_name`).
        count: number of the table's pictures that are found so.
        total: number of the table's pictures.
    """

    folders: tuple[Path, ...]
    by_name: bool
    count: int
    total: int


def locate_pictures(table: Table, options: SourceOptions) -> PictureFolder | None:
    """Return the folder below the root that holds most pictures of a table.

    pictures of the table               folder         by_name
    at least half are where it says     None: a hint says where the others are
    photos/ and a name lead to a file   photos         False
    photos/ has a file of each name     photos         True
    files of these names in photos/*/   photos         True
    """
    if not table.hint or is_url(table.root):
        return None
    names, there, search = search_lost_pictures(table, options)
    fits, holds = (max(counts.values(), default=0) for counts in (search.fits, search.holds))
    by_name = there + len(search.found)
    count = max(fits, holds, by_name)
    if there >= len(names) or not (fits or holds):
        return None
    if fits == count:
        folders = [folder for folder, number in search.fits.items() if number == count]
    elif holds == count:
        folders = [folder for folder, number in search.holds.items() if number == count]
    else:
        above = os.path.commonpath([os.path.dirname(path) for path in search.found.values()])
        folders = ["" if there else above]
    root = Path(table.root)
    paths = tuple(root / folder for folder in sorted(folders))
    return PictureFolder(paths, fits < count, count, there + len(names))
