"""A run, its data, or both lie elsewhere than when it was trained; the old folder is gone."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run, prepare, run_child

from mlfinetune.config import build_config
from mlfinetune.errors import DataError
from mlfinetune.runs.moved import find_again, find_data


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, pets.yaml and runs/pets, that was renamed since."""
    folder = prepare(tmp_path_factory.mktemp("gone") / "before")
    done = run_child("train", "pets.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder.rename(folder.with_name("after"))


@pytest.fixture
def project(gone: Path, tmp_path: Path) -> Path:
    """Return a copy of all of it, in a folder of another name and depth."""
    return Path(shutil.copytree(gone, tmp_path / "deep/er"))


@pytest.fixture
def alone(gone: Path, tmp_path: Path) -> Path:
    """Return a folder with the run directory alone: my/pets."""
    shutil.copytree(gone / "runs/pets", tmp_path / "my/pets")
    return tmp_path


OLD = Path("/a/p/runs/pets")


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ("/a/p/tags.csv", "q/tags.csv"),
        ("/a/p/data/x.csv", "q/data/x.csv"),
        ("/a/p/tags.csv", "q/runs/tags.csv"),
        ("/a/p/runs/pets/tags.csv", "q/runs/dogs/tags.csv"),
        ("/a/p", "q"),
        ("/a/p/shards.tar/inner", "q/shards.tar/inner"),
    ],
)
def test_a_path_is_found_by_its_place_beside_the_run(
    tmp_path: Path, recorded: str, now: str
) -> None:
    """Below the folder that it shared with the run, or below one between that and the run."""
    run = tmp_path / "q/runs/dogs"
    run.mkdir(parents=True)
    file = tmp_path / now.removesuffix("/inner")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_again(Path(recorded), OLD, run) == tmp_path / now
    assert find_again(Path("/a/p/none.csv"), OLD, run) is None


def test_paths_of_windows_are_understood(tmp_path: Path) -> None:
    """A run copied from there; on another drive nothing is known."""
    run = tmp_path / "p/runs/pets"
    run.mkdir(parents=True)
    (tmp_path / "p/tags.csv").touch()
    old = Path("C:\\Users\\Ann\\p\\runs\\pets")
    assert find_again(Path("C:\\Users\\Ann\\p\\tags.csv"), old, run) == tmp_path / "p/tags.csv"
    assert find_again(Path("D:\\p\\tags.csv"), old, run) is None


def test_a_run_that_lies_higher_than_the_data_did(tmp_path: Path) -> None:
    """There is no folder so far above it."""
    assert find_again(Path("/a/b/c/d/e/x.csv"), Path("/a/runs"), Path("/")) is None


# ---- eval --------------------------------------------------------------------------------


def test_eval_finds_the_data_that_moved_with_the_run(project: Path, cli: Run) -> None:
    """It says so, and the numbers are the run's own."""
    done = cli("eval", "-c", "runs/pets", cwd=project)
    assert done.returncode == 0, done.stderr
    line = f"before/tags.csv is gone; {project / 'tags.csv'}, found beside the run, is read"
    assert line in done.stderr
    run, again = (
        json.loads((project / "runs/pets" / name).read_text())
        for name in ("metrics.json", "eval/metrics.json")
    )
    assert (run["mAP"], run["per_label"]) == (again["mAP"], again["per_label"])
    assert again["images_root"] == str(project)


