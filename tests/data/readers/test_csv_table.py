"""CSV and TSV files become Tables: which column is what, what each cell says, what is refused."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.labels import apply_label_options
from mlfinetune.data.read import read_table
from mlfinetune.data.readers.column_names import IMAGE_COLUMNS, LABEL_COLUMNS, is_bookkeeping
from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.rows import raise_faults
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

Labels = dict[str, set[str]]


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    """Make a table with this content, byte for byte."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes, name: str = "t.csv", **options: Any) -> Table:
    """Return the Table of a file with this content."""
    given = SourceOptions(**options)
    return apply_label_options(read_csv(write(folder, content, name), given), given)


def refusal(folder: Path, content: str | bytes, name: str = "t.csv", **options: Any) -> str:
    """Return the message with which a file with this content is refused."""
    with pytest.raises(DataError) as caught:
        read(folder, content, name, **options)
    return str(caught.value)


def outcome(path: Path) -> Table | DataError:
    """Return the Table, or the error that the file is refused with."""
    try:
        return read_csv(path, SourceOptions())
    except DataError as error:
        return error


def bad_rows(folder: Path, content: str, **options: Any) -> list[str]:
    """Return the lines of the one message about bad rows; the pictures a.jpg to e.jpg exist."""
    for name in "abcde":
        (folder / f"{name}.jpg").touch()
    given = SourceOptions(**options)
    table = apply_label_options(read_table(write(folder, content), given), given)
    with pytest.raises(DataError) as caught:
        raise_faults(table, table.faults)
    return str(caught.value).splitlines()


def faults(table: Table) -> list[str]:
    """Return the faults of a table as they are printed."""
    return [str(fault) for fault in table.faults]


def places(table: Table) -> list[str]:
    """Return the place of each row."""
    return [table.find_place(row) for row in range(len(table))]


def positives(table: Table) -> Labels:
    """Return name -> the labels that hold."""
    names = table.labels.names
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets, strict=True)
    }


