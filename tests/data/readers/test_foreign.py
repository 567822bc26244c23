"""Formats that are not read: each is told by name or content, with the export to choose."""

import zipfile
from pathlib import Path

import pytest

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.detect import read_source
from mlfinetune.data.readers.foreign import describe
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError

CVAT = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>'
YOLO = "path: ../pets\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n"
LABELME = '{"version": "5.0", "shapes": [], "imagePath": "a.jpg"}'


def refusal(path: Path, content: str | bytes) -> str:
    """Return the message with which a file of this content is refused."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_source(path, SourceOptions())
    assert str(caught.value).startswith(f"{path}: this looks like ")
    return str(caught.value)


def folder(path: Path, files: dict[str, str]) -> str:
    """Return what is said of a folder with these files; an empty text for nothing."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)
    return describe(path) or ""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pets.xlsx", "", ("an Excel workbook", "save it as CSV UTF-8")),
        ("PETS.XLS", "", ("an Excel workbook", "save it as CSV UTF-8")),
        ("pets.ods", "", ("OpenDocument", "save it as CSV UTF-8")),
        ("pets.numbers", "", ("Numbers", "CSV")),
        ("annotations.xml", CVAT, ("CVAT's XML", "COCO 1.0")),
        ("a.xml", "<annotation><object/></annotation>", ("XML", "folder of a Pascal VOC")),
        ("data.yaml", YOLO, ("YOLO's data", "export it as COCO")),
        ("pets.yaml", "data:\n  train: tags.csv\n", ("a config", "data.train names")),
        ("pets.zip", "", ("an archive", "unpack it")),
        ("pets.tar.gz", "", ("a packed tar", "unpack it")),
        ("pets.tgz", "", ("a packed tar", "unpack it")),
        ("digitStruct.mat", "", ("a MATLAB file", "Parquet")),
        ("pets.h5", "", ("an HDF5 file", "Parquet")),
        ("train.tfrecord", "", ("a TFRecord file", "Parquet")),
        ("train.tfrecord-00000-of-00010", "", ("a TFRecord file", "Parquet")),
        ("pets.pkl", "", ("a pickle", "could run any code")),
        ("pets.npz", "", ("a NumPy array", "Parquet")),
        ("pets.feather", "", ("an Arrow file", "write it as Parquet")),
        ("data-00000-of-00001.arrow", "", ("an Arrow file", "write it as Parquet")),
        ("pets.sqlite", "", ("a data base", "export its table as CSV")),
        ("pets.db", "", ("a data base", "export its table as CSV")),
        ("pets.ndjson", "", ("JSON lines", "name it .jsonl")),
        ("a.json", LABELME, ("labelme's JSON", "COCO")),
    ],
)
def test_one_line_says_which_export_to_choose(
    tmp_path: Path, name: str, content: str, words: tuple[str, str]
) -> None:
    """A file, by its ending and where that is not enough by its content."""
    message = refusal(tmp_path / name, content)
    assert all(word in message for word in words)
    assert "\n" not in message


def test_an_archive_of_cvat_is_told(tmp_path: Path) -> None:
    """CVAT hands out its XML in a zip."""
    with zipfile.ZipFile(tmp_path / "task_1.zip", "w") as archive:
        archive.writestr("annotations.xml", CVAT)
    content = (tmp_path / "task_1.zip").read_bytes()
    assert "CVAT's XML, which is not read; export it" in refusal(tmp_path / "pets.zip", content)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04\x14\x00", "an Excel workbook, whatever its name"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook"),
        (b"PAR1\x15\x04", "Parquet, whatever its name"),
        (b"SQLite format 3\0", "a data base"),
    ],
)
def test_a_workbook_that_is_called_a_table_is_told(
    tmp_path: Path, start: bytes, words: str
) -> None:
    """A new name does not make another file of it."""
    path = tmp_path / "t.csv"
    path.write_bytes(start + bytes(range(256)))
    with pytest.raises(DataError) as caught:
        read_csv(path, SourceOptions())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"annotations.xml": CVAT, "images/a.jpg": ""}, "CVAT's XML"),
        ({"data.yaml": YOLO, "train/images/a.jpg": "", "train/labels/a.txt": "0 1 1 1 1"}, "YOLO"),
        ({"obj.data": "", "obj.names": "cat", "obj_train_data/a.jpg": ""}, "YOLO"),
        ({"a.jpg": "", "a.json": LABELME}, "labelme"),
        ({"pets.xlsx": "", "README.md": ""}, "an Excel workbook"),
        ({"train.tfrecord-00000-of-00002": "", "train.tfrecord-00001-of-00002": ""}, "a TFRecord"),
        ({"a.jpg": "", "pets.xlsx": ""}, ""),
        ({"cat/a.jpg": "", "pets.zip": ""}, ""),
        ({"tags.csv": "", "old.zip": ""}, ""),
        ({"config.yaml": "data:\n  train: x\n", "cat/a.jpg": ""}, ""),
        ({}, ""),
    ],
)
def test_a_folder_is_told_by_what_lies_in_it(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    """Pictures, tables and class folders beside it are left to the readers."""
    said = folder(tmp_path, files)
    assert words in said
    assert bool(said) == bool(words)
