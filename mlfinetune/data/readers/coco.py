"""COCO's JSON of instances becomes a Table: an image has the labels of its annotations.

    root/annotations/instances_train2017.json   pictures in root/train2017/
    root/annotations/instances_val2017.json     pictures in root/val2017/
    images [{id, file_name}]  annotations [{image_id, category_id}]  categories [{id, name}]

The JSON of COCO 2017 has 450 MB, most of it polygons: these are dropped while it is parsed.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.doubts import means_no_label
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.coco_ids import EntryIds, index_entries
from mlfinetune.data.readers.foreign import describe_json
from mlfinetune.data.readers.state_words import THRESHOLD
from mlfinetune.data.readers.text_file import detect_encoding, opening_text
from mlfinetune.data.spellings import format_ignored
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize

_ROBOFLOW = "_annotations.coco.json"
_SPLIT_FILE = re.compile(r"instances_(train|val|valid|test)[-_]?(\d*)\.json")
_SPLIT_NAME = re.compile(r"(?:^|[-_])((train|val|valid|test)[-_]?\d*)$")
_LISTS = ("images", "annotations", "categories")
_KEY_OF_LIST = re.compile(rf'"({"|".join(_LISTS)})"\s*:\s*\[')
_BLOCK, _OVERLAP = 2**20, 64
"""Characters that are searched at a time; those of them that are searched again with the next."""

_LOOKED_FOR = 20
"""Images whose files are looked for, to decide which folder holds the pictures."""


def is_coco(folder: Path) -> bool:
    """Return whether the folder has the files of COCO, or of Roboflow's export to COCO."""
    return (folder / _ROBOFLOW).is_file() or any(folder.glob("annotations/instances_*.json"))


def is_coco_json(path: Path) -> bool:
    """Return whether a JSON file begins an object and has two of COCO's lists in it.

    Two are enough, so that a file that lacks the third is refused as COCO; and the file need not
    be parsed for it, nor be read to its end.
    """
    encoding, _ = detect_encoding(path)
    found, end, is_object = set[str](), "", False
    with opening_text(path, encoding) as file:
        while len(found) < 2 and (block := file.read(_BLOCK)):
            is_object = is_object or block.lstrip().startswith("{")
            if not is_object:
                return False
            found |= set(_KEY_OF_LIST.findall(end + block))
            end = block[-_OVERLAP:]
    return len(found) >= 2


def read_coco(path: Path, options: SourceOptions) -> Table:
    """Read a JSON file of instances, or a folder that holds one, or one per split.

    Names are relative to `options.images`; without it, to the COCO root where there is one, else
    to the folder of the pictures.

    Raises:
        DataError: no such file, several files for a split, not JSON, or not COCO's keys.
        OSError: a file cannot be read.
    """
    images = options.images
    assert not isinstance(images, str)
    files, notes = _find_files(path)
    parts = [_read_instances(file) for file in files.values()]
    in_root = parts[0].file.parent.parent == path
    lists = LabelLists(dict.fromkeys(label for part in parts for label in part.labels))
    root, faults = images or path, list[Fault]()
    names, splits = list[str](), list[str]()
    for split, part in zip(files, parts, strict=True):
        folder, note = _find_pictures(part, images, in_root)
        root = root if in_root else folder
        below = os.path.relpath(folder, root)
        for fault in part.faults:
            place = fault.place if len(parts) == 1 else f"{part.file.name}, {fault.place}"
            row = None if fault.row is None else fault.row + len(names)
            faults.append(replace(fault, place=place, row=row))
        names += part.names if below == "." else [os.path.join(below, name) for name in part.names]
        splits += [split] * len(part.names)
        for labels in part.rows():
            lists.add(labels)
        notes += [*part.notes, note]
    notes += _note_backgrounds(parts, options)
    return lists.build_table(
        path,
        "coco",
        root,
        names,
        splits=splits if len(parts) > 1 else None,
        notes=notes,
        faults=faults,
    )


