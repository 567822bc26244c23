"""Tables without a header: read where the columns are sure, else refused with what to write."""

from pathlib import Path

import pytest

from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.header import lacks_header, make_header
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def read(folder: Path, content: str, name: str = "t.csv") -> Table:
    """Return the Table of a file with this content."""
    path = folder / name
    path.write_text(content)
    return read_csv(path, SourceOptions())


def names(*lines: str) -> list[str]:
    """Return the names that the columns of a table without header get."""
    rows = [line.split(",") for line in lines]
    assert lacks_header(rows, SourceOptions())
    return make_header(Path("t.csv"), rows)


def refusal(folder: Path, content: str) -> str:
    """Return the message with which a file with this content is refused."""
    with pytest.raises(DataError) as caught:
        read(folder, content)
    return str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
def test_pictures_and_labels_need_no_header(tmp_path: Path, name: str) -> None:
    """The first line is a row; the note says how the columns are read."""
    table = read(tmp_path, "a.jpg,cat|dog\nsub/b.PNG,dog\nc.jpg,\n", name)
    assert (table.names, table.labels.names) == (("a.jpg", "sub/b.PNG", "c.jpg"), ("cat", "dog"))
    assert table.targets[:].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert table.find_place(0) == "line 1"
    note = "no header: the first line already names a picture; read as image, labels"
    assert table.notes[0] == note


@pytest.mark.parametrize(
    ("lines", "header"),
    [
        (["a.jpg,cat", "b.jpg,dog"], ["image", "labels"]),
        (["cat,a.jpg", "dog,b.jpg"], ["labels", "image"]),
        (["a.jpg,17", "b.jpg,3"], ["image", "labels"]),
        (["https://x.org/a.jpg?w=1,cat", "https://x.org/b.jpg,dog"], ["image", "labels"]),
        (["a.jpg,cat,dog", "b.jpg,fox,"], ["image", "label1", "label2"]),
        (["a.jpg,cat,train", "b.jpg,dog,Val"], ["image", "labels", "split"]),
        (["train,a.jpg,cat,x", "test,b.jpg,dog,y"], ["split", "image", "label1", "label2"]),
    ],
)
def test_columns_get_their_names(lines: list[str], header: list[str]) -> None:
    """The column of pictures may be any; words of splits are no labels."""
    assert names(*lines) == header


def test_one_row_alone_is_a_row(tmp_path: Path) -> None:
    """A table of one line that names a picture."""
    assert read(tmp_path, "a.jpg,cat\n").names == ("a.jpg",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a.jpg,1,0\nb.jpg,0,1\n", "column 2 holds numbers ('1')"),
        ("a.jpg,1\nb.jpg,0\n", "column 2 holds numbers ('1')"),
        ("a.jpg,0.93\nb.jpg,0.1\n", "column 2 holds numbers ('0.93')"),
        ("a.jpg,cat,1\nb.jpg,dog,0\n", "column 3 holds numbers ('1')"),
        ("0,a.jpg,cat\n1,b.jpg,dog\n", "column 1 holds numbers ('0')"),
        ("a.jpg,cat\nb.jpg,cat,dog\n", "rows differ in their number of cells"),
        ("a.jpg,a.png,cat\nb.jpg,b.png,dog\n", "column 2 names pictures too ('a.png')"),
        ("a.jpg,train\nb.jpg,test\n", "column 2 holds names of splits ('train')"),
        ("a.jpg,cat|dog,x\nb.jpg,dog,y\n", "column 2 holds lists"),
        ("a.jpg\nb.jpg\n", "no column is for labels"),
        ("a.jpg cat\nb.jpg hot dog\n", "spaces separate its cells: write commas or tabs"),
        ("a.jpg 0 1\nb.jpg 1 0\n", "spaces separate its cells: write commas or tabs"),
        ("".join(f"{i}.jpg,p{i},cat\n" for i in range(30)), "column 2 holds a different text in"),
    ],
)
def test_what_is_not_sure_is_refused(tmp_path: Path, content: str, why: str) -> None:
    """The message shows the line, says why, and which header to write."""
    message = refusal(tmp_path, content)
    first = content.splitlines()[0]
    start = f"{tmp_path / 't.csv'}: no header: the first line is already a row ('{first}'), and "
    assert message.startswith(start + why)
    assert "Write a line above it with a name for each column: image for the pict" in message


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("image,a.jpg,b.jpg\n1.jpg,1,0\n2.jpg,0,1\n", ("a.jpg", "b.jpg")),
        ("a.jpg,filename,b.jpg\n1,x.jpg,0\n0,y.jpg,1\n", ("a.jpg", "b.jpg")),
    ],
)
def test_labels_that_look_like_files_are_a_header(
    tmp_path: Path, content: str, labels: tuple[str, ...]
) -> None:
    """No picture is below them, or a usual name is beside them."""
    table = read(tmp_path, content)
    assert (table.labels.names, len(table)) == (labels, 2)
    assert not any("no header" in note for note in table.notes)


