"""Parquet files become Tables: paths or bytes, labels by name or number, shards and splits."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlfinetune.data.readers.parquet import is_parquet, read_parquet
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Hugging Face datasets' Image feature."""

PETS = {"names": ["cat", "hot, dog", "sun"], "_type": "ClassLabel"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where these tests unpack pictures."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """Make a Parquet file, with the metadata that Hugging Face writes where features are given."""
    table = pa.table(columns)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


def pictures(*cells: tuple[bytes | None, str | None] | None) -> Any:
    """Return a column of Hugging Face's pictures."""
    rows = [cell and dict(zip(("bytes", "path"), cell, strict=True)) for cell in cells]
    return pa.array(rows, IMAGE)


def read(path: Path, **options: Any) -> Table:
    """Return the Table of a Parquet file or folder."""
    return read_parquet(path, SourceOptions(**options))


def refusal(path: Path, **options: Any) -> str:
    """Return the message with which a Parquet file is refused."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def positives(table: Table) -> list[set[str]]:
    """Return the labels that hold, row by row."""
    names = table.labels.names
    return [{names[at] for at in (row == 1).nonzero()[0]} for row in table.targets[:]]


def spoil(path: Path, row_group: int) -> None:
    """Overwrite some bytes of the first column, which keeps the file's size."""
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(row_group).column(0).data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)


def drawn(format: str, colour: int = 0) -> bytes:
    """Return a real picture of that format."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(file, format)
    return file.getvalue()


# ---- labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("type", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_paths_and_lists_of_names(tmp_path: Path, type: Any) -> None:
    """Names stay whole; paths are relative to the file's folder."""
    labels = pa.array([["cat", "hot, dog"], [], None, [" sun ", None]], type)
    table = read(write(tmp_path / "a.parquet", {"image": list("abcd"), "labels": labels}))
    assert table.names == ("a", "b", "c", "d")
    assert positives(table) == [{"cat", "hot, dog"}, set(), set(), {"sun"}]
    assert (table.format, table.root, table.splits) == ("parquet", tmp_path, None)
    assert table.lines is not None
    assert table.lines.tolist() == [1, 2, 3, 4]
    assert table.unnamed.tolist() == [0, 0, 0, 0]


def test_text_cells_are_split_as_in_csv(tmp_path: Path) -> None:
    """The delimiter is found; a column stored as a dictionary is text too."""
    labels = pa.array(["cat|sun", "hot dog", "cat|sun"]).dictionary_encode()
    path = write(tmp_path / "a.parquet", {"path": list("abc"), "tags": labels})
    table = read(path, images=tmp_path / "pictures")
    assert positives(table) == [{"cat", "sun"}, {"hot dog"}, {"cat", "sun"}]
    assert (table.delimiter, table.root) == ("|", tmp_path / "pictures")


def test_cells_tell_the_columns_as_in_csv(tmp_path: Path) -> None:
    """Names of pictures make the image column, whatever it is called; `image` is a label here."""
    columns = {"image": [1, 0, 1], "Datei": ["a.jpg", "b.jpg", "c.jpg"], "fold": [0, 1, 0]}
    table = read(write(tmp_path / "a.parquet", columns))
    assert (table.names, table.labels.names) == (("a.jpg", "b.jpg", "c.jpg"), ("image",))


def test_bytes_of_pictures_are_no_part_of_the_sample(tmp_path: Path) -> None:
    """Their paths are; a column of bytes is passed over, wherever it stands."""
    columns = {
        "thumb": [b"1", b"2"],
        "photo": pictures((b"1", "a.jpg"), (b"2", "b.jpg")),
        "labels": ["cat", "dog"],
    }
    table = read(write(tmp_path / "a.parquet", columns), image_column="photo")
    assert positives(table) == [{"cat"}, {"dog"}]
    assert "columns not used: 'thumb' (other values)" in table.notes


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": PETS, "length": -1, "_type": "Sequence"},
        {"feature": PETS, "_type": "List"},
        {"feature": PETS, "_type": "LargeList"},
        [PETS],
    ],
)
def test_numbers_in_lists_are_named_by_the_feature(tmp_path: Path, feature: Any) -> None:
    """Hugging Face has written lists of ClassLabel in all these ways."""
    columns = {"image": list("abc"), "labels": [[0, 1], [], [2, -1]]}
    table = read(write(tmp_path / "a.parquet", columns, {"labels": feature}))
    assert positives(table) == [{"cat", "hot, dog"}, set(), {"sun"}]