def states(table: Table) -> list[list[int]]:
    """Return the targets as plain lists."""
    rows: list[list[int]] = table.targets[:].tolist()
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all the examples of a generated test."""
    return tmp_path_factory.mktemp("tables")


# ---- delimited lists --------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", ["|", ";"])
def test_a_list_of_labels_is_split_at_its_delimiter(tmp_path: Path, delimiter: str) -> None:
    """The delimiter is detected, and printed."""
    table = read(tmp_path, f"image,labels\na.jpg,cat{delimiter}hot dog\nb.jpg,dog\n")
    assert positives(table) == {"a.jpg": {"cat", "hot dog"}, "b.jpg": {"dog"}}
    assert table.labels.names == ("cat", "hot dog", "dog")
    assert f"labels in column 'labels', separated by '{delimiter}'" in table.notes


def test_a_comma_inside_a_quoted_cell_separates_labels(tmp_path: Path) -> None:
    """`"cat,dog"` is one cell with two labels."""
    table = read(tmp_path, 'image,labels\na.jpg,"cat, dog"\nb.jpg,dog\n')
    assert positives(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}}
    assert table.notes == ("labels in column 'labels', separated by ','",)


def test_a_space_separates_labels_whose_words_recur(tmp_path: Path) -> None:
    """`haze primary` and `clear primary` share words with many cells, so they are lists."""
    cells = ["haze primary", "clear primary", "clear primary water", "haze water", "haze", "clear"]
    table = read(tmp_path, "image,tags\n" + "".join(f"{i}.jpg,{c}\n" for i, c in enumerate(cells)))
    assert positives(table)["2.jpg"] == {"clear", "primary", "water"}
    assert table.labels.names == ("haze", "primary", "clear", "water")
    assert "labels in column 'tags', separated by a space" in table.notes


def test_labels_of_two_words_stay_whole_where_no_word_recurs(tmp_path: Path) -> None:
    """`hot dog` and `ice cream` share no word, so they are labels."""
    table = read(tmp_path, "image,tags\na.jpg,hot dog\nb.jpg,ice cream\nc.jpg,hot dog\n")
    assert table.labels.names == ("hot dog", "ice cream")
    assert "labels in column 'tags', one per row" in table.notes


def test_a_stronger_delimiter_wins_over_a_weaker_one(tmp_path: Path) -> None:
    """| goes before ; before , before the space, wherever it first stands."""
    table = read(tmp_path, 'image,labels\na.jpg,"salt, pepper"\nb.jpg,a;b\nc.jpg,x|y z\n')
    assert table.labels.names == ("salt, pepper", "a;b", "x", "y z")


def test_the_given_delimiter_is_used(tmp_path: Path) -> None:
    """data.label_delimiter overrules what would be detected."""
    table = read(tmp_path, "image,labels\na.jpg,x|y z\nb.jpg,z\n", label_delimiter=" ")
    assert positives(table) == {"a.jpg": {"x|y", "z"}, "b.jpg": {"z"}}


def test_a_given_delimiter_may_be_several_characters(tmp_path: Path) -> None:
    """` / ` is a delimiter like any other."""
    table = read(tmp_path, "image,labels\na.jpg,x / y/z\n", label_delimiter=" / ")
    assert positives(table) == {"a.jpg": {"x", "y/z"}}


@pytest.mark.parametrize(
    "cell", ["cat|dog", " cat | dog ", "|cat||dog|", "cat|dog|cat", "cat| |dog"]
)
def test_space_around_labels_and_empty_parts_do_not_count(tmp_path: Path, cell: str) -> None:
    """Labels are stripped; an empty part is no label; a repeat says nothing new."""
    table = read(tmp_path, f"image,labels\n  a.jpg ,{cell}\n")
    assert positives(table) == {"a.jpg": {"cat", "dog"}}


@pytest.mark.parametrize(
    "word", ["NA", "nan", "NaN", "None", "null", "N/A", "-1", "0", "1", "True"]
)
def test_words_that_other_readers_take_for_missing_are_labels(tmp_path: Path, word: str) -> None:
    """Every word in a list is a label, as it is written."""
    table = read(tmp_path, f"image,labels\na.jpg,{word}|cat\nb.jpg,{word}\n")
    assert positives(table) == {"a.jpg": {word, "cat"}, "b.jpg": {word}}


def test_case_matters_in_labels(tmp_path: Path) -> None:
    """Dog and dog are two labels."""
    assert read(tmp_path, "image,labels\na.jpg,Dog|dog\n").labels.names == ("Dog", "dog")


def test_the_unknown_column_masks_labels(tmp_path: Path) -> None:
    """A label that a row lists under `unknown` is neither present nor absent."""
    content = "image,labels,Unknown\na.jpg,cat|dog,bird\nb.jpg,,cat|fox\nc.jpg,dog,\n"
    table = read(tmp_path, content)
    assert table.labels.names == ("bird", "cat", "dog", "fox")
    assert states(table) == [[-1, 1, 1, 0], [0, -1, 0, -1], [0, 0, 1, 0]]
    assert not any("not used" in note for note in table.notes)


def test_a_delimiter_that_only_the_unknown_column_holds_is_seen(tmp_path: Path) -> None:
    """Both columns are lists of labels: what separates one separates the other."""
    table = read(tmp_path, "image,labels,unknown\na.jpg,cat,dog|fox\nb.jpg,dog,\nc.jpg,fox,\n")
    assert table.labels.names == ("dog", "fox", "cat")
    assert states(table)[0] == [-1, -1, 1]


def test_a_label_both_present_and_unknown_is_a_fault(tmp_path: Path) -> None:
    """A row cannot say both of one label."""
    table = read(tmp_path, "image,labels,unknown\na.jpg,cat|dog,dog|bird\n")
    assert faults(table) == ["line 2: 'dog' is in both labels and unknown"]


# ---- rows without a label ---------------------------------------------------------------

EMPTY = "image,labels\na.jpg,cat|dog\nb.jpg,\nc.jpg, | \nd.jpg,dog\n"


def test_empty_cells_mean_absent_by_default_and_are_counted(tmp_path: Path) -> None:
    """The default turns no label into all absent, and says how often."""
    table = read(tmp_path, EMPTY)
    assert states(table) == [[1, 1], [0, 0], [0, 0], [0, 1]]
    assert table.unnamed.tolist() == [0, 0, 0, 0]
    assert any("2 images with no label: all labels absent" in note for note in table.notes)


def test_empty_cells_can_mean_unknown(tmp_path: Path) -> None:
    """Under `unknown` such a row is unknown for every label, even one that the table lacks."""
    table = read(tmp_path, EMPTY, empty_labels="unknown")
    assert states(table) == [[1, 1], [-1, -1], [-1, -1], [0, 1]]
    assert table.unnamed.tolist() == [0, -1, -1, 0]
    assert "2 images with no label: all labels unknown" in table.notes


def test_empty_cells_can_be_refused(tmp_path: Path) -> None:
    """Under `error` each such row is a fault at its line."""
    first, *lines = bad_rows(tmp_path, EMPTY, empty_labels="error")
    assert f"{tmp_path / 't.csv'}: 2 bad rows" in first
    assert lines == [
        "  line 3: no label (data.empty_labels is error)",
        "  line 4: no label (data.empty_labels is error)",
    ]


def test_one_row_without_a_label_is_counted_in_the_singular(tmp_path: Path) -> None:
    """The note says `1 image`, not `1 images`."""
    table = read(tmp_path, "image,labels\na.jpg,\nb.jpg,cat\n")
    assert "1 image with no label: all labels absent" in table.notes


# ---- one column per label ---------------------------------------------------------------


def test_label_columns_hold_present_absent_and_unknown(tmp_path: Path) -> None:
    """1, 0, and blank, -1 or NaN for unknown, which is counted."""
    table = read(tmp_path, "image,cat,dog\na,1,0\nb,,-1\nc,NaN,1\nd,0,nan\n")
    assert table.labels.names == ("cat", "dog")
    assert states(table) == [[1, 0], [-1, -1], [-1, 1], [0, -1]]
    assert "one column per label, 2 labels" in table.notes
    assert "4 of 8 targets are unknown: 1 blank, 1 'NaN', 1 '-1', 1 'nan'" in table.notes
    assert table.faults == ()


@pytest.mark.parametrize(
    ("cell", "state"),
    [("1.0", 1), ("TRUE", 1), (" 1 ", 1), ("0.0", 0), ("False", 0), ("-1.0", -1), ("NA", -1)],
)
def test_states_as_spreadsheets_and_pandas_write_them(
    tmp_path: Path, cell: str, state: int
) -> None:
    """A column of floats or of truth values says the same."""
    table = read(tmp_path, f"image,cat\na,1\nb,{cell}\n")
    assert (states(table)[1], table.faults) == ([state], ())


def test_rows_with_label_columns_say_nothing_of_other_labels(tmp_path: Path) -> None:
    """A label without a column is unknown, not absent."""
    assert read(tmp_path, "image,cat\na,1\nb,0\n").unnamed.tolist() == [-1, -1]


def test_columns_that_hold_no_states_are_named_as_unused(tmp_path: Path) -> None:
    """A column of text or of blanks is no label, and the user is told."""
    table = read(tmp_path, "image,author,cat,note\na,Ann,1,\nb,Bob,0,\n")
    assert table.labels.names == ("cat",)
    assert "columns not used: 'author' ('Ann', 'Bob'), 'note' (blank)" in table.notes


def test_a_column_of_numbers_is_no_label_for_a_0_or_1_in_it(tmp_path: Path) -> None:
    """A width or an id among label columns: states must be half of what it holds."""
    table = read(tmp_path, "image,cat,id\na,1,0\nb,0,1\nc,1,2\nd,,3\ne,0,4\n")
    assert table.labels.names == ("cat",)
    assert "columns not used: 'id' ('0', '1', '2', ...)" in table.notes


def test_columns_beside_a_list_are_named_as_unused(tmp_path: Path) -> None:
    """The note names what the list does not need."""
    table = read(tmp_path, "id,image,labels,width\n7,a.jpg,cat,640\n")
    assert "columns not used: 'id' ('7'), 'width' ('640')" in table.notes


def test_given_label_columns_are_the_labels(tmp_path: Path) -> None:
    """data.label_columns overrules a column named labels, and the order is the one given."""
    content = "image,labels,cat,dog,fox\na,x|y,1,0,1\n"
    table = read(tmp_path, content, label_columns=("dog", "cat"))
    assert table.labels.names == ("dog", "cat")
    assert states(table) == [[0, 1]]
    assert "columns not used: 'labels' ('x|y'), 'fox' ('1')" in table.notes


def test_a_bad_state_is_a_fault_at_its_line(tmp_path: Path) -> None:
    """A typo in a column of states is not a reason to drop the column."""
    table = read(tmp_path, "image,cat\na,1\nb,2\nc,perhaps\nd,0\n")
    wanted = (
        "wanted 1, 0, or blank or -1 for unknown; if it is no label, name the labels in "
        "data.label_columns"
    )
    assert faults(table) == [f"line 3: cat is '2'; {wanted}", f"line 4: cat is 'perhaps'; {wanted}"]


# ---- which column is what ---------------------------------------------------------------


@pytest.mark.parametrize("column", [*IMAGE_COLUMNS, "Image", "FILE_NAME", " Path "])
def test_the_image_column_is_known_by_its_usual_names(tmp_path: Path, column: str) -> None:
    """Case, spaces around the name and its position do not matter."""
    table = read(tmp_path, f"labels,{column}\ncat,a.jpg\n")
    assert table.names == ("a.jpg",)
    assert table.notes == ("labels in column 'labels', one per row",)


@pytest.mark.parametrize("column", [*LABEL_COLUMNS, "Labels", "TAGS", " Classes "])
def test_the_label_column_is_known_by_its_usual_names(tmp_path: Path, column: str) -> None:
    """Case and spaces around the name do not matter."""
    assert positives(read(tmp_path, f"image,{column}\na,x|y\n")) == {"a": {"x", "y"}}


def test_given_columns_overrule_the_usual_names(tmp_path: Path) -> None:
    """data.image_column and data.label_column are taken where both kinds stand."""
    content = "image,labels,photo,species\na.jpg,x,b.jpg,y\n"
    table = read(tmp_path, content, image_column="photo", label_column=("species",))
    assert positives(table) == {"b.jpg": {"y"}}
    assert "columns not used: 'image' ('a.jpg'), 'labels' ('x')" in table.notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_column": "Photo"}, "no column 'Photo' (data.image_column); did you mean 'photo'?"),
        ({"label_column": ("specis",)}, "'specis' (data.label_column); did you mean 'species'?"),
        ({"label_columns": ("species", "dgo")}, "'dgo' (data.label_columns); did you mean 'dog'?"),
        ({"image_column": "qqqq"}, "(data.image_column); null finds it by itself; columns: "),
    ],
)
def test_a_missing_given_column_is_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """The message names the key, the nearest column, and all columns."""
    message = refusal(tmp_path, "photo,species,dog,image\na,x,1,b\n", **options)
    assert words in message
    assert message.endswith("columns: 'photo', 'species', 'dog', 'image'")


def test_no_image_column_is_refused(tmp_path: Path) -> None:
    """The message says what stands there, what is wanted, and which key names it."""
    message = refusal(tmp_path, "object,labels\na,x\n")
    assert (
        "no image column among 'object' ('a'), 'labels' ('x'); wanted image, image_path," in message
    )
    assert message.endswith("or name it with data.image_column")


def test_no_label_column_is_refused(tmp_path: Path) -> None:
    """A table with neither a list nor states has no labels."""
    message = refusal(tmp_path, "image,species\na,cat\n")
    assert "no labels found; wanted a column named labels, label, tags, classes" in message
    assert "data.label_columns" in message
    assert message.endswith("if 'species' holds labels: data.label_column: \"species\"")


@pytest.mark.parametrize(
    ("words", "split"),
    [(("train", "Training"), "train"), (("val", "VALID", "validation", "dev"), "val")],
)
def test_the_split_column_speaks_in_usual_words(
    tmp_path: Path, words: Sequence[str], split: str
) -> None:
    """train, val and test have the names that data sets use, in any case."""
    rows = "".join(f"{word}.jpg,x,{word}\n" for word in (*words, "test"))
    table = read(tmp_path, f"image,labels,Split\n{rows}")
    assert table.splits == (split,) * len(words) + ("test",)


def test_is_valid_splits_into_train_and_val(tmp_path: Path) -> None:
    """fastai's column; it is no label, even among columns of states."""
    table = read(tmp_path, "image,is_valid,cat\na,True,1\nb,False,0\nc,1,0\nd,0,1\n")
    assert table.splits == ("val", "train", "val", "train")
    assert table.labels.names == ("cat",)


