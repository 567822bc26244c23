"""`mlfinetune init` where a folder of pictures has no labels yet: a table to fill in."""

import shutil
from pathlib import Path

from conftest import Run
from test_init import init
from test_init_pictures import data, rewrite, trains
from test_mistakes import fails

from mlfinetune.config import load_config

__all__ = ["data"]


def fill(table: Path, labels: tuple[str, ...] = ("cat", "cat|dog", "dog", "")) -> None:
    """Fill in the labels of a table, in turn."""
    head, *rows = table.read_text().splitlines()
    assert head.removeprefix("\ufeff") == "image,labels"
    rows = [row + labels[number % len(labels)] for number, row in enumerate(rows)]
    table.write_text("\n".join([head, *rows]))


def test_the_whole_road_from_a_flat_folder(data: Path, cli: Run) -> None:
    """init FOLDER -> a table; init TABLE before and after it is filled in; train and check."""
    done = cli("init", "images", cwd=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "12 pictures without labels: a row for each\n"
    assert "fill in its column labels, several separated by '|'" in done.stderr
    assert done.stderr.rstrip().endswith("mlfinetune init images.csv")
    assert not (data / "images.yaml").exists()
    fails(cli("init", "images", cwd=data), "images.csv is there already", "init images.csv")
    fails(cli("init", "images.csv", cwd=data), "none of 12 pictures has a label yet", "'labels'")
    fill(data / "images.csv")
    init(cli, data, "images.csv")
    trains(cli, data, "images.yaml")
    assert cli("check", "images.yaml", cwd=data).returncode == 0


def test_folders_of_splits_go_into_the_table(data: Path, cli: Run) -> None:
    """Pictures of val are not trained on, once their labels are filled in."""
    for number, path in enumerate(sorted((data / "images").iterdir())):
        side = data / "d10" / ("val" if number % 3 == 0 else "train")
        side.mkdir(parents=True, exist_ok=True)
        path.rename(side / path.name)
    assert "column split by the folders: 8 train, 4 val" in init(cli, data, "d10")
    text = (data / "d10.csv").read_text()
    assert text.startswith("image,labels,split\nd10/train/0001.png,,train\n")
    (data / "d10.csv").write_text(
        text.replace(",,train", ",cat|dog,train", 3).replace(",,", ",dog,")
    )
    assert "split: 8 to train, 4 to validate (as the data says)" in init(cli, data, "d10.csv")
    (data / "d10/more").mkdir()
    (data / "d10/train/0001.png").rename(data / "d10/more/1.png")
    said = init(cli, data, "d10", "--table", "torn.csv")
    assert any(line.startswith("no column split: folders train, val, but not") for line in said)


def test_text_files_that_are_not_read_are_named(data: Path, cli: Run) -> None:
    """Beside few of the pictures, with the command that reads them; in labels/, as of YOLO."""
    folder = data / "images"
    for path in sorted(folder.iterdir())[:4]:
        path.with_suffix(".txt").write_text("cat, dog")
    command = "mlfinetune init images data.format=sidecar"
    line = f"4 text files beside pictures are not read as tags; to read them: {command}"
    assert line in init(cli, data, "images")
    assert "4 to train" not in str(init(cli, data, "images", "data.format=sidecar"))
    (data / "yolo/labels").mkdir(parents=True)
    for text in folder.glob("*.txt"):
        text.rename(data / "yolo/labels" / text.name)
    folder.rename(data / "yolo/images")
    said = init(cli, data, "yolo")
    assert said[0].startswith("folder 'images' would be the only label, and one label alone")
    assert said[1].startswith("4 text files named like pictures, in labels: not read")
    assert (data / "yolo.csv").is_file()
    assert not (data / "yolo.yaml").exists()


def test_pictures_that_are_not_decoded_are_counted(data: Path, cli: Run) -> None:
    """Before anybody labels them; and in class folders nobody is asked where they are."""
    for name in ("raw/1.CR2", "raw/2.cr2", "rows/cat/1.CR2", "rows/dog/2.CR2"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(name.encode())
    said = init(cli, data, "raw")
    assert "2 of 2 pictures (.cr2) cannot be read yet: raw file of a camera; convert" in said[1]
    done = cli("init", "rows", cwd=data)
    assert "none of 2 pictures can be read\n" in done.stderr
    assert "--images" not in done.stderr


def test_the_road_where_the_table_lies_elsewhere(data: Path, cli: Run) -> None:
    """Names are relative to the pictures' folder, and the command names it."""
    (data / "work").mkdir()
    done = cli("init", "../images", "train.epochs=2", cwd=data / "work")
    command = "mlfinetune init images.csv train.epochs=2 --images ../images"
    assert done.stderr.rstrip().endswith(command)
    fill(data / "work/images.csv")
    init(cli, data / "work", *command.split()[2:])
    made = load_config(data / "work/images.yaml")
    assert (made.data.images, made.train.epochs) == (data / "images", 2)
    trains(cli, data / "work", "images.yaml")


def test_a_table_for_albums(data: Path, cli: Run) -> None:
    """Their names are labels unless the user says no; names of any kind come back."""
    for number, path in enumerate(sorted((data / "images").iterdir())):
        folder = data / "albums" / ("caf\u00e9, 2024", 'the "best"')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    assert any("mlfinetune init albums --table albums.csv" in x for x in init(cli, data, "albums"))
    done = cli("init", "albums", "--table", "albums.csv", cwd=data)
    assert done.returncode == 0, done.stderr
    assert (data / "albums.csv").read_text()[0] == "\ufeff"  # Excel then reads the accents
    fill(data / "albums.csv")
    said = init(cli, data, "albums.csv", "-o", "new.yaml")
    assert said[0].startswith("12 pictures, 2 labels")


def test_names_that_no_cell_can_hold(data: Path, cli: Run) -> None:
    """They are left out and listed; a comma, a quote or a sign of a formula is no trouble."""
    names = ("a,b.jpg", 'c"d.jpg', "=e.jpg", " f.jpg", "g\udcff.jpg")
    for name in names:
        shutil.copy(data / "images/0000.jpg", data / name)
    shutil.rmtree(data / "images")
    done = cli("init", ".", "--table", "t.csv", cwd=data)
    assert "3 pictures without labels" in done.stdout
    assert "' f.jpg'" in done.stdout
    fill(data / "t.csv")
    assert "every picture can be read" in init(cli, data, "t.csv")


def test_a_table_is_never_overwritten(data: Path, cli: Run) -> None:
    """Nor is one written for a table, under another ending, or beside a table of the folder."""
    before = (data / "tags.csv").read_text()
    fails(cli("init", "images", "--table", "tags.csv", cwd=data), "tags.csv is there already")
    assert (data / "tags.csv").read_text() == before
    fails(cli("init", "tags.csv", "--table", "new.csv", cwd=data), "--table is for a folder")
    fails(cli("init", "images", "--table", "new.txt", cwd=data), "ends in .csv")
    fails(
        cli("init", "images", "--table", "n.csv", "--images", ".", cwd=data), "leave out --images"
    )
    (data / "empty").mkdir()
    fails(cli("init", "empty", "--table", "n.csv", cwd=data), "no picture")
    assert not list(data.glob("n*"))


def test_a_folder_of_pictures_and_a_table(data: Path, cli: Run) -> None:
    """No table is written beside another one."""
    rewrite(data, "images/", "", "images/own.csv")
    done = cli("init", "images", cwd=data)
    if done.returncode:  # unless the table of the folder is read
        fails(done, "mlfinetune init images/own.csv")
    assert not (data / "images.csv").exists()
