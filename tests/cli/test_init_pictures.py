"""`mlfinetune init` where pictures, labels or both are not where a table says."""

import shutil
from pathlib import Path

import pytest
from conftest import Run, prepare
from test_init import SHARED, init
from test_mistakes import fails

from mlfinetune.config import load_config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with images/ (12 drawn pictures) and tags.csv that names `images/...`."""
    prepare(tmp_path, 12)
    return tmp_path


def rewrite(folder: Path, old: str, new: str, name: str = "train.csv") -> None:
    """Write tags.csv under another name, with other paths."""
    (folder / name).write_text((folder / "tags.csv").read_text().replace(old, new))


def trains(cli: Run, folder: Path, config: str) -> str:
    """Train on one batch with a config as it was written, and return what is said."""
    done = cli("train", config, "--dry-run", *SHARED, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


# ---- pictures in another folder -------------------------------------------------------------


def test_a_folder_below_whose_names_fit(data: Path, cli: Run) -> None:
    """The commonest layout: train.csv beside images/, and names without the folder."""
    rewrite(data, "images/", "")
    said = init(cli, data, "train.csv")
    assert "pictures in images/: 12 of 12" in said
    assert said[-1] == "every picture can be read"
    assert "\n  images: images " in (data / "train.yaml").read_text()
    made = load_config(data / "train.yaml").data
    assert (made.images, made.find_by_name) == (data / "images", False)
    trains(cli, data, "train.yaml")


def test_ids_without_ending_beside_train_and_test(data: Path, cli: Run) -> None:
    """Kaggle's layout: train.csv with ids, train/ with all pictures, test/ with other ones."""
    (data / "images").rename(data / "train")
    (data / "test").mkdir()
    shutil.copy(data / "train/0000.jpg", data / "test/0000.jpg")
    text = (data / "tags.csv").read_text().replace("images/", "")
    (data / "train.csv").write_text(text.replace(".jpg", "").replace(".png", ""))
    said = init(cli, data, "train.csv")
    assert "pictures in train/: 12 of 12" in said
    made = load_config(data / "train.yaml").data
    assert (made.images, made.find_by_name) == (data / "train", True)
    assert "12 pictures found by name" in trains(cli, data, "train.yaml")


def test_folders_that_hold_all_pictures_alike(data: Path, cli: Run) -> None:
    """Each has its command; the one that is chosen works."""
    rewrite(data, "images/", "")
    shutil.copytree(data / "images", data / "small")
    done = cli("init", "train.csv", "train.epochs=3", cwd=data)
    commands = [
        f"mlfinetune init train.csv train.epochs=3 --images {x}" for x in ("images", "small")
    ]
    fails(done, "12 pictures are in 2 folders alike", *commands)
    assert not (data / "train.yaml").exists()
    init(cli, data, "train.csv", "train.epochs=3", "--images", "small")
    assert load_config(data / "train.yaml").data.images == data / "small"


def test_a_folder_below_the_given_one_is_not_as_given(data: Path, cli: Run) -> None:
    """The comment says where a value is from."""
    rewrite(data, "images/", "")
    (data / "all").mkdir()
    (data / "images").rename(data / "all/images")
    init(cli, data, "train.csv", "--images", "all")
    assert load_config(data / "train.yaml").data.images == data / "all/images"
    assert "as given to init" not in (data / "train.yaml").read_text()


def test_a_linked_folder_outside_is_said_with_its_key(data: Path, cli: Run) -> None:
    """Of a table and of a folder; permitted, the pictures are found."""
    rewrite(data, "images/", "")
    (data / "found").mkdir()
    (data / "train.csv").rename(data / "found/train.csv")
    (data / "found/images").symlink_to(data / "images")
    for name in ("found", "found/train.csv"):
        fails(cli("init", name, cwd=data), "images", "data.allow_outside_root: true permits it")
        permitted = "data.allow_outside_root=true"
        init(cli, data, name, permitted, "-o", f"{Path(name).stem}.yaml")
    made = load_config(data / "train.yaml").data
    assert (made.images, made.allow_outside_root) == (data / "found/images", True)


@pytest.mark.parametrize("start", ["C:\\pets\\", "/content/drive/", "images/images/", "file:///x/"])
def test_paths_of_another_machine(data: Path, cli: Run, start: str) -> None:
    """They are found by their names, and the config says so."""
    rewrite(data, "images/", start)
    said = init(cli, data, "train.csv")
    assert "pictures in images/: 12 of 12" in said
    made = load_config(data / "train.yaml").data
    assert (made.images, made.find_by_name) == (data / "images", True)
    trains(cli, data, "train.yaml")