def test_a_header_with_spaces_is_no_row(tmp_path: Path) -> None:
    """Its rows are, but it is not."""
    with pytest.raises(DataError, match=r"no image column among 'image labels'"):
        read(tmp_path, "image labels\na.jpg cat\n")


def test_columns_that_the_config_names_are_a_header() -> None:
    """A name of `data.image_column` in the first line settles it."""
    rows = [["a.jpg", "art"], ["1.jpg", "cat"]]
    assert lacks_header(rows, SourceOptions())
    assert not lacks_header(rows, SourceOptions(image_column="a.jpg"))


def test_names_of_rows_without_a_column_name_are_passed_over(tmp_path: Path) -> None:
    """R's write.table has one cell more in each row than in the header."""
    table = read(tmp_path, "image,labels\n1,a.jpg,cat\n2,b.jpg,dog\n")
    assert table.names == ("a.jpg", "b.jpg")
    assert table.labels.names == ("cat", "dog")
    assert any("one cell more than the header" in note for note in table.notes)


def test_pictures_are_no_names_of_rows(tmp_path: Path) -> None:
    """A cell too many after the labels stays a fault of each row."""
    table = read(tmp_path, "image,labels\na.jpg,cat,dog\nb.jpg,dog,fox\n")
    for line, fault in zip((2, 3), map(str, table.faults), strict=True):
        assert fault.startswith(f"line {line}: 3 cells where the header has 2;")


@pytest.mark.parametrize("end", [",", ",,", ", "])
def test_separators_at_the_end_of_a_line_are_no_cells(tmp_path: Path, end: str) -> None:
    """In some rows or in all."""
    for last in ("", end):
        table = read(tmp_path, f"image,labels\na.jpg,cat{end}\nb.jpg,dog{last}\n")
        assert (table.labels.names, table.faults) == (("cat", "dog"), ())


def test_a_space_after_the_separator_is_no_part_of_a_quoted_cell(tmp_path: Path) -> None:
    """People write tables by hand."""
    table = read(tmp_path, '"image", "labels"\na.jpg, "cat, dog"\nb.jpg, "dog"\n')
    assert table.labels.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("first", "words"), [('"Datei;Tags"', "in quotes as a whole"), ("# my tags", "is a comment")]
)
def test_a_first_line_that_is_no_header_says_what_it_is(
    tmp_path: Path, first: str, words: str
) -> None:
    """A spreadsheet may quote whole lines; a program may begin with a comment."""
    assert words in refusal(tmp_path, f'{first}\n"a.jpg;cat"\n"b.jpg;dog"\n')


@pytest.mark.parametrize(
    "above", ["Pictures of 2024,,", "# by Kim\n# do not edit", "# exported, by Kim", "a;b,c\n,,"]
)
def test_the_message_names_a_header_below_a_title(tmp_path: Path, above: str) -> None:
    """As spreadsheets have titles; what to do is said."""
    message = refusal(tmp_path, f"{above}\nFile,Tags,Note\na.jpg,cat,\nb.jpg,dog,\n")
    assert "the names of the columns ('File', 'Tags', 'Note') stand below the first line" in message
    assert message.endswith("remove the lines above them")


def test_a_label_called_photo_is_no_header(tmp_path: Path) -> None:
    """The column that is called so has no pictures below it."""
    table = read(tmp_path, "Aufnahme,tags\nx.jpg,photo\ny.jpg,drawing\nz.jpg,photo\n")
    assert table.labels.names == ("photo", "drawing")
