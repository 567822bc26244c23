"""Findings and balances as text and as JSON."""

import json
from typing import Any

import pytest

from mlfinetune.cli.check import format_json, format_text
from mlfinetune.cli.split import format_balance
from mlfinetune.data.checks import Balance, LabelShare
from mlfinetune.data.findings import Finding

SIZES = {"least": 8, "median": 40, "most": 999}
PICTURES = {
    "count": 12,
    "width": SIZES,
    "height": SIZES,
    "formats": {"JPEG": 9, "PNG": 3},
    "modes": {"RGB": 12},
    "turned_by_exif": 2,
}


def facts(labels: int = 2, **more: Any) -> dict[str, Any]:
    """Return the facts of check about a small data set."""
    positives = {"positives": 5, "negatives": 1, "unknown": 0}
    side = {"images": 6, "without_label": 1, "labels_an_image": 1.5}
    return {
        "notes": ["train: read as a CSV or TSV table"],
        "sample": [],
        "pictures": PICTURES,
        "labels": {
            f"label {at}": {"train": positives | {"positives": at}, "val": positives}
            for at in range(labels)
        },
        "sides": {"train": side, "val": side},
        "together": [{"labels": ["label 0", "label 1"], "images": 3, "share": 0.25}],
        **more,
    }


def finding(severity: str, items: int) -> Finding:
    """Return a finding with that many items."""
    return Finding(
        severity, f"some_{severity}", "some text", tuple(f"item {n}" for n in range(items))
    )


@pytest.mark.parametrize(
    ("errors", "warnings", "verdict"),
    [
        (0, 0, "clean"),
        (1, 0, "not clean: 1 kind of error"),
        (0, 2, "no errors, 2 kinds of warnings"),
        (2, 1, "not clean: 2 kinds of errors, 1 kind of warning"),
    ],
)
def test_the_verdict(errors: int, warnings: int, verdict: str) -> None:
    """The last line counts the kinds; JSON is clean where no error is."""
    found = [finding("error", 1)] * errors + [finding("warning", 1)] * warnings
    assert format_text(found, facts()).splitlines()[-1] == verdict
    assert json.loads(format_json(found, facts()))["clean"] == (errors == 0)


def test_text_shows_ten_items_and_json_all() -> None:
    """What is not shown is counted."""
    text = format_text([finding("error", 12)], facts())
    assert "error: some text\n  item 0\n" in text
    assert "  item 9\n  ... and 2 more\n" in text
    (found,) = json.loads(format_json([finding("error", 12)], facts()))["findings"]
    assert found["items"] == [f"item {n}" for n in range(12)]
    assert (found["severity"], found["kind"], found["message"]) == (
        "error",
        "some_error",
        "some text",
    )


def test_a_finding_without_items() -> None:
    """One line, and one blank one after it."""
    assert "error: some text\n\nnot clean: 1 kind" in format_text([finding("error", 0)], facts())


def test_a_line_to_paste_is_never_cut() -> None:
    """It stands under its finding, whole; in JSON it is a key."""
    line = f"data.ignore_labels: [{', '.join('x' * 400)}]"
    odd = Finding("warning", "odd", "some text", ("y" * 400,), line)
    assert f"...\n  to mend it: {line}\n" in format_text([odd], facts())
    assert json.loads(format_json([odd], facts()))["findings"][0]["remedy"] == line


def test_a_sample_follows_the_notes() -> None:
    """A wrong guess is seen at once."""
    text = format_text([], facts(sample=["first labels: 'cat, dog'"]))
    assert "train: read as a CSV or TSV table\nfirst labels: 'cat, dog'\n\n12 readable" in text


def test_the_facts_are_in_the_text() -> None:
    """Pictures, sides, labels by falling frequency, pairs."""
    text = format_text([], facts())
    assert "12 readable pictures: 9 JPEG, 3 PNG; 12 RGB; 2 turned by EXIF" in text
    assert "width 8 to 999 px, median 40; height 8 to 999 px, median 40" in text
    assert "train: 6 images, 1.5 labels per image, 1 without a label" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("  label ")]
    assert rows[1:3] == [["label", "1", "1", "5"], ["label", "0", "0", "5"]]
    assert "  label 0 + label 1: 3 images, 25% of those with either" in text


def test_the_facts_are_in_the_json() -> None:
    """All of them, as they are."""
    content = json.loads(format_json([], facts()))
    assert content == {"clean": True, "findings": [], **facts()}


def test_data_of_which_nothing_is_left() -> None:
    """Neither pictures nor labels."""
    empty = facts(0, pictures={"count": 0}, sides={}, together=[])
    lines = format_text([finding("error", 1)], empty).splitlines()
    assert lines[2:5] == ["no readable pictures", "", "error: some text"]


def test_many_labels_are_cut_in_the_middle() -> None:
    """The ten most frequent, the ten rarest, and how many lie between."""
    rows = [line for line in format_text([], facts(50)).splitlines() if line.startswith("  label ")]
    numbers = [int(row.split()[1]) for row in rows[1:21]]
    assert numbers == [*range(49, 39, -1), *range(9, -1, -1)]
    assert "... 30 labels in between" in format_text([], facts(50))
    assert "in between" not in format_text([], facts(20))


def test_names_move_no_cursor() -> None:
    """No control character reaches the terminal; JSON escapes them."""
    odd = Finding("error", "odd", "a\x1b[2Jb", ("c\rd", "e\udcff"))
    found = facts(notes=["f\x07g"])
    found["labels"] = {"h\x1b[31m\u202ei": found["labels"]["label 0"]}
    text = format_text([odd], found)
    assert not [c for c in text if c != "\n" and not c.isprintable()]
    assert "\x1b" not in format_json([odd], found)
    format_json([odd], found).encode()


def test_long_names_keep_the_columns() -> None:
    """Wide and long labels are cut to the column."""
    found = facts()
    found["labels"] = {"\u732b" * 60: found["labels"]["label 0"]}
    (row,) = [line for line in format_text([], found).splitlines() if "\u732b\u732b" in line][:1]
    assert row.endswith(f"{0:>10} {5:>10}")
    assert len(row) + row.count("\u732b") <= 80


def balance(*rows: LabelShare) -> Balance:
    """Return the balance of 100 images, a fifth held out."""
    return Balance(("train", "val"), (80, 20), 0.2, rows)


def test_the_balance() -> None:
    """Sizes, labels by falling distance, the worst of both splits; those of no image come last."""
    rows = [LabelShare("a", 10, 0.2, 0.4), LabelShare("b", 4, 0.25, 0.0)]
    lines = format_balance(balance(*rows, LabelShare("none", 0, 0.0, 0.0))).splitlines()
    assert lines[0] == "100 images: 80 train, 20 val"
    assert [line.split()[:4] for line in lines[3:6]] == [
        ["b", "4", "25.0%", "0.0%"],
        ["a", "10", "20.0%", "40.0%"],
        ["none", "0", "0.0%", "0.0%"],
    ]
    assert lines[-1] == (
        "of all images 20.0% are held out; the worst label is 5.0% off, in a random split 20.0%"
    )


def test_a_balance_of_many_labels() -> None:
    """Twenty are shown, the others counted; no line is wider than the screen."""
    rows = [LabelShare(f"{at} " + "x" * 90, 9, at / 100, 0.2) for at in range(25)]
    lines = format_balance(balance(*rows)).splitlines()
    assert "  ... 5 labels nearer to their share" in lines
    assert len(lines) == 3 + 20 + 1 + 2
    assert all(len(line) <= 80 for line in lines[:-1])
