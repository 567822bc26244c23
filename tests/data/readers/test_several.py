"""Folders that are read through tables inside of them: beside the pictures, or in each folder."""

import gzip
import os
from pathlib import Path
from typing import Any

import pytest

from mlfinetune.data.labels import apply_label_options
from mlfinetune.data.read import read_splits, read_table
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

Files = dict[str, str | bytes]
ROWS = "image,labels\na.jpg,cat|dog\nb.jpg,cat|sun\n"
LINES = '{"file_name": "a.jpg", "labels": ["cat", "dog"]}\n'


def plant(root: Path, files: Files) -> Path:
    """Make a folder with these files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(root: Path, files: Files, **options: Any) -> Table:
    """Return the Table of a folder with these files; every picture is found."""
    given = SourceOptions(**options)
    table = apply_label_options(read_table(plant(root, files), given), given)
    assert table.faults == ()
    return table


def refusal(root: Path, files: Files, **options: Any) -> str:
    """Return the message with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        read(root, files, **options)
    return str(caught.value)


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    return {
        name: {label for label, state in zip(table.labels.names, row, strict=True) if state == 1}
        for name, row in zip(table.names, table.targets[:].tolist(), strict=True)
    }


# ---- a table beside the pictures ------------------------------------------------------------

AB = {"a.jpg": {"cat", "dog"}, "b.jpg": {"cat", "sun"}}
BESIDE: dict[str, Files] = {
    "flat": {"train.csv": ROWS, "a.jpg": "", "b.jpg": ""},
    "any name": {"My tags.csv": ROWS, "a.jpg": "", "b.jpg": "", "README.txt": "a.jpg"},
    "tabs": {"tags.tsv": ROWS.replace(",", "\t"), "a.jpg": "", "b.jpg": ""},
    "semicolons": {"labels.txt": ROWS.replace(",", ";"), "a.jpg": "", "b.jpg": ""},
    "json lines": {"annotations.jsonl": LINES + LINES.replace("a.jpg", "b.jpg").replace(
        "dog", "sun"), "a.jpg": "", "b.jpg": ""},
    "folder": {"train.csv": ROWS, "images/a.jpg": "", "images/b.jpg": ""},
    "deep": {"labels.csv": ROWS, "data/2024/a.jpg": "", "data/2024/b.jpg": ""},
    "path": {"train.csv": ROWS.replace("a.jpg", "img/a.jpg").replace("b.jpg", "img/b.jpg"),
             "img/a.jpg": "", "img/b.jpg": ""},
    "table below": {"annotations/train.csv": ROWS, "images/a.jpg": "", "images/b.jpg": ""},
    "stray": {"train.csv": ROWS, "log.csv": "epoch,loss\n1,0.5\n", "a.jpg": "", "b.jpg": ""},
    "class list": {"train.csv": ROWS, "classes.txt": "cat\ndog\nsun\n", "a.jpg": "", "b.jpg": ""},
    "raw": {"train.csv": ROWS, "a.jpg": "", "a.cr2": "", "b.jpg": ""},
    "submission": {"train.csv": ROWS, "sample_submission.csv": ROWS, "a.jpg": "", "b.jpg": ""},
    "train folder": {"train.csv": ROWS, "train/a.jpg": "", "train/b.jpg": "", "test/c.jpg": ""},
}  # fmt: skip


@pytest.mark.parametrize("layout", BESIDE)
def test_the_table_beside_the_pictures_has_the_labels(tmp_path: Path, layout: str) -> None:
    """Its first rows name pictures of the folder, wherever below they lie; a note says so."""
    table = read(tmp_path, BESIDE[layout])
    assert {os.path.basename(name): v for name, v in positives(table).items()} == AB
    name = next(name for name in BESIDE[layout] if name.endswith((".csv", ".tsv", ".txt", "jsonl")))
    assert f"labels from {name}" in table.notes
    assert table.splits is None


