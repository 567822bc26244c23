"""`mlfinetune predict --explain`, and the heat maps of the page, from the command line."""

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
from conftest import Run
from PIL import Image

from mlfinetune.runs.overlays import MOST, name_overlay


def list_expected(text: str) -> set[str]:
    """Return the names of the overlays of a CSV's rows."""
    names = set()
    for row in csv.DictReader(io.StringIO(text)):
        labels = sorted(filter(None, row["labels"].split("|")), key=lambda one: -float(row[one]))
        names |= {name_overlay(row["image"], label) for label in labels[:MOST]}
    return names


def test_an_overlay_for_each_picture_and_label(trained: Path, cli: Run, tmp_path: Path) -> None:
    """The rows are those without --explain; unreadable pictures have no overlay."""
    images, out = tmp_path / "images", tmp_path / "deep/overlays"
    for name in ("a", "b"):  # two pictures of one name
        (images / name).mkdir(parents=True)
        shutil.copy(trained / f"images/00{'01'['ab'.index(name)]}2.jpg", images / name / "x.jpg")
    (images / "c.png").write_text("no picture")
    with tarfile.open(images / "d.tar", "w") as tar:
        tar.add(trained / "images/0003.png", "e/0003.png")
    command = ("predict", str(images), "-c", "runs/pets", "--threshold", "0.3")
    plain = cli(*command, cwd=trained)
    done = cli(*command, "--explain", str(out), cwd=trained)
    assert (done.returncode, done.stdout) == (3, plain.stdout)
    names = {path.name for path in out.iterdir()}
    assert names == list_expected(done.stdout)
    assert len({name.partition("-")[0] for name in names}) == 2
    with Image.open(out / min(names)) as drawn, Image.open(images / "a/x.jpg") as given:
        assert drawn.size == given.size
    assert len(names) > len(list(csv.reader(io.StringIO(plain.stdout)))) - 2


def test_paths_from_stdin_and_top(trained: Path, cli: Run, tmp_path: Path) -> None:
    """With --top the K labels that are named, at most three of them; JSONL stays as it is."""
    command = ("predict", "-", "-c", "runs/pets", "--top", "5", "--format", "jsonl")
    done = cli(
        *command, "--explain", str(tmp_path), cwd=trained, stdin="images/0000.jpg\nnone.jpg\n"
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert "error" in second
    expected = {name_overlay("images/0000.jpg", label) for label in first["labels"][:MOST]}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert len(expected) == MOST


def test_a_folder_that_cannot_be_written_is_said(trained: Path, cli: Run, tmp_path: Path) -> None:
    """One line before anything is predicted, and exit code 2."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        done = cli("predict", "images", "-c", "runs/pets", "--explain", str(folder), cwd=trained)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert "choose another with --explain" in done.stderr


def test_overlays_do_not_become_inputs(trained: Path, cli: Run, tmp_path: Path) -> None:
    """A folder among the pictures is refused: the next run would predict the overlays in it."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(trained / "images/0000.jpg", images / "a.jpg")
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.jpg").symlink_to(images / "a.jpg")
    command = ("predict", "-c", str(trained / "runs/pets"), "--threshold", "0")
    refused = (
        ("images", "images/looked"),
        ("link", "images"),
        (".", "looked"),
        ("*/*", "images"),
        ("images/a.jpg", "images"),  # a shell gives the files of a pattern
        ("links/*.jpg", "links"),
    )
    for given, folder in refused:
        done = cli(*command, given, "--explain", folder, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "choose a folder that is apart" in done.stderr
    (tmp_path / "round").symlink_to("round")
    done = cli(*command, "images", "--explain", "round", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    apart = (
        ("link", "images/.looked"),
        ("images", "looked"),
        ("images/*.jpg", "images/looked"),
        ("links/*.jpg", "images"),
    )
    for given, folder in apart:
        for _ in range(2):
            done = cli(*command, given, "--explain", folder, cwd=tmp_path)
            assert (done.returncode, done.stdout.count("\n")) == (0, 2)


# ---- the page ---------------------------------------------------------------------------


def test_train_keeps_the_maps_of_the_page(trained: Path) -> None:
    """They are in a file of the run, and in the page; the log says what they cost."""
    run = trained / "runs/pets"
    content = json.loads((run / "heat_maps.json").read_text())
    assert 0 < len(content["pictures"]) <= 24
    assert (run / "report.html").read_text().count("data-heat=") > 0
    assert "for the page:" in (run / "train.log").read_text()
    for picture in content["pictures"].values():
        assert {len(levels) for levels in picture["levels"].values()} == {64}  # 8 x 8


def test_maps_follow_the_scores(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Maps of other scores are not shown, a reason is, and gone pictures have none."""
    run = Path(shutil.copytree(trained / "runs/pets", tmp_path / "pets"))
    kept = json.loads((run / "heat_maps.json").read_text())

    def report(**changes: object) -> tuple[int, int]:
        (run / "heat_maps.json").write_text(json.dumps(kept | changes))
        done = cli("report", str(run), cwd=trained)
        assert "Traceback" not in done.stderr
        return done.returncode, (run / "report.html").read_text().count("data-heat=")

    assert report()[1] > 0
    assert report(scores="0" * 64) == (0, 0)
    reason = "a backbone of type Flatten has no heat map"
    assert report(pictures={}, reason=reason) == (0, 0)
    assert f"Where it looked is not shown: {reason}." in (run / "report.html").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"images_root": str(tmp_path)}))
    assert report() == (0, 0)


def test_eval_of_other_pictures_has_their_maps(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Computed anew, for the pictures that its page shows."""
    done = cli(
        "eval", "--checkpoint", "runs/pets", "--data", "tags.csv", "-o", str(tmp_path), cwd=trained
    )
    assert done.returncode == 0, done.stderr
    pictures = json.loads((tmp_path / "heat_maps.json").read_text())["pictures"]
    names = len(np.load(tmp_path / "scores.npz")["logits"])
    assert 0 < len(pictures) <= names
    assert "heat maps of" in done.stderr
