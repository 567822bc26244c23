"""The folder that holds the pictures of a table, where most are not where the table says.

train.csv: 1.jpg, 2.jpg    images/1.jpg  images/2.jpg    -> images
train.csv: 1, 2            train/1.jpg  train/2.jpg      -> train, by name
"""

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.paths import search_lost_pictures
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import is_url
from mlfinetune.text import display_path


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
    `D:\\train\\1.jpg`, `D:\\val\\1.jpg`;   photos         True: the folders in the names decide
      photos/train/1.jpg, photos/val/1.jpg
    """
    if not table.hint or is_url(table.root):
        return None
    names, there, search = search_lost_pictures(table, options)
    fits, holds = (max(counts.values(), default=0) for counts in (search.fits, search.holds))
    by_name = there + len(search.found)
    count = max(fits, holds, by_name)
    if there >= len(names) or not (fits or holds):
        return None
    alike = search.fits if fits == count else search.holds
    folders = sorted(folder for folder, number in alike.items() if number == count)
    is_fit = fits == count
    if by_name == count:
        places = {os.path.dirname(path) for path in search.found.values()}
        if len(folders) != 1 or not (is_fit or {*folders} == places):
            folders, is_fit = ["" if there else os.path.commonpath(places)], False
    paths = tuple(Path(table.root) / folder for folder in folders)
    return PictureFolder(paths, not is_fit, count, there + len(names))


def refuse_other_val(place: PictureFolder, val: Table, options: SourceOptions) -> None:
    """Check that the folder found for train's table is the one for val's table too.

    pictures of val.csv       the folder for train.csv: train/
    train/                    fine
    train/, val/              refused: files of the same names
    val/                      refused

    Raises:
        DataError: another folder has as many files of the names in val's table, or half of them.
    """
    if is_url(val.root) or len(place.folders) != 1:
        return
    (folder,), root = place.folders, Path(val.root)
    names, there, search = search_lost_pictures(val, options)
    if not there and len(search.found) == len(names) and _leads_to_same(place, root, search.found):
        return
    counts = Counter({root / below: number for below, number in search.holds.items()})
    counts |= Counter({root / below: number for below, number in search.fits.items()})
    counts |= Counter({root: there})
    enough = min(counts[folder], (len(names) + there + 1) // 2)
    rivals = [
        other for other, number in counts.items() if other != folder and number >= max(1, enough)
    ]
    if rivals:
        places = " and ".join(f"{display_path(other)}/" for other in sorted(rivals))
        command = shlex.join(["mlfinetune", "init", display_path(Path(val.origin).parent)])
        raise DataError(
            f"{val.origin}: pictures of its names are in {places}, those of data.train in "
            f"{display_path(folder)}/; where the tables are named like their splits, as train.csv "
            f"and val.csv, each is read with its own folder by: {command}"
        )


def _leads_to_same(place: PictureFolder, root: Path, found: Mapping[str, str]) -> bool:
    """Return whether names lead to the found files, with their paths or names below the place."""
    (folder,) = place.folders
    if place.by_name:
        return all((root / file).is_relative_to(folder) for file in found.values())
    return all(folder / name == root / file for name, file in found.items())
