"""`mlfinetune eval` as a user runs it."""

import csv
import json
import shutil
from pathlib import Path

from conftest import Run, run_child


def test_eval_repeats_the_numbers_of_the_run(trained: Path) -> None:
    """The checkpoint alone, without a YAML file, gives the run's own metrics."""
    done = run_child("eval", "--checkpoint", "runs/pets", "-o", "again", cwd=trained)
    assert done.returncode == 0, done.stderr
    run, again = (
        json.loads((trained / folder / "metrics.json").read_text())
        for folder in ("runs/pets", "again")
    )
    assert run["per_label"] == again["per_label"]
    assert run["mAP"] == again["mAP"]
    assert "warning" not in done.stderr
    for name in ("per_label.csv", "predictions.csv"):
        assert (trained / "again" / name).read_text() == (trained / "runs/pets" / name).read_text()


def test_eval_writes_into_the_run_by_default(trained: Path, cli: Run) -> None:
    """Results go to eval/ beside the checkpoint, whether run or file is named."""
    for name in ("runs/pets", "runs/pets/best.safetensors"):
        shutil.rmtree(trained / "runs/pets/eval", ignore_errors=True)
        assert cli("eval", "-c", name, cwd=trained).returncode == 0
        assert (trained / "runs/pets/eval/metrics.json").is_file()


def test_eval_scores_other_data(trained: Path, cli: Run) -> None:
    """--data with its own folder, and --split for one value of its split column."""
    rows = (trained / "tags.csv").read_text().splitlines()
    split = [rows[0] + ",split"] + [
        f"{r},{'test' if n < 7 else 'val'}" for n, r in enumerate(rows[1:])
    ]
    (trained / "other.csv").write_text("\n".join(split))
    arguments = ["eval", "-c", "runs/pets", "--data", "other.csv"]
    assert cli(*arguments, cwd=trained).stdout.startswith("24 images")
    done = cli(*arguments, "--split", "test", "-o", "other", cwd=trained)
    assert done.stdout.startswith("7 images")
    assert json.loads((trained / "other/metrics.json").read_text())["images"] == 7


