"""Columns get their roles by names and by cells: image, split, labels; bookkeeping is no label."""

from pathlib import Path
from typing import Any

import pytest

from mlfinetune.data.readers.column_names import find_split, is_bookkeeping
from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def read(folder: Path, content: str, **options: Any) -> Table:
    """Return the Table of a file with this content."""
    path = folder / "t.csv"
    path.write_text(content)
    return read_csv(path, SourceOptions(**options))


def refusal(folder: Path, content: str, **options: Any) -> str:
    """Return the message with which a file with this content is refused."""
    with pytest.raises(DataError) as caught:
        read(folder, content, **options)
    return str(caught.value)


def states(table: Table) -> list[list[int]]:
    """Return the targets, row by row."""
    return [table.targets[row].tolist() for row in range(len(table))]


# ---- bookkeeping ------------------------------------------------------------------------

BOOKKEEPING = """
fold fold_1 Fold kfold is_public isPublic Is_Verified Unnamed:_0 id image_id PatientId
index __index_level_0__ num_labels n_objects label_count width image_height size set subset
partition sum Totals Summe pred_cat cat_logit predicted_dog prediction
IsOccluded is_train is_duplicate was_cancelled iscrowd row_number Nr. Anzahl"""


@pytest.mark.parametrize("name", BOOKKEEPING.split())
def test_a_column_that_tools_write_beside_labels_is_no_label(tmp_path: Path, name: str) -> None:
    """It holds 0 and 1, is left out, and is named with its values."""
    assert is_bookkeeping(name)
    table = read(tmp_path, f"image,{name},cat\na.jpg,0,1\nb.jpg,0,0\nc.jpg,1,1\n")
    assert table.labels.names == ("cat",)
    assert any(f"'{name}'" in note for note in table.notes)


THINGS = """train flag crowd is_smiling kid index_finger gold camera n02123045 N1 plus_size
Full_Width total_eclipse banana_split skin_fold"""


@pytest.mark.parametrize("name", THINGS.split())
def test_a_thing_that_pictures_show_is_a_label(tmp_path: Path, name: str) -> None:
    """VOC has the label train; names of things are not taken for marks."""
    table = read(tmp_path, f"image,{name},bus\na.jpg,0,1\nb.jpg,1,0\n")
    assert table.labels.names == (name, "bus")


def test_a_column_left_out_can_be_named_as_a_label(tmp_path: Path) -> None:
    """data.label_columns overrules the names."""
    content = "image,fold,cat\na.jpg,0,1\nb.jpg,1,0\n"
    (note,) = [note for note in read(tmp_path, content).notes if "left out" in note]
    assert note == (
        "columns left out, since such names are no labels: 'fold' ('0', '1'); "
        "data.label_columns names the labels"
    )
    table = read(tmp_path, content, label_columns=("fold", "cat"))
    assert table.labels.names == ("fold", "cat")


def test_a_table_of_bookkeeping_alone_has_no_labels(tmp_path: Path) -> None:
    """The refusal shows what each column holds."""
    message = refusal(tmp_path, "image,fold\na.jpg,0\nb.jpg,1\n")
    assert "no labels found" in message
    assert "'fold' ('0', '1')" in message


def test_a_column_without_a_name_is_named_with_its_values(tmp_path: Path) -> None:
    """pandas and R write the index of the rows so."""
    table = read(tmp_path, ",image,cat\n0,a.jpg,1\n1,b.jpg,0\n")
    assert table.labels.names == ("cat",)
    assert "columns not used: a column without a name ('0', '1')" in table.notes


# ---- image ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [",", "Unnamed: 2,Unnamed: 3"])
def test_labels_in_columns_without_a_name_are_refused(tmp_path: Path, names: str) -> None:
    """A spreadsheet has split the cells; the first label alone would teach the wrong thing."""
    rows = "a.jpg,cat,dog,\nb.jpg,dog,,\nc.jpg,fox,cat,dog\n"
    message = refusal(tmp_path, f"image,labels,{names}\n" + rows)
    assert (
        "labels stand in 2 columns without a name too, as in 'labels' ('dog', 'cat'); name"
        in message
    )
    table = read(tmp_path, "image,tag1,tag2,tag3\n" + rows)
    assert states(table) == [[1, 1, 0], [0, 1, 0], [1, 1, 1]]


