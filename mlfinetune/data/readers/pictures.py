"""The pictures below a folder, for the readers of class folders and of sidecar files.

walk -> pictures, other files; raw files beside a JPEG passed over; links that lead outside or
nowhere refused
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.images.names import is_decoded_name, is_image_name, is_lost_folder, walk_files
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.table import Fault, SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.text import format_list, pluralize

_NO_CLASSES = frozenset(
    {"image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures"}
    | {"jpg", "jpeg", "png", "data", "raw", "original", "originals", "thumb", "thumbs"}
    | {"thumbnail", "thumbnails", "mask", "masks", "annotation", "annotations", "label", "labels"}
)
"""Names of folders that say nothing of what the pictures in them show."""


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder; paths are relative to it, in sorted order.

    Attributes:
        pictures: the pictures to use.
        others: files that are no pictures.
        notes: pictures that are passed over, as lines for the user.
        faults: links that lead nowhere.
    """

    pictures: list[Path]
    others: list[Path]
    notes: list[str]
    faults: list[Fault]


def list_files(root: Path, options: SourceOptions) -> FolderFiles:
    """List the files below a folder, but for hidden ones; links to folders are followed.

    Raises:
        DataError: a linked folder lies outside the root.
        OSError: a folder cannot be read.
    """
    pictures, others, faults = list[Path](), list[Path](), list[Fault]()
    for path in walk_files(root):
        name = path.relative_to(root)
        if is_image_name(path):
            pictures.append(name)
        elif is_lost_folder(path):
            faults.append(Fault(str(name), f"a link that leads nowhere ({os.readlink(path)})"))
        else:
            others.append(name)
    if not options.allow_outside_root:
        refuse_links_outside(root, Counter(picture.parent for picture in pictures))
    twins = _find_twins(pictures)
    notes = []
    if twins:
        endings = ", ".join(sorted({twin.suffix.lower() for twin in twins}))
        count = pluralize(len(twins), "picture")
        notes.append(f"{count} ({endings}) beside a readable one of the same name: passed over")
    kept = [picture for picture in pictures if picture not in twins]
    return FolderFiles(kept, others, notes, faults)


def refuse_links_outside(root: Path, counts: Mapping[Path, int]) -> None:
    """Check that no linked folder that holds pictures lies outside the root.

    Args:
        root: the folder.
        counts: folder that holds pictures, relative to the root -> their number.

    Raises:
        DataError: it names each such folder once, and counts its pictures.
    """
    outside: Counter[Path] = Counter()
    for folder, count in counts.items():
        link = _find_way_out(root, folder)
        if link is not None:
            outside[link] += count
    if outside:
        lines = [
            f"{link} -> {os.path.realpath(root / link)} ({pluralize(count, 'picture')})"
            for link, count in sorted(outside.items())
        ]
        raise DataError(
            f"{root}: {pluralize(len(lines), 'linked folder')} outside the image root; "
            f"data.allow_outside_root: true permits it\n{format_list(lines)}"
        )


def _find_way_out(root: Path, folder: Path) -> Path | None:
    """Return the first part of a folder's path that leads out of the root, or None."""
    real_root = os.path.realpath(root).rstrip(os.sep) + os.sep
    if os.path.realpath(root / folder).startswith(real_root) or folder == Path():
        return None
    for end in range(1, len(folder.parts) + 1):
        part = Path(*folder.parts[:end])
        if not os.path.realpath(root / part).startswith(real_root):
            return part
    return None


def _find_twins(pictures: list[Path]) -> set[Path]:
    """Return the pictures that cannot be decoded and have one of the same stem that can.

    Cameras write IMG_1.CR2 and IMG_1.JPG of one photo.
    """
    undecoded = [picture for picture in pictures if not is_decoded_name(picture)]
    if not undecoded:
        return set()
    stems = {picture.with_suffix("") for picture in pictures if is_decoded_name(picture)}
    return {picture for picture in undecoded if picture.with_suffix("") in stems}


def are_classes(folders: Iterable[Path]) -> bool:
    """Return whether the folders of all pictures, relative to the root, look like classes.

    cat, dog               True
    cat, dog, .            False: a picture lies in none
    train, val             False: splits
    images, masks          False: they say nothing of what a picture shows
    """
    names = {folder.name.casefold() for folder in folders}
    are_named = names.isdisjoint({"", *_NO_CLASSES}) and not any(map(find_split, names))
    return len(names) > 1 and are_named