def test_one_number_a_row_is_named_and_minus_1_is_no_label(tmp_path: Path) -> None:
    """-1 is what Hugging Face puts in test sets without labels."""
    path = write(tmp_path / "a.parquet", {"image": list("abcd"), "label": [2, -1, None, 1]})
    assert positives(read(path)) == [{"2"}, {"-1"}, set(), {"1"}]
    path = write(path, {"image": list("abcd"), "label": [2, -1, None, 1]}, {"label": PETS})
    assert positives(read(path)) == [{"sun"}, set(), set(), {"hot, dog"}]
    assert read(path).faults == ()


def test_nan_is_no_label(tmp_path: Path) -> None:
    """pandas puts it where nothing is known."""
    columns = {"image": list("ab"), "label": [2.0, float("nan")]}
    assert positives(read(write(tmp_path / "a.parquet", columns))) == [{"2.0"}, set()]


def test_a_number_without_a_name_is_a_fault(tmp_path: Path) -> None:
    """At its row; the others are read."""
    columns = {"image": list("abc"), "labels": [[0], [1, 3], [-2]]}
    table = read(write(tmp_path / "a.parquet", columns, {"labels": [PETS]}))
    assert [(str(fault), fault.row) for fault in table.faults] == [
        ("line 2: labels is 3; its labels have the numbers 0 to 2", 1),
        ("line 3: labels is -2; its labels have the numbers 0 to 2", 2),
    ]
    assert positives(table) == [{"cat"}, {"hot, dog"}, set()]