def test_row_numbers_without_a_name_are_no_labels(tmp_path: Path) -> None:
    """As pandas writes them, beside labels that are numbers."""
    table = read(tmp_path, ",image,label\n0,a.jpg,1\n1,b.jpg,0\n2,c.jpg,2\n")
    assert table.labels.names == ("1", "0", "2")


def test_labels_between_commas_without_quotes_are_told_how_to_stand(tmp_path: Path) -> None:
    """The commonest slip of a table by hand."""
    table = read(tmp_path, "image,labels\na.jpg,cat,dog\nb.jpg,dog\nc.jpg\n")
    first, second = map(str, table.faults)
    assert first.startswith("line 2: 3 cells where the header has 2; several labels need quotes")
    assert second == "line 4: 1 cells where the header has 2"


def test_a_label_named_image_is_not_the_image_column(tmp_path: Path) -> None:
    """The column whose cells are pictures is preferred."""
    table = read(tmp_path, "image,file,dog\n1,a.jpg,0\n0,b.jpg,1\n")
    assert table.names == ("a.jpg", "b.jpg")
    assert table.labels.names == ("image", "dog")


@pytest.mark.parametrize("name", ["Datei", "bild", "画像", "xyz", "Image Index", "Ablage"])
def test_a_column_of_pictures_is_the_image_column(tmp_path: Path, name: str) -> None:
    """Whatever its name: its cells end like pictures. A note says so, and which key does it."""
    table = read(tmp_path, f"Nr,{name},tags\n1,x/a.JPG,cat\n2,x/b.png,dog\n")
    assert table.names == ("x/a.JPG", "x/b.png")
    assert f"pictures in column '{name}'" in table.notes


def test_a_mask_beside_the_picture_is_not_the_picture(tmp_path: Path) -> None:
    """Names of what is derived from a picture come last."""
    table = read(tmp_path, "mask_file,scan,tags\na_mask.png,a.png,cat\nb_mask.png,b.png,dog\n")
    assert table.names == ("a.png", "b.png")


def test_an_id_without_an_ending_is_a_name(tmp_path: Path) -> None:
    """OpenImages and Kaggle name pictures so; where they lie, check_paths says."""
    assert read(tmp_path, "image_id,label\n00ab,cat\n00cd,dog\n").names == ("00ab", "00cd")


