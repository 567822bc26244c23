"""Formats are told by what stands on disk, each in its true layout; a given one overrules that."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs.sidecar_samples import LIGHTROOM

from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.detect import READERS, detect_format, read_source
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

COCO = json.dumps(
    {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": 3, "name": "cat"}],
    }
)
VOC = (
    "<annotation><filename>000005.jpg</filename>"
    "<object><name>cat</name><difficult>0</difficult></object></annotation>"
)
CSV = "image,labels\na.jpg,cat\n"
METADATA_CSV = "file_name,labels\na.jpg,cat\n"
METADATA_JSONL = '{"file_name": "a.jpg", "labels": ["cat"]}\n'
PARQUET = b"parquet"
"""Stands for the bytes of a table of one row, a.jpg and cat."""


def tar(files: dict[str, bytes]) -> bytes:
    """Return a tar of them."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return content.getvalue()


TAR = tar({"a.jpg": b"", "a.txt": b"cat"})
LAYOUTS: dict[str, tuple[str, dict[str, str | bytes], str]] = {
    "csv": ("t.csv", {"t.csv": CSV, "a.jpg": ""}, "csv"),
    "tsv": ("t.tsv", {"t.tsv": CSV.replace(",", "\t"), "a.jpg": ""}, "csv"),
    "csv in .txt": ("list.TXT", {"list.TXT": CSV, "a.jpg": ""}, "csv"),
    "roboflow": (".", {"_classes.csv": "filename, cat\na.jpg, 1\n", "a.jpg": ""}, "csv"),
    "metadata.csv": (".", {"metadata.csv": METADATA_CSV, "a.jpg": ""}, "csv"),
    "metadata.jsonl": (".", {"metadata.jsonl": METADATA_JSONL, "a.jpg": ""}, "huggingface"),
    "jsonl": ("my.jsonl", {"my.jsonl": METADATA_JSONL, "a.jpg": ""}, "huggingface"),
    "packed csv": ("t.csv.gz", {"t.csv.gz": gzip.compress(CSV.encode()), "a.jpg": ""}, "csv"),
    "packed lines": ("t.jsonl.gz", {"t.jsonl.gz": METADATA_JSONL, "a.jpg": ""}, "huggingface"),
    "json": ("t.json", {"t.json": '{"a.jpg": ["cat"]}', "a.jpg": ""}, "json"),
    "packed json": ("T.JSON.GZ", {"T.JSON.GZ": f"[{METADATA_JSONL}]", "a.jpg": ""}, "json"),
    "class folders": (".", {"cat/a.jpg": "", "notes.txt": "not tags"}, "folder"),
    "nested class folders": (".", {"animals/cat/a.jpg": ""}, "folder"),
    "sidecar": (".", {"in/a.jpg": "", "in/a.txt": "cat"}, "sidecar"),
    "archive": (".", {"in/a.jpg": "", "in/a.jpg.xmp": LIGHTROOM.replace("sea", "cat")}, "xmp"),
    "parquet": ("t.parquet", {"t.parquet": PARQUET, "a.jpg": ""}, "parquet"),
    "shard": (".", {"data/train-00000-of-00001.parquet": PARQUET, "data/a.jpg": ""}, "parquet"),
    "coco": (".", {"annotations/instances_train.json": COCO, "train/a.jpg": ""}, "coco"),
    "coco file": ("instances.json", {"instances.json": COCO, "a.jpg": ""}, "coco"),
    "roboflow coco": (".", {"_annotations.coco.json": COCO, "a.jpg": ""}, "coco"),
    "voc": (
        "VOC2007",
        {
            "VOC2007/Annotations/000005.xml": VOC,
            "VOC2007/ImageSets/Main/train.txt": "000005\n",
            "VOC2007/JPEGImages/000005.jpg": "",
        },
        "voc",
    ),
    "tars": (".", {"000.tar": TAR}, "webdataset"),
    "tar": ("000.tar", {"000.tar": TAR}, "webdataset"),
    "voc list": (
        "VOC2007/ImageSets/Main/train.txt",
        {
            "VOC2007/Annotations/000005.xml": VOC,
            "VOC2007/ImageSets/Main/train.txt": "000005\n",
            "VOC2007/JPEGImages/000005.jpg": "",
        },
        "voc",
    ),
}
"""Name -> what is read, the files, and the format it is."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures from Parquet are unpacked below the test's folder."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    """Make a folder with these files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is PARQUET:
            pq.write_table(pa.table({"image": ["a.jpg"], "labels": [["cat"]]}), path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read_tree(root: Path, files: dict[str, str | bytes], **options: Any) -> Table:
    """Return the Table of a folder with these files; missing pictures are faults."""
    given = SourceOptions(**options)
    return check_paths(read_source(tree(root, files), given), given)


def said(table: Table) -> dict[str, tuple[str | None, set[str]]]:
    """Return name -> its split and its positive labels."""
    names = table.labels.names
    rows = [{names[at] for at in (row == 1).nonzero()[0]} for row in table.targets[:]]
    splits = table.splits or (None,) * len(rows)
    return dict(zip(table.names, zip(splits, rows, strict=True), strict=True))


# ---- one format -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_format_is_told_by_the_layout(tmp_path: Path, layout: str) -> None:
    """The table is right, its pictures are found, and the first note says what it was read as."""
    below, files, format = LAYOUTS[layout]
    path = tree(tmp_path / "pets", files) / below
    table = check_paths(read_source(path, SourceOptions()), SourceOptions())
    assert (detect_format(path), table.format) == (format, format)
    assert [labels for _, labels in said(table).values()] == [{"cat"}]
    assert table.faults == ()
    assert table.notes[0] == f"read as {READERS[format][0]}"


def test_every_format_is_told_by_some_layout() -> None:
    """No reader is out of reach."""
    assert {format for _, _, format in LAYOUTS.values()} == set(READERS)


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["metadata.csv", "metadata.jsonl", "_classes.csv", "a.txt", "a.jpg"], "csv"),
        (["metadata.jsonl", "annotations/instances_train.json"], "huggingface"),
        (["annotations/instances_train.json", "a.jpg", "a.txt"], "coco"),
        (["t.parquet", "a.jpg", "a.txt"], "parquet"),
        (["cat/a.jpg", "dog/b.jpg", "features.parquet"], "folder"),
        ([".metadata.csv", "cat/metadata.csv"], "folder"),
        ([], "folder"),
    ],
)
def test_a_table_goes_before_what_stands_beside_it(
    tmp_path: Path, names: list[str], format: str
) -> None:
    """A table describes the pictures, so it is looked for first."""
    assert detect_format(tree(tmp_path, dict.fromkeys(names, ""))) == format


