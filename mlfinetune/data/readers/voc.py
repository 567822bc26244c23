"""Pascal VOC becomes a Table: an image has the labels of the objects in it.

    VOC2007/ImageSets/Main/train.txt, val.txt, test.txt   ids of the images of each split
    VOC2007/Annotations/000005.xml                        object/name, object/difficult
    VOC2007/ImageSets/Main/cat_train.txt                  without Annotations: id, -1 0 or 1
    VOC2007/JPEGImages/000005.jpg

A label holds where an object of it is not difficult; where all are, `difficult` decides.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as shown
from typing import NamedTuple

import numpy as np

from mlfinetune.data.images.decode import is_image_name
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError

_SPLITS = ("train", "val", "test")
_MAX_XML = 10 * 2**20
_CLASS_LINE = re.compile(r"(\S+)\s+(1|0|-1)")
_DIFFICULT = {
    "ignore": (UNKNOWN, "ignored"),
    "positive": (POSITIVE, "taken as present"),
    "negative": (NEGATIVE, "taken as absent"),
}


class _Image(NamedTuple):
    """An image, and the list that names it, without its ending."""

    id: str
    list: str


class _Found(NamedTuple):
    """Labels, targets, the pictures' names as annotations give them, and counts of targets."""

    labels: LabelSpace
    targets: Targets
    filenames: list[str]
    difficult: int
    unsaid: int = 0


def is_voc(folder: Path) -> bool:
    """Is it laid out as VOC2007 is, or does it hold such a folder, as VOCdevkit does?"""
    return _is_root(folder) or bool(_releases(folder))


def read_voc(path: Path, options: SourceOptions) -> Table:
    """Read the folder of a release, VOCdevkit with one release in it, or one list of images.

    Raises:
        DataError: several releases, no list and no annotation, or a list that is no text.
        OSError: a folder or list cannot be read.
    """
    root, faults = _root(path), list[Fault]()
    lists = _lists(root, path)
    images, notes = _images(root, lists, faults)
    if not images and not faults:
        raise DataError(f"{path}: no image is listed in {', '.join(file.name for file in lists)}")
    by_xml = (root / "Annotations").is_dir()
    state, word = _DIFFICULT[options.difficult]
    found = (_from_xml if by_xml else _from_classes)(root, images, state, faults)
    notes.append(f"{len(found.labels)} labels in {'Annotations' if by_xml else 'class files'}")
    if found.difficult:
        notes.append(f"{found.difficult:,} difficult-only targets: {word} (data.difficult)")
    if found.unsaid:
        notes.append(f"{found.unsaid:,} targets that no class file names: unknown")
    pictures = options.images
    assert not isinstance(pictures, str)
    return Table(
        origin=path,
        format="voc",
        root=pictures or root,
        names=tuple(_names(root, pictures, images, found)),
        targets=found.targets,
        unnamed=np.full(len(images), NEGATIVE if by_xml else UNKNOWN, np.int8),
        labels=found.labels,
        splits=tuple(image.list for image in images) if len(lists) > 1 else None,
        notes=tuple(notes),
        faults=tuple(faults),
    )


def _is_root(folder: Path) -> bool:
    described = any((folder / name).is_dir() for name in ("Annotations", "ImageSets"))
    return described and (folder / "JPEGImages").is_dir()


def _releases(folder: Path) -> list[Path]:
    return [found for found in sorted(folder.glob("VOC2[0-9][0-9][0-9]")) if _is_root(found)]


def _root(path: Path) -> Path:
    """The folder of the release that a path is, holds or lies in."""
    if path.is_dir():
        releases = [] if _is_root(path) else _releases(path)
        if len(releases) > 1:
            names = ", ".join(release.name for release in releases)
            raise DataError(f"{path}: several releases; name one in data.train: {names}")
        return releases[0] if releases else path
    if path.parent.parts[-2:] == ("ImageSets", "Main"):
        return path.parents[2]
    for folder in filter(_is_root, path.absolute().parents):
        return folder
    raise DataError(f"{path}: in no folder with JPEGImages, and Annotations or ImageSets")


def _lists(root: Path, path: Path) -> list[Path]:
    """The list that is asked for, else those of the splits, else the one there is."""
    if not path.is_dir():
        if "_" in path.stem and any(_CLASS_LINE.fullmatch(line) for _, line in _lines(path)):
            own = path.stem.rpartition("_")[2]
            raise DataError(f"{path}: about one class; give {own}.txt beside it, or {root}")
        return [path]
    files = {name: root / f"ImageSets/Main/{name}.txt" for name in (*_SPLITS, "trainval")}
    there = [name for name, file in files.items() if file.is_file()]
    if "trainval" in there and not {"train", "val"} & {*there}:
        return [files["trainval"]]
    return [files[name] for name in _SPLITS if name in there]