def test_what_was_chosen_is_said(tmp_path: Path) -> None:
    """The table, the folder of its pictures, and the tables that are not read."""
    files: Files = {"train.csv": ROWS, "log.csv": "epoch,loss\n1,0.5\n", "tags.xlsx": b"PK"}
    table = read(tmp_path, {**files, "images/a.jpg": "", "images/b.jpg": ""})
    assert "labels from train.csv" in table.notes
    assert "pictures of train.csv: below images/" in table.notes
    assert "tables not read: 'log.csv' (no picture of these, or no label)" in table.notes
    assert "spreadsheets, not read: 'tags.xlsx'; save the sheet as CSV" in table.notes
    assert table.root == tmp_path / "images"


def test_class_folders_with_another_table_stay_class_folders(tmp_path: Path) -> None:
    """The rows of a log name no picture, not even where its numbers are names of some."""
    log = "epoch,loss\n" + "".join(f"{epoch},0.{epoch}\n" for epoch in range(1, 5))
    files: Files = {f"{label}/{i}.jpg": f"{label}{i}" for label in ("cat", "dog") for i in range(9)}
    table = read(tmp_path, {**files, "results.csv": log})
    assert table.labels.names == ("cat", "dog")
    assert "tables not read: 'results.csv' (no picture of these, or no label)" in table.notes


def test_a_table_packed_by_gzip_is_looked_at(tmp_path: Path) -> None:
    """It is a candidate as any other."""
    files: Files = {"train.csv.gz": gzip.compress(ROWS.encode()), "other.csv": ROWS}
    message = refusal(tmp_path, {**files, "a.jpg": "", "b.jpg": ""})
    assert str(tmp_path / "train.csv.gz") in message


SPLIT_FILES = {
    "train.csv val.csv test.csv": ("train", "val", "test"),
    "train.csv validation.csv": ("train", "val"),
    "train_labels.csv valid_labels.csv": ("train", "val"),
    "labels-train.csv labels-dev.csv labels-test.csv": ("train", "val", "test"),
}


@pytest.mark.parametrize("folder", ["", "images/", "train/"])
@pytest.mark.parametrize("names", SPLIT_FILES)
def test_train_val_and_test_are_the_splits(tmp_path: Path, names: str, folder: str) -> None:
    """By the word in their names; their pictures may lie in a folder of the same name."""
    files: Files = {}
    for number, (name, split) in enumerate(zip(names.split(), SPLIT_FILES[names], strict=True)):
        files[name] = f"image,labels\n{number}.jpg,cat|dog\nx{number}.jpg,cat\n"
        below = f"{split}/" if folder == "train/" else folder
        files |= {f"{below}{number}.jpg": name, f"{below}x{number}.jpg": f"x{name}"}
    table = read(tmp_path, files)
    assert table.splits is not None
    found = {os.path.basename(name): s for name, s in zip(table.names, table.splits, strict=True)}
    assert found == {
        f"{x}{number}.jpg": split
        for number, split in enumerate(SPLIT_FILES[names])
        for x in ("", "x")
    }
    assert table.labels.names == ("cat", "dog")
    assert table.notes[0].startswith("split files: 2 in ")


KAGGLE = {
    "one-hot": ("image,cat,dog,sun\n{}.jpg,1,0,1\n", "image\n{}.jpg\n"),
    "blank": ("image,labels\n{}.jpg,cat\n", "image,labels\n{}.jpg,\n"),
}


@pytest.mark.parametrize("kind", KAGGLE)
def test_a_test_table_without_labels_is_not_read(tmp_path: Path, kind: str) -> None:
    """As competitions have it; the pictures of test need not be there either."""
    train, test = KAGGLE[kind]
    head = train.partition("\n")[0] + "\n"
    rows = "".join(train.partition("\n")[2].format(name) for name in "ab")
    files: Files = {"train.csv": head + rows, "test.csv": test.format("c")}
    table = read(tmp_path, {**files, "train/a.jpg": "1", "train/b.jpg": "2", "test/c.jpg": "3"})
    assert (len(table), table.splits) == (2, None)
    (note,) = [note for note in table.notes if note.startswith("tables not read: 'test.csv'")]
    lacking = "(it lacks 'cat', 'dog', 'sun' of train.csv: " if kind == "one-hot" else "(no label)"
    assert lacking in note