def test_a_split_that_is_none_is_a_fault(tmp_path: Path) -> None:
    """The message says the word and those that are known."""
    table = read(tmp_path, "image,labels,split\na,x,train\nb,x,\nc,x,traim\n")
    assert [fault.split(";")[0] for fault in faults(table)] == [
        "line 3: split is ''",
        "line 4: split is 'traim'",
    ]
    assert "wanted train, val or test" in faults(table)[0]


def test_no_split_column_no_splits(tmp_path: Path) -> None:
    """None says that the table has no opinion."""
    assert read(tmp_path, "image,labels\na,x\n").splits is None


def test_names_are_relative_to_the_table_or_to_the_given_folder(tmp_path: Path) -> None:
    """data.images moves the root; names stay as they are written."""
    content = "image,labels\nsub/a.jpg,x\n"
    assert read(tmp_path, content).root == tmp_path
    table = read(tmp_path, content, images=tmp_path / "pictures")
    assert (table.root, table.names) == (tmp_path / "pictures", ("sub/a.jpg",))


# ---- bytes and cells --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, end: str, mark: str) -> None:
    """Excel's CRLF and BOM, and the line end of old Macs."""
    table = read(tmp_path, mark + end.join(["image,labels", "a.jpg,cat|dog", "b.jpg,dog", ""]))
    assert positives(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}}
    assert places(table) == ["line 2", "line 3"]