# ---- split ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["set", "subset", "Partition", "fold", "phase", "Usage", "any"])
@pytest.mark.parametrize("words", [("train", "val", "test"), ("Training", "Validation", "TESTING")])
def test_a_column_of_split_words_is_the_split(
    tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    """Test rows are not trained on, whatever the column is called; a note says so."""
    rows = "".join(f"{word}.jpg,{word},cat\n" for word in words)
    table = read(tmp_path, f"image,{name},tags\n{rows}")
    assert table.splits == ("train", "val", "test")
    assert f"splits in '{name}': 1 train, 1 val, 1 test" in table.notes


@pytest.mark.parametrize("word", ["train_set", "Train set", "TRN", "trainset", "learn"])
def test_spellings_of_train(word: str) -> None:
    """Signs, spaces and case do not matter."""
    assert find_split(word) == "train"


def test_a_split_column_with_one_other_word_is_a_fault(tmp_path: Path) -> None:
    """Most cells are split words, so the column is the split; the other cell is listed."""
    rows = "a.jpg,train,x1\nb.jpg,val,x2\nc.jpg,unused,x1\n"
    table = read(tmp_path, f"image,subset,tags\n{rows}")
    (fault,) = table.faults
    assert str(fault).startswith("line 4: subset is 'unused'; wanted train, val or test")
    assert "data.split_column" in str(fault)


def test_two_columns_of_split_words_that_differ_are_refused(tmp_path: Path) -> None:
    """The message has the line to paste, which then decides."""
    content = "image,set,phase,tags\na.jpg,Train,test,cat\nb.jpg,test,train,dog\n"
    assert "hold words for splits, and differ" in refusal(tmp_path, content)
    assert 'data.split_column: "set"' in refusal(tmp_path, content)
    assert read(tmp_path, content, split_column="phase").splits == ("test", "train")


@pytest.mark.parametrize(
    ("marks", "rows", "splits"),
    [
        ("is_valid", ("True", "0"), ("val", "train")),
        ("is_train", ("1", "0"), ("train", "val")),
        ("isTest", ("no", "yes"), ("train", "test")),
        ("is_train,is_test", ("1,0", "0,1", "0,0"), ("train", "test", "val")),
        ("is_train,is_val,is_test", ("1,0,0", "0,1,0", "0,0,1"), ("train", "val", "test")),
    ],
)
def test_marks_of_splits(
    tmp_path: Path, marks: str, rows: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    """A row belongs to the split that has 1; where none has, to the first split without a mark."""
    lines = "".join(f"{n}.jpg,{row},{n % 2}\n" for n, row in enumerate(rows))
    table = read(tmp_path, f"image,{marks},cat\n{lines}")
    assert (table.splits, table.labels.names, table.faults) == (splits, ("cat",), ())


def test_a_row_of_two_splits_is_a_fault(tmp_path: Path) -> None:
    """Marks that contradict each other are not guessed."""
    table = read(tmp_path, "image,is_train,is_test,cat\na.jpg,1,1,1\nb.jpg,1,0,0\n")
    (fault,) = table.faults
    assert str(fault).startswith("line 2: is_train is '1'; wanted 1 or 0, and 1 in one column")


def test_a_sorted_table_shows_its_test_rows_after_the_sample(tmp_path: Path) -> None:
    """A thousand rows of train come first; the column is the split all the same."""
    rows = "".join(f"{n}.jpg,{'train' if n < 1100 else 'test'},c{n % 2}\n" for n in range(1110))
    table = read(tmp_path, f"image,part,tags\n{rows}")
    assert table.splits is not None
    assert table.splits.count("test") == 10


def test_two_split_columns_that_differ_after_the_sample_are_refused(tmp_path: Path) -> None:
    """All rows are looked at."""
    rows = "".join(f"{n}.jpg,train,{'train' if n < 1100 else 'test'},c\n" for n in range(1110))
    assert "and differ" in refusal(tmp_path, f"image,set,subset,tags\n{rows}")


@pytest.mark.parametrize("value", ["test", "valid", "val"])
def test_a_constant_that_is_never_train_is_no_split(tmp_path: Path, value: str) -> None:
    """It may be a status, or the name of a data set."""
    table = read(tmp_path, f"image,status,tags\na.jpg,{value},cat\nb.jpg,{value},dog\n")
    assert table.splits is None
    assert f"columns not used: 'status' ('{value}')" in table.notes


# ---- labels -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "class"])
def test_words_of_classes_stay_labels_beside_a_flag(tmp_path: Path, name: str) -> None:
    """One column is read the same whatever stands beside it."""
    for more in ("", ",odd"):
        cells = ",1" if more else ""
        content = f"image,{name}{more}\na.jpg,positive{cells}\nb.jpg,negative{cells}\n"
        assert read(tmp_path, content).labels.names == ("positive", "negative")


def test_what_was_chosen_reads_the_same_table(tmp_path: Path) -> None:
    """`init` writes the choices into a config: a run then reads what init showed."""
    content = (
        'Datei,tag1,tag2,subset\na.jpg,"tench, Tinca tinca",cat,train\nb.jpg,"cat, dog",,val\n'
    )
    table = read(tmp_path, content)
    again = read(tmp_path, content, **choices_as_options(table))
    assert again.labels.names == table.labels.names == ("tench, Tinca tinca", "cat", "cat, dog")
    assert (again.names, again.splits) == (table.names, table.splits)


def choices_as_options(table: Table) -> dict[str, Any]:
    """Return the options that a config with the choices of a table gives."""
    options: dict[str, Any] = dict(table.choices)
    if isinstance(options.get("label_column"), str):
        options["label_column"] = (options["label_column"],)
    return options


def test_a_second_column_of_labels_is_said_and_can_be_taken(tmp_path: Path) -> None:
    """The note has the line to paste; then the labels of both are joined."""
    content = "image,label,tags\na.jpg,cat,red|hot\nb.jpg,dog,hot\n"
    table = read(tmp_path, content)
    assert table.labels.names == ("cat", "dog")
    assert (
        "more labels in 'tags' ('red|hot', 'hot'), not used; data.label_column: [\"label\", "
        '"tags"] takes all'
    ) in table.notes
    table = read(tmp_path, content, label_column=("label", "tags"))
    assert table.labels.names == ("cat", "red", "hot", "dog")
    assert states(table) == [[1, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("stem", ["tag", "label_", "Tag ", "class", "Schlagwort", "category-"])
def test_numbered_columns_are_several_label_columns(tmp_path: Path, stem: str) -> None:
    """Each cell is one label, also where it holds a comma; blank cells are none."""
    header = ",".join(f"{stem}{number}" for number in (1, 2, 3))
    table = read(tmp_path, f'image,{header}\na.jpg,cat,"hot dog, big",\nb.jpg,dog,,\n')
    assert table.labels.names == ("cat", "hot dog, big", "dog")
    assert states(table) == [[1, 1, 0], [0, 0, 1]]


def test_numbered_columns_of_states_are_a_label_each(tmp_path: Path) -> None:
    """class_1 and class_2 with 1 and 0 stay labels."""
    table = read(tmp_path, "image,class_1,class_2\na.jpg,1,0\nb.jpg,0,1\n")
    assert table.labels.names == ("class_1", "class_2")


@pytest.mark.parametrize(
    "name", ["Schlagworte", "mots-clés", "Finding Labels", "категория", "キー"]
)
def test_the_label_column_in_other_words(tmp_path: Path, name: str) -> None:
    """By a usual name of many languages, or since it is the only text that repeats."""
    table = read(tmp_path, f'Datei,{name}\na.jpg,"cat, dog"\nb.jpg,dog\nc.jpg,cat\n')
    assert table.labels.names == ("cat", "dog")
    assert f"labels in column '{name}', separated by ','" in table.notes


@pytest.mark.parametrize("columns", ["caption", "x1,x2"])
def test_text_that_may_be_labels_or_not_is_refused(tmp_path: Path, columns: str) -> None:
    """Captions do not repeat; of two columns of text neither is sure. Values are shown."""
    cells = (
        ["a cat on a mat", "a dog in a field"] if columns == "caption" else ["red,big", "red,big"]
    )
    message = refusal(tmp_path, f"image,{columns}\na.jpg,{cells[0]}\nb.jpg,{cells[1]}\n")
    assert "no labels found" in message
    assert cells[0].split(",")[0] in message


def test_columns_that_are_not_used_show_what_they_hold(tmp_path: Path) -> None:
    """A column of words beside label columns may have been meant as labels."""
    table = read(tmp_path, "image,weather,cat\na.jpg,sunny,1\nb.jpg,rainy,0\n")
    assert "columns not used: 'weather' ('sunny', 'rainy')" in table.notes


# ---- one label a row, with its value ----------------------------------------------------

LONG = (
    "ImageID,Source,LabelName,Confidence\na.jpg,hand,cat,1\na.jpg,hand,dog,0\nb.jpg,net,dog,0.9\n"
)


def test_a_long_table_with_a_value_says_present_and_absent(tmp_path: Path) -> None:
    """OpenImages: 0 is verified absent, a label without a row is unknown, 0.9 by a threshold."""
    table = read(tmp_path, LONG)
    assert table.labels.names == ("cat", "dog")
    assert states(table) == [[1, -1], [-1, 0], [-1, 1]]
    assert table.unnamed.tolist() == [-1, -1, -1]
    assert any("0 is absent (1), labels without a row are unknown" in n for n in table.notes)
    assert any("0.5 and above is present" in note for note in table.notes)


@pytest.mark.parametrize("name", ["value", "Present", "is_present", "score", "verified"])
@pytest.mark.parametrize("words", [("1", "0"), ("yes", "no"), ("True", "False")])
def test_other_names_of_the_value(tmp_path: Path, name: str, words: tuple[str, str]) -> None:
    """Words count as in columns of states."""
    rows = f"a.jpg,cat,{words[0]}\na.jpg,dog,{words[1]}\n"
    assert states(read(tmp_path, f"image,label,{name}\n{rows}")) == [[1, -1], [-1, 0]]


def test_a_confidence_beside_one_label_a_picture_is_no_value(tmp_path: Path) -> None:
    """Each picture has one row, and nothing says absent: labels are lists, as always."""
    table = read(tmp_path, "image,label,confidence\na.jpg,cat,0.9\nb.jpg,dog,0.8\n")
    assert states(table) == [[1, 0], [0, 1]]
    assert "columns not used: 'confidence' ('0.9', '0.8')" in table.notes


def test_absent_beyond_the_sample_is_absent(tmp_path: Path) -> None:
    """A file may begin with a thousand present labels, one for each picture."""
    rows = [f"{n}.jpg,cat,{int(n < 1500)}\n" for n in range(1501)]
    table = read(tmp_path, f"ImageID,LabelName,Confidence\n{''.join(rows)}")
    assert states(table)[-1] == [0]


def test_a_low_confidence_alone_is_not_absent(tmp_path: Path) -> None:
    """It may be how sure a person is of the one label; then labels are lists, as always."""
    table = read(tmp_path, "image,label,score\na.jpg,cat,0.3\nb.jpg,dog,0.9\nc.jpg,cat,0.4\n")
    assert states(table) == [[1, 0], [0, 1], [1, 0]]


def test_a_bad_value_is_a_fault_at_its_line(tmp_path: Path) -> None:
    """Values beyond the sample are looked at too."""
    rows = "".join(f"{n}.jpg,cat,{n % 2}\n" for n in range(1000))
    (fault,) = read(tmp_path, f"image,label,value\n{rows}z.jpg,cat,7\n").faults
    assert str(fault) == "line 1002: value is no number from 0 to 1, and no other state"


@pytest.mark.parametrize("name", ["verified", "score", "state", "val"])
def test_a_mark_beside_one_label_a_picture_is_no_value(tmp_path: Path, name: str) -> None:
    """A 0 of `verified` says nothing of the label; `val` is a split."""
    rows = "a.jpg,cat,1\nb.jpg,dog,0\nc.jpg,cat,0\n"
    assert states(read(tmp_path, f"image,label,{name}\n{rows}")) == [[1, 0], [0, 1], [1, 0]]


LONG_ROWS = "a.jpg,cat,ja\na.jpg,dog,nein\nb.jpg,cat,nein\n"


def test_a_value_under_another_name_is_asked_for(tmp_path: Path) -> None:
    """Pictures have several rows, and a column says yes and no: absent is not read as present."""
    content = f"Bild;Etikett;gesehen\n{LONG_ROWS.replace(',', ';')}"
    message = refusal(tmp_path, content)
    assert "'gesehen' ('ja', 'nein') may say whether the label of its row is there" in message
    assert 'data.value_column: "gesehen"' in message
    assert states(read(tmp_path, content, value_column="gesehen")) == [[1, -1], [-1, 0], [0, -1]]
    assert states(read(tmp_path, content, value_column="none")) == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("yes", "no"), [("accepted", "rejected"), ("Agree", "disagree"), ("OK", "not ok")]
)
def test_verdicts_on_the_labels_of_rows_are_asked_for(tmp_path: Path, yes: str, no: str) -> None:
    """A rejected label would be a positive; named, the column is read."""
    rows = f"a.jpg,cat,{yes}\na.jpg,dog,{no}\nb.jpg,dog,{yes}\n"
    message = refusal(tmp_path, "image,tag,review\n" + rows)
    assert "'review'" in message
    assert 'data.value_column: "review" reads it' in message
    table = read(tmp_path, "image,tag,review\n" + rows, value_column="review")
    assert states(table) == [[1, -1], [-1, 0], [-1, 1]]
    table = read(tmp_path, "image,cat,status\na.jpg,1,accepted\nb.jpg,0,rejected\n")
    assert table.labels.names == ("cat",)


@pytest.mark.parametrize("name", ["tag", "class", "concept", "attribute"])
@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("yes", "no"), ("0.9", "0.2")])
def test_values_under_the_name_of_labels_are_asked_for(
    tmp_path: Path, name: str, yes: str, no: str
) -> None:
    """`image,tag,label` with 1 and 0: the labels are no `0` and `1`."""
    rows = f"a.jpg,cat,{yes}\na.jpg,dog,{no}\nb.jpg,cat,{no}\n"
    message = refusal(tmp_path, f"image,{name},label\n{rows}")
    assert 'data.value_column: "label" reads it' in message
    table = read(tmp_path, f"image,{name},label\n{rows}", value_column="label")
    assert table.labels.names == ("cat", "dog")
    assert states(table) == [[1, -1], [-1, 0], [0, -1]]
    table = read(tmp_path, f"image,{name},label\n{rows}", value_column="none")
    assert set(table.labels.names) == {yes, no}


def test_two_classes_of_each_picture_stay_the_labels(tmp_path: Path) -> None:
    """A picture has one row, or nothing else holds labels."""
    table = read(tmp_path, "image,tag,label\na.jpg,cat,1\nb.jpg,dog,0\nc.jpg,cat,1\n")
    assert set(table.labels.names) == {"0", "1"}
    rows = "a.jpg,anna,1\na.jpg,ben,0\nb.jpg,anna,0\nb.jpg,ben,0\n"
    labels = read(tmp_path, f"image,annotator,label\n{rows}").labels.names
    assert set(labels) == {"0", "1"}


def test_percent_under_the_name_of_a_value_is_asked_for(tmp_path: Path) -> None:
    """93 is no number from 0 to 1."""
    rows = "a.jpg,cat,93\na.jpg,dog,20\nb.jpg,cat,60\n"
    assert "data.value_column" in refusal(tmp_path, f"image,label,confidence\n{rows}")


@pytest.mark.parametrize(
    ("marks", "rows"),
    [
        ("train,val,test", ("1,0,0", "0,1,0", "0,0,1")),
        ("Train,Val,Test", ("True,False,False", "False,True,False", "False,False,True")),
        ("is_train_set,is_val_set,is_test_set", ("1,0,0", "0,1,0", "0,0,1")),
    ],
)
def test_plain_names_of_marks(tmp_path: Path, marks: str, rows: tuple[str, ...]) -> None:
    """A mark named train is one beside the others; alone it is a label."""
    lines = "".join(f"{n}.jpg,cat,{row}\n" for n, row in enumerate(rows))
    table = read(tmp_path, f"image,label,{marks}\n{lines}")
    assert table.splits == ("train", "val", "test")
    assert table.labels.names == ("cat",)


def test_a_test_split_below_a_thousand_blank_cells_is_refused(tmp_path: Path) -> None:
    """The sample shows nothing; test rows are not trained on all the same."""
    rows = "".join(f"{n}.jpg,cat,{'test' if n > 1100 else ''}\n" for n in range(1110))
    message = refusal(tmp_path, f"image,label,phase\n{rows}")
    assert "from line 1103 on" in message
    assert 'data.split_column: "phase"' in message
    assert read(tmp_path, f"image,label,phase\n{rows}", split_column="none").splits is None


def test_more_labels_below_a_thousand_blank_cells_are_said(tmp_path: Path) -> None:
    """A second column of labels is not called blank."""
    rows = "".join(f"{n}.jpg,cat,{'red' if n > 1100 else ''}\n" for n in range(1110))
    notes = read(tmp_path, f"image,label,tags\n{rows}").notes
    assert any(note.startswith("more labels in 'tags' ('red')") for note in notes)


def test_some_split_words_among_others_are_refused(tmp_path: Path) -> None:
    """A fold with 1, 2 and test: nobody can say what 1 and 2 are."""
    content = "image,fold,tags\na.jpg,1,cat\nb.jpg,2,dog\nc.jpg,test,cat\n"
    assert "data.split_column: none" in refusal(tmp_path, content)
    assert read(tmp_path, content, split_column="none").splits is None


@pytest.mark.parametrize("words", ["train2017 val2017 test2017", "Training Validierung Prueba"])
def test_more_spellings_of_splits(tmp_path: Path, words: str) -> None:
    """With a number, and in other languages."""
    rows = "".join(f"{word}.jpg,{word},cat\n" for word in words.split())
    assert read(tmp_path, f"image,Teil,tags\n{rows}").splits == ("train", "val", "test")


def test_columns_left_out_are_named_with_a_line_to_paste(tmp_path: Path) -> None:
    """Where nothing else is a label, the names may have been meant."""
    message = refusal(tmp_path, "image,valid,hidden\na.jpg,0,1\nb.jpg,1,0\n")
    assert 'data.label_columns: ["valid", "hidden"]' in message


@pytest.mark.parametrize("name", ["author", "taken", "Camera model", "date_taken", "Datum", "note"])
def test_what_is_told_of_a_picture_is_no_label_by_itself(tmp_path: Path, name: str) -> None:
    """The only column of text may be the photographer; it is read where the config names it."""
    content = f"image,{name}\na.jpg,Ann\nb.jpg,Bob\nc.jpg,Ann\n"
    assert f'data.label_column: "{name}"' in refusal(tmp_path, content)
    assert read(tmp_path, content, label_column=(name,)).labels.names == ("Ann", "Bob")


def test_boxes_beside_labels_are_no_values(tmp_path: Path) -> None:
    """Relative coordinates lie between 0 and 1 too."""
    rows = "a.jpg,0,0.1,cat\na.jpg,0.2,0.3,dog\nb.jpg,0,1,cat\n"
    table = read(tmp_path, f"image,x_min,x_max,label\n{rows}")
    assert states(table) == [[1, 0], [0, 1], [1, 0]]


# ---- several columns that may hold labels ------------------------------------------------


def test_all_columns_that_may_hold_labels_are_in_the_line_to_paste(tmp_path: Path) -> None:
    """One of three would silently lose the others; captions and dates are not among them."""
    rows = "".join(f"{n}.jpg,cat,{'dog' if n % 2 else ''},night,note {n}\n" for n in range(4))
    message = refusal(tmp_path, f"image,primary,secondary,light,comment\n{rows}")
    assert message.endswith('data.label_column: ["primary", "secondary", "light"]')
    named = refusal(tmp_path, "image,cat,dog\na.jpg,cat,\nb.jpg,cat,dog\nc.jpg,,dog\n")
    assert named.endswith('data.label_column: ["cat", "dog"]')


def test_marks_that_are_not_known_are_no_labels(tmp_path: Path) -> None:
    """`P` and `N` in each column: the line to paste would make them the labels."""
    message = refusal(tmp_path, "image,cat,dog\na.jpg,P,N\nb.jpg,N,N\nc.jpg,N,P\n")
    assert message.endswith("if 'N', 'P' mark labels: write 1 and 0 in their place")


def test_a_second_column_of_the_same_labels_is_said(tmp_path: Path) -> None:
    """`other_labels` is no usual name; `prediction` is what a model has said."""
    rows = "a.jpg,cat,dog|fox\nb.jpg,dog,\nc.jpg,fox,cat\nd.jpg,cat,dog\n"
    notes = read(tmp_path, f"image,label,other_labels\n{rows}").notes
    assert (
        "labels of 'label' stand in 'other_labels' too; "
        'data.label_column: ["label", "other_labels"] takes all'
    ) in notes
    notes = read(tmp_path, f"image,label,prediction\n{rows}").notes
    assert not any("takes all" in note for note in notes)
    notes = read(tmp_path, "image,label,place\na.jpg,cat,wood\nb.jpg,dog,sea\n").notes
    assert not any("takes all" in note for note in notes)


def test_a_label_column_of_states_beside_others_is_asked_for(tmp_path: Path) -> None:
    """`label` may be a label as `cat` is; the others would be lost."""
    content = "image,cat,label\na.jpg,1,0\nb.jpg,0,1\n"
    message = refusal(tmp_path, content)
    assert "data.label_columns: ['label', 'cat']; " in message
    assert read(tmp_path, content, label_columns=("label", "cat")).labels.names == ("label", "cat")
    assert read(tmp_path, content, label_column=("label",)).labels.names == ("0", "1")
    assert read(tmp_path, "image,fold,label\na.jpg,1,0\nb.jpg,0,1\n").labels.names == ("0", "1")