def _find_files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return split -> its JSON, and notes: the files that are not read.

    A single file has the split "".
    """
    if not path.is_dir():
        return {"": path}, []
    if (path / _ROBOFLOW).is_file():
        return {"": path / _ROBOFLOW}, []
    candidates = sorted(path.glob("annotations/instances_*.json"))
    if not candidates:
        raise DataError(f"{path}: no annotations/instances_*.json and no {_ROBOFLOW}")
    if len(candidates) == 1:
        return {"": candidates[0]}, []
    matches = {file: match for file in candidates if (match := _SPLIT_FILE.fullmatch(file.name))}
    sides = {match[1].replace("valid", "val"): file for file, match in matches.items()}
    if len(sides) < max(2, len(matches)) or len({match[2] for match in matches.values()}) > 1:
        raise DataError(
            f"{path / 'annotations'}: it is unclear which of these files to read; name one in "
            f"data.train: {', '.join(file.name for file in candidates)}"
        )
    others = [file.name for file in candidates if file not in matches]
    files = {side: sides[side] for side in ("train", "val", "test") if side in sides}
    if not others:
        return files, []
    return files, [f"not read: {', '.join(others)}"]


def _find_pictures(part: "_Part", images: Path | None, in_root: bool) -> tuple[Path, str]:
    """Return the folder that file names are relative to, and a note that names it.

    `images` is that folder; for a COCO root, `images` may hold one folder per split.
    """
    tried = _list_candidates(part.file, images) if in_root or not images else [images]
    servers = ("//", "\\\\")  # of Windows: to look for a file there would log in
    names = [name for name in part.names[:_LOOKED_FOR] if not name.startswith(servers)]
    hits = [sum(os.path.isfile(os.path.join(folder, name)) for name in names) for folder in tried]
    if any(hits):
        folder = tried[hits.index(max(hits))]
        return folder, f"{part.file.name}: pictures in {folder}"
    folder = images or part.file.parent
    listed = ", ".join(map(str, tried))
    return folder, f"{part.file.name}: pictures expected in {folder}, not found in {listed}"


def _list_candidates(file: Path, images: Path | None) -> list[Path]:
    """Return existing folders that may hold the pictures of a JSON, the likeliest first."""
    match = _SPLIT_NAME.search(file.stem)
    tags = [file.stem.removeprefix("instances_"), *(match.groups() if match else ())]
    folder = file.parent
    above = Path(os.path.normpath(folder / ".."))
    if images:
        tried = [*(images / tag for tag in tags), images]
    else:
        tried = [parent / tag for parent in (above, above / "images") for tag in tags]
        tried += [above / "images", folder, folder / "images", folder / "data", above]
    return [candidate for candidate in dict.fromkeys(tried) if candidate.is_dir()]


class _Annotation(NamedTuple):
    """The ids of one annotation, as the file has them, and a detector's score; None: missing."""

    image: Any
    category: Any
    score: Any = None

    @property
    def is_unsure(self) -> bool:
        """Whether it has a score below THRESHOLD."""
        return isinstance(self.score, int | float) and self.score < THRESHOLD


class _Part(NamedTuple):
    """Content of one JSON file.

    `pairs` has an int64 for each positive, sorted, each once: row * number of labels + column.
    `backgrounds` are the labels without an annotation that look as if they stood for no object.
    """

    file: Path
    names: list[str]
    labels: list[str]
    pairs: NDArray[np.int64]
    faults: list[Fault]
    notes: list[str]
    backgrounds: list[str]

    def rows(self) -> Iterator[list[str]]:
        """Yield the labels of each image, in order of the rows."""
        width = len(self.labels)
        ends = np.searchsorted(self.pairs, np.arange(len(self.names) + 1) * width)
        for start, end in pairwise(ends.tolist()):
            yield [self.labels[pair % width] for pair in self.pairs[start:end].tolist()]


def _read_instances(file: Path) -> _Part:
    """Read one JSON file; bad entries become faults.

    An image or a category without a name has the row or column -1. Its annotations are skipped
    without a fault: the missing name is reported once.
    """
    content, faults = _load_json(file), list[Fault]()
    categories, columns, labels = _read_categories(content["categories"], faults)
    images = index_entries(content["images"], "image", "file_name", faults)
    faults += images.find_repeated_names()
    pairs, unsure = array("q"), 0
    for number, entry in enumerate(content["annotations"], 1):
        known = entry if isinstance(entry, _Annotation) else _Annotation(None, None)
        image, category = known.image, known.category
        unsure += known.is_unsure
        row, index = images.find(image), categories.find(category)
        if row is None or index is None:
            errors = [] if row is not None else [images.describe_miss(image)]
            errors += [] if index is not None else [categories.describe_miss(category)]
            row = None if row == -1 else row
            if any(errors):
                text = " and ".join(filter(None, errors))
                faults.append(Fault(f"annotation {number}", text, row))
        elif row >= 0 and index >= 0:
            pairs.append(row * len(labels) + columns[index])
    faults += [*images.build_fault(), *categories.build_fault()]
    counts = _list_counts(len(labels), len(content["images"]), len(content["annotations"]))
    notes = [f"{file.name}: {counts}", *images.describe_match(), *categories.describe_match()]
    if unsure:
        notes.append(
            f"{file.name}: {pluralize(unsure, 'annotation')} with a score below {THRESHOLD}, as "
            f"detectors write it; each is a label like all others: remove those that are not meant"
        )
    unique = np.unique(np.asarray(pairs))
    backgrounds = _find_backgrounds(content["categories"], labels, unique)
    return _Part(file, images.names, labels, unique, faults, notes, backgrounds)


