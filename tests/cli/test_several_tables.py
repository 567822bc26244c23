"""`data.train` as a list of tables: train, resume, check, eval, and a run that was moved."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run
from demo_data import write

from mlfinetune.config import load_config


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with old/tags.csv and new/more.csv; four pictures are in both, as copies."""
    folder = tmp_path / "project"
    write(folder / "old", count=28, size=32)
    head, *rows = (folder / "old/tags.csv").read_text().splitlines()
    (folder / "new/photos").mkdir(parents=True)
    lines = ["file,Sky,red"]
    for number, row in enumerate(rows[12:]):
        name, labels = row.split(",")
        shutil.copy(folder / "old" / name, folder / "new/photos")
        lines.append(f"photos/{Path(name).name},{number % 2},{int('red' in labels.split('|'))}")
    (folder / "new/more.csv").write_text("\n".join(lines))
    (folder / "old/tags.csv").write_text("\n".join([head, *rows[:16]]))
    text = TINY.replace("train: tags.csv", "train: [old/tags.csv, new/more.csv]")
    (folder / "pets.yaml").write_text(text)
    return folder


def test_tables_of_two_folders_make_a_run(project: Path, cli: Run) -> None:
    """Check is clean, copies are joined, eval finds all where the folder has moved."""
    done = cli("check", "pets.yaml", cwd=project)
    assert done.returncode == 0, done.stdout
    assert "the same bytes" not in done.stdout
    done = cli("train", "pets.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images in several tables: what each knows is joined" in done.stderr
    assert "22 images to train, 6 to validate, 9 labels" in done.stderr
    config = load_config(project / "runs/pets/config.yaml")
    assert config.data.train == (project / "old/tags.csv", project / "new/more.csv")
    metrics = json.loads((project / "runs/pets/metrics.json").read_text())
    sky = metrics["per_label"]["Sky"]
    moved = project.rename(project.with_name("moved"))
    done = cli("eval", "--checkpoint", "runs/pets", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("found beside the run, is read") == 2
    again = json.loads((moved / "runs/pets/eval/metrics.json").read_text())
    assert again["per_label"]["Sky"] == sky
    done = cli("train", "runs/pets/config.yaml", "--resume", cwd=moved)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(moved / "new")
    done = cli("eval", "--checkpoint", "runs/pets", cwd=moved)
    assert done.returncode == 2
    assert f"no {moved / 'new/more.csv'} (data.train); give data.train=TABLE" in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[]", "data.train: wanted path or URL, or a list of them, got []"),
        ("[a.csv, ./a.csv]", "a.csv' twice"),
        ("[a.csv, 3]", "data.train: wanted path or URL, got 3"),
        ("[old/tags.csv, a.csv]", "no such file or folder: "),
    ],
)
def test_lists_that_name_no_tables_are_refused(
    project: Path, cli: Run, value: str, said: str
) -> None:
    """Empty, twice the same, no path, no such file."""
    done = cli("check", "pets.yaml", f"data.train={value}", cwd=project)
    assert done.returncode == 2
    assert said in done.stderr + done.stdout


def test_contradictions_are_findings(project: Path, cli: Run) -> None:
    """Of copies too, by table and line; training refuses them."""
    table = project / "new/more.csv"
    first, second, *rest = table.read_text().splitlines()
    red = "0" if second.endswith("1") else "1"
    table.write_text("\n".join([first, second[:-1] + red, *rest]))
    for command in ("check", "train"):
        done = cli(command, "pets.yaml", cwd=project)
        assert done.returncode == 2
        said = done.stdout + done.stderr
        assert "tags.csv + " in said
        assert "more.csv: 1 bad row" in said
        assert " line 14" in said
        assert " line 2" in said