def test_one_column_a_label(tmp_path: Path) -> None:
    """0/1 and booleans; null and NaN are unknown; columns that cannot be labels are not read."""
    columns = {
        "image": list("abc"),
        "cat": [1, 0, None],
        "sun": [True, None, False],
        "sea": [1.0, float("nan"), 0.0],
        "caption": ["x", "y", "z"],
        "mask": [b"1", b"2", b"3"],
        "boxes": [[1.0], [], [2.0]],
        "taken": pa.array([1, 2, 3], pa.timestamp("ns")),
    }
    table = read(write(tmp_path / "a.parquet", columns))
    assert table.labels.names == ("cat", "sun", "sea")
    assert table.targets[:].tolist() == [[1, 1, 1], [0, -1, -1], [-1, 0, 0]]
    assert (
        "columns not used: 'caption' ('x', 'y', 'z'), 'mask' (other values), 'boxes' (lists), "
        "'taken' (other values)"
    ) in table.notes


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'{"info": {"features": {"labels": 3}}}'])
def test_metadata_that_says_nothing_changes_nothing(tmp_path: Path, metadata: bytes) -> None:
    """Numbers stay numbers."""
    table = pa.table({"image": ["a"], "labels": [[7]]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert positives(read(tmp_path / "a.parquet")) == [{"7"}]


# ---- shards ---------------------------------------------------------------------------------


def test_shards_are_read_in_order_and_their_names_are_splits(tmp_path: Path) -> None:
    """As Hugging Face names them; rows are numbered through."""
    data = tmp_path / "data"
    names = ["train-00001-of-00002", "train-00000-of-00002", "validation-00000-of-00001-0a1b2c"]
    for name, rows in zip([*names, "test-00000-of-00001"], ("cd", "ab", "e", "f"), strict=True):
        write(data / f"{name}.parquet", {"image": list(rows), "labels": [["cat"]] * len(rows)})
    table = read(tmp_path)
    assert table.names == ("f", "a", "b", "c", "d", "e")
    assert table.splits == ("test", "train", "train", "train", "train", "val")
    assert table.lines is not None
    assert table.lines.tolist() == [1, 2, 3, 4, 5, 6]
    assert (table.root, table.origin) == (data, tmp_path)
    assert "splits by the names of the shards" in table.notes


@pytest.mark.parametrize(
    "names", [["train-00000-of-00002", "train-00001-of-00002"], ["train", "x"], ["0000", "0001"]]
)
def test_one_split_or_unknown_names_are_no_splits(tmp_path: Path, names: list[str]) -> None:
    """The rows are one table."""
    for name in names:
        write(tmp_path / f"{name}.parquet", {"image": ["a"], "labels": [["cat"]]})
    assert read(tmp_path).splits is None


def test_a_split_column_goes_before_the_names_of_shards(tmp_path: Path) -> None:
    """A column is a decision of the user; a name may be an accident."""
    for name in ("train", "test"):
        columns = {"image": ["a", "b"], "labels": ["x", "y"], "split": ["train", "val"]}
        write(tmp_path / f"{name}.parquet", columns)
    assert read(tmp_path).splits == ("train", "val") * 2


@pytest.mark.parametrize(
    ("columns", "features"),
    [
        ({"image": ["b"], "labels": [["cat"]]}, None),
        ({"image": ["b"], "labels": [[0]], "more": [1]}, {"labels": [PETS]}),
        ({"image": ["b"], "labels": [[0]]}, {"labels": [{**PETS, "names": ["sun", "cat"]}]}),
    ],
)
def test_shards_that_differ_are_refused(tmp_path: Path, columns: Any, features: Any) -> None:
    """Types, columns, or the meaning of a number may differ."""
    write(tmp_path / "1.parquet", {"image": ["a"], "labels": [[0]]}, {"labels": [PETS]})
    write(tmp_path / "2.parquet", columns, features)
    message = refusal(tmp_path)
    assert f"{tmp_path / '2.parquet'} and {tmp_path / '1.parquet'} differ in" in message


# ---- pictures in the cells ------------------------------------------------------------------


def test_bytes_are_unpacked_under_their_own_names(tmp_path: Path, cache: Path) -> None:
    """Safe and unique paths are kept; others are named by shard, row and content."""
    paths = [
        "a.jpg",
        "b/c.png",
        "same",
        "SAME",
        "../x",
        "/etc/x",
        None,
        "c\\d",
        "b",
        "t-9.x",
        "e\0",
        "f?.jpg",
        "con.jpg",
        "g./h.jpg",
    ]
    contents = [drawn("JPEG", colour) for colour in range(len(paths))]
    columns = {"image": pictures(*zip(contents, paths, strict=True)), "labels": [["cat"]] * 14}
    table = read(write(tmp_path / "t.parquet", columns))
    others = [f"0000/t-{row}.jpg" for row in range(3, 15)]
    assert table.names == ("0000/a.jpg", "0000/b/c.png", *others)
    assert table.root.parent == cache
    assert [(table.root / name).read_bytes() for name in table.names] == contents
    assert os.listdir(cache) == [table.root.name]


def test_endings_follow_the_content(tmp_path: Path) -> None:
    """A column of bytes has no names."""
    formats = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    contents = [*map(drawn, formats), drawn("TIFF"), b"what?"]
    path = write(tmp_path / "t.parquet", {"image": contents, "labels": [["cat"]] * 7})
    endings = [Path(name).suffix for name in read(path, images=tmp_path).names]
    assert endings == [*(f".{x}" for x in formats.values()), ".tif", ".bin"]


def test_a_row_without_a_picture_is_a_fault(tmp_path: Path) -> None:
    """Null, null bytes and no bytes; the rows after it keep their pictures."""
    cells = pictures((b"1", "1.jpg"), None, (None, "2.jpg"), (b"", "3.jpg"), (b"4", "4.jpg"))
    table = read(write(tmp_path / "t.parquet", {"image": cells, "labels": ["cat"] * 5}))
    assert list(map(str, table.faults)) == [f"line {row}: no image named" for row in (2, 3, 4)]
    assert table.names[-1] == "0000/4.jpg"
    assert (table.root / table.names[-1]).read_bytes() == b"4"


def test_a_struct_of_paths_alone_is_read_as_paths(tmp_path: Path) -> None:
    """So datasets stores pictures that it has not embedded."""
    cells = pictures(None, (None, "2.jpg"), (None, "b/3.jpg"))
    table = read(write(tmp_path / "t.parquet", {"image": cells, "labels": ["cat"] * 3}))
    assert (table.root, table.names) == (tmp_path, ("", "2.jpg", "b/3.jpg"))


def test_a_second_read_does_not_unpack_again(tmp_path: Path) -> None:
    """The unpacked pictures are used until the file's size or time changes."""
    path = write(tmp_path / "t.parquet", {"image": [b"1", b"2", b"3"], "labels": ["cat"] * 3})
    stamp, first = path.stat(), read(path)
    spoil(path, row_group=1)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = read(path)
    assert (second.root, second.names) == (first.root, first.names)
    os.utime(path, ns=(0, 0))
    assert refusal(path).startswith(f"cannot read {path}: ")


def test_a_thousand_pictures_a_folder(tmp_path: Path) -> None:
    """Folders of a million files are slow to list."""
    columns = {"image": [b"1"] * 1001, "labels": [["cat"]] * 1001}
    table = read(write(tmp_path / "t.parquet", columns))
    assert table.names[999:] == ("0000/t-1000.bin", "0001/t-1001.bin")
    assert len(os.listdir(table.root / "0000")) == 1000


def test_a_read_that_fails_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    """A shard with a broken page is found while pictures are being unpacked."""
    columns = {"image": [drawn("BMP", row) * 20 for row in range(64)], "labels": ["cat"] * 64}
    path = write(tmp_path / "t.parquet", columns)
    spoil(path, row_group=20)
    assert refusal(path).startswith(f"cannot read {path}: ")
    assert os.listdir(cache) == []


def test_pictures_that_do_not_fit_on_any_disk_are_refused(tmp_path: Path, cache: Path) -> None:
    """Here by a hole between the data and the footer, larger than what is free."""
    path = write(tmp_path / "t.parquet", {"image": [b"1"], "labels": [["cat"]]})
    content = path.read_bytes()
    footer = 8 + struct.unpack("<I", content[-8:-4])[0]
    with path.open("r+b") as file:
        file.seek(shutil.disk_usage(tmp_path).free + 2**30)
        file.write(content[-footer:])
    message = refusal(path)
    assert f"the pictures in {tmp_path} need " in message
    assert message.endswith("GB free; MLFINETUNE_CACHE names another folder")


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"scan": ["a"], "labels": ["x"]}, "no image column among 'scan' ('a'), 'labels' ('x')"),
        ({"image": [1], "labels": ["x"]}, "image column 'image' is of type int64; wanted paths"),
        ({"image": ["a"], "labels": [{"x": 1}]}, "column 'labels' is of type struct<x: int64>"),
        ({"image": ["a"], "labels": [[[1]]]}, "column 'labels' is of type list<"),
        ({"image": [b"a"]}, "no labels found"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(tmp_path: Path, columns: Any, text: str) -> None:
    """The message says what was wanted."""
    assert text in refusal(write(tmp_path / "t.parquet", columns))


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"image,labels\n", b"PAR1" + b"x" * 99 + b"PAR1"]
)
def test_files_that_are_no_parquet_are_refused(tmp_path: Path, content: bytes) -> None:
    """The message has the file's name."""
    (tmp_path / "t.parquet").write_bytes(content)
    assert refusal(tmp_path / "t.parquet").startswith(f"cannot read {tmp_path / 't.parquet'}: ")


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    """The message says what was wanted."""
    assert refusal(tmp_path).endswith("wanted *.parquet in this folder, or in data/ below it")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    """pyarrow cannot be imported in the process of this test."""
    (tmp_path / "pyarrow.py").write_text("raise ImportError('not installed')")
    code = (
        "from pathlib import Path; from mlfinetune.data.table import SourceOptions\n"
        "from mlfinetune.data.readers.parquet import read_parquet\n"
        "read_parquet(Path('t.parquet'), SourceOptions())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    expected = "DataError: reading Parquet needs pyarrow: pip install 'mlfinetune[parquet]'"
    assert done.stderr.splitlines()[-1].endswith(expected)


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["t.parquet"], True),
        (["data/train-00000-of-00001.parquet", "README.md"], True),
        (["t.PARQUET", "images/a.jpg"], True),
        (["t.parquet", "cat/a.jpg", "dog/b.jpg"], False),
        ([".t.parquet", "more/t.parquet"], False),
        ([], False),
    ],
)
def test_a_folder_of_shards_is_parquet(tmp_path: Path, names: list[str], answer: bool) -> None:
    """Class folders with some other table beside them are not."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_parquet(tmp_path) is answer