def test_a_last_line_without_an_end_is_read(tmp_path: Path) -> None:
    """Editors leave the last line end out."""
    assert read(tmp_path, "image,labels\na.jpg,x\nb.jpg,y").names == ("a.jpg", "b.jpg")


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    """Lines below keep their numbers."""
    table = read(tmp_path, "image,labels\n\na.jpg,x\n , \n\nb.jpg,y\n\n")
    assert table.names == ("a.jpg", "b.jpg")
    assert places(table) == ["line 3", "line 6"]
    assert table.faults == ()


def test_quoted_cells_hold_commas_newlines_and_quotes(tmp_path: Path) -> None:
    """A row that runs over lines is placed at the line it ends on."""
    content = 'image,labels\n"a, b.jpg","x ""1""|y\nz"\nc.jpg,w\n'
    table = read(tmp_path, content)
    assert positives(table) == {"a, b.jpg": {'x "1"', "y\nz"}, "c.jpg": {"w"}}
    assert places(table) == ["line 3", "line 4"]


def test_a_quote_that_never_ends_is_refused(tmp_path: Path) -> None:
    """Otherwise all rows below would silently become one cell."""
    message = refusal(tmp_path, 'image,labels\na.jpg,cat\nb.jpg,"dog\nc.jpg,cat\nd.jpg,fox\n')
    assert f"{tmp_path / 't.csv'}, line " in message


