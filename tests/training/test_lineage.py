"""Runs that begin with a run: its held-out pictures stay held out, and it is recorded."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from demo_data import write

from mlfinetune.config import load_config
from mlfinetune.data.known_sides import KnownSides, PictureSet
from mlfinetune.data.read import SplitOptions, read_splits
from mlfinetune.data.table import SourceOptions
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.trained_on import read_parent


@pytest.fixture
def grown(trained: Path, tmp_path: Path) -> Path:
    """Return the folder of a run, with a table more.csv: its rows reversed, between new ones."""
    folder = shutil.copytree(trained, tmp_path / "grown", ignore=shutil.ignore_patterns("pets-*"))
    write(tmp_path / "new", count=40, size=32)
    head, *old = (folder / "tags.csv").read_text().splitlines()
    new = (tmp_path / "new/tags.csv").read_text().splitlines()[25:]
    for row in new:
        name = row.split(",")[0]
        shutil.copy(tmp_path / "new" / name, folder / name)
    moved = old[0].split(",")[0]  # the same bytes under another name
    shutil.move(folder / moved, folder / "images/moved.jpg")
    old[0] = old[0].replace(moved, "images/moved.jpg")
    (folder / "more.csv").write_text("\n".join([head, *new[:7], *old[::-1], *new[7:]]) + "\n")
    return folder


def train(cli: Run, folder: Path, table: str, weights: str, output: str) -> str:
    """Train from another run, and return the log."""
    asked = (f"data.train={table}", f"model.weights={weights}", "-o", output)
    done = cli("train", "pets.yaml", *asked, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def held(run: Path) -> set[str]:
    """Return the names of a run's validation pictures."""
    with (run / "predictions.csv").open() as file:
        return {row["image"] for row in csv.DictReader(file)}


def test_held_out_pictures_stay_held_out(grown: Path, cli: Run) -> None:
    """Rows are added, reversed and renamed; what was trained on stays in train, for good."""
    train(cli, grown, "more.csv", "runs/pets", "runs/second")
    name = {line.split(",")[0] for line in (grown / "tags.csv").read_text().splitlines()[1:]}
    name |= {"images/moved.jpg"}
    first, second = held(grown / "runs/pets"), held(grown / "runs/second")
    renamed = {one if (grown / one).exists() else "images/moved.jpg" for one in first}
    assert second & name == renamed
    assert len(second - name) == 3, "a fifth of the 15 new ones"
    train(cli, grown, "more.csv", "runs/second/last.safetensors", "runs/third")
    assert held(grown / "runs/third") == second
    metrics = json.loads((grown / "runs/second/metrics.json").read_text())
    assert metrics["seen_in_training"] == 0


def test_a_new_run_of_one_name_keeps_the_sides(grown: Path, cli: Run) -> None:
    """Rows were added, and the weights are others; another seed asks for another split."""
    done = cli("train", "pets.yaml", "data.train=more.csv", cwd=grown)
    assert done.returncode == 0, done.stderr
    assert (
        "24 images on their sides of before, in runs/pets, 5 of them held out; 16 new"
        in done.stderr
    )
    assert (
        "8 of 40 images held out for validation (val_fraction 0.2 of the new images," in done.stderr
    )
    there = {name for name in held(grown / "runs/pets") if (grown / name).exists()}
    assert there <= held(grown / "runs/pets-2")
    seen = json.loads((grown / "runs/pets-2/metrics.json").read_text())["seen_in_training"]
    assert seen == 0
    done = cli("train", "pets.yaml", "data.train=more.csv", "train.seed=1", cwd=grown)
    assert "their sides of before" not in done.stderr


def test_a_run_from_a_run_is_evaluated_and_resumed(grown: Path, cli: Run) -> None:
    """With its own sides, also where its parent is gone; and it names its parent."""
    train(cli, grown, "more.csv", "runs/pets", "runs/second")
    parent = grown / "runs/pets/best.safetensors"
    content = checkpoint.load(grown / "runs/second/best.safetensors")
    digest = checkpoint.read_digest(parent.read_bytes()[:100_000])
    assert content.parent == checkpoint.Parent(str(parent), str(digest))
    facts = json.loads((grown / "runs/second/metrics.json").read_text())["run"]
    assert facts["parent"] == {"path": str(parent), "sha256": digest}
    rows = json.loads(cli("runs", "--json", cwd=grown).stdout)["runs"]
    assert [row["parent"] for row in rows] == [None, str(parent)]
    assert "began with" in cli("runs", cwd=grown).stdout
    done = cli("train", "runs/second/config.yaml", "--resume", "train.epochs=2", cwd=grown)
    assert done.returncode == 2
    done = cli("train", "runs/second/config.yaml", "--resume", cwd=grown)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(grown / "runs/pets")
    done = cli("eval", "--checkpoint", "runs/second", cwd=grown)
    assert done.returncode == 0, done.stderr