def test_eval_does_not_take_another_table_for_the_runs_own(project: Path, cli: Run) -> None:
    """The one that is found has to give the validation examples that the run had."""
    rows = (project / "tags.csv").read_text().splitlines()
    (project / "tags.csv").write_text("\n".join(rows[:9]))
    done = cli("eval", "-c", "runs/pets", cwd=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has other validation examples than the run had; give the right table" in done.stderr
    assert not (project / "runs/pets/eval").exists()


def test_eval_of_a_run_alone_says_what_to_give(alone: Path, gone: Path, cli: Run) -> None:
    """In one line; each of the ways that it names works."""
    done = cli("eval", "-c", "my/pets", cwd=alone)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for words in ("/before/tags.csv (data.train)", "data.train=TABLE", "--data TABLE", "--images"):
        assert words in line
    table = gone / "tags.csv"
    done = cli("eval", "-c", "my/pets", f"data.train={table}", cwd=alone)
    assert done.stdout.startswith("5 images"), done.stderr
    assert "warning" not in done.stderr
    assert cli("eval", "-c", "my/pets", "--data", str(table), cwd=alone).returncode == 0
    shutil.copy(table, alone / "moved.csv")
    done = cli("eval", "-c", "my/pets", "data.train=moved.csv", cwd=alone)
    assert done.returncode == 2
    assert "--images FOLDER" in done.stderr.splitlines()[-1]
    asked = ("data.train=moved.csv", "--images", str(gone))
    done = cli("eval", "-c", "my/pets", *asked, cwd=alone)
    assert done.stdout.startswith("5 images"), done.stderr


def test_a_folder_of_pictures_moves_too(project: Path, cli: Run) -> None:
    """`data.images` is found like a table; where it is nowhere, that is said."""
    (project / "pictures").mkdir()
    (project / "images").rename(project / "pictures/images")
    config = f"{TINY}output: first\n".replace("tags.csv", "tags.csv\n  images: pictures")
    (project / "pets.yaml").write_text(config)
    assert cli("train", "pets.yaml", cwd=project).returncode == 0
    moved = project.rename(project.with_name("moved"))
    done = cli("eval", "-c", "first", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert f"data.images: {project / 'pictures'} is gone; {moved / 'pictures'}, " in done.stderr
    (moved / "pictures").rename(moved / "elsewhere")
    done = cli("eval", "-c", "first", cwd=moved)
    assert done.returncode == 2
    assert f"no {project / 'pictures'} (data.images)" in done.stderr
    done = cli("eval", "-c", "first", "--images", "elsewhere", cwd=moved)
    assert done.stdout.startswith("5 images"), done.stderr
    done = cli("eval", "-c", "first", "--data", "tags.csv", "data.images=elsewhere", cwd=moved)
    assert done.stdout.startswith("24 images"), done.stderr


def test_a_split_of_a_moved_table_is_verified_by_its_validation(project: Path, cli: Run) -> None:
    """The rows of test themselves are recorded nowhere."""
    header, *rows = (project / "tags.csv").read_text().splitlines()
    sides = [f"{row},{('train', 'val', 'test')[n % 3]}" for n, row in enumerate(rows)]
    (project / "tags.csv").write_text("\n".join([f"{header},split", *sides]))
    assert cli("train", "pets.yaml", "-o", "first", cwd=project).returncode == 0
    moved = project.rename(project.with_name("moved"))
    asked = ("eval", "-c", "first", "--split", "test")
    assert cli(*asked, cwd=moved).stdout.startswith("8 images")
    sides[1] = sides[1].replace(",val", ",test")
    (moved / "tags.csv").write_text("\n".join([f"{header},split", *sides]))
    done = cli(*asked, cwd=moved)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has other validation examples than the run had" in done.stderr


@pytest.mark.parametrize("given", [(), ("data.train=new/tags.csv",)])
def test_only_what_is_lost_is_asked_for(tmp_path: Path, given: tuple[str, ...]) -> None:
    """The table is where it was, or was given: the pictures alone are named."""
    data = {"train": "/gone/tags.csv" if given else str(tmp_path), "images": "/gone/photos"}
    advice = {"train": "data.train=TABLE", "images": "--images FOLDER"}
    old = ("output=/gone/runs/pets",)
    recorded = build_config({"data": data}, old)
    with pytest.raises(DataError) as caught:
        find_data(build_config({"data": data}, (*old, *given)), recorded, tmp_path, advice)
    assert str(caught.value).endswith("no /gone/photos (data.images); give --images FOLDER")


# ---- report, compare, predict --------------------------------------------------------------


def test_report_finds_the_pictures_that_moved_with_the_run(project: Path, cli: Run) -> None:
    """Of a run, and of the folder in it that eval wrote."""
    (project / "runs/pets/report.html").unlink()
    shutil.copytree(project / "runs/pets", project / "runs/pets/eval")
    (project / "runs/pets/eval/config.yaml").unlink()
    for name in ("runs/pets", "runs/pets/eval"):
        done = cli("report", name, cwd=project)
        assert done.returncode == 0, done.stderr
        assert f"is gone; the page shows the pictures under {project}, beside" in done.stderr
        assert "cross" not in done.stderr


def test_report_without_pictures_says_so_and_writes_the_page(alone: Path, cli: Run) -> None:
    """With crosses, and with what shows the pictures again."""
    (alone / "my/pets/report.html").unlink()
    done = cli("report", "my/pets", cwd=alone)
    assert done.returncode == 0, done.stderr
    assert "pictures of the page not there, the first" in done.stderr
    assert "each is a grey cross; `mlfinetune eval --images FOLDER`" in done.stderr
    assert (alone / "my/pets/report.html").is_file()


def test_compare_and_predict_need_no_data(alone: Path, gone: Path, cli: Run) -> None:
    """Scores and names are in the run directory; pictures are compared by name."""
    shutil.copytree(alone / "my/pets", alone / "other")
    done = cli("compare", "my/pets", "other", "--resamples", "20", cwd=alone)
    assert "5 images and 8 labels that both scored" in done.stdout, done.stderr
    picture = next((gone / "images").iterdir())
    assert cli("predict", str(picture), "-c", "other", cwd=alone).returncode == 0


# ---- train -------------------------------------------------------------------------------


def test_a_moved_run_is_resumed_where_its_data_is_found(project: Path, cli: Run) -> None:
    """The directory that the config lies in is resumed, whatever folder the config names."""
    (project / "runs/pets/metrics.json").unlink()
    done = cli("train", "runs/pets/config.yaml", "--resume", cwd=project)
    assert done.returncode == 0, done.stderr
    assert f"{project / 'tags.csv'}, found beside the run, is read" in done.stderr
    assert "run directory: runs/pets\n" in done.stderr
    assert f"train: {project / 'tags.csv'}\n" in (project / "runs/pets/config.yaml").read_text()
    assert "all epochs are" in cli("train", "pets.yaml", "--resume", cwd=project).stderr
    rows = (project / "tags.csv").read_text()
    (project / "tags.csv").write_text(rows.replace("red", "green", 1))
    done = cli("train", "runs/pets/config.yaml", "--resume", cwd=project)
    assert done.returncode == 2
    assert "validation data: other names, labels or targets than before" in done.stderr


def test_a_moved_run_without_its_data_says_what_to_give(alone: Path, gone: Path, cli: Run) -> None:
    """And takes it: the state tells whether it is the same data."""
    command = ("train", "my/pets/config.yaml", "--resume")
    done = cli(*command, cwd=alone)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/before/tags.csv (data.train); give data.train=TABLE" in line
    done = cli(*command, f"data.train={gone / 'tags.csv'}", cwd=alone)
    assert done.returncode == 0, done.stderr
    assert "all epochs are trained" in done.stderr


def test_a_new_run_of_a_moved_config_goes_beside_it(alone: Path, gone: Path, cli: Run) -> None:
    """Not into a folder made anew where the former run was."""
    table = f"data.train={gone / 'tags.csv'}"
    done = cli("train", "my/pets/config.yaml", table, cwd=alone)
    assert done.returncode == 0, done.stderr
    assert "run directory: my/pets-2\n" in done.stderr
    assert not gone.with_name("before").exists()


def test_a_solved_run_compares_validation_where_its_data_moved(project: Path, cli: Run) -> None:
    """It keeps no state; the checkpoint knows the validation examples."""
    frozen = ("model.freeze_backbone=true", "-o", "first")
    assert cli("train", "pets.yaml", *frozen, cwd=project).returncode == 0
    moved = project.rename(project.with_name("moved"))
    command = ("train", "first/config.yaml", "--resume")
    copy = shutil.copytree(moved, moved.with_name("copy"))
    assert cli(*command, cwd=copy).returncode == 0
    rows = (moved / "tags.csv").read_text().splitlines()
    (moved / "tags.csv").write_text("\n".join(rows[:9]))
    done = cli(*command, cwd=moved)
    assert done.returncode == 2
    assert "validation data: other names, labels or targets than before" in done.stderr


def test_weights_that_moved_are_given_anew(project: Path, cli: Run) -> None:
    """Nothing tells whether a file is the same, so the change has to be allowed."""
    shutil.move(project / "runs/pets/best.safetensors", project / "old.safetensors")
    weights = ("model.weights=old.safetensors", "-o", "first")
    assert cli("train", "pets.yaml", *weights, cwd=project).returncode == 0
    (project / "old.safetensors").rename(project / "new.safetensors")
    command = ("train", "first/config.yaml", "--resume")
    done = cli(*command, cwd=project)
    assert done.returncode == 2
    assert "model.weights=FILE, together with --allow-changed" in done.stderr
    done = cli(*command, "model.weights=new.safetensors", "--allow-changed", cwd=project)
    assert done.returncode == 0, done.stderr
    assert cli("eval", "-c", "first", cwd=project).returncode == 0
