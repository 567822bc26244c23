"""COCO's JSON of instances becomes a Table: an image has the labels of its annotations.

    root/annotations/instances_train2017.json   pictures in root/train2017/
    root/annotations/instances_val2017.json     pictures in root/val2017/
    images [{id, file_name}]  annotations [{image_id, category_id}]  categories [{id, name}]

The JSON of COCO 2017 is 450 MB, polygons for the most part: they are dropped as they are parsed.
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
_LOOKED_FOR = 20  # images whose files decide which folder holds the pictures


def is_coco(folder: Path) -> bool:
    """Do the files of COCO, or of Roboflow's export to COCO, stand there?"""
    return (folder / _ROBOFLOW).is_file() or any(folder.glob("annotations/instances_*.json"))


def read_coco(path: Path, options: SourceOptions) -> Table:
    """Read a JSON file of instances, or a folder that holds one, or one a split.

    Names are relative to `options.images`, else to a COCO root, else to the pictures' folder.

    Raises:
        DataError: no such file or more than one for a split, not JSON, not COCO's keys.
        OSError: a file cannot be read.
    """
    images = options.images
    assert not isinstance(images, str)
    files, notes = _files(path)
    parts = [_read(file) for file in files.values()]
    in_root = parts[0].file.parent.parent == path
    lists = LabelLists(dict.fromkeys(label for part in parts for label in part.labels))
    root, faults = images or path, list[Fault]()
    names, splits = list[str](), list[str]()
    for split, part in zip(files, parts, strict=True):
        folder, note = _pictures(part, images, in_root)
        root = root if in_root else folder
        below = os.path.relpath(folder, root)
        for fault in part.faults:
            place = fault.place if len(parts) == 1 else f"{part.file.name}, {fault.place}"
            row = None if fault.row is None else fault.row + len(names)
            faults.append(replace(fault, place=place, row=row))
        names += part.names if below == "." else [os.path.join(below, n) for n in part.names]
        splits += [split] * len(part.names)
        for labels in part.rows():
            lists.add(labels)
        notes += [part.note, note]
    return lists.table(
        path,
        "coco",
        root,
        names,
        splits=splits if len(parts) > 1 else None,
        notes=notes,
        faults=faults,
    )


