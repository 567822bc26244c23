"""Weights of a file: what is taken of it, and what is said about its head."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import save_file

from mlfinetune.runs import checkpoint


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


@pytest.mark.parametrize("weights", ["runs/pets/best.safetensors", "runs/pets", "./runs/pets/"])
def test_the_head_of_an_own_checkpoint_is_not_taken(other: Path, cli: Run, weights: str) -> None:
    """The labels of both heads are counted and named, whether file or run directory is given."""
    names = checkpoint.load(other / "runs/pets/best.safetensors").labels.names
    assert train(cli, other, weights) == (
        f"weights: backbone of runs/pets/best.safetensors (resnet6_tiny), {len(names)} labels "
        f"({', '.join(map(repr, names))}); its head is not taken: the new head (3 labels) starts "
        f"anew; 2 labels of both ('blue', 'red')"
    )


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
    names = tuple(f"l{n}" for n in range(12))
    about = {"labels": names, "backbone": content.backbone}
    origin = checkpoint.read_origin(path)
    assert origin == checkpoint.Origin(content.backbone, content.labels.names, content.transform)
    save_file(content.weights, path, {"mlfinetune": json.dumps(about)})
    line = train(cli, other, "runs/pets")
    shown = ", ".join(map(repr, names[:10]))
    assert f"12 labels ({shown} and 2 more); its head" in line
    assert line.endswith("; no label of both")


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
    assert done.returncode == 2
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
