"""Weights of a file: what is taken of it, and what is said about its head."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import save_file

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.runs import checkpoint
from mlfinetune.training.head_rows import match_labels


@pytest.fixture
def other(trained: Path, tmp_path: Path) -> Path:
    """Return a folder with the pictures of a run, the run, and a table with other labels."""
    shutil.copytree(trained, tmp_path / "own")
    rows = (trained / "tags.csv").read_text().splitlines()
    columns = "image,red,blue,Pink\n"
    cells = [f"{row.split(',')[0]},{n % 2},{n % 3 % 2},{n // 2 % 2}" for n, row in enumerate(rows)]
    (tmp_path / "own/new.csv").write_text(columns + "\n".join(cells[1:]))
    return tmp_path / "own"


def train(cli: Run, folder: Path, weights: str, *overrides: str) -> str:
    """Train on the new labels, and return the one line of the log about the weights."""
    asked = ("data.train=new.csv", "data.label_delimiter=null", "-o", "runs/new")
    done = cli("train", "pets.yaml", *asked, f"model.weights={weights}", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("weights: ")]
    assert line in (max((folder / "runs").glob("new*")) / "train.log").read_text()
    return line


def head(run: Path) -> dict[str, torch.Tensor]:
    """Return label -> its row of a run's head, weight and bias joined."""
    content = checkpoint.load(run / "best.safetensors")
    rows = torch.cat([content.weights["head.weight"], content.weights["head.bias"][:, None]], 1)
    return dict(zip(content.labels.names, rows, strict=True))


STILL = ("train.lr=1e-12", "train.head_lr=1e-12", "train.weight_decay=0")


@pytest.mark.parametrize("weights", ["runs/pets/best.safetensors", "runs/pets", "./runs/pets/"])
def test_rows_of_labels_that_stay_are_taken(other: Path, cli: Run, weights: str) -> None:
    """By name, in whatever column; the log names those that stay, that are new, and that went."""
    gone = [name for name in head(other / "runs/pets") if name not in ("blue", "red")]
    line = train(cli, other, weights, *STILL)
    assert line == (
        f"weights: backbone of runs/pets/best.safetensors (resnet6_tiny), and its head's rows of "
        f"2 labels that stay ('blue', 'red'); new: 1 label ('Pink'); gone: {len(gone)} labels "
        f"({', '.join(map(repr, gone))})"
    )
    before, now = head(other / "runs/pets"), head(max((other / "runs").glob("new*")))
    assert list(now) == ["blue", "Pink", "red"]
    for name in ("blue", "red"):
        torch.testing.assert_close(now[name], before[name])
    assert now["Pink"][-1].abs() < 1e-9  # the bias


def test_a_renamed_label_keeps_its_row(other: Path, cli: Run) -> None:
    """`data.rename_labels` says which one it was."""
    line = train(cli, other, "runs/pets", *STILL, "data.rename_labels={red: Rot, blue: Blau}")
    assert "rows of 2 labels that stay ('Blau', 'Rot'); new: 1 label ('Pink')" in line
    before, now = head(other / "runs/pets"), head(other / "runs/new")
    torch.testing.assert_close(now["Rot"], before["red"])
    assert match_labels(["cat"], ["kitty", "tom"], {"kitty": "cat", "tom": "cat"}) == {}
    assert match_labels(["cat"], ["kitty", "cat"], {"kitty": "cat"}) == {0: 1}


def test_a_label_that_the_tables_have_renamed_keeps_its_row(other: Path, cli: Run) -> None:
    """The old name stands in the checkpoint alone; eval needs no checkpoint for it; typos stay."""
    table = other / "new.csv"
    table.write_text(table.read_text().replace("image,red,", "image,Rot,"))
    for weights in ("runs/pets", "runs/pets/best.safetensors"):
        line = train(cli, other, weights, *STILL, "data.rename_labels={red: Rot}")
        assert "rows of 2 labels that stay ('blue', 'Rot'); new: 1 label ('Pink')" in line
    torch.testing.assert_close(head(other / "runs/new")["Rot"], head(other / "runs/pets")["red"])
    asked = ("data.train=new.csv", "data.label_delimiter=null", "model.weights=runs/pets")
    done = cli("check", "pets.yaml", *asked, "data.rename_labels={red: Rot}", cwd=other)
    assert "no label" not in done.stdout + done.stderr
    done = cli("train", "pets.yaml", *asked, "data.rename_labels={rde: Rot}", cwd=other)
    assert "no label 'rde' in the data" in done.stderr
    shutil.rmtree(other / "runs/pets")
    assert cli("eval", "-c", "runs/new", cwd=other).returncode == 0


