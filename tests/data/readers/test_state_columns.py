"""Columns of states in the words of spreadsheets: what is sure is read, a doubt is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.state_words import read_state
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def read(folder: Path, content: str, **options: Any) -> Table:
    """Return the Table of a file with this content, its cells separated by semicolons."""
    path = folder / "t.csv"
    path.write_text(content)
    return read_csv(path, SourceOptions(**options))


def states(table: Table) -> list[list[int]]:
    """Return the targets, row by row."""
    return [table.targets[row].tolist() for row in range(len(table))]


PAIRS = [
    ("1,0", "0,0"),
    ("1.00", "0."),
    ("yes", "no"),
    ("YES", "No"),
    ("ja", "nein"),
    ("Ja", "Nee"),
    ("oui", "non"),
    ("sí", "no"),
    ("да", "нет"),
    ("WAHR", "FALSCH"),
    ("VRAI", "FAUX"),
    ("是", "否"),
    ("Y", "N"),
    ("t", "f"),
    ("✓", "✗"),
    ("✔\ufe0f", "✘"),
    ("x", "-"),
    ("+", "-"),
    ("pos", "neg"),
    ("100%", "0%"),
    ("○", "×"),
    (".9", ".1"),
    ("0,95", "0,05"),
    ("1", "0,0"),
]


@pytest.mark.parametrize(("present", "absent"), PAIRS)
def test_words_for_present_and_absent(tmp_path: Path, present: str, absent: str) -> None:
    """A column of one pair of words, or of numbers with a comma, is a label."""
    rows = f"a.jpg;{present};1\nb.jpg;{absent};0\nc.jpg;;1\nd.jpg;{absent};0\n"
    table = read(tmp_path, f"image;sofa;cat\n{rows}")
    assert table.labels.names == ("sofa", "cat")
    assert [row[0] for row in states(table)] == [1, 0, -1, 0]


def test_unusual_words_are_said(tmp_path: Path) -> None:
    """So that a wrong guess is seen."""
    table = read(tmp_path, "image;sofa\na.jpg;Ja\nb.jpg;Nein\n")
    assert "cells read: 'Ja' as present; 'Nein' as absent" in table.notes


@pytest.mark.parametrize("tick", ["x", "X", "✓", "y", "✔\ufe0f", "☑\ufe0f"])
def test_a_tick_and_blank(tmp_path: Path, tick: str) -> None:
    """A tick is present; blank stays unknown, as everywhere."""
    table = read(tmp_path, f"image;sofa;cat\na.jpg;{tick};\nb.jpg;;{tick}\n")
    assert states(table) == [[1, -1], [-1, 1]]


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (("ja", "no", "ja"), "'ja', 'no'"),
        (("x", "o?", "x"), "'x', 'o?'"),
        (("0.53", "0.771", "0.4"), "'0.53', '0.771', '0.4'"),
    ],
)
def test_a_column_whose_meaning_is_not_sure_is_refused(
    tmp_path: Path, values: tuple[str, ...], seen: str
) -> None:
    """The message names the column and its values; the config decides in one of two ways."""
    rows = "".join(f"{n}.jpg;{value};{n % 2}\n" for n, value in enumerate(values))
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"image;odd;cat\n{rows}")
    assert f"'odd' holds {seen}" in str(caught.value)
    assert "data.label_columns" in str(caught.value)
    table = read(tmp_path, f"image;odd;cat\n{rows}", ignore_labels=("odd",))
    assert table.labels.names == ("cat",)


def test_one_letter_among_digits_is_read(tmp_path: Path) -> None:
    """A single `n` does not make a label of 1 and 0 vanish; the note says what it was read as."""
    table = read(tmp_path, "image;cat;dog\na.jpg;1;0\nb.jpg;0;n\nc.jpg;1;1\n")
    assert table.labels.names == ("cat", "dog")
    assert "cells read: 'n' as absent" in table.notes


def test_fractions_of_a_named_column_go_by_the_threshold(tmp_path: Path) -> None:
    """The threshold is printed."""
    content = "image;odd\na.jpg;0.53\nb.jpg;0.77\nc.jpg;0.4\n"
    table = read(tmp_path, content, label_columns=("odd",))
    assert states(table) == [[1], [1], [0]]
    assert "3 fractions in 'odd': 0.5 and above is present, below is absent" in table.notes


@pytest.mark.parametrize("sign", ["?", "n.a.", "#NV", "unknown", "-1"])
def test_a_sign_for_unknown_beside_blank_cells_is_said(tmp_path: Path, sign: str) -> None:
    """Where no cell says no, blank cells may: `unknown: negative` would take the signs too."""
    rows = f"a.jpg;x;\nb.jpg;;{sign}\nc.jpg;{sign} ;x\n"
    table = read(tmp_path, "image;cat;dog\n" + rows)
    assert states(table) == [[1, -1], [-1, -1], [-1, 1]]
    note = next(note for note in table.notes if "unknown" in note)
    assert note.startswith(f"4 of 6 targets are unknown: 2 blank, 2 '{sign}'; no cell says 0: if")
    table = read(tmp_path, "image;cat;dog\n" + rows + "d.jpg;-;-\n")
    assert f"4 of 8 targets are unknown: 2 blank, 2 '{sign}'" in table.notes


def test_many_spellings_leave_unknown_unknown(tmp_path: Path) -> None:
    """Beyond the spellings that are numbered too."""
    cells = [f"0.{number:03d}" for number in range(1, 300)]
    rows = "".join(f"{n}.jpg;{cell}\n" for n, cell in enumerate([*cells, "?", ""]))
    table = read(tmp_path, f"image;cat\n{rows}", label_columns=("cat",))
    assert states(table)[-2:] == [[-1], [-1]]


@pytest.mark.parametrize("values", [("m", "f", "f"), ("a", "b", "no"), ("x", "y", "z")])
def test_letters_that_are_no_pair_are_no_states(tmp_path: Path, values: tuple[str, ...]) -> None:
    """A sex, a grade or an axis beside labels is named, and not read as present and absent."""
    rows = "".join(f"{n}.jpg;{value};{n % 2}\n" for n, value in enumerate(values))
    table = read(tmp_path, f"image;other;cat\n{rows}")
    assert table.labels.names == ("cat",)
    assert any(note.startswith("columns not used: 'other'") for note in table.notes)


def test_many_spellings_of_fractions_are_counted(tmp_path: Path) -> None:
    """More than a byte can number, in several chunks of rows, next to a plain column."""
    rows = "".join(f"{n}.jpg;{n / 10000:.4f};{n % 2}\n" for n in range(1, 9999))
    table = read(tmp_path, f"image;soft;cat\n{rows}", label_columns=("soft", "cat"))
    positive, negative, unknown = table.targets.counts()
    assert positive.tolist() == [4999, 4999]
    assert negative.tolist() == [4999, 4999]
    assert unknown.tolist() == [0, 0]


@pytest.mark.parametrize(("text", "known"), [("1,000", False), ("0,000", True), ("0,125", True)])
def test_a_thousand_is_no_state(text: str, known: bool) -> None:
    """A comma before three digits separates thousands, but after a zero."""
    assert (read_state(text) is not None) == known


@given(st.text(max_size=8))
def test_any_text_has_a_state_or_none(text: str) -> None:
    """Nothing is raised, and a state is 1, 0 or -1."""
    state = read_state(text.strip())
    assert state is None or state.state in (1, 0, -1)


@given(st.floats(0, 1, allow_nan=False))
def test_a_number_from_0_to_1_goes_by_the_threshold(value: float) -> None:
    """However Python prints it, with a point or a comma."""
    for text in (repr(value), repr(value).replace(".", ",")):
        state = read_state(text)
        assert state is not None
        assert state.state == (value >= 0.5)