def test_a_val_table_is_never_dropped(tmp_path: Path) -> None:
    """Its missing pictures are faults, not a reason to hold out others."""
    files: Files = {"train.csv": ROWS, "val.csv": "image,labels\nc.jpg,cat|dog\n"}
    table = read_table(plant(tmp_path, {**files, "a.jpg": "", "b.jpg": ""}), SourceOptions())
    assert [str(fault) for fault in table.faults] == ["c.jpg: 'c.jpg': no such file"]


def test_several_tables_are_refused(tmp_path: Path) -> None:
    """Each is listed as a line to paste."""
    files: Files = {"tags.csv": ROWS, "colors.csv": ROWS, "a.jpg": "", "b.jpg": ""}
    assert refusal(tmp_path, files).splitlines() == [
        f"{tmp_path}: several tables name its pictures; choose one",
        f"  data.train: {tmp_path}/colors.csv",
        f"  data.train: {tmp_path}/tags.csv",
    ]


def test_a_table_of_some_pictures_in_class_folders_is_refused(tmp_path: Path) -> None:
    """It may list those to look at again; one that lists all of them is their index."""
    files: Files = {f"{label}/{i}.jpg": f"{label}{i}" for label in ("cat", "dog") for i in range(5)}
    some = "image,labels\ncat/0.jpg,blurred\ncat/1.jpg,dark\n"
    message = refusal(tmp_path, {**files, "bad.csv": some})
    assert "labels may be in bad.csv or the names of folders ('cat', 'dog'); choose one" in message
    assert message.splitlines()[1:] == [
        f"  data.train: {tmp_path}/bad.csv",
        "  data.format: folder",
    ]
    assert read(tmp_path, {}, format="folder").labels.names == ("cat", "dog")
    every = "image,labels\n" + "".join(f"{name},x|{name[0]}\n" for name in files)
    assert set(read(tmp_path, {"bad.csv": every}).labels.names) == {"x", "c", "d"}


def test_an_index_of_split_class_folders_is_refused(tmp_path: Path) -> None:
    """The folders say train and test, the table may not: nobody may guess."""
    files: Files = {
        f"{side}/{label}/{i}.jpg": f"{side}{label}{i}"
        for side in ("train", "test")
        for label in ("cat", "dog")
        for i in range(3)
    }
    index = "image,labels\n" + "".join(f"{name},x\n" for name in files)
    assert "data.format: folder" in refusal(tmp_path, {**files, "index.csv": index})
    table = read(tmp_path, {}, format="folder")
    assert (table.labels.names, set(table.splits or ())) == (("cat", "dog"), {"train", "test"})


def test_a_table_and_files_of_tags_are_refused(tmp_path: Path) -> None:
    """Two sources of labels."""
    files: Files = {"tags.csv": ROWS, "a.jpg": "", "b.jpg": "", "a.txt": "cat", "b.txt": "dog"}
    assert refusal(tmp_path, files).splitlines()[1:] == [
        f"  data.train: {tmp_path}/tags.csv",
        "  data.format: sidecar",
    ]
    assert read(tmp_path, {}, format="sidecar").labels.names == ("cat", "dog")


def test_files_of_tags_are_no_tables(tmp_path: Path) -> None:
    """A thousand of them are not looked at, nor listed as tables."""
    files: Files = {f"{i}.jpg": "" for i in range(30)}
    files |= {f"{i}.txt": "cat, dog" for i in range(0, 30, 2)}
    files |= {f"{i}.jpg.txt": f"{i}.jpg, x" for i in range(1, 30, 2)}
    assert read(tmp_path, files).format == "sidecar"


