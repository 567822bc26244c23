"""`mlfinetune crossval` as a user runs it: every picture scored by a model that has not seen it."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, prepare, run_child
from distributed.group import run as run_ranks

from mlfinetune.runs import checkpoint
from mlfinetune.runs.results import read_scores

FROZEN = ("model.freeze_backbone=true", "model.image_size=32")
FILES = {
    "config.yaml", "labels.txt", "folds.json", "folds.csv", "metrics.json", "per_label.csv",
    "predictions.csv", "report.html", "scores.npz", "suspects.csv", "train.log", ".lock",
}  # fmt: skip


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return metrics.json without what differs from run to run."""
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in content.items() if key != "run"}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-validate a frozen backbone, then train on all; return the folder of pets.yaml."""
    folder = prepare(tmp_path_factory.mktemp("frozen"))
    arguments = ("--folds", "3", "--repeats", "2", "--then-train")
    done = run_child("crossval", "pets.yaml", *FROZEN, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-validate the whole network; return the folder of pets.yaml."""
    folder = prepare(tmp_path_factory.mktemp("tuned"))
    done = run_child("crossval", "pets.yaml", "train.epochs=2", "--folds", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_folder_is_that_of_results_for_all_pictures(tuned: Path) -> None:
    """Each picture has one row in every table, and was held out once."""
    folder = tuned / "runs" / "pets-crossval"
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES
    metrics, scores = read_metrics(folder), read_scores(folder)
    assert metrics["images"] == len(scores.names) == 24
    assert metrics["data"] == "out-of-fold"
    with (folder / "folds.csv").open() as file:
        rows = {row["image"]: int(row["fold"]) for row in csv.DictReader(file)}
    assert set(rows) == set(scores.names)
    for fold in metrics["crossval"]["by_fold"]:
        held_out = read_scores(folder / "folds" / f"fold-{fold['fold']}")
        assert {rows[name] for name in held_out.names} == {fold["fold"]}
        assert len(held_out.names) == fold["images"]
    assert not list(folder.rglob("*.safetensors"))
    assert not list(folder.rglob("resume*.pt"))


def test_folds_of_before_are_used_again(tuned: Path) -> None:
    """A start that was stopped goes on with the folds that are missing; results are the same."""
    folder = tuned / "runs" / "pets-crossval"
    before = read_metrics(folder)
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "folds" / "fold-2")
    done = run_child("crossval", "pets.yaml", "train.epochs=2", "--folds", "2", cwd=tuned)
    assert "1 of 2 folds are kept from before" in done.stderr, done.stderr
    assert "fold-1 begins" not in done.stderr
    assert read_metrics(folder) == before
    other = run_child("crossval", "pets.yaml", "--folds", "2", cwd=tuned)
    assert "kept from before" not in other.stderr  # other settings: a folder of its own
    assert (folder.parent / "pets-crossval-2" / "metrics.json").is_file()
    (folder / "metrics.json").unlink()  # stopped; another one has run since
    run_child("crossval", "pets.yaml", "train.epochs=2", "--folds", "2", cwd=tuned)
    assert read_metrics(folder) == before


def test_other_thresholds_take_the_same_folds(frozen: Path) -> None:
    """Results that are there stay; the new ones have a folder of their own."""
    folder, more = frozen / "runs" / "pets-crossval", ("--folds", "3", "--repeats", "2")
    before = (folder / "metrics.json").read_bytes()
    fixed = ("eval.thresholds=fixed", "--then-train")
    done = run_child("crossval", "pets.yaml", *FROZEN, *more, *fixed, cwd=frozen)
    assert "6 of 6 folds are kept from before" in done.stderr, done.stderr
    assert (folder / "metrics.json").read_bytes() == before
    again = folder.with_name("pets-crossval-2")
    assert read_metrics(again)["threshold_source"] == "fixed"
    assert (read_scores(again).logits == read_scores(folder).logits).all()
    assert set(checkpoint.load(again / "best.safetensors").decision.thresholds) == {0.5}


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs/pets-crossval/config.yaml",),
        ("runs/pets-crossval/folds/fold-1/config.yaml",),
        ("pets.yaml", "-o", "runs/pets-crossval"),
    ],
)
def test_a_cross_validation_is_no_run_to_resume(tuned: Path, arguments: tuple[str, ...]) -> None:
    """`train --resume` refuses its folder, and that of a fold, and changes nothing."""
    folder = tuned / "runs" / "pets-crossval"
    shutil.rmtree(tuned / "runs" / "pets-crossval-2", ignore_errors=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run_child("train", *arguments, "--resume", cwd=tuned)
    assert done.returncode == 2, done.stderr
    assert "holds a cross-validation" in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["solve_head_last", "solve_head_each"])
