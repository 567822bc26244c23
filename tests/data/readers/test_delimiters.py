"""The sign between labels is a vote of all cells; what speaks against it is said."""

from pathlib import Path

import pytest

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.delimiters import detect_delimiter
from mlfinetune.data.table import SourceOptions, Table


def read(folder: Path, *cells: str) -> Table:
    """Return the Table of a column of these cells."""
    rows = "".join(f'{number}.jpg,"{cell}"\n' for number, cell in enumerate(cells))
    path = folder / "t.csv"
    path.write_text(f"image,tags\n{rows}")
    return read_csv(path, SourceOptions())


@pytest.mark.parametrize(
    ("cells", "delimiter"),
    [
        (["cat, dog", "dog, rock; roll", "cat"], ","),
        (["cat; dog", "dog; rock, roll", "cat"], ";"),
        (["cat, dog", "dog|fox", "cat, fox", "fox, dog", "cat, dog", "cat, fox, dog"], ","),
        (["tench, Tinca tinca|cat", "tench, Tinca tinca", "cat", "dog|cat"], "|"),
        (["cat，dog", "dog，fox", "cat"], "，"),
        (["cat、dog", "dog"], "、"),
        (["cat\ndog", "dog"], "\n"),
        (["haze primary", "clear primary", "haze clear", "haze"], " "),
        ([f"{sky} {ground}" for sky in "abcd" for ground in "efg"] + ["a, e"], " "),
        (["hot dog", "ice cream"], None),
        (["hot dog, ice cream", "hot dog", "ice cream", "big dog"], ","),
        (["cat", ""], None),
        (["hot dog|", "a,b|"], "|"),
        (
            [f"{a} {b} ;)" for a in "abcd" for b in "efg"]
            + [f"{a} {b}" for a in "ab" for b in "cd"],
            " ",
        ),
        (["0 2", "1", "3 4"], " "),
        (["cat / dog", "dog / fox / cat", "cat", "fox", "dog"], " / "),
        (["cat & dog", "dog & fox", "cat", "fox", "dog", "fox & cat"], " & "),
        (["cat \u2764 dog", "dog \u2764 fox", "cat", "fox", "dog", "cat fox"], " "),
        (["cat - dog", "dog fox", "cat fox", "cat", "dog", "fox"], " "),
        ([], None),
        (["a;b", "c,d"], ";"),
    ],
)
def test_the_sign_that_joins_labels_which_occur_apart(
    cells: list[str], delimiter: str | None
) -> None:
    """One stray sign in one cell changes nothing."""
    assert detect_delimiter(cells) == delimiter


@pytest.mark.parametrize("stray", ["dog, rock; roll", "dog, rock|roll", "dog,\nrock, roll"])
def test_a_stray_sign_is_listed_with_its_line(tmp_path: Path, stray: str) -> None:
    """The label that holds it is as the cell has it."""
    table = read(tmp_path, "cat, dog", "dog, cat, rock", stray, "cat")
    assert {"cat", "dog"} <= set(table.labels.names)
    (note,) = [note for note in table.notes if "too, read as part of a label" in note]
    assert note.startswith("1 cell holds ")
    assert "line " in note


def test_parts_that_never_occur_apart_are_named(tmp_path: Path) -> None:
    """`tench, Tinca tinca` is one label in two parts; the note says what to set."""
    cells = ["tench, Tinca tinca", "cat, dog", "cat, tench, Tinca tinca", "dog"]
    (note,) = [note for note in read(tmp_path, *cells).notes if "never occur apart" in note]
    assert "'tench' and 'Tinca tinca'" in note
    assert 'data.label_delimiter: "|"' in note


def test_labels_that_occur_apart_are_not_named(tmp_path: Path) -> None:
    """A usual table has no such note, and nothing dissents."""
    table = read(tmp_path, "cat, dog", "dog, fox", "fox, cat", "cat")
    assert table.notes == ("labels in column 'tags', separated by ','",)


@pytest.mark.parametrize("sign", ["/", "&", "::"])
def test_another_sign_whose_parts_recur_is_said(tmp_path: Path, sign: str) -> None:
    """`cat/dog` may be two labels; the note has the line to paste."""
    table = read(tmp_path, f"cat{sign}dog", f"dog{sign}fox", "cat", "fox")
    assert any(f'data.label_delimiter: "{sign}"' in note for note in table.notes)
    assert not any("label_delimiter" in note for note in read(tmp_path, "AC/DC", "Queen").notes)


def test_a_given_delimiter_that_no_cell_holds_is_said(tmp_path: Path) -> None:
    """A typing error would make one label of each cell."""
    read(tmp_path, "cat|dog", "dog|fox", "cat")
    notes = read_csv(tmp_path / "t.csv", SourceOptions(label_delimiter=";")).notes
    assert any("no cell holds ';' (data.label_delimiter); '|' seems" in note for note in notes)


def test_a_sign_between_spaces_is_no_label(tmp_path: Path) -> None:
    """Otherwise most pictures of several labels would have a label `/`."""
    table = read(tmp_path, "cat / dog", "dog / fox / cat", "cat", "fox", "dog")
    assert table.labels.names == ("cat", "dog", "fox")
    assert table.targets[1].tolist() == [1, 1, 1]
    assert "labels in column 'tags', separated by ' / '" in table.notes