def test_pictures_in_several_folders(data: Path, cli: Run) -> None:
    """The folder above them is written."""
    rewrite(data, "images/", "D:\\")
    for number, path in enumerate(sorted((data / "images").iterdir())):
        (data / f"all/{number % 2}").mkdir(parents=True, exist_ok=True)
        path.rename(data / f"all/{number % 2}/{path.name}")
    assert "pictures in all/: 12 of 12" in init(cli, data, "train.csv")
    made = load_config(data / "train.yaml").data
    assert (made.images, made.find_by_name) == (data / "all", True)


def test_a_few_missing_pictures_move_no_folder(data: Path, cli: Run) -> None:
    """They are skipped, with the hint where they are."""
    rewrite(data, "images/0003.png", "x/0003.png")
    said = init(cli, data, "train.csv")
    assert "missing pictures: 1 of 1 are there as data.images/images/<name>; " in "\n".join(said)
    made = load_config(data / "train.yaml").data
    assert (made.images, made.find_by_name, made.bad_images) == (None, False, "skip")


def test_no_picture_anywhere(data: Path, cli: Run) -> None:
    """The option that names their folder."""
    rewrite(data, "images/", "none/x")
    done = cli("init", "train.csv", cwd=data)
    fails(done, "none of 12 pictures can be read", "mlfinetune init train.csv --images DIR")
    fails(cli("init", "tags.csv", "--images", "none", cwd=data), "--images none: no such folder")


def test_train_and_check_give_the_hint(data: Path, cli: Run) -> None:
    """With the count; and with the key they find them."""
    rewrite(data, "images/", "C:\\pets\\")
    (data / "c.yaml").write_text("data: {train: train.csv}")
    hint = "12 of 12 are there as data.images/images/<name>; data.find_by_name: true finds them"
    fails(cli("train", "c.yaml", cwd=data), hint, "... and 2 more")
    fails(cli("train", "c.yaml", "data.bad_images=skip", cwd=data), hint, "none of 12 images")
    assert hint in cli("check", "c.yaml", cwd=data).stdout
    assert cli("check", "c.yaml", "data.find_by_name=true", cwd=data).returncode == 0


def test_one_name_of_a_found_picture_everywhere(data: Path, cli: Run) -> None:
    """In the files of a run, in its evaluation, and for skipped pictures: the file's own name."""
    rewrite(data, "images/", "C:\\pets\\")
    (data / "images/0002.jpg").write_text("no picture")
    init(cli, data, "train.csv")
    done = cli("train", "train.yaml", *SHARED, "train.epochs=1", cwd=data)
    assert done.returncode == 0, done.stderr
    run = data / "runs/train"
    assert "0002.jpg" in (run / "skipped.csv").read_text()
    names = [line.split(",")[0] for line in (run / "predictions.csv").read_text().splitlines()[1:]]
    assert names
    assert all((data / "images" / Path(name).name).is_file() for name in names)
    assert not any("\\" in name for name in names)
    done = cli("eval", "--checkpoint", "runs/train", "--data", "train.csv", cwd=data)
    assert done.returncode == 0, done.stderr
    assert "12 pictures found by name" in done.stderr


# ---- keys -----------------------------------------------------------------------------------


def test_overrides_are_used_and_written(data: Path, cli: Run) -> None:
    """In their sections; lists, mappings and paths too."""
    said = init(
        cli,
        data,
        "tags.csv",
        "data.label_delimiter=|",
        "data.rename_labels.red=rot",
        "data.ignore_labels=[dots]",
        "data.val_fraction=0.5",
        "train.epochs=3",
        "eval.threshold=0.4",
        "output=runs/mine",
        "-o",
        "new.yaml",
    )
    assert said[1] == "split: 6 to train, 6 to validate (50% held out, stratified by label)"
    assert "'rot'" in "".join(said)
    made = load_config(data / "new.yaml")
    assert (made.data.label_delimiter, made.data.val_fraction) == ("|", 0.5)
    assert (made.data.rename_labels, made.data.ignore_labels) == ({"red": "rot"}, ["dots"])
    assert (made.train.epochs, made.eval.threshold) == (3, 0.4)
    assert made.output == data / "runs/mine"


def test_overrides_with_faults(data: Path, cli: Run) -> None:
    """The usual messages, and nothing is written."""
    done = cli("init", "tags.csv", "trian.epochs=3", "data.unknown=no", cwd=data)
    fails(done, "2 faults", "did you mean 'train'?", "data.unknown")
    fails(cli("init", "tags.csv", "data.train=x.csv", cwd=data), "data.train: an argument of init")
    assert not (data / "tags.yaml").exists()


def test_a_table_of_val(data: Path, cli: Run) -> None:
    """Both tables are read and counted."""
    lines = (data / "tags.csv").read_text().splitlines()
    (data / "val.csv").write_text("\n".join([lines[0], *lines[-3:]]))
    (data / "train.csv").write_text("\n".join(lines[:-3]))
    said = init(cli, data, "train.csv", "data.val=val.csv")
    assert said[0].startswith("12 pictures")
    assert said[1] == "split: 9 to train, 3 to validate (as the data says)"
    assert load_config(data / "train.yaml").data.val == data / "val.csv"


