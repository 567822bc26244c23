"""`mlfinetune init` where the folders of splits have pictures of the same names."""

import shutil
from pathlib import Path

import pytest
from conftest import Run, prepare
from test_init import SHARED, init
from test_mistakes import fails

from mlfinetune.config import load_config


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with 12 pictures in train/, and others of the first 4 names in val/."""
    prepare(tmp_path, 12)
    (tmp_path / "images").rename(tmp_path / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "tags.csv").unlink()
    names = list_names(tmp_path)
    for name, other in zip(names[:4], names[4:8], strict=True):
        shutil.copy(tmp_path / "train" / other, tmp_path / "val" / name)
    return tmp_path


def list_names(folder: Path) -> list[str]:
    """Return the names of the pictures of train."""
    return sorted(path.name for path in (folder / "train").iterdir())


def write_table(path: Path, names: list[str]) -> None:
    """Write a table of cats and dogs."""
    rows = [f"{name},{('cat', 'dog')[at % 2]}" for at, name in enumerate(names)]
    path.write_text("\n".join(["image,labels", *rows]))


@pytest.mark.parametrize("start", ["D:\\x\\", "/content/drive/"])
def test_the_folders_in_the_names_decide(data: Path, cli: Run, start: str) -> None:
    """Though one folder has a file of each name."""
    slash = start[-1]
    train = [f"{start}train{slash}{name}" for name in list_names(data)]
    val = [f"{start}val{slash}{name}" for name in list_names(data)[:4]]
    write_table(data / "tags.csv", [*train, *val])
    assert any("16 of 16" in line for line in init(cli, data, "tags.csv"))
    made = load_config(data / "tags.yaml").data
    assert (made.images, made.find_by_name) == (data, True)
    done = cli("train", "tags.yaml", "--dry-run", *SHARED, cwd=data)
    assert "16 pictures found by name" in done.stderr


@pytest.mark.parametrize("start", ["", "D:\\x\\"])
def test_val_is_not_read_with_the_pictures_of_train(data: Path, cli: Run, start: str) -> None:
    """The folder of the pictures of train is no choice for a table whose own are in val/."""
    names = [start + name for name in list_names(data)]
    write_table(data / "train.csv", names)
    write_table(data / "val.csv", names[:4])
    done = cli("init", "train.csv", "data.val=val.csv", cwd=data)
    fails(done, "val.csv: pictures of its names are in val/, those of data.train in train/")
    assert "mlfinetune init ." in done.stderr
    assert not (data / "train.yaml").exists()
    shutil.rmtree(data / "val")
    assert "4 to validate" in init(cli, data, "train.csv", "data.val=val.csv")[1]


def test_a_folder_of_split_tables_is_read_with_the_folder_of_each(data: Path, cli: Run) -> None:
    """As the refusal says."""
    write_table(data / "train.csv", list_names(data))
    write_table(data / "val.csv", list_names(data)[:4])
    said = init(cli, data, ".", "-o", "new.yaml")
    assert any("pictures of val.csv: below val/" in line for line in said)
