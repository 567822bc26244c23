"""Tables become the two sides of a run: splits, label order, paths, repeated rows."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from mlfinetune.data.labels import align
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.read import SplitOptions, read_manifest, read_splits, read_table
from mlfinetune.data.rows import PictureScan, raise_faults
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError

States = dict[str, list[int]]


def write(folder: Path, content: str, name: str = "train.csv", touch: bool = True) -> Path:
    """Write a table with this content, and the pictures that its first column names."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    for row in content.splitlines()[1:] if touch else []:
        picture = path.parent / row.split(",")[0]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    return path


def listed(n: int, labels: str = "cat|dog", start: int = 0) -> str:
    """Return a table of n images that have the labels in turn."""
    names = labels.split("|")
    rows = (f"{i}.jpg,{names[i % len(names)]}\n" for i in range(start, start + n))
    return "image,labels\n" + "".join(rows)


def split(folder: Path, train: str, val: str | None = None, **options: Any) -> Splits:
    """Return the result of read_splits for one or two tables."""
    val_path = None if val is None else write(folder, val, "val.csv")
    return read_splits(write(folder, train), val_path, SourceOptions(), SplitOptions(**options))


def refusal(folder: Path, train: str, val: str | None = None, **options: Any) -> str:
    """Return the message with which one or two tables are refused."""
    with pytest.raises(DataError) as caught:
        split(folder, train, val, **options)
    return str(caught.value)


def join(folder: Path, content: str, **options: Any) -> Table:
    """Return the result of read_table for a table."""
    return checked(write(folder, content), SourceOptions(**options))


def checked(path: Path, options: SourceOptions) -> Table:
    """Return the table at a path, which must have no faults."""
    table = read_table(path, options)
    raise_faults(table, table.faults)
    return table


def states(manifest: Manifest | Table) -> States:
    """Return name -> targets."""
    return dict(zip(manifest.names, manifest.targets[:].tolist(), strict=True))


# ---- where validation comes from --------------------------------------------------------


def test_two_files_are_the_two_sides(tmp_path: Path) -> None:
    """Columns are those of train, whatever order val names labels in."""
    train = "image,labels\na.jpg,dog|cat\nb.jpg,dog\n"
    splits = split(tmp_path, train, "image,labels\nc.jpg,dog\nd.jpg,cat\n")
    assert states(splits.train) == {"a.jpg": [1, 1], "b.jpg": [0, 1]}
    assert states(splits.val) == {"c.jpg": [0, 1], "d.jpg": [1, 0]}
    assert splits.train.labels == splits.val.labels == LabelSpace(("cat", "dog"))
    assert splits.notes[0] == "train: read as a CSV or TSV table"
    assert splits.notes[1].startswith("train: labels in column 'labels'")
    assert "val: 2 images found, all used" in splits.notes


def test_two_files_may_lie_in_two_folders(tmp_path: Path) -> None:
    """Each table's names are relative to its own folder."""
    train, val = write(tmp_path / "1", listed(2)), write(tmp_path / "2", listed(2))
    splits = read_splits(train, val, SourceOptions())
    assert splits.train.path(0) == str(tmp_path / "1" / "0.jpg")
    assert splits.val.path(0) == str(tmp_path / "2" / "0.jpg")
    assert not any("warning" in note for note in splits.notes)


SPLIT = (
    "image,labels,split\na.jpg,cat,train\nb.jpg,dog,train\nc.jpg,cat|dog,train\n"
    "d.jpg,dog,val\ne.jpg,cat,test\nf.jpg,,val\n"
)


def test_the_split_column_makes_the_sides(tmp_path: Path) -> None:
    """Rows of `test` are in neither; the counts are noted."""
    splits = split(tmp_path, SPLIT)
    assert states(splits.train) == {"a.jpg": [1, 0], "b.jpg": [0, 1], "c.jpg": [1, 1]}
    assert states(splits.val) == {"d.jpg": [0, 1], "f.jpg": [0, 0]}
    assert "train: splits: 3 train, 2 val, 1 test" in splits.notes


def test_splits_are_counted_once(tmp_path: Path) -> None:
    """A note on a column of another name has the counts, also where tables are joined."""
    for folder in "xy":
        rows = SPLIT.replace("split", "set").replace("image", "file_name")
        (tmp_path / "pets" / folder).mkdir(parents=True)
        (tmp_path / "pets" / folder / "metadata.csv").write_text(rows)
        for name in "abcdef":
            (tmp_path / "pets" / folder / f"{name}.jpg").write_text(folder + name)
    notes = read_splits(tmp_path / "pets", None, SourceOptions()).notes
    assert "train: x/: splits in 'set': 3 train, 2 val, 1 test" in notes
    assert not any("splits: " in note for note in notes)


