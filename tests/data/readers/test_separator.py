"""What separates the columns of a text table: Excel's first line, or a vote of the rows."""

import io
from pathlib import Path
from typing import Any

import pytest
from costs import compare_costs

from mlfinetune.data.readers.csv_table import copy_with_column, read_csv
from mlfinetune.data.readers.separator import find_excel_line
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def read(folder: Path, content: str, name: str = "t.csv", **options: Any) -> Table:
    """Return the Table of a file with this content."""
    path = folder / name
    path.write_bytes(content.encode())
    return read_csv(path, SourceOptions(**options))


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    names = table.labels.names
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets, strict=True)
    }


# ---- Excel's first line -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("line", "sign"),
    [
        ("sep=;", ";"),
        ("SEP=;", ";"),
        ('"sep=;"', ";"),
        ("\ufeffsep=,", ","),
        ("Sep=\t", "\t"),
        ("sep=\\t", "\t"),
        ("sep=|", "|"),
        ("sep=^", "^"),
        ("sep=;;", ";"),
        ('\ufeff"Sep=;"', ";"),
    ],
)
def test_excels_first_line_is_no_header(tmp_path: Path, line: str, sign: str, end: str) -> None:
    """It names the sign; lines keep their numbers in the file."""
    rows = [line, f"image{sign}labels", f"a.jpg{sign}cat", f"b.jpg{sign}dog", "c.jpg"]
    table = read(tmp_path, end.join(rows))
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": {"dog"}}
    assert [str(fault) for fault in table.faults] == ["line 5: 1 cells where the header has 2"]
    assert table.find_place(0) == "line 3"


def test_the_line_of_a_wrong_quote_counts_excels_line(tmp_path: Path) -> None:
    """The message names the line as an editor shows it."""
    with pytest.raises(DataError, match=r"t\.csv, line 4: "):
        read(tmp_path, 'sep=;\nimage;labels\na.jpg;cat\nb.jpg;"dog"x\n')


# ---- the vote of the rows ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("image;labels;Note, all\na.jpg;cat;x\nb.jpg;dog;y\n", {"cat", "dog"}),
        ("image;labels, and, more\na.jpg;cat, dog, x\nb.jpg;dog\n", {"cat", "dog", "x"}),
        ("image,labels\na.jpg,cat;dog\nb.jpg,dog;cat\n", {"cat", "dog"}),
        ("image\tlabels; all\na.jpg\tcat;dog\nb.jpg\tdog\n", {"cat", "dog"}),
        ("image|labels\na.jpg|cat,dog\nb.jpg|dog\n", {"cat", "dog"}),
        ("image|labels, all\na.jpg|cat\nb.jpg|dog\n", {"cat", "dog"}),
        ('image;"labels, one, two"\n"a, b, c.jpg";cat\nb.jpg;dog\n', {"cat", "dog"}),
    ],
)
def test_the_sign_that_fits_header_and_rows_is_taken(
    tmp_path: Path, content: str, labels: set[str]
) -> None:
    """More signs in the header do not win over rows with as many cells."""
    column = {"label_column": (column,)} if (column := find_label_column(content)) else {}
    table = read(tmp_path, content, **column)
    assert set().union(*positives(table).values()) == labels
    assert table.faults == ()


def find_label_column(content: str) -> str:
    """Return the name of the column of labels, where it is not the usual one."""
    for name in ("labels, and, more", "labels; all", "labels, all", "labels, one, two"):
        if name in content:
            return name
    return ""


def test_where_rows_do_not_tell_the_pictures_do(tmp_path: Path) -> None:
    """Every line has one comma and one semicolon: `a.jpg` is a picture, `a.jpg;cat` is none."""
    content = "Datei;Tags, alle\na.jpg;cat, dog\nb.jpg;dog, fox\n"
    options = {"image_column": "Datei", "label_column": ("Tags, alle",)}
    table = read(tmp_path, content, **options)
    assert positives(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog", "fox"}}


def test_a_tsv_without_tabs_is_read_by_its_rows(tmp_path: Path) -> None:
    """Somebody renamed a CSV; the note says so."""
    table = read(tmp_path, "image;labels\na.jpg;cat\n", "t.tsv")
    assert positives(table) == {"a.jpg": {"cat"}}
    assert table.notes[0] == "columns separated by ';'"


@pytest.mark.parametrize(("name", "sign"), [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", ",")])
def test_the_usual_sign_is_not_said(tmp_path: Path, name: str, sign: str) -> None:
    """A note is for what may surprise."""
    table = read(tmp_path, f"image{sign}labels\na.jpg{sign}cat\n", name)
    assert not any("separated by ','" in note or "columns sep" in note for note in table.notes)


def test_a_quote_across_lines_does_not_mislead(tmp_path: Path) -> None:
    """Its lines have fewer signs; most lines decide."""
    rows = "".join(f"{i}.jpg,cat\n" for i in range(9))
    table = read(tmp_path, f'image,labels\n{rows}"x\n;;y.jpg","dog\nfox"\n')
    assert table.names[-1] == "x\n;;y.jpg"


# ---- the copy with one more column ------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("sep=;\nimage;labels\na.jpg;Käfer, gro\nb.jpg;x\n", "image,labels,split"),
        ("image|labels\na.jpg|Käfer\nb.jpg|x\n", "image,labels,split"),
        ("a.jpg;Käfer\nb.jpg;x\n", "image,labels,split"),
        ("image,labels;all\na.jpg,Käfer\nb.jpg,x\n", '"image","labels;all","split"'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_the_copy_is_plain_csv(tmp_path: Path, content: str, header: str, encoding: str) -> None:
    """UTF-8, commas, a header and no first line of Excel: it reads as the original does."""
    path, copy = tmp_path / "t.csv", tmp_path / "copy.csv"
    path.write_bytes(content.encode(encoding))
    column = ("labels;all",) if "all" in content else ("labels",)
    options = SourceOptions(label_column=column, label_delimiter="|")
    out = io.StringIO(newline="")
    copy_with_column(path, options, "split", {"a.jpg": "train", "b.jpg": "val"}.__getitem__, out)
    copy.write_text(out.getvalue(), encoding="utf-8", newline="")
    assert out.getvalue().splitlines()[0] == header
    table = read_csv(copy, options)
    assert positives(table) == positives(read_csv(path, options))
    assert table.splits == ("train", "val")


@pytest.mark.parametrize("text", ["{blanks}x", "\ufeff{tabs}x", "sep={blanks}x"])
def test_many_blanks_are_looked_at_once(text: str) -> None:
    """Blanks at the start, or behind the sign: four times as many cost not 16 times as much."""

    def find(count: int) -> None:
        find_excel_line(text.format(blanks=" " * count, tabs="\t" * count))

    assert compare_costs(lambda: find(80_000), lambda: find(20_000)) < 10
