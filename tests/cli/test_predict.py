"""`mlfinetune predict` as a user runs it."""

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, run_child
from faults import children
from PIL import Image

from mlfinetune.data.images.heif import load_heif
from mlfinetune.workflows.predict import share_paths


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_agrees_with_the_validation_scores(trained: Path, cli: Run) -> None:
    """The probabilities of a picture are those that training wrote for it."""
    run = rows((trained / "runs/pets/predictions.csv").read_text())
    names = "".join(f"{row['image']}\n" for row in run)
    done = cli("predict", "-", "-c", "runs/pets", cwd=trained, stdin=names)
    assert done.returncode == 0, done.stderr
    predicted = rows(done.stdout)
    assert [row["image"] for row in predicted] == [row["image"] for row in run]
    for ours, theirs in zip(predicted, run, strict=True):
        for label in list(ours)[2:-1]:
            assert float(ours[label]) == pytest.approx(float(theirs[label]), abs=0.01)


def test_folders_files_and_globs_in_order(trained: Path, cli: Run) -> None:
    """Inputs come out in the order they were given, folders sorted."""
    done = cli(
        "predict", "images/0003.png", "images/*2.jpg", "images", "-c", "runs/pets", cwd=trained
    )
    names = [row["image"] for row in rows(done.stdout)]
    assert names[:4] == [f"images/{n}" for n in ("0003.png", "0002.jpg", "0012.jpg", "0022.jpg")]
    assert names[4:] == sorted(names[4:])
    assert len(names) == 4 + 24