def test_the_split_column_leaves_label_columns_as_they_are(tmp_path: Path) -> None:
    """A column is a label of the run even where no training row has it."""
    content = "image,dog,cat,split\na.jpg,1,0,train\nb.jpg,1,,train\nc.jpg,0,1,val\n"
    splits = split(tmp_path, content)
    assert splits.train.labels.names == ("cat", "dog")
    assert states(splits.train) == {"a.jpg": [0, 1], "b.jpg": [-1, 1]}
    assert states(splits.val) == {"c.jpg": [1, 0]}


def test_is_valid_makes_the_sides(tmp_path: Path) -> None:
    """True is validation."""
    splits = split(tmp_path, "image,labels,is_valid\na.jpg,cat,False\nb.jpg,cat,True\n")
    assert (splits.train.names, splits.val.names) == (("a.jpg",), ("b.jpg",))


def test_a_fifth_is_held_out_where_nothing_is_said(tmp_path: Path) -> None:
    """The note says how many, which share and which seed; nothing is lost."""
    splits = split(tmp_path, listed(50))
    assert (len(splits.train), len(splits.val)) == (40, 10)
    assert len({*splits.train.names, *splits.val.names}) == 50
    assert splits.val.targets[:].sum(0).tolist() == [5, 5]
    wanted = "10 of 50 images held out for validation (val_fraction 0.2, stratified by label"
    assert any(note.startswith(f"{wanted}, seed 0)") for note in splits.notes)


def test_the_given_fraction_is_held_out(tmp_path: Path) -> None:
    """data.val_fraction is the share of images."""
    assert len(split(tmp_path, listed(40), val_fraction=0.5).val) == 20