def test_tabs_separate_the_cells_of_a_tsv(tmp_path: Path) -> None:
    """The ending decides, and not the header; commas then separate labels."""
    content = "image\tlabels\t1,2;3,4;5\na.jpg\tcat,dog\t\nb,1.jpg\tcat\t\n"
    table = read(tmp_path, content, "t.TSV")
    assert positives(table) == {"a.jpg": {"cat", "dog"}, "b,1.jpg": {"cat"}}


@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_what_separates_cells(tmp_path: Path, name: str, delimiter: str) -> None:
    """Excel writes semicolons where the comma is the decimal point; a note names the sign."""
    rows = (("image", "labels", "note"), ("a.jpg", "cat|dog", ""), ("b.jpg", "dog", "x"))
    table = read(tmp_path, "\n".join(delimiter.join(row) for row in rows), name)
    assert positives(table) == {"a.jpg": {"cat", "dog"}, "b.jpg": {"dog"}}
    notes = {",": [], ";": ["columns separated by ';'"], "\t": ["columns separated by a tab"]}
    assert [note for note in table.notes if "columns separated" in note] == notes[delimiter]


def test_what_stands_inside_quotes_does_not_separate_cells(tmp_path: Path) -> None:
    """A label with semicolons in its quoted name leaves the file a comma-separated one."""
    table = read(tmp_path, 'image,"cars; vans; trucks"\na.jpg,1\nb.jpg,0\n')
    assert table.labels.names == ("cars; vans; trucks",)


