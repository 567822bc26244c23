"""`mlfinetune next` as a user runs it."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import demo_data
import numpy as np
import pytest
from conftest import TINY, Run, prepare

from mlfinetune.data.read import read_manifest
from mlfinetune.data.readers.json_table import read_json
from mlfinetune.data.table import SourceOptions
from mlfinetune.data.targets import LabelSpace

RUN = "runs/pets"


@pytest.fixture(scope="module")
def pool(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 30 pictures, two of them the run's, one given twice, one unreadable."""
    folder = tmp_path_factory.mktemp("pool")
    demo_data.write(folder, count=26, size=32, seed=5)
    (folder / "tags.csv").unlink()
    for name in ("0003.png", "0008.jpg"):
        shutil.copy(exported / "images" / name, folder / f"copied {name}")
    shutil.copy(folder / "images/0001.png", folder / "=again.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def count(said: str) -> dict[str, int]:
    """Return the numbers of the line that counts all pictures."""
    [line] = re.findall(r"^\d+ pictures?: \d+ chosen.*$", said, re.MULTILINE)
    return {what: int(n) for n, what in re.findall(r"(\d+) ([a-z ]+)", line)}


def test_what_is_chosen_and_what_is_left_out(exported: Path, pool: Path, cli: Run) -> None:
    """Neither the run's pictures nor copies of them; the numbers add up; a bad file is named."""
    done = cli("next", RUN, "images", str(pool), "-n", "8", cwd=exported)
    assert done.returncode == 3, done.stderr
    found = rows(done.stdout)
    assert [row["rank"] for row in found] == [str(n) for n in range(1, 9)]
    images = {Path(row["image"]) for row in found}
    assert len(images) == 8
    assert {path.parent for path in images} <= {pool, pool / "images"}
    assert not {path.name for path in images} & {"copied 0003.png", "broken.jpg"}
    numbers = count(done.stderr)
    assert numbers["of the run itself"] == 24 + 2
    assert numbers["given before"] == numbers["unreadable"] == 1
    total = numbers.pop("pictures")
    assert total == 24 + 30 == sum(numbers.values())
    assert "1 picture could not be read" in done.stderr
    assert "broken.jpg: " in done.stderr


def test_the_reasons_and_tags_are_those_of_predict(exported: Path, pool: Path, cli: Run) -> None:
    """Proposed labels and probabilities agree, and a reason names probability and threshold."""
    found = rows(cli("next", RUN, str(pool), "-n", "5", cwd=exported).stdout)
    predicted = rows(cli("predict", *(r["image"] for r in found), "-c", RUN, cwd=exported).stdout)
    for row, other in zip(found, predicted, strict=True):
        labels = row["labels"].split("|") if row["labels"] else []
        assert set(labels) == set(filter(None, other["labels"].split("|")))
        for name, p in zip(labels, row["probabilities"].split("|"), strict=bool(labels)):
            assert float(p) == pytest.approx(float(other[name]), abs=1e-4)
        reason = re.match(r"undecided: (\w+) ([\d.]+) \((?:no )?threshold", row["reason"])
        assert reason
        assert float(reason[2]) == pytest.approx(float(other[reason[1]]), abs=0.006)


def test_three_files_that_can_be_used(exported: Path, pool: Path, cli: Run, tmp_path: Path) -> None:
    """The table trains, the tasks come back as its labels, and the page needs nothing else."""
    done = cli("next", RUN, str(pool), "-n", "9", "-o", str(tmp_path / "a.csv"), cwd=exported)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    table = (tmp_path / "a.csv").read_text()
    names = LabelSpace(tuple((exported / RUN / "labels.txt").read_text().split()))
    options = SourceOptions(allow_outside_root=True)
    manifest, _ = read_manifest(tmp_path / "a.csv", None, options, names, False, None)
    tasks = json.loads((tmp_path / "a.json").read_text())
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    assert [task["data"]["rank"] for task in tasks] == list(range(1, 10))
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    back = read_json(tmp_path / "export.json", SourceOptions())
    assert len(manifest) == len(back.names) == 9
    for row, states in zip(rows(table), back.targets, strict=True):
        given = {name for name, one in zip(back.labels.names, states, strict=True) if one == 1}
        assert given == set(filter(None, row["labels"].split("|")))
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 9
    assert not re.search(r"(src|href)=.?(http|/)|<script", page)


def test_nothing_is_overwritten(exported: Path, pool: Path, cli: Run, tmp_path: Path) -> None:
    """People may have corrected any of the three files."""
    for ending in ("csv", "html", "json"):
        kept = tmp_path / f"a.{ending}"
        kept.write_text("mine")
        done = cli("next", RUN, str(pool), "-o", str(tmp_path / "a.csv"), cwd=exported)
        assert done.returncode == 2
        assert f"a.{ending} is there already" in done.stderr
        assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(kept, "mine")]
        kept.unlink()