def test_a_given_format_overrules_what_would_be_told(tmp_path: Path) -> None:
    """The note says that the format was given."""
    files: dict[str, str | bytes] = {
        "metadata.csv": METADATA_CSV.replace("a.jpg", "cat/a.jpg").replace(",cat", ",one"),
        "metadata.jsonl": METADATA_JSONL.replace("a.jpg", "cat/a.jpg").replace('"cat"', '"two"'),
        "cat/a.jpg": "",
        "cat/a.txt": "three",
    }
    for format, label in (("csv", "one"), ("folder", "cat"), ("sidecar", "three")):
        table = read_tree(tmp_path, files, format=format)
        assert table.labels.names == (label,)
        assert table.notes[0] == f"read as {READERS[format][0]} (data.format)"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_hugging_face_folder_has_either_table(tmp_path: Path, name: str) -> None:
    """Both are what Hugging Face reads."""
    content = METADATA_CSV if name.endswith("csv") else METADATA_JSONL
    files: dict[str, str | bytes] = {name: content, "a.jpg": ""}
    assert said(read_tree(tmp_path, files, format="huggingface")) == {"a.jpg": (None, {"cat"})}


@pytest.mark.parametrize(
    ("format", "files", "text"),
    [
        ("huggingface", {"cat/a.jpg": ""}, "wanted metadata.jsonl or metadata.csv"),
        ("parquet", {"cat/a.jpg": ""}, "wanted *.parquet in this folder"),
        ("csv", {"cat/a.jpg": ""}, "Is a directory"),
        ("sidecar", {"metadata.csv": METADATA_CSV}, "no picture found"),
    ],
)
def test_a_given_format_that_is_not_there_is_refused(
    tmp_path: Path, format: str, files: dict[str, str | bytes], text: str
) -> None:
    """The message says what was wanted, or why it cannot be read."""
    with pytest.raises(DataError) as caught:
        read_tree(tmp_path, files, format=format)
    assert str(tmp_path) in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["t", "t.md", "t.parquet.gz", "t.gz"])
