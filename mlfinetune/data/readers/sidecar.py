"""Pictures, each with a text file of tags beside it, become a Table.

    root/a/1.jpg   root/a/1.txt (`cat, hot dog`, or one tag per line)   root/2.jpg
    -> a/1.jpg is a cat and a hot dog, 2.jpg has no label

The tags of 1.jpg are in 1.txt or 1.jpg.txt, or in a .tags or .caption. Pictures of one stem (1.jpg,
1.png) share 1.txt. Hidden files and folders are ignored.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlfinetune.data.images.names import is_image_name, walk_files
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.pictures import FolderFiles, are_classes, list_files
from mlfinetune.data.readers.tags import (
    MAX_BYTES,
    find_encoding,
    is_prose,
    parse_tags,
    refuse_prose,
    suggest_separator,
)
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize

_ENDINGS = (".txt", ".tags", ".caption", ".captions")
"""Endings of text files of tags; of several beside one picture the first is read."""


@dataclass
class _Texts:
    """The text files of a folder.

    Attributes:
        by_key: path without the ending (`1`, `1.jpg`) -> the text files, as 1.txt and 1.caption.
        used: the text files that gave tags to a picture.
        passed_over: those beside a picture whose tags are in another one.
        prose: the text of each used file that holds sentences.
        filled: the number of used files that are not empty.
        encodings: encoding -> number of used files, where it is not UTF-8.
    """

    by_key: defaultdict[str, list[Path]]
    used: set[Path] = field(default_factory=set)
    passed_over: set[Path] = field(default_factory=set)
    prose: list[str] = field(default_factory=list)
    filled: int = 0
    encodings: Counter[str] = field(default_factory=Counter)


def is_sidecar(folder: Path) -> bool:
    """Return whether at least half of the pictures have a text file of tags beside them."""
    texts = {_remove_suffix(path) for path in walk_files(folder) if _is_text(path)}
    if not texts:
        return False
    tagged = [
        not texts.isdisjoint(_list_keys(path)) for path in walk_files(folder) if is_image_name(path)
    ]
    return 0 < len(tagged) <= 2 * sum(tagged)


def read_sidecar(path: Path, options: SourceOptions) -> Table:
    """Read pictures and the text files of tags beside them.

    Raises:
        DataError: there is no picture, or the text files hold boxes, sentences or values.
        OSError: the folder cannot be read.
    """
    found = list_files(path, options)
    if not found.pictures:
        raise DataError(
            f"{path}: no picture found; wanted pictures with a .txt of tags beside each, as "
            f"1.jpg and 1.txt"
        )
    texts = _Texts(_group_texts(found.others))
    lists, faults = LabelLists(), found.faults
    for row, picture in enumerate(found.pictures):
        tags = _find_tags(path, picture, texts, options)
        if isinstance(tags, Fault):
            faults.append(Fault(tags.place, tags.text, row))
        lists.add(tags if isinstance(tags, list) else [])
    ending, notes = _name_ending(texts.used), list[str]()
    if options.label_delimiter is None:
        refuse_prose(path, texts.prose, texts.filled, ending)
        notes = list(suggest_separator(path, lists, ending))
    return lists.build_table(
        path,
        "sidecar",
        path,
        [str(picture) for picture in found.pictures],
        delimiter=options.label_delimiter,
        notes=[*_list_notes(found, texts, options.format == "auto"), *notes],
        faults=faults,
    )


def _group_texts(others: Iterable[Path]) -> defaultdict[str, list[Path]]:
    """Return path without the ending -> the text files."""
    by_key = defaultdict[str, list[Path]](list)
    for text in filter(_is_text, others):
        by_key[_remove_suffix(text)].append(text)
    return by_key


def _find_tags(
    root: Path, picture: Path, texts: _Texts, options: SourceOptions
) -> list[str] | Fault:
    """Return the tags of a picture, none without a text file, or a fault.

    beside 1.jpg                          result
    1.txt, 1.caption                      the tags in 1.txt; 1.caption is passed over
    1.txt and 1.jpg.txt, equal tags       these
    1.txt and 1.jpg.txt, other tags       a fault
    """
    beside = [text for key in _list_keys(picture) for text in texts.by_key.get(key, ())]
    if not beside:
        return []
    best = min(map(_rank_ending, beside))
    chosen = [text for text in beside if _rank_ending(text) == best]
    texts.passed_over |= {*beside} - {*chosen}
    results = {text: _read_tags(root / text, texts, text, options) for text in chosen}
    for text, tags in results.items():
        if isinstance(tags, str):
            return Fault(str(text), tags)
    first, *others = results.values()
    if any({*tags} != {*first} for tags in others):
        names = " and ".join(map(str, chosen))
        return Fault(names, f"other tags in each; which are those of {picture.name}?")
    assert isinstance(first, list)
    return first


def _read_tags(path: Path, texts: _Texts, name: Path, options: SourceOptions) -> list[str] | str:
    """Return the tags in a file, or the text of an error; count what the file holds."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            return f"{size:,} bytes are too many for tags; the limit is {MAX_BYTES:,}"
        content = path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    tags = parse_tags(content, path, options.label_delimiter)
    if name not in texts.used and isinstance(tags, list):
        texts.filled += bool(tags)
        if tags and is_prose(tags):
            texts.prose.append(tags[0])
        texts.encodings[str(find_encoding(content))] += 1
    texts.used.add(name)
    return tags


def _list_notes(found: FolderFiles, texts: _Texts, is_detected: bool) -> Iterator[str]:
    """Yield the notes of the table: pictures without labels, and files that are ignored."""
    yield from found.notes
    if is_detected and are_classes({picture.parent for picture in found.pictures}):
        names = sorted({picture.parent.name for picture in found.pictures})
        yield (
            f"labels from the {_name_ending(texts.used)} files beside the pictures; the names of "
            f"their folders ({quote_names(names)}) are not read; if these are the labels: "
            f"data.format: folder"
        )
    lacking = sum(texts.by_key.keys().isdisjoint(_list_keys(name)) for name in found.pictures)
    if lacking:
        count, ending = pluralize(len(found.pictures), "picture"), _name_ending(texts.used)
        yield f"{lacking} of {count} with no {ending}: no labels"
    if over := texts.passed_over - texts.used:
        count = pluralize(len(over), f"{_name_ending(over)} file")
        yield f"{count} passed over: the tags are in the {_name_ending(texts.used)} beside"
    for encoding, title in (("utf-16", "UTF-16"), ("cp1252", "Windows-1252")):
        if number := texts.encodings[encoding]:
            yield f"{pluralize(number, 'file')} read as {title}"
    beside = texts.used | texts.passed_over
    every = [text for group in texts.by_key.values() for text in group]
    if alone := sorted(str(text) for text in every if text not in beside):
        yield f"{pluralize(len(alone), 'text file')} with no picture: {quote_names(alone)}"
    if ignored := len(found.others) - len(every):
        yield f"{pluralize(ignored, 'file')} not named like a picture: ignored"


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in _ENDINGS


def _rank_ending(path: Path) -> int:
    return _ENDINGS.index(path.suffix.lower())


def _name_ending(files: Iterable[Path]) -> str:
    """Return the endings of the files, as `.txt`; `.txt` where there is none."""
    return ", ".join(sorted({file.suffix.lower() for file in files})) or _ENDINGS[0]


def _list_keys(picture: Path) -> tuple[str, str]:
    """Return the names that a text file of this picture may have, without its own ending."""
    return _remove_suffix(picture), str(picture)


def _remove_suffix(path: Path) -> str:
    return os.path.splitext(path)[0]