def test_a_solver_keeps_rows_that_it_cannot_learn(other: Path, cli: Run) -> None:
    """Of a label without known targets; the inherited rows are a candidate of their own."""
    text = (other / "new.csv").read_text().replace(",blue,", ",Sky,")
    (other / "new.csv").write_text(text)
    labels = "data.labels=[blue, Pink, red, Sky]"
    train(cli, other, "runs/pets", "model.freeze_backbone=true", labels)
    before, now = head(other / "runs/pets"), head(other / "runs/new")
    assert torch.equal(now["blue"], before["blue"])
    assert now["Pink"].abs().sum() > 0
    history = (other / "runs/new/train.log").read_text()
    assert "iterations, 2 rows inherited  loss" in history


def test_settings_of_a_run_are_taken_where_the_config_leaves_them_open(
    other: Path, cli: Run
) -> None:
    """Backbone, levels, size, resizing and colors; levels that are set otherwise are an error."""
    asked = ("model.image_size=48", "model.resize=crop", "model.mean=[0.4,0.4,0.4]")
    done = cli("train", "pets.yaml", *asked, "-o", "runs/first", cwd=other)
    assert done.returncode == 0, done.stderr
    (other / "bare.yaml").write_text(
        "data: {train: tags.csv}\nmodel: {weights: runs/first}\ntrain: {epochs: 1, workers: 0}\n"
    )
    done = cli("train", "bare.yaml", cwd=other)
    assert done.returncode == 0, done.stderr
    first, second = (
        checkpoint.load(other / f"runs/{name}/best.safetensors") for name in ("first", "bare")
    )
    fields = ("image_size", "resize", "mean", "std", "interpolation", "crop_share")
    for name in fields:
        assert getattr(second.transform, name) == getattr(first.transform, name)
    assert (second.backbone, second.levels, first.levels) == ("resnet6_tiny", 1, 1)
    done = cli("train", "bare.yaml", "model.levels=2", cwd=other)
    assert done.returncode == 2
    assert "model.levels: 2, but " in done.stderr


def test_a_run_of_an_older_version_resumes_with_its_own_levels(other: Path, cli: Run) -> None:
    """It began with a checkpoint of one level, and had two of its own."""
    config = other / "runs/pets/config.yaml"
    done = cli("train", "pets.yaml", "-o", "runs/two", "model.levels=2", cwd=other)
    assert done.returncode == 0, done.stderr
    run = other / "runs/two/config.yaml"
    text = run.read_text().replace("weights: null", f"weights: {config.parent}")
    run.write_text(text)
    for name in ("metrics.json", "best.safetensors", "last.safetensors", "resume.pt"):
        (run.parent / name).unlink()
    done = cli("train", str(run), "--resume", cwd=other)
    assert done.returncode == 0, done.stderr
    assert "its head, on the means of 1 stage, is not taken" in done.stderr


def test_a_damaged_checkpoint_is_no_beginning(other: Path, cli: Run) -> None:
    """One bit of a head would go on silently."""
    best = other / "runs/pets/best.safetensors"
    content = bytearray(best.read_bytes())
    content[-1] ^= 1
    best.write_bytes(content)
    done = cli("train", "pets.yaml", "model.weights=runs/pets", "-o", "runs/new", cwd=other)
    assert done.returncode == 2
    assert "is damaged: its SHA-256 is not the one written in it" in done.stderr