def test_more_than_there_are(exported: Path, pool: Path, cli: Run) -> None:
    """It is said, and all that are left are chosen; also where none are."""
    done = cli("next", RUN, str(pool / "images"), "-n", "500", cwd=exported)
    assert done.returncode == 0, done.stderr
    assert "-n 500 asked for more than there are" in done.stderr
    assert len(rows(done.stdout)) == count(done.stderr)["chosen"] > 8
    done = cli("next", RUN, "images", cwd=exported)
    assert (done.returncode, rows(done.stdout)) == (0, []), done.stderr
    assert "24 pictures: 0 chosen, 24 of the run itself; -n 200" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("pets.onnx", "images"), "no features; use the checkpoint"),
        ((RUN, "nowhere"), "no such file or folder"),
        ((RUN, "runs"), "no pictures in runs"),
        ((RUN, "images", "-o", "next.xlsx"), "wanted a name ending in .csv"),
        ((RUN, "images", "-n", "0"), "-n"),
        (("runs", "images"), "holds no best.safetensors"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], text: str, exported: Path, cli: Run) -> None:
    """Each has one line that says what is wrong."""
    done = cli("next", *arguments, cwd=exported)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_a_run_whose_tables_are_gone(exported: Path, cli: Run, tmp_path: Path) -> None:
    """What it was trained on is still left out, by its own record; what is lost is said."""
    shutil.copytree(exported / RUN, tmp_path / "pets")
    (exported / "tags.csv").rename(exported / "tags.bak")
    try:
        done = cli("next", str(tmp_path / "pets"), str(exported / "images"), cwd=tmp_path)
    finally:
        (exported / "tags.bak").rename(exported / "tags.csv")
    assert done.returncode == 0, done.stderr
    assert "warning: the run's own pictures are not read" in done.stderr
    with np.load(tmp_path / "pets/trained_on.npz") as record:
        kept = len(record["contents"]) + len(record["held_contents"])
    assert count(done.stderr)["of the run itself"] == kept == 24


def test_a_frozen_run_computes_no_picture_twice(tmp_path: Path, cli: Run) -> None:
    """Features of its own pictures are kept by training, those of others by the first command."""
    prepare(tmp_path, 8)
    demo_data.write(tmp_path / "more", count=4, size=32, seed=5)
    settings = ("model.freeze_backbone=true", "data.val_fraction=0.5")
    assert cli("train", "pets.yaml", *settings, cwd=tmp_path).returncode == 0
    labelled, new = "features of labelled pictures: 8 wanted, 8 kept", "features of new pictures: 4"
    for kept in (0, 4):
        done = cli("next", RUN, "more/images", "-n", "2", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert labelled in done.stderr
        assert f"{new} wanted, {kept} kept" in done.stderr


def test_a_run_of_several_tables(tmp_path: Path, cli: Run) -> None:
    """A picture that two of them have, under two names, is one labelled picture."""
    prepare(tmp_path, 12)
    shutil.copytree(tmp_path / "images", tmp_path / "more/images")
    named = "".join(f"images/{path.name},odd\n" for path in (tmp_path / "images").iterdir())
    (tmp_path / "more/tags.csv").write_text(f"image,labels\n{named}")
    tables = "data.train=[tags.csv, more/tags.csv]"
    done = cli("train", "pets.yaml", tables, "model.freeze_backbone=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = cli("next", RUN, "more/images", cwd=tmp_path)
    assert "features of labelled pictures: 12 wanted, 12 kept" in done.stderr
    assert "12 pictures: 0 chosen, 12 of the run itself" in done.stderr


@pytest.mark.parametrize(("below", "first"), [("todo", "../images/"), ("", "images/")])
def test_the_table_trains_where_it_lies(
    below: str, first: str, exported: Path, pool: Path, cli: Run, tmp_path: Path
) -> None:
    """It names pictures from its own folder, and the tasks as they were given."""
    shutil.copytree(pool / "images", tmp_path / "images")
    (tmp_path / "todo").mkdir()
    run, output = str(exported / RUN), str(Path(below, "next.csv"))
    done = cli("next", run, "images", "-o", output, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [row["image"] for row in rows((tmp_path / output).read_text())]
    assert all(name.startswith(first) for name in names)
    [task, *_] = json.loads((tmp_path / output).with_suffix(".json").read_text())
    assert task["data"]["image"].startswith("images/")
    advice = "data.allow_outside_root: true"
    assert (advice in done.stderr) == bool(below)
    (tmp_path / "pets.yaml").write_text(TINY.replace("tags.csv", output))
    more = ["data.allow_outside_root=true"] if below else []
    done = cli("check", "pets.yaml", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
