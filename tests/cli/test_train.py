"""`mlfinetune train` as a user runs it: real files, real processes."""

import hashlib
import json
import signal
from pathlib import Path

import pytest
from conftest import Run, run_child
from faults import children
from PIL import Image

from mlfinetune.runs import checkpoint

FILES = {
    "config.yaml",
    "labels.txt",
    "best.safetensors",
    "last.safetensors",
    "metrics.jsonl",
    "metrics.json",
    "per_label.csv",
    "predictions.csv",
    "heat_maps.json",
    "report.html",
    "scores.npz",
    "suspects.csv",
    "trained_on.npz",
    "train.log",
    "resume.pt",
    ".lock",
}


def tree_digest(folder: Path) -> str:
    """Return one digest of every file below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def test_a_run_leaves_the_promised_files(trained: Path) -> None:
    """The run directory holds what the contract lists, and nothing else."""
    run = trained / "runs" / "pets"
    assert {path.name for path in run.iterdir() if path.is_file()} == FILES
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images"] == len((run / "predictions.csv").read_text().splitlines()) - 1
    assert 0 <= metrics["mAP"] <= 1
    assert set(metrics["per_label"]) == set((run / "labels.txt").read_text().split())


def test_the_resolved_config_reproduces_the_run(trained: Path) -> None:
    """Training from the run's own config.yaml gives the same weights, in a new directory."""
    done = run_child("train", "runs/pets/config.yaml", cwd=trained)
    assert done.returncode == 0, done.stderr
    first, second = (
        checkpoint.load(trained / "runs" / name / "last.safetensors").weights
        for name in ("pets", "pets-2")
    )
    assert all((first[name] == second[name]).all() for name in first)


def test_worker_processes_change_nothing(pictures: Path, cli: Run) -> None:
    """0, 1 and 2 workers train to the same bits, augmentation on."""
    runs = []
    for workers in (0, 1, 2):
        done = cli(
            "train",
            "pets.yaml",
            f"train.workers={workers}",
            "augment.crop_scale=[0.3, 1.0]",
            "augment.color_jitter=0.3",
            "-o",
            f"w{workers}",
            cwd=pictures,
        )
        assert done.returncode == 0, done.stderr
        runs.append(checkpoint.load(pictures / f"w{workers}" / "last.safetensors").weights)
    assert all((runs[0][name] == run[name]).all() for run in runs[1:] for name in run)


def test_results_go_to_stdout_and_the_rest_to_stderr(pictures: Path, process: Run) -> None:
    """Standard output is the table alone; no progress bar where standard error is a pipe."""
    done = process("train", "pets.yaml", "model.backbone=shufflenet_v2_x0_5", cwd=pictures)
    assert done.stdout.splitlines()[0] == "5 images, mAP over 8 of 8 labels"
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "epoch 1/1" in done.stderr
    assert "\r" not in done.stderr
    logged = (pictures / "runs/pets/train.log").read_text().splitlines()
    assert len(logged) >= 6
    assert {line[21:] for line in logged} <= set(done.stderr.splitlines())


def test_a_dry_run_leaves_nothing(pictures: Path, cli: Run) -> None:
    """One batch of everything, and the folder is what it was."""
    before = tree_digest(pictures)
    done = cli("train", "pets.yaml", "--dry-run", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout
    assert tree_digest(pictures) == before


def test_training_touches_no_user_file(pictures: Path, cli: Run) -> None:
    """Pictures, table and config are bit for bit what they were."""
    before = tree_digest(pictures)
    assert cli("train", "pets.yaml", "-o", "out", cwd=pictures).returncode == 0
    assert cli("predict", "images", "-c", "out", cwd=pictures).returncode == 0
    for path in sorted((pictures / "out").iterdir()):
        path.unlink()
    assert tree_digest(pictures) == before


@pytest.mark.parametrize(
    "setting",
    [
        "train.optimizer=sgd",
        "train.accumulate=3",
        "loss.pos_weight=auto",
        "loss={pos_weight: {red: 2.0}, label_smoothing: 0.1}",
        "model.head_bias=prior",
        "model.freeze_backbone=true",
        "augment.rand_augment=2",
        "model.resize=pad",
        "train.batch_size=18",  # 19 pictures: a last batch of one
    ],
)
def test_each_setting_trains(pictures: Path, cli: Run, setting: str) -> None:
    """Every knob of the config works end to end."""
    done = cli("train", "pets.yaml", setting, cwd=pictures)
    assert done.returncode == 0, done.stderr


def test_early_stopping_ends_the_run(pictures: Path, cli: Run) -> None:
    """Where mAP can't get better, training ends after the epochs it was given."""
    settings = ["train.epochs=9", "train.early_stopping=2", "train.lr=1e-12", "train.head_lr=1e-12"]
    settings.append("train.optimizer=adamw")
    done = cli("train", "pets.yaml", *settings, "model.freeze_backbone=true", cwd=pictures)
    history = (pictures / "runs/pets/metrics.jsonl").read_text().splitlines()
    assert len(history) == 3
    assert "early stop" in done.stderr


def test_the_best_epoch_is_the_one_reported(pictures: Path, cli: Run) -> None:
    """metrics.json and best.safetensors are those of the epoch with the highest mAP."""
    assert cli("train", "pets.yaml", "train.epochs=4", cwd=pictures).returncode == 0
    run = pictures / "runs/pets"
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "metrics.json").read_text())
    best = max(history, key=lambda row: row["mAP"])
    assert (metrics["epoch"], metrics["mAP"]) == (best["epoch"], best["mAP"])
    assert checkpoint.load(run / "best.safetensors").epoch == best["epoch"]
    assert checkpoint.load(run / "last.safetensors").epoch == 4


