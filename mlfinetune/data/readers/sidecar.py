"""Pictures with a text file of tags beside each become a Table.

    root/a/1.jpg   root/a/1.txt (`cat, hot dog`, or one tag a line)   root/2.jpg
    -> a/1.jpg is a cat and a hot dog, 2.jpg has no label

Pictures of one stem (1.jpg, 1.png) share their tags. Hidden files and folders are passed over.
"""

import os
from pathlib import Path

from mlfinetune.data.images.decode import is_image_name, walk_files
from mlfinetune.data.readers.columns import quote_names
from mlfinetune.data.readers.tags import MAX_BYTES, parse_tags
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError


def is_sidecar(folder: Path) -> bool:
    """Does at least half of the pictures have a .txt of the same stem beside it?"""
    texts = {_stem(path) for path in walk_files(folder) if _is_text(path)}
    if not texts:
        return False
    tagged = [_stem(path) in texts for path in walk_files(folder) if is_image_name(path)]
    return 0 < len(tagged) <= 2 * sum(tagged)


def read_sidecar(path: Path, options: SourceOptions) -> Table:
    """Read pictures with the text files of tags beside them.

    Raises:
        DataError: there is no picture, or the text files hold boxes.
        OSError: the folder cannot be read.
    """
    every = [file.relative_to(path) for file in walk_files(path)]
    pictures = [file for file in every if is_image_name(file)]
    if not pictures:
        raise DataError(
            f"{path}: no picture found; wanted pictures with a .txt of tags beside each, as "
            f"1.jpg and 1.txt"
        )
    texts = {_stem(file): file for file in every if _is_text(file)}
    lists, faults, lacking = LabelLists(), list[Fault](), 0
    for row, picture in enumerate(pictures):
        text = texts.get(_stem(picture))
        found: list[str] | str = [] if text is None else _tags(path / text, options)
        if isinstance(found, str):
            faults.append(Fault(str(text), found, row))
        lists.add(found if isinstance(found, list) else [])
        lacking += text is None
    return lists.table(
        path,
        "sidecar",
        path,
        [str(picture) for picture in pictures],
        delimiter=options.label_delimiter,
        notes=_notes(every, pictures, texts, lacking),
        faults=faults,
    )


def _tags(path: Path, options: SourceOptions) -> list[str] | str:
    """The tags in a file, or why they cannot be read."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            return f"{size:,} bytes are too many for tags; the limit is {MAX_BYTES:,}"
        return parse_tags(path.read_bytes(), path, options.label_delimiter)
    except OSError as error:
        return error.strerror or str(error)


def _notes(
    every: list[Path], pictures: list[Path], texts: dict[str, Path], lacking: int
) -> list[str]:
    notes = []
    if lacking:
        verb = "has" if lacking == 1 else "have"
        notes.append(f"{lacking} of {len(pictures)} pictures {verb} no .txt: no labels")
    stems = set(map(_stem, pictures))
    alone = [str(text) for stem, text in texts.items() if stem not in stems]
    if alone:
        files = "1 .txt file has" if len(alone) == 1 else f"{len(alone)} .txt files have"
        notes.append(f"{files} no picture: {quote_names(alone)}")
    if passed_over := len(every) - len(pictures) - len(texts):
        notes.append(f"{passed_over} files that are no pictures by name: passed over")
    return notes


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _stem(path: Path) -> str:
    return os.path.splitext(path)[0]