def test_rows_that_are_added_do_not_move_what_eval_scores(grown: Path, cli: Run) -> None:
    """The run's own pictures are known, whatever its table has become since."""
    lines = (grown / "more.csv").read_text().splitlines()
    table = grown / "tags.csv"
    first = table.read_text().replace(
        table.read_text().split("\n")[1].split(",")[0], "images/moved.jpg"
    )
    table.write_text(first + "\n".join(lines[1:8]))
    done = cli("eval", "--checkpoint", "runs/pets", "data.train=tags.csv", cwd=grown)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 images")
    table.write_text("\n".join(lines[:20]))
    done = cli("eval", "--checkpoint", "runs/pets", "data.train=tags.csv", cwd=grown)
    assert done.returncode == 2
    assert "has changed since training, in the images that were held out then" in done.stderr


def test_pictures_of_runs_before_count_as_seen(grown: Path, cli: Run) -> None:
    """The second run never saw them itself; data.val that holds some is warned of at the start."""
    rows = (grown / "more.csv").read_text().splitlines()
    old, new = (grown / "old.csv"), (grown / "new.csv")
    new.write_text("\n".join([rows[0], *rows[1:8], *rows[32:]]) + "\n")
    old.write_text("\n".join([rows[0], *rows[8:32]]) + "\n")
    log = train(cli, grown, "new.csv", "runs/pets", "runs/second")
    assert "warning" not in log
    asked = ("--data", "old.csv", "-o", "seen")
    done = cli("eval", "--checkpoint", "runs/second", *asked, cwd=grown)
    seen = json.loads((grown / "seen/metrics.json").read_text())["seen_in_training"]
    assert seen == 24 - len(held(grown / "runs/pets"))
    assert f"the model was trained on {seen} of these 24 pictures" in done.stdout
    asked = ("data.val=old.csv", "data.train=new.csv", "model.weights=runs/pets", "-o", "runs/x")
    done = cli("train", "pets.yaml", *asked, cwd=grown)
    assert f"warning: {seen} images of val trained on by runs/pets" in done.stderr


def test_a_checkpoint_alone_says_that_nothing_is_known(grown: Path, cli: Run) -> None:
    """Its pictures may be in validation."""
    (grown / "alone").mkdir()
    shutil.copy(grown / "runs/pets/best.safetensors", grown / "alone/best.safetensors")
    log = train(cli, grown, "more.csv", "alone/best.safetensors", "runs/second")
    assert "warning: nothing tells which pictures " in log


def test_a_split_that_was_dealt_anew_is_read_again(grown: Path, cli: Run) -> None:
    """All of its pictures were trained on before; its own eval knows them all the same."""
    trained = set((grown / "more.csv").read_text().splitlines()[8:32])
    trained = {row for row in trained if row.split(",")[0] not in held(grown / "runs/pets")}
    trained = {row for row in trained if "moved" not in row}
    (grown / "less.csv").write_text("\n".join(["image,labels", *sorted(trained)]))
    log = train(cli, grown, "less.csv", "runs/pets", "runs/second")
    assert "one would be empty: dealt anew" in log
    rows = (grown / "more.csv").read_text().splitlines()[32:36]
    with (grown / "less.csv").open("a") as file:
        file.write("\n" + "\n".join(rows))
    done = cli("eval", "--checkpoint", "runs/second", cwd=grown)
    assert done.returncode == 0, done.stderr
    assert held(grown / "runs/second/eval") == held(grown / "runs/second")
    count = len(held(grown / "runs/second"))
    assert f"warning: {count} images of val trained on by runs/second" in done.stderr


def make_older(run: Path) -> None:
    """Take from a run's record of pictures what an earlier version did not write."""
    with np.load(run / "trained_on.npz") as file:
        kept = {name: file[name] for name in ("contents", "paths")}
    np.savez(run / "trained_on.npz", **kept)


def test_a_moved_run_of_an_older_version_keeps_its_sides(grown: Path, cli: Run) -> None:
    """The whole project was moved; as the run before of one name, and as the parent."""
    make_older(grown / "runs/pets")
    metrics = grown / "runs/pets/metrics.json"
    gone = str(json.loads(metrics.read_text())["images_root"]) + "-gone"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"images_root": gone}))
    there = {name for name in held(grown / "runs/pets") if (grown / name).exists()}
    assert len(there) >= 4
    for output, weights in (("runs/more", "runs/pets"), ("runs/pets", "null")):
        log = train(cli, grown, "more.csv", weights, output)
        assert there <= held(directory.find_run(grown / output) or grown), log
        assert "24 images on their sides of before, in runs/pets, 5 of them held out" in log
    metrics.unlink()
    log = train(cli, grown, "more.csv", "runs/pets", "runs/again")
    assert "warning: no image held out by runs/pets is found in the data: val is drawn" in log