def _list_counts(categories: int, images: int, annotations: int) -> str:
    """Return `1 category, 2,000 images, 1 annotation`."""
    return (
        f"{categories:,} {'category' if categories == 1 else 'categories'}, "
        f"{images:,} {'image' if images == 1 else 'images'}, "
        f"{annotations:,} {'annotation' if annotations == 1 else 'annotations'}"
    )


def _read_categories(
    entries: list[Any], faults: list[Fault]
) -> tuple[EntryIds, list[int], list[str]]:
    """Return the ids, the column of each name, and the labels; adds to `faults`."""
    ids = index_entries(entries, "category", "name", faults)
    names = list(map(str.strip, ids.names))
    for name, count in Counter(names).items():
        if count > 1:
            faults.append(Fault("categories", f"{count} have the name {shown(name)}"))
    column = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return ids, [column[name] for name in names], list(column)


def _find_backgrounds(entries: list[Any], labels: list[str], pairs: NDArray[np.int64]) -> list[str]:
    """Return the labels without an annotation that look as if they stood for no object.

    category without an annotation         why
    `background`, `_Unlabeled_`, `none`    its name
    `pets`, above `cat` and `dog`          it is the supercategory of others, as Roboflow's
    any name, with the id 0                every other category has annotations
    """
    used = {labels[column] for column in set((pairs % max(1, len(labels))).tolist())}
    above = {
        str(entry.get("supercategory")).strip()
        for entry in _list_objects(entries)
        if entry.get("supercategory") != entry.get("name")
    }
    unused = [label for label in labels if label not in used]
    zeros = {
        str(entry.get("name")).strip()
        for entry in _list_objects(entries)
        if str(entry.get("id")) == "0" and used and len(unused) == 1
    }
    return [label for label in unused if label in above | zeros or means_no_label(label)]


def _list_objects(entries: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _note_backgrounds(parts: list["_Part"], options: SourceOptions) -> list[str]:
    """Return a note for backgrounds that have no annotation in any part, with the line to paste."""
    used = set[str]()
    for part in parts:
        columns = set((part.pairs % max(1, len(part.labels))).tolist())
        used |= {part.labels[column] for column in columns}
    found = dict.fromkeys(name for part in parts for name in part.backgrounds)
    names = [name for name in found if name not in {*used, *options.ignore_labels}]
    if not names:
        return []
    line = format_ignored(names, options.ignore_labels)
    return [f"no annotation has {quote_names(names)}; to leave it out: {line}"]


def _load_json(file: Path) -> Any:
    """Read a JSON file; check that it has COCO's lists."""
    encoding, _ = detect_encoding(file)
    try:
        with opening_text(file, encoding) as text:
            content = json.loads(text.read(), object_hook=_shrink_object)
    except json.JSONDecodeError as error:
        place = f"{file}, line {error.lineno}, column {error.colno}"
        raise DataError(f"{place}: not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 4300 digits
        raise DataError(f"{file}: cannot be read as JSON: {error}") from error
    keys = list(content) if isinstance(content, dict) else []
    lacking = [key for key in _LISTS if key not in keys or not isinstance(content[key], list)]
    if lacking:
        contents = ", ".join(map(shown, keys[:10])) or shown(content)
        if isinstance(content, list):
            contents = f"a list of {len(content):,} entries"
        raise DataError(
            f"{file}: no list of {' and of '.join(lacking)}; wanted COCO's object with the lists "
            f"{', '.join(_LISTS)}, found {contents}; {_explain(content, lacking)}"
        )
    if not content["images"]:
        raise DataError(f"{file}: the list of images is empty")
    return content


def _explain(content: Any, lacking: list[str]) -> str:
    """Return the end of the message that a file is not COCO: what it may be, and what to do."""
    if lacking == ["categories"]:
        return "captions name no labels: give the file of instances"
    reads = "data.format: json reads a list of pictures with their labels"
    return describe_json(content) or reads


def _shrink_object(entry: dict[str, Any]) -> Any:
    """Return the needed keys of an image or annotation; other objects are returned whole.

    The JSON parser calls it for each object, so that polygons are freed at once.
    """
    if "file_name" in entry and "id" in entry:
        return {"id": entry["id"], "file_name": entry["file_name"]}
    if ("image_id" in entry or "category_id" in entry) and "images" not in entry:
        score = entry.get("score", entry.get("confidence"))
        return _Annotation(entry.get("image_id"), entry.get("category_id"), score)
    return entry
