"""Tar shards in the layout of WebDataset become a Table.

    shards/train-000.tar: 17.jpg 17.txt (`cat, hot dog`)   18.png 18.json ({"labels": ["cat"]})
    -> train-000.tar/17.jpg is a cat and a hot dog, train-000.tar/18.png is a cat

Files whose names are equal up to the first dot are one sample: a picture, and its labels in a .txt
(one per line, or separated by commas), a .json (a list, or under `labels`, `tags` or `label`), a
.cls (one label), else in a .tags or .caption as in a .txt. Pictures are not unpacked: they are read
from the tar, in any order.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mlfinetune.data.images.names import is_decoded_name, is_image_name
from mlfinetune.data.readers.tags import (
    MAX_BYTES,
    is_prose,
    parse_tags,
    refuse_prose,
    suggest_separator,
)
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.storage.tars import list_members
from mlfinetune.text import pluralize

SUFFIX = ".tar"
_LABELS = (".txt", ".json", ".cls")
_LAST_LABELS = (".tags", ".caption")
"""Endings of files of tags that are read where a sample has none of `_LABELS`."""
_KEYS = ("labels", "tags", "label")


@dataclass(frozen=True)
class _Sample:
    """A picture and the file of its labels; either may be missing.

    Attributes:
        picture: name of the picture in the tar.
        labels: (name, start, size) of the file of labels; start and size in bytes.
        further: number of pictures and files of labels beside those; they are not used.
    """

    picture: str | None
    labels: tuple[str, int, int] | None
    further: int


def is_webdataset(folder: Path) -> bool:
    """Return whether the folder has tars, and neither pictures nor folders."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    others = any(entry.is_dir() or is_image_name(Path(entry.name)) for entry in entries)
    return not others and any(_is_tar(entry.name) for entry in entries if entry.is_file())


def read_webdataset(path: Path, options: SourceOptions) -> Table:
    """Read a tar, or the tars of a folder.

    Raises:
        DataError: there is no tar, no picture in the tars, `data.images` is set, or the labels are
            captions or have values.
        OSError: a tar cannot be read.
    """
    shards = [path]
    if path.is_dir():
        shards = sorted(tar for tar in path.iterdir() if _is_tar(tar.name) and tar.is_file())
    root = path if path.is_dir() else path.parent
    if options.images is not None:
        raise DataError(f"{path}: the pictures are in the tars; remove data.images")
    lists, names, faults, counts = LabelLists(), list[str](), list[Fault](), Counter[str]()
    prose = list[str]()
    for tar in shards:
        with tar.open("rb") as content:
            for sample in _read_samples(tar):
                counts["further"] += sample.further
                if sample.picture is None:
                    counts["alone"] += 1
                    continue
                labels = _read_labels(sample, content, tar.name, options)
                if isinstance(labels, Fault):
                    faults.append(replace(labels, row=len(names)))
                    labels = []
                if labels and is_prose(labels):
                    prose.append(labels[0])
                lists.add(labels)
                counts["labelled"] += bool(labels)
                counts["whole"] += _is_whole(sample)
                names.append(f"{tar.name}/{sample.picture}")
                counts["lacking"] += sample.labels is None
    if not names:
        raise DataError(f"{path}: no picture in {pluralize(len(shards), 'tar')}")
    notes = list(_list_notes(len(names), len(shards), counts))
    if options.label_delimiter is None:
        notes += _judge_tags(path, lists, prose, counts)
    return lists.build_table(
        path,
        "webdataset",
        root,
        names,
        delimiter=options.label_delimiter,
        notes=notes,
        faults=faults,
    )


def _list_notes(pictures: int, shards: int, counts: Counter[str]) -> Iterator[str]:
    """Yield the notes of the table: pictures without labels, and files that are ignored."""
    yield f"{pluralize(pictures, 'sample')} in {pluralize(shards, 'tar')}"
    if lacking := counts["lacking"]:
        yield (
            f"{lacking} of {pluralize(pictures, 'picture')} with no {', '.join(_LABELS)}: no labels"
        )
    if alone := counts["alone"]:
        yield f"{pluralize(alone, 'sample')} with no picture: ignored"
    if further := counts["further"]:
        yield (
            f"warning: {pluralize(further, 'file')} ignored: a sample (names that are equal up to "
            f"the first dot) has one picture and one file of labels, the first ones"
        )


def _judge_tags(
    path: Path, lists: LabelLists, prose: list[str], counts: Counter[str]
) -> Iterator[str]:
    """Yield a note on a sign between tags; captions and tags with values are refused.

    Raises:
        DataError: as `read_webdataset`.
    """
    refuse_prose(path, prose, counts["labelled"], ".txt")
    if not counts["whole"]:
        yield from suggest_separator(path, lists, ".txt")


def _is_whole(sample: _Sample) -> bool:
    """Return whether nothing separates the labels of a sample, or JSON does."""
    return sample.labels is not None and _find_ending(sample.labels[0]) in (".json", ".cls")


def _read_labels(
    sample: _Sample, content: BinaryIO, tar: str, options: SourceOptions
) -> list[str] | Fault:
    """Return the labels of a sample, or a fault where they cannot be read."""
    if sample.labels is None:
        return []
    name, start, size = sample.labels
    content.seek(start)
    labels = _parse_labels(f"{tar}/{name}", content.read(min(size, MAX_BYTES + 1)), options)
    return Fault(f"{tar}/{name}", labels) if isinstance(labels, str) else labels


def _read_samples(tar: Path) -> Iterator[_Sample]:
    """Yield the samples of a tar; the files of a sample follow one another."""
    key: tuple[str, str] | None = None
    pictures: list[str] = []
    labels: list[tuple[str, int, int]] = []

    def build_sample() -> _Sample:
        pictures.sort(key=lambda name: not is_decoded_name(Path(name)))  # not the raw file first
        usual = [entry for entry in labels if _find_ending(entry[0]) in _LABELS] or labels
        further = max(0, len(pictures) - 1) + max(0, len(usual) - 1)
        return _Sample(next(iter(pictures), None), next(iter(usual), None), further)

    for name, start, size in list_members(str(tar)):
        folder, _, base = name.rpartition("/")
        if base.startswith("."):
            continue
        new_key = (folder, base.partition(".")[0])
        if new_key != key and key is not None:
            yield build_sample()
            pictures, labels = [], []
        key = new_key
        if is_image_name(Path(base)):
            pictures.append(name)
        elif _find_ending(base) in (*_LABELS, *_LAST_LABELS):
            labels.append((name, start, size))
    if key is not None:
        yield build_sample()


def _parse_labels(name: str, content: bytes, options: SourceOptions) -> list[str] | str:
    """Return the labels in a file of a tar, or the text of an error."""
    if len(content) > MAX_BYTES:
        return f"too many bytes for labels; the limit is {MAX_BYTES:,}"
    ending = _find_ending(name)
    if ending != ".json":
        return parse_tags(content, name, "\n" if ending == ".cls" else options.label_delimiter)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if isinstance(tree, dict):
        tree = next((tree[key] for key in _KEYS if key in tree), None)
    if isinstance(tree, str | int):
        tree = [tree]
    if not isinstance(tree, list) or not all(type(label) in (str, int) for label in tree):
        return f"wanted a list of labels, or one under {', '.join(_KEYS)}"
    return list(dict.fromkeys(str(label).strip() for label in tree if str(label).strip()))


def _find_ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_tar(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")
