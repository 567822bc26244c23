"""Spellings of one label have one form, and different labels have different ones."""

import pytest

from mlfinetune.config import yaml12
from mlfinetune.data.spellings import choose_renames, fold_label, format_renames
from mlfinetune.text import quote_yaml


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.0", "1"),
        ("00012", "12"),
        ("+1", "1"),
        ("1e3", "1000"),
        ("1,0", "1"),
        ("-0", "0.00"),
        (".5", "0.5"),
        ("\u22121", "-1"),
        ("１２", "12"),
        ("R&amp;B", "R&B"),
        ("caf\\u00e9", "café"),
        ("cafÃ©", "cafe\u0301"),
        ("“cat”", "cat"),
        ("it’s", "it's"),
        ("x–ray", "X-ray"),
        ("cat，dog", "cat,dog"),
        ("❤\ufe0f", "❤"),
        ("cat\u2060", "ｃａｔ"),
        ("cat\x7f", "cat;"),
        ("(cat:1.2)", "cat"),
        ("((hot dog:.9))", "hot_dog"),
    ],
)
def test_spellings_have_one_form(one: str, other: str) -> None:
    """Numbers, escapes, quotes, dashes, width, and characters that nobody sees."""
    assert fold_label(one) == fold_label(other)


@pytest.mark.parametrize(
    "labels",
    [
        "C C# C++ c*",
        "1 -1 10 100 0 1.1 1.10 1,000 1-2 12 1/2",
        "cat cats (cat) #cat cat! cat?",
        "+ - _ # . '",
        "1a 01a 1e",
        f"{10**40} {10**40 + 1}",
        "1e9999 1e-9999",
    ],
)
def test_different_labels_have_different_forms(labels: str) -> None:
    """Signs may be all that tells two labels apart."""
    names = labels.split()
    assert len({fold_label(name) for name in names}) == len(names)


def test_the_most_frequent_spelling_is_kept() -> None:
    """Of equally frequent ones the plain and short; never one with space around it."""
    counts = {"1.0": 3, "1": 9, "2": 1, "2.0": 5, "3": 4, "03": 4, "cat": 1, "cat\u200b": 1}
    groups = [["1.0", "1"], ["2", "2.0"], ["3", "03"], ["cat\u200b", "cat"]]
    renames = choose_renames(groups, counts)
    assert renames == {"1.0": "1", "2": "2.0", "03": "3", "cat\u200b": "cat"}
    assert choose_renames([["dog ", "Dog"]], {"dog ": 5, "Dog": 1}) == {"dog ": "dog", "Dog": "dog"}


@pytest.mark.parametrize(
    "text",
    [
        "1.0",
        "a: b",
        "no",
        "it's \"\\",
        "\u200b\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        "\x7f\n\u0085",
    ],
)
def test_quoted_text_is_yaml(text: str) -> None:
    """It reads back as it was, and every character of it can be seen."""
    assert yaml12.parse(quote_yaml(text))[0] == text
    assert quote_yaml(text).isprintable()
    line = format_renames({text: "x"}, {})
    assert yaml12.parse(line)[0] == {"data.rename_labels": {text: "x"}}
