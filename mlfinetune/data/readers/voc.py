"""Pascal VOC becomes a Table: an image has the labels of the objects in it.

    VOC2007/ImageSets/Main/train.txt, val.txt, test.txt   ids of the images of each split
    VOC2007/Annotations/000005.xml                        object/name, object/difficult
    VOC2007/ImageSets/Main/cat_train.txt                  without Annotations: id, -1 0 or 1
    VOC2007/JPEGImages/000005.jpg

An image has a label if it has an object of it that is not difficult. If all objects of the label
are difficult, `data.difficult` decides.
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

from mlfinetune.data.images.names import is_decoded_name, is_image_name
from mlfinetune.data.table import Fault, LabelLists, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.text import pluralize

_SPLITS = ("train", "val", "test")
_MAX_XML = 10 * 2**20
_CLASS_LINE = re.compile(r"(\S+)\s+(1|0|-1)")
_DIFFICULT = {
    "ignore": (UNKNOWN, "ignored"),
    "positive": (POSITIVE, "taken as present"),
    "negative": (NEGATIVE, "taken as absent"),
}
"""`data.difficult` -> target of a label with difficult objects only, and the words of the note."""

_UNLISTED, _DIFFICULT_ONLY = 2, 3
"""States beside those of a target, while class files are read."""


class _Image(NamedTuple):
    """Id of an image, and name of the list that names it, as `train`."""

    id: str
    list: str


class _Annotations(NamedTuple):
    """The labels of all images.

    Attributes:
        labels, targets: as in `Table`.
        filenames: the picture's name in each annotation; empty where there is none.
        difficult: number of targets with difficult objects only.
        unlisted: number of targets that no class file lists.
    """

    labels: LabelSpace
    targets: Targets
    filenames: list[str]
    difficult: int
    unlisted: int = 0


def is_voc(folder: Path) -> bool:
    """Return whether the folder is a release, as VOC2007, or holds one, as VOCdevkit."""
    return _is_root(folder) or bool(_find_releases(folder))


def read_voc(path: Path, options: SourceOptions) -> Table:
    """Read the folder of a release, VOCdevkit with one release in it, or one list of images.

    Raises:
        DataError: several releases, neither lists nor annotations, or a list that is not text.
        OSError: a folder or list cannot be read.
    """
    root, faults = _find_root(path), list[Fault]()
    lists = _find_lists(root, path)
    images, notes = _read_lists(root, lists, faults)
    if not images and not faults:
        raise DataError(f"{path}: no image is listed in {', '.join(file.name for file in lists)}")
    by_xml = (root / "Annotations").is_dir()
    state, word = _DIFFICULT[options.difficult]
    read = _read_xml_files if by_xml else _read_class_files
    annotations = read(root, images, state, faults)
    source = "Annotations" if by_xml else "class files"
    notes.append(f"{pluralize(len(annotations.labels), 'label')} in {source}")
    if annotations.difficult:
        notes.append(f"{annotations.difficult:,} difficult-only targets: {word} (data.difficult)")
    if annotations.unlisted:
        notes.append(f"{annotations.unlisted:,} targets that no class file lists: unknown")
    pictures = options.images
    assert not isinstance(pictures, str)
    return Table(
        origin=path,
        format="voc",
        root=pictures or root,
        names=tuple(_name_pictures(root, pictures, images, annotations.filenames)),
        targets=annotations.targets,
        unnamed=np.full(len(images), NEGATIVE if by_xml else UNKNOWN, np.int8),
        labels=annotations.labels,
        splits=tuple(image.list for image in images) if len(lists) > 1 else None,
        notes=tuple(notes),
        faults=tuple(faults),
    )


def _is_root(folder: Path) -> bool:
    described = any((folder / name).is_dir() for name in ("Annotations", "ImageSets"))
    return described and (folder / "JPEGImages").is_dir()


def _find_releases(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("VOC2[0-9][0-9][0-9]")) if _is_root(path)]


def _find_root(path: Path) -> Path:
    """Return the folder of the release: the path itself, a folder in it, or one above it."""
    if path.is_dir():
        releases = [] if _is_root(path) else _find_releases(path)
        if len(releases) > 1:
            names = ", ".join(release.name for release in releases)
            raise DataError(f"{path}: several releases; name one in data.train: {names}")
        return releases[0] if releases else path
    if path.parent.parts[-2:] == ("ImageSets", "Main"):
        return path.parents[2]
    for folder in filter(_is_root, path.absolute().parents):
        return folder
    raise DataError(f"{path}: not in a folder that has JPEGImages, and Annotations or ImageSets")


def _find_lists(root: Path, path: Path) -> list[Path]:
    """Return the lists of images: `path` if it is a list, else those of the splits.

    trainval.txt is taken only where there is neither train.txt nor val.txt.
    """
    if not path.is_dir():
        if "_" in path.stem and any(_CLASS_LINE.fullmatch(line) for _, line in _read_lines(path)):
            split = path.stem.rpartition("_")[2]
            raise DataError(
                f"{path}: it lists one class only; give {split}.txt beside it, or {root}"
            )
        return [path]
    files = {name: root / f"ImageSets/Main/{name}.txt" for name in (*_SPLITS, "trainval")}
    existing = [name for name, file in files.items() if file.is_file()]
    if "trainval" in existing and not {"train", "val"} & {*existing}:
        return [files["trainval"]]
    return [files[name] for name in _SPLITS if name in existing]


def _read_lists(
    root: Path, lists: list[Path], faults: list[Fault]
) -> tuple[list[_Image], list[str]]:
    """Return the images, each once, and notes; add bad lines to `faults`."""
    if not lists:
        ids = sorted(file.stem for file in root.glob("Annotations/[!.]*.xml"))
        if not ids:
            raise DataError(f"{root}: no ImageSets/Main/train.txt, and no Annotations/*.xml")
        return [_Image(image_id, "") for image_id in ids], [
            "no lists in ImageSets/Main: all of Annotations"
        ]
    list_of: dict[str, str] = {}
    for file in lists:
        for number, image_id in _read_lines(file):
            place = f"{os.path.relpath(file, root)} line {number}"
            if any(part in image_id for part in ("/", "\\", "..", "\0")):
                faults.append(Fault(place, f"{image_id!r} is not an id; wanted a name as 000005"))
            elif list_of.setdefault(image_id, file.stem) != file.stem:
                faults.append(Fault(place, f"{image_id!r} is in {list_of[image_id]}.txt too"))
    images = [_Image(*item) for item in list_of.items()]
    counts = Counter(image.list for image in images)
    numbers = [(counts[file.stem], file.name) for file in lists]
    notes = [f"{n:,} {'image' if n == 1 else 'images'} in {name}" for n, name in numbers]
    if len(lists) > 1 and (root / "Annotations").is_dir():
        # The annotations of a test split are often not published: this is not an error.
        annotated = {file.stem for file in root.glob("Annotations/*.xml")}
        kept = [image for image in images if image.list != "test" or image.id in annotated]
        if missing := len(images) - len(kept):
            count = pluralize(missing, "image")
            notes.append(f"{count} of test.txt with no annotation: left out")
        images = kept
    return images, notes


def _read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that are not blank."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    return ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())


def _name_pictures(
    root: Path, folder: Path | None, images: list[_Image], filenames: list[str]
) -> Iterator[str]:
    """Yield the name of each image's picture, relative to `folder` if given, else to `root`.

    The name is the first that exists: <id>.jpg, the name in the annotation, <id> with any ending.
    """
    pictures = folder or root / "JPEGImages"
    entries = sorted(os.listdir(pictures)) if pictures.is_dir() else []
    entries.sort(key=lambda name: is_decoded_name(Path(name)))  # of one id a JPEG, not a raw file
    files = {name for name in entries if is_image_name(Path(name))}
    by_id = {os.path.splitext(name)[0]: name for name in entries if name in files}
    for (image_id, _), filename in zip(images, filenames, strict=True):
        existing = (name for name in (f"{image_id}.jpg", filename) if name in files)
        name = next(existing, by_id.get(image_id, f"{image_id}.jpg"))
        yield name if folder else os.path.join("JPEGImages", name)


def _read_xml_files(
    root: Path, images: list[_Image], state: int, faults: list[Fault]
) -> _Annotations:
    """Read Annotations/<id>.xml of each image; `state` is the target of difficult-only labels."""
    lists, filenames, difficult_count = LabelLists(), list[str](), 0
    for row, image in enumerate(images):
        place = f"Annotations/{image.id}.xml"
        tree, errors = _parse_xml(root / place)
        clear, difficult = set[str](), set[str]()
        for number, element in enumerate(tree.findall("object"), 1):
            name = element.findtext("name", "").strip()
            flag = element.findtext("difficult", "0").strip()
            if flag not in ("0", "1"):
                errors.append(f"object {number}: difficult is {shown(flag)}; wanted 0 or 1")
            if name:
                (difficult if flag == "1" else clear).add(name)
            else:
                errors.append(f"object {number} has no name")
        difficult -= clear
        difficult_count += len(difficult)
        positive = clear | difficult if state == POSITIVE else clear
        lists.add(sorted(positive), sorted(difficult) if state == UNKNOWN else ())
        filenames.append(tree.findtext("filename", "").strip())
        faults += (Fault(place, text, row) for text in errors)
    return _Annotations(lists.labels, lists.build_targets(), filenames, difficult_count)


def _parse_xml(path: Path) -> tuple[ET.Element, list[str]]:
    """Return the tree and the errors; the tree is empty where the file cannot be read."""
    nothing = ET.Element("annotation")
    try:
        if not path.is_file():
            return nothing, ["no such file"]
        with path.open("rb") as file:
            data = file.read(_MAX_XML + 1)
        if len(data) > _MAX_XML:
            return nothing, [f"larger than {_MAX_XML // 2**20} MB"]
        # Always UTF-8: a declared encoding could hide a DOCTYPE from the search below.
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return nothing, ["declares a DOCTYPE or ENTITY, which is not read"]
        tree = ET.fromstring(text)
    except OSError as error:
        return nothing, [error.strerror or str(error)]
    except UnicodeDecodeError as error:
        return nothing, [f"not UTF-8 text: {error.reason}"]
    except ET.ParseError as error:
        return nothing, [f"not XML: {error}"]
    if tree.tag != "annotation":
        return tree, [f"holds <{tree.tag}>; wanted <annotation>"]
    return tree, []


def _read_class_files(
    root: Path, images: list[_Image], state: int, faults: list[Fault]
) -> _Annotations:
    """Read ImageSets/Main/<label>_<list>.txt; `state` is the target of difficult-only labels.

    Lines are `000005 1`: 1 positive, -1 negative, 0 difficult only. No line: unknown.
    """
    endings = {f"_{image.list}.txt" for image in images}
    files = {
        file: file.name.removesuffix(ending)
        for file in sorted(root.glob("ImageSets/Main/[!.]*_*.txt"))
        for ending in endings
        if file.name.endswith(ending)
    }
    labels = LabelSpace(tuple(sorted(set(files.values()))))
    if images and not labels:
        raise DataError(f"{root}: no Annotations, and no class files as Main/cat_train.txt")
    row_of = {image.id: row for row, image in enumerate(images)}
    states = {"1": POSITIVE, "-1": NEGATIVE, "0": _DIFFICULT_ONLY}
    dense = np.full((len(images), len(labels)), _UNLISTED, np.int8)
    for file, label in files.items():
        for number, line in _read_lines(file):
            place = f"{os.path.relpath(file, root)} line {number}"
            match = _CLASS_LINE.fullmatch(line)
            if match is None:
                faults.append(Fault(place, f"{shown(line)}: wanted an id, and 1, 0 or -1"))
            elif match[1] in row_of:
                cell = row_of[match[1]], labels.column[label]
                if dense[cell] not in (_UNLISTED, states[match[2]]):
                    faults.append(Fault(place, f"{match[1]} has another number above", cell[0]))
                dense[cell] = states[match[2]]
    counts = [int(np.count_nonzero(dense == code)) for code in (_DIFFICULT_ONLY, _UNLISTED)]
    dense[dense == _DIFFICULT_ONLY] = state
    dense[dense == _UNLISTED] = UNKNOWN
    targets = Targets.pack([dense], len(labels))
    return _Annotations(labels, targets, [""] * len(images), *counts)