def test_unknown_endings_are_refused_with_the_list_of_known_ones(tmp_path: Path, name: str) -> None:
    """Only text may be packed."""
    path = tree(tmp_path, {name: CSV}) / name
    with pytest.raises(DataError) as caught:
        read_source(path, SourceOptions())
    known = ".csv, .json, .jsonl, .parquet, .tar, .tsv, .txt"
    assert str(caught.value) == f"{path}: wanted a file ending in {known}, or a folder"


def test_nothing_is_refused(tmp_path: Path) -> None:
    """The message has the keys that may have named the path."""
    with pytest.raises(DataError, match=r"no such file or folder: .*none \(data.train, data.val"):
        read_source(tmp_path / "none", SourceOptions())


# ---- folders of splits ----------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_class_folders_in_split_folders_are_one_table(tmp_path: Path, val: str) -> None:
    """Names are from the root; a label that one side lacks is absent there."""
    files: dict[str, str | bytes] = {f"{val}/cat/1.jpg": "1", f"{val}/dog/2.jpg": "2"}
    files |= {"train/cat/3.jpg": "3", "test/sun/4.jpg": "4", "README.md": ""}
    table = read_tree(tmp_path / "pets", files)
    assert said(table) == {
        os.path.join(val, "cat", "1.jpg"): ("val", {"cat"}),
        os.path.join(val, "dog", "2.jpg"): ("val", {"dog"}),
        os.path.join("train", "cat", "3.jpg"): ("train", {"cat"}),
        os.path.join("test", "sun", "4.jpg"): ("test", {"sun"}),
    }
    assert (table.root, table.faults, (table.targets[:] == -1).any()) == (
        tmp_path / "pets", (), False
    )  # fmt: skip
    counts = {"test": "1 in test/", "train": "1 in train/", val: f"2 in {val}/"}
    assert table.notes[0] == f"split folders: {', '.join(counts[name] for name in sorted(counts))}"
    assert "train/: read as class folders" in table.notes


def test_roboflows_columns_in_split_folders(tmp_path: Path) -> None:
    """`_classes.csv` beside the pictures of each; a column that one lacks is unknown there."""
    files: dict[str, str | bytes] = {
        "train/_classes.csv": "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\n",
        "valid/_classes.csv": "filename, cat, sun\nc.jpg, 1, 1\n",
        **{"train/a.jpg": "", "train/b.jpg": "", "valid/c.jpg": ""},
    }
    table = read_tree(tmp_path, files)
    assert table.names == tuple(
        os.path.join(*x) for x in (("train", "a.jpg"), ("train", "b.jpg"), ("valid", "c.jpg"))
    )
    assert table.splits == ("train", "train", "val")
    assert table.labels.names == ("cat", "dog", "sun")
    assert table.targets[:].tolist() == [[1, 0, -1], [0, 1, -1], [1, -1, 1]]
    assert table.faults == ()
    assert said(read_tree(tmp_path, {}, format="csv")) == said(table)


