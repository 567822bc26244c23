"""A table's description shows how it was read."""

from pathlib import Path
from typing import Any

from mlfinetune.data.read import read_table
from mlfinetune.data.sample import describe_rows
from mlfinetune.data.table import SourceOptions


def describe(folder: Path, text: str, **options: Any) -> list[str]:
    """Return the lines of a table with this text."""
    (folder / "t.csv").write_text(text)
    return describe_rows(read_table(folder / "t.csv", SourceOptions(**options)))


def test_the_row_with_most_labels_is_shown(tmp_path: Path) -> None:
    """With its line, and some of the labels that it lacks."""
    rows = "image,labels\na.jpg,\nb.jpg,cat|dog\nc.jpg,fox|cow|ant|bee|elk\nd.jpg,yak|cat|owl\n"
    assert describe(tmp_path, rows) == [
        "first labels: 'cat', 'dog', 'fox', 'cow', 'ant', ...",
        "row read: line 4: 'c.jpg' -> 'fox', 'cow', 'ant', 'bee', 'elk' "
        "(not: 'cat', 'dog', 'yak', ...)",
    ]


def test_a_label_that_holds_a_delimiter_is_seen(tmp_path: Path) -> None:
    """It stands in one pair of quotes."""
    said = describe(tmp_path, 'image,labels\na.jpg,"cat, dog"\n', label_delimiter="|")
    assert said[0] == "first labels: 'cat, dog'"


def test_columns_show_unknown_labels(tmp_path: Path) -> None:
    """Beside those that are not there."""
    said = describe(tmp_path, "image,cat,dog,fox\na.jpg,,,\nb.jpg,1,0,\nc.jpg,,,1\n")
    assert said[1] == "row read: line 3: 'b.jpg' -> 'cat' (not: 'dog'; unknown: 'fox')"


def test_rows_without_any_label(tmp_path: Path) -> None:
    """No row, or no label, is nothing to show."""
    assert describe(tmp_path, "image,labels\na.jpg,\n") == []
    assert describe(tmp_path, "image,cat\na.jpg,0\n") == [
        "first labels: 'cat'",
        "row read: line 2: 'a.jpg' -> no label (not: 'cat')",
    ]