def test_the_seed_decides_what_is_held_out(tmp_path: Path) -> None:
    """Equal seeds hold out equal images; another seed holds out others."""
    first, again, other = (split(tmp_path, listed(60), seed=seed).val.names for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_folder_is_split_like_a_table(tmp_path: Path) -> None:
    """Pictures of class folders are held out label by label."""
    for i in range(20):
        for label in ("cat", "dog"):
            picture = tmp_path / label / f"{i}.jpg"
            picture.parent.mkdir(exist_ok=True)
            picture.write_text(f"{label} {i}")
    splits = read_splits(tmp_path, None, SourceOptions())
    assert splits.val.targets[:].sum(0).tolist() == [4, 4]
    assert splits.val.labels.names == ("cat", "dog")


def test_a_missing_picture_of_another_split_is_no_fault(tmp_path: Path) -> None:
    """Whoever trains may not have the pictures of the test; those of train and val are wanted."""
    table = write(tmp_path, SPLIT)
    (tmp_path / "e.jpg").unlink()  # of the test
    splits = read_splits(table, None, SourceOptions())
    assert "train: 6 images found = 5 used + 1 kept for test" in splits.notes
    (tmp_path / "d.jpg").unlink()  # of val
    with pytest.raises(DataError, match=r"line 5: 'd\.jpg': no such file"):
        read_splits(table, None, SourceOptions())


def test_missing_and_undecodable_pictures_stand_in_one_message(tmp_path: Path) -> None:
    """One run lists all of them, so that the user can correct them at once."""
    table = write(tmp_path, listed(5))
    (tmp_path / "3.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read_splits(table, None, SourceOptions(), scan=lambda _: PictureScan({1: "cut"}))
    first, *lines = str(caught.value).splitlines()
    assert "2 missing or unreadable pictures" in first
    assert lines == ["  line 3: '1.jpg': cut", "  line 5: '3.jpg': no such file"]


def test_min_positives_counts_images_to_train_on(tmp_path: Path) -> None:
    """Images of val are not counted."""
    train = "a.jpg,cat|dog,train\nb.jpg,cat|dog,train\nc.jpg,cat|fox,train\n"
    val = "d.jpg,fox|cow|cat,val\ne.jpg,fox|cow,val\n"
    splits = split(tmp_path, f"image,labels,split\n{train}{val}", min_positives=2)
    assert splits.train.labels.names == ("cat", "dog")
    assert splits.rare == ("fox", "cow")


def test_min_positives_must_leave_a_label(tmp_path: Path) -> None:
    """The message says the key, not that there are no labels."""
    message = refusal(tmp_path, listed(4), min_positives=9)
    assert "every label has fewer than 9 positives (data.min_positives)" in message


@pytest.mark.parametrize(
    ("rows", "words"),
    [(0, "the table has no rows to train on"), (1, "1 image: too few to hold out some")],
)
def test_too_few_images_are_refused_before_their_labels(
    tmp_path: Path, rows: int, words: str
) -> None:
    """A header alone lacks images first of all."""
    assert words in refusal(tmp_path, listed(rows))


def test_a_fraction_beside_a_split_column_is_refused(tmp_path: Path) -> None:
    """Two answers to one question; the message says which to drop."""
    message = refusal(tmp_path, SPLIT, val_fraction=0.2)
    assert message.endswith("remove data.val_fraction, or the split")


def test_split_columns_beside_a_val_file_choose_the_rows(tmp_path: Path) -> None:
    """The rows of `train` come from the train file, the rows of `val` from the val file."""
    rows = "image,labels,split\n{0}a.jpg,cat,train\n{0}b.jpg,cat,val\n"
    splits = split(tmp_path, rows.format("x"), rows.format("y"))
    assert (splits.train.names, splits.val.names) == (("xa.jpg",), ("yb.jpg",))


def test_data_without_an_image_to_train_on_is_refused(tmp_path: Path) -> None:
    """The message names the file and the side."""
    message = refusal(tmp_path, "image,labels,split\na.jpg,cat,val\nb.jpg,cat,test\n")
    assert message == f"{tmp_path / 'train.csv'} has no image for train"


def test_train_and_test_without_val_hold_out_of_train(tmp_path: Path) -> None:
    """As many data sets come; the test is left alone."""
    rows = "".join(f"{n}.jpg,cat,{'test' if n > 9 else 'train'}\n" for n in range(14))
    splits = split(tmp_path, f"image,labels,split\n{rows}", val_fraction=0.3)
    assert (len(splits.train), len(splits.val), splits.drawn) == (7, 3, True)
    assert "train: 14 images found = 10 used + 4 kept for test" in splits.notes


def test_empty_rows_that_are_unknown_name_no_labels(tmp_path: Path) -> None:
    """A label that only val has stays an error, whatever empty rows say."""
    rows = "a.jpg,cat,train\nb.jpg,,train\nc.jpg,cta,val\nd.jpg,zebra,test\n"
    table = write(tmp_path, f"image,labels,split\n{rows}")
    with pytest.raises(DataError, match=r"'cta': 1 image, first at line 4; did you mean 'cat'"):
        read_splits(table, None, SourceOptions(empty_labels="unknown"))


def test_a_blank_group_is_a_group_of_its_own(tmp_path: Path) -> None:
    """Pictures of nobody known are not all of one person."""
    rows = "".join(f"{n}.jpg,cat,{n if n < 4 else ''}\n" for n in range(20))
    table = write(tmp_path, f"image,labels,patient\n{rows}")
    splits = read_splits(table, None, SourceOptions(group_by="patient"))
    assert len(splits.val) == 4


def test_labels_without_a_negative_are_noted_with_the_cure(tmp_path: Path) -> None:
    """Blank often means no in a table that a person typed."""
    splits = split(
        tmp_path, "image,cat,dog\n" + "".join(f"{n}.jpg,1,{'1' * (n % 2)}\n" for n in range(9))
    )
    note = next(note for note in splits.notes if "without a negative" in note)
    assert note.endswith("if unknown means no, set data.unknown: negative")


def test_categories_that_no_image_of_val_has_are_no_strangers(tmp_path: Path) -> None:
    """COCO declares all its categories in every file."""
    table = checked(write(tmp_path, "image,labels\na.jpg,cat\nb.jpg,dog\n"), SourceOptions())
    few = table.take([0])
    assert align(few, LabelSpace(("cat",))).targets[:].tolist() == [[1]]


def test_an_empty_val_file_is_refused(tmp_path: Path) -> None:
    """A header alone is no validation."""
    message = refusal(tmp_path, listed(2), "image,labels\n")
    assert message == f"{tmp_path / 'val.csv'} has no image for val"


@pytest.mark.parametrize("content", ["image,labels\n", "image,cat\n", "", "image,labels\na.jpg,\n"])
def test_a_table_without_labels_or_rows_is_refused(tmp_path: Path, content: str) -> None:
    """There is nothing to learn; the message names the file."""
    assert str(tmp_path / "train.csv") in refusal(tmp_path, content)


def test_one_image_is_too_few_to_hold_out_some(tmp_path: Path) -> None:
    """The message says what to give instead; two images are enough."""
    message = refusal(tmp_path, listed(1))
    assert "1 image: too few to hold out some for validation; give data.val" in message
    splits = split(tmp_path, listed(2, "cat"))
    assert (len(splits.train), len(splits.val)) == (1, 1)


def test_images_of_one_label_each_leave_some_for_validation(tmp_path: Path) -> None:
    """Both sides have an image, even if no label has a second image."""
    splits = split(tmp_path, listed(20, "|".join("abcdefghijklmnopqrst")))
    assert min(len(splits.train), len(splits.val)) >= 1


# ---- labels -----------------------------------------------------------------------------


def test_labels_are_sorted_as_people_sort(tmp_path: Path) -> None:
    """2 before 10, a before B, and no two runs differ."""
    train = "image,labels\na.jpg,x10|B|10|a\nb.jpg,x2|2|b|x1y10|x1y9\n"
    labels = split(tmp_path, train, "image,labels\nc.jpg,2\n").val.labels
    assert labels.names == ("2", "10", "a", "B", "b", "x1y9", "x1y10", "x2", "x10")


def test_a_label_of_many_digits_is_sorted_too(tmp_path: Path) -> None:
    """Python refuses to read numbers of more than 4300 digits."""
    long = "1" + "0" * 5000
    train = f"image,labels\na.jpg,{long}\nb.jpg,9\n"
    assert split(tmp_path, train, "image,labels\nc.jpg,9\n").val.labels.names == ("9", long)


def test_the_given_labels_are_the_columns(tmp_path: Path) -> None:
    """Columns are in the given order; labels without an image are noted."""
    splits = split(tmp_path, listed(10), labels=["fox", "dog", "cat"])
    assert splits.train.labels.names == ("fox", "dog", "cat")
    assert states(splits.train)[splits.train.names[0]][0] == 0
    assert "1 label ('fox') without a positive in train: cannot be learned" in splits.notes
    assert "1 label ('fox') without a positive in val: no AP" in splits.notes


def test_a_label_that_train_lacks_is_refused(tmp_path: Path) -> None:
    """The message has the count, the place, and the nearest label of train."""
    val = "image,labels\nc.jpg,cat\nd.jpg,Dgo|fox\ne.jpg,Dgo\n"
    first, *lines = refusal(tmp_path, listed(2), val).splitlines()
    assert first.startswith(f"{tmp_path / 'val.csv'}: labels that training does not know")
    assert lines == [
        "  'Dgo': 2 images, first at line 3; did you mean 'dog'?",
        "  'fox': 1 image, first at line 3",
    ]


def test_a_label_of_another_case_is_another_label(tmp_path: Path) -> None:
    """Dog is not dog, but the message knows which is meant."""
    assert "did you mean 'dog'?" in refusal(tmp_path, listed(2), "image,labels\nc.jpg,Dog\n")


def test_a_label_that_only_val_rows_have_is_refused(tmp_path: Path) -> None:
    """The rule holds for one file with a split column too."""
    message = refusal(tmp_path, SPLIT.replace("f.jpg,,val", "f.jpg,dgo,val"))
    assert message.splitlines()[1:] == ["  'dgo': 1 image, first at line 7; did you mean 'dog'?"]


def test_a_label_that_only_test_rows_have_is_no_matter(tmp_path: Path) -> None:
    """Rows that are not used name no label of the run."""
    splits = split(tmp_path, SPLIT.replace("e.jpg,cat", "e.jpg,fox"))
    assert splits.val.labels.names == ("cat", "dog")


@pytest.mark.parametrize("val", [None, "image,labels\nc.jpg,dog\n"])
def test_a_label_that_the_given_labels_lack_is_refused(tmp_path: Path, val: str | None) -> None:
    """data.labels is complete, or the user is told."""
    message = refusal(tmp_path, listed(4), val, labels=["catt", "dog"])
    assert "labels that training does not know" in message
    assert "  'cat': 2 images, first at line 2; did you mean 'catt'?" in message


def test_a_list_in_val_means_absent_for_labels_it_never_names(tmp_path: Path) -> None:
    """Rows that list what holds say that all else does not."""
    splits = split(tmp_path, listed(2), "image,labels\nc.jpg,dog\n")
    assert states(splits.val) == {"c.jpg": [0, 1]}


def test_a_column_that_val_lacks_is_unknown(tmp_path: Path) -> None:
    """Nothing was said of it, and unknown never becomes absent in silence."""
    train = "image,cat,dog,fox\na.jpg,1,0,1\nb.jpg,0,1,0\n"
    splits = split(tmp_path, train, "image,fox,dog\nc.jpg,0,1\nd.jpg,1,\n")
    assert states(splits.val) == {"c.jpg": [-1, 1, 0], "d.jpg": [-1, -1, 1]}
    assert "1 label ('cat') without a positive in val: no AP" in splits.notes


def test_an_unknown_row_is_unknown_for_every_label_of_the_run(tmp_path: Path) -> None:
    """This includes labels that its own table does not have."""
    train, val = write(tmp_path, listed(2)), write(tmp_path, "image,labels\nc.jpg,\n", "val.csv")
    splits = read_splits(train, val, SourceOptions(empty_labels="unknown"))
    assert states(splits.val) == {"c.jpg": [-1, -1]}


def test_labels_without_a_positive_are_noted_ten_at_most(tmp_path: Path) -> None:
    """The rest is counted."""
    labels = [f"l{i}" for i in range(14)]
    splits = split(tmp_path, listed(4), labels=["cat", "dog", *labels])
    note = next(note for note in splits.notes if "cannot be learned" in note)
    assert note.startswith("14 labels ('l0', 'l1', ")
    assert note.endswith(", 'l9' and 4 more) without a positive in train: cannot be learned")


# ---- paths ------------------------------------------------------------------------------


def hostile(folder: Path) -> Path:
    """Make a data root with links that leave it, and a picture beside it."""
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    for picture in (folder / "out.jpg", root / "in.jpg", root / "sub" / "in.jpg"):
        picture.touch()
    (root / "link.jpg").symlink_to(folder / "out.jpg")
    (root / "up").symlink_to(folder)
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "inner.jpg").symlink_to(root / "in.jpg")
    return root


OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"
FOUND = "are there as data.images/sub/<name>; data.find_by_name: true finds them by their names"
PATHS = {
    "../out.jpg": OUTSIDE,
    "sub/../../out.jpg": OUTSIDE,
    "./../out.jpg": OUTSIDE,
    "up/out.jpg": OUTSIDE,
    "link.jpg": OUTSIDE,
    "/etc/passwd": OUTSIDE,
    "//etc/passwd": OUTSIDE,
    "none.jpg": "no such file",
    "sub\\in.jpg": "no such file; there is 'sub/in.jpg': write / for \\",
    "..\\out.jpg": "no such file",
    "IN.JPG": "no such file; there is 'in.jpg'",
    "~/in.jpg": "no such file",
    "$HOME/in.jpg": "no such file",
    "file:///etc/passwd": "no such file",
    "http://example.com/in.jpg": OUTSIDE,
    "%2e%2e/out.jpg": "no such file",
    "in.jpg/x.jpg": "Not a directory",
    "loop.jpg": "Too many levels of symbolic links",
    "x" * 300: "File name too long",
    "in\0.jpg": "not a file name (it holds a NUL character)",
}


@pytest.mark.parametrize(("name", "why"), PATHS.items(), ids=[ascii(name[:20]) for name in PATHS])
def test_a_bad_path_is_refused_with_its_line(tmp_path: Path, name: str, why: str) -> None:
    """Missing, or absolute, or out of the root by `..` or by a link."""
    table = write(hostile(tmp_path), f"image,labels\nin.jpg,x\n{name},x\n", touch=False)
    with pytest.raises(DataError) as caught:
        checked(table, SourceOptions())
    first, line, *hint = str(caught.value).splitlines()
    assert hint == (["1 of 1 " + FOUND] if "\\in" in name else [])
    what = "bad row" if "outside" in why else "missing or unreadable picture"
    assert first.startswith(f"{table}: 1 {what}, pictures under {tmp_path / 'root'}")
    assert first.endswith("; data.bad_images: skip leaves them out") == (what != "bad row")
    assert line == f"  line 3: {name!r}: {why}"


def test_all_bad_paths_stand_in_one_message(tmp_path: Path) -> None:
    """The first ten with their lines, the rest counted."""
    rows = "".join(f"{name},x\nin.jpg,x\n" for name in [*PATHS, "a.jpg", "b.jpg", "c", "d", "e"])
    table = write(hostile(tmp_path), f"image,labels\n{rows}", touch=False)
    with pytest.raises(DataError) as caught:
        checked(table, SourceOptions())
    first, *lines = str(caught.value).splitlines()
    assert "25 bad rows" in first
    assert [line.split(":")[0] for line in lines[:10]] == [f"  line {n}" for n in range(2, 22, 2)]
    assert lines[10:] == ["  ... and 15 more", "1 of 21 " + FOUND]


@pytest.mark.parametrize("name", ["sub/../in.jpg", "./in.jpg", "sub//in.jpg", "inner.jpg"])
def test_paths_that_stay_in_the_root_are_taken(tmp_path: Path, name: str) -> None:
    """Detours by `..`, `.`, // and links are allowed."""
    table = write(hostile(tmp_path), f"image,labels\n{name},x\n", touch=False)
    assert checked(table, SourceOptions()).names == (name,)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    """Names are checked against the folder that the link leads to."""
    root = hostile(tmp_path)
    (tmp_path / "alias").symlink_to(root)
    table = write(root, "image,labels\nsub/in.jpg,x\n", touch=False)
    options = SourceOptions(images=tmp_path / "alias")
    assert checked(table, options).root == tmp_path / "alias"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    """root-2 is not in root."""
    root = hostile(tmp_path)
    (tmp_path / "root-2").mkdir()
    (tmp_path / "root-2" / "a.jpg").touch()
    table = write(root, "image,labels\n../root-2/a.jpg,x\n", touch=False)
    with pytest.raises(DataError, match="outside the image root"):
        checked(table, SourceOptions())


def test_paths_out_of_the_root_can_be_permitted(tmp_path: Path) -> None:
    """allow_outside_root permits them; a missing file is still a fault."""
    names = ["../out.jpg", "up/out.jpg", "link.jpg", str(tmp_path / "out.jpg")]
    rows = "".join(f"{name},x\n" for name in names)
    table = write(hostile(tmp_path), f"image,labels\n{rows}", touch=False)
    options = SourceOptions(allow_outside_root=True)
    assert checked(table, options).names == tuple(names)
    table.write_text(table.read_text() + "../none.jpg,x\n")
    with pytest.raises(DataError, match=r"line 6: '\.\./none\.jpg': no such file"):
        checked(table, options)


# ---- repeated rows ----------------------------------------------------------------------


def test_rows_of_one_image_are_joined(tmp_path: Path) -> None:
    """The image has the labels of all its rows, at the place of the first."""
    table = join(tmp_path, "image,labels\na.jpg,cat\nb.jpg,dog\na.jpg,fox\na.jpg,cat\n")
    assert states(table) == {"a.jpg": [1, 0, 1], "b.jpg": [0, 1, 0]}
    assert [table.find_place(row) for row in (0, 1)] == ["line 2", "line 3"]
    assert "1 image in several rows: their labels are joined" in table.notes


def test_different_spellings_of_one_path_are_one_image(tmp_path: Path) -> None:
    """./a.jpg is a.jpg."""
    (tmp_path / "sub").mkdir()
    content = "image,labels\na.jpg,cat\n./a.jpg,dog\nsub/../a.jpg,fox\n"
    assert states(join(tmp_path, content)) == {"a.jpg": [1, 1, 1]}


def test_in_lists_present_beats_unknown_beats_absent(tmp_path: Path) -> None:
    """A row that does not name a label does not contradict one that does."""
    content = "image,labels,unknown\na.jpg,cat,dog|fox\na.jpg,dog,\nb.jpg,cow,\n"
    table = join(tmp_path, content, label_delimiter="|")
    assert table.labels.names == ("dog", "fox", "cat", "cow")
    assert states(table)["a.jpg"] == [1, -1, 1, 0]


def test_a_row_without_labels_adds_nothing_to_one_with_labels(tmp_path: Path) -> None:
    """empty_labels is about images, after rows are joined, and not about rows."""
    content = "image,labels\na.jpg,cat\na.jpg,\nb.jpg,dog\nc.jpg,\n"
    options = SourceOptions(empty_labels="unknown")
    splits = read_splits(write(tmp_path, content), None, options)
    every = states(splits.train) | states(splits.val)
    assert every == {"a.jpg": [1, 0], "b.jpg": [0, 1], "c.jpg": [-1, -1]}


def test_a_label_that_is_only_unknown_in_train_is_a_label(tmp_path: Path) -> None:
    """Under a split column too, so that val rows may have it."""
    rows = "a.jpg,cat,fox,train\nb.jpg,cat,,train\nc.jpg,fox,,val\n"
    splits = split(tmp_path, f"image,labels,unknown,split\n{rows}")
    assert states(splits.train) == {"a.jpg": [1, -1], "b.jpg": [1, 0]}
    assert states(splits.val) == {"c.jpg": [0, 1]}


def test_in_label_columns_a_state_beats_a_blank(tmp_path: Path) -> None:
    """Two annotators who each saw half of it."""
    table = join(tmp_path, "image,cat,dog,fox\na.jpg,1,,\na.jpg,,0,\na.jpg,1,-1,\nb.jpg,0,0,0\n")
    assert states(table) == {"a.jpg": [1, 0, -1], "b.jpg": [0, 0, 0]}


def test_present_against_absent_is_a_fault(tmp_path: Path) -> None:
    """In label columns one of the rows is wrong; the message has both lines."""
    message = refusal(tmp_path, "image,cat,dog\na.jpg,1,0\nb.jpg,1,1\na.jpg,1,1\n")
    assert message.splitlines()[1:] == [
        "  line 2 and line 4: 'a.jpg' has the same label 1 and 0",
    ]


def test_an_image_in_two_splits_is_a_fault(tmp_path: Path) -> None:
    """Scores on images that were trained on are worth nothing."""
    message = refusal(tmp_path, "image,labels,split\na.jpg,cat,train\nb.jpg,x,val\na.jpg,cat,val\n")
    assert message.splitlines()[1:] == ["  line 2 and line 4: 'a.jpg' is in different splits"]


def test_images_in_both_files_are_warned_of(tmp_path: Path) -> None:
    """Counted, however the two tables spell them."""
    train, val = write(tmp_path, listed(6)), write(tmp_path, listed(6, start=4), "val.csv")
    (tmp_path / "sub").mkdir()
    val.write_text(val.read_text() + "sub/../0.jpg,cat\n")
    splits = read_splits(train, val, SourceOptions())
    assert "warning: 3 images in both train and val: scores will be too high" in splits.notes


# ---- files that are no tables -----------------------------------------------------------


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """The message names the endings that are."""
    path = write(tmp_path, "{}", "train.md")
    with pytest.raises(DataError) as caught:
        checked(path, SourceOptions())
    known = ".csv, .json, .jsonl, .parquet, .tar, .tsv, .txt"
    assert str(caught.value) == f"{path}: wanted a file ending in {known}, or a folder"


@pytest.mark.parametrize("name", ["none", "none.csv", "none/none.csv", "none.json"])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    """The message has the whole path."""
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path / name, None, SourceOptions())
    assert str(tmp_path / name) in str(caught.value)
    assert "o such file" in str(caught.value)