SPLIT_LAYOUTS: dict[str, dict[str, str | bytes]] = {
    "huggingface": {"metadata.jsonl": METADATA_JSONL, "a.jpg": ""},
    "metadata.csv": {"metadata.csv": METADATA_CSV, "a.jpg": ""},
    "sidecar": {"a.jpg": "", "a.txt": "cat"},
    "coco": {"_annotations.coco.json": COCO, "a.jpg": ""},
    "parquet": {"0000.parquet": PARQUET, "a.jpg": ""},
}


@pytest.mark.parametrize("layout", SPLIT_LAYOUTS)
def test_other_formats_in_split_folders(tmp_path: Path, layout: str) -> None:
    """Each side is read as it would be by itself."""
    sides = {"train": "train", "validation": "val", "test": "test"}
    own = SPLIT_LAYOUTS[layout]
    files = {f"{side}/{name}": content for side in sides for name, content in own.items()}
    table = read_tree(tmp_path / "pets", files)
    assert said(table) == {
        os.path.join(side, "a.jpg"): (split, {"cat"}) for side, split in sides.items()
    }
    assert table.faults == ()


def test_pictures_inside_parquet_in_split_folders_are_found(tmp_path: Path) -> None:
    """Each side has its own folder in the cache; the root is the folder that holds both."""
    for side in ("train", "test"):
        columns = {"image": [side.encode()], "labels": [["cat"]]}
        (tmp_path / "pets" / side).mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / "pets" / side / "0000.parquet")
    table = read_tree(tmp_path / "pets", {})
    assert [(table.root / name).read_bytes() for name in table.names] == [b"test", b"train"]
    assert (table.root, table.splits) == (tmp_path / "cache" / "parquet", ("test", "train"))
    assert table.faults == ()


def test_one_image_root_serves_all_split_folders(tmp_path: Path) -> None:
    """`data.images` is the root of the names in every one of the tables."""
    other = METADATA_CSV.replace("a.jpg", "b.jpg")
    tree(tmp_path / "pets", {"train/metadata.csv": METADATA_CSV, "val/metadata.csv": other})
    tree(tmp_path, {"images/a.jpg": "", "images/b.jpg": ""})
    table = read_tree(tmp_path / "pets", {}, images=tmp_path / "images")
    assert (table.root, table.names) == (tmp_path / "images", ("a.jpg", "b.jpg"))
    assert table.faults == ()


def test_faults_in_split_folders_say_in_which(tmp_path: Path) -> None:
    """A line number alone would not tell."""
    files: dict[str, str | bytes] = {"train/metadata.jsonl": METADATA_JSONL + "{\n"}
    files |= {"train/a.jpg": "", "test/metadata.jsonl": METADATA_JSONL + '{"labels": "x"}\n'}
    places = [fault.place for fault in read_tree(tmp_path, {**files, "test/a.jpg": ""}).faults]
    assert places == [os.path.join("test", "line 2"), os.path.join("train", "line 2")]


def test_labels_that_are_called_as_splits_are_labels(tmp_path: Path) -> None:
    """Pictures of trains beside those of cars."""
    names = ["train/1.jpg", "test/2.jpg", "car/3.jpg"]
    table = read_tree(tmp_path, {name: name for name in names})
    assert table.splits is None
    assert set(table.labels.names) == {"train", "test", "car"}


def test_folders_beside_the_splits_are_told_of(tmp_path: Path) -> None:
    """A folder of samples does not make labels of train and val."""
    names = ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "sample/4.jpg"]
    table = read_tree(tmp_path, {name: name for name in names})
    assert table.splits == ("train", "train", "val")
    assert set(table.labels.names) == {"cat", "dog"}
    assert "other folders, not read: sample/" in table.notes


@pytest.mark.parametrize(
    "names",
    [["train/1.jpg"], ["val/1.jpg", "test/2.jpg"], ["train/1.jpg", "training/2.jpg"]],
)
def test_splits_are_no_labels(tmp_path: Path, names: list[str]) -> None:
    """Pictures without labels, or boxes elsewhere as YOLO's: nothing to learn from."""
    with pytest.raises(DataError, match="splits, not labels"):
        read_tree(tmp_path, {name: name for name in names})
