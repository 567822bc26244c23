"""JSON files of pictures and labels become Tables; what is not sure is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers import json_table
from mlfinetune.data.readers.json_table import read_json
from mlfinetune.data.rows import join_repeats
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

ROWS = [{"image": "a.jpg", "labels": ["cat"]}, {"image": "b.jpg", "labels": ["dog", "cat"]}]


def read(folder: Path, content: Any, **options: Any) -> Table:
    """Return the Table of a file with this content: bytes, text, or a value to write as JSON."""
    path = folder / "t.json"
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_json(path, SourceOptions(**options))


def refusal(folder: Path, content: Any) -> str:
    """Return the message with which a file is refused, without its name."""
    with pytest.raises(DataError) as caught:
        read(folder, content)
    assert str(caught.value).startswith(str(folder / "t.json"))
    return str(caught.value).removeprefix(str(folder / "t.json"))


def find_outcome(folder: Path, content: Any) -> Table | DataError:
    """Return the Table, or the error that the file is refused with."""
    try:
        return read(folder, content)
    except DataError as error:
        return error


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    names = table.labels.names
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets, strict=True)
    }


def faults(table: Table) -> list[str]:
    """Return the faults of a table as they are printed."""
    return [str(fault) for fault in table.faults]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("json")


# ---- what is read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        {"data": ROWS},
        {"version": 1, "info": {"by": "me"}, "pictures": ROWS},
        {"images": ROWS, "licenses": [{"id": 1}]},
        {"a.jpg": ["cat"], "b.jpg": ["dog", "cat"]},
        {"a.jpg": "cat", "b.jpg": "dog|cat"},
        {"a.jpg": "cat", "b.jpg": ["dog", "cat"]},
        {"a.jpg": {"labels": ["cat"]}, "b.jpg": {"labels": ["dog", "cat"]}},
        {"a.jpg": {"tags": "cat", "id": 7}, "b.jpg": {"tags": "dog|cat", "id": 8}},
        {"a.jpg": {"dog": 0, "cat": 1}, "b.jpg": {"dog": 1, "cat": True}},
        {"a.jpg": {"image": "x", "labels": ["cat"]}, "b.jpg": {"labels": ["dog", "cat"]}},
    ],
)
def test_every_shape_gives_the_same_labels(tmp_path: Path, content: Any) -> None:
    """A list of rows, a list with a name, and an object of pictures."""
    table = read(tmp_path, content)
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": {"dog", "cat"}}
    assert (table.format, table.root, table.faults) == ("json", tmp_path, ())


def test_columns_are_those_of_tables(tmp_path: Path) -> None:
    """Splits, groups and named columns, as in CSV."""
    rows = [{"photo": f"{i}.jpg", "what": ["x"], "split": s, "who": i} for i, s in enumerate("tv")]
    content = json.dumps(rows).replace('"t"', '"train"').replace('"v"', '"val"')
    options = {"image_column": "photo", "label_column": ("what",), "group_by": "who"}
    table = read(tmp_path, content, **options)
    assert (table.splits, table.groups) == (("train", "val"), ("0", "1"))


def test_a_picture_without_labels_is_a_row(tmp_path: Path) -> None:
    """null and an empty list name none."""
    table = read(tmp_path, {"a.jpg": ["cat"], "b.jpg": None, "c.jpg": []})
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": set(), "c.jpg": set()}


def test_urls_are_pictures(tmp_path: Path) -> None:
    """With a query, too."""
    table = read(tmp_path, {"https://x.org/a.jpg?w=9": ["cat"], "https://x.org/b.png": []})
    assert table.names == ("https://x.org/a.jpg?w=9", "https://x.org/b.png")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_and_gzip(tmp_path: Path, encoding: str) -> None:
    """As for every text."""
    content = json.dumps({"größe.jpg": ["Käfer"]}, ensure_ascii=False).encode(encoding)
    for data in (content, gzip.compress(content)):
        assert positives(read(tmp_path, data)) == {"größe.jpg": {"Käfer"}}


def test_json_lines_of_that_ending_are_read(tmp_path: Path) -> None:
    """Many tools name JSON lines .json; places are lines then."""
    table = read(tmp_path, "".join(json.dumps(row) + "\n" for row in ROWS) + "{\n")
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": {"dog", "cat"}}
    assert table.notes[0] == "JSON lines: one object per line"
    assert faults(table)[0].startswith("line 3: not JSON")


# ---- bad entries ------------------------------------------------------------------------


def test_bad_entries_are_faults_with_their_number(tmp_path: Path) -> None:
    """All of them at once; the good ones are read."""
    rows = f'{json.dumps(ROWS[0])}, ["b.jpg"], {{"labels": []}}, {{"image": "\\ud800.jpg"}}, '
    rows += '{"image": ["c.jpg"]}, {"image": "d.jpg", "labels": [], "labels": ["cat"]}'
    table = read(tmp_path, f"[{rows}]")
    assert faults(table) == [
        "entry 2: not a JSON object; wanted {...} with one key per column",
        "entry 3: no image named",
        "entry 4: half a character: a \\ud... escape without its other half",
        "entry 5: image is a list or an object; wanted the name of a file",
        "entry 6: the key 'labels' is repeated",
    ]
    assert table.names == ("a.jpg", "")


def test_later_faults_name_the_entry_too(tmp_path: Path) -> None:
    """A missing picture, and one picture in two splits."""
    (tmp_path / "a.jpg").touch()
    rows = [{"image": "a.jpg", "labels": "x", "split": split} for split in ("train", "val")]
    rows += [{"image": "no.jpg", "labels": "x", "split": "val"}]
    table = join_repeats(check_paths(read(tmp_path, rows), SourceOptions()))
    assert [fault.split(";")[0] for fault in sorted(faults(table))] == [
        "entry 1 and entry 2: 'a.jpg' is in different splits",
        "entry 3: 'no.jpg': no such file",
    ]


def test_a_picture_whose_value_is_of_another_kind_is_a_fault(tmp_path: Path) -> None:
    """Objects give the columns; a list beside them has none."""
    table = read(
        tmp_path, {"a.jpg": {"labels": ["cat"]}, "b.jpg": ["cat"], "c.jpg": {"labels": []}}
    )
    assert faults(table) == ["entry 2: not a JSON object; wanted {...} with one key per column"]


# ---- files that are refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ", line 1, column 1: not JSON: Expecting value"),
        ("[1, 2", ", line 1, column 6: not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, ": cannot be read as JSON: maximum recursion depth"),
        ("9" * 5000, ": cannot be read as JSON: Exceeds the limit"),
        (b'["\xe9"]', ": not UTF-8 text (byte 0xe9)"),
        ('"text"', ': wanted [{"image": "a.jpg", "labels": ["cat"]}, ...], or {"a.jpg": ["cat"]'),
        ("[]", "; the file is empty"),
        ("{}", ", found nothing"),
        (["a.jpg", "b.jpg"], "; entry 1: not a JSON object"),
        ([["a.jpg", "cat"]], "; entry 1: not a JSON object"),
        ({"name": "pets", "version": 2}, ", found 'name', 'version'"),
        (
            {"cat": ["a.jpg", "b.jpg"], "dog": ["a.jpg"]},
            "'cat', 'dog'; its pictures are the values",
        ),
        ({"a": ROWS, "b": ROWS}, "it is unclear which of the lists to read: 'a', 'b'"),
        ({"rows": ROWS, "data": ROWS}, "unclear which of the lists to read: 'rows', 'data'"),
        ({"a.jpg": 1, "b.jpg": 0}, ": each picture has 0 or 1, but of which label? wanted"),
        ({"a.jpg": True, "b.jpg": False}, ": each picture has 0 or 1, but of which label? wanted"),
        ('{"a.jpg": ["cat"], "b.jpg": [], "a.jpg": ["dog"]}', ": the key 'a.jpg' is repeated"),
        ([{"image": "a.jpg"}], "no labels found"),
        ([{"text": "a caption"}], ": no image column"),
    ],
)
def test_a_file_that_says_nothing_for_sure_is_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    """The message has its name, what is wanted, and what was found."""
    assert message in refusal(tmp_path, content)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """The format is that of a file."""
    with pytest.raises(DataError, match=r"wanted the path of a \.json file"):
        read_json(tmp_path, SourceOptions(format="json"))


def test_too_large_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is parsed as a whole; packed JSON may grow without end."""
    monkeypatch.setattr(json_table, "MAX_JSON", 10_000)
    text = refusal(tmp_path, gzip.compress(b'["' + b"x" * 1_000_000))
    assert text.startswith(": more than 10,000 characters of JSON")
    assert ".jsonl" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"dm_format_version": "1.0", "items": ROWS}, ("Datumaro", "COCO")),
        ({"infos": {}, "categories": {}, "items": ROWS}, ("Datumaro", "COCO")),
        ({"shapes": [], "imagePath": "a.jpg"}, ("labelme", "COCO")),
        ({"_via_img_metadata": {}, "_via_settings": {}}, ("VGG Image Annotator", "COCO")),
        ({"a.jpg1": {"filename": "a.jpg", "regions": [{}]}}, ("VGG Image Annotator", "COCO")),
        ([{"image": "a.jpg", "annotations": [{"label": "x"}]}], ("CreateML", "COCO")),
        ([{"image_id": 1, "category_id": 2, "bbox": []}], ("COCO", "images and categories")),
        ({"type": "FeatureCollection", "features": []}, ("GeoJSON", "no pictures")),
    ],
)
def test_other_tools_are_told_by_their_keys(
    tmp_path: Path, content: Any, words: tuple[str, ...]
) -> None:
    """One line says which export to choose."""
    message = refusal(tmp_path, content)
    assert message.startswith(": this looks like ")
    assert all(word in message for word in words)