# ---- one table, for scoring -------------------------------------------------------------

SPACE = LabelSpace(("fox", "dog", "cat"))


def test_one_split_of_a_table_is_read_in_given_columns(tmp_path: Path) -> None:
    """The columns are a checkpoint's, not the table's."""
    manifest, notes = read_manifest(write(tmp_path, SPLIT), "val", SourceOptions(), SPACE)
    assert states(manifest) == {"d.jpg": [0, 1, 0], "f.jpg": [0, 0, 0]}
    assert manifest.labels is SPACE
    assert notes[1] == "data: labels in column 'labels', separated by '|'"
    assert "data: 6 images found = 2 used + 4 in other splits" in notes


def test_all_splits_are_read_where_none_is_named(tmp_path: Path) -> None:
    """A note tells the user that all splits are scored."""
    manifest, notes = read_manifest(write(tmp_path, SPLIT), None, SourceOptions(), SPACE)
    assert len(manifest) == 6
    assert notes[-1] == "all splits are scored; --split chooses one"


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """No column, or no row of that split."""
    with pytest.raises(DataError, match=r"has no split 'test'; .*data\.split_column=NAME"):
        read_manifest(write(tmp_path, listed(2)), "test", SourceOptions(), SPACE)
    with pytest.raises(DataError, match=r"no images in split 'test'; .* 3 train, 3 val"):
        read_manifest(write(tmp_path, SPLIT.replace("test", "val")), "test", SourceOptions(), SPACE)
    with pytest.raises(DataError, match=r"train\.csv: no images$"):
        read_manifest(write(tmp_path, "image,labels\n"), None, SourceOptions(), SPACE)