def test_predictions_left_in_the_folder_are_no_labels(tmp_path: Path) -> None:
    """What this program wrote about pictures is not learnt from."""
    files: Files = {"cat/a.jpg": "1", "dog/b.jpg": "2"}
    rows = "image,labels,cat,dog,error\ncat/a.jpg,dog,0.1,0.9,\ndog/b.jpg,cat,0.9,0.1,\n"
    table = read(tmp_path, {**files, "predictions.csv": rows})
    assert positives(table) == {"cat/a.jpg": {"cat"}, "dog/b.jpg": {"dog"}}
    reason = "a name that programs give to tables they write"
    assert f"tables not read: 'predictions.csv' ({reason})" in table.notes


def test_a_table_that_is_filled_in_by_half(tmp_path: Path) -> None:
    """Blank cells do not hide it; one that is all blank holds no labels, and is said."""
    rows = "".join(f"{i}.jpg,{'cat|dog' if i < 3 else ''}\n" for i in range(20))
    files: Files = {f"{i}.jpg": str(i) for i in range(20)}
    table = read(tmp_path, {**files, "tags.csv": "image,labels\n" + rows})
    assert (len(table), table.labels.names) == (20, ("cat", "dog"))
    table = read(tmp_path, {"tags.csv": "image,labels\n" + rows.replace("cat|dog", "")})
    assert "tables not read: 'tags.csv' (no picture of these, or no label)" in table.notes


def test_each_split_folder_may_have_its_table(tmp_path: Path) -> None:
    """Beside its pictures, or above them."""
    for below in ("", "images/"):
        root = tmp_path / f"pets{below[:1]}"
        files: Files = {}
        for side, name in (("train", "a"), ("val", "b")):
            files |= {f"{side}/labels.csv": f"image,labels\n{name}.jpg,cat|dog\n"}
            files |= {f"{side}/{below}{name}.jpg": name}
        splits = read_splits(plant(root, files), None, SourceOptions())
        assert (len(splits.train), len(splits.val)) == (1, 1)
        assert splits.train.labels.names == ("cat", "dog")


# ---- a table in each folder -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_tables_of_the_folders_below_are_joined(tmp_path: Path, name: str) -> None:
    """The names of folders are no labels then; names are relative to each table's folder."""
    content = LINES if name.endswith("l") else "file_name,labels\na.jpg,cat|dog\n"
    files: Files = {f"{folder}/{name}": content for folder in ("x", "y/z")}
    files |= {"x/a.jpg": "1", "y/z/a.jpg": "2"}
    table = read(tmp_path, files)
    assert positives(table) == {"x/a.jpg": {"cat", "dog"}, "y/z/a.jpg": {"cat", "dog"}}
    assert table.notes[0] == "tables in 2 folders: 'x/', 'y/z/'"
    assert table.splits is None


def test_tables_below_split_folders(tmp_path: Path) -> None:
    """train/x/metadata.jsonl is of train."""
    files: Files = {}
    for number, folder in enumerate(("train/x", "train/y", "val/x")):
        files |= {f"{folder}/metadata.jsonl": LINES, f"{folder}/a.jpg": str(number)}
    table = read(tmp_path, files)
    assert table.splits == ("train", "train", "val")
    assert table.labels.names == ("cat", "dog")


def test_a_folder_of_pictures_without_a_table_is_named(tmp_path: Path) -> None:
    """Its pictures would be dropped, or have the labels of another kind."""
    files: Files = {"x/metadata.jsonl": LINES, "x/a.jpg": "1", "y/b.jpg": "2", "y/c.jpg": "3"}
    files |= {"x/deeper/d.jpg": "4"}
    message = refusal(tmp_path, files)
    assert "x/ has a table of labels (metadata.jsonl)" in message
    assert message.splitlines()[1:] == ["  y/: 2 pictures"]
    assert read(tmp_path, {}, format="folder").labels.names == ("x", "deeper", "y")