def test_an_older_parent_tells_its_sides_by_paths(grown: Path) -> None:
    """Its trained_on.npz has no held-out pictures; scores.npz names them."""
    run = grown / "runs/pets"
    make_older(run)
    content = json.loads((run / "metrics.json").read_text()) | {"images_root": str(grown)}
    (run / "metrics.json").write_text(json.dumps(content))
    config = load_config(run / "config.yaml")
    parent = read_parent(config.update_section("model", weights=str(run)))
    assert parent is not None
    assert parent.held is not None
    paths = [str(grown / name) for name in held(run)]
    assert parent.held.find(np.full(5, -1), paths).all()
    assert len(parent.held) == 5


def test_groups_and_sides_of_before(tmp_path: Path) -> None:
    """A group with a trained picture is trained on; sides that leave one side empty are dropped."""
    rows = [f"{n}.jpg,cat|d{n % 3},g{n // 2}" for n in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["image,labels,who", *rows]))
    for n in range(20):
        (tmp_path / f"{n}.jpg").touch()

    def split(trained: list[int], kept: list[int], is_parent: bool = True) -> tuple[set[str], str]:
        none = np.empty(0, np.int64)
        sets = [PictureSet.of(none, [f"{tmp_path}/{n}.jpg" for n in s]) for s in (trained, kept)]
        options = SourceOptions(group_by="who")
        known = KnownSides("runs/a", *sets, seen=sets[0] if is_parent else PictureSet.none())
        found = read_splits(tmp_path / "t.csv", None, options, SplitOptions(), None, known)
        return set(found.val.names), "\n".join(found.notes)

    val, notes = split([0, 2], [1, 4, 5])
    assert {"4.jpg", "5.jpg"} <= val
    assert "1.jpg" not in val
    assert "warning: 1 image held out by runs/a and in train now, with others of their" in notes
    assert len(val) == 2 + 4, "a fifth of the 14 others, in groups of two"
    val, notes = split(list(range(20)), [])
    assert len(val) == 4
    assert "warning: with sides as in runs/a one would be empty: dealt anew" in notes
    assert "4 images of val trained on by runs/a" in notes
    _, notes = split([0, 2], [4, 5], is_parent=False)
    assert "the sides of runs/a are far from val_fraction: dealt anew" in notes


def test_files_that_were_edited_keep_their_sides(grown: Path, cli: Run) -> None:
    """A program wrote EXIF into each of them: bytes are new, and paths are the same."""
    head, *rows = (grown / "more.csv").read_text().splitlines()
    (grown / "old.csv").write_text("\n".join([head, *rows[7:31]]))
    done = cli("train", "pets.yaml", "data.train=old.csv", "-o", "runs/first", cwd=grown)
    assert done.returncode == 0, done.stderr
    old = [row.split(",")[0] for row in rows[7:31]]
    for name in old:
        (grown / name).write_bytes((grown / name).read_bytes() + b"x")
    log = train(cli, grown, "more.csv", "runs/first", "runs/second")
    said = "24 images with other bytes than in runs/first, at the same path: taken for the same"
    assert f"warning: {said}" in log
    first = held(grown / "runs/first")
    assert held(grown / "runs/second") & set(old) == first
    done = cli("eval", "-c", "runs/first", "--data", "old.csv", "-o", "seen", cwd=grown)
    assert f"the model was trained on {24 - len(first)} of these 24 pictures" in done.stdout
    assert "warning: 24 pictures with other bytes than in training, at the same" in done.stderr


def test_bytes_that_are_known_beat_the_path(tmp_path: Path) -> None:
    """Two files changed places: each one is on the side of its bytes; a third one was edited."""
    paths = [f"{tmp_path}/{name}.jpg" for name in "abc"]
    trained, kept = (PictureSet.of(np.array([n]), [paths[n]]) for n in (0, 1))
    known = KnownSides("runs/a", trained, kept, seen=trained)
    numbers = np.array([1, 0, 5])
    assert known.find(numbers, paths).tolist() == [1, 0, -1]
    assert known.find_seen(numbers, paths).tolist() == [False, True, False]
    assert known.find(np.array([7, 8, -1]), paths).tolist() == [0, 1, -1]
    (warning,) = known.warn_of_edited(known.find(np.array([7, 8, -1]), paths), np.array([7, 8, -1]))
    assert warning.startswith("warning: 2 images with other bytes than in runs/a")