def test_the_split_column_is_found_by_its_words_or_named(tmp_path: Path) -> None:
    """The run's other data may call it otherwise; rows without such a word are refused."""
    by_words = write(
        tmp_path, SPLIT.replace("labels,split", "labels,subset").replace("test", "Tst")
    )
    manifest, notes = read_manifest(by_words, "TESTING", SourceOptions(), SPACE)
    assert manifest.names == ("e.jpg",)
    assert sum(note.startswith("data: splits") for note in notes) == 1
    named = write(tmp_path, SPLIT.replace("labels,split", "labels,what"))
    options = SourceOptions(split_column="what")
    assert len(read_manifest(named, "val", options, SPACE)[0]) == 2
    write(tmp_path, SPLIT.replace("test", "tes"))
    with pytest.raises(DataError, match="1 bad row"):
        read_manifest(named, "test", SourceOptions(), SPACE)


def test_labels_that_the_columns_lack_are_refused(tmp_path: Path) -> None:
    """A checkpoint cannot be scored on labels that it does not know."""
    with pytest.raises(DataError, match=r"'cow': 1 image, first at line 2"):
        read_manifest(write(tmp_path, "image,labels\na.jpg,cow\n"), None, SourceOptions(), SPACE)


# ---- the user's files -------------------------------------------------------------------