def test_keys_of_tools_that_hold_labels_are_columns(tmp_path: Path) -> None:
    """`annotations` may be a list of labels."""
    rows = [{"image": "a.jpg", "annotations": ["cat"]}]
    assert positives(read(tmp_path, rows, label_column=("annotations",))) == {"a.jpg": {"cat"}}


# ---- generated files --------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
LABELS = TEXT.filter(lambda text: text == text.strip() and text != "...")  # a list cut short
NAMES = LABELS.filter(lambda text: "\0" not in text).map(lambda text: f"x{text}y.jpg")
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, st.sets(LABELS, max_size=4), min_size=1, max_size=5), st.booleans())
def test_written_labels_are_read_back(
    folder: Path, truth: dict[str, set[str]], as_list: bool
) -> None:
    """Names and labels may hold any text, in both shapes."""
    labels = {name: sorted(labels) for name, labels in truth.items()}
    rows = [{"image": name, "labels": labels[name]} for name in labels]
    table = read(folder, rows if as_list else labels)
    assert positives(table) == truth
    assert table.faults == ()


@settings(max_examples=300, deadline=None)
@given(st.one_of(VALUES, st.binary(max_size=40), st.text(max_size=40)))
def test_anything_is_a_table_or_a_data_error(folder: Path, content: Any) -> None:
    """Nothing else comes out, and the error names the file."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    outcome = find_outcome(folder, content)
    if isinstance(outcome, Table):
        assert outcome.targets.shape == (len(outcome.names), len(outcome.labels))
    else:
        assert str(folder / "t.json") in str(outcome)


def test_a_key_that_is_repeated_inside_a_row_is_a_fault(tmp_path: Path) -> None:
    """JSON alone would keep the last one."""
    rows = '[{"image": "a.jpg", "labels": {"cat": 1, "cat": 0}}, {"image": "b.jpg", "labels": {}}]'
    table = read(tmp_path, rows)
    assert "entry 1: the key 'cat' is repeated" in list(map(str, table.faults))