def _images(root: Path, lists: list[Path], faults: list[Fault]) -> tuple[list[_Image], list[str]]:
    """The images, each once, and notes."""
    if not lists:
        ids = sorted(file.stem for file in root.glob("Annotations/[!.]*.xml"))
        if not ids:
            raise DataError(f"{root}: no ImageSets/Main/train.txt, and no Annotations/*.xml")
        return [_Image(id, "") for id in ids], ["no lists in ImageSets/Main: all of Annotations"]
    list_of: dict[str, str] = {}
    for file in lists:
        for number, id in _lines(file):
            place = f"{os.path.relpath(file, root)} line {number}"
            if any(part in id for part in ("/", "\\", "..", "\0")):
                faults.append(Fault(place, f"{id!r} is no id; wanted a name as 000005"))
            elif list_of.setdefault(id, file.stem) != file.stem:
                faults.append(Fault(place, f"{id!r} stands in {list_of[id]}.txt too"))
    images = [_Image(*item) for item in list_of.items()]
    counts = Counter(image.list for image in images)
    notes = [f"{counts[file.stem]:,} images in {file.name}" for file in lists]
    if len(lists) > 1 and (root / "Annotations").is_dir():
        # The answers to a test are often withheld: its images are no use then, and no mistake.
        described = {file.stem for file in root.glob("Annotations/*.xml")}
        kept = [image for image in images if image.list != "test" or image.id in described]
        without = f"{len(images) - len(kept):,} of test.txt lack an annotation: left out"
        images, notes = kept, notes + [without] * (len(kept) < len(images))
    return images, notes


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and content of the lines that are not blank."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    return ((at, line.strip()) for at, line in enumerate(lines, 1) if line.strip())


def _names(root: Path, own: Path | None, images: list[_Image], found: _Found) -> Iterator[str]:
    """<id>.jpg where it is there, else as the annotation says, else with any ending."""
    folder = own or root / "JPEGImages"
    there = sorted(os.listdir(folder)) if folder.is_dir() else []
    files = {name for name in there if is_image_name(Path(name))}
    by_id = {os.path.splitext(name)[0]: name for name in there if name in files}
    for (id, _), filename in zip(images, found.filenames, strict=True):
        asked = (name for name in (f"{id}.jpg", filename) if name in files)
        name = next(asked, by_id.get(id, f"{id}.jpg"))
        yield name if own else os.path.join("JPEGImages", name)


def _from_xml(root: Path, images: list[_Image], state: int, faults: list[Fault]) -> _Found:
    lists, filenames, difficult = LabelLists(), list[str](), 0
    for row, image in enumerate(images):
        place = f"Annotations/{image.id}.xml"
        tree, wrong = _parse(root / place)
        clear, hard = set[str](), set[str]()
        for at, thing in enumerate(tree.findall("object"), 1):
            name = thing.findtext("name", "").strip()
            flag = thing.findtext("difficult", "0").strip()
            if flag not in ("0", "1"):
                wrong.append(f"object {at}: difficult is {shown(flag)}; wanted 0 or 1")
            if name:
                (hard if flag == "1" else clear).add(name)
            else:
                wrong.append(f"object {at} has no name")
        hard -= clear
        difficult += len(hard)
        positive = clear | hard if state == POSITIVE else clear
        lists.add(sorted(positive), sorted(hard) if state == UNKNOWN else ())
        filenames.append(tree.findtext("filename", "").strip())
        faults += (Fault(place, text, row) for text in wrong)
    return _Found(lists.labels, lists.targets(), filenames, difficult)


def _parse(path: Path) -> tuple[ET.Element, list[str]]:
    """The tree, empty where it cannot be read, and what is wrong."""
    nothing = ET.Element("annotation")
    try:
        if not path.is_file():
            return nothing, ["no such file"]
        with path.open("rb") as file:
            data = file.read(_MAX_XML + 1)
        if len(data) > _MAX_XML:
            return nothing, [f"larger than {_MAX_XML // 2**20} MB"]
        text = data.decode("utf-8-sig")  # and no declared encoding, which could hide a DOCTYPE
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return nothing, ["declares a DOCTYPE or ENTITY, which is not read"]
        tree = ET.fromstring(text)
    except OSError as error:
        return nothing, [error.strerror or str(error)]
    except UnicodeDecodeError as error:
        return nothing, [f"not UTF-8 text: {error.reason}"]
    except ET.ParseError as error:
        return nothing, [f"not XML: {error}"]
    return tree, [f"holds <{tree.tag}>; wanted <annotation>"] * (tree.tag != "annotation")


def _from_classes(root: Path, images: list[_Image], state: int, faults: list[Fault]) -> _Found:
    ends = {f"_{image.list}.txt" for image in images}
    every = sorted(root.glob("ImageSets/Main/[!.]*_*.txt"))
    files = {f: f.name.removesuffix(e) for f in every for e in ends if f.name.endswith(e)}
    labels = LabelSpace(tuple(sorted(set(files.values()))))
    if images and not labels:
        raise DataError(f"{root}: no Annotations, and no class files as Main/cat_train.txt")
    row_of = {image.id: row for row, image in enumerate(images)}
    unsaid, hard, states = 2, 3, {"1": POSITIVE, "-1": NEGATIVE, "0": 3}
    dense = np.full((len(images), len(labels)), unsaid, np.int8)
    for file, label in files.items():
        for at, line in _lines(file):
            place = f"{os.path.relpath(file, root)} line {at}"
            match = _CLASS_LINE.fullmatch(line)
            if match is None:
                faults.append(Fault(place, f"{shown(line)}: wanted an id, and 1, 0 or -1"))
            elif match[1] in row_of:
                cell = row_of[match[1]], labels.column[label]
                if dense[cell] not in (unsaid, states[match[2]]):
                    faults.append(Fault(place, f"{match[1]} has another number above", cell[0]))
                dense[cell] = states[match[2]]
    counts = [int(np.count_nonzero(dense == code)) for code in (hard, unsaid)]
    dense[dense == hard], dense[dense == unsaid] = state, UNKNOWN
    return _Found(labels, Targets.pack([dense], len(labels)), [""] * len(images), *counts)