def test_eval_does_not_hold_out_anew(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Of a table that has lost some of those that the run held out."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    rows = (copy / "tags.csv").read_text().splitlines()
    shutil.rmtree(copy / "images")
    try:
        (trained / "tags.csv").write_text("\n".join(rows[:9]))
        done = cli("eval", "-c", "runs/pets", "-o", str(tmp_path / "out"), cwd=trained)
    finally:
        shutil.copy(copy / "tags.csv", trained / "tags.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "has changed since training" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_table_of_validation_is_all_that_eval_needs(pictures: Path, cli: Run) -> None:
    """Its change is told of; the pictures of training may be gone."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    (pictures / "val.csv").write_text("\n".join([header, *rows[:8]]))
    (pictures / "train.csv").write_text("\n".join([header, *rows[8:]]))
    sides = ("data.train=train.csv", "data.val=val.csv", "data.label_delimiter=null")
    assert cli("train", "pets.yaml", *sides, cwd=pictures).returncode == 0
    (pictures / "train.csv").unlink()
    done = cli("eval", "-c", "runs/pets", cwd=pictures)
    assert "8 images, mAP over" in done.stdout, done.stderr
    assert "changed" not in done.stderr
    (pictures / "val.csv").write_text("\n".join([header, *rows[:7]]))
    assert "validation data has changed" in cli("eval", "-c", "runs/pets", cwd=pictures).stderr


def test_labels_of_other_data_are_separated_as_in_training(trained: Path, cli: Run) -> None:
    """What a cell means does not depend on which other cells stand beside it."""
    table = 'image,labels\nimages/0000.jpg,red\nimages/0001.png,"blue, red"\n'
    (trained / "odd.csv").write_text(table)
    done = cli("eval", "-c", "runs/pets", "--data", "odd.csv", cwd=trained)
    assert done.returncode == 2
    assert "'blue, red': 1 image, first at line 3" in done.stderr


def test_eval_takes_overrides_and_another_folder_of_pictures(trained: Path, cli: Run) -> None:
    """What its messages advise can be done."""
    (trained / "more.csv").write_text("image,labels\nimages/0000.jpg,red|pink\nno.jpg,blue\n")
    arguments = ("eval", "-c", "runs/pets", "--data", "more.csv", "-o", "more")
    assert "'pink'" in cli(*arguments, "data.bad_images=skip", cwd=trained).stderr
    done = cli(*arguments, "data.bad_images=skip", "data.ignore_labels=[pink]", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "1 image, " in done.stdout
    assert cli("eval", "-c", "runs/pets", "--images", "none", cwd=trained).returncode == 2
    assert "unknown key" in cli(*arguments, "data.colour=1", cwd=trained).stderr


def test_labels_that_the_checkpoint_lacks_are_named(trained: Path, cli: Run) -> None:
    """A typo in the table is an error with the nearest label, not a column of zeros."""
    (trained / "typo.csv").write_text("image,labels\nimages/0000.jpg,gren|red\n")
    done = cli("eval", "-c", "runs/pets", "--data", "typo.csv", cwd=trained)
    assert done.returncode == 2
    assert "'gren': 1 image, first at line 2; did you mean 'green'?" in done.stderr


def test_data_that_cannot_be_read_leaves_no_folder(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Results of nothing would look like results."""
    out = tmp_path / "out"
    (tmp_path / "other.csv").write_text("image,labels\nnone.jpg,red\n")
    arguments = ("-c", "runs/pets", "--data", str(tmp_path / "other.csv"), "-o", str(out))
    done = cli("eval", *arguments, cwd=trained)
    assert done.returncode == 2
    assert "line 2: 'none.jpg': no such file" in done.stderr
    assert not out.exists()


def test_a_run_that_skipped_pictures_says_so_again(pictures: Path, cli: Run) -> None:
    """Else its numbers would seem to be of all pictures."""
    (pictures / "images/0003.png").write_text("no picture")
    done = cli("train", "pets.yaml", "data.bad_images=skip", cwd=pictures)
    assert done.returncode == 0, done.stderr
    done = cli("eval", "-c", "runs/pets", cwd=pictures)
    assert "24 images found = 23 used + 1 skipped" in done.stderr
    assert "line 5: 'images/0003.png'" in done.stderr


def test_eval_warns_of_groups_that_were_trained_on(trained: Path, cli: Run) -> None:
    """The test's pictures of a patient of train score too high, and are scored."""
    header, *rows = (trained / "tags.csv").read_text().splitlines()
    lines = [
        f"{row},{'test' if n < 8 else 'train'},{n // 2 if n != 6 else 9}"
        for n, row in enumerate(rows)
    ]
    (trained / "torn.csv").write_text("\n".join([f"{header},split,patient", *lines]))
    arguments = ("eval", "-c", "runs/pets", "--data", "torn.csv", "--split", "test")
    done = cli(*arguments, "data.group_by=patient", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "warning: 1 of 5 groups of 'patient' in test stand in train too" in done.stderr
    assert "24 images found = 8 used + 16 in other splits" in done.stderr
    assert "warning" not in cli(*arguments, cwd=trained).stderr


def test_a_run_on_torn_groups_is_scored_again(pictures: Path, cli: Run) -> None:
    """Whoever allowed them for the run is only warned."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    lines = [f"{row},{'val' if n < 8 else 'train'},{n % 5}" for n, row in enumerate(rows)]
    (pictures / "torn.csv").write_text("\n".join([f"{header},split,patient", *lines]))
    settings = ("pets.yaml", "data.train=torn.csv", "data.group_by=patient")
    done = cli("train", *settings, cwd=pictures)
    assert done.returncode == 2
    assert "5 groups of 'patient' in several splits (train and val: 5)" in done.stderr
    done = cli("train", *settings, "data.allow_torn_groups=true", cwd=pictures)
    assert done.returncode == 0, done.stderr
    done = cli("eval", "-c", "runs/pets", "data.allow_torn_groups=false", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "warning: " in done.stderr
    assert "5 groups of 'patient'" in done.stderr


def test_a_wanted_precision_says_what_is_never_given(
    trained: Path, cli: Run, tmp_path: Path
) -> None:
    """Nine pictures show 0.9 for no label: precision is blank, never 0, and labels are named."""
    wanted = ["eval.thresholds=precision", "eval.precision=0.9"]
    done = cli("eval", "-c", "runs/pets", *wanted, "-o", str(tmp_path), cwd=trained)
    content = json.loads((tmp_path / "metrics.json").read_text())
    labels = list(content["per_label"])
    assert content["wanted_precision"]["never_given"] == labels
    said = " ".join(done.stdout.split())
    assert f"never given: {len(labels)} labels" in said
    assert "right in 90 % of the cases: " in said
    assert "a label needs 16 positives or more for it" in said
    assert "precision -- (mean of 0 labels given)" in said
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [content[name] for name in ("macro_precision", "micro_precision")] == [None, None]
    assert content["labels_given"] == 0
    assert all(row["precision"] is None for row in content["per_label"].values())
    rows = list(csv.DictReader((tmp_path / "per_label.csv").read_text().splitlines()))
    assert {(row["precision"], row["recall"]) for row in rows} <= {("", "0.000000"), ("", "")}
    assert "given to no picture" in (tmp_path / "report.html").read_text()


def test_copies_in_several_tables_of_validation_are_joined_again(pictures: Path, cli: Run) -> None:
    """As they were when the run was trained: `eval` scores the same pictures."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    name, labels = rows[0].split(",")
    shutil.copy(pictures / name, pictures / "images/copy.jpg")
    tables = {"t": rows[9:], "a": rows[:5], "b": [*rows[5:9], f"images/copy.jpg,{labels}"]}
    for title, own in tables.items():
        (pictures / f"{title}.csv").write_text("\n".join([header, *own]))
    sides = ("data.train=t.csv", "data.val=[a.csv, b.csv]", "data.label_delimiter=|")
    done = cli("train", "pets.yaml", *sides, cwd=pictures)
    assert done.returncode == 0, done.stderr
    done = cli("eval", "-c", "runs/pets", cwd=pictures)
    assert done.stdout.startswith("9 images"), done.stderr
    assert "has changed since training" not in done.stderr
