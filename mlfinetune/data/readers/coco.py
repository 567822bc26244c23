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

from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.errors import DataError

_ROBOFLOW = "_annotations.coco.json"
_SPLIT_FILE = re.compile(r"instances_(train|val|valid|test)[-_]?(\d*)\.json")
_SPLIT_NAME = re.compile(r"(?:^|[-_])((train|val|valid|test)[-_]?\d*)$")
_LISTS = ("images", "annotations", "categories")
_HINTS = {"features": "; this looks like GeoJSON", "shapes": "; this looks like labelme's JSON"}
_LOOKED_FOR = 20
"""Images whose files are looked for, to decide which folder holds the pictures."""


def is_coco(folder: Path) -> bool:
    """Return whether the folder has the files of COCO, or of Roboflow's export to COCO."""
    return (folder / _ROBOFLOW).is_file() or any(folder.glob("annotations/instances_*.json"))


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
        notes += [part.note, note]
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
    names = part.names[:_LOOKED_FOR]
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
    """The ids of one annotation, as the file has them; None where one is missing."""

    image: Any
    category: Any


class _Part(NamedTuple):
    """Content of one JSON file.

    `pairs` has an int64 for each positive, sorted, each once: row * number of labels + column.
    """

    file: Path
    names: list[str]
    labels: list[str]
    pairs: NDArray[np.int64]
    faults: list[Fault]
    note: str

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
    columns, labels = _read_categories(content["categories"], faults)
    rows, names = _index_entries(content["images"], "image", "file_name", faults)
    pairs = array("q")
    for number, entry in enumerate(content["annotations"], 1):
        image, category = entry if isinstance(entry, _Annotation) else (None, None)
        row = rows.get(image) if _is_id(image) else None
        column = columns.get(category) if _is_id(category) else None
        if row is None or column is None:
            errors = []
            if row is None:
                errors.append(_describe_value("image_id", image, "matches no image"))
            if column is None:
                errors.append(_describe_value("category_id", category, "matches no category"))
            row = None if row == -1 else row
            faults.append(Fault(f"annotation {number}", " and ".join(errors), row))
        elif row >= 0 and column >= 0:
            pairs.append(row * len(labels) + column)
    counts = f"{len(labels)} categories, {len(content['images']):,} images"
    note = f"{file.name}: {counts}, {len(content['annotations']):,} annotations"
    return _Part(file, names, labels, np.unique(np.asarray(pairs)), faults, note)


def _read_categories(entries: list[Any], faults: list[Fault]) -> tuple[dict[Any, int], list[str]]:
    """Return category id -> column of its label, and the labels; adds to `faults`."""
    indices, names = _index_entries(entries, "category", "name", faults)
    names = list(map(str.strip, names))
    for name, count in Counter(names).items():
        if count > 1:
            faults.append(Fault("categories", f"{count} have the name {shown(name)}"))
    column = {name: index for index, name in enumerate(dict.fromkeys(names))}
    columns = {
        category: index if index < 0 else column[names[index]]
        for category, index in indices.items()
    }
    return columns, list(column)


def _load_json(file: Path) -> Any:
    """Read a JSON file; check that it has COCO's lists."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_shrink_object)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text, so no JSON") from error
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
        hint = next((text for key, text in _HINTS.items() if key in keys), "")
        if lacking == ["categories"]:
            hint = "; captions name no labels: give the file of instances"
        raise DataError(
            f"{file}: no list of {' and of '.join(lacking)}; wanted COCO's object with the lists "
            f"{', '.join(_LISTS)}, found {contents}{hint}"
        )
    if not content["images"]:
        raise DataError(f"{file}: the list of images is empty")
    return content


def _shrink_object(entry: dict[str, Any]) -> Any:
    """Return the needed keys of an image or annotation; other objects are returned whole.

    The JSON parser calls it for each object, so that polygons are freed at once.
    """
    if "file_name" in entry and "id" in entry:
        return {"id": entry["id"], "file_name": entry["file_name"]}
    if ("image_id" in entry or "category_id" in entry) and "images" not in entry:
        return _Annotation(entry.get("image_id"), entry.get("category_id"))
    return entry


def _index_entries(
    entries: list[Any], kind: str, key: str, faults: list[Fault]
) -> tuple[dict[Any, int], list[str]]:
    """Return id -> index of its name, and the names; adds to `faults`.

    Args:
        entries: the JSON list of images or categories.
        kind: `image` or `category`, for the messages.
        key: the key of the name. An entry without a name has the index -1.
        faults: gets the bad entries.
    """
    indices, names = dict[Any, int](), list[str]()
    for number, entry in enumerate(entries, 1):
        entry_id, name = (
            (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
        )
        error = ""
        if not _is_id(entry_id):
            error = _describe_value("id", entry_id, "is not a number or a string")
        elif entry_id in indices:
            error = _describe_value("id", entry_id, "is repeated")
        elif not isinstance(name, str) or not name.strip() or re.search("[\ud800-\udfff]", name):
            indices[entry_id] = -1
            error = _describe_value(key, name, "is not a name")
        else:
            indices[entry_id] = len(names)
            names.append(name)
        if error:
            faults.append(Fault(f"{kind} {number}", error))
    return indices, names


def _describe_value(key: str, value: Any, error: str) -> str:
    """Return `no image_id`, or `image_id 8 matches no image`."""
    return f"no {key}" if value is None else f"{key} {shown(value)} {error}"


def _is_id(value: Any) -> bool:
    """Return whether a JSON value can be an id: a number or a string, but not true or false."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)
