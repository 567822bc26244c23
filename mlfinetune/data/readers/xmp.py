"""A photo archive becomes a Table: the labels of a picture are its keywords.

    root/a/1.jpg   root/a/1.jpg.xmp or root/a/1.xmp (dc:subject: cat, sea)   root/2.jpg
    -> a/1.jpg is a cat and a sea; 2.jpg has the keywords inside of it, if it has any

Keywords that `mlfinetune predict` wrote are no labels: a model must not learn its own predictions.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlfinetune.data.images.keywords import (
    ENDING,
    find_keywords,
    join_keywords,
    list_labels,
    read_inside,
    read_sidecar,
)
from mlfinetune.data.images.names import ENDINGS, is_decoded_name, walk_files
from mlfinetune.data.images.xmp_packet import SUBJECT, Keywords, XmpError
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.pictures import FolderFiles, are_classes, list_files
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize

_LOOKED_AT = 40
"""Pictures whose keywords are looked at to detect an archive."""
_DATE = re.compile(r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?([0-2]\d|3[01]))?)?(?!\d)")
"""A year, month or day, with which the folders of archives begin: `2024`, `2024-05-17 Rome`."""


@dataclass
class _Counts:
    """Places of keywords.

    Attributes:
        pictures: pictures with keywords of people in a `sidecar`, `inside` or with `none`; and
            those with keywords of `ours`.
        ours: the number of keywords that we wrote.
        used: the sidecars that belong to a picture.
    """

    pictures: Counter[str] = field(default_factory=Counter)
    ours: int = 0
    used: set[str] = field(default_factory=set)


def is_archive(folder: Path) -> bool:
    """Return whether at least half of the pictures have keywords of people.

    keywords            folders            result
    in sidecars         any                True: they are made for it, as files of tags are
    inside pictures     none, or years     True
    inside pictures     cat, dog           False: classes; many pictures of the web have some
    """
    pictures = _sample_pictures(folder)
    if 0 < len(pictures) <= 2 * _count_tagged(pictures, inside=False):
        return True
    is_read = bool(pictures) and not _are_classes(folder, pictures)
    return is_read and len(pictures) <= 2 * _count_tagged(pictures)


def note_keywords(folder: Path) -> list[str]:
    """Return a note where a tenth of the pictures have keywords, and the folder is no archive."""
    pictures = _sample_pictures(folder)
    tagged = _count_tagged(pictures)
    if 10 * tagged < len(pictures) or not tagged:
        return []
    return [
        f"keywords of photo programs in {tagged} of {pluralize(len(pictures), 'picture')} looked "
        f"at are not read; if these are the labels: data.format: xmp"
    ]


def _count_tagged(pictures: Sequence[Path], inside: bool = True) -> int:
    """Return how many pictures have labels from people; a program's own notes are none."""
    return sum(bool(list_labels(find_keywords(path, inside), "leaf")) for path in pictures)


def _sample_pictures(folder: Path) -> list[Path]:
    """Return some pictures below a folder, spread over all of them."""
    pictures = [path for path in walk_files(folder) if is_decoded_name(path)]
    step = max(1, len(pictures) // _LOOKED_AT)
    return pictures[::step][:_LOOKED_AT]


def _are_classes(folder: Path, pictures: Sequence[Path]) -> bool:
    """Return whether the folders of the pictures look like classes; those of dates do not."""
    below = [path.parent.relative_to(folder) for path in pictures]
    return are_classes(below) and not all(any(map(_DATE.match, held.parts)) for held in below)


# ---- reading ----------------------------------------------------------------------------


def read_xmp(path: Path, options: SourceOptions) -> Table:
    """Read pictures and their keywords.

    Raises:
        DataError: there is no picture.
        OSError: the folder cannot be read.
    """
    found = list_files(path, options)
    if not found.pictures:
        raise DataError(
            f"{path}: no picture found; wanted pictures with keywords, in 1.jpg.xmp or 1.xmp "
            f"beside 1.jpg or inside of it, with names ending in {ENDINGS}"
        )
    beside = defaultdict[Path, list[Path]](list)
    for other in found.others:
        if other.suffix.lower() == ENDING:
            beside[other.with_suffix("")].append(other)
    lists, faults, counts = LabelLists(), found.faults, _Counts()
    for row, picture in enumerate(found.pictures):
        sidecars = [*beside.get(picture, ()), *beside.get(picture.with_suffix(""), ())]
        labels = _read_labels(path, picture, sidecars, options.folder_labels, counts)
        if isinstance(labels, Fault):
            faults.append(replace(labels, row=row))
        lists.add(labels if isinstance(labels, list) else [])
    alone = sorted({str(x) for group in beside.values() for x in group} - counts.used)
    return lists.build_table(
        path,
        "xmp",
        path,
        [str(picture) for picture in found.pictures],
        notes=[*found.notes, *_list_notes(path, found, counts, alone, options)],
        faults=faults,
    )


def _read_labels(
    root: Path, picture: Path, sidecars: Sequence[Path], levels: str, counts: _Counts
) -> list[str] | Fault:
    """Return the labels of a picture, or a fault of a sidecar or of the XMP inside."""
    counts.used |= {*map(str, sidecars)}
    several, place = list[Keywords](), picture
    try:
        for place in sidecars:
            several.append(read_sidecar(root / place))
        keywords, kind = join_keywords(several), "sidecar"
        if not list_labels(keywords.by_people, levels):
            place = picture
            several.append(read_inside(root / picture))
            keywords, kind = join_keywords(several), "inside"
    except XmpError as error:
        return Fault(str(place), f"its keywords cannot be read: {error}")
    labels = list_labels(keywords.by_people, levels)
    counts.pictures[kind if labels else "none"] += 1
    if ours := keywords.ours[SUBJECT]:
        counts.ours += len(ours)
        counts.pictures["ours"] += 1
    return labels


def _list_notes(
    root: Path, found: FolderFiles, counts: _Counts, alone: Sequence[str], options: SourceOptions
) -> Iterator[str]:
    """Yield the notes of the table: where labels are from, and what is not read."""
    pictures = counts.pictures
    yield (
        f"labels are the keywords of photo programs: {pluralize(pictures['sidecar'], 'picture')} "
        f"with some in a sidecar, {pictures['inside']} inside, {pictures['none']} with none "
        f"(folder_labels: {options.folder_labels})"
    )
    if counts.ours:
        yield (
            f"{pluralize(counts.ours, 'keyword')} of {pluralize(pictures['ours'], 'picture')} "
            f"written by `mlfinetune predict`: predictions, left out"
        )
    paths = [root / picture for picture in found.pictures]
    if options.format == "auto" and _are_classes(root, paths):
        names = sorted({picture.parent.name for picture in found.pictures})
        yield (
            f"the names of the pictures' folders ({quote_names(names)}) are not read; if these "
            f"are the labels: data.format: folder"
        )
    if alone:
        yield f"{pluralize(len(alone), '.xmp file')} with no picture: {quote_names(alone)}"
    if ignored := sum(other.suffix.lower() != ENDING for other in found.others):
        yield f"{pluralize(ignored, 'file')} not named like a picture: ignored"
