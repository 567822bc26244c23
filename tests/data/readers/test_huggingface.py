"""JSON lines become Tables: metadata.jsonl of a Hugging Face image folder, and any other."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.readers.column_names import IMAGE_COLUMNS, LABEL_COLUMNS
from mlfinetune.data.readers.huggingface import read_huggingface
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

GOOD = '{"file_name": "a.jpg", "labels": ["cat"]}'


def read(folder: Path, content: str | bytes, **options: Any) -> Table:
    """Return the Table of a metadata.jsonl with this content, byte for byte."""
    path = folder / "metadata.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_huggingface(path, SourceOptions(**options))


def outcome(folder: Path, content: bytes) -> Table | DataError:
    """Return the Table, or the error that the file is refused with."""
    try:
        return read(folder, content)
    except DataError as error:
        return error


def written(*rows: dict[str, Any]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    names, rows = table.labels.names, table.targets[:]
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, rows, strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("lines")


# ---- what the lines say ---------------------------------------------------------------------


def test_lists_in_the_label_column_are_labels(tmp_path: Path) -> None:
    """Whole as they stand, whatever characters they hold."""
    rows = {"file_name": "a.jpg", "labels": ["cat", "tench, Tinca"]}, {"file_name": "b/1.jpg"}
    more = {"file_name": "c.jpg", "labels": [" dog ", None, 3]}
    table = read(tmp_path, written(*rows, more, {"file_name": "d.jpg", "labels": float("nan")}))
    assert positives(table) == {
        "a.jpg": {"cat", "tench, Tinca"},
        "b/1.jpg": set(),
        "c.jpg": {"dog", "3"},
        "d.jpg": set(),
    }
    assert (table.format, table.root) == ("huggingface", tmp_path)
    assert table.lines is not None
    assert table.lines.tolist() == [1, 2, 3, 4]
    assert table.unnamed.tolist() == [0, 0, 0, 0]


def test_text_in_the_label_column_is_split_as_in_csv(tmp_path: Path) -> None:
    """The delimiter is found, and kept for the table that comes after."""
    rows = {"file_name": "a.jpg", "labels": "cat|hot dog"}, {"file_name": "b.jpg", "labels": "cat"}
    table = read(tmp_path, written(*rows))
    assert positives(table) == {"a.jpg": {"cat", "hot dog"}, "b.jpg": {"cat"}}
    assert table.delimiter == "|"


def test_one_key_a_label_is_read_as_states(tmp_path: Path) -> None:
    """Numbers and booleans; null, NaN and a key that is not there are unknown."""
    lines = '{"image": "a.jpg", "cat": 1, "dog": false}\n{"image": "b.jpg", "cat": NaN}\n'
    table = read(tmp_path, lines + '{"sun": true, "cat": 0, "dog": null, "image": "c.jpg"}\n')
    assert table.labels.names == ("cat", "dog", "sun")
    assert table.targets[:].tolist() == [[1, 0, -1], [-1, -1, -1], [0, -1, 1]]
    assert table.unnamed.tolist() == [-1, -1, -1]


def test_nested_values_of_other_keys_do_not_matter(tmp_path: Path) -> None:
    """Boxes and captions are common in such files, beside lists and beside columns of labels."""
    boxes = {"objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}, "sizes": [1, 2]}
    listed = read(tmp_path, written({"file_name": "a.jpg", "tags": ["cat"], **boxes}))
    assert positives(listed) == {"a.jpg": {"cat"}}
    assert "columns not used: 'objects' (lists), 'sizes' (lists)" in listed.notes
    columns = read(tmp_path, written({"file_name": "a.jpg", "cat": 1, **boxes}))
    assert columns.labels.names == ("cat",)


def test_split_and_group_keys_are_read(tmp_path: Path) -> None:
    """As in CSV."""
    rows = ({"file_name": f"{i}", "labels": [], "split": s, "who": i} for i, s in enumerate("ab"))
    lines = written(*rows).replace('"a"', '"train"').replace('"b"', '"validation"')
    table = read(tmp_path, lines, group_by="who")
    assert (table.splits, table.groups) == (("train", "val"), ("0", "1"))


def test_lines_keep_their_numbers_over_blank_ones(tmp_path: Path) -> None:
    """Blank lines are passed over; a byte order mark and CRLF are no part of a line."""
    table = read(tmp_path, f"\ufeff\r\n{GOOD}\r\n  \r\n{GOOD}")
    assert table.lines is not None
    assert table.lines.tolist() == [2, 4]
    assert table.faults == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str) -> None:
    """PowerShell writes UTF-16."""
    content = '{"file_name": "größe.jpg", "labels": ["Käfer"]}\r\n'.encode(encoding)
    assert positives(read(tmp_path, content)) == {"größe.jpg": {"Käfer"}}


def test_packed_lines_are_read(tmp_path: Path) -> None:
    """A .jsonl.gz is unpacked on the way; a line without end is a fault, whatever its size."""
    lines = GOOD.encode() + b"\n" + b"x" * (2**24 + 1)
    table = read(tmp_path, gzip.compress(lines, 1))
    assert positives(table) == {"a.jpg": {"cat"}}
    text = "line 2: more than 16,777,216 characters; the lines below are not read"
    assert [str(fault) for fault in table.faults] == [text]


def test_columns_can_be_named(tmp_path: Path) -> None:
    """The keys of `data` name them, as for CSV; data.images moves the root."""
    table = read(
        tmp_path,
        written({"image_file_name": "a.jpg", "what": "cat;dog", "labels": "no"}),
        image_column="image_file_name",
        label_column=("what",),
        images=tmp_path / "pictures",
    )
    assert positives(table) == {"a.jpg": {"cat", "dog"}}
    assert table.root == tmp_path / "pictures"


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{'file_name': 1}", "not JSON: Expecting property name enclosed in double quotes"),
        ('{"file_name": "b.jpg"', "not JSON: Expecting ',' delimiter"),
        (GOOD + GOOD, "not JSON: Extra data"),
        ('["b.jpg", "cat"]', "not a JSON object; wanted {...}"),
        ('{"file_name": "b.jpg", "x": 1, "x": 2}', "the key 'x' is repeated"),
        ('{"file_name": "b\\ud800.jpg"}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        ('{"file_name": ["b.jpg"]}', "file_name is a list or an object; wanted the name of"),
        (f'{{"file_name": "b.jpg", "n": {"9" * 5000}}}', "Exceeds the limit"),
        ('{"labels": ["cat"]}', "no image named"),
        (
            '{"file_name": "b.jpg", "labels": {"a": {"b": 1}}}',
            "labels holds a nested value; wanted",
        ),
        ('{"file_name": "b.jpg", "labels": [["cat"]]}', "labels holds a nested value; wanted"),
    ],
)
def test_a_bad_line_is_a_fault_with_its_number(tmp_path: Path, line: str, text: str) -> None:
    """The other lines are read."""
    table = read(tmp_path, f"{GOOD}\n{line}\n{GOOD}\n")
    (fault,) = table.faults
    assert str(fault).startswith(f"line 2: {text}")
    assert [name for name in table.names if name == "a.jpg"] == ["a.jpg", "a.jpg"]
    assert table.labels.names == ("cat",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "wanted one JSON object per line, each with an image; the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"[\n{}\n]", "each with an image; line 1: not JSON: Expecting value"),
        (b'{"file_name": "gr\xf6\xdfe.jpg"}', "not UTF-8 text (byte 0xf6); save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "looks like UTF-16 without its byte order mark; save it as"),
        (GOOD.encode("utf-16") + b"\0", "not UTF-16 text"),
        (b'{"text": "a caption"}', "no image column among 'text'"),
        (b'{"file_name": "a.jpg"}', "no labels found"),
        (
            b'{"image": "a", "tags": [0, 1, 0]}\n' * 2,
            "all cells of 'tags' are lists of 3 zeros and",
        ),
    ],
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    """As a whole, by name."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(tmp_path / "metadata.jsonl") in str(caught.value)
    assert text in str(caught.value)