def test_the_newest_finished_run_is_used_and_named(trained: Path, cli: Run) -> None:
    """Without --checkpoint the first line says which one it is."""
    done = cli("predict", "images/0000.jpg", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("checkpoint runs/")


def test_unreadable_pictures_have_a_row_and_code_3(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Every input has its row, in order; the bad ones are named again at the end."""
    good = (trained / "images/0000.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(good)
    (tmp_path / "b.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "c.png").write_text("no picture")
    (tmp_path / "d.jpg").write_bytes(good)
    done = cli("predict", str(tmp_path), "-c", "runs/pets", "--format", "jsonl", cwd=trained)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert [Path(line["image"]).name for line in lines] == ["a.jpg", "b.jpg", "c.png", "d.jpg"]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert lines[0]["scores"] == pytest.approx(lines[3]["scores"], abs=1e-5)
    assert "2 pictures could not be read" in done.stderr
    assert "b.jpg" in done.stderr


def test_pictures_that_are_not_decoded_have_a_row_and_code_3(
    trained: Path, cli: Run, tmp_path: Path
) -> None:
    """HEIC is predicted with its extra; a camera's raw file is refused in its row."""
    assert load_heif() is None
    with Image.open(trained / "images/0000.jpg") as image:
        image.save(tmp_path / "a.heic", "HEIF", quality=95)
        image.save(tmp_path / "b.avif", quality=95)
        image.save(tmp_path / "c.jpg", quality=95)
        image.save(tmp_path / "c.cr2", "TIFF")
    done = cli("predict", str(tmp_path), "-c", "runs/pets", cwd=trained)
    predicted = rows(done.stdout)
    assert done.returncode == 3
    assert [Path(row["image"]).name for row in predicted] == ["a.heic", "b.avif", "c.cr2", "c.jpg"]
    heic, avif, raw, jpeg = predicted
    assert raw["error"] == "raw file of a camera; convert it to JPEG"
    assert heic["error"] == avif["error"] == jpeg["error"] == ""
    for label in list(jpeg)[2:-1]:
        assert float(heic[label]) == pytest.approx(float(jpeg[label]), abs=0.1)


def test_a_folder_of_heic_without_the_extra(
    trained: Path, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its row with the fix, and the exit code is 3."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    (tmp_path / "heic").mkdir()
    for name in ("a.heic", "b.HEIC", "c.hif"):
        (tmp_path / "heic" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    out = str(tmp_path / "out.csv")
    load_heif.cache_clear()
    try:
        done = cli("predict", str(tmp_path / "heic"), "-c", "runs/pets", "-o", out, cwd=trained)
    finally:
        load_heif.cache_clear()
    assert done.returncode == 3, done.stderr
    errors = [row["error"] for row in rows((tmp_path / "out.csv").read_text())]
    assert errors == ["HEIC needs pillow-heif: pip install 'mlfinetune[heif]'"] * 3
    assert "3 pictures could not be read" in done.stderr


@pytest.mark.parametrize("name", ["tags.csv", "tags.jsonl"])
def test_a_file_that_holds_no_predictions_is_not_overwritten(
    trained: Path, cli: Run, name: str
) -> None:
    """A table of labels has the same first cells; predictions are written anew without a word."""
    text = {"tags.csv": "image,labels\na.jpg,cat\n", "tags.jsonl": '{"image": "a", "tag": 1}\n'}[
        name
    ]
    (trained / f"mine-{name}").write_text(text)
    done = cli("predict", "images/0000.jpg", "-o", f"mine-{name}", cwd=trained)
    assert done.returncode == 2
    assert "holds no predictions" in done.stderr
    assert (trained / f"mine-{name}").read_text() == text
    for _ in range(2):
        assert cli("predict", "images/0000.jpg", "-o", f"own-{name}", cwd=trained).returncode == 0


def test_the_file_ending_chooses_the_format(trained: Path, cli: Run) -> None:
    """-o x.csv, x.jsonl and x.txt; another ending is asked about."""
    for name in ("x.csv", "x.jsonl", "x.txt"):
        assert cli("predict", "images/0000.jpg", "-o", name, cwd=trained).returncode == 0
    assert rows((trained / "x.csv").read_text())[0]["image"] == "images/0000.jpg"
    assert json.loads((trained / "x.jsonl").read_text())["image"] == "images/0000.jpg"
    assert (trained / "x.txt").read_text().startswith("images/0000.jpg: ")
    done = cli("predict", "images/0000.jpg", "-o", "x.xlsx", cwd=trained)
    assert done.returncode == 2
    assert ".csv" in done.stderr


def test_top_threshold_and_only_labels(trained: Path, cli: Run) -> None:
    """--top names the K best, --threshold 0 names all, --only-labels leaves the numbers out."""
    arguments = ["predict", "images/0000.jpg", "--format", "jsonl"]
    top = json.loads(cli(*arguments, "--top", "2", cwd=trained).stdout)
    assert top["labels"] == sorted(top["scores"], key=lambda k: -top["scores"][k])[:2]
    every = json.loads(cli(*arguments, "--threshold", "0", "--only-labels", cwd=trained).stdout)
    assert len(every["labels"]) == len(top["scores"])
    assert "scores" not in every


def test_rows_are_written_as_they_come(trained: Path, cli: Run) -> None:
    """A long list of one picture: every row is there, in order, whatever the batch size."""
    names = "images/0000.jpg\nimages/0001.png\n" * 50
    arguments = ["predict", "-", "-c", "runs/pets", "--batch-size", "7"]
    done = cli(*arguments, cwd=trained, stdin=names)
    assert [row["image"] for row in rows(done.stdout)] == names.split()


def test_a_folder_without_pictures_is_an_error(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Nothing to do is something to say."""
    done = cli("predict", str(tmp_path), "-c", "runs/pets", cwd=trained)
    assert done.returncode == 2
    assert "no pictures in" in done.stderr


def test_a_reader_that_stops_early_is_no_error(trained: Path, tmp_path: Path) -> None:
    """`mlfinetune predict ... | head -n 1` ends quietly."""
    os.mkfifo(tmp_path / "pipe")
    children.prepare_server()
    child = children.start(
        *("predict", "images", "images", "images", "-c", "runs/pets", "--batch-size", "1"),
        cwd=trained,
        streams={"stdout": str(tmp_path / "pipe")},
    )
    head = subprocess.run(
        ["head", "-n", "1", tmp_path / "pipe"], capture_output=True, text=True, timeout=120
    )
    assert child.wait() == 0
    assert "Traceback" not in child.said
    assert head.stdout.startswith("image,labels")


def test_a_mistake_leaves_the_earlier_output_alone(trained: Path, cli: Run) -> None:
    """The output is opened when inputs, checkpoint and device are known to be usable."""
    (trained / "kept.csv").write_text("earlier")
    (trained / "empty").mkdir()
    wrong = (("images", "-c", "runs/none"), ("none/",), ("images", "--device", "tpu"), ("empty/",))
    for arguments in wrong:
        assert cli("predict", *arguments, "-o", "kept.csv", cwd=trained).returncode == 2
    assert (trained / "kept.csv").read_text() == "earlier"


def test_an_output_that_cannot_be_written_is_named(trained: Path, cli: Run) -> None:
    """A folder that is not there, and a device that is full."""
    done = cli("predict", "images", "-o", "no/such/folder/x.csv", cwd=trained)
    assert done.returncode == 2
    assert "no/such/folder/x.csv: No such file" in done.stderr
    done = cli("predict", "images", "-o", "/dev/full", "--format", "csv", cwd=trained)
    assert done.returncode == 2
    assert "/dev/full: No space left" in done.stderr


def test_predict_needs_the_checkpoint_alone(trained: Path, tmp_path: Path) -> None:
    """A checkpoint file copied elsewhere, with no run, table or YAML beside it, predicts."""
    shutil.copy(trained / "runs/pets/best.safetensors", tmp_path / "tagger.safetensors")
    shutil.copy(trained / "images/0000.jpg", tmp_path)
    done = run_child("predict", "0000.jpg", "-c", "tagger.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 1


# ---- millions ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["csv", "jsonl", "label-studio"])
def test_it_goes_on_after_any_byte(trained: Path, cli: Run, tmp_path: Path, format: str) -> None:
    """Cut off anywhere, the file becomes what it would have been; what failed is named again."""
    good = (trained / "images/0000.jpg").read_bytes()
    for name in ("a\nb.jpg", "=1.jpg", "bad.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(good if name != "bad.jpg" else b"no picture")
    command = ("predict", ".", "-c", str(trained / "runs/pets"), "-o", f"out.{format}")
    command += ("--format", format)
    done = cli(*command, "--batch-size", "1", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    out = tmp_path / f"out.{format}"
    whole = out.read_bytes()
    lengths = random.Random(0).sample(range(len(whole) + 1), 8 if format == "csv" else 5)
    for length in [*lengths, 0, len(whole)]:
        out.write_bytes(whole[:length])
        done = cli(*command, "--batch-size", "1", "--resume", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert out.read_bytes() == whole, length
        assert "1 picture could not be read" in done.stderr
    out.unlink()
    assert cli(*command, "--batch-size", "1", "--resume", cwd=tmp_path).returncode == 3
    assert out.read_bytes() == whole


def test_it_goes_on_with_the_same_pictures_and_columns_alone(trained: Path, cli: Run) -> None:
    """Others are refused, and the file is left alone."""
    command = ("predict", "-c", "runs/pets", "-o", "goes-on.csv")
    assert cli(*command, "images/0000.jpg", "images/0001.png", cwd=trained).returncode == 0
    before = (trained / "goes-on.csv").read_bytes()
    for arguments, said in (
        (("images/0000.jpg", "images/0002.jpg"), "row 2 is of images/0001.png, now it is images/0"),
        (("images/0000.jpg",), "row 2 is of images/0001.png, there is none any more"),
        (("images", "--only-labels"), "was written with other labels or options"),
    ):
        done = cli(*command, *arguments, "--resume", cwd=trained)
        assert done.returncode == 2
        assert said in done.stderr
        assert (trained / "goes-on.csv").read_bytes() == before
    done = cli("predict", "images", "--resume", cwd=trained)
    assert done.returncode == 2
    assert "name it with -o" in done.stderr


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "my notes\n"), ("a.csv", "my notes")])
def test_resume_never_empties_another_file(
    trained: Path, tmp_path: Path, cli: Run, name: str, text: str
) -> None:
    """A file without one complete row is cut only where it begins as predictions do."""
    (tmp_path / name).write_text(text)
    arguments = ("predict", "images", "-c", "runs/pets", "-o", str(tmp_path / name), "--resume")
    done = cli(*arguments, cwd=trained)
    assert (done.returncode, (tmp_path / name).read_text()) == (2, text)
    assert "holds no predictions; --resume would empty it" in done.stderr


def test_shards_are_all_of_it(trained: Path, cli: Run) -> None:
    """Three of them have every picture once, in its order."""
    parts = []
    whole = rows(cli("predict", "images", "-c", "runs/pets", cwd=trained).stdout)
    for i in (1, 2, 3):
        arguments = ("predict", "images", "-c", "runs/pets", "--shard", f"{i}/3")
        parts.append(rows(cli(*arguments, cwd=trained).stdout))
    names = [[row["image"] for row in part] for part in parts]
    assert names == [[row["image"] for row in whole][i::3] for i in range(3)]
    for shard in ("0/3", "4/3", "1", "a/b", "1/0"):
        done = cli("predict", "images", "--shard", shard, cwd=trained)
        assert done.returncode == 2
        assert f"--shard {shard}: wanted I/N" in done.stderr


def test_ranks_take_batches_in_turn() -> None:
    """Every path has one rank, whole batches stay together, and a last one may be short."""
    shares = [list(share_paths(iter("abcdefghi"), 2, rank, 2)) for rank in range(2)]
    assert shares == [list("abefi"), list("cdgh")]