def test_letters_of_all_languages_stay_as_they_are(tmp_path: Path) -> None:
    """Names and labels are UTF-8, not touched."""
    table = read(tmp_path, "image,labels\nÅsa/日本.jpg,größe|猫|🐈\n")
    assert positives(table) == {"Åsa/日本.jpg": {"größe", "猫", "🐈"}}


# ---- files that are refused -------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\ufeff", "\n\n", " , \n\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    """The message says what is wanted."""
    message = refusal(tmp_path, content)
    assert message == f"{tmp_path / 't.csv'} is empty; wanted a header line and one row per image"


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    """A list column is known by name; columns of states are not, without a state."""
    table = read(tmp_path, "image,labels\n")
    assert (table.names, table.labels.names, table.targets.shape) == ((), (), (0, 0))
    assert "no labels found" in refusal(tmp_path, "image,cat,dog\n")


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    """It is unclear which of the columns is meant."""
    message = refusal(tmp_path, "image,cat,dog, cat ,dog\na,1,0,1,0\n")
    assert message.endswith("the header names 'cat', 'dog' more than once")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message has its name and the reason."""
    with pytest.raises(DataError, match=r"cannot read .*none\.csv: No such file or directory"):
        read_csv(tmp_path / "none.csv", SourceOptions())


def test_a_cell_beyond_the_limit_is_refused_with_its_line(tmp_path: Path) -> None:
    """A cell of more than 128 KiB is a lost quote, not a label."""
    message = refusal(tmp_path, f"image,labels\na.jpg,x\nb.jpg,{'x' * 200_000}\n")
    assert f"{tmp_path / 't.csv'}, line 3: field larger than field limit" in message


def test_nul_bytes_are_refused_with_their_line(tmp_path: Path) -> None:
    """No file has such a name."""
    first, line = bad_rows(tmp_path, "image,labels\na.jpg,x\nb\0.jpg,x\n")
    assert "1 missing or unreadable picture" in first
    assert line == r"  line 3: 'b\x00.jpg': not a file name (it holds a NUL character)"


# ---- bad rows ---------------------------------------------------------------------------


def test_all_bad_rows_stand_in_one_message(tmp_path: Path) -> None:
    """Each with its line number; the good ones between them are not named."""
    content = (
        "image,cat,split\na.jpg,1,train\nb.jpg,maybe,train\n,1,train\nc.jpg,1\n"
        "d.jpg,0,nowhere\ne.jpg,0,val,more\nnone.jpg,1,val\n"
    )
    first, *lines = bad_rows(tmp_path, content)
    assert first == f"{tmp_path / 't.csv'}: 6 bad rows, pictures under {tmp_path}"
    assert [line.split(";")[0] for line in lines] == [
        "  line 3: cat is 'maybe'",
        "  line 4: no image named",
        "  line 5: 2 cells where the header has 3",
        "  line 6: split is 'nowhere'",
        "  line 7: 4 cells where the header has 3",
        "  line 8: 'none.jpg': no such file",
    ]


def test_ten_bad_rows_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    """Rows are sorted by line number, and not as text."""
    rows = "".join(f"{i}.jpg\n" for i in range(25))
    first, *lines = bad_rows(tmp_path, f"image,labels\n{rows}")
    assert "25 bad rows" in first
    numbers = [line.split(":")[0].strip() for line in lines[:-1]]
    assert numbers == [f"line {number}" for number in range(2, 12)]
    assert lines[-1].strip() == "... and 15 more"


# ---- generated tables -------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = TEXT.filter(lambda text: text == text.strip())
LISTED = NAMES.filter(lambda text: "|" not in text and text[0] not in "[{(<\"'.0123456789")
# csv.writer leaves ; and tabs bare in a header; what separates its cells then cannot be told
COLUMNS = NAMES.filter(lambda text: not set(";\t") & set(text))
RESERVED = {*IMAGE_COLUMNS, *LABEL_COLUMNS, "split", "is_valid"}
ROUND_TRIP = settings(max_examples=150, deadline=None)


def written(rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as csv.writer puts them down."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()


@ROUND_TRIP
@given(st.dictionaries(NAMES, st.sets(LISTED, max_size=4), min_size=1, max_size=5))
def test_written_lists_are_read_back(folder: Path, truth: Labels) -> None:
    """Names and labels may hold any text."""
    rows = [["image", "labels"], *([name, "|".join(labels)] for name, labels in truth.items())]
    table = read(folder, written(rows), label_delimiter="|")
    assert positives(table) == truth
    assert set(table.labels.names) == set().union(*truth.values())


@ROUND_TRIP
@given(
    st.lists(COLUMNS, min_size=1, max_size=4, unique=True).filter(
        lambda labels: (
            not RESERVED & {label.casefold() for label in labels}
            and not any(map(is_bookkeeping, labels))
        )
    ),
    st.dictionaries(NAMES, st.integers(0, 15), min_size=1, max_size=5),
)
def test_written_label_columns_are_read_back(
    folder: Path, labels: list[str], bits: dict[str, int]
) -> None:
    """Each bit of a number is the state of a label, in one column per label."""
    state = {name: [bit >> at & 1 for at in range(len(labels))] for name, bit in bits.items()}
    rows = [["image", *labels], *([name, *map(str, row)] for name, row in state.items())]
    table = read(folder, written(rows))
    assert table.labels.names == tuple(labels)
    assert dict(zip(table.names, states(table), strict=True)) == state
    assert table.faults == ()


PIECES = st.sampled_from([*'"\n\r,;|\t\0 1', "image", "labels", "cat", "split", "-1", "\ufeff"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=30).map("".join)))
def test_any_text_is_a_table_or_a_data_error(folder: Path, text: str) -> None:
    """Nothing else comes out, whatever is read, and the error names the file."""
    read_or_refused = outcome(write(folder, text.encode("utf-8", "surrogatepass")))
    if isinstance(read_or_refused, Table):
        n, labels = read_or_refused.targets.shape
        assert n == len(read_or_refused.names) == len(places(read_or_refused))
        assert labels == len(read_or_refused.labels)
    else:
        assert str(folder / "t.csv") in str(read_or_refused)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_a_data_error(folder: Path, content: bytes) -> None:
    """The rule holds for bytes that are not text, too."""
    path = write(folder, b"image,labels\n" + content)
    assert str(path) in str(outcome(path))