@pytest.mark.parametrize(
    ("outputs", "ending", "said"),
    [
        (1000, ".pth", "; its head (1000 outputs) is not taken: the new head (3 labels) starts"),
        (3, ".safetensors", "; its head (3 outputs) is not taken: the new head (3 labels) starts"),
        (None, ".safetensors", ", which holds no head: the new head (3 labels) starts anew"),
    ],
)
def test_the_head_of_a_foreign_file_is_not_taken(
    other: Path, cli: Run, outputs: int | None, ending: str, said: str
) -> None:
    """Its outputs have no names, even where there are as many as labels."""
    weights = checkpoint.load(other / "runs/pets/best.safetensors").weights
    state = {k.removeprefix("features."): v for k, v in weights.items() if "head." not in k}
    if outputs is not None:
        state |= {"fc.weight": torch.zeros(outputs, 128), "fc.bias": torch.zeros(outputs)}
    path = other / f"foreign{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    assert said in train(cli, other, path.name)


def test_more_than_ten_labels_are_counted(other: Path, cli: Run) -> None:
    """A line of a thousand names would be read by nobody."""
    path = other / "runs/pets/best.safetensors"
    content = checkpoint.load(path)
    labels = LabelSpace(tuple(f"l{n}" for n in range(12)))
    head = {"head.weight": torch.zeros(12, 128), "head.bias": torch.zeros(12)}
    rule, weights = DecisionRule.plain(12), {**content.weights, **head}
    checkpoint.save(path, replace(content, labels=labels, decision=rule, weights=weights))
    line = train(cli, other, "runs/pets")
    shown = ", ".join(map(repr, labels.names[:10]))
    assert line.endswith(
        f"rows of no label that stay; new: 3 labels ('blue', 'Pink', 'red'); "
        f"gone: 12 labels ({shown} and 2 more)"
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("./runs", "runs holds no best.safetensors; name a run directory"),
        ("runs/none", "model.weights: no such file: "),
        ("none.pth", "model.weights: no such file: "),
    ],
)
def test_weights_that_are_nowhere_are_refused(
    trained: Path, cli: Run, weights: str, said: str
) -> None:
    """A folder without a checkpoint, a missing run, a missing file."""
    done = cli("train", "pets.yaml", f"model.weights={weights}", cwd=trained)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_run_without_its_folder_is_told_how_to_write_it(other: Path, cli: Run) -> None:
    """A bare name is that of published weights."""
    shutil.copytree(other / "runs/pets", other / "r1")
    done = cli("train", "pets.yaml", "model.weights=r1", cwd=other)
    assert done.returncode == 2
    assert "there is a file or folder of that name here: write ./r1." in done.stderr


def test_weights_of_another_backbone_name_it(trained: Path, cli: Run) -> None:
    """A run's own backbone is in its checkpoint: the error says what to set."""
    asked = ("model.weights=runs/pets", "model.backbone=resnet18", "model.image_size=32")
    done = cli("train", "pets.yaml", *asked, "-o", "runs/other", cwd=trained)
    assert (done.returncode, "images found" in done.stderr) == (2, False)
    assert (
        "is of a resnet6_tiny, not of a resnet18: set model.backbone: resnet6_tiny" in done.stderr
    )


def test_weights_that_want_other_colors_do_not_change_a_run(
    trained: Path, tmp_path: Path, cli: Run
) -> None:
    """A resumed run must prepare pictures as before, also where the weights decide how."""
    folder = shutil.copytree(trained, tmp_path / "colors")
    done = cli("train", "pets.yaml", "model.weights=runs/pets", "-o", "next", cwd=folder)
    assert done.returncode == 0, done.stderr
    best = folder / "runs/pets/best.safetensors"
    content = checkpoint.load(best)
    changed = replace(content.transform, mean=(0.0, 0.0, 0.0), interpolation="bicubic")
    other = replace(content, transform=changed)
    checkpoint.save(best, other)
    done = cli("train", "next/config.yaml", "--resume", cwd=folder)
    assert done.returncode == 2
    for line in (
        "preprocessing.mean: [0.485, 0.456, 0.406] before, [0.0, 0.0, 0.0] now",
        "preprocessing.interpolation: 'bilinear' before, 'bicubic' now",
    ):
        assert line in done.stderr