def test_unknown_targets_go_all_the_way(pictures: Path, cli: Run) -> None:
    """One column a label with blanks: masked, counted, and a label without negatives has no AP."""
    rows = ["image,cat,dog,split"]
    for n in range(24):
        name = f"images/{n:04}.{'png' if n % 2 else 'jpg'}"
        rows.append(f"{name},{n % 2},{'' if n % 3 else 1},{'val' if n < 8 else 'train'}")
    (pictures / "tags.csv").write_text("\n".join(rows))
    done = cli("train", "pets.yaml", cwd=pictures)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((pictures / "runs/pets/metrics.json").read_text())
    assert metrics["per_label"]["dog"]["AP"] is None
    assert metrics["per_label"]["dog"]["positives"] == 3
    assert metrics["labels_scored"] == 1


def test_one_picture_to_train_and_one_to_validate(tmp_path: Path, cli: Run) -> None:
    """The smallest data set there is."""
    for name in ("a", "b"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("image,labels\na.png,red\n")
    (tmp_path / "val.csv").write_text("image,labels\nb.png,red\n")
    (tmp_path / "one.yaml").write_text(
        "data: {train: train.csv, val: val.csv}\n"
        "model: {backbone: resnet18, weights: null, image_size: 64}\n"
        "train: {epochs: 2, workers: 0}\n"
    )
    done = cli("train", "one.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mAP over 0 of 1 label" in done.stdout


def test_class_folders_train(pictures: Path, cli: Run) -> None:
    """A folder a label, the same picture in two of them."""
    names = sorted((pictures / "images").iterdir())
    for n, path in enumerate(names):
        for label in ("cat", "dog") if n % 3 == 0 else ("cat",) if n % 2 else ("dog",):
            target = pictures / "photos" / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    done = cli("train", "pets.yaml", "data.train=photos", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "8 files with the bytes of another" in done.stderr
    assert (pictures / "runs/pets/labels.txt").read_text() == "cat\ndog\n"


def test_ctrl_c_ends_quietly_and_says_what_is_saved(pictures: Path) -> None:
    """SIGINT in training: exit code 130, no traceback, the command that goes on is named."""
    children.prepare_server()
    more = ("train.epochs=500", "train.workers=1")
    training = children.start("train", "pets.yaml", *more, cwd=pictures)
    assert training.wait_until(lambda: "\nepoch 2/500  " in training.said)  # its end
    training.send(signal.SIGINT)
    assert training.wait() == 130
    text = training.said
    assert "Traceback" not in text
    assert "stopped by Ctrl-C; everything is saved; resume with\n" in text
    assert "  mlfinetune train runs/pets/config.yaml --resume\n" in text
    assert checkpoint.load(pictures / "runs/pets/best.safetensors").epoch >= 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_an_extension_is_loaded_is_no_bug(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """Where C code makes an ImportError of it, as one of scipy does; others stay bugs."""

    def load(stopped: bool) -> None:
        try:
            if stopped:
                signal.raise_signal(number)
        finally:
            raise ImportError("initialization failed")

    for stopped, wanted in ((True, code), (False, 1)):
        monkeypatch.setattr("mlfinetune.cli.app", lambda stopped=stopped: load(stopped))
        done = cli("train", cwd=tmp_path)
        assert done.returncode == wanted
        assert ("this is a bug" in done.stderr) is not stopped
