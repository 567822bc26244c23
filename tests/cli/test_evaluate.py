"""`mlfinetune eval` as a user runs it."""

import json
import shutil
from pathlib import Path

from conftest import Run


def test_eval_repeats_the_numbers_of_the_run(trained: Path, process: Run) -> None:
    """The checkpoint alone, without a YAML file, gives the run's own metrics."""
    done = process("eval", "--checkpoint", "runs/pets", "-o", "again", cwd=trained)
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
    for name in ("runs/pets", "runs/pets/last.safetensors"):
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
    arguments = ["eval", "-c", "runs/pets", "--data", "other.csv", "-o", "other"]
    assert cli(*arguments, cwd=trained).stdout.startswith("24 images")
    done = cli(*arguments, "--split", "test", cwd=trained)
    assert done.stdout.startswith("7 images")
    assert json.loads((trained / "other/metrics.json").read_text())["images"] == 7


def test_eval_says_that_the_validation_data_changed(
    trained: Path, cli: Run, tmp_path: Path
) -> None:
    """Figures on other data than the run's are not passed off as the run's."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    rows = (trained / "tags.csv").read_text().splitlines()
    try:
        (trained / "tags.csv").write_text("\n".join(rows[:-4]))
        done = cli("eval", "-c", "runs/pets", "-o", str(tmp_path / "out"), cwd=trained)
    finally:
        shutil.copy(copy / "tags.csv", trained / "tags.csv")
    assert done.returncode == 0, done.stderr
    assert "warning: the validation data has changed" in done.stderr


def test_labels_that_the_checkpoint_lacks_are_named(trained: Path, cli: Run) -> None:
    """A typo in the table is an error with the nearest label, not a column of zeros."""
    (trained / "typo.csv").write_text("image,labels\nimages/0000.jpg,gren|red\n")
    done = cli("eval", "-c", "runs/pets", "--data", "typo.csv", cwd=trained)
    assert done.returncode == 2
    assert "'gren': 1 images, first at line 2; did you mean 'green'?" in done.stderr


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