def test_linked_split_folders_outside_are_named_once(tmp_path: Path) -> None:
    """With their pictures counted; permitted, they are read."""
    plant(tmp_path / "disk", {f"{label}/{i}.jpg": label + str(i) for label in "ab" for i in "123"})
    root = plant(tmp_path / "pets", {"train/a/1.jpg": "1"})
    (root / "val").symlink_to(tmp_path / "disk")
    message = refusal(root, {})
    assert message.splitlines()[1:] == [f"  val -> {tmp_path / 'disk'} (6 pictures)"]
    assert len(read(root, {}, allow_outside_root=True)) == 7


@pytest.mark.parametrize("tables", [("tags.csv",), ("train.csv", "val.csv")])
def test_a_linked_folder_of_pictures_outside_is_refused(
    tmp_path: Path, tables: tuple[str, ...]
) -> None:
    """Whether the table is one or two; it is named once, and permitted it is read."""
    pictures = [f"{n}.jpg" for n in range(4)]
    plant(tmp_path / "disk", dict(zip(pictures, pictures, strict=True)))
    rows = [
        f"{name},{label}\n"
        for name, label in zip(pictures, ("cat", "cat", "dog", "dog"), strict=True)
    ]
    parts = (rows[at :: len(tables)] for at in range(len(tables)))
    head = "image,labels\n"
    root = plant(
        tmp_path / "pets", {t: head + "".join(p) for t, p in zip(tables, parts, strict=True)}
    )
    (root / "images").symlink_to(tmp_path / "disk")
    message = refusal(root, {})
    assert "1 linked folder outside the image root; data.allow_outside_root: true" in message
    assert message.splitlines()[1:] == [f"  images -> {tmp_path / 'disk'} (4 pictures)"]
    read_splits(root, None, SourceOptions(allow_outside_root=True))


# ---- tables that are not read ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "log.csv", "log.jsonl"])
def test_a_file_that_is_one_long_line_is_not_read(tmp_path: Path, name: str) -> None:
    """It is no table of pictures."""
    table = read(tmp_path, {name: "words, " * 50_000, "cat/a.jpg": "1", "dog/b.jpg": "2"})
    assert table.labels.names == ("cat", "dog")


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    """It may be the table of the labels."""
    packed = bytearray(gzip.compress("".join(f"{n}.jpg,cat\n" for n in range(9999)).encode()))
    packed[100:200] = bytes([255] * 100)
    message = refusal(tmp_path, {"train.csv.gz": bytes(packed), "cat/a.jpg": "", "dog/b.jpg": ""})
    assert "train.csv.gz: damaged gzip" in message


def test_a_table_that_programs_write_is_named_as_such(tmp_path: Path) -> None:
    """Its name is the reason, not its rows."""
    table = read(tmp_path, BESIDE["submission"])
    reason = "a name that programs give to tables they write"
    assert f"tables not read: 'sample_submission.csv' ({reason})" in table.notes


def test_a_test_table_with_a_typing_error_is_said_with_its_error(tmp_path: Path) -> None:
    """It would be a split; its labels may also be kept back."""
    files: Files = {"train.csv": ROWS, "test.csv": ROWS.replace("labels", "lables")}
    table = read(tmp_path, {**files, "a.jpg": "1", "b.jpg": "2"}, label_column=("labels",))
    (note,) = [note for note in table.notes if "not read: 'test.csv'" in note]
    assert note.startswith("tables not read: 'test.csv' (it lacks 'labels' of train.csv: ")
    assert "lables" in note
    assert "\n" not in note


# ---- tables that are joined -----------------------------------------------------------------


def test_groups_of_some_tables_alone_are_refused(tmp_path: Path) -> None:
    """Class folders have no column of patients."""
    files: Files = {"train/metadata.csv": "file_name,labels,patient\na.jpg,cat,p1\n"}
    files |= {"train/a.jpg": "1", "val/cat/b.jpg": "2", "val/dog/c.jpg": "3"}
    message = refusal(tmp_path, files, group_by="patient")
    assert "no column of groups (data.group_by) in 'val/', and one in the other tables" in message