def _files(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Split -> its JSON, one alone under no name; and a note of those passed over."""
    if not path.is_dir():
        return {"": path}, []
    if (path / _ROBOFLOW).is_file():
        return {"": path / _ROBOFLOW}, []
    found = sorted(path.glob("annotations/instances_*.json"))
    if not found:
        raise DataError(f"{path}: no annotations/instances_*.json and no {_ROBOFLOW}")
    if len(found) == 1:
        return {"": found[0]}, []
    matches = {file: match for file in found if (match := _SPLIT_FILE.fullmatch(file.name))}
    sides = {match[1].replace("valid", "val"): file for file, match in matches.items()}
    if len(sides) < max(2, len(matches)) or len({match[2] for match in matches.values()}) > 1:
        raise DataError(
            f"{path / 'annotations'}: nothing tells which of these files to take; name one in "
            f"data.train: {', '.join(file.name for file in found)}"
        )
    others = ", ".join(file.name for file in found if file not in matches)
    files = {side: sides[side] for side in ("train", "val", "test") if side in sides}
    return files, [f"not read: {others}"] * bool(others)


def _pictures(part: "_Part", images: Path | None, in_root: bool) -> tuple[Path, str]:
    """The folder that file names are relative to, and a note that says so.

    `images` is that folder, or for a COCO root may hold a folder a split.
    """
    tried = _candidates(part.file, images) if in_root or not images else [images]
    names = part.names[:_LOOKED_FOR]
    here = [sum(os.path.isfile(os.path.join(folder, n)) for n in names) for folder in tried]
    if any(here):
        folder = tried[here.index(max(here))]
        return folder, f"{part.file.name}: pictures in {folder}"
    folder, where = images or part.file.parent, ", ".join(map(str, tried))
    return folder, f"{part.file.name}: pictures expected in {folder}, not found in {where}"


def _candidates(file: Path, images: Path | None) -> list[Path]:
    """Existing folders that may hold the pictures of a JSON, the likeliest first."""
    match = _SPLIT_NAME.search(file.stem)
    tags = [file.stem.removeprefix("instances_"), *(match.groups() if match else ())]
    own, above = file.parent, Path(os.path.normpath(file.parent / ".."))
    if images:
        tried = [*(images / tag for tag in tags), images]
    else:
        tried = [folder / tag for folder in (above, above / "images") for tag in tags]
        tried += [above / "images", own, own / "images", own / "data", above]
    return [folder for folder in dict.fromkeys(tried) if folder.is_dir()]


class _Annotation(NamedTuple):
    """All that is kept of one: ids as they stand there, None where there is none."""

    image: Any
    category: Any


class _Part(NamedTuple):
    """One JSON file; `pairs` are row * number of labels + column, sorted, each once."""

    file: Path
    names: list[str]
    labels: list[str]
    pairs: NDArray[np.int64]
    faults: list[Fault]
    note: str

    def rows(self) -> Iterator[list[str]]:
        """The labels of each image in turn."""
        width = len(self.labels)
        ends = np.searchsorted(self.pairs, np.arange(len(self.names) + 1) * width)
        for start, end in pairwise(ends.tolist()):
            yield [self.labels[pair % width] for pair in self.pairs[start:end].tolist()]


def _read(file: Path) -> _Part:
    content, faults = _load(file), list[Fault]()
    categories, given = _named(content["categories"], "category", "name", faults)
    column = {name: at for at, name in enumerate(dict.fromkeys(map(str.strip, given)))}
    for name, count in Counter(map(str.strip, given)).items():
        if count > 1:
            faults.append(Fault("categories", f"{count} have the name {shown(name)}"))
    columns = {id: at if at < 0 else column[given[at].strip()] for id, at in categories.items()}
    rows, names = _named(content["images"], "image", "file_name", faults)
    pairs = array("q")
    for at, entry in enumerate(content["annotations"], 1):
        image, category = entry if isinstance(entry, _Annotation) else (None, None)
        row = rows.get(image) if _is_id(image) else None
        label = columns.get(category) if _is_id(category) else None
        if row is None or label is None:
            wrong = [_wrong("image_id", image, "is no image's")] * (row is None)
            wrong += [_wrong("category_id", category, "is no category's")] * (label is None)
            row = None if row == -1 else row
            faults.append(Fault(f"annotation {at}", " and ".join(wrong), row))
        elif row >= 0 and label >= 0:
            pairs.append(row * len(column) + label)
    counts = f"{len(column)} categories, {len(content['images']):,} images"
    note = f"{file.name}: {counts}, {len(content['annotations']):,} annotations"
    return _Part(file, names, list(column), np.unique(np.asarray(pairs)), faults, note)


def _load(file: Path) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_shrunk)
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
        found = ", ".join(map(shown, keys[:10])) or shown(content)
        if isinstance(content, list):
            found = f"a list of {len(content):,} entries"
        hint = next((text for key, text in _HINTS.items() if key in keys), "")
        if lacking == ["categories"]:
            hint = "; captions name no labels: give the file of instances"
        raise DataError(
            f"{file}: no list of {' and of '.join(lacking)}; wanted COCO's object with the lists "
            f"{', '.join(_LISTS)}, found {found}{hint}"
        )
    if not content["images"]:
        raise DataError(f"{file}: the list of images is empty")
    return content


def _shrunk(entry: dict[str, Any]) -> Any:
    """What is needed of a JSON object; whole where it is none of COCO's entries."""
    if "file_name" in entry and "id" in entry:
        return {"id": entry["id"], "file_name": entry["file_name"]}
    if ("image_id" in entry or "category_id" in entry) and "images" not in entry:
        return _Annotation(entry.get("image_id"), entry.get("category_id"))
    return entry


def _named(
    entries: list[Any], kind: str, key: str, faults: list[Fault]
) -> tuple[dict[Any, int], list[str]]:
    """Id -> number in the list of names, -1 where the entry has no name; and that list."""
    numbers, names = dict[Any, int](), list[str]()
    for at, entry in enumerate(entries, 1):
        id, name = (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
        if not _is_id(id):
            wrong = _wrong("id", id, "is no number")
        elif id in numbers:
            wrong = _wrong("id", id, "stands there already")
        elif not isinstance(name, str) or not name.strip() or re.search("[\ud800-\udfff]", name):
            numbers[id], wrong = -1, _wrong(key, name, "is no name")
        else:
            numbers[id], wrong = len(names), ""
            names.append(name)
        if wrong:
            faults.append(Fault(f"{kind} {at}", wrong))
    return numbers, names


def _wrong(key: str, value: Any, why: str) -> str:
    return f"no {key}" if value is None else f"{key} {shown(value)} {why}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)
