"""Pictures, each with a text file of tags beside it, become a Table.

    root/a/1.jpg   root/a/1.txt (`cat, hot dog`, or one tag per line)   root/2.jpg
    -> a/1.jpg is a cat and a hot dog, 2.jpg has no label

Pictures of one stem (1.jpg, 1.png) share their tags. Hidden files and folders are ignored.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from mlfinetune.data.images.names import is_image_name, walk_files
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.tags import MAX_BYTES, parse_tags
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize


def is_sidecar(folder: Path) -> bool:
    """Return whether at least half of the pictures have a .txt of the same stem beside them."""
    texts = {_remove_suffix(path) for path in walk_files(folder) if _is_text(path)}
    if not texts:
        return False
    tagged = [_remove_suffix(path) in texts for path in walk_files(folder) if is_image_name(path)]
    return 0 < len(tagged) <= 2 * sum(tagged)


def read_sidecar(path: Path, options: SourceOptions) -> Table:
    """Read pictures and the text files of tags beside them.

    Raises:
        DataError: there is no picture, or the text files hold boxes.
        OSError: the folder cannot be read.
    """
    all_files = [file.relative_to(path) for file in walk_files(path)]
    pictures = [file for file in all_files if is_image_name(file)]
    if not pictures:
        raise DataError(
            f"{path}: no picture found; wanted pictures with a .txt of tags beside each, as "
            f"1.jpg and 1.txt"
        )
    texts = {_remove_suffix(file): file for file in all_files if _is_text(file)}
    lists, faults = LabelLists(), list[Fault]()
    for row, picture in enumerate(pictures):
        text = texts.get(_remove_suffix(picture))
        tags: list[str] | str = [] if text is None else _read_tags(path / text, options)
        if isinstance(tags, str):
            faults.append(Fault(str(text), tags, row))
        lists.add(tags if isinstance(tags, list) else [])
    return lists.build_table(
        path,
        "sidecar",
        path,
        [str(picture) for picture in pictures],
        delimiter=options.label_delimiter,
        notes=_list_notes(all_files, pictures, texts),
        faults=faults,
    )


def _read_tags(path: Path, options: SourceOptions) -> list[str] | str:
    """Return the tags in a file, or the text of an error."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            return f"{size:,} bytes are too many for tags; the limit is {MAX_BYTES:,}"
        return parse_tags(path.read_bytes(), path, options.label_delimiter)
    except OSError as error:
        return error.strerror or str(error)


def _list_notes(
    all_files: list[Path], pictures: list[Path], texts: dict[str, Path]
) -> Iterator[str]:
    """Yield the notes of the table: pictures without labels, and files that are ignored."""
    stems = {_remove_suffix(picture) for picture in pictures}
    if lacking := sum(_remove_suffix(picture) not in texts for picture in pictures):
        yield f"{lacking} of {pluralize(len(pictures), 'picture')} with no .txt: no labels"
    if alone := [str(text) for stem, text in texts.items() if stem not in stems]:
        yield f"{pluralize(len(alone), '.txt file')} with no picture: {quote_names(alone)}"
    if ignored := len(all_files) - len(pictures) - len(texts):
        yield f"{pluralize(ignored, 'file')} not named like a picture: ignored"


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == ".txt"


def _remove_suffix(path: Path) -> str:
    return os.path.splitext(path)[0]
