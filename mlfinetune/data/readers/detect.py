"""Detect the format of a file or folder, and read it into a Table.

path -> format, given or detected by names and layout -> the reader of the format -> Table
path -> several tables in it: splits, folders, a table beside its pictures -> several.py
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlfinetune.data.readers import (
    coco,
    csv_table,
    folder,
    foreign,
    huggingface,
    json_table,
    parquet,
    several,
    sidecar,
    unlabelled,
    voc,
    webdataset,
    xmp,
)
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import FORMATS, find_ending, is_url

READERS: dict[str, tuple[str, Callable[[Path, SourceOptions], Table]]] = {
    "csv": ("a CSV or TSV table", csv_table.read_csv),
    "folder": ("class folders", folder.read_folder),
    "sidecar": ("pictures with .txt files of tags", sidecar.read_sidecar),
    "xmp": ("a photo archive: pictures with keywords", xmp.read_xmp),
    "huggingface": ("a Hugging Face image folder", huggingface.read_huggingface),
    "json": ("a JSON list", json_table.read_json),
    "coco": ("COCO instances", coco.read_coco),
    "voc": ("Pascal VOC", voc.read_voc),
    "parquet": ("Parquet", parquet.read_parquet),
    "webdataset": ("tar shards (WebDataset)", webdataset.read_webdataset),
}
"""Format -> its name in messages, and its reader."""

_GIVEN = " (data.format)"
_URL_AS_PATH = re.compile(r"(^|/)(https?|s3|gs|file):/", re.IGNORECASE)
"""A path that was meant as a URL: Path turns // into /."""


def read_source(path: Path, options: SourceOptions) -> Table:
    """Read a file or folder in its format; the first note names the format.

    Raises:
        DataError: the path does not exist, or it cannot be read as a whole.
    """
    if not os.path.exists(path):
        hint = "; a URL goes into a config (data.train)" if _URL_AS_PATH.search(str(path)) else ""
        raise DataError(f"no such file or folder: {path} (data.train, data.val or --data){hint}")
    try:
        return _read_in_format(path, options)
    except DataError as error:
        if (note := unlabelled.find_class_folders(path, options, error)) is None:
            raise
        table = _read_in_format(path, replace(options, format="folder"))
        notes = (text.removesuffix(_GIVEN) for text in table.notes)
        return replace(table, notes=(*notes, note))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _read_in_format(path: Path, options: SourceOptions) -> Table:
    """Read an existing file or folder; as `read_source`.

    Raises:
        DataError: it cannot be read as a whole.
        OSError: the disk says no.
    """
    joined, notes = several.read_several(path, options, read_source)
    if joined is not None:
        return replace(joined, notes=(*joined.notes, *notes))
    format = detect_format(path) if options.format == "auto" else options.format
    title, reader = READERS[format]
    if is_url(options.images) and format not in several.TABLES:
        raise DataError(
            f"data.images: pictures of {title} cannot be read from {options.images}; list "
            f"them in a table"
        )
    source = several.find_table(path) if format in several.TABLES else path
    if format == "huggingface" and FORMATS.get(find_ending(source)) == "csv":
        reader = csv_table.read_csv  # metadata.csv
    table = reader(source, options)
    if format == "folder" and options.format == "auto":
        notes = [*notes, *xmp.note_keywords(path)]
    how = "" if options.format == "auto" else _GIVEN
    return replace(table, notes=(f"read as {title}{how}", *table.notes, *notes))


def detect_format(path: Path) -> str:
    """Return the format of an existing file or folder, by names and layout.

    Raises:
        DataError: no format has the ending of this file.
    """
    if not path.is_dir():
        return _detect_file(path)
    table = several.find_table(path)
    if table != path:
        return "csv" if table.suffix == ".csv" else "huggingface"
    for is_format, format in (
        (voc.is_voc, "voc"),
        (coco.is_coco, "coco"),
        (parquet.is_parquet, "parquet"),
        (webdataset.is_webdataset, "webdataset"),
        (sidecar.is_sidecar, "sidecar"),
        (xmp.is_archive, "xmp"),
    ):
        if is_format(path):
            return format
    return "folder"


def _detect_file(path: Path) -> str:
    """Return the format of a file by its ending; a .json has the lists of COCO, or others."""
    if path.parent.parts[-2:] == ("ImageSets", "Main"):
        return "voc"
    format = FORMATS.get(find_ending(path))
    if format is None or (path.suffix.lower() == ".gz" and format in ("parquet", "webdataset")):
        if foreign_format := foreign.describe(path):
            raise DataError(f"{path}: {foreign_format}")
        raise DataError(
            f"{path}: wanted a file ending in {', '.join(sorted(FORMATS))}, or a folder"
        )
    return "coco" if format == "json" and coco.is_coco_json(path) else format