def test_a_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    """The message says what was wanted."""
    with pytest.raises(DataError, match=r"wanted metadata\.jsonl or metadata\.csv in this folder"):
        read_huggingface(tmp_path, SourceOptions(format="huggingface"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message has its name and the reason."""
    with pytest.raises(DataError, match=r"cannot read .*x\.jsonl: No such file or directory"):
        read_huggingface(tmp_path / "x.jsonl", SourceOptions())


# ---- generated files ------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = TEXT.filter(lambda text: text == text.strip())
RESERVED = {*IMAGE_COLUMNS, *LABEL_COLUMNS, "split", "is_valid", "unknown"}


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(NAMES, st.sets(NAMES, max_size=4), min_size=1, max_size=5),
    st.dictionaries(NAMES.filter(lambda key: key.casefold() not in RESERVED), st.integers()),
    st.booleans(),
)
def test_written_lists_are_read_back(
    folder: Path, truth: dict[str, set[str]], more: dict[str, int], ascii: bool
) -> None:
    """Names, labels and other keys may hold any text."""
    rows = ({"file_name": name, "labels": sorted(x), **more} for name, x in truth.items())
    table = read(folder, "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows))
    assert positives(table) == truth
    assert table.faults == ()


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["file_name", "labels", "split", "unknown", "cat", "x"])
PIECES = st.sampled_from([*'{}[]",:\\ \n\r0', "NaN", '"file_name"', '"labels"', "\\ud800", "\0"])


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(PIECES, max_size=30).map(lambda parts: "".join(parts).encode()),
        st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=4).map(
            lambda rows: written({"file_name": "a", "cat": 1}, *rows).encode()
        ),
    )
)
def test_any_bytes_are_a_table_or_a_data_error(folder: Path, content: bytes) -> None:
    """Nothing else comes out, and the error names the file."""
    table = outcome(folder, content)
    if isinstance(table, Table):
        assert table.targets.shape == (len(table.names), len(table.labels))
    else:
        assert str(folder / "metadata.jsonl") in str(table)


OBJECTS = {
    '[{"name": "cat"}, {"name": "hot dog"}]': {"cat", "hot dog"},
    '[{"label": "cat", "box": [1, 2, 3, 4]}, {"label": "dog"}]': {"cat", "dog"},
    '[{"choices": ["cat", "dog"]}]': {"cat", "dog"},
}


@pytest.mark.parametrize("value", OBJECTS)
def test_labels_may_be_a_list_of_objects(tmp_path: Path, value: str) -> None:
    """As in a cell of CSV."""
    table = read(tmp_path, f'{{"file_name": "a.jpg", "labels": {value}}}\n')
    assert table.faults == ()
    assert positives(table) == {"a.jpg": OBJECTS[value]}


@pytest.mark.parametrize("value", ['[["cat"]]', '[{"a": {"b": 1}}]', '[{"name": [["cat"]]}]'])
def test_labels_that_are_nested_deeper_are_refused(tmp_path: Path, value: str) -> None:
    """It is not known what they mean."""
    table = outcome(tmp_path, f'{{"file_name": "a.jpg", "labels": {value}}}\n'.encode())
    assert isinstance(table, DataError) or len(table.faults) == 1
