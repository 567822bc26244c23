"""`mlfinetune runs`: what was trained, how well, and in what runs differ."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, prepare


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Return a folder with runs/pets, finished, and runs/more/other, stopped after an epoch."""
    prepare(tmp_path)
    shutil.copytree(trained / "runs/pets", tmp_path / "runs/pets")
    other = Path(shutil.copytree(trained / "runs/pets", tmp_path / "runs/more/other"))
    (other / "metrics.json").unlink()
    text = (other / "config.yaml").read_text().replace("seed: 0", "seed: 7")
    (other / "config.yaml").write_text(text)
    return tmp_path


def listed(cli: Run, folder: Path, *options: str) -> list[dict[str, Any]]:
    done = cli("runs", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def test_a_run_is_told_by_its_numbers(folder: Path, cli: Run) -> None:
    """Those of metrics.json; the date, the duration and the number of pictures are there."""
    (row,) = [run for run in listed(cli, folder) if run["folder"] == "runs/pets"]
    content = json.loads((folder / "runs/pets/metrics.json").read_text())
    assert row["state"] == "finished"
    assert row["mAP"] == content["mAP"]
    assert row["interval"] == content["intervals"]["mAP"]
    assert row["macro_F1"] == content["macro_F1"]
    assert row["labels"] == content["labels"]
    assert row["when"] == content["run"]["finished"]
    assert row["seconds"] == content["run"]["seconds"] > 0
    assert row["images"] + content["images"] == len(list((folder / "images").iterdir()))
    assert content["run"]["command"].startswith("mlfinetune train ")


def test_the_settings_that_differ_are_columns(folder: Path, cli: Run) -> None:
    """And no others; a run that stopped says how far it was."""
    done = cli("runs", cwd=folder)
    head, *rows = done.stdout.splitlines()
    assert "train.seed" in head
    assert "train.lr" not in head
    assert len(rows) == 2
    (stopped,) = [row for row in rows if row.startswith("more/other")]
    assert "stopped, epoch 1 of 1" in stopped
    assert " 7" in stopped


def test_runs_are_sorted(folder: Path, cli: Run) -> None:
    """By name, and by the best mAP."""
    best = folder / "runs/more/other/metrics.json"
    content = json.loads((folder / "runs/pets/metrics.json").read_text())
    best.write_text(json.dumps(content | {"mAP": 1.0}))
    assert [run["mAP"] for run in listed(cli, folder, "--sort", "mAP")] == [1.0, content["mAP"]]
    names = [run["folder"] for run in listed(cli, folder, "--sort", "name")]
    assert names == ["runs/more/other", "runs/pets"]


@pytest.mark.parametrize("content", ["{", "[]", '{"mAP": "x", "intervals": {}}', '{"run": 3}'])
def test_a_damaged_run_does_not_hide_the_others(folder: Path, cli: Run, content: str) -> None:
    """Its state says what is wrong."""
    (folder / "runs/more/other/metrics.json").write_text(content)
    states = {run["folder"]: run["state"] for run in listed(cli, folder)}
    assert states["runs/pets"] == "finished"
    assert states["runs/more/other"] == "metrics.json cannot be read"


def test_a_folder_without_runs_is_an_error(tmp_path: Path, cli: Run) -> None:
    """With a hint."""
    done = cli("runs", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run under" in done.stderr


def test_a_note_is_shown_and_changes_nothing(folder: Path, cli: Run) -> None:
    """It may be added when a run is resumed."""
    for name in ("runs/pets", "runs/more/other"):
        text = (folder / name / "config.yaml").read_text()
        (folder / name / "config.yaml").write_text(text.replace("note: null", "note: first try"))
    done = cli("runs", cwd=folder)
    assert done.stdout.count("first try") == 2