def test_only_common_guesses_of_joined_tables_are_choices(tmp_path: Path) -> None:
    """A config with a guess of one table would refuse the other."""
    files: Files = {"train.csv": ROWS.replace("image", "Datei"), "a.jpg": "1", "b.jpg": "2"}
    val = ROWS.replace("a.jpg", "c.jpg").replace("b.jpg", "d.jpg")
    files |= {"c.jpg": "3", "d.jpg": "4"}
    table = read(tmp_path / "same", {**files, "val.csv": val.replace("image", "Datei")})
    assert dict(table.choices)["image_column"] == "Datei"
    table = read(tmp_path / "other", {**files, "val.csv": val})
    assert "image_column" not in dict(table.choices)


# ---- the folder of each table's pictures ----------------------------------------------------


def draw(folder: str, start: int, stop: int) -> Files:
    """Return pictures of one folder, each with bytes of its own."""
    return {f"{folder}{i:03}.jpg": f"{folder}{i}" for i in range(start, stop)}


def list_rows(start: int, stop: int) -> str:
    """Return a table of names without folders."""
    rows = (f"{i:03}.jpg,{'cat' if i % 2 else 'dog'}" for i in range(start, stop))
    return "\n".join(["image,labels", *rows])


@pytest.mark.parametrize("name", ["{}.csv", "labels_{}.csv", "annotations/{}.csv"])
@pytest.mark.parametrize("folder", ["{}/", "images/{}/", "{}/images/"])
def test_each_split_table_has_the_pictures_of_its_folder(
    tmp_path: Path, name: str, folder: str
) -> None:
    """Though the folder of another split has files of all its names."""
    bounds = {"train": (0, 20), "val": (12, 20), "test": (8, 16)}
    files: Files = {name.format(split): list_rows(*at) for split, at in bounds.items()}
    for split, at in bounds.items():
        files |= draw(folder.format(split), *at)
    table = read(tmp_path, files)
    assert table.splits is not None
    for row, split in zip(table.names, table.splits, strict=True):
        assert row.startswith(folder.format(split))
    assert len(table) == 36


def test_a_val_table_of_pictures_in_train(tmp_path: Path) -> None:
    """Where val/ has none of its pictures, they are in train/."""
    files: Files = {"train.csv": list_rows(0, 6), "val.csv": list_rows(6, 9)}
    table = read(tmp_path, {**files, **draw("train/", 0, 9), **draw("val/", 20, 24)})
    assert set(map(os.path.dirname, table.names)) == {"train"}


def test_several_folders_of_the_same_names_are_refused(tmp_path: Path) -> None:
    """Nobody can know whose labels the table has; copies are one and the same."""
    files: Files = {"tags.csv": list_rows(0, 4), **draw("train/", 0, 4)}
    message = refusal(tmp_path, {**files, **draw("val/", 0, 4)})
    assert "tags.csv: 2 folders hold other pictures of the same names; choose one" in message
    assert message.splitlines()[1:] == [
        f"  data.images: {tmp_path}/train",
        f"  data.images: {tmp_path}/val",
    ]
    assert len(read(tmp_path, {}, images=tmp_path / "val")) == 4
    read(
        tmp_path,
        {name.replace("train", "val"): text for name, text in draw("train/", 0, 4).items()},
    )


def test_the_path_as_it_is_written_comes_first(tmp_path: Path) -> None:
    """Before files of the same names below; where it leads to some of them alone, a refusal."""
    files: Files = {"train.csv": list_rows(0, 4), **draw("images/", 0, 4), **draw("train/", 0, 4)}
    table = read(tmp_path / "all", {**files, **draw("", 0, 4)})
    assert table.names[0] == "000.jpg"
    message = refusal(tmp_path / "one", {**files, **draw("", 0, 1)})
    assert f"data.images: {tmp_path}/one\n" in message
    assert f"data.images: {tmp_path}/one/train" in message