def digest(root: Path) -> dict[str, tuple[str, int, int]]:
    """Return path -> SHA-256, mode and time of change, for all files and folders below `root`."""
    found = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            content = path.read_bytes() if path.is_file() else b""
            at = path.stat()
            found[str(path)] = (hashlib.sha256(content).hexdigest(), at.st_mode, at.st_mtime_ns)
    return found


def test_another_sign_between_labels_is_said_with_the_strangers(tmp_path: Path) -> None:
    """The run's sign does not separate the labels of another table."""
    file = write(tmp_path, "image,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,fox\n")
    with pytest.raises(DataError) as caught:
        read_manifest(file, None, SourceOptions(label_delimiter=";"), SPACE)
    assert str(caught.value).endswith(
        "no cell holds ';' (data.label_delimiter); '|' seems to separate the labels: "
        'data.label_delimiter: "|"'
    )
    manifest, notes = read_manifest(file, None, SourceOptions(label_delimiter="|"), SPACE)
    assert manifest.targets.counts()[0].sum() == 4
    assert not any("no row names" in note for note in notes)


def test_labels_of_the_run_that_a_table_does_not_name_are_noted(tmp_path: Path) -> None:
    """Nobody may have looked for them."""
    file = write(tmp_path, "image,labels\na.jpg,dog|fox\nb.jpg,fox\n")
    _, notes = read_manifest(file, None, SourceOptions(), SPACE)
    assert any(note.startswith("1 label ('cat') that no row names") for note in notes)


