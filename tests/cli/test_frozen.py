"""`mlfinetune train` with a frozen backbone: its features are computed once, and kept."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, prepare, run_child
from faults.tiny import resnet6_tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlfinetune.errors import DataError
from mlfinetune.runs import checkpoint
from mlfinetune.runs.state import read_state
from mlfinetune.training.loop import (
    Candidate,
)
from mlfinetune.training.select import _save_candidate
from mlfinetune.training.setup import TrainingSetup

Train = Callable[..., str]
OFF, ADAMW = "train.cache_features=off", "train.optimizer=adamw"
PLAIN = "augment.horizontal_flip=0"
BALANCED = "train.sampling=balanced"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights of the tiny network, BatchNorm's statistics not those of a new one."""
    torch.manual_seed(7)
    model = resnet6_tiny().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(model.state_dict(), path)
    return path


def frozen(backbone: Path) -> tuple[str, ...]:
    """Return the overrides for a frozen backbone."""
    return (f"model.weights={backbone}", "model.freeze_backbone=true", "model.image_size=32")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """Run once into one/, with cache/ as the cache; return the folder."""
    folder = prepare(tmp_path_factory.mktemp("first"))
    environment = {"MLFINETUNE_CACHE": str(folder / "cache")}
    arguments = ("train", "pets.yaml", *frozen(backbone), "-o", "one")
    done = run_child(*arguments, cwd=folder, **environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def kept(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the first run's cache, for one test."""
    shutil.copytree(first / "cache", tmp_path / "cache")
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def train(first: Path, kept: Path, backbone: Path, cli: Run, tmp_path: Path) -> Train:
    """Return a function that runs again: train(NAME, *overrides) -> its standard error."""

    def run(name: str, *overrides: str) -> str:
        arguments = ("train", "pets.yaml", *frozen(backbone), *overrides)
        done = cli(*arguments, "-o", str(tmp_path / name), cwd=first)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def head(run: Path) -> dict[str, Tensor]:
    """Return the weights of the last epoch's head."""
    weights = checkpoint.load(run / "last.safetensors").weights
    return {name: weights[name] for name in ("head.weight", "head.bias")}


def metrics(run: Path) -> dict[str, object]:
    """Return the content of metrics.json."""
    content: dict[str, object] = json.loads((run / "metrics.json").read_text())
    return content


def history(run: Path, *keys: str) -> list[list[float]]:
    """Return these numbers of every epoch."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [[json.loads(line)[key] for key in keys] for line in lines]


def assert_same_weights(one: Path, two: Path) -> None:
    """Bit for bit, of the best and of the last candidate."""
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = (checkpoint.load(run / name) for run in (one, two))
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=0)


def assert_same(one: Path, two: Path) -> None:
    """Heads, epochs and metrics of two runs.

    But for rounding, which AdamW makes large where a gradient is all but 0: by one part in a
    hundred of the rate at most.
    """
    torch.testing.assert_close(head(one), head(two), atol=1e-4, rtol=1e-4)
    numbers = [history(run, "loss", "grad_norm", "mAP", "step") for run in (one, two)]
    torch.testing.assert_close(
        torch.tensor(numbers[0]), torch.tensor(numbers[1]), rtol=1e-4, atol=0
    )
    rows = [metrics(run)["per_label"] for run in (one, two)]
    assert isinstance(rows[0], dict)
    assert isinstance(rows[1], dict)
    assert rows[0].keys() == rows[1].keys()
    for name, row in rows[0].items():  # thresholds lie between scores, and move with them
        assert row == pytest.approx(rows[1][name], rel=1e-3), name


# ---- the same head ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        (ADAMW, BALANCED),
        ("train.optimizer=sgd", "train.accumulate=3"),
        (ADAMW, "loss.name=asl", "model.head_bias=prior", "train.batch_size=18"),
    ],
)
def test_kept_features_train_the_head_that_pictures_train(
    train: Train, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Without augmentation every view is the same: order, batches, schedule and steps are too."""
    common = (*settings, PLAIN, "train.epochs=3", "train.head_lr=1e-2")
    for name, *own in (("kept",), ("read", OFF)):
        said = train(name, *common, *own)
        assert ("features of train" in said) == (name == "kept")
    assert_same(tmp_path / "kept", tmp_path / "read")


def test_the_log_ends_with_the_seconds_of_the_parts(train: Train, tmp_path: Path) -> None:
    """In order; those of the whole run, but for its first imports and its end."""
    said = train("kept")
    (line,) = re.findall(r"^seconds: (.*)$", said, re.MULTILINE)
    parts = [part.split() for part in line.split(", ")]
    order = ["start", "data", "model", "features", "learning", "validation", "saving", "results"]
    assert [name for _, name in parts] == [n for n in order if n in {name for _, name in parts}]
    assert all(float(took) > 0 for took, _ in parts)
    assert "seconds: " in (tmp_path / "kept/train.log").read_text()


def test_a_cpu_is_told_of_the_fast_way(train: Train) -> None:
    """Where all layers learn from pretrained weights; not where the way is taken."""
    tuned = train("tuned", "model.freeze_backbone=false", "train.epochs=4", "--device", "cpu")
    assert "on a CPU: with model.freeze_backbone: true the backbone has 10 times less" in tuned
    assert "times less" not in train("kept", "--device", "cpu")
    others = ("model.freeze_backbone=false", "train.epochs=4", "train.layer_decay=0.9", OFF)
    said = train("others", *others, "--device", "cpu")
    assert " (without train.layer_decay and train.cache_features) the backbone has " in said


def test_bfloat16_is_kept_as_it_is_computed(train: Train, tmp_path: Path) -> None:
    """The head sees the values that it would see, in half the bytes."""
    common = (ADAMW, PLAIN, "train.precision=bfloat16", "train.epochs=2")
    train("kept", *common)
    train("read", *common, OFF)
    torch.testing.assert_close(head(tmp_path / "kept"), head(tmp_path / "read"), atol=5e-3, rtol=0)


def test_eval_finds_the_metrics_of_training(first: Path, cli: Run, tmp_path: Path) -> None:
    """It reads pictures, where training read what is kept."""
    assert cli("eval", "-c", "one", "-o", str(tmp_path / "again"), cwd=first).returncode == 0
    ours, again = metrics(first / "one"), metrics(tmp_path / "again")
    assert ours["per_label"] == again["per_label"]
    assert ours["mAP"] == again["mAP"]
    assert ours["selection"] == again["selection"]  # the best of several heads, by this very mAP
    assert again["selection"]["candidates"] > 1


def backbone_of(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights without the head."""
    weights = checkpoint.load(path).weights
    return {key: value for key, value in weights.items() if not key.startswith("head.")}


@pytest.mark.parametrize("settings", [None, (ADAMW,), (ADAMW, OFF)])
def test_the_backbone_stays_bit_for_bit(
    train: Train, first: Path, tmp_path: Path, backbone: Path, settings: tuple[str, ...] | None
) -> None:
    """Parameters and BatchNorm's buffers, in both checkpoints."""
    if settings is not None:
        train("one", *settings, "train.epochs=2")
    given = load_file(backbone)
    for name in ("best", "last"):
        weights = backbone_of((first if settings is None else tmp_path) / f"one/{name}.safetensors")
        assert len(weights) == len(given) - 2  # without fc
        for key, value in weights.items():
            assert torch.equal(value, given[key.removeprefix("features.")]), key


def test_the_solved_head_fits_better_than_epochs(train: Train, first: Path, tmp_path: Path) -> None:
    """The point of it: no rate to tune."""
    train("stepped", ADAMW, "train.epochs=5")
    solved, stepped = (history(run, "loss") for run in (first / "one", tmp_path / "stepped"))
    assert min(solved) < min(stepped)


def test_the_search_of_few_pictures_begins_at_a_strong_penalty(first: Path) -> None:
    """19 pictures of 128 features: at 10, and weaker ones after it."""
    penalties = [l2 for (l2,) in history(first / "one", "l2")]
    assert penalties[0] == 10
    assert {3, 1} < set(penalties)


# ---- what is reused, and what is said ---------------------------------------------------


def computed(said: str) -> dict[str, list[int]]:
    """Return, for train and val, the numbers of rows wanted, cached before, and computed."""
    found = re.findall(r"features of (\w+): (\d+) wanted.*?, (\d+) kept(?:.*?, (\d+) to)?", said)
    return {what: [int(number or 0) for number in numbers] for what, *numbers in found}


def test_the_second_run_computes_nothing(train: Train, first: Path, tmp_path: Path) -> None:
    """Both runs say what is reused, and why not; the same features give the same head."""
    said = (first / "one/train.log").read_text()
    assert computed(said) == {"train": [19, 0, 19], "val": [5, 0, 5]}
    assert "(none kept for these weights and settings)" in said
    assert computed(train("two")) == {"train": [19, 19, 0], "val": [5, 5, 0]}
    assert torch.equal(head(first / "one")["head.weight"], head(tmp_path / "two")["head.weight"])


def test_settings_of_the_head_reuse_everything(train: Train) -> None:
    """Loss, optimizer, rates, batches."""
    others = ("loss.name=asl", "train.head_lr=3e-3", "train.batch_size=5", "train.weight_decay=0.1")
    assert computed(train("two", ADAMW, *others)) == {"train": [19, 19, 0], "val": [5, 5, 0]}


def test_a_changed_picture_is_computed_alone(
    pictures: Path, backbone: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And said to be new or changed."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(pictures / "cache"))
    command = ("train", "pets.yaml", *frozen(backbone), ADAMW)
    assert cli(*command, cwd=pictures).returncode == 0
    with Image.open(pictures / "images/0003.png") as image:
        image.rotate(90).save(pictures / "images/0003.png")
    said = cli(*command, cwd=pictures).stderr
    assert sum(new for _, _, new in computed(said).values()) in (1, 2)  # a view of val, or two
    assert "new or changed pictures or views" in said


def test_weights_count_by_their_content(train: Train, backbone: Path, tmp_path: Path) -> None:
    """A copy under another name is the same backbone; a changed number makes another one."""
    shutil.copy(backbone, tmp_path / "copy.safetensors")
    weights = load_file(backbone)
    weights["layer2.0.bn2.running_var"][5] *= 1.001
    save_file(weights, tmp_path / "other.safetensors")
    for name, known in (("copy", 5), ("other", 0)):
        said = train(name, f"model.weights={tmp_path / name}.safetensors", ADAMW)
        assert computed(said)["val"] == [5, known, 5 - known]


@pytest.mark.parametrize(
    "setting", ["model.image_size=40", "model.resize=pad", "train.precision=bfloat16"]
)
def test_other_settings_of_the_backbone_reuse_nothing(train: Train, setting: str) -> None:
    """They give other features."""
    assert computed(train("two", setting, ADAMW)) == {"train": [19, 0, 19], "val": [5, 0, 5]}


def test_another_holdout_computes_what_was_never_wanted(train: Train) -> None:
    """Pictures that change sides keep their rows."""
    found = computed(train("two", ADAMW, "train.seed=5", "train.cache_views=2"))
    assert found["val"] == [5, 5, 0]
    assert found["train"] == [38, 19, 19]  # all pictures are kept, no mirror image is


def test_switched_off_nothing_is_kept(train: Train, kept: Path) -> None:
    """No folder, no line."""
    shutil.rmtree(kept)
    assert computed(train("run", OFF)) == {}
    assert not kept.exists()


# ---- damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["value", "index", "cut"])
def test_a_damaged_store_is_rebuilt(
    train: Train, first: Path, tmp_path: Path, kept: Path, how: str
) -> None:
    """The damage is said, what it held is computed anew, and the head is the same."""
    sizes = sorted(path.stat().st_size for path in kept.glob("*/*.store"))
    assert len(sizes) == 2
    for path in kept.glob("*/*.store"):
        content = bytearray(path.read_bytes())
        content[{"value": -7, "index": 20}.get(how, 0)] ^= 1
        path.write_bytes(content[: len(content) // 2] if how == "cut" else content)
    said = train("two")
    assert computed(said) == {"train": [19, 0, 19], "val": [5, 0, 5]}
    assert "damaged" in said
    assert sorted(path.stat().st_size for path in kept.glob("*/*.store")) == sizes
    torch.testing.assert_close(head(first / "one"), head(tmp_path / "two"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_run_goes_on_without_a_cache(
    first: Path, backbone: Path, kept: Path, cli: Run, tmp_path: Path, depth: int
) -> None:
    """A file where the folder of features should be, or the folder of these features."""
    in_the_way = next(kept.iterdir()) if depth else kept
    shutil.rmtree(in_the_way)
    in_the_way.write_text("in the way")
    arguments = ("train", "pets.yaml", *frozen(backbone), "-o", str(tmp_path / "run"))
    done = cli(*arguments, cwd=first)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cache not used: ") == 1
    assert in_the_way.name in done.stderr


# ---- mistakes, and runs that leave nothing ----------------------------------------------


@pytest.mark.parametrize("overrides", [(), ("model.freeze_backbone=true", OFF)])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_lbfgs_needs_kept_features(
    pictures: Path, cli: Run, overrides: tuple[str, ...], more: tuple[str, ...]
) -> None:
    """The error names the keys to set, and no run directory is left."""
    done = cli("train", "pets.yaml", "train.optimizer=lbfgs", *overrides, *more, cwd=pictures)
    assert done.returncode == 2
    for part in ("train.optimizer", "model.freeze_backbone: true", "train.cache_features: auto"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not (pictures / "runs").exists()


@pytest.mark.parametrize("setting", ["train.optimizer=lbfgs", ADAMW])
def test_a_dry_run_keeps_no_features(pictures: Path, kept: Path, cli: Run, setting: str) -> None:
    """One batch of everything, and neither cache nor run is there afterwards."""
    shutil.rmtree(kept)
    arguments = ("model.freeze_backbone=true", "model.image_size=32", setting, "--dry-run")
    done = cli("train", "pets.yaml", *arguments, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()
    assert not (pictures / "runs").exists()


def test_a_bad_picture_is_named(pictures: Path, cli: Run) -> None:
    """As in training on pictures; skipped ones have no features."""
    (pictures / "images/0003.png").write_text("no picture")
    arguments = ("train", "pets.yaml", "model.freeze_backbone=true", ADAMW)
    done = cli(*arguments, cwd=pictures)
    assert (done.returncode, "0003.png" in done.stderr) == (2, True)
    done = cli(*arguments, "data.bad_images=skip", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert sum(wanted for wanted, _, _ in computed(done.stderr).values()) == 23


def test_weights_that_overflow_are_an_error_to_mend(
    first: Path, kept: Path, backbone: Path, tmp_path: Path, cli: Run
) -> None:
    """Features that are not finite: exit code 2, and no traceback."""
    weights = load_file(backbone)
    weights["layer2.0.bn2.weight"] *= 1e38
    save_file(weights, tmp_path / "huge.safetensors")
    arguments = ("train", "pets.yaml", *frozen(tmp_path / "huge.safetensors"))
    done = cli(*arguments, "-o", str(tmp_path / "run"), cwd=first)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "not finite" in done.stderr


def test_fewer_views_than_wanted_are_said(train: Train) -> None:
    """Without random crops there are no more than the picture and its mirror image."""
    said = train("run", "train.cache_views=5", "augment.crop_scale=[1, 1]")
    assert "train.cache_views 5: augment makes only 2 views of a picture" in said
    assert "(19 pictures x 2 views)" in said
    assert "cache_views" not in train("again", "train.cache_views=2")


# ---- fine-tuning from a solved head -----------------------------------------------------

FINETUNE = ("model.freeze_backbone=false", "train.solve_head_first=true")


def test_fine_tuning_starts_from_the_head_that_a_frozen_run_ends_with(
    train: Train, first: Path, tmp_path: Path
) -> None:
    """Rates of all but nothing leave it, and the backbone, what they were; features are reused."""
    rates = ("train.lr=1e-12", "train.head_lr=1e-12", "train.weight_decay=0")
    said = train("tuned", *FINETUNE, *rates)
    assert all(lacking == 0 for _, _, lacking in computed(said).values())
    assert re.search(r"training starts from the head of l2 .* iterations, mAP ", said)
    torch.testing.assert_close(head(tmp_path / "tuned"), head(first / "one"), atol=1e-6, rtol=0)
    assert len(history(tmp_path / "tuned", "loss")) == 1  # of the epoch


def test_balanced_sampling_weighs_the_pictures_of_a_solved_head(
    train: Train, first: Path, tmp_path: Path
) -> None:
    """On the same features; fine-tuning with the same sampling starts from that head."""
    said = train("balanced", BALANCED)
    assert "balanced sampling: pictures of" in said
    assert all(lacking == 0 for _, _, lacking in computed(said).values())
    balanced, uniform = (head(run)["head.weight"] for run in (tmp_path / "balanced", first / "one"))
    assert not torch.allclose(balanced, uniform, rtol=1e-3)
    train("tuned", *FINETUNE, BALANCED, "train.lr=1e-12", "train.head_lr=1e-12")
    torch.testing.assert_close(
        head(tmp_path / "tuned"), head(tmp_path / "balanced"), atol=1e-6, rtol=0
    )


def test_fine_tuning_is_never_worse_than_where_it_started(
    train: Train, first: Path, tmp_path: Path
) -> None:
    """At rates that are far too high."""
    train("shaken", *FINETUNE, "train.lr=1", "train.head_lr=10", "train.epochs=2")
    found, wanted = (metrics(run)["mAP"] for run in (tmp_path / "shaken", first / "one"))
    assert isinstance(found, float)
    assert isinstance(wanted, float)
    assert found >= wanted


def test_training_that_diverges_leaves_the_solved_head(
    first: Path, kept: Path, backbone: Path, cli: Run, tmp_path: Path
) -> None:
    """It was saved before the first step."""
    rates = ("train.lr=1e30", "train.head_lr=1e30", "train.clip_grad_norm=null")
    arguments = ("train", "pets.yaml", *frozen(backbone), *FINETUNE, *rates)
    done = cli(*arguments, "-o", str(tmp_path / "ruined"), cwd=first)
    assert (done.returncode, "not finite" in done.stderr) == (2, True), done.stderr
    best, wanted = (
        checkpoint.load(run / "best.safetensors") for run in (tmp_path / "ruined", first / "one")
    )
    assert best.epoch == 0
    torch.testing.assert_close(best.weights, wanted.weights)


def test_the_head_is_solved_for_again_after_the_last_epoch(
    train: Train, kept: Path, tmp_path: Path
) -> None:
    """As a frozen run on the tuned backbone solves for it; its features are kept for no other run.

    The better of epochs and solution is the result.
    """
    before = sorted(kept.iterdir())
    last = ("model.freeze_backbone=false", "train.solve_head_last=true", "train.epochs=2")
    said = train("moved", *last, "train.lr=0.01", "train.ema=0.5")
    assert sorted(kept.iterdir()) == before
    assert not list((tmp_path / "moved").glob(".*.tmp"))
    found = re.findall(r"^the head solved for after epoch 2  .* mAP ([\d.]+)", said, re.MULTILINE)
    scores = [mAP for (mAP,) in history(tmp_path / "moved", "mAP")]
    assert len(scores) == 2
    scores += [float(mAP) for mAP in found]
    assert metrics(tmp_path / "moved")["mAP"] == pytest.approx(max(scores), abs=1e-4)
    assert ("best: the head solved for after epoch 2" in said) == (scores[2] > max(scores[:2]))
    train("again", f"model.weights={tmp_path / 'moved' / 'last.safetensors'}")
    assert metrics(tmp_path / "again")["mAP"] == pytest.approx(scores[2], abs=1e-4)
    torch.testing.assert_close(head(tmp_path / "again"), head(tmp_path / "moved"))


LAST = ("model.freeze_backbone=false", "train.solve_head_last=true", "train.lr=0.01")


def test_a_worse_last_solution_leaves_the_epoch(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a penalty that leaves no weight."""
    monkeypatch.setattr("mlfinetune.training.solve.PENALTIES", (1e12,))
    monkeypatch.setattr("mlfinetune.training.solve.STRONGER_PENALTIES", ())
    monkeypatch.setattr("mlfinetune.training.solve.WEAKER_PENALTIES", ())
    said = train("poor", *LAST, "train.epochs=1")
    assert "best: epoch 1/1" in said
    ((mAP,),) = history(tmp_path / "poor", "mAP")
    assert metrics(tmp_path / "poor")["mAP"] == mAP
    best = checkpoint.load(tmp_path / "poor" / "best.safetensors")
    assert not torch.equal(best.weights["head.weight"], head(tmp_path / "poor")["head.weight"])


def test_a_run_stopped_in_its_last_solution_goes_on(
    first: Path, kept: Path, backbone: Path, cli: Run, tmp_path: Path, train: Train
) -> None:
    """To the same result; a finished run solves nothing again."""
    asked = ("train", "pets.yaml", *frozen(backbone), *LAST, "train.epochs=1")
    run = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("mlfinetune.training.select._save_candidate", stop_at_solution(stop))
        assert cli(*asked, "-o", str(run), cwd=first).returncode == 130
    assert not list(run.glob(".*.tmp"))
    done = cli("train", str(run / "config.yaml"), "--resume", cwd=first)
    assert done.returncode == 0, done.stderr
    assert "the head solved for after epoch 1" in done.stderr
    train("whole", *LAST, "train.epochs=1")
    assert_same_weights(run, tmp_path / "whole")
    done = cli("train", str(run / "config.yaml"), "--resume", cwd=first)
    assert "solving" not in done.stderr
    assert "features of train" not in done.stderr


EACH = ("model.freeze_backbone=false", "train.solve_head_each=true", "train.lr=0.01")


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_each_epoch_is_validated_with_the_head_that_is_solved_for(
    ema: str, train: Train, kept: Path, tmp_path: Path
) -> None:
    """As a frozen run on the backbone of then solves for it; training goes on from it."""
    before, run = sorted(kept.iterdir()), tmp_path / "each"
    said = train("each", *EACH, "train.epochs=2", f"train.ema={ema}")
    assert sorted(kept.iterdir()) == before
    assert not list(run.glob(".*.tmp"))
    assert re.findall(r"^(epoch \d|l2|the head solved|training starts)", said, re.MULTILINE) == [
        "epoch 1",
        "epoch 2",
    ]
    scores = [mAP for (mAP,) in history(run, "mAP")]
    assert metrics(run)["mAP"] == max(scores)
    train("again", f"model.weights={run / 'last.safetensors'}")
    assert metrics(tmp_path / "again")["mAP"] == pytest.approx(scores[1], abs=1e-4)
    torch.testing.assert_close(head(tmp_path / "again"), head(run))
    state = read_state(run / "resume.pt")
    for name, weights in head(run).items():
        torch.testing.assert_close(state["net"][name], weights, rtol=0, atol=0)
    tried = {trial["epoch"] for trial in state["trials"]}
    assert tried == {1, 2}
    assert all(trial["l2"] for trial in state["trials"])


def test_a_signal_ends_the_solution_after_an_epoch_at_once(
    first: Path, kept: Path, backbone: Path, cli: Run, tmp_path: Path, train: Train
) -> None:
    """The state of the epoch is saved; the run goes on to the same result."""
    asked = ("train", "pets.yaml", *frozen(backbone), *EACH, "train.epochs=2")
    run = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:

        def send(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the signal did not end the solution")

        patch.setattr("mlfinetune.training.select._solve", send)
        assert cli(*asked, "-o", str(run), cwd=first).returncode == 130
    assert not (run / "metrics.jsonl").exists()
    done = cli("train", str(run / "config.yaml"), "--resume", cwd=first)
    assert done.returncode == 0, done.stderr
    train("whole", *EACH, "train.epochs=2")
    assert_same_weights(run, tmp_path / "whole")


def test_a_failed_solution_after_an_epoch_says_how_to_go_on(
    first: Path, kept: Path, backbone: Path, cli: Run, tmp_path: Path
) -> None:
    """Without it; the epoch that was trained is validated with its own head."""
    asked, run = ("train", "pets.yaml", *frozen(backbone), *EACH, "train.epochs=1"), tmp_path / "r"
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> None:
            raise DataError("a picture is gone")

        patch.setattr("mlfinetune.training.select._solve", fail)
        done = cli(*asked, "-o", str(run), cwd=first)
    assert done.returncode == 2
    more = ("train.solve_head_each=false", "--resume", "--allow-changed")
    assert " ".join(more) in done.stderr
    done = cli("train", str(run / "config.yaml"), *more, cwd=first)
    assert done.returncode == 0, done.stderr
    assert len(history(run, "mAP")) == 1


def stop_at_solution(stop: Callable[..., None]) -> Callable[..., None]:
    """Return `_save_candidate`, but for the solution after the last epoch it calls `stop`."""

    def save(setup: TrainingSetup, candidate: Candidate, *rest: Any) -> None:
        if candidate.name.startswith("the head solved"):
            stop()
        _save_candidate(setup, candidate, *rest)

    return save


def test_more_epochs_never_lose_the_solved_head(train: Train, cli: Run, tmp_path: Path) -> None:
    """The state knows it; the last epoch of these rates ruins the network."""
    train("more", *LAST, "train.epochs=1")
    before = metrics(tmp_path / "more")
    more = ("train.epochs=2", "train.head_lr=100", "train.solve_head_last=false")
    config = str(tmp_path / "more/config.yaml")
    done = cli("train", config, *more, "--resume", "--allow-changed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = metrics(tmp_path / "more")
    assert after["mAP"] == before["mAP"]
    assert after["candidate"] == before["candidate"]


def test_a_head_to_solve_first_comes_too_late(train: Train, cli: Run, tmp_path: Path) -> None:
    """Once the run has begun; the log says so, and not where the run began with it."""
    train("late", *FINETUNE, "train.solve_head_first=false", "train.epochs=1")
    config, more = str(tmp_path / "late/config.yaml"), ("--resume", "--allow-changed")
    for epochs, said in ((2, True), (3, False)):
        keys = ("train.solve_head_first=true", f"train.epochs={epochs}")
        done = cli("train", config, *keys, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("train.solve_head_first comes too late" in done.stderr) is said


def test_a_dry_run_solves_the_head_too(first: Path, backbone: Path, cli: Run) -> None:
    """And leaves nothing."""
    arguments = ("train", "pets.yaml", *frozen(backbone), *FINETUNE, "--dry-run")
    done = cli(*arguments, cwd=first)
    assert done.returncode == 0, done.stderr
    assert "training starts from the head of" in done.stderr
    assert not (first / "runs").exists()


def test_what_solving_first_cannot_do_is_said(
    first: Path, backbone: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a frozen backbone, or with very many labels."""
    for key in ("train.solve_head_last", "train.solve_head_each", "train.solve_head_first"):
        solve = ("train", "pets.yaml", *frozen(backbone), f"{key}=true")
        done = cli(*solve, cwd=first)
        assert done.returncode == 2
        assert f"{key} is for fine-tuning" in done.stderr
    monkeypatch.setattr("mlfinetune.training.build.MANY_LABELS", 8)
    done = cli(*solve, *FINETUNE, cwd=first)
    assert done.returncode == 2
    assert "too many for 8 labels" in done.stderr
    assert not (first / "runs").exists()
