"""Formats that are not read: one line says what a file is, and which export to choose.

describe(path)            pets.xlsx -> an Excel workbook, which is not read; save it as CSV UTF-8
describe_bytes(first)     the same for a workbook that somebody named pets.csv
describe_json(content)    {"shapes": [], ...} -> labelme's JSON, ...
"""

import re
import zipfile
from pathlib import Path
from typing import Any

from mlfinetune.data.images.names import is_image_name
from mlfinetune.location import FORMATS, find_ending

_SPREADSHEET = "save it as CSV UTF-8"
_TABLE = "write it as CSV, JSON lines or Parquet, with a column image and a column labels"
_COCO = "export it as COCO"
_UNPACK = "unpack it, and name the folder or the table in it"
_CVAT = ("CVAT's XML", "export it from CVAT as COCO 1.0 or PASCAL VOC 1.1")
_YOLO = ("YOLO's data", "export it as COCO: boxes of numbered classes have no labels by themselves")

_BY_ENDING: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb"), ("an Excel workbook", _SPREADSHEET)),
    ".ods": ("an OpenDocument spreadsheet", _SPREADSHEET),
    ".numbers": ("a Numbers spreadsheet", "export it as CSV, text encoding UTF-8"),
    **dict.fromkeys((".zip", ".rar", ".7z"), ("an archive", _UNPACK)),
    **dict.fromkeys((".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".tar.xz"), ("a packed tar", _UNPACK)),
    ".mat": ("a MATLAB file", _TABLE),
    **dict.fromkeys((".h5", ".hdf5"), ("an HDF5 file", _TABLE)),
    **dict.fromkeys((".npy", ".npz"), ("a NumPy array", _TABLE)),
    **dict.fromkeys((".pkl", ".pickle"), ("a pickle", _TABLE + "; a pickle could run any code")),
    **dict.fromkeys((".pt", ".pth"), ("a PyTorch file", _TABLE)),
    **dict.fromkeys((".feather", ".arrow"), ("an Arrow file", "write it as Parquet (to_parquet)")),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), ("a data base", "export its table as CSV")),
    **dict.fromkeys((".tfrecord", ".tfrecords", ".record"), ("a TFRecord file", _TABLE)),
    ".mdb": ("an LMDB or Access data base", _TABLE),
    **dict.fromkeys((".ndjson", ".jsonlines"), ("JSON lines", "name it .jsonl")),
    **dict.fromkeys((".yaml", ".yml"), ("a config", "data.train names a table or a folder")),
    ".xml": ("XML", "name the folder of a Pascal VOC data set, or a table"),
}
_BY_BYTES = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook, whatever its name", _SPREADSHEET),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook, whatever its name", _SPREADSHEET),
    (b"PAR1", "Parquet, whatever its name", "name it .parquet"),
    (b"SQLite format 3", "a data base, whatever its name", "export its table as CSV"),
)
_LABELME = ("labelme's JSON of one picture", "convert its folder to COCO")
_OF_OBJECTS: tuple[tuple[set[str], tuple[str, str]], ...] = (
    ({"dm_format_version"}, ("Datumaro's JSON", _COCO)),
    ({"infos", "categories", "items"}, ("Datumaro's JSON", _COCO)),
    ({"shapes"}, _LABELME),
    ({"_via_img_metadata"}, ("a project of VGG Image Annotator", _COCO)),
    ({"features", "type"}, ("GeoJSON", "it names no pictures")),
    ({"assets", "tags"}, ("a project of VoTT", "export it as CSV")),
)
"""Keys that tell a JSON object; its name, and the way out."""

_OF_ENTRIES: tuple[tuple[set[str], str, tuple[str, str]], ...] = (
    ({"shapes", "imagePath"}, "shapes", _LABELME),
    ({"filename", "regions"}, "regions", ("JSON of VGG Image Annotator", _COCO)),
    ({"image", "annotations"}, "annotations", ("JSON as CreateML's", _COCO)),
    ({"data_row"}, "data_row", ("Labelbox' JSON", _TABLE)),
    ({"Labeled Data", "Label"}, "Label", ("Labelbox' JSON", _TABLE)),
)
"""Keys that tell the entries of a list or of an object, and the one of them that is nested."""

_HEAD = 2**16
"""Bytes of a file that are looked at."""


def describe(path: Path) -> str | None:
    """Return which unread format a file or folder has, and what to do; None for other formats.

    A folder is not searched: what lies in it directly tells.
    """
    found = _find_in_folder(path) if path.is_dir() else _find_by_file(path)
    return found and _format(*found)


def describe_bytes(start: bytes) -> str | None:
    """Return the same by the first bytes of a file that should be text."""
    for magic, name, fix in _BY_BYTES:
        if start.startswith(magic):
            return _format(name, fix)
    return None


def describe_json(content: Any) -> str | None:
    """Return the same by the keys of a JSON object, or of the first entry of a list or object."""
    if isinstance(content, dict):
        for keys, found in _OF_OBJECTS:
            if content.keys() >= keys:
                return _format(*found)
        content = list(content.values())
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return None
    for keys, nested, found in _OF_ENTRIES:
        if first.keys() >= keys and _is_nested(first[nested]):
            return _format(*found)
    if first.keys() >= {"image_id", "category_id"}:
        return _format("COCO's annotations alone", "give the file with its images and categories")
    return None


def _is_nested(value: Any) -> bool:
    """Return whether a JSON value is an object or a list of objects, and no list of labels."""
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def _format(name: str, fix: str) -> str:
    return f"this looks like {name}, which is not read; {fix}"


def _find_by_file(path: Path) -> tuple[str, str] | None:
    """Return name and way out of a file, by its ending and, where that is not enough, content."""
    name = path.name.lower()
    if ".tfrecord" in name:  # train.tfrecord-00000-of-00010
        return _BY_ENDING[".tfrecord"]
    ending = next((end for end in _BY_ENDING if name.endswith(end)), None)
    if ending is None:
        return None
    if ending == ".zip" and _lists_cvat(path):
        return _CVAT
    if ending == ".xml" and re.search(rb"<annotations[\s>]", _read_head(path)):
        return _CVAT
    if ending in (".yaml", ".yml") and _is_yolo(path):
        return _YOLO
    return _BY_ENDING[ending]


def _find_in_folder(folder: Path) -> tuple[str, str] | None:
    """Return name and way out of a folder, by what lies directly in it."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    names = {entry.name.lower() for entry in files}
    if "annotations.xml" in names:
        return _CVAT
    if "obj.data" in names or any(_is_yolo(file) for file in files if file.suffix == ".yaml"):
        return _YOLO
    pictures = {file.stem for file in files if is_image_name(file)}
    endings = FORMATS.keys() - {".txt"}  # a README
    tables = [file for file in files if find_ending(file) in endings]
    for file in tables[:1]:
        head = _read_head(file)
        if file.suffix.lower() == ".json" and b'"shapes"' in head and b'"imagePath"' in head:
            return _LABELME
    if pictures or tables or len(files) < len(entries):  # folders may hold pictures
        return None
    others = (file for file in files if file.suffix.lower() not in (".yaml", ".yml", ".xml"))
    return next(filter(None, map(_find_by_file, others)), None)


def _is_yolo(path: Path) -> bool:
    """Return whether a YAML file lists classes and folders, as YOLO's data.yaml does."""
    keys = set(re.findall(rb"^(names|nc|train|val|path)\s*:", _read_head(path), re.MULTILINE))
    return b"names" in keys and len(keys) > 1


def _lists_cvat(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "annotations.xml" in archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def _read_head(path: Path) -> bytes:
    """Return the first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""
