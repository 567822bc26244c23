"""Tar shards as WebDataset has them become a Table.

    shards/train-000.tar: 17.jpg 17.txt (`cat, hot dog`)   18.png 18.json ({"labels": ["cat"]})
    -> train-000.tar/17.jpg is a cat and a hot dog, train-000.tar/18.png is a cat

Files whose names are the same up to the first dot are one sample: a picture, and its labels in a
.txt (one a line, or separated by commas), a .json (a list, or under `labels`, `tags` or `label`)
or a .cls (one label). Pictures are read where they lie in the tar, in any order.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlfinetune.data import files
from mlfinetune.data.images import is_image_name
from mlfinetune.data.tags import MAX_BYTES, tags_in
from mlfinetune.data.targets import LabelLists
from mlfinetune.errors import DataError, counted
from mlfinetune.records import NEGATIVE
from mlfinetune.survey import Fault, SourceOptions, Table

SUFFIX = ".tar"
_LABELS = (".txt", ".json", ".cls")
_KEYS = ("labels", "tags", "label")


@dataclass(frozen=True)
class _Sample:
    """A picture by its name in the tar, and where its labels lie; either may be missing."""

    picture: str | None
    labels: tuple[str, int, int] | None


def is_webdataset(folder: Path) -> bool:
    """Are there tars in it, and no pictures?"""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return any(_is_tar(name) for name in names) and not any(is_image_name(Path(n)) for n in names)


def read_webdataset(path: Path, options: SourceOptions) -> Table:
    """Read a tar, or the tars of a folder.

    Raises:
        DataError: no tar, no picture in them, or pictures elsewhere.
        OSError: a tar cannot be read.
    """
    tars = sorted(p for p in path.iterdir() if _is_tar(p.name)) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    if options.images is not None:
        raise DataError(f"{path}: pictures are in the tars; leave data.images out")
    lists, names, faults, lacking, alone = LabelLists(), list[str](), list[Fault](), 0, 0
    for tar in tars:
        with tar.open("rb") as content:
            for sample in _samples(tar):
                if sample.picture is None:
                    alone += 1
                    continue
                found: list[str] | str = []
                if sample.labels is not None:
                    name, start, size = sample.labels
                    content.seek(start)
                    found = _labels(name, content.read(min(size, MAX_BYTES + 1)), options)
                    if isinstance(found, str):
                        faults.append(Fault(f"{tar.name}/{name}", found, len(names)))
                lists.add(found if isinstance(found, list) else [])
                names.append(f"{tar.name}/{sample.picture}")
                lacking += sample.labels is None
    if not names:
        raise DataError(f"{path}: no picture in {counted(len(tars), 'tar')}")
    notes = [f"{counted(len(names), 'sample')} in {counted(len(tars), 'tar')}"]
    if lacking:
        notes.append(f"{lacking} of {len(names)} pictures have no {', '.join(_LABELS)}: no labels")
    if alone:
        notes.append(f"{counted(alone, 'sample')} without a picture: passed over")
    return Table(
        origin=path,
        format="webdataset",
        root=root,
        names=tuple(names),
        targets=lists.targets(),
        unnamed=np.full(len(names), NEGATIVE, np.int8),
        labels=lists.labels,
        delimiter=options.label_delimiter,
        notes=tuple(notes),
        faults=tuple(faults),
    )


def _samples(tar: Path) -> Iterator[_Sample]:
    """A sample's files follow one another."""
    key, picture, labels = None, None, None
    for name, start, size in files.members(str(tar)):
        folder, _, base = name.rpartition("/")
        if base.startswith("."):
            continue
        now = (folder, base.partition(".")[0])
        if now != key and key is not None:
            yield _Sample(picture, labels)
            picture = labels = None
        key = now
        if is_image_name(Path(base)):
            picture = picture or name
        elif os.path.splitext(base)[1].lower() in _LABELS:
            labels = labels or (name, start, size)
    if key is not None:
        yield _Sample(picture, labels)


def _labels(name: str, content: bytes, options: SourceOptions) -> list[str] | str:
    """The labels in a member, or why they cannot be read."""
    if len(content) > MAX_BYTES:
        return f"too many bytes for labels; the limit is {MAX_BYTES:,}"
    ending = os.path.splitext(name)[1].lower()
    if ending != ".json":
        return tags_in(content, name, "\n" if ending == ".cls" else options.label_delimiter)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if isinstance(tree, dict):
        tree = next((tree[key] for key in _KEYS if key in tree), None)
    if isinstance(tree, str | int):
        tree = [tree]
    if not isinstance(tree, list) or not all(type(one) in (str, int) for one in tree):
        return f"wanted a list of labels, or one under {', '.join(_KEYS)}"
    return list(dict.fromkeys(str(one).strip() for one in tree if str(one).strip()))


def _is_tar(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")
