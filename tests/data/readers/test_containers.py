"""Lists in the text of a cell, as programs print them."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlfinetune.data.readers.containers import looks_quoted, parse_container
from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def read(folder: Path, *cells: str) -> Table:
    """Return the Table of a column of these cells, each in CSV quotes."""
    rows = "".join('{}.jpg,"{}"\n'.format(n, c.replace('"', '""')) for n, c in enumerate(cells))
    path = folder / "t.csv"
    path.write_text(f"image,labels\n{rows}")
    return read_csv(path, SourceOptions())


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (r'["caf\u00e9","5\" gun"]', ("café", '5" gun')),
        ("['it\\'s', \"b\"]", ("it's", "b")),
        ("{'dog', 'cat'}", ("cat", "dog")),
        ("('cat', 'dog')", ("cat", "dog")),
        ("('cat',)", ("cat",)),
        ('{"choices":["cat","dog"]}', ("cat", "dog")),
        ('{"labels": "cat"}', ("cat",)),
        ('{"cat": 1, "dog": 0, "fox": true}', ("cat", "fox")),
        ('[{"name": "cat"}, {"name": "dog"}]', ("cat", "dog")),
        ("['cat' 'dog']", ("cat", "dog")),
        ("['cat'\n 'hot dog']", ("cat", "hot dog")),
        ("array(['cat', 'dog'], dtype=object)", ("cat", "dog")),
        ("frozenset({'cat'})", ("cat",)),
        ('{cat,"hot dog"}', ("cat", "hot dog")),
        ("[3, 7]", ("3", "7")),
        ("[]", ()),
        ("{}", ()),
        ("set()", ()),
        ("[None]", ()),
        ("(cat, dog)", ("cat", "dog")),
        ("<cat><hot dog>", ("cat", "hot dog")),
        (r'"[\"cat\", \"dog\"]"', ("cat", "dog")),
        ("['cat', nan]", ("cat",)),
        (r"['miku_\(cosplay\)']", (r"miku_\(cosplay\)",)),
    ],
)
def test_lists_as_programs_print_them(text: str, labels: tuple[str, ...]) -> None:
    """JSON, Python, numpy, pandas, Postgres and Label Studio."""
    assert parse_container(text) == labels


MORE = [
    "['a' 'b' ...]",
    "Counter({'cat': 2})",
    "OrderedDict([('cat', 1)])",
    '[{"label": "cat", "confidence": 0.9}]',
]


@pytest.mark.parametrize(
    "text", ['["a" "b", "c"]', '[["a"]]', '["a"', "['a'}", '{"a": 0.5}', *MORE]
)
def test_what_looks_like_a_list_and_is_none_is_a_fault_at_its_line(
    tmp_path: Path, text: str
) -> None:
    """It is not taken for a label with brackets."""
    assert looks_quoted(text)
    table = read(tmp_path, '["cat"]', text)
    assert table.labels.names == ("cat",)
    (fault,) = table.faults
    assert str(fault).startswith("line 3: labels is ")
    assert "a list that cannot be read" in str(fault)


def test_lists_of_several_kinds_in_one_column(tmp_path: Path) -> None:
    """Each cell is read as what it is; a plain cell is one label, or several."""
    table = read(tmp_path, "{'cat', 'dog'}", '["cat"]', "('dog', 'fox')", "", "[]")
    assert table.labels.names == ("cat", "dog", "fox")
    assert [table.targets[row].sum() for row in range(5)] == [2, 1, 2, 0, 0]
    assert table.notes[0].startswith("labels in column 'labels', as lists")


@pytest.mark.parametrize("label", ["(cosplay)", "[sic]", "{x}", ":)", "Rosa (cv. 'Peace')"])
def test_a_label_in_brackets_stays_a_label(tmp_path: Path, label: str) -> None:
    """Brackets without quotes are a list only where most cells are lists."""
    table = read(tmp_path, f"cat, {label}", label, "cat, dog", "dog")
    assert set(table.labels.names) == {"cat", label, "dog"}


def test_bare_lists_are_lists_where_most_cells_are(tmp_path: Path) -> None:
    """`[cat, dog]` is what a spreadsheet's user types."""
    assert read(tmp_path, "[cat, dog]", "[dog]", "{cat}").labels.names == ("cat", "dog")


@pytest.mark.parametrize(
    "cells",
    [
        ("[0,1,0]", "[1,0,0]"),
        ("[0 1 0]", "[1 1 0]"),
        ("0,1,1", "1,0,0"),
        ("0 1 1", "1 0 0"),
        ("010", "110"),
        ("[1, 0]", "[0, 1]"),
        ("[True, False]", "[False, True]"),
        ("[0.3, 0.7]", "[0.9, 0.1]"),
        ("[0, 1, 0]", "", "[1, 0, 0]"),
        ("tensor([0, 1])", "tensor([1, 1])"),
    ],
)
def test_lists_of_zeros_and_ones_are_refused(tmp_path: Path, cells: tuple[str, ...]) -> None:
    """They are states without names, and not labels named 0 and 1."""
    with pytest.raises(DataError, match="one 0/1 column per label"):
        read(tmp_path, *cells)


def test_objects_of_probabilities_say_what_is_wanted(tmp_path: Path) -> None:
    """A tagger's output; where the line between yes and no lies is not for the reader to say."""
    table = read(tmp_path, "{'cat': 0.9, 'dog': 0.1}", "{'cat': 0.2, 'dog': 0.7}")
    assert len(table.faults) == 2
    assert "a number for each label; wanted 1 or 0 for each" in str(table.faults[0])


def test_labels_with_values_are_refused(tmp_path: Path) -> None:
    """`cat:0.9` is a label and how sure somebody is."""
    with pytest.raises(DataError, match="has a value"):
        read(tmp_path, "cat:0.9, dog:0.1", "dog:0.8")


def test_bare_lists_are_read_the_same_with_the_delimiter_that_was_found(tmp_path: Path) -> None:
    """A run writes the delimiter into its config, and reads the same table again."""
    cells = ["[cat, dog]", "[dog]", "[cat, fox]", "cat|dog"]
    table = read(tmp_path, *cells)
    again = read_csv(tmp_path / "t.csv", SourceOptions(label_delimiter=table.delimiter))
    assert again.labels.names == table.labels.names == ("cat", "dog", "fox")


@pytest.mark.parametrize(
    "text", ["[" + ", ".join(["cat "] * 5000) + ", a (b)]", "[" + " " * 50_000 + "(", "set(" * 3000]
)
def test_long_texts_that_are_no_lists_are_refused_at_once(text: str) -> None:
    """No pattern takes exponential time, and no depth breaks anything."""
    with pytest.raises(ValueError, match=r"list|brackets"):
        parse_container(text)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)))
def test_what_python_and_json_print_is_read_back(labels: list[str]) -> None:
    """Labels are stripped, and named once; blank ones are left out."""
    wanted = tuple(dict.fromkeys(s for label in labels if (s := label.strip())))
    for text in (json.dumps(labels), json.dumps(labels, ensure_ascii=False), repr(labels)):
        assert parse_container(text) == wanted


@given(st.text(alphabet="[]{}()'\", \\:ab01\n", max_size=16))
def test_any_text_is_a_tuple_or_a_value_error(text: str) -> None:
    """Nothing else comes out."""
    with suppress(ValueError):
        assert isinstance(parse_container(text), tuple)
