"""`mlfinetune init`: it says what there is, and its config trains unedited."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from conftest import Run, prepare
from test_mistakes import fails
from test_split_command import classes, coco, lines, metadata, sidecar, table, voc
from test_train import tree_digest

from mlfinetune.config import SCHEMA, Config, DataConfig, load_config
from mlfinetune.runtime.machine import has_gpu


def parquet(folder: Path) -> str:
    """Return pictures inside of the table."""
    sidecar(folder)
    cells = [{"bytes": (folder / f"data/{at}.png").read_bytes(), "path": None} for at in range(10)]
    labels = [["cat", "hot dog"][: 1 + at % 2] for at in range(10)]
    pq.write_table(pa.table({"image": cells, "labels": labels}), folder / "data.parquet")
    return "data.parquet"


def sides(folder: Path) -> str:
    """Return class folders in train/, val/ and test/."""
    classes(folder)
    for side, first in (("train", 0), ("val", 6), ("test", 8)):
        for at in range(first, {0: 6, 6: 8, 8: 10}[first]):
            name = ("hot dog", "cat")[at % 2]
            path = folder / "sides" / side / name / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / f"data/{name}/{at}.png").rename(path)
    return "sides"


def init(cli: Run, folder: Path, *arguments: str) -> list[str]:
    """Return the lines on standard output, after success."""
    done = cli("init", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).splitlines()


SHARED = [
    "model.backbone=resnet6_tiny",
    "model.weights=null",
    "model.image_size=32",
    "train.workers=0",
]


@pytest.mark.parametrize(
    ("make", "first", "split"),
    [
        (coco, "10 pictures, 3 labels, 0.9 per picture", "8 to train, 2 to validate (a fifth"),
        (voc, "10 pictures, 2 labels, 0.6 per picture, 3 unknown", "8 to train, 2 to validate (a"),
        (classes, "10 pictures, 2 labels, 1.1 per picture", "8 to train, 2 to validate (a fifth"),
        (sides, "10 pictures, 2 labels, 1.0 per picture", "6 to train, 2 to validate, 2 to test ("),
        (sidecar, "10 pictures, 2 labels, 1.6 per picture", "8 to train, 2 to validate (a fifth"),
        (lines, "10 pictures, 2 labels, 0.9 per picture", "8 to train, 2 to validate (a fifth"),
        (metadata, "10 pictures, 2 labels, 2.0 per picture", "8 to train, 2 to validate (a fifth"),
        (parquet, "10 pictures, 2 labels, 1.5 per picture", "8 to train, 2 to validate (a fifth"),
    ],
)
def test_each_format(tmp_path: Path, cli: Run, make: Any, first: str, split: str) -> None:
    """Numbers, the split that is proposed, a config that trains; no other file is touched."""
    name = make(tmp_path)
    before = tree_digest(tmp_path)
    said = init(cli, tmp_path, name, "-o", "new.yaml")
    assert said[0].startswith(first)
    assert said[1].startswith(f"split: {split}")
    assert said[-1] == "every picture can be read"
    done = cli("train", "new.yaml", "--dry-run", *SHARED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "new.yaml").unlink()
    assert tree_digest(tmp_path) == before


def test_training_unedited(tmp_path: Path, cli: Run) -> None:
    """One batch as the config says, ResNet-50 with weights from torchvision's cache; then a run."""
    weights = tmp_path / "torch/hub/checkpoints"
    weights.mkdir(parents=True)
    torch.save(torchvision.models.resnet50().state_dict(), weights / "resnet50-11ad3fa6.pth")
    prepare(tmp_path)
    rows = (tmp_path / "tags.csv").read_text().splitlines()[:11]
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    init(cli, tmp_path, "tags.csv")
    home = {"TORCH_HOME": str(tmp_path / "torch")}
    done = cli("train", "tags.yaml", "--dry-run", cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    done = cli("train", "tags.yaml", "model.image_size=32", "train.epochs=1", cwd=tmp_path, **home)
    assert done.returncode == 0, done.stderr
    assert "8 images to train, 2 to validate, 8 labels" in done.stderr
    assert (tmp_path / "runs/tags/metrics.json").is_file()


def test_bad_pictures_are_skipped_and_counted(tmp_path: Path, cli: Run) -> None:
    """Each is named once, by rising line; the config leaves them out, and trains."""
    prepare(tmp_path)
    (tmp_path / "images/0009.png").write_text("no picture")
    (tmp_path / "images/0010.jpg").unlink()
    said = init(cli, tmp_path, "tags.csv")
    assert said[0].startswith("22 pictures, 8 labels")
    assert said[-3] == "2 more pictures cannot be read, to be skipped"
    assert [line.split(": ")[:2] for line in said[-2:]] == [
        ["  line 11", "'images/0009.png'"],
        ["  line 12", "'images/0010.jpg'"],
    ]
    assert load_config(tmp_path / "tags.yaml").data.bad_images == "skip"
    assert "bad_images: skip           # 2 cannot be read" in (tmp_path / "tags.yaml").read_text()
    done = cli("train", "tags.yaml", *SHARED, "train.epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "24 images found = 22 used + 2 skipped" in done.stderr


def test_the_config_says_the_defaults(tmp_path: Path, cli: Run) -> None:
    """Nothing but the data, and what learns, differs from a config of one key."""
    table(tmp_path / "data.csv", 10)
    init(cli, tmp_path, "data.csv")
    made = load_config(tmp_path / "data.yaml")
    assert made.data.val_fraction == 0.2
    same = {"train": made.data.train, "val_fraction": 0.2}
    plain = Config(data=DataConfig(**same), output=made.output)
    if has_gpu():
        recipe = {"solve_head_first": True, "solve_head_last": True, "ema": "auto"}
        assert made == plain.update_section("train", **recipe)
    else:
        assert made == plain.update_section("model", freeze_backbone=True)


def test_what_learns_is_chosen_for_the_machine(tmp_path: Path, cli: Run) -> None:
    """On a CPU the head alone, and the file says why; what the user says, stays."""
    table(tmp_path / "data.csv", 10)
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""}
    done = cli("init", "data.csv", cwd=tmp_path, **no_gpu)
    why = "no GPU here: 26 times less work than 10 epochs of all layers"
    assert f"model.freeze_backbone: true; {why}\n" in done.stdout
    assert f"freeze_backbone: true      # {why}\n" in (tmp_path / "data.yaml").read_text()
    for number, given in enumerate(
        ("model.freeze_backbone=false", "train.solve_head_first=true", "model.weights=null")
    ):
        done = cli("init", "data.csv", given, "-o", f"{number}.yaml", cwd=tmp_path, **no_gpu)
        assert done.returncode == 0, done.stderr
        assert not load_config(tmp_path / f"{number}.yaml").model.freeze_backbone


def test_with_a_gpu_fine_tuning_starts_from_a_solved_head(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what goes with it, unless the user has chosen."""
    monkeypatch.setattr("mlfinetune.workflows.init.has_gpu", lambda: True)
    table(tmp_path / "data.csv", 10)
    done = cli("init", "data.csv", cwd=tmp_path)
    assert "train.solve_head_first: true; a GPU here, few pictures" in done.stdout
    made = load_config(tmp_path / "data.yaml").train
    assert (made.solve_head_first, made.solve_head_last, made.ema) == (True, True, "auto")
    cli("init", "data.csv", "train.ema=0.9", "-o", "own.yaml", cwd=tmp_path)
    made = load_config(tmp_path / "own.yaml").train
    assert (made.solve_head_first, made.solve_head_last, made.ema) == (False, False, 0.9)
    monkeypatch.setattr("mlfinetune.training.bottleneck.FEW_PICTURES", 5)
    done = cli("init", "data.csv", "-o", "many.yaml", cwd=tmp_path)
    assert "all layers learn, with a new head: a GPU here, and over 5 pictures" in done.stdout
    assert not load_config(tmp_path / "many.yaml").train.solve_head_first


def test_every_key_in_a_comment_is_one(tmp_path: Path, cli: Run) -> None:
    """Each `# key: value` may lose its `#`, and the config still loads."""
    table(tmp_path / "data.csv", 10)
    init(cli, tmp_path, "data.csv", "-o", "odd: name #1.yaml")
    text = (tmp_path / "odd: name #1.yaml").read_text()
    body = text[text.index("data:") :]
    (tmp_path / "all.yaml").write_text(re.sub(r"^( *)# (?=\w+:)", r"\1", body, flags=re.MULTILINE))
    every = load_config(tmp_path / "all.yaml")
    assert (every.data.format, every.data.min_positives) == ("csv", 10)
    assert (every.train.early_stopping, every.train.seed) == (3, 0)
    assert every.output == tmp_path / "runs/odd: name #1"


def test_the_schema_is_named_at_the_head(tmp_path: Path, cli: Run) -> None:
    """In the form that editors look for; the file is there."""
    table(tmp_path / "data.csv", 10)
    init(cli, tmp_path, "data.csv")
    head = (tmp_path / "data.yaml").read_text().splitlines()[0]
    assert Path(head.removeprefix("# yaml-language-server: $schema=")) == SCHEMA
    assert SCHEMA.is_file()


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        'it\'s "so"',
        "a # b",
        "a: b",
        "caf\u00e9 \u732b \U0001f600",
        "- a",
        "a\nb",
        "\\n",
        "%41{x}",
        "\u2028\x7f",
        "\udcff",
    ],
)
def test_odd_names(tmp_path: Path, cli: Run, name: str) -> None:
    """Any name of a folder comes through the YAML, and through the name of the config."""
    folder = tmp_path / name
    folder.mkdir()
    table(folder / "data.csv", 4)
    (folder / "data.csv").rename(folder / f"{name}.csv")
    init(cli, folder, f"./{name}.csv")
    made = load_config(folder / f"{name}.yaml")
    assert made.data.train == folder / f"{name}.csv"
    (folder / "sub").mkdir()
    init(cli, folder / "sub", f"../{name}.csv", "-o", "x.yaml")
    assert load_config(folder / "sub/x.yaml").data.train == folder / f"{name}.csv"


def test_this_folder(tmp_path: Path, cli: Run) -> None:
    """`init .` takes the folder's name; the config lies in it and is not taken for data."""
    classes(tmp_path)
    folder = (tmp_path / "data").rename(tmp_path / "my.pets")
    assert init(cli, folder, ".")[0].startswith("10 pictures")
    assert load_config(folder / "my.pets.yaml").data.train == folder
    assert init(cli, folder, ".", "-o", "again.yaml")[0].startswith("10 pictures")


def test_what_is_there_stays(tmp_path: Path, cli: Run) -> None:
    """An existing config, data that is none, a folder that is not there: nothing is written."""
    table(tmp_path / "data.csv", 10)
    (tmp_path / "bad.csv").write_text("image,labels\n0.png\nx.png,a,b\n")
    init(cli, tmp_path, "data.csv")
    before = tree_digest(tmp_path)
    fails(cli("init", "data.csv", cwd=tmp_path), "data.yaml is there already", "--output")
    fails(cli("init", "none.csv", cwd=tmp_path), "none.csv")
    fails(cli("init", "0.png", cwd=tmp_path), "0.png")
    fails(cli("init", "bad.csv", cwd=tmp_path), "2 bad rows", "line 2", "line 3")
    fails(cli("init", "data.csv", "-o", "none/x.yaml", cwd=tmp_path), "none/x.yaml")
    assert tree_digest(tmp_path) == before