def test_no_file_of_the_user_is_changed(tmp_path: Path) -> None:
    """Reading well or badly leaves the tree as it was, to the byte and the nanosecond."""
    good = write(tmp_path, "\ufeff" + SPLIT.replace("\n", "\r\n"), touch=False)
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").write_text("the same")
    bad = write(tmp_path, "image,labels\nnone.jpg,x\n", "bad.csv", touch=False)
    before = digest(tmp_path)
    for path in (good, tmp_path):
        read_splits(path, None, SourceOptions())
    with pytest.raises(DataError):
        read_splits(bad, None, SourceOptions())
    assert digest(tmp_path) == before


# ---- copies -----------------------------------------------------------------------------


def test_copies_are_held_out_together(tmp_path: Path) -> None:
    """A picture in validation is not trained on under another name, whatever its group."""
    rows = "".join(f"{n}.jpg,{'cat' if n % 3 else 'dog'},{n // 5}\n" for n in range(40))
    table = write(tmp_path, f"image,labels,patient\n{rows}")
    contents = {str(tmp_path / f"{n}.jpg"): n % 20 for n in range(40)}  # n and n + 20
    scanned = PictureScan({}, contents)
    for options in (SourceOptions(), SourceOptions(group_by="patient")):
        splits = read_splits(
            table, None, options, SplitOptions(val_fraction=0.3), lambda _: scanned
        )
        train, val = ({int(n[:-4]) % 20 for n in side.names} for side in (splits.train, splits.val))
        assert (train & val, len(train | val)) == (set(), 20)
        assert any("20 pictures beside a copy of the same bytes" in note for note in splits.notes)
    groups = [{int(n[:-4]) // 5 for n in side.names} for side in (splits.train, splits.val)]
    assert groups[0] & groups[1] == set()
