"""The sign between labels is a vote of all cells; what speaks against it is said."""

from pathlib import Path

import pytest

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.delimiters import detect_delimiter
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


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
        (["قط، كلب", "كلب"], "،"),
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


@pytest.mark.parametrize(
    ("sign", "line"),
    [
        ("<br>", '"<br>"'),
        ("\t", '"\\U00000009"'),
        ("\u3000", '"\\U00003000"'),
        ("\\n", '"\\\\n"'),
        ("\\", '"\\\\"'),
    ],
)
def test_the_line_of_a_rare_sign_is_yaml(tmp_path: Path, sign: str, line: str) -> None:
    """A backslash in quotes would begin an escape, and a tab cannot be seen."""
    notes = read(tmp_path, f"cat{sign}dog", f"dog{sign}fox", "cat", "fox").notes
    assert any(note.endswith(f"data.label_delimiter: {line}") for note in notes)


@pytest.mark.parametrize("sign", ["_", ":", "-"])
def test_a_sign_of_many_labels_is_said_where_all_parts_are_labels(
    tmp_path: Path, sign: str
) -> None:
    """`cat_dog` beside `cat` and `dog` is two; `hot_dog` and `hot_cup` are one each."""
    notes = read(tmp_path, f"cat{sign}dog", "cat", "dog", f"dog{sign}fox", "fox").notes
    assert any(note.endswith(f'data.label_delimiter: "{sign}"') for note in notes)
    notes = read(tmp_path, f"hot{sign}dog", f"hot{sign}cup", "hot", f"big{sign}dog").notes
    assert not any("label_delimiter" in note for note in notes)


def refusal(folder: Path, *cells: str) -> str:
    """Return the message with which a column of these cells is refused."""
    with pytest.raises(DataError) as caught:
        read(folder, *(cell.replace('"', '""') for cell in cells))
    return str(caught.value)


def test_labels_in_quotes_are_refused(tmp_path: Path) -> None:
    """They would keep their quotes, and `"black cat, old"` would be two labels."""
    for cells in (
        ['"black cat, old","dog"', '"dog"', '"fox"'],
        ["'cat', 'dog'", "'dog'", "'fox'"],
        ["“cat, dog”", "“dog”"],
        ["`cat`, `dog`", "`dog`"],
    ):
        message = refusal(tmp_path, *cells)
        assert "the cells of 'tags' hold labels in quotes" in message
        assert "data.label_delimiter" in message
    path = tmp_path / "t.csv"
    table = read_csv(path, SourceOptions(label_delimiter=","))
    assert table.labels.names == ("`cat`", "`dog`")
    assert read(tmp_path, "the '90s'", "'60s'", "rock").labels.names == (
        "the '90s'",
        "'60s'",
        "rock",
    )


def test_a_semicolon_of_html_does_not_separate(tmp_path: Path) -> None:
    """`R&amp;B;rock` would have labels `R&amp` and `B`."""
    assert "HTML" in refusal(tmp_path, "R&amp;B;rock", "rock;pop", "pop")
    assert "HTML" in refusal(tmp_path, "cat&#39;s;rock", "rock;pop", "pop")
    table = read(tmp_path, "R&amp;B|rock", "rock|pop", "pop")
    assert "R&amp;B" in table.labels.names
    assert read(tmp_path, "R&B;rock", "rock;pop").labels.names == ("R&B", "rock", "pop")


def test_sentences_are_no_labels(tmp_path: Path) -> None:
    """Captions would become a label for each word, or for each picture."""
    endings = "sofa", "grass", "road", "sea", "roof", "bed", "bus", "tree"
    for stop in ("", "."):
        cells = [
            f"a {what} is on the {place}{stop}" for place in endings for what in ("cat", "dog")
        ]
        assert "hold sentences ('a cat is on the sofa" in refusal(tmp_path, *cells)
    cells = [f"eine Katze liegt auf {place}" for place in endings]
    assert "hold sentences ('eine Katze" in refusal(tmp_path, *cells)
    names = ["a cat on the sofa at night", "a dog in the park at noon"]
    assert read(tmp_path, *names * 3).labels.names == tuple(names)
    tags = [f"solo {a} {b} smile hat sky" for a in ("1girl", "dog") for b in "defghijk"]
    assert "solo" in read(tmp_path, *tags).labels.names


def test_labels_with_yes_and_no_have_values(tmp_path: Path) -> None:
    """`cat: no` would be a label, and most pictures would have it."""
    cells = ["cat: yes, dog: no", "cat: no, dog: yes", "cat: no, dog: no"]
    assert "has a value, such as 'cat: yes'" in refusal(tmp_path, *cells)
    for yes, no in (("ja", "nein"), ("sí", "no"), ("True", "False")):
        cells = [f"cat={yes}, dog={no}", f"cat={no}, dog={yes}"]
        assert "has a value" in refusal(tmp_path, *cells)
    assert "breed: pug" in read(tmp_path, "breed: pug, size: s", "breed: cur").labels.names


def test_one_label_in_round_brackets_is_a_list_as_others(tmp_path: Path) -> None:
    """`(cat)` beside `(cat, dog)`; `(cat)` beside `cat` is a label of its own."""
    table = read(tmp_path, "(cat, dog)", "(dog)", "(cat)", "")
    assert table.labels.names == ("cat", "dog")
    assert read(tmp_path, "(cat)", "dog", "(dog)").labels.names == ("(cat)", "dog", "(dog)")


def test_labels_of_merged_cells_are_said(tmp_path: Path) -> None:
    """The label of ten rows stands in the first one; the others would be negatives."""
    merged = ["cat", "", "", "", "dog", "", "", "fox", "", ""]
    assert any("each of 3 labels stands above" in note for note in read(tmp_path, *merged).notes)
    for cells in (["", *merged], ["cat", "dog", "", "", "", "", ""], ["cat", "dog"]):
        assert not any("stands above" in note for note in read(tmp_path, *cells).notes)


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