# ---- configs that train ---------------------------------------------------------------------


def mark(folder: Path, rows: list[str], header: str = "image,cat,dog") -> None:
    """Write a table of the pictures; `rows` are the cells after the name, in turn."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    cells = [f"images/{name},{rows[number % len(rows)]}" for number, name in enumerate(names)]
    (folder / "marks.csv").write_text("\n".join([header, *cells]))


def test_columns_of_one_and_blank(data: Path, cli: Run) -> None:
    """Blank means no, and the config says why: without negatives nothing is learned."""
    mark(data, ["1,", ",1", "1,1", ","])
    said = init(cli, data, "marks.csv")
    assert any(line.startswith("no cell says 0: 12 unknown targets") for line in said)
    assert any("3 of 12 pictures have blank cells alone: taken as neg" in line for line in said)
    assert not any("cannot be learned" in line for line in said)
    text = (data / "marks.yaml").read_text()
    assert "\n  unknown: negative          # no cell says 0, and nothing is learned" in text
    assert "cannot be learned" not in trains(cli, data, "marks.yaml")


def test_a_half_filled_table_of_ticks_has_a_choice(data: Path, cli: Run) -> None:
    """Rows that nobody has come to yet are counted, and may be left out of what is learned."""
    mark(data, ["1,", ",1", ",", ","])
    said = init(cli, data, "marks.csv")
    line = "6 of 12 pictures have blank cells alone: taken as negatives (data.unknown); where "
    assert f"{line}nobody has looked at them, set data.empty_labels: unknown" in said
    text = (data / "marks.yaml").read_text()
    assert "empty_labels: negative     # 6 of 12 have blank cells alone; unknown where" in text
    said = init(cli, data, "marks.csv", "data.empty_labels=unknown", "-o", "u.yaml")
    assert "12 pictures, 2 labels, 0.5 per picture, 12 unknown targets" in said
    assert any("nothing is learned of them (data.empty_labels)" in line for line in said)
    assert load_config(data / "u.yaml").data.empty_labels == "unknown"


def test_blank_stays_unknown_beside_zeros(data: Path, cli: Run) -> None:
    """Or where the user says so; a label without a negative is named."""
    mark(data, ["1,1", "0,", "1,1"])
    said = init(cli, data, "marks.csv")
    assert any("1 label ('dog') without a negative in train" in line for line in said)
    assert load_config(data / "marks.yaml").data.unknown == "ignore"
    mark(data, ["1,", ",1"])
    init(cli, data, "marks.csv", "data.unknown=positive", "-o", "given.yaml")
    assert load_config(data / "given.yaml").data.unknown == "positive"


def test_nothing_to_learn_is_no_next_step(data: Path, cli: Run) -> None:
    """One label for all pictures: the config is written, and training is not proposed."""
    mark(data, ["cat"], "image,labels")
    done = cli("init", "marks.csv", cwd=data)
    assert done.returncode == 0
    assert "nothing can be learned yet" in done.stderr
    assert "mlfinetune train" not in done.stderr


def test_pictures_without_labels_are_counted(data: Path, cli: Run) -> None:
    """With the other choice where they are many, in the lines and in the config."""
    mark(data, ["cat", "dog|cat", ""], "image,labels")
    said = "\n".join(init(cli, data, "marks.csv"))
    assert "4 of 12 pictures have no label: taken as negatives; where nobody" in said
    assert "# 4 of 12 have no label; unknown where nobody" in (data / "marks.yaml").read_text()
    mark(data, ["cat", "dog", "dog|cat", "cat", "dog", ""], "image,labels")
    said = "\n".join(init(cli, data, "marks.csv", "-o", "few.yaml"))
    assert "2 of 12 pictures have no label: taken as negatives\n" in said
    assert "# a picture without a label" in (data / "few.yaml").read_text()
    said = "\n".join(init(cli, data, "marks.csv", "data.empty_labels=unknown", "-o", "u.yaml"))
    assert "2 of 12 pictures have no label: taken as unknown" in said


def test_tables_of_splits_beside_the_table_are_named(data: Path, cli: Run) -> None:
    """With both ways to read them; not where they are read, or train.csv says itself who is val."""
    for name in ("train.csv", "val.csv", "test.csv", "other_val.csv"):
        rewrite(data, "", "", name)
    said = init(cli, data, "train.csv")
    line = "val.csv and test.csv lie beside it, not read; to read all: mlfinetune init ."
    assert f"{line}, or data.val=val.csv" in said
    (data / "train.yaml").unlink()
    assert "beside" not in str(init(cli, data, "train.csv", "data.val=val.csv"))
    assert "beside" not in str(init(cli, data, "tags.csv"))
