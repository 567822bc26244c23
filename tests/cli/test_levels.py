"""`model.levels` through the commands: train, resume, eval, predict, bench, check.

The tiny network's layer1 has 64 channels; its other stages have 128.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import Run, prepare, run_child

from mlfinetune.runs import checkpoint
from mlfinetune.runs.state import read_state, write_state

FOUR = "model.levels=4"
FROZEN = ("model.freeze_backbone=true", "-o", "runs/frozen")


@pytest.fixture(scope="module")
def leveled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with four levels and a moving average: runs/pets/."""
    folder = prepare(tmp_path_factory.mktemp("levels"))
    more = (FOUR, "train.epochs=2", "train.ema=0.9", "model.head_bias=prior")
    done = run_child("train", "pets.yaml", *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(leveled: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder, for one test."""
    return shutil.copytree(leveled, tmp_path / "copy")


def read_map(folder: Path) -> float:
    """Return the mAP of metrics.json."""
    return float(json.loads((folder / "metrics.json").read_text())["mAP"])


def test_a_run_keeps_its_levels(folder: Path, cli: Run) -> None:
    """In config and checkpoint; eval and predict give the scores that it ended with."""
    run = folder / "runs/pets"
    assert "levels: 4" in (run / "config.yaml").read_text()
    content = checkpoint.load(run / "best.safetensors")
    assert content.levels == 4
    assert content.weights["head.weight"].shape[1] == 64 + 3 * 128
    done = cli("eval", "--checkpoint", "runs/pets", "-o", "scored", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert read_map(folder / "scored") == pytest.approx(read_map(run), abs=1e-6)
    done = cli("predict", "images", "-o", "all.csv", "--checkpoint", "runs/pets", cwd=folder)
    assert done.returncode == 0, done.stderr
    with (run / "predictions.csv").open(newline="") as file:
        before = {row["image"]: row for row in csv.DictReader(file)}
    with (folder / "all.csv").open(newline="") as file:
        now = {row["image"]: row for row in csv.DictReader(file)}
    name = content.labels.names[0]
    for image, row in before.items():
        assert float(now[image][name]) == pytest.approx(float(row[name]), abs=1e-4)


@pytest.mark.parametrize(
    ("allow", "said"),
    [
        ((), "model.levels: 4 before, 1 now"),
        (("--allow-changed",), "head.weight: (8, 448) before, (8, 128) now"),
    ],
)
def test_another_number_of_levels_is_not_resumed(
    folder: Path, cli: Run, allow: tuple[str, ...], said: str
) -> None:
    """The head has other features: no permission makes its weights fit."""
    done = cli("train", "pets.yaml", "train.epochs=3", "--resume", *allow, cwd=folder)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert said in done.stderr


def test_auto_is_two_levels(pictures: Path, cli: Run) -> None:
    """The log says so, the run records the number, and goes on with it."""
    asked = ("train", "pets.yaml", "model.levels=auto", "-o", "runs/auto")
    done = cli(*asked, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "the means of its last 2 stages (model.levels: auto); device" in done.stderr
    run = pictures / "runs/auto"
    assert "  levels: 2\n" in (run / "config.yaml").read_text()
    assert checkpoint.load(run / "best.safetensors").levels == 2
    done = cli(*asked, "--resume", cwd=pictures)
    assert (done.returncode, "all epochs are trained" in done.stderr) == (0, True), done.stderr


def test_an_earlier_run_goes_on_with_one_level(pictures: Path, cli: Run) -> None:
    """Its config and its state have no such key."""
    assert cli("train", "pets.yaml", cwd=pictures).returncode == 0
    run = pictures / "runs/pets"
    config, state = run / "config.yaml", run / "resume.pt"
    config.write_text(config.read_text().replace("  levels: 1\n", ""))
    content = read_state(state)
    del content["made_of"]["model.levels"]
    write_state(state, run / "before", content)
    done = cli("train", "runs/pets/config.yaml", "--resume", cwd=pictures)
    assert (done.returncode, "all epochs are trained" in done.stderr) == (0, True), done.stderr


def test_an_earlier_solved_run_is_not_another_one(pictures: Path, cli: Run) -> None:
    """It has no state: its config alone is compared, which has no such key."""
    asked = ("train", "pets.yaml", *FROZEN)
    assert cli(*asked, "model.levels=1", cwd=pictures).returncode == 0
    config = pictures / "runs/frozen/config.yaml"
    config.write_text(config.read_text().replace("  levels: 1\n", ""))
    done = cli(*asked, "model.levels=auto", "--resume", cwd=pictures)
    assert done.returncode == 0, done.stderr


def test_weights_of_a_run_bring_its_levels(folder: Path, cli: Run) -> None:
    """Its head fits no others, which are an error."""
    weights = "model.weights=runs/pets"
    for command in (("train",), ("crossval",), ("train", "--resume")):  # there is none to resume
        done = cli(*command, "pets.yaml", weights, "model.levels=1", *FROZEN, cwd=folder)
        assert (done.returncode, "images found" in done.stderr) == (2, False)
        assert "was trained with 4, and its head fits no other" in done.stderr
    done = cli("train", "pets.yaml", weights, "model.levels=auto", *FROZEN, cwd=folder)
    assert done.returncode == 0, done.stderr
    before, now = (
        checkpoint.load(folder / f"runs/{name}/best.safetensors").weights
        for name in ("pets", "frozen")
    )
    assert now["head.weight"].shape == before["head.weight"].shape
    assert all(value.equal(before[key]) for key, value in now.items() if "head" not in key)


def test_features_of_other_levels_are_not_reused(pictures: Path, cli: Run) -> None:
    """They are computed anew and kept beside the others; the log names the levels."""
    said = [
        cli(
            *("train", "pets.yaml", *FROZEN, f"model.levels={levels}"),
            cwd=pictures,
            MLFINETUNE_CACHE=str(pictures / "cache"),
        ).stderr
        for levels in (1, 2, 1)
    ]
    assert ["none kept for these weights" in text for text in said] == [True, True, False]
    named = ["random weights, the means of its last 2 stages, frozen; " in text for text in said]
    assert named == [False, True, False]


@pytest.mark.parametrize("command", [("bench", "pets.yaml"), ("train", "pets.yaml", "--dry-run")])
def test_commands_that_try_the_network(pictures: Path, cli: Run, command: tuple[str, ...]) -> None:
    done = cli(*command, FOUR, cwd=pictures)
    assert done.returncode == 0, done.stderr
