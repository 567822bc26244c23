"""Pictures under several roots: check, train, eval and report read the same ones."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run


@pytest.fixture
def sides(pictures: Path) -> Path:
    """Return a folder with left/ and right/, each with tags.csv and images/, of one name each."""
    header, *rows = (pictures / "tags.csv").read_text().splitlines()
    for side, part in (("left", rows[:16]), ("right", rows[16:])):
        (pictures / side / "images").mkdir(parents=True)
        named = []
        for number, row in enumerate(part):
            name, _, labels = row.partition(",")
            new = f"images/{number}{Path(name).suffix}"
            shutil.move(pictures / name, pictures / side / new)
            named.append(f"{new},{labels}")
        (pictures / side / "tags.csv").write_text("\n".join([header, *named]))
    (pictures / "tags.csv").unlink()
    return pictures


def write_config(folder: Path, **data: str) -> None:
    keys = "".join(f"  {key}: {value}\n" for key, value in data.items())
    (folder / "pets.yaml").write_text(TINY.replace("  train: tags.csv\n", keys))


def agree(cli: Run, folder: Path, train: int, val: int) -> str:
    """Check, train, eval and report; assert that all read so many pictures, and return the log."""
    checked = cli("check", "pets.yaml", cwd=folder)
    assert "cannot" not in checked.stdout + checked.stderr
    done = cli("train", "pets.yaml", cwd=folder)
    assert f"{train} images to train, {val} to validate" in done.stderr, done.stderr
    scored = cli("eval", "-c", "runs/pets", cwd=folder)
    assert scored.stdout.startswith(f"{val} images"), scored.stderr
    assert "warning" not in scored.stderr
    run, again = (
        json.loads((folder / "runs/pets" / name).read_text())
        for name in ("metrics.json", "eval/metrics.json")
    )
    assert run["per_label"] == again["per_label"]
    assert "cross" not in cli("report", "runs/pets", cwd=folder).stderr
    return done.stderr


def test_each_table_lies_beside_its_own_pictures(sides: Path, cli: Run) -> None:
    """Their names are the same; the pictures are not."""
    write_config(sides, train="left/tags.csv", val="right/tags.csv")
    assert "in both train and val" not in agree(cli, sides, 16, 8)


def test_both_tables_start_from_one_root(sides: Path, cli: Run) -> None:
    """`data.images` is that of train and of val, wherever the tables lie."""
    tables = {}
    for side in ("left", "right"):
        rows = (sides / side / "tags.csv").read_text().replace("images/", f"{side}/images/")
        (sides / "tables" / side).mkdir(parents=True)
        (sides / "tables" / side / "tags.csv").write_text(rows)
        tables[side] = f"tables/{side}/tags.csv"
    write_config(sides, train=tables["left"], val=tables["right"], images=".")
    agree(cli, sides, 16, 8)


@pytest.mark.parametrize("allowed", [True, False])
def test_absolute_names_of_two_folders(
    sides: Path, cli: Run, tmp_path_factory: pytest.TempPathFactory, allowed: bool
) -> None:
    """One table with names that lead out of its folder: refused, or allowed and read by all."""
    other = tmp_path_factory.mktemp("table")
    rows = []
    for side, mark in (("left", "train"), ("right", "val")):
        with (sides / side / "tags.csv").open() as file:
            for row in csv.DictReader(file):
                rows.append([str(sides / side / row["image"]), row["labels"], mark])
    with (other / "all.csv").open("w") as file:
        csv.writer(file).writerows([["image", "labels", "split"], *rows])
    write_config(other, train="all.csv", allow_outside_root=str(allowed).lower())
    if allowed:
        agree(cli, other, 16, 8)
        return
    for command in ("check", "train"):
        done = cli(command, "pets.yaml", cwd=other)
        assert done.returncode == 2
        assert "allow_outside_root" in done.stdout + done.stderr


def test_two_coco_files_beside_their_pictures(sides: Path, cli: Run) -> None:
    """As Roboflow exports them: names, ids and categories are those of each file."""
    for side in ("left", "right"):
        with (sides / side / "tags.csv").open() as file:
            rows = list(csv.DictReader(file))
        names = sorted({name for row in rows for name in row["labels"].split("|") if name})
        content = {
            "images": [{"id": n, "file_name": row["image"]} for n, row in enumerate(rows)],
            "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "category_id": names.index(name) + 1}
                for n, row in enumerate(rows)
                for k, name in enumerate(filter(None, row["labels"].split("|")))
            ],
        }
        (sides / side / "_annotations.coco.json").write_text(json.dumps(content))
        (sides / side / "tags.csv").unlink()
    files = {"train": "left", "val": "right"}
    write_config(sides, **{k: f"{side}/_annotations.coco.json" for k, side in files.items()})
    agree(cli, sides, 16, 8)


def test_other_data_is_scored_beside_its_own_table(sides: Path, cli: Run) -> None:
    """The root of the run is not that of other data, unless it is given."""
    write_config(sides, train="left/tags.csv", images="left", val_fraction="0.25")
    assert cli("train", "pets.yaml", cwd=sides).returncode == 0
    asked = ("eval", "-c", "runs/pets", "--data", "right/tags.csv")
    assert cli(*asked, cwd=sides).stdout.startswith("8 images")
    shutil.move(sides / "right/tags.csv", sides / "tags.csv")
    asked = ("eval", "-c", "runs/pets", "--data", "tags.csv")
    done = cli(*asked, cwd=sides)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--images FOLDER")
    for given in (("--images", "right"), ("data.images=right",)):
        assert cli(*asked, *given, cwd=sides).stdout.startswith("8 images")
