"""What `data` decides about pictures and labels, through the real train and eval."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Run, prepare, run_child
from test_check import times
from test_mistakes import fails
from test_train import tree_digest

from mlfinetune.config import load_config
from mlfinetune.runs import checkpoint


def rows_of(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def make(folder: Path) -> Path:
    """Write data.csv: 26 pictures, 4 of them unusable; `Red` beside `red`, and a rare label."""
    prepare(folder)
    header, *rows = rows_of(folder / "tags.csv")
    rows = [[*row, ("train", "train", "val")[at % 3]] for at, row in enumerate(rows)]
    rows[0][1] += "|Red|rare"
    rows[2][1] += "|Red"
    rows[3][1] += "|odd"
    rows[6][1] += "|odd"
    rows += [["images/gone.jpg", "red", "train"], ["images/gone2.jpg", "red", "val"]]
    images = folder / "images"
    (images / "0004.jpg").write_bytes((images / "0004.jpg").read_bytes()[:500])
    (images / "0005.png").write_text("no picture")
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "split"], *rows])
    (folder / "a.yaml").write_text(TINY.replace("tags.csv", "data.csv"))
    return folder


BAD = {
    "images/0004.jpg": ("line 6", "cannot be decoded"),
    "images/0005.png": ("line 7", "not a JPEG"),
    "images/gone.jpg": ("line 26", "no such file"),
    "images/gone2.jpg": ("line 27", "no such file"),
}
SKIP = "data.bad_images=skip"
LABELS = ["data.rename_labels={Red: red}", "data.ignore_labels=[odd]", "data.min_positives=2"]
LEDGER = "train: 26 images found = 22 used + 4 skipped ("


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the data, and runs/a, a run on the usable part of it."""
    folder = make(tmp_path_factory.mktemp("policies"))
    done = run_child("train", "a.yaml", SKIP, *LABELS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def metrics(folder: Path) -> Any:
    """Return the content of metrics.json."""
    return json.loads((folder / "metrics.json").read_text())


# ---- pictures ---------------------------------------------------------------------------


def test_bad_pictures_stop_a_run_before_it_starts(tmp_path: Path, cli: Run) -> None:
    """All of them in one message, by line, with the key that leaves them out; no run directory."""
    folder = make(tmp_path)
    done = cli("train", "a.yaml", *LABELS, cwd=folder)
    fails(done, "4 missing or unreadable pictures", "data.bad_images: skip", *BAD)
    shown = [line.split(":")[0] for line in done.stderr.splitlines() if "  line" in line]
    assert shown == [f"  {place}" for place, _ in BAD.values()]
    assert not (folder / "runs").exists()


def test_skipped_pictures_are_listed_once(folder: Path) -> None:
    """skipped.csv: image, place, reason; the log holds the sum."""
    header, *rows = rows_of(folder / "runs/a/skipped.csv")
    assert header == ["image", "place", "reason"]
    assert {name: place for name, place, _ in rows} == {n: place for n, (place, _) in BAD.items()}
    assert len(rows) == 4
    assert all(reason.startswith(BAD[name][1]) for name, _, reason in rows)
    assert LEDGER in (folder / "runs/a/train.log").read_text()


def test_the_numbers_count_what_is_used(folder: Path) -> None:
    """metrics.json and predictions.csv hold the pictures of val that decode."""
    used = [r[0] for r in rows_of(folder / "data.csv") if r[-1] == "val" and r[0] not in BAD]
    assert metrics(folder / "runs/a")["images"] == len(used) == 7
    assert [row[0] for row in rows_of(folder / "runs/a/predictions.csv")[1:]] == used


def test_eval_repeats_the_numbers(folder: Path, cli: Run) -> None:
    """The same pictures are skipped again, and nothing else has changed."""
    done = cli("eval", "-c", "runs/a", "-o", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "has changed" not in done.stderr
    assert metrics(folder / "again")["per_label"] == metrics(folder / "runs/a")["per_label"]


def test_a_dry_run_skips_as_well(folder: Path, cli: Run) -> None:
    """One batch without the pictures that cannot be read."""
    done = cli("train", "a.yaml", SKIP, *LABELS, "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_pictures_that_appear_later_are_no_surprise(tmp_path: Path, cli: Run) -> None:
    """Where a skipped picture of val is mended, eval says that the data has changed."""
    folder = make(tmp_path)
    assert cli("train", "a.yaml", SKIP, *LABELS, cwd=folder).returncode == 0
    (folder / "images/0005.png").write_bytes((folder / "images/0007.png").read_bytes())
    done = cli("eval", "-c", "runs/a", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "the validation data has changed" in done.stderr
    assert metrics(folder / "runs/a/eval")["images"] == 8


def test_no_user_file_is_touched(folder: Path, tmp_path: Path, cli: Run) -> None:
    """Names, bytes and times of all files are the same after every command."""
    shutil.copytree(folder / "images", tmp_path / "in/images")
    for name in ("data.csv", "a.yaml"):
        shutil.copy(folder / name, tmp_path / "in")
    before = tree_digest(tmp_path / "in"), times(tmp_path / "in")
    (tmp_path / "out").mkdir()
    for arguments in (
        ("check", "../in/a.yaml", "data.bad_images=skip", *LABELS),
        ("init", "../in/data.csv"),
        ("train", "../in/a.yaml", SKIP, *LABELS, "-o", "run"),
        ("eval", "-c", "run"),
        ("predict", "../in/images", "-c", "run", "-o", "scores.csv"),
    ):
        done = cli(*arguments, cwd=tmp_path / "out")
        assert done.returncode == (3 if arguments[0] == "predict" else 0), done.stderr
    assert (tree_digest(tmp_path / "in"), times(tmp_path / "in")) == before


# ---- labels -----------------------------------------------------------------------------


def test_labels_are_joined_ignored_and_left_out(folder: Path) -> None:
    """`Red` is red, `odd` is ignored, `rare` has too few: the run says so and knows the rest."""
    labels = (folder / "runs/a/labels.txt").read_text().split()
    assert labels == ["blue", "checks", "dots", "green", "red", "solid", "stripes", "yellow"]
    assert "('rare'): fewer than 2 positives, left out" in (folder / "runs/a/train.log").read_text()
    positives = metrics(folder / "runs/a")["per_label"]["red"]["positives"]
    rows = [r for r in rows_of(folder / "data.csv") if r[-1] == "val" and r[0] not in BAD]
    assert positives == sum(bool({"red", "Red"} & {*r[1].split("|")}) for r in rows)


def test_the_resolved_config_decides_nothing_anew(folder: Path, cli: Run) -> None:
    """Rare labels stand there by name, and the run comes out the same bit by bit."""
    data = load_config(folder / "runs/a/config.yaml").data
    assert (data.ignore_labels, data.min_positives) == (["odd", "rare"], 0)
    assert (data.rename_labels, data.bad_images) == ({"Red": "red"}, "skip")
    done = cli("train", "runs/a/config.yaml", "-o", "twice", cwd=folder)
    assert done.returncode == 0, done.stderr
    first, second = (
        checkpoint.load(folder / name / "last.safetensors") for name in ("runs/a", "twice")
    )
    assert first.labels == second.labels
    assert all((first.weights[name] == second.weights[name]).all() for name in first.weights)


@pytest.mark.parametrize("split", ["val", "valid", "Validation"])
def test_eval_on_the_table_with_all_its_labels(folder: Path, cli: Run, split: str) -> None:
    """Old spellings, ignored and rare labels are no strangers; `valid` is val."""
    arguments = ("--data", "data.csv", "--split", split, "-o", split)
    done = cli("eval", "-c", "runs/a", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert metrics(folder / split)["per_label"] == metrics(folder / "runs/a")["per_label"]


def test_eval_on_labels_that_no_run_has_seen(folder: Path, tmp_path: Path, cli: Run) -> None:
    """They are refused by name, with the nearest one."""
    (tmp_path / "new.csv").write_text("image,labels\nimages/0007.png,blu\n")
    arguments = ("--data", str(tmp_path / "new.csv"), "--images", ".", "-o", str(tmp_path / "out"))
    fails(cli("eval", "-c", "runs/a", *arguments, cwd=folder), "'blu'", "did you mean 'blue'?")


@pytest.mark.parametrize("state", ["negative", "unknown", "error"])
def test_empty_rows(tmp_path: Path, cli: Run, state: str) -> None:
    """Counted and taken for absent or unknown, or refused by line."""
    folder = prepare(tmp_path)
    rows = (folder / "tags.csv").read_text().splitlines()
    rows[3] = rows[3].split(",")[0] + ","
    (folder / "tags.csv").write_text("\n".join(rows))
    done = cli("train", "pets.yaml", f"data.empty_labels={state}", cwd=folder)
    if state == "error":
        fails(done, "1 bad row", "line 4: no label (data.empty_labels is error)")
        assert not (folder / "runs").exists()
        return
    assert done.returncode == 0, done.stderr
    word = {"negative": "absent", "unknown": "unknown"}[state]
    assert f"with no label: all labels {word}" in done.stderr


@pytest.mark.parametrize(
    ("state", "positives", "negatives"), [("ignore", 2, 1), ("positive", 3, 1), ("negative", 2, 2)]
)
def test_unknown_targets(
    tmp_path: Path, cli: Run, state: str, positives: int, negatives: int
) -> None:
    """Masked, or taken for 1 or 0: the numbers of val count them so."""
    folder = prepare(tmp_path)
    marks = {20: "1", 21: "1", 22: "0", 23: ""}
    lines = ["image,cat,is_valid"]
    for at in range(24):
        name = f"images/{at:04}.{'png' if at % 2 else 'jpg'}"
        lines.append(f"{name},{marks.get(at, at % 2)},{int(at in marks)}")
    (folder / "tags.csv").write_text("\n".join(lines))
    done = cli("train", "pets.yaml", f"data.unknown={state}", cwd=folder)
    assert done.returncode == 0, done.stderr
    cat = metrics(folder / "runs/pets")["per_label"]["cat"]
    assert (cat["positives"], cat["negatives"]) == (positives, negatives)
    assert ("(data.unknown)" in done.stderr) == (state != "ignore")


@pytest.mark.parametrize("key", ["ignore_labels=[rde]", "rename_labels={rde: red}"])
def test_labels_that_are_not_there(pictures: Path, cli: Run, key: str) -> None:
    """Typing errors are named, with the nearest label."""
    fails(cli("train", "pets.yaml", f"data.{key}", cwd=pictures), "'rde'", "did you mean 'red'?")


def test_too_many_labels_left_out(pictures: Path, cli: Run) -> None:
    """A threshold that no label reaches is said, before any training."""
    fails(cli("train", "pets.yaml", "data.min_positives=99", cwd=pictures), "label")
    assert not (pictures / "runs").exists()