def test_a_tuned_model_is_trained_as_the_folds_chose(key: str, pictures: Path) -> None:
    """From a solved head to an epoch, or to a head that is solved for after it."""
    settings = ("train.solve_head_first=true", f"train.{key}=true", "train.epochs=3")
    more = ("--folds", "2", "--then-train", "-o", "out")
    done = run_child("crossval", "pets.yaml", *settings, *more, cwd=pictures)
    assert done.returncode == 0, done.stderr
    chosen = re.search(r"training on all pictures: (.*), the best on average", done.stderr)
    assert chosen is not None
    epochs = int(chosen[1].split("epoch ")[1][0]) if "epoch" in chosen[1] else 0
    history = (pictures / "out" / "folds" / "all" / "metrics.jsonl").read_text()
    assert len(history.splitlines()) == epochs
    assert checkpoint.load(pictures / "out" / "best.safetensors").epoch == epochs
    assert re.search(r"^seconds: .* folds, .* results, .* final model$", done.stderr, re.MULTILINE)


def test_repeats_are_named_apart(frozen: Path) -> None:
    """The spread over six folds and two repeats is in metrics.json and on the screen."""
    facts = read_metrics(frozen / "runs" / "pets-crossval")["crossval"]
    assert (facts["folds"], facts["repeats"], len(facts["by_fold"])) == (3, 2, 6)
    numbers = [fold["mAP"] for fold in facts["by_fold"]]
    assert facts["over_folds"]["mAP"]["mean"] == pytest.approx(np.mean(numbers))
    assert facts["over_folds"]["mAP"]["deviation"] == pytest.approx(np.std(numbers, ddof=1))
    said = (frozen / "said.txt").read_text()
    assert "over 6 folds, each for itself" in said
    assert "over 2 repeats" in said


def test_the_model_of_all_pictures_has_the_thresholds_of_the_folds(frozen: Path) -> None:
    """It was trained on all; its thresholds are those of metrics.json; predict takes it."""
    folder = frozen / "runs" / "pets-crossval"
    model, metrics = checkpoint.load(folder / "best.safetensors"), read_metrics(folder)
    assert model.data_digest == checkpoint.OUT_OF_FOLD
    thresholds = [metrics["per_label"][name]["threshold"] for name in model.labels.names]
    assert list(model.decision.thresholds) == thresholds
    with np.load(folder / "trained_on.npz") as record:
        assert len(record["paths"]) == 24
    done = run_child("predict", "images", "--checkpoint", str(folder), cwd=frozen)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 25


def test_eval_says_where_the_numbers_of_that_model_are(frozen: Path) -> None:
    """None was held out, so that eval has nothing to score; other data it scores."""
    folder = frozen / "runs" / "pets-crossval"
    done = run_child("eval", "-c", str(folder), cwd=frozen)
    assert done.returncode == 2
    assert "none was held out" in done.stderr
    assert "metrics.json" in done.stderr
    done = run_child("eval", "-c", str(folder), "--data", "tags.csv", cwd=frozen)
    assert done.returncode == 0, done.stderr
    assert "fitted to out-of-fold scores" in done.stderr
    assert "all 24 of these pictures: it has seen" in done.stdout
    page = (folder / "report.html").read_text()
    assert "3 folds: each picture was scored by a model that has not seen it" in page
    assert "All 24 pictures were looked at, each by a model" in page
    card = run_child("card", str(folder), cwd=frozen)
    assert card.returncode == 0, card.stderr
    assert "3 folds&#58; each picture was scored by a model" in (folder / "README.md").read_text()


def test_several_processes_find_the_same(frozen: Path, tmp_path: Path) -> None:
    """Two processes compute features together; scores and thresholds are those of one."""
    shutil.copytree(frozen, tmp_path / "two", ignore=shutil.ignore_patterns("runs"))
    arguments = ("--folds", "3", "--repeats", "2", "--then-train")
    cache = {"MLFINETUNE_CACHE": str(tmp_path / "cache")}
    run_ranks(2, "crossval", "pets.yaml", *FROZEN, *arguments, cwd=tmp_path / "two", **cache)
    one, two = (path / "runs" / "pets-crossval" for path in (frozen, tmp_path / "two"))
    assert (read_scores(one).logits == read_scores(two).logits).all()
    weights = [checkpoint.load(path / "best.safetensors").weights for path in (one, two)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_more_folds_than_pictures(pictures: Path, cli: Run) -> None:
    """The message says how many are possible, and nothing is written."""
    done = cli("crossval", "pets.yaml", "--folds", "30", cwd=pictures)
    assert done.returncode == 2
    assert "between 2 and 24 are possible" in done.stderr
    assert not (pictures / "runs").exists()
